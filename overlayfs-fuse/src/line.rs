//! Messages between two processes of the program: pieces of bytes, each with a descriptor or
//! without.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// The longest message, in bytes. A longer one is cut.
pub const MAX: usize = 32 << 10;

/// One end of a line between two processes.
pub struct Line(OwnedFd);

/// A message from the other end.
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The descriptor that came with it.
    pub descriptor: Option<OwnedFd>,
}

impl Line {
    /// Makes a line.
    ///
    /// # Errors
    ///
    /// - EMFILE, ENFILE: too many files are open.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Sends a message. It has one byte at least.
    ///
    /// # Errors
    ///
    /// - EPIPE: the other end is closed.
    pub fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<_> = descriptor.into_iter().collect();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let bytes = &bytes[..bytes.len().min(MAX)];
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for a message. None: the other end is closed.
    ///
    /// # Errors
    ///
    /// - EMFILE: there is no room for the descriptor.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        self.receive_as(RecvFlags::empty())
    }

    /// Waits for a message, and leaves it for the next one who receives. None: the other end is
    /// closed.
    ///
    /// # Errors
    ///
    /// As [`Line::receive`].
    pub fn peek(&self) -> io::Result<Option<Message>> {
        self.receive_as(RecvFlags::PEEK)
    }

    fn receive_as(&self, how: RecvFlags) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let length = loop {
            let flags = RecvFlags::CMSG_CLOEXEC | how;
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags) {
                // Reset: the other end was closed with a message that it had not read. What it has
                // sent is still there.
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
                received => break received?.bytes,
            }
        };
        if length == 0 {
            return Ok(None);
        }
        bytes.truncate(length);
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok(Some(Message { bytes, descriptor }))
    }
}

impl Line {
    /// Whether a message is there, or the other end is closed.
    pub fn has_news(&self) -> bool {
        poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Waits for a message, but not longer than `most`. None: the other end is closed.
    ///
    /// # Errors
    ///
    /// - `TimedOut`: no message came.
    ///
    /// Others as [`Line::receive`].
    pub fn receive_within(&self, most: Duration) -> io::Result<Option<Message>> {
        let deadline = Instant::now() + most;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.map_err(io::Error::from).and_then(|_| self.receive()),
            }
        }
    }
}

impl From<OwnedFd> for Line {
    fn from(end: OwnedFd) -> Self {
        Self(end)
    }
}

impl From<Line> for OwnedFd {
    fn from(line: Line) -> Self {
        line.0
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
