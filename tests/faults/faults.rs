//! Exhaustive faults. Each call of a layer in an operation is the last one of the daemon, or it
//! fails. Then nothing is lost, torn or left behind:
//!
//! - After an end at any call, a new mount shows the tree from before or from after the operation.
//!   A repair of the leftovers of the crash changes nothing about that, and finds no loss.
//! - One call fails with EIO, ENOSPC, EDQUOT, EMFILE or EINTR, or a write takes only half of the
//!   bytes. The caller gets that errno and nothing changes, in this mount and in a new one. Or the
//!   operation succeeds all the same. No file stays open, and the work directory has no leftovers.
//!   Later operations succeed, and so does a repetition.
//! - The same holds for one or two operations after the one with the failed call (`next`).
//! - The lower layers are byte for byte unchanged.
//!
//! The power also fails at every call (`power`), so that unsynced data may be lost.
//!
//! The cases are a table of operations on objects in every state, and random sequences (`cases`).
//! They run on a filesystem in memory with the abilities of several filesystems (`memory`), on
//! Linux, and on a simulated redoxfs, where calls are requests. The upper layer has either format.
//!
//! `cargo test -p test-faults` tries a sample that is the same in every run, and prints the number
//! of points. `OVERLAYFS_FAULTS=full cargo test --release -p test-faults` tries all of them, some
//! hundreds of thousands. `-- NAME` selects parts. Needs root.

mod allocated;
mod backing;
mod cases;
mod memory;
mod next;
mod op;
mod points;
mod power;
mod view;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use overlayfs::format::Wanted;
use test_common::Random;

use backing::{Backing, Host, InMemory, Redoxfs, Start};
use memory::{Abilities, Order};
use op::{Op, Session};
use points::{Case, Tried};
use power::Outage;

/// The size of the sample.
#[derive(Clone, Copy)]
struct Plan {
    full: bool,
    /// The number of failed cases. A failed case is reported, and the next ones still run.
    failed: &'static AtomicUsize,
}

impl Plan {
    /// Returns the divisor: one of `full` points is tried, and in a sample one of `sampled`.
    fn one_of(self, full: u64, sampled: u64) -> u64 {
        if self.full { full } else { sampled }
    }

    fn sweep<G: Backing>(self, case: &Case<'_>, prepared: &G, tried: &mut Tried) {
        if catch_unwind(AssertUnwindSafe(|| case.sweep(prepared, tried))).is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tries one of `rows` rows of a table, and one of `one_of` points of each.
    fn table<G: Backing>(self, start: &Start, rows: u64, one_of: u64, tried: &mut Tried) {
        let prepared = G::make(start);
        let all = cases::table(G::FULL && start.abilities.exchange).into_iter().map(|op| (Vec::new(), op));
        for (number, (warm, op)) in all.chain(cases::held()).enumerate() {
            let seed = number as u64;
            if Random(seed).number().is_multiple_of(rows) {
                let others = &cases::OTHERS;
                self.sweep(&Case { start, warm: &warm, op: &op, others, one_of, seed }, &prepared, tried);
            }
        }
    }

    /// Tries a random sequence for each seed, and one of `one_of` points of it.
    fn random<G: Backing>(
        self,
        (abilities, in_chain): (Abilities, bool),
        seeds: std::ops::Range<u64>,
        one_of: u64,
        tried: &mut Tried,
    ) {
        for seed in seeds {
            let (start, ops) = random_case::<G>(abilities, in_chain, seed);
            let prepared = G::make(&start);
            for (index, op) in ops.iter().enumerate().filter(|(_, op)| !matches!(op, Op::Crash | Op::Hold(_))) {
                let seed = seed << 8 | index as u64;
                let case = Case { start: &start, warm: &ops[..index], op, others: &cases::NAMES, one_of, seed };
                if self.full || seed.is_multiple_of(3) {
                    self.sweep(&case, &prepared, tried);
                }
            }
        }
    }
}

impl Plan {
    fn lose_power(self, outage: &Outage<'_>, prepared: &InMemory, tried: &mut Tried) {
        if catch_unwind(AssertUnwindSafe(|| outage.sweep(prepared, tried))).is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The power fails during and after each operation of a table. Tries one of `rows` rows, and
    /// one of `one_of` states.
    fn power_table(self, start: &Start, order: Order, rows: u64, one_of: u64, tried: &mut Tried) {
        // The partial copies stay partial until the power fails.
        let mut start = start.clone();
        let parts = start.ops.split_off(start.ops.len() - cases::PARTS);
        let (start, prepared) = (&start, InMemory::make(&start));
        let all = cases::table(start.abilities.exchange).into_iter().map(|op| (Vec::new(), op));
        for (number, (warm, op)) in all.chain(cases::held()).enumerate() {
            let seed = number as u64;
            // A write to a file after its unlink may show if the power failure restores the name.
            // No state has that.
            let is_unlinked = matches!(op, Op::WriteHeld(_)) && warm.iter().any(|op| matches!(op, Op::Unlink(_)));
            if is_unlinked || !Random(seed).number().is_multiple_of(rows) {
                continue;
            }
            let mut ops = [&parts[..], &warm].concat();
            let from = ops.len();
            let paths = op.paths();
            ops.push(op);
            ops.extend(paths.into_iter().map(Op::Sync));
            self.lose_power(&Outage { start, ops: &ops, order, from, one_of, seed }, &prepared, tried);
        }
    }

    fn power_random(
        self,
        (abilities, in_chain): (Abilities, bool),
        order: Order,
        seeds: std::ops::Range<u64>,
        one_of: u64,
        tried: &mut Tried,
    ) {
        for seed in seeds {
            let (mut start, mut ops) = random_case::<InMemory>(abilities, in_chain, seed);
            ops.retain(|op| !matches!(op, Op::WriteHeld(_)));
            // Partial copies need an order of changes.
            start.mounting.whole_copies |= order == Order::None;
            let prepared = InMemory::make(&start);
            self.lose_power(&Outage { start: &start, ops: &ops, order, from: 0, one_of, seed }, &prepared, tried);
        }
    }
}

/// Makes random layers and operations.
fn random_case<G: Backing>(abilities: Abilities, in_chain: bool, seed: u64) -> (Start, Vec<Op>) {
    let full = G::FULL && abilities.exchange;
    let start = cases::random_start(seed, full, in_chain, abilities);
    let scratch = G::make(&start);
    let mut session = Session::new(&scratch, start.mounting).unwrap();
    let mut random = Random(seed + (1 << 32));
    let ops = cases::random_ops(&mut random, full, in_chain, 10, |op| session.apply(op).is_ok());
    drop(session);
    (start, ops)
}

type Part = (&'static str, fn(Plan, &mut Tried));

const PARTS: [Part; 21] = [
    ("table", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::EXT4, true);
        plan.table::<InMemory>(&start, plan.one_of(1, 6), plan.one_of(1, 10), tried);
    }),
    ("table-kernel", |plan, tried| {
        let start = cases::start(Wanted::Kernel, false, Abilities::EXT4, true);
        plan.table::<InMemory>(&start, plan.one_of(1, 12), plan.one_of(1, 10), tried);
    }),
    ("table-few-abilities", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::FEW, true);
        plan.table::<InMemory>(&start, plan.one_of(1, 12), plan.one_of(1, 10), tried);
    }),
    ("table-shared-data", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::SHARING, true);
        plan.table::<InMemory>(&start, plan.one_of(1, 30), plan.one_of(1, 10), tried);
    }),
    ("table-whole-copies", |plan, tried| {
        let start = cases::start(Wanted::Oci, true, Abilities::EXT4, true);
        plan.table::<InMemory>(&start, plan.one_of(1, 30), plan.one_of(1, 10), tried);
    }),
    ("table-redoxfs", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::FEW, false);
        plan.table::<Redoxfs>(&start, plan.one_of(8, 40), plan.one_of(4, 20), tried);
    }),
    ("table-host", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::EXT4, true);
        plan.table::<Host>(&start, plan.one_of(10, 150), plan.one_of(30, 40), tried);
    }),
    ("table-host-kernel", |plan, tried| {
        let start = cases::start(Wanted::Kernel, false, Abilities::EXT4, true);
        plan.table::<Host>(&start, plan.one_of(10, 150), plan.one_of(30, 40), tried);
    }),
    ("random", |plan, tried| {
        plan.random::<InMemory>((Abilities::EXT4, false), 0..plan.one_of(300, 6), plan.one_of(1, 10), tried);
    }),
    ("random-few-abilities", |plan, tried| {
        plan.random::<InMemory>((Abilities::FEW, false), 1000..plan.one_of(1100, 1004), plan.one_of(1, 10), tried);
    }),
    ("random-shared-data", |plan, tried| {
        plan.random::<InMemory>((Abilities::SHARING, false), 2000..plan.one_of(2100, 2004), plan.one_of(1, 10), tried);
    }),
    ("random-snapshots", |plan, tried| {
        plan.random::<InMemory>((Abilities::EXT4, true), 7000..plan.one_of(7100, 7006), plan.one_of(1, 10), tried);
    }),
    ("random-redoxfs", |plan, tried| {
        plan.random::<Redoxfs>((Abilities::FEW, false), 3000..plan.one_of(3006, 3001), plan.one_of(4, 20), tried);
    }),
    ("power", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::EXT4, true);
        plan.power_table(&start, Order::Journaled, plan.one_of(1, 20), plan.one_of(2, 60), tried);
    }),
    ("power-kernel", |plan, tried| {
        let start = cases::start(Wanted::Kernel, false, Abilities::SHARING, true);
        plan.power_table(&start, Order::Journaled, plan.one_of(1, 60), plan.one_of(4, 60), tried);
    }),
    ("power-few-abilities", |plan, tried| {
        let start = cases::start(Wanted::Oci, false, Abilities::FEW, true);
        plan.power_table(&start, Order::Journaled, plan.one_of(1, 60), plan.one_of(4, 60), tried);
    }),
    // A sync completes a partial copy. Parts of its map may be lost.
    ("power-completion", |plan, tried| {
        let mut start = cases::start(Wanted::Oci, false, Abilities::FEW, true);
        start.ops.truncate(start.ops.len() - cases::PARTS);
        let ops = [Op::Chmod("big".to_owned(), 0o600), Op::Sync("big".to_owned())];
        let (order, one_of) = (Order::Journaled, plan.one_of(1, 2));
        let outage = Outage { start: &start, ops: &ops, order, from: 1, one_of, seed: 0 };
        plan.lose_power(&outage, &InMemory::make(&start), tried);
    }),
    ("power-random", |plan, tried| {
        plan.power_random(
            (Abilities::EXT4, false),
            Order::Journaled,
            4000..plan.one_of(4300, 4006),
            plan.one_of(10, 200),
            tried,
        );
        plan.power_random(
            (Abilities::FEW, false),
            Order::Journaled,
            5000..plan.one_of(5200, 5005),
            plan.one_of(10, 200),
            tried,
        );
    }),
    ("power-snapshots", |plan, tried| {
        let (abilities, order) = ((Abilities::EXT4, true), Order::Journaled);
        plan.power_random(abilities, order, 8000..plan.one_of(8200, 8006), plan.one_of(10, 200), tried);
    }),
    ("power-no-order", |plan, tried| {
        let start = cases::start(Wanted::Oci, true, Abilities::UNORDERED, true);
        plan.power_table(&start, Order::None, plan.one_of(1, 60), plan.one_of(4, 60), tried);
    }),
    ("power-no-order-random", |plan, tried| {
        plan.power_random(
            (Abilities::UNORDERED, false),
            Order::None,
            6000..plan.one_of(6100, 6005),
            plan.one_of(10, 200),
            tried,
        );
    }),
];

fn main() -> ExitCode {
    static FAILED: AtomicUsize = AtomicUsize::new(0);
    let plan =
        Plan { full: std::env::var_os("OVERLAYFS_FAULTS").is_some_and(|wanted| wanted == "full"), failed: &FAILED };
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    // The first mount of an overlay sets this umask. With it, objects of layers are the same before
    // and after that.
    rustix::process::umask(rustix::fs::Mode::empty());
    let (mut tried, begun) = (Tried::default(), std::time::Instant::now());
    // On Linux the descriptors of the whole process are counted, so these parts run alone.
    let is_alone = |part: &&Part| part.0.contains("host");
    let parts =
        || PARTS.iter().filter(|part| wanted.is_empty() || wanted.iter().any(|wanted| part.0.contains(&**wanted)));
    let (alone, together): (Vec<_>, Vec<_>) = parts().partition(is_alone);
    let next = Mutex::new(together.into_iter());
    std::thread::scope(|scope| {
        let work = || {
            let mut tried = Tried::default();
            loop {
                let part = next.lock().unwrap().next();
                let Some((name, run)) = part else { return tried };
                run(plan, &mut tried);
                eprintln!("{name}: done after {:.0?}", begun.elapsed());
            }
        };
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        threads.into_iter().for_each(|thread| tried.merge(thread.join().unwrap()));
    });
    for (name, run) in alone {
        run(plan, &mut tried);
        eprintln!("{name}: done after {:.0?}", begun.elapsed());
    }
    println!("{tried}");
    match FAILED.load(Ordering::Relaxed) {
        0 => ExitCode::SUCCESS,
        failed => {
            println!("{failed} cases went wrong");
            ExitCode::FAILURE
        }
    }
}
