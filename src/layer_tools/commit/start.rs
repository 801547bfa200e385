//! The start of a commit: what moves in the lower layer, and whether the layers permit that.

use std::ffi::OsString;
use std::path::Path;

use super::filter::Filter;
use super::journal::{Journal, Move, Phase};
use super::{Commit, stacked};
use crate::errno::{self, ENOENT, ENOTDIR};
use crate::layer::{Kind, Layer};
use crate::layer_tools::apply::unsayable;
use crate::layer_tools::convert::settle;
use crate::layer_tools::open::{Opener, Part};
use crate::layer_tools::paths::PathList;
use crate::layer_tools::tree;
use crate::layer_tools::{Error, Views, Watch, escaped};
use crate::overlay::{Overlay, Redirected, Settings};

/// The name of the stage, unless a tree has that name.
const STAGE: &str = ".overlayfs-commit";

/// Decides what moves, and writes the journal.
pub(super) fn begin<'a, O: Opener>(
    opener: &'a O,
    filter: &Filter,
    watch: &'a dyn Watch,
    upper: Overlay<O::Layer>,
) -> Result<Commit<'a, O>, Error> {
    let keeps = if filter.is_empty() {
        make_whole(&upper)?;
        PathList::default()
    } else {
        settle(&upper, true, watch)?;
        // Only directories are looked up from here on, and there may be a million copies.
        upper.forget_copies();
        let views = Views::of_commit(opener.open(Part::Above)?, opener.open(Part::Below)?);
        filter.kept(&views.map_err(|cause| opener.refused(Part::Above, cause))?, watch)?
    };
    check_names(&upper, &|path| keeps.covers(path))?;
    let redirects = upper.redirects().map_err(|error| Error::in_tree("read", Path::new(""), error))?;
    check_redirects(&upper, &redirects)?;
    let of = |Redirected { at, to, .. }: Redirected| {
        let stat = tree::at(&upper, &at).and_then(|node| upper.stat(&node));
        let stat = stat.map_err(|error| Error::in_tree("read", &at, error))?;
        Ok(Move { from: to, to: at, times: (stat.atime, stat.mtime) })
    };
    let mut moves = redirects.into_iter().map(of).collect::<Result<Vec<_>, Error>>()?;
    moves.sort_by_key(|one| std::cmp::Reverse(one.from.iter().count()));
    let target = stacked(opener, Part::Target, Settings { commits: true, ..Settings::for_walk() })?;
    for Move { from, to, .. } in &moves {
        let movable = tree::at(&target, from).and_then(|node| target.can_move(&node));
        if !movable.map_err(|error| Error::in_tree("find", from, error))? {
            return Err(Error::Refused(format!(
                "{} was renamed to {}, and the format of the lower layer cannot say that; commit with --into, which \
                 copies the directory",
                escaped(from),
                escaped(to)
            )));
        }
    }
    let root = upper.stat(upper.root()).map_err(|error| Error::in_tree("read", Path::new(""), error))?;
    let journal = Journal {
        phase: if moves.is_empty() { Phase::Apply } else { Phase::Take },
        stage: free_name([&upper, &target]).map_err(|error| Error::in_tree("read", Path::new(""), error))?,
        times: (root.atime, root.mtime),
        copy: None,
        moves,
        keeps,
    };
    drop(target);
    let commit = Commit { opener, watch, upper, journal, resumes: false, moved: Vec::new() };
    commit.save()?;
    Ok(commit)
}

/// Checks that the lower layer can have all names of an upper layer, but those that `skips` returns
/// true for.
pub(super) fn check_names<L: Layer>(upper: &Overlay<L>, skips: &dyn Fn(&Path) -> bool) -> Result<(), Error> {
    let found = upper.mark_like(skips).map_err(|error| Error::in_tree("read", Path::new(""), error))?;
    found.map_or(Ok(()), |path| Err(unsayable(&path)))
}

/// Makes an upper layer whole, on the disk.
pub(super) fn make_whole<L: Layer>(upper: &Overlay<L>) -> Result<(), Error> {
    let whole = upper.make_whole().and_then(|()| upper.sync_upper());
    whole.map_err(|error| Error::in_tree("complete the files of", Path::new(""), error))
}

/// Returns a name that neither tree has at its top.
pub(super) fn free_name<L: Layer>(trees: [&Overlay<L>; 2]) -> errno::Result<OsString> {
    let mut number = 0;
    loop {
        let name: OsString = if number == 0 { STAGE.into() } else { format!("{STAGE}-{number}").into() };
        let mut found = false;
        for tree in trees {
            found |= tree.seek(tree.root(), &name)?.is_some();
        }
        if !found {
            return Ok(name);
        }
        number += 1;
    }
}

/// Checks that each redirect leads to a directory, and that the merged tree shows no such directory
/// at another place.
fn check_redirects<L: Layer>(upper: &Overlay<L>, redirects: &[Redirected]) -> Result<(), Error> {
    let damaged = |Redirected { at, to, .. }: &Redirected, what: &str| {
        let (at, to) = (escaped(at), escaped(to));
        Err(Error::Refused(format!("{at} in the upper layer redirects to {to}, {what}; run overlayfs-fsck")))
    };
    for one in redirects {
        if !one.merges {
            return damaged(one, "where the lower layers have no directory");
        }
        // A place of the merged tree that may show the same directory.
        let moved = |other: &Redirected| one.to.strip_prefix(&other.to).ok().map(|rest| other.at.join(rest));
        for place in redirects.iter().filter_map(moved).chain([one.to.clone()]).filter(|place| *place != one.at) {
            let shows = match tree::at(upper, &place) {
                Err(error) if matches!(error.errno, ENOENT | ENOTDIR) => Ok(false),
                Ok(node) if node.kind() == Kind::Dir => upper.merges_with(&node, &one.to),
                found => found.map(|_| false),
            };
            if shows.map_err(|error| Error::in_tree("look at", &place, error))? {
                return damaged(one, "which shows at another place too");
            }
        }
    }
    Ok(())
}
