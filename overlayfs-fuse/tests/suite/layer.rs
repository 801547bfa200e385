//! The program `overlayfs-layer`.

use std::ffi::OsString;

use overlayfs::layer_tools::options;

/// Runs it, and returns what it prints.
pub fn layer(words: &[&str]) -> String {
    let command = options::Command::parse(words.iter().map(OsString::from)).unwrap_or_else(|error| panic!("{error}"));
    let options::Command::Run { tool, .. } = command else { panic!("{words:?} is no command") };
    let mut out = Vec::new();
    tool.run(&mut out, &()).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    String::from_utf8(out).unwrap()
}
