//! The hostile client, and the conditions on every answer.

use std::hash::{DefaultHasher, Hasher};

use linux_delegate::kernel::Begun;
use linux_delegate::{Fd, Process};
use syscall::error::{EEXIST, EIO, EROFS, Error, Result, STR_ERROR};
use syscall::flag::{O_CREAT, O_EXCL, O_RDWR, StdFsCallKind};
use syscall::schemev2::{Opcode, Sqe, SqeFlags};

use crate::request::{Bytes, KnownToClient, Request, has_buffer};

/// The address of an empty buffer: not null, and aligned for every type.
const DANGLING: u64 = 1 << 63;

/// The number of bytes of a buffer that are searched for the secret.
const TOLD: usize = 64;

/// The number of requests in progress at once, if the client does not wait for each answer.
const AT_ONCE: usize = 6;

/// Several users, and the daemon that they send to. All users know all ids, so they are one client.
pub struct Client<'a> {
    scheme: &'a str,
    /// For each user: a descriptor of the scheme's own handle, and the ids of the user in requests.
    /// If root takes part, root is the first.
    users: Vec<(Fd, u64)>,
    secret: Secret,
    /// Whether requests are sent without a wait for each answer.
    at_once: bool,
    live: Vec<usize>,
    closed: Vec<usize>,
    pending: Vec<Pending>,
    tags: Vec<u32>,
    /// The buffers of all requests, until the end: a request without an answer may still be in
    /// progress.
    buffers: Vec<Box<[u8]>>,
}

/// The bytes that only root may read. Only their digest is compared: a fuzzer learns the values of
/// comparisons, and would send them.
#[derive(Clone, Copy)]
pub struct Secret {
    pub len: usize,
    pub digest: u64,
}

/// A request in progress.
struct Pending {
    sqe: Sqe,
    /// The length of its buffer, and which buffer it is.
    len: usize,
    buffer: Option<usize>,
    begun: Begun,
}

impl<'a> Client<'a> {
    /// Makes a client of the daemon of `scheme`. Without root, no answer may contain the secret.
    pub fn new(scheme: &'a str, with_root: bool, secret: Secret, at_once: bool) -> Self {
        let users = [(0, 0), (1000, 100), (1001, 100), (1002, 200)];
        let user = |(uid, gid): (u32, u32)| {
            let fd = Process::with_pid(1 << 24 | uid as usize, uid, gid).scheme_root(scheme).unwrap();
            (fd, u64::from(uid) | u64::from(gid) << 32)
        };
        Self {
            scheme,
            users: users.into_iter().skip(usize::from(!with_root)).map(user).collect(),
            secret,
            at_once,
            live: Vec::new(),
            closed: Vec::new(),
            pending: Vec::new(),
            tags: Vec::new(),
            buffers: Vec::new(),
        }
    }

    /// Makes up a request and sends it. If the client waits for the answer, checks it.
    pub fn send(&mut self, bytes: &mut Bytes) {
        let user = usize::from(bytes.byte()) % self.users.len();
        let known = KnownToClient {
            packed: self.users[user].1,
            scheme: self.scheme,
            root: self.users[user].0.id(),
            live: &self.live,
            closed: &self.closed,
            tags: &self.tags,
        };
        let Request { mut sqe, buffer } = Request::next(bytes, &known);
        if sqe.opcode == Opcode::CloseMsg as u8 {
            let id = sqe.args[0] as usize;
            // The kernel closes a handle without descriptors, and the scheme's own handle has one.
            if id == known.root {
                return;
            }
            if let Some(at) = self.live.iter().position(|live| *live == id) {
                self.closed.push(self.live.swap_remove(at));
            }
        }
        let mut len = 0;
        let mut at = None;
        if has_buffer(sqe.opcode) {
            sqe.args[1] = DANGLING;
            if let Some(buffer) = buffer.filter(|buffer| !buffer.bytes.is_empty()) {
                len = buffer.bytes.len();
                at = Some(self.buffers.len());
                let mut mapped = vec![0; buffer.skew + len].into_boxed_slice();
                mapped[buffer.skew..].copy_from_slice(&buffer.bytes);
                sqe.args[1] = mapped[buffer.skew..].as_mut_ptr() as u64;
                self.buffers.push(mapped);
            }
            sqe.args[2] = len as u64;
        }
        // SAFETY: an opcode with a buffer got one, and the buffer lives as long as the daemon.
        let begun = unsafe { self.users[user].0.begin_raw(sqe) }.unwrap();
        self.tags.extend(begun.tag());
        self.pending.push(Pending { sqe, len, buffer: at, begun });
        if !self.at_once || self.pending.len() == AT_ONCE {
            self.finish();
        }
    }

    /// Waits for the answers to all requests in progress, and checks them.
    fn finish(&mut self) {
        for Pending { sqe, len, buffer, begun } in std::mem::take(&mut self.pending) {
            let answer = begun.finish();
            self.check(&sqe, len, answer);
            if self.users[0].1 != 0
                && let Some(buffer) = buffer
            {
                let told = &self.buffers[buffer];
                let mut pieces = told[..told.len().min(TOLD)].windows(self.secret.len);
                assert!(!pieces.any(|piece| digest(piece) == self.secret.digest), "what only root may read: {sqe:x?}");
            }
        }
        self.tags.clear();
    }

    fn check(&mut self, sqe: &Sqe, len: usize, answer: Result<usize>) {
        let opcode = Opcode::try_from_raw(sqe.opcode);
        let number = match answer {
            Ok(number) => number,
            Err(Error { errno }) => {
                let descriptors = matches!(opcode, Some(Opcode::Sendfd | Opcode::Recvfd));
                assert!(errno != EIO || descriptors, "EIO, though the layers are sound: {sqe:x?}");
                assert!((1..STR_ERROR.len() as i32).contains(&errno), "no errno: {errno}: {sqe:x?}");
                return;
            }
        };
        let kind = StdFsCallKind::try_from_raw(sqe.args[3] as u8);
        let fills = match opcode {
            Some(Opcode::OpenAt | Opcode::Dup) => {
                assert!(!self.live.contains(&number) && number != self.users[0].0.id(), "{number} is open already");
                assert!(!self.closed.contains(&number), "{number} was closed");
                return self.live.push(number);
            }
            Some(Opcode::Read | Opcode::Write | Opcode::Fpath | Opcode::Getdents) => true,
            Some(Opcode::StdFsCall) => matches!(kind, Some(StdFsCallKind::Getdents | StdFsCallKind::Relpathat)),
            _ => false,
        };
        let waits = !sqe.sqe_flags.contains(SqeFlags::ONEWAY);
        assert!(!fills || !waits || number <= len, "{number} bytes of {len}: {sqe:x?}");
    }

    /// Closes all open handles. Returns the buffers, which requests may still use. The caller must
    /// keep them until the daemon has ended.
    pub fn leave(mut self) -> Vec<Box<[u8]>> {
        self.finish();
        for id in self.live {
            let args = [id as u64, 0, 0, 0, 0, 0];
            let sqe = Sqe { opcode: Opcode::CloseMsg as u8, sqe_flags: SqeFlags::ONEWAY, args, ..Sqe::default() };
            // SAFETY: this request has no buffer.
            unsafe { self.users[0].0.raw(sqe) }.unwrap();
        }
        self.buffers
    }
}

/// Returns the digest of these bytes.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Panics unless the daemon of `scheme` serves a well-behaved client.
pub fn assert_alive(scheme: &str) {
    let root = Process::with_pid(1 << 25, 0, 0);
    let top = format!("/scheme/{scheme}");
    assert!(root.stat(&top).unwrap().st_nlink > 0);
    for number in 0.. {
        let path = format!("{top}/alive{number}");
        match root.open(&path, O_CREAT | O_EXCL | O_RDWR, 0o600) {
            Ok(made) => {
                let mut read = *b"     ";
                assert_eq!((made.write_at(b"alive", 0), made.read_at(&mut read, 0)), (Ok(5), Ok(5)));
                assert_eq!(read, *b"alive");
                return root.unlink(&path).unwrap();
            }
            Err(Error { errno: EROFS }) => return,
            // The hostile client made up the same name.
            Err(error) => assert_eq!(error, Error::new(EEXIST)),
        }
    }
}
