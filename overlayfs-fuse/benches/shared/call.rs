//! Other programs.

use std::process::{Command, Stdio};

/// Runs a program to its end.
pub fn call(command: &mut Command) -> Result<(), String> {
    match command.stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} fails: {status}.")),
        Err(error) => Err(format!("{command:?} cannot be run: {error}.")),
    }
}
