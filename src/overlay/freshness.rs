//! How much of the attributes that a node remembers its layer still says.

use crate::layer::Time;

/// How much of the remembered attributes the layer still says. Size, mode and owner are always the
/// layer's; times and blocks may be older.
///
/// ```text
///      ┌───────────────────── change ────────────────────┐
///      │      change_status                  change       ▼
///    Fresh ──────────────────► FreshTimes ────────────► Stale
///      ▲                         │    ▲                 │   │
///      │                         │    └── keep_times ───┘   │
///      └──────── refresh ────────┴──────────────────────────┘
///
///    each of these ── begin_content ──► Content ── end_content ──► Stale
///    each of these ── hide ───────────► Hidden ─── end_hidden ───► Stale
/// ```
///
/// All other calls leave `Content` and `Hidden` as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// The layer says the same.
    Fresh,
    /// The layer says the same times of last access and last change.
    FreshTimes,
    /// Times and blocks may be older.
    Stale,
    /// The layer is changing the content of the file. Its answers about size and times are valid
    /// for a moment only.
    Content,
    /// The engine is changing the directory, which callers must not see. It shows these times of
    /// last access and last change meanwhile.
    Hidden(Box<(Time, Time)>),
}

impl Freshness {
    /// Whether an answer of the layer about times and size is valid for a moment only.
    pub fn is_passing(&self) -> bool {
        matches!(self, Freshness::Content | Freshness::Hidden(_))
    }

    fn become_unless_passing(&mut self, next: Freshness) {
        if !self.is_passing() {
            *self = next;
        }
    }

    /// The layer has been asked. Returns the times to show in place of its own.
    pub fn refresh(&mut self) -> Option<(Time, Time)> {
        self.become_unless_passing(Freshness::Fresh);
        match self {
            Freshness::Hidden(times) => Some(**times),
            _ => None,
        }
    }

    /// The object has changed, maybe its times of last access and last change too.
    pub fn change(&mut self) {
        self.become_unless_passing(Freshness::Stale);
    }

    /// The object has changed, but for its times of last access and last change.
    pub fn change_status(&mut self) {
        if *self == Freshness::Fresh {
            *self = Freshness::FreshTimes;
        }
    }

    /// The layer has the remembered times of last access and last change again.
    pub fn keep_times(&mut self) {
        self.become_unless_passing(Freshness::FreshTimes);
    }

    /// The layer begins to change the content.
    pub fn begin_content(&mut self) {
        *self = Freshness::Content;
    }

    /// The layer has changed the content.
    pub fn end_content(&mut self) {
        *self = Freshness::Stale;
    }

    /// The engine begins a change that callers must not see.
    pub fn hide(&mut self, atime: Time, mtime: Time) {
        *self = Freshness::Hidden(Box::new((atime, mtime)));
    }

    /// A caller set the times.
    pub fn set_times(&mut self, atime: Time, mtime: Time) {
        if let Freshness::Hidden(times) = self {
            **times = (atime, mtime);
        }
    }

    /// The engine ends a hidden change. Returns the times that the layer must get back.
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
        use Freshness::{Content, Fresh, FreshTimes, Hidden, Stale};
        let hidden = Hidden(Box::new(TIMES));
        let refresh = |state: &mut Freshness| {
            state.refresh();
        };
        let rows = [
            // Before, then after refresh, change_status, change, keep_times.
            (Fresh, [Fresh, FreshTimes, Stale, FreshTimes]),
            (FreshTimes, [Fresh, FreshTimes, Stale, FreshTimes]),
            (Stale, [Fresh, Stale, Stale, FreshTimes]),
            (Content, [Content, Content, Content, Content]),
            (hidden.clone(), [hidden.clone(), hidden.clone(), hidden.clone(), hidden]),
        ];
        for (before, expected) in rows {
            let found = [
                after(before.clone(), refresh),
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
