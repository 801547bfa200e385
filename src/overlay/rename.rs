//! Renames of files and directories, of those in lower layers too.
//!
//! The engine first copies the object up. A directory that merges with lower ones takes a redirect
//! along, which names them. A directory that merges with none, and moves to a name that lower
//! layers have, takes the opaque mark. So a rename is one step whatever lies below. Only without
//! redirects there is EXDEV.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{EEXIST, EINVAL, EIO, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, EXDEV, Error};

use super::Overlay;
use super::names::{Slot, Upper};
use super::node::{Dir, Node, ObjectName, StateGuard};
use super::stack::LayerDir;
use crate::format::plan::{self, Move, Moved, MovedMark, Name, Step};
use crate::layer::{Kind, Layer, RenameMode, Result};
use crate::sync::{Guard, ReadGuard, WriteGuard};

/// One end of a rename.
struct End<'a, L: Layer> {
    parent: &'a Arc<Node<L>>,
    name: &'a OsStr,
    /// The parent's place in the upper layer.
    dir: &'a Arc<LayerDir<L>>,
}

/// The directories of both ends, locked.
struct Dirs<'a, L: Layer> {
    /// One element if both ends are in one directory.
    locked: Vec<LockedDir<'a, L>>,
    _tree: Tree<'a>,
    _across: Option<Guard<'a, ()>>,
}

struct LockedDir<'a, L: Layer> {
    node: &'a Arc<Node<L>>,
    content: Guard<'a, Dir<L>>,
    /// Its path in the merged lower layers. None if the rename moves no directory.
    path: Option<PathBuf>,
}

/// The result of a look at the two names of a rename, under their locks.
enum Look {
    /// The rename can go on.
    Rename,
    /// The rename has nothing to do.
    Nothing,
    /// Lost a race: another thread changed a name. Retry.
    Lost,
}

/// The part of the tree that is locked.
enum Tree<'a> {
    /// Directories cannot move.
    Shared {
        _guard: ReadGuard<'a, ()>,
    },
    Exclusive {
        _guard: WriteGuard<'a, ()>,
    },
}

impl<'a, L: Layer> Dirs<'a, L> {
    fn locked(&mut self, node: &Arc<Node<L>>) -> Result<&mut LockedDir<'a, L>> {
        self.locked.iter_mut().find(|dir| Arc::ptr_eq(dir.node, node)).ok_or(Error::new(EIO))
    }

    fn dir(&mut self, node: &Arc<Node<L>>) -> Result<&mut Dir<L>> {
        self.locked(node).map(|dir| &mut *dir.content)
    }
}

impl<L: Layer> Overlay<L> {
    /// Renames `name` of `dir` to `new_name` of `new_dir`, in one step. It works for every kind of
    /// object in every layer.
    ///
    /// # Errors
    ///
    /// Those of rename(2):
    ///
    /// - ENOENT: `name` does not exist, or `new_name` in an exchange.
    /// - EEXIST: `new_name` exists, and `mode` is [`RenameMode::NoReplace`].
    /// - EISDIR: a directory would be replaced by another object.
    /// - ENOTDIR: another object would be replaced by a directory.
    /// - ENOTEMPTY: a directory with entries would be replaced.
    /// - EINVAL: a directory would move into itself, the new name is reserved, or the upper layer
    ///   lacks `mode`.
    /// - EROFS: there is no upper layer.
    /// - ENAMETOOLONG: the new name is too long.
    /// - EXDEV: a directory merges with lower ones, and the format or the options permit no
    ///   redirect.
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
            let target = match self.lookup(new_dir, new_name) {
                Err(error) if error.errno == ENOENT => None,
                found => Some(found?),
            };
            self.prepare_mode(mode)?;
            let moves_dir = [Some(&node), target.as_ref()].into_iter().flatten().any(|node| node.kind() == Kind::Dir);
            let look = |dirs: &mut Dirs<'_, L>| -> Result<Look> {
                let is_there = self.shows(dirs, dir, name, Some(&node))?;
                Ok(match is_there && self.shows(dirs, new_dir, new_name, target.as_ref())? {
                    false => Look::Lost,
                    true if self.check_rename(dir, &node, new_dir, target.as_ref(), mode)? => Look::Rename,
                    true => Look::Nothing,
                })
            };
            // A rename that is refused copies nothing up.
            match look(&mut self.lock_dirs(dir, new_dir, moves_dir)?)? {
                Look::Rename => {}
                Look::Nothing => return Ok(()),
                Look::Lost => continue,
            }
            self.check_entries(dir, Some(&node))?;
            self.check_entries(new_dir, target.as_ref())?;
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
            let mut dirs = self.lock_dirs(dir, new_dir, moves_dir)?;
            match look(&mut dirs)? {
                Look::Rename => {}
                Look::Nothing => return Ok(()),
                Look::Lost => continue,
            }
            let old = &End { parent: dir, name, dir: &from };
            let new = &End { parent: new_dir, name: new_name, dir: &to };
            return match (&target, mode) {
                (Some(target), RenameMode::Exchange) => self.exchange(&mut dirs, old, &node, new, target),
                (target, mode) => {
                    self.replace(&mut dirs, old, &node, new, target.as_ref(), mode == RenameMode::Whiteout)
                }
            };
        }
    }

    /// Checks that the upper layer can rename in this mode, and prepares it for a device.
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - EINVAL: the upper layer cannot rename in this mode.
    fn prepare_mode(&self, mode: RenameMode) -> Result<()> {
        let (upper, _) = self.upper()?;
        match mode {
            RenameMode::Exchange if !upper.capabilities().exchange => Err(Error::new(EINVAL)),
            // In a format where such a device is a whiteout, callers cannot leave one.
            RenameMode::Whiteout if !self.format().features().zero_devices => Err(Error::new(EINVAL)),
            RenameMode::Whiteout => self.prepare_device(),
            _ => Ok(()),
        }
    }

    /// Locks the tree, and one or two directories. Locks the whole tree only if a directory moves,
    /// since then paths change.
    fn lock_dirs<'a>(
        &'a self,
        dir: &'a Arc<Node<L>>,
        new_dir: &'a Arc<Node<L>>,
        moves_dir: bool,
    ) -> Result<Dirs<'a, L>> {
        let is_across = !Arc::ptr_eq(dir, new_dir);
        let across = (is_across && !moves_dir).then(|| self.across.lock());
        let tree = match moves_dir {
            true => {
                let guard = self.tree.write();
                self.whereabouts.dir_moved();
                Tree::Exclusive { _guard: guard }
            }
            false => Tree::Shared { _guard: self.tree.read() },
        };
        let mut nodes = vec![dir];
        if is_across {
            nodes.push(new_dir);
            if self.is_within(dir, new_dir) {
                nodes.reverse();
            }
        }
        let paths: Vec<_> =
            nodes.iter().map(|node| moves_dir.then(|| self.lower_path(node)).transpose()).collect::<Result<_>>()?;
        let locked: Result<_> = nodes
            .into_iter()
            .zip(paths)
            .map(|(node, path)| Ok(LockedDir { node, content: node.dir()?, path }))
            .collect();
        Ok(Dirs { locked: locked?, _tree: tree, _across: across })
    }

    /// Whether `name` of `parent` still shows the node that a lookup found.
    ///
    /// # Errors
    ///
    /// - ENOENT: the directory was removed.
    fn shows(
        &self,
        dirs: &mut Dirs<'_, L>,
        parent: &Arc<Node<L>>,
        name: &OsStr,
        found: Option<&Arc<Node<L>>>,
    ) -> Result<bool> {
        let dir = dirs.dir(parent)?;
        if dir.removed {
            return Err(Error::new(ENOENT));
        }
        match self.find_in(parent, dir, name) {
            Ok(node) => Ok(found.is_some_and(|found| Arc::ptr_eq(found, &node))),
            Err(error) if error.errno == ENOENT => Ok(found.is_none()),
            Err(error) => Err(error),
        }
    }

    /// Checks whether the rename is permitted. Returns whether it has anything to do.
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
        // A directory above `dir` is not empty. The rename must not look into it, since it may hold
        // its lock.
        let is_above = target.kind() == Kind::Dir && self.is_within(dir, target);
        self.check_movable(node)?;
        if mode == RenameMode::Exchange {
            return if is_above { fail(EINVAL) } else { self.check_movable(target).map(|()| true) };
        }
        match (node.kind(), target.kind()) {
            (Kind::Dir, Kind::Dir) => {
                if is_above {
                    fail(ENOTEMPTY)
                } else if self.shows_nothing(target, &mut *target.dir()?)? {
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

    /// Returns EXDEV for a directory that merges with lower ones by its name, if no redirect is
    /// possible.
    pub(super) fn check_movable(&self, node: &Arc<Node<L>>) -> Result<()> {
        if node.kind() != Kind::Dir || self.can_redirect() {
            return Ok(());
        }
        let mut dir = node.dir()?;
        self.read_some(node, &mut dir)?;
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

    /// Returns the facts about a name that a plan needs.
    fn facts(&self, dirs: &mut Dirs<'_, L>, end: &End<'_, L>) -> Result<Name> {
        Ok(self
            .read_dir_at(end.parent, dirs.dir(end.parent)?, end.name)?
            .get(end.name)
            .map(Slot::facts)
            .unwrap_or_default())
    }

    /// Returns the object that the upper layer has under a name.
    fn in_upper(&self, dirs: &mut Dirs<'_, L>, end: &End<'_, L>) -> Result<Option<Upper>> {
        Ok(self.read_dir_at(end.parent, dirs.dir(end.parent)?, end.name)?.get(end.name).and_then(|slot| slot.upper))
    }

    fn set_whiteout(&self, dirs: &mut Dirs<'_, L>, end: &End<'_, L>, whiteout: bool) -> Result<()> {
        let names = self.read_dir_at(end.parent, dirs.dir(end.parent)?, end.name)?;
        names.entry(end.name).whiteout = whiteout;
        names.tidy(end.name);
        Ok(())
    }

    /// Renames to a free name, or replaces the object there. May leave a device in place of the old
    /// name, which hides lower objects as any object does.
    ///
    /// The format of the upper layer plans the steps.
    fn replace(
        &self,
        dirs: &mut Dirs<'_, L>,
        old: &End<'_, L>,
        node: &Arc<Node<L>>,
        new: &End<'_, L>,
        target: Option<&Arc<Node<L>>>,
        leaves_device: bool,
    ) -> Result<()> {
        let (here, there) = (self.facts(dirs, old)?, self.facts(dirs, new)?);
        self.link_up(dirs, old, node, here)?;
        self.prepare_move(dirs, old, node, there)?;
        let over_dir = target.is_some_and(|target| target.kind() == Kind::Dir);
        let is_dir = node.kind() == Kind::Dir;
        let plan = self.format().rename(Move { old: here, new: there, is_dir, over_dir, leaves_device });
        let pinned = target.map(|target| self.keep_open_on_unlink(target)).transpose()?.flatten();
        let (state, target_state) = self.move_as_planned(dirs, (old, node), (new, target), &plan)?;
        self.moved(node, state, new, old);
        if let (Some(target), Some(state)) = (target, target_state) {
            self.lost_name(target, state, new.parent, new.name, pinned);
            if let Ok(mut dir) = target.dir() {
                dir.removed = true;
            }
        }
        let upper = self.leave(dirs, old, plan.old_whiteout)?;
        if leaves_device {
            let slot = self.read_dir_at(old.parent, dirs.dir(old.parent)?, old.name)?.entry(old.name);
            slot.upper = Some(Upper { kind: Kind::CharDev, ino: None });
        }
        self.arrive(dirs, new, node, upper)?;
        self.set_whiteout(dirs, new, plan.new_whiteout)?;
        if let Some(idle) = plan.idle {
            let end = if idle == plan::End::Old { old } else { new };
            let gone = self.remove_whiteout(end.dir, end.name);
            if let Err(error) = &gone {
                let path = self.stack.path(end.dir).join(end.name);
                log::warn!("cannot remove the idle whiteout of {}: {error}", path.display());
            }
            self.set_whiteout(dirs, end, gone.is_err())?;
        }
        Ok(())
    }

    /// Makes the steps of a plan up to the visible one. Returns the states of the objects, locked
    /// since before that step. If it fails, the whiteout of the old name is removed again.
    fn move_as_planned<'n>(
        &self,
        dirs: &mut Dirs<'_, L>,
        (old, node): (&End<'_, L>, &'n Arc<Node<L>>),
        (new, target): (&End<'_, L>, Option<&'n Arc<Node<L>>>),
        plan: &plan::Rename,
    ) -> Result<(StateGuard<'n, L>, Option<StateGuard<'n, L>>)> {
        let (upper, _) = self.upper()?;
        let mut hidden = false;
        let renamed = (|| {
            for step in &plan.first {
                self.prepare(dirs, old, new, target, *step)?;
                hidden |= *step == Step::Whiteout(plan::End::Old);
            }
            let (from, to) = (self.stack.open(old.dir)?, self.stack.open(new.dir)?);
            let states = (node.state.lock(), target.map(|target| target.state.lock()));
            upper.rename(&from, old.name, &to, new.name, plan.mode).map(|()| states)
        })();
        if renamed.is_err()
            && hidden
            && let Err(error) = self.remove_whiteout(old.dir, old.name)
        {
            let path = self.stack.path(old.dir).join(old.name);
            log::warn!("cannot remove the whiteout beside {}: {error}", path.display());
            self.set_whiteout(dirs, old, true)?;
        }
        renamed
    }

    /// Makes one of the steps before the visible one.
    fn prepare(
        &self,
        dirs: &mut Dirs<'_, L>,
        old: &End<'_, L>,
        new: &End<'_, L>,
        target: Option<&Arc<Node<L>>>,
        step: Step,
    ) -> Result<()> {
        let end = |end| if end == plan::End::Old { old } else { new };
        match step {
            Step::Whiteout(of) => {
                let end = end(of);
                self.add_whiteout(end.dir, end.name)?;
                dirs.dir(end.parent)?.unsynced = true;
                // The whiteout of the old name is removed again if the rename fails.
                if of == plan::End::New { self.set_whiteout(dirs, end, true) } else { Ok(()) }
            }
            Step::SyncNames(of) => self.sync_names(dirs.dir(end(of).parent)?),
            Step::Clear { opaque_first } => match target {
                Some(target) => self.clear(target, &mut *target.dir()?, opaque_first),
                None => Ok(()),
            },
        }
    }

    /// Exchanges two objects.
    fn exchange(
        &self,
        dirs: &mut Dirs<'_, L>,
        old: &End<'_, L>,
        node: &Arc<Node<L>>,
        new: &End<'_, L>,
        target: &Arc<Node<L>>,
    ) -> Result<()> {
        let (upper, _) = self.upper()?;
        let (here, there) = (self.facts(dirs, old)?, self.facts(dirs, new)?);
        self.link_up(dirs, old, node, here)?;
        self.link_up(dirs, new, target, there)?;
        self.prepare_move(dirs, old, node, there)?;
        self.prepare_move(dirs, new, target, here)?;
        let (from, to) = (self.stack.open(old.dir)?, self.stack.open(new.dir)?);
        let (state, target_state) = (node.state.lock(), target.state.lock());
        upper.rename(&from, old.name, &to, new.name, RenameMode::Exchange)?;
        self.moved(node, state, new, old);
        self.moved(target, target_state, old, new);
        let (node_upper, target_upper) = (self.in_upper(dirs, old)?, self.in_upper(dirs, new)?);
        self.arrive(dirs, new, node, node_upper)?;
        self.arrive(dirs, old, target, target_upper)
    }

    /// Makes sure that the name of the rename is in the upper layer, not just another name of the
    /// file.
    fn link_up(&self, dirs: &mut Dirs<'_, L>, end: &End<'_, L>, node: &Arc<Node<L>>, here: Name) -> Result<()> {
        if here.upper {
            return Ok(());
        }
        self.link_name(dirs.dir(end.parent)?, (end.parent, end.name), end.dir, node)
    }

    /// Gives a copy of the upper layer the name `name` there, which shows it by the index alone.
    /// `dir` is the content of `parent`, and `to` its place in the upper layer.
    pub(super) fn link_name(
        &self,
        dir: &mut Dir<L>,
        (parent, name): (&Arc<Node<L>>, &OsStr),
        to: &Arc<LayerDir<L>>,
        node: &Arc<Node<L>>,
    ) -> Result<()> {
        let (index_entry, origin, ino) = {
            let state = node.state.lock();
            (state.stored.work_name().cloned(), state.origin(), state.attr.map(|attr| attr.ino))
        };
        let index_entry = index_entry.ok_or(Error::new(EIO))?;
        let place = ObjectName { parent: parent.clone(), name: name.into(), dir: to.clone() };
        self.link_from_index(&index_entry, &place, to)?;
        if let Some(place) = node.state.lock().place_mut(parent, name) {
            place.dir = to.clone();
        }
        if let Some(origin) = origin {
            self.hid_name(origin);
        }
        self.read_dir_at(parent, dir, name)?.entry(name).upper = Some(Upper { kind: node.kind(), ino });
        Ok(())
    }

    /// Makes a directory independent of its name. It keeps merging with the same lower directories,
    /// and with no others.
    fn prepare_move(&self, dirs: &mut Dirs<'_, L>, end: &End<'_, L>, node: &Arc<Node<L>>, onto: Name) -> Result<()> {
        if node.kind() != Kind::Dir {
            return Ok(());
        }
        let mut dir = node.dir()?;
        self.read_some(node, &mut dir)?;
        let own = self.known_upper(&dir)?;
        let redirect = dir.redirect.clone();
        let facts = Moved {
            opaque: dir.opaque,
            redirect: redirect.is_some(),
            merges: !dir.lowers.is_empty(),
            onto_lower: onto.lower,
        };
        match self.format().moved(facts) {
            Some(MovedMark::Redirect) => {
                let above = dirs.locked(end.parent)?.path.as_ref();
                let path = match redirect {
                    Some(way) => way.trusted()?,
                    None => above.map(|above| above.join(end.name)).ok_or(Error::new(EIO))?,
                };
                self.keeping_times(node, &own, |_| self.set_redirect(&mut dir, path))?;
            }
            Some(MovedMark::Opaque) => self.keeping_times(node, &own, |_| self.set_opaque(&mut dir))?,
            None => {}
        }
        self.sync_names(&mut dir)
    }

    /// Takes an object off its old name, which a whiteout may cover from now on. Returns what the
    /// upper layer had there.
    fn leave(&self, dirs: &mut Dirs<'_, L>, old: &End<'_, L>, whiteout: bool) -> Result<Option<Upper>> {
        let names = self.read_dir_at(old.parent, dirs.dir(old.parent)?, old.name)?;
        let slot = names.entry(old.name);
        slot.child = None;
        slot.whiteout = whiteout;
        let upper = slot.upper.take();
        names.tidy(old.name);
        self.touch(old.parent, &mut old.parent.state.lock());
        Ok(upper)
    }

    /// Puts an object under its new name.
    fn arrive(
        &self,
        dirs: &mut Dirs<'_, L>,
        new: &End<'_, L>,
        node: &Arc<Node<L>>,
        upper: Option<Upper>,
    ) -> Result<()> {
        let slot = self.read_dir_at(new.parent, dirs.dir(new.parent)?, new.name)?.entry(new.name);
        slot.upper = upper;
        slot.child = Some(node.clone());
        self.known.add_name();
        self.touch(new.parent, &mut new.parent.state.lock());
        if let Ok(dir) = node.dir()
            && let Some(own) = &dir.upper
        {
            self.stack.moved(own, new.dir, new.name);
        }
        Ok(())
    }

    /// Records that an object moved. The caller locked its state before the move, so no thread
    /// looks for it under the old name.
    fn moved(&self, node: &Arc<Node<L>>, mut state: StateGuard<'_, L>, new: &End<'_, L>, old: &End<'_, L>) {
        let place = ObjectName { parent: new.parent.clone(), name: new.name.into(), dir: new.dir.clone() };
        match state.place_mut(old.parent, old.name) {
            Some(former) => *former = place,
            None => state.places.push(place),
        }
        self.redate(node, &mut state);
    }
}
