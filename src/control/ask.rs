//! A command that is sent, and its whole answer. Nothing in an answer is trusted: the daemon may
//! belong to another user.

use super::Command;
use super::fact::{self, Fact};
use super::frame::Frame;

/// The most facts of an answer.
const FACTS_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug)]
pub enum Refusal<E> {
    /// The call failed.
    Call(E),
    /// The answer is no frame, or too long. Or the arguments are too long for a request.
    Malformed,
    /// The command failed.
    Failed {
        /// Its errno.
        errno: i32,
        /// What failed, and why: a clause for the end of a sentence.
        clause: String,
    },
}

impl<E> From<E> for Refusal<E> {
    fn from(error: E) -> Self {
        Refusal::Call(error)
    }
}

/// Sends a command with its arguments, and returns all pages of the answer. `send` sends a frame,
/// which the answer replaces.
///
/// # Errors
///
/// Each variant of [`Refusal`].
pub fn ask<E>(
    command: Command,
    arguments: &[Fact],
    mut send: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<Fact>, Refusal<E>> {
    let wrong = |_| Refusal::Malformed;
    let (payload, more) = fact::page(arguments, 0).map_err(wrong)?;
    if more != 0 {
        return Err(Refusal::Malformed);
    }
    let (mut facts, mut cursor) = (Vec::new(), 0);
    loop {
        let request = Frame { command: command as u16, error: 0, cursor, payload: &payload };
        let mut bytes = request.bytes().map_err(wrong)?;
        send(&mut bytes)?;
        let answer = Frame::parse(&bytes).map_err(wrong)?;
        if answer.error != 0 {
            let clause = String::from_utf8_lossy(answer.payload).into_owned();
            return Err(Refusal::Failed { errno: answer.error, clause });
        }
        facts.extend(fact::parse(answer.payload).map_err(wrong)?);
        match answer.cursor {
            0 => return Ok(facts),
            next if next <= cursor || facts.len() > FACTS_MAX => return Err(Refusal::Malformed),
            next => cursor = next,
        }
    }
}
