//! Snapshots and rollbacks: a new overlay takes the place of this one, with an empty upper layer on
//! top of frozen ones.
//!
//! A snapshot freezes the upper layer. A rollback leaves it aside. In both cases the new upper
//! layer is made and opened first, and nothing shows of it. One rename of the file `chain` makes it
//! the topmost layer. A crash before leaves an empty directory that no chain names.
//!
//! The caller lets no request go on meanwhile, and has completed and synced everything.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::chain::{Chain, Level, Snapshot, UPPER, is_name};
use super::features::Feature;
use super::node::{Dir, Node, State};
use super::{Overlay, Refused, Settings};
use crate::errno::{EIO, Error};
use crate::format::Wanted;
use crate::layer::{Layer, Object, Owner, Result};

/// The reason why there is no snapshot or no rollback. Its text is the end of a sentence.
#[derive(Debug)]
pub enum Unfrozen {
    /// The overlay has no directory for snapshots, or no upper layer.
    NoChain,
    /// The chain has no snapshot.
    NoSnapshot,
    /// Another snapshot has this name.
    Taken(String),
    /// A snapshot cannot have this name.
    Name,
    /// An object of the upper layer has names, none of which is known.
    Unmet,
    /// The new layers cannot be stacked.
    Refused(Box<Refused>),
    /// A layer returned an error.
    Layer(Error),
}

impl fmt::Display for Unfrozen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfrozen::NoChain => {
                write!(f, "the overlay has no directory for snapshots: mount with an upper directory and snapshots=DIR")
            }
            Unfrozen::NoSnapshot => write!(f, "there is no snapshot"),
            Unfrozen::Taken(name) => write!(f, "there is already a snapshot {name}"),
            Unfrozen::Name => {
                write!(f, "the name of a snapshot has at most 255 bytes, and no control characters")
            }
            Unfrozen::Unmet => write!(
                f,
                "an open file was removed under the name by which programs know it, and has another name: list that \
                 name, or close the file"
            ),
            Unfrozen::Refused(refused) => write!(f, "the new upper directory cannot be used: {refused}"),
            Unfrozen::Layer(error) => write!(f, "a layer cannot be used: {error}"),
        }
    }
}

impl std::error::Error for Unfrozen {}

impl From<Error> for Unfrozen {
    fn from(error: Error) -> Self {
        Unfrozen::Layer(error)
    }
}

/// How an upper layer leaves its place at the top.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Freeze,
    Drop,
}

impl<L: Layer> Overlay<L> {
    /// The snapshots, the first one first.
    pub fn snapshots(&self) -> &[Snapshot] {
        self.chain.as_ref().map_or(&[], |chain| &chain.snapshots)
    }

    /// Freezes the upper layer, and returns the overlay with a new one on top of it. `nodes` are
    /// the objects that the front end knows, which the new overlay finds again
    /// ([`Overlay::find_again`]). Without a name the snapshot gets its number as name.
    ///
    /// # Errors
    ///
    /// Each is a variant of [`Unfrozen`]. The overlay then goes on.
    pub fn snapshot(&self, name: Option<&str>, nodes: &[Arc<Node<L>>]) -> std::result::Result<Self, Unfrozen> {
        let chain = self.chain.as_ref().filter(|_| self.work.is_some()).ok_or(Unfrozen::NoChain)?;
        if let Some(name) = name {
            if !is_name(name) {
                return Err(Unfrozen::Name);
            }
            if chain.snapshots.iter().any(|snapshot| snapshot.name == name) {
                return Err(Unfrozen::Taken(name.to_owned()));
            }
        }
        // From now on the layer is used only with its chain.
        self.need(Feature::Snapshots)?;
        let (number, place) = chain.make_level()?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let name = name.map_or_else(|| number.to_string(), str::to_owned);
        let snapshots = [&chain.snapshots[..], &[Snapshot { number, time, name }]].concat();
        self.put_on_top(Step::Freeze, chain.with(snapshots), (number, &place), nodes)
    }

    /// Leaves the upper layer aside, and returns the overlay that shows the last snapshot again,
    /// with a new upper layer. It finds an object of `nodes` again if the snapshot has that, the
    /// layer has not removed it, and it is a directory or the layer has not changed it.
    ///
    /// # Errors
    ///
    /// Each is a variant of [`Unfrozen`]. The overlay then goes on.
    pub fn roll_back(&self, nodes: &[Arc<Node<L>>]) -> std::result::Result<Self, Unfrozen> {
        let chain = self.chain.as_ref().filter(|_| self.work.is_some()).ok_or(Unfrozen::NoChain)?;
        let mut snapshots = chain.snapshots.clone();
        let last = snapshots.last_mut().ok_or(Unfrozen::NoSnapshot)?;
        let (number, place) = chain.make_level()?;
        last.number = number;
        self.put_on_top(Step::Drop, chain.with(snapshots), (number, &place), nodes)
    }

    /// Returns the names that a rollback may change, among those that a front end knows through the
    /// objects `nodes`: the directory, and the name.
    pub fn changed_names(&self, nodes: &[Arc<Node<L>>]) -> Vec<(Arc<Node<L>>, OsString)> {
        let _tree = self.tree.read();
        let mut changed = Vec::new();
        for node in nodes {
            if let Ok(dir) = node.dir()
                && let Some(names) = &dir.names
            {
                let slots = names.after(0).map(|(_, slot)| slot);
                let in_upper = slots.filter(|slot| slot.upper.is_some() || slot.whiteout || slot.part);
                changed.extend(in_upper.map(|slot| (node.clone(), slot.name.to_os_string())));
                continue;
            }
            let state = node.state.lock();
            if state.upper {
                changed.extend(state.places.iter().map(|place| (place.parent.clone(), place.name.to_os_string())));
            }
        }
        changed
    }

    /// Puts an overlay with the new layer in `place` in the place of this one.
    fn put_on_top(
        &self,
        step: Step,
        chain: Chain<L>,
        (number, place): (u64, &L::Dir),
        nodes: &[Arc<Node<L>>],
    ) -> std::result::Result<Self, Unfrozen> {
        match step {
            Step::Freeze => self.copy_root(&self.root, place)?,
            Step::Drop => self.copy_root(&self.frozen_root()?, place)?,
        }
        let levels = self.levels_for(step, chain.open_level(number, place, true)?)?;
        let lowers = self.stack.lower_roots().iter().skip(self.frozen_count());
        let lowers = lowers.map(|root| self.stack.again(root)).collect::<Result<Vec<_>>>()?;
        let kernel = self.format().features().is_kernels;
        let format = Some(if kernel { Wanted::Kernel } else { Wanted::Oci });
        let settings = Settings { format, reuse_volatile: false, ..self.settings };
        let plan = match step {
            Step::Freeze => self.plan_handover(nodes)?,
            Step::Drop => self.plan_rollback(nodes)?,
        };
        if plan.has_unmet_names() {
            return Err(Unfrozen::Unmet);
        }
        let next = Self::stacked(levels, lowers, Some(chain), settings)
            .map_err(|refused| Unfrozen::Refused(Box::new(refused)))?;
        next.need(Feature::Snapshots)?;
        if !self.is_volatile() {
            self.stack.top().sync_all()?;
        }
        if let Some(chain) = &next.chain {
            chain.write()?;
        }
        let handover = match step {
            Step::Freeze => self.hand_over(plan),
            Step::Drop => self.hand_over(plan).after_rollback(),
        };
        next.succeed(handover, Some(self));
        if step == Step::Drop {
            next.find_all_again();
        }
        let holder = self.holder.lock().clone();
        if let Some(holder) = holder
            && let Err(error) = next.sign(&holder)
        {
            log::warn!("cannot record the process that holds the new upper layer: {error}");
        }
        self.is_succeeded.store(true, Ordering::Release);
        if let Err(error) = self.retire() {
            log::warn!("cannot tidy up the work directory of the layer that is no longer the topmost one: {error}");
        }
        Ok(next)
    }

    /// Returns the upper layers of the next overlay, from the bottom.
    fn levels_for(&self, step: Step, top: Level<L>) -> Result<Vec<Level<L>>> {
        let mut roots: Vec<_> = self.stack.lower_roots().iter().take(self.frozen_count()).collect();
        if step == Step::Freeze {
            roots.splice(..0, self.stack.upper_root());
        }
        let with_work = roots.into_iter().rev().zip(&self.works);
        let frozen = with_work.map(|(root, work)| Ok((self.stack.again(root)?, Some(self.stack.again(work)?))));
        frozen.chain([Ok(top)]).collect()
    }

    /// Makes a node for the root as the layers below the upper one show it.
    fn frozen_root(&self) -> Result<Arc<Node<L>>> {
        let lowers = self.stack.lower_roots();
        let top = lowers.first().ok_or(Error::new(EIO))?;
        let attr = self.stack.mark(top, self.stack.layer(top).stat(Object::Dir(&*self.stack.open(top)?))?);
        Ok(Node::new(0, attr.kind, State::root(false, attr, attr.ino), Some(Dir::unread(None, lowers.to_vec()))))
    }

    /// Gives the root of the new upper layer in `place` the attributes of `root`.
    fn copy_root(&self, root: &Arc<Node<L>>, place: &L::Dir) -> Result<()> {
        let name = OsStr::new(UPPER);
        let attr = self.stat(root)?;
        let xattrs = self.xattrs_to_copy(root)?;
        let (upper, _) = self.upper()?;
        let made: (Owner, u32) = (upper.identity(), 0o700);
        self.copy_attr(root, Object::Entry(place, name), &attr, made, &xattrs)?;
        self.build_fixed(root, place, name)?;
        upper.set_times(Object::Entry(place, name), attr.atime, attr.mtime)
    }
}
