//! The commands of the program for a mount at work.

use std::path::Path;

use crate::mount::program;
use crate::run;

/// Runs a command of the program. Returns its exit code, output and messages.
pub fn command(words: &[&str], point: &Path) -> (i32, String, String) {
    let output = run::finish(run::command(program()).args(words).arg(point));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
