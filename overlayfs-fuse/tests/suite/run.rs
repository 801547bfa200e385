//! Programs with a time limit, so that a hang of the mount fails the test.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

/// Returns a command that runs the program, and kills it after fifteen minutes.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "900"]).arg(program).stdin(Stdio::null());
    command.env("LC_ALL", "C").env("TZ", "UTC").env("NO_COLOR", "1");
    command
}

/// Runs a command to its end, and returns its output and status. Panics if the time was not enough.
pub fn finish(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
    assert!(
        !matches!(output.status.code(), None | Some(124 | 137)),
        "{command:?} was killed because it took too long:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
