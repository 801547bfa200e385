//! The first transport: a thread reads a request from the FUSE device, and writes the answer to it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::workers::{self, Place};
use super::{MAX_DATA, PAGE, Served};
use crate::dispatch::Request;
use crate::front_end::FrontEnd;
use crate::mount::DEVICE;
use crate::settle::Later;
use crate::wire::{BackingMap, IOC_BACKING_CLOSE, IOC_BACKING_OPEN};

/// The largest request in bytes, with room for its header and the fields before its data.
pub(super) const MAX_REQUEST: usize = MAX_DATA + 4096;
/// Makes a clone of the device (`FUSE_DEV_IOC_CLONE`).
const IOC_CLONE: libc::Ioctl = 0x8004_e500_u32 as libc::Ioctl;

/// Opens a second descriptor of the same mount, so that threads do not wait for each other in the
/// kernel. Where the device was opened in another user namespace, older kernels clone none. The
/// threads share it then.
pub(super) fn clone(device: &Arc<File>) -> io::Result<Arc<File>> {
    let clone = File::options().read(true).write(true).open(DEVICE)?;
    let mut number = device.as_raw_fd() as u32;
    // SAFETY: the call reads one number of 32 bits, which outlives it.
    if unsafe { libc::ioctl(clone.as_raw_fd(), IOC_CLONE, &raw mut number) } == 0 {
        return Ok(Arc::new(clone));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(device.clone()),
        error => Err(error),
    }
}

/// Gives the kernel a file as a backing.
pub(super) fn back(device: &File, data: BorrowedFd<'_>) -> io::Result<i32> {
    let map = BackingMap { fd: data.as_raw_fd(), ..BackingMap::default() };
    // SAFETY: the call reads a structure of this size, which outlives it.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOC_BACKING_OPEN, &raw const map) } {
        -1 => Err(io::Error::last_os_error()),
        id => Ok(id),
    }
}

/// Takes a backing back.
pub(super) fn end_backing(device: &File, id: i32) -> io::Result<()> {
    // SAFETY: the call reads one number of 32 bits, which outlives it.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOC_BACKING_CLOSE, &raw const id) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Why a thread reads the device no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The gate let it go: there is nothing to do, or another process serves.
    Left,
    /// The filesystem is unmounted.
    Unmounted,
}

/// Answers the requests of a device.
pub(super) fn serve<D: FrontEnd + 'static>(served: &Arc<Served<D>>, place: &mut Place) -> io::Result<End> {
    let mut bytes = vec![0; MAX_REQUEST];
    if served.seat.comes_back() {
        // If the thread is killed while the kernel copies a request to memory that is not there yet,
        // the program gets EIO, and the request does not come again.
        bytes.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    }
    let mut room = vec![0; MAX_DATA];
    let mut reply = served.reply(&mut place.counted);
    let device = &place.device;
    let taker = served.seat.gate.enter();
    while taker.pass() {
        let length = match workers::take(served, || (&**device).read(&mut bytes)) {
            Ok(length) => length,
            Err(error) => match error.raw_os_error() {
                // ENODEV: unmounted. ECONNABORTED: unmounted with requests on the way, or by force.
                Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(End::Unmounted),
                // The kernel has withdrawn the request.
                Some(libc::ENOENT | libc::EINTR | libc::EAGAIN) => continue,
                _ => return Err(error),
            },
        };
        let Some(request) = Request::whole(&bytes[..length]) else { continue };
        if served.seat.settler.as_ref().is_some_and(|settler| settler.keeps(&request, || later(device))) {
            continue;
        }
        if served.answer(&request, &mut reply, &mut room) {
            let parts = [reply.header(), reply.body(), &room[..reply.data()]];
            if let Err(error) = (&**device).write_vectored(&parts.map(IoSlice::new)) {
                match error.raw_os_error() {
                    // The program that waited for the answer is gone.
                    Some(libc::ENOENT | libc::EINTR) => {}
                    Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(End::Unmounted),
                    _ => log::warn!("the kernel did not take an answer: {error}"),
                }
            }
        }
        // This was the answer to the command that gave the mount away.
        if served.seat.gate.end() {
            break;
        }
        served.seat.present().rest();
    }
    Ok(End::Left)
}

fn later(device: &Arc<File>) -> Later {
    let device = device.clone();
    // The write fails if the filesystem is gone. Then no thread waits.
    Box::new(move |answer| drop((&*device).write_all(answer.as_bytes())))
}
