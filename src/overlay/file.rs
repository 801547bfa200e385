//! Handles: open files and directories, reading and writing.
//!
//! All handles of a file share one open file of the layer. The engine opens it for the first handle
//! that needs it; copy-up replaces it. So each handle sees what any other writes, at any time.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::errno::{EFBIG, EINVAL, EIO, EISDIR, EPERM, Error};

use super::Overlay;
use super::attr::Location;
use super::copy_up::For;
use super::node::{Node, OpenFile};
use super::partial::FromLower;
use crate::layer::{Access, Allocation, Kind, Layer, Object, Result, Stat};

/// An open file or directory. It keeps its object usable, also after the last name is unlinked. A
/// drop closes it.
pub struct Handle<L: Layer> {
    node: Arc<Node<L>>,
    /// Whether the handle has read or written, so that the engine keeps the file open for it.
    /// Changes under the lock of the node's state.
    used: AtomicBool,
}

impl<L: Layer> Handle<L> {
    /// The open object.
    pub fn node(&self) -> &Arc<Node<L>> {
        &self.node
    }
}

impl<L: Layer> Drop for Handle<L> {
    fn drop(&mut self) {
        let mut state = self.node.state.lock();
        state.handles -= 1;
        if *self.used.get_mut() {
            state.users -= 1;
        }
        let file = state.take_unused_file();
        drop(state);
        drop(file);
    }
}

impl<L: Layer> Overlay<L> {
    /// Opens an object of any kind. Makes no call of a layer.
    pub fn open(&self, node: &Arc<Node<L>>) -> Handle<L> {
        node.state.lock().handles += 1;
        Handle { node: node.clone(), used: AtomicBool::new(false) }
    }

    /// Keeps the open file of the layer for as long as the handle lives.
    pub fn use_file(&self, handle: &Handle<L>) {
        if !handle.used.load(Ordering::Relaxed) {
            let mut state = handle.node.state.lock();
            if !handle.used.swap(true, Ordering::Relaxed) {
                state.users += 1;
            }
        }
    }

    /// Reads at `offset`. Returns 0 at and behind the end.
    ///
    /// # Errors
    ///
    /// - EISDIR: the handle is of a directory.
    /// - EINVAL: the handle is of another object that is no regular file, or `offset` is too large.
    pub fn read_at(&self, handle: &Handle<L>, buf: &mut [u8], offset: u64) -> Result<usize> {
        check_file(&handle.node)?;
        if i64::try_from(offset).is_err() {
            return Err(Error::new(EINVAL));
        }
        self.use_file(handle);
        let open = self.file(&handle.node, Access::Read)?;
        self.read_at_one_moment(&handle.node, &open, || self.read_open(&open, buf, offset))
    }

    /// Writes at `offset` and returns the number of bytes written. The first write copies the file
    /// up. Times stay as they are if the front end keeps them.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the file is immutable, or append-only and the write is not at its end.
    /// - EFBIG: the end of the write is too large for a file.
    /// - EISDIR: the handle is of a directory.
    /// - EINVAL: the handle is of another object that is no regular file.
    /// - ENOSPC: the upper layer has not enough space for the copy or the data.
    pub fn write_at(&self, handle: &Handle<L>, buf: &[u8], offset: u64) -> Result<usize> {
        self.write(handle, buf, |open| self.write_open(&handle.node, open, buf, offset))
    }

    /// Writes at the end that the file has at the moment of the write.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::write_at`].
    pub fn append(&self, handle: &Handle<L>, buf: &[u8]) -> Result<usize> {
        let node = &handle.node;
        self.write(handle, buf, |open| {
            let end = self.layer_attr(node)?.size;
            self.write_open(node, open, buf, end)
        })
    }

    /// Copies the file up, then calls `work` to write to it. No other thread writes to it
    /// meanwhile.
    fn write(&self, handle: &Handle<L>, buf: &[u8], work: impl FnOnce(&OpenFile<L>) -> Result<usize>) -> Result<usize> {
        let node = &handle.node;
        check_file(node)?;
        self.upper()?;
        if buf.is_empty() {
            return Ok(0);
        }
        self.use_file(handle);
        self.take_room(buf.len() as u64)?;
        let _content = self.begin_copy_up(node, u64::MAX, For::Write)?;
        let written = work(&*self.file_to_write(node)?);
        self.keep_changed(node);
        written
    }

    /// Returns the open file of a node for writing, or for appending if the layer permits no more.
    fn file_to_write(&self, node: &Arc<Node<L>>) -> Result<Arc<OpenFile<L>>> {
        match self.file(node, Access::ReadWrite) {
            Err(error) if error.errno == EPERM => self.file(node, Access::Append),
            open => open,
        }
    }

    fn write_open(&self, node: &Arc<Node<L>>, open: &OpenFile<L>, buf: &[u8], offset: u64) -> Result<usize> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| i64::try_from(*end).is_ok());
        if end.is_none() {
            return Err(Error::new(EFBIG));
        }
        let there = if open.access == Access::Append { self.same(node, open, buf, offset)? } else { 0 };
        let (buf, offset) = (&buf[there..], offset + there as u64);
        if buf.is_empty() {
            return Ok(there);
        }
        self.change_content(node, open, || {
            self.ensure_chunks_copied(node, open, offset..offset + buf.len() as u64)?;
            self.begin_change(node);
            let written = self.stack.layer(&open.dir).write_at(&open.file, buf, offset);
            let mut state = node.state.lock();
            self.end_change(node, &mut state);
            if let (Some(attr), Ok(written)) = (&mut state.attr, written) {
                attr.size = attr.size.max(offset + written as u64);
            }
            written.map(|written| there + written)
        })
    }

    /// Calls `change` to change the content of a file; the caller holds the content's lock. If the
    /// front end keeps times, the file's times stay: the front end dates the change, and this may
    /// be later.
    fn change_content<T>(
        &self,
        node: &Arc<Node<L>>,
        open: &OpenFile<L>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        // The layer refuses to set the times of an append-only file.
        if !self.is_dated_by_front_end(node) || open.access == Access::Append {
            return change();
        }
        let known = node.state.lock().attr_of_fresh_times();
        let Stat { atime, mtime, .. } = known.map_or_else(|| self.stat(node), Ok)?;
        let changed = change();
        // Also after a failure: the layer may have changed a part.
        let kept = self.stack.layer(&open.dir).set_times(Object::File(&open.file), atime, mtime);
        let mut state = node.state.lock();
        self.touch(node, &mut state);
        if let (Some(attr), Ok(())) = (&mut state.attr, kept) {
            (attr.atime, attr.mtime) = (atime, mtime);
            state.freshness.keep_times();
        }
        changed.and_then(|value| kept.map(|()| value))
    }

    /// Returns how many bytes of `buf` an append-only file already has at `offset`, up to its end.
    /// A front end that writes back whole pages writes these too.
    ///
    /// # Errors
    ///
    /// - EPERM: the file has other bytes there, or ends before `offset`.
    fn same(&self, node: &Arc<Node<L>>, open: &OpenFile<L>, buf: &[u8], offset: u64) -> Result<usize> {
        let size = self.layer_attr(node)?.size;
        let behind = size.checked_sub(offset).ok_or(Error::new(EPERM))?;
        let mut there = vec![0; usize::try_from(behind).map_or(buf.len(), |behind| behind.min(buf.len()))];
        let read = self.read_open(open, &mut there, offset)?;
        if read == there.len() && buf.starts_with(&there) { Ok(read) } else { Err(Error::new(EPERM)) }
    }

    /// Makes a regular file ready for writing, so that a later write can fail only for its data.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::write_at`].
    pub fn prepare_write(&self, node: &Arc<Node<L>>) -> Result<()> {
        check_file(node)?;
        self.begin_copy_up(node, u64::MAX, For::Write).map(drop)
    }

    /// Opens a regular file for writing if that changes nothing, so that the layer's refusal comes
    /// before the first write. Returns false if a write would first copy up.
    ///
    /// # Errors
    ///
    /// - EPERM: the file is immutable, or append-only and the caller does not append (`appends`).
    ///
    /// Others as [`Overlay::write_at`].
    pub fn open_for_writing(&self, handle: &Handle<L>, appends: bool) -> Result<bool> {
        let node = &handle.node;
        check_file(node)?;
        self.upper()?;
        if self.check_fixed(node, For::Write)?.append && !appends {
            return Err(Error::new(EPERM));
        }
        if !node.state.lock().upper || !self.is_whole(node)? {
            return Ok(false);
        }
        self.use_file(handle);
        let open = if appends { self.file_to_write(node) } else { self.file(node, Access::ReadWrite) };
        open.map(|_| true)
    }

    /// Sets the size of a regular file.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the file is immutable or append-only.
    /// - EFBIG: `size` is too large for a file.
    /// - EISDIR: `node` is a directory.
    /// - EINVAL: `node` is another object that is no regular file.
    pub fn truncate(&self, node: &Arc<Node<L>>, size: u64) -> Result<()> {
        check_file(node)?;
        self.upper()?;
        if i64::try_from(size).is_err() {
            return Err(Error::new(EFBIG));
        }
        let up = self.begin_copy_up(node, size, For::Change)?;
        if up.is_truncated {
            return Ok(());
        }
        let open = self.file(node, Access::ReadWrite)?;
        self.change_content(node, &open, || {
            // A chunk that the new end divides needs the rest of its data.
            self.ensure_chunks_copied(node, &open, size..size + 1)?;
            self.begin_change(node);
            let truncated =
                self.truncate_partial(node, &open, size, || self.stack.layer(&open.dir).truncate(&open.file, size));
            let mut state = node.state.lock();
            self.end_change(node, &mut state);
            if let (Some(attr), Ok(())) = (&mut state.attr, truncated) {
                attr.size = size;
            }
            truncated
        })
    }

    /// Changes the allocation of a range of a regular file.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EPERM: the file is immutable or append-only.
    /// - EOPNOTSUPP: the upper layer cannot do that.
    /// - EISDIR: the handle is of a directory.
    /// - EINVAL: the handle is of another object that is no regular file, or the range is empty.
    /// - EFBIG: the end of the range is too large for a file.
    /// - ENOSPC: the upper layer has not enough space.
    pub fn allocate(&self, handle: &Handle<L>, how: Allocation, range: Range<u64>) -> Result<()> {
        let node = &handle.node;
        check_file(node)?;
        self.upper()?;
        if range.is_empty() {
            return Err(Error::new(EINVAL));
        }
        if i64::try_from(range.end).is_err() {
            return Err(Error::new(EFBIG));
        }
        self.use_file(handle);
        if !matches!(how, Allocation::PunchHole | Allocation::Collapse | Allocation::Insert) {
            self.take_room(range.end - range.start)?;
        }
        self.copy_up(node)?;
        let _content = node.content.lock();
        let open = self.file(node, Access::ReadWrite)?;
        self.change_content(node, &open, || {
            // A partial copy without a name could not be completed before.
            self.ensure_chunks_copied(node, &open, 0..u64::MAX)?;
            self.begin_change(node);
            let allocated = self.stack.layer(&open.dir).allocate(&open.file, how, range);
            self.end_change_of_size(node);
            allocated
        })
    }

    /// Returns the first range of data at or after `from`, or None if only a hole follows.
    ///
    /// # Errors
    ///
    /// - EISDIR: the handle is of a directory.
    /// - EINVAL: the handle is of another object that is no regular file.
    pub fn next_data(&self, handle: &Handle<L>, from: u64) -> Result<Option<Range<u64>>> {
        check_file(&handle.node)?;
        self.use_file(handle);
        let open = self.file(&handle.node, Access::Read)?;
        self.read_at_one_moment(&handle.node, &open, || self.next_data_open(&open, from))
    }

    /// Calls `work` with the descriptor of the file that has the data of a regular file. None: no
    /// layer has one with all of them.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::read_at`].
    pub fn with_data<T>(&self, handle: &Handle<L>, work: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<Option<T>> {
        check_file(&handle.node)?;
        self.use_file(handle);
        let open = self.file(&handle.node, Access::Read)?;
        let data = self.stack.layer(&open.dir).descriptor(&open.file).filter(|_| open.from_lower.is_none());
        Ok(data.map(work))
    }

    /// Reads a file that may be a partial copy.
    pub(super) fn read_open(&self, open: &OpenFile<L>, buf: &mut [u8], offset: u64) -> Result<usize> {
        let layer = self.stack.layer(&open.dir);
        let Some(FromLower { partial, source }) = &open.from_lower else {
            return layer.read_at(&open.file, buf, offset);
        };
        let mut filled = 0;
        while filled < buf.len() {
            let at = offset + filled as u64;
            let (from_lower, end) = partial.run(at, offset.saturating_add(buf.len() as u64));
            let wanted = usize::try_from(end - at).map_or(buf.len(), |run| buf.len().min(filled + run));
            let piece = &mut buf[filled..wanted];
            let read = match from_lower {
                true => self.stack.layer(&source.dir).read_at(&source.file, piece, at)?,
                false => layer.read_at(&open.file, piece, at)?,
            };
            filled += read;
            if read < piece.len() {
                break;
            }
        }
        Ok(filled)
    }

    /// Returns the next data of a file that may be a partial copy.
    pub(super) fn next_data_open(&self, open: &OpenFile<L>, mut from: u64) -> Result<Option<Range<u64>>> {
        let layer = self.stack.layer(&open.dir);
        let Some(FromLower { partial, source }) = &open.from_lower else {
            return layer.next_data(&open.file, from);
        };
        loop {
            let (from_lower, _) = partial.run(from, from);
            let data = match from_lower {
                true => self.stack.layer(&source.dir).next_data(&source.file, from)?,
                false => layer.next_data(&open.file, from)?,
            };
            // Stops where the data starts to matter no more. So a caller that goes from data to
            // data looks at each part of the map once.
            let (_, end) = partial.run(from, data.as_ref().map_or(u64::MAX, |data| data.end));
            match data {
                Some(data) if data.start < end => return Ok(Some(data.start..data.end.min(end))),
                _ if end == u64::MAX => return Ok(None),
                _ => from = end,
            }
        }
    }

    /// Copies a range of one file to `offset` of another, or of the same one. Returns the number of
    /// bytes copied, which is less than the range only at the end of `from`.
    ///
    /// # Errors
    ///
    /// - EINVAL: the two ranges of one file overlap.
    ///
    /// Others as [`Overlay::write_at`].
    pub fn copy_range(&self, from: &Handle<L>, range: Range<u64>, to: &Handle<L>, offset: u64) -> Result<u64> {
        check_file(&from.node)?;
        check_file(&to.node)?;
        self.upper()?;
        // The part of the range behind the end of the file is not copied, and may overlap.
        let range = range.start..range.end.min(self.stat(&from.node)?.size);
        let length = range.end.saturating_sub(range.start);
        let Some(end) = offset.checked_add(length).filter(|end| i64::try_from(*end).is_ok()) else {
            return Err(Error::new(EFBIG));
        };
        if Arc::ptr_eq(&from.node, &to.node) && range.start < end && offset < range.end {
            return Err(Error::new(EINVAL));
        }
        self.use_file(from);
        self.use_file(to);
        self.take_room(length)?;
        self.copy_up(&to.node)?;
        loop {
            if self.file(&from.node, Access::Read)?.from_lower.is_some() {
                let _content = from.node.content.lock();
                self.fill(&from.node, &*self.file(&from.node, Access::ReadWrite)?, range.clone())?;
            }
            let _content = to.node.content.lock();
            let source = self.file(&from.node, Access::Read)?;
            if source.from_lower.as_ref().is_some_and(|from_lower| from_lower.partial.has_from_lower(&range)) {
                // Lost a race: the source became a partial copy. Retry.
                continue;
            }
            let target = self.file(&to.node, Access::ReadWrite)?;
            return self.change_content(&to.node, &target, || {
                self.ensure_chunks_copied(&to.node, &target, offset..end)?;
                self.begin_change(&to.node);
                let copied = self.stack.layer(&target.dir).copy_range(&source.file, range, &target.file, offset);
                self.end_change_of_size(&to.node);
                copied
            });
        }
    }

    /// Ends a change of content and maybe size in the layer, also one that was done only in part.
    pub(super) fn end_change_of_size(&self, node: &Arc<Node<L>>) {
        let mut state = node.state.lock();
        self.end_change(node, &mut state);
        state.attr = None;
    }

    /// Syncs written data, or the names in a directory, with inode number and link count. Does
    /// nothing for an object of a lower layer, or if the overlay is volatile.
    ///
    /// For the root directory it completes all partial copies and syncs all changes, since
    /// syncfs(2) reaches no FUSE daemon.
    ///
    /// # Errors
    ///
    /// - ENOSPC, EDQUOT: a partial copy cannot be completed.
    ///
    /// Others of the upper layer.
    pub fn sync(&self, handle: &Handle<L>) -> Result<()> {
        let (upper, work) = match self.upper() {
            Ok((upper, work)) if !work.is_volatile() => (upper, work),
            _ => return Ok(()),
        };
        let node = &handle.node;
        match node.kind() {
            Kind::Dir if self.is_root(node) => return self.complete_and_sync(),
            Kind::Dir => {
                let tree = self.tree.read();
                let open = {
                    let dir = node.dir()?;
                    match dir.upper.as_ref().filter(|_| !dir.removed) {
                        Some(to) => self.stack.open(to)?,
                        None => return Ok(()),
                    }
                };
                // If the layer's directory is only a path, no rename may move it before the sync.
                let _tree = (!upper.capabilities().dirs_follow_rename).then_some(tree);
                upper.sync_dir(&open)?;
            }
            Kind::File if node.state.lock().upper => {
                self.complete(node)?;
                upper.sync(&self.file(node, Access::Read)?.file)?;
            }
            _ => return Ok(()),
        }
        let ino = node.state.lock().attr.map(|attr| attr.ino);
        work.index().sync(upper, ino)
    }

    /// Returns the open file of a node, and opens it if no open one has `access`. For writing, the
    /// node must be in the upper layer.
    pub(super) fn file(&self, node: &Arc<Node<L>>, access: Access) -> Result<Arc<OpenFile<L>>> {
        if let Some(open) = node.state.lock().opened(access) {
            return Ok(open);
        }
        let _tree = self.tree.read();
        self.file_within(node, access)
    }

    /// Does the same as [`Overlay::file`] if the caller holds the tree.
    pub(super) fn file_within(&self, node: &Arc<Node<L>>, access: Access) -> Result<Arc<OpenFile<L>>> {
        let mut state = node.state.lock();
        if let Some(open) = state.opened(access) {
            return Ok(open);
        }
        let Location::Entry(dir, name) = self.location(&state) else {
            return Err(Error::new(EIO));
        };
        let from_lower = state.stored.partial().map(|partial| self.open_source(partial)).transpose()?;
        let (dir, file) = self.open_data(dir, &name, access)?;
        let open = Arc::new(OpenFile { file, access, dir, from_lower });
        if state.keeps_file() {
            state.file = Some(open.clone());
        }
        Ok(open)
    }
}

fn check_file<L: Layer>(node: &Arc<Node<L>>) -> Result<()> {
    match node.kind() {
        Kind::File => Ok(()),
        Kind::Dir => Err(Error::new(EISDIR)),
        _ => Err(Error::new(EINVAL)),
    }
}
