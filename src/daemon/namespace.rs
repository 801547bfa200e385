//! The namespace in which the daemon serves: an empty one.
//!
//! The manager of namespaces, one process, looks up all paths from the root of the system. It opens
//! a path for its client itself, and waits for the answer of the scheme. So once the name of this
//! daemon is known, the manager may be waiting for this daemon. A request to it would then never
//! end: a path, a new namespace, a new name. So the daemon asks for all it needs before.

use syscall::error::Result;

/// An empty namespace without a process in it.
pub struct Empty(libredox::Fd);

impl Empty {
    /// Asks the manager for an empty namespace.
    ///
    /// # Errors
    ///
    /// Those of the manager of namespaces.
    pub fn make() -> Result<Self> {
        Ok(Self(libredox::Fd::new(libredox::call::mkns(&[])?)))
    }

    /// Enters the namespace with all threads. Closes the old namespace, which reaches everything.
    /// Asks no other process.
    ///
    /// # Errors
    ///
    /// Those of setns and close.
    pub fn enter(self) -> Result<()> {
        let left = libredox::call::setns(self.0.into_raw())?;
        Ok(libredox::call::close(left)?)
    }
}
