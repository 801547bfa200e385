//! The pipe at which init waits for a daemon that it has started.
//!
//! Init waits for a byte after the registration of the name (a unit of `type = "notify"`). Or it
//! waits for the descriptor of the scheme itself, and registers the name (`type = { scheme = "NAME"
//! }`). The pipe does not show which of the two. The variable `INIT_NOTIFY` has its number. All
//! processes below a service inherit the variable, mostly without the pipe. Then the number is
//! free, or that of another file.

use libredox::Fd;
use log::warn;
use syscall::error::{EBADF, EPIPE, Result};
use syscall::flag::{CallFlags, F_SETFD, MODE_FIFO, MODE_TYPE};

/// The variable with the number of init's pipe.
const INIT_NOTIFY: &str = "INIT_NOTIFY";

/// Init, if it waits.
pub struct Init(std::result::Result<Fd, String>);

impl Init {
    /// Reads the variable, and removes it from the environment. The caller must not have opened
    /// anything before: a new file gets the number of a pipe that was not inherited.
    ///
    /// # Safety
    ///
    /// The process must have one thread.
    pub unsafe fn from_environment() -> Self {
        let Ok(number) = std::env::var(INIT_NOTIFY) else {
            return Self(Err(format!("{INIT_NOTIFY} is not set, so there is no init to hand the scheme to")));
        };
        // SAFETY: as the caller promises, no other thread reads the environment.
        unsafe { std::env::remove_var(INIT_NOTIFY) };
        Self(match number.parse() {
            Ok(descriptor) if is_pipe(descriptor) => Ok(Fd::new(descriptor)),
            Ok(_) => Err(format!("{INIT_NOTIFY}={number} names no open pipe, so init does not wait")),
            Err(error) => Err(format!("{INIT_NOTIFY}={number}: {error}")),
        })
    }

    /// Returns an init that does not wait, for a daemon that another process has started.
    pub fn absent() -> Self {
        Self(Err("init has not started this daemon".to_owned()))
    }

    /// Tells init that the name is registered, if init waits.
    pub fn tell(self) {
        let Self(Ok(pipe)) = self else {
            return;
        };
        match pipe.write(&[0]) {
            // The pipe is that of another service, which has had its answer.
            Err(error) if !matches!(error.errno(), EBADF | EPIPE) => {
                warn!("cannot tell init that the scheme is ready: {error}");
            }
            _ => {}
        }
    }

    /// Checks that init waits for the scheme. The error says why it does not.
    ///
    /// # Errors
    ///
    /// The sentence says why init does not wait.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.0.as_ref().map(drop).map_err(Clone::clone)
    }

    /// Hands the descriptor of the scheme over, if init waits.
    ///
    /// # Errors
    ///
    /// Those of the call to init.
    pub fn hand_over(self, scheme: usize) -> Result<()> {
        if let Self(Ok(pipe)) = self {
            pipe.call_wo(&scheme.to_ne_bytes(), CallFlags::FD, &[])?;
        }
        Ok(())
    }
}

/// Whether a descriptor was inherited and is a pipe. Sets it to close in programs that this one
/// starts.
fn is_pipe(descriptor: usize) -> bool {
    let found = libredox::call::fstat(descriptor);
    let is_pipe = found.is_ok_and(|found| found.st_mode as u16 & MODE_TYPE == MODE_FIFO);
    is_pipe && libredox::call::fcntl(descriptor, F_SETFD, libredox::flag::O_CLOEXEC as usize).is_ok()
}
