//! A filesystem of its own, where a test needs one of a certain kind or size. Needs root, loop
//! devices and the filesystem's tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Setup;

/// A new filesystem in a file, mounted as long as this lives.
pub struct Disk(PathBuf);

impl Disk {
    /// Made by `words`, a program and its arguments, to which the file is added; `size` is in
    /// bytes.
    pub fn new(setup: &Setup, size: u64, words: &[&str]) -> Self {
        let (image, point) = (setup.path("image"), setup.dir("disk"));
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        run(Command::new(words[0]).args(&words[1..]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point));
        Disk(point)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg(&self.0));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
