//! A mount with a small cache. Eviction takes nothing away from a user, above all no mount inside
//! of the mount.
//!
//! This process makes the mounts, since the program has no option for such a small limit. Needs
//! root and /dev/fuse; fails without them.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use overlayfs::errno::Error;
use overlayfs::layer::OsLayer;
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::overlay::{self, Layers, Overlay};
use overlayfs_fuse::engine::{EngineFrontEnd, Settings};
use overlayfs_fuse::options::IoUring;
use overlayfs_fuse::{Service, Session, mount};
use rustix::mount::{MountFlags, UnmountFlags};
use test_common::{Detail, LowerGuard, Random, Setup, Snapshot, names, put};

/// The limit of objects and names in the cache.
const KNOWN_MAX: usize = 40;
/// The number of directories, and of files in each of them.
const DIRS: usize = 8;
const FILES: usize = 25;
/// The number of names in a large directory. The listing of a smaller one begins with attributes.
const LARGE: usize = 17_000;

/// How long to wait for the kernel to forget.
const PATIENCE: Duration = Duration::from_secs(20);

/// The number of cases, and of random changes in each.
const CASES: u64 = 6;
const STEPS: usize = 120;

fn overlay(setup: &Setup, counts: &Counts) -> Overlay<Counted<OsLayer>> {
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.dir(name), for_writing).unwrap(), counts);
    let layers = Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] };
    let settings = overlay::Settings { known_max: Some(KNOWN_MAX), ..Default::default() };
    Overlay::with_settings(layers, settings).unwrap()
}

/// An overlay that this process mounts and serves.
struct Mounted {
    point: PathBuf,
    front_end: Option<Arc<EngineFrontEnd<Counted<OsLayer>>>>,
    counts: Counts,
    serving: Option<JoinHandle<()>>,
}

impl Mounted {
    /// Mounts the directories `lower` and `upper` of the setup at `mount`.
    fn new(setup: &Setup) -> Self {
        let point = setup.dir("mount");
        let options = mount::Options {
            source: "small".into(),
            flags: MountFlags::empty(),
            allow_other: true,
            default_permissions: true,
        };
        let settings = Settings { known_max: KNOWN_MAX, ..Settings::default() };
        let counts = Counts::default();
        let device = mount::mount(&point, &options).unwrap();
        let front_end = EngineFrontEnd::new(overlay(setup, &counts), settings);
        let service = Service { threads: 4, most: usize::MAX, io_uring: IoUring::Auto };
        let session = Session::start(device, front_end, service, None).unwrap();
        let front_end = session.front_end();
        let serving = thread::spawn(move || session.start_threads().unwrap().run(None, || {}).unwrap().0.unwrap());
        Self { point, front_end: Some(front_end), counts, serving: Some(serving) }
    }

    /// Returns the number of objects that the kernel knows, after its pending FORGET requests.
    fn known(&self) -> usize {
        let front_end = self.front_end.as_ref().unwrap();
        let mut known = front_end.known();
        loop {
            thread::sleep(Duration::from_millis(20));
            match front_end.known() {
                now if now == known => return now,
                now => known = now,
            }
        }
    }

    /// Waits until the kernel knows at most this many objects. Over io_uring another thread than
    /// that of the last request asks it to forget some.
    fn await_known(&self, most: usize) {
        let start = Instant::now();
        loop {
            let known = self.known();
            if known <= most {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{known} objects are known");
        }
    }

    /// Looks at every file of the lower layer.
    fn walk(&self) {
        for dir in 0..DIRS {
            for file in 0..FILES {
                let path = self.point.join(format!("dir-{dir}/{file}"));
                assert_eq!(fs::metadata(&path).unwrap().len(), 4, "{}", path.display());
            }
        }
    }

    /// Makes the kernel forget all that it can: afterwards each known object has left the newest
    /// part of the cache.
    fn forget(&self) {
        for _ in 0..3 {
            self.walk();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.front_end = None;
        rustix::mount::unmount(&self.point, UnmountFlags::DETACH).unwrap();
        if !thread::panicking() {
            self.serving.take().unwrap().join().unwrap();
        }
    }
}

/// A bind mount in the tree. The drop unmounts it.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Self {
        rustix::mount::mount_bind(from, to).unwrap();
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let done = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
        assert!(done.is_ok() || thread::panicking(), "{}: {done:?}", self.0.display());
    }
}

fn setup() -> (Setup, LowerGuard) {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    for dir in 0..DIRS {
        for file in 0..FILES {
            put::file(&lower, &format!("dir-{dir}/{file}"), "data");
        }
    }
    put::dir(&lower, "some/where/deep/below/point");
    for place in ["dir", "removed", "other/inner", "private/deep/point"] {
        put::dir(&lower, &format!("places/{place}"));
    }
    put::file(&lower, "places/file", "below");
    put::file(&lower, "links/one", "linked");
    for link in 0..200 {
        put::link(&lower, "links/one", &format!("links/{link}"));
    }
    let guard = LowerGuard::new([&lower]);
    (setup, guard)
}

/// Before a creation the kernel asks for the entry of its directory again. It treats an error as
/// the end of the entry, with all mounts in it.
#[test]
fn mounts_in_the_tree_stay_when_a_layer_fails_for_a_moment() {
    let (setup, _guard) = setup();
    put::file(&setup.dir("volume"), "inside", "volume");
    let mounted = Mounted::new(&setup);
    let (above, point) = (mounted.point.join("some/where"), mounted.point.join("some/where/deep/below/point"));
    let _bound = Bound::new(&setup.path("volume"), &point);
    for errno in [libc::EIO, libc::ESTALE, libc::EACCES, libc::ENOENT, libc::ENOSPC] {
        // The next stat of the directory needs a call on the layer.
        fs::write(above.join(errno.to_string()), "").unwrap();
        mounted.counts.interpose(move |method| if method == Method::Stat { Err(Error::new(errno)) } else { Ok(()) });
        let refused = fs::create_dir(&above).unwrap_err();
        mounted.counts.interpose(|_| Ok(()));
        assert_eq!(refused.raw_os_error(), Some(libc::ENOMEM), "{errno}");
        assert_eq!(fs::read_to_string(point.join("inside")).unwrap(), "volume", "{errno}");
    }
    assert_eq!(fs::create_dir(&above).unwrap_err().raw_os_error(), Some(libc::EEXIST));
}

/// A program in a mount namespace of its own. It bind-mounts `from` at `to`, and later writes to
/// the file `name` in it.
struct Elsewhere {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Elsewhere {
    fn new(from: &Path, to: &Path, name: &str) -> Self {
        let script = "mount --bind \"$1\" \"$2\"; echo ready; read -r line; echo \"$line\" > \"$2/$3\"; echo done";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation=private", "sh", "-euc", script, "sh"]).args([from, to]).arg(name);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut elsewhere = Self { child, lines };
        elsewhere.hear("ready\n");
        elsewhere
    }

    fn hear(&mut self, expected: &str) {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }

    fn write(mut self) {
        writeln!(self.child.stdin.take().unwrap(), "from elsewhere").unwrap();
        self.hear("done\n");
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn mounts_in_the_tree_stay_when_their_mount_points_are_evicted() {
    let (setup, guard) = setup();
    let mounted = Mounted::new(&setup);
    let (point, volume) = (&mounted.point, setup.dir("volume"));
    for name in ["dir", "deep", "private", "detached/inner"] {
        put::dir(&volume, name);
    }
    put::file(&volume, "file", "of the volume");
    let deep = "some/where/deep/below/point";
    let bound: Vec<_> = [("dir", "places/dir"), ("file", "places/file"), ("deep", deep)]
        .map(|(from, to)| Bound::new(&volume.join(from), &point.join(to)))
        .into();
    // A part of the overlay that is mounted elsewhere, with a mount in it.
    let part = setup.dir("part");
    let _part = Bound::new(&point.join("places/other"), &part);
    let _inner = Bound::new(&volume.join("detached"), &part.join("inner"));
    let elsewhere = Elsewhere::new(&volume.join("private"), &point.join("places/private/deep/point"), "new");

    mounted.forget();

    for place in ["places/dir", deep] {
        fs::write(point.join(place).join("new"), "to the volume").unwrap();
    }
    fs::write(point.join("places/file"), "to the volume").unwrap();
    fs::write(part.join("inner/new"), "to the volume").unwrap();
    elsewhere.write();
    for file in ["dir/new", "deep/new", "file", "detached/new"] {
        assert_eq!(fs::read_to_string(volume.join(file)).unwrap(), "to the volume", "{file}");
    }
    assert_eq!(fs::read_to_string(volume.join("private/new")).unwrap(), "from elsewhere\n");
    let written: Vec<_> = names(&setup.path("upper")).into_iter().filter(|name| !name.starts_with(".wh.")).collect();
    assert_eq!(written, [""; 0], "nothing was written to the layer");

    // Without a mount on it an object can be evicted, and is the same afterwards.
    drop(bound);
    mounted.forget();
    assert_eq!(fs::read_to_string(point.join("places/file")).unwrap(), "below");
    assert_eq!(names(&point.join("places/dir")), [""; 0]);
    drop((_inner, _part, mounted, guard));
}

#[test]
fn the_kernel_forgets_only_unused_objects() {
    let (setup, guard) = setup();
    let mounted = Mounted::new(&setup);
    // The limit, the new objects until the next eviction, and the directories.
    let most = KNOWN_MAX + 3 * DIRS;
    mounted.walk();
    mounted.await_known(most);

    // In use are open files, one of them changed, and the current directory of a program.
    let held: Vec<_> =
        (0..FILES).map(|file| File::open(mounted.point.join(format!("dir-3/{file}"))).unwrap()).collect();
    fs::write(mounted.point.join("dir-3/0"), "changed").unwrap();
    let mut inside = Command::new("sh");
    inside.args(["-c", "read -r line; cat ../dir-4/7 7"]).current_dir(mounted.point.join("dir-4"));
    let mut inside = inside.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    for dir in (0..DIRS).filter(|dir| *dir != 3) {
        names(&mounted.point.join(format!("dir-{dir}")));
    }
    for file in &held[1..] {
        let mut content = String::new();
        std::io::Read::read_to_string(&mut &*file, &mut content).unwrap();
        assert_eq!(content, "data");
    }
    writeln!(inside.stdin.take().unwrap()).unwrap();
    assert_eq!(inside.wait_with_output().unwrap().stdout, b"datadata");
    assert_eq!(fs::read_to_string(mounted.point.join("dir-3/0")).unwrap(), "changed");
    drop(held);

    // A file of 201 names is one object, and each name keeps it.
    for link in 0..200 {
        assert_eq!(fs::read(mounted.point.join(format!("links/{link}"))).unwrap(), b"linked");
    }
    fs::write(mounted.point.join("dir-3/0"), "data").unwrap();
    mounted.forget();
    mounted.await_known(most);
    drop((mounted, guard));
}

/// The kernel asks for attributes at the beginning of a listing, before it knows whether they are
/// wanted. In a large directory they cost more than the rest of the listing.
#[test]
fn the_listing_of_a_large_directory_looks_at_no_entry() {
    let setup = Setup::new();
    let lower = setup.dir("lower");
    (0..LARGE).for_each(|index| drop(put::file(&lower, &format!("large/{index}"), "")));
    let mounted = Mounted::new(&setup);
    mounted.counts.take();
    assert_eq!(names(&mounted.point.join("large")).len(), LARGE);
    let looks = mounted.counts.tally().of(Method::Stat);
    assert!(looks < 10, "{looks} calls for attributes");
}

/// The number of the directory, and of the name in it.
type Place = (usize, usize);

/// A step that is made in the mount and in an ordinary directory.
#[derive(Clone, Debug)]
enum Step {
    Write(Place),
    MakeDir(Place),
    Remove(Place),
    Rename(Place, Place),
    Link(Place, Place),
    Bind(Place),
    Unbind,
    Walk,
}

impl Step {
    fn choose(random: &mut Random) -> Self {
        let mut place = || (random.below(4), random.below(5));
        let (from, to) = (place(), place());
        match random.below(20) {
            0..4 => Step::Write(from),
            4..6 => Step::MakeDir(from),
            6..8 => Step::Remove(from),
            8..11 => Step::Rename(from, to),
            11..13 => Step::Link(from, to),
            13..16 => Step::Bind(from),
            16 => Step::Unbind,
            _ => Step::Walk,
        }
    }
}

/// One of the two trees, and the mounts in it.
struct Tree {
    root: PathBuf,
    volume: PathBuf,
    bound: Vec<Bound>,
}

impl Tree {
    /// Makes a step. Returns the errno, or 0.
    fn take(&mut self, step: &Step, number: usize) -> i32 {
        let dirs = ["", "dir", "dir/inner", "dir/inner/deep"];
        let path =
            |(dir, name): Place| self.root.join("area").join(dirs[dir]).join(["dir", "inner", "deep", "a", "b"][name]);
        let done = match *step {
            Step::Write(place) => fs::write(path(place), format!("{number}")),
            Step::MakeDir(place) => fs::create_dir(path(place)),
            Step::Remove(place) => {
                let path = path(place);
                if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) }
            }
            Step::Rename(from, to) => fs::rename(path(from), path(to)),
            Step::Link(from, to) => fs::hard_link(path(from), path(to)),
            Step::Bind(place) => {
                let to = path(place);
                let kind = if to.is_dir() { "dir" } else { "file" };
                let bound = rustix::mount::mount_bind(self.volume.join(kind), &to);
                if bound.is_ok() {
                    self.bound.push(Bound(to));
                }
                bound.map_err(Into::into)
            }
            Step::Unbind => {
                self.bound.pop();
                Ok(())
            }
            Step::Walk => Ok(()),
        };
        done.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
    }
}

#[test]
fn random_changes_among_mounts_match_an_ordinary_directory() {
    for seed in 0..CASES {
        let (setup, guard) = setup();
        let mounted = Mounted::new(&setup);
        let mut trees = ["mount", "plain"].map(|name| {
            let (root, volume) = (setup.dir(name), setup.dir(&format!("volume-{name}")));
            put::dir(&root, "area/dir/inner/deep");
            put::dir(&volume, "dir");
            put::file(&volume, "file", "");
            Tree { root, volume, bound: Vec::new() }
        });
        let mut random = Random(seed);
        for number in 0..STEPS {
            let step = Step::choose(&mut random);
            let [found, expected] = trees.each_mut().map(|tree| tree.take(&step, number));
            assert_eq!(found, expected, "case {seed}, step {number}: {step:?}");
            if matches!(step, Step::Walk) {
                mounted.walk();
            }
        }
        for part in [|tree: &Tree| tree.root.join("area"), |tree: &Tree| tree.volume.clone()] {
            let [found, expected] = trees.each_ref().map(|tree| Snapshot::take(&part(tree), Detail::Contents));
            expected.assert_same(&found, &format!("case {seed}: {}", part(&trees[0]).display()));
        }
        for tree in &mut trees {
            while tree.bound.pop().is_some() {}
        }
        drop((mounted, guard));
    }
}
