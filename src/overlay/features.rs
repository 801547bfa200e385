//! The features of an upper layer: what a reader must know beyond whiteouts and opaque marks.
//!
//! The [record](super::record) of the layer names them. A feature is recorded before its first use,
//! in one step that is on the disk first ([`Work::need`]). After that it costs nothing. So a
//! program that lacks a feature refuses the layer, instead of showing or writing it wrongly.
//!
//! A layer of an earlier version has no names of features. A mount looks for them once.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::errno::{ENODATA, EOPNOTSUPP, EPERM};

use super::Overlay;
use super::record::{RECORD, Record};
use super::stack::Stack;
use super::work::{Refused, Work};
use crate::format::attribute::OWNER_RECORDS;
use crate::format::{self, Format, Meaning};
use crate::layer::{Kind, Layer, Object, Owner, Result};

/// A feature of an upper layer. `docs/format.md` says for each what happens if a reader ignores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A directory merges with another path: [`format::REDIRECT`].
    Redirects,
    /// Large files of which only changed chunks are copied: [`format::PARTS`].
    PartialCopies,
    /// Copies in the work directory that several lower names show: `link.…`.
    Links,
    /// Devices with the number 0 that are no deletions: [`format::DEVICES`].
    Devices,
    /// A commit of the layer that is not finished.
    Commit,
    /// Marks of immutable and append-only directories: [`format::FIXED`].
    FixedMarks,
    /// Owners and modes in attributes: [`OWNER_RECORDS`].
    OwnerRecords,
    /// The inode numbers that copies show: `numbers`.
    Numbers,
    /// The layer belongs to a chain of snapshots: only a mount that knows the chain writes to it.
    Snapshots,
}

/// The effect of a feature on a reader that does not know it. Later ones are stricter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The reader may ignore the feature.
    Compatible,
    /// The reader must not write to the layer.
    ReadOnly,
    /// The reader must not use the layer.
    Incompatible,
}

impl Need {
    const ALL: [Need; 3] = [Need::Compatible, Need::ReadOnly, Need::Incompatible];

    /// The word of the record.
    pub fn word(self) -> &'static str {
        match self {
            Need::Compatible => "compatible",
            Need::ReadOnly => "read-only",
            Need::Incompatible => "incompatible",
        }
    }

    /// Parses a word of the record.
    pub fn of(word: &[u8]) -> Option<Need> {
        Self::ALL.into_iter().find(|need| need.word().as_bytes() == word)
    }
}

impl Feature {
    /// All features, in the order of the record.
    pub const ALL: [Feature; 9] = [
        Feature::Redirects,
        Feature::PartialCopies,
        Feature::Links,
        Feature::Devices,
        Feature::Commit,
        Feature::FixedMarks,
        Feature::OwnerRecords,
        Feature::Numbers,
        Feature::Snapshots,
    ];

    /// The name in the record.
    pub fn name(self) -> &'static str {
        match self {
            Feature::Redirects => "redirects",
            Feature::PartialCopies => "partial-copies",
            Feature::Links => "links",
            Feature::Devices => "devices",
            Feature::Commit => "commit",
            Feature::FixedMarks => "fixed-marks",
            Feature::OwnerRecords => "owner-records",
            Feature::Numbers => "numbers",
            Feature::Snapshots => "snapshots",
        }
    }

    /// The effect on a reader that does not know it.
    pub fn need(self) -> Need {
        match self {
            Feature::Redirects | Feature::PartialCopies | Feature::Links | Feature::Devices | Feature::Commit => {
                Need::Incompatible
            }
            Feature::FixedMarks | Feature::OwnerRecords | Feature::Snapshots => Need::ReadOnly,
            Feature::Numbers => Need::Compatible,
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(u32);

impl Features {
    /// Whether the feature is in the set.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u32 != 0
    }

    /// Returns the set with the feature.
    pub fn with(self, feature: Feature) -> Self {
        Features(self.0 | 1 << feature as u32)
    }

    /// Returns the features of this set that `other` lacks.
    pub fn beyond(self, other: Self) -> Self {
        Features(self.0 & !other.0)
    }

    /// Returns the features of both sets.
    pub fn or(self, other: Self) -> Self {
        Features(self.0 | other.0)
    }

    /// Lists the features, in the order of the record.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.into_iter().filter(move |feature| self.has(*feature))
    }

    /// The set as a number, for an atomic variable.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The set of a number from [`Features::bits`].
    pub fn of_bits(bits: u32) -> Self {
        Features(bits)
    }
}

impl fmt::Display for Features {
    /// Writes the names with commas.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Feature::name).collect::<Vec<_>>().join(", "))
    }
}

/// A feature that this version does not know, and that it must know for a mount of the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// The name in the record.
    pub name: String,
    /// The effect.
    pub need: Need,
    /// The lower layer that needs it. None: the upper layer does.
    pub lower: Option<PathBuf>,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, need, lower } = self;
        match lower {
            Some(lower) => {
                let lower = lower.display();
                write!(f, "another version of overlayfs wrote the lower layer {lower}, which needs the feature {name}")
            }
            None if *need == Need::ReadOnly => write!(
                f,
                "another version of overlayfs wrote the upper layer, and without its feature {name} the layer can \
                 only be read (option ro)"
            ),
            None => write!(f, "another version of overlayfs wrote the upper layer, which needs the feature {name}"),
        }
    }
}

/// Refuses lower layers that a reader of this version would show wrongly. The topmost ones may be
/// upper layers that are only read; `works` are their work directories, from the bottom. The work
/// directories of others are inside them, and so is one that is None.
///
/// # Errors
///
/// - [`Refused::Feature`]: the record of a layer names a feature that this version lacks.
/// - [`Refused::Commit`]: a commit that writes to a layer is not finished.
pub(super) fn check_lowers<L: Layer>(
    stack: &Stack<L>,
    works: &[Option<L>],
    commits: bool,
) -> std::result::Result<(), Refused> {
    let works = works.iter().rev().map(Option::as_ref).chain(std::iter::repeat(None));
    for (root, work) in stack.lower_roots().iter().zip(works) {
        let layer = stack.layer(root);
        let record = match work {
            Some(work) => Record::read(work, &work.root()?)?,
            None => Record::inside(layer, &*stack.open(root)?)?,
        };
        if let Some(record) = record {
            record.check(Need::Incompatible, commits, layer.path())?;
        }
    }
    Ok(())
}

/// Looks for the features of an upper layer in the layer itself, for an upper layer of a version
/// that did not record them. `links` says whether the work directory has index entries.
///
/// In the kernel's format the marks are the kernel's, which writes them without a record. There
/// only the features of the work directory and the records of owners count.
pub fn found<L: Layer>(stack: &Stack<L>, format: Format, links: bool) -> Result<Features> {
    let mut found = Features::default();
    let Some(root) = stack.upper_root() else { return Ok(found) };
    let layer = stack.layer(root);
    if links {
        found = found.with(Feature::Links);
    }
    if has_owner_records(layer, &*stack.open(root)?)? {
        found = found.with(Feature::OwnerRecords);
    }
    if !format.features().reserved_names {
        return Ok(found);
    }
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        let is_root = Arc::ptr_eq(&dir, root);
        layer.list(&*stack.open(&dir)?, &mut |entry| match format::meaning(entry.name) {
            Meaning::Object if entry.kind == Kind::Dir => dirs.push(stack.child(&dir, entry.name)),
            _ if entry.kind != Kind::File => {}
            Meaning::Redirect => found = found.with(Feature::Redirects),
            Meaning::Fixed => found = found.with(Feature::FixedMarks),
            Meaning::Part(_) | Meaning::Map(_) => found = found.with(Feature::PartialCopies),
            Meaning::Unknown if is_root && entry.name == format::PARTS => found = found.with(Feature::PartialCopies),
            Meaning::Unknown if is_root && entry.name == format::DEVICES => found = found.with(Feature::Devices),
            _ => {}
        })?;
    }
    Ok(found)
}

fn has_owner_records<L: Layer>(layer: &L, root: &L::Dir) -> Result<bool> {
    for name in OWNER_RECORDS {
        match layer.xattr(Object::Dir(root), OsStr::new(name)) {
            Ok(_) => return Ok(true),
            Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP | EPERM) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

impl<L: Layer> Work<L> {
    /// Makes sure that the record names a feature, before its first use in the layer.
    ///
    /// # Errors
    ///
    /// Those of the upper layer. The caller then must not use the feature.
    pub fn need(&self, stack: &Stack<L>, feature: Feature) -> Result<()> {
        if self.has(feature) {
            return Ok(());
        }
        let mut record = self.record.lock();
        if record.features.has(feature) {
            return Ok(());
        }
        let mut next = record.clone();
        next.features = next.features.with(feature);
        self.place_file(stack, self.dir(), OsStr::new(RECORD), &next.to_bytes())?;
        let upper = stack.layer(self.dir());
        if !self.is_volatile() && !upper.capabilities().ordered {
            upper.sync_dir(&*stack.open(self.dir())?)?;
        }
        *record = next;
        self.recorded.store(record.features.bits(), Ordering::Release);
        Ok(())
    }

    /// Whether the record names a feature.
    pub fn has(&self, feature: Feature) -> bool {
        Features::of_bits(self.recorded.load(Ordering::Acquire)).has(feature)
    }

    /// Takes features out of the record that the layer surely has no more. Syncs the layer first,
    /// so that a crash cannot bring them back.
    pub(super) fn need_no_more(&self, stack: &Stack<L>, features: Features) -> Result<()> {
        let mut record = self.record.lock();
        let mut next = record.clone();
        next.features = next.features.beyond(features);
        if next == *record {
            return Ok(());
        }
        if !self.is_volatile() {
            stack.layer(self.dir()).sync_all()?;
        }
        self.place_file(stack, self.dir(), OsStr::new(RECORD), &next.to_bytes())?;
        *record = next;
        self.recorded.store(record.features.bits(), Ordering::Release);
        Ok(())
    }
}

impl<L: Layer> Overlay<L> {
    /// Does the same as [`Work::need`].
    ///
    /// # Errors
    ///
    /// - EROFS: there is no upper layer.
    /// - The errnos of the upper layer.
    pub(crate) fn need(&self, feature: Feature) -> Result<()> {
        self.upper()?.1.need(&self.stack, feature)
    }

    /// Prepares for an object of this owner, whom the upper layer may have to record.
    pub(super) fn prepare_owner(&self, owner: Owner) -> Result<()> {
        let (upper, _) = self.upper()?;
        if upper.capabilities().owner_records && owner != upper.identity() && !upper.creates_as(owner) {
            self.need(Feature::OwnerRecords)?;
        }
        Ok(())
    }
}
