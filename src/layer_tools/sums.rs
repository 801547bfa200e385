//! The sums of `diff --stat`: how many objects and bytes were added, removed and modified.

use std::io::{self, Write};
use std::sync::Arc;

use serde_json::json;

use super::listing::Form;
use super::{Change, ChangeKind, Error, Views};
use crate::errno;
use crate::layer::{Kind, Layer, Stat};
use crate::overlay::on_disk::CompactMap;
use crate::overlay::{Node, Overlay};

/// Objects, and the bytes of the regular files among them. A file with several names counts its
/// bytes once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    objects: u64,
    bytes: u64,
}

/// The sums so far.
#[derive(Default)]
pub struct Sums {
    added: Sum,
    removed: Sum,
    before: Sum,
    modified: Sum,
    renamed: u64,
    /// The files with several names that were counted, by tree and number.
    met: CompactMap<(u64, bool), ()>,
}

impl Sums {
    /// Counts a change. The content of a removed directory counts too.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: an object cannot be read.
    pub fn add<L: Layer>(&mut self, views: &Views<L>, change: &Change<L>) -> Result<(), Error> {
        let stat = |view: &Option<Overlay<L>>, node: &Option<Arc<Node<L>>>| {
            view.as_ref().zip(node.as_ref()).map(|(view, node)| view.stat(node)).transpose()
        };
        let counted = (|| {
            let (old, new) = (stat(&views.below, &change.old)?, stat(&views.above, &change.new)?);
            match (&change.kind, &views.below, &change.old) {
                (ChangeKind::Removed, Some(below), Some(node)) => return self.add_removed(below, node),
                (ChangeKind::Added, ..) => self.added = self.plus(self.added, true, new),
                (ChangeKind::Renamed { .. }, ..) if !change.aspects.content => self.renamed += 1,
                _ => {
                    self.renamed += u64::from(matches!(change.kind, ChangeKind::Renamed { .. }));
                    self.before = self.plus(self.before, false, old);
                    self.modified = self.plus(self.modified, true, new);
                }
            }
            Ok(())
        })();
        counted.map_err(|error| Error::in_tree("read", &change.path, error))
    }

    /// Returns a sum with one more object.
    fn plus(&mut self, sum: Sum, is_new: bool, stat: Option<Stat>) -> Sum {
        let counts = |stat: &Stat| {
            stat.kind == Kind::File && (stat.nlink < 2 || self.met.insert((stat.ino, is_new), ()).is_none())
        };
        let bytes = stat.filter(counts).map_or(0, |stat| stat.size);
        Sum { objects: sum.objects + 1, bytes: sum.bytes + bytes }
    }

    fn add_removed<L: Layer>(&mut self, below: &Overlay<L>, node: &Arc<Node<L>>) -> errno::Result<()> {
        self.removed = self.plus(self.removed, false, Some(below.stat(node)?));
        if node.kind() != Kind::Dir {
            return Ok(());
        }
        below.each_dir(node, &mut |_, dir| {
            let mut inside = Vec::new();
            below.each_shown(dir, &mut |name, kind| {
                // The walk looks a directory up itself, and its bytes do not count.
                if kind == Kind::Dir {
                    inside.push(name.clone());
                    self.removed.objects += 1;
                    return Ok(());
                }
                let child = below.lookup(dir, name)?;
                self.removed = self.plus(self.removed, false, Some(below.stat(&child)?));
                below.release(child);
                Ok(())
            })?;
            Ok(inside)
        })
    }

    /// Writes the sums.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn print(&self, form: Form, out: &mut dyn Write) -> io::Result<()> {
        let Sums { added, removed, before, modified, renamed, met: _ } = self;
        if form == Form::Json {
            let sum = |sum: &Sum| json!({ "objects": sum.objects, "bytes": sum.bytes });
            let modified =
                json!({ "objects": modified.objects, "bytes": modified.bytes, "bytes_before": before.bytes });
            let all = json!({
                "added": sum(added), "removed": sum(removed), "modified": modified, "renamed": { "objects": renamed },
            });
            return writeln!(out, "{all}");
        }
        writeln!(out, "added {} objects, {} bytes", added.objects, added.bytes)?;
        writeln!(out, "removed {} objects, {} bytes", removed.objects, removed.bytes)?;
        let (objects, bytes, before) = (modified.objects, modified.bytes, before.bytes);
        writeln!(out, "modified {objects} objects, {bytes} bytes, before {before} bytes")?;
        writeln!(out, "renamed {renamed} objects")
    }
}
