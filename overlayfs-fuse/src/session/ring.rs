//! The second transport: kernel and daemon exchange requests and answers in shared memory, by
//! io_uring (Linux 6.14 and later).
//!
//! The kernel has a queue for each processor that the machine may have, and a program's request
//! goes to the queue of its processor. The thread that answers stays on that processor, so it wakes
//! no other one. One system call sends the answer and waits for the next request.
//!
//! A queue hands its requests to entries. Here each entry has a thread, and a ring of its own, so
//! that no request waits for a thread that is busy. The kernel takes the entry that was used last.
//! A thread that gets the request of the settler waits until the settler answers it.
//!
//! The memory of an entry belongs to the kernel while its thread is in the system call, and to the
//! thread otherwise.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use io_uring::register::Restriction;
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use rustix::thread::{CpuSet, sched_setaffinity};
use zerocopy::{FromBytes, IntoBytes};

use super::{BESIDE_RINGS, MAX_DATA, Served, Service, start_thread};
use crate::dispatch::{Reply, Request};
use crate::front_end::FrontEnd;
use crate::options::IoUring as Choice;
use crate::settle::Later;
use crate::wire::{InHeader, OutHeader, RING_COMMIT, RING_REGISTER, RingCommand, RingHeaders};

/// The number of threads for each queue. One may wait for the answer of another, and one for the
/// settler.
pub(super) const THREADS: usize = 3;

/// The threads that are there at times beside those for requests: the settler and the watcher.
const OTHERS: usize = 2;

/// The number of entries of a ring, which has one command at a time.
const ROOM: u32 = 1;

/// Makes the entries of all queues. None: requests come over the device.
///
/// # Errors
///
/// - `Unsupported`: `service` demands this transport, and it is not available.
pub(super) fn prepare(service: Service, is_offered: bool, device: &Arc<File>) -> io::Result<Vec<Entry>> {
    let unavailable = |why: String| match service.io_uring {
        Choice::On => Err(io::Error::new(ErrorKind::Unsupported, format!("io_uring=on, but {why}"))),
        _ => {
            log::debug!("requests come over the device: {why}");
            Ok(Vec::new())
        }
    };
    if service.io_uring == Choice::Off {
        return Ok(Vec::new());
    }
    if !is_offered {
        return unavailable(
            "the kernel does not offer FUSE over io_uring; from Linux 6.14 on, echo 1 > \
             /sys/module/fuse/parameters/enable_uring makes it do so for new mounts"
                .to_owned(),
        );
    }
    let queues = match queues() {
        Ok(queues) => queues,
        Err(error) => return unavailable(format!("the number of processors is unknown: {error}")),
    };
    if THREADS * usize::from(queues) > service.most {
        return unavailable(format!("{queues} processors need {} threads", THREADS * usize::from(queues)));
    }
    let entries = (0..queues).flat_map(|queue| [queue; THREADS]).map(|queue| Entry::new(queue, device.clone()));
    let entries = match entries.collect::<io::Result<Vec<_>>>() {
        Ok(entries) => entries,
        Err(error) => return unavailable(format!("no ring can be made: {error}")),
    };
    match try_threads(entries.len() + BESIDE_RINGS + OTHERS) {
        Ok(()) => Ok(entries),
        Err(error) => unavailable(format!("the user may not start {} threads: {error}", entries.len())),
    }
}

/// Starts this many threads at once, and ends them. After the answer to INIT the kernel waits for
/// all queues, and it would be too late to find out that a limit forbids the threads. These have no
/// sandbox yet, so the real ones come later.
///
/// # Errors
///
/// - EAGAIN: a limit forbids them.
fn try_threads(count: usize) -> io::Result<()> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let mut threads = Vec::new();
    let mut tried = Ok(());
    while threads.len() < count && tried.is_ok() {
        let gate = gate.clone();
        tried = start_thread("trial", move || drop(gate.lock())).map(|thread| threads.push(thread));
    }
    drop(closed);
    threads.into_iter().for_each(|thread| thread.join().unwrap_or_default());
    tried
}

/// Returns the number of the kernel's queues: one for each processor that may ever be there.
///
/// # Errors
///
/// - ENOENT: `/sys` is not mounted.
fn queues() -> io::Result<u16> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count(list.trim()).ok_or(ErrorKind::InvalidData.into())
}

/// Counts the numbers in a list like `0-3,8`.
fn count(list: &str) -> Option<u16> {
    list.split(',').try_fold(0_u16, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        sum.checked_add(last.parse::<u16>().ok()?.checked_sub(first.parse().ok()?)?)?.checked_add(1)
    })
}

/// An entry of a queue, with its ring.
pub(super) struct Entry {
    ring: IoUring<Entry128, cqueue::Entry>,
    memory: Memory,
    queue: u16,
    device: Arc<File>,
}

impl Entry {
    /// Makes a ring that takes only commands for devices, and only from the thread that starts it.
    fn new(queue: u16, device: Arc<File>) -> io::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_r_disabled();
        let ring: IoUring<Entry128, cqueue::Entry> = builder.build(ROOM)?;
        // No filter of system calls sees what a ring does.
        ring.submitter().register_restrictions(&mut [Restriction::sqe_op(opcode::UringCmd80::CODE)])?;
        Ok(Self { ring, memory: Memory::new()?, queue, device })
    }

    /// Answers the requests of the entry until the filesystem is unmounted. If the kernel does not
    /// take the entry, requests come to the threads that read the device.
    pub fn serve<D: FrontEnd>(mut self, served: &Served<D>) -> io::Result<()> {
        self.stay();
        let registered = self.ring.submitter().register_enable_rings().and_then(|()| self.register());
        if let Err(error) = registered {
            if !is_end(&error) {
                log::debug!("the kernel does not take an entry for io_uring: {error}");
            }
            return Ok(());
        }
        let mut reply = served.reply(&mut None);
        loop {
            let commit = self.answer(served, &mut reply);
            // This thread is the first that the kernel would wake.
            if served.seat.present().has_to_rest() {
                served.watcher.ask();
            }
            match self.call(RING_COMMIT, commit) {
                Ok(()) => {}
                Err(error) if is_end(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Keeps this thread on the processor of its queue. Without that, the scheduler would wake it
    /// on an idle one while the program still runs.
    fn stay(&self) {
        let queue = usize::from(self.queue);
        let mut place = CpuSet::new();
        if queue >= CpuSet::MAX_CPU {
            return;
        }
        place.set(queue);
        if let Err(error) = sched_setaffinity(None, &place) {
            log::debug!("a thread for the processor {queue} is not bound to it: {error}");
        }
    }

    /// Gives the entry to the kernel, and waits for the first request.
    fn register(&mut self) -> io::Result<()> {
        self.call(RING_REGISTER, 0)
    }

    /// Answers the request in the memory. Returns the number that the answer goes to.
    fn answer<D: FrontEnd>(&mut self, served: &Served<D>, reply: &mut Reply) -> u64 {
        let (headers, payload) = self.memory.parts();
        let header =
            InHeader::read_from_prefix(headers.head.as_bytes()).map_or_else(|_| InHeader::default(), |it| it.0);
        let size = (headers.payload as usize).min(payload.len());
        let first = (header.len as usize).saturating_sub(size_of::<InHeader>() + size);
        let first = &headers.first.as_bytes()[..first.min(size_of_val(&headers.first))];
        // Only a request without data has an answer with data.
        let (rest, room) = if size == 0 { (&[][..], &mut *payload) } else { (&payload[..size], &mut [][..]) };
        let request = Request::in_parts(header, first, rest);
        let (answer, length) = match answer_of_settler(served, &request) {
            Some(answer) => (answer, 0),
            None => {
                served.answer(&request, reply, room);
                let answer = OutHeader::read_from_bytes(reply.header()).unwrap_or_default();
                let body = reply.body();
                let length = body.len().min(payload.len());
                payload[..length].copy_from_slice(&body[..length]);
                (answer, length.max(reply.data()))
            }
        };
        headers.head.as_mut_bytes()[..size_of::<OutHeader>()].copy_from_slice(answer.as_bytes());
        headers.payload = length as u32;
        headers.commit
    }

    /// Sends a command, and waits for the next request.
    fn call(&mut self, command: u32, commit: u64) -> io::Result<()> {
        let mut bytes = [0; 80];
        let words = RingCommand { commit, queue: self.queue, ..RingCommand::default() };
        bytes[..size_of::<RingCommand>()].copy_from_slice(words.as_bytes());
        let places = self.memory.places();
        let device = types::Fd(self.device.as_raw_fd());
        let command = opcode::UringCmd80::new(device, command).cmd(bytes).addr(Some(places.as_ptr() as u64)).build();
        let command = with_length(command, places.len() as u32);
        // SAFETY: the kernel reads `places` in the system call that submits the command. It uses the
        // memory that they name only while this thread waits below, where nothing else uses it.
        unsafe { self.ring.submission().push(&command) }.map_err(io::Error::other)?;
        loop {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            if let Some(done) = self.ring.completion().next() {
                return if done.result() < 0 { Err(io::Error::from_raw_os_error(-done.result())) } else { Ok(()) };
            }
        }
    }
}

/// Waits for the answer of the settler, if the request is one that only makes umount wait.
fn answer_of_settler<D: FrontEnd>(served: &Served<D>, request: &Request<'_>) -> Option<OutHeader> {
    let (answer, answered) = mpsc::channel();
    // The send succeeds: this thread waits below.
    let later = || -> Later { Box::new(move |header| answer.send(header).unwrap_or_default()) };
    if !served.seat.settler.as_ref()?.keeps(request, later) {
        return None;
    }
    answered.recv().ok()
}

/// Whether an error means that the filesystem is unmounted.
fn is_end(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV))
}

/// Sets the field that counts the parts of the memory (`len` of `io_uring_sqe`). The crate has no
/// method for it.
fn with_length(mut entry: Entry128, length: u32) -> Entry128 {
    const FIELD: usize = 24;
    // SAFETY: an entry is 128 bytes of plain data, in the layout of `linux/io_uring.h`.
    unsafe { (&raw mut entry).cast::<u8>().add(FIELD).cast::<u32>().write(length) };
    entry
}

/// The layout of a payload.
const PAYLOAD: Layout = match Layout::array::<u8>(MAX_DATA) {
    Ok(layout) => layout,
    Err(_) => Layout::new::<u8>(),
};

/// The memory of an entry, which the kernel writes to.
struct Memory {
    headers: NonNull<RingHeaders>,
    payload: NonNull<[u8]>,
}

// SAFETY: the value owns the memory.
unsafe impl Send for Memory {}

impl Memory {
    /// The system provides pages when they are first used.
    ///
    /// # Errors
    ///
    /// - `OutOfMemory`: a limit forbids it.
    fn new() -> io::Result<Self> {
        // SAFETY: the layout is not empty.
        let payload = NonNull::new(unsafe { alloc_zeroed(PAYLOAD) }).ok_or(ErrorKind::OutOfMemory)?;
        let headers = Box::leak(Box::<RingHeaders>::default());
        Ok(Self { headers: headers.into(), payload: NonNull::slice_from_raw_parts(payload, MAX_DATA) })
    }

    fn parts(&mut self) -> (&mut RingHeaders, &mut [u8]) {
        // SAFETY: both are valid until the drop. The kernel does not use them now: the thread is not
        // in a system call of the ring.
        unsafe { (self.headers.as_mut(), self.payload.as_mut()) }
    }

    /// Returns where the parts are, for the kernel.
    fn places(&self) -> [libc::iovec; 2] {
        let place = |start, length| libc::iovec { iov_base: start, iov_len: length };
        let headers = place(self.headers.as_ptr().cast(), size_of::<RingHeaders>());
        [headers, place(self.payload.as_ptr().cast(), self.payload.len())]
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the headers come from a box, the payload from `alloc_zeroed` with this layout. The
        // ring is gone, so the kernel uses them no more.
        unsafe {
            drop(Box::from_raw(self.headers.as_ptr()));
            dealloc(self.payload.as_ptr().cast(), PAYLOAD);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_takes_only_commands_for_devices() {
        let mut entry = Entry::new(0, Arc::new(File::open("/dev/null").unwrap())).unwrap();
        entry.ring.submitter().register_enable_rings().unwrap();
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build();
        // SAFETY: the path lives as long as the program.
        unsafe { entry.ring.submission().push(&open.into()) }.unwrap();
        entry.ring.submit_and_wait(1).unwrap();
        assert_eq!(entry.ring.completion().next().unwrap().result(), -libc::EACCES);
    }

    #[test]
    fn processors_are_counted() {
        for (list, number) in [("0", 1), ("0-1", 2), ("0-3,8", 5), ("0,2-3,5-5", 4)] {
            assert_eq!(count(list), Some(number), "{list}");
        }
        for list in ["", "a", "3-1", "0-99999", "0-,1"] {
            assert_eq!(count(list), None, "{list}");
        }
    }
}
