//! One directory, read from all its layers.
//!
//! A directory is read whole, once: then every name in it is known in all layers, also those that do not exist, and nobody needs
//! to be asked again. The layers come topmost first; a marker ends what shows from those below it.
//!
//! Lower layers are read in both formats, whoever made them: that of [`format`], and the kernel's. The upper layer is read in the one in
//! which it is written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{EIO, ENOENT, Error};

use super::Overlay;
use super::names::Names;
use super::node::{Dir, Node};
use super::partial::lender;
use super::stack::LayerDir;
use super::trust::{Author, Way};
use super::xattr::names;
use crate::format::{self, Meaning, PartOf, kernel};
use crate::layer::{Access, Kind, Layer, Object, Result, Stat};

/// What one layer has in one directory.
struct Listing {
    objects: Vec<(OsString, Kind, u64)>,
    whiteouts: Vec<OsString>,
    /// Those of which a device is the deletion.
    devices: Vec<OsString>,
    /// The partial copies, and the maps of some.
    parts: Vec<PartOf>,
    maps: Vec<PartOf>,
    marks: Marks,
    /// Whether there are reserved names that mean nothing to us.
    foreign: bool,
}

/// What one layer's directory says of the layers below it.
#[derive(Default)]
struct Marks {
    opaque: bool,
    redirect: Option<Way>,
}

impl<L: Layer> Overlay<L> {
    /// Reads a directory, unless it was.
    pub(super) fn read_dir<'d>(&self, node: &Arc<Node<L>>, dir: &'d mut Dir<L>) -> Result<&'d mut Names<L>> {
        if dir.names.is_none() {
            let mut names = Names::new();
            let (mut parts, mut maps) = (Vec::new(), Vec::new());
            let mut rest = dir.lowers.clone();
            if let Some(upper) = dir.upper.clone() {
                let listing = self.list_layer(&upper)?;
                for (name, kind, ino) in &listing.objects {
                    names.add_upper(name, *kind, *ino);
                }
                for name in &listing.whiteouts {
                    names.add_whiteout(name);
                }
                if self.format().features().zero_devices && !listing.devices.is_empty() {
                    match self.make_markers(&upper, &listing.devices) {
                        Err(error) => log::warn!("deletions of fuse-overlayfs cannot be written as markers: {error}"),
                        Ok(()) => node.state.lock().stale = true,
                    }
                }
                self.narrow(&upper, &listing.marks, &mut rest)?;
                dir.foreign = listing.foreign;
                dir.opaque = listing.marks.opaque;
                dir.redirect = listing.marks.redirect;
                (parts, maps) = (listing.parts, listing.maps);
            }
            let mut lowers = Vec::new();
            rest.reverse();
            while let Some(lower) = rest.pop() {
                // What is the first to be shown has its own attributes, which say who may read it.
                if (dir.upper.is_some() || !lowers.is_empty()) && !self.may_merge(&lower)? {
                    break;
                }
                let listing = self.list_layer(&lower)?;
                let index = lowers.len() as u32;
                for (name, kind, ino) in &listing.objects {
                    match self.hidden.contains(&(self.stack.device(&lower), *ino)) {
                        false => names.add_lower(name, *kind, *ino, index),
                        true => names.add_hidden(name, *kind, *ino, index),
                    }
                }
                for name in &listing.whiteouts {
                    names.close(name);
                }
                if self.partials.shown && lower.index() == 0 {
                    parts = listing.parts;
                    parts.retain(|(_, name)| !listing.whiteouts.contains(name));
                }
                rest.reverse();
                self.narrow(&lower, &listing.marks, &mut rest)?;
                rest.reverse();
                lowers.push(lower);
            }
            names.finish();
            if let Some(upper) = &dir.upper {
                dir.foreign |= self.sort_parts(upper, &lowers, &mut names, &parts, &maps)?;
            } else {
                self.show_parts(&lowers, &mut names, &parts)?;
            }
            dir.lowers = lowers;
            self.known.add_dir(node, names.len());
            dir.names = Some(names);
        }
        dir.names.as_mut().ok_or(Error::new(EIO))
    }

    /// Notes which names of a directory of the upper layer have partial copies, and removes those that mean nothing any more. Answers whether
    /// some are left: that these lower layers cannot complete, or that could not be removed.
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
            let (source, name) = part;
            let slot = names.get_mut(name);
            let lender = slot.as_deref().and_then(|slot| lender(slot, lowers));
            let is_lent = self.is_lent_by(lender, part)?;
            match slot {
                Some(slot) if slot.upper.is_some() || slot.whiteout => {
                    if is_lent || source.is_none() {
                        left |= !self.discard_part(dir, part);
                        continue;
                    }
                }
                Some(slot) if is_lent => {
                    slot.part = true;
                    continue;
                }
                _ => {}
            }
            lost = true;
            self.tell_lost(part, lender.is_some());
        }
        for map in maps.iter().filter(|map| !parts.contains(map)) {
            left |= !self.discard_part(dir, map);
        }
        if lost {
            self.partials.lost.store(true, Ordering::Relaxed);
        }
        Ok(lost || left)
    }

    /// Says that a partial copy is not shown, where the lower layers have another file of its name or none.
    pub(super) fn tell_lost(&self, (source, name): &PartOf, is_other: bool) {
        let file = format::part_names(name, *source, self.name_max).map(|(file, _)| file).unwrap_or_default();
        let why = match is_other {
            true => "the lower layers have another file than the one that was being changed",
            false => "no lower layer has the file",
        };
        log::warn!("a change of {name:?} is not shown, since {why}; what was written is kept beside it, in {file:?}");
    }

    /// Takes from `rest`, the directories that would merge below `dir`, what the marks in `dir` say.
    fn narrow(&self, dir: &LayerDir<L>, marks: &Marks, rest: &mut Vec<Arc<LayerDir<L>>>) -> Result<()> {
        if marks.opaque {
            rest.clear();
        } else if let Some(way) = &marks.redirect {
            let way = Way { author: Author::and(way.author, dir.author()), ..way.clone() };
            *rest = self.resolve(&way, self.stack.roots_below(dir).to_vec())?;
        }
        Ok(())
    }

    /// The directories that merge under a path of the tree that `roots` make, topmost first: none if it is not a directory there, or one that
    /// the author of the way may not go.
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
                } else if self.kind_in(&dir, name)?.is_some() {
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
            let marks = self.marks(&dir)?;
            let below = self.stack.roots_below(&dir).to_vec();
            let author = dir.author();
            dirs.push(dir);
            if marks.opaque {
                break;
            } else if let Some(way) = marks.redirect {
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

    /// What is there under a name of a layer's directory.
    fn kind_in(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<Option<Kind>> {
        match self.stack.stat(dir, name) {
            Ok(stat) => Ok(Some(stat.kind)),
            Err(error) if error.errno == ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_whited_out(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<bool> {
        let marker = format::whiteout(name, self.name_max);
        match self.kind_in(dir, &marker.name)? {
            Some(kind) if !marker.content.is_empty() => {
                Ok(self.read_content(dir, &marker.name, kind)?.0 == marker.content)
            }
            found => Ok(found.is_some()),
        }
    }

    /// Whether the marks of the kernel's format mean anything in `dir`, if there are any.
    pub(super) fn has_kernel_marks(&self, dir: &LayerDir<L>) -> bool {
        let read = !self.stack.is_upper(dir) || self.format().features().attribute_marks;
        read && self.stack.layer(dir).capabilities().xattrs
    }

    /// What an entry of `dir` means.
    fn meaning<'n>(&self, dir: &LayerDir<L>, name: &'n OsStr) -> Meaning<'n> {
        if self.stack.is_upper(dir) { self.format().meaning(name) } else { format::meaning(name) }
    }

    /// What `dir` says of the layers below it, without reading all of it.
    fn marks(&self, dir: &LayerDir<L>) -> Result<Marks> {
        let (marks, more) = self.both_marks(dir)?;
        self.with_kernel_marks(dir, marks, &more)
    }

    /// The same in each format.
    fn both_marks(&self, dir: &LayerDir<L>) -> Result<(Marks, kernel::Marks)> {
        if self.stack.is_upper(dir) && !self.format().features().reserved_names {
            return Ok((Marks::default(), self.kernel_marks(dir)?));
        }
        let redirect = self.kind_in(dir, OsStr::new(format::REDIRECT))?;
        let opaque = self.kind_in(dir, OsStr::new(format::OPAQUE))?.is_some();
        Ok((self.marks_of(dir, opaque, redirect)?, self.kernel_marks(dir)?))
    }

    /// What the attributes of a directory say, in a layer that may come from the kernel's overlayfs.
    fn kernel_marks(&self, dir: &LayerDir<L>) -> Result<kernel::Marks> {
        if !self.has_kernel_marks(dir) {
            return Ok(kernel::Marks::default());
        }
        let (layer, open) = (self.stack.layer(dir), self.stack.open(dir)?);
        let object = Object::Dir(&*open);
        said(layer, object, &names(layer, object)?)
    }

    /// The marks of a directory in both formats.
    fn with_kernel_marks(&self, dir: &LayerDir<L>, marks: Marks, more: &kernel::Marks) -> Result<Marks> {
        let (opaque, mut redirect) = match &more.redirect {
            None => (false, None),
            Some(kernel::Redirect::Path(path)) => (false, Some(Way { path: path.clone(), author: None })),
            Some(kernel::Redirect::Sibling(name)) => {
                let above = self.stack.parent(dir).map(|(above, _)| self.path_below(&above)).transpose()?.flatten();
                (above.is_none(), above.map(|above| above.join(name)))
            }
            Some(kernel::Redirect::Nothing) => (true, None),
        };
        if let Some(way) = &mut redirect {
            way.author = Author::and(way.author, self.redirect_author(dir, more)?);
        }
        Ok(Marks { opaque: marks.opaque || more.opaque || opaque, redirect: marks.redirect.or(redirect) })
    }

    /// The path, in the layers below its own, of what a directory merges with; None if it merges with nothing.
    pub(super) fn path_below(&self, dir: &Arc<LayerDir<L>>) -> Result<Option<Way>> {
        let (mut dir, mut names, mut author) = (dir.clone(), Vec::new(), None);
        let mut way = loop {
            let (marks, more) = self.both_marks(&dir)?;
            if marks.opaque || more.opaque {
                return Ok(None);
            }
            if let Some(way) = marks.redirect {
                break way;
            }
            author = Author::and(author, self.redirect_author(&dir, &more)?);
            let (above, name) = match (more.redirect, self.stack.parent(&dir)) {
                (Some(kernel::Redirect::Path(path)), _) => break Way { path, author: None },
                (Some(kernel::Redirect::Sibling(name)), Some((above, _))) => (above, name),
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

    /// Who has a say in the redirect of the kernel's format in a directory, if there is one.
    fn redirect_author(&self, dir: &LayerDir<L>, marks: &kernel::Marks) -> Result<Option<Author>> {
        if marks.redirect.is_none() || !marks.redirect_is_users {
            return Ok(None);
        }
        Ok(self.author(&self.stack.layer(dir).stat(Object::Dir(&*self.stack.open(dir)?))?))
    }

    /// Takes out of the objects of a layer that may come from another overlay those that are deletions. Answers which of these are devices.
    fn kernel_whiteouts(
        &self,
        dir: &LayerDir<L>,
        marks: &kernel::Marks,
        objects: &mut Vec<(OsString, Kind, u64)>,
        whiteouts: &mut Vec<OsString>,
    ) -> Result<Vec<OsString>> {
        let is_upper = self.stack.is_upper(dir);
        let layer = self.stack.layer(dir);
        let is_whiteout = |name: &OsStr, kind| match kind {
            Kind::CharDev => Ok(kernel::is_whiteout(&self.stack.stat(dir, name)?) && !self.has_devices(dir)?),
            // The kernel does not look for them in an upper layer.
            Kind::File if marks.file_whiteouts && !is_upper => {
                let names = names(layer, Object::Entry(&*self.stack.open(dir)?, name))?;
                Ok(names.iter().any(|name| kernel::is_whiteout_mark(name)))
            }
            _ => Ok(false),
        };
        let mut devices = Vec::new();
        let mut result = Ok(());
        objects.retain(|(name, kind, _)| match is_whiteout(name, *kind) {
            Ok(false) => true,
            Ok(true) => {
                whiteouts.push(name.clone());
                if *kind == Kind::CharDev {
                    devices.push(name.clone());
                }
                false
            }
            Err(error) => {
                result = Err(error);
                true
            }
        });
        result.map(|()| devices)
    }

    /// The marks of a directory that has the opaque mark or not, and a redirect of this kind or none. A redirect that is no
    /// path hides what is below, since nobody knows what it was to show.
    fn marks_of(&self, dir: &LayerDir<L>, opaque: bool, redirect: Option<Kind>) -> Result<Marks> {
        let Some(kind) = redirect else {
            return Ok(Marks { opaque, redirect: None });
        };
        let (content, stat) = self.read_content(dir, OsStr::new(format::REDIRECT), kind)?;
        Ok(match format::redirect_path(&content).zip(stat) {
            Some((path, stat)) => Marks { opaque, redirect: Some(Way { path, author: self.author(&stat) }) },
            None => {
                log::warn!(
                    "a directory of layer {} has a redirect that names no path: nothing merges with it",
                    dir.index()
                );
                Marks { opaque: true, redirect: None }
            }
        })
    }

    fn list_layer(&self, dir: &LayerDir<L>) -> Result<Listing> {
        let open = self.stack.open(dir)?;
        let mut objects = Vec::new();
        let mut whiteouts = Vec::new();
        let mut long = Vec::new();
        let (mut parts, mut maps) = (Vec::new(), Vec::new());
        let (mut opaque, mut redirect, mut foreign) = (false, None, false);
        self.stack.layer(dir).list(&open, &mut |entry| match self.meaning(dir, entry.name) {
            Meaning::Object => objects.push((entry.name.to_owned(), entry.kind, entry.ino)),
            Meaning::Whiteout(name) => whiteouts.push(name.to_owned()),
            Meaning::LongWhiteout => long.push((entry.name.to_owned(), entry.kind)),
            Meaning::Opaque => opaque = true,
            Meaning::Redirect => redirect = Some(entry.kind),
            Meaning::Part(lent) if entry.kind == Kind::File => parts.push(lent.to_owned()),
            Meaning::Map(lent) if entry.kind == Kind::File => maps.push(lent.to_owned()),
            Meaning::Part(_) | Meaning::Map(_) | Meaning::Unknown => foreign = true,
        })?;
        for (marker, kind) in long {
            whiteouts.push(OsString::from_vec(self.read_content(dir, &marker, kind)?.0));
        }
        let more = self.kernel_marks(dir)?;
        let devices = self.kernel_whiteouts(dir, &more, &mut objects, &mut whiteouts)?;
        let marks = self.with_kernel_marks(dir, self.marks_of(dir, opaque, redirect)?, &more)?;
        Ok(Listing { objects, whiteouts, devices, parts, maps, marks, foreign })
    }

    /// The content of a small file of the format, and its attributes: nothing if what has its name is no file.
    fn read_content(&self, dir: &LayerDir<L>, name: &OsStr, kind: Kind) -> Result<(Vec<u8>, Option<Stat>)> {
        if kind != Kind::File {
            return Ok((Vec::new(), None));
        }
        let layer = self.stack.layer(dir);
        let file = layer.open_file(&*self.stack.open(dir)?, name, Access::Read)?;
        let stat = layer.stat(Object::File(&file))?;
        let mut content = vec![0; (stat.size as usize).min(format::CONTENT_MAX)];
        let read = layer.read_at(&file, &mut content, 0)?;
        content.truncate(read);
        Ok((content, Some(stat)))
    }

    /// The path in the merged lower layers that a directory of the upper layer merges with. EXDEV if that is on the word of somebody who is not
    /// trusted: what the overlay writes down is. None of the directories on the way may be locked.
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

/// What an object's attributes, which have these names, say in the kernel's format.
pub(crate) fn said<L: Layer>(layer: &L, object: Object<'_, L>, names: &[OsString]) -> Result<kernel::Marks> {
    let mut marks = kernel::Marks::default();
    for name in names.iter().filter(|name| kernel::is_mark(name)) {
        marks.add(name, &layer.xattr(object, name)?);
    }
    Ok(marks)
}
