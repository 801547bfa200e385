//! The overlay scheme as clients meet it. Each request goes through the simulated Redox kernel, in
//! the form that the real kernel sends. The overlay is above real directories.
//!
//! `tests/scheme_redoxfs` runs the same tests above layers on a simulated redoxfs.

mod attributes;
mod control;
mod data;
mod holes;
mod hostile;
mod layers;
mod locks;
mod mmap;
mod names;
mod open;
mod panics;
mod paths;
mod side_by_side;
mod snapshots;
mod sockets;
mod support;
mod traps;
