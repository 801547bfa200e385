//! The socket of the scheme in the supervisor: it answers the clients after a kill of the daemon.
//!
//! If a daemon dies, the kernel leaves the callers of its scheme waiting as long as they live. One
//! of them may be the manager of namespaces, which waits for every open by a path. Then the system
//! hangs. So a descriptor of the socket lies in a pipe to the supervisor. When the daemon is gone,
//! the supervisor takes it out and answers every possible request. That is few: the kernel reuses
//! the numbers of requests, so they are small.
//!
//! A daemon that ends by itself has answered its requests, and takes the descriptor back. While one
//! is open, the kernel accepts new requests.

use std::io::{PipeReader, PipeWriter};

use log::warn;
use redox_scheme::Socket;
use syscall::error::{ENODEV, Error, Result};
use syscall::schemev2::{Cqe, CqeOpcode};

use crate::process::descriptors::{give, take};

/// The supervisor answers requests with numbers below this: as many as may wait at once.
const REQUESTS: u32 = 1 << 14;

/// Both ends of a pipe that the supervisor has too.
pub struct Lender {
    pub out: PipeReader,
    pub into: PipeWriter,
}

/// A descriptor of the socket that lies in the pipe. Its drop takes the descriptor back.
pub struct Lent(PipeReader);

impl Lender {
    /// Puts a descriptor of the socket into the pipe.
    pub fn lend(self, socket: &Socket) -> Option<Lent> {
        match give(&self.into, socket.inner()) {
            Ok(()) => Some(Lent(self.out)),
            Err(error) => {
                warn!("the supervisor has no socket, so clients wait forever if the daemon is killed: {error}");
                None
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(take(&self.0));
    }
}

/// Answers ENODEV to all callers that wait for a dead daemon. Later callers get the same error from
/// the kernel. Does nothing if the daemon has taken its socket back.
pub fn answer_all(out: &PipeReader) {
    let Ok(Some(socket)) = take(out) else {
        return;
    };
    let gone: Result<usize> = Err(Error::new(ENODEV));
    for tag in 0..REQUESTS {
        let flags = CqeOpcode::RespondRegular as u8;
        let answer = Cqe { flags, tag, result: Error::mux(gone) as u64, ..Cqe::default() };
        // The kernel refuses an answer without a caller.
        let _ = socket.write(&answer);
    }
}
