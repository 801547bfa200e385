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
//!
//! # Example
//! Mounts an overlay of two directories, creates a file in it and unmounts it. Needs `/dev/fuse`,
//! and the right to mount or the package `fuse3`.
//! ```
//! use std::sync::Arc;
//! use std::{fs, thread};
//!
//! use overlayfs_fuse::Session;
//! use overlayfs_fuse::engine::{EngineFrontEnd, Settings};
//! use overlayfs_fuse::mount;
//! use rustix::mount::{MountFlags, UnmountFlags, unmount};
//!
//! let home = tempfile::tempdir()?;
//! let [lower, upper, merged] = ["lower", "upper", "merged"].map(|name| home.path().join(name));
//! for dir in [&lower, &upper, &merged] {
//!     fs::create_dir(dir)?;
//! }
//! fs::write(lower.join("old"), "from below")?;
//!
//! let layers = overlayfs::options::Options { lowers: vec![lower], upper: Some(upper.clone()), ..Default::default() };
//! let overlay = Arc::new(overlayfs::mount::mount(&layers)?);
//! let options = mount::Options {
//!     source: "overlay".into(),
//!     flags: MountFlags::empty(),
//!     allow_other: false,
//!     default_permissions: true,
//! };
//! let device = mount::mount(&merged, &options)?;
//! let front_end = EngineFrontEnd::new(overlay.clone(), Settings::default());
//! let running = Session::start(device, front_end, 2, None)?.start_threads()?;
//! let serving = thread::spawn(|| running.run(|| ()));
//!
//! assert_eq!(fs::read_to_string(merged.join("old"))?, "from below");
//! fs::write(merged.join("new"), "content")?;
//!
//! unmount(&merged, UnmountFlags::empty())?;
//! let (served, _) = serving.join().expect("the thread does not panic");
//! served?;
//! overlay.complete_and_sync()?;
//! assert_eq!(fs::read_to_string(upper.join("new"))?, "content");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs, clippy::missing_errors_doc, clippy::too_many_lines)]

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
