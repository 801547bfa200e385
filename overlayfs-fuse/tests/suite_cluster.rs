//! Layers on filesystems of several hosts, GlusterFS and MooseFS: a volume mounted twice, in the
//! place of two hosts.
//!
//! Needs root, /dev/fuse, and of Debian's packages git, glusterfs-server, iproute2,
//! moosefs-chunkserver, moosefs-client and moosefs-master; fails without them.

#[path = "cluster/glusterfs.rs"]
mod glusterfs;
#[path = "suite/locks.rs"]
mod locks;
#[path = "cluster/moosefs.rs"]
mod moosefs;
#[path = "suite/mount.rs"]
mod mount;
#[path = "cluster/network.rs"]
mod network;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/tool.rs"]
mod tool;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use glusterfs::GlusterFs;
use locks::is_free;
use moosefs::MooseFs;
use mount::{Mount, eventually, is_mounted};
use test_common::{Detail, LowerGuard, Setup, Snapshot, Stop, put};

/// The user of the programs that are not root's.
const USER: &str = "4242";

/// The servers of such a filesystem, with one volume. The drop ends them.
trait Servers {
    /// What no access of an overlay to a lower layer changes.
    const LOWER: Detail;

    /// Starts them. They keep their files in the directory of `setup`.
    fn start(setup: &Setup) -> Self;

    /// Mounts the volume, which answers programs then.
    fn mount(&self, point: &Path);
}

/// Servers, and their volume at `one` and `other`, as two hosts see it.
struct Cluster<S> {
    servers: S,
    setup: Setup,
    /// The number of the present layers.
    round: Cell<u32>,
}

impl<S: Servers> Cluster<S> {
    fn start() -> Self {
        network::own();
        let setup = Setup::for_users(&["one", "other"]);
        let cluster = Self { servers: S::start(&setup), setup, round: Cell::new(0) };
        for name in ["one", "other"] {
            cluster.servers.mount(&cluster.setup.path(name));
        }
        cluster
    }
}

impl<S> Cluster<S> {
    /// Returns a path of the present layers as a host sees it.
    fn on(&self, host: &str, path: &str) -> PathBuf {
        self.setup.path(host).join(self.round.get().to_string()).join(path)
    }

    /// Returns the options of a mount of the layers `lower` and `upper` on a host.
    fn options(&self, host: &str) -> String {
        format!("lowerdir={},upperdir={}", self.on(host, "lower").display(), self.on(host, "upper").display())
    }

    /// Makes empty layers, at paths that no host knows yet: one keeps for a moment what another has
    /// removed.
    fn clear(&self) {
        let _ = fs::remove_dir_all(self.on("one", ""));
        self.round.set(self.round.get() + 1);
        for name in ["lower", "upper"] {
            fs::create_dir_all(self.on("one", name)).unwrap();
        }
    }
}

impl<S> Drop for Cluster<S> {
    fn drop(&mut self) {
        for name in ["one", "other"] {
            let _ = Command::new("umount").arg("-l").arg(self.setup.path(name)).status();
        }
    }
}

/// Runs a script in a directory, as root or as [`USER`]. Returns its output.
fn shell(dir: &Path, as_user: bool, script: &str) -> String {
    let mut command = run::command(if as_user { "setpriv" } else { "sh" });
    if as_user {
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "sh"]);
    }
    let done = run::finish(command.args(["-euc", script]).current_dir(dir).env("HOME", "/nowhere"));
    assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Fills a lower layer.
fn fill(dir: &Path) {
    for name in ["a/one", "a/two", "a/tree/deep/file", "b/old", "b/renamed/inside", "c"] {
        put::file(dir, name, name.repeat(1000));
    }
    fs::hard_link(dir.join("a/one"), dir.join("b/link")).unwrap();
    put::symlink(dir, "a/symlink", "two");
    let users = put::dir(dir, "users");
    put::file(&users, "file", "of the user\n");
    put::file(&users, "large", vec![7; 8 << 20]);
    shell(dir, false, &format!("chown -R {USER}:{USER} users; chmod 700 users"));
}

/// Work of root, then of a user who has a directory that others cannot enter.
const WORK: [(bool, &str); 2] = [
    (
        false,
        "echo more >> a/one; cat b/link | tail -n 1; rm a/two; rm -r a/tree; mkdir a/tree; echo new > a/tree/new
        mv b/renamed a/moved; echo x > a/moved/x; rm b/old; ln a/moved/x b/x; setfattr -n user.key -v value c
        git init -q repository; cd repository; echo text > file; git add file
        git -c user.name=n -c user.email=e commit -q -m m; git fsck; git status --short",
    ),
    (
        true,
        "cd users; echo appended >> file; echo new > new; mkdir dir; echo in > dir/in; ln -s in dir/link
        printf x | dd of=large bs=1 seek=4000000 conv=notrunc status=none; mv dir other; rm other/in
        ls -n | awk '{print $1, $3, $4, /^d/ ? 0 : $5, $9}' | tail -n +2; sha256sum large",
    ),
];

/// Programs see in the overlay what they see in an ordinary directory, also from the other host.
fn programs_work<S: Servers>(cluster: &Cluster<S>) {
    cluster.clear();
    let (plain, point) = (cluster.setup.dir("plain"), cluster.setup.dir("point"));
    fill(&cluster.on("one", "lower"));
    fill(&plain);
    let guard = LowerGuard::with_detail(S::LOWER, [cluster.on("one", "lower")]);
    let mount = Mount::new(&point, &cluster.options("one"));
    for (as_user, script) in WORK {
        let ordinary = shell(&plain, as_user, script);
        assert_eq!(shell(&point, as_user, script), ordinary, "{script}");
    }
    let count =
        |dir: &Path| shell(dir, false, "find . -path ./repository -prune -o -printf '%P %y %m %n %U %G %l\\n' | sort");
    let contents =
        |dir: &Path| shell(dir, false, "find . -type f -not -path './repository/*' | sort | xargs sha256sum");
    let (listed, hashes) = (count(&plain), contents(&plain));
    let shown = Snapshot::take(&point, Detail::Contents);
    let check = |point: &Path| {
        // The link count of a directory is one.
        let without_dirs = |list: String| {
            let one = |line: &str| line.split(' ').nth(1) != Some("d");
            list.lines().filter(|line| one(line)).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(without_dirs(count(point)), without_dirs(listed.clone()));
        assert_eq!(contents(point), hashes);
    };
    check(&point);
    mount.unmount();
    let mount = Mount::new(&point, &cluster.options("other"));
    check(&point);
    Snapshot::take(&point, Detail::Contents).assert_same(&shown, "the other host shows another tree");
    mount.unmount();
    guard.check();
}

/// Two hosts cannot mount one upper layer. The second can once the first has unmounted it, or is
/// gone.
fn one_host_at_a_time<S>(cluster: &Cluster<S>) {
    cluster.clear();
    fill(&cluster.on("one", "lower"));
    let [point, another] = ["point", "another"].map(|name| cluster.setup.dir(name));
    let refused = || {
        let mut command = run::command(mount::program_for(""));
        let done = run::finish(command.args(["-o", &cluster.options("other")]).arg(&another));
        assert!(!done.status.success() && !is_mounted(&another), "two hosts have mounted one upper layer");
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(said.contains("the upper layer is in use by the overlay at"), "{said}");
    };
    let mut mount = Mount::new(&point, &cluster.options("one"));
    refused();
    put::file(&point, "new", "of the first host");
    refused();
    // The next mount of the same upper layer finds the file whose lock a killed daemon left.
    mount.daemon.kill().unwrap();
    mount.daemon.wait().unwrap();
    let lock = cluster.on("other", "upper/.wh..wh.work/tmp.lock");
    eventually("the server ends the lock of the killed daemon", || is_free(&lock));
    let second = Mount::new(&another, &cluster.options("other"));
    assert_eq!(fs::read_to_string(another.join("new")).unwrap(), "of the first host");
    put::file(&another, "newer", "of the second host");
    second.unmount();
    drop(mount);
    let mount = Mount::new(&point, &cluster.options("one"));
    assert_eq!(fs::read_to_string(point.join("newer")).unwrap(), "of the second host");
    mount.unmount();
}

/// A server ends in the middle of work and comes back. Synced lines are there, and work goes on.
/// Meanwhile there are errors if `needed` holds, and else none: other servers have what this one
/// has.
fn a_server_stops_and_comes_back<S: Servers>(
    cluster: &mut Cluster<S>,
    needed: bool,
    fail: fn(&mut S),
    start: fn(&mut S),
) {
    cluster.clear();
    fill(&cluster.on("one", "lower"));
    let guard = LowerGuard::with_detail(S::LOWER, [cluster.on("one", "lower")]);
    let point = cluster.setup.dir("point");
    let mount = Mount::new(&point, &cluster.options("one"));
    let stop = AtomicBool::new(false);
    let synced: Vec<Vec<u32>> = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                scope.spawn({
                    let (point, stop) = (&point, &stop);
                    move || write_lines(point, writer, stop)
                })
            })
            .collect();
        let stopping = Stop(&stop);
        thread::sleep(Duration::from_secs(1));
        fail(&mut cluster.servers);
        thread::sleep(Duration::from_secs(2));
        // No program waits for ever.
        let failed = (0..40).any(|name| fs::write(point.join(format!("file {name}")), "x").is_err());
        assert_eq!(failed, needed, "whether a file cannot be made without the server");
        start(&mut cluster.servers);
        eventually("the server is back", || {
            (0..40).all(|name| fs::write(point.join(format!("again {name}")), "x").is_ok())
        });
        thread::sleep(Duration::from_secs(1));
        drop(stopping);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(synced.iter().any(|lines| !lines.is_empty()), "no writer has synced a line");
    mount.unmount();
    let mount = Mount::new(&point, &cluster.options("other"));
    for (writer, lines) in synced.iter().enumerate() {
        let found: Vec<u32> = lines_of(&point, writer).collect();
        let lost: Vec<_> = lines.iter().filter(|line| !found.contains(line)).collect();
        assert!(lost.is_empty(), "writer {writer} lost the synced lines {lost:?}");
    }
    mount.unmount();
    guard.check();
}

/// The server that has all names ends and comes back. Meanwhile programs get errors. Afterwards all
/// is there, and work goes on without a new mount.
fn the_master_stops_and_comes_back(cluster: &mut Cluster<MooseFs>) {
    cluster.clear();
    fill(&cluster.on("one", "lower"));
    let point = cluster.setup.dir("point");
    let mount = Mount::new(&point, &cluster.options("one"));
    for (as_user, script) in WORK {
        shell(&point, as_user, script);
    }
    // A client of MooseFS refuses each access by a descriptor with which a write has failed. So
    // nothing is left to write.
    let synced = run::finish(run::command(mount::program_for("")).arg("sync").arg(&point));
    assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
    let shown = Snapshot::take(&point, Detail::Contents);
    cluster.servers.fail_master();
    let failed = fs::create_dir(point.join("new")).expect_err("a directory without a master");
    assert_eq!(failed.raw_os_error(), Some(libc::EIO), "{failed}");
    cluster.servers.start_master();
    eventually("the master is back", || fs::create_dir(point.join("new")).is_ok());
    fs::remove_dir(point.join("new")).unwrap();
    Snapshot::take(&point, Detail::Contents).assert_same(&shown, "the tree after the return of the master");
    mount.unmount();
    let mount = Mount::new(&point, &cluster.options("other"));
    Snapshot::take(&point, Detail::Contents).assert_same(&shown, "the tree on the other host");
    mount.unmount();
}

fn file_of(point: &Path, writer: usize) -> PathBuf {
    point.join(format!("a/lines of {writer}"))
}

/// Appends lines and syncs them until the end. Opens the file again after an error. Returns the
/// numbers of the lines that were synced.
fn write_lines(point: &Path, writer: usize, stop: &AtomicBool) -> Vec<u32> {
    let mut synced = Vec::new();
    let mut file = None;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let path = file_of(point, writer);
        let opened = file.take().map_or_else(|| File::options().create(true).append(true).open(path), Ok);
        let written = opened.and_then(|mut opened: File| {
            writeln!(opened, "{number}")?;
            opened.sync_all().map(|()| opened)
        });
        match written {
            Ok(opened) => {
                synced.push(number);
                file = Some(opened);
            }
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
    synced
}

/// The numbers of the whole lines that a writer has in its file.
fn lines_of(point: &Path, writer: usize) -> impl Iterator<Item = u32> {
    let file = File::open(file_of(point, writer)).unwrap();
    BufReader::new(file).lines().filter_map(|line| line.ok()?.parse().ok())
}

/// `fsx` on a file of the lower layer that is copied up.
fn the_exerciser_finds_nothing<S>(cluster: &Cluster<S>) {
    cluster.clear();
    put::file(&cluster.on("one", "lower"), "exercised", vec![1; 1 << 18]);
    let point = cluster.setup.dir("point");
    let mount = Mount::new(&point, &cluster.options("one"));
    let config = "flen = 262144\n[weights]\nclose_open = 1\ntruncate = 5\nfsync = 1\nsendfile = 2\nposix_fadvise = 1\n";
    let config = put::file(cluster.setup.root(), "fsx.toml", config);
    let mut command = run::command(tool::tool("fsx", "0.3.2"));
    command.arg("-f").arg(config).arg("-P").arg(cluster.setup.dir("artifacts")).args(["-N", "3000", "-S", "7"]);
    let output = run::finish(command.arg(point.join("exercised")));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("All operations completed A-OK!"), "fsx fails:\n{said}");
    mount.unmount();
}

#[test]
fn layers_on_glusterfs() {
    let mut cluster = Cluster::start();
    programs_work(&cluster);
    one_host_at_a_time(&cluster);
    the_exerciser_finds_nothing(&cluster);
    a_server_stops_and_comes_back(&mut cluster, true, GlusterFs::fail_brick, GlusterFs::start_brick);
}

#[test]
fn layers_on_moosefs() {
    let mut cluster = Cluster::start();
    programs_work(&cluster);
    one_host_at_a_time(&cluster);
    the_exerciser_finds_nothing(&cluster);
    a_server_stops_and_comes_back(&mut cluster, false, MooseFs::fail_chunkserver, MooseFs::start_chunkserver);
    the_master_stops_and_comes_back(&mut cluster);
}
