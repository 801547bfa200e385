//! The namespace in which the daemon serves: an empty one.
//!
//! Paths from the root of the system are looked up by the manager of namespaces, which is one
//! process. It opens a path itself for whoever asks, and waits for the answer of the scheme that is
//! named. So from the moment that our name is known, whatever we ask it may be asked while it waits
//! for us: to look up a path, to make a namespace, to register a name. Then nobody gets any
//! further. So what is needed of it is asked before.

use syscall::error::Result;

/// An empty namespace that nobody is in yet.
pub struct Empty(libredox::Fd);

impl Empty {
    /// Asks the manager for one.
    pub fn make() -> Result<Self> {
        Ok(Self(libredox::Fd::new(libredox::call::mkns(&[])?)))
    }

    /// Enters it with all threads, and closes the one that is left, through which everything could
    /// still be reached. Nobody is asked.
    pub fn enter(self) -> Result<()> {
        let left = libredox::call::setns(self.0.into_raw())?;
        Ok(libredox::call::close(left)?)
    }
}
