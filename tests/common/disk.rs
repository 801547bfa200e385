//! A filesystem of a certain kind or size for one test. Needs root, loop devices and the
//! filesystem's tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Setup;

/// A new filesystem in a file. It is mounted while this value lives.
pub struct Disk(PathBuf);

impl Disk {
    /// Makes a filesystem of `size` bytes with the command `words` (a program and its arguments),
    /// followed by the path of the file.
    pub fn new(setup: &Setup, size: u64, words: &[&str]) -> Self {
        let (image, point) = (setup.path("image"), setup.dir("disk"));
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        run(Command::new(words[0]).args(&words[1..]).arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&point));
        Disk(point)
    }

    /// Returns the mount point.
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
