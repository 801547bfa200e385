//! Kills of the daemon under load, many times, and during its end. Afterwards every answered call
//! has its effect. A call in progress has happened or not. Nothing else is left.
//!
//! OVERLAYFS_KILLS sets the number of kills, OVERLAYFS_SEED selects another sequence.

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

/// The number of concurrent programs.
const WORKERS: usize = 4;

/// The mount options besides the layers. Each set has an upper layer of its own.
const WAYS: [&str; 5] = ["", ",writeback=0", ",whole_copies", KERNEL, SCHEME];

/// In this format a device with the number 0 is a whiteout.
const KERNEL: &str = ",format=kernel";

/// The scheme has no extended attributes.
const SCHEME: &str = ",door=scheme";

/// The limit of kills for one upper layer. A new one follows, so that there are files to copy up.
const KILLS: u64 = 10;

/// The longest time between the start of the programs and a kill.
const LONGEST: Duration = Duration::from_millis(250);

/// The longest time between the start of an unmount and a kill.
const ENDING: Duration = Duration::from_millis(30);

struct Run {
    fixture: Fixture,
    random: Random,
    kills: u64,
    calls: usize,
    /// The number of calls without an answer, and how many of these had no effect.
    cut_off: usize,
    undone: usize,
}

impl Run {
    fn pause(&mut self, longest: Duration) {
        thread::sleep(Duration::from_micros(self.random.number() % longest.as_micros() as u64));
    }

    /// Runs all calls on one upper layer.
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

    /// Kills a daemon during its unmount. The next mount completes the partial copies.
    fn kill_at_the_end(&mut self, mut mount: Mount, workers: &mut [Worker]) {
        const CALLS: usize = 30;
        thread::scope(|scope| {
            for worker in workers {
                scope.spawn(|| (0..CALLS).for_each(|_| call(worker).unwrap()));
            }
        });
        self.calls += CALLS * WORKERS;
        // A program that another test starts inherits descriptors of this process for a moment, so
        // a mount may be busy.
        eventually("it is unmounted", || Command::new("umount").arg(&self.fixture.point).status().unwrap().success());
        self.pause(ENDING);
        mount.daemon.kill().unwrap();
    }
}

/// Works until the daemon is gone. Returns the number of calls.
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
    done.map(|()| worker.history.drop_steps()).map_err(|error| format!("{}: {error}", worker.history.last().what))
}

#[test]
fn answered_calls_survive_a_kill() {
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
    println!("{kills} kills in {calls} calls; {cut_off} calls got no answer, {undone} of them had no effect");
}
