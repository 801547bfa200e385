//! Renames, of files and of directories, also of those that lie in lower layers.
//!
//! What moves is in the upper layer by then. A directory that merges with lower ones takes a redirect along, which says with
//! which; one that does not, but comes to a name that lower layers have, takes the opaque mark. So a rename is one step whatever
//! is below, and EXDEV only where the upper layer's format has no redirects.

use std::ffi::OsStr;
use std::sync::Arc;

use syscall::error::{EEXIST, EINVAL, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EXDEV, Error};

use super::Overlay;
use super::names::Upper;
use super::node::{Node, Place};
use super::stack::LayerDir;
use crate::layer::{Kind, Layer, RenameMode, Result};

/// One end of a rename.
struct End<'a, L: Layer> {
    parent: &'a Arc<Node<L>>,
    name: &'a OsStr,
    /// The parent's place in the upper layer.
    dir: &'a Arc<LayerDir<L>>,
}

/// What the layers have at one end.
#[derive(Clone, Copy)]
struct There {
    upper: Option<Upper>,
    lower: bool,
    whiteout: bool,
}

impl<L: Layer> Overlay<L> {
    /// Renames `name` of `dir` to `new_name` of `new_dir`, in one step, for every kind of object wherever it lies.
    ///
    /// Errors are those of rename(2): ENOENT; EEXIST for [`RenameMode::NoReplace`]; EISDIR, ENOTDIR, ENOTEMPTY for what may not be
    /// replaced; EINVAL for a directory into itself, for a reserved new name, and for a mode that the upper layer lacks; EROFS;
    /// ENAMETOOLONG. EXDEV only for a directory that lower layers have, where the upper layer's format has no room for a redirect.
    pub fn rename(
        &self,
        dir: &Arc<Node<L>>,
        name: &OsStr,
        new_dir: &Arc<Node<L>>,
        new_name: &OsStr,
        mode: RenameMode,
    ) -> Result<()> {
        self.check_new_name(new_dir, new_name)?;
        loop {
            let node = self.lookup(dir, name)?;
            let target = self.target(new_dir, new_name)?;
            let (upper, _) = self.upper()?;
            // Where a device is a whiteout, none is left for callers.
            if mode == RenameMode::Exchange && !upper.capabilities().exchange
                || mode == RenameMode::Whiteout && !self.whiteouts_beside()
            {
                return Err(Error::new(EINVAL));
            }
            {
                // What cannot be renamed copies nothing up.
                let _tree = self.tree.write();
                if !self.shows(dir, name, Some(&node))? || !self.shows(new_dir, new_name, target.as_ref())? {
                    continue;
                }
                if !self.check_rename(dir, &node, new_dir, target.as_ref(), mode)? {
                    return Ok(());
                }
            }
            let from = self.upper_dir(dir)?;
            self.copy_up(&node)?;
            let to = self.upper_dir(new_dir)?;
            if let (Some(target), RenameMode::Exchange) = (&target, mode) {
                self.copy_up(target)?;
            }
            if let Some(target) = &target {
                self.bring_held_data(target)?;
            }

            let mut contents: Vec<_> = target.iter().chain([&node]).collect();
            contents.sort_by_key(|node| node.id());
            let _contents: Vec<_> = contents.iter().map(|node| node.content.lock()).collect();
            let _tree = self.tree.write();
            if !self.shows(dir, name, Some(&node))? || !self.shows(new_dir, new_name, target.as_ref())? {
                // Somebody was faster.
                continue;
            }
            if !self.check_rename(dir, &node, new_dir, target.as_ref(), mode)? {
                return Ok(());
            }
            let old = &End { parent: dir, name, dir: &from };
            let new = &End { parent: new_dir, name: new_name, dir: &to };
            return match (&target, mode) {
                (Some(target), RenameMode::Exchange) => self.exchange(old, &node, new, target),
                (target, mode) => self.replace(old, &node, new, target.as_ref(), mode == RenameMode::Whiteout),
            };
        }
    }

    /// Whether `name` of `dir` still shows what was found there.
    fn shows(&self, dir: &Arc<Node<L>>, name: &OsStr, found: Option<&Arc<Node<L>>>) -> Result<bool> {
        Ok(self.found(dir, name)?.as_ref().map(Arc::as_ptr) == found.map(Arc::as_ptr))
    }

    fn target(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
        let _tree = self.tree.read();
        self.found(dir, name)
    }

    /// As [`Overlay::find`], with None for a name that does not exist in a directory that does.
    fn found(&self, dir: &Arc<Node<L>>, name: &OsStr) -> Result<Option<Arc<Node<L>>>> {
        if dir.dir()?.removed {
            return Err(Error::new(ENOENT));
        }
        match self.find(dir, name) {
            Ok(node) => Ok(Some(node)),
            Err(error) if error.errno == ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether there is anything to do, if the rename may be made.
    fn check_rename(
        &self,
        dir: &Arc<Node<L>>,
        node: &Arc<Node<L>>,
        new_dir: &Arc<Node<L>>,
        target: Option<&Arc<Node<L>>>,
        mode: RenameMode,
    ) -> Result<bool> {
        let fail = |errno| Err(Error::new(errno));
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return fail(EEXIST),
            (None, RenameMode::Exchange) => return fail(ENOENT),
            _ => {}
        }
        if node.kind() == Kind::Dir && self.is_within(new_dir, node) {
            return fail(EINVAL);
        }
        let Some(target) = target else {
            return self.check_movable(node).map(|()| true);
        };
        if Arc::ptr_eq(node, target) {
            return Ok(false);
        }
        self.check_movable(node)?;
        if mode == RenameMode::Exchange {
            self.check_movable(target)?;
            return if target.kind() == Kind::Dir && self.is_within(dir, target) { fail(EINVAL) } else { Ok(true) };
        }
        match (node.kind(), target.kind()) {
            (Kind::Dir, Kind::Dir) => {
                if self.read_dir(target, &mut *target.dir()?)?.is_empty() {
                    Ok(true)
                } else {
                    fail(ENOTEMPTY)
                }
            }
            (Kind::Dir, _) => fail(ENOTDIR),
            (_, Kind::Dir) => fail(EISDIR),
            _ => Ok(true),
        }
    }

    /// EXDEV for a directory that merges with lower ones by its name, if that cannot be written down.
    fn check_movable(&self, node: &Arc<Node<L>>) -> Result<()> {
        if node.kind() != Kind::Dir || self.can_redirect() {
            return Ok(());
        }
        let mut dir = node.dir()?;
        self.read_dir(node, &mut dir)?;
        if dir.lowers.is_empty() || dir.redirect.is_some() { Ok(()) } else { Err(Error::new(EXDEV)) }
    }

    /// Whether `node` is `top` or below it.
    fn is_within(&self, node: &Arc<Node<L>>, top: &Arc<Node<L>>) -> bool {
        let mut node = node.clone();
        loop {
            if Arc::ptr_eq(&node, top) {
                return true;
            }
            match self.parent(&node) {
                Some((parent, _)) => node = parent,
                None => return false,
            }
        }
    }

    fn there(&self, end: &End<'_, L>) -> Result<There> {
        let mut dir = end.parent.dir()?;
        let slot = self.read_dir(end.parent, &mut dir)?.get(end.name);
        Ok(match slot {
            Some(slot) => There { upper: slot.upper, lower: slot.lower.is_some(), whiteout: slot.whiteout },
            None => There { upper: None, lower: false, whiteout: false },
        })
    }

    fn set_whiteout(&self, end: &End<'_, L>, whiteout: bool) -> Result<()> {
        let mut dir = end.parent.dir()?;
        let names = self.read_dir(end.parent, &mut dir)?;
        names.entry(end.name).whiteout = whiteout;
        names.tidy(end.name);
        Ok(())
    }

    /// The rename to a name that is free, or whose object it replaces. A device may be left, which hides what lower layers have as any
    /// object does. The tree is locked exclusively.
    ///
    /// Where whiteouts have the names themselves, the one of the old name comes with the rename, and the one of the new name is replaced, or,
    /// since a directory replaces nothing but a directory, changes places with it.
    fn replace(
        &self,
        old: &End<'_, L>,
        node: &Arc<Node<L>>,
        new: &End<'_, L>,
        target: Option<&Arc<Node<L>>>,
        leaves_device: bool,
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        let (here, there) = (self.there(old)?, self.there(new)?);
        self.bring_name(old, node, here)?;
        self.prepare_move(node, there)?;
        let mut covered = there.whiteout;
        let mut pinned = None;
        if let Some(target) = target {
            pinned = self.pin(target)?;
            if target.kind() == Kind::Dir && there.upper.is_some() {
                // The layer replaces a directory only if nothing is in it, and the marker keeps it as empty as it looks.
                if there.lower && !covered && self.whiteouts_beside() {
                    self.add_whiteout(new.dir, new.name)?;
                    self.set_whiteout(new, true)?;
                    self.settle_names(new.dir)?;
                    covered = true;
                }
                self.remove_markers(&mut *target.dir()?)?;
            }
        }
        let leaves_marker = here.lower && !here.whiteout && !leaves_device;
        let beside = self.whiteouts_beside();
        let swaps = covered && !beside && node.kind() == Kind::Dir;
        let mode = match (swaps, leaves_device || leaves_marker && !beside) {
            (true, _) => RenameMode::Exchange,
            (false, true) => RenameMode::Whiteout,
            (false, false) => RenameMode::Replace,
        };
        if leaves_marker && beside {
            self.add_whiteout(old.dir, old.name)?;
        }
        let renamed = (|| {
            if leaves_marker && beside {
                self.settle_names(old.dir)?;
            }
            let (from, to) = (self.stack.open(old.dir)?, self.stack.open(new.dir)?);
            upper.rename(&from, old.name, &to, new.name, mode)
        })();
        if let Err(error) = renamed {
            if leaves_marker
                && beside
                && let Err(error) = self.remove_whiteout(old.dir, old.name)
            {
                log::warn!("the marker of {:?} stays beside it: {error}", old.name);
                self.set_whiteout(old, true)?;
            }
            return Err(error);
        }

        if let Some(target) = target {
            if let Ok(mut dir) = target.dir() {
                dir.removed = true;
            }
            self.lost_name(target, target.state.lock(), new.parent, new.name, pinned);
        }
        let moved = self.leave(old)?;
        if leaves_device {
            let mut dir = old.parent.dir()?;
            let slot = self.read_dir(old.parent, &mut dir)?.entry(old.name);
            slot.upper = Some(Upper { kind: Kind::CharDev, ino: None });
            slot.whiteout = here.whiteout;
        }
        self.arrive(new, node, moved, old)?;
        if covered && !beside {
            self.set_whiteout(new, false)?;
        }
        // A whiteout that hides nothing, or nothing any more.
        let idle = if swaps && !leaves_marker { Some(old) } else { (covered && beside).then_some(new) };
        if let Some(end) = idle {
            let gone = self.remove_whiteout(end.dir, end.name);
            if let Err(error) = &gone {
                log::warn!("the whiteout of {:?} stays: {error}", end.name);
            }
            self.set_whiteout(end, gone.is_err())?;
        }
        Ok(())
    }

    /// The exchange of two objects. The tree is locked exclusively.
    fn exchange(&self, old: &End<'_, L>, node: &Arc<Node<L>>, new: &End<'_, L>, target: &Arc<Node<L>>) -> Result<()> {
        let (upper, _) = self.upper()?;
        let (here, there) = (self.there(old)?, self.there(new)?);
        self.bring_name(old, node, here)?;
        self.bring_name(new, target, there)?;
        self.prepare_move(node, there)?;
        self.prepare_move(target, here)?;
        let (from, to) = (self.stack.open(old.dir)?, self.stack.open(new.dir)?);
        upper.rename(&from, old.name, &to, new.name, RenameMode::Exchange)?;
        let (node_upper, target_upper) = (self.there(old)?.upper, self.there(new)?.upper);
        self.arrive(new, node, node_upper, old)?;
        self.arrive(old, target, target_upper, new)
    }

    /// Sees to it that the name that is going to be renamed is in the upper layer, not only another name of the same file.
    fn bring_name(&self, end: &End<'_, L>, node: &Arc<Node<L>>, there: There) -> Result<()> {
        if there.upper.is_some() {
            return Ok(());
        }
        let (home, origin, ino) = {
            let state = node.state.lock();
            (state.home.clone(), state.origin(), state.attr.map(|attr| attr.ino))
        };
        let home = home.ok_or(Error::new(EIO))?;
        let place = Place { parent: end.parent.clone(), name: end.name.into(), dir: end.dir.clone() };
        self.link_from_home(&home, &place, end.dir)?;
        if let Some(place) = node.state.lock().place_mut(end.parent, end.name) {
            place.dir = end.dir.clone();
        }
        if let Some(origin) = origin {
            self.hid_name(origin);
        }
        self.read_dir(end.parent, &mut *end.parent.dir()?)?.entry(end.name).upper =
            Some(Upper { kind: node.kind(), ino });
        Ok(())
    }

    /// Makes a directory independent of its name, if it is one: it keeps merging with what it merges with now, and with nothing else.
    fn prepare_move(&self, node: &Arc<Node<L>>, there: There) -> Result<()> {
        if node.kind() != Kind::Dir {
            return Ok(());
        }
        let (merges, opaque, redirected, own) = {
            let mut dir = node.dir()?;
            self.read_dir(node, &mut dir)?;
            (!dir.lowers.is_empty(), dir.opaque, dir.redirect.is_some(), self.known_upper(&dir)?)
        };
        // The kernel may have written a redirect that counts only beside its present place.
        if opaque || redirected && self.whiteouts_beside() {
            return Ok(());
        }
        if merges || redirected {
            let path = self.lower_path(node)?;
            self.keeping_times(node, &own, |_| self.set_redirect(&own, &path))?;
            node.dir()?.redirect = Some(path);
            self.settle_names(&own)?;
        } else if there.lower {
            self.keeping_times(node, &own, |_| self.set_opaque(&own))?;
            node.dir()?.opaque = true;
            self.settle_names(&own)?;
        }
        Ok(())
    }

    /// Takes an object off its old name. Answers what the upper layer had there.
    fn leave(&self, old: &End<'_, L>) -> Result<Option<Upper>> {
        let mut dir = old.parent.dir()?;
        let names = self.read_dir(old.parent, &mut dir)?;
        let slot = names.entry(old.name);
        slot.child = None;
        slot.whiteout = slot.lower.is_some();
        let upper = slot.upper.take();
        names.tidy(old.name);
        Ok(upper)
    }

    /// Enters an object under its new name.
    fn arrive(&self, new: &End<'_, L>, node: &Arc<Node<L>>, upper: Option<Upper>, old: &End<'_, L>) -> Result<()> {
        {
            let mut dir = new.parent.dir()?;
            let slot = self.read_dir(new.parent, &mut dir)?.entry(new.name);
            slot.upper = upper;
            slot.child = Some(node.clone());
        }
        if let Ok(dir) = node.dir()
            && let Some(own) = &dir.upper
        {
            self.stack.moved(own, new.dir, new.name);
        }
        {
            let mut state = node.state.lock();
            let place = Place { parent: new.parent.clone(), name: new.name.into(), dir: new.dir.clone() };
            match state.place_mut(old.parent, old.name) {
                Some(former) => *former = place,
                None => state.places.push(place),
            }
            state.stale = true;
        }
        new.parent.state.lock().stale = true;
        old.parent.state.lock().stale = true;
        Ok(())
    }
}
