//! The channel to an overlay at work: the questions and commands of its owner, and their answers.
//!
//! On Linux a request is an ioctl on the root directory of the mount, on Redox a call on the root
//! of the scheme. Both carry the same frame. So the daemon needs no socket, and no right beyond
//! those of the mount. `docs/control.md` describes the frame, the commands and the rules.
//!
//! | file | subject |
//! | --- | --- |
//! | `frame` | the layout of a request and of an answer, and their checks |
//! | `fact` | the payload: facts with names, and the pages of a long answer |
//! | `ask` | a command and its whole answer |
//! | `info`, `requests`, `warnings` | facts: layers; counted requests; the last warnings |
//! | `snapshots` | the commands for snapshots |
//! | `options` | the command lines of the commands |
//! | `report` | facts as text, as JSON and as metrics |

pub mod ask;
pub mod fact;
pub mod frame;
pub mod info;
pub mod options;
#[cfg(feature = "layer-tools")]
pub mod report;
pub mod requests;
pub mod snapshots;
pub mod warnings;

use std::fmt;

use crate::errno::{EINVAL, ENOTTY, EPERM, Error, Result};
use fact::Fact;
use frame::Frame;

/// The number of the ioctl: `_IOWR('O', 1, char[8192])`.
pub const IOCTL: u32 = 0b11 << 30 | (frame::SIZE as u32) << 16 | (b'O' as u32) << 8 | 1;

/// The first word of the metadata of a call that carries a frame, on Redox: `OvCt` in a number.
pub const CALL: u64 = 0x7443_764f;

/// The commands. Their numbers never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Tells what the overlay is: its layers, its options, its process.
    Info = 1,
    /// Completes partial copies, and syncs all changes.
    Sync = 2,
    /// Tells the numbers of this moment.
    Status = 3,
    /// Lets another process, which runs the present version of the program, go on with the mount.
    Restart = 4,
    /// Freezes the upper layer, and goes on in a new one.
    Snapshot = 16,
    /// Leaves the upper layer aside, and shows the last snapshot.
    RollBack = 17,
    /// Lists the snapshots.
    Snapshots = 18,
}

impl Command {
    /// All commands.
    pub const ALL: [Self; 7] =
        [Self::Info, Self::Sync, Self::Status, Self::Restart, Self::Snapshot, Self::RollBack, Self::Snapshots];

    /// Whether the command changes nothing, so that its answer may have several pages.
    pub const fn only_reads(self) -> bool {
        matches!(self, Self::Info | Self::Status | Self::Snapshots)
    }

    fn of_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|command| *command as u16 == number)
    }
}

/// The failure of a command: an errno, and a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The errno.
    pub error: Error,
    /// What failed, and why: a clause for the end of a sentence.
    pub clause: String,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, clause: error.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.clause)
    }
}

impl std::error::Error for Failure {}

/// An overlay that performs commands.
pub trait Subject {
    /// The user that may send commands, beside root.
    fn owner(&self) -> u32;

    /// Performs a command that has these facts as its arguments. Returns the answer.
    ///
    /// # Errors
    ///
    /// Those of the command.
    fn perform(&self, command: Command, arguments: &[Fact]) -> std::result::Result<Vec<Fact>, Failure>;
}

/// Answers the request of the user `uid`. The failure of a command is an answer too.
///
/// # Errors
///
/// - EPERM: the user is neither root nor the owner of the overlay.
/// - ENOTTY: the version or the command is not known.
/// - EINVAL: a field of the frame is wrong.
pub fn answer(subject: &impl Subject, uid: u32, request: &[u8]) -> Result<Vec<u8>> {
    if uid != 0 && uid != subject.owner() {
        return Err(Error::new(EPERM));
    }
    let Frame { command: number, error, cursor, payload } = Frame::parse(request)?;
    let command = Command::of_number(number).ok_or(Error::new(ENOTTY))?;
    if error != 0 || cursor != 0 && !command.only_reads() {
        return Err(Error::new(EINVAL));
    }
    let arguments = fact::parse(payload)?;
    let (error, cursor, payload) = match subject.perform(command, &arguments) {
        Ok(facts) => {
            let (page, next) = fact::page(&facts, cursor)?;
            (0, next, page)
        }
        Err(Failure { error, clause }) => (error.raw_os_error(), 0, frame::shortened(clause).into_bytes()),
    };
    Frame { command: number, error, cursor, payload: &payload }.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::ENOSPC;

    struct Sample;

    impl Subject for Sample {
        fn owner(&self) -> u32 {
            1000
        }

        fn perform(&self, command: Command, arguments: &[Fact]) -> std::result::Result<Vec<Fact>, Failure> {
            match command {
                Command::Info | Command::Status => {
                    Ok((0..1000).map(|i| Fact::text("lower", format!("/layers/{i}"))).collect())
                }
                _ if arguments.is_empty() => Ok(Vec::new()),
                _ => Err(Failure { error: Error::new(ENOSPC), clause: "/u is full".to_owned() }),
            }
        }
    }

    fn ask(uid: u32, command: u16, cursor: u64, payload: &[u8]) -> Result<Vec<u8>> {
        answer(&Sample, uid, &Frame { command, error: 0, cursor, payload }.bytes()?)
    }

    #[test]
    fn only_the_owner_and_root_get_an_answer() {
        for uid in [0, 1000] {
            assert!(ask(uid, 2, 0, &[]).is_ok());
        }
        for uid in [1, 999, 1001, u32::MAX] {
            assert_eq!(ask(uid, 2, 0, &[]), Err(Error::new(EPERM)));
        }
    }

    #[test]
    fn a_long_answer_comes_in_pages() {
        let (mut cursor, mut found) = (0, Vec::new());
        loop {
            let answered = ask(0, 1, cursor, &[]).unwrap();
            let page = Frame::parse(&answered).unwrap();
            assert_eq!((page.error, page.command), (0, 1));
            found.extend(fact::parse(page.payload).unwrap());
            cursor = page.cursor;
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(found, Sample.perform(Command::Info, &[]).unwrap());
    }

    #[test]
    fn a_failure_is_an_answer_with_a_sentence() {
        let arguments = fact::page(&[Fact::number("x", 1)], 0).unwrap().0;
        let answered = ask(0, 2, 0, &arguments).unwrap();
        let frame = Frame::parse(&answered).unwrap();
        assert_eq!((frame.error, frame.payload), (ENOSPC, &b"/u is full"[..]));
    }

    #[test]
    fn wrong_fields_are_errors() {
        assert_eq!(ask(0, 77, 0, &[]), Err(Error::new(ENOTTY)), "an unknown command");
        assert_eq!(ask(0, 2, 1, &[]), Err(Error::new(EINVAL)), "a command is not performed twice");
        assert_eq!(ask(0, 1, u64::MAX, &[]), Err(Error::new(EINVAL)), "a cursor behind the end");
        assert_eq!(ask(0, 1, 0, b"no facts"), Err(Error::new(EINVAL)));
        let mut request = Frame { command: 1, error: 5, cursor: 0, payload: &[] }.bytes().unwrap();
        assert_eq!(answer(&Sample, 0, &request), Err(Error::new(EINVAL)), "a request with an errno");
        request[4] = 99;
        assert_eq!(answer(&Sample, 0, &request), Err(Error::new(ENOTTY)), "an unknown version");
    }
}
