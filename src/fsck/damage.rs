//! What can be wrong with an upper layer, in words.

use std::fmt;
use std::path::PathBuf;

/// What is wrong with one object of the upper layer or of the work directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The whiteout of a name that the layers below do not have.
    HidesNothing,
    /// A whiteout beside an object of the same name.
    BesideObject,
    /// A long whiteout that contains no name.
    NamesNothing,
    /// A long whiteout of another name than its own says, or of one that is not long.
    Misnamed,
    /// A reserved name that is not the file or the directory that it should be.
    WrongKind,
    /// A reserved name that no format knows.
    Meaningless,
    /// A redirect that names no path.
    NoPath,
    /// A redirect in an opaque directory.
    RedirectInOpaque,
    /// A redirect to a path at which the layers below have no directory.
    Dangling(PathBuf),
    /// A redirect to a directory that is seen at this path too.
    SeenTwice(PathBuf),
    /// A partial copy beside an object or a whiteout of its name, or one that was completed and has
    /// another.
    Outdone,
    /// A partial copy of what is no file of the layers below.
    NoSource,
    /// A partial copy of another file than the layers below have.
    OtherSource,
    /// The map of no partial copy.
    OrphanMap,
    /// A map of another run of the system, or of a file of another size.
    MapMeansNothing,
    /// The mark of partial copies, without any.
    MarkWithoutParts,
    /// Partial copies, without the mark.
    PartsWithoutMark,
    /// A file of the kernel's format that has only metadata, and whose data are not found.
    NoData,
    /// Something in the work directory that was being built.
    Leftover,
    /// Something in the work directory that no overlay has put there.
    Foreign,
    /// The mark of an overlay that synced nothing and did not end well.
    Volatile,
    /// Records of inode numbers that are damaged, or of another file.
    BadNumbers,
    /// The copy of a file with several names that no name shows any more.
    LoneCopy,
    /// The copy of a file with several names that lost all that the merged tree has: no damage, but
    /// nobody needs it.
    UnusedCopy,
}

impl Damage {
    /// Whether something that was written through the overlay cannot be seen any more, or may be
    /// something else. A repair never changes that: it was lost before.
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
            | Damage::UnusedCopy => false,
        }
    }

    /// Whether the upper layer needs something of the lower ones that they do not have.
    pub(super) fn is_missing_below(&self) -> bool {
        matches!(self, Damage::Dangling(_) | Damage::NoSource | Damage::OtherSource | Damage::NoData | Damage::LoneCopy)
    }

    /// Whether it is only with these lower layers that nothing needs the object.
    pub(super) fn hides_nothing(&self) -> bool {
        matches!(self, Damage::HidesNothing)
    }

    /// Whether what is to be done about it depends on what the lower layers have.
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
            Damage::HidesNothing => "hides a name that the lower layers do not have",
            Damage::BesideObject => "hides a name that the upper layer itself has",
            Damage::NamesNothing => "is the whiteout of a long name, but contains none",
            Damage::Misnamed => "is the whiteout of a name that needs another one",
            Damage::WrongKind => "has a reserved name, but is not what must have it",
            Damage::Meaningless => "has a reserved name that means nothing, so that it is not shown",
            Damage::NoPath => "is a redirect that names no path, so that its directory merges with nothing",
            Damage::RedirectInOpaque => "is a redirect in an opaque directory, where it means nothing",
            Damage::Outdone => "is a partial copy of a file that the upper layer has whole or deleted",
            Damage::NoSource => {
                "is a partial copy of a file that the lower layers do not have, so that it is not shown"
            }
            Damage::OtherSource => {
                "is a partial copy of another file than the lower layers have now, so that it is not shown; it has what was changed"
            }
            Damage::OrphanMap => "is the map of a partial copy that is not there",
            Damage::MapMeansNothing => {
                "is a map of another run of the system or of another file, so that what was changed without being synced is not shown"
            }
            Damage::MarkWithoutParts => "says that there are partial copies, and there are none",
            Damage::PartsWithoutMark => "is missing, which says that there are partial copies",
            Damage::NoData => "has only metadata, and the lower layers do not have its data",
            Damage::Leftover => "is left of a change that did not come to its end",
            Damage::Foreign => "is in the work directory, but is no overlay's, so that the layer cannot be mounted",
            Damage::Volatile => {
                "says that an overlay which synced nothing did not end well: what was written may be damaged. To use the layer all the \
                 same, mount it with reuse_volatile, or remove this directory"
            }
            Damage::BadNumbers => "has records that are none, so that some inode numbers will be others",
            Damage::LoneCopy => "is the changed copy of a file of the lower layers that they do not have any more",
            Damage::UnusedCopy => "is the changed copy of a file of which no name is left",
        };
        f.write_str(sentence)
    }
}
