//! The operations after a fault. One call of an operation has failed, and the operation was
//! refused, or it succeeded all the same. One or two further operations must have the same results
//! as without the failed call, in this mount and in the next. So the overlay's record of its marks
//! matches the disk, also if a failure was only logged.

use overlayfs::layer::RenameMode;
use overlayfs::layer::counted::Fault;
use test_common::Random;

use crate::backing::Backing;
use crate::op::{Op, Op::*};
use crate::points::{Case, damage, fresh, look, warm};
use crate::view::{difference, without_held, without_set_id};

/// Returns operations on the objects of `op`, on the directories around them, and on these other
/// names.
fn after(op: &Op, others: &[&str]) -> Vec<Op> {
    let mut paths = op.paths();
    let above: Vec<_> =
        paths.iter().filter_map(|path| path.rsplit_once('/').map(|(above, _)| above.to_owned())).collect();
    paths.extend(above);
    paths.dedup();
    let mut all = vec![Remount];
    for path in paths {
        let p = || path.clone();
        all.extend([Create(p()), Mkdir(p()), Unlink(p()), Rmdir(p()), Chmod(p(), 0o711), Times(p(), 81)]);
        all.extend([Write(p(), 1, 5, b'n'), Truncate(p(), 70_001), Create(format!("{path}/n"))]);
        for other in others.iter().filter(|other| **other != path) {
            let o = || other.to_string();
            all.extend([Rename(p(), o(), RenameMode::Replace), Rename(o(), p(), RenameMode::Replace), Link(p(), o())]);
        }
    }
    all
}

impl Case<'_> {
    /// Makes the call after `calls` ones fail, then makes other operations. If the first operation
    /// succeeded all the same, tries every other operation, else one of them. Returns the number of
    /// tries.
    pub fn go_on<G: Backing>(&self, prepared: &G, calls: u64, fault: Fault) -> u64 {
        let all = after(self.op, self.others);
        let mut random = Random(self.seed ^ calls << 20);
        let mut tried = 0;
        for first in 0..all.len() {
            let first = if tried == 0 { random.below(all.len()) } else { first };
            let mut next = vec![all[first].clone()];
            if random.below(2) == 0 {
                next.push(random.one_of(&all).clone());
            }
            let Some(is_done) = self.goes_on(prepared, calls, fault, &next) else { return tried };
            tried += 1;
            if !is_done {
                break;
            }
        }
        tried
    }

    /// Returns whether the operation succeeded, or None without a failed call.
    fn goes_on<G: Backing>(&self, prepared: &G, calls: u64, fault: Fault, next: &[Op]) -> Option<bool> {
        let (backing, other) = (self.again(prepared), self.again(prepared));
        let lowers = backing.lowers();
        let mut session = warm(self, &backing);
        backing.fault_after(calls, fault);
        let result = session.apply(self.op);
        let struck = backing.struck()?;
        backing.fault_after(u64::MAX, Fault::Stop);
        let what = || format!("{next:?} after {fault:?} after {calls} calls ({struck}) of {}", self.what::<G>());
        let mut usual = warm(self, &other);
        if result.is_ok() {
            let _ = usual.apply(self.op);
        }
        for op in next {
            let answers = (session.apply(op), usual.apply(op));
            assert_eq!(answers.0, answers.1, "{}: answer of {op:?}", what());
        }
        let set_id = next.iter().chain([self.op]).all(|op| !matches!(op, Chown(..)));
        let seen = |view| if set_id { view } else { without_set_id(view) };
        let (now, expected) = (seen(look(self, &session)), seen(look(self, &usual)));
        if let Some(wrong) = difference(&expected, &now, |_, _| false) {
            panic!("{}: {wrong}", what());
        }
        drop((session, usual));
        damage(&backing, self.start.mounting.in_chain, false, what);
        let now = seen(fresh(self, &backing));
        if let Some(wrong) = difference(&without_held(&expected), &now, |_, _| false) {
            panic!("{}: mounted again: {wrong}", what());
        }
        backing.check_lowers(&lowers);
        Some(result.is_ok())
    }
}
