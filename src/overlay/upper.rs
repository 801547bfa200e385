//! How deletions, opaque marks and redirects are written to the upper layer.
//!
//! The formats differ in one thing that the order of steps depends on. In the native format the whiteout of a name is a marker beside it,
//! so it is there before the name goes, and goes after the name has come. In the kernel's format the whiteout has the name itself: it
//! takes the place of what goes, and what comes takes its place, each in the one step that is seen.

use std::ffi::OsStr;
use std::path::PathBuf;

use syscall::error::{E2BIG, ENOENT, ENOSPC, ERANGE, EXDEV, Error};

use super::Overlay;
use super::names::Names;
use super::node::Dir;
use super::stack::LayerDir;
use super::trust::Way;
use super::work::{discard, discard_dir, entries, rename_built};
use crate::format::kernel::{self, Namespace};
use crate::format::{self, Format};
use crate::layer::{Kind, Layer, Object, RenameMode, Result, XattrMode};

impl<L: Layer> Overlay<L> {
    /// Whether the whiteout of a name is beside it, not in its place.
    pub(super) fn whiteouts_beside(&self) -> bool {
        self.format() == Format::Oci
    }

    /// Whether a name can neither be created nor looked up.
    pub(super) fn is_reserved(&self, name: &OsStr) -> bool {
        self.format() == Format::Oci && format::is_reserved(name)
    }

    /// Whether a directory that lower layers have can be renamed: the kernel follows no redirects in the attributes of users.
    pub(super) fn can_redirect(&self) -> bool {
        self.redirects && self.format() != Format::Kernel(Namespace::User)
    }

    /// Creates the whiteout of `name`. Where it has the name itself, that must be free.
    pub(super) fn add_whiteout(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        let (upper, work) = self.upper()?;
        match self.format() {
            Format::Oci => {
                let marker = format::whiteout(name, self.name_max);
                work.place_file(&self.stack, dir, &marker.name, &marker.content)
            }
            Format::Kernel(_) => {
                let open = self.stack.open(dir)?;
                upper.create_node(&open, name, Kind::CharDev, 0, 0, upper.identity())
            }
        }
    }

    /// Removes the whiteout of `name`.
    pub(super) fn remove_whiteout(&self, dir: &LayerDir<L>, name: &OsStr) -> Result<()> {
        let (upper, _) = self.upper()?;
        let open = self.stack.open(dir)?;
        let removed = match self.format() {
            Format::Oci => upper.unlink(&open, &format::whiteout(name, self.name_max).name),
            Format::Kernel(_) => upper.unlink(&open, name),
        };
        match removed {
            Err(error) if error.errno != ENOENT => Err(error),
            _ => Ok(()),
        }
    }

    /// Before the visible step of an operation: sees to it that what was put into `dir` for it, now or by an operation that failed, is not
    /// missing if a crash leaves the step.
    pub(super) fn settle_names(&self, dir: &mut Dir<L>) -> Result<()> {
        if !dir.unsettled {
            return Ok(());
        }
        self.settle_dir(&*self.known_upper(dir)?)?;
        dir.unsettled = false;
        Ok(())
    }

    /// As [`Overlay::settle_names`], of a directory of the upper layer that something was put into just now.
    pub(super) fn settle_dir(&self, dir: &LayerDir<L>) -> Result<()> {
        let (upper, work) = self.upper()?;
        if upper.capabilities().ordered || work.is_volatile() {
            return Ok(());
        }
        upper.sync_dir(&*self.stack.open(dir)?)
    }

    /// Where whiteouts have the names themselves: puts one in the place of an object, in one step. A directory must be empty.
    pub(super) fn replace_by_whiteout(&self, dir: &L::Dir, name: &OsStr, kind: Kind) -> Result<()> {
        let (upper, work) = self.upper()?;
        let (open, temp) = (self.stack.open(work.dir())?, work.name());
        upper.create_node(&open, &temp, Kind::CharDev, 0, 0, upper.identity())?;
        let mode = if kind == Kind::Dir { RenameMode::Exchange } else { RenameMode::Replace };
        if let Err(error) = upper.rename(&open, &temp, dir, name, mode) {
            discard(upper, &open, &temp);
            return Err(error);
        }
        if kind == Kind::Dir {
            discard_dir(upper, &open, &temp);
        }
        Ok(())
    }

    /// Puts what is complete under the name `temp` of the work directory in its place, in one step: a name that is free but for its
    /// whiteout, if that has the name. A regular file may be open as `file`.
    pub(super) fn put(
        &self,
        (temp, file): (&OsStr, Option<&L::File>),
        dir: &L::Dir,
        name: &OsStr,
        kind: Kind,
        over_whiteout: bool,
    ) -> Result<()> {
        let (upper, work) = self.upper()?;
        let open = self.stack.open(work.dir())?;
        let mode = if over_whiteout { RenameMode::Replace } else { RenameMode::NoReplace };
        match (over_whiteout, kind) {
            (true, Kind::Dir) => {
                upper.rename(&open, temp, dir, name, RenameMode::Exchange)?;
                discard(upper, &open, temp);
                Ok(())
            }
            _ => rename_built(upper, file, (&open, temp), (dir, name), mode),
        }
    }

    /// Gives a directory that is built in the work directory the opaque mark.
    pub(super) fn build_opaque(&self, work: &L::Dir, temp: &OsStr) -> Result<()> {
        let (upper, _) = self.upper()?;
        match self.format() {
            Format::Oci => {
                let made = upper.open_dir(work, temp)?;
                upper.create_file(&made, OsStr::new(format::OPAQUE), 0o600, upper.identity()).map(drop)
            }
            Format::Kernel(namespace) => mark(upper, Object::Entry(work, temp), namespace, kernel::OPAQUE),
        }
    }

    /// Gives a directory the opaque mark, unless it has it.
    pub(super) fn set_opaque(&self, dir: &mut Dir<L>) -> Result<()> {
        if dir.opaque {
            return Ok(());
        }
        let (upper, work) = self.upper()?;
        let own = self.known_upper(dir)?;
        match self.format() {
            Format::Oci => work.place_file(&self.stack, &own, OsStr::new(format::OPAQUE), &[])?,
            Format::Kernel(namespace) => mark(upper, Object::Dir(&*self.stack.open(&own)?), namespace, kernel::OPAQUE)?,
        }
        (dir.opaque, dir.unsettled) = (true, true);
        Ok(())
    }

    /// Gives a directory a redirect to this path. EXDEV where the path does not fit into an attribute.
    pub(super) fn set_redirect(&self, dir: &mut Dir<L>, path: PathBuf) -> Result<()> {
        let (upper, work) = self.upper()?;
        let content = format::redirect_content(&path);
        let own = self.known_upper(dir)?;
        match self.format() {
            Format::Oci => work.place_file(&self.stack, &own, OsStr::new(format::REDIRECT), &content)?,
            Format::Kernel(namespace) => {
                let open = self.stack.open(&own)?;
                mark(upper, Object::Dir(&*open), namespace, (kernel::REDIRECT, &content)).map_err(|error| {
                    if matches!(error.errno, ENOSPC | ERANGE | E2BIG) { Error::new(EXDEV) } else { error }
                })?;
            }
        }
        (dir.redirect, dir.unsettled) = (Some(Way { path, author: None }), true);
        Ok(())
    }

    /// Removes the markers or whiteouts in a directory of the upper layer in which nothing is visible, in an order in which none that is left
    /// lets anything show. Where whiteouts are beside the names, the directory has one beside it, or no lower layer has its name.
    pub(super) fn remove_markers(&self, dir: &mut Dir<L>) -> Result<()> {
        let (upper, _) = self.upper()?;
        let whiteouts = dir.names.as_ref().is_none_or(Names::has_whiteouts);
        let marked = self.whiteouts_beside() && (dir.opaque || dir.redirect.is_some() || dir.foreign);
        if !whiteouts && !marked {
            return Ok(());
        }
        let own = self.known_upper(dir)?;
        let open = self.stack.open(&own)?;
        let mut markers = entries(upper, &open)?;
        markers.sort_by_key(|(name, _)| match name.to_str() {
            Some(format::REDIRECT) => 0,
            Some(format::OPAQUE) => 1,
            _ => 2,
        });
        if !markers.is_empty() {
            if !self.whiteouts_beside() && !dir.lowers.is_empty() {
                self.set_opaque(dir)?;
            }
            // From here on the table is older than the layer, should the next step fail: then what is left is read anew. It merges with
            // nothing.
            dir.names = None;
            dir.lowers.clear();
        }
        for (name, _) in markers {
            upper.unlink(&open, &name)?;
        }
        Ok(())
    }
}

fn mark<L: Layer>(upper: &L, object: Object<'_, L>, namespace: Namespace, (name, value): (&str, &[u8])) -> Result<()> {
    upper.set_xattr(object, &namespace.name(name), value, XattrMode::Set)
}
