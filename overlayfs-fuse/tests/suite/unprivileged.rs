//! Runs the tests of a suite again as an unprivileged user. The user has rights only in namespaces
//! of its own, where it appears as root.

use std::env;
use std::path::Path;
use std::process::Output;

use test_common::{Setup, mode};

use crate::mount::{MOUNTING, via_scheme};
use crate::run;

/// The user outside of the namespace.
const USER: &str = "4242";

/// Prepares a system as ordinary users have it: a FUSE device that they may open, and programs that
/// they may run. The arguments are the setup, the tool chain's directory, this test program, the
/// programs under test, and the user.
const PREPARE: &str = r#"
setup=$1 toolchain=$2 suite=$3 program=$4 via_scheme=$5 user=$6; shift 6
mknod -m 666 "$setup/fuse" c 10 229
mount --bind "$setup/fuse" /dev/fuse
mkdir "$setup/toolchain"
mount --bind "$toolchain" "$setup/toolchain"
cp "$suite" "$setup/suite"
cp "$program" "$setup/overlayfs-fuse"
cp "$via_scheme" "$setup/overlayfs-fuse-via-scheme"
export OVERLAYFS_FUSE="$setup/overlayfs-fuse" OVERLAYFS_FUSE_VIA_SCHEME="$setup/overlayfs-fuse-via-scheme" HOME="$setup/home" CARGO="$setup/toolchain/bin/cargo"
export PATH="$setup/toolchain/bin:$setup/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
install -d -o "$user" "$HOME"
cd "$HOME"
exec setpriv --reuid "$user" --regid "$user" --clear-groups unshare --user --map-root-user --mount "$setup/suite" "$@"
"#;

/// The variable that is set while tests run again. Some tests do less then.
pub const VARIABLE: &str = "OVERLAYFS_UNPRIVILEGED";

/// Runs the tests of this program with a part of their name in `filters` again. `forbidden` has
/// tests that cannot succeed, each with the reason: the kernel forbids one of their calls. They
/// must fail before their first mount. `tools` are programs that the tests look for in PATH.
pub fn again(filters: &[&str], forbidden: &[(&str, &str)], tools: &[&Path]) {
    let skip = forbidden.iter().flat_map(|(name, _)| ["--skip", name]);
    let output =
        run_again(&[filters, &["--skip", "as_an_unprivileged_user"], &skip.collect::<Vec<_>>()].concat(), tools);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "as an unprivileged user:\n{out}{err}");
    for filter in filters {
        let passed = |line: &str| line.starts_with("test ") && line.contains(filter) && line.ends_with(" ... ok");
        assert!(out.lines().any(passed), "no test {filter} is run again:\n{out}");
    }

    for (name, reason) in forbidden {
        let output = run_again(&["--exact", name], tools);
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(out.contains("running 1 test\n"), "there is no test {name}:\n{out}");
        let fails_before = !output.status.success() && !out.contains(MOUNTING);
        assert!(fails_before, "{name} does not fail without a mount, though {reason}:\n{out}");
    }
}

fn run_again(arguments: &[&str], tools: &[&Path]) -> Output {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let places = setup.dir("tools");
    for tool in tools {
        std::fs::copy(tool, places.join(tool.file_name().unwrap())).unwrap();
    }
    let cargo = Path::new(env!("CARGO"));
    let mut command = run::command("unshare");
    command.env(VARIABLE, "1");
    command.args(["--mount", "sh", "-euc", PREPARE, "sh"]).arg(setup.root());
    command.arg(cargo.parent().and_then(Path::parent).unwrap());
    command.arg(env::current_exe().unwrap()).args([env!("CARGO_BIN_EXE_overlayfs-fuse"), &via_scheme(), USER]);
    run::finish(command.args(arguments))
}
