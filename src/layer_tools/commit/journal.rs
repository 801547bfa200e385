//! The journal of a commit: what is decided at its start, and how far it is.
//!
//! It is text, one statement a line, like the record of the lower layers. `docs/format.md`
//! describes the lines.

use std::ffi::OsString;
use std::iter;
use std::path::{Path, PathBuf};

use crate::format::{FNV1A_OF_NOTHING, fnv1a_behind};
use crate::layer::Time;
use crate::layer_tools::paths::PathList;
use crate::overlay::on_disk::{end_line, end_line_of, escape, unescape};

/// The bytes of a piece, about.
const PIECE: usize = 1 << 16;

const TITLE: &str = "overlayfs commit 1";

/// A step of a commit. Each can be done again from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Moves renamed directories of the lower layer into the stage.
    Take,
    /// Moves them from there to their new places.
    Put,
    /// Makes all other changes in the lower layer.
    Apply,
    /// Exchanges the merged copy of the lower layer with that.
    Exchange,
    /// Removes everything from the upper layer, and the traces of the commit from the lower one.
    Empty,
    /// Removes everything from the upper layer, without a commit.
    Discard,
}

impl Phase {
    const ALL: [(Phase, &'static str); 6] = [
        (Phase::Take, "take"),
        (Phase::Put, "put"),
        (Phase::Apply, "apply"),
        (Phase::Exchange, "exchange"),
        (Phase::Empty, "empty"),
        (Phase::Discard, "discard"),
    ];
}

/// A renamed directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Its path in the lower layers.
    pub from: PathBuf,
    /// Its path in the merged tree.
    pub to: PathBuf,
    /// Its times of access and of change.
    pub times: (Time, Time),
}

/// A merged copy of a commit by an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// Its inode number.
    pub number: u64,
    /// Whether the former lower layer stays.
    pub keeps_old: bool,
}

impl Merged {
    /// The word behind the number.
    const KEEPS_OLD: &str = "keep-old";
}

/// The content of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    pub phase: Phase,
    /// The name of the stage at the top of the lower layer.
    pub stage: OsString,
    /// The times of access and of change of the root of the merged tree.
    pub times: (Time, Time),
    /// The merged copy that takes the place of the lower layer, in a commit by an exchange.
    pub copy: Option<Merged>,
    /// The renamed directories that move. One inside another's old place comes first. Its index is
    /// its name in the stage.
    pub moves: Vec<Move>,
    /// The paths of the changes that stay in the upper layer, with everything below.
    pub keeps: PathList,
}

impl Journal {
    /// Whether the former lower layer stays after an exchange.
    pub fn keeps_old(&self) -> bool {
        self.copy.is_some_and(|copy| copy.keeps_old)
    }

    /// Returns the bytes of the file, in pieces: it may list a million paths.
    pub fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let mut lines =
            iter::once(self.head()).chain(self.keeps.iter().map(|path| format!("keep {}\n", escape(&path))));
        let mut digest = Some(FNV1A_OF_NOTHING);
        iter::from_fn(move || {
            let mut piece = String::new();
            while piece.len() < PIECE
                && let Some(line) = lines.next()
            {
                piece += &line;
            }
            let so_far = fnv1a_behind(digest?, piece.as_bytes());
            digest = if piece.is_empty() { None } else { Some(so_far) };
            Some(if piece.is_empty() { format!("{}\n", end_line_of(so_far)) } else { piece }.into_bytes())
        })
    }

    /// Returns the lines before those of the paths that stay.
    fn head(&self) -> String {
        let phase = Phase::ALL.iter().find(|(phase, _)| *phase == self.phase).map_or("", |(_, word)| word);
        let mut body = format!("{TITLE}\nphase {phase}\nstage {}\n", escape(Path::new(&self.stage)));
        body += &format!("times {}\n", times_text(self.times));
        if let Some(Merged { number, keeps_old }) = self.copy {
            let word = if keeps_old { format!(" {}", Merged::KEEPS_OLD) } else { String::new() };
            body += &format!("copy {number}{word}\n");
        }
        for Move { from, to, times } in &self.moves {
            body += &format!("move {}\nhad {}\nto {}\n", escape(from), times_text(*times), escape(to));
        }
        body
    }

    /// Reads the phase from the start of a file. Returns None if that is damaged, or of another
    /// version.
    pub fn phase_of(start: &[u8]) -> Option<Phase> {
        let mut lines = start.split(|byte| *byte == b'\n');
        let (title, phase) = (lines.next()?, lines.next()?.strip_prefix(b"phase ")?);
        let found = Phase::ALL.iter().find(|(_, word)| phase == word.as_bytes());
        found.filter(|_| title == TITLE.as_bytes()).map(|(phase, _)| *phase)
    }

    /// Reads the bytes of a file. Returns None if they are damaged, or of another version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (body, end) = text.split_at(text.rfind('\n')? + 1);
        let mut lines = body.lines();
        if end != end_line(body.as_bytes()) || lines.next()? != TITLE {
            return None;
        }
        let mut journal = Journal {
            phase: Phase::Take,
            stage: OsString::new(),
            times: Default::default(),
            copy: None,
            moves: Vec::new(),
            keeps: PathList::default(),
        };
        let (mut from, mut had) = (None, None);
        for line in lines {
            let (word, rest) = line.split_once(' ')?;
            let path = unescape(rest.as_bytes());
            match word {
                "phase" => journal.phase = Phase::ALL.iter().find(|(_, word)| *word == rest)?.0,
                "stage" => journal.stage = path.into_os_string(),
                "times" => journal.times = parse_times(rest)?,
                "copy" => journal.copy = Some(parse_copy(rest)?),
                "move" => from = Some(path),
                "had" => had = Some(parse_times(rest)?),
                "to" => journal.moves.push(Move { from: from.take()?, to: path, times: had.take()? }),
                "keep" => journal.keeps.push(&path),
                _ => return None,
            }
        }
        Some(journal)
    }
}

fn parse_copy(text: &str) -> Option<Merged> {
    let (number, keeps_old) = match text.split_once(' ') {
        Some((number, word)) => (number, (word == Merged::KEEPS_OLD).then_some(true)?),
        None => (text, false),
    };
    Some(Merged { number: number.parse().ok()?, keeps_old })
}

fn times_text((atime, mtime): (Time, Time)) -> String {
    format!("{} {} {} {}", atime.sec, atime.nsec, mtime.sec, mtime.nsec)
}

fn parse_times(text: &str) -> Option<(Time, Time)> {
    let mut words = text.split(' ');
    let mut time = || Some(Time { sec: words.next()?.parse().ok()?, nsec: words.next()?.parse().ok()? });
    Some((time()?, time()?))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_journal_is_read_as_it_is_written() {
        let odd = PathBuf::from(OsStr::from_bytes(b"a b/new\nline\xff"));
        let mut keeps = PathList::default();
        keeps.push(&odd.join("kept"));
        keeps.push(Path::new("kept"));
        let journal = Journal {
            phase: Phase::Put,
            stage: ".stage".into(),
            times: (Time { sec: -1, nsec: 999_999_999 }, Time { sec: 1 << 40, nsec: 0 }),
            copy: Some(Merged { number: 7, keeps_old: true }),
            moves: vec![
                Move { from: odd.clone(), to: "x".into(), times: Default::default() },
                Move { from: "y".into(), to: odd, times: Default::default() },
            ],
            keeps,
        };
        let phases = [Phase::Take, Phase::Put, Phase::Apply, Phase::Exchange, Phase::Empty, Phase::Discard];
        for (index, phase) in phases.into_iter().enumerate() {
            let copy = Merged { number: 7, keeps_old: index % 2 == 0 };
            let journal = Journal { phase, copy: (index > 1).then_some(copy), ..journal.clone() };
            assert_eq!(Journal::from_bytes(&journal.pieces().flatten().collect::<Vec<_>>()), Some(journal));
        }
        let bytes: Vec<_> = journal.pieces().flatten().collect();
        for index in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[index] ^= 1;
            assert_eq!(Journal::from_bytes(&damaged), None, "byte {index}");
            assert_eq!(Journal::from_bytes(&bytes[..index]), None, "{index} bytes");
        }
    }
}
