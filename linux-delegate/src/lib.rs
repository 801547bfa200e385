//! The Redox kernel as far as a scheme daemon and its clients see it, played on Linux.
//!
//! On Redox, `libredox` and `redox-scheme` reach the kernel through relibc's `redox_*` symbols.
//! This crate defines those symbols ([`abi`]), so a scheme daemon's own code, from `Socket::create`
//! to `handle_sync`, runs unchanged on Linux. Behind them stands a kernel of one process
//! ([`kernel`]): scheme sockets, descriptors and a namespace. [`client`] is the other side:
//! processes with a uid, a gid and a pid that call the schemes the way relibc and `std::fs` do.
//! [`redoxfs`] is a scheme for daemons that are clients of one themselves, as the overlay is of its
//! layers. [`daemon`] is an overlay's daemon, to be used by tests.
//!
//! The program `overlayfs-fuse-via-scheme` is a FUSE mount whose requests become such calls, so
//! that programs of Linux try the scheme.
//!
//! Buffers are handed to the scheme by address, because the daemon and its clients are threads of
//! one process.

#![feature(thread_spawn_hook)]

pub mod abi;
pub mod client;
pub mod daemon;
pub mod kernel;
pub mod redoxfs;

pub use client::{DirEntry, Process};
pub use daemon::Daemon;
pub use kernel::{Fd, Mapping};
