//! New objects: files, directories, symlinks, FIFOs, sockets and devices.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{EEXIST, EINVAL, EIO, ENOENT, Error};

use super::Overlay;
use super::file::Handle;
use super::names::Upper;
use super::node::{Dir, Node, ObjectName, OpenFile, State};
use super::stack::LayerDir;
use super::work::{discard, discard_built};
use crate::format::kernel;
use crate::format::plan::{self, Creation, Onto, Placement};
use crate::layer::{Access, Kind, Layer, Object, Owner, Result, Stat};

/// What is to be created.
#[derive(Clone, Copy)]
enum New<'a> {
    File,
    Dir,
    Symlink(&'a OsStr),
    Special(Kind, u64),
}

/// An object that is built in the work directory, with what its own directory would have given it.
struct Blueprint<'a> {
    new: New<'a>,
    mode: u32,
    owner: Owner,
    /// A directory gets the opaque mark.
    opaque: bool,
    /// The default ACL of the directory that it is for.
    acl: Option<Vec<u8>>,
}

/// A new object, and the open file where it is a regular one.
type Made<L> = (Arc<Node<L>>, Option<OpenFile<L>>);

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
    /// Creates a regular file and opens it. `mode` is taken as it is (`0o7777` at most).
    ///
    /// EEXIST; EINVAL for a reserved name; ENAMETOOLONG; ENOENT in a directory that was removed;
    /// ENOTDIR; EROFS. So for the three below.
    pub fn create_file(&self, dir: &Arc<Node<L>>, name: &OsStr, mode: u32, owner: Owner) -> Result<Handle<L>> {
        let (node, file) = self.create(dir, name, New::File, mode, owner)?;
        let handle = self.open(&node);
        self.use_file(&handle);
        let mut state = node.state.lock();
        if let (None, Some(open)) = (&state.file, file) {
            state.file = Some(Arc::new(open));
        }
        drop(state);
        Ok(handle)
    }

    /// Creates a regular file without a name, and opens it. It can be given one by
    /// [`Overlay::link`], and is gone when its last handle is dropped and [`Overlay::release`] was
    /// called. Its ACL is what `dir` hands down. EROFS, ENOENT, ENOTDIR.
    pub fn create_temp(&self, dir: &Arc<Node<L>>, mode: u32, owner: Owner) -> Result<Handle<L>> {
        if dir.dir()?.removed {
            return Err(Error::new(ENOENT));
        }
        let (upper, work) = self.upper()?;
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
    pub fn create_dir(&self, dir: &Arc<Node<L>>, name: &OsStr, mode: u32, owner: Owner) -> Result<Arc<Node<L>>> {
        self.create(dir, name, New::Dir, mode, owner).map(|(node, _)| node)
    }

    /// Creates a symlink.
    pub fn create_symlink(
        &self,
        dir: &Arc<Node<L>>,
        name: &OsStr,
        target: &OsStr,
        owner: Owner,
    ) -> Result<Arc<Node<L>>> {
        self.create(dir, name, New::Symlink(target), 0o777, owner).map(|(node, _)| node)
    }

    /// Creates a FIFO, a socket or a device node; `rdev` as in [`Layer::create_node`]. EINVAL for
    /// another kind; EPERM or EOPNOTSUPP where the upper layer cannot hold it, and EPERM for a
    /// device that would be a whiteout there.
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
            // So that what exists already costs no copy-up of its directory.
            let _tree = self.tree.read();
            self.check_free(parent, &mut *parent.dir()?, name)?;
        }
        self.check_entries(parent, None)?;
        let to = self.upper_dir(parent)?;
        let upper = self.upper()?.0;
        let in_steps = matches!(new, New::Symlink(_) | New::Special(Kind::Socket, _));
        let whole = !in_steps || upper.capabilities().whole_objects;
        let is_dir = new.kind() == Kind::Dir;
        let at_once = whole && upper.creates_as(owner);
        let plan = |whiteout| self.format().create(plan::New { is_dir, at_once, whiteout });
        let may_be_built = [false, true].iter().any(|whiteout| plan(*whiteout).placement != Placement::AtOnce);
        let acl = if may_be_built { self.default_acl(parent)? } else { None };
        let _tree = self.tree.read();
        let mut dir = parent.dir()?;
        let Creation { placement, opaque, uncover } = plan(self.check_free(parent, &mut dir, name)?);
        let open = self.stack.open(&to)?;

        let file = match placement {
            Placement::AtOnce => self.make(&open, name, new, mode, owner)?,
            Placement::Built(onto) => {
                self.make_elsewhere(&open, name, &Blueprint { new, mode, owner, opaque, acl }, onto)?
            }
        };

        self.touch(parent, &mut parent.state.lock());
        let own = is_dir.then(|| self.stack.child(&to, name));
        let mut content = own.map(|own| Dir { opaque, unsynced: opaque, ..Dir::empty(Some(own)) });
        let names = self.read_dir(parent, &mut dir)?;
        let slot = names.entry(name);
        slot.upper = Some(Upper { kind: new.kind(), ino: None });
        slot.whiteout = uncover && !self.uncover(&to, name, content.as_mut());
        let place = ObjectName { parent: parent.clone(), name: name.into(), dir: to.clone() };
        let state = State { has_data: true, newborn: true, ..State::at(place, true, None) };
        let node = Node::new(self.new_id(), new.kind(), state, content);
        slot.child = Some(node.clone());
        self.known.add_name();
        if node.kind() == Kind::Dir {
            self.known.add_dir(&node, 0);
        }
        Ok((node, file.map(|file| OpenFile { file, access: Access::ReadWrite, dir: to, from_lower: None })))
    }

    /// Whether `name` can be created in a directory; answers whether it has a marker there.
    pub(super) fn check_free(&self, parent: &Arc<Node<L>>, dir: &mut Dir<L>, name: &OsStr) -> Result<bool> {
        if dir.removed {
            return Err(Error::new(ENOENT));
        }
        match self.read_dir(parent, dir)?.get(name) {
            Some(slot) if slot.visible().is_some() => Err(Error::new(EEXIST)),
            slot => Ok(slot.is_some_and(|slot| slot.whiteout)),
        }
    }

    /// Makes the object in one step.
    fn make(&self, dir: &L::Dir, name: &OsStr, new: New<'_>, mode: u32, owner: Owner) -> Result<Option<L::File>> {
        let (upper, _) = self.upper()?;
        match new {
            New::File => return upper.create_file(dir, name, mode, owner).map(Some),
            New::Dir => upper.create_dir(dir, name, mode, owner)?,
            New::Symlink(target) => upper.create_symlink(dir, name, target, owner)?,
            New::Special(kind, rdev) => upper.create_node(dir, name, kind, mode, rdev, owner)?,
        }
        Ok(None)
    }

    /// Makes the object complete in the work directory, where the layer cannot give it its owner at
    /// once or its name has a whiteout in its place, and puts it in place.
    fn make_elsewhere(&self, dir: &L::Dir, name: &OsStr, plan: &Blueprint<'_>, onto: Onto) -> Result<Option<L::File>> {
        let (_, work) = self.upper()?;
        let (open, temp) = (self.stack.open(work.dir())?, work.name());
        let file = self.build(&open, &temp, plan)?;
        let placed = self.put((&temp, file.as_ref()), dir, name, onto);
        if placed.is_err() {
            self.unbuild(&open, &temp, plan.new);
        }
        placed.map(|()| file)
    }

    /// Makes the object under the name `temp` of the work directory, with its owner, its mode, its
    /// ACL and the mark that it needs.
    fn build(&self, work: &L::Dir, temp: &OsStr, plan: &Blueprint<'_>) -> Result<Option<L::File>> {
        let upper = self.upper()?.0;
        let kind = plan.new.kind();
        let private = if kind == Kind::Dir { 0o700 } else { 0o600 };
        // Until it has its owner, nobody may do with it what he may not do afterwards.
        let open_to_all = kind == Kind::File && plan.acl.is_none() && grants_group_no_more(plan.mode);
        let mode = if open_to_all { plan.mode } else { private };
        let file = self.make(work, temp, plan.new, mode, upper.identity())?;
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
                self.build_opaque(work, temp)?;
            }
            Ok(())
        })();
        if built.is_err() {
            self.unbuild(work, temp, plan.new);
        }
        built.map(|()| file)
    }

    /// Removes what [`Overlay::build`] made for nothing.
    fn unbuild(&self, work: &L::Dir, temp: &OsStr, new: New<'_>) {
        if let Some(upper) = self.stack.upper() {
            discard_built(upper, work, temp, new.kind());
        }
    }

    /// After a name that had a marker was given to a new object: removes the marker, which hides
    /// nothing any more. A directory, which the marker made opaque, gets the mark of its own first.
    /// Answers whether the marker is gone; if not, it does no harm.
    pub(super) fn uncover(&self, dir: &LayerDir<L>, name: &OsStr, own: Option<&mut Dir<L>>) -> bool {
        let removed = (|| {
            if let Some(own) = own {
                self.set_opaque(own)?;
                self.sync_names(own)?;
            }
            self.remove_whiteout(dir, name)
        })();
        if let Err(error) = &removed {
            log::warn!("the marker of {name:?} stays beside it: {error}");
        }
        removed.is_ok()
    }

    /// The upper layer's place of a directory that is known to be there.
    pub(super) fn known_upper(&self, dir: &Dir<L>) -> Result<Arc<LayerDir<L>>> {
        dir.upper.clone().ok_or(Error::new(EIO))
    }
}

/// Whether a mode grants the group, which is another before the owner is set, nothing that it does
/// not grant everybody; and no rights of the owner or the group to others, which a change of the
/// owner would take away.
fn grants_group_no_more(mode: u32) -> bool {
    mode & !0o777 == 0 && mode >> 3 & !mode & 0o7 == 0
}
