//! The last warnings and errors of a process, for `Command::Status`. A daemon in the background
//! has no terminal that shows them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::fact::Fact;

/// How many are kept.
const MOST: usize = 32;
/// The most bytes of one.
const LONGEST: usize = 1024;

/// A leaf: no thread calls anything under it.
static LAST: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());

/// Keeps a warning or an error, in place of the oldest one if there are too many.
pub fn keep(text: &str) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let line = format!("{} {}", since.as_secs(), &text[..text.floor_char_boundary(LONGEST)]);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.len() == MOST {
        last.pop_front();
    }
    last.push_back(line);
}

/// Returns them, the oldest first. Each begins with the seconds since 1970.
pub fn facts() -> Vec<Fact> {
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    last.iter().map(|line| Fact::text("warning", line.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept() {
        for number in 0..100 {
            keep(&format!("warning {number}{}", "é".repeat(number * 100)));
        }
        let facts = facts();
        assert_eq!(facts.len(), MOST);
        let shown = format!("{facts:?}");
        assert!(!shown.contains("warning 67") && Fact::text("", "").value != facts[0].value);
        assert!(
            facts.iter().all(|fact| matches!(&fact.value, super::super::fact::Value::Text(text) if text.len() < 1100))
        );
    }
}
