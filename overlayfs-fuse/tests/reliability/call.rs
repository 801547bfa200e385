//! The calls by which a program changes its part of a tree. Each has an effect on the tree, a
//! system call, and a promise that its success makes.

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Mode as RawMode, OFlags, RenameFlags, XattrFlags, linkat, open, renameat_with};
use test_common::Random;

use crate::history::{BLOCK, Content, Entry, FileId, Promise, State, parent};

/// The call that writes a mapping to the disk.
#[derive(Clone, Copy, Debug)]
pub enum SyncBy {
    Msync,
    Fsync,
}

/// One call that changes a tree, or syncs a part of it. Paths are relative to its root.
#[derive(Clone, Debug)]
pub enum Call {
    Create(String),
    Write {
        path: String,
        offset: usize,
        length: usize,
    },
    /// A write through a shared mapping. It ends inside the file, and is synced.
    Store {
        path: String,
        offset: usize,
        length: usize,
        sync: SyncBy,
    },
    Truncate(String, usize),
    Mode(String, u32),
    /// Sets the time of the last change of the contents, since 1970.
    Time(String, Duration),
    /// The path, the name of the attribute, and the length of its value.
    SetXattr(String, String, usize),
    RemoveXattr(String, String),
    Unlink(String),
    Rename(String, String),
    /// A rename that leaves a device.
    Leave(String, String),
    /// An exchange of the names of a file and of an object that is no file.
    Exchange(String, String),
    /// Makes a file without a name, fills and syncs it, and gives it a name.
    Temp(String, usize),
    Link(String, String),
    Symlink(String),
    MakeDir(String),
    RemoveDir(String),
    SyncFile(String),
    SyncDir(String),
}

impl Call {
    /// Returns the file of the state afterwards that gets a name, other content or other
    /// attributes.
    pub fn file(&self, state: &State) -> Option<FileId> {
        let (Call::Create(path)
        | Call::Write { path, .. }
        | Call::Store { path, .. }
        | Call::Truncate(path, _)
        | Call::Mode(path, _)
        | Call::Time(path, _)
        | Call::SetXattr(path, ..)
        | Call::RemoveXattr(path, _)
        | Call::Rename(_, path)
        | Call::Leave(_, path)
        | Call::Exchange(_, path)
        | Call::Temp(path, _)
        | Call::Link(_, path)) = self
        else {
            return None;
        };
        match state.tree.get(path) {
            Some(Entry::File(id)) => Some(*id),
            _ => None,
        }
    }

    /// Returns the directories in which names change.
    pub fn dirs(&self) -> Vec<String> {
        match self {
            Call::Create(path)
            | Call::Temp(path, _)
            | Call::Unlink(path)
            | Call::Link(_, path)
            | Call::Symlink(path)
            | Call::MakeDir(path)
            | Call::RemoveDir(path) => vec![parent(path).to_owned()],
            Call::Rename(from, to) | Call::Leave(from, to) | Call::Exchange(from, to) => {
                vec![parent(from).to_owned(), parent(to).to_owned()]
            }
            _ => Vec::new(),
        }
    }

    /// Applies the call to a state. `seed` determines new contents. Returns the promise of the
    /// call.
    pub fn apply(&self, state: &mut State, next_file: &mut FileId, seed: u64) -> Option<Promise> {
        let id = |state: &State, path: &str| match state.tree[path] {
            Entry::File(id) => id,
            _ => panic!("{path} is no file"),
        };
        let mut promise = None;
        match self {
            Call::Create(path) => {
                state.tree.insert(path.clone(), Entry::File(*next_file));
                state.files.insert(*next_file, Content { mode: 0o600, ..Content::default() });
                *next_file += 1;
            }
            Call::Temp(path, length) => {
                state.tree.insert(path.clone(), Entry::File(*next_file));
                let bytes = Arc::new(bytes(seed, *length));
                state.files.insert(*next_file, Content { bytes, mode: 0o600, ..Content::default() });
                *next_file += 1;
            }
            Call::Leave(from, to) => {
                let entry = state.tree.insert(from.clone(), Entry::Device).unwrap();
                state.tree.insert(to.clone(), entry);
            }
            Call::Exchange(from, to) => {
                let (one, other) = (state.tree[from].clone(), state.tree[to].clone());
                state.tree.extend([(from.clone(), other), (to.clone(), one)]);
            }
            Call::Write { path, offset, length } => change(state, id(state, path), |content| {
                content.resize(content.len().max(offset + length), 0);
                content[*offset..offset + length].copy_from_slice(&bytes(seed, *length));
            }),
            Call::Store { path, offset, length, .. } => {
                let id = id(state, path);
                change(state, id, |content| {
                    content[*offset..offset + length].copy_from_slice(&bytes(seed, *length));
                });
                promise = Some(Promise::File(id, path.clone()));
            }
            Call::Truncate(path, size) => change(state, id(state, path), |content| content.resize(*size, 0)),
            Call::Mode(path, mode) => attributes(state, id(state, path)).mode = *mode,
            Call::Time(path, mtime) => attributes(state, id(state, path)).mtime = Some(SystemTime::UNIX_EPOCH + *mtime),
            Call::SetXattr(path, name, length) => {
                let value = bytes(seed, *length);
                attributes(state, id(state, path)).xattrs.insert(name.clone(), value);
            }
            Call::RemoveXattr(path, name) => drop(attributes(state, id(state, path)).xattrs.remove(name)),
            Call::Unlink(path) | Call::RemoveDir(path) => drop(state.tree.remove(path)),
            Call::Rename(from, to) => {
                let below = format!("{from}/");
                let moved: Vec<String> =
                    state.tree.keys().filter(|path| *path == from || path.starts_with(&below)).cloned().collect();
                for path in moved {
                    let entry = state.tree.remove(&path).unwrap();
                    state.tree.insert(format!("{to}{}", &path[from.len()..]), entry);
                }
            }
            Call::Link(from, to) => drop(state.tree.insert(to.clone(), Entry::File(id(state, from)))),
            Call::Symlink(path) => drop(state.tree.insert(path.clone(), Entry::Symlink(format!("to-{seed}")))),
            Call::MakeDir(path) => drop(state.tree.insert(path.clone(), Entry::Dir)),
            Call::SyncFile(path) => promise = Some(Promise::File(id(state, path), path.clone())),
            Call::SyncDir(path) => promise = Some(Promise::Dir(path.clone())),
        }
        let nameless: Vec<FileId> = state.files.keys().copied().filter(|id| state.names(*id).is_empty()).collect();
        state.files.retain(|id, _| !nameless.contains(id));
        promise
    }

    /// Makes the call in the tree at `root`, with the same `seed`.
    pub fn make(&self, root: &Path, seed: u64) -> io::Result<()> {
        let at = |path: &str| root.join(path);
        match self {
            Call::Create(path) => close(File::options().write(true).create_new(true).mode(0o600).open(at(path))?),
            Call::Write { path, offset, length } => {
                let file = File::options().write(true).open(at(path))?;
                let data = bytes(seed, *length);
                let written = file.write_at(&data, *offset as u64)?;
                close(file)?;
                if written < *length { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
            }
            Call::Store { path, offset, length, sync } => store(&at(path), *offset, &bytes(seed, *length), *sync),
            Call::Truncate(path, size) => File::options().write(true).open(at(path))?.set_len(*size as u64),
            Call::Mode(path, mode) => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
            Call::Time(path, mtime) => {
                File::open(at(path))?.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH + *mtime))
            }
            Call::SetXattr(path, name, length) => {
                Ok(rustix::fs::setxattr(at(path), name, &bytes(seed, *length), XattrFlags::empty())?)
            }
            Call::RemoveXattr(path, name) => Ok(rustix::fs::removexattr(at(path), name)?),
            Call::Unlink(path) => fs::remove_file(at(path)),
            Call::Rename(from, to) => fs::rename(at(from), at(to)),
            Call::Leave(from, to) => Ok(renameat_with(CWD, at(from), CWD, at(to), RenameFlags::WHITEOUT)?),
            Call::Exchange(from, to) => Ok(renameat_with(CWD, at(from), CWD, at(to), RenameFlags::EXCHANGE)?),
            Call::Temp(path, length) => {
                let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = File::from(open(at(parent(path)), flags, RawMode::from_raw_mode(0o600))?);
                file.write_all_at(&bytes(seed, *length), 0)?;
                file.sync_all()?;
                let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
                linkat(CWD, unnamed, CWD, at(path), AtFlags::SYMLINK_FOLLOW)?;
                close(file)
            }
            Call::Link(from, to) => fs::hard_link(at(from), at(to)),
            Call::Symlink(path) => symlink(format!("to-{seed}"), at(path)),
            Call::MakeDir(path) => fs::create_dir(at(path)),
            Call::RemoveDir(path) => fs::remove_dir(at(path)),
            Call::SyncFile(path) | Call::SyncDir(path) => File::open(at(path))?.sync_all(),
        }
    }
}

/// Returns bytes that occur nowhere else, so that a block shows its origin.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn attributes(state: &mut State, id: FileId) -> &mut Content {
    state.files.get_mut(&id).unwrap()
}

/// Changes the bytes of a file, and sets its time of change to now.
fn change(state: &mut State, id: FileId, how: impl FnOnce(&mut Vec<u8>)) {
    let content = attributes(state, id);
    let mut bytes = content.bytes.to_vec();
    how(&mut bytes);
    content.bytes = Arc::new(bytes);
    content.mtime = None;
}

/// Writes data to a file through a mapping of the pages concerned, and syncs them before the
/// munmap. An munmap with dirty pages would wait for the disk. This process may have to serve the
/// disk, and could map no memory meanwhile.
fn store(path: &Path, offset: usize, data: &[u8], sync: SyncBy) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let within = offset % BLOCK;
    let (start, length) = (offset - within, within + data.len());
    // A store to a page in the page cache needs no answer of the daemon. Without a daemon another
    // store is a SIGBUS, and this read is an error instead.
    file.read_exact_at(&mut vec![0; length], start as u64)?;
    let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    // SAFETY: a new mapping, at an address that the system chooses.
    let map = unsafe { libc::mmap(ptr::null_mut(), length, protection, libc::MAP_SHARED, fd, start as libc::off_t) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the pages are those of the mapping. No other code uses it, and it ends with this
    // block.
    let stored = unsafe {
        ptr::copy_nonoverlapping(data.as_ptr(), map.cast::<u8>().add(within), data.len());
        let synced = match sync {
            SyncBy::Msync => answer(libc::msync(map, length, libc::MS_SYNC)),
            SyncBy::Fsync => file.sync_all(),
        };
        synced.and(answer(libc::munmap(map, length)))
    };
    stored.and(close(file))
}

/// Closes a file, and returns the error of a write that close(2) reports.
fn close(file: File) -> io::Result<()> {
    // SAFETY: the file owned the descriptor and has given it up.
    answer(unsafe { libc::close(file.into_raw_fd()) })
}

/// Returns the result of a call of the C library.
fn answer(code: libc::c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
