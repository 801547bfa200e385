//! `info`: tells what an upper layer is, what it was stacked on, and what it contains.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::commit::Unfinished;
use super::options::{Word, Words};
use super::{Error, Outcome, Tool, Watch, escaped};
use crate::layer::Layer;
use crate::mount::open_layers;
use crate::options::{self, Options};
use crate::overlay::Layers;
use crate::overlay::on_disk::{Need, Stack, Survey, hold, survey};

/// The subcommand `info`.
struct Info {
    layers: Options,
    json: bool,
}

/// Parses the options of `info`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut info = Info { layers: Options::default(), json: false };
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) if option == "--json" => info.json = true,
            _ => words.take_layers(&word, &mut info.layers)?,
        }
    }
    info.layers.read_only = false;
    match info.layers.upper {
        Some(_) => Ok(Box::new(info)),
        None => Err(options::Error::new("No upper directory is given: name it with --upper.")),
    }
}

impl Tool for Info {
    fn run(&self, out: &mut dyn Write, _watch: &dyn Watch) -> Result<Outcome, Error> {
        let layers = open_layers(&self.layers, false)?;
        let path = self.layers.upper.clone().unwrap_or_default();
        let (survey, is_held) = look(layers).map_err(|cause| Error::at("read", &path, cause))?;
        let written = match self.json {
            true => writeln!(out, "{}", object(&survey, is_held)),
            false => print(&survey, is_held, &path, out),
        };
        written.and_then(|()| out.flush()).map_err(Error::output)?;
        Ok(Outcome::Done)
    }
}

/// Surveys an upper layer, and looks whether an overlay holds it. For that it locks the layer for a
/// moment.
///
/// # Errors
///
/// Those of the layers.
pub fn look<L: Layer>(layers: Layers<L>) -> crate::errno::Result<(Survey, bool)> {
    let Layers { upper, work, lowers } = layers;
    let stack = Stack::new(upper.into_iter().chain(lowers).collect(), true)?;
    let is_free = hold(stack.top())?;
    if is_free {
        stack.top().release()?;
    }
    Ok((survey(&stack, work.as_ref())?, !is_free))
}

fn print(survey: &Survey, is_held: bool, path: &Path, out: &mut dyn Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| writeln!(out, "{:16}{value}", format!("{name}:"));
    line("upper layer", &escaped(path))?;
    line("format", &format_of(survey))?;
    match (is_held, &survey.holder) {
        (true, Some(holder)) => line("in use", &format!("by {holder}"))?,
        (true, None) => line("in use", "by an overlay")?,
        (false, _) => line("in use", "no")?,
    }
    match &survey.record {
        Some(record) => {
            line("features", &or_none(record.all_features().map(|(_, name)| name.to_owned()).collect()))?;
            for lower in record.lower_paths() {
                line("stacked on", &if lower.as_os_str().is_empty() { "unknown".to_owned() } else { escaped(lower) })?;
            }
        }
        None => line("features", "unknown: the layer has no record")?,
    }
    if let Some(difference) = &survey.difference {
        line("now", difference)?;
    }
    let counts = &survey.counts;
    line("directories", &counts.directories.to_string())?;
    line("files", &format!("{} with {} bytes", counts.files, counts.bytes))?;
    line("symlinks", &counts.symlinks.to_string())?;
    line("other objects", &counts.others.to_string())?;
    line("disk space", &format!("{} bytes", counts.allocated))?;
    line("deletions", &counts.deletions.to_string())?;
    line("opaque", &format!("{} directories", counts.opaque))?;
    line("redirected", &format!("{} directories", counts.redirects))?;
    line("partial copies", &counts.partial_copies.to_string())?;
    line("unknown marks", &counts.unknown.to_string())?;
    line("leftovers", &survey.leftovers.to_string())?;
    match (survey.is_volatile, is_held) {
        (true, true) => line("volatile", "yes: nothing is synced before the end")?,
        (true, false) => line("volatile", "a volatile overlay did not end well, so data may be lost")?,
        (false, _) => {}
    }
    match survey.journal.as_deref().map(Unfinished::of) {
        Some(_) if is_held => line("unfinished", "a commit or discard, which goes on now"),
        Some(Unfinished::Commit) => line("unfinished", "a commit was interrupted; commit --resume goes on with it"),
        Some(Unfinished::Discard) => line("unfinished", "a discard was interrupted; discard goes on with it"),
        Some(Unfinished::Into) => {
            line("unfinished", "a commit into this layer was interrupted; commit --resume of the upper one goes on")
        }
        None => Ok(()),
    }
}

fn format_of(survey: &Survey) -> String {
    match survey.namespace {
        Some(namespace) => format!("kernel, with the attributes {}*", namespace.prefix()),
        None => "oci".to_owned(),
    }
}

fn or_none(words: Vec<String>) -> String {
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn object(survey: &Survey, is_held: bool) -> Value {
    let counts = &survey.counts;
    let features = |wanted: Need| -> Vec<_> {
        let all = survey.record.iter().flat_map(|record| record.all_features());
        all.filter(|(need, _)| *need == wanted).map(|(_, name)| name).collect()
    };
    let holder = survey.holder.as_ref().filter(|_| is_held).map(
        |holder| json!({ "process": holder.process, "place": holder.place.to_string_lossy(), "ending": holder.ending }),
    );
    let record = survey.record.as_ref().map(|record| {
        let lowers: Vec<_> = record.lower_paths().map(|path| path.to_string_lossy()).collect();
        json!({
            "incompatible": features(Need::Incompatible),
            "read_only": features(Need::ReadOnly),
            "compatible": features(Need::Compatible),
            "lowers": lowers,
        })
    });
    json!({
        "format": if survey.namespace.is_some() { "kernel" } else { "oci" },
        "attributes": survey.namespace.map(|namespace| namespace.prefix()),
        "in_use": is_held,
        "holder": holder,
        "record": record,
        "difference": survey.difference,
        "directories": counts.directories,
        "files": counts.files,
        "symlinks": counts.symlinks,
        "others": counts.others,
        "bytes": counts.bytes,
        "allocated": counts.allocated,
        "deletions": counts.deletions,
        "opaque": counts.opaque,
        "redirects": counts.redirects,
        "partial_copies": counts.partial_copies,
        "unknown": counts.unknown,
        "leftovers": survey.leftovers,
        "volatile": survey.is_volatile,
        "unfinished": survey.journal.as_deref().map(|journal| match Unfinished::of(journal) {
            Unfinished::Commit => "commit",
            Unfinished::Discard => "discard",
            Unfinished::Into => "commit-into",
        }),
    })
}
