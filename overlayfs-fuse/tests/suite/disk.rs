//! Filesystems for layers, in a file or in memory, with a size that the test chooses.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use test_common::{Setup, put};

use crate::mount;

/// A filesystem for layers. The drop unmounts it, if it is still mounted.
pub struct Disk {
    pub point: PathBuf,
}

impl Disk {
    /// Makes an ext4 filesystem in the new file `image`, with a journal or without
    /// (`^has_journal`).
    #[allow(dead_code, reason = "not every suite has one")]
    pub fn ext4(setup: &Setup, image: &Path, size: u64, journal: &str) -> Self {
        File::create(image).unwrap().set_len(size).unwrap();
        let early = "lazy_itable_init=0,lazy_journal_init=0";
        run(Command::new("mkfs.ext4").args(["-q", "-O", journal, "-E", early]).arg(image));
        let disk = Self { point: setup.dir("disk") };
        disk.mount(image);
        disk
    }

    /// Mounts it again.
    #[allow(dead_code, reason = "not every suite has one")]
    pub fn mount(&self, image: &Path) {
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(&self.point));
    }

    /// Makes a filesystem in memory.
    #[allow(dead_code, reason = "not every suite has one")]
    pub fn memory(point: PathBuf, size: u64) -> Self {
        let size = CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount("tmpfs", &point, "tmpfs", MountFlags::empty(), size.as_c_str()).unwrap();
        Self { point }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        put::dir(&self.point, name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if mount::is_mounted(&self.point) {
            let _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH);
        }
    }
}

/// Runs a command that must succeed.
#[allow(dead_code, reason = "not every suite has one")]
pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
