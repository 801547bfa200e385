//! Test programs from crates.io.

use std::env;
use std::path::PathBuf;

/// Returns the path of an installed program. If it is neither in PATH nor in target/tools, panics
/// with the command that installs it.
pub fn tool(name: &str, version: &str) -> PathBuf {
    let root = env!("CARGO_MANIFEST_DIR").strip_suffix("/overlayfs-fuse").unwrap();
    let tools = PathBuf::from(root).join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::iter::once(tools).chain(env::split_paths(&path)).map(|dir| dir.join(name));
    candidates.find(|file| file.is_file()).unwrap_or_else(|| {
        panic!(
            "{name} is missing: run `cargo install {name} --version {version} --locked --root target/tools` in {root}."
        )
    })
}
