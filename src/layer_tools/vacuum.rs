//! `vacuum`: removes from an upper layer what its lower layers show too, and marks that hide
//! nothing.
//!
//! The merged tree stays as it is. Two facts that no comparison can keep are not compared: the time
//! of last change of status, which no program can set, and the inode number.

use std::io::Write;
use std::iter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::check;
use super::compare::{Side, aspects};
use super::options::{Word, Words, check_upper};
use super::{Error, Outcome, Progress, Tool, Views, Watch, escaped};
use crate::errno::{EINTR, Error as Errno, Result as LayerResult};
use crate::fsck::{Checker, Damage, Finding, Needless};
use crate::layer::{Kind, Layer};
use crate::mount::{self, open_layers};
use crate::options::{self, Options};
use crate::overlay::{Handle, Node, Overlay, Refused};

/// The subcommand `vacuum`.
struct Vacuum {
    layers: Options,
    dry_run: bool,
    ignore_times: bool,
}

/// Parses the options of `vacuum`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut vacuum = Vacuum { layers: Options::default(), dry_run: false, ignore_times: false };
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) if option == "--dry-run" => vacuum.dry_run = true,
            Word::Option(option) if option == "--ignore-times" => vacuum.ignore_times = true,
            _ => words.take_layers(&word, &mut vacuum.layers)?,
        }
    }
    check_upper(&mut vacuum.layers)?;
    Ok(Box::new(vacuum))
}

impl Tool for Vacuum {
    fn run(&self, out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let upper = self.layers.upper.clone().unwrap_or_default();
        let checker = Checker::new(open_layers(&self.layers, !self.dry_run)?);
        let checker = checker.map_err(|cause| self.refused(&upper, cause))?;
        if !self.dry_run {
            check(&checker, &upper)?;
        }
        let views = Views::open_without_numbers(&self.layers, None)?;
        let above = views.above.as_ref().ok_or_else(|| self.refused(&upper, Refused::NoLayer))?;
        for finding in find(&checker, above, self.ignore_times, watch) {
            let finding = finding?;
            writeln!(out, "{} {}", word(&finding), escaped(&finding.path)).map_err(Error::output)?;
            if self.dry_run {
                continue;
            }
            remove(&checker, &finding)?;
            watch.advance(Progress { objects: 1, bytes: 0 });
            if watch.wants_stop() {
                return Err(Error::Stopped);
            }
        }
        out.flush().map_err(Error::output)?;
        Ok(Outcome::Done)
    }
}

impl Vacuum {
    fn refused(&self, upper: &Path, cause: Refused) -> Error {
        mount::Error::Refused { upper: upper.to_owned(), work: self.layers.work.clone(), cause }.into()
    }
}

/// Returns what can go from the upper layer, found one by one while the caller takes them.
/// [`remove`] may remove each before the next is found. `above` is a view of the upper layer on the
/// lower ones. With `ignore_times`, objects are the same if only their times differ.
///
/// An item is an error, and then the last one, for these reasons:
///
/// - [`Error::At`]: an object cannot be read.
/// - [`Error::Stopped`]: `watch` wants to stop.
pub fn find<'f, L: Layer>(
    checker: &'f Checker<L>,
    above: &'f Overlay<L>,
    ignore_times: bool,
    watch: &'f dyn Watch,
) -> impl Iterator<Item = Result<Finding<L>, Error>> + 'f {
    let mut last = (PathBuf::new(), above.open(above.root()));
    let mut needless = Some(Needless::new(checker));
    iter::from_fn(move || {
        let found = needless.as_mut()?.next(&mut |path, old| {
            if watch.wants_stop() {
                return Err(Errno::new(EINTR));
            }
            let new = look_up(above, &mut last, path)?;
            let (old, now) = (Side::new(checker.below(), old)?, Side::new(above, &new)?);
            let is_same = is_same(&old, &now, ignore_times)?;
            above.release(new);
            watch.advance(Progress { objects: 1, bytes: 0 });
            Ok(is_same)
        });
        match found {
            Ok(found) => found.map(Ok),
            Err(error) => {
                needless = None;
                let is_stop = error.errno == EINTR && watch.wants_stop();
                Some(Err(if is_stop { Error::Stopped } else { Error::at("read", &last.0, error) }))
            }
        }
    })
}

/// Removes a finding of [`find`]. After a crash in between, the tree shows the same.
///
/// # Errors
///
/// - [`Error::At`]: a step failed.
pub fn remove<L: Layer>(checker: &Checker<L>, finding: &Finding<L>) -> Result<(), Error> {
    let Some(repair) = &finding.repair else { return Ok(()) };
    checker.repair(repair).map_err(|error| Error::in_tree("remove", &finding.path, error))
}

/// Returns the object at a path. Keeps its directory open in `last`: the next path is mostly in the
/// same one.
fn look_up<L: Layer>(view: &Overlay<L>, last: &mut (PathBuf, Handle<L>), path: &Path) -> LayerResult<Arc<Node<L>>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(view.root().clone()) };
    if last.0 != parent {
        let dir = parent.iter().try_fold(view.root().clone(), |dir, name| view.lookup(&dir, name))?;
        *last = (parent.to_owned(), view.open(&dir));
    }
    view.lookup(last.1.node(), name)
}

fn is_same<L: Layer>(old: &Side<'_, L>, new: &Side<'_, L>, ignore_times: bool) -> LayerResult<bool> {
    let (before, now) = (&old.stat, &new.stat);
    // Every look at a symlink changes its time of last access.
    let same_times = before.mtime == now.mtime && (before.atime == now.atime || now.kind == Kind::Symlink);
    // This costs less than the content.
    let is_like = before.kind == now.kind
        && (before.kind == Kind::Dir || before.nlink == now.nlink)
        && (ignore_times || same_times);
    if !is_like {
        return Ok(false);
    }
    let mut aspects = aspects(old, new)?;
    aspects.times &= !ignore_times;
    Ok(!aspects.any())
}

/// Returns the word for a finding in the listing.
fn word<L: Layer>(finding: &Finding<L>) -> &'static str {
    match finding.damage {
        Damage::HidesNothing => "whiteout",
        Damage::OpaqueOfNothing => "opaque",
        _ => "same",
    }
}
