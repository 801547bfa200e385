//! Mounts of a plain user without rights and namespaces, by `fusermount3`. Also the messages where
//! a mount is impossible.
//!
//! Needs root, /dev/fuse, and Debian's package fuse3; fails without them.

#[path = "suite/run.rs"]
mod run;

use std::process::Output;

use test_common::{Setup, mode};

/// The user. The test makes all its files.
const USER: &str = "4243";

/// Prepares a system as a plain user finds it. The user may open the device, may enter the folder
/// of the program, and has a name. The arguments are the setup, the program, the user,
/// and the user's script, in which $P is the program.
const PREPARE: &str = r#"
setup=$1 program=$2 user=$3
mount --make-rprivate /
mknod -m 666 "$setup/fuse" c 10 229
mount --bind "$setup/fuse" /dev/fuse
{ cat /etc/passwd; echo "plain:x:$user:$user::/:/bin/sh"; } > "$setup/passwd"
mount --bind "$setup/passwd" /etc/passwd
cp "$program" "$setup/overlayfs-fuse"
install -d -o "$user" "$setup/home"
cd "$setup/home"
export P="$setup/overlayfs-fuse" HOME="$setup/home"
exec setpriv --reuid "$user" --regid "$user" --clear-groups bash -euc "$4"
"#;

/// Layers and a mount point of the user, and the common functions of the scripts.
const BEGIN: &str = r#"
mkdir lower mount; head -c 4000000 /dev/zero > lower/large; echo small > lower/small
layers=lowerdir=lower,upperdir=upper,workdir=work
fail() { echo "$*"; ls -lA upper work; exit 1; } >&2
anew() { rm -r upper work 2>&1; mkdir upper work; } >&2
# What is to be so soon after the mount is gone.
whole() {
    flock -w 10 upper true && flock -w 10 work true || fail "$1: the layers are held"
    test "$(stat -c %s upper/large)" = $((4000000 + 4 * $2)) || fail "$1: large is not whole"
    test -z "$(ls -A upper | grep -F .wh..wh.)" || fail "$1: markers are left"
    test -z "$(ls -A work | grep -Ev '^(ctimes|numbers|record)$')" || fail "$1: the work directory is not empty"
}
# Mounts by a program that stays this shell's child, and changes something.
change_in_foreground() {
    $P -f -o $layers mount & daemon=$!
    until mountpoint -q mount; do kill -0 $daemon; sleep .05; done
    echo end >> mount/large
}
mkdir upper work
"#;

/// Runs a script as the user, in a mount namespace of its own.
fn plainly(script: &str) -> Output {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let mut command = run::command("unshare");
    command.args(["--mount", "bash", "-euc", PREPARE, "bash"]).arg(setup.root());
    command.args([env!("CARGO_BIN_EXE_overlayfs-fuse"), USER]).arg(BEGIN.to_owned() + script);
    run::finish(&mut command)
}

fn succeeds(output: &Output) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
}

/// A plain user's mount comes back after a kill.
#[test]
fn a_mount_of_a_plain_user_comes_back() {
    succeeds(&plainly(
        r#"
        $P -o $layers,comeback,io_uring=off mount
        exec 5<>mount/open; echo open >&5; rm mount/open
        for round in 1 2 3; do
            echo end >> mount/large; echo $round > mount/new
            kill -9 "$($P status mount | sed -n 's/^pid *//p')"
            test "$(cat mount/new) $(cat mount/small)" = "$round small"
            echo $round >&5
        done
        test "$(cat /proc/self/fd/5 | tr '\n' ' ')" = "open 1 2 3 "
        exec 5>&-
        fusermount3 -u mount
        whole comeback 3
        "#,
    ));
}

#[test]
fn the_layers_are_free_when_fusermount3_returns() {
    succeeds(&plainly(
        r#"
        for options in "" ,volatile; do
            round=0 in_time=0
            while [ $in_time -lt 8 ]; do
                round=$((round + 1)); test $round -lt 80 || fail "too slow"
                $P -o $layers$options mount
                began=$(date +%s%3N)
                echo end >> mount/large; rm mount/small; echo new > mount/new
                fusermount3 -u mount
                # 0.7 seconds after the last change the mount rests. Then fusermount3 waits for nothing.
                if [ $(($(date +%s%3N) - began)) -lt 700 ]; then
                    flock -n upper true && flock -n work true || fail "$options, round $round: the layers are held"
                    in_time=$((in_time + 1))
                fi
                whole "$options, round $round" 1
                anew
            done
        done
        test -z "$(ls -A upper work | grep -v :)" || fail "something came back"
        "#,
    ));
}

#[test]
fn a_signal_ends_a_mount_of_a_user() {
    succeeds(&plainly(
        r#"
        change_in_foreground
        kill $daemon; wait $daemon
        ! mountpoint -q mount
        whole signal 1
        "#,
    ));
}

/// Another process of the user goes on with a mount, in the background and in the foreground.
#[test]
fn a_mount_of_a_user_is_restarted() {
    succeeds(&plainly(
        r#"
        # Over io_uring no other process can take a mount over.
        layers=$layers,io_uring=off
        for round in 1 2; do
            if [ $round = 1 ]; then $P -o $layers mount; echo end >> mount/large; else change_in_foreground; fi
            exec 5<>mount/open; echo one >&5; rm mount/open
            $P restart mount; $P restart mount
            echo two >&5
            test "$(cat /proc/self/fd/5)" = "$(printf 'one\ntwo')" || fail "$round: the unlinked file is lost"
            exec 5>&-
            fusermount3 -u mount
            if [ $round = 2 ]; then wait $daemon; fi
            whole restart $round
        done
        "#,
    ));
}

#[test]
fn a_dead_mount_of_a_user_is_reported() {
    succeeds(&plainly(
        r#"
        change_in_foreground
        kill -KILL $daemon; wait $daemon || true
        until ls mount 2>&1 | grep -q "not connected"; do sleep .05; done
        ! $P -o $layers mount 2> said || fail "it is mounted on a dead mount"
        grep -q "is a dead mount" said && grep -q "fusermount3 -u $PWD/mount" said || fail "$(cat said)"
        fusermount3 -u mount
        $P -o $layers mount
        echo end >> mount/large
        fusermount3 -u mount
        whole dead 2
        "#,
    ));
}

/// A limit of processes counts threads. Root has none.
#[test]
fn a_limit_of_processes_is_obeyed_or_reported() {
    succeeds(&plainly(
        r#"
        (ulimit -S -u 2; exec $P -o $layers mount) || fail "a limit that may be raised is in the way"
        echo end >> mount/large
        fusermount3 -u mount
        whole limit 1
        for most in 2 4 6 8 10; do
            ! (ulimit -u $most; exec $P -o $layers,max_threads=16 mount) 2> said || fail "$most processes are enough"
            grep -Eq "^overlayfs-fuse: .*cannot be (started|run)" said || grep -q "^overlayfs-fuse: No process can be started" said || fail "$most: $(cat said)"
            ! mountpoint -q mount || fail "$most: the mount is left"
        done
        flock -n upper true || fail "the layers are held"
        "#,
    ));
}

/// Returns the messages of the program in a device directory that has only `devices`.
fn without_device(devices: &str) -> String {
    let setup = Setup::new();
    for name in ["lower", "mount", "dev"] {
        setup.dir(name);
    }
    let script = format!(
        "mount --make-rprivate /; mount -t tmpfs tmpfs dev; mknod -m 666 dev/null c 1 3; {devices}; mount --rbind dev /dev; \
         exec \"$0\" -o lowerdir=lower mount"
    );
    let mut command = run::command("unshare");
    command.args(["--mount", "sh", "-euc", &script, env!("CARGO_BIN_EXE_overlayfs-fuse")]);
    let output = run::finish(command.current_dir(setup.root()));
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_problem_with_the_device_is_reported() {
    let missing = without_device("true");
    assert!(missing.contains("/dev/fuse cannot be opened: No such file or directory"), "{missing}");
    assert!(missing.contains("--device /dev/fuse") && missing.contains("modprobe fuse"), "{missing}");
    // As in a container that may not use the device.
    let forbidden = without_device(
        "mount -t tmpfs -o nodev tmpfs lower; mknod -m 666 lower/fuse c 10 229; touch dev/fuse; mount --bind lower/fuse dev/fuse",
    );
    assert!(forbidden.contains("/dev/fuse: Permission denied"), "{forbidden}");
    assert!(forbidden.contains("--device /dev/fuse") && forbidden.contains("chmod 666 /dev/fuse"), "{forbidden}");
    for said in [missing, forbidden] {
        assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    }
}

#[test]
fn a_device_that_a_user_may_not_open_is_named() {
    let setup = Setup::new();
    mode(setup.root(), 0o755);
    let script = PREPARE.replace("mknod -m 666", "mknod -m 600");
    let mut command = run::command("unshare");
    command.args(["--mount", "bash", "-euc", &script, "bash"]).arg(setup.root());
    command.args([env!("CARGO_BIN_EXE_overlayfs-fuse"), USER]);
    command.arg(BEGIN.to_owned() + "! $P -o $layers mount 2> said; ! mountpoint -q mount; cat said");
    let output = run::finish(&mut command);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("/dev/fuse: Permission denied"), "{said}{output:?}");
}
