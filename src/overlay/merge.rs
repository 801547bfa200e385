//! Merges one directory from all its layers.
//!
//! The engine reads a directory whole, once. From then on it knows every name in it, and every name
//! that is missing, without another call. The topmost layer comes first; a whiteout hides the name
//! in all layers below.
//!
//! An overlay for a walk reads a directory with very many names in runs, in the order of the bytes
//! of the names. Each run costs another listing of the layers. So its memory does not depend on the
//! size of a directory.
//!
//! [`listing::read`] reads one layer's part, in the formats that the layer may have.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{EIO, ENOENT, Error};

use super::Overlay;
use super::names::{self, Names, Slot};
use super::node::{Dir, Node};
use super::partial::source_dir;
use super::stack::LayerDir;
use super::trust::{Author, Way};
use crate::format::listing::{self, Extent, LayerListing, Marks, Reading, Run};
use crate::format::{self, PartOf, Redirect};
use crate::layer::{Kind, Layer, Object, Result};

/// How often a walk may come back to earlier names of a directory. A walk that does so oftener does
/// not go in the order of the names, and reading each run anew would take too long.
const RETURNS_MAX: u32 = 64;

/// The marks of one layer's directory that limit the merge with the layers below.
#[derive(Default)]
struct Narrows {
    opaque: bool,
    redirect: Option<Way>,
}

impl<L: Layer> Overlay<L> {
    /// Reads a directory, unless all its names are known.
    pub(super) fn read_dir<'d>(&self, node: &Arc<Node<L>>, dir: &'d mut Dir<L>) -> Result<&'d mut Names<L>> {
        if dir.names.as_ref().is_none_or(|names| !names.run().is_whole()) {
            self.read_run(node, dir, Extent::all())?;
        }
        dir.names.as_mut().ok_or(Error::new(EIO))
    }

    /// Does the same, but the names that are known may be a run that `name` is in.
    pub(super) fn read_dir_at<'d>(
        &self,
        node: &Arc<Node<L>>,
        dir: &'d mut Dir<L>,
        name: &OsStr,
    ) -> Result<&'d mut Names<L>> {
        self.read_near(node, dir, name, |names| names.tells(name))
    }

    /// Does the same as [`Overlay::read_dir_at`], with a run that has each name from `from` to its
    /// end.
    pub(super) fn read_dir_from<'d>(
        &self,
        node: &Arc<Node<L>>,
        dir: &'d mut Dir<L>,
        from: &OsStr,
    ) -> Result<&'d mut Names<L>> {
        self.read_near(node, dir, from, |names| names.run().has(from))
    }

    /// Reads some names of a directory, unless some are known. From then on the facts about the
    /// directory itself are known.
    pub(super) fn read_some(&self, node: &Arc<Node<L>>, dir: &mut Dir<L>) -> Result<()> {
        if dir.names.is_none() { self.read_dir_from(node, dir, OsStr::new("")).map(drop) } else { Ok(()) }
    }

    /// Reads a run with `name`, unless the names that are known do.
    fn read_near<'d>(
        &self,
        node: &Arc<Node<L>>,
        dir: &'d mut Dir<L>,
        name: &OsStr,
        do_known: impl Fn(&Names<L>) -> bool,
    ) -> Result<&'d mut Names<L>> {
        let Some(most) = self.settings.names_at_once.filter(|_| dir.returns < RETURNS_MAX) else {
            return self.read_dir(node, dir);
        };
        if dir.names.is_none() {
            // Most directories have no more names than a run.
            self.read_run(node, dir, Extent { from: OsStr::new(""), most })?;
        }
        let known = dir.names.as_ref().filter(|names| do_known(names) && names.grown() <= most);
        if known.is_none() {
            let goes_back = dir.names.as_ref().is_some_and(|names| *name < *names.run().from);
            dir.returns += u32::from(goes_back);
            self.read_run(node, dir, Extent { from: name, most })?;
        }
        dir.names.as_mut().ok_or(Error::new(EIO))
    }

    /// Reads a run of the names of a directory. Of those that were known, the ones stay whose
    /// objects are in use or are directories, which are evicted one by one. It takes no lock, since
    /// the caller may hold that of an object.
    fn read_run(&self, node: &Arc<Node<L>>, dir: &mut Dir<L>, extent: Extent<'_>) -> Result<()> {
        let is_in_use = |slot: &Slot<L>| {
            slot.child.as_ref().is_some_and(|child| Arc::strong_count(child) > 1 || child.kind() == Kind::Dir)
        };
        let in_use: Vec<_> = dir.names.take().into_iter().flat_map(Names::into_slots).filter(is_in_use).collect();
        let is_any_in_use = !in_use.is_empty();
        let merged = self.merge(node, dir, extent);
        let count = merged.as_ref().map(Names::len).map_err(|error| *error);
        let mut names = merged.unwrap_or_else(|_| Names::none());
        in_use.into_iter().for_each(|slot| names.take(slot));
        dir.names = (count.is_ok() || is_any_in_use).then_some(names);
        self.known.add_dir(node, count?);
        Ok(())
    }

    /// Whether a directory shows no name.
    pub(super) fn shows_nothing(&self, node: &Arc<Node<L>>, dir: &mut Dir<L>) -> Result<bool> {
        let mut from = OsString::new();
        loop {
            let names = self.read_dir_from(node, dir, &from)?;
            match names.run().to.clone() {
                _ if !names.is_empty() => return Ok(false),
                None => return Ok(true),
                Some(to) => from = to,
            }
        }
    }

    /// Returns a run of the names of a directory from all its layers.
    fn merge(&self, node: &Arc<Node<L>>, dir: &mut Dir<L>, extent: Extent<'_>) -> Result<Names<L>> {
        let mut names = Names::new();
        let mut rest = dir.lowers.clone();
        let mut run = Run { from: extent.from.to_owned(), to: None };
        let (mut parts, mut maps) = match dir.upper.clone() {
            Some(upper) => self.read_upper(node, dir, (&upper, extent), &mut names, &mut rest, &mut run)?,
            None => (Vec::new(), Vec::new()),
        };
        let lowers = self.read_lowers(node, dir, (rest, extent), &mut names, &mut parts, &mut run)?;
        for parts in [&mut parts, &mut maps] {
            parts.retain(|(_, name)| run.has(name));
        }
        names.finish(run);
        if let Some(upper) = &dir.upper {
            dir.foreign |= self.sort_parts(upper, &lowers, &mut names, &parts, &maps)?;
        } else {
            self.show_parts(&lowers, &mut names, &parts)?;
        }
        dir.lowers = lowers;
        Ok(names)
    }

    /// Enters the upper layer's part, and removes from `rest` the directories that it hides.
    /// Returns the partial copies in it, and the maps of some.
    fn read_upper(
        &self,
        node: &Arc<Node<L>>,
        dir: &mut Dir<L>,
        (upper, extent): (&Arc<LayerDir<L>>, Extent<'_>),
        names: &mut Names<L>,
        rest: &mut Vec<Arc<LayerDir<L>>>,
        run: &mut Run,
    ) -> Result<(Vec<PartOf>, Vec<PartOf>)> {
        let (mut listing, narrows) = self.list_layer(upper, extent)?;
        run.end(listing.run.to);
        names::sort(&mut listing.objects);
        for (name, kind, ino) in &listing.objects {
            names.add_upper(name, *kind, *ino);
        }
        for whiteout in &listing.whiteouts {
            names.add_whiteout(&whiteout.name);
        }
        let devices: Vec<_> = listing.whiteouts.iter().filter(|whiteout| whiteout.is_in_place()).collect();
        if self.format().features().zero_devices && !devices.is_empty() {
            if let Err(error) = self.make_markers(upper, devices.iter().map(|device| &*device.name)) {
                let path = self.stack.path(upper);
                log::warn!("cannot write deletions of fuse-overlayfs in {} as markers: {error}", path.display());
            }
            node.state.lock().freshness.change();
        }
        node.state.lock().marked = Some(listing.marks.fixed());
        self.narrow(upper, &narrows, rest)?;
        // Only the first run has them.
        dir.foreign = !listing.odd.is_empty() || dir.foreign && !extent.from.is_empty();
        (dir.opaque, dir.redirect) = (narrows.opaque, narrows.redirect);
        Ok((listing.parts, listing.maps))
    }

    /// Enters the parts of the lower layers, from the candidates `rest`. Returns those that merge.
    /// `parts` gets the partial copies of the topmost one, if that is an upper layer that the mount
    /// only reads.
    fn read_lowers(
        &self,
        node: &Arc<Node<L>>,
        dir: &mut Dir<L>,
        (mut rest, extent): (Vec<Arc<LayerDir<L>>>, Extent<'_>),
        names: &mut Names<L>,
        parts: &mut Vec<PartOf>,
        run: &mut Run,
    ) -> Result<Vec<Arc<LayerDir<L>>>> {
        let has_upper = dir.upper.is_some();
        let mut lowers = Vec::new();
        rest.reverse();
        while let Some(lower) = rest.pop() {
            // The first directory shows its own attributes, so it decides itself which users may
            // read it.
            if (has_upper || !lowers.is_empty()) && !self.may_merge(&lower)? {
                break;
            }
            let (mut listing, narrows) = self.list_layer(&lower, extent)?;
            run.end(listing.run.to);
            names::sort(&mut listing.objects);
            let index = lowers.len() as u32;
            if !has_upper && index == 0 {
                node.state.lock().marked = Some(listing.marks.fixed());
            }
            for (name, kind, ino) in &listing.objects {
                match self.hidden.contains(&(self.stack.device(&lower), *ino)) {
                    false => names.add_lower(name, *kind, *ino, index),
                    true => names.add_hidden(name, *kind, *ino, index),
                }
            }
            for whiteout in &listing.whiteouts {
                names.close(&whiteout.name);
            }
            if self.is_in_upper_layer(&lower) {
                dir.redirect = narrows.redirect.clone();
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

    /// Records which names in a directory of the upper layer have partial copies, and removes
    /// obsolete ones. Returns whether some stay: these lower layers cannot complete them, or the
    /// removal failed.
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
            self.tell_lost(dir, part, source.is_some());
        }
        for map in maps.iter().filter(|map| !parts.contains(map)) {
            left |= !self.discard_part(dir, map);
        }
        if lost {
            self.partials.lost.store(true, Ordering::Relaxed);
        }
        Ok(lost || left)
    }

    /// Logs that a partial copy in `dir` is not shown, since the lower layers have another file of
    /// its name, or none (`is_other` is false).
    pub(super) fn tell_lost(&self, dir: &LayerDir<L>, (source, name): &PartOf, is_other: bool) {
        let file = format::part_names(name, *source, self.name_max).map(|(file, _)| file).unwrap_or_default();
        let why = match is_other {
            true => "the lower layers have another file than the changed one",
            false => "no lower layer has the file",
        };
        log::warn!(
            "the mount does not show the change of {name:?}, since {why}; the written data stays in {}",
            self.stack.path(dir).join(file).display()
        );
    }

    /// Applies the marks of `dir` to `rest`, the directories that would merge below it.
    fn narrow(&self, dir: &LayerDir<L>, narrows: &Narrows, rest: &mut Vec<Arc<LayerDir<L>>>) -> Result<()> {
        if narrows.opaque {
            rest.clear();
        } else if let Some(way) = &narrows.redirect {
            let way = Way { author: Author::and(way.author, dir.author()), ..way.clone() };
            *rest = self.resolve(&way, self.stack.roots_below(dir).to_vec())?;
        }
        Ok(())
    }

    /// Returns the directories that merge under a path in the tree of `roots`, topmost first.
    /// Returns none if the path is no directory there, or if the author of the way may not go
    /// there.
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

    /// Returns those of the candidates that merge. The candidates are the directories of one name
    /// in several layers, topmost first.
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

    /// Returns the directory `name` of `dir`, or None if there is none.
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

    /// Whether a directory of a layer has the marker of `name`.
    pub(super) fn is_whited_out(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<bool> {
        listing::has_marker(self.stack.layer(dir), &*self.stack.open(dir)?, name, self.name_max)
    }

    /// Returns how to read the marks in the layer of `dir`.
    pub(super) fn reading(&self, dir: &LayerDir<L>) -> Reading {
        // A frozen layer of the other format may have marks of fuse-overlayfs.
        let is_kernels = self.is_frozen(dir) && self.format().features().is_kernels;
        if self.stack.is_upper(dir) || is_kernels { Reading::upper(self.format()) } else { Reading::LOWER }
    }

    /// Reads the marks of a directory without its names.
    fn marks(&self, dir: &LayerDir<L>) -> Result<Marks> {
        listing::read_marks(self.stack.layer(dir), &*self.stack.open(dir)?, self.reading(dir))
    }

    /// Returns the limits that the marks of a directory set. A redirect that names no path hides
    /// the layers below, since it may have been there to hide them.
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
                let path = self.stack.path(dir);
                log::warn!("{} has a redirect that names no path: nothing merges with it", path.display());
                None
            }
        };
        let Some(mut way) = way else {
            return Ok(Narrows { opaque: true, redirect: None });
        };
        way.author = Author::and(way.author, self.redirect_author(dir, marks)?);
        Ok(Narrows { opaque: marks.is_opaque(), redirect: Some(way) })
    }

    /// Returns the path, in the layers below, that a directory merges with. None if it merges with
    /// nothing.
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

    /// Returns the author of a directory's redirect, if there is one.
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

    fn list_layer(&self, dir: &LayerDir<L>, extent: Extent<'_>) -> Result<(LayerListing, Narrows)> {
        let (layer, open) = (self.stack.layer(dir), self.stack.open(dir)?);
        let listing = listing::read(layer, &*open, self.reading(dir), extent, || self.has_devices(dir))?;
        let narrows = self.narrows(dir, &listing.marks)?;
        Ok((listing, narrows))
    }

    /// Returns the path in the merged lower layers that a directory of the upper layer merges with.
    /// The caller must hold the lock of no directory on the way.
    ///
    /// # Errors
    ///
    /// - EXDEV: an untrusted user may have written a redirect on the way. The overlay would write
    ///   the path down, and so make it trusted.
    pub(super) fn lower_path(&self, node: &Arc<Node<L>>) -> Result<PathBuf> {
        self.lower_way(node)?.trusted()
    }

    /// Returns the path of [`Overlay::lower_path`] as a way. An untrusted user may have written the
    /// redirect on it.
    fn lower_way(&self, node: &Arc<Node<L>>) -> Result<Way> {
        let mut names = Vec::new();
        let mut node = node.clone();
        let mut way = loop {
            if let Some(way) = node.dir()?.redirect.clone() {
                break way;
            }
            let place = node.state.lock().places.first().cloned();
            match place {
                Some(place) => {
                    names.push(place.name);
                    node = place.parent;
                }
                None => break Way { path: PathBuf::new(), author: None },
            }
        };
        way.path.extend(names.iter().rev().map(|name| Path::new(OsStr::from_bytes(name.as_bytes()))));
        Ok(way)
    }

    /// Returns the path in the merged lower layers of a directory that they have, or of another
    /// object that the upper layer has not changed. None also without a known name. The caller must
    /// hold the lock of no directory.
    pub(super) fn way_in_lowers(&self, node: &Arc<Node<L>>) -> Result<Option<PathBuf>> {
        let place = {
            let state = node.state.lock();
            state.places.first().filter(|_| node.kind() == Kind::Dir || !state.upper).cloned()
        };
        let Some(place) = place else { return Ok(None) };
        if node.kind() != Kind::Dir {
            return Ok(Some(self.lower_way(&place.parent)?.path.join(&*place.name)));
        }
        {
            let mut dir = node.dir()?;
            if dir.upper.is_some() {
                self.read_some(node, &mut dir)?;
                if dir.lowers.is_empty() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.lower_way(node)?.path))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layer::OsLayer;
    use crate::layer::counted::Method;
    use crate::overlay::{Layers, Settings};

    const NAMES: usize = 60;

    /// Makes a lower and an upper layer with names that come from one, from both, or are deleted.
    fn layers() -> tempfile::TempDir {
        let place = tempfile::tempdir().unwrap();
        let [lower, upper] = ["lower", "upper"].map(|name| place.path().join(name));
        for number in 0..NAMES {
            let name = name(number);
            match number % 5 {
                0 => fs::create_dir_all(lower.join(&name).join("inside")).unwrap(),
                1 => fs::create_dir_all(upper.join(&name).join("new")).unwrap(),
                _ => fs::write(lower.join(&name), "").unwrap(),
            }
            match number % 7 {
                0 => fs::create_dir_all(upper.join(&name)).unwrap_or_default(),
                1 => fs::write(upper.join(format!(".wh.{name}")), "").unwrap(),
                _ => {}
            }
        }
        place
    }

    fn name(number: usize) -> String {
        format!("{:x}-{number}", number * 37 % NAMES)
    }

    fn overlay(place: &Path, names_at_once: Option<usize>) -> Overlay<OsLayer> {
        let layer = |name: &str| OsLayer::open(&place.join(name), false).unwrap();
        let layers = Layers { upper: None, work: None, lowers: vec![layer("upper"), layer("lower")] };
        let settings = Settings { read_only_upper: true, names_at_once, ..Settings::default() };
        Overlay::with_settings(layers, settings).unwrap()
    }

    /// Returns the names that a directory shows, and the largest number of names that were known.
    fn shown(overlay: &Overlay<OsLayer>, dir: &Arc<Node<OsLayer>>) -> (Vec<(OsString, Kind)>, usize) {
        let (mut shown, mut most) = (Vec::new(), 0);
        let each = &mut |name: &Arc<OsStr>, kind| {
            shown.push((name.to_os_string(), kind));
            most = most.max(dir.dir()?.names.as_ref().map_or(0, Names::len));
            Ok(())
        };
        overlay.each_shown(dir, each).unwrap();
        (shown, most)
    }

    #[test]
    fn a_directory_in_runs_is_the_same() {
        let place = layers();
        let whole = overlay(place.path(), None);
        let (all, _) = shown(&whole, whole.root());
        assert!(all.is_sorted_by_key(|(name, _)| name) && all.len() > NAMES / 2);
        for most in [1, 3, 20, 1000] {
            let runs = overlay(place.path(), Some(most));
            let (in_runs, known) = shown(&runs, runs.root());
            assert_eq!(in_runs, all, "{most} at once");
            assert!(known <= 2 * most, "{known} names for {most} at once");
            for number in (0..NAMES).rev() {
                let name = name(number);
                let [one, other] = [&whole, &runs].map(|overlay| {
                    let node = overlay.seek(overlay.root(), OsStr::new(&name)).unwrap()?;
                    let inside = if node.kind() == Kind::Dir { shown(overlay, &node).0 } else { Vec::new() };
                    Some((overlay.stat(&node).unwrap().ino, node.kind(), inside))
                });
                assert_eq!(one, other, "{name}");
            }
            let mut listed = Vec::new();
            let each = &mut |entry: crate::overlay::DirEntry<'_>| {
                listed.push((entry.name.to_owned(), entry.kind));
                true
            };
            runs.list(&runs.open(runs.root()), 0, each).unwrap();
            listed.sort_by(|one, other| one.0.cmp(&other.0));
            assert_eq!(listed, all);
        }
    }

    #[test]
    fn an_object_in_use_stays_while_other_names_are_read() {
        let place = layers();
        let overlay = overlay(place.path(), Some(3));
        let (all, _) = shown(&overlay, overlay.root());
        for (name, _) in [&all[0], &all[all.len() / 2]] {
            let node = overlay.lookup(overlay.root(), name).unwrap();
            assert_eq!(shown(&overlay, overlay.root()).0, all);
            assert!(Arc::ptr_eq(&node, &overlay.lookup(overlay.root(), name).unwrap()), "{}", name.display());
        }
    }

    #[test]
    fn a_walk_in_another_order_reads_a_directory_whole_at_last() {
        let place = layers();
        let overlay = overlay(place.path(), Some(3));
        let lists = || {
            let calls = overlay.stack.layers().filter_map(Layer::calls);
            calls.map(|calls| calls.of(Method::List)).sum::<u64>()
        };
        for number in 0..20 * NAMES {
            overlay.seek(overlay.root(), OsStr::new(&name(number * 7 % NAMES))).unwrap();
        }
        let first = lists();
        assert!(first <= 4 * u64::from(RETURNS_MAX) * 2, "{first} listings");
        for number in 0..20 * NAMES {
            overlay.seek(overlay.root(), OsStr::new(&name(number * 7 % NAMES))).unwrap();
        }
        assert_eq!(lists(), first);
    }
}
