//! Hostile input. Any bytes become the requests of a client to a daemon with a small overlay, as on
//! Redox. They also become the contents of layers, archives, and the words of a command line.
//!
//! | file | subject |
//! | --- | --- |
//! | `backing` | the layers, the daemon above them, and the checks after the client has left |
//! | `client` | the hostile client, its open handles, and the conditions on every answer |
//! | `request` | from bytes to a request: mostly a usual one, sometimes anything that the kernel passes on |
//! | `tree` | the tree that the scheme shows, for comparisons |
//! | `layer_contents` | hostile layers |
//! | `fuse_requests` | a hostile Linux kernel above the mount |
//! | `archives` | hostile archives for an import |
//! | `command_lines` | command lines and lists of options |
//!
//! A fault shows as a panic. The daemon catches its own panics, so the program that calls these
//! functions must end the process at each panic.

pub mod archives;
mod backing;
mod client;
pub mod command_lines;
pub mod fuse_requests;
pub mod layer_contents;
mod request;
mod tree;

pub use backing::Backing;
