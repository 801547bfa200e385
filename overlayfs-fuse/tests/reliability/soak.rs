//! Hours of mixed work: programs with random changes and known results, git, tar, the calls of
//! compilers, and copy-up all the time. One overlay stays mounted until the end. Another is mounted
//! again from time to time.
//!
//! OVERLAYFS_SOAK_SECONDS sets the time. The test prints the memory and descriptors of the first
//! daemon as a table, which `--nocapture` shows. Once all work has run a few times, they must not
//! grow.
//!
//! The cache of the daemon has a limit, which this work alone would reach after a day. So a long
//! run looks at more files than the limit before the work begins, and again all the time.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use test_common::{Random, Setup, put};

use crate::call::bytes;
use crate::fixture::Fixture;
use crate::mount::Mount;
use crate::worker::Worker;
use crate::{run, setting};

/// The number of programs with random changes in the overlay that stays.
const WORKERS: usize = 2;

/// The number of calls of a program between two comparisons.
const CALLS: usize = 200;

/// The pause between two calls, so that the disk is not busy for the whole time.
const PAUSE: Duration = Duration::from_millis(2);

/// The seconds between two copy-ups, of small and of large files.
const SMALL_EVERY: f64 = 0.3;
const LARGE_EVERY: f64 = 3.0;

const SMALL: usize = 3000;
const LARGE: u64 = (2 << 20) + 77;

/// The shortest run that checks for growth. A shorter one is only a warm-up.
const TELLS: Duration = Duration::from_secs(600);

/// The number of further directories in a run that checks for growth, and of the files in each.
/// With them the daemon's cache is at its limit (131,072 objects and names) all the time.
const CROWDS: usize = 160;
const CROWD: usize = 1000;

/// The interval between looks at these directories.
const CROWD_EVERY: Duration = Duration::from_secs(1);

/// The limit of memory of a daemon.
const MOST_MEMORY: u64 = 256 << 20;
const MOST_DESCRIPTORS: usize = 1000;

/// The limit of growth: the largest value of the last quarter, less that of the second one.
const MORE_MEMORY: u64 = 4 << 20;
const MORE_DESCRIPTORS: usize = 64;

/// The calls of git, tar and compilers in a tree. The script fails if a file is wrong.
const PROGRAMS: &str = r#"
rm -rf work clone && mkdir work && cd work
tar -C ../tree -cf - . | tar -xf -
diff -r ../tree .
git init -q . && git add -A && git commit -qm one
for d in d*; do echo change >> $d/f1; git mv $d/f2 $d/g2; mv $d moved-$d; done
git add -A && git commit -qm two && git gc -q && git fsck --full --no-progress
git clone -q . ../clone && git -C ../clone fsck --full --no-progress
diff -r --exclude=.git . ../clone
git checkout -q HEAD~1 && diff -r --exclude=.git ../tree .
mkdir -p target/deps
for i in $(seq 100); do
    echo object $i > target/deps/.tmp$i && mv target/deps/.tmp$i target/deps/o$i && ln target/deps/o$i target/o$i
done
cat target/deps/o* > target/all && cat target/o* | cmp - target/all
cd .. && rm -rf work clone
"#;

/// One line of the table.
struct Sample {
    at: Duration,
    memory: u64,
    descriptors: usize,
}

/// Reads the memory and descriptors of a daemon.
fn sample(pid: u32, at: Duration) -> Sample {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    Sample { at, memory: kilobytes << 10, descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() }
}

/// Panics if the daemon was ever above the limit.
fn check(samples: &[Sample]) {
    for Sample { at, memory, descriptors } in samples {
        assert!(*memory < MOST_MEMORY, "after {at:?} the daemon has {memory} bytes of memory");
        assert!(*descriptors < MOST_DESCRIPTORS, "after {at:?} the daemon has {descriptors} descriptors");
    }
}

/// Panics if the memory or the descriptors grow.
fn check_growth(samples: &[Sample], whole: Duration) {
    let quarter = |number: u32| {
        let of =
            samples.iter().filter(move |sample| (whole / 4 * number..whole / 4 * (number + 1)).contains(&sample.at));
        let (memory, descriptors): (Vec<_>, Vec<_>) = of.map(|sample| (sample.memory, sample.descriptors)).unzip();
        (memory.into_iter().max().unwrap(), descriptors.into_iter().max().unwrap())
    };
    let (before, after) = (quarter(1), quarter(3));
    println!(
        "second quarter: {} bytes, {} descriptors at most; last quarter: {}, {}",
        before.0, before.1, after.0, after.1
    );
    assert!(after.0 <= before.0 + MORE_MEMORY, "memory grows from {} to {} bytes", before.0, after.0);
    assert!(after.1 <= before.1 + MORE_DESCRIPTORS, "descriptors grow from {} to {}", before.1, after.1);
}

/// The end of the work. It comes early when another thread fails, so that the message shows soon.
struct Watch {
    start: Instant,
    length: Duration,
    failed: AtomicBool,
}

impl Watch {
    fn goes_on(&self) -> bool {
        self.start.elapsed() < self.length && !self.failed.load(Ordering::Relaxed)
    }
}

/// Stops the other threads when its thread panics.
struct Alarm<'a>(&'a Watch);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Makes random changes, and compares the tree after every few calls.
fn work_at_random(worker: &mut Worker, watch: &Watch, until: Duration) {
    while watch.goes_on() && watch.start.elapsed() < until {
        for _ in 0..CALLS {
            worker.work().unwrap_or_else(|error| panic!("{}: {error}", worker.history.last().what));
            worker.history.drop_steps();
            thread::sleep(PAUSE);
        }
        worker.compare();
    }
}

/// Copies files up all the time, until none is left.
fn copy_up(mount: &Path, watch: &Watch) {
    let mut random = Random(7);
    let (mut small, mut large) = (0, 0);
    while watch.goes_on() {
        let seconds = watch.start.elapsed().as_secs_f64();
        while (small as f64) * SMALL_EVERY < seconds {
            let path = mount.join(small_file(small));
            let mut file = File::options().append(true).open(&path).unwrap();
            file.write_all(b"more").unwrap();
            drop(file);
            assert!(fs::read(&path).unwrap() == [bytes(small as u64, SMALL), b"more".to_vec()].concat(), "{path:?}");
            match random.below(4) {
                0 => fs::remove_file(&path).unwrap(),
                1 => fs::rename(&path, path.with_extension("renamed")).unwrap(),
                _ => {}
            }
            small += 1;
        }
        while (large as f64) * LARGE_EVERY < seconds {
            let path = mount.join(format!("ration/large/{large}"));
            let file = File::options().read(true).write(true).open(&path).unwrap();
            file.write_all_at(b"changed", LARGE / 2).unwrap();
            // Few files keep a partial copy, since the end copies the rest of each.
            let fate = random.below(16);
            if (1..8).contains(&fate) {
                file.sync_all().unwrap();
            }
            let mut end = [0; 7];
            file.read_exact_at(&mut end, LARGE - 7).unwrap();
            assert_eq!(&end, b"the end", "{path:?}");
            drop(file);
            let content = fs::read(&path).unwrap();
            let at = LARGE as usize / 2;
            assert!(content[at..at + 7] == *b"changed" && content.len() as u64 == LARGE, "{path:?}");
            if fate >= 8 {
                fs::remove_file(&path).unwrap();
            }
            large += 1;
        }
        thread::sleep(Duration::from_millis(50));
    }
    println!("copied up: {small} small files and {large} large ones");
}

fn small_file(number: usize) -> String {
    format!("ration/small/{}/{number}", number / 100)
}

/// Returns the path of a directory of the crowd.
fn crowd(number: usize) -> String {
    format!("crowds/{number}")
}

/// Stats each file of a directory.
fn look_at(dir: &Path) {
    for name in 0..CROWD {
        let path = dir.join(name.to_string());
        let metadata = path.symlink_metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(metadata.is_file() && metadata.len() == 0, "{} is no empty file", path.display());
    }
}

/// Looks at one directory after the other, in a loop.
fn look_around(mount: &Path, watch: &Watch) {
    let mut looks = 0;
    while watch.goes_on() {
        look_at(&mount.join(crowd(looks % CROWDS)));
        looks += 1;
        thread::sleep(CROWD_EVERY);
    }
    println!("crowds looked at: {looks}");
}

/// Runs the script of programs in a loop.
fn run_programs(mount: &Path, watch: &Watch) {
    let mut rounds = 0;
    while watch.goes_on() {
        let mut command = run::command("sh");
        command.args(["-euc", PROGRAMS]).current_dir(mount);
        command.env("HOME", "/nonexistent").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Somebody").env(format!("GIT_{who}_EMAIL"), "somebody@example.org");
        }
        let output = run::finish(&mut command);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "round {rounds} of the programs fails:\n{out}{err}");
        rounds += 1;
        thread::sleep(PAUSE * 500);
    }
    println!("rounds of git, tar and the others: {rounds}");
}

/// Mounts an overlay again and again, with an empty upper layer from time to time.
fn remount(fixture: &Fixture, watch: &Watch, period: Duration) {
    let mut mounts = 0;
    while watch.goes_on() {
        fixture.clear();
        let mut mount = fixture.mount("");
        let mut worker = Worker::new(0, &fixture.point, mounts, Arc::new(AtomicU64::new(0)));
        for _ in 0..5 {
            work_at_random(&mut worker, watch, watch.start.elapsed() + period);
            mount.unmount();
            fixture.check_at_rest();
            mount = fixture.mount("");
            fixture.check_work();
            worker.compare();
            mounts += 1;
        }
        mount.unmount();
    }
    println!("mounts of the second overlay: {mounts}");
}

#[test]
fn memory_and_descriptors_do_not_grow() {
    let length = Duration::from_secs(setting("OVERLAYFS_SOAK_SECONDS", 6));
    let (stays, anew) = (Setup::new(), Setup::new());
    let (seconds, tells) = (length.as_secs_f64(), length >= TELLS);
    let crowds = if tells { CROWDS } else { 0 };
    let fixture = Fixture::new(&stays, stays.root(), WORKERS, |lower| {
        for number in 0..(seconds / SMALL_EVERY) as usize + 1 {
            put::file(lower, &small_file(number), bytes(number as u64, SMALL));
        }
        for number in 0..(seconds / LARGE_EVERY) as usize + 1 {
            let file = File::create(put::file(lower, &format!("ration/large/{number}"), "")).unwrap();
            file.write_all_at(b"the end", LARGE - 7).unwrap();
        }
        for number in 0..200 {
            let path = format!("tree/d{}/f{}", number / 10, number % 10);
            put::file(lower, &path, bytes(number, 100 + 100 * number as usize));
        }
        for dir in (0..crowds).map(|number| put::dir(lower, &crowd(number))) {
            for name in 0..CROWD {
                File::create(dir.join(name.to_string())).unwrap();
            }
        }
    });
    let other = Fixture::new(&anew, anew.root(), 1, |_| ());
    // The limit is longer than the work, since the end completes partial copies.
    let mount = Mount::for_long(&fixture.point, &fixture.options(""), length + Duration::from_secs(600));
    let pid = mount.daemon.id();
    let start = Instant::now();
    for number in 0..crowds {
        look_at(&fixture.point.join(crowd(number)));
    }
    println!("{} files were looked at in {:?}", crowds * CROWD, start.elapsed());
    let watch = Watch { start: Instant::now(), length, failed: AtomicBool::new(false) };
    let mut samples = Vec::new();
    thread::scope(|scope| {
        let (watch, fixture) = (&watch, &fixture);
        for number in 0..WORKERS {
            scope.spawn(move || {
                let _alarm = Alarm(watch);
                let mut worker = Worker::new(number, &fixture.point, 1, Arc::new(AtomicU64::new(0)));
                work_at_random(&mut worker, watch, length);
            });
        }
        scope.spawn(|| {
            let _alarm = Alarm(watch);
            copy_up(&fixture.point, watch);
        });
        scope.spawn(|| {
            let _alarm = Alarm(watch);
            run_programs(&fixture.point, watch);
        });
        if tells {
            scope.spawn(|| {
                let _alarm = Alarm(watch);
                look_around(&fixture.point, watch);
            });
        }
        scope.spawn(|| {
            let _alarm = Alarm(watch);
            remount(&other, watch, (length / 100).max(Duration::from_secs(1)));
        });
        println!("seconds  memory in KiB  descriptors");
        while watch.goes_on() {
            let now = sample(pid, watch.start.elapsed());
            println!("{:7}  {:13}  {:11}", now.at.as_secs(), now.memory >> 10, now.descriptors);
            samples.push(now);
            thread::sleep((length / 240).max(Duration::from_millis(500)));
        }
    });
    mount.unmount();
    fixture.check_lowers();
    other.check_lowers();
    fixture.check_at_rest();
    check(&samples);
    if tells {
        check_growth(&samples, length);
    }
}
