//! The listing of changes: lines for people and for grep(1), records for programs, or JSON.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::compare::{Side, changed_xattrs};
use super::text::ARROW;
use super::tree::fixed;
use super::{Change, ChangeKind, Error, Views, escaped};
use crate::layer::{Kind, Layer};
use crate::overlay::{Node, Overlay};

/// The form of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// A line for each change, with escaped paths.
    #[default]
    Text,
    /// A field with the letter and the words, then the raw paths. Each ends with a zero byte.
    Null,
    /// A JSON object on a line.
    Json,
}

/// A listing that is being written.
pub struct Listing<'l, L: Layer> {
    pub views: &'l Views<L>,
    pub form: Form,
    pub out: &'l mut dyn Write,
}

impl<L: Layer> Listing<'_, L> {
    /// Writes a change.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the object cannot be read, or the output cannot be written.
    pub fn print(&mut self, change: &Change<L>) -> Result<(), Error> {
        let written = match self.form {
            Form::Text => return print_line(self.out, change),
            Form::Null => {
                let mut record = head(change).into_bytes();
                for path in [Some(&*change.path), from(change)].into_iter().flatten() {
                    record.push(0);
                    record.extend(path.as_os_str().as_bytes());
                }
                record.push(0);
                self.out.write_all(&record)
            }
            Form::Json => {
                let object = self.object(change)?;
                writeln!(self.out, "{}", Value::Object(object))
            }
        };
        written.map_err(Error::output)
    }

    fn object(&self, change: &Change<L>) -> Result<Map<String, Value>, Error> {
        let mut object = Map::new();
        let word = match &change.kind {
            ChangeKind::Added => "added",
            ChangeKind::Removed => "removed",
            ChangeKind::Modified => "modified",
            ChangeKind::Renamed { .. } => "renamed",
        };
        object.insert("change".to_owned(), word.into());
        object.insert("aspects".to_owned(), change.aspects.words().collect());
        add_path(&mut object, "path", &change.path);
        if let Some(from) = from(change) {
            add_path(&mut object, "from", from);
        }
        let Views { above, below } = self.views;
        let sides = (below.as_ref().zip(change.old.as_ref()), above.as_ref().zip(change.new.as_ref()));
        if let (true, (Some(old), Some(new))) = (change.aspects.xattrs, sides) {
            let names = Side::new(old.0, old.1).and_then(|old| changed_xattrs(&old, &Side::new(new.0, new.1)?));
            let names = names.map_err(|error| Error::in_tree("read", &change.path, error))?;
            object.insert("xattrs".to_owned(), names.iter().map(|name| name.to_string_lossy()).collect());
        }
        for (key, view, node) in [("old", below, &change.old), ("new", above, &change.new)] {
            if let Some((view, node)) = view.as_ref().zip(node.as_ref()) {
                let facts = facts(view, node).map_err(|error| Error::in_tree("read", &change.path, error))?;
                object.insert(key.to_owned(), facts);
            }
        }
        Ok(object)
    }
}

/// Writes a change as a line for people.
///
/// # Errors
///
/// - [`Error::At`]: the output cannot be written.
pub fn print_line<L: Layer>(out: &mut dyn Write, change: &Change<L>) -> Result<(), Error> {
    writeln!(out, "{}", line_of(change, Path::new(""))).map_err(Error::output)
}

/// Returns a change as a line for people, with paths below `top`.
pub fn line_of<L: Layer>(change: &Change<L>, top: &Path) -> String {
    let below = |path: &Path| if path.as_os_str().is_empty() { escaped(top) } else { escaped(&top.join(path)) };
    let (head, path) = (head(change), below(&change.path));
    match from(change) {
        Some(from) => format!("{head} {path}{ARROW}{}", below(from)),
        None => format!("{head} {path}"),
    }
}

/// Returns the letter of a change, and the kind of the object or the aspects that differ.
fn head<L: Layer>(change: &Change<L>) -> String {
    let kind_of = |node: Option<&Arc<Node<L>>>| node.map_or("-", |node| kind_word(node.kind()));
    let aspects = || match change.aspects.any() {
        true => change.aspects.words().collect::<Vec<_>>().join(","),
        false => "-".to_owned(),
    };
    match &change.kind {
        ChangeKind::Added => format!("A {}", kind_of(change.new.as_ref())),
        ChangeKind::Removed => format!("D {}", kind_of(change.old.as_ref())),
        ChangeKind::Modified => format!("M {}", aspects()),
        ChangeKind::Renamed { .. } => format!("R {}", aspects()),
    }
}

fn from<L: Layer>(change: &Change<L>) -> Option<&Path> {
    match &change.kind {
        ChangeKind::Renamed { from } => Some(from),
        _ => None,
    }
}

/// Returns the word for a kind of objects.
fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDev => "character-device",
        Kind::BlockDev => "block-device",
    }
}

/// Adds a path. JSON has only text, so bytes that are none are added in hexadecimal digits too.
fn add_path(object: &mut Map<String, Value>, key: &str, path: &Path) {
    let bytes = path.as_os_str().as_bytes();
    object.insert(key.to_owned(), path.to_string_lossy().into());
    if str::from_utf8(bytes).is_err() {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        object.insert(format!("{key}_hex"), digits.into());
    }
}

/// Returns the attributes of an object.
fn facts<L: Layer>(view: &Overlay<L>, node: &Arc<Node<L>>) -> crate::errno::Result<Value> {
    let stat = view.stat(node)?;
    let mut facts = json!({
        "kind": kind_word(stat.kind),
        "mode": format!("{:04o}", stat.mode),
        "uid": stat.uid,
        "gid": stat.gid,
        "mtime": format!("{}.{:09}", stat.mtime.sec, stat.mtime.nsec),
        "links": stat.nlink,
    });
    let fixed = fixed(view, node)?;
    if fixed.is_any() {
        let flags = [(fixed.immutable, "immutable"), (fixed.append, "append-only")];
        facts["flags"] = flags.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag)).collect();
    }
    match stat.kind {
        Kind::File => facts["size"] = stat.size.into(),
        Kind::Symlink => facts["target"] = view.read_link(node)?.to_string_lossy().into(),
        Kind::CharDev | Kind::BlockDev => facts["device"] = stat.rdev.into(),
        Kind::Dir | Kind::Fifo | Kind::Socket => {}
    }
    Ok(facts)
}
