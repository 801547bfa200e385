//! The lines that differ in a file, as diff(1) prints them with `-u`.

use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::Duration;

use similar::TextDiff;

use super::{Change, ChangeKind, Error, Views, escaped};
use crate::errno::Result as LayerResult;
use crate::layer::{Kind, Layer};
use crate::overlay::{Node, Overlay};

/// The size up to which the lines of a file are compared.
const SIZE_MAX: u64 = 4 << 20;
/// The start of a file that tells whether it is text.
const START: usize = 8 << 10;
/// The time after which the comparison of two files becomes coarse.
const PATIENCE: Duration = Duration::from_secs(2);

/// The content of an object.
enum Text {
    /// The lines; none for an object without content.
    Lines(Vec<u8>),
    /// No text, or too much.
    Other,
}

/// Writes the lines that differ. Says so if the content is no text, or too large.
///
/// # Errors
///
/// - [`Error::At`]: the object cannot be read, or the output cannot be written.
pub fn print_content<L: Layer>(views: &Views<L>, change: &Change<L>, out: &mut dyn Write) -> Result<(), Error> {
    let is_content = change.aspects.content || change.aspects.kind;
    if !is_content && !matches!(change.kind, ChangeKind::Added | ChangeKind::Removed) {
        return Ok(());
    }
    let read = |view: &Option<Overlay<L>>, node: &Option<Arc<Node<L>>>| match view.as_ref().zip(node.as_ref()) {
        Some((view, node)) => text(view, node),
        None => Ok(Text::Lines(Vec::new())),
    };
    let texts = read(&views.below, &change.old).and_then(|old| Ok((old, read(&views.above, &change.new)?)));
    let written = match texts.map_err(|error| Error::in_tree("read", &change.path, error))? {
        (Text::Lines(old), Text::Lines(new)) => {
            let from = match &change.kind {
                ChangeKind::Renamed { from } => from,
                _ => &change.path,
            };
            let (before, now) = (format!("before/{}", escaped(from)), format!("now/{}", escaped(&change.path)));
            let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(&*old, &*new);
            diff.unified_diff().header(&before, &now).to_writer(out)
        }
        _ => writeln!(out, "The content is binary or has more than {} MiB.", SIZE_MAX >> 20),
    };
    written.map_err(Error::output)
}

/// Returns the content of an object.
fn text<L: Layer>(view: &Overlay<L>, node: &Arc<Node<L>>) -> LayerResult<Text> {
    let bytes = match node.kind() {
        Kind::File => {
            let size = view.stat(node)?.size;
            if size > SIZE_MAX {
                return Ok(Text::Other);
            }
            let mut bytes = vec![0; size as usize];
            let length = view.read_at(&view.open(node), &mut bytes, 0)?;
            bytes.truncate(length);
            bytes
        }
        Kind::Symlink => view.read_link(node)?.into_vec(),
        _ => Vec::new(),
    };
    let is_text = !bytes[..bytes.len().min(START)].contains(&0);
    Ok(if is_text { Text::Lines(bytes) } else { Text::Other })
}
