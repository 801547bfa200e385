//! How current the remembered attributes of a node are.

use crate::layer::Time;

/// Tells which remembered attributes are current. Size, mode and owner always are; times and blocks
/// may be out of date.
///
/// ```text
///    Fresh ── redate ──► Redated ── change_status ──► FreshTimes ── change ──► Stale
///      ▲                    │                          │    ▲                    │
///      │                    │                          │    └──── keep_times ────┤
///      └────── refresh ─────┴──────────────────────────┴─────────────────────────┘
///
///    change and change_status may pass over what lies between.
///    each of these ── begin_content ──► Content ── end_content ──► Stale
///    each of these ── hide ───────────► Hidden ─── end_hidden ───► Stale
/// ```
///
/// All other calls leave `Content` and `Hidden` as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// All are current.
    Fresh,
    /// All but the time of last change of status are current.
    Redated,
    /// Atime and mtime are current.
    FreshTimes,
    /// Times and blocks may be out of date.
    Stale,
    /// The layer is changing the content of the file. Size and times that it returns are soon out
    /// of date.
    Content,
    /// The engine makes a change of the directory that is not to show. Meanwhile the directory
    /// shows this atime and mtime.
    Hidden(Box<(Time, Time)>),
}

impl Freshness {
    /// Whether times and size that the layer returns are soon out of date.
    pub fn is_passing(&self) -> bool {
        matches!(self, Freshness::Content | Freshness::Hidden(_))
    }

    fn become_unless_passing(&mut self, next: Freshness) {
        if !self.is_passing() {
            *self = next;
        }
    }

    /// Records that the layer was asked. Returns the times to show in place of its own.
    pub fn refresh(&mut self) -> Option<(Time, Time)> {
        self.become_unless_passing(Freshness::Fresh);
        match self {
            Freshness::Hidden(times) => Some(**times),
            _ => None,
        }
    }

    /// Records a change of the object, maybe of atime and mtime too.
    pub fn change(&mut self) {
        self.become_unless_passing(Freshness::Stale);
    }

    /// Records a change of the object whose effect is known, except the time of last change of
    /// status.
    pub fn redate(&mut self) {
        if *self == Freshness::Fresh {
            *self = Freshness::Redated;
        }
    }

    /// Records a change of the object that keeps atime and mtime.
    pub fn change_status(&mut self) {
        if matches!(self, Freshness::Fresh | Freshness::Redated) {
            *self = Freshness::FreshTimes;
        }
    }

    /// Records that the layer has the remembered atime and mtime again.
    pub fn keep_times(&mut self) {
        self.become_unless_passing(Freshness::FreshTimes);
    }

    /// Begins a change of content in the layer.
    pub fn begin_content(&mut self) {
        *self = Freshness::Content;
    }

    /// Ends a change of content in the layer.
    pub fn end_content(&mut self) {
        *self = Freshness::Stale;
    }

    /// Begins a change that is not to show.
    pub fn hide(&mut self, atime: Time, mtime: Time) {
        *self = Freshness::Hidden(Box::new((atime, mtime)));
    }

    /// Records that a caller set the times.
    pub fn set_times(&mut self, atime: Time, mtime: Time) {
        if let Freshness::Hidden(times) = self {
            **times = (atime, mtime);
        }
    }

    /// Ends a change that is not to show. Returns the times to give back to the layer.
    pub fn end_hidden(&mut self) -> Option<(Time, Time)> {
        match std::mem::replace(self, Freshness::Stale) {
            Freshness::Hidden(times) => Some(*times),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: (Time, Time) = (Time { sec: 1, nsec: 0 }, Time { sec: 2, nsec: 0 });

    fn after(mut state: Freshness, step: impl FnOnce(&mut Freshness)) -> Freshness {
        step(&mut state);
        state
    }

    #[test]
    fn each_change_leaves_what_it_leaves() {
        use Freshness::{Content, Fresh, FreshTimes, Hidden, Redated, Stale};
        let hidden = Hidden(Box::new(TIMES));
        let refresh = |state: &mut Freshness| {
            state.refresh();
        };
        let rows = [
            // Before, then after refresh, redate, change_status, change, keep_times.
            (Fresh, [Fresh, Redated, FreshTimes, Stale, FreshTimes]),
            (Redated, [Fresh, Redated, FreshTimes, Stale, FreshTimes]),
            (FreshTimes, [Fresh, FreshTimes, FreshTimes, Stale, FreshTimes]),
            (Stale, [Fresh, Stale, Stale, Stale, FreshTimes]),
            (Content, [Content, Content, Content, Content, Content]),
            (hidden.clone(), std::array::from_fn(|_| hidden.clone())),
        ];
        for (before, expected) in rows {
            let found = [
                after(before.clone(), refresh),
                after(before.clone(), Freshness::redate),
                after(before.clone(), Freshness::change_status),
                after(before.clone(), Freshness::change),
                after(before.clone(), Freshness::keep_times),
            ];
            assert_eq!(found, expected, "{before:?}");
        }
    }

    #[test]
    fn a_hidden_change_shows_its_times_and_those_that_are_set() {
        let mut state = Freshness::Fresh;
        state.hide(TIMES.0, TIMES.1);
        assert_eq!(state.refresh(), Some(TIMES));
        state.set_times(TIMES.1, TIMES.0);
        assert_eq!(state.end_hidden(), Some((TIMES.1, TIMES.0)));
        assert_eq!((state.end_hidden(), state), (None, Freshness::Stale));
    }
}
