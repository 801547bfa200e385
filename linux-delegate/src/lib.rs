//! The Redox simulator: the Redox kernel on Linux, as a scheme daemon and its clients see it.
//!
//! On Redox, `libredox` and `redox-scheme` reach the kernel through relibc's symbols `redox_*`.
//! This crate defines those symbols ([`abi`]). So the code of a scheme daemon, from
//! `Socket::create` to `handle_sync`, runs unchanged on Linux.
//!
//! Behind the symbols is a kernel in one process ([`kernel`]): scheme sockets, descriptors and a
//! namespace. [`client`] is the other side: processes with a uid, a gid and a pid, which call
//! schemes as relibc and `std::fs` do. [`redoxfs`] is a scheme for daemons that are clients
//! themselves, as the overlay is a client of its layers. [`daemon`] runs the daemon of an overlay
//! in tests.
//!
//! The program `overlayfs-fuse-via-scheme` is a FUSE mount that turns requests into such calls. So
//! programs of Linux test the scheme.
//!
//! The scheme gets buffers by address, since the daemon and its clients are threads of one process.

#![feature(thread_spawn_hook)]

pub mod abi;
pub mod client;
pub mod daemon;
pub mod kernel;
pub mod redoxfs;

pub use client::{DirEntry, Process};
pub use daemon::Daemon;
pub use kernel::{Fd, Mapping};
