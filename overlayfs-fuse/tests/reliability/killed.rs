//! The daemon is killed under load, again and again, and while it ends. All that it had answered is
//! there afterwards, what it was doing is done or not, and nothing else is left.
//!
//! OVERLAYFS_KILLS says how often, OVERLAYFS_SEED begins another sequence.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use test_common::{Random, Setup};

use crate::fixture::Fixture;
use crate::mount::{Mount, eventually};
use crate::setting;
use crate::worker::Worker;

/// How many programs work at once.
const WORKERS: usize = 4;

/// What an overlay is mounted with, beside its layers. Each has its own upper layer.
const WAYS: [&str; 5] = ["", ",writeback=0", ",whole_copies", KERNEL, SCHEME];

/// Here a device with the number 0 is a whiteout.
const KERNEL: &str = ",format=kernel";

/// Redox has no extended attributes.
const SCHEME: &str = ",door=scheme";

/// How often the daemon of an upper layer is killed at most. Then there is another one, so that
/// there is something to copy up.
const KILLS: u64 = 10;

/// How long the programs work at most before the daemon is killed.
const LONGEST: Duration = Duration::from_millis(250);

/// How long a daemon that ends may work before it is killed, at most.
const ENDING: Duration = Duration::from_millis(30);

struct Run {
    fixture: Fixture,
    random: Random,
    kills: u64,
    calls: usize,
    /// How many calls were not answered, and how many of these had no effect.
    cut_off: usize,
    undone: usize,
}

impl Run {
    fn pause(&mut self, longest: Duration) {
        thread::sleep(Duration::from_micros(self.random.number() % longest.as_micros() as u64));
    }

    /// All calls that a life of an upper layer takes.
    fn live(&mut self, way: &str, kills: u64) {
        self.fixture.clear();
        let mut mount = self.fixture.mount(way);
        let seed = self.random.number();
        let clock = Arc::new(AtomicU64::new(0));
        let mut workers: Vec<_> =
            (0..WORKERS).map(|number| Worker::new(number, &self.fixture.point, seed, clock.clone())).collect();
        for worker in &mut workers {
            worker.has_xattrs = way != SCHEME;
            worker.has_temps = way != SCHEME;
            worker.leaves_devices = ![SCHEME, KERNEL].contains(&way);
        }
        for _ in 0..kills {
            match self.random.below(4) {
                0 => self.kill_at_the_end(mount, &mut workers),
                _ => self.kill_at_work(mount, &mut workers),
            }
            self.kills += 1;
            let repair = self.random.below(2) == 0;
            assert_eq!(self.fixture.losses(repair), [""; 0], "lost by kill {}{way}", self.kills);
            mount = self.fixture.mount(way);
            self.fixture.check_work();
            self.compare(&mut workers);
        }
        mount.unmount();
        self.fixture.check_at_rest();
        let mount = self.fixture.mount(way);
        self.compare(&mut workers);
        mount.unmount();
        self.fixture.check_lowers();
    }

    fn compare(&mut self, workers: &mut [Worker]) {
        for worker in workers {
            let cut_off = worker.history.last().done.is_none();
            let after = worker.history.state().clone();
            worker.compare();
            self.cut_off += usize::from(cut_off);
            self.undone += usize::from(cut_off && !after.is(worker.history.state()));
        }
    }

    fn kill_at_work(&mut self, mut mount: Mount, workers: &mut [Worker]) {
        let killed = AtomicBool::new(false);
        self.calls += thread::scope(|scope| {
            let working: Vec<_> =
                workers.iter_mut().map(|worker| scope.spawn(|| work_until_killed(worker, &killed))).collect();
            self.pause(LONGEST);
            killed.store(true, Ordering::SeqCst);
            mount.daemon.kill().unwrap();
            working.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        });
    }

    /// Kills a daemon that is unmounted, and completes what is to be completed.
    fn kill_at_the_end(&mut self, mut mount: Mount, workers: &mut [Worker]) {
        const CALLS: usize = 30;
        thread::scope(|scope| {
            for worker in workers {
                scope.spawn(|| (0..CALLS).for_each(|_| call(worker).unwrap()));
            }
        });
        self.calls += CALLS * WORKERS;
        // Programs that other tests are just starting hold for a moment what this process had open.
        eventually("it is unmounted", || Command::new("umount").arg(&self.fixture.point).status().unwrap().success());
        self.pause(ENDING);
        mount.daemon.kill().unwrap();
    }
}

/// Works until there is nobody to answer any more. Answers how many calls were made.
fn work_until_killed(worker: &mut Worker, killed: &AtomicBool) -> usize {
    let mut calls = 0;
    loop {
        match call(worker) {
            Ok(()) => calls += 1,
            Err(error) => {
                assert!(killed.load(Ordering::SeqCst), "{error}");
                return calls;
            }
        }
    }
}

fn call(worker: &mut Worker) -> Result<(), String> {
    let done = worker.work();
    done.map(|()| worker.history.settle()).map_err(|error| format!("{}: {error}", worker.history.last().what))
}

#[test]
fn what_was_answered_is_there_after_a_kill() {
    let kills = setting("OVERLAYFS_KILLS", 15);
    let setup = Setup::new();
    let fixture = Fixture::new(&setup, setup.root(), WORKERS, |_| ());
    let random = Random(setting("OVERLAYFS_SEED", 1));
    let mut run = Run { fixture, random, kills: 0, calls: 0, cut_off: 0, undone: 0 };
    for way in WAYS.iter().cycle() {
        let few = KILLS.min(kills.div_ceil(WAYS.len() as u64)).min(kills - run.kills);
        if few == 0 {
            break;
        }
        run.live(way, few);
    }
    let Run { kills, calls, cut_off, undone, .. } = run;
    println!("{kills} kills in {calls} calls; {cut_off} calls were cut off, {undone} of which were not done");
}
