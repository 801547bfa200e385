//! The parts of a merged directory, for a comparison with a directory of another overlay.
//!
//! Two overlays may have layers in common. If a name comes from the same places of the same layers
//! in both, both show the same object, and a comparison need not look at it.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{EIO, Error};
use smallvec::SmallVec;

use super::inode::number_below;
use super::names::Slot;
use super::node::Dir;
use super::stack::LayerDir;
use super::{Node, Overlay};
use crate::format::fnv1a;
use crate::layer::{Kind, Layer, Result};

/// A directory of one layer. Overlays that have the layer in common give it equal parts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    /// A digest of the layer and those below it, since a redirect may lead to any of these.
    layer: u128,
    /// Whether it is an upper layer, which shows more than a lower one.
    is_upper: bool,
    /// The path in the layer.
    path: PathBuf,
}

/// One visible name of a merged directory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The name.
    pub name: Arc<OsStr>,
    /// The kind of the object.
    pub kind: Kind,
    /// The number of the object for a comparison: that of the original if it is a copy. None if
    /// that is not known.
    pub number: Option<u64>,
    /// Whether the upper layer has the object.
    pub is_upper: bool,
    /// The directories that have the name and show through it, by their index in
    /// [`Content::parts`]; more than one only for a directory.
    places: SmallVec<[u32; 1]>,
    /// Whether the upper layer may have changed the object, or objects below it, though its places
    /// are in lower layers.
    is_copy: bool,
}

/// The content of a merged directory, or a run of its names.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The layers' directories that merge, topmost first.
    parts: Vec<Part>,
    /// The path in the lower layers that the upper layer's directory merges with, if a mark says
    /// so.
    pub redirect: Option<PathBuf>,
    /// The names, in the order of their bytes.
    pub entries: Vec<Entry>,
    /// The name at which the next run begins, if there may be more.
    pub next: Option<OsString>,
}

/// How an entry of one directory relates to that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// Both show the same objects of the same layers, also below them.
    Same,
    /// Both show the same directory, but names below it may show copies.
    SameDir,
    /// They may show different objects.
    Other,
}

impl Content {
    /// Ends the run before `next`, which is not behind its end.
    pub fn end(&mut self, next: Option<OsString>) {
        if let Some(next) = &next {
            self.entries.truncate(self.entries.partition_point(|entry| *entry.name < **next));
        }
        self.next = next;
    }

    /// Whether only the upper layer has the directory: it merges with nothing below.
    pub fn is_alone(&self) -> bool {
        self.parts.iter().all(|part| part.is_upper)
    }

    /// Whether another program made `entry` of this directory in a lower layer after `before` was
    /// read. This directory is that of `before` below an upper layer, which does not have the
    /// entry.
    pub fn is_new_below(&self, entry: &Entry, before: &Content) -> bool {
        let above = self.parts.iter().take_while(|part| part.is_upper).count();
        !entry.is_upper && !entry.is_copy && self.parts[above..] == before.parts
    }

    /// Returns how `entry` of this directory relates to the entry `other` of another.
    pub fn relation(&self, entry: &Entry, (content, other): (&Content, &Entry)) -> Relation {
        let part = |content: &Content, place: &u32| content.parts.get(*place as usize).cloned();
        let is_same = entry.kind == other.kind
            && entry.places.len() == other.places.len()
            && entry.places.iter().zip(&other.places).all(|(one, other)| part(self, one) == part(content, other));
        match (is_same, entry.is_copy || other.is_copy) {
            (false, _) => Relation::Other,
            (true, false) => Relation::Same,
            (true, true) if entry.kind == Kind::Dir => Relation::SameDir,
            (true, true) => Relation::Other,
        }
    }
}

/// Whether the layers of `below` are those of `above` without its topmost one, an upper layer. Only
/// then redirects and numbers of copies in `above` are about `below`.
pub fn is_upper_over<L: Layer>(above: &Overlay<L>, below: &Overlay<L>) -> bool {
    let (mut now, before) = (above.layer_digests(), below.layer_digests());
    above.settings.read_only_upper && now.pop().is_some() && now == before
}

/// Whether the upper layer of `above` may have a copy of the lower object with this
/// [number](Entry::number).
pub fn has_copy<L: Layer>(above: &Overlay<L>, number: u64) -> bool {
    above.inodes.has_copy(number)
}

/// Returns the content of a directory from the name `from` on: all of it, or a run if `overlay` is
/// for a walk. The numbers are those that an overlay with an upper layer on top shows, if `overlay`
/// has none itself.
///
/// # Errors
///
/// - ENOTDIR: the object is no directory.
///
/// Others of the layers.
pub fn content<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>, from: &OsStr) -> Result<Content> {
    overlay.forget_some();
    let _tree = overlay.tree.read();
    let mut dir = node.dir()?;
    overlay.read_dir_from(node, &mut dir, from)?;
    let Dir { lowers, names: Some(names), .. } = &*dir else { return Err(Error::new(EIO)) };
    let entries = names.of_run(from).filter_map(|slot| overlay.entry(slot, lowers)).collect();
    Ok(Content { entries, next: names.run().to.clone(), ..overlay.head(&dir) })
}

/// Returns the content of a directory without the names.
///
/// # Errors
///
/// Those of [`content`].
pub fn head<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Content> {
    overlay.forget_some();
    let _tree = overlay.tree.read();
    let mut dir = node.dir()?;
    overlay.read_some(node, &mut dir)?;
    Ok(overlay.head(&dir))
}

impl<L: Layer> Overlay<L> {
    /// Returns the content of a directory that was read, without the names.
    fn head(&self, Dir { lowers, redirect, .. }: &Dir<L>) -> Content {
        let layers = self.layer_digests();
        let parts = lowers.iter().map(|dir| self.part(dir, &layers)).collect();
        Content { parts, redirect: redirect.as_ref().map(|way| way.path.clone()), ..Content::default() }
    }

    /// Returns the digest of each layer and those below it, from the bottom.
    fn layer_digests(&self) -> Vec<u128> {
        let roots = self.stack.upper_root().into_iter().chain(self.stack.lower_roots());
        let mut digests = Vec::new();
        for root in roots.rev() {
            let below: u128 = digests.last().copied().unwrap_or_default();
            let [device, ino] = [self.stack.device(root), self.stack.root_ino(root)].map(u128::from);
            digests.push(fnv1a([below, device, ino].map(u128::to_le_bytes).as_flattened()));
        }
        digests
    }

    fn part(&self, dir: &Arc<LayerDir<L>>, layers: &[u128]) -> Part {
        let layer = layers.get(self.stack.level(dir)).copied().unwrap_or_default();
        let mut names = Vec::new();
        let mut place = self.stack.parent(dir);
        while let Some((above, name)) = place {
            names.push(name);
            place = self.stack.parent(&above);
        }
        Part { layer, is_upper: self.is_in_upper_layer(dir), path: names.iter().rev().collect() }
    }

    /// Returns the visible entry of a name in a directory of these layers' directories.
    fn entry(&self, slot: &Slot<L>, dirs: &[Arc<LayerDir<L>>]) -> Option<Entry> {
        let (visible, lower) = (slot.visible()?, slot.lower.as_ref()?);
        let dir = dirs.get(lower.dir as usize)?;
        let is_upper = self.is_in_upper_layer(dir);
        let places = match visible.kind {
            Kind::Dir => slot.merging().collect(),
            _ => [lower.dir].into_iter().collect(),
        };
        let index = self.shown_index.as_ref().filter(|_| !is_upper);
        let is_copy = index.is_some_and(|index| match visible.kind {
            Kind::Dir => self.shows_below,
            _ => index.may_be_copied(lower.ino),
        });
        let number = match is_upper {
            true => self.inodes.number_of_copy(lower.ino),
            false => Some(number_below(self.stack.level(dir), lower.ino)),
        };
        Some(Entry {
            name: slot.name.clone(),
            kind: visible.kind,
            number,
            is_upper,
            places,
            is_copy: is_copy || slot.part,
        })
    }
}
