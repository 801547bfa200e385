//! The kinds of damage of an upper layer, and their sentences.

use std::fmt;
use std::path::PathBuf;

use crate::overlay::Features;

/// The damage of one object of the upper layer or of the work directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The whiteout of a name that the layers below do not have.
    HidesNothing,
    /// A whiteout beside an object of the same name.
    BesideObject,
    /// A long whiteout that contains no name.
    NamesNothing,
    /// A long whiteout with the name of another one, or of a name that is not long.
    Misnamed,
    /// A reserved name with an object of the wrong kind.
    WrongKind,
    /// A reserved name that the format does not know.
    Meaningless,
    /// A redirect that names no path.
    NoPath,
    /// A redirect in an opaque directory.
    RedirectInOpaque,
    /// A redirect to a path at which the layers below have no directory.
    Dangling(PathBuf),
    /// A redirect to a directory that shows at this path too.
    SeenTwice(PathBuf),
    /// A partial copy beside an object or a whiteout of its name, or a completed one that has
    /// another name.
    Outdone,
    /// A partial copy of an object that is no file in the layers below.
    NoSource,
    /// A partial copy of a file that the layers below no longer have: they have another one.
    OtherSource,
    /// A map without its partial copy.
    OrphanMap,
    /// A map of an earlier run of the system, or of a file of another size.
    MapMeansNothing,
    /// The mark of partial copies, without any.
    MarkWithoutParts,
    /// Partial copies, without the mark.
    PartsWithoutMark,
    /// A metacopy of the kernel's format without its data.
    NoData,
    /// An object in the work directory that was under construction.
    Leftover,
    /// An object in the work directory that no overlay made.
    Foreign,
    /// The mark of a volatile overlay that did not end well.
    Volatile,
    /// Records of inode numbers that are damaged, or belong to another file.
    BadNumbers,
    /// The record of the layer does not name features that the layer has.
    Unrecorded(Features),
    /// An index entry that no name shows any more: the lower layers lack its file.
    LoneCopy,
    /// An index entry that lost all its names in the merged tree. It is no damage, but nothing
    /// needs it.
    UnusedCopy,
    /// An object that looks the same in the lower layers. It is no damage.
    SameBelow,
    /// The opaque mark of a directory that the layers below do not have, or have empty. It is no
    /// damage.
    OpaqueOfNothing,
}

impl Damage {
    /// Whether written data no longer show, or may be other data. A repair never changes that: the
    /// loss came before.
    pub fn is_loss(&self) -> bool {
        match self {
            Damage::NoPath
            | Damage::Dangling(_)
            | Damage::NoSource
            | Damage::OtherSource
            | Damage::MapMeansNothing
            | Damage::NoData
            | Damage::Volatile
            | Damage::LoneCopy => true,
            Damage::HidesNothing
            | Damage::BesideObject
            | Damage::NamesNothing
            | Damage::Misnamed
            | Damage::WrongKind
            | Damage::Meaningless
            | Damage::RedirectInOpaque
            | Damage::SeenTwice(_)
            | Damage::Outdone
            | Damage::OrphanMap
            | Damage::MarkWithoutParts
            | Damage::PartsWithoutMark
            | Damage::Leftover
            | Damage::Foreign
            | Damage::BadNumbers
            | Damage::Unrecorded(_)
            | Damage::UnusedCopy
            | Damage::SameBelow
            | Damage::OpaqueOfNothing => false,
        }
    }

    /// Whether the upper layer needs an object that the lower layers lack.
    pub(super) fn is_missing_below(&self) -> bool {
        matches!(self, Damage::Dangling(_) | Damage::NoSource | Damage::OtherSource | Damage::NoData | Damage::LoneCopy)
    }

    /// Whether the object is useless only with these lower layers.
    pub(super) fn hides_nothing(&self) -> bool {
        matches!(self, Damage::HidesNothing)
    }

    /// Whether the repair depends on the objects of the lower layers.
    pub(super) fn depends_on_lowers(&self) -> bool {
        matches!(self, Damage::HidesNothing | Damage::BesideObject | Damage::MapMeansNothing)
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sentence = match self {
            Damage::Dangling(path) => {
                return write!(f, "redirects to /{}, where the lower layers have no directory", path.display());
            }
            Damage::SeenTwice(path) => {
                return write!(f, "redirects to a lower directory that shows as /{} too", path.display());
            }
            Damage::Unrecorded(features) => {
                return write!(
                    f,
                    "does not name features that the layer has, for other versions of the overlay: {features}"
                );
            }
            Damage::HidesNothing => "hides a name that the lower layers do not have",
            Damage::BesideObject => "hides a name that the upper layer itself has",
            Damage::NamesNothing => "is the whiteout of a long name, but contains no name",
            Damage::Misnamed => "is not the whiteout that belongs to the name in it",
            Damage::WrongKind => "has a reserved name, but is not the kind of object that the name is for",
            Damage::Meaningless => "has a reserved name without a meaning, so the overlay does not show it",
            Damage::NoPath => "is a redirect that names no path, so its directory merges with nothing",
            Damage::RedirectInOpaque => "is a redirect in an opaque directory, where it has no effect",
            Damage::Outdone => "is a partial copy of a file that is whole or deleted in the upper layer",
            Damage::NoSource => {
                "is a partial copy of a file that the lower layers do not have, so the overlay does not show it"
            }
            Damage::OtherSource => {
                "is a partial copy of another file than the lower layers have now, so the overlay does not show it; \
                 it has the changed data"
            }
            Damage::OrphanMap => "is the map of a partial copy that does not exist",
            Damage::MapMeansNothing => {
                "is a map of an earlier run of the system or of another file, so changes that were not synced do not \
                 show"
            }
            Damage::MarkWithoutParts => "says that there are partial copies, but there are none",
            Damage::PartsWithoutMark => "is missing, but there are partial copies, which it must announce",
            Damage::NoData => "has only metadata, and the lower layers do not have its data",
            Damage::Leftover => "is left from an interrupted change",
            Damage::Foreign => {
                "is in the work directory, but no overlay made it, so the layer cannot be mounted; \
                                move it elsewhere"
            }
            Damage::Volatile => {
                "says that a volatile overlay did not end well: written data may be damaged. To use the layer all the \
                 same, mount it with reuse_volatile, or remove this directory"
            }
            Damage::BadNumbers => "has damaged records, so some inode numbers will change",
            Damage::LoneCopy => "is the changed copy of a file that the lower layers no longer have",
            Damage::UnusedCopy => "is the changed copy of a file that has no name any more",
            Damage::SameBelow => "looks the same in the lower layers",
            Damage::OpaqueOfNothing => "hides the entries of a lower directory that has none",
        };
        f.write_str(sentence)
    }
}
