//! The summary of the changes that a program made in an overlay, for its user.

use std::fmt::Write;
use std::path::Path;

use super::{Change, ChangeKind, Error, Lenient, Renames, Views, line_of};
use crate::layer::{Kind, Layer};
use crate::options::Options;

/// How many changes the summary has. The commands that list all follow.
const SHOWN: usize = 20;

/// Leaves out of a change what no program meant. Returns whether anything is left.
///
/// - A directory in which names change has another time then.
/// - Without root's ids the layers show owners that the caller can neither see nor set.
/// - A command cannot set flags. The copy of an object with some may lack them.
pub fn meant<L: Layer>(change: &mut Change<L>, all_ids: bool) -> bool {
    if change.kind != ChangeKind::Modified {
        return true;
    }
    let is_dir = change.new.as_ref().is_some_and(|new| new.kind() == Kind::Dir);
    change.aspects.owner &= all_ids;
    change.aspects.flags = false;
    change.aspects.times &= !is_dir;
    change.aspects.any()
}

/// The changes in some upper layers, as lines.
#[derive(Debug, Default)]
pub struct Summary {
    /// The first changes.
    lines: Vec<String>,
    /// How many changes there are.
    pub count: usize,
}

impl Summary {
    /// Adds the changes in the upper layer of `layers`. Their paths are shown below `place`.
    ///
    /// # Errors
    ///
    /// Those of reading the layers.
    pub fn add(&mut self, layers: &Options, place: &Path, all_ids: bool) -> Result<(), Error> {
        Views::open(layers, None)?.changes(Renames::Found, &Lenient(&()), &mut |mut change| {
            if meant(&mut change, all_ids) {
                self.count += 1;
                if self.lines.len() < SHOWN {
                    self.lines.push(line_of(&change, place));
                }
            }
            Ok(())
        })
    }

    /// Returns the text for the user. `listings` are commands that list all changes.
    pub fn text(&self, listings: &[String]) -> String {
        let mut text = match self.count {
            1 => "One change:\n".to_owned(),
            count => format!("{count} changes:\n"),
        };
        for line in &self.lines {
            // A String takes every write.
            let _ = writeln!(text, "  {line}");
        }
        if self.count > self.lines.len() {
            let _ = writeln!(text, "  and {} more. All of them are listed by:", self.count - self.lines.len());
            for listing in listings {
                let _ = writeln!(text, "  {listing}");
            }
        }
        text
    }
}

/// Prints all changes in the upper layer of `layers` to standard error, as [`Summary::add`] shows
/// some.
///
/// # Errors
///
/// Those of reading the layers.
pub fn list(layers: &Options, place: &Path, all_ids: bool) -> Result<(), Error> {
    Views::open(layers, None)?.changes(Renames::Found, &Lenient(&()), &mut |mut change| {
        if meant(&mut change, all_ids) {
            eprintln!("  {}", line_of(&change, place));
        }
        Ok(())
    })
}

/// Returns a path as one word of a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.chars().all(|letter| letter.is_alphanumeric() || "/._-+%".contains(letter)) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Returns the command that lists the changes in the upper layer of `layers`.
pub fn diff_command(layers: &Options) -> String {
    let lowers = layers.lowers.iter().map(|lower| ("--lower", lower));
    let named = lowers.chain(layers.upper.iter().map(|upper| ("--upper", upper)));
    let words = named.map(|(option, path)| format!(" {option} {}", quoted(path)));
    format!("overlayfs-layer diff{}", words.collect::<String>())
}
