//! The FUSE mount of an overlay on Linux, and what its program is made of.
//!
//! | file | subject |
//! | --- | --- |
//! | `program` | the program: its process, its layers, its life from mount to unmount |
//! | `options`, `usage` | its command line, and how that is explained |
//! | `inherited`, `logger`, `sandbox` | what it makes of what it inherits, where messages go, what it gives up |
//! | `patience` | how long it waits for another mount of the same layer |
//! | `mount` | mounting and unmounting |
//! | `session` | the device, and the threads that take requests from it |
//! | `settle` | when what was changed is completed and synced, and what umount waits for |
//! | `dispatch`, `wire`, `flags` | from the bytes of a request to a call of the front end and back |
//! | `front_end` | what is called: the trait, and the words of both sides |
//! | `engine` | the front end that calls the engine |
//! | `identity` | as whose everything is shown |
//!
//! Another front end is in the package `linux-delegate`, for tests: its every request goes through
//! the scheme that serves Redox.

#![warn(clippy::too_many_lines)]

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
