//! The plan of a copy-up, decided from facts alone before the first step.

/// A way to get the data of a copy without copying all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The filesystem shares the data with the original.
    Share,
    /// The copy gets the data later.
    Part,
    /// A small file is written past the page cache, so it needs no sync.
    Through,
}

/// The size from which on a copy may share its data.
const SHARED_FROM: u64 = 64 << 10;
/// The size up to which data is written past the page cache.
const THROUGH_MAX: u64 = super::partial::PARTIAL_FROM;

/// The data of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// The size of the original, and the number of its bytes that the copy needs.
    pub size: u64,
    pub kept: u64,
    /// Whether the file may be copied up in part.
    pub may_be_partial: bool,
    /// Whether the layer can write past the page cache.
    pub may_write_through: bool,
}

impl Data {
    /// Returns the ways to try, in order. If none works, the data is copied.
    pub fn ways(self) -> impl Iterator<Item = Way> {
        let ways = [
            (Way::Share, self.kept >= SHARED_FROM && self.kept == self.size),
            (Way::Part, self.may_be_partial),
            (Way::Through, self.kept <= THROUGH_MAX && self.may_write_through),
        ];
        ways.into_iter().filter(|(_, is_tried)| *is_tried).map(|(way, _)| way)
    }
}

/// The place of the name that the copy gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// There is none: the object lost its last name, but is open.
    No,
    /// In a directory that the upper layer lacks: the name became known after the copy began.
    Below,
    /// In a directory of the upper layer.
    Upper,
}

/// The way in which a complete copy leaves the work directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A rename gives it its name.
    Name,
    /// It becomes an index entry, where other names of its file find it, and its name is a link to
    /// that.
    IndexedAndNamed,
    /// It becomes an index entry alone. A name is linked to it when that is needed.
    Indexed,
    /// It is a file without a name.
    Nameless,
}

impl Destination {
    /// Returns None if the copy is not needed. `has_others` says whether other names of the file
    /// are still in the lower layer.
    pub fn of(named: Named, has_others: bool) -> Option<Self> {
        match (named, has_others) {
            (Named::Upper, false) => Some(Destination::Name),
            (Named::Upper, true) => Some(Destination::IndexedAndNamed),
            (Named::Below | Named::No, true) => Some(Destination::Indexed),
            (Named::No, false) => Some(Destination::Nameless),
            (Named::Below, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_have_the_data() {
        const LARGE: u64 = THROUGH_MAX + 1;
        const ALL: [Way; 3] = [Way::Share, Way::Part, Way::Through];
        for (size, kept, partial, through, expected) in [
            (0, 0, false, false, &[][..]),
            (0, 0, false, true, &ALL[2..]),
            (SHARED_FROM - 1, SHARED_FROM - 1, false, true, &ALL[2..]),
            (SHARED_FROM - 1, SHARED_FROM - 1, false, false, &[]),
            (SHARED_FROM, SHARED_FROM, false, false, &ALL[..1]),
            (SHARED_FROM, SHARED_FROM, false, true, &[Way::Share, Way::Through]),
            (THROUGH_MAX, THROUGH_MAX, true, true, &ALL),
            (LARGE, LARGE, true, true, &ALL[..2]),
            (LARGE, LARGE, true, false, &ALL[..2]),
            (LARGE, LARGE, false, true, &ALL[..1]),
            (LARGE + 1, LARGE, true, true, &ALL[1..2]),
            (LARGE, SHARED_FROM, false, true, &ALL[2..]),
            (LARGE, SHARED_FROM, false, false, &[]),
        ] {
            let data = Data { size, kept, may_be_partial: partial, may_write_through: through };
            assert_eq!(data.ways().collect::<Vec<_>>(), expected, "{data:?}");
        }
    }

    #[test]
    fn destinations_of_a_copy() {
        for (named, has_others, expected) in [
            (Named::No, false, Some(Destination::Nameless)),
            (Named::No, true, Some(Destination::Indexed)),
            (Named::Below, false, None),
            (Named::Below, true, Some(Destination::Indexed)),
            (Named::Upper, false, Some(Destination::Name)),
            (Named::Upper, true, Some(Destination::IndexedAndNamed)),
        ] {
            assert_eq!(Destination::of(named, has_others), expected, "{named:?} {has_others}");
        }
    }
}
