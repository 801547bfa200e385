//! The Redox kernel as far as a scheme daemon and its clients see it, played on Linux.
//!
//! On Redox, `libredox` and `redox-scheme` reach the kernel through relibc's `redox_*` symbols. This crate defines those symbols
//! ([`abi`]), so a scheme daemon's own code, from `Socket::create` to `handle_sync`, runs unchanged on Linux. Behind them
//! stands a kernel of one process ([`kernel`]): scheme sockets, descriptors and a namespace. [`client`] is the other side:
//! processes with a uid, a gid and a pid that call the schemes the way relibc and `std::fs` do. [`redoxfs`] is a scheme for daemons that
//! are clients of one themselves, as the overlay is of its layers. [`daemon`] is an overlay's daemon, to be used by tests.
//!
//! [`fuse`] is the FUSE mount: its requests become such calls (`door=scheme`), or calls of the engine, for real work. [`options`],
//! [`usage`], [`identity`], [`logger`] and [`sandbox`] belong to the program `overlayfs-fuse`.
//!
//! Buffers are handed to the scheme by address, because the daemon and its clients are threads of one process.

#![feature(thread_spawn_hook)]

pub mod abi;
pub mod client;
pub mod daemon;
pub mod fuse;
pub mod identity;
pub mod inherited;
pub mod kernel;
pub mod logger;
pub mod options;
pub mod patience;
pub mod redoxfs;
pub mod sandbox;
pub mod usage;

pub use client::{DirEntry, Process};
pub use daemon::Daemon;
pub use kernel::{Fd, Mapping};
