//! The index for the next mount: hard links of a lower layer stay links after a write, and inode
//! numbers stay the same.

mod forget;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode, Time};
use overlayfs::overlay::{Layers, Node, Overlay, Settings};
use test_common::{LowerGuard, Setup, names, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };
const WORK: &str = "upper/.wh..wh.work";

type NodeRef = Arc<Node<Counted<OsLayer>>>;

/// An overlay of some layers of a setup. A test can end it and mount it again.
struct Mount<'a> {
    setup: &'a Setup,
    lowers: Vec<&'a str>,
    settings: Settings,
    counts: Counts,
    overlay: Option<Overlay<Counted<OsLayer>>>,
}

impl<'a> Mount<'a> {
    fn new(setup: &'a Setup) -> Self {
        Self::of(setup, &["lower"])
    }

    fn of(setup: &'a Setup, lowers: &[&'a str]) -> Self {
        let (lowers, settings, counts) = (lowers.to_vec(), Settings::default(), Counts::default());
        let mut mount = Mount { setup, lowers, settings, counts, overlay: None };
        mount.again();
        mount
    }

    fn leave(&mut self) {
        self.overlay = None;
    }

    fn again(&mut self) {
        self.leave();
        let open = |name: &str, for_writing| {
            Counted::new(OsLayer::open(&self.setup.dir(name), for_writing).unwrap(), &self.counts)
        };
        let lowers = self.lowers.iter().map(|name| open(name, false)).collect();
        let (upper, work) = match self.settings.format {
            None => (open("upper", true), None),
            Some(_) => {
                let (upper, work) = OsLayer::open_pair(&self.setup.dir("upper"), &self.setup.dir("work")).unwrap();
                (Counted::new(upper, &self.counts), Some(Counted::new(work, &self.counts)))
            }
        };
        let layers = Layers { upper: Some(upper), work, lowers };
        self.overlay = Some(Overlay::with_settings(layers, self.settings).unwrap());
    }

    /// Mounts the same layers again, and changes none.
    fn read_only(&mut self) {
        self.leave();
        let open = |name: &str| Counted::new(OsLayer::open(&self.setup.dir(name), false).unwrap(), &self.counts);
        let lowers = ["upper"].iter().chain(&self.lowers).map(|name| open(name)).collect();
        let layers = Layers { upper: None, work: self.settings.format.map(|_| open("work")), lowers };
        let settings = Settings { read_only_upper: true, ..self.settings };
        self.overlay = Some(Overlay::with_settings(layers, settings).unwrap());
    }

    /// Mounts again as after a crash: the overlay does nothing at its end.
    fn crash(&mut self) {
        self.counts.stop_after(0);
        self.leave();
        self.counts.stop_after(u64::MAX);
        self.again();
    }

    fn overlay(&self) -> &Overlay<Counted<OsLayer>> {
        self.overlay.as_ref().unwrap()
    }

    fn find(&self, path: &str) -> NodeRef {
        let parts = path.split('/').filter(|name| !name.is_empty());
        parts.fold(self.overlay().root().clone(), |dir, name| self.overlay().lookup(&dir, OsStr::new(name)).unwrap())
    }

    fn dir<'p>(&self, path: &'p str) -> (NodeRef, &'p OsStr) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.find(dir), OsStr::new(name))
    }

    fn ino(&self, path: &str) -> u64 {
        self.overlay().stat(&self.find(path)).unwrap().ino
    }

    fn nlink(&self, path: &str) -> u32 {
        self.overlay().stat(&self.find(path)).unwrap().nlink
    }

    fn write(&self, path: &str, text: &str) {
        let node = self.find(path);
        self.overlay().truncate(&node, 0).unwrap();
        self.overlay().write_at(&self.overlay().open(&node), text.as_bytes(), 0).unwrap();
    }

    fn read(&self, path: &str) -> String {
        let mut bytes = vec![0; 100];
        let read = self.overlay().read_at(&self.overlay().open(&self.find(path)), &mut bytes, 0).unwrap();
        String::from_utf8(bytes[..read].to_vec()).unwrap()
    }

    fn unlink(&self, path: &str) {
        let (dir, name) = self.dir(path);
        self.overlay().unlink(&dir, name).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        let ((dir, name), (new_dir, new_name)) = (self.dir(from), self.dir(to));
        self.overlay().rename(&dir, name, &new_dir, new_name, RenameMode::Replace).unwrap();
    }

    fn touch(&self, path: &str) {
        let time = Time { sec: 5, nsec: 6 };
        self.overlay().set_times(&self.find(path), time, time).unwrap();
    }

    fn create(&self, path: &str) {
        let (dir, name) = self.dir(path);
        self.overlay().create_file(&dir, name, 0o644, OWN).unwrap();
    }

    /// Returns the inode numbers of all objects by path. Panics if two objects share a number,
    /// unless they are links, or if a listing differs from a stat.
    fn numbers(&self) -> HashMap<String, u64> {
        let mut numbers = HashMap::new();
        let mut objects: HashMap<u64, u64> = HashMap::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            let mut listed = Vec::new();
            let handle = self.overlay().open(&self.find(&dir));
            let each = &mut |entry: overlayfs::overlay::DirEntry<'_>| {
                listed.push((entry.name.to_str().unwrap().to_owned(), entry.ino));
                true
            };
            self.overlay().list(&handle, 0, each).unwrap();
            for (name, ino) in listed {
                let path = format!("{dir}/{name}");
                let node = self.find(&path);
                let stat = self.overlay().stat(&node).unwrap();
                assert_eq!(stat.ino, ino, "the listing of {path}");
                let other = *objects.entry(ino).or_insert(node.id());
                assert_eq!(other, node.id(), "{path} has the number {ino} of another object");
                numbers.insert(path.clone(), ino);
                if stat.kind == Kind::Dir {
                    dirs.push(path);
                }
            }
        }
        numbers
    }

    /// Returns the names of index entries in the work directory.
    fn links(&self) -> Vec<String> {
        let work = self.settings.format.map_or(WORK, |_| "work");
        let mut links = names(&self.setup.path(work));
        links.retain(|name| name.starts_with("link."));
        links
    }
}

/// Makes a lower layer with the links `a`, `dir/b` and `c`, and other objects.
fn setup() -> Setup {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    put::file(&lower, "a", "old");
    put::link(&lower, "a", "dir/b");
    put::link(&lower, "a", "c");
    put::file(&lower, "dir/file", "file");
    put::file(&lower, "dir/sub/deep", "deep");
    put::symlink(&lower, "dir/symlink", "file");
    put::file(&lower, "other", "other");
    setup.dir("upper");
    setup
}

#[test]
fn links_stay_links_after_a_write_and_a_remount() {
    let setup = setup();
    let guard = LowerGuard::new([setup.path("lower")]);
    for (first, second) in [("a", "dir/b"), ("dir/b", "a")] {
        fs::remove_dir_all(setup.path("upper")).unwrap();
        let mut mount = Mount::new(&setup);
        mount.write(first, "new");
        let ino = mount.ino(first);
        mount.again();
        for path in [second, first, "c"] {
            assert_eq!((mount.read(path).as_str(), mount.ino(path), mount.nlink(path)), ("new", ino, 3), "{path}");
        }
        mount.again();
        mount.write("c", "newer");
        assert_eq!(mount.read(first), "newer");
        mount.again();
        assert_eq!((mount.read(second), mount.read(first)), ("newer".to_owned(), "newer".to_owned()));
        mount.numbers();
    }
    guard.check();
}

#[test]
fn a_read_only_mount_shows_links_and_numbers_as_one_that_writes() {
    for format in forget::FORMATS {
        let setup = setup();
        let mut mount = forget::mount(&setup, format);
        mount.settings.known_max = None;
        mount.again();
        mount.write("a", "new");
        mount.touch("other");
        mount.rename("dir/file", "moved");
        mount.unlink("c");
        let before = mount.numbers();
        mount.leave();
        let guard = LowerGuard::new(["upper", "work", "lower"].map(|name| setup.dir(name)));
        mount.read_only();
        for path in ["a", "dir/b"] {
            assert_eq!((mount.read(path).as_str(), mount.nlink(path)), ("new", 2), "{path} with {format:?}");
        }
        assert_eq!(mount.numbers(), before, "with {format:?}");
        guard.check();
    }
}

#[test]
fn a_listing_after_a_remount_shows_the_numbers_of_links() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.write("a", "new");
    let before = mount.numbers();
    mount.again();
    assert_eq!(mount.numbers(), before);
}

#[test]
fn remaining_names_stay_links_after_an_unlink() {
    for gone in ["a", "c"] {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        mount.write("a", "new");
        mount.again();
        mount.unlink(gone);
        let left = if gone == "a" { "c" } else { "a" };
        for _ in 0..2 {
            assert_eq!((mount.read("dir/b").as_str(), mount.nlink("dir/b")), ("new", 2));
            assert_eq!((mount.read(left).as_str(), mount.nlink(left)), ("new", 2));
            assert_eq!(mount.ino(left), mount.ino("dir/b"));
            mount.again();
        }
        mount.unlink(left);
        mount.again();
        assert_eq!((mount.read("dir/b").as_str(), mount.nlink("dir/b")), ("new", 1));
        assert_eq!(mount.links().len(), 1);
        mount.unlink("dir/b");
        assert_eq!(mount.links(), [""; 0], "the last name takes the copy along");
        mount.again();
        mount.numbers();
    }
}

#[test]
fn the_count_of_links_is_right_where_nothing_was_copied() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.unlink("c");
    for remounted in [true, false] {
        if remounted {
            mount.again();
        }
        assert_eq!(mount.nlink("a"), 2);
        mount.write("a", "new");
        assert_eq!(mount.nlink("a"), 2);
        mount.again();
        assert_eq!((mount.nlink("a"), mount.nlink("dir/b"), mount.read("dir/b")), (2, 2, "new".to_owned()));
        mount.leave();
        fs::remove_dir_all(setup.path("upper")).unwrap();
        mount.again();
        mount.unlink("c");
    }
}

#[test]
fn renamed_and_further_names_are_links_too() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.write("a", "new");
    let ino = mount.ino("a");
    mount.again();
    mount.rename("a", "moved");
    mount.rename("dir/b", "dir/b2");
    let (root, dir) = (mount.find(""), mount.find("dir"));
    mount.overlay().link(&mount.find("moved"), &dir, OsStr::new("d")).unwrap();
    mount.overlay().rename(&root, OsStr::new("dir"), &root, OsStr::new("elsewhere"), RenameMode::Replace).unwrap();
    for _ in 0..2 {
        for path in ["moved", "elsewhere/b2", "elsewhere/d", "c"] {
            assert_eq!((mount.read(path).as_str(), mount.ino(path), mount.nlink(path)), ("new", ino, 4), "{path}");
        }
        mount.again();
    }
    mount.write("elsewhere/d", "newer");
    mount.again();
    assert_eq!(mount.read("c"), "newer");
    mount.rename("c", "c2");
    mount.again();
    assert_eq!((mount.links().len(), mount.nlink("c2"), mount.read("c2").as_str()), (0, 4, "newer"));
    assert_eq!(mount.ino("c2"), ino);
    mount.numbers();
}

/// Another layer shows the name of a lower file again that its copy hides.
#[test]
fn a_changed_stack_counts_at_least_the_names() {
    for is_met in [false, true] {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        mount.write("dir/b", "new");
        mount.leave();
        put::file(&setup.path("newer"), ".wh.dir", "");
        put::file(&setup.path("newer"), "shown/.wh..wh.redirect", "/dir");
        mount.lowers = vec!["newer", "lower"];
        for _ in 0..2 {
            mount.again();
            let held = is_met.then(|| mount.overlay().open(&mount.find("shown/b")));
            for path in ["dir/b", "a", "c", "shown/b"] {
                assert_eq!((mount.read(path).as_str(), mount.nlink(path)), ("new", 4), "{path}");
            }
            drop(held);
        }
        mount.again();
        let held = is_met.then(|| mount.overlay().open(&mount.find("shown/b")));
        for (path, left) in [("a", 3), ("dir/b", 2), ("c", 1)] {
            mount.unlink(path);
            assert_eq!(mount.read("shown/b"), "new", "without {path}");
            assert_eq!(mount.nlink("shown/b"), left, "without {path}");
        }
        drop(held);
        mount.write("shown/b", "newer");
        mount.again();
        assert_eq!(mount.read("shown/b"), "newer");
        mount.unlink("shown/b");
        mount.again();
        assert_eq!(mount.links(), Vec::<String>::new());
    }
}

/// No lookup has met the remaining names.
#[test]
fn a_link_of_a_file_without_known_names_joins_its_other_names() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    let held = mount.overlay().open(&mount.find("a"));
    mount.write("a", "new");
    mount.unlink("a");
    mount.overlay().link(held.node(), mount.overlay().root(), OsStr::new("again")).unwrap();
    assert_eq!(mount.overlay().stat(held.node()).unwrap().nlink, 3);
    drop(held);
    for _ in 0..2 {
        for path in ["again", "dir/b", "c"] {
            assert_eq!((mount.read(path).as_str(), mount.nlink(path)), ("new", 3), "{path}");
        }
        mount.again();
    }
}

/// As above, for a file that was in the upper layer before. Only the open handle leads to it.
#[test]
fn a_link_of_an_open_file_that_lost_its_name_joins_its_other_names() {
    let setup = setup();
    put::file(&setup.dir("upper"), "own", "new");
    put::link(&setup.dir("upper"), "own", "own too");
    let mut mount = Mount::new(&setup);
    let held = mount.overlay().open(&mount.find("own"));
    mount.unlink("own");
    mount.overlay().link(held.node(), mount.overlay().root(), OsStr::new("again")).unwrap();
    mount.unlink("again");
    // The same over the whiteout of a lower name.
    mount.unlink("other");
    mount.overlay().link(held.node(), mount.overlay().root(), OsStr::new("other")).unwrap();
    assert_eq!(mount.ino("other"), mount.ino("own too"));
    for _ in 0..2 {
        for path in ["other", "own too"] {
            assert_eq!((mount.read(path).as_str(), mount.nlink(path)), ("new", 2), "{path}");
        }
        mount.again();
    }
    let held = mount.overlay().open(&mount.find("other"));
    mount.unlink("other");
    mount.unlink("own too");
    let gone = mount.overlay().link(held.node(), mount.overlay().root(), OsStr::new("again"));
    assert_eq!(gone.unwrap_err().errno, libc::ENOENT);
}

/// The layer reports a link count of one for this file.
#[test]
fn the_last_name_of_an_open_file_leads_to_it() {
    let setup = setup();
    put::file(&setup.dir("upper"), "own", "new");
    put::link(&setup.dir("upper"), "own", "own too");
    let mount = Mount::new(&setup);
    let held = mount.overlay().open(&mount.find("own"));
    mount.unlink("own");
    assert_eq!(mount.find("own too").id(), held.node().id());
    mount.write("own too", "longer than before");
    assert_eq!(mount.overlay().stat(held.node()).unwrap().size, 18);
    mount.unlink("own too");
    assert_eq!(mount.overlay().stat(held.node()).unwrap().nlink, 0);
}

/// A mount removes an index entry that has no purpose. The copy's time of last change of status
/// must not show that.
#[test]
fn an_index_entry_goes_unseen() {
    let setup = setup();
    put::link(&setup.path("lower"), "dir/symlink", "symlink");
    for (copied, other) in [("symlink", "dir/symlink"), ("a", "dir/b")] {
        let mut mount = Mount::new(&setup);
        mount.touch(copied);
        mount.rename(other, &format!("{other}-moved"));
        if copied == "a" {
            mount.rename("c", "c-moved");
        }
        let ctime = |mount: &Mount<'_>| mount.overlay().stat(&mount.find(copied)).unwrap().ctime;
        let before = ctime(&mount);
        mount.leave();
        assert_eq!(mount.links().len(), 1, "{copied}");
        mount.again();
        assert_eq!((mount.links().len(), ctime(&mount)), (0, before), "{copied}");
    }
}

#[test]
fn links_of_symlinks_are_links_too() {
    let setup = setup();
    put::link(&setup.path("lower"), "dir/symlink", "symlink");
    let mut mount = Mount::new(&setup);
    let before = mount.numbers();
    mount.touch("symlink");
    mount.again();
    let stat = mount.overlay().stat(&mount.find("dir/symlink")).unwrap();
    assert_eq!((stat.kind, stat.mtime, stat.nlink), (Kind::Symlink, Time { sec: 5, nsec: 6 }, 2));
    assert_eq!(mount.overlay().read_link(&mount.find("dir/symlink")).unwrap(), "file");
    assert_eq!(mount.numbers(), before);
}

#[test]
fn a_file_is_the_same_after_its_names_left_the_cache() {
    for written in [false, true] {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        let handle = mount.overlay().open(&mount.find("a"));
        mount.unlink("a");
        let mut text = [0; 3];
        assert_eq!(mount.overlay().read_at(&handle, &mut text, 0), Ok(3));
        assert_eq!((&text, mount.overlay().stat(handle.node()).unwrap().nlink), (b"old", 2));
        if written {
            mount.overlay().write_at(&handle, b"new", 0).unwrap();
        }
        assert_eq!(mount.overlay().read_at(&handle, &mut text, 0), Ok(3));
        let expected = if written { "new" } else { "old" };
        assert_eq!(&text, expected.as_bytes());
        assert_eq!(mount.read("dir/b"), expected);
        assert!(Arc::ptr_eq(handle.node(), &mount.find("dir/b")));
        drop(handle);
        for _ in 0..2 {
            assert_eq!((mount.read("c").as_str(), mount.nlink("dir/b")), (expected, 2));
            mount.numbers();
            mount.again();
        }
        mount.unlink("c");
        mount.unlink("dir/b");
        assert_eq!(mount.links(), [""; 0]);
    }
}

#[test]
fn a_name_that_is_replaced_is_counted() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.write("a", "new");
    mount.rename("other", "c");
    mount.again();
    assert_eq!((mount.nlink("a"), mount.nlink("dir/b"), mount.nlink("c")), (2, 2, 1));
    assert_eq!(mount.read("c"), "other");
}

#[test]
fn nothing_is_matched_in_a_lower_layer_that_was_replaced() {
    let change: [&dyn Fn(&Path); 4] = [
        &|lower| {
            // New files of the same names and sizes, with the same links.
            for name in ["a", "dir/b", "c"] {
                fs::remove_file(lower.join(name)).unwrap();
            }
            put::file(lower, "a", "pot");
            put::link(lower, "a", "dir/b");
            put::link(lower, "a", "c");
        },
        &|lower| {
            // The same file with other contents and its old time.
            let meta = fs::metadata(lower.join("a")).unwrap();
            fs::write(lower.join("a"), "pot").unwrap();
            let time = (meta.mtime(), meta.mtime_nsec());
            test_common::times(&lower.join("a"), time, time);
        },
        &|lower| {
            let copied =
                std::process::Command::new("cp").arg("-a").arg(lower).arg(lower.with_extension("copy")).status();
            assert!(copied.unwrap().success());
            fs::remove_dir_all(lower).unwrap();
            fs::rename(lower.with_extension("copy"), lower).unwrap();
            fs::write(lower.join("a"), "pot").unwrap();
        },
        &|lower| {
            // One name becomes a file of its own, with another link.
            fs::remove_file(lower.join("dir/b")).unwrap();
            put::file(lower, "dir/b", "pot");
            put::link(lower, "dir/b", "e");
        },
    ];
    for change in change {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        mount.write("a", "new");
        mount.leave();
        change(&setup.path("lower"));
        mount.again();
        assert_eq!((mount.read("a").as_str(), mount.read("dir/b").as_str()), ("new", "pot"));
        assert_ne!(mount.ino("a"), mount.ino("dir/b"));
        mount.numbers();
    }
}

#[test]
fn files_of_another_layer_are_no_links() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.write("a", "new");
    mount.leave();
    put::file(&setup.dir("below"), "a", "below");
    mount.lowers = vec!["lower", "below"];
    mount.again();
    assert_eq!((mount.read("a").as_str(), mount.read("dir/b").as_str()), ("new", "old"), "it is another layer now");
    mount.numbers();
    mount.lowers = vec!["lower"];
    mount.again();
    assert_eq!(mount.read("dir/b"), "new", "nothing was forgotten");
}

#[test]
fn numbers_are_the_same_after_copy_up_and_remount() {
    let setup = setup();
    put::file(&setup.dir("lowest"), "lowest/file", "x");
    put::file(&setup.dir("lowest"), "dir/lowest", "x");
    put::file(&setup.dir("upper"), "upper", "x");
    let mut mount = Mount::of(&setup, &["lower", "lowest"]);
    let before = mount.numbers();
    for path in ["dir/file", "dir/sub", "dir/symlink", "other", "lowest/file", "dir/b", "dir/lowest"] {
        mount.touch(path);
    }
    assert_eq!(mount.numbers(), before);
    for _ in 0..2 {
        mount.again();
        assert_eq!(mount.numbers(), before);
    }
    mount.create("new");
    let with_new = mount.numbers();
    mount.again();
    assert_eq!(mount.numbers(), with_new);
    mount.rename("dir", "moved");
    mount.rename("moved/file", "file");
    mount.again();
    let after = mount.numbers();
    assert_eq!(after["/moved"], before["/dir"]);
    assert_eq!(after["/file"], before["/dir/file"]);
    assert_eq!(after["/moved/symlink"], before["/dir/symlink"]);
}

#[test]
fn a_new_object_never_has_the_number_of_a_removed_copy() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    for round in 0..20 {
        mount.touch("other");
        let before = mount.ino("other");
        if round % 2 == 0 {
            mount.again();
        }
        assert_eq!(mount.ino("other"), before);
        mount.unlink("other");
        mount.create("new");
        assert_ne!(mount.ino("new"), before);
        let number = mount.ino("new");
        mount.again();
        assert_eq!(mount.ino("new"), number);
        mount.unlink("new");
        mount.leave();
        fs::remove_file(setup.path("upper/.wh.other")).unwrap();
        mount.again();
        mount.numbers();
    }
}

#[test]
fn a_new_object_with_the_number_of_a_removed_open_one_gets_another() {
    type Make = fn(&Mount<'_>, &OsStr);
    let kinds: [(Kind, Make); 4] = [
        (Kind::Dir, |mount, name| drop(mount.overlay().create_dir(mount.overlay().root(), name, 0o755, OWN).unwrap())),
        (Kind::Symlink, |mount, name| {
            drop(mount.overlay().create_symlink(mount.overlay().root(), name, OsStr::new("to"), OWN).unwrap());
        }),
        (Kind::CharDev, |mount, name| {
            let (root, kind) = (mount.overlay().root(), Kind::CharDev);
            drop(mount.overlay().create_node(root, name, kind, 0o600, 0x103, OWN).unwrap());
        }),
        (Kind::File, |mount, name| mount.create(name.to_str().unwrap())),
    ];
    for (kind, make) in kinds {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        let mut held = Vec::new();
        for round in 0..20 {
            let name = format!("gone{round}");
            make(&mount, OsStr::new(&name));
            let node = mount.find(&name);
            held.push((mount.ino(&name), node.clone()));
            match kind {
                Kind::Dir => mount.overlay().remove_dir(mount.overlay().root(), OsStr::new(&name)).unwrap(),
                _ => mount.unlink(&name),
            }
            make(&mount, OsStr::new(&format!("new{round}")));
        }
        let numbers = mount.numbers();
        for (ino, node) in &held {
            assert_eq!(mount.overlay().stat(node).unwrap().ino, *ino, "{kind:?}");
            assert!(!numbers.values().any(|other| other == ino), "{kind:?}: two objects have {ino}");
        }
        drop(held);
        for _ in 0..2 {
            mount.again();
            assert_eq!(mount.numbers(), numbers, "{kind:?}");
        }
    }
}

/// Unmounts this mount point at the drop.
struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        sh(&format!("umount {}", self.0.display()));
    }
}

fn sh(script: &str) {
    assert!(std::process::Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}

#[test]
fn numbers_that_take_all_bits_are_the_same_in_every_mount() {
    let setup = setup();
    let (other, nested) = (setup.dir("other"), setup.dir("nested"));
    sh(&format!("mount -t tmpfs none {}", other.display()));
    let _other = Unmount(other.clone());
    for number in 0..100 {
        put::file(&other, &format!("layer/many/{number}"), "x");
    }
    put::link(&other, "layer/many/0", "layer/link");
    let options = format!("lowerdir={}:{},xino=on", other.join("layer").display(), setup.path("lower").display());
    sh(&format!("mount -t overlay -o {options} none {}", nested.display()));
    let _nested = Unmount(nested.clone());
    let large = fs::metadata(nested.join("many/7")).unwrap().ino();
    assert_ne!(large >> 48, 0, "the test needs large numbers");

    let mut mount = Mount::of(&setup, &["nested"]);
    let before = mount.numbers();
    mount.again();
    // In another order than before.
    for path in ["many/99", "many/5", "link", "a", "many/7"] {
        assert_eq!(mount.ino(path), before[&format!("/{path}")], "{path}");
    }
    assert_eq!(mount.numbers(), before);
    for path in ["many/7", "many/0", "many/50"] {
        mount.touch(path);
    }
    mount.rename("many/50", "fifty");
    let mut moved = before.clone();
    let fifty = moved.remove("/many/50").unwrap();
    moved.insert("/fifty".to_owned(), fifty);
    assert_eq!(mount.numbers(), moved);
    mount.crash();
    assert_eq!(mount.ino("many/98"), before["/many/98"]);
    assert_eq!(mount.numbers(), moved);
    mount.leave();
}

#[test]
fn a_crash_after_an_operation_loses_nothing() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.write("a", "new");
    mount.touch("dir/file");
    mount.unlink("c");
    let before = mount.numbers();
    mount.crash();
    assert_eq!(mount.numbers(), before);
    assert_eq!((mount.read("dir/b").as_str(), mount.nlink("dir/b")), ("new", 2));
}

/// Files by path: the content, and a number that is the same for all names of one file.
type Files = Vec<(String, String, usize)>;

/// Returns the files of the merged tree. Panics if numbers or link counts are wrong.
fn files(mount: &Mount<'_>) -> Files {
    let mut numbers: Vec<_> = mount.numbers().into_iter().collect();
    numbers.sort();
    let first = |ino| numbers.iter().position(|(_, other)| *other == ino).unwrap();
    let mut files = Vec::new();
    for (path, ino) in &numbers {
        if mount.find(path).kind() == Kind::File {
            let names = numbers.iter().filter(|(_, other)| other == ino).count();
            assert!(mount.nlink(path) as usize >= names, "{path} has {names} names");
            files.push((path.clone(), mount.read(path), first(*ino)));
        }
    }
    files
}

/// One operation.
type Step = &'static dyn Fn(&Mount<'_>) -> overlayfs::layer::Result<()>;

#[test]
fn a_crash_in_an_operation_leaves_links_and_numbers() {
    fn write(mount: &Mount<'_>, path: &str, text: &[u8]) -> overlayfs::layer::Result<()> {
        mount.overlay().write_at(&mount.overlay().open(&mount.find(path)), text, 0).map(drop)
    }
    fn unlink(mount: &Mount<'_>, path: &str) -> overlayfs::layer::Result<()> {
        let (dir, name) = mount.dir(path);
        mount.overlay().unlink(&dir, name)
    }
    fn rename(mount: &Mount<'_>, from: &str, to: &str) -> overlayfs::layer::Result<()> {
        let ((dir, name), (new_dir, new_name)) = (mount.dir(from), mount.dir(to));
        mount.overlay().rename(&dir, name, &new_dir, new_name, RenameMode::Replace)
    }
    let steps: [Step; 9] = [
        &|mount| unlink(mount, "d"),
        &|mount| write(mount, "dir/b", b"new"),
        &|mount| unlink(mount, "dir/b"),
        &|mount| rename(mount, "a", "moved"),
        &|mount| mount.overlay().link(&mount.find("c"), &mount.find("dir"), OsStr::new("more")),
        &|mount| rename(mount, "other", "c"),
        &|mount| write(mount, "dir/more", b"pot"),
        &|mount| unlink(mount, "moved"),
        &|mount| unlink(mount, "dir/more"),
    ];
    let new_setup = || {
        let setup = setup();
        put::link(&setup.path("lower"), "a", "d");
        setup
    };
    let mut expected = Vec::new();
    {
        let setup = new_setup();
        let mut mount = Mount::new(&setup);
        expected.push(files(&mount));
        for step in steps {
            step(&mount).unwrap();
            expected.push(files(&mount));
            mount.again();
            assert_eq!(files(&mount), *expected.last().unwrap());
        }
    }
    for (index, step) in steps.iter().enumerate() {
        for (stop, remounted) in (0..).flat_map(|stop| [(stop, false), (stop, true)]) {
            let setup = new_setup();
            let mut mount = Mount::new(&setup);
            steps[..index].iter().for_each(|step| step(&mount).unwrap());
            if remounted {
                mount.again();
            }
            let before = mount.numbers();
            mount.counts.stop_after(stop);
            let ended = step(&mount).is_ok();
            mount.crash();
            let found = files(&mount);
            let (old, new) = (&expected[index], &expected[index + 1]);
            assert!(found == *new || !ended && found == *old, "step {index} stopped after {stop} calls: {found:?}");
            let after = mount.numbers();
            let mut strange = after.iter().filter(|(_, ino)| !before.values().any(|before| before == *ino));
            assert_eq!(strange.next(), None, "step {index} stopped after {stop} calls");
            mount.again();
            assert_eq!(files(&mount), found);
            if ended && remounted {
                break;
            }
        }
    }
}

#[test]
fn damaged_records_cost_numbers_and_nothing_else() {
    let damage: [&dyn Fn(&Path); 8] = [
        &|file| File::options().write(true).open(file).unwrap().set_len(0).unwrap(),
        &|file| File::options().write(true).open(file).unwrap().set_len(100).unwrap(),
        &|file| fs::write(file, [0; 4096]).unwrap(),
        &|file| fs::write(file, [0xff; 5000]).unwrap(),
        &|file| File::options().write(true).open(file).unwrap().write_all_at(&[7; 10], 60).unwrap(),
        &|file| {
            let bytes = fs::read(file).unwrap();
            fs::write(file, [&bytes[..], &bytes[48..], &bytes[..60]].concat()).unwrap();
        },
        &|file| {
            // Another file with the same contents, as in a copy of the directory.
            let bytes = fs::read(file).unwrap();
            fs::write(file.with_extension("x"), bytes).unwrap();
            fs::rename(file.with_extension("x"), file).unwrap();
        },
        &|file| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        },
    ];
    for damage in damage {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        mount.write("a", "new");
        mount.touch("dir/file");
        mount.touch("other");
        mount.leave();
        damage(&setup.path(WORK).join("numbers"));
        mount.again();
        let numbers = mount.numbers();
        assert_eq!(mount.read("dir/b"), "new");
        mount.touch("dir/sub/deep");
        mount.again();
        assert_eq!(mount.numbers(), numbers);
    }
}

#[test]
fn a_copy_of_the_upper_layer_starts_anew() {
    for with_work in [true, false] {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        mount.write("a", "new");
        mount.touch("dir/file");
        mount.rename("dir/sub", "sub");
        mount.leave();
        fs::rename(setup.path("upper"), setup.path("original")).unwrap();
        let script = "mkdir ../upper && tar c . | tar x -C ../upper";
        let copied =
            std::process::Command::new("sh").arg("-c").arg(script).current_dir(setup.path("original")).status();
        assert!(copied.unwrap().success());
        if !with_work {
            fs::remove_dir_all(setup.path(WORK)).unwrap();
        }
        mount.again();
        mount.numbers();
        let other = if with_work { "new" } else { "old" };
        assert_eq!((mount.read("a").as_str(), mount.read("dir/b").as_str()), ("new", other));
        mount.write("dir/b", "newer");
        mount.again();
        mount.numbers();
        assert_eq!(mount.read("dir/b"), "newer");
        assert_eq!(mount.read("sub/deep"), "deep");
    }
}

#[test]
fn objects_changed_by_hand_have_numbers_of_their_own() {
    let by_hand: [&dyn Fn(&Path); 3] = [
        // The original shows again, beside its copy.
        &|upper| fs::rename(upper.join("other"), upper.join("moved")).unwrap(),
        // The original shows again, and another object may get the inode number of the copy.
        &|upper| {
            fs::remove_file(upper.join("other")).unwrap();
            fs::write(upper.join("new"), "").unwrap();
        },
        &|upper| fs::write(upper.join(".wh.other"), "").unwrap(),
    ];
    for change in by_hand {
        let setup = setup();
        let mut mount = Mount::new(&setup);
        mount.touch("other");
        mount.touch("dir/file");
        let before = mount.numbers();
        mount.leave();
        change(&setup.path("upper"));
        mount.again();
        let after = mount.numbers();
        assert_eq!(after["/dir/file"], before["/dir/file"]);
        mount.again();
        mount.touch("other");
        mount.numbers();
    }
}

#[test]
fn leftovers_of_a_crash_are_removed_and_the_rest_is_kept() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.write("a", "new");
    mount.leave();
    let work = setup.path(WORK);
    let kept = names(&work);
    for name in ["tmp.1f", "tmp.numbers", "link.", "link.1.2", "link.x.y.z", "link.1.2.3.4"] {
        put::file(&work, name, "x");
    }
    put::file(&work, "link.1.2.3/numbers", "x");
    put::file(&work, "tmp.dir/numbers", "x");
    mount.again();
    mount.leave();
    assert_eq!(names(&work), kept);
}

#[test]
fn without_a_copy_nothing_is_left() {
    let setup = setup();
    let mut mount = Mount::new(&setup);
    mount.create("new");
    mount.unlink("other");
    mount.leave();
    assert_eq!(names(&setup.path(WORK)), ["record"]);
}

#[test]
fn useless_records_are_removed() {
    let setup = setup();
    for number in 0..300 {
        put::file(&setup.path("lower"), &format!("many/{number}"), "x");
    }
    let mut mount = Mount::new(&setup);
    for number in 0..300 {
        mount.touch(&format!("many/{number}"));
        mount.unlink(&format!("many/{number}"));
    }
    let before = mount.numbers();
    let size = || fs::metadata(setup.path(WORK).join("numbers")).unwrap().len();
    assert!(size() > 600 * 48);
    mount.again();
    assert!(size() < 10 * 48, "{}", size());
    assert_eq!(mount.numbers(), before);
}

#[test]
fn ten_thousand_copies_keep_their_numbers() {
    const FILES: usize = 10_000;
    let setup = setup();
    for number in 0..FILES {
        put::file(&setup.path("lower"), &format!("many/{number}"), "x");
    }
    let mut mount = Mount::new(&setup);
    let before = mount.numbers();
    mount.settings.volatile = true;
    mount.again();
    for number in 0..FILES {
        mount.touch(&format!("many/{number}"));
    }
    mount.again();
    assert_eq!(mount.numbers(), before);
    assert_eq!(before.values().collect::<HashSet<_>>().len(), before.len() - 2, "three names are one file");
}

#[test]
fn a_copy_costs_one_more_call_and_a_file_with_one_name_none() {
    let setup = setup();
    let mount = Mount::new(&setup);
    let (root, other) = (mount.find(""), mount.find("other"));
    mount.counts.take();
    mount.overlay().set_mode(&other, 0o600).unwrap();
    let calls = mount.counts.take();
    assert_eq!(calls.of(Method::WriteAt), 1, "{calls}");
    mount.overlay().create_file(&root, OsStr::new("new"), 0o600, OWN).unwrap();
    mount.overlay().unlink(&root, OsStr::new("new")).unwrap();
    let calls = mount.counts.take();
    assert_eq!(calls.total(), 2, "create, unlink: {calls}");
}
