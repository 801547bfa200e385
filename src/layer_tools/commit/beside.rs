//! Merged copies: the tree of several layers in a new directory, on the layers that stay below.
//!
//! The work directory of a copy says that it is not complete, so no mount uses it. A call that
//! finds such a copy begins it anew.

use std::path::Path;

use super::journal::{Journal, Merged, Phase};
use super::start::{check_names, free_name, make_whole};
use super::{Commit, check_lowers, stacked};
use crate::errno;
use crate::layer::{Kind, Layer, Object};
use crate::layer_tools::apply::Applier;
use crate::layer_tools::open::{Opener, Part};
use crate::layer_tools::paths::PathList;
use crate::layer_tools::{Error, Progress, Views, Watch};
use crate::overlay::on_disk::CompactMap;
use crate::overlay::{Layers, Overlay, Refused, Settings};

/// Makes the merged copy of the upper layer and lower ones ([`Part::Copy`]), and leaves them as
/// they are. Files share their data where the filesystem can do that.
///
/// # Errors
///
/// - [`Error::Layers`]: a layer cannot be opened, or is in use.
/// - [`Error::Refused`]: the directory for the copy is not empty, or the upper layer was on other
///   lower layers.
/// - [`Error::At`]: a step failed. A later call begins the copy anew.
/// - [`Error::Stopped`]: `watch` wants to stop; the same.
pub fn copy<O: Opener>(opener: &O, watch: &dyn Watch) -> Result<(), Error> {
    check_lowers(opener)?;
    // It keeps mounts out, and completes the files.
    let upper = stacked(opener, Part::Upper, Settings::for_walk())?;
    make_whole(&upper)?;
    upper.forget_copies();
    let layers = [opener.open(Part::Above)?, opener.open(Part::Copy)?];
    make(opener, layers, Purpose::Stays, watch)
}

/// Makes the merged copy of lower layers.
///
/// # Errors
///
/// Those of [`copy`].
pub fn flatten<O: Opener>(opener: &O, watch: &dyn Watch) -> Result<(), Error> {
    let layers = [opener.open(Part::Above)?, opener.open(Part::Copy)?];
    make(opener, layers, Purpose::Stays, watch)
}

/// Begins a commit by an exchange. The copy has links to files of the upper layer, which is emptied
/// then. Unless `keeps_old`, it also has links to files of the lower layer that is about to go.
pub(super) fn begin<'a, O: Opener>(
    opener: &'a O,
    keeps_old: bool,
    watch: &'a dyn Watch,
    upper: Overlay<O::Layer>,
) -> Result<Commit<'a, O>, Error> {
    check_names(&upper, &|_| false)?;
    make_whole(&upper)?;
    opener.around()?.make_copy(keeps_old)?;
    let root = upper.stat(upper.root()).map_err(|error| Error::in_tree("read", Path::new(""), error))?;
    let stage = free_name([&upper, &upper]).map_err(|error| Error::in_tree("read", Path::new(""), error))?;
    upper.forget_copies();
    make(opener, opener.open_linkable(Part::Copy)?, Purpose::Exchange { keeps_old }, watch)?;
    let copy = opener.open(Part::Copy)?.upper;
    let copy = copy.ok_or_else(|| opener.refused(Part::Copy, Refused::NoLayer))?;
    let journal = Journal {
        phase: Phase::Exchange,
        stage,
        times: (root.atime, root.mtime),
        copy: Some(Merged { number: number(&copy)?, keeps_old }),
        moves: Vec::new(),
        keeps: PathList::default(),
    };
    let commit = Commit { opener, watch, upper, journal, resumes: false, moved: Vec::new() };
    commit.save()?;
    Ok(commit)
}

/// Whether the merged copy of a commit by an exchange is gone before the exchange. Nothing has
/// happened to the lower layer then.
pub(super) fn is_lost<O: Opener>(opener: &O, journal: &Journal) -> Result<bool, Error> {
    let Some(copy) = journal.copy.filter(|_| journal.phase == Phase::Exchange) else { return Ok(false) };
    let copy = copy.number;
    let first = opener.open(Part::Below)?.lowers.into_iter().next();
    let is_exchanged = first.map(|first| number(&first)).transpose()? == Some(copy);
    Ok(!is_exchanged && !opener.around()?.has_copy(copy)?)
}

/// Returns the inode number of the root of a layer.
fn number<L: Layer>(layer: &L) -> Result<u64, Error> {
    let stat = layer.root().and_then(|root| layer.stat(Object::Dir(&root)));
    stat.map(|stat| stat.ino).map_err(|error| Error::in_tree("read", Path::new(""), error))
}

impl<O: Opener> Commit<'_, O> {
    /// Exchanges the copy with the topmost lower layer, unless that is done.
    pub(super) fn exchange(&mut self) -> Result<(), Error> {
        let lowers = self.opener.open(Part::Below)?.lowers;
        let first = lowers.first().ok_or_else(|| self.opener.refused(Part::Below, Refused::NoLayer))?;
        if Some(number(first)?) != self.journal.copy.map(|copy| copy.number) {
            self.opener.around()?.exchange()?;
        }
        self.journal.phase = Phase::Empty;
        self.save()
    }
}

/// Counts the objects of a tree, and the bytes of its files.
fn total<L: Layer>(tree: &Overlay<L>, watch: &dyn Watch) -> errno::Result<Progress> {
    let (mut total, mut linked) = (Progress { objects: 1, bytes: 0 }, CompactMap::default());
    tree.each_dir(tree.root(), &mut |_, dir| {
        let mut inside = Vec::new();
        tree.each_shown(dir, &mut |name, kind| {
            if watch.wants_stop() {
                return Ok(());
            }
            total.objects += 1;
            if kind == Kind::Dir {
                inside.push(name.clone());
            } else if kind == Kind::File {
                let node = tree.lookup(dir, name)?;
                let stat = tree.stat(&node)?;
                let is_new = stat.nlink < 2 || linked.insert(stat.ino, ()).is_none();
                total.bytes += if is_new { stat.size } else { 0 };
                tree.release(node);
            }
            Ok(())
        })?;
        Ok(inside)
    })?;
    Ok(total)
}

/// The purpose of a copy.
#[derive(Clone, Copy)]
enum Purpose {
    /// It is for the user.
    Stays,
    /// It takes the place of the topmost lower layer, which may stay.
    Exchange { keeps_old: bool },
}

/// Makes a copy in an empty directory, or in one that has a copy that is not complete.
fn make<O: Opener>(
    opener: &O,
    [above, copy]: [Layers<O::Layer>; 2],
    purpose: Purpose,
    watch: &dyn Watch,
) -> Result<(), Error> {
    let failed = |action| move |error: errno::Error| Error::in_tree(action, Path::new(""), error);
    let settings =
        Settings { trusted: true, commits: true, reuse_volatile: true, whole_copies: true, ..Settings::for_walk() };
    // The layers of another overlay are not usable for links, so this one opens its own.
    let former = Overlay::with_settings(opener.open(Part::Copy)?, settings);
    let former = former.map_err(|cause| opener.refused(Part::Copy, cause))?;
    // A copy for an exchange that no journal names is one that was complete before a kill.
    let is_left = former.is_committing().map_err(failed("read the copy at"))?;
    if is_left || matches!(purpose, Purpose::Exchange { .. }) {
        let root = former.stat(former.root()).map_err(failed("read the copy at"))?;
        former.empty_upper((root.atime, root.mtime)).map_err(failed("empty the copy at"))?;
    } else if !former.is_upper_empty().map_err(failed("read the copy at"))? {
        return Err(Error::Refused("the directory for the copy is not empty".to_owned()));
    }
    drop(former);
    let target = Overlay::with_settings(copy, Settings { volatile: true, ..settings });
    let target = target.map_err(|cause| opener.refused(Part::Copy, cause))?;
    target.begin_commit(None).map_err(failed("mark the copy at"))?;
    let views = Views::of_commit(above, opener.open(Part::Rest)?);
    let views = views.map_err(|cause| opener.refused(Part::Above, cause))?;
    let Some(above) = &views.above else { return Err(opener.refused(Part::Above, Refused::NoLayer)) };
    if watch.wants_total() {
        watch.expect(total(above, watch).map_err(failed("read"))?);
    }
    let stage = free_name([above, &target]).map_err(failed("read"))?;
    // The upper layer is emptied after an exchange, and the lower one below it goes.
    let linkable = match purpose {
        Purpose::Stays => 0,
        Purpose::Exchange { keeps_old } => 2 - usize::from(keeps_old),
    };
    let mut applier = Applier::new(&target, above, &stage, watch)?.link_from(linkable);
    views.changes_to_apply(watch, &mut |change| applier.apply(&change))?;
    applier.finish()?;
    let root = above.stat(above.root()).map_err(failed("read"))?;
    let ended = target.sync_upper().and_then(|()| target.leave_no_work((root.atime, root.mtime)));
    ended.and_then(|()| target.sync_upper()).map_err(failed("end the copy at"))
}
