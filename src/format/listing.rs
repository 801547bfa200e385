//! Reads one directory of a layer: its objects, and the marks in it.
//!
//! A lower layer may come from any overlay, so it is read in both formats. An upper layer is read
//! in its own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;

use super::attribute::names;
use super::{
    CONTENT_MAX, FIXED, Format, Meaning, OPAQUE, PartOf, REDIRECT, Redirect, fixed, kernel, meaning, redirect_path,
    whiteout,
};
use crate::errno::ENOENT;
use crate::layer::{Access, Fixed, Kind, Layer, Object, Result, Stat, read_start};

/// The kinds of marks that are read in a layer.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Whether names that begin with `.wh.` are marks.
    reserved_names: bool,
    /// Whether attributes are marks.
    attributes: bool,
    /// Whether files with an attribute may be whiteouts.
    file_whiteouts: bool,
}

/// The number of names of a directory that a walk has in memory at once, or twice as many for a
/// moment. The rest is listed again.
pub const NAMES_AT_ONCE: usize = 1 << 16;

/// The names of a directory that are wanted: a number of them from one on, in the order of their
/// bytes.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'n> {
    /// The first name that may be wanted.
    pub from: &'n OsStr,
    /// The number of names. There may be some more.
    pub most: usize,
}

/// A run of names of a directory, in the order of their bytes, of which all are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The first name that may be in it.
    pub from: OsString,
    /// The first name behind it. None: it goes to the end.
    pub to: Option<OsString>,
}

impl Extent<'_> {
    /// All names.
    pub fn all() -> Self {
        Extent { from: OsStr::new(""), most: usize::MAX }
    }
}

impl Run {
    /// Whether a name is in it, if the directory has that.
    pub fn has(&self, name: &OsStr) -> bool {
        name >= self.from && self.to.as_ref().is_none_or(|to| name < to)
    }

    /// Whether all names are in it.
    pub fn is_whole(&self) -> bool {
        self.from.is_empty() && self.to.is_none()
    }

    /// Ends it before `to`, if that is not behind its end.
    pub fn end(&mut self, to: Option<OsString>) {
        self.to = [self.to.take(), to].into_iter().flatten().min();
    }
}

/// One directory of one layer, or a run of its names.
#[derive(Default)]
pub struct LayerListing {
    /// The objects, with the layer's inode numbers.
    pub objects: Vec<(OsString, Kind, u64)>,
    /// The whiteouts, of deleted names.
    pub whiteouts: Vec<Hidden>,
    /// The partial copies.
    pub parts: Vec<PartOf>,
    /// The maps of partial copies.
    pub maps: Vec<PartOf>,
    /// The marks of the directory itself.
    pub marks: Marks,
    /// Reserved names without a meaning in a listing, and marks of the wrong kind. Only a run from
    /// the first name on has them.
    pub odd: Vec<(OsString, Kind)>,
    /// The run.
    pub run: Run,
}

impl LayerListing {
    /// Returns the number of names, of objects and of marks.
    fn len(&self) -> usize {
        self.objects.len() + self.whiteouts.len() + self.parts.len() + self.maps.len()
    }

    /// Ends the run behind its first `most` names. A name may have several entries.
    fn cut(&mut self, most: usize) {
        if self.len() <= most {
            return;
        }
        let whiteouts = self.whiteouts.iter().map(|whiteout| &whiteout.name).filter(|name| !name.is_empty());
        let parts = self.parts.iter().chain(&self.maps).map(|(_, name)| name);
        let mut names: Vec<_> = self.objects.iter().map(|(name, ..)| name).chain(whiteouts).chain(parts).collect();
        names.sort_unstable();
        names.dedup();
        let Some(to) = names.get(most).map(|name| (*name).clone()) else { return };
        self.run.end(Some(to));
        let LayerListing { objects, whiteouts, parts, maps, run, .. } = self;
        objects.retain(|(name, ..)| run.has(name));
        // The name of a long whiteout is not known yet.
        whiteouts.retain(|whiteout| whiteout.name.is_empty() || run.has(&whiteout.name));
        parts.retain(|(_, name)| run.has(name));
        maps.retain(|(_, name)| run.has(name));
    }
}

/// A whiteout.
pub struct Hidden {
    /// The hidden name. Empty for a long whiteout without one.
    pub name: OsString,
    /// The name and kind of the whiteout itself.
    pub marker: OsString,
    /// The kind of the marker.
    pub kind: Kind,
}

/// The marks of a directory that limit what the layers below show in it, in each format.
#[derive(Default)]
pub struct Marks {
    /// Whether it has the opaque marker.
    has_opaque_file: bool,
    /// The file with its redirect.
    pub redirect_file: Option<RedirectFile>,
    /// Whether a file says that it is immutable or append-only.
    fixed_file: Fixed,
    /// The marks in its attributes.
    pub attributes: kernel::Marks,
}

/// A file [`REDIRECT`], or another object with that name.
pub struct RedirectFile {
    /// A file, unless it is damaged.
    pub kind: Kind,
    redirect: Redirect,
    /// The attributes of the file. None if it is no file.
    pub stat: Option<Stat>,
}

impl Marks {
    /// Whether the directory hides the layers below.
    pub fn is_opaque(&self) -> bool {
        self.has_opaque_file || self.attributes.opaque
    }

    /// Returns the redirect that counts. A file has precedence over an attribute.
    pub fn redirect(&self) -> Option<&Redirect> {
        self.redirect_file.as_ref().map(|file| &file.redirect).or(self.attributes.redirect.as_ref())
    }

    /// Whether a mark says that the directory is immutable or append-only.
    pub fn fixed(&self) -> Fixed {
        self.fixed_file.or(self.attributes.fixed)
    }
}

impl Reading {
    /// The marks of a lower layer.
    pub const LOWER: Self = Reading { reserved_names: true, attributes: true, file_whiteouts: true };

    /// Returns the marks of an upper layer in this format.
    pub fn upper(format: Format) -> Self {
        let features = format.features();
        let (reserved_names, attributes) = (features.reserved_names, features.attribute_marks);
        // The kernel recognizes such files in no upper layer.
        Reading { reserved_names, attributes, file_whiteouts: false }
    }

    /// Returns the meaning of the entry `name` of a directory.
    pub fn meaning(self, name: &OsStr) -> Meaning<'_> {
        if self.reserved_names { meaning(name) } else { Meaning::Object }
    }

    /// Returns the names of an object's attributes, if attributes are marks in the layer.
    ///
    /// # Errors
    ///
    /// Those of [`Layer::xattrs`], but not EOPNOTSUPP.
    pub fn attributes<L: Layer>(self, layer: &L, object: Object<'_, L>) -> Result<Vec<OsString>> {
        if self.attributes && layer.capabilities().xattrs { names(layer, object) } else { Ok(Vec::new()) }
    }
}

impl Hidden {
    /// Whether the whiteout has the name itself.
    pub fn is_in_place(&self) -> bool {
        self.marker == self.name
    }
}

/// Reads a run of the names of a directory, and its marks. `has_devices` returns whether a device
/// with the number 0 is a device in this layer, not a whiteout.
///
/// # Errors
///
/// Those of the layer.
pub fn read<L: Layer>(
    layer: &L,
    dir: &L::Dir,
    reading: Reading,
    extent: Extent<'_>,
    has_devices: impl FnMut() -> Result<bool>,
) -> Result<LayerListing> {
    let (mut listing, [redirect, fixed]) = read_names(layer, dir, reading, extent)?;
    for long in listing.whiteouts.iter_mut().filter(|whiteout| whiteout.name.is_empty()) {
        long.name = OsString::from_vec(content(layer, dir, &long.marker, long.kind)?.0);
    }
    let LayerListing { whiteouts, run, .. } = &mut listing;
    whiteouts.retain(|whiteout| run.has(&whiteout.name));
    listing.marks.attributes = kernel::marks(layer, Object::Dir(dir), &reading.attributes(layer, Object::Dir(dir))?)?;
    find_whiteouts_in_place(layer, dir, reading, has_devices, &mut listing)?;
    listing.marks.redirect_file = redirect.map(|kind| redirect_file(layer, dir, kind)).transpose()?;
    if let Some(kind) = fixed {
        match fixed_file(layer, dir, kind)? {
            Some(fixed) => listing.marks.fixed_file = fixed,
            None if kind == Kind::File => listing.odd.push((FIXED.into(), kind)),
            None => {}
        }
    }
    Ok(listing)
}

/// Lists a directory, and sorts the entries by their names. Returns the kinds of its redirect file
/// and of [`FIXED`] too.
fn read_names<L: Layer>(
    layer: &L,
    dir: &L::Dir,
    reading: Reading,
    Extent { from, most }: Extent<'_>,
) -> Result<(LayerListing, [Option<Kind>; 2])> {
    let (mut listing, mut redirect, mut fixed) = (LayerListing::default(), None, None);
    listing.run.from = from.to_owned();
    let mut too_many = most.saturating_mul(2);
    layer.list(dir, &mut |entry| {
        let is_file = entry.kind == Kind::File;
        let means = reading.meaning(entry.name);
        if from.is_empty() && (means == Meaning::Unknown || means != Meaning::Object && !is_file) {
            listing.odd.push((entry.name.to_owned(), entry.kind));
        }
        let is_of_run = match &means {
            Meaning::Object => listing.run.has(entry.name),
            Meaning::Whiteout(name) => listing.run.has(name),
            Meaning::Part(of) | Meaning::Map(of) => listing.run.has(of.name),
            _ => true,
        };
        if !is_of_run {
            return;
        }
        let hides = |name: &OsStr| Hidden { name: name.to_owned(), marker: entry.name.to_owned(), kind: entry.kind };
        match means {
            Meaning::Object => listing.objects.push((entry.name.to_owned(), entry.kind, entry.ino)),
            Meaning::Whiteout(name) => listing.whiteouts.push(hides(name)),
            Meaning::LongWhiteout => listing.whiteouts.push(hides(OsStr::new(""))),
            Meaning::Opaque => listing.marks.has_opaque_file = true,
            Meaning::Redirect => redirect = Some(entry.kind),
            Meaning::Fixed => fixed = Some(entry.kind),
            Meaning::Part(of) if is_file => listing.parts.push(of.to_owned()),
            Meaning::Map(of) if is_file => listing.maps.push(of.to_owned()),
            Meaning::Part(_) | Meaning::Map(_) | Meaning::Unknown => {}
        }
        if listing.len() >= too_many {
            listing.cut(most);
            too_many = too_many.max(listing.len().saturating_mul(2));
        }
    })?;
    listing.cut(most);
    Ok((listing, [redirect, fixed]))
}

/// Moves the whiteouts that have the names themselves from the objects to the whiteouts.
fn find_whiteouts_in_place<L: Layer>(
    layer: &L,
    dir: &L::Dir,
    reading: Reading,
    mut has_devices: impl FnMut() -> Result<bool>,
    listing: &mut LayerListing,
) -> Result<()> {
    let has_file_whiteouts = listing.marks.attributes.file_whiteouts && reading.file_whiteouts;
    let mut is_whiteout = |name: &OsStr, kind| -> Result<bool> {
        Ok(match kind {
            Kind::CharDev => kernel::is_whiteout(&layer.stat(Object::Entry(dir, name))?) && !has_devices()?,
            Kind::File if has_file_whiteouts => {
                names(layer, Object::Entry(dir, name))?.iter().any(|name| kernel::is_whiteout_mark(name))
            }
            _ => false,
        })
    };
    let mut read = Ok(());
    let found = listing.objects.extract_if(.., |(name, kind, _)| {
        let found = read.and_then(|()| is_whiteout(name, *kind));
        read = found.map(drop);
        found.unwrap_or(false)
    });
    listing.whiteouts.extend(found.map(|(name, kind, _)| Hidden { marker: name.clone(), name, kind }));
    read
}

/// Reads the marks of a directory without its names.
///
/// # Errors
///
/// Those of the layer.
pub fn read_marks<L: Layer>(layer: &L, dir: &L::Dir, reading: Reading) -> Result<Marks> {
    let mut marks = Marks::default();
    if reading.reserved_names {
        let kind = kind_of(layer, dir, OsStr::new(REDIRECT))?;
        marks.has_opaque_file = kind_of(layer, dir, OsStr::new(OPAQUE))?.is_some();
        marks.redirect_file = kind.map(|kind| redirect_file(layer, dir, kind)).transpose()?;
    }
    marks.attributes = kernel::marks(layer, Object::Dir(dir), &reading.attributes(layer, Object::Dir(dir))?)?;
    Ok(marks)
}

/// Returns whether the attributes of an object say that it is immutable or append-only.
///
/// # Errors
///
/// Those of the layer.
pub fn fixed_by_attributes<L: Layer>(layer: &L, object: Object<'_, L>, reading: Reading) -> Result<Fixed> {
    Ok(kernel::marks(layer, object, &reading.attributes(layer, object)?)?.fixed)
}

/// Returns whether a mark says that a directory is immutable or append-only. Does not read all of
/// the directory.
///
/// # Errors
///
/// Those of the layer.
pub fn read_fixed<L: Layer>(layer: &L, dir: &L::Dir, reading: Reading) -> Result<Fixed> {
    let kind = if reading.reserved_names { kind_of(layer, dir, OsStr::new(FIXED))? } else { None };
    let by_file = kind.map(|kind| fixed_file(layer, dir, kind)).transpose()?.flatten();
    Ok(by_file.unwrap_or_default().or(fixed_by_attributes(layer, Object::Dir(dir), reading)?))
}

/// Whether a directory has the marker that hides `name`. Names have at most `name_max` bytes.
///
/// # Errors
///
/// Those of the layer.
pub fn has_marker<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr, name_max: usize) -> Result<bool> {
    let marker = whiteout(name, name_max);
    match kind_of(layer, dir, &marker.name)? {
        Some(kind) if !marker.content.is_empty() => Ok(content(layer, dir, &marker.name, kind)?.0 == marker.content),
        found => Ok(found.is_some()),
    }
}

/// Returns the kind of the object `name`, if there is one.
///
/// # Errors
///
/// Those of [`Layer::stat`], but not ENOENT.
pub fn kind_of<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr) -> Result<Option<Kind>> {
    match layer.stat(Object::Entry(dir, name)) {
        Ok(stat) => Ok(Some(stat.kind)),
        Err(error) if error.errno == ENOENT => Ok(None),
        Err(error) => Err(error),
    }
}

fn redirect_file<L: Layer>(layer: &L, dir: &L::Dir, kind: Kind) -> Result<RedirectFile> {
    let (content, stat) = content(layer, dir, OsStr::new(REDIRECT), kind)?;
    Ok(RedirectFile { kind, redirect: redirect_path(&content).map_or(Redirect::Nothing, Redirect::Path), stat })
}

/// Returns the meaning of the file [`FIXED`]. None if it is damaged.
fn fixed_file<L: Layer>(layer: &L, dir: &L::Dir, kind: Kind) -> Result<Option<Fixed>> {
    let (content, _) = content(layer, dir, OsStr::new(FIXED), kind)?;
    Ok(fixed::parse(&content))
}

/// Returns the content of a small file of the format, and its attributes. Returns no content if the
/// object is no file.
fn content<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr, kind: Kind) -> Result<(Vec<u8>, Option<Stat>)> {
    if kind != Kind::File {
        return Ok((Vec::new(), None));
    }
    let file = layer.open_file(dir, name, Access::Read)?;
    let stat = layer.stat(Object::File(&file))?;
    let content = read_start(layer, &file, (stat.size as usize).min(CONTENT_MAX))?;
    Ok((content, Some(stat)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::layer::OsLayer;

    /// Reads a directory in runs of so many names.
    fn runs(place: &std::path::Path, most: usize) -> Vec<LayerListing> {
        let layer = OsLayer::open(place, false).unwrap();
        let (root, mut runs, mut next) = (layer.root().unwrap(), Vec::new(), Some(OsString::new()));
        while let Some(from) = next {
            let extent = Extent { from: &from, most };
            let run = read(&layer, &root, Reading::LOWER, extent, || Ok(false)).unwrap();
            next = run.run.to.clone();
            runs.push(run);
        }
        runs
    }

    #[test]
    fn each_name_is_in_one_run_with_its_marks() {
        let place = tempfile::tempdir().unwrap();
        let long = "n".repeat(252);
        for name in (0..30).map(|number| format!("{number}")).chain([long.clone()]) {
            fs::write(place.path().join(&name), "").unwrap();
            let mark = whiteout(OsStr::new(&name), 255);
            fs::write(place.path().join(&mark.name), &mark.content).unwrap();
        }
        for digest in 0..40 {
            fs::write(place.path().join(format!(".wh..wh.part.{digest:032x}.7")), "").unwrap();
        }
        for name in [OPAQUE, ".wh..wh.odd"] {
            fs::write(place.path().join(name), "").unwrap();
        }
        let names = |runs: &[LayerListing]| {
            let of_run = |run: &LayerListing| {
                let whiteouts = run.whiteouts.iter().map(|whiteout| whiteout.name.clone());
                let all = run.objects.iter().map(|(name, ..)| name.clone()).chain(whiteouts);
                let mut all: Vec<_> = all.chain(run.parts.iter().map(|(_, name)| name.clone())).collect();
                assert!(all.iter().all(|name| run.run.has(name)) && run.marks.is_opaque());
                all.sort();
                all
            };
            runs.iter().flat_map(of_run).collect::<Vec<_>>()
        };
        let whole = runs(place.path(), usize::MAX);
        assert_eq!((whole.len(), names(&whole).len()), (1, 31 + 31 + 40));
        for most in [1, 2, 7, 31] {
            let parts = runs(place.path(), most);
            assert_eq!(names(&parts), names(&whole), "{most} at once");
            assert!(parts.iter().all(|run| run.objects.len() <= most), "{most} at once");
            assert_eq!(parts.iter().map(|run| run.odd.len()).sum::<usize>(), 1);
        }
    }
}
