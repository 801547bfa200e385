//! The applier: makes the changes from one merged tree to another in a layer.
//!
//! It works through a writable overlay, whose upper layer is the target. So the engine writes the
//! marks that the layers below the target need, in the target's format. Each object gets there
//! exactly as it is in the source: content, holes, owner, mode, extended attributes with ACLs,
//! times, flags and links.
//!
//! A new object is built in the *stage*, a directory at the top of the target that has no ACL. It
//! moves to its place complete. A directory is made at its place, and gets its attributes when the
//! walk has left it.
//!
//! The work can be done again from any point: the differ then lists what is left.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use super::tree::{find, names, xattrs};
use super::{Change, ChangeKind, Error, Progress, Watch};
use crate::errno::{self, EINTR, EMLINK, ENODATA, ENOENT, EOPNOTSUPP, EPERM, EXDEV};
use crate::layer::{Kind, Layer, Owner, RenameMode, XattrMode, acl};
use crate::overlay::{Node, Overlay};

/// The mode of objects under construction.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

/// Makes changes in a target.
pub struct Applier<'a, L: Layer> {
    target: &'a Overlay<L>,
    source: &'a Overlay<L>,
    watch: &'a dyn Watch,
    /// The name of the stage.
    stage_name: &'a OsStr,
    stage: Arc<Node<L>>,
    /// The layer of the source whose files the target may link to, by its index from the top.
    linked_layer: Option<usize>,
    /// The objects in the target with several names in the source, by their number there.
    linked: HashMap<u64, Arc<Node<L>>>,
    /// The directories from the root to the current one.
    dirs: Vec<Open<L>>,
    /// The number of objects built so far.
    built: u64,
}

/// A directory that the applier changes something in. It gets its attributes at the end.
struct Open<L: Layer> {
    /// Its name in the directory above; empty for the root.
    name: OsString,
    target: Arc<Node<L>>,
    source: Arc<Node<L>>,
}

impl<'a, L: Layer> Applier<'a, L> {
    /// Prepares to make changes of `source` in `target`, an overlay with an upper layer. The stage
    /// gets the name `stage` at the top of the target, and replaces what has that name.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the stage cannot be made.
    pub fn new(
        target: &'a Overlay<L>,
        source: &'a Overlay<L>,
        stage: &'a OsStr,
        watch: &'a dyn Watch,
    ) -> Result<Self, Error> {
        let made = remove(target, target.root(), stage).and_then(|()| make_stage(target, stage));
        let top = Open { name: OsString::new(), target: target.root().clone(), source: source.root().clone() };
        Ok(Applier {
            target,
            source,
            watch,
            stage_name: stage,
            stage: made.map_err(|error| Error::in_tree("create", Path::new(stage), error))?,
            linked_layer: None,
            linked: HashMap::new(),
            dirs: vec![top],
            built: 0,
        })
    }

    /// Links files of this layer of the source into the target, instead of a copy, where the
    /// filesystem permits that. Such a file must not change while the layer is in use.
    pub fn link_from(self, layer: usize) -> Self {
        Applier { linked_layer: Some(layer), ..self }
    }

    /// Makes one change. The changes must come in the order of the differ, with each name of an
    /// object that has several ([`super::Renames::Resolved`]).
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: an object cannot be read, or not made in the target.
    /// - [`Error::Stopped`]: the watch wants to stop.
    pub fn apply(&mut self, change: &Change<L>) -> Result<(), Error> {
        if change.path.as_os_str() == self.stage_name {
            return Ok(());
        }
        match self.make(change) {
            Err(error) if error.errno == EINTR && self.watch.wants_stop() => Err(Error::Stopped),
            made => made.map_err(|error| Error::in_tree("apply the change of", &change.path, error)),
        }
    }

    /// Gives the directories that are left their attributes, and removes the stage.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: an attribute cannot be set.
    pub fn finish(mut self) -> Result<(), Error> {
        let ended = self.leave_to(1).and_then(|()| remove(self.target, self.target.root(), self.stage_name));
        let ended = ended.and_then(|()| self.leave_to(0));
        ended.map_err(|error| Error::in_tree("set the attributes of", Path::new(""), error))
    }

    fn make(&mut self, change: &Change<L>) -> errno::Result<()> {
        let Some((parent, name)) = change.path.parent().zip(change.path.file_name()) else {
            // The root gets its attributes at the end.
            return Ok(());
        };
        self.enter(parent)?;
        let dir = self.dirs.last().map_or_else(|| self.target.root().clone(), |open| open.target.clone());
        match (&change.kind, &change.new) {
            (ChangeKind::Removed, _) | (_, None) => remove(self.target, &dir, name),
            (_, Some(new)) if new.kind() == Kind::Dir => self.make_dir(&dir, name, new),
            (_, Some(new)) => {
                let stays = change.kind == ChangeKind::Modified && !change.aspects.kind && !change.aspects.content;
                self.make_object(&dir, name, new, stays)
            }
        }
    }

    /// Makes sure that a directory is there, and goes into it.
    fn make_dir(&mut self, parent: &Arc<Node<L>>, name: &OsStr, new: &Arc<Node<L>>) -> errno::Result<()> {
        let target = match find(self.target, parent, name)? {
            Some(there) if there.kind() == Kind::Dir => there,
            found => {
                if found.is_some() {
                    remove(self.target, parent, name)?;
                }
                self.target.create_dir(parent, name, PRIVATE_DIR, self.owner_of(new)?)?
            }
        };
        self.dirs.push(Open { name: name.to_owned(), target, source: new.clone() });
        Ok(())
    }

    /// Makes any other object. `stays` says that the object of the name has the right content.
    fn make_object(&mut self, dir: &Arc<Node<L>>, name: &OsStr, new: &Arc<Node<L>>, stays: bool) -> errno::Result<()> {
        let stat = self.source.stat(new)?;
        let is_linked = stat.nlink > 1;
        let there = find(self.target, dir, name)?;
        if let Some(first) = self.linked.get(&stat.ino).filter(|_| is_linked) {
            return match there {
                Some(there) if Arc::ptr_eq(&there, first) => Ok(()),
                _ => self.link(&first.clone(), dir, name),
            };
        }
        let kept = match there {
            // Other names of the object may be none of this one.
            Some(there) if stays && self.target.stat(&there)?.nlink == 1 => Some(there),
            _ => None,
        };
        let node = match kept {
            Some(there) => {
                self.set_attributes(new, &there)?;
                there
            }
            None => self.build(dir, name, new)?,
        };
        if is_linked {
            self.linked.insert(stat.ino, node);
        }
        self.watch.advance(Progress { objects: 1, bytes: 0 });
        Ok(())
    }

    /// Gives an object of the target a further name, in place of what has it.
    fn link(&mut self, node: &Arc<Node<L>>, dir: &Arc<Node<L>>, name: &OsStr) -> errno::Result<()> {
        let temp = self.temp();
        self.target.link(node, &self.stage, &temp)?;
        self.place(&temp, dir, name)
    }

    /// Builds a copy of an object in the stage, and moves it to its place.
    fn build(&mut self, dir: &Arc<Node<L>>, name: &OsStr, new: &Arc<Node<L>>) -> errno::Result<Arc<Node<L>>> {
        let temp = self.temp();
        let node = match self.try_link(new, &temp)? {
            Some(node) => node,
            None => {
                let node = self.copy(new, &temp)?;
                self.set_attributes(new, &node)?;
                node
            }
        };
        self.place(&temp, dir, name)?;
        Ok(node)
    }

    /// Links a file of the source itself into the stage, if that is permitted and possible.
    fn try_link(&self, new: &Arc<Node<L>>, temp: &OsStr) -> errno::Result<Option<Arc<Node<L>>>> {
        let is_linkable = self.linked_layer.is_some() && self.source.layer_of(new) == self.linked_layer;
        if new.kind() != Kind::File || !is_linkable {
            return Ok(None);
        }
        match self.target.link_from(&self.stage, temp, self.source, new) {
            Err(error) if matches!(error.errno, EXDEV | EMLINK | EPERM | EOPNOTSUPP | ENOENT) => Ok(None),
            linked => linked.and_then(|()| self.target.lookup(&self.stage, temp)).map(Some),
        }
    }

    /// Makes an object with the same content in the stage.
    fn copy(&self, new: &Arc<Node<L>>, temp: &OsStr) -> errno::Result<Arc<Node<L>>> {
        let (stage, owner) = (&self.stage, self.owner_of(new)?);
        Ok(match new.kind() {
            Kind::File => {
                let handle = self.target.create_file(stage, temp, PRIVATE_FILE, owner)?;
                self.target.fill_from(&handle, self.source, new, &mut |bytes| {
                    self.watch.advance(Progress { objects: 0, bytes });
                    if self.watch.wants_stop() { Err(errno::Error::new(EINTR)) } else { Ok(()) }
                })?;
                handle.node().clone()
            }
            Kind::Symlink => self.target.create_symlink(stage, temp, &self.source.read_link(new)?, owner)?,
            kind => {
                let rdev = self.source.stat(new)?.rdev;
                self.target.create_node(stage, temp, kind, PRIVATE_FILE, rdev, owner)?
            }
        })
    }

    /// Moves an object from the stage to its place, and removes what is there.
    fn place(&self, temp: &OsStr, dir: &Arc<Node<L>>, name: &OsStr) -> errno::Result<()> {
        if let Some(there) = find(self.target, dir, name)? {
            if there.kind() == Kind::Dir {
                remove(self.target, dir, name)?;
            } else {
                free(self.target, &there)?;
            }
        }
        self.target.rename(&self.stage, temp, dir, name, RenameMode::Replace)
    }

    /// Goes to the directory `path`, and leaves those that are not on the way.
    fn enter(&mut self, path: &Path) -> errno::Result<()> {
        let names: Vec<_> = path.iter().collect();
        let common = self.dirs.iter().skip(1).zip(&names).take_while(|(open, name)| open.name == **name).count();
        self.leave_to(1 + common)?;
        for name in &names[common..] {
            let Some(above) = self.dirs.last() else { break };
            let target = self.target.lookup(&above.target, name)?;
            let source = self.source.lookup(&above.source, name)?;
            self.dirs.push(Open { name: (*name).to_owned(), target, source });
        }
        Ok(())
    }

    /// Leaves directories until so many are left.
    fn leave_to(&mut self, count: usize) -> errno::Result<()> {
        while self.dirs.len() > count
            && let Some(open) = self.dirs.pop()
        {
            self.set_attributes(&open.source, &open.target)?;
        }
        Ok(())
    }

    /// Returns a free name in the stage.
    fn temp(&mut self) -> OsString {
        self.built += 1;
        format!("{:x}", self.built).into()
    }

    fn owner_of(&self, node: &Arc<Node<L>>) -> errno::Result<Owner> {
        let stat = self.source.stat(node)?;
        Ok(Owner { uid: stat.uid, gid: stat.gid })
    }

    /// Gives an object of the target all attributes of an object of the source.
    fn set_attributes(&self, from: &Arc<Node<L>>, to: &Arc<Node<L>>) -> errno::Result<()> {
        set_attributes((self.source, from), (self.target, to))
    }
}

/// Gives an object of an upper layer all attributes of an object of another overlay.
///
/// The order matters. A change of the owner drops capabilities. An ACL contains the mode. Flags
/// forbid all other changes.
///
/// # Errors
///
/// Those of [`Overlay::set_xattr`] and the like.
pub fn set_attributes<L: Layer>(
    (source, from): (&Overlay<L>, &Arc<Node<L>>),
    (target, to): (&Overlay<L>, &Arc<Node<L>>),
) -> errno::Result<()> {
    let (wanted, there) = (source.stat(from)?, target.stat(to)?);
    let is_marked = matches!(from.kind(), Kind::File | Kind::Dir);
    let fixed = |overlay: &Overlay<L>, node, stat: crate::layer::Stat| match is_marked {
        true => overlay.fixed(node).map(|fixed| fixed.or(stat.fixed)),
        false => Ok(stat.fixed),
    };
    let (fixed_now, fixed_then) = (fixed(target, to, there)?, fixed(source, from, wanted)?);
    if fixed_now.is_any() {
        target.set_flags(to, 0)?;
    }
    if (there.uid, there.gid) != (wanted.uid, wanted.gid) {
        target.set_owner(to, Owner { uid: wanted.uid, gid: wanted.gid })?;
    }
    set_xattrs((source, from), (target, to))?;
    if from.kind() != Kind::Symlink && target.stat(to)?.mode != wanted.mode {
        target.set_mode(to, wanted.mode)?;
    }
    let there = target.stat(to)?;
    let times = target.times();
    if (there.atime, there.mtime) != (times.kept(wanted.atime), times.kept(wanted.mtime)) {
        target.set_times(to, wanted.atime, wanted.mtime)?;
    }
    if fixed_then.is_any() { target.set_flags(to, source.flags(from)?) } else { Ok(()) }
}

/// Gives an object of an upper layer the extended attributes of an object of another overlay, and
/// no others.
fn set_xattrs<L: Layer>(
    (source, from): (&Overlay<L>, &Arc<Node<L>>),
    (target, to): (&Overlay<L>, &Arc<Node<L>>),
) -> errno::Result<()> {
    let (wanted, there) = (xattrs(source, from)?, xattrs(target, to)?);
    for name in there.iter().filter(|name| !wanted.contains(name)) {
        target.remove_xattr(to, name)?;
    }
    for name in &wanted {
        let value = source.xattr(from, name)?;
        match target.xattr(to, name) {
            Ok(same) if same == value => continue,
            Err(error) if !matches!(error.errno, ENODATA | EOPNOTSUPP) => return Err(error),
            _ => target.set_xattr(to, name, &value, XattrMode::Set)?,
        }
    }
    Ok(())
}

/// Makes an empty directory for objects under construction at the top of a target. Nothing inherits
/// an ACL there.
///
/// # Errors
///
/// Those of [`Overlay::create_dir`].
pub fn make_stage<L: Layer>(target: &Overlay<L>, name: &OsStr) -> errno::Result<Arc<Node<L>>> {
    let root = target.stat(target.root())?;
    let stage = target.create_dir(target.root(), name, PRIVATE_DIR, Owner { uid: root.uid, gid: root.gid })?;
    for name in xattrs(target, &stage)?.iter().filter(|name| acl::is_acl(name)) {
        target.remove_xattr(&stage, name)?;
    }
    Ok(stage)
}

/// Removes the object `name` of a directory with its content, if there is one. It works without
/// recursion, since a tree may be deep.
///
/// # Errors
///
/// Those of [`Overlay::unlink`] and [`Overlay::remove_dir`].
pub fn remove<L: Layer>(overlay: &Overlay<L>, dir: &Arc<Node<L>>, name: &OsStr) -> errno::Result<()> {
    let Some(node) = find(overlay, dir, name)? else { return Ok(()) };
    let mut left = vec![(dir.clone(), name.to_owned(), node)];
    while let Some((above, name, node)) = left.pop() {
        free(overlay, &node)?;
        if node.kind() != Kind::Dir {
            // Before the engine unlinks an object that is still held, it opens it.
            drop(node);
            overlay.unlink(&above, &name)?;
            continue;
        }
        let mut dirs = Vec::new();
        for inner in names(overlay, &node)? {
            let child = overlay.lookup(&node, &inner)?;
            free(overlay, &child)?;
            if child.kind() == Kind::Dir {
                dirs.push((node.clone(), inner, child));
            } else {
                drop(child);
                overlay.unlink(&node, &inner)?;
            }
        }
        if dirs.is_empty() {
            overlay.remove_dir(&above, &name)?;
        } else {
            left.push((above, name, node));
            left.append(&mut dirs);
        }
    }
    Ok(())
}

/// Takes away the flags that forbid to remove an object.
fn free<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>) -> errno::Result<()> {
    let is_marked = matches!(node.kind(), Kind::File | Kind::Dir);
    if is_marked && (overlay.stat(node)?.fixed.is_any() || overlay.fixed(node)?.is_any()) {
        overlay.set_flags(node, 0)?;
    }
    Ok(())
}
