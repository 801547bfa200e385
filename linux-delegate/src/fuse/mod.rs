//! The FUSE mount.
//!
//! | file | subject |
//! | --- | --- |
//! | `mount` | mounting and unmounting |
//! | `session` | the device, and the threads that take requests from it |
//! | `settle` | when what was changed is completed and synced, and what umount waits for |
//! | `dispatch`, `wire` | from the bytes of a request to a call of the door and back |
//! | `door` | what is called: the trait, and the words of both sides |
//! | `scheme` | the door whose every request goes through the scheme that serves Redox |
//! | `engine` | the door that calls the engine, for real work |

pub mod dispatch;
mod door;
pub mod engine;
mod flags;
pub mod mount;
pub mod scheme;
mod session;
pub mod settle;
pub mod wire;

pub use door::Door;
pub use session::{Notifier, Running, Session};
