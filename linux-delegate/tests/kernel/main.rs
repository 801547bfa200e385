//! Tests of the simulated kernel, with a toy scheme behind its socket.

mod daemons;
mod programs;
mod requests;
mod toy;
