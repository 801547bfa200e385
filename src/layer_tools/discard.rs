//! `discard`: throws away all changes of an upper layer.

use std::io::Write;

use super::commit::discard;
use super::open::Paths;
use super::options::{Words, check_upper};
use super::{Error, Outcome, Tool, Watch};
use crate::options::{self, Options};

/// The subcommand `discard`.
struct Discard(Options);

/// Parses the options of `discard`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut layers = Options::default();
    while let Some(word) = words.word()? {
        words.take_layers(&word, &mut layers)?;
    }
    check_upper(&mut layers)?;
    Ok(Box::new(Discard(layers)))
}

impl Tool for Discard {
    fn run(&self, _out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        discard(&Paths::new(&self.0)?, watch).map(|()| Outcome::Done)
    }
}
