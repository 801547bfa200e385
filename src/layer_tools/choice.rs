//! What happens to the changes of a program that ran in an overlay, and the question to its user.

use std::io::{self, BufRead, IsTerminal};

/// What happens to the changes at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// They stay in the upper directory.
    Keep,
    /// They are thrown away.
    Discard,
    /// They are made in the lower directories.
    Commit,
    /// The user says it at the terminal. Without one they stay.
    Ask,
}

/// Asks at the terminal, and never returns [`Choice::Ask`]. Without a terminal the changes are
/// kept. `list` lists them all.
pub fn ask(list: impl Fn()) -> Choice {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Choice::Keep;
    }
    let mut lines = io::stdin().lock().lines();
    loop {
        eprint!("Keep the changes apart (k), commit them to the system (c), discard them (d), or list all (l)? ");
        let Some(Ok(answer)) = lines.next() else {
            eprintln!();
            return Choice::Keep;
        };
        match answer.trim() {
            "k" | "keep" => return Choice::Keep,
            "c" | "commit" => return Choice::Commit,
            "d" | "discard" => return Choice::Discard,
            "l" | "list" => list(),
            _ => {}
        }
    }
}
