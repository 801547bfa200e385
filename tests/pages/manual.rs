//! The options of a program in mdoc(7), the language of the manual pages.

use overlayfs::usage::{Explained, Program};
use overlayfs_fuse::options::REFUSED;

/// The generated options stand between these lines of a page.
const BEGIN: &str = ".\\\" The options, as scripts/pages writes them.\n";
const END: &str = ".\\\" The end of the options.\n";
/// The limit of a line of prose in a page.
const WIDTH: usize = 80;
/// How long a line of macros is at most.
const MACROS_WIDTH: usize = 120;

/// Returns the page with the options of the program between the two lines.
pub fn with_options(page: &str, program: &Program) -> String {
    let (before, rest) = page.split_once(BEGIN).expect("the page has a place for the options");
    let (_, after) = rest.split_once(END).expect("that place ends");
    let mut options = String::new();
    for group in program.groups {
        options.push_str(&format!(".Ss {}\n", group.title));
        let mut in_list = false;
        let mut between = "";
        for option in group.options {
            let is_item = !option.brief.is_empty();
            match (in_list, is_item) {
                (false, true) => options.push_str(".Bl -tag -width Ds\n"),
                (true, false) => options.push_str(".El\n"),
                _ => {}
            }
            let (head, text) = (head(option), prose(option.brief) + &prose(option.more));
            options.push_str(&if is_item {
                format!(".It {head}\n{text}")
            } else {
                format!("{between}{text}.{head} .\n")
            });
            in_list = is_item;
            between = ".Pp\n";
        }
        if in_list {
            options.push_str(".El\n");
        }
    }
    if program.name == overlayfs_fuse::usage::PROGRAM.name {
        options.push_str(".Ss Options that are refused\n.Bl -tag -width Ds\n");
        for (name, reason) in REFUSED {
            options.push_str(&format!(".It Cm {name}\n{}", prose(&sentence(reason))));
        }
        options.push_str(".El\n");
    }
    let options: String = options.lines().map(folded).collect();
    format!("{before}{BEGIN}{options}{END}{after}")
}

/// The line, continued on further ones where it is wider than a page may be.
fn folded(line: &str) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for word in line.split(' ') {
        if width + word.len() + " \\".len() > MACROS_WIDTH {
            lines.push_str("\\\n");
            width = 0;
        }
        lines.push_str(word);
        lines.push(' ');
        width += word.len() + 1;
    }
    format!("{}\n", lines.trim_end())
}

fn sentence(clause: &str) -> String {
    let (first, rest) = clause.split_at(1);
    format!("{}{rest}.", first.to_uppercase())
}

/// Returns the option as the user types it.
fn head(option: &Explained) -> String {
    let one = |(name, behind): (&str, &str)| {
        let name = match name.strip_prefix('-') {
            Some(word) => format!("Fl {word}"),
            None => format!("Cm {name}"),
        };
        match (behind.strip_prefix('='), behind.strip_prefix(' ')) {
            (Some(value), _) => format!("{name} Ns = Ns {}", value_of(value)),
            (_, Some(value)) => format!("{name} Ar {value}"),
            _ => name,
        }
    };
    let forms: Vec<_> = option.forms().map(one).collect();
    forms.join(" , ")
}

/// A value to fill in is in capitals. The user types other values as they stand.
fn value_of(value: &str) -> String {
    match value.split_once("[:") {
        Some((first, more)) => format!("Ar {first} Ns Oo : Ns Ar {} Oc", more.trim_end_matches(']')),
        None if value.starts_with(|c: char| c.is_ascii_uppercase()) => format!("Ar {value}"),
        None => format!("Cm {}", value.replace('|', " | ")),
    }
}

/// Formats sentences, each on lines of its own. Text in backticks becomes a macro, with the
/// parentheses and punctuation around it.
fn prose(sentences: &str) -> String {
    let mut lines = Lines::default();
    let mut parts = sentences.split('`');
    let mut text = parts.next().unwrap_or_default();
    while let Some(typed) = parts.next() {
        let next = parts.next().expect("backticks come in pairs");
        let in_parentheses = text.ends_with('(');
        lines.add(text.trim_end_matches('('));
        let end = next.find(|c| !".,;:)".contains(c)).unwrap_or(next.len());
        let (punctuation, rest) = next.split_at(end);
        let punctuation = if in_parentheses { punctuation.strip_prefix(')').unwrap() } else { punctuation };
        let punctuation: String = punctuation.chars().flat_map(|c| [' ', c]).collect();
        let parentheses = if in_parentheses { "Pq " } else { "" };
        lines.end();
        lines.done.push(format!(".{parentheses}{}{punctuation}", typed_as(typed)));
        text = rest;
    }
    lines.add(text);
    lines.end();
    lines.done.iter().map(|line| format!("{line}\n")).collect()
}

fn typed_as(typed: &str) -> String {
    if let Some((name, section)) = typed.strip_suffix(')').and_then(|typed| typed.split_once('(')) {
        format!("Xr {name} {section}")
    } else if let Some(word) = typed.strip_prefix('-') {
        format!("Fl {word}")
    } else if typed.contains(' ') {
        format!("Ql {typed}")
    } else if typed.contains('/') || typed.starts_with('.') {
        format!("Pa {typed}")
    } else if typed.starts_with('E') && typed.bytes().all(|byte| byte.is_ascii_uppercase()) {
        format!("Er {typed}")
    } else {
        format!("Cm {typed}")
    }
}

/// The lines of a page. Each sentence begins a line.
#[derive(Default)]
struct Lines {
    done: Vec<String>,
    last: String,
}

impl Lines {
    fn add(&mut self, text: &str) {
        for word in text.split_whitespace() {
            if self.last.ends_with('.') || self.last.len() + 1 + word.len() > WIDTH {
                self.end();
            }
            if !self.last.is_empty() {
                self.last.push(' ');
            }
            self.last.push_str(word);
        }
    }

    /// Makes the next word begin a line.
    fn end(&mut self) {
        if !self.last.is_empty() {
            self.done.push(std::mem::take(&mut self.last));
        }
    }
}
