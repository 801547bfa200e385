//! The parts of a SETATTR request: size, owner, times.

use std::sync::Arc;

use overlayfs::errno::{EPERM, Result};
use overlayfs::layer::{Kind, Layer, Owner, Time};
use overlayfs::overlay::Node;

use super::{EngineFrontEnd, convert};
use crate::front_end::Caller;
use crate::wire::{SetattrIn, set};

/// Whether a request sets one of these fields.
pub fn is_set(change: &SetattrIn, field: u32) -> bool {
    change.valid & field != 0
}

impl<L: Layer> EngineFrontEnd<L> {
    pub(super) fn set_size(&self, caller: Caller, node: &Arc<Node<L>>, change: &SetattrIn) -> Result<()> {
        self.drop_set_id(node, is_set(change, set::KILL_SUIDGID).then_some(caller))?;
        // With the size that the file has, truncate(2) changes no times, and the kernel keeps those
        // that it knows.
        if is_set(change, set::MTIME) || self.call(|| self.overlay.stat(node))?.size != change.size {
            self.call(|| self.overlay.truncate(node, change.size))?;
        }
        Ok(())
    }

    pub(super) fn set_owner(&self, caller: Caller, node: &Arc<Node<L>>, change: &SetattrIn) -> Result<()> {
        let before = self.overlay.stat(node)?;
        let given = |field, id| is_set(change, field).then_some(id);
        let (uid, gid) = self.settings.identity.to_set(given(set::UID, change.uid), given(set::GID, change.gid))?;
        let owner = Owner { uid: uid.unwrap_or(before.uid), gid: gid.unwrap_or(before.gid) };
        if node.kind() != Kind::Symlink {
            self.drop_set_id(node, Some(caller))?;
        }
        self.call(|| self.overlay.set_owner(node, owner))
    }

    pub(super) fn set_times(&self, number: u64, node: &Arc<Node<L>>, change: &SetattrIn) -> Result<()> {
        let before = self.overlay.times_at_rest(node)?;
        let now = Time::now();
        let chosen = |field, field_now, given, before| match (is_set(change, field), is_set(change, field_now)) {
            (false, _) => before,
            (true, true) => now,
            (true, false) => given,
        };
        let asked = convert::time(change.mtime, change.mtimensec);
        let times = self.overlay.times();
        let given = convert::time(change.atime, change.atimensec);
        let atime = times.kept(chosen(set::ATIME, set::ATIME_NOW, given, before.0));
        let mtime = times.kept(chosen(set::MTIME, set::MTIME_NOW, asked, before.1));
        // The kernel writes back the times of every inode that it drops, even if the inode only
        // lost a name.
        if (atime, mtime) != before {
            match self.call(|| self.overlay.set_times(node, atime, mtime)) {
                // The layer has already dated an append-only file as the kernel does.
                Err(error) if error.errno == EPERM && !is_set(change, set::ATIME) && self.is_append_only(node) => {}
                set => set?,
            }
        }
        if self.settings.writeback
            && is_set(change, set::MTIME)
            && node.kind() == Kind::File
            && asked != mtime
            && let Some(notifier) = self.notifier.get()
        {
            self.misdated.add(notifier, number);
        }
        Ok(())
    }
}
