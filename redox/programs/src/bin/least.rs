//! least NAME DIR: serves the smallest scheme that passes requests on to a directory of another
//! scheme. It is a measure: no scheme can do less for a change.
//!
//! It has one thread and no state. The number of a handle is that of its descriptor. So a request
//! costs one read of the socket, one call to the other scheme, and one answer.

use std::mem::ManuallyDrop;

use libredox::Fd;
use redox_scheme::scheme::{SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{CallerCtx, OpenResult, RequestKind, SignalBehavior, Socket};
use syscall::error::{EIO, Error, Result};
use syscall::schemev2::NewFdFlags;

const PATH_MAX: usize = 4096;

type AnyError = Box<dyn std::error::Error>;

struct Least {
    dir: usize,
    /// The path of the directory, from the root of the system.
    path: String,
}

fn errno(error: libredox::error::Error) -> Error {
    Error::new(error.errno())
}

impl SchemeSync for Least {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(self.dir)
    }

    fn openat(&mut self, dir: usize, path: &str, flags: usize, _: u32, _: &CallerCtx) -> Result<OpenResult> {
        let dir = ManuallyDrop::new(Fd::new(dir));
        let number = dir.openat(path.trim_start_matches('/'), flags as i32, 0).map_err(errno)?.into_raw();
        Ok(OpenResult::ThisScheme { number, flags: NewFdFlags::POSITIONED })
    }

    fn unlinkat(&mut self, dir: usize, path: &str, flags: usize, _: &CallerCtx) -> Result<()> {
        syscall::unlinkat(dir, path.trim_start_matches('/'), flags).map(drop)
    }

    fn fstat(&mut self, id: usize, stat: &mut syscall::Stat, _: &CallerCtx) -> Result<()> {
        syscall::fstat(id, stat).map(drop)
    }

    fn write(&mut self, id: usize, buf: &[u8], offset: u64, _: u32, _: &CallerCtx) -> Result<usize> {
        // SAFETY: the pointer and the length are those of a slice.
        let written = unsafe { libc::pwrite(id as i32, buf.as_ptr().cast(), buf.len(), offset as libc::off_t) };
        usize::try_from(written).map_err(|_| Error::new(EIO))
    }

    fn frename(&mut self, id: usize, path: &str, _: &CallerCtx) -> Result<usize> {
        syscall::frename(id, format!("{}/{}", self.path, path.trim_start_matches('/')))
    }

    fn on_close(&mut self, id: usize) {
        // An error says that the descriptor is closed.
        let _ = libredox::call::close(id);
    }
}

fn main() -> std::result::Result<(), AnyError> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [name, dir] = words.as_slice() else { return Err("Usage: least NAME DIR".into()) };
    let dir = Fd::open(dir, libc::O_DIRECTORY | libc::O_PATH, 0).map_err(|error| format!("{dir}: {error}"))?;
    let mut path = [0; PATH_MAX];
    let length = dir.fpath(&mut path)?;
    let path = std::str::from_utf8(&path[..length])?.trim_end_matches('/').to_owned();
    let socket = Socket::create().map_err(|error| error.to_string())?;
    let mut scheme = Least { dir: dir.into_raw(), path };
    register_sync_scheme(&socket, name, &mut scheme).map_err(|error| error.to_string())?;
    let mut state = SchemeState::new();
    while let Some(request) = socket.next_request(SignalBehavior::Restart).map_err(|error| error.to_string())? {
        match request.kind() {
            RequestKind::Call(call) => {
                let response = call.handle_sync(&mut scheme, &mut state);
                socket.write_response(response, SignalBehavior::Restart).map_err(|error| error.to_string())?;
            }
            RequestKind::OnClose { id } => scheme.on_close(id),
            _ => {}
        }
    }
    Ok(())
}
