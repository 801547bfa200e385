//! The pipe at which init waits for a daemon that it has started.
//!
//! It waits for a byte, when the name is registered (a unit of `type = "notify"`), or for the
//! descriptor of the scheme itself, to which init gives the name (`type = { scheme = "NAME" }`).
//! Nobody can tell from the pipe which of the two it is. The number of the pipe is in
//! `INIT_NOTIFY`, which everything inherits that a service starts, without the pipe in most cases:
//! then the number is nobody's, or that of something else.

use libredox::Fd;
use log::warn;
use syscall::error::{EBADF, EPIPE, Result};
use syscall::flag::{CallFlags, F_SETFD, MODE_FIFO, MODE_TYPE};

/// Where init says at which descriptor it waits.
const INIT_NOTIFY: &str = "INIT_NOTIFY";

/// Init, if it waits.
pub struct Init(std::result::Result<Fd, String>);

impl Init {
    /// Reads the variable, and takes it out of the environment. To be called before anything is
    /// opened, since the number of a pipe that was not inherited is given to what is opened next.
    ///
    /// # Safety
    /// The process must have one thread.
    pub unsafe fn from_environment() -> Self {
        let Ok(number) = std::env::var(INIT_NOTIFY) else {
            return Self(Err(format!("{INIT_NOTIFY} is not set, so there is no init to hand the scheme to")));
        };
        // SAFETY: as promised by the caller, nobody else reads the environment.
        unsafe { std::env::remove_var(INIT_NOTIFY) };
        Self(match number.parse() {
            Ok(descriptor) if is_pipe(descriptor) => Ok(Fd::new(descriptor)),
            Ok(_) => Err(format!("{INIT_NOTIFY}={number} names no open pipe, so init does not wait")),
            Err(error) => Err(format!("{INIT_NOTIFY}={number}: {error}")),
        })
    }

    /// Says that the name is registered, if anybody waits for that.
    pub fn tell(self) {
        let Self(Ok(pipe)) = self else {
            return;
        };
        match pipe.write(&[0]) {
            // The pipe is that of another service, which has had its answer.
            Err(error) if !matches!(error.errno(), EBADF | EPIPE) => {
                warn!("init cannot be told that the scheme is ready: {error}");
            }
            _ => {}
        }
    }

    /// Whether there is somebody to hand the scheme to. If not, the error says why.
    pub fn check(&self) -> std::result::Result<(), String> {
        self.0.as_ref().map(drop).map_err(Clone::clone)
    }

    /// Hands over the descriptor of the scheme, if anybody waits.
    pub fn hand_over(self, scheme: usize) -> Result<()> {
        if let Self(Ok(pipe)) = self {
            pipe.call_wo(&scheme.to_ne_bytes(), CallFlags::FD, &[])?;
        }
        Ok(())
    }
}

/// Whether a descriptor was inherited and is a pipe. What is started by us does not inherit it.
fn is_pipe(descriptor: usize) -> bool {
    let found = libredox::call::fstat(descriptor);
    let is_pipe = found.is_ok_and(|found| found.st_mode as u16 & MODE_TYPE == MODE_FIFO);
    is_pipe && libredox::call::fcntl(descriptor, F_SETFD, libredox::flag::O_CLOEXEC as usize).is_ok()
}
