//! Builds an upper layer anew in another format.
//!
//! Directories are made, with their attributes and the marks of the other format. Every other
//! object gets a further name, so no data is copied, and files with several names stay such files.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use crate::errno::{self, ENOENT};
use crate::format::attribute::{names, shown};
use crate::format::listing::{self, Extent, LayerListing, NAMES_AT_ONCE, Reading};
use crate::format::{self, DirMark, Format, Redirect, WhiteoutMark, kernel};
use crate::layer::{Kind, Layer, Object, Owner, Stat, XattrMode, write_all};
use crate::layer_tools::{Error, Progress, Watch, escaped};
use crate::overlay::Feature;
use crate::overlay::on_disk::{Features, LayerDir, Stack};

/// The mode of a directory under construction.
const PRIVATE: u32 = 0o700;

/// The work on one layer.
pub struct Relink<'a, L: Layer> {
    /// The layer with both directories.
    pub stack: &'a Stack<L>,
    /// The present format.
    pub from: Format,
    /// The wanted format.
    pub to: Format,
    /// The attribute of the root that tells the wanted format, if it has one.
    pub top_mark: Option<(OsString, &'static [u8])>,
    /// Whether each redirect counts, of any author.
    pub trusted: bool,
    pub watch: &'a dyn Watch,
}

/// A directory on the way.
struct Frame<L: Layer> {
    path: PathBuf,
    from: Arc<LayerDir<L>>,
    to: Arc<LayerDir<L>>,
    /// The path in the lower layers that the directory merges with, if any.
    merges: Option<PathBuf>,
    /// Names with a whiteout beside the object.
    beside: HashSet<OsString>,
    /// The objects of this run of the names that are left.
    rest: vec::IntoIter<(OsString, Kind, u64)>,
    /// The name at which the next run begins, if there may be more.
    next: Option<OsString>,
}

impl<L: Layer> Relink<'_, L> {
    /// Builds the directory `name` of `place` from the upper layer `from`. Returns the features
    /// that it has in its format.
    ///
    /// # Errors
    ///
    /// - [`Error::Refused`]: the other format cannot say what the layer says.
    /// - [`Error::At`]: an object cannot be read, linked or made.
    /// - [`Error::Stopped`]: the watch wants to stop.
    pub fn build(&self, from: &Arc<LayerDir<L>>, place: &Arc<LayerDir<L>>, name: &OsStr) -> Result<Features, Error> {
        let mut features = Features::default();
        let has_devices = self.has_devices(from).map_err(|error| failed(Path::new(""), error))?;
        let begin = |path: PathBuf, from, place: &Arc<LayerDir<L>>, name: &OsStr, merges, features: &mut Features| {
            self.begin(&path, from, place, name, merges, has_devices, features)
        };
        let mut frames = vec![begin(PathBuf::new(), from.clone(), place, name, Some(PathBuf::new()), &mut features)?];
        while let Some(frame) = frames.last_mut() {
            if self.watch.wants_stop() {
                return Err(Error::Stopped);
            }
            self.watch.advance(Progress { objects: 1, bytes: 0 });
            match frame.rest.next() {
                Some((name, Kind::Dir, _)) => {
                    let merges = frame.merges.as_ref().filter(|_| !frame.beside.contains(&name));
                    let merges = merges.map(|path| path.join(&name));
                    let child = self.stack.child(&frame.from, &name);
                    let next = begin(frame.path.join(&name), child, &frame.to, &name, merges, &mut features)?;
                    frames.push(next);
                }
                Some((name, kind, _)) => self.link(frame, &name, kind)?,
                None => match frame.next.take() {
                    Some(from) => {
                        let listing = self.read(&frame.path, &frame.from, &from, has_devices)?;
                        self.go_on(frame, listing)?;
                    }
                    None => {
                        self.finish(frame).map_err(|error| failed(&frame.path, error))?;
                        frames.pop();
                    }
                },
            }
        }
        Ok(features)
    }

    fn has_devices(&self, root: &LayerDir<L>) -> errno::Result<bool> {
        match self.stack.stat(root, OsStr::new(format::DEVICES)) {
            _ if !self.from.features().zero_devices => Ok(false),
            Err(error) if error.errno == ENOENT => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Makes the directory `name` of `place` with its marks and whiteouts. `merges` is what it
    /// merges with if it has no mark.
    #[expect(clippy::too_many_arguments, reason = "each is a part of one place")]
    fn begin(
        &self,
        path: &Path,
        from: Arc<LayerDir<L>>,
        place: &Arc<LayerDir<L>>,
        name: &OsStr,
        merges: Option<PathBuf>,
        has_devices: bool,
        features: &mut Features,
    ) -> Result<Frame<L>, Error> {
        let layer = self.stack.layer(place);
        let make = || {
            layer.create_dir(&*self.stack.open(place)?, name, PRIVATE, layer.identity())?;
            layer.stat(Object::Dir(&*self.stack.open(&from)?))
        };
        let stat = make().map_err(|error| failed(path, error))?;
        let listing = self.read(path, &from, OsStr::new(""), has_devices)?;
        let to = self.stack.child(place, name);
        let (merges, mark) = self.merging(path, &listing, &stat, merges)?;
        if matches!((&mark, &merges), (Some(DirMark::File { .. }), Some(_))) {
            *features = features.with(Feature::Redirects);
        }
        let fixed = listing.marks.fixed();
        let fixed_mark = fixed.is_any().then(|| self.to.fixed(fixed));
        if matches!(fixed_mark, Some(DirMark::File { .. })) {
            *features = features.with(Feature::FixedMarks);
        }
        let put = |mark| put_mark(layer, &*self.stack.open(&to)?, mark);
        [mark, fixed_mark].into_iter().flatten().try_for_each(put).map_err(|error| failed(path, error))?;
        let (beside, rest) = (HashSet::new(), Vec::new().into_iter());
        let mut frame = Frame { path: path.to_owned(), from, to, merges, beside, rest, next: None };
        self.go_on(&mut frame, listing)?;
        Ok(frame)
    }

    /// Reads the names of a directory from `first` on: all, or a run. They are sorted.
    fn read(&self, path: &Path, dir: &LayerDir<L>, first: &OsStr, has_devices: bool) -> Result<LayerListing, Error> {
        let extent = Extent { from: first, most: NAMES_AT_ONCE };
        let read = self.stack.open(dir).and_then(|open| {
            listing::read(self.stack.layer(dir), &*open, Reading::upper(self.from), extent, || Ok(has_devices))
        });
        let mut listing = read.map_err(|error| failed(path, error))?;
        self.check_names(path, &listing)?;
        listing.objects.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        listing.whiteouts.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok(listing)
    }

    /// Makes the whiteouts of a run of names. Its objects are the next ones.
    fn go_on(&self, frame: &mut Frame<L>, listing: LayerListing) -> Result<(), Error> {
        let layer = self.stack.layer(&frame.to);
        let open = self.stack.open(&frame.to).map_err(|error| failed(&frame.path, error))?;
        let hidden = listing.whiteouts.iter().map(|whiteout| &whiteout.name);
        let objects = listing.objects.iter().map(|(name, ..)| name);
        frame.beside.clear();
        for (name, is_beside) in in_both(hidden, objects) {
            if is_beside {
                frame.beside.insert(name.clone());
            } else {
                self.put_whiteout(&open, layer, name).map_err(|error| failed(&frame.path, error))?;
            }
        }
        (frame.rest, frame.next) = (listing.objects.into_iter(), listing.run.to);
        Ok(())
    }

    /// Returns what a directory merges with, and the mark that says so in the other format.
    fn merging(
        &self,
        path: &Path,
        listing: &LayerListing,
        stat: &Stat,
        merges: Option<PathBuf>,
    ) -> Result<(Option<PathBuf>, Option<DirMark>), Error> {
        let marks = &listing.marks;
        let target = match marks.redirect().filter(|_| !marks.is_opaque()) {
            None if marks.is_opaque() => return Ok((None, Some(self.to.opaque()))),
            // A whiteout beside the directory is the same as the mark.
            None => return Ok((merges.clone(), merges.is_none().then(|| self.to.opaque()))),
            Some(Redirect::Nothing) => return Ok((None, Some(self.to.opaque()))),
            Some(Redirect::Path(target)) => target.clone(),
            Some(Redirect::Sibling(name)) => merges.as_deref().unwrap_or(path).with_file_name(name),
        };
        if merges.as_ref() == Some(&target) {
            return Ok((merges, None));
        }
        let shown = escaped(path);
        if !self.to.features().redirects {
            return Err(Error::Refused(format!(
                "{shown} was renamed, which the kernel's format can say only where the attributes trusted.overlay.* \
                 can be set; use --deref, which copies the directory"
            )));
        }
        let author = match &marks.redirect_file {
            Some(file) => file.stat.as_ref(),
            None => marks.attributes.redirect_is_users.then_some(stat),
        };
        if let Some(author) = author.filter(|author| !self.trusted && !self.is_trusted(author)) {
            return Err(Error::Refused(format!(
                "{shown} has a redirect that the user {} or others can write, and the other format would trust it; \
                 use --deref, which copies the directory",
                author.uid
            )));
        }
        let mark = self.to.redirect(&target);
        Ok((Some(target), Some(mark)))
    }

    /// Whether only root or this user can write an object.
    fn is_trusted(&self, stat: &Stat) -> bool {
        (stat.uid == 0 || stat.uid == self.stack.top().identity().uid) && stat.mode & 0o022 == 0
    }

    /// Checks that the other format can have the names of a directory.
    fn check_names(&self, path: &Path, listing: &LayerListing) -> Result<(), Error> {
        let reserved = |name: &OsStr| self.to.is_reserved(name) && !self.from.is_reserved(name);
        if let Some((name, ..)) = listing.objects.iter().find(|(name, ..)| reserved(name)) {
            return Err(Error::Refused(format!(
                "{} cannot have that name in an OCI layer, where .wh. begins the name of a mark; rename it",
                escaped(&path.join(name))
            )));
        }
        // The names of aufs, the marks of the whole layer and the work directory are at the top.
        let is_known =
            |name: &OsStr| path.as_os_str().is_empty() || matches!(format::meaning(name), format::Meaning::Whiteout(_));
        if let Some((name, _)) = listing.odd.iter().find(|(name, _)| !is_known(name)) {
            return Err(Error::Refused(format!(
                "{} has a reserved name without a meaning; move it elsewhere",
                escaped(&path.join(name))
            )));
        }
        Ok(())
    }

    fn put_whiteout(&self, dir: &L::Dir, layer: &L, name: &OsStr) -> errno::Result<()> {
        let name_max = layer.stat_fs()?.name_max as usize;
        match self.to.whiteout(name, name_max) {
            WhiteoutMark::Beside(mark) => {
                let file = layer.create_file(dir, &mark.name, 0o600, layer.identity())?;
                write_all(layer, &file, &mark.content, 0)
            }
            WhiteoutMark::InPlace => layer.create_node(dir, name, Kind::CharDev, 0, 0, layer.identity()).map(drop),
        }
    }

    /// Gives an object other than a directory a name in the new layer.
    fn link(&self, frame: &Frame<L>, name: &OsStr, kind: Kind) -> Result<(), Error> {
        let (layer, path) = (self.stack.layer(&frame.from), frame.path.join(name));
        let look = || {
            let open = self.stack.open(&frame.from)?;
            let object = Object::Entry(&*open, name);
            let stat = layer.stat(object)?;
            let fixed = listing::fixed_by_attributes(layer, object, Reading::upper(self.from))?;
            let attributes = if kind == Kind::File { names(layer, object)? } else { Vec::new() };
            Ok((stat, fixed.or(stat.fixed), attributes))
        };
        let (stat, fixed, attributes) = look().map_err(|error| failed(&path, error))?;
        let refuse = |why: &str| Err(Error::Refused(format!("{} {why}", escaped(&path))));
        if fixed.is_any() {
            return refuse(
                "is immutable or append-only, so it can get no further name; remove the flag first (chattr)",
            );
        }
        if !self.to.features().zero_devices && kernel::is_whiteout(&stat) {
            return refuse(
                "is a device with the number 0, which is a deletion in the kernel's format; remove it first",
            );
        }
        if self.to.features().metacopies && attributes.iter().any(|name| kernel::is_metacopy_mark(name)) {
            return refuse(
                "has an attribute that says in the kernel's format that it has no data; remove the attribute",
            );
        }
        let linked = self
            .stack
            .open(&frame.from)
            .and_then(|from| layer.link(Object::Entry(&*from, name), &*self.stack.open(&frame.to)?, name));
        linked.map_err(|error| failed(&path, error))
    }

    /// Gives a directory its attributes, when everything is in it. The mode comes after ACLs, and
    /// the times come last.
    fn finish(&self, frame: &Frame<L>) -> errno::Result<()> {
        let layer = self.stack.layer(&frame.from);
        let (from, to) = (self.stack.open(&frame.from)?, self.stack.open(&frame.to)?);
        let (from, to) = (Object::Dir(&*from), Object::Dir(&*to));
        let (stat, made) = (layer.stat(from)?, layer.stat(to)?);
        let owner = Owner { uid: stat.uid, gid: stat.gid };
        if (made.uid, made.gid) != (owner.uid, owner.gid) {
            layer.set_owner(to, owner)?;
        }
        for name in names(layer, from)?.iter().filter(|name| is_kept(name)) {
            layer.set_xattr(to, name, &layer.xattr(from, name)?, XattrMode::Set)?;
        }
        if let Some((name, value)) = self.top_mark.as_ref().filter(|_| frame.path.as_os_str().is_empty()) {
            layer.set_xattr(to, name, value, XattrMode::Set)?;
        }
        layer.set_mode(to, stat.mode)?;
        layer.set_times(to, stat.atime, stat.mtime)
    }
}

/// Returns each of the sorted `names`, and whether the sorted `others` have it too. It takes one
/// pass through both: a directory may have a million of each.
fn in_both<'n, N: Ord + 'n>(
    names: impl Iterator<Item = &'n N>,
    others: impl Iterator<Item = &'n N>,
) -> impl Iterator<Item = (&'n N, bool)> {
    let mut others = others.peekable();
    names.map(move |name| {
        while others.next_if(|other| *other < name).is_some() {}
        (name, others.peek().is_some_and(|other| *other == name))
    })
}

/// Whether a directory keeps an attribute: one of programs, or the record of an owner.
fn is_kept(name: &OsStr) -> bool {
    shown(name).is_some() || format::attribute::OWNER_RECORDS.iter().any(|record| name == *record)
}

fn put_mark<L: Layer>(layer: &L, dir: &L::Dir, mark: DirMark) -> errno::Result<()> {
    match mark {
        DirMark::File { name, content } => {
            let file = layer.create_file(dir, OsStr::new(name), 0o600, layer.identity())?;
            write_all(layer, &file, &content, 0)
        }
        DirMark::Attribute { name, value } => layer.set_xattr(Object::Dir(dir), &name, &value, XattrMode::Set),
    }
}

fn failed(path: &Path, error: errno::Error) -> Error {
    Error::in_tree("convert", path, error)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::cmp::Ordering;

    use super::*;

    thread_local! {
        static COMPARISONS: Cell<usize> = const { Cell::new(0) };
    }

    /// A name that counts its comparisons.
    struct Name(usize);

    impl Ord for Name {
        fn cmp(&self, other: &Self) -> Ordering {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Name {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Name {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Name {}

    #[test]
    fn names_in_both_lists_cost_a_pass_through_each() {
        const COUNT: usize = 1000;
        // Every third name, and every second one.
        let (names, others): (Vec<_>, Vec<_>) = (0..COUNT).map(|number| (Name(3 * number), Name(2 * number))).unzip();
        for (name, is_there) in in_both(names.iter(), others.iter()) {
            assert_eq!(is_there, name.0 % 2 == 0 && name.0 < 2 * COUNT, "{}", name.0);
        }
        assert!(COMPARISONS.get() <= 4 * COUNT, "{} comparisons", COMPARISONS.get());
    }
}
