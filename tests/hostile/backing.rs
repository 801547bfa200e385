//! The layers, the daemon above them, and the checks after the client has left.

use std::fs::{self, Permissions};
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use linux_delegate::Daemon;
use linux_delegate::redoxfs::{Disk, Tree as DiskTree};
use log::{Level, LevelFilter, Log, Metadata, Record};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::layer::{Layer, OsLayer};
use overlayfs::overlay::{Layers, Overlay, Settings};
use overlayfs::scheme::OverlayScheme;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tempfile::TempDir;
use test_common::put;

use crate::client::{Client, Secret, assert_alive, digest};
use crate::request::Bytes;
use crate::tree::{Tree, assert_all_closed};

/// The name of the scheme.
const NAME: &str = "hostile";
/// The content of a file that only root may read. Only root may enter its directory.
const SECRET: &[u8] = b"of root alone";
const SECRET_PATH: &str = "/secret/key";

/// Two lower layers, always the same, and room for an upper one. They are on a filesystem of Linux,
/// or on a simulated redoxfs. A process has one of these.
pub struct Backing {
    dir: TempDir,
    lowers: [PathBuf; 2],
    /// Reports every change in the lower layers.
    changes: OwnedFd,
    /// The number of open descriptors without an overlay.
    descriptors: usize,
    /// The tree that a client sees before any change.
    shown: Tree,
    /// The part of that tree that only root may read or change.
    secret: Tree,
}

impl Backing {
    /// Makes the layers in a new directory in `parent`. A filesystem in memory is the best parent.
    /// Needs root.
    pub fn new(parent: &Path) -> Self {
        log::set_logger(&Formats).unwrap();
        let dir = TempDir::with_prefix_in("overlayfs-hostile-", parent).unwrap();
        let lowers = [dir.path().join("above"), dir.path().join("below")];
        fill(&lowers[0], &lowers[1]);
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        lowers.iter().for_each(|lower| watch(&changes, lower));
        let mut scheme = OverlayScheme::new(Arc::new(overlay(&lowers, None, Settings::default())), NAME.to_owned());
        let (shown, secret) = (Tree::of(&mut scheme), Tree::object(&mut scheme, SECRET_PATH));
        drop(scheme);
        Self { dir, lowers, changes, descriptors: open_descriptors(), shown, secret }
    }

    /// Serves a new overlay and sends it the requests that `input` encodes. Checks that the daemon
    /// survives them.
    pub fn run(&self, input: &[u8]) {
        let mut bytes = Bytes::new(input);
        let bits = bytes.byte();
        let has = |bit: u8| bits & 1 << bit != 0;
        log::set_max_level(if has(0) { LevelFilter::Debug } else { LevelFilter::Error });
        let settings = Settings { whole_copies: has(2), volatile: has(3), ..Settings::default() };
        let choices = Choices { read_only: has(1), with_root: has(4), at_once: has(5), thorough: has(6) };
        if has(7) {
            let disk = Disk::redoxfs();
            disk.tree().put_dir("upper");
            for (number, lower) in self.lowers.iter().enumerate() {
                copy(lower, &number.to_string(), &mut disk.tree());
            }
            let before = ["0", "1"].map(|lower| disk.snapshot(lower));
            self.try_out(&mut bytes, choices, || {
                let open = |path, for_writing| RedoxLayer::open(Path::new(&disk.path(path)), for_writing).unwrap();
                let upper = (!choices.read_only).then(|| open("upper", true));
                let lowers = ["0", "1"].map(|lower| open(lower, false)).into();
                Overlay::with_settings(Layers { upper, work: None, lowers }, settings).unwrap()
            });
            before.iter().for_each(|lower| disk.assert_same(lower));
        } else {
            let upper = self.dir.path().join("upper");
            if upper.exists() {
                fs::remove_dir_all(&upper).unwrap();
            }
            fs::create_dir(&upper).unwrap();
            fs::set_permissions(&upper, Permissions::from_mode(0o755)).unwrap();
            let upper = (!choices.read_only).then_some(&*upper);
            self.try_out(&mut bytes, choices, || overlay(&self.lowers, upper, settings));
            let changes = rustix::io::read(&self.changes, &mut [0; 4096]);
            assert_eq!(changes, Err(Errno::WOULDBLOCK), "changes of a lower layer");
        }
        assert_eq!(open_descriptors(), self.descriptors, "open descriptors");
    }

    fn try_out<L: Layer>(&self, bytes: &mut Bytes, choices: Choices, mount: impl Fn() -> Overlay<L>) {
        let (daemon, mut scheme) = Daemon::watched(mount(), NAME);
        let secret = Secret { len: SECRET.len(), digest: digest(SECRET) };
        let mut client = Client::new(NAME, choices.with_root, secret, choices.at_once);
        while !bytes.is_empty() {
            client.send(bytes);
        }
        let buffers = client.leave();
        assert_alive(NAME);
        daemon.stop();
        drop(daemon);
        drop(buffers);

        assert_all_closed(&mut scheme);
        if !choices.with_root {
            self.secret.assert_same(&Tree::object(&mut scheme, SECRET_PATH), "what only root may change");
        }
        let shown = choices.thorough.then(|| Tree::of(&mut scheme));
        drop(scheme);
        if let Some(shown) = shown {
            let mut mounted_again = OverlayScheme::new(Arc::new(mount()), NAME.to_owned());
            shown.assert_same(&Tree::of(&mut mounted_again), "after the next mount");
            if choices.read_only {
                shown.assert_same(&self.shown, "in an overlay that cannot be changed");
            }
        }
    }
}

/// The variants of one run.
#[derive(Clone, Copy)]
struct Choices {
    read_only: bool,
    /// Whether root is one of the clients.
    with_root: bool,
    /// Whether requests are sent without a wait for each answer.
    at_once: bool,
    /// Whether the next mount must show the same tree as this one at its end.
    thorough: bool,
}

/// Copies the contents of a directory to a simulated disk.
fn copy(from: &Path, to: &str, tree: &mut DiskTree) {
    let stat = fs::symlink_metadata(from).unwrap();
    if stat.is_dir() {
        tree.put_dir(to);
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            copy(&from.join(&name), &format!("{to}/{name}"), tree);
        }
    } else if stat.is_symlink() {
        tree.put_symlink(to, fs::read_link(from).unwrap().into_os_string().into_encoded_bytes());
    } else {
        tree.put_file(to, fs::read(from).unwrap());
    }
    let node = tree.look_mut(to);
    (node.mode, node.uid, node.gid) = (stat.mode() as u16, stat.uid(), stat.gid());
}

fn overlay(lowers: &[PathBuf], upper: Option<&Path>, settings: Settings) -> Overlay<OsLayer> {
    let open = |path: &Path, for_writing| OsLayer::open(path, for_writing).unwrap();
    let upper = upper.map(|upper| open(upper, true));
    let lowers = lowers.iter().map(|lower| open(lower, false)).collect();
    Overlay::with_settings(Layers { upper, work: None, lowers }, settings).unwrap()
}

/// Makes `changes` report each change in a directory and below it.
fn watch(changes: &OwnedFd, dir: &Path) {
    let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE;
    inotify::add_watch(changes, dir, flags | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            watch(changes, &path);
        }
    }
}

/// Fills the two lower layers with objects that a path can lead through, and objects that a client
/// may or may not change.
fn fill(above: &Path, below: &Path) {
    put::file(above, "d/f", "of all");
    put::file(above, "d/g", "of ann");
    put::file(above, "d/sub/x", "deeper");
    put::file(above, "tmp/roots", "of root");
    put::file(above, &SECRET_PATH[1..], SECRET);
    put::file(above, "big", "large enough to be copied in part");
    put::file(above, "first", "two names");
    put::link(above, "first", "second");
    put::symlink(above, "link", "d/f");
    put::symlink(above, "up", "../../..");
    put::symlink(above, "top", "/d/sub");
    put::symlink(above, "loop", "loop");
    put::symlink(above, "out", "/scheme/file/etc");
    put::whiteout(above, "", "gone");
    put::file(below, "d/below", "merged");
    put::file(below, "d/f", "hidden");
    put::file(below, "d/sub/below/x", "deepest");
    put::file(below, "gone", "hidden too");
    fs::OpenOptions::new().write(true).open(above.join("big")).unwrap().set_len(3 << 20).unwrap();
    for path in ["d", "d/sub", "d/f", "d/g", "d/sub/x", "big", "first", "link"] {
        test_common::owner(&above.join(path), 1000, 100);
    }
    let modes = [("", 0o755), ("d", 0o777), ("d/sub", 0o755), ("d/f", 0o666), ("d/g", 0o644), ("d/sub/x", 0o4755)];
    let more = [("tmp", 0o1777), ("tmp/roots", 0o644), ("secret", 0o700), (&SECRET_PATH[1..], 0o600), ("big", 0o666)];
    for (path, mode) in modes.into_iter().chain(more).chain([("first", 0o666)]) {
        test_common::mode(&above.join(path), mode);
    }
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// A logger that formats each message and drops it, so that the code of the formatting runs too. An
/// error is a bug that the daemon has caught, so it panics.
struct Formats;

impl Log for Formats {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let text = record.args().to_string();
        assert!(record.level() > Level::Error, "{text}");
        black_box(text);
    }

    fn flush(&self) {}
}
