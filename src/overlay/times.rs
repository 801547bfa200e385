//! The times that the upper layer can store: their resolution and range.
//!
//! Every object shows its times as the upper layer stores them, also one of a lower layer. So a
//! time is the same before and after a copy-up, and before and after it is read from the layer
//! again.

use crate::layer::{Layer, Object, Time};

const NANOS: i128 = 1_000_000_000;

/// An ordinary time that shows each resolution up to two seconds, the unit of FAT.
const FINE: Time = Time { sec: 1_000_000_001, nsec: 999_999_999 };

/// The times that a layer can store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The nanoseconds from one time to the next.
    unit: u64,
    first: i64,
    last: i64,
}

impl Default for Times {
    /// All times.
    fn default() -> Self {
        Times { unit: 1, first: i64::MIN, last: i64::MAX }
    }
}

impl Times {
    /// Learns the times of a layer by setting those of an object without use. If that fails, there
    /// is no limit.
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
            // If the layer neither stores nor clamps a time, the time that it returns tells
            // nothing.
            first: second(all.first).filter(|first| *first < FINE.sec).unwrap_or(all.first),
            last: second(all.last).filter(|last| *last > FINE.sec).unwrap_or(all.last),
        }
    }

    /// The nanoseconds from one time to the next.
    pub fn unit(&self) -> u64 {
        self.unit
    }

    /// Returns the time that the layer stores when `time` is set.
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
