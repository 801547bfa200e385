//! Operations on a merged tree as data, and a mount that makes them.

use std::ffi::OsStr;
use std::sync::Arc;

use overlayfs::errno::{EIO, ENOENT, EOPNOTSUPP};
use overlayfs::format::Wanted;
use overlayfs::layer::{Allocation, Error, Kind, Layer, Owner, RenameMode, Result, Time, XattrMode};
use overlayfs::overlay::{Handle, Layers, Node, Overlay, Settings, Unfrozen};

pub const OWN: Owner = Owner { uid: 0, gid: 0 };
pub const OTHER: Owner = Owner { uid: 1000, gid: 1001 };

/// The attribute that operations set and remove.
pub const XATTR: &str = "user.note";

pub type NodeRef<L> = Arc<Node<L>>;

#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Create(String),
    CreateAs(String, Owner),
    Mkdir(String),
    MkdirAs(String, Owner),
    Symlink(String),
    Fifo(String),
    /// Makes a file without a name, writes to it, and gives it a name.
    Temp(String),
    Link(String, String),
    Unlink(String),
    Rmdir(String),
    Rename(String, String, RenameMode),
    /// Writes a byte so many times.
    Write(String, u64, usize, u8),
    Append(String, usize, u8),
    Truncate(String, u64),
    Punch(String, u64, u64),
    Reserve(String, u64),
    CopyRange(String, String),
    Chmod(String, u32),
    Chown(String, Owner),
    Times(String, i64),
    SetXattr(String, u8),
    RemoveXattr(String),
    Sync(String),
    /// Opens an object until the mount ends.
    Hold(String),
    /// Writes to the open objects.
    WriteHeld(u8),
    /// Ends the mount and mounts again.
    Remount,
    /// Ends the mount without any further call, as a crash does, and mounts again.
    Crash,
    /// Closes everything and freezes the upper layer.
    Snapshot,
    /// Closes everything and goes back to the last snapshot.
    RollBack,
}

impl Op {
    /// Returns the paths of the operation.
    pub fn paths(&self) -> Vec<String> {
        match self {
            Op::Create(path)
            | Op::CreateAs(path, _)
            | Op::Mkdir(path)
            | Op::MkdirAs(path, _)
            | Op::Symlink(path)
            | Op::Fifo(path)
            | Op::Temp(path)
            | Op::Unlink(path)
            | Op::Rmdir(path)
            | Op::Write(path, ..)
            | Op::Append(path, ..)
            | Op::Truncate(path, _)
            | Op::Punch(path, ..)
            | Op::Reserve(path, _)
            | Op::Chmod(path, _)
            | Op::Chown(path, _)
            | Op::Times(path, _)
            | Op::SetXattr(path, _)
            | Op::RemoveXattr(path)
            | Op::Sync(path)
            | Op::Hold(path) => vec![path.clone()],
            Op::Link(from, to) | Op::Rename(from, to, _) | Op::CopyRange(from, to) => vec![from.clone(), to.clone()],
            Op::WriteHeld(_) | Op::Remount | Op::Crash | Op::Snapshot | Op::RollBack => Vec::new(),
        }
    }
}

/// The settings of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mounting {
    pub format: Wanted,
    pub whole_copies: bool,
    /// Whether there may be snapshots.
    pub in_chain: bool,
}

/// The source of the layers of a mount.
pub trait Source {
    type Layer: Layer;
    fn layers(&self) -> Result<Layers<Self::Layer>>;
    /// Returns the directory for snapshots. Only some sources have one.
    fn snapshots(&self) -> Result<Self::Layer> {
        Err(Error::new(EOPNOTSUPP))
    }
    /// Refuses all calls from now on, or accepts them again.
    fn stop(&self, stopped: bool);
}

/// A mount.
pub struct Session<'s, S: Source> {
    source: &'s S,
    mounting: Mounting,
    pub held: Vec<Handle<S::Layer>>,
    overlay: Option<Overlay<S::Layer>>,
}

impl<'s, S: Source> Session<'s, S> {
    /// Mounts the layers. Fails with the errno of a refusal.
    pub fn new(source: &'s S, mounting: Mounting) -> Result<Self> {
        let mut session = Session { source, mounting, held: Vec::new(), overlay: None };
        session.mount()?;
        Ok(session)
    }

    pub fn overlay(&self) -> &Overlay<S::Layer> {
        self.overlay.as_ref().expect("mounted")
    }

    /// Mounts, unless the layers are mounted.
    fn mount(&mut self) -> Result<()> {
        if self.overlay.is_none() {
            let Mounting { format, whole_copies, in_chain } = self.mounting;
            let settings = Settings { format: Some(format), whole_copies, ..Settings::default() };
            let layers = self.source.layers()?;
            self.overlay = Some(match in_chain {
                true => Overlay::with_snapshots(layers, self.source.snapshots()?, settings)?,
                false => Overlay::with_settings(layers, settings)?,
            });
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.held.clear();
        self.overlay = None;
    }

    /// Ends the mount without any further call.
    pub fn crash(mut self) {
        self.source.stop(true);
        self.leave();
        self.source.stop(false);
    }

    pub fn find(&self, path: &str) -> Result<NodeRef<S::Layer>> {
        let overlay = self.overlay();
        let mut names = path.split('/').filter(|name| !name.is_empty());
        names.try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)))
    }

    /// Returns the directory of an object that may be missing, and its name.
    fn entry<'p>(&self, path: &'p str) -> Result<(NodeRef<S::Layer>, &'p OsStr)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.find(dir)?, OsStr::new(name)))
    }

    fn open(&self, path: &str) -> Result<Handle<S::Layer>> {
        Ok(self.overlay().open(&self.find(path)?))
    }

    /// Makes an operation as a program does that continues after a short write.
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        if matches!(op, Op::Remount | Op::Crash) {
            let crashes = *op == Op::Crash;
            if crashes {
                self.source.stop(true);
            }
            self.leave();
            if crashes {
                self.source.stop(false);
            }
            return self.mount();
        }
        // Tries a mount again that was refused before.
        self.mount()?;
        if matches!(op, Op::Snapshot | Op::RollBack) {
            return self.exchange(*op == Op::Snapshot);
        }
        if let Op::Hold(path) = op {
            let handle = self.open(path)?;
            self.held.push(handle);
            return Ok(());
        }
        let overlay = self.overlay();
        match op {
            Op::Create(path) => self.create(path, OWN),
            Op::CreateAs(path, owner) => self.create(path, *owner),
            Op::Mkdir(path) => self.make_dir(path, OWN),
            Op::MkdirAs(path, owner) => self.make_dir(path, *owner),
            Op::Symlink(path) => {
                let (dir, name) = self.entry(path)?;
                overlay.create_symlink(&dir, name, OsStr::new("target"), OWN).map(drop)
            }
            Op::Fifo(path) => {
                let (dir, name) = self.entry(path)?;
                overlay.create_node(&dir, name, Kind::Fifo, 0o600, 0, OWN).map(drop)
            }
            Op::Temp(path) => {
                let (dir, name) = self.entry(path)?;
                let handle = overlay.create_temp(&dir, 0o640, OTHER)?;
                let node = handle.node().clone();
                let linked = self.write(&handle, Some(0), &[b't'; 100]).and_then(|()| overlay.link(&node, &dir, name));
                drop(handle);
                overlay.release(node);
                linked
            }
            Op::Link(from, to) => {
                let (dir, name) = self.entry(to)?;
                overlay.link(&self.find(from)?, &dir, name)
            }
            Op::Unlink(path) => {
                let (dir, name) = self.entry(path)?;
                overlay.unlink(&dir, name)
            }
            Op::Rmdir(path) => {
                let (dir, name) = self.entry(path)?;
                overlay.remove_dir(&dir, name)
            }
            Op::Rename(from, to, mode) => {
                let ((dir, name), (new_dir, new_name)) = (self.entry(from)?, self.entry(to)?);
                overlay.rename(&dir, name, &new_dir, new_name, *mode)
            }
            Op::Write(path, offset, count, byte) => self.write(&self.open(path)?, Some(*offset), &vec![*byte; *count]),
            Op::Append(path, count, byte) => self.write(&self.open(path)?, None, &vec![*byte; *count]),
            Op::Truncate(path, size) => overlay.truncate(&self.find(path)?, *size),
            Op::Punch(path, offset, count) => {
                overlay.allocate(&self.open(path)?, Allocation::PunchHole, *offset..*offset + *count)
            }
            Op::Reserve(path, size) => {
                overlay.allocate(&self.open(path)?, Allocation::Reserve { keep_size: false }, 0..*size)
            }
            Op::CopyRange(from, to) => {
                let (from, to) = (self.open(from)?, self.open(to)?);
                overlay.copy_range(&from, 0..5000, &to, 10_000).map(drop)
            }
            Op::Chmod(path, mode) => overlay.set_mode(&self.find(path)?, *mode),
            Op::Chown(path, owner) => overlay.set_owner(&self.find(path)?, *owner),
            Op::Times(path, sec) => {
                let time = |sec| Time { sec, nsec: 5 };
                overlay.set_times(&self.find(path)?, time(*sec), time(*sec + 1))
            }
            Op::SetXattr(path, byte) => {
                overlay.set_xattr(&self.find(path)?, OsStr::new(XATTR), &[*byte; 3], XattrMode::Set)
            }
            Op::RemoveXattr(path) => overlay.remove_xattr(&self.find(path)?, OsStr::new(XATTR)),
            Op::Sync(path) => overlay.sync(&self.open(path)?),
            Op::WriteHeld(byte) => {
                let files = self.held.iter().filter(|handle| handle.node().kind() == Kind::File);
                files.last().ok_or(Error::new(ENOENT)).and_then(|handle| self.write(handle, Some(1), &[*byte; 10]))
            }
            Op::Hold(_) | Op::Remount | Op::Crash | Op::Snapshot | Op::RollBack => Ok(()),
        }
    }

    /// Makes a snapshot, or goes back to the last one.
    fn exchange(&mut self, freezes: bool) -> Result<()> {
        self.held.clear();
        let overlay = self.overlay();
        overlay.complete_and_sync()?;
        let next = if freezes { overlay.snapshot(None, &[]) } else { overlay.roll_back(&[]) };
        self.overlay = Some(next.map_err(|unfrozen| match unfrozen {
            Unfrozen::Layer(error) => error,
            Unfrozen::Refused(refused) => (*refused).into(),
            _ => Error::new(ENOENT),
        })?);
        Ok(())
    }

    fn create(&self, path: &str, owner: Owner) -> Result<()> {
        let (dir, name) = self.entry(path)?;
        self.overlay().create_file(&dir, name, 0o4640, owner).map(drop)
    }

    fn make_dir(&self, path: &str, owner: Owner) -> Result<()> {
        let (dir, name) = self.entry(path)?;
        self.overlay().create_dir(&dir, name, 0o751, owner).map(drop)
    }

    fn write(&self, handle: &Handle<S::Layer>, offset: Option<u64>, mut bytes: &[u8]) -> Result<()> {
        let mut at = offset;
        while !bytes.is_empty() {
            let written = match at {
                Some(at) => self.overlay().write_at(handle, bytes, at)?,
                None => self.overlay().append(handle, bytes)?,
            };
            if written == 0 {
                return Err(Error::new(EIO));
            }
            bytes = &bytes[written..];
            at = at.map(|at| at + written as u64);
        }
        Ok(())
    }
}
