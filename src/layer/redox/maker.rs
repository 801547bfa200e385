//! The maker: a second process, which makes objects with the ids of their owner.
//!
//! A scheme makes the caller the owner of a new object. With the daemon's ids, an object of another
//! user must be built elsewhere, given to the user and renamed. The daemon has many threads, and
//! ids belong to a process. So the supervisor, which waits for the daemon's end anyway, takes
//! orders through a pipe: a descriptor of the layer, ids, and what to make. It answers through
//! another pipe: with an errno, and with the open object. Both ends close with their process.
//!
//! Lock: that of the orders is a leaf.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libredox::Fd;

use crate::errno::{EACCES, EPERM, EPIPE};
use crate::layer::{Error, Owner, Result};
use crate::process::descriptors::{give, take};
use crate::process::{act_as, leave_group};

/// The daemon's side, while it has a maker.
static MAKER: Mutex<Option<Orders>> = Mutex::new(None);

fn maker() -> MutexGuard<'static, Option<Orders>> {
    MAKER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The daemon's ends of the two pipes.
pub struct Orders {
    orders: PipeWriter,
    answers: PipeReader,
}

/// The maker's ends of the two pipes.
pub struct Work {
    orders: PipeReader,
    answers: PipeWriter,
}

/// Makes the two pipes of a maker.
///
/// # Errors
///
/// - EMFILE, ENFILE: too many files are open.
pub fn pipes() -> io::Result<(Orders, Work)> {
    let (taken, orders) = io::pipe()?;
    let (answers, given) = io::pipe()?;
    Ok((Orders { orders, answers }, Work { orders: taken, answers: given }))
}

impl Orders {
    /// Makes all layers of this process use the maker.
    pub fn employ(self) {
        *maker() = Some(self);
    }

    /// Returns the open object, or the errno of the open.
    fn make(&mut self, dir: &Fd, path: &str, flags: usize, owner: Owner) -> io::Result<std::result::Result<Fd, i32>> {
        give(&self.orders, dir)?;
        let order = Order { owner, flags, length: path.len() };
        self.orders.write_all(&[&order.to_bytes(), path.as_bytes()].concat())?;
        let mut errno = [0; size_of::<i32>()];
        self.answers.read_exact(&mut errno)?;
        match i32::from_ne_bytes(errno) {
            0 => Ok(Ok(take(&self.answers)?.ok_or(io::ErrorKind::UnexpectedEof)?)),
            errno => Ok(Err(errno)),
        }
    }
}

/// Whether this process has a maker.
pub fn is_there() -> bool {
    maker().is_some()
}

/// Has the maker create `path`, relative to `dir`, for `owner`, and returns it open. `flags` are
/// those of an open.
///
/// # Errors
///
/// - EACCES: the owner may not do that, or there is no maker.
/// - EPIPE: the maker is gone, maybe after it created the object. There is no maker from now on.
///
/// Others as open(2).
pub fn make_as(dir: &Fd, path: &str, flags: usize, owner: Owner) -> Result<Fd> {
    let mut maker = maker();
    let answer = maker.as_mut().ok_or(Error::new(EACCES))?.make(dir, path, flags, owner);
    match answer {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(EPERM)) => Err(Error::new(EACCES)),
        Ok(Err(errno)) => Err(Error::new(errno)),
        Err(_) => {
            *maker = None;
            Err(Error::new(EPIPE))
        }
    }
}

impl Work {
    /// Takes orders until the daemon is gone. The process must have one thread.
    ///
    /// # Errors
    ///
    /// Those of the pipes, and those of seteuid(2). After an error the daemon has no maker.
    pub fn serve(mut self) -> io::Result<()> {
        let served = self.take_orders();
        leave_group()?;
        served
    }

    fn take_orders(&mut self) -> io::Result<()> {
        let mut order = [0; Order::SIZE];
        loop {
            match self.orders.read_exact(&mut order) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            }
            let Order { owner, flags, length } = Order::from_bytes(&order);
            let mut path = vec![0; length];
            self.orders.read_exact(&mut path)?;
            let path = String::from_utf8(path).map_err(|_| io::ErrorKind::InvalidData)?;
            let dir = take(&self.orders)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let errno = match act_as(owner, || dir.openat(&path, flags as libc::c_int, 0))? {
                Ok(made) => {
                    give(&self.answers, &made)?;
                    0
                }
                Err(error) => error.errno(),
            };
            self.answers.write_all(&errno.to_ne_bytes())?;
        }
    }
}

/// The fixed part of an order.
struct Order {
    owner: Owner,
    flags: usize,
    /// The length of the path, which follows, in bytes.
    length: usize,
}

impl Order {
    const SIZE: usize = 4 * size_of::<u64>();

    fn to_bytes(&self) -> [u8; Self::SIZE] {
        let Owner { uid, gid } = self.owner;
        let words = [u64::from(uid), u64::from(gid), self.flags as u64, self.length as u64];
        let mut bytes = [0; Self::SIZE];
        for (place, word) in bytes.chunks_exact_mut(size_of::<u64>()).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let (words, _) = bytes.as_chunks::<8>();
        let word = |index: usize| u64::from_ne_bytes(words.get(index).copied().unwrap_or_default());
        Self {
            owner: Owner { uid: word(0) as u32, gid: word(1) as u32 },
            flags: word(2) as usize,
            length: word(3) as usize,
        }
    }
}
