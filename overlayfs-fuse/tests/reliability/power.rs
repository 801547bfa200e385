//! Power failures while programs work in an overlay with its upper layer on a real filesystem.
//! Afterwards synced data are there, and no change is torn.
//!
//! The tests record runs on each filesystem, and cut each recording at many moments. OVERLAYFS_CUTS
//! sets the number of all cuts, OVERLAYFS_CALLS the number of calls of each program. OVERLAYFS_SEED
//! selects another sequence.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use overlayfs::fsck::Damage;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::UnshareFlags;
use test_common::{Random, Setup, put};

use crate::disk::{Blocks, Disk, Mounted, Recording, succeed};
use crate::fixture::Fixture;
use crate::history::Order;
use crate::mount::{eventually, is_mounted, program};
use crate::worker::Worker;
use crate::{run, setting};

/// The number of concurrent programs.
const WORKERS: usize = 3;

/// The limit of cuts of one recording. A new recording follows.
const CUTS: u64 = 20;

/// The interval of syncs from outside of the overlay.
const SYNC_EVERY: Duration = Duration::from_millis(150);

/// A filesystem of the upper layer.
struct Filesystem {
    make: &'static [&'static str],
    options: &'static str,
    /// The size in bytes.
    size: u64,
    /// The order in which its changes of names survive.
    order: Order,
    /// The mount options besides the layers. Each set has recordings of its own.
    ways: &'static [&'static str],
}

const EXT4: Filesystem = Filesystem {
    make: &["mkfs.ext4", "-q", "-E", "nodiscard"],
    options: "commit=1",
    size: 256 << 20,
    order: Order::Kept,
    ways: &["", ",whole_copies", ",format=kernel"],
};
const XFS: Filesystem = Filesystem {
    make: &["mkfs.xfs", "-q", "-K"],
    options: "defaults",
    size: 320 << 20,
    order: Order::Kept,
    ways: EXT4.ways,
};
const BTRFS: Filesystem = Filesystem {
    make: &["mkfs.btrfs", "-q", "-K"],
    options: "commit=1",
    size: 320 << 20,
    order: Order::EachName,
    // With `format=kernel` the whiteout of a rename may be lost. btrfs alone loses it, too.
    ways: &["", ",whole_copies"],
};

/// The id of this boot. Partial copies record it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A run up to a possible power failure.
struct Recorded {
    recording: Recording,
    /// The number of events at the start of the programs, and at their end.
    begin: u64,
    worked: u64,
    workers: Vec<Worker>,
}

/// A system with a power supply that can fail.
struct Machine {
    filesystem: &'static Filesystem,
    random: Random,
    fixture: Fixture,
    setup: Setup,
}

impl Machine {
    /// Makes a machine with an empty upper layer, and returns the contents of its disk.
    fn new(filesystem: &'static Filesystem) -> (Self, Blocks) {
        // This thread and its children get mounts of their own. SAFETY: descriptors stay shared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        unmount_other_tests();
        let setup = Setup::new();
        let random = Random(setting("OVERLAYFS_SEED", 1));
        let disk = Disk::new(&setup, filesystem.size, Blocks::new());
        succeed(Command::new(filesystem.make[0]).args(&filesystem.make[1..]).arg(disk.device()));
        let mounted = Mounted::new(&disk, &setup.dir("disk"), filesystem.options);
        let fixture = Fixture::new(&setup, &setup.path("disk"), WORKERS, furnish_ends);
        drop(mounted);
        let recording = disk.recording();
        let blocks = recording.cut(recording.end(), &mut Random(0));
        drop(disk);
        let mut machine = Self { filesystem, random, fixture, setup };
        mount_bind(put::file(machine.setup.root(), "boot_id", ""), BOOT_ID).unwrap();
        machine.boot();
        (machine, blocks)
    }

    /// Starts a new boot: sets another boot id.
    fn boot(&mut self) {
        put::file(
            self.setup.root(),
            "boot_id",
            format!("{:016x}{:016x}\n", self.random.number(), self.random.number()),
        );
    }

    /// Makes a disk with these contents, and mounts its filesystem.
    fn disk(&self, blocks: Blocks) -> (Disk, Mounted) {
        let disk = Disk::new(&self.setup, self.filesystem.size, blocks);
        let mounted = Mounted::new(&disk, &self.setup.path("disk"), self.filesystem.options);
        (disk, mounted)
    }

    /// Runs the programs and records their writes.
    fn record(&mut self, blocks: Blocks, way: &str, calls: u64) -> Recorded {
        let (disk, mounted) = self.disk(blocks);
        let mount = self.fixture.mount(way);
        let begin = disk.clock.load(Ordering::SeqCst);
        let seed = self.random.number();
        let mut workers: Vec<_> =
            (0..WORKERS).map(|number| Worker::new(number, &self.fixture.point, seed, disk.clock.clone())).collect();
        for worker in &mut workers {
            // If names survive one by one, the contents of a directory may show at a path where
            // they never were.
            worker.moves_dirs = self.filesystem.order == Order::Kept;
            // In the kernel's format a rename leaves no device.
            worker.leaves_devices = !way.contains("format=kernel");
        }
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| sync_now_and_then(&self.setup.path("disk"), &ended));
            let working: Vec<_> = workers
                .iter_mut()
                .map(|worker| scope.spawn(|| (0..calls).for_each(|_| worker.work().expect("the call succeeds"))))
                .collect();
            working.into_iter().for_each(|thread| thread.join().unwrap());
            ended.store(true, Ordering::SeqCst);
        });
        let worked = disk.clock.load(Ordering::SeqCst);
        mount.unmount();
        let recording = disk.recording();
        drop(mounted);
        Recorded { recording, begin, worked, workers }
    }
}

/// Unmounts the mounts of other tests in this namespace. Otherwise they would last as long as this
/// thread.
fn unmount_other_tests() {
    let temporary = std::env::temp_dir();
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(&temporary) && *point != temporary) {
        // It may have gone together with its parent mount.
        let _ = unmount(point, UnmountFlags::DETACH);
    }
}

/// Syncs the filesystem at moments that are independent of the programs.
fn sync_now_and_then(dir: &Path, ended: &AtomicBool) {
    let dir = File::open(dir).unwrap();
    while !ended.load(Ordering::SeqCst) {
        thread::sleep(SYNC_EVERY);
        rustix::fs::syncfs(&dir).unwrap();
    }
}

fn cut(filesystem: &'static Filesystem) {
    let (mut machine, blocks) = Machine::new(filesystem);
    let (cuts, mut number, mut not_one_step) = (setting("OVERLAYFS_CUTS", 3), 0, 0);
    for way in filesystem.ways.iter().cycle() {
        let few = CUTS.min(cuts.div_ceil(filesystem.ways.len() as u64)).min(cuts - number);
        if few == 0 {
            break;
        }
        number += few;
        not_one_step += cut_one_recording(&mut machine, blocks.clone(), way, few);
    }
    println!("{}: {cuts} cuts, names not those after one step: {not_one_step}", filesystem.make[0]);
}

/// Records a run and cuts it. Returns how often the names of a program were not those after one
/// step.
fn cut_one_recording(machine: &mut Machine, blocks: Blocks, way: &str, cuts: u64) -> u64 {
    let filesystem = machine.filesystem;
    let Recorded { recording, begin, workers, .. } = machine.record(blocks, way, setting("OVERLAYFS_CALLS", 60));
    let mut not_one_step = 0;
    for number in 1..=cuts {
        let moment = begin + machine.random.number() % (recording.end() + 1 - begin);
        machine.boot();
        let blocks = recording.cut(moment, &mut machine.random);
        let (_disk, _mounted) = machine.disk(blocks);
        let end = recording.end();
        let when = format!("{}{way}, cut {number} of a recording, after event {moment} of {end}", filesystem.make[0]);
        let repair = machine.random.below(2) == 0;
        let mut lost = machine.fixture.losses(repair);
        // An unsynced write to a partial copy.
        lost.retain(|finding| !finding.ends_with(&Damage::MapMeansNothing.to_string()));
        assert_eq!(lost, [""; 0], "{when}");
        let mount = machine.fixture.mount(way);
        machine.fixture.check_work();
        for worker in &workers {
            let checked = worker.history.check_cut(&worker.find(), moment, filesystem.order);
            let one_step = checked.unwrap_or_else(|difference| panic!("{when}: {difference}"));
            not_one_step += u64::from(!one_step);
        }
        mount.unmount();
    }
    not_one_step
}

#[test]
fn ext4_keeps_synced_data() {
    cut(&EXT4);
}

#[test]
fn xfs_keeps_synced_data() {
    cut(&XFS);
}

#[test]
fn btrfs_keeps_synced_data() {
    cut(&BTRFS);
}

/// Large enough for a partial copy.
const LARGE: usize = 4 << 20;

/// Makes the files that change before an end.
fn furnish_ends(lower: &Path) {
    put::file(lower, "ends/large", vec![b'l'; LARGE]);
    put::file(lower, "ends/small", "small");
    put::file(lower, "ends/dir/inside", "inside");
}

/// Makes a change of each kind, without a sync.
fn change_ends(ends: &Path) {
    File::options().append(true).open(ends.join("large")).unwrap().write_all(b"end").unwrap();
    fs::write(ends.join("small"), "changed").unwrap();
    fs::write(ends.join("new"), vec![b'n'; 100_000]).unwrap();
    fs::rename(ends.join("dir"), ends.join("moved")).unwrap();
    fs::write(ends.join("moved/more"), "more").unwrap();
}

/// Returns whether all these changes are there.
fn has_ends(ends: &Path) -> bool {
    let read = |name: &str| fs::read(ends.join(name)).unwrap_or_default();
    read("large") == [&vec![b'l'; LARGE][..], b"end"].concat()
        && read("small") == b"changed"
        && read("new") == vec![b'n'; 100_000]
        && read("moved/inside") == b"inside"
        && read("moved/more") == b"more"
        && !ends.join("dir").exists()
}

/// An end of the work. It gets the mount point and the clock of the disk, and returns the moment
/// from which all changes must be kept.
type End = fn(&Path, &AtomicU64) -> u64;

/// The ends: after their return, all earlier changes are on the disk.
const ENDS: [(&str, End); 2] = [
    ("umount", |point, clock| {
        // `overlayfs-fuse ls` of another suite may have the mount open for a moment.
        eventually("it is unmounted", || Command::new("umount").arg(point).status().unwrap().success());
        clock.load(Ordering::SeqCst)
    }),
    ("mount -o remount,ro", |point, clock| {
        succeed(Command::new("mount").args(["-i", "-o", "remount,ro"]).arg(point));
        clock.load(Ordering::SeqCst)
    }),
];

impl Machine {
    /// Returns whether the changes of [`change_ends`] survive a power failure at a moment.
    fn keeps_ends(&mut self, recording: &Recording, moment: u64, way: &str) -> bool {
        self.boot();
        let blocks = recording.cut(moment, &mut self.random);
        let (_disk, _mounted) = self.disk(blocks);
        assert_eq!(self.fixture.losses(false), [""; 0]);
        let mount = self.fixture.mount(way);
        let keeps = has_ends(&self.fixture.point.join("ends"));
        mount.unmount();
        keeps
    }
}

fn cut_at_the_end(filesystem: &'static Filesystem) {
    let (mut machine, blocks) = Machine::new(filesystem);
    for (way, (name, end)) in filesystem.ways.iter().flat_map(|way| ENDS.map(|end| (way, end))) {
        let (disk, mounted) = machine.disk(blocks.clone());
        let mut mount = machine.fixture.mount(way);
        change_ends(&machine.fixture.point.join("ends"));
        let moment = end(&machine.fixture.point, &disk.clock);
        let recording = disk.recording();
        match is_mounted(&machine.fixture.point) {
            true => mount.unmount(),
            false => assert!(mount.daemon.wait().unwrap().success()),
        }
        drop(mounted);
        drop(disk);
        assert!(machine.keeps_ends(&recording, moment, way), "{}{way}: {name}", filesystem.make[0]);
    }
}

#[test]
fn changes_before_an_end_are_kept() {
    for filesystem in [&EXT4, &XFS, &BTRFS] {
        // Each filesystem has a namespace of its own.
        thread::scope(|scope| scope.spawn(|| cut_at_the_end(filesystem)).join().unwrap());
    }
}

/// The kernel does not report syncfs(2) to the daemon. So changes are on the disk soon after it,
/// and not at once.
#[test]
fn changes_before_syncfs_are_kept_soon_after() {
    let (mut machine, blocks) = Machine::new(&EXT4);
    let (disk, mounted) = machine.disk(blocks);
    let mount = machine.fixture.mount("");
    change_ends(&machine.fixture.point.join("ends"));
    rustix::fs::syncfs(File::open(&machine.fixture.point).unwrap()).unwrap();
    // The delay is a second on an idle machine.
    let cuts: Vec<_> = (0..12)
        .map(|_| {
            thread::sleep(Duration::from_millis(500));
            disk.recording()
        })
        .collect();
    mount.unmount();
    drop(mounted);
    drop(disk);
    let first = cuts.iter().position(|recording| machine.keeps_ends(recording, recording.end(), ""));
    assert!(first.is_some(), "syncfs(2) has brought nothing to the disk");
}

/// A volatile upper layer is refused after a power failure, whatever its state.
#[test]
fn a_volatile_layer_is_refused_after_a_cut() {
    let (mut machine, blocks) = Machine::new(&EXT4);
    let Recorded { recording, begin, worked, .. } = machine.record(blocks, ",volatile", 20);
    // An end in time removes the mark.
    for _ in 0..setting("OVERLAYFS_CUTS", 3) {
        let moment = begin + machine.random.number() % (worked + 1 - begin);
        machine.boot();
        let blocks = recording.cut(moment, &mut machine.random);
        let (_disk, _mounted) = machine.disk(blocks);
        let losses = machine.fixture.losses(false);
        assert!(losses.iter().any(|finding| finding.ends_with(&Damage::Volatile.to_string())), "{losses:?}");
        let mut command = run::command(program());
        let output = run::finish(command.args(["-f", "-o", &machine.fixture.options("")]).arg(&machine.fixture.point));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("reuse_volatile"), "mounted after event {moment}: {said}");
    }
}
