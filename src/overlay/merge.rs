//! One directory, read from all its layers.
//!
//! A directory is read whole, once: then every name in it is known in all layers, also those that
//! do not exist, and nobody needs to be asked again. The layers come topmost first; a marker ends
//! what shows from those below it.
//!
//! What one layer has is read by [`listing::read`], in the formats in which the layer may be
//! written.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{EIO, ENOENT, Error};

use super::Overlay;
use super::names::Names;
use super::node::{Dir, Node};
use super::partial::source_dir;
use super::stack::LayerDir;
use super::trust::{Author, Way};
use crate::format::listing::{self, LayerListing, Marks, Reading};
use crate::format::{self, PartOf, Redirect};
use crate::layer::{Kind, Layer, Object, Result};

/// What one layer's directory says of the layers below it.
#[derive(Default)]
struct Narrows {
    opaque: bool,
    redirect: Option<Way>,
}

impl<L: Layer> Overlay<L> {
    /// Reads a directory, unless it was.
    pub(super) fn read_dir<'d>(&self, node: &Arc<Node<L>>, dir: &'d mut Dir<L>) -> Result<&'d mut Names<L>> {
        if dir.names.is_none() {
            let names = self.merge(node, dir)?;
            self.known.add_dir(node, names.len());
            dir.names = Some(names);
        }
        dir.names.as_mut().ok_or(Error::new(EIO))
    }

    /// The names of a directory in all its layers.
    fn merge(&self, node: &Arc<Node<L>>, dir: &mut Dir<L>) -> Result<Names<L>> {
        let mut names = Names::new();
        let mut rest = dir.lowers.clone();
        let (mut parts, maps) = match dir.upper.clone() {
            Some(upper) => self.read_upper(node, dir, &upper, &mut names, &mut rest)?,
            None => (Vec::new(), Vec::new()),
        };
        let lowers = self.read_lowers(dir.upper.is_some(), rest, &mut names, &mut parts)?;
        names.finish();
        if let Some(upper) = &dir.upper {
            dir.foreign |= self.sort_parts(upper, &lowers, &mut names, &parts, &maps)?;
        } else {
            self.show_parts(&lowers, &mut names, &parts)?;
        }
        dir.lowers = lowers;
        Ok(names)
    }

    /// Enters what the upper layer has, and takes out of `rest` what it hides. Answers its partial
    /// copies, and the maps of some.
    fn read_upper(
        &self,
        node: &Arc<Node<L>>,
        dir: &mut Dir<L>,
        upper: &Arc<LayerDir<L>>,
        names: &mut Names<L>,
        rest: &mut Vec<Arc<LayerDir<L>>>,
    ) -> Result<(Vec<PartOf>, Vec<PartOf>)> {
        let (listing, narrows) = self.list_layer(upper)?;
        for (name, kind, ino) in &listing.objects {
            names.add_upper(name, *kind, *ino);
        }
        for whiteout in &listing.whiteouts {
            names.add_whiteout(&whiteout.name);
        }
        let devices: Vec<_> = listing.whiteouts.iter().filter(|whiteout| whiteout.is_in_place()).collect();
        if self.format().features().zero_devices && !devices.is_empty() {
            if let Err(error) = self.make_markers(upper, devices.iter().map(|device| &*device.name)) {
                log::warn!("deletions of fuse-overlayfs cannot be written as markers: {error}");
            }
            node.state.lock().freshness.change();
        }
        self.narrow(upper, &narrows, rest)?;
        dir.foreign = !listing.odd.is_empty();
        (dir.opaque, dir.redirect) = (narrows.opaque, narrows.redirect);
        Ok((listing.parts, listing.maps))
    }

    /// Enters what the lower layers have, of which `rest` are the candidates. Answers those that
    /// merge. `parts` are the partial copies of the topmost one, if it is an upper layer that is
    /// only read.
    fn read_lowers(
        &self,
        has_upper: bool,
        mut rest: Vec<Arc<LayerDir<L>>>,
        names: &mut Names<L>,
        parts: &mut Vec<PartOf>,
    ) -> Result<Vec<Arc<LayerDir<L>>>> {
        let mut lowers = Vec::new();
        rest.reverse();
        while let Some(lower) = rest.pop() {
            // What is the first to be shown has its own attributes, which say who may read it.
            if (has_upper || !lowers.is_empty()) && !self.may_merge(&lower)? {
                break;
            }
            let (listing, narrows) = self.list_layer(&lower)?;
            let index = lowers.len() as u32;
            for (name, kind, ino) in &listing.objects {
                match self.hidden.contains(&(self.stack.device(&lower), *ino)) {
                    false => names.add_lower(name, *kind, *ino, index),
                    true => names.add_hidden(name, *kind, *ino, index),
                }
            }
            for whiteout in &listing.whiteouts {
                names.close(&whiteout.name);
            }
            if self.partials.shown && lower.index() == 0 {
                *parts = listing.parts;
                parts.retain(|(_, name)| listing.whiteouts.iter().all(|whiteout| whiteout.name != *name));
            }
            rest.reverse();
            self.narrow(&lower, &narrows, &mut rest)?;
            rest.reverse();
            lowers.push(lower);
        }
        Ok(lowers)
    }

    /// Notes which names of a directory of the upper layer have partial copies, and removes those
    /// that mean nothing any more. Answers whether some are left: that these lower layers cannot
    /// complete, or that could not be removed.
    fn sort_parts(
        &self,
        dir: &LayerDir<L>,
        lowers: &[Arc<LayerDir<L>>],
        names: &mut Names<L>,
        parts: &[PartOf],
        maps: &[PartOf],
    ) -> Result<bool> {
        let (mut lost, mut left) = (false, false);
        for part in parts {
            let (digest, name) = part;
            let slot = names.get_mut(name);
            let source = slot.as_deref().and_then(|slot| source_dir(slot, lowers));
            let is_from_lower = self.has_source(source, part)?;
            match slot {
                Some(slot) if slot.upper.is_some() || slot.whiteout => {
                    if is_from_lower || digest.is_none() {
                        left |= !self.discard_part(dir, part);
                        continue;
                    }
                }
                Some(slot) if is_from_lower => {
                    slot.part = true;
                    continue;
                }
                _ => {}
            }
            lost = true;
            self.tell_lost(part, source.is_some());
        }
        for map in maps.iter().filter(|map| !parts.contains(map)) {
            left |= !self.discard_part(dir, map);
        }
        if lost {
            self.partials.lost.store(true, Ordering::Relaxed);
        }
        Ok(lost || left)
    }

    /// Says that a partial copy is not shown, where the lower layers have another file of its name
    /// or none.
    pub(super) fn tell_lost(&self, (source, name): &PartOf, is_other: bool) {
        let file = format::part_names(name, *source, self.name_max).map(|(file, _)| file).unwrap_or_default();
        let why = match is_other {
            true => "the lower layers have another file than the one that was being changed",
            false => "no lower layer has the file",
        };
        log::warn!("a change of {name:?} is not shown, since {why}; what was written is kept beside it, in {file:?}");
    }

    /// Takes from `rest`, the directories that would merge below `dir`, what the marks in `dir`
    /// say.
    fn narrow(&self, dir: &LayerDir<L>, narrows: &Narrows, rest: &mut Vec<Arc<LayerDir<L>>>) -> Result<()> {
        if narrows.opaque {
            rest.clear();
        } else if let Some(way) = &narrows.redirect {
            let way = Way { author: Author::and(way.author, dir.author()), ..way.clone() };
            *rest = self.resolve(&way, self.stack.roots_below(dir).to_vec())?;
        }
        Ok(())
    }

    /// The directories that merge under a path of the tree that `roots` make, topmost first: none
    /// if it is not a directory there, or one that the author of the way may not go.
    pub(super) fn resolve(&self, way: &Way, roots: Vec<Arc<LayerDir<L>>>) -> Result<Vec<Arc<LayerDir<L>>>> {
        let mut dirs = self.merging(roots)?;
        for name in way.path.iter() {
            let mut below = Vec::new();
            for dir in dirs {
                if let Some(child) = self.lower_dir(&dir, name, way.author)? {
                    if way.author.is_some() && !self.may_merge(&child)? {
                        break;
                    }
                    below.push(child);
                } else if listing::kind_of(self.stack.layer(&dir), &*self.stack.open(&dir)?, name)?.is_some() {
                    break;
                }
                if self.is_whited_out(&dir, name)? {
                    break;
                }
            }
            dirs = self.merging(below)?;
        }
        Ok(dirs)
    }

    /// Of directories that have one name in several layers, topmost first, those that merge.
    fn merging(&self, candidates: Vec<Arc<LayerDir<L>>>) -> Result<Vec<Arc<LayerDir<L>>>> {
        let mut dirs = Vec::new();
        for dir in candidates {
            if !dirs.is_empty() && !self.may_merge(&dir)? {
                break;
            }
            let narrows = self.narrows(&dir, &self.marks(&dir)?)?;
            let below = self.stack.roots_below(&dir).to_vec();
            let author = dir.author();
            dirs.push(dir);
            if narrows.opaque {
                break;
            } else if let Some(way) = narrows.redirect {
                dirs.extend(self.resolve(&Way { author: Author::and(way.author, author), ..way }, below)?);
                break;
            }
        }
        Ok(dirs)
    }

    /// The directory `name` of `dir`, None if there is none.
    fn lower_dir(
        &self,
        dir: &Arc<LayerDir<L>>,
        name: &OsStr,
        author: Option<Author>,
    ) -> Result<Option<Arc<LayerDir<L>>>> {
        Ok(match self.stack.stat(dir, name) {
            Ok(stat) if stat.kind == Kind::Dir => Some(self.stack.child_for(dir, name, author)),
            Ok(_) => None,
            Err(error) if error.errno == ENOENT => None,
            Err(error) => return Err(error),
        })
    }

    /// Whether a directory of a layer has the marker of a name.
    pub(super) fn is_whited_out(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<bool> {
        listing::has_marker(self.stack.layer(dir), &*self.stack.open(dir)?, name, self.name_max)
    }

    /// How the marks of the layer are read that `dir` is in.
    pub(super) fn reading(&self, dir: &LayerDir<L>) -> Reading {
        if self.stack.is_upper(dir) { Reading::upper(self.format()) } else { Reading::LOWER }
    }

    /// The marks of a directory, without reading all of it.
    fn marks(&self, dir: &LayerDir<L>) -> Result<Marks> {
        listing::read_marks(self.stack.layer(dir), &*self.stack.open(dir)?, self.reading(dir))
    }

    /// What the marks of a directory say. A redirect that names no path hides the layers below,
    /// since it may have been there to hide them.
    fn narrows(&self, dir: &LayerDir<L>, marks: &Marks) -> Result<Narrows> {
        let Some(redirect) = marks.redirect() else {
            return Ok(Narrows { opaque: marks.is_opaque(), redirect: None });
        };
        let way = match redirect {
            Redirect::Path(path) => Some(Way { path: path.clone(), author: None }),
            Redirect::Sibling(name) => {
                let above = self.stack.parent(dir).map(|(above, _)| self.path_below(&above)).transpose()?.flatten();
                above.map(|above| above.join(name))
            }
            Redirect::Nothing => {
                let layer = dir.index();
                log::warn!("a directory of layer {layer} has a redirect that names no path: nothing merges with it");
                None
            }
        };
        let Some(mut way) = way else {
            return Ok(Narrows { opaque: true, redirect: None });
        };
        way.author = Author::and(way.author, self.redirect_author(dir, marks)?);
        Ok(Narrows { opaque: marks.is_opaque(), redirect: Some(way) })
    }

    /// The path, in the layers below its own, of what a directory merges with; None if it merges
    /// with nothing.
    pub(super) fn path_below(&self, dir: &Arc<LayerDir<L>>) -> Result<Option<Way>> {
        let (mut dir, mut names, mut author) = (dir.clone(), Vec::new(), None);
        let mut way = loop {
            let marks = self.marks(&dir)?;
            if marks.is_opaque() {
                return Ok(None);
            }
            author = Author::and(author, self.redirect_author(&dir, &marks)?);
            let (above, name) = match (marks.redirect(), self.stack.parent(&dir)) {
                (Some(Redirect::Path(path)), _) => break Way { path: path.clone(), author: None },
                (Some(Redirect::Sibling(name)), Some((above, _))) => (above, name.clone()),
                (Some(_), _) => return Ok(None),
                (None, Some(place)) => place,
                (None, None) => break Way { path: PathBuf::new(), author: None },
            };
            names.push(name);
            dir = above;
        };
        way.path.extend(names.iter().rev());
        Ok(Some(Way { author: Author::and(way.author, author), ..way }))
    }

    /// The author of the redirect of a directory, if there is one.
    fn redirect_author(&self, dir: &LayerDir<L>, marks: &Marks) -> Result<Option<Author>> {
        let attributes = &marks.attributes;
        Ok(match &marks.redirect_file {
            Some(file) => file.stat.as_ref().and_then(|stat| self.author(stat)),
            None if attributes.redirect.is_some() && attributes.redirect_is_users => {
                self.author(&self.stack.layer(dir).stat(Object::Dir(&*self.stack.open(dir)?))?)
            }
            None => None,
        })
    }

    fn list_layer(&self, dir: &LayerDir<L>) -> Result<(LayerListing, Narrows)> {
        let (layer, open) = (self.stack.layer(dir), self.stack.open(dir)?);
        let listing = listing::read(layer, &*open, self.reading(dir), || self.has_devices(dir))?;
        let narrows = self.narrows(dir, &listing.marks)?;
        Ok((listing, narrows))
    }

    /// The path in the merged lower layers that a directory of the upper layer merges with. EXDEV
    /// if that is on the word of somebody who is not trusted: what the overlay writes down is. None
    /// of the directories on the way may be locked.
    pub(super) fn lower_path(&self, node: &Arc<Node<L>>) -> Result<PathBuf> {
        let mut names = Vec::new();
        let mut node = node.clone();
        let mut path = loop {
            if let Some(way) = node.dir()?.redirect.clone() {
                break way.trusted()?;
            }
            let place = node.state.lock().places.first().cloned();
            match place {
                Some(place) => {
                    names.push(place.name);
                    node = place.parent;
                }
                None => break PathBuf::new(),
            }
        };
        path.extend(names.iter().rev().map(|name| Path::new(OsStr::from_bytes(name.as_bytes()))));
        Ok(path)
    }
}
