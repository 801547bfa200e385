//! The end of a run: a summary of the changes, and what happens to them.

use overlayfs::layer_tools;
use overlayfs::layer_tools::choice::{Choice, ask};
use overlayfs::layer_tools::summary::{Summary, diff_command, list, quoted};
use overlayfs::options::Options;

use super::commit::{Left, commit};
use super::store::{Part, Store};
use super::unfinished;

/// Returns the layers of a part.
pub fn options_of(part: &Part) -> Options {
    Options { lowers: vec![part.lower.clone()], upper: Some(part.upper.clone()), ..Options::default() }
}

/// The changes of a run.
#[derive(Default)]
struct Changes {
    /// The parts that have changes.
    parts: Vec<Part>,
    summary: Summary,
}

impl Changes {
    fn of(parts: Vec<Part>, all_ids: bool) -> Result<Self, layer_tools::Error> {
        let mut changes = Self::default();
        for part in parts {
            let before = changes.summary.count;
            changes.summary.add(&options_of(&part), &part.lower, all_ids)?;
            if changes.summary.count > before {
                changes.parts.push(part);
            }
        }
        Ok(changes)
    }
}

/// Returns the command that lists the changes of a part.
fn diff(part: &Part) -> String {
    diff_command(&options_of(part))
}

/// Shows the changes, and does with them what the choice says.
///
/// # Errors
///
/// - A sentence says what failed. The changes stay.
pub fn end(store: &Store, choice: Choice, all_ids: bool) -> Result<(), String> {
    let stay = |cause: &dyn std::fmt::Display| {
        format!("The changes stay in {}, since they cannot be read: {cause}.", store.dir.display())
    };
    unfinished::clear(&store.dir).map_err(|error| {
        format!("What an interrupted commit left cannot be removed, see {}: {error}.", store.dir.display())
    })?;
    let parts = store.parts().map_err(|error| stay(&error))?;
    let Changes { parts, summary } = match Changes::of(parts, all_ids) {
        Ok(changes) => changes,
        // What is thrown away need not be readable.
        Err(_) if choice == Choice::Discard => return discard(store),
        Err(error) => return Err(stay(&error)),
    };
    if summary.count == 0 {
        eprintln!("Nothing changed.");
        return store.remove();
    }
    eprint!("{}", summary.text(&parts.iter().map(diff).collect::<Vec<_>>()));
    match if choice == Choice::Ask { ask(|| list_all(&parts, all_ids)) } else { choice } {
        Choice::Discard => discard(store),
        Choice::Commit => commit_all(store, &parts, all_ids),
        Choice::Keep | Choice::Ask => {
            keep(store, &parts);
            Ok(())
        }
    }
}

fn discard(store: &Store) -> Result<(), String> {
    store.remove()?;
    eprintln!("The changes are discarded.");
    Ok(())
}

/// Tells where the changes are, and how to go on.
fn keep(store: &Store, parts: &[Part]) {
    let dir = quoted(&store.dir);
    eprintln!("The changes are kept in {dir}. These commands go on:");
    for part in parts {
        eprintln!("  {}", diff(part));
    }
    eprintln!("  overlayfs-fuse run --upper {dir} -- COMMAND");
    eprintln!("  overlayfs-fuse run --upper {dir} --commit");
    eprintln!("  overlayfs-fuse run --upper {dir} --discard");
}

/// Lists all changes.
fn list_all(parts: &[Part], all_ids: bool) {
    for part in parts {
        if let Err(error) = list(&options_of(part), &part.lower, all_ids) {
            eprintln!("The changes of {} cannot be read: {error}.", part.lower.display());
        }
    }
}

/// Makes the changes in the lower directories. Those that the caller may not make stay.
fn commit_all(store: &Store, parts: &[Part], all_ids: bool) -> Result<(), String> {
    let mut left: Vec<Left> = Vec::new();
    for part in parts {
        let committed = commit(part, all_ids, &store.dir);
        left.extend(committed.map_err(|error| {
            format!(
                "The commit failed, and goes on with overlayfs-fuse run --upper {} --commit: {error}.",
                quoted(&store.dir)
            )
        })?);
    }
    if left.is_empty() {
        store.remove()?;
        eprintln!("The changes are committed.");
        return Ok(());
    }
    eprintln!("These changes could not be committed:");
    for Left { path, cause } in &left {
        let text = cause.to_string();
        // The standard library appends the number.
        let cause = text.split_once(" (os error").map_or(&*text, |(clause, _)| clause);
        eprintln!("  {}: {cause}", layer_tools::escaped(path));
    }
    eprintln!("All others are committed.");
    keep(store, parts);
    Err("Not all changes are committed.".to_owned())
}
