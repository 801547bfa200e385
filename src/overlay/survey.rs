//! The content of an upper layer by itself, counted: objects, marks and leftovers. No mount is
//! needed, and none is disturbed.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use crate::errno::{EINVAL, ELOOP, ENOENT, ENOTDIR};

use super::commit::JOURNAL;
use super::compact::CompactMap;
use super::detect::namespace;
use super::features::Feature;
use super::holder::{Holder, RECORD as HOLDER};
use super::record::Record;
use super::stack::Stack;
use super::volatile::is_marked;
use super::work::{entries_but_links, holder, is_kept};
use crate::format::kernel::{self, Namespace};
use crate::format::listing::{self, Extent, NAMES_AT_ONCE, Reading};
use crate::format::{self, Format};
use crate::layer::{Access, Kind, Layer, Object, Result, read_start};

/// The facts about an upper layer.
#[derive(Debug)]
pub struct Survey {
    /// The namespace of the kernel's format. None: the layer is an OCI image layer.
    pub namespace: Option<Namespace>,
    /// The record in the work directory. None: it is missing or damaged.
    pub record: Option<Record>,
    /// How the lower layers differ from those of the record.
    pub difference: Option<String>,
    /// The process that the work directory names. A killed one leaves its name behind.
    pub holder: Option<Holder>,
    /// Whether a volatile overlay left its mark, or has it now.
    pub is_volatile: bool,
    /// The start of the journal of a commit that has begun and not ended. It is empty in the layer
    /// that takes the changes.
    pub journal: Option<Vec<u8>>,
    /// The entries of the work directory that the next mount removes.
    pub leftovers: u64,
    /// The content.
    pub counts: Counts,
}

/// What an upper layer contains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Directories, without the root.
    pub directories: u64,
    /// Names of regular files.
    pub files: u64,
    /// Names of symlinks.
    pub symlinks: u64,
    /// Names of other objects.
    pub others: u64,
    /// The bytes of the regular files. One with several names counts once.
    pub bytes: u64,
    /// The bytes that the filesystem uses for all objects.
    pub allocated: u64,
    /// Deleted names.
    pub deletions: u64,
    /// Directories that hide all lower ones.
    pub opaque: u64,
    /// Directories that merge with another path.
    pub redirects: u64,
    /// Files of which only changed data is copied.
    pub partial_copies: u64,
    /// Reserved names without a meaning.
    pub unknown: u64,
}

/// Surveys the upper layer of a stack. `work` is the layer of its work directory, if that is not
/// inside.
///
/// # Errors
///
/// Those of the layers.
pub fn survey<L: Layer>(stack: &Stack<L>, work: Option<&L>) -> Result<Survey> {
    let upper = stack.top();
    let root = stack.upper_root().ok_or(crate::errno::Error::new(EINVAL))?;
    let open = stack.open(root)?;
    let namespace = namespace(stack)?;
    let dir = match work {
        Some(work) => Some(work.root()?),
        None => match upper.open_dir(&open, OsStr::new(format::WORK)) {
            Err(error) if matches!(error.errno, ENOENT | ENOTDIR | ELOOP | EINVAL) => None,
            dir => Some(dir?),
        },
    };
    let (mut record, mut is_volatile, mut leftovers, mut journal) = (None, false, 0, None);
    if let Some(dir) = &dir {
        record = Record::read(upper, dir)?;
        is_volatile = is_marked(upper, dir)?;
        if record.as_ref().is_some_and(|record| record.features.has(Feature::Commit)) {
            journal = Some(start_of_journal(upper, dir)?);
        }
        let left = entries_but_links(upper, dir)?;
        let is_leftover = |name: &OsStr, kind| !is_kept(name, kind) && name != HOLDER;
        let left = left.iter().filter(|(name, kind)| is_leftover(name, *kind) && !is_kernels(name, *kind));
        leftovers = left.count() as u64;
    }
    let difference = match &record {
        Some(before) if !stack.lower_roots().is_empty() => Record::of(stack)?.difference(before),
        _ => None,
    };
    let counts = count(stack, namespace.map_or(format::OCI, kernel::format))?;
    let holder = holder(upper, &open, work);
    Ok(Survey { namespace, record, difference, holder, is_volatile, journal, leftovers, counts })
}

/// Returns as much of the journal as tells what it is for: it may list a million paths.
fn start_of_journal<L: Layer>(upper: &L, work: &L::Dir) -> Result<Vec<u8>> {
    match upper.open_file(work, OsStr::new(JOURNAL), Access::Read) {
        Err(error) if error.errno == ENOENT => Ok(Vec::new()),
        file => read_start(upper, &file?, JOURNAL_START),
    }
}

/// Whether the kernel's overlayfs has this directory in its work directory.
fn is_kernels(name: &OsStr, kind: Kind) -> bool {
    kind == Kind::Dir && (name == "work" || name == "index")
}

/// The bytes of a journal that are read.
const JOURNAL_START: usize = 64;

/// The reserved names that have a meaning only at the top of the layer.
const AT_TOP: [&str; 3] = [format::WORK, format::PARTS, format::DEVICES];

fn count<L: Layer>(stack: &Stack<L>, format: Format) -> Result<Counts> {
    let mut counts = Counts::default();
    let Some(root) = stack.upper_root() else { return Ok(counts) };
    let has_devices = match stack.stat(root, OsStr::new(format::DEVICES)) {
        Err(error) if error.errno == ENOENT => false,
        found => found.map(|_| true)?,
    };
    let (mut met, mut dirs) = (CompactMap::default(), vec![root.clone()]);
    while let Some(dir) = dirs.pop() {
        let (layer, open) = (stack.layer(&dir), stack.open(&dir)?);
        let mut next = Some(OsString::new());
        while let Some(from) = next.take() {
            let extent = Extent { from: &from, most: NAMES_AT_ONCE };
            let listing = listing::read(layer, &*open, Reading::upper(format), extent, || Ok(has_devices))?;
            if from.is_empty() {
                counts.opaque += u64::from(listing.marks.is_opaque());
                counts.redirects += u64::from(listing.marks.redirect().is_some());
            }
            counts.deletions += listing.whiteouts.len() as u64;
            counts.partial_copies += listing.parts.len() as u64;
            let is_known = |name: &OsStr| Arc::ptr_eq(&dir, root) && AT_TOP.iter().any(|known| name == *known);
            counts.unknown += listing.odd.iter().filter(|(name, _)| !is_known(name)).count() as u64;
            for (name, kind, _) in listing.objects {
                let stat = layer.stat(Object::Entry(&*open, &name))?;
                let is_new = stat.nlink < 2 || kind == Kind::Dir || met.insert(stat.ino, ()).is_none();
                counts.allocated += if is_new { stat.blocks.saturating_mul(512) } else { 0 };
                match kind {
                    Kind::Dir => {
                        counts.directories += 1;
                        dirs.push(stack.child(&dir, &name));
                    }
                    Kind::File => {
                        counts.files += 1;
                        counts.bytes += if is_new { stat.size } else { 0 };
                    }
                    Kind::Symlink => counts.symlinks += 1,
                    Kind::Fifo | Kind::Socket | Kind::CharDev | Kind::BlockDev => counts.others += 1,
                }
            }
            next = listing.run.to;
        }
    }
    Ok(counts)
}
