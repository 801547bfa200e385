//! Copy-up: copies an object of a lower layer to the upper layer before its first change.
//!
//! The engine builds the copy complete in the work directory. One rename puts it in place, where it
//! hides the original and looks the same. A copy without data may be made at its place (`emptied`).
//! A thread that copies data holds only the object's content lock, so other objects stay usable.

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::errno::{EIO, ENOENT, EOPNOTSUPP, Error};

use super::Overlay;
use super::cancel::check;
use super::copy_plan::{Data, Destination, Named, Way};
use super::index::Origin;
use super::names::Upper;
use super::node::{LinkCount, Node, ObjectName, OpenFile, State, Stored};
use super::ownership::SET_ID;
use super::partial::PARTIAL_FROM;
use super::progress::{PIECE, Progress};
use super::room::Promise;
use super::stack::LayerDir;
use super::work::{discard, discard_dir, rename_built};
use crate::format::kernel;
use crate::layer::{Access, CAPABILITY, Kind, Layer, Object, Owner, RenameMode, Result, Stat, THROUGH};
use crate::sync::Guard;

/// The unit of [`Stat::blocks`], in bytes.
const BLOCK: u64 = 512;

/// The modes of copies that cannot have their final mode from the start.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

/// Whether a crash can no longer lose the data of a copy.
enum Settled {
    Yes,
    No,
}

/// The purpose of a copy-up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// A change that an immutable or append-only object refuses.
    Change,
    /// Writing, maybe only at the end: append-only objects permit it.
    Write,
    /// New flags (chattr), which may make changes possible.
    Flags,
}

/// An object in the upper layer. The value holds the lock of its content, so no other thread
/// changes it before the caller does.
pub(super) struct CopiedUp<'n> {
    _content: Guard<'n, ()>,
    /// Whether the copy has only the kept bytes. Then it took its place as a file that was
    /// truncated at this moment, and the caller need not truncate it.
    pub is_truncated: bool,
}

/// A copy that has no name in the tree yet.
enum Built<L: Layer> {
    /// A regular file with its data.
    File(L::File, Settled),
    /// A partial copy without data; its source, and the promise of space for the rest.
    Part(L::File, (Arc<OpenFile<L>>, Promise)),
    Other,
}

/// The places where a copy has names.
pub(super) struct Placed<L: Layer> {
    /// The directory in which the copy has the object's name.
    pub to: Option<Arc<LayerDir<L>>>,
    /// The index entry through which the other names of the file find the copy.
    pub index_entry: Option<OsString>,
}

impl<L: Layer> Built<L> {
    /// Returns the copy, which was made under the name `temp`.
    fn object<'a>(&'a self, work: &'a L::Dir, temp: &'a OsStr) -> Object<'a, L> {
        match self {
            // An open file needs no lookup.
            Built::File(file, _) | Built::Part(file, _) => Object::File(file),
            Built::Other => Object::Entry(work, temp),
        }
    }
}

impl<L: Layer> Overlay<L> {
    /// Whether a change of a file's attributes, or of its `names`, first copies much: a large file,
    /// or the rest of a partial copy.
    pub fn will_copy(&self, node: &Arc<Node<L>>, names: bool) -> bool {
        let state = node.state.lock();
        let is_large = state.attr.is_some_and(|attr| attr.size >= PARTIAL_FROM);
        node.kind() == Kind::File && is_large && (!state.upper || names && state.stored.partial().is_some())
    }

    /// Copies a file up before a change: completely if `whole`, else maybe in part.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EISDIR: `node` is a directory.
    /// - EINVAL: `node` is another object that is no regular file.
    pub fn prepare_change(&self, node: &Arc<Node<L>>, whole: bool) -> Result<()> {
        self.prepare_write(node)?;
        if whole { self.complete(node) } else { Ok(()) }
    }

    /// Copies an object up completely, with all directories above it. Does nothing if that is done.
    ///
    /// The caller must hold neither the tree nor the content of any node.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    pub(super) fn copy_up(&self, node: &Arc<Node<L>>) -> Result<()> {
        drop(self.begin_copy_up(node, u64::MAX, For::Change)?);
        self.complete(node)
    }

    /// Does the same as [`Overlay::copy_up`], but may leave out the data of a large file. Of a
    /// regular file it may copy only the first `keep` bytes.
    ///
    /// # Errors
    ///
    /// - EPERM: the object is immutable or append-only in its lower layer.
    /// - EROFS: there is no upper layer.
    pub(super) fn begin_copy_up<'n>(&self, node: &'n Arc<Node<L>>, keep: u64, why: For) -> Result<CopiedUp<'n>> {
        let (upper, work) = self.upper()?;
        let fixed = self.check_fixed(node, why)?;
        if node.kind() == Kind::Dir {
            match self.upper_dir(node) {
                // It was removed.
                Err(error) if error.errno == ENOENT => self.copy_up_dir(node)?,
                up => drop(up?),
            }
            return Ok(CopiedUp { _content: node.content.lock(), is_truncated: false });
        }
        self.copy_up_parent(node)?;
        if node.kind() == Kind::File && !node.state.lock().upper {
            self.take_room(self.layer_attr(node)?.size.min(keep))?;
        }
        let content = node.content.lock();
        if node.state.lock().upper {
            self.bring_data(node, keep)?;
            self.fix_copy(node, fixed, why)?;
            return Ok(CopiedUp { _content: content, is_truncated: false });
        }
        let before = self.layer_attr(node)?;
        if node.kind() == Kind::File && keep == 0 && before.size > 0 && self.make_emptied(node, &before)? {
            self.counters.copied_up();
            self.fix_copy(node, fixed, why)?;
            return Ok(CopiedUp { _content: content, is_truncated: true });
        }
        let temp = work.name();
        let dir = self.stack.open(work.dir())?;
        let copied = self.build_copy(node, &before, &dir, &temp, keep).and_then(|built| {
            let copy = self.attr_of_built(&built, (&dir, &temp), before.size.min(keep))?;
            match built {
                Built::Part(file, source) => {
                    self.put_partial_in_place(node, &before, &copy, &temp, file, source).map(|()| false)
                }
                Built::File(file, _) => {
                    self.put_in_place(node, &before, &copy, &temp, Some(file)).map(|()| copy.size < before.size)
                }
                Built::Other => self.put_in_place(node, &before, &copy, &temp, None).map(|()| false),
            }
        });
        if copied.is_err() {
            discard(upper, &dir, &temp);
        }
        let is_truncated = copied?;
        self.fix_copy(node, fixed, why)?;
        Ok(CopiedUp { _content: content, is_truncated })
    }

    /// Copies up the directory of an object's name, if the object is in a lower layer.
    fn copy_up_parent(&self, node: &Arc<Node<L>>) -> Result<()> {
        let parent = {
            let state = node.state.lock();
            state.places.first().filter(|_| !state.upper).map(|place| place.parent.clone())
        };
        match parent.map(|parent| self.upper_dir(&parent)) {
            // Lost a race: another thread removed the name, then the directory. The file is copied
            // nameless.
            Some(Err(error)) if error.errno == ENOENT => Ok(()),
            Some(up) => up.map(drop),
            None => Ok(()),
        }
    }

    /// Returns the attributes of a copy without a name: what `Layer::stat` says, or what the copy
    /// had at its creation, with the `size` of its data. Only kind, number, size and one of its
    /// first times count.
    fn attr_of_built(&self, built: &Built<L>, (dir, temp): (&L::Dir, &OsStr), size: u64) -> Result<Stat> {
        let (upper, work) = self.upper()?;
        let new = match built {
            Built::File(file, _) | Built::Part(file, _) => upper.attr_of_new(file),
            Built::Other => None,
        };
        let attr = match new {
            Some(new) => Stat { size, ..new },
            None => upper.stat(built.object(dir, temp))?,
        };
        Ok(self.stack.mark(work.dir(), attr))
    }

    /// Makes the copy of an object other than a directory. The copy lacks only its name, and maybe
    /// its data.
    fn build_copy(&self, node: &Arc<Node<L>>, attr: &Stat, work: &L::Dir, temp: &OsStr, keep: u64) -> Result<Built<L>> {
        let (upper, work_dir) = self.upper()?;
        let mut xattrs = self.xattrs_to_copy(node)?;
        let made @ (owner, mode) = self.made_as(attr, &xattrs, PRIVATE_FILE)?;
        let mut built = Built::Other;
        match node.kind() {
            Kind::File if attr.size.min(keep) == 0 => {
                // The caller truncates the file, as open(2) with O_TRUNC does. No byte of the
                // original is needed.
                built = Built::File(upper.create_file(work, temp, mode, owner)?, Settled::Yes);
            }
            Kind::File => {
                let from = self.file(node, Access::Read)?;
                let to = upper.create_file(work, temp, mode, owner)?;
                built = self.build_data(node, attr, &xattrs, (from, to), keep)?;
            }
            Kind::Symlink => {
                let target = self.read_link(node)?;
                upper.create_symlink(work, temp, &target, owner)?;
            }
            kind => {
                if kernel::is_whiteout(attr) {
                    self.prepare_device()?;
                }
                upper.create_node(work, temp, kind, mode, attr.rdev, owner)?;
            }
        }
        let object = built.object(work, temp);
        let is_truncated = matches!(built, Built::File(..)) && keep < attr.size;
        if is_truncated {
            // A truncation drops file capabilities too.
            xattrs.retain(|name| name != CAPABILITY);
        }
        self.copy_attr(node, object, attr, made, &xattrs)?;
        if !is_truncated {
            upper.set_times(object, attr.atime, attr.mtime)?;
        }
        // After a crash the rename must not show an empty file in place of the whole lower one. Of
        // a partial copy only the size must be on the disk.
        match &built {
            Built::File(file, Settled::No) => work_dir.sync(upper, file)?,
            Built::Part(file, _) if !work_dir.writes_through(upper) => work_dir.sync(upper, file)?,
            _ => {}
        }
        Ok(built)
    }

    /// Fills the copy `to` of a regular file, or makes it a partial copy if that saves much.
    fn build_data(
        &self,
        node: &Arc<Node<L>>,
        attr: &Stat,
        xattrs: &[OsString],
        (from, to): (Arc<OpenFile<L>>, L::File),
        keep: u64,
    ) -> Result<Built<L>> {
        let (upper, work) = self.upper()?;
        let data = Data {
            size: attr.size,
            kept: attr.size.min(keep),
            may_be_partial: self.may_be_partial(node, attr, xattrs, &from, keep),
            may_write_through: work.writes_through(upper),
        };
        for way in data.ways() {
            match way {
                Way::Share => match upper.share_data(&from.file, &to) {
                    Err(error) if error.errno == EOPNOTSUPP => {}
                    shared => return shared.map(|()| Built::File(to, Settled::No)),
                },
                Way::Part => {
                    if let Some(promise) = self.promise_room(self.data_in(&from, attr)?)? {
                        upper.truncate(&to, attr.size)?;
                        return Ok(Built::Part(to, (from, promise)));
                    }
                }
                Way::Through if self.copy_through((&from, attr), &to, data.kept)? => {
                    return Ok(Built::File(to, Settled::Yes));
                }
                Way::Through => {}
            }
        }
        self.copy_and_tell(node, &from, &to, data.kept)?;
        Ok(Built::File(to, Settled::No))
    }

    /// Copies the first `size` bytes of a file. Logs the progress if that takes long.
    fn copy_and_tell(&self, node: &Arc<Node<L>>, from: &OpenFile<L>, to: &L::File, size: u64) -> Result<()> {
        let mut progress = (size > PIECE).then(|| {
            let path = self.path(node).unwrap_or_else(|| "a file without a name".into());
            Progress::new(path, size, Instant::now())
        });
        let end = self.copy_data(from, to, 0..size, &mut |copied| {
            if let Some(said) = progress.as_mut().and_then(|progress| progress.copied(copied, Instant::now())) {
                log::info!("{said}");
            }
        })?;
        if end < size {
            self.upper()?.0.truncate(to, size)?;
        }
        if let Some(progress) = progress {
            log::info!("{}", progress.done(Instant::now()));
        }
        Ok(())
    }

    /// Copies the first `size` bytes of a small file so that they are on the disk at once. Returns
    /// false, and writes nothing, if the layer cannot do that.
    fn copy_through(&self, (from, attr): (&OpenFile<L>, &Stat), to: &L::File, size: u64) -> Result<bool> {
        let (upper, _) = self.upper()?;
        let layer = self.stack.layer(&from.dir);
        // A file that takes its whole size has hardly any holes.
        let is_dense = attr.blocks.saturating_mul(BLOCK) >= attr.size;
        let next = |at| if is_dense { Ok(Some(at..size)) } else { layer.next_data(&from.file, at) };
        let (mut at, mut end) = (0, 0);
        while at < size
            && let Some(data) = next(at)?
            && data.start < size
        {
            let start = data.start / THROUGH * THROUGH;
            let mut bytes = vec![0; (data.end.min(size) - start) as usize];
            let read = layer.read_at(&from.file, &mut bytes, start)?;
            bytes.truncate(read);
            self.counters.copied(read as u64);
            match upper.write_through(to, &bytes, start) {
                Err(error) if error.errno == EOPNOTSUPP && end == 0 => return Ok(false),
                written => written?,
            }
            (at, end) = (data.end, start + (read as u64).next_multiple_of(THROUGH));
        }
        if end != size {
            upper.truncate(to, size)?;
        }
        Ok(true)
    }

    /// Copies the data in `range` to the same offsets of `to`, without holes. Calls `copied` with
    /// the offset after each piece. Returns the end of the last data.
    pub(super) fn copy_data(
        &self,
        from: &OpenFile<L>,
        to: &L::File,
        range: Range<u64>,
        copied: &mut dyn FnMut(u64),
    ) -> Result<u64> {
        let (upper, _) = self.upper()?;
        let layer = self.stack.layer(&from.dir);
        let mut at = range.start;
        while at < range.end
            && let Some(data) = layer.next_data(&from.file, at)?
            && data.start < range.end
        {
            check()?;
            at = data.end.min(range.end).min(data.start + PIECE);
            upper.copy_range(&from.file, data.start..at, to, data.start)?;
            self.counters.copied(at - data.start);
            copied(at);
        }
        Ok(at)
    }

    /// Returns the owner and mode with which to create a copy: the final ones from the start if
    /// possible. Writing drops set-id bits, and extended attributes need a writable file.
    fn made_as(&self, attr: &Stat, xattrs: &[OsString], private: u32) -> Result<(Owner, u32)> {
        let (upper, _) = self.upper()?;
        let owner = Owner { uid: attr.uid, gid: attr.gid };
        if !upper.creates_as(owner) {
            return Ok((upper.identity(), private));
        }
        Ok((owner, if xattrs.is_empty() && attr.mode & SET_ID == 0 { attr.mode } else { private }))
    }

    /// Sets what a copy lacks after its creation with the owner and mode `made`, except times.
    ///
    /// The order matters. A change of the owner drops set-id bits and capabilities. An ACL, which
    /// contains the mode, may drop the set-group-id bit.
    pub(super) fn copy_attr(
        &self,
        node: &Arc<Node<L>>,
        copy: Object<'_, L>,
        attr: &Stat,
        made: (Owner, u32),
        xattrs: &[OsString],
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        let owner = Owner { uid: attr.uid, gid: attr.gid };
        if made.0 != owner {
            self.prepare_owner(owner)?;
            upper.set_owner(copy, owner)?;
        }
        self.copy_xattrs(node, copy, xattrs)?;
        if attr.kind != Kind::Symlink && made != (owner, attr.mode) {
            upper.set_mode(copy, attr.mode)?;
        }
        Ok(())
    }

    /// Puts the copy in the place of the original. This is the visible step, which changes nothing
    /// that a program sees.
    fn put_in_place(
        &self,
        node: &Arc<Node<L>>,
        before: &Stat,
        copy: &Stat,
        temp: &OsStr,
        file: Option<L::File>,
    ) -> Result<()> {
        let (_, work) = self.upper()?;
        let _tree = self.tree.read();
        let (place, origin) = {
            let state = node.state.lock();
            (state.places.first().cloned(), state.origin().filter(|_| state.links != LinkCount::NONE))
        };
        let held = if file.is_none() && place.is_none() { self.open_entry(work.dir(), temp)? } else { None };
        let placed = self.place_copy(node, before, copy, (temp, file.as_ref()), place.as_ref(), origin)?;
        let dir = placed.to.as_ref().unwrap_or(work.dir()).clone();
        let open =
            file.map(|file| Arc::new(OpenFile { file, access: Access::ReadWrite, dir, from_lower: None })).or(held);
        self.use_copy(node, before, copy, (place, origin), placed, open);
        Ok(())
    }

    /// Makes the copy the object, with its open file. `place` and `origin` are those of the object
    /// before.
    pub(super) fn use_copy(
        &self,
        node: &Arc<Node<L>>,
        before: &Stat,
        copy: &Stat,
        (place, origin): (Option<ObjectName<L>>, Option<Origin>),
        Placed { to, index_entry }: Placed<L>,
        open: Option<Arc<OpenFile<L>>>,
    ) {
        let mut state = node.state.lock();
        let ino = self.become_copy(node, &mut state, before, copy);
        self.counters.copied_up();
        // Another thread may have removed the name meanwhile.
        if let (Some(to), Some(place)) = (&to, place)
            && let Some(place) = state.place_mut(&place.parent, &place.name)
        {
            place.dir = to.clone();
        }
        if to.is_some() || index_entry.is_some() {
            self.copied_up(ino, before, copy, origin.filter(|_| index_entry.is_some()));
        }
        if let (Some(origin), Some(_)) = (origin, &to) {
            self.hid_name(origin);
        }
        state.stored = match index_entry.zip(self.work.as_ref()) {
            Some((index_entry, work)) => {
                state.links = LinkCount::Counted(state.links.count(before.nlink));
                self.inodes.link(copy.dev, copy.ino, node);
                Stored::Indexed(Box::new((work.dir().clone(), index_entry.into())))
            }
            None => Stored::Named,
        };
        let open = open.filter(|_| state.keeps_file());
        let _closed = std::mem::replace(&mut state.file, open);
    }

    /// Records that `copy` is the object now. Returns the object's inode number.
    fn become_copy(&self, node: &Arc<Node<L>>, state: &mut State<L>, before: &Stat, copy: &Stat) -> u64 {
        let ino = *state.ino.get_or_insert_with(|| self.number(before));
        state.upper = true;
        state.has_data = true;
        let is_truncated = copy.size < before.size;
        let ctime = self.shown_ctime(state).filter(|_| !is_truncated);
        self.touch_as(node, state, ctime);
        match is_truncated {
            true => state.freshness.change(),
            false => state.freshness.keep_times(),
        }
        state.attr = Some(Stat { dev: copy.dev, ino: copy.ino, size: copy.size, ..*before });
        ino
    }

    /// Moves a complete copy out of the work directory.
    fn place_copy(
        &self,
        node: &Node<L>,
        before: &Stat,
        copy: &Stat,
        (temp, file): (&OsStr, Option<&L::File>),
        place: Option<&ObjectName<L>>,
        origin: Option<Origin>,
    ) -> Result<Placed<L>> {
        let (upper, work) = self.upper()?;
        let open = self.stack.open(work.dir())?;
        let mut parent = place.map(|place| place.parent.dir()).transpose()?;
        let to = parent.as_ref().and_then(|parent| parent.upper.clone());
        let named = match (place, &to) {
            (None, _) => Named::No,
            (Some(_), None) => Named::Below,
            (Some(_), Some(_)) => Named::Upper,
        };
        let destination = Destination::of(named, origin.is_some()).ok_or(Error::new(EIO))?;
        if destination == Destination::Nameless {
            upper.unlink(&open, temp)?;
            self.inodes.forget_link(before.dev, before.ino);
            return Ok(Placed { to: None, index_entry: None });
        }
        let index_entry = self.numbered(node, before, copy, || {
            // The other names are still in the lower layer. So the copy stays as an index entry,
            // where all of them find it.
            let index_entry = match (destination, origin) {
                (Destination::IndexedAndNamed | Destination::Indexed, Some(origin)) => {
                    Some(self.keep_copy(origin, before, temp)?)
                }
                _ => None,
            };
            let (Some(place), Some(to)) = (place, &to) else { return Ok(index_entry) };
            let placed = self.keeping_times(&place.parent, to, |dir| match &index_entry {
                Some(index_entry) => upper.link(Object::Entry(&*open, index_entry), dir, &place.name),
                None => rename_built(upper, file, (&open, temp), (dir, &*place.name), RenameMode::Replace),
            });
            if let (Err(_), Some(index_entry)) = (&placed, &index_entry) {
                self.unkeep_copy(index_entry, temp);
            }
            placed.map(|()| index_entry)
        })?;
        if let (Some(place), Some(parent), Some(_)) = (place, &mut parent, &to) {
            let names = self.read_dir_at(&place.parent, parent, &place.name)?;
            names.entry(&place.name).upper = Some(Upper { kind: copy.kind, ino: Some(copy.ino) });
        }
        Ok(Placed { to, index_entry })
    }

    /// Returns the directory's place in the upper layer. Copies it and those above it up if needed.
    ///
    /// The caller must hold neither the tree nor the content of any node.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - ENOENT: the directory was removed.
    pub(super) fn upper_dir(&self, node: &Arc<Node<L>>) -> Result<Arc<LayerDir<L>>> {
        self.upper()?;
        let mut missing = Vec::new();
        let mut above = node.clone();
        loop {
            if above.dir()?.upper.is_some() {
                break;
            }
            let (parent, _) = self.parent(&above).ok_or(Error::new(ENOENT))?;
            missing.push(std::mem::replace(&mut above, parent));
        }
        for dir in missing.iter().rev() {
            self.copy_up_dir(dir)?;
        }
        node.dir()?.upper.clone().ok_or(Error::new(ENOENT))
    }

    /// Copies up a directory. Its parent is in the upper layer, or it was removed: then the copy
    /// has no name, and serves the attributes alone.
    fn copy_up_dir(&self, node: &Arc<Node<L>>) -> Result<()> {
        let (upper, work) = self.upper()?;
        let _content = node.content.lock();
        if node.dir()?.upper.is_some() || node.state.lock().upper {
            return Ok(());
        }
        let before = self.layer_attr(node)?;
        let temp = work.name();
        let open = self.stack.open(work.dir())?;
        let xattrs = self.xattrs_to_copy(node)?;
        let as_made @ (owner, mode) = self.made_as(&before, &xattrs, PRIVATE_DIR)?;
        let made = upper.create_dir(&open, &temp, mode, owner)?;
        let copied = self
            .copy_attr(node, Object::Entry(&*open, &temp), &before, as_made, &xattrs)
            .and_then(|()| self.build_fixed(node, &open, &temp))
            .and_then(|fixed| {
                upper.set_times(Object::Entry(&*open, &temp), before.atime, before.mtime)?;
                self.put_dir_in_place(node, &before, made, (&open, &temp))?;
                node.state.lock().marked = Some(fixed);
                Ok(())
            });
        if copied.is_err() {
            discard_dir(upper, &open, &temp);
        }
        copied
    }

    /// Gives the copy of a directory its name. `made` has the attributes of its creation.
    fn put_dir_in_place(
        &self,
        node: &Arc<Node<L>>,
        before: &Stat,
        made: Option<Stat>,
        (open, temp): (&L::Dir, &OsStr),
    ) -> Result<()> {
        let (upper, work) = self.upper()?;
        let copy = match made {
            Some(made) => self.stack.mark(work.dir(), made),
            None => self.stack.stat(work.dir(), temp)?,
        };
        let _tree = self.tree.read();
        let Some(place) = node.state.lock().places.first().cloned() else {
            let held = self.open_entry(work.dir(), temp)?;
            upper.remove_dir(open, temp)?;
            let mut state = node.state.lock();
            self.set_upper(node, &mut state, before, &copy);
            (state.stored, state.file) = (Stored::Named, held);
            return Ok(());
        };
        let mut parent = place.parent.dir()?;
        let to = parent.upper.clone().ok_or(Error::new(EIO))?;
        self.numbered(node, before, &copy, || {
            self.keeping_times(&place.parent, &to, |dir| {
                upper.rename(open, temp, dir, &place.name, RenameMode::Replace)
            })
        })?;
        let names = self.read_dir_at(&place.parent, &mut parent, &place.name)?;
        names.entry(&place.name).upper = Some(Upper { kind: Kind::Dir, ino: Some(copy.ino) });
        node.dir()?.upper = Some(self.stack.child(&to, &place.name));

        let mut state = node.state.lock();
        let ino = *state.ino.get_or_insert_with(|| self.number(before));
        self.copied_up(ino, before, &copy, None);
        self.set_upper(node, &mut state, before, &copy);
        state.links = LinkCount::Merged;
        if let Some(place) = state.places.first_mut() {
            place.dir = to;
        }
        Ok(())
    }

    /// Updates the state of a directory after its copy-up. `before` has the attributes of the
    /// original.
    fn set_upper(&self, node: &Arc<Node<L>>, state: &mut State<L>, before: &Stat, copy: &Stat) {
        state.upper = true;
        self.touch_unseen(node, state);
        state.attr = Some(Stat { dev: copy.dev, ino: copy.ino, ..*before });
    }

    /// Calls `work` on a directory of the upper layer, then puts its times back: the change is not
    /// to show. The caller must hold the lock of the directory or of the whole tree, so that no
    /// other thread changes the times meanwhile.
    pub(super) fn keeping_times(
        &self,
        node: &Arc<Node<L>>,
        dir: &LayerDir<L>,
        work: impl FnOnce(&L::Dir) -> Result<()>,
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        let Stat { atime, mtime, ctime, .. } = self.times_within(node)?;
        let open = self.stack.open(dir)?;
        // Other threads may ask for the times or set them meanwhile.
        {
            let mut state = node.state.lock();
            state.freshness.hide(atime, mtime);
            self.touch_as(node, &mut state, Some(ctime));
        }
        let worked = work(&open);
        let mut state = node.state.lock();
        let (atime, mtime) = state.freshness.end_hidden().unwrap_or((atime, mtime));
        let kept = upper.set_times(Object::Dir(&*open), atime, mtime);
        let ctime = state.ctime;
        self.touch_as(node, &mut state, ctime);
        match (&mut state.attr, kept) {
            (Some(attr), Ok(())) => {
                (attr.atime, attr.mtime) = (atime, mtime);
                state.freshness.keep_times();
            }
            (None, Ok(())) => {}
            (_, Err(error)) => {
                let path = self.stack.path(dir);
                log::warn!("a copy-up changed the times of {}, and cannot put them back: {error}", path.display());
            }
        }
        worked
    }

    /// Links the name `place` of a file into the upper layer. The copy exists under another name,
    /// and as `index_entry`.
    pub(super) fn link_from_index(&self, index_entry: &OsStr, place: &ObjectName<L>, to: &LayerDir<L>) -> Result<()> {
        let (upper, work) = self.upper()?;
        let open = self.stack.open(work.dir())?;
        self.keeping_times(&place.parent, to, |dir| upper.link(Object::Entry(&*open, index_entry), dir, &place.name))
    }
}
