//! What a copy-up decides before it makes a step, by facts alone.

/// A way to have the data of a copy that spares copying them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The filesystem shares them with the original.
    Share,
    /// The copy has them later.
    Part,
    /// A small file is written past what a crash could take away, which spares a sync.
    Through,
}

/// From this size on it is asked whether the copy can share the data.
const SHARED_FROM: u64 = 64 << 10;
/// Up to this size data are written through.
const THROUGH_MAX: u64 = super::partial::PARTIAL_FROM;

/// The data of a copy.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// How many bytes the original has, and how many of these the copy needs.
    pub size: u64,
    pub kept: u64,
    /// The file may be copied up in part.
    pub may_be_partial: bool,
    /// The layer may write through.
    pub may_write_through: bool,
}

impl Data {
    /// The ways that are tried one after the other. Where none is possible, the data are copied.
    pub fn ways(self) -> impl Iterator<Item = Way> {
        let ways = [
            (Way::Share, self.kept >= SHARED_FROM && self.kept == self.size),
            (Way::Part, self.may_be_partial),
            (Way::Through, self.kept <= THROUGH_MAX && self.may_write_through),
        ];
        ways.into_iter().filter(|(_, is_tried)| *is_tried).map(|(way, _)| way)
    }
}

/// Where the name is that the copy is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// It lost its last name, but is open.
    No,
    /// In a directory that the upper layer does not have: this name was not known when the copy was
    /// begun.
    Below,
    /// In a directory of the upper layer.
    Upper,
}

/// How a complete copy leaves the work directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// It is renamed to its name.
    Name,
    /// It stays under the name by which the other names of its file find it, and is linked to its
    /// name.
    HomeAndName,
    /// It only stays: a name is linked to it when it is needed.
    Home,
    /// It is a file without a name.
    Nameless,
}

impl Destination {
    /// None: the copy is not needed there. `has_others`: other names of the file are in the lower
    /// layer still.
    pub fn of(named: Named, has_others: bool) -> Option<Self> {
        match (named, has_others) {
            (Named::Upper, false) => Some(Destination::Name),
            (Named::Upper, true) => Some(Destination::HomeAndName),
            (Named::Below | Named::No, true) => Some(Destination::Home),
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
            (Named::No, true, Some(Destination::Home)),
            (Named::Below, false, None),
            (Named::Below, true, Some(Destination::Home)),
            (Named::Upper, false, Some(Destination::Name)),
            (Named::Upper, true, Some(Destination::HomeAndName)),
        ] {
            assert_eq!(Destination::of(named, has_others), expected, "{named:?} {has_others}");
        }
    }
}
