//! An overlay filesystem: read-only lower directories below one writable upper directory, seen as
//! one merged tree.
//!
//! A request comes through a front end ([`scheme`] on Redox), which knows its caller and checks
//! access. The engine ([`overlay`]) finds and changes objects of the merged tree. A [`layer`] is
//! one directory tree below it. [`format`](mod@format) defines how the upper layer stores deletions
//! and renames, and [`fsck`] checks that. [`layer_tools`] list and move the changes in an upper
//! layer. `docs/design.md` has the picture.
//!
//! # Example
//! Two directories become an overlay. The upper one gets the new file, the lower one stays as it
//! is.
//! ```
//! use std::ffi::OsStr;
//! use std::fs;
//!
//! use overlayfs::layer::Owner;
//! use overlayfs::mount::mount;
//! use overlayfs::options::Options;
//!
//! let home = tempfile::tempdir()?;
//! let [lower, upper] = ["lower", "upper"].map(|name| home.path().join(name));
//! fs::create_dir(&lower)?;
//! fs::create_dir(&upper)?;
//! fs::write(lower.join("old"), "from below")?;
//!
//! let overlay = mount(&Options { lowers: vec![lower], upper: Some(upper.clone()), ..Options::default() })?;
//! let root = overlay.root();
//!
//! let me = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
//! let file = overlay.create_file(root, OsStr::new("new"), 0o644, me)?;
//! overlay.write_at(&file, b"content", 0)?;
//!
//! let old = overlay.lookup(root, OsStr::new("old"))?;
//! let mut content = [0; 100];
//! let length = overlay.read_at(&overlay.open(&old), &mut content, 0)?;
//! assert_eq!(&content[..length], b"from below");
//!
//! let mut names = Vec::new();
//! overlay.list(&overlay.open(root), 0, &mut |entry| {
//!     names.push(entry.name.to_owned());
//!     true
//! })?;
//! names.sort();
//! assert_eq!(names, ["new", "old"]);
//!
//! overlay.complete_and_sync()?;
//! assert_eq!(fs::read(upper.join("new"))?, b"content");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![warn(missing_docs, clippy::missing_errors_doc, clippy::too_many_lines)]

#[cfg(all(feature = "scheme", feature = "layer-tools"))]
pub mod client;
pub mod control;
#[cfg(feature = "scheme")]
pub mod daemon;
pub mod errno;
pub mod format;
pub mod fsck;
pub mod layer;
#[cfg(feature = "layer-tools")]
pub mod layer_tools;
pub mod mount;
pub mod options;
pub mod overlay;
pub mod packed;
pub mod process;
#[cfg(feature = "scheme")]
pub mod scheme;
mod sync;
#[cfg_attr(
    not(any(feature = "scheme", test)),
    expect(dead_code, reason = "only threads that serve the scheme take a turn; others just call `pass`")
)]
mod turn;
pub mod usage;
