//! passthrough NAME DIR THREADS [known]: serves a scheme that forwards each request to a directory
//! of another scheme. It uses THREADS threads. With `known`, it keeps what was opened for reading
//! or for a stat, and which names are missing, until a rename. It answers the next open and fstat
//! at once. That is for measurements: it misses later changes of a file.
//!
//! It has no code of the overlay. A fault that also shows through this scheme is a fault of the
//! system. So is its cost: no scheme can do less for an open, or for a change.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use libredox::Fd;
use redox_scheme::scheme::{SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{CallerCtx, OpenResult, RequestKind, SignalBehavior, Socket};
use syscall::data::Stat;
use syscall::dirent::{DirEntry, DirentBuf, DirentHeader, DirentKind};
use syscall::error::{EBADF, EIO, ENOENT, Error, Result};
use syscall::flag::{O_CREAT, O_DIRECTORY, O_WRONLY};
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
    opened: Arc<Mutex<HashMap<usize, Arc<Open>>>>,
    /// If it keeps something.
    known: Option<Arc<Mutex<HashMap<String, Known>>>>,
}

/// What was opened at a path, with the flags. None: the name is missing.
type Known = Vec<(usize, Option<Arc<Open>>)>;

struct Open {
    fd: Fd,
    stat: OnceLock<Stat>,
}

impl Passthrough {
    fn insert(&self, open: Arc<Open>) -> usize {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.opened.lock().unwrap().insert(id, open);
        id
    }

    fn open(&self, id: usize) -> Result<Arc<Open>> {
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
        let fd = self.dir.openat("", libc::O_DIRECTORY | libc::O_PATH, 0).map_err(errno)?;
        Ok(self.insert(Arc::new(Open { fd, stat: OnceLock::new() })))
    }

    fn openat(&mut self, dir: usize, path: &str, flags: usize, _: u32, _: &CallerCtx) -> Result<OpenResult> {
        let path = path.trim_start_matches('/');
        let known = self.known.as_ref().filter(|_| flags & (O_WRONLY | O_CREAT | O_DIRECTORY) == 0);
        let kept = known.and_then(|known| {
            let known = known.lock().unwrap();
            known.get(path)?.iter().find(|(with, _)| *with == flags).map(|(_, open)| open.clone())
        });
        let open = match kept {
            Some(known) => known.ok_or(Error::new(ENOENT))?,
            None => {
                let opened = match self.open(dir)?.fd.openat(path, flags as i32, 0) {
                    Ok(fd) => Some(Arc::new(Open { fd, stat: OnceLock::new() })),
                    Err(error) if error.errno() == ENOENT => None,
                    Err(error) => return Err(errno(error)),
                };
                match (known, &self.known) {
                    (Some(known), _) => {
                        known.lock().unwrap().entry(path.to_owned()).or_default().push((flags, opened.clone()));
                    }
                    (None, Some(known)) if flags & O_CREAT != 0 => drop(known.lock().unwrap().remove(path)),
                    (None, _) => {}
                }
                opened.ok_or(Error::new(ENOENT))?
            }
        };
        Ok(OpenResult::ThisScheme { number: self.insert(open), flags: NewFdFlags::POSITIONED })
    }

    fn unlinkat(&mut self, dir: usize, path: &str, flags: usize, _: &CallerCtx) -> Result<()> {
        let path = path.trim_start_matches('/');
        if let Some(known) = &self.known {
            known.lock().unwrap().remove(path);
        }
        syscall::unlinkat(self.open(dir)?.fd.raw(), path, flags).map(drop)
    }

    fn read(&mut self, id: usize, buf: &mut [u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        let open = self.open(id)?;
        // SAFETY: the pointer and the length are those of a slice that may be written to.
        count(unsafe { libc::pread(open.fd.raw() as i32, buf.as_mut_ptr().cast(), buf.len(), offset as libc::off_t) })
    }

    fn write(&mut self, id: usize, buf: &[u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        let open = self.open(id)?;
        // SAFETY: the pointer and the length are those of a slice.
        count(unsafe { libc::pwrite(open.fd.raw() as i32, buf.as_ptr().cast(), buf.len(), offset as libc::off_t) })
    }

    fn fsize(&mut self, id: usize, _: &CallerCtx) -> Result<u64> {
        Ok(self.open(id)?.fd.stat().map_err(errno)?.st_size as u64)
    }

    fn flink(&mut self, id: usize, path: &str, _: &CallerCtx) -> Result<usize> {
        syscall::flink(self.open(id)?.fd.raw(), self.below(path))
    }

    fn frename(&mut self, id: usize, path: &str, _: &CallerCtx) -> Result<usize> {
        if let Some(known) = &self.known {
            known.lock().unwrap().clear();
        }
        syscall::frename(self.open(id)?.fd.raw(), self.below(path))
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], _: &CallerCtx) -> Result<usize> {
        let mut path = [0; PATH_MAX];
        let length = self.open(id)?.fd.fpath(&mut path).map_err(errno)?;
        let path = std::str::from_utf8(&path[..length]).map_err(|_| Error::new(EIO))?;
        let inside = path.strip_prefix(&*self.path).ok_or(Error::new(EIO))?;
        let told = format!("/scheme/{}{inside}", self.name);
        let length = told.len().min(buf.len());
        buf[..length].copy_from_slice(&told.as_bytes()[..length]);
        Ok(length)
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, _: &CallerCtx) -> Result<()> {
        let open = self.open(id)?;
        if let Some(known) = open.stat.get().filter(|_| self.known.is_some()) {
            *stat = *known;
            return Ok(());
        }
        let found = open.fd.stat().map_err(errno)?;
        stat.st_mode = found.st_mode as u16;
        stat.st_ino = found.st_ino;
        stat.st_nlink = found.st_nlink as u32;
        stat.st_size = found.st_size as u64;
        let _ = open.stat.set(*stat);
        Ok(())
    }

    fn ftruncate(&mut self, id: usize, len: u64, _: &CallerCtx) -> Result<()> {
        done(libredox::call::ftruncate(self.open(id)?.fd.raw(), len as usize))
    }

    fn fsync(&mut self, id: usize, _: &CallerCtx) -> Result<()> {
        done(self.open(id)?.fd.fsync())
    }

    fn getdents<'b>(
        &mut self,
        id: usize,
        mut to: DirentBuf<&'b mut [u8]>,
        after: u64,
    ) -> Result<DirentBuf<&'b mut [u8]>> {
        let mut records = [0; 4096];
        let filled = libredox::call::getdents(self.open(id)?.fd.raw(), &mut records, after).map_err(errno)?;
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
    let [name, dir, threads, known @ ..] = words.as_slice() else {
        return Err("Usage: passthrough NAME DIR THREADS [known]".into());
    };
    let dir = Fd::open(dir, libc::O_DIRECTORY | libc::O_PATH, 0).map_err(|error| format!("{dir}: {error}"))?;
    let mut path = [0; PATH_MAX];
    let length = dir.fpath(&mut path)?;
    let path = std::str::from_utf8(&path[..length])?.trim_end_matches('/').into();
    let (last, opened) = Default::default();
    let known = known.first().map(|_| Arc::default());
    let mut scheme = Passthrough { name: name.as_str().into(), dir: Arc::new(dir), path, last, opened, known };
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
