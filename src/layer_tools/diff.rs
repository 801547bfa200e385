//! `diff`: lists what an upper layer changes, or what differs between two stacks of layers.

use std::io::Write;
use std::path::PathBuf;

use super::content::print_content;
use super::listing::{Form, Listing};
use super::options::{Word, Words, check_upper};
use super::sums::Sums;
use super::{Error, Lenient, Outcome, Renames, Tool, Views, Watch};
use crate::options::{self, Options};

/// The subcommand `diff`.
#[derive(Default)]
struct Diff {
    layers: Options,
    /// The earlier state. Empty: the lower layers.
    from: Vec<PathBuf>,
    form: Form,
    /// Show the lines that differ too.
    content: bool,
    /// Show only sums.
    stat: bool,
}

/// Parses the options of `diff`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut diff = Diff::default();
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) => match option.as_str() {
                "--from" => diff.from.push(words.value()?.into()),
                "--json" => diff.form = Form::Json,
                "-0" => diff.form = Form::Null,
                "--content" => diff.content = true,
                "--stat" => diff.stat = true,
                _ => words.take_layers(&word, &mut diff.layers)?,
            },
            Word::Value(_) => words.take_layers(&word, &mut diff.layers)?,
        }
    }
    diff.check()?;
    Ok(Box::new(diff))
}

impl Diff {
    fn check(&mut self) -> Result<(), options::Error> {
        if self.content && (self.stat || self.form != Form::Text) {
            return Err(options::Error::new(
                "--content has no effect with --stat, --json or -0: leave one of them out.",
            ));
        }
        if self.stat && self.form == Form::Null {
            return Err(options::Error::new("--stat and -0 are both given: leave one of them out."));
        }
        match self.from.is_empty() {
            true => check_upper(&mut self.layers),
            false => self.layers.check(),
        }
    }
}

impl Tool for Diff {
    fn run(&self, out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let from = Some(&*self.from).filter(|from| !from.is_empty());
        let views = Views::open(&self.layers, from)?;
        let mut listing = Listing { views: &views, form: self.form, out };
        let (mut sums, mut outcome) = (Sums::default(), Outcome::Done);
        views.changes(Renames::Found, &Lenient(watch), &mut |change| {
            outcome = Outcome::Differs;
            if self.stat {
                return sums.add(&views, &change);
            }
            listing.print(&change)?;
            if self.content { print_content(&views, &change, listing.out) } else { Ok(()) }
        })?;
        if self.stat {
            sums.print(self.form, listing.out).map_err(Error::output)?;
        }
        listing.out.flush().map_err(Error::output)?;
        Ok(outcome)
    }
}
