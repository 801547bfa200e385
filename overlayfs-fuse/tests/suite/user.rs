//! Runs a script as a user who has rights only in namespaces of its own, where it appears as root.

use std::process::Output;

use test_common::Setup;

use crate::mount::program;
use crate::run;

/// Prepares a FUSE device that all may open, the program, and a folder of the user. The arguments
/// are the setup, the program, the user, the script, and the arguments of the script.
const PREPARE: &str = r#"
setup=$1 program=$2 user=$3 script=$4; shift 4
mount --make-rprivate /
mknod -m 666 "$setup/fuse" c 10 229
mount --bind "$setup/fuse" /dev/fuse
test -e "$setup/of-a-user" || cp "$program" "$setup/of-a-user"
install -d -o "$user" "$setup/dir"
cd "$setup/dir"
export P="$setup/of-a-user"
setpriv --reuid "$user" --regid "$user" --clear-groups unshare --user --map-root-user --mount \
    bash -euc "$script" bash "$@"
rm -r "$setup/dir" "$setup/fuse"
"#;

/// Runs the script in a folder of the user. $P is the program, whose name is `of-a-user`.
pub fn run_as(setup: &Setup, user: &str, script: &str, arguments: &[&str]) -> Output {
    let mut command = run::command("unshare");
    command.args(["--mount", "bash", "-uc", PREPARE, "bash"]).arg(setup.root()).arg(program()).args([user, script]);
    run::finish(command.args(arguments))
}
