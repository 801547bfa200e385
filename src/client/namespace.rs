//! A namespace whose `/` is an overlay: its scheme `file` is the root of the overlay.
//!
//! A process finds schemes by the list of its namespace alone. So a program there reaches the
//! overlay and the schemes of the list. relibc writes the scheme `file` as `/`, and all other paths
//! with the name of their scheme. So the overlay is in the list with its own name, too.

use ioslice::IoSlice;
use libredox::flag::O_DIRECTORY;
use libredox::{Fd, call};

use crate::errno::{Error, Result};

/// A namespace without a process in it.
pub struct Namespace(Fd);

impl Namespace {
    /// Makes the namespace of an overlay that a daemon serves as the scheme `name`, with `others`
    /// of the schemes that this process has.
    ///
    /// # Errors
    ///
    /// Those of the scheme and of the manager of namespaces.
    pub fn of(name: &str, others: &[&str]) -> Result<Self> {
        let top = Fd::open(&format!("/scheme/{name}"), O_DIRECTORY, 0).map_err(errno)?;
        let names: Vec<_> = others.iter().chain([&name]).map(|name| IoSlice::new(name.as_bytes())).collect();
        let namespace = Fd::new(call::mkns(&names).map_err(errno)?);
        call::register_scheme_to_ns(namespace.raw(), "file", top.into_raw()).map_err(errno)?;
        Ok(Self(namespace))
    }

    /// Puts this process into the namespace. It keeps its open files, but no way to the namespace
    /// that it leaves.
    ///
    /// # Errors
    ///
    /// Those of setns and close.
    pub fn enter(&self) -> Result<()> {
        let left = call::setns(self.0.raw()).map_err(errno)?;
        call::close(left).map_err(errno)
    }
}

fn errno(error: libredox::error::Error) -> Error {
    Error::new(error.errno())
}
