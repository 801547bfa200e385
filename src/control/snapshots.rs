//! The commands for snapshots: their argument, their failures and their answers.

use super::fact::{Fact, Value};
use super::{Command, Failure};
use crate::errno::{EBUSY, EEXIST, EINVAL, ENOENT, Error, Result};
use crate::overlay::{Snapshot, Unfrozen};

/// Returns the name that the arguments of a command give. Only [`Command::Snapshot`] takes one.
///
/// # Errors
///
/// - EINVAL: there are other arguments.
pub fn name_in(command: Command, arguments: &[Fact]) -> Result<Option<String>> {
    match arguments {
        [] => Ok(None),
        [Fact { name, value: Value::Text(text), .. }] if command == Command::Snapshot && name == "name" => {
            String::from_utf8(text.clone()).map(Some).map_err(|_| Error::new(EINVAL))
        }
        _ => Err(Error::new(EINVAL)),
    }
}

/// Returns the answer that names the last one of these snapshots.
pub fn last(snapshots: &[Snapshot]) -> Vec<Fact> {
    vec![Fact::text("name", snapshots.last().map_or("", |snapshot| &snapshot.name))]
}

/// Lists snapshots: number, time in seconds since 1970, and the name as label.
pub fn facts(snapshots: &[Snapshot]) -> Vec<Fact> {
    let fact = |snapshot: &Snapshot| Fact {
        name: "snapshot".to_owned(),
        label: snapshot.name.clone(),
        value: Value::Numbers(vec![snapshot.number, snapshot.time]),
    };
    snapshots.iter().map(fact).collect()
}

/// Returns the lines for people about the facts of [`facts`]: number, seconds since 1970, name.
pub fn lines(facts: &[Fact]) -> String {
    let mut lines = String::new();
    for fact in facts {
        if let ("snapshot", Value::Numbers(numbers)) = (&*fact.name, &fact.value)
            && let [number, time, ..] = numbers[..]
        {
            lines.push_str(&format!("{number}\t{time}\t{}\n", fact.label));
        }
    }
    lines
}

/// Returns the name in an answer of [`last`].
pub fn name_of(answer: &[Fact]) -> Option<String> {
    let name = answer.iter().find(|fact| fact.name == "name");
    match name.map(|fact| &fact.value) {
        Some(Value::Text(name)) => Some(String::from_utf8_lossy(name).into_owned()),
        _ => None,
    }
}

impl From<Unfrozen> for Failure {
    fn from(unfrozen: Unfrozen) -> Self {
        let errno = match &unfrozen {
            Unfrozen::NoChain | Unfrozen::Name => EINVAL,
            Unfrozen::NoSnapshot => ENOENT,
            Unfrozen::Taken(_) => EEXIST,
            Unfrozen::Unmet | Unfrozen::Refused(_) => EBUSY,
            Unfrozen::Layer(error) => error.errno,
        };
        Failure { error: Error::new(errno), clause: unfrozen.to_string() }
    }
}
