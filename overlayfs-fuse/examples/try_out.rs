//! Tries a program out: runs it on a directory, shows what it would change there, and throws that
//! away.

use std::error::Error;
use std::fs;
use std::process::Command;

use overlayfs_fuse::Overlay;

/// Runs the example in a temporary directory.
pub fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let [data, upper, work, merged] = ["data", "upper", "work", "merged"].map(|name| home.path().join(name));
    for dir in [&data, &upper, &work, &merged] {
        fs::create_dir(dir)?;
    }
    fs::write(data.join("kept"), "kept")?;
    fs::write(data.join("old"), "old")?;

    let mount = Overlay::builder().lower(&data).upper(&upper).work(&work).mount(&merged)?;
    let status = Command::new("sh").args(["-c", "rm old; echo new > new"]).current_dir(mount.path()).status()?;
    assert!(status.success());
    for change in mount.changes()? {
        println!("{:?} {}", change.kind, change.path.display());
    }

    mount.unmount()?.discard()?;
    assert_eq!(fs::read_to_string(data.join("old"))?, "old");
    assert!(!data.join("new").exists() && fs::read_dir(&upper)?.next().is_none());
    Ok(())
}
