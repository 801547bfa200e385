//! `diff`: lists what an upper layer changes, or what differs between two stacks of layers.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::options::{Word, Words, check_upper};
use super::text::ARROW;
use super::{Change, ChangeKind, Error, Outcome, Progress, Renames, Tool, Views, Watch, escaped};
use crate::layer::{Kind, Layer};
use crate::options;
use crate::options::Options;
use crate::overlay::Node;

/// The subcommand `diff`.
struct Diff {
    layers: Options,
    /// The earlier state. Empty: the lower layers.
    from: Vec<PathBuf>,
}

/// Parses the options of `diff`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut diff = Diff { layers: Options::default(), from: Vec::new() };
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) if option == "--from" => diff.from.push(words.value()?.into()),
            _ => words.take_layers(&word, &mut diff.layers)?,
        }
    }
    match diff.from.is_empty() {
        true => check_upper(&mut diff.layers)?,
        false => diff.layers.check()?,
    }
    Ok(Box::new(diff))
}

impl Tool for Diff {
    fn run(&self, out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let from = Some(&*self.from).filter(|from| !from.is_empty());
        let views = Views::open(&self.layers, from)?;
        let watch = Lenient(watch);
        let mut outcome = Outcome::Done;
        views.changes(Renames::Found, &watch, &mut |change| {
            outcome = Outcome::Differs;
            print(out, &change).map_err(Error::output)
        })?;
        out.flush().map_err(Error::output)?;
        Ok(outcome)
    }
}

/// Goes on where a mounted overlay changes the layer meanwhile.
struct Lenient<'w>(&'w dyn Watch);

impl Watch for Lenient<'_> {
    fn expect(&self, all: Progress) {
        self.0.expect(all);
    }

    fn advance(&self, done: Progress) {
        self.0.advance(done);
    }

    fn wants_stop(&self) -> bool {
        self.0.wants_stop()
    }

    fn passes_over(&self, path: &Path) -> bool {
        log::warn!("{} changed while it was read, so it is not listed", escaped(path));
        true
    }
}

/// Prints a change as a line: letter, aspects or kind, path.
pub(super) fn print<L: Layer>(out: &mut dyn Write, change: &Change<L>) -> io::Result<()> {
    let aspects: Vec<_> = change.aspects.words().collect();
    let aspects = if aspects.is_empty() { "-".to_owned() } else { aspects.join(",") };
    let path = escaped(&change.path);
    match &change.kind {
        ChangeKind::Added => writeln!(out, "A {} {path}", kind_of(change.new.as_ref())),
        ChangeKind::Removed => writeln!(out, "D {} {path}", kind_of(change.old.as_ref())),
        ChangeKind::Modified => writeln!(out, "M {aspects} {path}"),
        ChangeKind::Renamed { from } => writeln!(out, "R {aspects} {path}{ARROW}{}", escaped(from)),
    }
}

/// Returns the word for the kind of an object.
fn kind_of<L: Layer>(node: Option<&Arc<Node<L>>>) -> &'static str {
    match node.map_or(Kind::File, |node| node.kind()) {
        Kind::File => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDev => "character-device",
        Kind::BlockDev => "block-device",
    }
}
