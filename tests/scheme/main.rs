//! The overlay scheme as clients meet it: every request goes through the delegate's kernel, so it
//! arrives as the Redox kernel would send it, in front of an overlay of real directories.
//! `tests/scheme_redoxfs` runs the same in front of layers on redoxfs.

mod attributes;
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
mod sockets;
mod support;
mod traps;
