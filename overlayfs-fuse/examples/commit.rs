//! Changes a directory all at once: works in an overlay of it, then merges the changes into it.

use std::error::Error;
use std::fs;

use overlayfs::layer_tools::commit::Choice;
use overlayfs_fuse::Overlay;

/// Runs the example in a temporary directory.
pub fn main() -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let [data, upper, work, merged] = ["data", "upper", "work", "merged"].map(|name| home.path().join(name));
    for dir in [&data, &upper, &work, &merged] {
        fs::create_dir(dir)?;
    }
    fs::create_dir(data.join("drafts"))?;
    fs::write(data.join("drafts/letter"), "Dear")?;

    let mount = Overlay::builder().lower(&data).upper(&upper).work(&work).mount(&merged)?;
    fs::rename(mount.path().join("drafts"), mount.path().join("letters"))?;
    fs::write(mount.path().join("letters/second"), "Hello")?;
    assert!(data.join("drafts/letter").exists());

    mount.unmount()?.commit(Choice::default())?;
    assert_eq!(fs::read_to_string(data.join("letters/letter"))?, "Dear");
    assert_eq!(fs::read_to_string(data.join("letters/second"))?, "Hello");
    assert!(!data.join("drafts").exists());
    Ok(())
}
