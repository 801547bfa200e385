//! A toy scheme that records every call. An ordinary loop over `redox_scheme` serves it on a
//! thread.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use linux_delegate::kernel;
use redox_scheme::scheme::{SchemeState, SchemeSync, register_sync_scheme};
use redox_scheme::{CallerCtx, OpenResult, RequestKind, Response, SignalBehavior, Socket};
use syscall::data::{Stat, StatVfs, StdFsCallMeta, TimeSpec};
use syscall::dirent::{DirEntry, DirentBuf, DirentKind};
use syscall::error::{EAGAIN, EINVAL, ENOENT, EXDEV, Error, Result};
use syscall::flag::{EventFlags, MapFlags, MunmapFlags, O_SYMLINK, StdFsCallKind};
use syscall::schemev2::NewFdFlags;

/// The id of the root of the scheme.
pub const ROOT: usize = 7;

/// The calls of the daemon, one line each.
pub type Log = Arc<Mutex<Vec<String>>>;

/// A running toy daemon. Its drop stops it and frees its name.
pub struct Daemon {
    pub name: String,
    pub log: Log,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    /// Starts a daemon and waits until it is registered.
    pub fn start() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("toy{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let log = Log::default();
        let (ready, wait) = std::sync::mpsc::channel();
        let (thread_name, thread_log) = (name.clone(), log.clone());
        let thread = std::thread::spawn(move || {
            let socket = Socket::create().unwrap();
            let mut scheme = Toy { name: thread_name.clone(), log: thread_log, paths: HashMap::new(), next: 100 };
            register_sync_scheme(&socket, &thread_name, &mut scheme).unwrap();
            ready.send(()).unwrap();
            serve(&socket, &mut scheme);
        });
        wait.recv().unwrap();
        Self { name, log, thread: Some(thread) }
    }

    pub fn path(&self, rest: &str) -> String {
        format!("/scheme/{}/{rest}", self.name)
    }

    /// Returns the calls since the last time.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// Returns the calls since the last time, once at least `count` have come. One-way calls may
    /// come late.
    pub fn await_calls(&self, count: usize) -> Vec<String> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.log.lock().unwrap().len() < count && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        self.calls()
    }

    /// Waits for the end of the daemon's thread. Returns whether it ended without a panic.
    pub fn join(&mut self) -> bool {
        self.thread.take().unwrap().join().is_ok()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kernel::stop(&self.name);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = kernel::unregister(&self.name);
    }
}

fn serve(socket: &Socket, scheme: &mut Toy) {
    let mut state = SchemeState::new();
    while let Some(request) = socket.next_request(SignalBehavior::Restart).unwrap() {
        match request.kind() {
            RequestKind::Call(call) => {
                let response = call.handle_sync(scheme, &mut state);
                // The kernel refuses only an answer to a request that has no caller.
                let _ = socket.write_response(response, SignalBehavior::Restart);
            }
            RequestKind::OnClose { id } => scheme.on_close(id),
            RequestKind::OnDetach { id, pid } => {
                scheme.note(format!("detach {id} by {pid}"));
                state.on_detach(id, scheme.inode(id).unwrap(), pid);
            }
            _ => panic!("a request that no client here sends"),
        }
        for event in scheme.events() {
            socket.write_response(event, SignalBehavior::Restart).unwrap();
        }
    }
    scheme.note("end".to_owned());
}

struct Toy {
    name: String,
    log: Log,
    paths: HashMap<usize, String>,
    next: usize,
}

impl Toy {
    fn note(&self, call: String) {
        self.log.lock().unwrap().push(call);
    }

    fn note_by(&self, call: String, ctx: &CallerCtx) {
        self.note(format!("{call} by {}:{}:{}", ctx.pid, ctx.uid, ctx.gid));
    }

    /// A write of "event" anywhere makes an event for the file 100.
    fn events(&mut self) -> Vec<Response> {
        match self.log.lock().unwrap().last() {
            Some(last) if last.contains("event!") => {
                vec![Response::post_fevent(100, EventFlags::EVENT_READ.bits())]
            }
            _ => Vec::new(),
        }
    }
}

impl SchemeSync for Toy {
    fn scheme_root(&mut self) -> Result<usize> {
        Ok(ROOT)
    }

    fn openat(&mut self, fd: usize, path: &str, flags: usize, fcntl_flags: u32, ctx: &CallerCtx) -> Result<OpenResult> {
        self.note_by(format!("openat {fd} {path:?} {flags:x} {fcntl_flags:x}"), ctx);
        match path {
            "missing" => return Err(Error::new(ENOENT)),
            "elsewhere" if flags & O_SYMLINK == 0 => return Err(Error::new(EXDEV)),
            "panic" => panic!("as the test asked"),
            _ => {}
        }
        let number = self.next;
        self.next += 1;
        self.paths.insert(number, path.to_owned());
        let flags = if path == "stream" { NewFdFlags::empty() } else { NewFdFlags::POSITIONED };
        Ok(OpenResult::ThisScheme { number, flags })
    }

    fn unlinkat(&mut self, fd: usize, path: &str, flags: usize, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("unlinkat {fd} {path:?} {flags:x}"), ctx);
        Ok(())
    }

    fn dup(&mut self, id: usize, buf: &[u8], ctx: &CallerCtx) -> Result<OpenResult> {
        self.note_by(format!("dup {id} {:?}", String::from_utf8_lossy(buf)), ctx);
        let number = self.next;
        self.next += 1;
        Ok(OpenResult::ThisScheme { number, flags: NewFdFlags::POSITIONED })
    }

    fn inode(&self, id: usize) -> Result<usize> {
        Ok(id)
    }

    fn read(&mut self, id: usize, buf: &mut [u8], offset: u64, flags: u32, ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("read {id} {} at {offset} {flags:x}", buf.len()), ctx);
        match self.paths.get(&id).map(String::as_str) {
            Some("elsewhere") => {
                let target = b"/scheme/file/target";
                buf[..target.len()].copy_from_slice(target);
                Ok(target.len())
            }
            Some("again") => Err(Error::new(EAGAIN)),
            _ => {
                let count = buf.len().min(10usize.saturating_sub(offset as usize));
                buf[..count].fill(b'a'.wrapping_add(offset as u8));
                Ok(count)
            }
        }
    }

    fn write(&mut self, id: usize, buf: &[u8], offset: u64, flags: u32, ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("write {id} {:?} at {offset} {flags:x}", String::from_utf8_lossy(buf)), ctx);
        Ok(buf.len())
    }

    fn fsize(&mut self, id: usize, ctx: &CallerCtx) -> Result<u64> {
        self.note_by(format!("fsize {id}"), ctx);
        Ok(1000)
    }

    fn fchmod(&mut self, id: usize, mode: u16, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("fchmod {id} {mode:o}"), ctx);
        Ok(())
    }

    fn fchown(&mut self, id: usize, uid: u32, gid: u32, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("fchown {id} {uid} {gid}"), ctx);
        Ok(())
    }

    fn fcntl(&mut self, id: usize, cmd: usize, arg: usize, ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("fcntl {id} {cmd} {arg:x}"), ctx);
        Ok(12345)
    }

    fn fevent(&mut self, id: usize, flags: EventFlags, ctx: &CallerCtx) -> Result<EventFlags> {
        self.note_by(format!("fevent {id} {}", flags.bits()), ctx);
        Ok(EventFlags::EVENT_WRITE)
    }

    fn flink(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("flink {id} {path:?}"), ctx);
        Ok(0)
    }

    fn flinkat(&mut self, id: usize, dir: usize, path: &str, flags: u32, _: &CallerCtx) -> Result<usize> {
        self.note(format!("flinkat {id} {dir} {path:?} {flags}"));
        Ok(0)
    }

    fn frename(&mut self, id: usize, path: &str, ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("frename {id} {path:?}"), ctx);
        Ok(0)
    }

    fn frenameat(
        &mut self,
        old_dir: usize,
        old: &str,
        new_dir: usize,
        new: &str,
        flags: u32,
        ctx: &CallerCtx,
    ) -> Result<usize> {
        self.note_by(format!("frenameat {old_dir} {old:?} {new_dir} {new:?} {flags}"), ctx);
        Ok(0)
    }

    fn relpathat(&mut self, id: usize, dir: usize, path: &mut [u8], ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("relpathat {id} {dir} {}", path.len()), ctx);
        path[..3].copy_from_slice(b"rel");
        Ok(3)
    }

    fn fpath(&mut self, id: usize, buf: &mut [u8], ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("fpath {id}"), ctx);
        let path = format!("/scheme/{}/{}", self.name, self.paths.get(&id).map_or("", String::as_str));
        buf[..path.len()].copy_from_slice(path.as_bytes());
        Ok(path.len())
    }

    fn fstat(&mut self, id: usize, stat: &mut Stat, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("fstat {id}"), ctx);
        *stat = Stat { st_dev: 3, st_ino: id as u64, st_mode: 0o100640, st_size: 10, ..Stat::default() };
        Ok(())
    }

    fn fstatvfs(&mut self, id: usize, stat: &mut StatVfs, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("fstatvfs {id}"), ctx);
        stat.f_bsize = 4096;
        Ok(())
    }

    fn fsync(&mut self, id: usize, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("fsync {id}"), ctx);
        Ok(())
    }

    fn ftruncate(&mut self, id: usize, len: u64, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("ftruncate {id} {len}"), ctx);
        Ok(())
    }

    fn futimens(&mut self, id: usize, times: &[TimeSpec], ctx: &CallerCtx) -> Result<()> {
        let times: Vec<_> = times.iter().map(|time| (time.tv_sec, time.tv_nsec)).collect();
        self.note_by(format!("futimens {id} {times:?}"), ctx);
        Ok(())
    }

    fn call(&mut self, id: usize, payload: &mut [u8], metadata: &[u64], _: &CallerCtx) -> Result<usize> {
        self.note(format!("call {id} {payload:?} {metadata:?}"));
        Ok(payload.len())
    }

    fn call_multiple_ids(
        &mut self,
        ids: &[usize],
        payload: &mut [u8],
        metadata: &[u64],
        _: &CallerCtx,
    ) -> Result<usize> {
        self.note(format!("call {ids:?} {payload:?} {metadata:?}"));
        Ok(payload.len())
    }

    fn std_fs_call(
        &mut self,
        id: usize,
        kind: StdFsCallKind,
        payload: &mut [u8],
        metadata: StdFsCallMeta,
        _: &CallerCtx,
    ) -> Result<usize> {
        let (arg1, arg2) = (metadata.arg1, metadata.arg2);
        self.note(format!("std_fs_call {id} {kind:?} {payload:?} {arg1} {arg2}"));
        Ok(0)
    }

    /// Lists two entries. The name of the second does not fit into the first buffer of relibc.
    fn getdents<'buf>(
        &mut self,
        id: usize,
        mut buf: DirentBuf<&'buf mut [u8]>,
        after: u64,
    ) -> Result<DirentBuf<&'buf mut [u8]>> {
        self.note(format!("getdents {id} after {after}"));
        let long = "n".repeat(1000);
        let names = [(0, "short", 40), (40, long.as_str(), 90)];
        for (index, (offset, name, next_opaque_id)) in names.into_iter().enumerate() {
            if offset < after || after == 90 {
                continue;
            }
            let entry = DirEntry { inode: index as u64 + 1, next_opaque_id, name, kind: DirentKind::Regular };
            if let Err(error) = buf.entry(entry) {
                return if index == 0 || after == 40 { Err(error) } else { Ok(buf) };
            }
        }
        Ok(buf)
    }

    fn mmap_prep(&mut self, id: usize, offset: u64, size: usize, flags: MapFlags, ctx: &CallerCtx) -> Result<usize> {
        self.note_by(format!("mmap_prep {id} {offset} {size} {:x}", flags.bits()), ctx);
        if size == 1 { Err(Error::new(EINVAL)) } else { Ok(0x5000) }
    }

    fn munmap(&mut self, id: usize, offset: u64, size: usize, flags: MunmapFlags, ctx: &CallerCtx) -> Result<()> {
        self.note_by(format!("munmap {id} {offset} {size} {:x}", flags.bits()), ctx);
        Ok(())
    }

    fn on_close(&mut self, id: usize) {
        self.note(format!("close {id}"));
    }
}
