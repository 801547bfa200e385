//! The parts of a merged directory, for a comparison with a directory of another overlay.
//!
//! Two overlays may have layers in common. If a name comes from the same places of the same layers
//! in both, both show the same object, and a comparison need not look at it.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::errno::{EIO, Error};
use smallvec::SmallVec;

use super::names::Slot;
use super::node::Dir;
use super::stack::LayerDir;
use super::{Node, Overlay};
use crate::format::fnv1a;
use crate::layer::{Kind, Layer, Result};

/// A directory of one layer. Overlays that have the layer in common give it equal parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A digest of the layer and those below it, since a redirect may lead to any of these.
    layer: u128,
    /// Whether the overlay shows leftovers of the layer that others do not ([`super::partial`]).
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
    /// The directories that have the name and show through it, by their index in
    /// [`Content::parts`]; more than one only for a directory.
    places: SmallVec<[u32; 1]>,
    /// Whether the object is a copy, which the places do not tell.
    is_copy: bool,
}

/// The content of a merged directory.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The layers' directories that merge, topmost first.
    parts: Vec<Part>,
    /// The names, in the order of their bytes.
    pub entries: Vec<Entry>,
}

impl Content {
    /// Whether the entry `one` of this directory and the entry `other` of another show the same
    /// objects of the same layers, also below them.
    pub fn is_same(&self, one: &Entry, other: (&Content, &Entry)) -> bool {
        let (content, other) = other;
        one.kind == other.kind
            && !one.is_copy
            && !other.is_copy
            && one.places.len() == other.places.len()
            && one.places.iter().zip(&other.places).all(|(one, other)| {
                let pair = (self.parts.get(*one as usize), content.parts.get(*other as usize));
                pair.0.is_some() && pair.0 == pair.1
            })
    }
}

/// Returns the content of a directory.
///
/// # Errors
///
/// - ENOTDIR: the object is no directory.
///
/// Others of the layers.
pub fn content<L: Layer>(overlay: &Overlay<L>, node: &Arc<Node<L>>) -> Result<Content> {
    overlay.forget_some();
    let _tree = overlay.tree.read();
    let mut dir = node.dir()?;
    overlay.read_dir(node, &mut dir)?;
    let Dir { lowers, names: Some(names), .. } = &*dir else { return Err(Error::new(EIO)) };
    let layers = overlay.layer_digests();
    let parts = lowers.iter().map(|dir| overlay.part(dir, &layers)).collect();
    let entry = |slot: &Slot<L>| {
        let places = if slot.visible()?.kind == Kind::Dir {
            slot.merging().collect()
        } else {
            slot.lower.iter().map(|lower| lower.dir).collect()
        };
        Some(Entry { name: slot.name.clone(), kind: slot.visible()?.kind, places, is_copy: slot.part })
    };
    let mut entries: Vec<_> = names.after(0).filter_map(|(_, slot)| entry(slot)).collect();
    entries.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(Content { parts, entries })
}

impl<L: Layer> Overlay<L> {
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
        let is_upper = self.partials.shown && dir.index() == 0;
        Part { layer, is_upper, path: names.iter().rev().collect() }
    }
}
