//! Plans: the steps of an operation, decided from the facts about the upper layer.
//!
//! A plan is complete before the first step. Each format makes its own
//! ([`UpperFormat`](super::UpperFormat)). The tests go through all possible facts.

use crate::layer::RenameMode;

/// The facts about one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Name {
    /// Whether the upper layer has an object.
    pub upper: bool,
    /// Whether the lower layers show an object, as if there were no upper layer.
    pub lower: bool,
    /// Whether the upper layer has the whiteout.
    pub whiteout: bool,
}

/// A name to create, which shows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct New {
    /// The object is a directory.
    pub is_dir: bool,
    /// Whether the layer can make the complete object in one step.
    pub at_once: bool,
    /// Whether the name has a whiteout.
    pub whiteout: bool,
}

/// The plan to create a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Creation {
    /// The step that shows the object.
    pub placement: Placement,
    /// Whether a directory is built with the opaque mark.
    pub opaque: bool,
    /// Whether a whiteout is beside the object afterwards. Then a directory gets the opaque mark
    /// unless it has it, and the whiteout is removed.
    pub uncover: bool,
}

/// The way in which a new object gets to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The object is made at its place.
    AtOnce,
    /// The object is built in the work directory, and renamed to its place.
    Built(Onto),
}

/// The entry in the place of a built object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// There is none.
    Free,
    /// The whiteout, which the object replaces.
    Whiteout,
    /// The whiteout, which changes places with the object and is removed. A directory can replace
    /// only a directory.
    Swapped,
}

/// One of the names that an operation changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The name that disappears.
    Old,
    /// The name that appears.
    New,
}

/// A step before the visible one, which changes nothing in the merged tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creates the whiteout of a name, beside its object.
    Whiteout(End),
    /// Makes sure that marks and whiteouts in the directory of a name survive a crash, if the
    /// visible step does.
    SyncNames(End),
    /// Removes the marks and whiteouts in a directory that is removed or replaced, and looks
    /// empty.
    Clear {
        /// Whether the directory first gets the opaque mark, so that a crash shows no lower
        /// entries.
        opaque_first: bool,
    },
}

/// The plan to remove a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// The steps before it, in their order.
    pub first: Vec<Step>,
    /// The visible step.
    pub seen: Seen,
}

/// The step that removes a name from the merged tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Creates the whiteout of the name: only lower layers have it.
    Whiteout,
    /// Removes the object.
    Remove,
    /// Puts a whiteout in the object's place.
    Replace,
}

/// A rename to a free name, or one that replaces an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// The name that the object has.
    pub old: Name,
    /// The name that it gets.
    pub new: Name,
    /// The object is a directory.
    pub is_dir: bool,
    /// Whether an empty directory has the new name.
    pub over_dir: bool,
    /// Whether a device with the number 0 takes the old name, as a device.
    pub leaves_device: bool,
}

/// The plan to rename an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// The steps before the visible one, in their order.
    pub first: Vec<Step>,
    /// The mode of the visible step.
    pub mode: RenameMode,
    /// Whether the old name has a whiteout after that step.
    pub old_whiteout: bool,
    /// Whether the new name has a whiteout after that step.
    pub new_whiteout: bool,
    /// The end of which the whiteout then hides nothing, and is removed.
    pub idle: Option<End>,
}

/// A directory that a rename moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Whether it has the opaque mark.
    pub opaque: bool,
    /// Whether it has a redirect.
    pub redirect: bool,
    /// Whether it merges with lower directories.
    pub merges: bool,
    /// Whether lower layers have its new name.
    pub onto_lower: bool,
}

/// The mark that a directory gets before it moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MovedMark {
    /// So that the directory merges with the same as before.
    Redirect,
    /// So that the directory merges with nothing.
    Opaque,
}

impl Name {
    /// Whether the merged tree shows an object under the name.
    pub fn is_visible(self) -> bool {
        self.upper || self.lower && !self.whiteout
    }
}

#[cfg(test)]
mod tests {
    //! The tests carry each plan of each format out on a model of names, for all possible facts.

    use std::ffi::OsStr;

    use super::*;
    use crate::format::kernel::{Namespace, format as kernel};
    use crate::format::{Format, OCI, WhiteoutMark};

    const FORMATS: [Format; 3] = [OCI, kernel(Namespace::Trusted), kernel(Namespace::User)];

    fn is_beside(format: Format) -> bool {
        matches!(format.whiteout(OsStr::new("name"), 255), WhiteoutMark::Beside(_))
    }

    /// Returns all combinations of `N` facts.
    fn facts<const N: usize>() -> impl Iterator<Item = [bool; N]> {
        (0..1_u32 << N).map(|bits| std::array::from_fn(|at| bits >> at & 1 == 1))
    }

    /// Returns all possible facts about a name. A whiteout in place of the object excludes an
    /// object.
    fn names(format: Format) -> impl Iterator<Item = Name> {
        let is_possible = move |name: &Name| is_beside(format) || !name.upper || !name.whiteout;
        facts().map(|[upper, lower, whiteout]| Name { upper, lower, whiteout }).filter(is_possible)
    }

    /// A name while a plan is carried out.
    struct Model {
        name: Name,
        beside: bool,
        /// Whether a crash could take back a whiteout that was created.
        unsynced: bool,
    }

    impl Model {
        fn new(format: Format, name: Name) -> Self {
            Model { name, beside: is_beside(format), unsynced: false }
        }

        fn whiteout(&mut self) {
            assert!(!self.name.whiteout && (self.beside || !self.name.upper), "{:?}", self.name);
            (self.name.whiteout, self.unsynced) = (true, true);
        }

        /// Removes the whiteouts in the directory. The directories that it merges with must not
        /// show.
        fn clear(&self, opaque_first: bool) {
            let is_hidden = self.beside && self.name.whiteout && !self.unsynced;
            assert!(self.name.upper && (opaque_first || !self.name.lower || is_hidden));
        }
    }

    #[test]
    fn a_name_is_removed_in_one_visible_step() {
        for format in FORMATS {
            for (name, [is_dir]) in names(format).flat_map(|name| facts().map(move |facts| (name, facts))) {
                if !name.is_visible() {
                    continue;
                }
                let plan = format.remove(name, is_dir);
                let mut model = Model::new(format, name);
                for step in plan.first {
                    match step {
                        Step::Whiteout(End::Old) => model.whiteout(),
                        Step::SyncNames(End::Old) => model.unsynced = false,
                        Step::Clear { opaque_first } if is_dir => model.clear(opaque_first),
                        other => panic!("{name:?}: {other:?}"),
                    }
                    assert!(model.name.is_visible(), "{name:?}: {step:?}");
                }
                assert!(!model.unsynced, "{name:?}");
                match plan.seen {
                    Seen::Whiteout => model.whiteout(),
                    Seen::Remove => model.name.upper = false,
                    Seen::Replace => {
                        assert!(model.name.upper && !model.beside);
                        (model.name.upper, model.name.whiteout) = (false, true);
                    }
                }
                assert!(!model.name.is_visible() && !model.name.upper, "{name:?}");
                assert_eq!(
                    model.name.whiteout,
                    name.lower || name.whiteout,
                    "{name:?}: no whiteout that hides nothing"
                );
            }
        }
    }

    #[test]
    fn a_name_is_created_in_one_visible_step() {
        for format in FORMATS {
            for [is_dir, at_once, whiteout] in facts() {
                let new = New { is_dir, at_once, whiteout };
                let plan = format.create(new);
                let in_place = whiteout && !is_beside(format);
                match plan.placement {
                    Placement::AtOnce => assert!(at_once && !in_place, "{new:?}"),
                    Placement::Built(Onto::Free) => assert!(!at_once && !in_place, "{new:?}"),
                    Placement::Built(Onto::Whiteout) => assert!(!is_dir && in_place, "{new:?}"),
                    Placement::Built(Onto::Swapped) => assert!(is_dir && in_place, "{new:?}"),
                }
                assert_eq!(plan.uncover, whiteout && is_beside(format), "{new:?}");
                // Else the whiteout beside it makes it opaque, and it gets the mark before the
                // whiteout is removed.
                let is_built = plan.placement != Placement::AtOnce;
                assert_eq!(plan.opaque, is_dir && whiteout && is_built, "{new:?}");
            }
        }
    }

    /// Makes the visible step.
    fn rename(mode: RenameMode, old: &mut Model, new: &mut Model) {
        match mode {
            RenameMode::Exchange => {
                assert!(!old.beside && new.name.whiteout);
                (old.name.upper, old.name.whiteout) = (false, true);
                (new.name.upper, new.name.whiteout) = (true, false);
                return;
            }
            RenameMode::Whiteout if old.beside => {}
            RenameMode::Whiteout => (old.name.upper, old.name.whiteout) = (false, true),
            RenameMode::Replace => old.name.upper = false,
            RenameMode::NoReplace => panic!("an object may be there"),
        }
        new.name.upper = true;
        new.name.whiteout &= new.beside;
    }

    fn check_rename(format: Format, moving: Move) {
        let plan = format.rename(moving);
        let (mut old, mut new) = (Model::new(format, moving.old), Model::new(format, moving.new));
        let shown = |name: Name| name.is_visible();
        for step in plan.first {
            match step {
                Step::Whiteout(End::Old) => old.whiteout(),
                Step::Whiteout(End::New) => new.whiteout(),
                Step::SyncNames(End::Old) => old.unsynced = false,
                Step::SyncNames(End::New) => new.unsynced = false,
                Step::Clear { opaque_first } if moving.over_dir => new.clear(opaque_first),
                other => panic!("{moving:?}: {other:?}"),
            }
            assert!(shown(old.name) && shown(new.name) == shown(moving.new), "{moving:?}: {step:?}");
        }
        assert!(!old.unsynced && !new.unsynced, "{moving:?}");
        rename(plan.mode, &mut old, &mut new);
        for idle in [false, true] {
            assert_eq!((shown(old.name), shown(new.name)), (moving.leaves_device, true), "{moving:?}");
            if !idle {
                assert_eq!(
                    (plan.old_whiteout, plan.new_whiteout),
                    (old.name.whiteout, new.name.whiteout),
                    "{moving:?}"
                );
            }
            match plan.idle {
                Some(End::Old) if !idle => old.name.whiteout = false,
                Some(End::New) if !idle => new.name.whiteout = false,
                _ => {}
            }
        }
        assert!(!new.name.whiteout, "{moving:?}: a whiteout beside the object stays");
        assert!(
            !old.name.whiteout || old.name.lower || moving.old.whiteout,
            "{moving:?}: a whiteout that hides nothing"
        );
    }

    #[test]
    fn an_object_is_renamed_in_one_visible_step() {
        for format in FORMATS {
            for (old, new) in names(format).flat_map(|old| names(format).map(move |new| (old, new))) {
                for [is_dir, over_dir, leaves_device] in facts() {
                    let is_possible = (!over_dir || is_dir && new.is_visible())
                        && (!leaves_device || format.features().zero_devices)
                        // A directory can replace only a directory.
                        && (!is_dir || over_dir || !new.is_visible());
                    if old.upper && is_possible {
                        check_rename(format, Move { old, new, is_dir, over_dir, leaves_device });
                    }
                }
            }
        }
    }

    #[test]
    fn a_directory_that_moves_merges_with_the_same() {
        for format in FORMATS {
            for [opaque, redirect, merges, onto_lower] in facts() {
                let dir = Moved { opaque, redirect, merges, onto_lower };
                let expected = match dir {
                    Moved { opaque: true, .. } => None,
                    Moved { redirect: true, .. } => (!is_beside(format)).then_some(MovedMark::Redirect),
                    Moved { merges: true, .. } => Some(MovedMark::Redirect),
                    Moved { onto_lower, .. } => onto_lower.then_some(MovedMark::Opaque),
                };
                assert_eq!(format.moved(dir), expected, "{dir:?}");
            }
        }
    }

    #[test]
    fn plans_are_the_rows_of_the_format() {
        let name = |upper, lower| Name { upper, lower, whiteout: false };
        let kernel = kernel(Namespace::Trusted);
        let hide = [Step::Whiteout(End::Old), Step::SyncNames(End::Old)];
        for (format, name, is_dir, first, seen) in [
            (OCI, name(false, true), false, &[][..], Seen::Whiteout),
            (OCI, name(true, false), false, &[], Seen::Remove),
            (OCI, name(true, true), false, &hide, Seen::Remove),
            (OCI, name(true, false), true, &[Step::Clear { opaque_first: false }], Seen::Remove),
            (OCI, name(true, true), true, &[hide[0], hide[1], Step::Clear { opaque_first: false }], Seen::Remove),
            (kernel, name(false, true), false, &[], Seen::Whiteout),
            (kernel, name(true, false), false, &[], Seen::Remove),
            (kernel, name(true, true), false, &[], Seen::Replace),
            (kernel, name(true, true), true, &[Step::Clear { opaque_first: true }], Seen::Replace),
        ] {
            assert_eq!(format.remove(name, is_dir), Removal { first: first.to_vec(), seen }, "{name:?} {is_dir}");
        }
        let moves = |old, new, is_dir, over_dir| Move { old, new, is_dir, over_dir, leaves_device: false };
        let free = Name::default();
        let whiteout = Name { upper: false, lower: true, whiteout: true };
        let clear = [Step::Clear { opaque_first: true }];
        for (format, moving, first, mode, old_whiteout, idle) in [
            (OCI, moves(name(true, false), free, true, false), &[][..], RenameMode::Replace, false, None),
            (OCI, moves(name(true, true), free, false, false), &hide, RenameMode::Replace, true, None),
            (OCI, moves(name(true, true), whiteout, true, false), &hide, RenameMode::Replace, true, Some(End::New)),
            (kernel, moves(name(true, false), free, true, false), &[], RenameMode::Replace, false, None),
            (kernel, moves(name(true, true), free, true, false), &[], RenameMode::Whiteout, true, None),
            (kernel, moves(name(true, false), whiteout, false, false), &[], RenameMode::Replace, false, None),
            (kernel, moves(name(true, false), whiteout, true, false), &[], RenameMode::Exchange, true, Some(End::Old)),
            (kernel, moves(name(true, true), whiteout, true, false), &[], RenameMode::Exchange, true, None),
            (kernel, moves(name(true, true), name(true, true), true, true), &clear, RenameMode::Whiteout, true, None),
        ] {
            let new_whiteout = idle == Some(End::New);
            let expected = Rename { first: first.to_vec(), mode, old_whiteout, new_whiteout, idle };
            assert_eq!(format.rename(moving), expected, "{moving:?}");
        }
    }
}
