//! Changes of names that are written down, and requests that come again after a kill.
//!
//! Before a change the ledger gets what the objects in it will be, and after it what they are. So
//! wherever a kill comes, their places are known.
//!
//! A request that comes again may be performed. The kernel locks the directory before it sends a
//! change of names, until it has the answer. It looks the name up before, and only this mount
//! changes its layers. So a new name that exists was made by the request itself, and a name that is
//! missing was removed by it. Only a rename does not show what it did, so the look into the layers
//! tells (`comeback`).

use std::ffi::OsStr;
use std::sync::Arc;

use overlayfs::errno::{EEXIST, ENOENT, Error, Result};
use overlayfs::layer::{CAPABILITY, Layer, RenameMode};
use overlayfs::overlay::{Handle, Node, Overlay, Place};
use rustix::thread::gettid;

use super::EngineFrontEnd;
use super::nodes::note;
use crate::comeback::{Begun, Ledger};
use crate::front_end::{Caller, NodeEntry, Write};
use crate::wire::RESENT;

/// A change of an object that is under way.
pub(super) struct Changing<'a, L: Layer> {
    overlay: &'a Overlay<L>,
    ledger: Option<&'a Arc<Ledger>>,
    node: &'a Arc<Node<L>>,
}

impl<L: Layer> Drop for Changing<'_, L> {
    fn drop(&mut self) {
        if let Some(ledger) = self.ledger
            && self.overlay.is_nameless(self.node)
        {
            // The note has the attributes. Without them it says that the object is lost.
            if let Err(error) = self.overlay.stat(self.node) {
                log::warn!("the attributes of a file without a name are unknown: {error}");
            }
            note(self.overlay, self.node, ledger);
        }
    }
}

/// A directory and a name in it.
type Name<'a, L> = (&'a Arc<Node<L>>, &'a OsStr);

impl<L: Layer> EngineFrontEnd<L> {
    /// Removes a name by `remove`.
    pub(super) fn removing(
        &self,
        caller: Caller,
        dir: &Arc<Node<L>>,
        name: &OsStr,
        remove: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let lost = self.noted_at((dir, name));
        let removed = self.changing_names(caller, Vec::new(), lost.as_ref(), remove);
        match removed {
            Err(error) if error.errno == ENOENT && caller.asks_again() => Ok(()),
            removed => removed,
        }
    }

    /// Renames an object by `rename`.
    pub(super) fn renaming(
        &self,
        caller: Caller,
        from: Name<'_, L>,
        to: Name<'_, L>,
        mode: RenameMode,
        rename: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if caller.asks_again() && self.killed.performed.contains(&(caller.request & !RESENT)) {
            return Ok(());
        }
        let (moved, there) = (self.noted_at(from), self.noted_at(to));
        let is_exchange = mode == RenameMode::Exchange;
        let mut moves: Vec<_> = moved.iter().map(|node| (node, to)).collect();
        moves.extend(there.iter().filter(|_| is_exchange).map(|node| (node, from)));
        self.changing_names(caller, moves, there.as_ref().filter(|_| !is_exchange), rename)
    }

    /// Gives an object one more name by `link`.
    pub(super) fn linking(
        &self,
        caller: Caller,
        node: &Arc<Node<L>>,
        to: Name<'_, L>,
        link: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let linked = self.changing_names(caller, vec![(node, to)], None, link);
        match linked {
            Err(error) if error.errno == EEXIST && caller.asks_again() => {
                let found = self.call(|| self.overlay.lookup(to.0, to.1))?;
                if Arc::ptr_eq(&found, node) { Ok(()) } else { Err(error) }
            }
            linked => linked,
        }
    }

    /// Returns the object with a name, if the ledger has to know about it.
    fn noted_at(&self, (dir, name): Name<'_, L>) -> Option<Arc<Node<L>>> {
        self.nodes.ledger()?;
        // A layer that does not answer fails the change too.
        let node = self.overlay.lookup(dir, name).ok()?;
        self.nodes.number(&self.overlay, &node).map(|_| node)
    }

    /// Makes a change by which objects get names, and one loses one.
    fn changing_names(
        &self,
        caller: Caller,
        moves: Vec<(&Arc<Node<L>>, Name<'_, L>)>,
        losing: Option<&Arc<Node<L>>>,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(ledger) = self.nodes.ledger() else { return change() };
        let nodes: Vec<_> = moves.iter().map(|(node, _)| *node).chain(losing).collect();
        if nodes.is_empty() {
            return change();
        }
        let place = |(node, (dir, name)): &(&Arc<Node<L>>, Name<'_, L>)| Place {
            id: node.id(),
            ino: self.overlay.asked_number(node).unwrap_or(0),
            parent: dir.id(),
            name: (*name).to_owned(),
        };
        let begun = Begun {
            thread: gettid().as_raw_nonzero().get() as u32,
            request: caller.request,
            moves: moves.iter().map(place).collect(),
            losing: losing.map(|node| self.overlay.note_without_name(node)),
        };
        ledger.write(|page| page.begin(&begun));
        let changed = change();
        nodes.into_iter().for_each(|node| note(&self.overlay, node, ledger));
        changed
    }

    /// Begins a change of an object. At the end of the value the ledger gets what is left of an
    /// object without a name, also if the change failed: it may have copied the object up.
    pub(super) fn changing<'a>(&'a self, node: &'a Arc<Node<L>>) -> Changing<'a, L> {
        Changing { overlay: &self.overlay, ledger: self.nodes.ledger(), node }
    }

    /// Returns the object with a name that a request should make and that exists: if the request
    /// comes again, it has made it before.
    pub(super) fn made_before(
        &self,
        error: Error,
        caller: Caller,
        dir: &Arc<Node<L>>,
        name: &OsStr,
    ) -> Result<NodeEntry> {
        if error.errno != EEXIST || !caller.asks_again() {
            return Err(error);
        }
        self.entry(&self.call(|| self.overlay.lookup(dir, name))?)
    }

    /// Returns how many bytes of a write an append-only file has already, if the request comes
    /// again. A layer would append them once more.
    pub(super) fn appended_before(&self, caller: Caller, file: &Handle<L>, write: &Write<'_>) -> Result<usize> {
        if !caller.asks_again() || !self.overlay.fixed(file.node())?.append {
            return Ok(0);
        }
        let size = self.call(|| self.overlay.stat(file.node()))?.size;
        Ok((size.saturating_sub(write.offset) as usize).min(write.data.len()))
    }

    /// Whether an attribute may be missing since a request has removed it before, or since the
    /// front end of a daemon that was killed said that there was one (`announce`).
    pub(super) fn removed_before(&self, caller: Caller, name: &OsStr) -> bool {
        caller.asks_again() || self.killed.is_before && name == CAPABILITY
    }
}
