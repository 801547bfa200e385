//! The programs under test. If the user may not enter their directory, the variables OVERLAYFS_FUSE
//! and OVERLAYFS_FUSE_VIA_SCHEME name copies.

use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

/// Returns the path of the program that users install.
pub fn program() -> String {
    env::var("OVERLAYFS_FUSE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_overlayfs-fuse").to_owned())
}

/// Returns the path of the program for a list of mount options. With `door=scheme` it is the
/// program of the Redox simulator, which serves requests with the scheme.
#[allow(dead_code, reason = "not every suite has options")]
pub fn program_for(options: &str) -> String {
    if options.split(',').any(|option| option == "door=scheme") { via_scheme() } else { program() }
}

/// Returns the path of the program of the Redox simulator. Another package has it. Unless the
/// variable names a copy, this builds it beside the users' program.
pub fn via_scheme() -> String {
    static PROGRAM: LazyLock<String> =
        LazyLock::new(|| env::var("OVERLAYFS_FUSE_VIA_SCHEME").unwrap_or_else(|_| build_via_scheme()));
    PROGRAM.clone()
}

fn build_via_scheme() -> String {
    let ours = Path::new(env!("CARGO_BIN_EXE_overlayfs-fuse"));
    let folder = ours.parent().unwrap();
    let profile = match folder.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        profile => profile,
    };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--package", "linux-delegate", "--bins", "--profile", profile]);
    cargo.arg("--target-dir").arg(folder.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    assert!(cargo.status().unwrap().success(), "overlayfs-fuse-via-scheme cannot be built");
    folder.join("overlayfs-fuse-via-scheme").into_os_string().into_string().unwrap()
}
