//! Which times the upper layer keeps: how fine they are, and from when to when.
//!
//! Everything shows its times as the upper layer keeps them, objects of lower layers too. So a time
//! is the same before and after a copy-up, and before and after it is read from the layer again.

use crate::layer::{Layer, Object, Time};

const NANOS: i128 = 1_000_000_000;

/// An ordinary time at which every unit up to two seconds shows: FAT counts in those.
const FINE: Time = Time { sec: 1_000_000_001, nsec: 999_999_999 };

/// The times that a layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Nanoseconds from one time to the next.
    unit: u64,
    first: i64,
    last: i64,
}

impl Default for Times {
    /// All of them.
    fn default() -> Self {
        Times { unit: 1, first: i64::MIN, last: i64::MAX }
    }
}

impl Times {
    /// Learns what a layer keeps, by setting times of an object that nobody needs. What cannot be
    /// learnt is taken for no limit.
    pub(super) fn learn<L: Layer>(layer: &L, object: Object<'_, L>) -> Self {
        let kept = |time: Time| {
            let set = layer.set_times(object, time, time).and_then(|()| layer.stat(object));
            set.ok().map(|stat| stat.mtime)
        };
        let all = Self::default();
        let lost = kept(FINE).map_or(0, |found| nanos(FINE) - nanos(found));
        let second = |sec| kept(Time { sec, nsec: 0 }).map(|found| found.sec);
        Times {
            unit: u64::try_from(lost + 1).ok().filter(|unit| (1..=60 * NANOS as u64).contains(unit)).unwrap_or(1),
            // Where a time is neither kept nor moved to the nearest, what is read says nothing.
            first: second(all.first).filter(|first| *first < FINE.sec).unwrap_or(all.first),
            last: second(all.last).filter(|last| *last > FINE.sec).unwrap_or(all.last),
        }
    }

    /// Nanoseconds from one time to the next.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// What becomes of a time when it is set.
    pub fn kept(&self, time: Time) -> Time {
        if time.sec <= self.first || time.sec >= self.last {
            return Time { sec: time.sec.clamp(self.first, self.last), nsec: 0 };
        }
        if self.unit == 1 {
            return time;
        }
        let whole = nanos(time);
        let kept = whole - whole.rem_euclid(self.unit.into());
        Time { sec: kept.div_euclid(NANOS) as i64, nsec: kept.rem_euclid(NANOS) as u32 }
    }
}

fn nanos(time: Time) -> i128 {
    i128::from(time.sec) * NANOS + i128::from(time.nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sec: i64, nsec: u32) -> Time {
        Time { sec, nsec }
    }

    #[test]
    fn times_are_kept_as_coarse_as_the_layer_has_them() {
        let kept = |unit, time| Times { unit, ..Times::default() }.kept(time);
        assert_eq!(kept(1, at(-5, 3)), at(-5, 3));
        assert_eq!(kept(100, at(7, 999_999_999)), at(7, 999_999_900));
        assert_eq!(kept(1_000_000_000, at(-5, 3)), at(-5, 0));
        assert_eq!(kept(2_000_000_000, at(7, 3)), at(6, 0));
        assert_eq!(kept(2_000_000_000, at(-7, 3)), at(-8, 0));
    }

    #[test]
    fn times_end_where_the_layer_ends() {
        let times = Times { unit: 1, first: -0x8000_0000, last: 0x3_7fff_ffff };
        assert_eq!(times.kept(at(0x3_7fff_fffe, 5)), at(0x3_7fff_fffe, 5));
        assert_eq!(times.kept(at(i64::MAX, 5)), at(0x3_7fff_ffff, 0));
        assert_eq!(times.kept(at(-0x8000_0001, 5)), at(-0x8000_0000, 0));
    }
}
