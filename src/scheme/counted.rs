//! Counts the requests of one thread by kind, and how long they take.
//!
//! A look at the clock is a system call on Redox, and two of them cost more than some requests. So
//! one request in [`EVERY`] of a kind is timed. The others of the kind count as the last one that
//! was.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::kinds::KINDS;
use crate::control::requests::Part;

/// One request in so many is timed.
const EVERY: u32 = 16;

/// The counters of one thread.
pub struct Counted {
    part: Arc<Part>,
    kinds: [Timed; KINDS.len()],
}

/// The requests of a kind.
#[derive(Clone, Copy, Default)]
struct Timed {
    /// How many follow until one is timed.
    left: u32,
    /// How long the last one took that was.
    took: Duration,
}

/// A request that is under way.
pub struct Begun {
    kind: usize,
    start: Option<Instant>,
}

impl Counted {
    /// Counts in `part`.
    pub fn new(part: Arc<Part>) -> Self {
        Self { part, kinds: [Timed::default(); KINDS.len()] }
    }

    /// Begins a request of a kind, which is a place in [`KINDS`].
    pub fn begin(&self, kind: usize) -> Begun {
        Begun { kind, start: (self.kinds[kind].left == 0).then(Instant::now) }
    }

    /// Counts a request that ends with this errno, 0 for success.
    pub fn end(&mut self, Begun { kind, start }: Begun, errno: i32) {
        let timed = &mut self.kinds[kind];
        *timed = match start {
            Some(start) => Timed { left: EVERY - 1, took: start.elapsed() },
            None => Timed { left: timed.left - 1, ..*timed },
        };
        self.part.add(kind, timed.took, errno);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fact::Value;
    use crate::control::requests::Requests;

    #[test]
    fn each_request_counts_and_few_are_timed() {
        let requests = Requests::new(&KINDS);
        let mut counted = Counted::new(requests.part());
        let mut timed = 0;
        for _ in 0..=2 * EVERY {
            let begun = counted.begin(3);
            timed += u32::from(begun.start.is_some());
            counted.end(begun, 0);
        }
        assert_eq!(timed, 3);
        let facts = requests.facts();
        let [fact] = facts.as_slice() else { panic!("{facts:?}") };
        let Value::Numbers(numbers) = &fact.value else { panic!("{fact:?}") };
        assert_eq!((&*fact.label, numbers[1..].iter().sum()), (KINDS[3], u64::from(2 * EVERY) + 1));
    }
}
