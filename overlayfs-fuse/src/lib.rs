//! The FUSE mount of an overlay on Linux: the library of its program.
//!
//! | file | subject |
//! | --- | --- |
//! | `library` | the mount for other programs: builder, mount, what comes after it |
//! | `program` | the program: its process, its layers, its life from mount to unmount |
//! | `options`, `usage` | the command line, and the text that explains it |
//! | `inherited`, `logger`, `sandbox` | limits and signals of the parent, messages, dropped rights |
//! | `patience` | how long a mount waits for another one of the same upper layer |
//! | `mount`, `source` | mounting and unmounting; the source in `/proc/mounts` |
//! | `session` | the threads that take requests, from the device or over io_uring |
//! | `settle` | when changes are completed and synced, and for how long umount waits |
//! | `dispatch`, `wire`, `flags` | from the bytes of a request to a call of the front end and back |
//! | `front_end` | the trait of front ends, and its types |
//! | `engine` | the front end that calls the engine |
//! | `identity` | the owners that the mount shows |
//! | `control` | the channel to a mount at work, and the commands that use it |
//! | `succession` | the next daemon of a mount, which goes on with it |
//! | `line` | messages between two processes |
//! | `run` | the subcommand `run`: a command in an overlay of the system |
//!
//! The package `linux-delegate` has another front end, for tests. It sends each request through the
//! scheme that serves Redox.
//!
//! # Example
//! Mounts an overlay of two directories, creates a file in it, and throws the change away. Needs
//! `/dev/fuse`, and the right to mount or the package `fuse3`.
//! ```
//! use std::fs;
//!
//! use overlayfs_fuse::Overlay;
//!
//! let home = tempfile::tempdir()?;
//! let [lower, upper, merged] = ["lower", "upper", "merged"].map(|name| home.path().join(name));
//! for dir in [&lower, &upper, &merged] {
//!     fs::create_dir(dir)?;
//! }
//! fs::write(lower.join("old"), "from below")?;
//!
//! let mount = Overlay::builder().lower(&lower).upper(&upper).mount(&merged)?;
//! assert_eq!(fs::read_to_string(mount.path().join("old"))?, "from below");
//! fs::write(mount.path().join("new"), "content")?;
//! assert!(mount.changes()?.iter().any(|change| change.path.as_os_str() == "new"));
//!
//! let unmounted = mount.unmount()?;
//! assert_eq!(fs::read_to_string(upper.join("new"))?, "content");
//! unmounted.discard()?;
//! assert!(!upper.join("new").exists());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! An ending needs an unmount before it. This does not compile:
//! ```compile_fail
//! # fn changed(mount: overlayfs_fuse::Mount) -> Result<(), Box<dyn std::error::Error>> {
//! mount.discard()?;
//! # Ok(()) }
//! ```

#![warn(missing_docs, clippy::missing_errors_doc, clippy::too_many_lines)]

mod comeback;
pub mod control;
pub mod dispatch;
pub mod engine;
mod flags;
pub mod front_end;
pub mod identity;
pub mod inherited;
pub mod library;
mod line;
pub mod logger;
pub mod mount;
mod mountinfo;
pub mod options;
pub mod patience;
pub mod program;
pub mod run;
pub mod sandbox;
mod session;
pub mod settle;
mod source;
mod succession;
mod unmounter;
pub mod usage;
mod waker;
pub mod wire;

pub use front_end::FrontEnd;
pub use library::{Builder, Mount, Overlay, Unmounted};
pub use session::{Notifier, Outside, Running, Service, Session};
