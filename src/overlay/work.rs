//! The work directory: the engine builds objects complete here, before a rename shows them.
//!
//! It lies on the filesystem of the upper layer and is never part of the merged tree. The mount
//! empties it, except for the [`Index`], the record and the shown times.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::errno::{EEXIST, EINVAL, ENODATA, ENOENT, EOPNOTSUPP, EROFS, EWOULDBLOCK, Error};

use super::Settings;
use super::claims::Claims;
use super::commit::JOURNAL;
use super::ctime::{CTIMES, Ctimes};
use super::detect::detect;
use super::features::{self, Feature, Features, Need, Unknown};
use super::holder::{Holder, LOCK, RECORD as HOLDER, RECORD_MAX, hold, hold_on_all_hosts};
use super::index::{self, Index, Known, NAMES};
use super::record::{RECORD, Record};
use super::removal::remove_tree;
use super::stack::{LayerDir, Stack};
use super::times::Times;
use super::volatile::{is_marked, mark, unmark};
use crate::format::listing::kind_of;
use crate::format::{self, Format};
use crate::layer::{Access, Kind, Layer, Object, RenameMode, Result, acl, ensure_file, read_start, write_all};
use crate::sync::Lock;

/// The prefix of the names of objects under construction.
const TEMP: &str = "tmp.";

/// The names with which the mount tries the upper layer's abilities.
pub(super) const TRIAL: [&str; 2] = ["tmp.from", "tmp.to"];
/// The name with which the mount tries whether the upper layer takes markers.
pub(super) const TRIAL_MARKER: &str = ".wh.tmp";

/// The reason why layers cannot be stacked.
#[derive(Debug)]
pub enum Refused {
    /// There is neither an upper nor a lower layer.
    NoLayer,
    /// Another overlay holds the upper layer or the work directory, maybe in another process. The
    /// holder is known if it left a record.
    Held(Option<Holder>),
    /// The upper layer is read-only.
    ReadOnly,
    /// The work directory is not on the filesystem of the upper layer.
    OtherFilesystem,
    /// The upper layer cannot rename, so no change could be one step.
    CannotRename(Error),
    /// A volatile overlay has left its mark, so the upper layer may be damaged.
    Volatile,
    /// The options say [`Wanted::Oci`](format::Wanted::Oci), but the upper layer has the kernel's
    /// format. Its attributes begin with this prefix.
    KernelFormat(&'static str),
    /// The options say [`Wanted::Kernel`](format::Wanted::Kernel), but the upper layer is an OCI
    /// image layer. It has a marker at this path.
    OciFormat(PathBuf),
    /// The upper layer has or gets the kernel's format, and no work directory outside it is given.
    NoWork,
    /// The upper layer has or gets the kernel's format, but its filesystem or this user cannot
    /// write the marks.
    CannotMark(Error),
    /// The upper layer refuses names that begin with `.wh.`, as another overlay does, and no other
    /// format is possible. The flag says whether it has extended attributes, which the kernel's
    /// format needs.
    NoMarkers(Error, bool),
    /// The upper layer has the kernel's format, and the work directory has the kernel's index of
    /// hard links. The engine cannot read that.
    Indexed,
    /// The work directory has an entry that no overlay made, and that the mount would remove.
    Foreign(OsString),
    /// The record of a layer names a feature that this version does not know.
    Feature(Unknown),
    /// A commit of the upper layer is not finished; or one that writes to this lower layer.
    Commit(Option<PathBuf>),
    /// The upper layer belongs to a chain of snapshots, and no chain is named.
    Snapshots,
    /// The directory for snapshots cannot be used; the text says why, after "it".
    Chain(String),
    /// A layer returned an error.
    Layer(Error),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NoLayer => write!(f, "there is no layer: name a lower or an upper directory"),
            Refused::Held(Some(holder)) => write!(f, "the upper layer is in use by {holder}"),
            Refused::Held(None) => write!(f, "the upper layer is in use by another overlay"),
            Refused::ReadOnly => write!(f, "the upper layer is on a read-only filesystem"),
            Refused::OtherFilesystem => write!(f, "the work directory is not on the filesystem of the upper layer"),
            Refused::CannotRename(error) => {
                write!(f, "the filesystem of the upper layer cannot rename files ({error}), which every change needs")
            }
            Refused::Volatile => {
                write!(f, "an overlay with the option volatile has left its mark, so the upper layer may be damaged")
            }
            Refused::KernelFormat(prefix) => write!(
                f,
                "the upper layer is written in the format of the kernel's overlayfs, as its attributes {prefix}* \
                 show, so it cannot be used with format=oci"
            ),
            Refused::OciFormat(marker) => write!(
                f,
                "the upper layer is an OCI image layer, as the name {} in it shows, so it cannot be used with \
                 format=kernel",
                marker.display()
            ),
            Refused::NoWork => write!(
                f,
                "with the format of the kernel's overlayfs, the upper layer needs a work directory beside it, on the \
                 same filesystem (workdir=DIR)"
            ),
            Refused::Indexed => write!(
                f,
                "the work directory has the index of hard links of the kernel's overlayfs (its option index=on), and \
                 this mount would lose it. To do without, remove the directory index from the work directory"
            ),
            Refused::NoMarkers(error, xattrs) => f.write_str(&no_markers(*error, *xattrs)),
            Refused::CannotMark(error) => write!(
                f,
                "the upper layer cannot be written in the format of the kernel's overlayfs ({error}), which needs \
                 extended attributes, renames that exchange and renames that leave a whiteout"
            ),
            Refused::Foreign(name) => {
                let name = name.display();
                write!(
                    f,
                    "{name} is in the work directory, but no overlay made it, and the mount would remove it; name an \
                     empty directory"
                )
            }
            Refused::Feature(unknown) => write!(f, "{unknown}"),
            Refused::Commit(lower) => {
                let what = lower
                    .as_ref()
                    .map_or("of the upper layer".to_owned(), |lower| format!("to the lower layer {}", lower.display()));
                write!(f, "a commit {what} was interrupted; overlayfs-layer commit --resume finishes it")
            }
            Refused::Snapshots => f.write_str(OF_CHAIN),
            Refused::Chain(why) => write!(f, "the directory for snapshots cannot be used: it {why}"),
            Refused::Layer(error) => write!(f, "a layer cannot be used: {error}"),
        }
    }
}

/// Explains [`Refused::Snapshots`].
const OF_CHAIN: &str = "the upper layer belongs to a chain of snapshots, so only a mount that names their directory \
                        (snapshots=DIR) writes to it";

/// Explains a layer that refuses markers. `xattrs` says whether it has extended attributes.
fn no_markers(error: Error, xattrs: bool) -> String {
    let refused =
        format!("the upper layer refuses names that begin with .wh. ({error}), so it seems to lie on another");
    match xattrs {
        false => format!("{refused} overlay; put it on another filesystem"),
        true => format!(
            "{refused} overlay. With a work directory (workdir=DIR) and without format=oci it gets the format of the \
             kernel's overlayfs, if that overlay keeps extended attributes; else put it on another filesystem"
        ),
    }
}

impl std::error::Error for Refused {}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        if error.errno == EROFS { Refused::ReadOnly } else { Refused::Layer(error) }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Layer(error)
            | Refused::CannotRename(error)
            | Refused::NoMarkers(error, _)
            | Refused::CannotMark(error) => error,
            Refused::ReadOnly => Error::new(EROFS),
            Refused::Held(_) => Error::new(EWOULDBLOCK),
            Refused::NoLayer
            | Refused::OtherFilesystem
            | Refused::Volatile
            | Refused::KernelFormat(_)
            | Refused::OciFormat(_)
            | Refused::NoWork
            | Refused::Indexed
            | Refused::Feature(_)
            | Refused::Commit(_)
            | Refused::Snapshots
            | Refused::Chain(_)
            | Refused::Foreign(_) => Error::new(EINVAL),
        }
    }
}

pub struct Work<L: Layer> {
    dir: Arc<LayerDir<L>>,
    /// The work directory's own layer, if it is not inside the upper one. The overlay holds it
    /// until its end.
    layer: Option<L>,
    next: AtomicU64,
    /// Whether the overlay syncs nothing.
    volatile: bool,
    /// Whether the mark of a volatile overlay exists.
    marked: AtomicBool,
    /// The format of the upper layer.
    format: Format,
    times: Times,
    index: Index<L>,
    /// The record as it is on the disk.
    pub(super) record: Lock<Record>,
    /// [`Features::bits`] of the record.
    pub(super) recorded: AtomicU32,
}

impl<L: Layer> Work<L> {
    /// Locks the upper layer of `stack` and the work directory, and sweeps the latter. Also returns
    /// the inode numbers of copies that earlier mounts showed. `below` has the facts and the times
    /// of last change of status of frozen layers; the function adds to these times. `in_chain` says
    /// whether the mount names the chain of the layer.
    ///
    /// # Errors
    ///
    /// Each reason is a variant of [`Refused`].
    pub fn prepare(
        stack: &Stack<L>,
        layer: Option<L>,
        settings: Settings,
        below: (Known, &Ctimes),
        in_chain: bool,
    ) -> std::result::Result<(Self, Claims), Refused> {
        let (Some(upper), Some(root)) = (stack.upper(), stack.upper_root()) else {
            return Err(Refused::NoLayer);
        };
        let root = stack.open(root)?;
        let taken = |is_taken: bool| match is_taken {
            true => Ok(()),
            false => Err(Refused::Held(holder(upper, &root, layer.as_ref()))),
        };
        taken(hold(upper)?)?;
        let known = detect(stack, settings.format)?;
        if layer.is_none() && known.is_kernel() {
            // The kernel would show a work directory inside the upper layer.
            return Err(Refused::NoWork);
        }
        let dir = match &layer {
            Some(layer) => {
                taken(hold(layer)?)?;
                layer.root()?
            }
            None => make_inside(upper, &root)?,
        };
        let place = stack.anchored(0, dir);
        let open = stack.open(&place)?;
        let dir = &*open;
        taken(hold_on_all_hosts(layer.as_ref().unwrap_or(upper), dir)?)?;
        if upper.stat(Object::Dir(dir))?.dev != upper.stat(Object::Dir(&*root))?.dev {
            return Err(Refused::OtherFilesystem);
        }
        let mut left = entries_but_links(upper, dir)?;
        if let Some((name, _)) = left.iter().find(|(name, kind)| !is_ours(name, *kind)) {
            return Err(Refused::Foreign(name.clone()));
        }
        let before = Record::read(upper, dir)?;
        before.iter().try_for_each(|before| check_record(before, settings.commits, in_chain))?;
        let volatile = settings.volatile;
        hand_down_nothing(upper, dir)?;
        check_volatile(upper, dir, settings)?;
        known.check_work(upper, dir)?;
        let times = try_layer(upper, dir)?;
        // A work directory inside the upper layer has a reserved name itself. So that name is
        // possible.
        let known = if layer.is_some() { known.if_possible(upper, dir, settings.format)? } else { known };
        let next = leave_in_use(&mut left, settings.succeeds);
        sweep(stack, &place, &left)?;
        let commits = before.as_ref().is_some_and(|before| before.features.has(Feature::Commit));
        if !commits && left.iter().any(|(name, _)| name == JOURNAL) {
            // The commit did not get as far as to mark the layer.
            upper.unlink(dir, OsStr::new(JOURNAL))?;
        }
        let format = known.ensure_marked(upper, &root, dir)?;
        if volatile {
            mark(upper, dir)?;
        }
        let now = Record::of(stack).map(|now| now.continued(before.as_ref()));
        let same_lowers = matches!((&now, &before), (Ok(now), Some(before)) if now.difference(before).is_none());
        below.1.read(upper, dir);
        let (index, claims) = Index::open(upper, dir, below.0, settings, same_lowers, below.1)?;
        let now = now.map(|now| upgraded(now, stack, format, &index));
        let now = now.and_then(|now| if volatile { Ok(now) } else { without_gone(now, stack, &index) });
        let record = remember(now, before, upper, dir, volatile);
        let (next, marked) = (AtomicU64::new(next), AtomicBool::new(volatile));
        let recorded = AtomicU32::new(record.features.bits());
        let record = Lock::new(record);
        Ok((Work { dir: place, layer, next, volatile, marked, format, times, index, record, recorded }, claims))
    }

    /// The facts about copies that the next mount needs.
    pub fn index(&self) -> &Index<L> {
        &self.index
    }

    /// Whether the overlay syncs nothing.
    pub fn is_volatile(&self) -> bool {
        self.volatile
    }

    /// Whether a new file may be written past the page cache, which saves a sync.
    pub fn writes_through(&self, upper: &L) -> bool {
        !self.volatile && upper.capabilities().write_through
    }

    /// Syncs a file of the upper layer before it gets its name, unless the overlay syncs nothing.
    pub fn sync(&self, upper: &L, file: &L::File) -> Result<()> {
        if self.volatile { Ok(()) } else { upper.sync(file) }
    }

    /// The resolution and range of the upper layer's times.
    pub fn times(&self) -> Times {
        self.times
    }

    /// The format of the upper layer.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Empties the directory, except for the entries that the next mount needs. First syncs
    /// unsynced changes, so that the mark can go.
    pub fn finish(&self, stack: &Stack<L>) -> Result<()> {
        let upper = stack.layer(&self.dir);
        if self.volatile && self.marked.load(Ordering::Acquire) {
            upper.sync_all()?;
        }
        let open = stack.open(&self.dir)?;
        self.index.finish(upper, &open)?;
        sweep(stack, &self.dir, &entries_but_links(upper, &open)?)
    }

    /// Whether the directory is inside the upper layer.
    pub fn is_inside(&self) -> bool {
        self.layer.is_none()
    }

    /// Unlocks the layers that [`Work::prepare`] locked.
    pub fn release(&self, stack: &Stack<L>) -> Result<()> {
        let own = self.layer.as_ref().map_or(Ok(()), L::release);
        own.and(stack.layer(&self.dir).release())
    }

    /// Removes the mark of a volatile overlay: everything is synced.
    pub fn rest(&self, stack: &Stack<L>) -> Result<()> {
        if self.marked.swap(false, Ordering::AcqRel) {
            unmark(stack, &self.dir)?;
        }
        Ok(())
    }

    /// Puts the mark back before the next change.
    pub fn wake(&self, stack: &Stack<L>) -> Result<()> {
        if self.volatile && !self.marked.load(Ordering::Acquire) {
            mark(stack.layer(&self.dir), &*stack.open(&self.dir)?)?;
            self.marked.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Writes down the process that holds the layer. An ending process makes no new record, since
    /// the directory may be about to be removed.
    pub fn sign(&self, stack: &Stack<L>, holder: &Holder) -> Result<()> {
        let upper = stack.layer(&self.dir);
        let (open, name) = (stack.open(&self.dir)?, OsStr::new(HOLDER));
        let file = match upper.open_file(&open, name, Access::ReadWrite) {
            Err(error) if error.errno == ENOENT && holder.ending => return Ok(()),
            Err(error) if error.errno == ENOENT => upper.create_file(&open, name, 0o600, upper.identity())?,
            opened => opened?,
        };
        let record = holder.to_bytes();
        write_all(upper, &file, &record, 0)?;
        upper.truncate(&file, record.len() as u64)
    }

    /// The directory itself.
    pub fn dir(&self) -> &Arc<LayerDir<L>> {
        &self.dir
    }

    /// Returns a free name in the directory.
    pub fn name(&self) -> OsString {
        format!("{TEMP}{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Writes the content of a new file. After a crash the file has that content under its final
    /// name.
    fn fill(&self, upper: &L, file: &L::File, content: &[u8]) -> Result<()> {
        if self.writes_through(upper) {
            match upper.write_through(file, content, 0) {
                Err(error) if error.errno == EOPNOTSUPP => {}
                written => return written.and_then(|()| upper.truncate(file, content.len() as u64)),
            }
        }
        write_all(upper, file, content, 0)?;
        self.sync(upper, file)
    }

    /// Creates a small file that has its whole content when its name appears. Replaces a file of
    /// that name, but leaves it if `content` is empty.
    pub fn place_file(&self, stack: &Stack<L>, dir: &LayerDir<L>, name: &OsStr, content: &[u8]) -> Result<()> {
        let upper = stack.layer(&self.dir);
        let to = stack.open(dir)?;
        if content.is_empty() {
            return ensure_file(upper, &to, name);
        }
        let (work, temp) = (stack.open(&self.dir)?, self.name());
        let file = upper.create_file(&work, &temp, 0o600, upper.identity())?;
        let placed = self
            .fill(upper, &file, content)
            .and_then(|()| upper.rename_file(&file, (&work, &temp), (&to, name), RenameMode::Replace));
        if placed.is_err() {
            discard(upper, &work, &temp);
        }
        placed
    }
}

/// Returns the number in a name that [`Work::name`] made. None: it made no such name.
fn number_of(name: &OsStr) -> Option<u64> {
    u64::from_str_radix(name.to_str()?.strip_prefix(TEMP)?, 16).ok()
}

/// Takes the names of trials out of a list, which are gone. For an overlay that `succeeds` another
/// one it also takes out the files without a name, which are in use. Returns the next free number
/// of a name.
fn leave_in_use(left: &mut Vec<(OsString, Kind)>, succeeds: bool) -> u64 {
    left.retain(|(name, _)| !TRIAL.iter().chain([&TRIAL_MARKER]).any(|trial| name == trial));
    let is_in_use = |entry: &mut (OsString, Kind)| succeeds && entry.1 == Kind::File && number_of(&entry.0).is_some();
    left.extract_if(.., is_in_use).filter_map(|(name, _)| number_of(&name)).max().map_or(0, |number| number + 1)
}

/// Opens the work directory inside the upper layer, and makes it if there is none.
fn make_inside<L: Layer>(upper: &L, root: &L::Dir) -> std::result::Result<L::Dir, Refused> {
    let name = OsStr::new(format::WORK);
    match upper.create_dir(root, name, 0o700, upper.identity()) {
        Err(error) if error.errno == EINVAL => Err(Refused::NoMarkers(error, upper.capabilities().xattrs)),
        Err(error) if error.errno != EEXIST => Err(error.into()),
        _ => Ok(upper.open_dir(root, name)?),
    }
}

/// Refuses an upper layer that this version cannot write to, or that only a mount of its chain may
/// write to.
fn check_record(record: &Record, commits: bool, in_chain: bool) -> std::result::Result<(), Refused> {
    record.check(Need::ReadOnly, commits, None)?;
    if record.features.has(Feature::Snapshots) && !in_chain { Err(Refused::Snapshots) } else { Ok(()) }
}

/// Refuses an upper layer with the mark of a volatile overlay, unless the settings use it.
fn check_volatile<L: Layer>(upper: &L, dir: &L::Dir, settings: Settings) -> std::result::Result<(), Refused> {
    match (is_marked(upper, dir)?, settings.reuse_volatile) {
        (false, _) => {}
        (true, _) if settings.succeeds && settings.volatile => {}
        (true, false) => return Err(Refused::Volatile),
        // An interrupted commit has left the mark, and this one does its work again. Or the layer
        // is to be emptied.
        (true, true) if settings.commits => {}
        (true, true) => log::warn!("the option reuse_volatile mounts the upper layer, though it may be damaged"),
    }
    Ok(())
}

/// Tries whether the layer can rename, and learns the resolution and range of its times. Removes
/// its own trial files and those of an earlier trial, unless the layer cannot rename.
fn try_layer<L: Layer>(upper: &L, dir: &L::Dir) -> std::result::Result<Times, Refused> {
    let [from, to] = TRIAL.map(OsStr::new);
    ensure_file(upper, dir, from)?;
    let times = Times::learn(upper, Object::Entry(dir, from));
    let renamed = upper.rename(dir, from, dir, to, RenameMode::Replace);
    let removed = upper.unlink(dir, if renamed.is_ok() { to } else { from });
    // A layer that cannot rename may not be able to remove either. The reason is the rename.
    renamed.map_err(Refused::CannotRename)?;
    removed?;
    Ok(times)
}

/// Adds the features of the layer to a record. It looks for them in the layer if an earlier version
/// of the overlay wrote that.
fn upgraded<L: Layer>(mut record: Record, stack: &Stack<L>, format: Format, index: &Index<L>) -> Record {
    if !record.is_complete {
        match features::found(stack, format, index.has_links()) {
            Ok(found) => (record.features, record.is_complete) = (record.features.or(found), true),
            Err(error) => log::warn!(
                "cannot find out which features the upper layer needs, so its record does not name them: {error}"
            ),
        }
    }
    if index.keeps_numbers() {
        record.features = record.features.with(Feature::Numbers);
    }
    record
}

/// Takes features out of a record that the layer surely has no more. Syncs the layer first, so that
/// a crash cannot bring them back. The end of a mount could not do this: nothing may change once
/// umount has returned.
fn without_gone<L: Layer>(mut record: Record, stack: &Stack<L>, index: &Index<L>) -> Result<Record> {
    let mut gone = Features::default();
    if !index.has_links() {
        gone = gone.with(Feature::Links);
    }
    if record.features.has(Feature::PartialCopies)
        && let Some(root) = stack.upper_root()
        && kind_of(stack.layer(root), &*stack.open(root)?, OsStr::new(format::PARTS))?.is_none()
    {
        gone = gone.with(Feature::PartialCopies);
    }
    let features = record.features.beyond(gone);
    if features != record.features {
        stack.top().sync_all()?;
    }
    record.features = features;
    Ok(record)
}

/// Logs a change of the lower layers since the last mount, and records the present ones. Returns
/// the record that is on the disk then.
fn remember<L: Layer>(now: Result<Record>, before: Option<Record>, upper: &L, dir: &L::Dir, volatile: bool) -> Record {
    let written = now.and_then(|now| {
        if let Some(difference) = before.as_ref().and_then(|before| now.difference(before)) {
            log::warn!(
                "the upper layer was on other lower layers before: {difference}. Its whiteouts and renames may not \
                 fit these"
            );
        }
        if before.as_ref() != Some(&now) {
            now.write(upper, dir, volatile)?;
        }
        Ok(now)
    });
    written.unwrap_or_else(|error| {
        log::warn!("cannot record the lower layers for the next mount, which cannot compare them: {error}");
        before.unwrap_or_default()
    })
}

/// Returns the process that holds the upper layer at `root`, from the record in its work directory:
/// `layer`, or the one inside.
pub fn holder<L: Layer>(upper: &L, root: &L::Dir, layer: Option<&L>) -> Option<Holder> {
    let read = |owner: &L, dir: &L::Dir| {
        let file = owner.open_file(dir, OsStr::new(HOLDER), Access::Read).ok()?;
        Holder::from_bytes(&read_start(owner, &file, RECORD_MAX).ok()?)
    };
    match layer {
        Some(layer) => read(layer, &layer.root().ok()?),
        None => read(upper, &upper.open_dir(root, OsStr::new(format::WORK)).ok()?),
    }
}

/// Replaces a file of a directory in one step: writes it as `temp`, then renames it. Its content
/// comes in pieces. With `sync` it is on the disk before the rename.
pub fn replace_file<L: Layer>(
    upper: &L,
    dir: &L::Dir,
    (temp, name): (&OsStr, &OsStr),
    mut content: impl Iterator<Item = impl AsRef<[u8]>>,
    sync: bool,
) -> Result<()> {
    let file = upper.create_file(dir, temp, 0o600, upper.identity())?;
    let written = content.try_fold(0, |end, piece| {
        let piece = piece.as_ref();
        write_all(upper, &file, piece, end).map(|()| end + piece.len() as u64)
    });
    let placed = written
        .and_then(|_| if sync { upper.sync(&file) } else { Ok(()) })
        .and_then(|()| upper.rename(dir, temp, dir, name, RenameMode::Replace));
    if placed.is_err() {
        discard(upper, dir, temp);
    }
    placed
}

/// Removes the default ACL of the work directory, which objects built in it would inherit. A copy
/// gets the ACL of its original.
fn hand_down_nothing<L: Layer>(layer: &L, dir: &L::Dir) -> Result<()> {
    let name = OsStr::new(acl::DEFAULT);
    match layer.xattr(Object::Dir(dir), name) {
        Ok(_) => layer.remove_xattr(Object::Dir(dir), name),
        Err(error) if matches!(error.errno, ENODATA | EOPNOTSUPP) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether an overlay made this entry of a work directory, ours or the kernel's.
pub fn is_ours(name: &OsStr, kind: Kind) -> bool {
    const DIRS: [&str; 2] = ["work", "index"];
    let starts = |prefix: &&str| name.as_bytes().starts_with(prefix.as_bytes());
    [TEMP, CTIMES, TRIAL_MARKER, RECORD, JOURNAL].iter().chain(&NAMES).any(starts)
        || kind == Kind::Dir && DIRS.iter().any(|dir| name == *dir)
}

/// Whether the next mount needs the entry `name` of the work directory.
pub fn is_kept(name: &OsStr, kind: Kind) -> bool {
    index::is_kept(name, kind) || kind == Kind::File && [RECORD, JOURNAL, LOCK].iter().any(|kept| name == *kept)
}

/// Returns the entries of a work directory. Leaves out the index entries, which the index reads:
/// there may be a million.
pub fn entries_but_links<L: Layer>(layer: &L, dir: &L::Dir) -> Result<Vec<(OsString, Kind)>> {
    let mut entries = Vec::new();
    layer.list(dir, &mut |entry| {
        if entry.kind == Kind::Dir || !index::is_link(entry.name) {
            entries.push((entry.name.to_owned(), entry.kind));
        }
    })?;
    Ok(entries)
}

/// Removes all of these entries of the work directory that the next mount does not need.
fn sweep<L: Layer>(stack: &Stack<L>, dir: &Arc<LayerDir<L>>, entries: &[(OsString, Kind)]) -> Result<()> {
    let mut swept = entries.iter().filter(|(name, kind)| !is_kept(name, *kind));
    swept.try_for_each(|(name, kind)| remove_tree(stack, dir, name, *kind))
}

/// Removes an object that was built in vain. After a failure the next mount sweeps it.
pub(super) fn discard<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr) {
    warn_of(name, layer.unlink(dir, name));
}

/// Does the same as [`discard`], for an empty directory.
pub(super) fn discard_dir<L: Layer>(layer: &L, dir: &L::Dir, name: &OsStr) {
    warn_of(name, layer.remove_dir(dir, name));
}

/// Renames a built object. `file` is the object itself if it is an open regular file.
pub(super) fn rename_built<L: Layer>(
    layer: &L,
    file: Option<&L::File>,
    (dir, name): (&L::Dir, &OsStr),
    to: (&L::Dir, &OsStr),
    mode: RenameMode,
) -> Result<()> {
    match file {
        Some(file) => layer.rename_file(file, (dir, name), to, mode),
        None => layer.rename(dir, name, to.0, to.1, mode),
    }
}

/// Does the same as [`discard`], for an object of any kind, with the marks in a directory.
pub(super) fn discard_built<L: Layer>(stack: &Stack<L>, dir: &Arc<LayerDir<L>>, name: &OsStr, kind: Kind) {
    warn_of(name, remove_tree(stack, dir, name, kind));
}

fn warn_of(name: &OsStr, removed: Result<()>) {
    if let Err(error) = removed
        && error.errno != ENOENT
    {
        log::warn!("cannot remove {name:?} from the work directory, the next mount does: {error}");
    }
}
