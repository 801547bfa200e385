//! The standard streams of a process in the background. It leaves those that it inherited: its
//! caller may wait for their end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

/// The file that is empty and takes all writes.
const NULL: &str = if cfg!(target_os = "redox") { "/scheme/null" } else { "/dev/null" };

/// Standard input, output and error of a daemon in the background.
pub struct Streams {
    null: File,
    /// The file for messages. None: there is no log.
    log: Option<File>,
}

impl Streams {
    /// Opens the streams. In the log, the daemon has a part with its name.
    ///
    /// # Errors
    ///
    /// Those of open(2) for the null device.
    pub fn open() -> io::Result<Self> {
        let null = File::options().read(true).write(true).open(NULL)?;
        let log = cfg!(target_os = "redox").then(|| File::options().write(true).open("/scheme/log/overlayfs"));
        Ok(Self { null, log: log.and_then(Result::ok) })
    }

    /// Replaces the inherited streams. Looks up no path.
    ///
    /// # Errors
    ///
    /// Those of dup2(2).
    pub fn put_in_place(self) -> io::Result<()> {
        let log = self.log.as_ref().unwrap_or(&self.null);
        [(&self.null, libc::STDIN_FILENO), (&self.null, libc::STDOUT_FILENO), (log, libc::STDERR_FILENO)]
            .into_iter()
            .try_for_each(|(file, number)| replace(file.as_raw_fd(), number))
    }
}

fn replace(file: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: both are numbers, and nothing owns those of the standard streams.
    if unsafe { libc::dup2(file, number) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
