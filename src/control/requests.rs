//! How many requests of each kind an overlay answered, how long they took, and with which errors.
//!
//! Each thread counts in a part of its own, so that no two write to one place. A reader adds the
//! parts up. The numbers of one request may be there in part.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::fact::{Fact, Value};

/// The number of buckets of latencies.
pub const BUCKETS: usize = 26;
/// The bound of the first bucket: 2^9 nanoseconds.
const FIRST: u32 = 9;
/// The errnos that are counted by themselves; larger ones count as 0.
const ERRNOS: usize = 134;

/// Returns the bound of a bucket in nanoseconds: it counts the requests that took at most as long.
/// The last bucket has no bound.
pub fn bound(bucket: usize) -> u64 {
    1 << (FIRST as usize + bucket)
}

/// The counters of all threads.
#[derive(Debug)]
pub struct Requests {
    /// The name of each kind.
    kinds: &'static [&'static str],
    parts: Mutex<Vec<Arc<Part>>>,
}

/// The counters of one thread.
#[derive(Debug)]
pub struct Part {
    kinds: Vec<Latencies>,
    errors: [AtomicU64; ERRNOS],
}

#[derive(Debug)]
struct Latencies {
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Requests {
    /// Counts requests of kinds with these names.
    pub fn new(kinds: &'static [&'static str]) -> Self {
        Self { kinds, parts: Mutex::default() }
    }

    /// Returns counters for one more thread.
    pub fn part(&self) -> Arc<Part> {
        let zeros = || Latencies { nanoseconds: AtomicU64::new(0), buckets: [const { AtomicU64::new(0) }; BUCKETS] };
        let part =
            Part { kinds: self.kinds.iter().map(|_| zeros()).collect(), errors: [const { AtomicU64::new(0) }; ERRNOS] };
        let part = Arc::new(part);
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).push(part.clone());
        part
    }

    /// Returns the facts about all kinds and errnos that were counted.
    pub fn facts(&self) -> Vec<Fact> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sum = |of: &dyn Fn(&Part) -> &AtomicU64| -> u64 {
            parts.iter().map(|part| of(part).load(Ordering::Relaxed)).sum()
        };
        let mut facts = Vec::new();
        for (kind, name) in self.kinds.iter().enumerate() {
            let buckets = (0..BUCKETS).map(|bucket| sum(&|part| &part.kinds[kind].buckets[bucket]));
            let numbers: Vec<_> = std::iter::once(sum(&|part| &part.kinds[kind].nanoseconds)).chain(buckets).collect();
            if numbers[1..].iter().any(|count| *count > 0) {
                facts.push(labelled("requests", name, numbers));
            }
        }
        for errno in 0..ERRNOS {
            match sum(&|part| &part.errors[errno]) {
                0 => {}
                count => facts.push(labelled("errors", &errno.to_string(), vec![count])),
            }
        }
        facts
    }
}

fn labelled(name: &str, label: &str, numbers: Vec<u64>) -> Fact {
    Fact { name: name.to_owned(), label: label.to_owned(), value: Value::Numbers(numbers) }
}

impl Part {
    /// Counts a request of a kind that took this time, and its errno, 0 for success. Only one
    /// thread calls it.
    pub fn add(&self, kind: usize, took: Duration, errno: i32) {
        // There is one writer, so a load and a store are enough.
        let add = |counter: &AtomicU64, more: u64| {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if let Some(latencies) = self.kinds.get(kind) {
            add(&latencies.nanoseconds, nanoseconds);
            add(&latencies.buckets[bucket_of(nanoseconds)], 1);
        }
        if errno != 0 {
            let errno = usize::try_from(errno).ok().filter(|errno| *errno < ERRNOS).unwrap_or(0);
            add(&self.errors[errno], 1);
        }
    }
}

/// Returns the first bucket with a bound of at least this time.
fn bucket_of(nanoseconds: u64) -> usize {
    let bits = u64::BITS - nanoseconds.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_the_times_up_to_its_bound() {
        for bucket in 0..BUCKETS - 1 {
            assert_eq!(bucket_of(bound(bucket)), bucket);
            assert_eq!(bucket_of(bound(bucket) + 1), bucket + 1);
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn the_parts_of_all_threads_count() {
        let requests = Requests::new(&["lookup", "read", "write"]);
        let (one, two) = (requests.part(), requests.part());
        one.add(0, Duration::from_nanos(600), 0);
        two.add(0, Duration::from_nanos(700), 2);
        two.add(2, Duration::from_secs(3600), 5000);
        two.add(77, Duration::ZERO, 0);
        let mut lookup = vec![1300, 0, 2];
        lookup.resize(BUCKETS + 1, 0);
        let mut write = vec![3_600_000_000_000];
        write.resize(BUCKETS, 0);
        write.push(1);
        let expected = [
            labelled("requests", "lookup", lookup),
            labelled("requests", "write", write),
            labelled("errors", "0", vec![1]),
            labelled("errors", "2", vec![1]),
        ];
        assert_eq!(requests.facts(), expected);
    }
}
