//! `commit`: merges the upper layer into the topmost lower one.
//!
//! Until the upper layer is emptied, it lies on the lower layer and hides what differs. So the
//! merged tree stays as it is while the lower layer changes, and a commit that was interrupted goes
//! on from a new comparison. Only a renamed directory needs more: the upper layer names its old
//! place. The journal lists these, and they move first (`Phase`).
//!
//! The steps are those of the engine, on two overlays: the upper layer on the lower ones, and the
//! topmost lower one, the *target*, on those below it.
//!
//! | file | subject |
//! | --- | --- |
//! | `start` | the decisions at the start |
//! | `moves` | renamed directories |
//! | `beside` | merged copies: `--into`, `--atomic`, and `flatten` |
//! | `journal` | the journal |

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::apply::{Applier, set_attributes};
use super::listing::print_line;
use super::open::{Opener, Part, Paths};
use super::options::{Word, Words, check_upper};
use super::paths::PathList;
use super::{Error, Outcome, Progress, Renames, Tool, Views, Watch};
use crate::fsck::Checker;
use crate::layer::Layer;
use crate::options;
use crate::options::Options;
use crate::overlay::on_disk::{Counts, stack_of, survey};
use crate::overlay::{Layers, Node, Overlay, Refused, Settings};

pub mod beside;
mod filter;
mod journal;
mod moves;
mod start;

pub use filter::Filter;
use journal::{Journal, Phase};

/// The subcommand `commit`.
#[derive(Default)]
struct Tooled {
    layers: Options,
    dry_run: bool,
    into: Option<PathBuf>,
    choice: Choice,
}

/// The choices of a commit.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Only go on with a commit that was interrupted.
    pub resume: bool,
    /// Make a merged copy beside the topmost lower layer, and exchange the two in one step.
    pub atomic: bool,
    /// Keep the former lower layer after the exchange.
    pub keep_old: bool,
    /// Commit only some changes.
    pub filter: Filter,
}

/// Parses the options of `commit`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut commit = Tooled::default();
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) if option == "--dry-run" => commit.dry_run = true,
            Word::Option(option) if option == "--resume" => commit.choice.resume = true,
            Word::Option(option) if option == "--atomic" => commit.choice.atomic = true,
            Word::Option(option) if option == "--keep-old" => commit.choice.keep_old = true,
            Word::Option(option) if option == "--include" => commit.choice.filter.include(&words.value()?)?,
            Word::Option(option) if option == "--exclude" => commit.choice.filter.exclude(&words.value()?)?,
            Word::Option(option) if option == "--into" => commit.into = Some(words.value()?.into()),
            _ => words.take_layers(&word, &mut commit.layers)?,
        }
    }
    check_upper(&mut commit.layers)?;
    let Choice { resume, atomic, keep_old, ref filter } = commit.choice;
    if keep_old && !atomic {
        return Err(options::Error::new("--keep-old needs --atomic."));
    }
    if commit.into.is_some() && (resume || atomic) {
        return Err(options::Error::new("--into is for a copy, so --resume and --atomic mean nothing with it."));
    }
    if !filter.is_empty() && (resume || atomic || commit.into.is_some()) {
        return Err(options::Error::new("--include and --exclude are for a new commit in place."));
    }
    Ok(Box::new(commit))
}

impl Tool for Tooled {
    fn run(&self, out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let paths = if self.dry_run { Paths::new(&self.layers)? } else { Paths::for_commit(&self.layers)? };
        match &self.into {
            _ if self.dry_run && self.choice.filter.is_empty() => {
                check_lowers(&paths)?;
                Views::open(&self.layers, None)?
                    .changes(Renames::Found, watch, &mut |change| print_line(out, &change))?
            }
            _ if self.dry_run => {
                check_lowers(&paths)?;
                let views = Views::open_without_numbers(&self.layers, None)?;
                let keeps = self.choice.filter.kept(&views, watch)?;
                views.changes(Renames::Resolved, watch, &mut |change| match keeps.covers(&change.path) {
                    true => Ok(()),
                    false => print_line(out, &change),
                })?;
            }
            Some(into) => beside::copy(&paths.with_copy(into, 1)?, watch)?,
            None => {
                if self.choice.atomic {
                    paths.check_exchange()?;
                }
                commit(&paths, &self.choice, watch)?;
            }
        }
        Ok(Outcome::Done)
    }
}

/// Merges the upper layer into the topmost lower one, or goes on with that. The layers must not be
/// in use. The merged tree stays as it is; a commit that ended has emptied the upper layer.
///
/// # Errors
///
/// - [`Error::Layers`]: a layer cannot be opened, or is in use.
/// - [`Error::Refused`]: the upper layer is damaged or was on other lower layers, there is no
///   commit to go on with, or that one does not keep the former layer as `choice` wants.
/// - [`Error::At`]: a step failed. A later call goes on.
/// - [`Error::Stopped`]: `watch` wants to stop. A later call goes on.
pub fn commit<O: Opener>(opener: &O, choice: &Choice, watch: &dyn Watch) -> Result<(), Error> {
    check_lowers(opener)?;
    let upper = stacked(opener, Part::Upper, Settings { commits: true, ..Settings::for_walk() })?;
    let mut commit = match find_journal(&upper)? {
        Begun::No if choice.resume => {
            return Err(Error::Refused("no commit of the upper layer was interrupted".to_owned()));
        }
        Begun::No if choice.atomic => beside::begin(opener, choice.keep_old, watch, upper)?,
        Begun::No => start::begin(opener, &choice.filter, watch, upper)?,
        Begun::Ended => return end(&upper),
        Begun::Yes(journal) if choice.keep_old && !journal.keeps_old() => {
            return Err(Error::Refused(
                "a commit that does not keep the former lower layer was interrupted, so --keep-old comes too late; end \
                 it with commit --resume"
                    .to_owned(),
            ));
        }
        Begun::Yes(journal) if beside::is_lost(opener, &journal)? => {
            beside::begin(opener, journal.keeps_old(), watch, upper)?
        }
        Begun::Yes(journal) => Commit { opener, watch, upper, journal, resumes: true, moved: Vec::new() },
    };
    loop {
        match commit.journal.phase {
            Phase::Take => commit.take()?,
            Phase::Put => commit.put()?,
            Phase::Apply => commit.apply()?,
            Phase::Exchange => commit.exchange()?,
            Phase::Empty => return commit.empty(),
            Phase::Discard => return commit.discard(),
        }
    }
}

/// Checks that the upper layer was mounted last on these lower layers, since its deletions and
/// renames mean nothing on others. A commit that has begun has changed them itself.
///
/// # Errors
///
/// - [`Error::Refused`]: it was on others.
/// - [`Error::Layers`]: a layer cannot be read.
pub fn check_lowers<O: Opener>(opener: &O) -> Result<(), Error> {
    let checker = match Checker::new(opener.open(Part::Above)?) {
        Err(Refused::Commit(_)) => return Ok(()),
        checker => checker.map_err(|cause| opener.refused(Part::Above, cause))?,
    };
    checker.other_layers().map_or(Ok(()), |difference| {
        Err(Error::Refused(format!(
            "the upper layer was mounted last on other lower layers: {difference}; mount it once on these if they are \
             the right ones"
        )))
    })
}

/// Throws away all changes of the upper layer. From the journal on, in one step, they are gone, and
/// the merged tree is that of the lower layers. An interrupted commit must go on first.
///
/// # Errors
///
/// - [`Error::Layers`]: a layer cannot be opened, or is in use.
/// - [`Error::Refused`]: a commit of the upper layer was interrupted.
/// - [`Error::At`]: a step failed. A later call goes on.
pub fn discard<O: Opener>(opener: &O, watch: &dyn Watch) -> Result<(), Error> {
    let upper = stacked(opener, Part::Upper, Settings { commits: true, reuse_volatile: true, ..Settings::for_walk() })?;
    let journal = match find_journal(&upper)? {
        Begun::Ended => return end(&upper),
        Begun::Yes(journal) if journal.phase == Phase::Discard => journal,
        Begun::Yes(_) => {
            return Err(Error::Refused(
                "a commit of the upper layer was interrupted, and the lower layer has a part of the changes; end it \
                 with commit --resume"
                    .to_owned(),
            ));
        }
        Begun::No => {
            let below = stacked(opener, Part::Below, Settings::for_walk())?;
            let root = below.stat(below.root()).map_err(|error| Error::in_tree("read", Path::new(""), error))?;
            let times = (root.atime, root.mtime);
            Journal {
                phase: Phase::Discard,
                stage: OsString::new(),
                times,
                copy: None,
                moves: Vec::new(),
                keeps: PathList::default(),
            }
        }
    };
    let commit = Commit { opener, watch, upper, journal, resumes: true, moved: Vec::new() };
    commit.save()?;
    commit.discard()
}

/// Work that has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// A commit of the layer.
    Commit,
    /// A discard of the layer.
    Discard,
    /// A commit of another layer into this one, or one that lacks only its last step.
    Into,
}

impl Unfinished {
    /// Returns what a layer with the mark of a commit is in. `journal` is the start of its journal,
    /// empty if there is none.
    pub(super) fn of(journal: &[u8]) -> Self {
        match Journal::phase_of(journal) {
            _ if journal.is_empty() => Unfinished::Into,
            Some(Phase::Discard) => Unfinished::Discard,
            _ => Unfinished::Commit,
        }
    }
}

/// Whether an earlier call began a commit.
enum Begun {
    No,
    Yes(Journal),
    /// It has ended but for the mark of the layer.
    Ended,
}

fn find_journal<L: Layer>(upper: &Overlay<L>) -> Result<Begun, Error> {
    let read = |error| Error::in_tree("read the journal in the work directory of", Path::new(""), error);
    if !upper.is_committing().map_err(read)? {
        return Ok(Begun::No);
    }
    let Some(bytes) = upper.journal().map_err(read)? else { return Ok(Begun::Ended) };
    Journal::from_bytes(&bytes).map(Begun::Yes).ok_or_else(|| {
        Error::Refused(
            "the journal of the commit is damaged, or another version of overlayfs-layer wrote it".to_owned(),
        )
    })
}

/// Removes the mark of a commit that has ended.
fn end<L: Layer>(upper: &Overlay<L>) -> Result<(), Error> {
    let ended = match upper.is_upper_empty() {
        Ok(false) => upper.end_commit(),
        empty => empty.and_then(|_| upper.leave_empty()),
    };
    ended.map_err(|error| Error::in_tree("end the commit of", Path::new(""), error))
}

/// Opens a stack of layers as an overlay.
fn stacked<O: Opener>(opener: &O, part: Part, settings: Settings) -> Result<Overlay<O::Layer>, Error> {
    stack(opener, part, opener.open(part)?, settings)
}

/// Makes an overlay of the layers of a part.
fn stack<O: Opener>(
    opener: &O,
    part: Part,
    layers: Layers<O::Layer>,
    settings: Settings,
) -> Result<Overlay<O::Layer>, Error> {
    let settings = Settings { trusted: true, ..settings };
    Overlay::with_settings(layers, settings).map_err(|cause| opener.refused(part, cause))
}

/// A commit that has begun.
struct Commit<'a, O: Opener> {
    opener: &'a O,
    watch: &'a dyn Watch,
    /// The upper layer on all lower ones. It holds the upper layer.
    upper: Overlay<O::Layer>,
    journal: Journal,
    /// Whether an earlier call began it.
    resumes: bool,
    /// The renamed directories. Known before the first of them moves: a later lookup would read
    /// directories of the lower layer that have moved.
    moved: Vec<Arc<Node<O::Layer>>>,
}

impl<O: Opener> Commit<'_, O> {
    /// Writes the journal. The upper layer takes part in no mount from the first time on.
    fn save(&self) -> Result<(), Error> {
        let saved = self.upper.begin_commit(Some(&mut self.journal.pieces()));
        saved.map_err(|error| Error::in_tree("write the journal of", Path::new(""), error))
    }

    /// Goes to the next phase, once everything before is on the disk.
    fn go_on(&mut self, target: &Overlay<O::Layer>, phase: Phase) -> Result<(), Error> {
        let synced = target.sync_upper().and_then(|()| self.upper.sync_upper());
        synced.map_err(|error| Error::in_tree("sync", Path::new(""), error))?;
        self.journal.phase = phase;
        self.save()
    }

    /// Opens the target, and marks it.
    fn target(&self, volatile: bool) -> Result<Overlay<O::Layer>, Error> {
        self.target_of(self.opener.open(Part::Target)?, volatile)
    }

    /// Makes the target of these layers, and marks it.
    fn target_of(&self, layers: Layers<O::Layer>, volatile: bool) -> Result<Overlay<O::Layer>, Error> {
        let settings = Settings { commits: true, volatile, reuse_volatile: self.resumes, ..Settings::for_walk() };
        // A copy in part would need its work directory.
        let settings = Settings { whole_copies: true, ..settings };
        let target = stack(self.opener, Part::Target, layers, settings)?;
        target.begin_commit(None).map_err(|error| Error::in_tree("mark", Path::new(""), error))?;
        Ok(target)
    }

    /// Makes all other changes.
    fn apply(&mut self) -> Result<(), Error> {
        self.upper.forget_copies();
        let [above, target] = self.opener.open_linkable(Part::Target)?;
        let target = &self.target_of(target, true)?;
        let views = Views::of_commit(above, self.opener.open(Part::Below)?);
        let views = views.map_err(|cause| self.opener.refused(Part::Above, cause))?;
        let Some(above) = &views.above else { return Err(self.opener.refused(Part::Above, Refused::NoLayer)) };
        // An opaque directory that stays whole keeps its files, which the next mount may write to.
        let linkable = usize::from(self.journal.keeps.is_empty());
        if self.watch.wants_total() {
            let counted = survey(stack_of(&self.upper), None);
            let Counts { directories, files, symlinks, others, deletions, bytes, .. } =
                counted.map_err(|error| Error::in_tree("read", Path::new(""), error))?.counts;
            // The root counts too.
            let objects = 1 + directories + files + symlinks + others + deletions;
            self.watch.expect(Progress { objects, bytes });
        }
        let mut applier = Applier::new(target, above, &self.journal.stage, self.watch)?.link_from(linkable);
        views.changes_to_apply(self.watch, &mut |change| match self.journal.keeps.covers(&change.path) {
            true => Ok(()),
            false => applier.apply(&change),
        })?;
        applier.finish()?;
        self.go_on(target, Phase::Empty)
    }

    /// Empties the upper layer, which is committed or not wanted.
    fn empty_upper(&self) -> Result<(), Error> {
        let emptied = self.upper.empty_upper(self.journal.times).and_then(|()| self.upper.sync_upper());
        emptied.map_err(|error| Error::in_tree("empty the upper layer at", Path::new(""), error))
    }

    /// Removes from the upper layer what is committed.
    fn thin_out(self) -> Result<Self, Error> {
        let Commit { opener, watch, upper, journal, resumes, moved } = self;
        // It has read lower directories as they were before.
        drop((upper, moved));
        let upper = stacked(opener, Part::Upper, Settings { commits: true, ..Settings::for_walk() })?;
        upper.forget_copies();
        let below = stacked(opener, Part::Below, Settings { commits: true, ..Settings::for_walk() })?;
        let thinned = upper.thin_out(&below, journal.times, &|path| journal.keeps.covers(path));
        let thinned = thinned.and_then(|()| upper.sync_upper());
        thinned.map_err(|error| Error::in_tree("remove the committed changes from", Path::new(""), error))?;
        Ok(Commit { opener, watch, upper, journal, resumes, moved: Vec::new() })
    }

    /// Ends a discard. The root gets the attributes that it has in the lower layers.
    fn discard(self) -> Result<(), Error> {
        let below = stacked(self.opener, Part::Below, Settings { commits: true, ..Settings::for_walk() })?;
        set_attributes((&below, below.root()), (&self.upper, self.upper.root()))
            .map_err(|error| Error::in_tree("set the attributes of", Path::new(""), error))?;
        self.empty_upper()?;
        end(&self.upper)
    }

    /// Empties the upper layer, then removes the work directory of the target and the journal.
    fn empty(mut self) -> Result<(), Error> {
        if self.journal.keeps.is_empty() {
            self.empty_upper()?;
        } else {
            self = self.thin_out()?;
        }
        // A merged copy has none any more.
        if self.journal.copy.is_none() {
            let left = self.target(false)?.leave_no_work(self.journal.times);
            left.map_err(|error| Error::in_tree("remove the work directory of", Path::new(""), error))?;
        }
        self.opener.around()?.clean(self.journal.keeps_old())?;
        end(&self.upper)
    }
}
