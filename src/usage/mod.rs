//! The options of each program, in the text for users. One table for each program is the source of
//! its `--help`, of the option lists in its manual page, and of its shell completions.
//! `scripts/pages` writes the last two, and `tests/pages` compares them.
//!
//! For an unknown option the parsers suggest names from these tables.

pub mod fsck;
pub mod layer;
pub mod overlayfs;

/// The width of `--help`, and the column at which explanations begin.
const WIDTH: usize = 100;
const INDENT: usize = 26;

/// A program. It lists its options in the order of the table.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// A short description without a full stop.
    pub about: &'static str,
    /// The forms of its command line, without the name.
    pub forms: &'static [&'static str],
    /// The text of `--help` before the options.
    pub before: &'static str,
    /// Its subcommands, each with its effect as a sentence.
    pub commands: &'static [(&'static str, &'static str)],
    /// Its options.
    pub groups: &'static [Group],
    /// The text of `--help` behind the options.
    pub after: &'static str,
}

/// A group of options under a title.
#[derive(Debug)]
pub struct Group {
    /// The heading above them.
    pub title: &'static str,
    /// The options, in the order in which they are shown.
    pub options: &'static [Explained],
}

/// An option, or a few with one explanation. In the sentences, backticks mark input of a user and
/// results of a call.
#[derive(Debug)]
pub struct Explained {
    /// The form in which a user writes it: `lowerdir=DIR[:DIR ...]`. A name in capitals stands for
    /// a value. A comma and a space separate two options.
    pub form: &'static str,
    /// The effect of the option.
    pub brief: &'static str,
    /// More sentences, for the manual page alone.
    pub more: &'static str,
}

/// Makes an entry without more sentences for the manual page.
pub const fn option(form: &'static str, brief: &'static str) -> Explained {
    Explained { form, brief, more: "" }
}

/// The items after `-o` of the tools for layers: those of the mount, of which only the layers
/// count.
const ITEMS: Group = Group {
    title: "Items of the list after -o",
    options: &[
        option("lowerdir=DIR[:DIR ...]", "As `--lower` for each of the directories."),
        option("lowerdir+=DIR", "As `--lower`. A colon is part of the path."),
        option("upperdir=DIR", "As `--upper`."),
        option("workdir=DIR", "As `--work`."),
        option(
            "ro, rw, volatile, reuse_volatile, whole_copies, userxattr, redirect_dir=on|off|follow, \
             on_exit=preserve|discard|commit|commit-atomic",
            "Accepted without effect.",
        ),
    ],
};

impl Program {
    /// Returns the text of `--help`.
    pub fn help(&self) -> String {
        let mut help = format!("{}: {}\n\n", self.name, self.about);
        for (i, form) in self.forms.iter().enumerate() {
            let first = if i == 0 { "Usage: " } else { "       " };
            wrap(&mut help, first, &format!("{} {form}", self.name), "           ");
        }
        paragraph(&mut help, self.before);
        if !self.commands.is_empty() {
            help.push_str("\nCommands:\n");
        }
        for (name, effect) in self.commands {
            wrap(&mut help, &format!("  {name:0$}", INDENT - 2), effect, &" ".repeat(INDENT));
        }
        for group in self.groups {
            help.push_str(&format!("\n{}:\n", group.title));
            for option in group.options {
                option.help(&mut help);
            }
        }
        paragraph(&mut help, self.after);
        help
    }

    /// Returns the names of all options: `-v`, `--verbose` for a word of the command line,
    /// `lowerdir` for an item behind `-o`.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.groups.iter().flat_map(Group::names)
    }

    /// Returns the words that begin with two dashes.
    pub fn long_words(&self) -> Vec<&'static str> {
        self.groups.iter().flat_map(Group::long_words).collect()
    }
}

impl Group {
    /// Returns the names of its options, as [`Program::names`] does.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.options.iter().flat_map(Explained::forms).map(|(name, _)| name)
    }

    /// Returns the words that begin with two dashes.
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

    /// Returns the name of each option, and the text behind it.
    pub fn forms(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.form.split(", ").map(|form| form.split_at(form.find(['=', ' ']).unwrap_or(form.len())))
    }
}

/// Removes the backticks from sentences.
fn plain(sentences: &str) -> String {
    sentences.replace('`', "")
}

fn paragraph(help: &mut String, sentences: &str) {
    if !sentences.is_empty() {
        help.push('\n');
        wrap(help, "", &plain(sentences), "");
    }
}

/// Adds lines of at most [`WIDTH`] columns. The first begins with `first`, the others with
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
