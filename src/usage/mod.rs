//! The options of each program as people read them. One table for each program is the source of its
//! `--help`, of the option lists in its manual page, and of its completions for shells.
//! `scripts/pages` writes the last two, and `tests/pages` compares them.
//!
//! The parsers take the names that they suggest for an unknown one from these tables too.

pub mod fsck;
pub mod overlayfs;

/// How wide `--help` is, and where its explanations begin.
const WIDTH: usize = 100;
const INDENT: usize = 26;

/// A program, its options in the order in which they are shown.
#[derive(Debug)]
pub struct Program {
    pub name: &'static str,
    /// What it is, in a few words without a full stop.
    pub about: &'static str,
    /// The forms of its command line, without the name.
    pub forms: &'static [&'static str],
    /// What `--help` says before the options.
    pub before: &'static str,
    pub groups: &'static [Group],
    /// What `--help` says behind the options.
    pub after: &'static str,
}

/// Options that belong together.
#[derive(Debug)]
pub struct Group {
    pub title: &'static str,
    pub options: &'static [Explained],
}

/// An option, or a few that are explained together. In the sentences, what a user types and what a
/// call answers stands in backticks.
#[derive(Debug)]
pub struct Explained {
    /// As a user writes it: `lowerdir=DIR[:DIR ...]`. A name in capitals is a value to fill in. A
    /// comma and a space part two options.
    pub form: &'static str,
    /// What it does.
    pub brief: &'static str,
    /// What only the manual says of it.
    pub more: &'static str,
}

/// An entry of a table, with nothing more for the manual.
pub const fn option(form: &'static str, brief: &'static str) -> Explained {
    Explained { form, brief, more: "" }
}

impl Program {
    /// What `--help` prints.
    pub fn help(&self) -> String {
        let mut help = format!("{}: {}\n\n", self.name, self.about);
        for (i, form) in self.forms.iter().enumerate() {
            let first = if i == 0 { "Usage: " } else { "       " };
            wrap(&mut help, first, &format!("{} {form}", self.name), "           ");
        }
        paragraph(&mut help, self.before);
        for group in self.groups {
            help.push_str(&format!("\n{}:\n", group.title));
            for option in group.options {
                option.help(&mut help);
            }
        }
        paragraph(&mut help, self.after);
        help
    }

    /// The names of all options: `-v`, `--verbose` for a word of the command line, `lowerdir` for
    /// an item behind `-o`.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.groups.iter().flat_map(|group| group.options).flat_map(Explained::forms).map(|(name, _)| name)
    }

    /// The words that begin with two dashes.
    pub fn long_words(&self) -> Vec<&'static str> {
        self.names().filter(|name| name.starts_with("--")).collect()
    }
}

impl Explained {
    fn help(&self, help: &mut String) {
        let indent = " ".repeat(INDENT);
        let form = format!("  {}", self.form);
        if self.brief.is_empty() {
            wrap(help, "  ", &self.form.replace(", ", " "), "  ");
        } else if form.len() < INDENT {
            wrap(help, &format!("{form:INDENT$}"), &plain(self.brief), &indent);
        } else {
            help.push_str(&form);
            help.push('\n');
            wrap(help, &indent, &plain(self.brief), &indent);
        }
    }

    /// The name of each option, and what stands behind it.
    pub fn forms(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.form.split(", ").map(|form| form.split_at(form.find(['=', ' ']).unwrap_or(form.len())))
    }
}

/// Sentences without the marks of what is typed.
fn plain(sentences: &str) -> String {
    sentences.replace('`', "")
}

fn paragraph(help: &mut String, sentences: &str) {
    if !sentences.is_empty() {
        help.push('\n');
        wrap(help, "", &plain(sentences), "");
    }
}

/// Adds lines of at most [`WIDTH`] columns: the first begins with `first`, the others with
/// `indent`.
fn wrap(to: &mut String, first: &str, text: &str, indent: &str) {
    let mut line = first.to_owned();
    let mut is_first_word = true;
    for word in text.split(' ') {
        if !is_first_word {
            if line.len() + 1 + word.len() > WIDTH {
                to.push_str(&line);
                to.push('\n');
                line = indent.to_owned();
            } else {
                line.push(' ');
            }
        }
        line.push_str(word);
        is_first_word = false;
    }
    to.push_str(&line);
    to.push('\n');
}
