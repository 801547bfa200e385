//! One operation, and each point of it where a fault is possible. The daemon ends there, as in a
//! crash, or one call of a layer fails and later ones succeed.

use std::collections::BTreeMap;
use std::fmt;

use overlayfs::errno::{EDQUOT, EINTR, EIO, EMFILE, ENOSPC, EXDEV};
use overlayfs::fsck::Checker;
use overlayfs::layer::counted::Fault;
use overlayfs::layer::{Error, Result};
use test_common::Random;

use crate::allocated;
use crate::backing::{Backing, Start};
use crate::op::{Op, Session};
use crate::view::{Seen, View, difference, view, without_held, without_set_id};

/// The errnos of a failed call.
const ERRNOS: [(i32, &str); 5] =
    [(EIO, "EIO"), (ENOSPC, "ENOSPC"), (EDQUOT, "EDQUOT"), (EMFILE, "EMFILE"), (EINTR, "EINTR")];

/// An operation, after other ones.
pub struct Case<'c> {
    pub start: &'c Start,
    /// The operations before it in the same mount.
    pub warm: &'c [Op],
    pub op: &'c Op,
    /// Names that later operations may use.
    pub others: &'c [&'c str],
    /// The sample of points: one of so many. The seed selects them.
    pub one_of: u64,
    pub seed: u64,
}

/// The number of points by backing and kind.
#[derive(Default)]
pub struct Tried(BTreeMap<(&'static str, &'static str), u64>);

impl Tried {
    pub fn add(&mut self, backing: &'static str, kind: &'static str) {
        *self.0.entry((backing, kind)).or_default() += 1;
    }

    pub fn merge(&mut self, other: Tried) {
        other.0.into_iter().for_each(|(of, count)| *self.0.entry(of).or_default() += count);
    }

    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = "";
        for ((backing, kind), count) in &self.0 {
            if *backing != last {
                writeln!(f, "{backing}:")?;
                last = backing;
            }
            writeln!(f, "  {count:8}  {kind}")?;
        }
        write!(f, "{} points in all", self.total())
    }
}

/// The operation without a fault.
struct Usual {
    result: Result<()>,
    calls: u64,
    /// The tree that the mount shows before and after it, and the most files that are open.
    before: View,
    after: View,
    files: usize,
}

impl Usual {
    /// Returns whether the operation does not change the time of an object.
    fn keeps_time(&self, path: &str, seen: &Seen) -> bool {
        // The time of a directory is restored in a later step than its change, so it does not
        // count.
        let time = |view: &View| view.get(path).filter(|seen| seen.content.is_some()).map(|seen| seen.mtime);
        time(&self.before) == time(&self.after) && time(&self.before) == Some(seen.mtime)
    }

    fn differs<G: Backing>(&self, expected: &View, found: &View, struck: &str) -> Option<String> {
        // A failed call cannot restore times.
        let timed = G::TIMED && struck != "set_times";
        difference(expected, found, |path, seen| timed && self.keeps_time(path, seen))
    }
}

/// Returns a mount after all operations before the case.
pub fn warm<'g, G: Backing>(case: &Case<'_>, backing: &'g G) -> Session<'g, G> {
    let mut session = Session::new(backing, case.start.mounting).unwrap();
    for op in case.warm {
        // An impossible operation fails in every mount.
        let _ = session.apply(op);
    }
    backing.take_calls();
    session
}

pub fn fresh<G: Backing>(case: &Case<'_>, backing: &G) -> View {
    look(case, &Session::new(backing, case.start.mounting).unwrap())
}

pub fn look<G: Backing>(case: &Case<'_>, session: &Session<'_, G>) -> View {
    let view = view(session);
    if matches!(case.op, Op::Chown(..)) { without_set_id(view) } else { view }
}

fn usual<G: Backing>(case: &Case<'_>, prepared: &G) -> Usual {
    let backing = case.again(prepared);
    let session = warm(case, &backing);
    let before = look(case, &session);
    let mut files = backing.open().0;
    session.crash();
    let shown = fresh(case, &backing);
    let wrong = difference(&without_held(&before), &shown, |_, _| true);
    assert!(wrong.is_none(), "before {}: another mount shows something else: {}", case.what::<G>(), wrong.unwrap());

    let backing = case.again(prepared);
    let mut session = warm(case, &backing);
    let result = session.apply(case.op);
    let calls = backing.take_calls();
    let after = look(case, &session);
    files = files.max(backing.open().0);
    drop(session);
    assert_eq!(
        damage(&backing, case.start.mounting.in_chain, false, || case.what::<G>()),
        0,
        "{}: damage without a crash",
        case.what::<G>()
    );
    let shown = fresh(case, &backing);
    let wrong = difference(&without_held(&after), &shown, |_, _| true);
    assert!(wrong.is_none(), "after {}: another mount shows something else: {}", case.what::<G>(), wrong.unwrap());
    if let Err(error) = result {
        let wrong = difference(&before, &after, |_, _| G::TIMED);
        assert!(wrong.is_none(), "{}: refused with {error}, but {}", case.what::<G>(), wrong.unwrap());
    }
    Usual { result, calls, before, after, files }
}

impl Case<'_> {
    pub fn again<G: Backing>(&self, prepared: &G) -> G {
        prepared.copy().unwrap_or_else(|| G::make(self.start))
    }

    pub fn what<G: Backing>(&self) -> String {
        let Start { mounting, abilities, .. } = self.start;
        format!("{:?} after {:?} ({}, {mounting:?}, {abilities:?})", self.op, self.warm, G::NAME)
    }

    /// Returns whether the sample has this point.
    fn is_tried(&self, call: u64, kind: usize) -> bool {
        let number = Random(self.seed ^ call << 8 ^ (kind as u64) << 40).number();
        number.is_multiple_of(self.one_of)
    }

    /// Tries every point.
    pub fn sweep<G: Backing>(&self, prepared: &G, tried: &mut Tried) {
        let usual = usual(self, prepared);
        let mut seen_after = false;
        for calls in 0..=usual.calls {
            if self.is_tried(calls, 0) {
                seen_after = self.stop(prepared, &usual, calls, seen_after);
                tried.add(G::NAME, "stop");
            }
            if calls == usual.calls {
                break;
            }
            for (number, (errno, name)) in ERRNOS.iter().enumerate() {
                if self.is_tried(calls, 1 + number) && self.fail(prepared, &usual, calls, Fault::Errno(*errno)) {
                    tried.add(G::NAME, name);
                }
            }
            if self.is_tried(calls, 1 + ERRNOS.len()) && self.fail(prepared, &usual, calls, Fault::ShortWrite) {
                tried.add(G::NAME, "short write");
            }
            if self.is_tried(calls, 2 + ERRNOS.len()) && !matches!(self.op, Op::Remount) {
                let count = self.go_on(prepared, calls, Fault::Errno(ENOSPC));
                (0..count).for_each(|_| tried.add(G::NAME, "ENOSPC, and more operations"));
            }
        }
    }

    /// Ends the daemon after so many calls. Returns whether the operation shows then.
    fn stop<G: Backing>(&self, prepared: &G, usual: &Usual, calls: u64, seen_after: bool) -> bool {
        let backing = self.again(prepared);
        let lowers = backing.lowers();
        let mut session = warm(self, &backing);
        backing.fault_after(calls, Fault::Stop);
        let result = session.apply(self.op);
        let struck = backing.struck().unwrap_or("all");
        let what = || format!("stopped after {calls} calls ({struck}) of {}", self.what::<G>());
        session.crash();
        // With and without a repair of the leftovers of the crash.
        let repairs = calls.is_multiple_of(2);
        damage(&backing, self.start.mounting.in_chain, repairs, what);
        let session = Session::new(&backing, self.start.mounting).unwrap();
        let now = look(self, &session);
        let [before, after] = [&usual.before, &usual.after].map(without_held);
        let not_before = usual.differs::<G>(&before, &now, struck);
        let not_after = usual.differs::<G>(&after, &now, struck);
        let is_after = not_after.is_none();
        if let (Some(not_before), Some(not_after)) = (&not_before, &not_after) {
            panic!("{}: neither before ({not_before}) nor after ({not_after})", what());
        }
        assert!(is_after || !seen_after, "{}: was done one call before", what());
        assert!(is_after || result.is_err(), "{}: was said to be done", what());
        assert!(is_after || calls < usual.calls, "{}: is not done after all calls", what());
        drop(session);
        let left = damage(&backing, self.start.mounting.in_chain, false, what);
        assert!(left == 0 || !repairs, "{}: left by a mount that ended well", what());
        backing.check_lowers(&lowers);
        is_after
    }

    /// Makes the call after `calls` ones fail. Returns whether the call can have this fault.
    fn fail<G: Backing>(&self, prepared: &G, usual: &Usual, calls: u64, fault: Fault) -> bool {
        let before = allocated::bytes();
        let is_tried = self.go_wrong(prepared, usual, calls, fault);
        if G::NAME == "memory" {
            let left = allocated::bytes() - before;
            assert_eq!(left, 0, "{fault:?} after {calls} calls of {}: bytes of memory are left", self.what::<G>());
        }
        is_tried
    }

    fn go_wrong<G: Backing>(&self, prepared: &G, usual: &Usual, calls: u64, fault: Fault) -> bool {
        let backing = self.again(prepared);
        let lowers = backing.lowers();
        let closed = backing.open();
        let mut session = warm(self, &backing);
        backing.fault_after(calls, fault);
        let result = session.apply(self.op);
        // None means that the calls differ from run to run.
        let Some(struck) = backing.struck() else { return false };
        backing.fault_after(u64::MAX, Fault::Stop);
        if fault == Fault::ShortWrite && !struck.starts_with("write") {
            return false;
        }
        let what = || format!("{fault:?} after {calls} calls ({struck}) of {}", self.what::<G>());
        if let Err(Error { errno }) = result {
            let injected = matches!(fault, Fault::Errno(injected) if injected == errno);
            // A filesystem returns this if an attribute has no space for a long redirect.
            let no_room = fault == Fault::Errno(ENOSPC) && struck == "set_xattr" && errno == EXDEV;
            // The kernel of Redox turns an EINTR without an interruption of the caller into EIO.
            let translated = fault == Fault::Errno(EINTR) && G::NAME == "redoxfs" && errno == EIO;
            let is_usual = usual.result == result;
            assert!(injected || no_room || translated || is_usual, "{}: answered errno {errno}", what());
        } else {
            assert!(usual.result.is_ok(), "{}: is done, though it cannot be", what());
        }
        let is_done = result.is_ok();
        let expected = if is_done { &usual.after } else { &usual.before };
        // A look at the tree may repair it, so only some faults are followed by one.
        let looks = matches!(fault, Fault::Errno(EIO | EMFILE) | Fault::ShortWrite);
        // A refused mount must be mounted before a look at it.
        let refused = self.op == &Op::Remount && !is_done;
        if refused {
            session.apply(&Op::Chmod("no/such/name".into(), 0)).unwrap_err();
        }
        let expected = if refused { &usual.after } else { expected };
        let left: Vec<_> = backing.work().into_iter().filter(|name| name.starts_with("tmp.")).collect();
        // An object that could not be removed stays until the next mount.
        let removes = matches!(struck, "unlink" | "remove_dir" | "unlinkat" | "open_dir" | "list");
        assert!(
            left.is_empty() || removes && (is_done || usual.result == result),
            "{}: answered {result:?} and left {left:?}",
            what()
        );
        if looks {
            let now = look(self, &session);
            if let Some(wrong) = usual.differs::<G>(expected, &now, struck) {
                panic!("{}: answered {result:?}, but {wrong}", what());
            }
            assert!(backing.open().0 <= usual.files, "{}: files are left open", what());
        }
        if !is_done && !refused {
            let repeated = session.apply(self.op);
            assert_eq!(repeated, usual.result, "{}: answered {result:?}; repeated", what());
        }
        let now = look(self, &session);
        if let Some(wrong) = usual.differs::<G>(&usual.after, &now, struck) {
            panic!("{}: answered {result:?}; repeated, but {wrong}", what());
        }
        for op in [Op::Create("zz".into()), Op::Unlink("zz".into())] {
            let next = session.apply(&op);
            assert!(next.is_ok(), "{}: {op:?} after it: {next:?}", what());
        }
        drop(session);
        let left = damage(&backing, self.start.mounting.in_chain, false, what);
        // After a success, leftovers that could not be removed may stay. No other file depends on
        // records that could not be written.
        assert!(left == 0 || is_done || struck.starts_with("write"), "{}: left by a mount that ended well", what());
        assert_eq!(backing.open(), closed, "{}: left open", what());
        let now = fresh(self, &backing);
        let after = without_held(&usual.after);
        if let Some(wrong) = usual.differs::<G>(&after, &now, struck) {
            panic!("{}: answered {result:?}; repeated, mounted again: {wrong}", what());
        }
        backing.check_lowers(&lowers);
        true
    }
}

/// Returns the number of findings in the upper layer. Panics if one is a loss or cannot be
/// repaired. With `repair`, panics if the repair leaves one. Fsck checks one upper layer, and not a
/// chain.
pub fn damage<G: Backing>(backing: &G, in_chain: bool, repair: bool, when: impl Fn() -> String) -> usize {
    if in_chain {
        return 0;
    }
    let checker = Checker::new(backing.layers().unwrap()).unwrap_or_else(|refused| panic!("{}: {refused}", when()));
    let findings = checker.check().unwrap_or_else(|error| panic!("{}: {error}", when()));
    for finding in &findings {
        let (path, damage) = (finding.path.display(), &finding.damage);
        let repairable = finding.repair.as_ref().filter(|_| !damage.is_loss());
        let repairable = repairable.unwrap_or_else(|| panic!("{}: {path} {damage}", when()));
        if repair {
            checker.repair(repairable).unwrap_or_else(|error| panic!("{}: {path} {damage}: {error}", when()));
        }
    }
    if repair {
        let left = checker.check().unwrap_or_else(|error| panic!("{}: {error}", when()));
        assert!(left.is_empty(), "{}: repaired, but {} {}", when(), left[0].path.display(), left[0].damage);
    }
    findings.len()
}
