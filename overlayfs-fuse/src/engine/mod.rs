//! The front end that calls the engine: the overlay as a filesystem of Linux.
//!
//! Only this mount changes its layers. So the kernel may keep answers without a time limit, also
//! the answer that a name does not exist. It keeps names, attributes, listings and pages, and
//! writes pages back at a time of its own. It sends no request to open a file: a program opens and
//! reads a known file again without one. The kernel also checks access, by the attributes that it
//! got.
//!
//! Lock order: `waiting` comes first. The kernel may make other threads wait while one holds it, so
//! no thread takes it under another lock. The locks of `nodes`, `files` and `ahead` are leaves. No
//! thread calls the engine under one, except to open a handle, which asks no layer.

mod again;
mod ahead;
mod announce;
mod control;
mod convert;
mod files;
mod fixed;
mod misdated;
mod nodes;
mod noted;
mod passthrough;
mod setattr;
mod snapshot;
mod space;
mod succession;

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use overlayfs::control::requests::Requests;
use overlayfs::errno::{
    EDQUOT, EEXIST, EFBIG, EINVAL, EMFILE, ENFILE, ENODATA, ENOENT, ENOMEM, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP, Error,
    Result,
};
use overlayfs::layer::acl::is_acl;
use overlayfs::layer::{Allocation, CAPABILITY, Kind, Layer, Owner, RenameMode, Stat, XattrMode};
use overlayfs::overlay::ownership::{self, SET_GID, without_set_id};
use overlayfs::overlay::{DirEntry, Handle, Node, Overlay};
use rustix::fs::IFlags;

use crate::control::About;
use crate::front_end::{Birth, Caller, FrontEnd, ListingReply, NewMode, NodeEntry, Opened, Setup, StatFs, Write};
use crate::identity::{Identity, hide_strangers};
use crate::options::MountOptions;
use crate::session::{Notifier, Seat};
use crate::wire::{self, Attr, SetattrIn, init, set};
use ahead::Ahead;
use announce::Told;
use convert::{attr, kind_bits, kind_of};
use files::Files;
use fixed::Fixed;
use misdated::Misdated;
use nodes::Nodes;
use passthrough::Backings;
use setattr::is_set;
use space::Space;
use succession::Heirs;

pub(crate) use nodes::CountedObject;
pub(crate) use succession::FrontEndLegacy;

/// Offsets of a listing behind `.` and behind `..`. The engine gives neither.
const BEHIND_SELF: u64 = 1;
const BEHIND_PARENT: u64 = 2;

/// How many entries of a directory a thread reads ahead.
const AHEAD_MAX: usize = 4096;

/// How many names a directory has at least whose listing begins without attributes. The kernel asks
/// for them before it knows whether the program wants them, and the layer has to be asked for each.
/// It asks again when the program has looked at an entry.
const LARGE_DIR: usize = 1 << 14;

/// How long the kernel keeps answers without the option `timeout`: without end, since only this
/// mount changes its layers.
const WITHOUT_END: Duration = Duration::from_secs(1 << 32);

/// How many objects the kernel may know by default: as many as the engine knows names.
const KNOWN_MAX: usize = 1 << 17;

/// The choices of the user.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The owners that the mount shows.
    pub identity: Identity,
    /// Directories show one link.
    pub static_nlink: bool,
    /// There are POSIX ACLs.
    pub acl: bool,
    /// The kernel holds written data back.
    pub writeback: bool,
    /// The kernel reads large files from their layers itself. Only for a read-only mount.
    pub passthrough: bool,
    /// How long the kernel may keep an answer.
    pub valid: Duration,
    /// How many objects the kernel may know before it should drop some.
    pub known_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            identity: Identity::default(),
            static_nlink: false,
            acl: true,
            writeback: true,
            passthrough: false,
            valid: WITHOUT_END,
            known_max: KNOWN_MAX,
        }
    }
}

impl Settings {
    /// Returns the settings for the options of a mount. `is_limited` says whether the process has a
    /// limit of the size of files.
    pub fn of(options: &MountOptions, is_limited: bool) -> Self {
        let usual = Settings::default();
        Settings {
            identity: options.identity.clone(),
            static_nlink: options.static_nlink,
            acl: options.acl,
            // A write over a limit must fail in write(2), not when the kernel writes back after
            // close(2).
            writeback: options.writeback && !is_limited && !options.passthrough,
            passthrough: options.passthrough,
            valid: options.timeout.unwrap_or(usual.valid),
            ..usual
        }
    }
}

/// An overlay as a FUSE filesystem.
pub struct EngineFrontEnd<L: Layer> {
    overlay: Arc<Overlay<L>>,
    nodes: Nodes<L>,
    files: Files<L>,
    ahead: Ahead<L>,
    told: Arc<Told>,
    space: Arc<Space>,
    fixed: Fixed<L>,
    /// None: the kernel reads no file itself.
    backings: Option<Backings>,
    settings: Settings,
    notifier: OnceLock<Notifier>,
    misdated: Arc<Misdated>,
    /// The way to put another front end in the place of this one.
    seat: OnceLock<Weak<Seat<Self>>>,
    /// None: there is no channel.
    about: Option<Arc<About>>,
    /// None: no other process can take the mount over.
    heirs: Option<Heirs<L>>,
    /// Held by a thread during a request to the kernel that may need another thread.
    waiting: Arc<Mutex<()>>,
    /// What a daemon left that was killed.
    killed: Arc<Killed>,
}

/// What a daemon left that was killed before this one.
#[derive(Debug, Default)]
struct Killed {
    /// Whether one was killed.
    is_before: bool,
    /// The requests that it performed and did not answer, as far as that does not show otherwise.
    performed: HashSet<u64>,
}

impl<L: Layer> EngineFrontEnd<L> {
    /// Serves the tree of `overlay`.
    pub fn new(overlay: impl Into<Arc<Overlay<L>>>, settings: Settings) -> Self {
        let overlay = overlay.into();
        // The kernel dates the changes that it holds back. It sends the times before or after these
        // changes.
        if settings.writeback {
            overlay.leave_times_to_front_end();
        }
        Self {
            nodes: Nodes::new(&overlay, settings.known_max),
            files: Files::new(),
            ahead: Ahead::new(),
            told: Arc::new(Told::new()),
            space: Arc::new(Space::new()),
            fixed: Fixed::new(&overlay),
            backings: (settings.passthrough && overlay.is_read_only()).then(Backings::default),
            overlay,
            settings,
            notifier: OnceLock::new(),
            misdated: Arc::default(),
            seat: OnceLock::new(),
            about: None,
            heirs: None,
            waiting: Arc::default(),
            killed: Arc::default(),
        }
    }

    /// Opens the channel, which tells these facts about the mount.
    pub fn with_channel(self, about: impl Into<Arc<About>>) -> Self {
        Self { about: Some(about.into()), ..self }
    }

    /// How many objects the kernel knows.
    pub fn known(&self) -> usize {
        self.nodes.count()
    }

    fn node(&self, number: u64) -> Result<Arc<Node<L>>> {
        self.nodes.get(&self.overlay, number)
    }

    /// Returns the open file for reads and writes.
    fn file(&self, number: u64) -> Result<Arc<Handle<L>>> {
        let node = self.nodes.get(&self.overlay, number)?;
        Ok(self.files.get(number, || self.overlay.open(&node)))
    }

    /// Whether programs can only append to a file (chattr(1)).
    fn is_append_only(&self, node: &Arc<Node<L>>) -> bool {
        self.call(|| self.overlay.flags(node)).is_ok_and(|flags| flags & IFlags::APPEND.bits() != 0)
    }

    /// Gives the device that a rename left to the caller, as if the caller had made it.
    fn give_whiteout(&self, caller: Caller, dir: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        let (owner, _) = self.ownership(dir, caller, NewMode { mode: libc::S_IFCHR, umask: 0 }, Kind::CharDev)?;
        let device = self.call(|| self.overlay.lookup(dir, name))?;
        if device.kind() == Kind::CharDev && owner_of(&self.overlay.stat(&device)?) != owner {
            self.call(|| self.overlay.set_owner(&device, owner))?;
        }
        Ok(())
    }

    /// Makes a call of the engine. If too many descriptors are open, closes those in caches and
    /// calls once more. It does so too if there was no space, but an object that was just removed
    /// may have freed some.
    fn call<T>(&self, mut call: impl FnMut() -> Result<T>) -> Result<T> {
        match call() {
            Err(error) if matches!(error.errno, EMFILE | ENFILE) => {
                self.files.close_all();
                self.overlay.close_dirs();
                call()
            }
            Err(error) if error.errno == ENOSPC && self.await_forgotten() => call(),
            Err(error) if error.errno == EDQUOT => {
                self.quota_exhausted();
                Err(error)
            }
            result => result,
        }
    }

    /// Counts an answer that names an object, and returns it.
    fn entry(&self, node: &Arc<Node<L>>) -> Result<NodeEntry> {
        let attr = self.attr(node)?;
        let (number, generation) = self.nodes.remember(&self.overlay, node, attr.ino);
        Ok(NodeEntry { node: number, generation, attr })
    }

    /// Counts an answer that names a new file, and returns it. The file stays open: a program is
    /// about to write it.
    fn entry_to_write(&self, file: Handle<L>) -> Result<NodeEntry> {
        let entry = self.entry(file.node())?;
        self.files.keep(entry.node, Arc::new(file));
        Ok(entry)
    }

    /// Returns the attributes that the mount shows.
    fn attr(&self, node: &Arc<Node<L>>) -> Result<Attr> {
        let mut stat = self.call(|| self.overlay.stat(node))?;
        let (identity, stored) = (&self.settings.identity, owner_of(&stat));
        let owner = identity.shown(stored);
        (stat.uid, stat.gid) = (owner.uid, owner.gid);
        if stat.kind != Kind::Dir {
            stat.mode = identity.mode_to_show(stored, stat.mode);
        }
        if self.settings.static_nlink && stat.kind == Kind::Dir && stat.nlink > 1 {
            stat.nlink = 1;
        }
        Ok(attr(&stat))
    }

    /// Returns the owner of a new object in its layer, and its mode there.
    fn ownership(&self, parent: &Arc<Node<L>>, caller: Caller, mode: NewMode, kind: Kind) -> Result<(Owner, u32)> {
        let above = self.call(|| self.overlay.stat(parent))?;
        let umask = if self.call(|| self.overlay.has_default_acl(parent))? { 0 } else { mode.umask };
        let mode = mode.mode & !umask & 0o7777;
        let owner = self.settings.identity.of_new(Owner { uid: caller.uid, gid: caller.gid })?;
        let (owner, mode) = ownership::of_new(&above, owner, kind, mode);
        Ok((owner, if kind == Kind::Dir { mode } else { self.settings.identity.mode_to_store(owner, mode) }))
    }

    /// Removes the set-id bits that do not survive a change of content or owner, before the change.
    /// So no program runs the changed file with the rights of the old content.
    ///
    /// These are the bits that the file must not have in its layer, and with a caller `by` those
    /// that it has no right to. The kernel names only one group of the caller.
    fn drop_set_id(&self, node: &Arc<Node<L>>, by: Option<Caller>) -> Result<()> {
        let identity = &self.settings.identity;
        if by.is_none() && identity.is_plain() {
            return Ok(());
        }
        let stat = self.overlay.stat(node)?;
        let left = by.map_or(stat.mode, |caller| {
            let gid = identity.shown(owner_of(&stat)).gid;
            // Root, which changes an owner, is in every group.
            without_set_id(&Stat { gid, ..stat }, if caller.uid == 0 { gid } else { caller.gid })
        });
        let kept = identity.mode_to_store(owner_of(&stat), left);
        if kept == stat.mode || stat.kind == Kind::Dir {
            return Ok(());
        }
        self.overlay.set_mode(node, kept)?;
        // Else the kernel would run the file with its old rights.
        if let Some(notifier) = self.notifier.get()
            && let Some(number) = self.nodes.number(&self.overlay, node)
            && let Err(error) = notifier.forget_attributes(number)
        {
            log::debug!("the kernel knows no attributes of {number}: {error}");
        }
        Ok(())
    }

    /// Calls [`EngineFrontEnd::drop_set_id`] where the kernel does not tell whether the caller has
    /// a right to the bits. Root has.
    fn drop_set_id_for(&self, caller: Caller, node: &Arc<Node<L>>) -> Result<()> {
        self.drop_set_id(node, (caller.uid != 0).then_some(caller))
    }

    /// Checks that an attribute is no ACL, or that there are ACLs.
    ///
    /// # Errors
    ///
    /// - EOPNOTSUPP: the attribute is an ACL, and the mount has none.
    fn check_acl(&self, name: &OsStr) -> Result<()> {
        if is_acl(name) && !self.settings.acl { Err(Error::new(EOPNOTSUPP)) } else { Ok(()) }
    }

    /// Returns the inode number of `..` in a listing.
    fn parent_ino(&self, node: &Arc<Node<L>>) -> Result<u64> {
        let above = self.overlay.parent(node).map_or_else(|| node.clone(), |(parent, _)| parent);
        Ok(self.overlay.stat(&above)?.ino)
    }

    /// Adds the entries behind `offset`, with attributes. Returns the directories among them.
    fn list_with_attributes(
        &self,
        dir: &Handle<L>,
        mut offset: u64,
        listing: &mut ListingReply<'_>,
    ) -> Result<Vec<Arc<Node<L>>>> {
        let mut dirs = Vec::new();
        loop {
            let mut names = Vec::new();
            let mut room = listing.room();
            self.call(|| {
                self.overlay.list(dir, offset, &mut |entry| {
                    let size = ListingReply::size_with_attributes(entry.name);
                    let fits = size <= room;
                    if fits {
                        room -= size;
                        names.push((entry.name.to_owned(), entry.offset));
                    }
                    fits
                })
            })?;
            if names.is_empty() {
                return Ok(dirs);
            }
            for (name, behind) in names {
                offset = behind;
                let found = self.call(|| self.overlay.lookup(dir.node(), &name));
                match found.and_then(|node| Ok((self.entry(&node)?, node))) {
                    Ok((entry, node)) => {
                        listing.add_entry(&entry, behind, &name);
                        if node.kind() == Kind::Dir {
                            dirs.push(node);
                        }
                    }
                    // The entry is gone since the engine listed it.
                    Err(error) if error.errno == ENOENT => {}
                    // The entries so far are the answer; the next request meets the error.
                    Err(_) if !listing.is_empty() => return Ok(dirs),
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Has the engine learn the entries of a directory. A failed call fails again when a program
    /// asks.
    fn read_ahead(&self, dir: &Arc<Node<L>>) {
        let mut names = Vec::new();
        let listed = self.overlay.list(&self.overlay.open(dir), 0, &mut |entry| {
            names.push(entry.name.to_owned());
            names.len() < AHEAD_MAX
        });
        if listed.is_ok() {
            let _known = names.iter().try_for_each(|name| self.overlay.lookup(dir, name).map(drop));
        }
    }
}

impl<L: Layer> FrontEnd for EngineFrontEnd<L> {
    fn setup(&self, _: u64) -> Setup {
        let flags = init::DONT_MASK
            | init::EXPORT_SUPPORT
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::NO_OPEN_SUPPORT
            | init::NO_OPENDIR_SUPPORT
            | init::PARALLEL_DIROPS
            | init::CACHE_SYMLINKS
            | init::HANDLE_KILLPRIV_V2
            | init::SETXATTR_EXT
            | if self.settings.acl { init::POSIX_ACL } else { 0 }
            | if self.settings.writeback { init::WRITEBACK_CACHE } else { 0 }
            | if self.nodes.ledger().is_some() { init::HAS_RESEND } else { 0 }
            | if self.backings.is_some() { init::PASSTHROUGH } else { 0 };
        let time_gran = self.overlay.times().unit().min(1_000_000_000) as u32;
        Setup { flags, valid: self.settings.valid, time_gran }
    }

    fn begin(&self, notifier: Notifier) {
        self.notifier.get_or_init(|| notifier.with_ledger(self.nodes.ledger().cloned()));
    }

    fn sit(&self, seat: Weak<Seat<Self>>) {
        self.seat.get_or_init(|| seat);
    }

    fn rest(&self) {
        if self.overlay.has_earlier() {
            self.nodes.find_some(&self.overlay);
        }
        while let Some(dir) = self.ahead.take() {
            self.read_ahead(&dir);
            self.ahead.done();
        }
        if self.fixed.is_due() {
            self.fixed.look(&self.overlay);
        }
        if !self.nodes.is_due() {
            return;
        }
        // The kernel writes back the data of objects that it drops, so another thread must take the
        // requests.
        let (Ok(_waiting), Some(notifier)) = (self.waiting.try_lock(), self.notifier.get()) else { return };
        let oldest = self.nodes.oldest();
        if notifier.can_prune()
            && let Err(error) = notifier.prune(&oldest)
        {
            log::debug!("the kernel drops no objects: {error}");
        }
    }

    fn has_to_rest(&self) -> bool {
        self.overlay.has_earlier() || self.ahead.is_ready() || self.fixed.is_due() || self.nodes.is_due()
    }

    fn watch(&self) -> Duration {
        self.watch_space()
    }

    fn files_expire(&self) -> bool {
        self.space.is_scarce()
    }

    fn open(&self, _: Caller, node: u64, flags: i32) -> Result<Opened> {
        if let Some(backings) = &self.backings {
            return self.open_backed(backings, node);
        }
        if self.fixed.is_none() {
            return Err(Error::new(ENOSYS));
        }
        if flags & libc::O_ACCMODE != libc::O_RDONLY {
            let file = self.file(node)?;
            self.call(|| self.overlay.open_for_writing(&file, flags & libc::O_APPEND != 0))?;
        }
        Ok(Opened { flags: wire::FOPEN_KEEP_CACHE, ..Opened::default() })
    }

    fn release(&self, fh: u64) {
        self.close_backed(fh);
    }

    fn lookup(&self, _: Caller, parent: u64, name: &OsStr) -> Result<Option<NodeEntry>> {
        match name.as_bytes() {
            b"." => return self.find_again(parent).map(Some),
            b".." => return self.above(parent).map(Some),
            _ => {}
        }
        let dir = self.node(parent)?;
        let node = match self.call(|| self.overlay.lookup(&dir, name)) {
            Err(error) if error.errno == ENOENT => return Ok(None),
            found => found?,
        };
        self.entry(&node).map(Some).map_err(|error| match self.nodes.number(&self.overlay, &node) {
            // The kernel takes most errors of a repeated lookup for the end of the entry. It then
            // detaches the mounts on and below it.
            Some(_) => Error::new(ENOMEM),
            None => error,
        })
    }

    fn forget(&self, node: u64, count: u64) {
        self.nodes.note_place(&self.overlay, node);
        let Some(forgotten) = self.nodes.forget(&self.overlay, node, count) else { return };
        let _forgetting = self.space.forget(node);
        self.files.close(node);
        let node = forgotten.node().clone();
        drop(forgotten);
        self.overlay.release(node);
    }

    fn getattr(&self, _: Caller, node: u64) -> Result<Attr> {
        self.attr(&self.node(node)?)
    }

    fn setattr(&self, caller: Caller, number: u64, change: &SetattrIn) -> Result<Attr> {
        let node = self.node(number)?;
        let _changing = self.changing(&node);
        if !is_set(change, set::ANY) {
            self.announced(number, &node)?;
        }
        if is_set(change, set::SIZE) {
            self.set_size(caller, &node, change)?;
        }
        if is_set(change, set::UID | set::GID) {
            self.set_owner(caller, &node, change)?;
        }
        if is_set(change, set::MODE) {
            let mut mode = change.mode & 0o7777;
            if node.kind() != Kind::Dir {
                mode = self.settings.identity.mode_to_store(owner_of(&self.overlay.stat(&node)?), mode);
            }
            self.call(|| self.overlay.set_mode(&node, mode))?;
        }
        if is_set(change, set::ATIME | set::MTIME) {
            self.set_times(number, &node, change)?;
        }
        // The kernel keeps the times of files with write-back itself, so it shows this one already.
        if is_set(change, set::CTIME) {
            self.overlay.set_ctime(&node, convert::time(change.ctime, change.ctimensec));
        }
        self.attr(&node)
    }

    fn readlink(&self, _: Caller, node: u64) -> Result<OsString> {
        let node = self.node(node)?;
        self.call(|| self.overlay.read_link(&node))
    }

    fn mknod(&self, caller: Caller, parent: u64, name: &OsStr, new: NewMode, device: u64) -> Result<NodeEntry> {
        let dir = self.node(parent)?;
        let kind = kind_of(new.mode).ok_or(Error::new(EINVAL))?;
        let (owner, mode) = self.ownership(&dir, caller, new, kind)?;
        if kind == Kind::File {
            return match self.call(|| self.overlay.create_file(&dir, name, mode, owner)) {
                Ok(file) => self.entry_to_write(file),
                Err(error) => self.made_before(error, caller, &dir, name),
            };
        }
        let made = self.call(|| self.overlay.create_node(&dir, name, kind, mode, device, owner));
        made.map_or_else(|error| self.made_before(error, caller, &dir, name), |node| self.entry(&node))
    }

    fn mkdir(&self, caller: Caller, parent: u64, name: &OsStr, new: NewMode) -> Result<NodeEntry> {
        let dir = self.node(parent)?;
        let (owner, mode) = self.ownership(&dir, caller, new, Kind::Dir)?;
        let made = self.call(|| self.overlay.create_dir(&dir, name, mode, owner));
        made.map_or_else(|error| self.made_before(error, caller, &dir, name), |node| self.entry(&node))
    }

    fn symlink(&self, caller: Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<NodeEntry> {
        let dir = self.node(parent)?;
        let (owner, _) = self.ownership(&dir, caller, NewMode { mode: 0o777, umask: 0 }, Kind::Symlink)?;
        let made = self.call(|| self.overlay.create_symlink(&dir, name, target, owner));
        made.map_or_else(|error| self.made_before(error, caller, &dir, name), |node| self.entry(&node))
    }

    fn unlink(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()> {
        let dir = self.node(parent)?;
        self.removing(caller, &dir, name, || self.call(|| self.overlay.unlink(&dir, name)))
    }

    fn rmdir(&self, caller: Caller, parent: u64, name: &OsStr) -> Result<()> {
        let dir = self.node(parent)?;
        self.removing(caller, &dir, name, || self.call(|| self.overlay.remove_dir(&dir, name)))
    }

    fn rename(&self, caller: Caller, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32) -> Result<()> {
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            libc::RENAME_WHITEOUT => RenameMode::Whiteout,
            _ => return Err(Error::new(EINVAL)),
        };
        let (dir, new_dir) = (self.node(from.0)?, self.node(to.0)?);
        self.renaming(caller, (&dir, from.1), (&new_dir, to.1), mode, || {
            self.call(|| self.overlay.rename(&dir, from.1, &new_dir, to.1, mode))
        })?;
        if mode == RenameMode::Whiteout
            && let Err(error) = self.give_whiteout(caller, &dir, from.1)
        {
            log::debug!("the whiteout of a rename stays with the owner of the daemon: {error}");
        }
        Ok(())
    }

    fn link(&self, caller: Caller, node: u64, parent: u64, name: &OsStr) -> Result<NodeEntry> {
        let (node, dir) = (self.node(node)?, self.node(parent)?);
        self.linking(caller, &node, (&dir, name), || self.call(|| self.overlay.link(&node, &dir, name)))?;
        self.entry(&node)
    }

    fn create(
        &self,
        caller: Caller,
        parent: u64,
        name: &OsStr,
        new: NewMode,
        flags: i32,
    ) -> Result<(NodeEntry, Opened)> {
        // The kernel then makes the file with MKNOD, and opens it as any other. So it sends no
        // RELEASE when it is closed.
        if self.fixed.is_none() {
            return Err(Error::new(ENOSYS));
        }
        let dir = self.node(parent)?;
        let (owner, mode) = self.ownership(&dir, caller, new, Kind::File)?;
        let file = match self.call(|| self.overlay.create_file(&dir, name, mode, owner)) {
            Err(error) if error.errno == EEXIST && (flags & libc::O_EXCL == 0 || caller.asks_again()) => {
                self.overlay.open(&self.call(|| self.overlay.lookup(&dir, name))?)
            }
            created => created?,
        };
        Ok((self.entry_to_write(file)?, Opened { flags: wire::FOPEN_KEEP_CACHE, ..Opened::default() }))
    }

    fn read(&self, _: Caller, node: u64, _: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.file(node)?;
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            match self.call(|| self.overlay.read_at(&file, rest, offset + done as u64))? {
                0 => break,
                count => done += count,
            }
        }
        Ok(done)
    }

    fn write(&self, caller: Caller, node: u64, write: Write<'_>) -> Result<usize> {
        let file = self.file(node)?;
        let _changing = self.changing(file.node());
        self.drop_set_id(file.node(), (write.flags & wire::WRITE_KILL_SUIDGID != 0).then_some(caller))?;
        let held_back = self.settings.writeback && write.flags & wire::WRITE_CACHE != 0;
        let (mut done, mut failed) = (self.appended_before(caller, &file, &write)?, None);
        while done < write.data.len() {
            let (rest, offset) = (&write.data[done..], write.offset + done as u64);
            match self.call(|| self.overlay.write_at(&file, rest, offset)) {
                Ok(count) => done += count,
                Err(error) if done == 0 => {
                    failed = Some(error);
                    break;
                }
                Err(_) => break,
            }
        }
        let written = failed.map_or(Ok(done), Err);
        if held_back {
            self.written_back(node, written);
        }
        written
    }

    fn fsync(&self, node: u64, _: u64) -> Result<()> {
        let file = self.file(node)?;
        self.call(|| self.overlay.sync(&file))
    }

    fn readdir(&self, _: Caller, node: u64, _: u64, mut offset: u64, listing: &mut ListingReply<'_>) -> Result<()> {
        let dir = self.overlay.open(&self.nodes.get(&self.overlay, node)?);
        let begins = offset == 0;
        if offset < BEHIND_SELF {
            let ino = self.overlay.stat(dir.node())?.ino;
            if !listing.add(ino, BEHIND_SELF, libc::S_IFDIR, OsStr::new(".")) {
                return Ok(());
            }
            offset = BEHIND_SELF;
        }
        if offset < BEHIND_PARENT {
            let ino = self.parent_ino(dir.node())?;
            if !listing.add(ino, BEHIND_PARENT, libc::S_IFDIR, OsStr::new("..")) {
                return Ok(());
            }
            offset = BEHIND_PARENT;
        }
        if listing.with_attributes() && !(begins && self.call(|| self.overlay.count_names(&dir))? >= LARGE_DIR) {
            let found = self.list_with_attributes(&dir, offset, listing)?;
            if begins {
                let above = self.overlay.parent(dir.node()).map(|(above, _)| above);
                self.ahead.listed(dir.node(), above.as_ref(), found);
            }
            return Ok(());
        }
        let mut add = |entry: DirEntry<'_>| listing.add(entry.ino, entry.offset, kind_bits(entry.kind), entry.name);
        self.call(|| self.overlay.list(&dir, offset, &mut add))
    }

    fn fsyncdir(&self, node: u64, _: u64) -> Result<()> {
        let dir = self.overlay.open(&self.nodes.get(&self.overlay, node)?);
        self.call(|| self.overlay.sync(&dir))
    }

    fn tmpfile(&self, caller: Caller, parent: u64, new: NewMode) -> Result<(NodeEntry, Opened)> {
        let dir = self.node(parent)?;
        let (owner, mode) = self.ownership(&dir, caller, new, Kind::File)?;
        let file = self.call(|| self.overlay.create_temp(&dir, mode, owner))?;
        let entry = self.entry(file.node())?;
        self.files.keep(entry.node, Arc::new(file));
        Ok((entry, Opened { flags: wire::FOPEN_KEEP_CACHE, ..Opened::default() }))
    }

    fn birth(&self, node: u64) -> Result<(Attr, Option<Birth>)> {
        let node = self.node(node)?;
        let birth = self.call(|| self.overlay.birth(&node))?;
        Ok((self.attr(&node)?, birth.map(|time| (time.sec, time.nsec))))
    }

    fn getxattr(&self, caller: Caller, number: u64, name: &OsStr, only_size: bool) -> Result<Vec<u8>> {
        self.check_acl(name)?;
        let node = self.node(number)?;
        let value = self.call(|| self.overlay.xattr(&node, name));
        if name == CAPABILITY {
            return self.capability(caller, (number, &node), value, only_size);
        }
        let mut value = match value {
            // The kernel refuses access to an object if it gets this error for its ACL (`fuse_get_acl`
            // in fs/fuse/acl.c). A layer without ACLs has none on the object.
            Err(error) if error.errno == EOPNOTSUPP && is_acl(name) => return Err(Error::new(ENODATA)),
            value => value?,
        };
        if is_acl(name) {
            hide_strangers(&mut value);
            self.settings.identity.show_acl(&mut value);
        }
        Ok(value)
    }

    fn setxattr(
        &self,
        caller: Caller,
        node: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        kill_sgid: bool,
    ) -> Result<()> {
        let mode = match flags {
            0 => XattrMode::Set,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return Err(Error::new(EINVAL)),
        };
        self.check_acl(name)?;
        let mut value = value.to_owned();
        if is_acl(name) {
            self.settings.identity.store_acl(&mut value)?;
        }
        let node = self.node(node)?;
        // The set must not drop hidden entries silently. The kernel's overlayfs shows such an ACL,
        // and then refuses to set it.
        if is_acl(name) && self.overlay.xattr(&node, name).is_ok_and(|mut before| hide_strangers(&mut before)) {
            return Err(Error::new(EINVAL));
        }
        let _changing = self.changing(&node);
        match self.call(|| self.overlay.set_xattr(&node, name, &value, mode)) {
            // The request itself may have set it before.
            Err(error) if error.errno == EEXIST && caller.asks_again() => {
                let before = self.call(|| self.overlay.xattr(&node, name))?;
                (before == value).then_some(()).ok_or(error)?;
            }
            set => set?,
        }
        if kill_sgid {
            let mode = self.overlay.stat(&node)?.mode;
            self.call(|| self.overlay.set_mode(&node, mode & !SET_GID))?;
        }
        Ok(())
    }

    fn listxattr(&self, caller: Caller, node: u64) -> Result<Vec<OsString>> {
        let node = self.node(node)?;
        let mut names = self.call(|| self.overlay.xattrs(&node))?;
        // The kernel shows the values of `trusted.*` attributes to root alone, but the names to
        // all.
        let shown = |name: &OsStr| caller.uid == 0 || !name.as_bytes().starts_with(b"trusted.");
        names.retain(|name| self.check_acl(name).is_ok() && shown(name));
        Ok(names)
    }

    fn removexattr(&self, caller: Caller, node: u64, name: &OsStr) -> Result<()> {
        self.check_acl(name)?;
        if name == CAPABILITY && self.told.take(node, caller.pid) {
            return Ok(());
        }
        let node = self.node(node)?;
        let _changing = self.changing(&node);
        match self.call(|| self.overlay.remove_xattr(&node, name)) {
            Err(error) if error.errno == ENODATA && self.removed_before(caller, name) => Ok(()),
            removed => removed,
        }
    }

    fn fallocate(&self, caller: Caller, node: u64, mode: i32, offset: u64, length: u64) -> Result<()> {
        let how = allocation(mode).ok_or(Error::new(EOPNOTSUPP))?;
        let end = offset.checked_add(length).ok_or(Error::new(EFBIG))?;
        let file = self.file(node)?;
        let _changing = self.changing(file.node());
        self.drop_set_id_for(caller, file.node())?;
        self.call(|| self.overlay.allocate(&file, how, offset..end))
    }

    fn flags(&self, node: u64) -> Result<u32> {
        let node = self.node(node)?;
        self.call(|| self.overlay.flags(&node))
    }

    fn set_flags(&self, number: u64, flags: u32) -> Result<()> {
        let node = self.node(number)?;
        let _changing = self.changing(&node);
        self.call(|| self.overlay.set_flags(&node, flags))?;
        // An open for writing from before tells nothing of what the layer refuses now.
        self.files.close(number);
        self.fixed.changed();
        if let Some(notifier) = self.notifier.get() {
            if let Err(error) = notifier.forget_attributes(number) {
                log::debug!("the kernel knows no attributes of {number}: {error}");
            }
            // The kernel does not date this change.
            if self.settings.writeback && node.kind() == Kind::File {
                self.misdated.add(notifier, number);
            }
        }
        Ok(())
    }

    fn requests(&self) -> Option<&Requests> {
        self.about.as_ref().map(|about| &about.requests)
    }

    fn control(&self, caller: Caller, node: u64, request: &[u8]) -> Result<Vec<u8>> {
        self.answer(caller, node, request)
    }

    fn lseek(&self, node: u64, offset: u64, whence: i32) -> Result<u64> {
        // The kernel sends this request without writing back the data that it holds, and the answer
        // must not show a hole where there are data. Another thread must take the writes. If that
        // is not sure, the answer shows everything as data.
        let written = match (self.waiting.try_lock(), self.notifier.get()) {
            (Ok(_waiting), Some(notifier)) => {
                if let Err(error) = notifier.write_back(node, offset) {
                    log::debug!("the kernel holds nothing of node {node}: {error}");
                }
                true
            }
            _ => false,
        };
        let file = self.file(node)?;
        let size = self.overlay.stat(file.node())?.size;
        if offset >= size {
            return Err(Error::new(ENXIO));
        }
        let data = match written {
            true => self.call(|| self.overlay.next_data(&file, offset))?,
            false => Some(offset..size),
        };
        match (whence, data) {
            (libc::SEEK_DATA, Some(data)) => Ok(data.start),
            (libc::SEEK_DATA, None) => Err(Error::new(ENXIO)),
            (libc::SEEK_HOLE, Some(data)) if data.start == offset => Ok(data.end),
            (libc::SEEK_HOLE, _) => Ok(offset),
            _ => Err(Error::new(EINVAL)),
        }
    }

    fn copy_file_range(&self, caller: Caller, from: (u64, u64), to: (u64, u64), length: u64) -> Result<u64> {
        let (source, target) = (self.file(from.0)?, self.file(to.0)?);
        let end = from.1.checked_add(length).ok_or(Error::new(EINVAL))?;
        let _changing = self.changing(target.node());
        self.drop_set_id_for(caller, target.node())?;
        self.call(|| self.overlay.copy_range(&source, from.1..end, &target, to.1))
    }

    fn statfs(&self, _: u64) -> Result<StatFs> {
        let found = self.overlay.stat_fs()?;
        Ok(StatFs {
            blocks: found.blocks,
            bfree: found.blocks_free,
            bavail: found.blocks_available,
            files: found.files,
            ffree: found.files_free,
            bsize: found.block_size,
            frsize: found.block_size,
            namelen: found.name_max,
            ..StatFs::default()
        })
    }
}

fn owner_of(stat: &Stat) -> Owner {
    Owner { uid: stat.uid, gid: stat.gid }
}

/// Converts the flags of fallocate(2). None: this front end asks no filesystem for that.
fn allocation(mode: i32) -> Option<Allocation> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    Some(match mode {
        0 => Allocation::Reserve { keep_size: false },
        libc::FALLOC_FL_KEEP_SIZE => Allocation::Reserve { keep_size: true },
        PUNCH => Allocation::PunchHole,
        libc::FALLOC_FL_ZERO_RANGE => Allocation::Zero { keep_size: false },
        ZERO_KEEP => Allocation::Zero { keep_size: true },
        libc::FALLOC_FL_COLLAPSE_RANGE => Allocation::Collapse,
        libc::FALLOC_FL_INSERT_RANGE => Allocation::Insert,
        libc::FALLOC_FL_UNSHARE_RANGE => Allocation::Unshare,
        _ => return None,
    })
}
