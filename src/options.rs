//! The layers and options of a mount, from command line options or from the list behind `-o`.
//!
//! This file parses the whole command line of the daemon. The FUSE mount has its own command line,
//! but the same layers. It splits its `-o` lists with [`split_list`], and passes the items that
//! [`KEYS`] names to [`Options::add`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::format::Wanted;
use crate::usage::overlayfs::PROGRAM;

/// The items of a list that [`Options::add`] takes.
pub const KEYS: [&str; 12] = [
    "lowerdir",
    "lowerdir+",
    "upperdir",
    "workdir",
    "ro",
    "rw",
    "volatile",
    "reuse_volatile",
    "whole_copies",
    "userxattr",
    "redirect_dir",
    "on_exit",
];

/// The layers of a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper directory. None: the overlay is read-only.
    pub upper: Option<PathBuf>,
    /// None stands for a reserved name inside the upper directory.
    pub work: Option<PathBuf>,
    /// The directory for the layers that snapshots put on the upper one.
    pub snapshots: Option<PathBuf>,
    /// Change nothing: the upper directory becomes the topmost lower one.
    pub read_only: bool,
    /// Sync nothing, and mark the upper layer until the overlay ends.
    pub volatile: bool,
    /// Use an upper layer with the mark of an overlay that did not end well.
    pub reuse_volatile: bool,
    /// Copy each file up whole before its first change.
    pub whole_copies: bool,
    /// Trust redirects in the layers, whichever user made them.
    pub trusted: bool,
    /// Refuse renames of directories that lower layers have.
    pub no_redirects: bool,
    /// What happens to the changes when the overlay ends well.
    pub on_exit: Ending,
    /// The format of the upper layer. None: the format that it has; a new one becomes an OCI image
    /// layer. The daemon for Redox has no option for it, since Redox has no other format.
    pub format: Option<Wanted>,
}

/// What happens to the changes in the upper layer when an overlay ends well. After a crash they
/// stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// They stay.
    #[default]
    Preserve,
    /// They are thrown away.
    Discard,
    /// They are merged into the topmost lower layer.
    Commit,
    /// A merged copy takes the place of the topmost lower layer in one step.
    CommitAtomic,
}

impl Ending {
    const WORDS: [(&str, Ending); 4] = [
        ("preserve", Ending::Preserve),
        ("discard", Ending::Discard),
        ("commit", Ending::Commit),
        ("commit-atomic", Ending::CommitAtomic),
    ];

    /// Returns the word of the option.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, ending)| *ending == self).map_or("", |(word, _)| word)
    }

    /// Parses the value of the option `--on-exit`.
    ///
    /// # Errors
    ///
    /// - There is no such ending.
    pub fn parse(word: &OsStr) -> Result<Self, Error> {
        let found = Self::WORDS.iter().find(|(known, _)| word == *known);
        found
            .map(|(_, ending)| *ending)
            .ok_or_else(|| unknown("ending", &word.to_string_lossy(), &Self::WORDS.map(|(word, _)| word)))
    }
}

/// The command line of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Prints `--help`.
    Help,
    /// Prints the version.
    Version,
    /// Serves an overlay.
    Serve(Arguments),
}

/// The arguments of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The layers.
    pub options: Options,
    /// The name of the scheme.
    pub name: String,
    /// Take the name over from a daemon that died.
    pub replace: bool,
    /// End the program when the tree can be used; the daemon goes on.
    pub detach: bool,
    /// Pass the scheme to init, which gives it its name.
    pub hand_to_init: bool,
    /// Refuse a further name for a file to a user that neither owns it nor may write it.
    pub protected_hardlinks: bool,
    /// Log every request.
    pub verbose: bool,
}

/// The error in the options, as a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl Command {
    /// Parses a command line without its first word, the program.
    ///
    /// # Errors
    ///
    /// Each names the wrong or missing word.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        use lexopt::Arg::{Long, Short, Value};

        let mut options = Options::default();
        let mut name = None;
        let (mut replace, mut detach, mut hand_to_init, mut verbose) = (false, false, false, false);
        let mut protected_hardlinks = true;
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Short('h') | Long("help") => return Ok(Self::Help),
                Short('V') | Long("version") => return Ok(Self::Version),
                Short('v') | Long("verbose") => verbose = true,
                Short('o') => split_list(&parser.value()?)?.iter().try_for_each(|item| match &*item.key {
                    "snapshots" => options.set_snapshots(item.value("DIR")?),
                    _ => options.add(item),
                })?,
                Long("lower") => options.add_lower(parser.value()?)?,
                Long("upper") => options.set_upper(parser.value()?)?,
                Long("work") => options.set_work(parser.value()?)?,
                Long("snapshots") => options.set_snapshots(parser.value()?)?,
                Long("read-only") => options.read_only = true,
                Long("volatile") => options.volatile = true,
                Long("reuse-volatile") => options.reuse_volatile = true,
                Long("whole-copies") => options.whole_copies = true,
                Long("trust-layers") => options.trusted = true,
                Long("no-redirects") => options.no_redirects = true,
                Long("on-exit") => options.on_exit = Ending::parse(&parser.value()?)?,
                Long("replace") => replace = true,
                Long("detach") => detach = true,
                Long("hand-to-init") => hand_to_init = true,
                Long("unprotected-hardlinks") => protected_hardlinks = false,
                Long(other) => return Err(unknown("option", &format!("--{other}"), &PROGRAM.long_words())),
                Short(other) => return Err(Error(format!("There is no option -{other}."))),
                Value(word) if name.is_none() => name = Some(scheme_name(&word)?),
                Value(word) => {
                    return Err(Error(format!("A scheme has one name, but {} is given too.", word.display())));
                }
            }
        }
        options.check()?;
        let Some(name) = name else {
            return Err(Error("The name of the scheme is missing.".to_owned()));
        };
        Ok(Self::Serve(Arguments { options, name, replace, detach, hand_to_init, protected_hardlinks, verbose }))
    }
}

impl Options {
    /// Adds the items of a list behind `-o`. All must be in [`KEYS`].
    ///
    /// # Errors
    ///
    /// Those of [`split_list`] and [`Options::add`].
    pub fn add_list(&mut self, list: &OsStr) -> Result<(), Error> {
        split_list(list)?.iter().try_for_each(|item| self.add(item))
    }

    /// Adds one item of an `-o` list, one of [`KEYS`].
    ///
    /// # Errors
    ///
    /// - The item is unknown, or lacks a value.
    /// - It has a value that it does not take.
    /// - A directory that can be given once is given again.
    pub fn add(&mut self, item: &ListItem) -> Result<(), Error> {
        match item.key.as_str() {
            "lowerdir" => split_unescaped(item.escaped_value("DIR")?, b':')
                .into_iter()
                .try_for_each(|dir| self.add_lower(OsString::from_vec(unescape(&dir)))),
            "lowerdir+" => self.add_lower(item.value("DIR")?),
            "upperdir" => self.set_upper(item.value("DIR")?),
            "workdir" => self.set_work(item.value("DIR")?),
            "ro" => item.switch(&mut self.read_only, true),
            "rw" => item.switch(&mut self.read_only, false),
            "volatile" => item.switch(&mut self.volatile, true),
            "reuse_volatile" => item.switch(&mut self.reuse_volatile, true),
            "whole_copies" => item.switch(&mut self.whole_copies, true),
            "userxattr" => item.switch(&mut self.trusted, true),
            "redirect_dir" => {
                let words = [("on", false), ("off", true), ("follow", true)];
                self.no_redirects = item.choice(&words)?;
                Ok(())
            }
            "on_exit" => {
                self.on_exit = item.choice(&Ending::WORDS)?;
                Ok(())
            }
            other => Err(unknown("mount option", other, &KEYS)),
        }
    }

    /// Checks that all needed options are there.
    ///
    /// # Errors
    ///
    /// - There is no lower directory.
    /// - There is a work directory, but no upper one.
    /// - Something is to happen to changes, but there can be none.
    /// - There is a directory for snapshots, but no upper one, or changes are not to stay.
    pub fn check(&self) -> Result<(), Error> {
        if self.lowers.is_empty() {
            return Err(Error("No lower directory is given: an overlay needs at least one.".to_owned()));
        }
        if let Some(dir) = &self.snapshots {
            if self.upper.is_none() {
                return Err(Error(format!(
                    "The directory for snapshots {} has no use without an upper directory.",
                    dir.display()
                )));
            }
            if self.on_exit != Ending::Preserve {
                return Err(Error(format!(
                    "The ending {} knows one upper directory, and snapshots make more of them: leave one of the two \
                     out.",
                    self.on_exit.word()
                )));
            }
        }
        match (&self.work, &self.upper) {
            (Some(work), None) => Err(Error(format!(
                "The work directory {} has no use without an upper directory: the overlay is read-only then.",
                work.display()
            ))),
            _ if self.on_exit != Ending::Preserve && (self.upper.is_none() || self.read_only) => Err(Error(format!(
                "The ending {} needs changes, and the overlay is read-only{}.",
                self.on_exit.word(),
                if self.read_only { "" } else { " without an upper directory" }
            ))),
            _ => Ok(()),
        }
    }

    pub(crate) fn add_lower(&mut self, dir: OsString) -> Result<(), Error> {
        self.lowers.push(directory("lower", dir)?);
        Ok(())
    }

    pub(crate) fn set_upper(&mut self, dir: OsString) -> Result<(), Error> {
        set_once("upper", &mut self.upper, dir)
    }

    pub(crate) fn set_work(&mut self, dir: OsString) -> Result<(), Error> {
        set_once("work", &mut self.work, dir)
    }

    fn set_snapshots(&mut self, dir: OsString) -> Result<(), Error> {
        set_once("snapshot", &mut self.snapshots, dir)
    }
}

impl Error {
    /// Makes an error from the whole sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl From<lexopt::Error> for Error {
    fn from(error: lexopt::Error) -> Self {
        match error {
            lexopt::Error::MissingValue { option: Some(option) } => Self(format!("The option {option} needs a value.")),
            lexopt::Error::UnexpectedValue { option, value } => {
                Self(format!("The option {option} takes no value, but {} is given.", value.display()))
            }
            other => Self(format!("{other}.")),
        }
    }
}

/// One item of an `-o` list: `key`, or `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListItem {
    /// The part before the `=`.
    pub key: String,
    /// The value with its escapes.
    value: Option<Vec<u8>>,
}

impl ListItem {
    /// Returns the value with its escapes, if there is one.
    pub fn raw_value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// Returns the value without escapes. The error for a missing value calls it `what`.
    ///
    /// # Errors
    ///
    /// - The item has no value.
    pub fn value(&self, what: &str) -> Result<OsString, Error> {
        Ok(OsString::from_vec(unescape(self.escaped_value(what)?)))
    }

    /// Sets a switch, which takes no value.
    ///
    /// # Errors
    ///
    /// - The item has a value.
    pub fn switch(&self, switch: &mut bool, to: bool) -> Result<(), Error> {
        self.check_no_value()?;
        *switch = to;
        Ok(())
    }

    /// Returns an error if there is a value.
    ///
    /// # Errors
    ///
    /// - The item has a value.
    pub fn check_no_value(&self) -> Result<(), Error> {
        let Some(value) = &self.value else {
            return Ok(());
        };
        let (key, value) = (&self.key, String::from_utf8_lossy(value));
        Err(Error(format!("The mount option {key} takes no value, but {value} is given.")))
    }

    /// Returns the meaning of a value that must be one of `words`.
    ///
    /// # Errors
    ///
    /// - The item has no value, or another one.
    pub fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Error> {
        let key = &self.key;
        let all: Vec<_> = words.iter().map(|(word, _)| format!("{key}={word}")).collect();
        let all = all.join(" or ");
        let value = self.value("VALUE").map_err(|_| Error(format!("The mount option {key} needs a value: {all}.")))?;
        let found = words.iter().find(|(word, _)| value == *word);
        found
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| Error(format!("There is no {key}={}: use {all}.", value.display())))
    }

    fn escaped_value(&self, what: &str) -> Result<&[u8], Error> {
        let key = &self.key;
        self.value.as_deref().ok_or_else(|| Error(format!("The mount option {key} needs a value: {key}={what}.")))
    }
}

/// Splits the list behind `-o` at its commas, but not behind a backslash or in a quoted value
/// (`key="a,b"`). Ignores empty items. mount(8) does the same.
///
/// # Errors
///
/// - The key of an item is not UTF-8.
/// - A quoted value is followed by another character than a comma.
pub fn split_list(list: &OsStr) -> Result<Vec<ListItem>, Error> {
    let mut items = Vec::new();
    let mut rest = list.as_bytes();
    while !rest.is_empty() {
        let key = &rest[..rest.iter().position(|byte| matches!(byte, b'=' | b',')).unwrap_or(rest.len())];
        let behind = &rest[key.len()..];
        let quoted = behind
            .strip_prefix(b"=\"")
            .and_then(|value| Some(value.split_at(value.iter().position(|&byte| byte == b'"')?)));
        let value = match (quoted, behind) {
            (Some((quoted, after)), _) => {
                rest = &after[1..];
                Some(quoted.to_vec())
            }
            (None, [b'=', value @ ..]) => {
                let end = unescaped(value, b',').unwrap_or(value.len());
                rest = &value[end..];
                Some(value[..end].to_vec())
            }
            _ => {
                rest = behind;
                None
            }
        };
        let key = str::from_utf8(key)
            .map_err(|_| Error(format!("There is no mount option {}.", String::from_utf8_lossy(key))))?;
        if !key.is_empty() || value.is_some() {
            items.push(ListItem { key: key.to_owned(), value });
        }
        rest = match rest {
            [b',', rest @ ..] => rest,
            [] => rest,
            _ => {
                let rest = String::from_utf8_lossy(rest);
                return Err(Error(format!("The quoted value of {key} needs a comma behind it, but {rest} follows.")));
            }
        };
    }
    Ok(items)
}

/// Returns the position of the first `wanted` without a backslash before it.
fn unescaped(text: &[u8], wanted: u8) -> Option<usize> {
    let mut escaped = false;
    text.iter().position(|&byte| {
        let found = byte == wanted && !escaped;
        escaped = byte == b'\\' && !escaped;
        found
    })
}

/// Splits at a separator without a backslash before it. The parts keep their backslashes.
fn split_unescaped(mut text: &[u8], separator: u8) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    while let Some(end) = unescaped(text, separator) {
        parts.push(text[..end].to_vec());
        text = &text[end + 1..];
    }
    parts.push(text.to_vec());
    parts
}

/// Removes each backslash before another byte.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    plain
}

fn directory(what: &str, dir: OsString) -> Result<PathBuf, Error> {
    if dir.is_empty() {
        return Err(Error(format!("The path of a {what} directory is empty.")));
    }
    Ok(PathBuf::from(dir))
}

fn set_once(what: &str, slot: &mut Option<PathBuf>, dir: OsString) -> Result<(), Error> {
    let dir = directory(what, dir)?;
    if let Some(first) = slot {
        return Err(Error(format!(
            "Two {what} directories are given, {} and {}: an overlay has one.",
            first.display(),
            dir.display()
        )));
    }
    *slot = Some(dir);
    Ok(())
}

/// Checks the name of a scheme. The namespace takes ASCII names without separators.
fn scheme_name(word: &OsStr) -> Result<String, Error> {
    let name = word.to_str().filter(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
    });
    name.map(str::to_owned).ok_or_else(|| {
        Error(format!(
            "{} cannot be the name of a scheme: a name has ASCII letters, digits and signs, but no slash, colon or \
             space.",
            word.display()
        ))
    })
}

/// Returns the sentence for a name that does not exist. It has the name that was probably meant,
/// where at most a third of the letters differ, or two.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> Error {
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate));
    let hint = match nearest {
        Some(nearest) if distance(name, nearest) <= (name.len() / 3).max(2) => format!(" Did you mean {nearest}?"),
        _ => String::new(),
    };
    Error(format!("There is no {what} {name}.{hint}"))
}

/// Returns the number of letters to add, remove or change between one word and the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn parse(words: &[&str]) -> Result<Command, String> {
        Command::parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    fn served(words: &[&str]) -> Arguments {
        match parse(words) {
            Ok(Command::Serve(arguments)) => arguments,
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    fn refused(words: &[&str]) -> String {
        match parse(words) {
            Err(sentence) => sentence,
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_long_form() {
        let arguments = served(&["--lower", "/a", "--lower=/b", "--upper", "/u", "--work", "/w", "-v", "overlay"]);
        assert_eq!(arguments.options.lowers, paths(&["/a", "/b"]));
        assert_eq!(arguments.options.upper, Some(PathBuf::from("/u")));
        assert_eq!(arguments.options.work, Some(PathBuf::from("/w")));
        assert_eq!(arguments.name, "overlay");
        assert!(arguments.verbose);
    }

    #[test]
    fn lower_directories_alone_are_enough() {
        let arguments = served(&["ro", "--lower", "/a"]);
        assert_eq!(
            arguments,
            Arguments {
                options: Options { lowers: paths(&["/a"]), ..Options::default() },
                name: "ro".to_owned(),
                replace: false,
                detach: false,
                hand_to_init: false,
                protected_hardlinks: true,
                verbose: false,
            }
        );
    }

    #[test]
    fn the_list_form() {
        let arguments = served(&["-o", "lowerdir=/a:/b,upperdir=/u,workdir=/w", "overlay"]);
        assert_eq!(arguments.options.lowers, paths(&["/a", "/b"]));
        assert_eq!(arguments.options.upper, Some(PathBuf::from("/u")));
        assert_eq!(arguments.options.work, Some(PathBuf::from("/w")));
        let snapshots = [
            &["-o", "lowerdir=/a,upperdir=/u,snapshots=/s", "x"][..],
            &["--snapshots=/s", "--upper=/u", "--lower=/a", "x"],
        ];
        assert!(snapshots.iter().all(|words| served(words).options.snapshots == Some(PathBuf::from("/s"))));
        assert_eq!(served(&["-olowerdir=/a", "-o", ",upperdir=/u,", "x"]).options.upper, Some(PathBuf::from("/u")));
        assert_eq!(served(&["--lower", "/a", "-o", "lowerdir=/b", "x"]).options.lowers, paths(&["/a", "/b"]));
    }

    #[test]
    fn escapes() {
        let arguments = served(&["-o", r"lowerdir=/a\:b:/c\,d:/e\\:/f=g,upperdir=/u\:\,", "x"]);
        assert_eq!(arguments.options.lowers, paths(&["/a:b", "/c,d", r"/e\", "/f=g"]));
        assert_eq!(arguments.options.upper, Some(PathBuf::from("/u:,")));
        assert_eq!(served(&["--lower", r"/a\:b:c", "x"]).options.lowers, paths(&[r"/a\:b:c"]), "no escapes here");
    }

    #[test]
    fn names_are_bytes() {
        let list = OsString::from_vec(b"lowerdir=/\xff:/b".to_vec());
        let items = split_list(&list).unwrap();
        let mut options = Options::default();
        options.add(&items[0]).unwrap();
        assert_eq!(options.lowers[0].as_os_str().as_bytes(), b"/\xff");
    }

    #[test]
    fn unknown_items_can_be_taken_out() {
        let items = split_list(OsStr::new(r"debug,source=a\,b,,lowerdir=/a")).unwrap();
        assert_eq!(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["debug", "source", "lowerdir"]);
        assert_eq!(items[0].value("X").unwrap_err().to_string(), "The mount option debug needs a value: debug=X.");
        assert_eq!(items[1].value("NAME"), Ok(OsString::from("a,b")));
    }

    #[test]
    fn quoted_values() {
        let items = split_list(OsStr::new(r#"context="a:b,c",upperdir="/u,\"v,workdir="/w"#));
        assert_eq!(
            items.unwrap_err().to_string(),
            r#"The quoted value of upperdir needs a comma behind it, but v,workdir="/w follows."#
        );
        let items = split_list(OsStr::new(r#"context="a:b,c",ro,workdir="/w,x=y"#)).unwrap();
        assert_eq!(items.iter().map(|item| item.key.as_str()).collect::<Vec<_>>(), ["context", "ro", "workdir", "x"]);
        assert_eq!(items[0].value("LABEL"), Ok(OsString::from("a:b,c")));
        assert_eq!(items[2].value("DIR"), Ok(OsString::from("\"/w")), "a quote without an end is a plain byte");
        assert_eq!(served(&["-o", r#"lowerdir="/a,b:/c",upperdir=/u"v"#, "x"]).options.lowers, paths(&["/a,b", "/c"]));
    }

    #[test]
    fn switches() {
        let switches =
            ["--read-only", "--volatile", "--reuse-volatile", "--whole-copies", "--trust-layers", "--no-redirects"];
        let arguments = served(&[&["--lower", "/a"], &switches[..], &["x"]].concat());
        let all = Options {
            lowers: paths(&["/a"]),
            read_only: true,
            volatile: true,
            reuse_volatile: true,
            whole_copies: true,
            trusted: true,
            no_redirects: true,
            ..Options::default()
        };
        assert_eq!(arguments.options, all);
        let list = "lowerdir=/a,ro,volatile,reuse_volatile,whole_copies,userxattr,redirect_dir=off";
        assert_eq!(served(&["-o", list, "x"]).options, all);
        assert!(!served(&["-o", "lowerdir=/a,ro,rw", "x"]).options.read_only, "the last item counts");
    }

    #[test]
    fn help_and_version_need_nothing_else() {
        assert_eq!(parse(&["--help"]), Ok(Command::Help));
        assert_eq!(parse(&["-h"]), Ok(Command::Help));
        assert_eq!(parse(&["--version"]), Ok(Command::Version));
        assert_eq!(parse(&["-V"]), Ok(Command::Version));
    }

    #[test]
    fn the_help_explains_every_mount_option() {
        for (program, more) in [(&PROGRAM, &["snapshots"][..]), (&crate::usage::fsck::PROGRAM, &[])] {
            let keys: HashSet<_> = program.names().filter(|name| !name.starts_with('-')).collect();
            assert_eq!(keys, KEYS.iter().chain(more).copied().collect(), "{}", program.name);
        }
    }

    #[test]
    fn refusals_are_sentences() {
        let cases: &[(&[&str], &str)] = &[
            (&["--loewr", "/a", "x"], "There is no option --loewr. Did you mean --lower?"),
            (&["--frobnicate", "x"], "There is no option --frobnicate."),
            (&["-x"], "There is no option -x."),
            (&["--lower"], "The option --lower needs a value."),
            (&["x", "-o"], "The option -o needs a value."),
            (&["--verbose=1", "x"], "The option --verbose takes no value, but 1 is given."),
            (&["--lower", "", "x"], "The path of a lower directory is empty."),
            (&["-o", "lowerdir=/a::/b", "x"], "The path of a lower directory is empty."),
            (&["-o", "lowerdir", "x"], "The mount option lowerdir needs a value: lowerdir=DIR."),
            (&["-o", "ro=1", "x"], "The mount option ro takes no value, but 1 is given."),
            (&["-o", "reusevolatle", "x"], "There is no mount option reusevolatle. Did you mean reuse_volatile?"),
            (
                &["-o", "redirect_dir=nofollow", "x"],
                "There is no redirect_dir=nofollow: use redirect_dir=on or redirect_dir=off or redirect_dir=follow.",
            ),
            (&["-o", "upperdri=/a", "x"], "There is no mount option upperdri. Did you mean upperdir?"),
            (
                &["--lower", "/a", "--upper", "/u", "-o", "upperdir=/v", "x"],
                "Two upper directories are given, /u and /v: an overlay has one.",
            ),
            (
                &["--lower", "/a", "--on-exit", "discard", "x"],
                "The ending discard needs changes, and the overlay is read-only without an upper directory.",
            ),
            (
                &["-o", "lowerdir=/a,upperdir=/u,ro,on_exit=commit", "x"],
                "The ending commit needs changes, and the overlay is read-only.",
            ),
            (
                &["--lower", "/a", "--on-exit", "commit-atomic", "x"],
                "The ending commit-atomic needs changes, and the overlay is read-only without an upper directory.",
            ),
            (&["--on-exit", "comit", "x"], "There is no ending comit. Did you mean commit?"),
            (&["x"], "No lower directory is given: an overlay needs at least one."),
            (&["--lower", "/a"], "The name of the scheme is missing."),
            (
                &["--lower", "/a", "--snapshots", "/s", "x"],
                "The directory for snapshots /s has no use without an upper directory.",
            ),
            (&["--lower", "/a", "x", "y"], "A scheme has one name, but y is given too."),
            (
                &["--lower", "/a", "--work", "/w", "x"],
                "The work directory /w has no use without an upper directory: the overlay is read-only then.",
            ),
            (
                &["--lower", "/a", "a/b"],
                "a/b cannot be the name of a scheme: a name has ASCII letters, digits and signs, but no slash, colon or \
                 space.",
            ),
        ];
        for (words, sentence) in cases {
            assert_eq!(&refused(words), sentence, "{words:?}");
        }
    }
}
