//! A client that lies: any bytes become requests, which go to a daemon that serves a small overlay, as it would on Redox.
//!
//! | file | subject |
//! | --- | --- |
//! | `ground` | the layers, the daemon above them, and what must hold when the client has left |
//! | `client` | who sends, what he has open, and what must hold of every answer |
//! | `request` | from bytes to a request: mostly one that a client could send, sometimes anything that the kernel lets through |
//! | `tree` | what the scheme shows, to be compared |
//!
//! A panic is how all of this fails. Those of the daemon are caught by it; who runs this sees to it that they end the process
//! all the same.

mod client;
mod ground;
mod request;
mod tree;

pub use ground::Ground;
