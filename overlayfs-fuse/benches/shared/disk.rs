//! The filesystem of a benchmark: ext4 in a file that is removed at the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::call::call;

/// The limit of the size of the file. The file takes only the space of written data.
const IMAGE: u64 = 24 << 30;

/// The mounted filesystem. The drop unmounts and removes it.
pub struct Disk {
    /// The mount point.
    pub top: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Makes the filesystem, with room for this many objects.
    pub fn new(name: &str, objects: u64) -> Result<Self, String> {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let (image, top) = (base.join(format!("{name}.ext4")), base.join(name));
        fs::create_dir_all(&top).map_err(|error| format!("{} cannot be made: {error}.", top.display()))?;
        let file = fs::File::create(&image).and_then(|file| file.set_len(IMAGE));
        file.map_err(|error| format!("{} cannot be made: {error}.", image.display()))?;
        let disk = Self { top, image };
        let objects = objects.to_string();
        call(
            Command::new("mkfs.ext4").args(["-q", "-F", "-N", &objects, "-E", "lazy_itable_init=0"]).arg(&disk.image),
        )?;
        call(Command::new("mount").args(["-o", "loop"]).arg(&disk.image).arg(&disk.top))?;
        Ok(disk)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.top).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.top.display());
        }
        if let Err(error) = fs::remove_file(&self.image) {
            eprintln!("{} is still there: {error}", self.image.display());
        }
    }
}
