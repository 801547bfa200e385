//! A POSIX filesystem in memory, with layers on it. A test can copy it at any moment, and it counts
//! open files. It records every change since the power came, and can be set to a state after a
//! power failure.
//!
//! POSIX leaves this state open, so it is a choice ([`Loss`]). Synced data are always kept. Of the
//! rest:
//!
//! - With [`Order::Journaled`], as ext4, XFS, btrfs and redoxfs have it, changes of names and
//!   attributes are kept up to a moment. A sync of an object includes all changes before the last
//!   change of the object. Each written page is kept or lost. A write that makes a file longer or
//!   fills a hole needs more than the page. It is not kept without the changes before it.
//! - With [`Order::None`] each single change is kept or lost. It is lost if its object is.
//!
//! Lock order: the lock of the disk is a leaf.

use std::collections::{BTreeMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use overlayfs::errno::{
    EEXIST, EINVAL, EISDIR, ENODATA, ENOENT, ENOTDIR, ENOTEMPTY, EOPNOTSUPP, EPERM, EROFS, EWOULDBLOCK,
};
use overlayfs::layer::{
    Access, Allocation, Capabilities, DirEntry, Error, Fixed, Kind, Layer, Object, Owner, RenameMode, Result, Stat,
    StatFs, THROUGH, Time, XattrMode,
};
use test_common::Random;

/// The unit in which written data get to the disk.
pub const PAGE: u64 = 4096;
const DEVICE: u64 = 7;
const ROOT: u64 = 1;

/// The abilities of a filesystem.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    pub exchange: bool,
    pub xattrs: bool,
    pub write_through: bool,
    /// Whether files can share data.
    pub shares: bool,
    /// Whether a new object can have any owner at once.
    pub creates_as_others: bool,
    pub whole_objects: bool,
    /// Whether it reports that changes of names keep their order at a power failure.
    pub ordered: bool,
}

impl Abilities {
    /// The abilities of ext4, with the rights of root.
    pub const EXT4: Self = Self {
        exchange: true,
        xattrs: true,
        write_through: true,
        shares: false,
        creates_as_others: true,
        whole_objects: true,
        ordered: true,
    };
    /// The abilities of XFS and btrfs.
    pub const SHARING: Self = Self { shares: true, ..Self::EXT4 };
    /// The fewest possible abilities.
    pub const FEW: Self = Self {
        exchange: false,
        xattrs: false,
        write_through: false,
        shares: false,
        creates_as_others: false,
        whole_objects: false,
        ordered: true,
    };
    /// The same, and each change of a name survives or is lost on its own.
    pub const UNORDERED: Self = Self { ordered: false, ..Self::FEW };
}

/// The unsynced changes of names and attributes that a power failure keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Journaled,
    None,
}

/// The loss at a power failure.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    pub order: Order,
    /// The number of recorded changes before the moment up to which changes are kept.
    pub kept: usize,
    /// The written data that are kept.
    pub data: Data,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    All,
    None,
    /// Some pages of some writes.
    Some,
}

/// A filesystem. A clone is the same one.
#[derive(Clone)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    /// Each open directory and each open file holds one of these.
    dirs: Arc<()>,
    files: Arc<()>,
    abilities: Abilities,
}

#[derive(Clone)]
struct State {
    tree: Tree,
    /// The tree when the power came, and the changes since then.
    start: Tree,
    log: Vec<Change>,
    /// The number of changes of names and attributes that are surely on the disk, if changes keep
    /// their order.
    durable: usize,
    next: u64,
    clock: i64,
    /// The number of boots.
    epoch: u128,
    held: HashSet<u64>,
}

#[derive(Clone, Default)]
struct Tree(BTreeMap<u64, Arc<Inode>>);

/// The objects at and below a directory, at one time.
pub struct Snapshot(BTreeMap<u64, Arc<Inode>>);

#[derive(Clone, PartialEq, Debug)]
struct Inode {
    kind: Kind,
    mode: u32,
    owner: Owner,
    rdev: u64,
    nlink: u32,
    atime: Time,
    mtime: Time,
    ctime: Time,
    birth: Time,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    body: Body,
}

#[derive(Clone, PartialEq, Debug)]
enum Body {
    File(Content),
    Dir(BTreeMap<OsString, u64>),
    Symlink(OsString),
    Other,
}

#[derive(Clone, PartialEq, Debug, Default)]
struct Content {
    size: u64,
    /// The pages with data.
    pages: BTreeMap<u64, Arc<Vec<u8>>>,
}

/// A change of the disk.
#[derive(Clone)]
struct Change {
    what: What,
    now: Time,
    /// Whether it is surely on the disk, even without an order.
    synced: bool,
}

#[derive(Clone)]
enum What {
    Create { dir: u64, name: OsString, ino: u64, inode: Box<Inode> },
    Link { ino: u64, dir: u64, name: OsString },
    Remove { dir: u64, name: OsString, ino: u64 },
    Rename { from: (u64, OsString), to: (u64, OsString), ino: u64, other: u64, mode: RenameMode, device: u64 },
    Mode { ino: u64, mode: u32 },
    Owner { ino: u64, owner: Owner },
    Times { ino: u64, atime: Time, mtime: Time },
    Xattr { ino: u64, name: OsString, value: Option<Vec<u8>> },
    Size { ino: u64, size: u64 },
    Clear { ino: u64, range: Range<u64> },
    Share { ino: u64, content: Content },
    Write { ino: u64, offset: u64, bytes: Arc<Vec<u8>> },
}

impl What {
    /// Returns whether it changes an object, or an entry of it.
    fn is_of(&self, object: u64) -> bool {
        match self {
            What::Create { dir, ino, .. } | What::Link { dir, ino, .. } | What::Remove { dir, ino, .. } => {
                *dir == object || *ino == object
            }
            What::Rename { from, to, ino, other, .. } => [from.0, to.0, *ino, *other].contains(&object),
            _ => self.object() == Some(object),
        }
    }

    /// Returns the object that is changed itself.
    fn object(&self) -> Option<u64> {
        match self {
            What::Mode { ino, .. }
            | What::Owner { ino, .. }
            | What::Times { ino, .. }
            | What::Xattr { ino, .. }
            | What::Size { ino, .. }
            | What::Clear { ino, .. }
            | What::Share { ino, .. }
            | What::Write { ino, .. } => Some(*ino),
            _ => None,
        }
    }

    /// Returns whether a sync of the object writes this change in the weakest case. A sync of a
    /// file writes its contents and attributes. A sync of a directory also writes its entries.
    fn is_synced_with(&self, object: u64) -> bool {
        match self {
            What::Create { dir, .. } | What::Link { dir, .. } | What::Remove { dir, .. } => *dir == object,
            What::Rename { from, to, .. } => from.0 == object || to.0 == object,
            _ => self.object() == Some(object),
        }
    }

    fn is_data(&self) -> bool {
        matches!(self, What::Write { .. })
    }
}

impl Content {
    fn resize(&mut self, size: u64) {
        if size < self.size {
            self.pages.retain(|page, _| page * PAGE < size);
            if let Some(last) = self.pages.get_mut(&(size / PAGE)) {
                Arc::make_mut(last)[(size % PAGE) as usize..].fill(0);
            }
        }
        self.size = size;
    }

    /// Writes the pages of a write for which `keep` returns true. `keep` gets whether the page
    /// exists already.
    fn write(&mut self, offset: u64, bytes: &[u8], mut keep: impl FnMut(bool) -> bool) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = (at % PAGE) as usize;
            let count = (PAGE as usize - start).min(bytes.len() - done);
            let is_there = self.pages.contains_key(&(at / PAGE)) && at + count as u64 <= self.size;
            if keep(is_there) {
                let page = self.pages.entry(at / PAGE).or_insert_with(|| Arc::new(vec![0; PAGE as usize]));
                Arc::make_mut(page)[start..start + count].copy_from_slice(&bytes[done..done + count]);
                self.size = self.size.max(at + count as u64);
            }
            done += count;
        }
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let count = self.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let start = (at % PAGE) as usize;
            let piece = (PAGE as usize - start).min(count - done);
            let to = &mut buf[done..done + piece];
            match self.pages.get(&(at / PAGE)) {
                Some(page) => to.copy_from_slice(&page[start..start + piece]),
                None => to.fill(0),
            }
            done += piece;
        }
        count
    }

    fn clear(&mut self, range: Range<u64>) {
        let range = range.start..range.end.min(self.pages.keys().last().map_or(0, |page| (page + 1) * PAGE));
        let mut at = range.start;
        while at < range.end {
            let end = ((at / PAGE + 1) * PAGE).min(range.end);
            if end - at == PAGE {
                self.pages.remove(&(at / PAGE));
            } else if let Some(page) = self.pages.get_mut(&(at / PAGE)) {
                Arc::make_mut(page)[(at % PAGE) as usize..][..(end - at) as usize].fill(0);
            }
            at = end;
        }
    }

    fn next_data(&self, from: u64) -> Option<Range<u64>> {
        let first = *self.pages.range(from / PAGE..).next()?.0;
        let mut end = first;
        while self.pages.contains_key(&end) {
            end += 1;
        }
        let range = from.max(first * PAGE)..(end * PAGE).min(self.size);
        (range.start < range.end).then_some(range)
    }
}

impl Tree {
    fn inode(&self, ino: u64) -> Result<&Inode> {
        self.0.get(&ino).map(|inode| &**inode).ok_or(Error::new(ENOENT))
    }

    fn entries(&self, dir: u64) -> Result<&BTreeMap<OsString, u64>> {
        match &self.inode(dir)?.body {
            // A removed directory has no entries, and takes none.
            Body::Dir(_) if dir != ROOT && self.inode(dir)?.nlink == 0 => Err(Error::new(ENOENT)),
            Body::Dir(entries) => Ok(entries),
            _ => Err(Error::new(ENOTDIR)),
        }
    }

    fn entry(&self, dir: u64, name: &OsStr) -> Result<u64> {
        self.entries(dir)?.get(name).copied().ok_or(Error::new(ENOENT))
    }

    fn content(&self, ino: u64) -> Result<&Content> {
        match &self.inode(ino)?.body {
            Body::File(content) => Ok(content),
            Body::Dir(_) => Err(Error::new(EISDIR)),
            _ => Err(Error::new(EINVAL)),
        }
    }

    /// Makes a change, unless its object has another state than at the first time. Of written data
    /// it writes the pages for which `keep` returns true.
    fn apply(&mut self, change: &Change, keep: impl FnMut(bool) -> bool) -> Option<()> {
        let now = change.now;
        match &change.what {
            What::Create { dir, name, ino, inode } => {
                self.enter(*dir, name, *ino, now, false)?;
                self.0.insert(*ino, Arc::new((**inode).clone()));
            }
            What::Link { ino, dir, name } => {
                self.0.get(ino)?;
                self.enter(*dir, name, *ino, now, false)?;
                self.change(*ino, now, |inode| inode.nlink += 1)?;
            }
            What::Remove { dir, name, ino } => {
                self.at(*dir, name, *ino)?;
                self.check_empty(*ino)?;
                self.leave(*dir, name, now)?;
                self.change(*ino, now, |inode| inode.nlink -= 1)?;
            }
            What::Rename { from, to, ino, mode, device, .. } => {
                self.at(from.0, &from.1, *ino)?;
                let target = self.entries(to.0).ok()?.get(&to.1).copied();
                match (mode, target) {
                    (RenameMode::Exchange, None) | (RenameMode::NoReplace, Some(_)) => return None,
                    (RenameMode::Exchange, Some(target)) => {
                        self.enter(from.0, &from.1, target, now, true)?;
                        self.change(target, now, |_| ())?;
                    }
                    (_, Some(target)) if target == *ino => return Some(()),
                    (_, target) => {
                        if let Some(target) = target {
                            self.check_empty(target)?;
                            self.change(target, now, |inode| inode.nlink -= 1)?;
                        }
                        self.leave(from.0, &from.1, now)?;
                    }
                }
                self.enter(to.0, &to.1, *ino, now, true)?;
                self.change(*ino, now, |_| ())?;
                if *mode == RenameMode::Whiteout {
                    self.enter(from.0, &from.1, *device, now, false)?;
                    self.0.insert(*device, Arc::new(Inode::new(Kind::CharDev, 0, Owner { uid: 0, gid: 0 }, 0, now)));
                }
            }
            What::Mode { ino, mode } => self.change(*ino, now, |inode| inode.mode = *mode)?,
            What::Owner { ino, owner } => self.change(*ino, now, |inode| {
                inode.owner = *owner;
                if inode.kind == Kind::File {
                    inode.mode &= !0o6000;
                }
            })?,
            What::Times { ino, atime, mtime } => {
                self.change(*ino, now, |inode| (inode.atime, inode.mtime) = (*atime, *mtime))?;
            }
            What::Xattr { ino, name, value } => self.change(*ino, now, |inode| {
                match value {
                    Some(value) => inode.xattrs.insert(name.clone(), value.clone()),
                    None => inode.xattrs.remove(name),
                };
            })?,
            What::Size { ino, size } => self.fill(*ino, now, |content| content.resize(*size))?,
            What::Clear { ino, range } => self.fill(*ino, now, |content| content.clear(range.clone()))?,
            What::Share { ino, content: shared } => self.fill(*ino, now, |content| *content = shared.clone())?,
            What::Write { ino, offset, bytes } => {
                self.fill(*ino, now, |content| content.write(*offset, bytes, keep))?
            }
        }
        Some(())
    }

    fn at(&self, dir: u64, name: &OsStr, ino: u64) -> Option<()> {
        (self.entry(dir, name).ok()? == ino).then_some(())
    }

    fn check_empty(&self, ino: u64) -> Option<()> {
        match &self.0.get(&ino)?.body {
            Body::Dir(entries) if !entries.is_empty() => None,
            _ => Some(()),
        }
    }

    fn change(&mut self, ino: u64, now: Time, change: impl FnOnce(&mut Inode)) -> Option<()> {
        let inode = Arc::make_mut(self.0.get_mut(&ino)?);
        inode.ctime = now;
        change(inode);
        Some(())
    }

    fn fill(&mut self, ino: u64, now: Time, change: impl FnOnce(&mut Content)) -> Option<()> {
        let inode = Arc::make_mut(self.0.get_mut(&ino)?);
        (inode.mtime, inode.ctime) = (now, now);
        inode.mode &= !0o6000;
        let Body::File(content) = &mut inode.body else { return None };
        change(content);
        Some(())
    }

    fn enter(&mut self, dir: u64, name: &OsStr, ino: u64, now: Time, replace: bool) -> Option<()> {
        self.entries(dir).ok()?;
        let inode = Arc::make_mut(self.0.get_mut(&dir)?);
        let Body::Dir(entries) = &mut inode.body else { return None };
        if !replace && entries.contains_key(name) {
            return None;
        }
        entries.insert(name.to_owned(), ino);
        (inode.mtime, inode.ctime) = (now, now);
        Some(())
    }

    fn leave(&mut self, dir: u64, name: &OsStr, now: Time) -> Option<()> {
        let inode = Arc::make_mut(self.0.get_mut(&dir)?);
        let Body::Dir(entries) = &mut inode.body else { return None };
        entries.remove(name)?;
        (inode.mtime, inode.ctime) = (now, now);
        Some(())
    }

    fn below(&self, dir: u64, found: &mut BTreeMap<u64, Arc<Inode>>) {
        if let Some(inode) = self.0.get(&dir) {
            found.insert(dir, inode.clone());
            if let Body::Dir(entries) = &inode.body {
                entries.values().for_each(|ino| self.below(*ino, found));
            }
        }
    }
}

impl Inode {
    fn new(kind: Kind, mode: u32, owner: Owner, rdev: u64, now: Time) -> Self {
        let body = match kind {
            Kind::File => Body::File(Content::default()),
            Kind::Dir => Body::Dir(BTreeMap::new()),
            _ => Body::Other,
        };
        Inode {
            kind,
            mode,
            owner,
            rdev,
            nlink: 1,
            atime: now,
            mtime: now,
            ctime: now,
            birth: now,
            xattrs: BTreeMap::new(),
            body,
        }
    }

    fn stat(&self, ino: u64) -> Stat {
        let (size, blocks) = match &self.body {
            Body::File(content) => (content.size, content.pages.len() as u64 * PAGE / 512),
            Body::Symlink(target) => (target.len() as u64, 0),
            _ => (0, 0),
        };
        Stat {
            dev: DEVICE,
            ino,
            kind: self.kind,
            mode: self.mode,
            nlink: self.nlink + u32::from(self.kind == Kind::Dir),
            uid: self.owner.uid,
            gid: self.owner.gid,
            rdev: self.rdev,
            size,
            blksize: PAGE as u32,
            blocks,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            fixed: Fixed::default(),
            generation: 0,
        }
    }
}

impl State {
    fn make(&mut self, what: What) -> Result<()> {
        self.make_synced(what, false)
    }

    fn make_synced(&mut self, what: What, synced: bool) -> Result<()> {
        self.clock += 1;
        let change = Change { what, now: Time { sec: self.clock, nsec: 0 }, synced };
        self.tree.apply(&change, |_| true).ok_or(Error::new(EINVAL))?;
        self.log.push(change);
        Ok(())
    }

    fn create(&mut self, dir: u64, name: &OsStr, mut inode: Inode) -> Result<u64> {
        if self.tree.entries(dir)?.contains_key(name) {
            return Err(Error::new(EEXIST));
        }
        self.next += 1;
        let (ino, now) = (self.next, Time { sec: self.clock + 1, nsec: 0 });
        (inode.atime, inode.mtime, inode.ctime, inode.birth) = (now, now, now, now);
        self.make(What::Create { dir, name: name.to_owned(), ino, inode: Box::new(inode) })?;
        Ok(ino)
    }

    fn sync(&mut self, ino: u64) {
        for change in self.log.iter_mut().filter(|change| change.what.is_synced_with(ino)) {
            change.synced = true;
        }
        // A journal with the changes of the object has all changes before them.
        let last = self.log.iter().rposition(|change| change.what.is_of(ino) && !change.what.is_data());
        self.durable = self.durable.max(last.map_or(0, |last| last + 1));
    }
}

impl Disk {
    /// Makes an empty filesystem with these directories.
    pub fn new(abilities: Abilities, dirs: &[&str]) -> Self {
        let mut tree = Tree::default();
        tree.0.insert(ROOT, Arc::new(Inode::new(Kind::Dir, 0o755, Owner { uid: 0, gid: 0 }, 0, Time::default())));
        let state = State {
            start: tree.clone(),
            tree,
            log: Vec::new(),
            durable: 0,
            next: ROOT,
            clock: 1_000_000,
            epoch: 1,
            held: HashSet::new(),
        };
        let disk = Self::with(state, abilities);
        for dir in dirs {
            disk.layer("", true).create_dir(&disk.dir(ROOT), OsStr::new(dir), 0o755, Owner { uid: 0, gid: 0 }).unwrap();
        }
        disk
    }

    fn with(state: State, abilities: Abilities) -> Self {
        Disk { state: Arc::new(Mutex::new(state)), dirs: Arc::default(), files: Arc::default(), abilities }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a copy, with the power on since now.
    pub fn copy(&self) -> Self {
        let mut state = self.state().clone();
        state.start = state.tree.clone();
        state.log.clear();
        state.durable = 0;
        state.held.clear();
        Self::with(state, self.abilities)
    }

    /// Opens the directory with this name at the top as a layer.
    pub fn layer(&self, name: &str, for_writing: bool) -> Memory {
        let root = if name.is_empty() { ROOT } else { self.state().tree.entry(ROOT, OsStr::new(name)).unwrap() };
        Memory { disk: self.clone(), root, for_writing, holds: Mutex::new(false) }
    }

    fn dir(&self, ino: u64) -> Dir {
        Dir(ino, self.dirs.clone())
    }

    /// Returns the numbers of open directories and files.
    pub fn open(&self) -> (usize, usize) {
        // The disk holds one of each, and so does each layer.
        (Arc::strong_count(&self.dirs), Arc::strong_count(&self.files))
    }

    /// Takes a snapshot of a directory at the top.
    pub fn snapshot(&self, name: &str) -> Snapshot {
        let state = self.state();
        let mut found = BTreeMap::new();
        state.tree.below(state.tree.entry(ROOT, OsStr::new(name)).unwrap(), &mut found);
        Snapshot(found)
    }

    /// Panics if a part has changed, or was only read.
    pub fn assert_same(&self, before: &Snapshot) {
        let state = self.state();
        for (ino, inode) in &before.0 {
            let now = state.tree.0.get(ino).unwrap_or_else(|| panic!("the lower layers lost {inode:?}"));
            assert!(Arc::ptr_eq(now, inode) || now == inode, "in a lower layer {inode:?} became {now:?}");
        }
    }

    /// Returns the names in a directory.
    pub fn names(&self, path: &str) -> Vec<String> {
        let state = self.state();
        let mut names = path.split('/').filter(|name| !name.is_empty());
        let Ok(dir) = names.try_fold(ROOT, |dir, name| state.tree.entry(dir, OsStr::new(name))) else {
            return Vec::new();
        };
        let entries = state.tree.entries(dir).expect("a directory");
        entries.keys().map(|name| name.to_string_lossy().into_owned()).collect()
    }

    /// Returns the number of recorded changes.
    pub fn changes(&self) -> usize {
        self.state().log.len()
    }

    /// Returns the number of recorded changes that are surely on the disk if changes keep their
    /// order. Written data do not count.
    pub fn durable(&self) -> usize {
        self.state().durable
    }

    /// Returns a copy as a power failure at this moment may leave it.
    pub fn after_loss(&self, loss: Loss) -> Self {
        let state = self.state();
        let mut random = Random(loss.seed);
        let mut tree = state.start.clone();
        for (index, change) in state.log.iter().enumerate() {
            let is_there = match (loss.order, &change.what, loss.data) {
                _ if change.synced => true,
                (_, What::Write { .. }, data) => data != Data::None,
                (Order::Journaled, ..) => index < loss.kept,
                (Order::None, ..) => index < loss.kept && random.below(4) > 0,
            };
            let some = loss.data == Data::Some && !change.synced;
            if is_there {
                // A change does not apply if an earlier change that it needs was lost.
                let in_place = loss.order == Order::Journaled && index >= loss.kept && !change.synced;
                let _ = tree.apply(change, |is_there| (is_there || !in_place) && (!some || random.below(2) > 0));
            }
        }
        let state = State {
            start: tree.clone(),
            tree,
            log: Vec::new(),
            durable: 0,
            next: state.next,
            clock: state.clock,
            epoch: state.epoch + 1,
            held: HashSet::new(),
        };
        Self::with(state, self.abilities)
    }
}

/// A directory of a [`Disk`] as a layer.
pub struct Memory {
    disk: Disk,
    root: u64,
    for_writing: bool,
    holds: Mutex<bool>,
}

/// An open directory.
pub struct Dir(u64, #[expect(dead_code, reason = "counts")] Arc<()>);

/// An open file.
pub struct File(u64, #[allow(dead_code, reason = "counts")] Arc<()>);

impl Memory {
    /// Returns the state for a change.
    fn change(&self) -> Result<MutexGuard<'_, State>> {
        if self.for_writing { Ok(self.disk.state()) } else { Err(Error::new(EROFS)) }
    }

    fn with<T>(&self, object: Object<'_, Self>, act: impl FnOnce(&Inode, u64) -> Result<T>) -> Result<T> {
        let state = self.disk.state();
        let ino = find(&state, object)?;
        act(state.tree.inode(ino)?, ino)
    }

    fn set(&self, object: Object<'_, Self>, what: impl FnOnce(u64) -> What) -> Result<()> {
        let mut state = self.change()?;
        let ino = find(&state, object)?;
        state.make(what(ino))
    }

    fn add(&self, dir: &Dir, name: &OsStr, inode: Inode) -> Result<u64> {
        assert!(self.creates_as(inode.owner), "a layer was asked to create as another");
        self.change()?.create(dir.0, name, inode)
    }

    fn file(&self, ino: u64) -> File {
        File(ino, self.disk.files.clone())
    }

    fn let_go(&self) {
        if std::mem::take(&mut *self.holds.lock().unwrap_or_else(PoisonError::into_inner)) {
            self.disk.state().held.remove(&self.root);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.let_go();
    }
}

fn find(state: &State, object: Object<'_, Memory>) -> Result<u64> {
    match object {
        Object::Dir(dir) => Ok(dir.0),
        Object::Entry(dir, name) => state.tree.entry(dir.0, name),
        Object::File(file) => Ok(file.0),
    }
}

impl Layer for Memory {
    type Dir = Dir;
    type File = File;

    fn capabilities(&self) -> Capabilities {
        let Abilities { exchange, xattrs, write_through, whole_objects, ordered, .. } = self.disk.abilities;
        Capabilities {
            exchange,
            dirs_follow_rename: true,
            whole_objects,
            xattrs,
            sparse: true,
            write_through,
            ordered,
            owner_records: false,
            shared: false,
        }
    }

    fn root(&self) -> Result<Dir> {
        Ok(self.disk.dir(self.root))
    }

    fn below(&self, dir: &Dir, _: &Path, for_writing: bool) -> Result<Self> {
        Ok(Memory { disk: self.disk.clone(), root: dir.0, for_writing, holds: Mutex::new(false) })
    }

    fn hold(&self) -> Result<()> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        if !*holds && !self.disk.state().held.insert(self.root) {
            return Err(Error::new(EWOULDBLOCK));
        }
        *holds = true;
        Ok(())
    }

    fn hold_by(&self, _: &Dir, _: &OsStr) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn release(&self) -> Result<()> {
        self.let_go();
        Ok(())
    }

    fn stat_fs(&self) -> Result<StatFs> {
        Ok(StatFs { block_size: PAGE as u32, name_max: 255, ..StatFs::default() })
    }

    fn open_dir(&self, dir: &Dir, name: &OsStr) -> Result<Dir> {
        let state = self.disk.state();
        let ino = state.tree.entry(dir.0, name)?;
        state.tree.entries(ino)?;
        Ok(self.disk.dir(ino))
    }

    fn list(&self, dir: &Dir, each: &mut dyn FnMut(DirEntry<'_>)) -> Result<()> {
        let state = self.disk.state();
        for (name, ino) in state.tree.entries(dir.0)? {
            each(DirEntry { name, ino: *ino, kind: state.tree.inode(*ino)?.kind });
        }
        Ok(())
    }

    fn stat(&self, object: Object<'_, Self>) -> Result<Stat> {
        self.with(object, |inode, ino| Ok(inode.stat(ino)))
    }

    fn set_owner(&self, object: Object<'_, Self>, owner: Owner) -> Result<()> {
        self.set(object, |ino| What::Owner { ino, owner })
    }

    fn set_mode(&self, object: Object<'_, Self>, mode: u32) -> Result<()> {
        if self.stat(object)?.kind == Kind::Symlink {
            return Err(Error::new(EOPNOTSUPP));
        }
        self.set(object, |ino| What::Mode { ino, mode })
    }

    fn set_times(&self, object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()> {
        self.set(object, |ino| What::Times { ino, atime, mtime })
    }

    fn birth(&self, object: Object<'_, Self>) -> Result<Option<Time>> {
        self.with(object, |inode, _| Ok(Some(inode.birth)))
    }

    fn xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>> {
        if !self.disk.abilities.xattrs {
            return Err(Error::new(EOPNOTSUPP));
        }
        self.with(object, |inode, _| inode.xattrs.get(name).cloned().ok_or(Error::new(ENODATA)))
    }

    fn set_xattr(&self, object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        match (self.xattr(object, name), mode) {
            (Err(error), _) if error.errno != ENODATA => return Err(error),
            (Ok(_), XattrMode::Create) => return Err(Error::new(EEXIST)),
            (Err(error), XattrMode::Replace) => return Err(error),
            _ => {}
        }
        self.set(object, |ino| What::Xattr { ino, name: name.to_owned(), value: Some(value.to_vec()) })
    }

    fn remove_xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<()> {
        self.xattr(object, name)?;
        self.set(object, |ino| What::Xattr { ino, name: name.to_owned(), value: None })
    }

    fn xattrs(&self, object: Object<'_, Self>) -> Result<Vec<OsString>> {
        if !self.disk.abilities.xattrs {
            return Err(Error::new(EOPNOTSUPP));
        }
        self.with(object, |inode, _| Ok(inode.xattrs.keys().cloned().collect()))
    }

    fn flags(&self, _: Object<'_, Self>) -> Result<u32> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn set_flags(&self, _: Object<'_, Self>, _: u32) -> Result<()> {
        Err(Error::new(EOPNOTSUPP))
    }

    fn open_file(&self, dir: &Dir, name: &OsStr, access: Access) -> Result<File> {
        let state = match access {
            Access::Read | Access::Attributes => self.disk.state(),
            Access::ReadWrite | Access::Append => self.change()?,
        };
        let ino = state.tree.entry(dir.0, name)?;
        if access == Access::Attributes { Ok(self.file(ino)) } else { state.tree.content(ino).map(|_| self.file(ino)) }
    }

    fn identity(&self) -> Owner {
        Owner { uid: 0, gid: 0 }
    }

    fn creates_as(&self, owner: Owner) -> bool {
        self.disk.abilities.creates_as_others || owner == self.identity()
    }

    fn create_file(&self, dir: &Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<File> {
        let ino = self.add(dir, name, Inode::new(Kind::File, mode, owner, 0, Time::default()))?;
        Ok(self.file(ino))
    }

    fn create_dir(&self, dir: &Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Option<Stat>> {
        self.add(dir, name, Inode::new(Kind::Dir, mode, owner, 0, Time::default())).map(|_| None)
    }

    fn create_symlink(&self, dir: &Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<Option<Stat>> {
        let body = Body::Symlink(target.to_owned());
        let link = Inode { body, ..Inode::new(Kind::Symlink, 0o777, owner, 0, Time::default()) };
        self.add(dir, name, link).map(|_| None)
    }

    fn create_node(
        &self,
        dir: &Dir,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        rdev: u64,
        owner: Owner,
    ) -> Result<Option<Stat>> {
        self.add(dir, name, Inode::new(kind, mode, owner, rdev, Time::default())).map(|_| None)
    }

    fn read_link(&self, dir: &Dir, name: &OsStr) -> Result<OsString> {
        self.with(Object::Entry(dir, name), |inode, _| match &inode.body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::new(EINVAL)),
        })
    }

    fn link(&self, object: Object<'_, Self>, new_dir: &Dir, new_name: &OsStr) -> Result<()> {
        let mut state = self.change()?;
        let ino = find(&state, object)?;
        match state.tree.entry(new_dir.0, new_name) {
            _ if state.tree.entries(ino).is_ok() => Err(Error::new(EPERM)),
            Ok(_) => Err(Error::new(EEXIST)),
            Err(error) if error.errno != ENOENT => Err(error),
            Err(_) => state.make(What::Link { ino, dir: new_dir.0, name: new_name.to_owned() }),
        }
    }

    fn unlink(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let mut state = self.change()?;
        let ino = state.tree.entry(dir.0, name)?;
        if state.tree.inode(ino)?.kind == Kind::Dir {
            return Err(Error::new(EISDIR));
        }
        state.make(What::Remove { dir: dir.0, name: name.to_owned(), ino })
    }

    fn remove_dir(&self, dir: &Dir, name: &OsStr) -> Result<()> {
        let mut state = self.change()?;
        let ino = state.tree.entry(dir.0, name)?;
        if !state.tree.entries(ino)?.is_empty() {
            return Err(Error::new(ENOTEMPTY));
        }
        state.make(What::Remove { dir: dir.0, name: name.to_owned(), ino })
    }

    fn rename(&self, dir: &Dir, name: &OsStr, new_dir: &Dir, new_name: &OsStr, mode: RenameMode) -> Result<()> {
        let mut state = self.change()?;
        let ino = state.tree.entry(dir.0, name)?;
        let is_dir = |ino: u64| state.tree.entries(ino).is_ok();
        match (state.tree.entries(new_dir.0)?.get(new_name), mode) {
            (_, RenameMode::Exchange | RenameMode::Whiteout) if !self.disk.abilities.exchange => {
                return Err(Error::new(EINVAL));
            }
            (None, RenameMode::Exchange) => return Err(Error::new(ENOENT)),
            (Some(_), RenameMode::NoReplace) => return Err(Error::new(EEXIST)),
            (None, _) | (Some(_), RenameMode::Exchange) => {}
            (Some(target), _) => match (is_dir(ino), is_dir(*target)) {
                (true, false) => return Err(Error::new(ENOTDIR)),
                (false, true) => return Err(Error::new(EISDIR)),
                (true, true) if !state.tree.entries(*target)?.is_empty() => return Err(Error::new(ENOTEMPTY)),
                _ => {}
            },
        }
        // The object that it exchanges its name with, if there is one.
        let other = state.tree.entry(new_dir.0, new_name).unwrap_or(0);
        state.next += 1;
        let device = state.next;
        let (from, to) = ((dir.0, name.to_owned()), (new_dir.0, new_name.to_owned()));
        state.make(What::Rename { from, to, ino, other, mode, device })
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> Result<usize> {
        Ok(self.disk.state().tree.content(file.0)?.read(buf, offset))
    }

    fn write_at(&self, file: &File, buf: &[u8], offset: u64) -> Result<usize> {
        self.change()?.make(What::Write { ino: file.0, offset, bytes: Arc::new(buf.to_vec()) })?;
        Ok(buf.len())
    }

    fn write_through(&self, file: &File, buf: &[u8], offset: u64) -> Result<()> {
        if !self.disk.abilities.write_through || !offset.is_multiple_of(THROUGH) {
            return Err(Error::new(EOPNOTSUPP));
        }
        let mut bytes = buf.to_vec();
        bytes.resize(buf.len().next_multiple_of(THROUGH as usize), 0);
        self.change()?.make_synced(What::Write { ino: file.0, offset, bytes: Arc::new(bytes) }, true)
    }

    fn truncate(&self, file: &File, size: u64) -> Result<()> {
        self.change()?.make(What::Size { ino: file.0, size })
    }

    fn sync(&self, file: &File) -> Result<()> {
        self.disk.state().sync(file.0);
        Ok(())
    }

    fn sync_dir(&self, dir: &Dir) -> Result<()> {
        self.disk.state().sync(dir.0);
        Ok(())
    }

    fn next_data(&self, file: &File, from: u64) -> Result<Option<Range<u64>>> {
        Ok(self.disk.state().tree.content(file.0)?.next_data(from))
    }

    fn copy_range(&self, from: &File, range: Range<u64>, to: &File, offset: u64) -> Result<u64> {
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        let read = self.read_at(from, &mut bytes, range.start)?;
        bytes.truncate(read);
        if read > 0 {
            self.write_at(to, &bytes, offset)?;
        }
        Ok(read as u64)
    }

    fn share_data(&self, from: &File, to: &File) -> Result<()> {
        if !self.disk.abilities.shares {
            return Err(Error::new(EOPNOTSUPP));
        }
        let mut state = self.change()?;
        let content = state.tree.content(from.0)?.clone();
        state.make(What::Share { ino: to.0, content })
    }

    fn epoch(&self) -> Option<u128> {
        Some(self.disk.state().epoch)
    }

    fn allocate(&self, file: &File, how: Allocation, range: Range<u64>) -> Result<()> {
        let mut state = self.change()?;
        let size = state.tree.content(file.0)?.size;
        match how {
            Allocation::Reserve { keep_size: false } if range.end > size => {
                state.make(What::Size { ino: file.0, size: range.end })
            }
            Allocation::Reserve { .. } | Allocation::Unshare => Ok(()),
            Allocation::PunchHole | Allocation::Zero { keep_size: true } => {
                state.make(What::Clear { ino: file.0, range })
            }
            _ => Err(Error::new(EOPNOTSUPP)),
        }
    }

    fn sync_all(&self) -> Result<()> {
        let mut state = self.disk.state();
        state.log.iter_mut().for_each(|change| change.synced = true);
        state.durable = state.log.len();
        Ok(())
    }
}
