//! Those who lie: any bytes become the requests of a client, which go to a daemon that serves a
//! small overlay, as it would on Redox; what is found in layers; and the words of a command line.
//!
//! | file | subject |
//! | --- | --- |
//! | `backing` | the layers, the daemon above them, and what must hold when the client has left |
//! | `client` | who sends, what he has open, and what must hold of every answer |
//! | `request` | from bytes to a request: mostly one that a client could send, sometimes anything that the kernel lets through |
//! | `tree` | what the scheme shows, to be compared |
//! | `layer_contents` | layers that somebody else has filled |
//! | `fuse_requests` | a Linux kernel that lies to the mount |
//! | `command_lines` | command lines and lists of options |
//!
//! A panic is how all of this fails. Those of the daemon are caught by it; who runs this sees to it
//! that they end the process all the same.

mod backing;
mod client;
pub mod command_lines;
pub mod fuse_requests;
pub mod layer_contents;
mod request;
mod tree;

pub use backing::Backing;
