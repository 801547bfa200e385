//! The differ agrees with a comparison of two full trees, after random work in an overlay. Needs
//! root.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use overlayfs::format::Wanted;
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode, Time, XattrMode};
use overlayfs::layer_tools::{Aspects, Change, ChangeKind, Renames, Views};
use overlayfs::overlay::{Layers, Node, Overlay, Settings};
use test_common::{LowerGuard, Random, Setup, mode, owner, put, times};

const ROOT: Owner = Owner { uid: 0, gid: 0 };
const LARGE: usize = 3 << 20;

type NodeRef = Arc<Node<OsLayer>>;

/// The facts about an object that a change must tell.
#[derive(Clone, PartialEq, Eq)]
struct Facts {
    kind: Kind,
    content: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    mtime: Time,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Facts { kind, content, mode, owner, mtime, xattrs } = self;
        let start = content[..content.len().min(20)].escape_ascii();
        write!(f, "{kind:?} {} bytes {start} {mode:o} {owner:?} {mtime:?} {xattrs:?}", content.len())
    }
}

/// A whole tree, with the number and the link count of each object.
type Tree = BTreeMap<PathBuf, (Facts, u64, u32)>;

/// Layers on which overlays are mounted again and again.
struct Place {
    setup: Setup,
    lowers: Vec<&'static str>,
    format: Option<Wanted>,
}

impl Place {
    fn new(setup: Setup, lowers: &[&'static str], format: Option<Wanted>) -> Self {
        for name in ["upper", "work"].iter().chain(lowers) {
            setup.dir(name);
        }
        Place { setup, lowers: lowers.to_vec(), format }
    }

    fn open(&self, name: &str) -> OsLayer {
        OsLayer::open(&self.setup.path(name), false).unwrap()
    }

    fn lowers(&self) -> Vec<OsLayer> {
        self.lowers.iter().map(|name| self.open(name)).collect()
    }

    fn mount(&self) -> Overlay<OsLayer> {
        let (upper, work) = OsLayer::open_pair(&self.setup.path("upper"), &self.setup.path("work")).unwrap();
        let layers = Layers { upper: Some(upper), work: Some(work), lowers: self.lowers() };
        Overlay::with_settings(layers, Settings { format: self.format, ..Settings::default() }).unwrap()
    }

    fn views(&self) -> Views<OsLayer> {
        let (upper, work) = (Some(self.open("upper")), Some(self.open("work")));
        let above = Layers { upper, work, lowers: self.lowers() };
        Views::new(above, Layers { upper: None, work: None, lowers: self.lowers() }).unwrap()
    }

    fn changes(&self, renames: Renames) -> Vec<Change<OsLayer>> {
        let mut changes = Vec::new();
        let each = &mut |change| {
            changes.push(change);
            Ok(())
        };
        self.views().changes(renames, &(), each).unwrap();
        changes
    }

    /// Returns the changes as lines.
    fn lines(&self) -> Vec<String> {
        self.changes(Renames::Found).iter().map(line).collect()
    }
}

fn line(change: &Change<OsLayer>) -> String {
    let words: Vec<_> = change.aspects.words().collect();
    let (path, words) = (change.path.display(), words.join(","));
    match &change.kind {
        ChangeKind::Added => format!("A {path} {words}"),
        ChangeKind::Removed => format!("D {path} {words}"),
        ChangeKind::Modified => format!("M {path} {words}"),
        ChangeKind::Renamed { from } => format!("R {path} {words} <- {}", from.display()),
    }
}

fn find(overlay: &Overlay<OsLayer>, path: &Path) -> Option<NodeRef> {
    path.iter().try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, name).ok())
}

fn facts(overlay: &Overlay<OsLayer>, node: &NodeRef) -> (Facts, u64, u32) {
    let stat = overlay.stat(node).unwrap();
    let content = match stat.kind {
        Kind::File => {
            let mut content = vec![0; stat.size as usize];
            assert_eq!(overlay.read_at(&overlay.open(node), &mut content, 0).unwrap(), content.len());
            content
        }
        Kind::Symlink => overlay.read_link(node).unwrap().into_encoded_bytes(),
        _ => stat.rdev.to_le_bytes().to_vec(),
    };
    let xattrs = overlay.xattrs(node).unwrap().into_iter();
    let xattrs = xattrs.map(|name| (name.clone(), overlay.xattr(node, &name).unwrap())).collect();
    let (mode, owner, mtime) = (stat.mode, (stat.uid, stat.gid), stat.mtime);
    (Facts { kind: stat.kind, content, mode, owner, mtime, xattrs }, stat.ino, stat.nlink)
}

/// Reads a whole tree.
fn walk(overlay: &Overlay<OsLayer>) -> Tree {
    let mut tree = Tree::new();
    let mut dirs = vec![(PathBuf::new(), overlay.root().clone())];
    while let Some((path, dir)) = dirs.pop() {
        let mut names = Vec::new();
        let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
            names.push(entry.name.to_owned());
            true
        };
        overlay.list(&overlay.open(&dir), 0, each).unwrap();
        for name in names {
            let node = overlay.lookup(&dir, &name).unwrap();
            if node.kind() == Kind::Dir {
                dirs.push((path.join(&name), node.clone()));
            }
            tree.insert(path.join(name), facts(overlay, &node));
        }
        tree.insert(path, facts(overlay, &dir));
    }
    tree
}

/// Reads the tree of the lower layers, with the numbers that `overlay` shows.
fn walk_below(place: &Place, overlay: &Overlay<OsLayer>) -> Tree {
    let below = Layers { upper: None, work: None, lowers: place.lowers() };
    let (mut tree, shown) = (walk(&Overlay::new(below).unwrap()), walk(overlay));
    assert_eq!(tree.len(), shown.len());
    for (path, (_, ino, _)) in &mut tree {
        *ino = shown[path].1;
    }
    tree
}

/// Takes everything at and below a path out of a tree.
fn take(tree: &mut BTreeMap<PathBuf, Facts>, path: &Path) -> Vec<(PathBuf, Facts)> {
    let paths: Vec<_> = tree.keys().filter(|other| other.starts_with(path)).cloned().collect();
    let all =
        paths.into_iter().map(|other| (other.strip_prefix(path).unwrap().to_owned(), tree.remove(&other).unwrap()));
    all.collect()
}

/// Checks that `changes` lead from one tree to the other, that each of them is true, and that they
/// come in the promised order.
fn check(before: &Tree, after: &Tree, changes: &[Change<OsLayer>]) {
    let mut tree: BTreeMap<_, _> = before.iter().map(|(path, (facts, ..))| (path.clone(), facts.clone())).collect();
    let mut sources: Vec<_> = changes
        .iter()
        .filter_map(|change| match &change.kind {
            ChangeKind::Renamed { from } => Some(from),
            _ => None,
        })
        .collect();
    sources.sort_by_key(|from| std::cmp::Reverse(from.iter().count()));
    let staged: Vec<_> = sources.into_iter().map(|from| (from, take(&mut tree, from))).collect();
    let mut staged: BTreeMap<_, _> = staged.into_iter().collect();
    assert!(changes.is_sorted_by_key(|change| &change.path), "the order is wrong");
    for change in changes {
        let (path, now) = (&change.path, after.get(&change.path).map(|(facts, ..)| facts));
        match &change.kind {
            ChangeKind::Removed => assert!(!take(&mut tree, path).is_empty(), "{path:?} was not there"),
            ChangeKind::Added => {
                assert!(tree.insert(path.clone(), now.unwrap().clone()).is_none(), "{path:?} was there");
            }
            ChangeKind::Renamed { from } => {
                let moved = staged.remove(from).unwrap();
                assert!(!moved.is_empty() && !tree.contains_key(path), "{from:?} to {path:?}");
                tree.extend(moved.into_iter().map(|(below, facts)| (join(path, &below), facts)));
                modify(&mut tree, path, now.unwrap(), change.aspects);
            }
            ChangeKind::Modified => {
                assert!(change.aspects.any(), "{path:?}");
                modify(&mut tree, path, now.unwrap(), change.aspects);
            }
        }
    }
    for path in tree.keys().chain(after.keys()) {
        let (told, is) = (tree.get(path), after.get(path).map(|(facts, ..)| facts));
        assert_eq!(told, is, "{}", path.display());
    }
}

/// Joins paths; the second may be empty.
fn join(path: &Path, below: &Path) -> PathBuf {
    path.iter().chain(below.iter()).collect()
}

/// Makes the differences that the aspects name. Each must be one.
fn modify(tree: &mut BTreeMap<PathBuf, Facts>, path: &Path, now: &Facts, aspects: Aspects) {
    let was = tree[path].clone();
    let Aspects { content, kind, mode, owner, times, xattrs, flags: _, links: _ } = aspects;
    for (told, differs) in [
        (content, kind || was.content != now.content),
        (kind, was.kind != now.kind),
        (mode, was.mode != now.mode),
        (owner, was.owner != now.owner),
        (times, was.mtime != now.mtime),
        (xattrs, was.xattrs != now.xattrs),
    ] {
        assert!(!told || differs, "{}: {aspects:?}", path.display());
    }
    if kind {
        take(tree, path);
    }
    let pick = |told: bool| if told { now } else { &was };
    let facts = Facts {
        kind: pick(kind).kind,
        content: pick(content || kind).content.clone(),
        mode: pick(mode || kind).mode,
        owner: pick(owner).owner,
        mtime: pick(times).mtime,
        xattrs: pick(xattrs).xattrs.clone(),
    };
    tree.insert(path.to_owned(), facts);
}

/// Checks that names share an object in the later tree if and only if the changes say so.
fn check_links(before: &Tree, after: &Tree, changes: &[Change<OsLayer>]) {
    let told: BTreeMap<_, _> = changes.iter().map(|change| (&change.path, change)).collect();
    let mut groups: BTreeMap<u64, BTreeSet<&PathBuf>> = BTreeMap::new();
    for (path, (facts, ino, _)) in after {
        if facts.kind != Kind::Dir {
            groups.entry(*ino).or_default().insert(path);
        }
    }
    for group in groups.values().filter(|group| group.len() > 1) {
        // Names that no change tells about shared the object before.
        let silent = group.iter().filter(|path| told.get(*path).is_none_or(|change| !change.aspects.links));
        let inos: BTreeSet<_> = silent.map(|path| before[&old_path(path, &told)].1).collect();
        assert!(inos.len() <= 1, "no change tells that these became one object: {group:?}");
    }
}

/// Returns the path that an object had before the renames.
fn old_path(path: &Path, changes: &BTreeMap<&PathBuf, &Change<OsLayer>>) -> PathBuf {
    for above in path.ancestors() {
        if let Some(ChangeKind::Renamed { from }) = changes.get(&above.to_owned()).map(|change| &change.kind) {
            return join(from, path.strip_prefix(above).unwrap());
        }
    }
    path.to_owned()
}

/// Checks that the objects which moved are those that the changes tell. Objects with several names
/// are left out: any pair of their paths may be told.
fn check_renames(before: &Tree, after: &Tree, changes: &[Change<OsLayer>]) {
    let single = |tree: &Tree| -> BTreeMap<u64, PathBuf> {
        let single = tree.iter().filter(|(_, (facts, _, nlink))| facts.kind == Kind::Dir || *nlink == 1);
        single.map(|(path, (_, ino, _))| (*ino, path.clone())).collect()
    };
    let (old, new) = (single(before), single(after));
    let old_path = |path: &Path| old.get(&after.get(path)?.1);
    let mut moved: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for (ino, path) in &new {
        let Some(from) = old.get(ino) else { continue };
        let above = path.parent().and_then(old_path);
        let expected = above.map(|above| join(above, path.file_name().unwrap().as_ref()));
        if path.parent().is_some() && expected.as_ref() != Some(from) {
            moved.insert(path.clone(), from.clone());
        }
    }
    let told: BTreeMap<_, _> = changes
        .iter()
        .filter_map(|change| match &change.kind {
            ChangeKind::Renamed { from } if new.values().any(|path| *path == change.path) => {
                Some((change.path.clone(), from.clone()))
            }
            _ => None,
        })
        .filter(|(_, from)| old.values().any(|path| path == from))
        .collect();
    assert_eq!(told, moved);
}

/// Random work in an overlay.
struct Worker<'a> {
    overlay: &'a Overlay<OsLayer>,
    random: Random,
}

impl Worker<'_> {
    fn path(&mut self) -> PathBuf {
        let depth = 1 + self.random.below(3);
        (0..depth).map(|_| *self.random.one_of(&["a", "b", "c", "d"])).collect()
    }

    fn entry(&mut self) -> Option<(NodeRef, OsString)> {
        let path = self.path();
        Some((find(self.overlay, path.parent()?)?, path.file_name()?.to_owned()))
    }

    fn object(&mut self) -> Option<NodeRef> {
        let path = self.path();
        find(self.overlay, &path)
    }

    fn remove_all(&self, dir: &NodeRef, name: &OsStr) {
        let Ok(node) = self.overlay.lookup(dir, name) else { return };
        if node.kind() != Kind::Dir {
            return self.overlay.unlink(dir, name).unwrap();
        }
        for name in ["a", "b", "c", "d"] {
            self.remove_all(&node, OsStr::new(name));
        }
        // The directory has entries with other names.
        let _ = self.overlay.remove_dir(dir, name);
    }

    /// Does one thing. Many things are impossible at the moment, and fail.
    fn step(&mut self) -> Option<()> {
        let overlay = self.overlay;
        let number = self.random.number();
        match self.random.below(16) {
            0 => {
                let (dir, name) = self.entry()?;
                let file = overlay.create_file(&dir, &name, 0o640, ROOT).ok()?;
                overlay.write_at(&file, &number.to_le_bytes(), 0).unwrap();
            }
            1 => {
                let (dir, name) = self.entry()?;
                overlay.create_dir(&dir, &name, 0o750, ROOT).ok()?;
            }
            2 => {
                let (dir, name) = self.entry()?;
                let target = number.to_string();
                overlay.create_symlink(&dir, &name, OsStr::new(&target), ROOT).ok()?;
            }
            3..5 => {
                let node = self.object()?;
                overlay.write_at(&overlay.open(&node), &number.to_le_bytes(), number % 9).ok()?;
            }
            5 => overlay.truncate(&self.object()?, number % 20).ok()?,
            6 => overlay.set_mode(&self.object()?, 0o600 + (number % 64) as u32).ok()?,
            7 => overlay.set_owner(&self.object()?, Owner { uid: (number % 3) as u32, gid: 0 }).ok()?,
            8 => {
                let time = Time { sec: (number % 1000) as i64, nsec: (number % 999) as u32 };
                overlay.set_times(&self.object()?, time, time).unwrap();
            }
            9 => {
                let (node, name) = (self.object()?, OsStr::new("user.x"));
                match number % 3 {
                    0 => overlay.remove_xattr(&node, name).ok()?,
                    _ => overlay.set_xattr(&node, name, &number.to_le_bytes(), XattrMode::Set).ok()?,
                }
            }
            10 => {
                let (node, (dir, name)) = (self.object()?, self.entry()?);
                overlay.link(&node, &dir, &name).ok()?;
            }
            11 => {
                let (dir, name) = self.entry()?;
                self.remove_all(&dir, &name);
            }
            _ => {
                let ((dir, name), (new_dir, new_name)) = (self.entry()?, self.entry()?);
                let mode = *self.random.one_of(&[RenameMode::Replace, RenameMode::Replace, RenameMode::Exchange]);
                overlay.rename(&dir, &name, &new_dir, &new_name, mode).ok()?;
            }
        }
        Some(())
    }
}

/// Fills a lower layer with random objects.
fn fill(root: &Path, random: &mut Random) {
    let names = ["a", "b", "c", "d"];
    for first in names {
        for second in names {
            for third in names {
                let path = format!("{first}/{second}/{third}");
                match random.below(5) {
                    0 => drop(put::symlink(root, &path, &format!("to {third}"))),
                    1 => drop(put::dir(root, &path)),
                    2 => {
                        put::file(root, &path, format!("{path} {}", random.number()));
                        put::link(root, &path, &format!("{first}/{second}-{third}"));
                        mode(&root.join(&path), 0o600 + random.below(64) as u32);
                    }
                    _ => {
                        put::file(root, &path, format!("{path} {}", random.number()));
                        owner(&root.join(&path), random.below(3) as u32, 0);
                        times(&root.join(path), (1, 2), (random.below(1000) as i64, 4));
                    }
                }
            }
        }
    }
}

/// Returns layers with random objects: the topmost lower one hides some below it.
fn random_place(random: &mut Random, format: Option<Wanted>) -> Place {
    let setup = Setup::in_memory();
    let (top, bottom) = (setup.dir("top"), setup.dir("bottom"));
    fill(&bottom, random);
    for name in ["a", "b"] {
        put::file(&top, &format!("{name}/c/a"), "from the top");
        put::whiteout(&top, &format!("{name}/d"), "a");
    }
    put::opaque(&top, "c/a");
    put::file(&top, "c/a/b", "alone");
    put::file(&top, "d/large", vec![7; LARGE]);
    Place::new(setup, &["top", "bottom"], format)
}

fn check_all(place: &Place, before: &Tree, after: &Tree) {
    let changes = place.changes(Renames::Found);
    let said: Vec<_> = changes.iter().map(line).collect();
    println!("{}\n", said.join("\n"));
    check(before, after, &changes);
    check_links(before, after, &changes);
    check_renames(before, after, &changes);
    let resolved = place.changes(Renames::Resolved);
    assert!(resolved.iter().all(|change| !matches!(change.kind, ChangeKind::Renamed { .. })));
    check(before, after, &resolved);
}

#[test]
fn changes_are_those_of_a_comparison_of_two_full_trees() {
    for format in [None, Some(Wanted::Kernel)] {
        for seed in 0..24 {
            println!("seed {seed}, format {format:?}");
            let mut random = Random(seed);
            let place = random_place(&mut random, format);
            let guard = LowerGuard::new(["top", "bottom"].map(|name| place.setup.path(name)));
            let overlay = place.mount();
            let before = walk_below(&place, &overlay);
            let mut worker = Worker { overlay: &overlay, random };
            for _ in 0..2 + 2 * seed {
                worker.step();
            }
            let large = find(&overlay, Path::new("d/large"));
            if let Some(large) = large.filter(|_| seed % 2 == 0) {
                overlay.write_at(&overlay.open(&large), b"changed", 1 << 20).unwrap();
            }
            let after = walk(&overlay);
            // While the overlay is in use, and after its end.
            check_all(&place, &before, &after);
            drop(overlay);
            check_all(&place, &before, &after);
            // Also after another mount, which writes the records anew.
            drop(place.mount());
            check_all(&place, &before, &after);
            guard.check();
        }
    }
}

/// Returns layers with a few objects.
fn small_place(format: Option<Wanted>) -> Place {
    // A layer sets it too, in any of the tests that run at once.
    rustix::process::umask(rustix::fs::Mode::empty());
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "dir/file", "content");
    put::file(&lower, "dir/sub/deep", "content");
    put::file(&lower, "linked/a", "content");
    put::link(&lower, "linked/a", "far/away/b");
    put::dir(&lower, "other");
    put::file(&lower, "far/away/large", vec![7; LARGE]);
    Place::new(setup, &["lower"], format)
}

fn rename(overlay: &Overlay<OsLayer>, from: &str, to: &str) {
    let [from, to] = [from, to].map(Path::new);
    let [dir, new_dir] = [from, to].map(|path| find(overlay, path.parent().unwrap()).unwrap());
    let [name, new_name] = [from, to].map(|path| path.file_name().unwrap());
    overlay.rename(&dir, name, &new_dir, new_name, RenameMode::Replace).unwrap();
}

#[test]
fn a_rename_is_one_change() {
    for format in [None, Some(Wanted::Kernel)] {
        let place = small_place(format);
        let overlay = place.mount();
        rename(&overlay, "dir/sub", "other/moved");
        rename(&overlay, "dir", "renamed");
        rename(&overlay, "far/away/large", "large");
        rename(&overlay, "renamed/file", "other/moved/file");
        drop(overlay);
        assert_eq!(
            place.lines(),
            [
                "M  times",
                "M far/away times",
                "R large  <- far/away/large",
                "M other times",
                "R other/moved times <- dir/sub",
                "R other/moved/file  <- dir/file",
                "R renamed times <- dir",
            ],
            "{format:?}"
        );
    }
}

#[test]
fn a_file_moved_out_of_a_removed_directory_is_renamed() {
    let place = small_place(None);
    let overlay = place.mount();
    rename(&overlay, "dir/sub/deep", "deep");
    overlay.unlink(&find(&overlay, Path::new("dir")).unwrap(), OsStr::new("file")).unwrap();
    overlay.remove_dir(&find(&overlay, Path::new("dir")).unwrap(), OsStr::new("sub")).unwrap();
    overlay.remove_dir(overlay.root(), OsStr::new("dir")).unwrap();
    drop(overlay);
    assert_eq!(place.lines(), ["M  times", "R deep  <- dir/sub/deep", "D dir "]);
}

#[test]
fn a_change_of_a_file_shows_at_each_of_its_names() {
    for format in [None, Some(Wanted::Kernel)] {
        let place = small_place(format);
        let overlay = place.mount();
        let node = find(&overlay, Path::new("linked/a")).unwrap();
        overlay.set_mode(&node, 0o600).unwrap();
        drop((node, overlay));
        assert_eq!(place.lines(), ["M  times", "M far/away/b mode", "M linked/a mode"], "{format:?}");
    }
}

#[test]
fn a_new_link_is_told_at_both_names() {
    let place = small_place(None);
    let overlay = place.mount();
    let node = find(&overlay, Path::new("dir/file")).unwrap();
    overlay.link(&node, overlay.root(), OsStr::new("link")).unwrap();
    drop((node, overlay));
    assert_eq!(place.lines(), ["M  times", "M dir/file links", "A link links"]);
}

#[test]
fn two_stacks_of_lower_layers_can_be_compared() {
    let place = small_place(None);
    put::file(&place.setup.dir("newer"), "dir/file", "CONTENT");
    put::whiteout(&place.setup.path("newer"), "", "linked");
    let open = |names: &[&str]| Layers {
        upper: None,
        work: None,
        lowers: names.iter().map(|name| place.open(name)).collect(),
    };
    let said = |above: &[&str], below: &[&str]| {
        let mut lines = Vec::new();
        let each = &mut |change: Change<OsLayer>| {
            lines.push(line(&change).replace(",times", "").replace(" times", " -"));
            Ok(())
        };
        Views::new(open(above), open(below)).unwrap().changes(Renames::Found, &(), each).unwrap();
        lines
    };
    assert_eq!(said(&["newer", "lower"], &["lower"]), ["M  -", "M dir -", "M dir/file content", "D linked "]);
    assert_eq!(said(&["lower"], &["newer", "lower"])[3..], ["A linked ", "A linked/a links"]);
    assert_eq!(said(&["lower"], &[]).len(), 12);
    assert_eq!(said(&[], &["lower"]), ["D  "]);
    assert!(said(&["lower"], &["lower"]).is_empty() && said(&[], &[]).is_empty());
}

/// Runs the program on the layers of a place, and returns its code and its output.
fn run(place: &Place, words: &[&str]) -> (i32, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
    program.arg("diff").arg("--upper").arg(place.setup.path("upper")).arg("--work").arg(place.setup.path("work"));
    for lower in &place.lowers {
        program.arg("--lower").arg(place.setup.path(lower));
    }
    let output = program.args(words).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// Returns layers with changes of each kind.
fn changed_place() -> Place {
    let place = small_place(None);
    put::file(&place.setup.path("lower"), "text", "one\ntwo\nthree\n");
    let overlay = place.mount();
    let root = overlay.root();
    let text = find(&overlay, Path::new("text")).unwrap();
    overlay.write_at(&overlay.open(&text), b"TWO", 4).unwrap();
    let file = overlay.create_file(root, OsStr::new("new\nline"), 0o640, ROOT).unwrap();
    overlay.write_at(&file, b"added\n", 0).unwrap();
    overlay.set_times(file.node(), Time { sec: 1, nsec: 2 }, Time { sec: 3, nsec: 4 }).unwrap();
    rename(&overlay, "dir/sub", "moved");
    overlay.remove_dir(root, OsStr::new("other")).unwrap();
    overlay.unlink(&find(&overlay, Path::new("far/away")).unwrap(), OsStr::new("large")).unwrap();
    drop((text, file, overlay));
    place
}

#[test]
fn the_program_prints_a_line_for_each_change() {
    let place = changed_place();
    let expected = "M times .\nM times dir\nM times far/away\nD file far/away/large\nR - moved <- dir/sub\n\
                    A file new\\nline\nD directory other\nM content,times text\n";
    assert_eq!(run(&place, &[]), (1, expected.to_owned()));
    let (code, raw) = run(&place, &["-0"]);
    assert_eq!(code, 1);
    assert!(raw.contains("\0R -\0moved\0dir/sub\0A file\0new\nline\0D directory\0other\0"), "{raw:?}");
    assert!(raw.starts_with("M times\0\0M times\0dir\0"), "{raw:?}");
}

#[test]
fn the_program_prints_json_and_sums() {
    let place = changed_place();
    let (code, lines) = run(&place, &["--json"]);
    assert_eq!(code, 1);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 8);
    let added = serde_json::json!({
        "change": "added",
        "aspects": [],
        "path": "new\nline",
        "new": {
            "kind": "file", "mode": "0640", "uid": 0, "gid": 0, "links": 1, "size": 6, "mtime": "3.000000004",
        },
    });
    assert_eq!(lines[5], added);
    assert_eq!((&lines[4]["from"], &lines[4]["change"]), (&"dir/sub".into(), &"renamed".into()));
    assert_eq!((&lines[7]["old"]["size"], &lines[7]["aspects"][0]), (&14.into(), &"content".into()));
    let sums = "added 1 objects, 6 bytes\nremoved 2 objects, 3145728 bytes\n\
                modified 4 objects, 14 bytes, before 14 bytes\nrenamed 1 objects\n";
    assert_eq!(run(&place, &["--stat"]), (1, sums.to_owned()));
    let sums: serde_json::Value = serde_json::from_str(&run(&place, &["--stat", "--json"]).1).unwrap();
    assert_eq!(sums["removed"]["bytes"], LARGE);
}

#[test]
fn the_program_prints_the_names_of_changed_xattrs() {
    let place = small_place(None);
    let file = put::file(&place.setup.path("lower"), "file", "content");
    for name in ["user.changed", "user.gone", "user.kept"] {
        rustix::fs::setxattr(&file, name, b"lower", rustix::fs::XattrFlags::CREATE).unwrap();
    }
    let overlay = place.mount();
    let file = find(&overlay, Path::new("file")).unwrap();
    overlay.set_xattr(&file, OsStr::new("user.changed"), b"upper", XattrMode::Set).unwrap();
    overlay.set_xattr(&file, OsStr::new("user.new"), b"upper", XattrMode::Set).unwrap();
    overlay.remove_xattr(&file, OsStr::new("user.gone")).unwrap();
    drop((file, overlay));
    let (code, lines) = run(&place, &["--json"]);
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of_file = lines.iter().find(|line| line["path"] == "file").unwrap();
    assert_eq!((code, &of_file["aspects"]), (1, &serde_json::json!(["xattrs"])));
    assert_eq!(of_file["xattrs"], serde_json::json!(["user.changed", "user.gone", "user.new"]));
}

#[test]
fn the_program_prints_the_lines_that_differ() {
    let (code, said) = run(&changed_place(), &["--content"]);
    assert_eq!(code, 1);
    assert!(
        said.contains("A file new\\nline\n--- before/new\\nline\n+++ now/new\\nline\n@@ -0,0 +1 @@\n+added\n"),
        "{said}"
    );
    assert!(
        said.ends_with(
            "M content,times text\n--- before/text\n+++ now/text\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
        )
    );
    assert!(said.contains("D file far/away/large\n--- before"), "{said}");
}

#[test]
fn without_changes_the_program_prints_nothing() {
    let place = small_place(None);
    let lower = place.setup.path("lower");
    let lower = lower.to_str().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
    let output = program.args(["diff", "--lower", lower, "--from", lower]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    times(&place.setup.path("upper"), (1, 2), (3, 4));
    assert_eq!(run(&place, &["--from", lower]), (1, "M times .\n".to_owned()));
    let output = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"))
        .args(["diff", "--lower", lower, "--upper", "/missing"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said,
        "overlayfs-layer: cannot open the upper layer /missing: No such file or directory (os error 2).\n"
    );
}

/// The lower layers may be large, so what both trees have in common costs no calls.
#[test]
fn the_differ_looks_only_at_what_the_upper_layer_has() {
    let setup = Setup::new();
    for file in 0..300 {
        put::file(&setup.dir("lower"), &format!("same{}/{file}", file % 30), "content");
        put::file(&setup.dir("upper"), &format!("new/{}", file / 3), "content");
    }
    let counts = Counts::default();
    let open = |name: &str| Counted::new(OsLayer::open(&setup.path(name), false).unwrap(), &counts);
    let above = Layers { upper: Some(open("upper")), work: None, lowers: vec![open("lower")] };
    let views = Views::new(above, Layers { upper: None, work: None, lowers: vec![open("lower")] }).unwrap();
    let (before, mut changes) = (counts.tally().total(), 0);
    let each = &mut |_| {
        changes += 1;
        Ok(())
    };
    views.changes(Renames::Found, &(), each).unwrap();
    let calls = counts.tally().total() - before;
    assert_eq!(changes, 102, "the root, the directory and its files");
    // One call for each new file; the three directories are read once.
    assert!(calls <= 100 + 3 * 10, "{calls} calls");
}

#[test]
fn a_file_that_is_in_both_trees_is_not_read() {
    let setup = Setup::new();
    let [lower, upper] = ["lower", "upper"].map(|name| setup.dir(name));
    std::fs::hard_link(put::file(&lower, "file", "content"), upper.join("file")).unwrap();
    put::link(&lower, "file", "name-below");
    let counts = Counts::default();
    let open = |name: &str| Counted::new(OsLayer::open(&setup.path(name), false).unwrap(), &counts);
    let above = Layers { upper: Some(open("upper")), work: None, lowers: vec![open("lower")] };
    let views = Views::new(above, Layers { upper: None, work: None, lowers: vec![open("lower")] }).unwrap();
    let each = &mut |change: Change<_>| {
        assert!(!change.aspects.content, "{}", change.path.display());
        Ok(())
    };
    views.changes(Renames::Resolved, &(), each).unwrap();
    assert_eq!(counts.tally().of(Method::ReadAt), 0);
}

/// One file of a lower layer that takes its data from another one in each of two stacks.
#[test]
fn a_file_with_metadata_alone_may_have_other_data_in_the_other_stack() {
    let setup = Setup::new();
    let [top, one, other] = ["top", "one", "other"].map(|name| setup.dir(name));
    put::file(&one, "file", "data 1");
    put::file(&other, "file", "data 2");
    let file = put::file(&top, "file", [0; 6]);
    rustix::fs::setxattr(&file, "trusted.overlay.metacopy", b"", rustix::fs::XattrFlags::CREATE).unwrap();
    let stack = |below: &Path| Layers {
        upper: None,
        work: None,
        lowers: [&*top, below].map(|path| OsLayer::open(path, false).unwrap()).into(),
    };
    let mut lines = Vec::new();
    let each = &mut |change: Change<_>| {
        lines.push(line(&change));
        Ok(())
    };
    Views::new(stack(&one), stack(&other)).unwrap().changes(Renames::Found, &(), each).unwrap();
    assert!(lines.iter().any(|line| line.contains("file") && line.contains("content")), "{lines:?}");
}

/// A large file that was changed in part is compared only there. One with only metadata is not
/// read.
#[test]
fn only_data_that_two_files_do_not_share_are_read() {
    const SIZE: usize = 8 << 20;
    for format in [Wanted::Oci, Wanted::Kernel] {
        let place = Place::new(Setup::new(), &["lower"], Some(format));
        put::file(&place.setup.path("lower"), "file", vec![b'x'; SIZE]);
        match format {
            Wanted::Oci => {
                let counts = Counts::default();
                // Without shared blocks the copy is one in part.
                counts.interpose(|method| match method {
                    Method::ShareData => Err(overlayfs::errno::Error::new(overlayfs::errno::EOPNOTSUPP)),
                    _ => Ok(()),
                });
                let open = |name: &str, for_writing| {
                    Counted::new(OsLayer::open(&place.setup.path(name), for_writing).unwrap(), &counts)
                };
                let layers =
                    Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] };
                let overlay = Overlay::with_settings(layers, Settings::default()).unwrap();
                let node = overlay.lookup(overlay.root(), OsStr::new("file")).unwrap();
                overlay.write_at(&overlay.open(&node), b"x", 4 << 20).unwrap();
                overlay.set_mode(&node, 0o600).unwrap();
                // The overlay is killed, so the copy stays as it is.
                counts.stop_after(0);
            }
            Wanted::Kernel => {
                let file = put::file(&place.setup.path("upper"), "file", "");
                std::fs::File::options().write(true).open(&file).unwrap().set_len(SIZE as u64).unwrap();
                let set = |path: &Path, name: &str, value: &[u8]| {
                    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::CREATE).unwrap();
                };
                set(&file, "trusted.overlay.metacopy", b"");
                set(&place.setup.path("upper"), "trusted.overlay.format", b"kernel");
                mode(&file, 0o600);
            }
        }
        let counts = Counts::default();
        let open = |name: &str| Counted::new(OsLayer::open(&place.setup.path(name), false).unwrap(), &counts);
        let above = Layers { upper: Some(open("upper")), work: None, lowers: vec![open("lower")] };
        let views = Views::new(above, Layers { upper: None, work: None, lowers: vec![open("lower")] }).unwrap();
        let mut lines = Vec::new();
        let each = &mut |change: Change<_>| {
            let words: Vec<_> = change.aspects.words().filter(|word| *word != "times").collect();
            lines.push(format!("{} {}", change.path.display(), words.join(",")));
            Ok(())
        };
        views.changes(Renames::Found, &(), each).unwrap();
        assert!(lines.contains(&"file mode".to_owned()), "{format:?}: {lines:?}");
        let read = counts.tally().of(Method::ReadAt);
        let most = if format == Wanted::Oci { 8 } else { 0 };
        assert!(read <= most, "{format:?}: {read} reads");
    }
}

/// The flags that chattr sets are a difference, of a file and of a directory, in each format.
#[test]
fn flags_are_listed() {
    for format in [Wanted::Oci, Wanted::Kernel] {
        let place = Place::new(Setup::new(), &["lower"], Some(format));
        for name in ["fixed", "grows", "dir/file", "dir/unfixed"] {
            put::file(&place.setup.path("lower"), name, name);
        }
        let flags = |path: &str, set: u32| {
            let overlay = place.mount();
            overlay.set_flags(&find(&overlay, Path::new(path)).unwrap(), set).unwrap();
        };
        flags("fixed", 0x10);
        flags("grows", 0x20);
        flags("dir/unfixed", 0x30);
        flags("dir/unfixed", 0);
        flags("dir", 0x10);
        let lines: Vec<_> = place.lines().into_iter().filter(|line| line != "M  times").collect();
        for path in ["fixed", "grows", "dir"] {
            flags(path, 0);
        }
        assert_eq!(lines, ["M dir flags", "M fixed flags", "M grows flags"], "{format:?}");
    }
}

/// In the kernel's format a name may begin with `.wh.`, and hides nothing.
#[test]
fn names_of_deletions_are_names_in_the_kernels_format() {
    let place = Place::new(Setup::new(), &["lower"], Some(Wanted::Kernel));
    put::file(&place.setup.path("lower"), "dir/file", "");
    let overlay = place.mount();
    let dir = find(&overlay, Path::new("dir")).unwrap();
    let make = |name: &str| drop(overlay.create_file(&dir, OsStr::new(name), 0o644, ROOT).unwrap());
    [".wh.file", ".wh..wh..opq", ".wh.", ".wh..wh.redirect"].into_iter().for_each(make);
    drop((dir, overlay));
    let lines: Vec<_> = place.lines().into_iter().filter(|line| !line.ends_with("times")).collect();
    assert_eq!(lines, ["A dir/.wh. ", "A dir/.wh..wh..opq ", "A dir/.wh..wh.redirect ", "A dir/.wh.file "]);
}
