//! New objects: files, directories, symlinks, FIFOs, sockets and devices.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EACCES, EEXIST, EINVAL, EIO, ENOENT, Error};

use super::Overlay;
use super::file::Handle;
use super::names::Upper;
use super::node::{Dir, Node, ObjectName, OpenFile, State};
use super::stack::LayerDir;
use super::work::{discard, discard_built};
use crate::format::kernel;
use crate::format::plan::{self, Creation, Onto, Placement};
use crate::layer::{Access, Fixed, Kind, Layer, Object, Owner, Result, Stat};

/// The object to create.
#[derive(Clone, Copy)]
enum New<'a> {
    File,
    Dir,
    Symlink(&'a OsStr),
    Special(Kind, u64),
}

/// An object to build in the work directory, with everything that its own directory would give it.
struct Blueprint<'a> {
    new: New<'a>,
    mode: u32,
    owner: Owner,
    /// Whether a directory gets the opaque mark.
    opaque: bool,
    /// The default ACL of the object's directory.
    acl: Option<Vec<u8>>,
}

/// A new object, and the open file if it is a regular one.
type Made<L> = (Arc<Node<L>>, Option<OpenFile<L>>);

/// The open file of a new object that a layer made, and its attributes if the layer asked for them.
type MadeByLayer<L> = (Option<<L as Layer>::File>, Option<Stat>);

impl New<'_> {
    fn kind(self) -> Kind {
        match self {
            New::File => Kind::File,
            New::Dir => Kind::Dir,
            New::Symlink(_) => Kind::Symlink,
            New::Special(kind, _) => kind,
        }
    }
}

impl<L: Layer> Overlay<L> {
    /// Creates a regular file and opens it. Uses `mode` as it is (`0o7777` at most).
    ///
    /// # Errors
    ///
    /// The three functions below return the same ones.
    ///
    /// - EEXIST: the name exists.
    /// - EINVAL: the name is reserved.
    /// - ENAMETOOLONG: the name is too long.
    /// - ENOENT: `dir` was removed.
    /// - ENOTDIR: `dir` is no directory.
    /// - EPERM: `dir` is immutable or append-only.
    /// - EROFS: there is no upper layer.
    pub fn create_file(&self, dir: &Arc<Node<L>>, name: &OsStr, mode: u32, owner: Owner) -> Result<Handle<L>> {
        let (node, file) = self.create(dir, name, New::File, mode, owner)?;
        let handle = self.open(&node);
        self.use_file(&handle);
        let mut state = node.state.lock();
        if let (None, Some(open)) = (&state.file, file) {
            state.file = Some(Arc::new(open));
        }
        drop(state);
        self.keep_changed(&node);
        Ok(handle)
    }

    /// Creates a regular file without a name, and opens it. It gets the default ACL of `dir`.
    ///
    /// [`Overlay::link`] can give the file a name. Without one it ends with its last handle, once
    /// the caller calls [`Overlay::release`].
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - ENOENT: `dir` was removed.
    /// - ENOTDIR: `dir` is no directory.
    /// - EPERM: `dir` is immutable.
    pub fn create_temp(&self, dir: &Arc<Node<L>>, mode: u32, owner: Owner) -> Result<Handle<L>> {
        if dir.dir()?.removed {
            return Err(Error::new(ENOENT));
        }
        let (upper, work) = self.upper()?;
        self.check_entries(dir, None)?;
        let (open, temp) = (self.stack.open(work.dir())?, work.name());
        let acl = self.default_acl(dir)?;
        let file = self.build(&open, &temp, &Blueprint { new: New::File, mode, owner, opaque: false, acl })?;
        let attr = match self.stack.stat(work.dir(), &temp) {
            Ok(attr) => attr,
            Err(error) => {
                discard(upper, &open, &temp);
                return Err(error);
            }
        };
        let state = State::nameless(&temp, Stat { nlink: 0, ..attr });
        let node = Node::new(self.new_id(), Kind::File, state, None);
        let handle = self.open(&node);
        self.use_file(&handle);
        node.state.lock().file = file.map(|file| {
            Arc::new(OpenFile { file, access: Access::ReadWrite, dir: work.dir().clone(), from_lower: None })
        });
        Ok(handle)
    }

    /// Creates a directory.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::create_file`].
    pub fn create_dir(&self, dir: &Arc<Node<L>>, name: &OsStr, mode: u32, owner: Owner) -> Result<Arc<Node<L>>> {
        self.create(dir, name, New::Dir, mode, owner).map(|(node, _)| node)
    }

    /// Creates a symlink.
    ///
    /// # Errors
    ///
    /// Those of [`Overlay::create_file`].
    pub fn create_symlink(
        &self,
        dir: &Arc<Node<L>>,
        name: &OsStr,
        target: &OsStr,
        owner: Owner,
    ) -> Result<Arc<Node<L>>> {
        self.create(dir, name, New::Symlink(target), 0o777, owner).map(|(node, _)| node)
    }

    /// Creates a FIFO, a socket or a device node, with `rdev` as in [`Layer::create_node`].
    ///
    /// # Errors
    ///
    /// - EINVAL: `kind` is another one.
    /// - EPERM: the upper layer refuses the object, or the device would be a whiteout there.
    /// - EOPNOTSUPP: the upper layer cannot hold the object.
    ///
    /// Others as [`Overlay::create_file`].
    pub fn create_node(
        &self,
        dir: &Arc<Node<L>>,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        rdev: u64,
        owner: Owner,
    ) -> Result<Arc<Node<L>>> {
        if !matches!(kind, Kind::Fifo | Kind::Socket | Kind::CharDev | Kind::BlockDev) {
            return Err(Error::new(EINVAL));
        }
        if kernel::is_whiteout_device(kind, rdev) {
            self.check_new_name(dir, name)?;
            self.prepare_device()?;
        }
        self.create(dir, name, New::Special(kind, rdev), mode, owner).map(|(node, _)| node)
    }

    fn create(&self, parent: &Arc<Node<L>>, name: &OsStr, new: New<'_>, mode: u32, owner: Owner) -> Result<Made<L>> {
        self.check_new_name(parent, name)?;
        {
            // A name that exists costs no copy-up of its directory.
            let _tree = self.tree.read();
            self.check_free(parent, &mut *parent.dir()?, name)?;
        }
        self.check_entries(parent, None)?;
        let to = self.upper_dir(parent)?;
        let upper = self.upper()?.0;
        let in_steps = matches!(new, New::Symlink(_) | New::Special(Kind::Socket, _));
        let whole = !in_steps || upper.capabilities().whole_objects;
        let is_dir = new.kind() == Kind::Dir;
        let surely = whole && upper.creates_as(owner);
        let plan = |at_once, whiteout| self.format().create(plan::New { is_dir, at_once, whiteout });
        let may_be_built = [false, true].iter().any(|whiteout| plan(surely, *whiteout).placement != Placement::AtOnce);
        let acl = if may_be_built { self.default_acl(parent)? } else { None };
        let _tree = self.tree.read();
        let mut dir = parent.dir()?;
        let whiteout = self.check_free(parent, &mut dir, name)?;
        let open = self.stack.open(&to)?;
        let show = |creation: Creation| match creation.placement {
            Placement::AtOnce => self.make(&open, name, new, mode, owner),
            Placement::Built(onto) => {
                let plan = Blueprint { new, mode, owner, opaque: creation.opaque, acl: acl.clone() };
                // Its way to its place changes its attributes.
                self.make_elsewhere(&open, name, &plan, onto).map(|file| (file, None))
            }
        };
        let mut creation = plan(whole && upper.tries_to_create_as(owner), whiteout);
        let mut shown = show(creation);
        if !surely && creation.placement == Placement::AtOnce && shown.as_ref().is_err_and(|e| e.errno == EACCES) {
            // The daemon reaches the directory, but the owner does not.
            creation = plan(false, whiteout);
            shown = show(creation);
        }
        let ((file, attr), Creation { opaque, uncover, .. }) = (shown?, creation);

        self.touch(parent, &mut parent.state.lock());
        let own = is_dir.then(|| self.stack.child(&to, name));
        let mut content = own.map(|own| Dir { opaque, unsynced: opaque, ..Dir::empty(Some(own)) });
        let names = self.read_dir_at(parent, &mut dir, name)?;
        let slot = names.entry(name);
        slot.upper = Some(Upper { kind: new.kind(), ino: None });
        slot.whiteout = uncover && !self.uncover(&to, name, content.as_mut());
        // A directory that gets a mark has other attributes then.
        let attr = attr.filter(|_| !(uncover && is_dir)).map(|attr| self.stack.mark(&to, attr));
        let place = ObjectName { parent: parent.clone(), name: name.into(), dir: to.clone() };
        let marked = Some(Fixed::default());
        let lacks_capability = upper.capabilities().xattrs;
        let state = State { has_data: true, newborn: true, marked, lacks_capability, ..State::at(place, true, attr) };
        let node = Node::new(self.new_id(), new.kind(), state, content);
        slot.child = Some(node.clone());
        self.known.add_name();
        if node.kind() == Kind::Dir {
            self.known.add_dir(&node, 0);
        }
        Ok((node, file.map(|file| OpenFile { file, access: Access::ReadWrite, dir: to, from_lower: None })))
    }

    /// Checks that `name` is free in a directory. Returns whether it has a whiteout there.
    ///
    /// # Errors
    ///
    /// - ENOENT: the directory was removed.
    /// - EEXIST: the name exists.
    pub(super) fn check_free(&self, parent: &Arc<Node<L>>, dir: &mut Dir<L>, name: &OsStr) -> Result<bool> {
        if dir.removed {
            return Err(Error::new(ENOENT));
        }
        match self.read_dir_at(parent, dir, name)?.get(name) {
            Some(slot) if slot.visible().is_some() => Err(Error::new(EEXIST)),
            slot => Ok(slot.is_some_and(|slot| slot.whiteout)),
        }
    }

    /// Makes the object in one step.
    fn make(&self, dir: &L::Dir, name: &OsStr, new: New<'_>, mode: u32, owner: Owner) -> Result<MadeByLayer<L>> {
        let (upper, _) = self.upper()?;
        let attr = match new {
            New::File => {
                let file = upper.create_file(dir, name, mode, owner)?;
                let attr = upper.attr_of_new(&file);
                return Ok((Some(file), attr));
            }
            New::Dir => upper.create_dir(dir, name, mode, owner)?,
            New::Symlink(target) => upper.create_symlink(dir, name, target, owner)?,
            New::Special(kind, rdev) => upper.create_node(dir, name, kind, mode, rdev, owner)?,
        };
        Ok((None, attr))
    }

    /// Builds the object in the work directory, then puts it in place. For a layer that cannot set
    /// the owner at once, or a name that has a whiteout in its place.
    fn make_elsewhere(&self, dir: &L::Dir, name: &OsStr, plan: &Blueprint<'_>, onto: Onto) -> Result<Option<L::File>> {
        let (_, work) = self.upper()?;
        let (open, temp) = (self.stack.open(work.dir())?, work.name());
        let file = self.build(&open, &temp, plan)?;
        let placed = self.put((&temp, file.as_ref()), dir, name, onto);
        if placed.is_err() {
            self.unbuild(&temp, plan.new);
        }
        placed.map(|()| file)
    }

    /// Builds the object as `temp` in the work directory, with owner, mode, ACL and mark.
    fn build(&self, work: &L::Dir, temp: &OsStr, plan: &Blueprint<'_>) -> Result<Option<L::File>> {
        let upper = self.upper()?.0;
        self.prepare_owner(plan.owner)?;
        let kind = plan.new.kind();
        let private = if kind == Kind::Dir { 0o700 } else { 0o600 };
        // Until the object has its owner, its mode must not permit anything that it does not permit
        // later.
        let open_to_all = kind == Kind::File && plan.acl.is_none() && grants_group_no_more(plan.mode);
        let mode = if open_to_all { plan.mode } else { private };
        let (file, _) = self.make(work, temp, plan.new, mode, upper.identity())?;
        let built = (|| {
            let made = file.as_ref().map_or(Object::Entry(work, temp), Object::File);
            upper.set_owner(made, plan.owner)?;
            if kind != Kind::Symlink {
                if mode != plan.mode || kind == Kind::Dir {
                    upper.set_mode(made, plan.mode)?;
                }
                if let Some(acl) = &plan.acl {
                    self.inherit(made, kind, plan.mode, acl)?;
                }
            }
            if plan.opaque {
                self.build_mark(work, temp, self.format().opaque())?;
            }
            Ok(())
        })();
        if built.is_err() {
            self.unbuild(temp, plan.new);
        }
        built.map(|()| file)
    }

    /// Removes an object of [`Overlay::build`] that has no use.
    fn unbuild(&self, temp: &OsStr, new: New<'_>) {
        if let Ok((_, work)) = self.upper() {
            discard_built(&self.stack, work.dir(), temp, new.kind());
        }
    }

    /// Removes the marker of a name that a new object took: it hides nothing now. Before that, a
    /// new directory gets the opaque mark, since the marker made it opaque. Returns whether the
    /// marker is removed; otherwise it does no harm.
    pub(super) fn uncover(&self, dir: &LayerDir<L>, name: &OsStr, own: Option<&mut Dir<L>>) -> bool {
        let removed = (|| {
            if let Some(own) = own {
                self.set_opaque(own)?;
                self.sync_names(own)?;
            }
            self.remove_whiteout(dir, name)
        })();
        if let Err(error) = &removed {
            let path = self.stack.path(dir).join(name);
            log::warn!("cannot remove the whiteout beside {}: {error}", path.display());
        }
        removed.is_ok()
    }

    /// Returns the upper layer's place of a directory that is copied up.
    pub(super) fn known_upper(&self, dir: &Dir<L>) -> Result<Arc<LayerDir<L>>> {
        dir.upper.clone().ok_or(Error::new(EIO))
    }
}

/// Whether a mode grants the group no more than all others, and has no set-id or sticky bit. Such a
/// file may have a wrong group for a moment, and loses nothing by a change of its owner.
fn grants_group_no_more(mode: u32) -> bool {
    mode & !0o777 == 0 && mode >> 3 & !mode & 0o7 == 0
}
