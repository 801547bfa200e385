//! Kills of a daemon whose mount comes back, many times, under load. No call of a program fails,
//! and each has its effect.
//!
//! OVERLAYFS_COMEBACKS sets the number of kills, OVERLAYFS_SEED selects another sequence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use test_common::{Random, Setup};

use crate::fixture::Fixture;
use crate::mount::{Mount, eventually, program};
use crate::worker::Worker;
use crate::{run, setting};

/// The number of concurrent programs.
const WORKERS: usize = 4;

/// The mount options besides the layers. Each set has an upper layer of its own.
const WAYS: [&str; 4] = ["", ",writeback=0", ",whole_copies", ",format=kernel"];

/// The options of each mount.
const COMEBACK: &str = ",comeback,io_uring=off";

/// The limit of kills for one upper layer. A new one follows, so that there are files to copy up.
const KILLS: u64 = 10;

/// The time between two kills. After ten within ten seconds a mount ends.
const SHORTEST: Duration = Duration::from_millis(1050);
const LONGEST: Duration = Duration::from_millis(1250);

/// The number of calls of a program between two comparisons.
const CALLS: usize = 300;

/// Returns the process that serves a mount.
fn process(fixture: &Fixture) -> i32 {
    let output = run::finish(run::command(program()).args(["status"]).arg(&fixture.point));
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find_map(|line| line.strip_prefix("pid")).unwrap_or_else(|| panic!("{output:?}"));
    line.trim().parse().unwrap()
}

fn kill(process: i32) {
    // SAFETY: takes two numbers. The process serves the mount of this test.
    assert_eq!(unsafe { libc::kill(process, libc::SIGKILL) }, 0);
}

/// Works until `stop`. Returns the number of calls, and the time of the longest.
fn work(worker: &mut Worker, stop: &AtomicBool) -> (usize, Duration) {
    let (mut calls, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::SeqCst) {
        let since = Instant::now();
        worker.work().unwrap_or_else(|error| panic!("{}: {error}", worker.history.last().what));
        worker.history.drop_steps();
        longest = longest.max(since.elapsed());
        calls += 1;
        if calls % CALLS == 0 {
            worker.compare();
        }
    }
    (calls, longest)
}

/// Stops the other threads when its thread ends.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Kills the daemon of a mount at work again and again. Returns the number of calls, and the time
/// of the longest.
fn live(fixture: &Fixture, random: &mut Random, way: &str, kills: u64) -> (usize, Duration) {
    fixture.clear();
    let mount: Mount = fixture.mount(&format!("{way}{COMEBACK}"));
    let clock = Arc::new(AtomicU64::new(0));
    let seed = random.number();
    let mut workers: Vec<_> =
        (0..WORKERS).map(|number| Worker::new(number, &fixture.point, seed, clock.clone())).collect();
    for worker in &mut workers {
        worker.leaves_devices = !way.contains("kernel");
    }
    let stop = AtomicBool::new(false);
    let done = thread::scope(|scope| {
        let working: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let stop = &stop;
                scope.spawn(move || {
                    let _alarm = Alarm(stop);
                    work(worker, stop)
                })
            })
            .collect();
        let alarm = Alarm(&stop);
        for _ in 0..kills {
            let span = (LONGEST - SHORTEST).as_micros() as u64;
            thread::sleep(SHORTEST + Duration::from_micros(random.number() % span));
            if stop.load(Ordering::SeqCst) {
                break;
            }
            kill(process(fixture));
        }
        drop(alarm);
        working.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    workers.iter_mut().for_each(Worker::compare);
    // The process of the start is the first that was killed.
    let _ = mount.unmount_and_wait();
    eventually("the layers are free", || fixture.is_free());
    fixture.check_at_rest();
    let mount = fixture.mount(way);
    workers.iter_mut().for_each(Worker::compare);
    mount.unmount();
    fixture.check_lowers();
    (done.iter().map(|(calls, _)| calls).sum(), done.iter().map(|(_, longest)| *longest).max().unwrap())
}

#[test]
fn a_mount_comes_back_after_kills() {
    let kills = setting("OVERLAYFS_COMEBACKS", 12);
    let setup = Setup::new();
    let fixture = Fixture::new(&setup, setup.root(), WORKERS, |_| ());
    let mut random = Random(setting("OVERLAYFS_SEED", 1));
    let (mut done, mut all, mut slowest) = (0, 0, Duration::ZERO);
    for way in WAYS.iter().cycle() {
        let few = KILLS.min(kills.div_ceil(WAYS.len() as u64)).min(kills - done);
        if few == 0 {
            break;
        }
        let (calls, longest) = live(&fixture, &mut random, way, few);
        (done, all, slowest) = (done + few, all + calls, slowest.max(longest));
        println!("{done} kills in {all} calls; the longest call took {slowest:?}");
    }
}
