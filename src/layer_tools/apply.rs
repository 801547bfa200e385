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

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use super::links::Links;
use super::tree::{at, fixed, xattrs};
use super::{Change, ChangeKind, Error, Progress, Watch, escaped};
use crate::errno::{self, EEXIST, EINTR, EMLINK, ENODATA, ENOENT, EOPNOTSUPP, EPERM, EXDEV};
use crate::format;
use crate::layer::{Fixed, Kind, Layer, Owner, RenameMode, XattrMode, acl};
use crate::overlay::{Handle, Node, Overlay};

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
    /// The number of topmost layers of the source whose files the target may link to.
    linkable: usize,
    /// The objects in the target with several names in the source, by their number there.
    links: Links,
    /// The objects that get flags at the end: an immutable one takes no other place and no further
    /// name.
    flagged: Vec<(PathBuf, Fixed)>,
    /// The path of the current change.
    path: PathBuf,
    /// The directories from the root to the current one.
    dirs: Vec<Open<L>>,
    /// The number of objects built so far.
    built: u64,
}

/// A directory that the applier changes something in. It gets its attributes at the end.
struct Open<L: Layer> {
    /// Its name in the directory above; empty for the root.
    name: OsString,
    /// Open, so that it is not evicted and read again.
    target: Handle<L>,
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
        let top = Open { name: OsString::new(), target: target.open(target.root()), source: source.root().clone() };
        Ok(Applier {
            target,
            source,
            watch,
            stage_name: stage,
            stage: made.map_err(|error| Error::in_tree("create", Path::new(stage), error))?,
            linkable: 0,
            links: Links::default(),
            flagged: Vec::new(),
            path: PathBuf::new(),
            dirs: vec![top],
            built: 0,
        })
    }

    /// Links files of so many topmost layers of the source into the target, instead of a copy,
    /// where the filesystem permits that. These layers must lose their names of such a file before
    /// they are used again.
    pub fn link_from(self, layers: usize) -> Self {
        Applier { linkable: layers, ..self }
    }

    /// Makes one change. The changes must come in the order of the differ, with each name of an
    /// object that has several ([`super::Renames::Resolved`]).
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: an object cannot be read, or not made in the target.
    /// - [`Error::Refused`]: a lower layer cannot have the name.
    /// - [`Error::Stopped`]: the watch wants to stop.
    pub fn apply(&mut self, change: &Change<L>) -> Result<(), Error> {
        if change.path.as_os_str() == self.stage_name {
            return Ok(());
        }
        if change.path.file_name().is_some_and(format::is_reserved) {
            return Err(unsayable(&change.path));
        }
        self.path.clone_from(&change.path);
        match self.make(change) {
            Err(error) if error.errno == EINTR && self.watch.wants_stop() => Err(Error::Stopped),
            made => made.map_err(|error| Error::in_tree("apply the change of", &change.path, error)),
        }
    }

    /// Gives the directories that are left their attributes, removes the stage, and sets flags.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: an attribute cannot be set.
    pub fn finish(mut self) -> Result<(), Error> {
        let ended = self.leave_to(1).and_then(|()| remove(self.target, self.target.root(), self.stage_name));
        let ended = ended.and_then(|()| self.leave_to(0));
        ended.map_err(|error| Error::in_tree("set the attributes of", Path::new(""), error))?;
        self.flagged.iter().try_for_each(|(path, fixed)| {
            let set = at(self.target, path).and_then(|node| self.target.set_fixed(&node, *fixed));
            set.map_err(|error| Error::in_tree("set the flags of", path, error))
        })
    }

    fn make(&mut self, change: &Change<L>) -> errno::Result<()> {
        let Some((parent, name)) = change.path.parent().zip(change.path.file_name()) else {
            // The root gets its attributes at the end.
            return Ok(());
        };
        self.enter(parent)?;
        let dir = self.dirs.last().map_or_else(|| self.target.root().clone(), |open| open.target.node().clone());
        match (&change.kind, &change.new) {
            (ChangeKind::Removed, _) | (_, None) => remove(self.target, &dir, name),
            (_, Some(new)) if new.kind() == Kind::Dir => self.make_dir(&dir, name, new),
            (_, Some(new)) => {
                let stays = change.kind == ChangeKind::Modified && !change.aspects.kind && !change.aspects.content;
                self.make_object(&dir, &change.path, new, stays)
            }
        }
    }

    /// Makes sure that a directory is there, and goes into it.
    fn make_dir(&mut self, parent: &Arc<Node<L>>, name: &OsStr, new: &Arc<Node<L>>) -> errno::Result<()> {
        let target = match self.target.seek(parent, name)? {
            Some(there) if there.kind() == Kind::Dir => {
                free(self.target, &there)?;
                there
            }
            found => {
                if found.is_some() {
                    remove(self.target, parent, name)?;
                }
                self.target.create_dir(parent, name, PRIVATE_DIR, self.owner_of(new)?)?
            }
        };
        self.dirs.push(Open { name: name.to_owned(), target: self.target.open(&target), source: new.clone() });
        Ok(())
    }

    /// Makes any other object, at `path` in `dir`. `stays` says that the object of the name has the
    /// right content.
    fn make_object(&mut self, dir: &Arc<Node<L>>, path: &Path, new: &Arc<Node<L>>, stays: bool) -> errno::Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let stat = self.source.stat(new)?;
        let there = self.target.seek(dir, name)?;
        if let Some(there) = &there
            && self.target.is_same_object(there, (self.source, new))?
        {
            // A call that was interrupted has linked it.
            self.watch.advance(Progress { objects: 0, bytes: stat.size });
            return Ok(());
        }
        let first = if stat.nlink > 1 { self.links.meet(stat.ino, stat.nlink, path) } else { None };
        if let Some(first) = first {
            let first = at(self.target, &first)?;
            if there.is_none_or(|there| !Arc::ptr_eq(&there, &first)) {
                self.link(&first, dir, name)?;
            }
            self.target.release(first);
            return Ok(());
        }
        let is_free = there.is_none();
        let kept = match there {
            // Other names of the object may be none of this one.
            Some(there) if stays && self.target.stat(&there)?.nlink == 1 => Some(there),
            _ => None,
        };
        let is_there = match kept {
            Some(there) => {
                self.set_but_flags(new, &there)?;
                self.target.release(there);
                Ok(true)
            }
            None => self.try_link(new, (dir, name), is_free),
        }?;
        if !is_there {
            self.build(dir, name, new)?;
        } else if new.kind() == Kind::File {
            self.watch.advance(Progress { objects: 0, bytes: stat.size });
        }
        Ok(())
    }

    /// Gives an object of the target a further name, in place of what has it.
    fn link(&mut self, node: &Arc<Node<L>>, dir: &Arc<Node<L>>, name: &OsStr) -> errno::Result<()> {
        let temp = self.temp();
        self.target.link(node, &self.stage, &temp)?;
        self.place(&temp, dir, name)
    }

    /// Builds a copy of an object in the stage, and moves it to its place.
    fn build(&mut self, dir: &Arc<Node<L>>, name: &OsStr, new: &Arc<Node<L>>) -> errno::Result<()> {
        let temp = self.temp();
        let node = self.copy(new, &temp)?;
        self.set_but_flags(new, &node)?;
        self.place(&temp, dir, name)?;
        self.target.release(node);
        Ok(())
    }

    /// Gives a file of the source itself the name in the target, if that is permitted and possible.
    /// `is_free` says that no object has the name. Returns whether it is done.
    fn try_link(&mut self, new: &Arc<Node<L>>, at: (&Arc<Node<L>>, &OsStr), is_free: bool) -> errno::Result<bool> {
        let is_linkable = self.source.layer_of(new).is_some_and(|layer| layer < self.linkable);
        if new.kind() != Kind::File || !is_linkable {
            return Ok(false);
        }
        let (dir, name) = at;
        let direct =
            if is_free { self.target.link_from(at, (self.source, new)) } else { Err(errno::Error::new(EEXIST)) };
        let linked = match direct {
            // A whiteout has the name, or an object.
            Err(error) if error.errno == EEXIST => {
                let temp = self.temp();
                let linked = self.target.link_from((&self.stage, &temp), (self.source, new));
                linked.and_then(|()| self.place(&temp, dir, name))
            }
            linked => linked,
        };
        match linked {
            Err(error) if matches!(error.errno, EXDEV | EMLINK | EPERM | EOPNOTSUPP | ENOENT) => Ok(false),
            linked => linked.map(|()| true),
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
        if let Some(there) = self.target.seek(dir, name)? {
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
            let target = self.target.lookup(above.target.node(), name)?;
            free(self.target, &target)?;
            let source = self.source.lookup(&above.source, name)?;
            self.dirs.push(Open { name: (*name).to_owned(), target: self.target.open(&target), source });
        }
        Ok(())
    }

    /// Leaves directories until so many are left.
    fn leave_to(&mut self, count: usize) -> errno::Result<()> {
        while self.dirs.len() > count
            && let Some(open) = self.dirs.pop()
        {
            set_attributes((self.source, &open.source), (self.target, open.target.node()))?;
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

    /// Gives an object of the target all attributes of an object of the source, but flags, which
    /// it gets at the end.
    fn set_but_flags(&mut self, from: &Arc<Node<L>>, to: &Arc<Node<L>>) -> errno::Result<()> {
        let fixed = set_but_flags((self.source, from), (self.target, to))?;
        self.flagged.extend(fixed.map(|fixed| (self.path.clone(), fixed)));
        Ok(())
    }
}

/// Makes the error for an object of an upper layer whose name a lower layer cannot have.
pub fn unsayable(path: &Path) -> Error {
    Error::Refused(format!(
        "{} cannot get into a lower layer, where .wh. begins the name of a mark; rename it in a mount",
        escaped(path)
    ))
}

/// Gives an object of an upper layer all attributes of an object of another overlay.
///
/// # Errors
///
/// Those of [`Overlay::set_xattr`] and the like.
pub fn set_attributes<L: Layer>(
    from: (&Overlay<L>, &Arc<Node<L>>),
    (target, to): (&Overlay<L>, &Arc<Node<L>>),
) -> errno::Result<()> {
    let fixed = set_but_flags(from, (target, to))?;
    fixed.map_or(Ok(()), |fixed| target.set_fixed(to, fixed))
}

/// Does the same without flags. Returns those that the object needs, if it is to be immutable or
/// append-only.
///
/// The order matters. A change of the owner drops capabilities. An ACL contains the mode. Flags
/// forbid all other changes.
fn set_but_flags<L: Layer>(
    (source, from): (&Overlay<L>, &Arc<Node<L>>),
    (target, to): (&Overlay<L>, &Arc<Node<L>>),
) -> errno::Result<Option<Fixed>> {
    let (wanted, there) = (source.stat(from)?, target.stat(to)?);
    let (fixed_now, fixed_then) = (fixed(target, to)?, fixed(source, from)?);
    if fixed_now.is_any() {
        target.set_fixed(to, Fixed::default())?;
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
    Ok(Some(fixed_then).filter(|fixed| fixed.is_any()))
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
    let mut left = vec![Left { dir: dir.clone(), names: vec![name.into()].into_iter(), next: None, now: None }];
    while let Some(Left { dir, names, next, now }) = left.last_mut() {
        if let Some(emptied) = now.take() {
            overlay.remove_dir(dir, &emptied)?;
        }
        let Some(name) = names.next() else {
            if let Some(from) = next.take() {
                let (shown, behind) = overlay.shown_from(dir, &from)?;
                *names = shown.into_iter().map(|(name, _)| name).collect::<Vec<_>>().into_iter();
                *next = behind;
            } else {
                left.pop();
            }
            continue;
        };
        let Some(node) = overlay.seek(dir, &name)? else { continue };
        free(overlay, &node)?;
        if node.kind() == Kind::Dir {
            *now = Some(name);
            left.push(Left { dir: node, names: Vec::new().into_iter(), next: Some(OsString::new()), now: None });
        } else {
            // Before the engine unlinks an object that is still held, it opens it.
            drop(node);
            overlay.unlink(dir, &name)?;
        }
    }
    Ok(())
}

/// A directory of which names are removed.
struct Left<L: Layer> {
    dir: Arc<Node<L>>,
    names: vec::IntoIter<Arc<OsStr>>,
    /// The name at which the next names begin, if there may be more.
    next: Option<OsString>,
    /// The directory in it that is emptied at the moment.
    now: Option<Arc<OsStr>>,
}

/// Takes away the flags that forbid to remove an object.
fn free<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>) -> errno::Result<()> {
    if fixed(overlay, node)?.is_any() { overlay.set_fixed(node, Fixed::default()) } else { Ok(()) }
}
