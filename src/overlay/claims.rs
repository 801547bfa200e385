//! The inode numbers that copies of earlier mounts showed, as the index recorded them.
//!
//! There may be a million, so they are in sorted arrays. The engine settles a claim when it meets
//! the object: that is the copy, or a new object with the inode number of a copy that is gone.
//!
//! Several copies may claim one number: a copy in a frozen layer, and a copy of that. The one that
//! the engine meets is the object. The other is behind it, or a crash came before it had a place.

use super::compact::CompactMap;
use super::inode::DEVICE_SHIFT;
use crate::layer::Time;

/// The number that a copy had in an earlier mount.
#[derive(Clone, Copy)]
#[repr(Rust, packed(4))]
pub struct Claim {
    pub number: u64,
    sec: i64,
    nsec: u32,
}

impl Claim {
    /// Makes the claim of a copy that existed at `time`.
    pub fn new(number: u64, time: Time) -> Self {
        Claim { number, sec: time.sec, nsec: time.nsec }
    }

    /// Returns a time at which the copy existed.
    pub fn time(self) -> Time {
        Time { sec: self.sec, nsec: self.nsec }
    }
}

/// The knowledge about a claim.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// This mount has not met the object yet.
    Open,
    /// The object is the copy, and shows the number.
    Right,
    /// The copy is gone.
    Wrong,
}

/// The claims.
#[derive(Default)]
pub struct Claims {
    /// The inode numbers of the copies, in their order.
    copies: Vec<u64>,
    /// The claim of each copy, and what is known about it.
    claims: Vec<Claim>,
    states: Vec<State>,
    /// The indices of these in the order of the claimed numbers.
    by_number: Vec<u32>,
    /// The generations of originals in frozen layers, by number.
    generations: CompactMap<u64, u32>,
}

impl Claims {
    /// Takes claims, by the inode number of the copy. A claim may be to the number of an object of
    /// a frozen layer if there are any (`frozen`). `generations` are by number.
    pub fn new(mut claims: CompactMap<u64, Claim>, generations: CompactMap<u64, u32>, frozen: bool) -> Self {
        // A valid number has the high bits of a lower layer, or is from the counter.
        claims.retain(|_, claim| frozen || claim.number >> DEVICE_SHIFT != 0);
        let (copies, claims) = claims.into_sorted();
        let mut by_number: Vec<_> = (0..u32::MAX).take(claims.len()).collect();
        by_number.sort_unstable_by_key(|at| claims[*at as usize].number);
        let states = vec![State::Open; claims.len()];
        Claims { copies, claims, states, by_number, generations }
    }

    /// Takes the generations of originals in frozen layers, by number.
    pub fn take_generations(&mut self) -> CompactMap<u64, u32> {
        std::mem::take(&mut self.generations)
    }

    /// Returns all numbers that a claim has, in their order.
    pub fn numbers(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.by_number.iter().map(|at| self.claims[*at as usize].number)
    }

    /// Returns the claim of a copy that this mount has not met yet, by its inode number.
    pub fn open(&self, copy: u64) -> Option<Claim> {
        self.find(copy, State::Open).map(|at| self.claims[at])
    }

    /// Returns the number that a copy shows, by its inode number.
    pub fn shown(&self, copy: u64) -> Option<u64> {
        self.find(copy, State::Right).map(|at| self.claims[at].number)
    }

    /// Returns the inode number of the copy with an open claim to this number.
    pub fn claimant(&self, number: u64) -> Option<u64> {
        self.find_number(number, State::Open).map(|at| self.copies[at])
    }

    /// Whether a copy shows this number.
    pub fn is_shown(&self, number: u64) -> bool {
        self.find_number(number, State::Right).is_some()
    }

    /// Settles an open claim. Others to the same number are wrong if it is right.
    pub fn settle(&mut self, copy: u64, is_right: bool) {
        let Some(at) = self.find(copy, State::Open) else { return };
        if is_right {
            let others: Vec<_> = self.with_number(self.claims[at].number).collect();
            others.into_iter().for_each(|other| self.states[other] = State::Wrong);
        }
        self.states[at] = if is_right { State::Right } else { State::Wrong };
    }

    /// Forgets the copy with this inode number. Returns the number that it showed, if it did.
    pub fn forget(&mut self, copy: u64) -> Option<u64> {
        let at = self.find(copy, State::Right)?;
        self.states[at] = State::Wrong;
        Some(self.claims[at].number)
    }

    fn find(&self, copy: u64, state: State) -> Option<usize> {
        let at = self.copies.binary_search(&copy).ok()?;
        (self.states[at] == state).then_some(at)
    }

    fn find_number(&self, number: u64, state: State) -> Option<usize> {
        self.with_number(number).find(|at| self.states[*at] == state)
    }

    /// Returns the places of the claims to a number.
    fn with_number(&self, number: u64) -> impl Iterator<Item = usize> {
        let number_at = |at: &u32| self.claims[*at as usize].number;
        let first = self.by_number.partition_point(|at| number_at(at) < number);
        let places = self.by_number[first..].iter();
        places.take_while(move |at| number_at(at) == number).map(|at| *at as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_that_is_met_has_the_number() {
        let claims = || {
            let mut claims = CompactMap::default();
            for (copy, number) in [(3, 70), (5, 60), (8, 70), (9, 80)] {
                claims.insert(copy, Claim::new(number, Time::default()));
            }
            Claims::new(claims, CompactMap::default(), true)
        };
        for (right, wrong) in [(3, 8), (8, 3)] {
            let mut claims = claims();
            assert!(claims.claimant(70).is_some());
            claims.settle(right, true);
            assert_eq!((claims.shown(right), claims.shown(wrong)), (Some(70), None));
            assert!(claims.open(wrong).is_none() && claims.claimant(70).is_none() && claims.is_shown(70));
            assert_eq!((claims.claimant(60), claims.claimant(80), claims.claimant(90)), (Some(5), Some(9), None));
        }
        let mut claims = claims();
        claims.settle(3, false);
        assert_eq!((claims.claimant(70), claims.is_shown(70)), (Some(8), false));
    }
}
