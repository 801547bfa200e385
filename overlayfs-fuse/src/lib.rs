//! The FUSE mount of an overlay on Linux: the library of its program.
//!
//! | file | subject |
//! | --- | --- |
//! | `program` | the program: its process, its layers, its life from mount to unmount |
//! | `options`, `usage` | the command line, and the text that explains it |
//! | `inherited`, `logger`, `sandbox` | limits and signals of the parent, messages, dropped rights |
//! | `patience` | how long a mount waits for another one of the same upper layer |
//! | `mount` | mounting and unmounting |
//! | `session` | the device, and the threads that take requests from it |
//! | `settle` | when changes are completed and synced, and for how long umount waits |
//! | `dispatch`, `wire`, `flags` | from the bytes of a request to a call of the front end and back |
//! | `front_end` | the trait of front ends, and its types |
//! | `engine` | the front end that calls the engine |
//! | `identity` | the owners that the mount shows |
//!
//! The package `linux-delegate` has another front end, for tests. It sends each request through the
//! scheme that serves Redox.

#![warn(missing_docs, clippy::too_many_lines)]

pub mod dispatch;
pub mod engine;
mod flags;
pub mod front_end;
pub mod identity;
pub mod inherited;
pub mod logger;
pub mod mount;
pub mod options;
pub mod patience;
pub mod program;
pub mod sandbox;
mod session;
pub mod settle;
pub mod usage;
pub mod wire;

pub use front_end::FrontEnd;
pub use session::{Notifier, Running, Session};
