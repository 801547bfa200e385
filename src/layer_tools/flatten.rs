//! `flatten`: makes one directory of several layers.

use std::io::Write;
use std::path::PathBuf;

use super::commit::beside;
use super::open::Paths;
use super::options::{Word, Words};
use super::{Error, Outcome, Tool, Watch};
use crate::options::{self, Options};

/// The subcommand `flatten`.
struct Flatten {
    layers: Options,
    into: PathBuf,
}

/// Parses the options of `flatten`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let (mut layers, mut into) = (Options::default(), None);
    while let Some(word) = words.word()? {
        match &word {
            Word::Option(option) if option == "--into" => into = Some(words.value()?.into()),
            _ => words.take_layers(&word, &mut layers)?,
        }
    }
    layers.check()?;
    layers.read_only = false;
    let into = into.ok_or_else(|| options::Error::new("No directory for the result is given: name it with --into."))?;
    Ok(Box::new(Flatten { layers, into }))
}

impl Tool for Flatten {
    fn run(&self, _out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let paths = Paths::new(&self.layers)?.with_copy(&self.into, self.layers.lowers.len())?;
        match self.layers.upper {
            Some(_) => beside::copy(&paths, watch)?,
            None => beside::flatten(&paths, watch)?,
        }
        Ok(Outcome::Done)
    }
}
