//! passthrough NAME DIR THREADS: serves a scheme that forwards each request to a directory of
//! another scheme. It uses THREADS threads.
//!
//! It has no code of the overlay. A fault that also shows through this scheme is a fault of the
//! system.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use libredox::Fd;
use redox_scheme::scheme::{SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{CallerCtx, OpenResult, RequestKind, SignalBehavior, Socket};
use syscall::data::Stat;
use syscall::dirent::{DirEntry, DirentBuf, DirentHeader, DirentKind};
use syscall::error::{EBADF, EIO, Error, Result};
use syscall::schemev2::NewFdFlags;

const PATH_MAX: usize = 4096;

type AnyError = Box<dyn std::error::Error>;

#[derive(Clone)]
struct Passthrough {
    name: Arc<str>,
    dir: Arc<Fd>,
    /// The path of the directory, from the root of the system.
    path: Arc<str>,
    last: Arc<AtomicUsize>,
    opened: Arc<Mutex<HashMap<usize, Arc<Fd>>>>,
}

impl Passthrough {
    fn insert(&self, fd: Fd) -> usize {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.opened.lock().unwrap().insert(id, Arc::new(fd));
        id
    }

    fn get(&self, id: usize) -> Result<Arc<Fd>> {
        self.opened.lock().unwrap().get(&id).cloned().ok_or(Error::new(EBADF))
    }

    fn below(&self, path: &str) -> String {
        format!("{}/{}", self.path, path.trim_start_matches('/'))
    }
}

fn done(result: std::result::Result<(), libredox::error::Error>) -> Result<()> {
    result.map_err(errno)
}

fn errno(error: libredox::error::Error) -> Error {
    Error::new(error.errno())
}

fn count(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Error::new(std::io::Error::last_os_error().raw_os_error().unwrap_or(EIO)))
}

impl SchemeSync for Passthrough {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(self.insert(self.dir.openat("", libc::O_DIRECTORY | libc::O_PATH, 0).map_err(errno)?))
    }

    fn openat(&mut self, dir: usize, path: &str, flags: usize, _: u32, _: &CallerCtx) -> Result<OpenResult> {
        let fd = self.get(dir)?.openat(path.trim_start_matches('/'), flags as i32, 0).map_err(errno)?;
        Ok(OpenResult::ThisScheme { number: self.insert(fd), flags: NewFdFlags::POSITIONED })
    }

    fn unlinkat(&mut self, dir: usize, path: &str, flags: usize, _: &CallerCtx) -> Result<()> {
        syscall::unlinkat(self.get(dir)?.raw(), path.trim_start_matches('/'), flags).map(drop)
    }

    fn read(&mut self, id: usize, buf: &mut [u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        let fd = self.get(id)?;
        // SAFETY: the pointer and the length are those of a slice that may be written to.
        count(unsafe { libc::pread(fd.raw() as i32, buf.as_mut_ptr().cast(), buf.len(), offset as libc::off_t) })
    }

    fn write(&mut self, id: usize, buf: &[u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        let fd = self.get(id)?;
        // SAFETY: the pointer and the length are those of a slice.
        count(unsafe { libc::pwrite(fd.raw() as i32, buf.as_ptr().cast(), buf.len(), offset as libc::off_t) })
    }

    fn fsize(&mut self, id: usize, _: &CallerCtx) -> Result<u64> {
        Ok(self.get(id)?.stat().map_err(errno)?.st_size as u64)
    }

    fn flink(&mut self, id: usize, path: &str, _: &CallerCtx) -> Result<usize> {
        syscall::flink(self.get(id)?.raw(), self.below(path))
    }

    fn frename(&mut self, id: usize, path: &str, _: &CallerCtx) -> Result<usize> {
        syscall::frename(self.get(id)?.raw(), self.below(path))
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], _: &CallerCtx) -> Result<usize> {
        let mut path = [0; PATH_MAX];
        let length = self.get(id)?.fpath(&mut path).map_err(errno)?;
        let path = std::str::from_utf8(&path[..length]).map_err(|_| Error::new(EIO))?;
        let inside = path.strip_prefix(&*self.path).ok_or(Error::new(EIO))?;
        let told = format!("/scheme/{}{inside}", self.name);
        let length = told.len().min(buf.len());
        buf[..length].copy_from_slice(&told.as_bytes()[..length]);
        Ok(length)
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, _: &CallerCtx) -> Result<()> {
        let found = self.get(id)?.stat().map_err(errno)?;
        stat.st_mode = found.st_mode as u16;
        stat.st_ino = found.st_ino;
        stat.st_nlink = found.st_nlink as u32;
        stat.st_size = found.st_size as u64;
        Ok(())
    }

    fn ftruncate(&mut self, id: usize, len: u64, _: &CallerCtx) -> Result<()> {
        done(libredox::call::ftruncate(self.get(id)?.raw(), len as usize))
    }

    fn fsync(&mut self, id: usize, _: &CallerCtx) -> Result<()> {
        done(self.get(id)?.fsync())
    }

    fn getdents<'b>(
        &mut self,
        id: usize,
        mut to: DirentBuf<&'b mut [u8]>,
        after: u64,
    ) -> Result<DirentBuf<&'b mut [u8]>> {
        let mut records = [0; 4096];
        let filled = libredox::call::getdents(self.get(id)?.raw(), &mut records, after).map_err(errno)?;
        let mut records = &records[..filled];
        while records.len() > size_of::<DirentHeader>() {
            let mut header = DirentHeader::default();
            header.copy_from_slice(&records[..size_of::<DirentHeader>()]);
            let (record, rest) = records.split_at(header.record_len.into());
            let name = record[size_of::<DirentHeader>()..].split(|byte| *byte == 0).next().unwrap_or_default();
            let entry = DirEntry {
                inode: header.inode,
                next_opaque_id: header.next_opaque_id,
                name: std::str::from_utf8(name).map_err(|_| Error::new(EIO))?,
                kind: DirentKind::try_from_raw(header.kind).unwrap_or_default(),
            };
            if to.entry(entry).is_err() {
                break;
            }
            records = rest;
        }
        Ok(to)
    }

    fn on_close(&mut self, id: usize) {
        let closed = self.opened.lock().unwrap().remove(&id);
        drop(closed);
    }
}

fn main() -> std::result::Result<(), AnyError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, dir, threads] = words.as_slice() else { return Err("Usage: passthrough NAME DIR THREADS".into()) };
    let dir = Fd::open(dir, libc::O_DIRECTORY | libc::O_PATH, 0).map_err(|error| format!("{dir}: {error}"))?;
    let mut path = [0; PATH_MAX];
    let length = dir.fpath(&mut path)?;
    let path = std::str::from_utf8(&path[..length])?.trim_end_matches('/').into();
    let (last, opened) = Default::default();
    let mut scheme = Passthrough { name: name.as_str().into(), dir: Arc::new(dir), path, last, opened };
    let socket = Socket::create().map_err(|error| error.to_string())?;
    register_sync_scheme(&socket, name, &mut scheme).map_err(|error| error.to_string())?;
    let turn = Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..threads.parse().unwrap_or(1) {
            let (mut scheme, socket, turn) = (scheme.clone(), &socket, &turn);
            scope.spawn(move || {
                let mut state = SchemeState::new();
                loop {
                    let taken = turn.lock().unwrap();
                    let Ok(Some(request)) = socket.next_request(SignalBehavior::Restart) else { return };
                    match request.kind() {
                        RequestKind::Call(call) => {
                            drop(taken);
                            let response = call.handle_sync(&mut scheme, &mut state);
                            let _ = socket.write_response(response, SignalBehavior::Restart);
                        }
                        RequestKind::OnClose { id } => scheme.on_close(id),
                        _ => {}
                    }
                }
            });
        }
    });
    Ok(())
}
