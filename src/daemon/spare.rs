//! The socket of the scheme in the hands of the supervisor: what is left to answer when the daemon
//! was killed.
//!
//! The kernel leaves whoever waits for an answer of a scheme waiting if its daemon dies, as long as
//! he lives. One of them may be the manager of namespaces, which waits for every open by a path,
//! and then the system hangs. So a descriptor of the socket lies in a pipe to the supervisor. When
//! the daemon is gone the supervisor takes it out, and answers all requests that there can be:
//! their numbers are small and given anew.
//!
//! A daemon that ends by itself has answered them, and takes the descriptor back: while there is
//! one, the kernel takes new requests.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsRawFd;

use libredox::Fd;
use log::warn;
use redox_scheme::Socket;
use syscall::error::{ENODEV, Error, Result};
use syscall::flag::CallFlags;
use syscall::schemev2::{Cqe, CqeOpcode};

/// Up to which number requests are answered: as many as may wait at once.
const REQUESTS: u32 = 1 << 14;

/// Both ends of a pipe that the supervisor has too.
pub struct Lender {
    pub out: PipeReader,
    pub into: PipeWriter,
}

/// A descriptor of the socket that lies in the pipe. Dropped, it is taken back.
pub struct Lent(PipeReader);

impl Lender {
    /// Puts a descriptor of the socket into the pipe.
    pub fn lend(self, socket: &Socket) -> Option<Lent> {
        let descriptor = socket.inner().raw().to_ne_bytes();
        match libredox::call::call_wo(number(&self.into), &descriptor, CallFlags::FD | CallFlags::FD_CLONE, &[]) {
            Ok(_) => Some(Lent(self.out)),
            Err(error) => {
                warn!("if the daemon is killed, clients that wait for it wait for ever: {error}");
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

/// Answers whoever waits for a daemon that is gone: ENODEV, as those are told who come later.
/// Nothing is done if it took its socket back.
pub fn answer_all(out: &PipeReader) {
    let Some(socket) = take(out) else {
        return;
    };
    let gone: Result<usize> = Err(Error::new(ENODEV));
    for tag in 0..REQUESTS {
        let flags = CqeOpcode::RespondRegular as u8;
        let answer = Cqe { flags, tag, result: Error::mux(gone) as u64, ..Cqe::default() };
        // It is refused where nobody waits.
        let _ = socket.write(&answer);
    }
}

/// Takes the descriptor out of the pipe, if there is one. The other end must be closed.
fn take(out: &PipeReader) -> Option<Fd> {
    let mut descriptor = [0; size_of::<usize>()];
    match libredox::call::call_ro(number(out), &mut descriptor, CallFlags::FD, &[]) {
        Ok(1..) => Some(Fd::new(usize::from_ne_bytes(descriptor))),
        _ => None,
    }
}

fn number(pipe: &impl AsRawFd) -> usize {
    pipe.as_raw_fd() as usize
}
