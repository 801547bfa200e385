//! Runs the tests of the scheme above an overlay of layers on a simulated redoxfs.

#[path = "../scheme/attributes.rs"]
mod attributes;
#[path = "../scheme/control.rs"]
mod control;
#[path = "../scheme/data.rs"]
mod data;
#[path = "../scheme/hostile.rs"]
mod hostile;
mod layers;
#[path = "../scheme/locks.rs"]
mod locks;
#[path = "../scheme/mmap.rs"]
mod mmap;
#[path = "../scheme/names.rs"]
mod names;
#[path = "../scheme/open.rs"]
mod open;
#[path = "../scheme/panics.rs"]
mod panics;
#[path = "../scheme/paths.rs"]
mod paths;
#[path = "../scheme/side_by_side.rs"]
mod side_by_side;
#[path = "../scheme/snapshots.rs"]
mod snapshots;
#[path = "../scheme/sockets.rs"]
mod sockets;
#[path = "../scheme/support.rs"]
mod support;
#[path = "../scheme/traps.rs"]
mod traps;
