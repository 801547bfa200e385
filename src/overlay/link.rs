//! Further names of files.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::errno::{ENOENT, EPERM, Error};

use super::Overlay;
use super::attr::Location;
use super::names::Upper;
use super::node::{LinkCount, Node, ObjectName, State, Stored};
use super::stack::LayerDir;
use super::work::discard;
use crate::format::plan::{New, Placement};
use crate::layer::{Kind, Layer, Object, Result, Stat};

impl<L: Layer> Overlay<L> {
    /// Gives an object the further name `name` in `dir`, or gives a file without a name its first
    /// one.
    ///
    /// # Errors
    ///
    /// - EPERM: `node` is a directory, or it or `dir` is immutable or append-only.
    /// - ENOENT: the last name of `node` was removed, or `dir` was.
    /// - EEXIST: the name exists.
    /// - EINVAL: the name is reserved.
    /// - EMLINK: the object has too many names.
    /// - EROFS: there is no upper layer.
    /// - EOPNOTSUPP: the upper layer has no links.
    pub fn link(&self, node: &Arc<Node<L>>, dir: &Arc<Node<L>>, name: &OsStr) -> Result<()> {
        self.check_new_name(dir, name)?;
        if node.kind() == Kind::Dir {
            return Err(Error::new(EPERM));
        }
        {
            let _tree = self.tree.read();
            self.check_free(dir, &mut *dir.dir()?, name)?;
        }
        self.upper()?;
        self.check_entries(dir, None)?;
        let to = self.upper_dir(dir)?;
        self.copy_up(node)?;
        let _content = node.content.lock();
        let _tree = self.tree.read();
        let mut names = dir.dir()?;
        let whiteout = self.check_free(dir, &mut names, name)?;
        // The lock lasts until the new place is known, so no thread asks for the object by its old
        // name.
        let mut state = node.state.lock();
        let attr = self.known_attr(node, &mut state)?;
        let first = match &state.stored {
            Stored::Unnamed(name) => Some(name.clone()),
            _ if state.links.count(attr.nlink) == 0 => return Err(Error::new(ENOENT)),
            _ => None,
        };
        let plan = self.format().create(New { is_dir: false, at_once: first.is_none(), whiteout });
        self.make_link(&state, first.as_deref(), (&to, name), plan.placement)?;

        let place = ObjectName { parent: dir.clone(), name: name.into(), dir: to.clone() };
        let attr = self.gained_name(node, &mut state, place);
        drop(state);
        self.touch(dir, &mut dir.state.lock());
        if let Some(attr) = attr {
            self.inodes.link(attr.dev, attr.ino, node);
        }
        let slot = self.read_dir_at(dir, &mut names, name)?.entry(name);
        slot.upper = Some(Upper { kind: node.kind(), ino: attr.map(|attr| attr.ino) });
        slot.child = Some(node.clone());
        self.known.add_name();
        slot.whiteout = plan.uncover && !self.uncover(&to, name, None);
        Ok(())
    }

    /// Records that an object got a name. Returns its attributes, if the layer tells them.
    fn gained_name(&self, node: &Arc<Node<L>>, state: &mut State<L>, place: ObjectName<L>) -> Option<Stat> {
        if matches!(state.stored, Stored::Unnamed(_)) {
            (state.stored, state.links) = (Stored::Named, LinkCount::OfLayer);
            // The layer may have counted the name in the work directory, which is gone.
            if let Some(attr) = &mut state.attr {
                attr.nlink = 0;
            }
        }
        state.places.push(place);
        self.redate(node, state);
        state.newborn = false;
        if let LinkCount::Counted(count) = &mut state.links {
            *count += 1;
        }
        match &mut state.attr {
            Some(attr) => {
                attr.nlink += 1;
                Some(*attr)
            }
            None => self.refresh(node, state).ok(),
        }
    }

    /// Makes the link in the upper layer. The object may have only the name `first` in the work
    /// directory, and then loses that.
    fn make_link(
        &self,
        state: &State<L>,
        first: Option<&OsStr>,
        (to, name): (&LayerDir<L>, &OsStr),
        placement: Placement,
    ) -> Result<()> {
        let (upper, work) = self.upper()?;
        let location = self.location(state);
        let from_dir = match &location {
            Location::Entry(dir, _) => Some(self.stack.open(dir)?),
            _ => None,
        };
        let from = match (&location, &from_dir) {
            (Location::Entry(_, name), Some(dir)) => Object::Entry(&**dir, name),
            // The object has names, but no lookup has met them.
            (Location::File(open), _) => Object::File(&open.file),
            _ => return Err(Error::new(ENOENT)),
        };
        let into = self.stack.open(to)?;
        match (placement, first) {
            (Placement::AtOnce, _) => upper.link(from, &into, name),
            (Placement::Built(onto), Some(first)) => self.put((first, None), &into, name, onto),
            (Placement::Built(onto), None) => {
                let (open, temp) = (self.stack.open(work.dir())?, work.name());
                upper.link(from, &open, &temp)?;
                let placed = self.put((&temp, None), &into, name, onto);
                if placed.is_err() {
                    discard(upper, &open, &temp);
                }
                placed
            }
        }
    }
}
