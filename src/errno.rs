//! Errors as errnos, the common language of the engine, its front ends and its layers.

use std::{fmt, io, result};

pub use libc::{
    E2BIG, EACCES, EADDRINUSE, EAGAIN, EBADF, EBUSY, ECANCELED, ECONNABORTED, ECONNREFUSED, EDQUOT, EEXIST, EFBIG,
    EINTR, EINVAL, EIO, EISDIR, ELOOP, EMFILE, EMLINK, ENAMETOOLONG, ENFILE, ENODATA, ENODEV, ENOENT, ENOLCK, ENOMEM,
    ENOSPC, ENOSYS, ENOTCONN, ENOTDIR, ENOTEMPTY, ENOTTY, ENXIO, EOPNOTSUPP, EOVERFLOW, EPERM, EPIPE, ERANGE, EROFS,
    ESRCH, ESTALE, EXDEV,
};

/// Another process has the requested object, such as a lock. The number is that of Redox: Linux has
/// one number for this and for [`EAGAIN`].
pub const EWOULDBLOCK: i32 = 41;

/// The reason why an operation failed. Its text is the system's, as a clause.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Error {
    /// The number: one of the constants of this module.
    pub errno: i32,
}

/// The result of an operation that fails with an errno.
pub type Result<T, E = Error> = result::Result<T, E>;

impl Error {
    /// The error with this number.
    pub const fn new(errno: i32) -> Self {
        Self { errno }
    }

    /// Returns the number of the error on this system.
    pub const fn raw_os_error(self) -> i32 {
        if self.errno == EWOULDBLOCK { libc::EWOULDBLOCK } else { self.errno }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from(*self).to_string();
        // The standard library appends the number.
        f.write_str(text.split_once(" (os error").map_or(&*text, |(clause, _)| clause))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({})", self.errno)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::from_raw_os_error(error.raw_os_error())
    }
}

/// The errnos of Redox have the numbers of Linux.
#[cfg(feature = "scheme")]
impl From<syscall::Error> for Error {
    fn from(error: syscall::Error) -> Self {
        Self::new(error.errno)
    }
}

#[cfg(feature = "scheme")]
impl From<libredox::error::Error> for Error {
    fn from(error: libredox::error::Error) -> Self {
        Self::new(error.errno())
    }
}

#[cfg(feature = "scheme")]
impl From<Error> for syscall::Error {
    fn from(error: Error) -> Self {
        Self::new(error.errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_a_clause() {
        assert_eq!(Error::new(ENOENT).to_string(), "No such file or directory");
        assert_eq!(
            Error::new(EWOULDBLOCK).to_string(),
            io::Error::from_raw_os_error(libc::EWOULDBLOCK).to_string().split(" (").next().unwrap()
        );
    }

    #[cfg(feature = "scheme")]
    #[test]
    fn numbers_are_those_of_redox() {
        use syscall::error as redox;
        let pairs = [
            (EIO, redox::EIO),
            (EDQUOT, redox::EDQUOT),
            (ENODATA, redox::ENODATA),
            (EOPNOTSUPP, redox::EOPNOTSUPP),
            (ECANCELED, redox::ECANCELED),
            (ESTALE, redox::ESTALE),
            (EOVERFLOW, redox::EOVERFLOW),
            (EWOULDBLOCK, redox::EWOULDBLOCK),
            (EAGAIN, redox::EAGAIN),
        ];
        for (ours, theirs) in pairs {
            assert_eq!(ours, theirs);
        }
    }
}
