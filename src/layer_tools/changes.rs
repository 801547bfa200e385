//! The differ: the changes from one merged tree to another.
//!
//! The walk goes through both trees at once. It leaves out what comes from the same places of the
//! same layers in both. So it costs about as much as a walk through the upper layer.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::vec;

use super::compare::{Links, Side, aspects, is_linked};
use super::renames::Renamed;
use super::tree;
use super::{Error, Progress, Views, Watch};
use crate::errno::{self, ENOENT, ENOTDIR, ESTALE};
use crate::layer::{Kind, Layer};
use crate::overlay::on_disk::{Content, Entry, Relation, content};
use crate::overlay::{Handle, Node, Overlay};

/// The difference at one path.
pub struct Change<L: Layer> {
    /// The path in the later tree; of a removed object, the path that it would have there. Empty
    /// for the root.
    pub path: PathBuf,
    /// The effect on the path.
    pub kind: ChangeKind,
    /// The object in the earlier tree. None if it was added.
    pub old: Option<Arc<Node<L>>>,
    /// The object in the later tree. None if it was removed.
    pub new: Option<Arc<Node<L>>>,
    /// The differences between the two. All are false if there is only one.
    pub aspects: Aspects,
}

/// The effect of a change on its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The path is new. The content of a directory is listed too.
    Added,
    /// The path is gone. The content of a directory is not listed.
    Removed,
    /// The object changed, or another one took its place. If its kind differs, a directory at this
    /// path is gone with its content, or a new one has all its content listed.
    Modified,
    /// The path is new, and has the object of a path that is gone.
    Renamed {
        /// The path in the earlier tree.
        from: PathBuf,
    },
}

/// The differences of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aspects {
    /// The data of a file, the target of a symlink, or the number of a device.
    pub content: bool,
    /// The kind.
    pub kind: bool,
    /// The permission, set-id and sticky bits.
    pub mode: bool,
    /// The owner or the group.
    pub owner: bool,
    /// The time of the last change of the content.
    pub times: bool,
    /// The extended attributes, with ACLs.
    pub xattrs: bool,
    /// The flags that make it immutable or append-only (chattr(1)).
    pub flags: bool,
    /// The number of its names, or the names that share it. Also true of an added object that has
    /// several.
    pub links: bool,
}

impl Aspects {
    /// Returns the names of the aspects that differ.
    pub fn words(&self) -> impl Iterator<Item = &'static str> {
        let Aspects { content, kind, mode, owner, times, xattrs, flags, links } = *self;
        [
            (content, "content"),
            (kind, "kind"),
            (mode, "mode"),
            (owner, "owner"),
            (times, "times"),
            (xattrs, "xattrs"),
            (flags, "flags"),
            (links, "links"),
        ]
        .into_iter()
        .filter_map(|(differs, word)| differs.then_some(word))
    }

    /// Whether anything differs.
    pub fn any(&self) -> bool {
        *self != Aspects::default()
    }
}

/// The way in which a walk lists renamed objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renames {
    /// As [`ChangeKind::Renamed`], where the upper layer tells that.
    Found,
    /// As a removal, and an addition with all content.
    Resolved,
}

impl<L: Layer> Views<L> {
    /// Calls `each` for every change: depth first, names in the order of their bytes, a directory
    /// before its content.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: an object cannot be read. One that vanished, only if `watch` does not pass
    ///   it over.
    /// - [`Error::Stopped`]: `watch` wants to stop.
    ///
    /// Others of `each`.
    pub fn changes(
        &self,
        renames: Renames,
        watch: &dyn Watch,
        each: &mut dyn FnMut(Change<L>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let renamed = match renames {
            Renames::Found => Renamed::find(self, watch)?,
            Renames::Resolved => Renamed::default(),
        };
        self.walk(watch, each, renamed, false)
    }

    /// Does the same as [`Views::changes`] for the applier. Renames are resolved. An object of the
    /// upper layer that has or had several names is listed under each of them, with
    /// [`Aspects::links`], also where nothing differs.
    ///
    /// # Errors
    ///
    /// Those of [`Views::changes`].
    pub fn changes_to_apply(
        &self,
        watch: &dyn Watch,
        each: &mut dyn FnMut(Change<L>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.walk(watch, each, Renamed::default(), true)
    }

    fn walk(
        &self,
        watch: &dyn Watch,
        each: &mut dyn FnMut(Change<L>) -> Result<(), Error>,
        renamed: Renamed,
        every_name: bool,
    ) -> Result<(), Error> {
        let mut walk =
            Walk { views: self, renamed, watch, each, every_name, links: Links::default(), frames: Vec::new() };
        let [old, new] = [&self.below, &self.above].map(|view| view.as_ref().map(|view| view.root().clone()));
        walk.visit(At::default(), old, new)?;
        while let Some(frame) = walk.frames.last_mut() {
            let Some(pair) = frame.pairs.next() else {
                match frame.next.take() {
                    Some(next) => walk.go_on(&next)?,
                    None => drop(walk.frames.pop()),
                }
                continue;
            };
            if watch.wants_stop() {
                return Err(Error::Stopped);
            }
            let at = frame.at.join(&pair.name);
            let node = |open: &Option<Handle<L>>| open.as_ref().map(|open| open.node().clone());
            let dirs = (node(&frame.old), node(&frame.new));
            walk.visit_pair(at, &pair, dirs)?;
        }
        Ok(())
    }
}

/// The object of a tree under a name, if there is one.
type Found<L> = Option<Arc<Node<L>>>;

/// A place in both trees.
#[derive(Clone, Default)]
struct At {
    /// The path in the later tree.
    path: PathBuf,
    /// The path in the earlier tree, if it is another one: in a renamed directory.
    old_path: Option<PathBuf>,
}

impl At {
    fn old_path(&self) -> &Path {
        self.old_path.as_ref().unwrap_or(&self.path)
    }

    /// Returns the place of a name in this directory.
    fn join(&self, name: &OsStr) -> Self {
        At { path: self.path.join(name), old_path: self.old_path.as_ref().map(|old| old.join(name)) }
    }
}

/// A walk through two trees. It is no recursion, since a tree may be deep.
struct Walk<'w, L: Layer> {
    views: &'w Views<L>,
    renamed: Renamed,
    watch: &'w dyn Watch,
    each: &'w mut dyn FnMut(Change<L>) -> Result<(), Error>,
    /// Whether each name of an object that has or had several is listed.
    every_name: bool,
    links: Links,
    /// The directories from the root to the current one.
    frames: Vec<Frame<L>>,
}

/// A directory on the way.
struct Frame<L: Layer> {
    at: At,
    /// The directory in both trees, open: a view evicts no names of an open directory. So it reads
    /// a large one only once.
    old: Option<Handle<L>>,
    new: Option<Handle<L>>,
    /// The names of this run that are left to visit.
    pairs: vec::IntoIter<Pair>,
    /// The name at which the next run begins, if there may be more.
    next: Option<OsString>,
}

/// A name that may differ.
struct Pair {
    name: Arc<OsStr>,
    /// Whether the earlier tree has it.
    old: bool,
    /// Whether the later tree has it.
    new: bool,
    /// Whether both have the same directory. Only names below it may differ.
    is_same_dir: bool,
}

impl<L: Layer> Walk<'_, L> {
    /// Looks a name up in both trees, and visits the objects.
    fn visit_pair(&mut self, at: At, pair: &Pair, (old, new): (Found<L>, Found<L>)) -> Result<(), Error> {
        let Views { above, below } = self.views;
        let had = pair.old && !self.renamed.has_left(at.old_path());
        let old = look_up(below, old.filter(|_| had), &pair.name);
        let new = look_up(above, new.filter(|_| pair.new), &pair.name);
        match (old, new) {
            (Ok(Some(old)), Ok(Some(new))) if pair.is_same_dir => self.enter(at, Some(old), new),
            (Ok(old), Ok(Some(new))) if self.renamed.from(&at.path).is_some() => self.visit_renamed(at, old, new),
            (Ok(old), Ok(new)) => self.visit(at, old, new),
            (Err(error), _) | (_, Err(error)) => self.unless_gone(&at.path, error),
        }
    }

    /// Visits a renamed object. `replaced` is the object that had its new path before.
    fn visit_renamed(&mut self, at: At, replaced: Found<L>, new: Arc<Node<L>>) -> Result<(), Error> {
        self.visit(at.clone(), replaced, None)?;
        let from = self.renamed.from(&at.path).cloned().unwrap_or_default();
        let at = At { old_path: Some(from.clone()), ..at };
        match self.views.below.as_ref().map(|below| tree::at(below, &from)).transpose() {
            Ok(old) => self.visit_as(at, old, Some(new), Some(ChangeKind::Renamed { from })),
            Err(error) => self.unless_gone(&at.path, error),
        }
    }

    /// Reports the change from `old` to `new`, if there is any, and enters a directory.
    fn visit(&mut self, at: At, old: Found<L>, new: Found<L>) -> Result<(), Error> {
        let kind = match (&old, &new) {
            (None, None) => return Ok(()),
            (None, Some(_)) => Some(ChangeKind::Added),
            (Some(_), None) => Some(ChangeKind::Removed),
            (Some(_), Some(_)) => None,
        };
        self.visit_as(at, old, new, kind)
    }

    /// Does the same as [`Walk::visit`]. Without a kind the object is modified or unchanged.
    fn visit_as(&mut self, at: At, old: Found<L>, new: Found<L>, kind: Option<ChangeKind>) -> Result<(), Error> {
        let aspects = match self.compare(old.as_ref(), new.as_ref()) {
            Ok(aspects) => aspects,
            Err(error) => return self.unless_gone(&at.path, error),
        };
        if let Some(kind) = kind.or_else(|| aspects.any().then_some(ChangeKind::Modified)) {
            (self.each)(Change { path: at.path.clone(), kind, old: old.clone(), new: new.clone(), aspects })?;
        }
        self.watch.advance(Progress { objects: 1, bytes: 0 });
        let Views { above, below } = self.views;
        let (old, new) = (keep_dir(below, old), keep_dir(above, new));
        match new {
            Some(new) => self.enter(at, old, new),
            None => Ok(()),
        }
    }

    /// Returns what differs.
    fn compare(&mut self, old: Option<&Arc<Node<L>>>, new: Option<&Arc<Node<L>>>) -> errno::Result<Aspects> {
        let Views { above, below } = self.views;
        let old = below.as_ref().zip(old).map(|(overlay, node)| Side::new(overlay, node)).transpose()?;
        let new = above.as_ref().zip(new).map(|(overlay, node)| Side::new(overlay, node)).transpose()?;
        let mut differ = match (&old, &new) {
            (Some(old), Some(new)) => aspects(old, new)?,
            _ => Aspects::default(),
        };
        let (old, new) = (old.map(|old| old.stat), new.map(|new| new.stat));
        differ.links = match &new {
            None => false,
            Some(new) if self.every_name => is_linked(new) || old.as_ref().is_some_and(is_linked),
            Some(new) => self.links.differ(old.as_ref(), new),
        };
        Ok(differ)
    }

    /// Enters a directory of the later tree, and the directory that it was.
    fn enter(&mut self, at: At, old: Found<L>, new: Arc<Node<L>>) -> Result<(), Error> {
        let Views { above, below } = self.views;
        match contents([below.as_ref().zip(old.as_ref()), above.as_ref().zip(Some(&new))], OsStr::new("")) {
            Ok([before, now]) => {
                let pairs = pairs(&before, &now).into_iter();
                let open = |view: &Option<Overlay<L>>, dir| view.as_ref().zip(dir).map(|(view, dir)| view.open(dir));
                let (old, new) = (open(below, old.as_ref()), open(above, Some(&new)));
                self.frames.push(Frame { at, old, new, pairs, next: now.next });
                Ok(())
            }
            Err(error) => self.unless_gone(&at.path, error),
        }
    }

    /// Goes on with the next names of the current directory.
    fn go_on(&mut self, from: &OsStr) -> Result<(), Error> {
        let Views { above, below } = self.views;
        let Some(Frame { at, old, new, pairs: left, next, .. }) = self.frames.last_mut() else { return Ok(()) };
        let places =
            [below.as_ref().zip(old.as_ref().map(Handle::node)), above.as_ref().zip(new.as_ref().map(Handle::node))];
        match contents(places, from) {
            Ok([before, now]) => {
                (*left, *next) = (pairs(&before, &now).into_iter(), now.next);
                Ok(())
            }
            Err(error) => {
                let path = at.path.clone();
                self.unless_gone(&path, error)
            }
        }
    }

    /// Leaves an object out that another program took away meanwhile, if the observer permits that.
    fn unless_gone(&self, path: &Path, error: errno::Error) -> Result<(), Error> {
        let is_gone = matches!(error.errno, ENOENT | ENOTDIR | ESTALE);
        if is_gone && self.watch.passes_over(path) { Ok(()) } else { Err(Error::in_tree("read", path, error)) }
    }
}

/// Returns a directory. Makes the view forget another object: the applier may be about to change
/// the lower layer that has it, and a later name of the object must not lead to this one.
fn keep_dir<L: Layer>(view: &Option<Overlay<L>>, node: Found<L>) -> Found<L> {
    let node = node?;
    if node.kind() == Kind::Dir {
        return Some(node);
    }
    if let Some(view) = view {
        view.release(node);
    }
    None
}

fn look_up<L: Layer>(view: &Option<Overlay<L>>, dir: Found<L>, name: &OsStr) -> errno::Result<Found<L>> {
    view.as_ref().zip(dir).map(|(view, dir)| view.lookup(&dir, name)).transpose()
}

/// Returns the names of two directories, but not those with the same objects. A name that another
/// program made in a lower layer, between the reads of the two, is no change.
fn pairs(before: &Content, now: &Content) -> Vec<Pair> {
    let differ = |(one, other, relation): (Option<&Entry>, Option<&Entry>, Relation)| {
        if one.is_none() && other.is_some_and(|other| now.is_new_below(other, before)) {
            return None;
        }
        let name = one.or(other).filter(|_| relation != Relation::Same)?.name.clone();
        let is_same_dir = relation == Relation::SameDir;
        Some(Pair { name, old: one.is_some(), new: other.is_some(), is_same_dir })
    };
    matched(before, now).filter_map(differ).collect()
}

/// A directory of a tree; None stands for an empty one.
pub(super) type Place<'p, L> = Option<(&'p Overlay<L>, &'p Arc<Node<L>>)>;

/// Returns the contents of a directory of two trees from a name on, up to the same name.
pub(super) fn contents<L: Layer>(places: [Place<'_, L>; 2], from: &OsStr) -> errno::Result<[Content; 2]> {
    let read = |place: Place<'_, L>| place.map_or(Ok(Content::default()), |(view, dir)| content(view, dir, from));
    let [one, other] = places;
    let mut contents = [read(one)?, read(other)?];
    let next = contents.iter().filter_map(|content| content.next.clone()).min();
    contents.iter_mut().for_each(|content| content.end(next.clone()));
    Ok(contents)
}

/// Returns all names of two directories in order, with their entries and how these relate.
pub(super) fn matched<'c>(
    before: &'c Content,
    now: &'c Content,
) -> impl Iterator<Item = (Option<&'c Entry>, Option<&'c Entry>, Relation)> {
    let (mut old, mut new) = (before.entries.iter().peekable(), now.entries.iter().peekable());
    iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (Some(one), Some(other)) => one.name.cmp(&other.name),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let (one, other) = (old.next_if(|_| order.is_le()), new.next_if(|_| order.is_ge()));
        let relation = one.zip(other).map_or(Relation::Other, |(one, other)| before.relation(one, (now, other)));
        Some((one, other, relation))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::layer::counted::Method;
    use crate::layer::{Layer, OsLayer, Owner};
    use crate::layer_tools::escaped;
    use crate::overlay::Layers;
    use crate::overlay::on_disk::stack_of;

    struct Place {
        lower: tempfile::TempDir,
        upper: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            Place { lower: tempfile::tempdir().unwrap(), upper: tempfile::tempdir().unwrap() }
        }

        fn layer(path: &Path, for_writing: bool) -> OsLayer {
            OsLayer::open(path, for_writing).unwrap()
        }

        fn lowers(&self) -> Vec<OsLayer> {
            vec![Self::layer(self.lower.path(), false)]
        }

        fn overlay(&self) -> Overlay<OsLayer> {
            let upper = Some(Self::layer(self.upper.path(), true));
            Overlay::new(Layers { upper, work: None, lowers: self.lowers() }).unwrap()
        }

        fn views(&self) -> Views<OsLayer> {
            let upper = Some(Self::layer(self.upper.path(), false));
            let above = Layers { upper, work: None, lowers: self.lowers() };
            Views::new(above, Layers { upper: None, work: None, lowers: self.lowers() }).unwrap()
        }

        /// Returns the changes, as a word of each aspect behind the path.
        fn changes(&self) -> Vec<String> {
            let views = self.views();
            let mut changes = Vec::new();
            let each = &mut |change: Change<OsLayer>| {
                let words: Vec<_> = change.aspects.words().collect();
                changes.push(format!("{:?} {} {}", change.kind, escaped(&change.path), words.join(",")));
                Ok(())
            };
            views.changes(Renames::Found, &(), each).unwrap();
            changes
        }
    }

    #[test]
    fn an_upper_layer_without_changes_has_none() {
        let place = Place::new();
        fs::write(place.lower.path().join("file"), "x").unwrap();
        drop(place.overlay());
        assert!(place.changes().iter().all(|change| change == "Modified . times"), "{:?}", place.changes());
    }

    #[test]
    fn a_name_that_others_make_between_the_reads_is_no_change() {
        let place = Place::new();
        drop(place.overlay());
        fs::write(place.upper.path().join("changed"), "x").unwrap();
        let views = place.views();
        let [below, above] = [&views.below, &views.above].map(|view| view.as_ref().unwrap());
        let before = content(below, below.root(), OsStr::new("")).unwrap();
        fs::create_dir(place.lower.path().join("of others")).unwrap();
        let now = content(above, above.root(), OsStr::new("")).unwrap();
        assert_eq!(now.entries.len(), before.entries.len() + 2);
        let names: Vec<_> = pairs(&before, &now).into_iter().map(|pair| pair.name).collect();
        assert_eq!(names, [Arc::from(OsStr::new("changed"))]);
    }

    /// A view keeps fewer names than the directory has.
    #[test]
    fn a_large_directory_is_read_once() {
        const FILES: usize = 10_000;
        let place = Place::new();
        for number in 0..FILES {
            fs::write(place.upper.path().join(number.to_string()), "").unwrap();
        }
        let views = place.views();
        let mut count = 0;
        let each = &mut |_: Change<OsLayer>| {
            count += 1;
            Ok(())
        };
        views.changes(Renames::Found, &(), each).unwrap();
        assert!(count >= FILES);
        let calls = stack_of(views.above.as_ref().unwrap()).top().calls().unwrap();
        assert!(calls.of(Method::List) < 10, "{calls}");
    }

    #[test]
    fn each_change_is_listed_once_with_what_differs() {
        let place = Place::new();
        let lower = place.lower.path();
        fs::create_dir_all(lower.join("same/deep")).unwrap();
        fs::create_dir_all(lower.join("gone/deep")).unwrap();
        for name in ["same/deep/file", "gone/file", "written", "moded"] {
            fs::write(lower.join(name), "before").unwrap();
        }
        let overlay = place.overlay();
        let me = Owner { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let (root, name) = (overlay.root(), OsStr::new);
        let find =
            |path: &str| path.split('/').fold(root.clone(), |dir, part| overlay.lookup(&dir, name(part)).unwrap());
        overlay.write_at(&overlay.open(&find("written")), b"B", 0).unwrap();
        overlay.set_mode(&find("moded"), 0o600).unwrap();
        overlay.unlink(&find("gone"), name("file")).unwrap();
        overlay.remove_dir(&find("gone"), name("deep")).unwrap();
        overlay.remove_dir(root, name("gone")).unwrap();
        let made = overlay.create_dir(root, name("made"), 0o700, me).unwrap();
        let file = overlay.create_file(&made, name("file"), 0o600, me).unwrap();
        overlay.link(file.node(), &made, name("link")).unwrap();
        drop((file, made, overlay));
        assert_eq!(
            place.changes(),
            [
                "Modified . times",
                "Removed gone ",
                "Added made ",
                "Added made/file links",
                "Added made/link links",
                "Modified moded mode",
                "Modified written content,times",
            ]
        );
    }
}
