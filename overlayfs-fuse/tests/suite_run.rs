//! `overlayfs-fuse run`: commands in an overlay of the system, of a plain user and of root.
//!
//! Each script runs in a mount namespace of its own. `$OUT` has files of the user, and is compared
//! byte for byte after each test; so are `/etc` and `/usr/local`. `$OUT/disk` is a filesystem of
//! its own.
//!
//! Needs root, /dev/fuse, and Debian's packages git, make, gcc, dpkg and python3; fails without
//! them.

#[path = "suite/run.rs"]
mod run;

use std::fs;
use std::path::Path;
use std::process::Output;

use test_common::{Detail, Setup, Snapshot, mode, put};

/// The user. The test makes all its files.
const USER: &str = "4244";

/// Prepares a system as a plain user finds it. The arguments are the setup, the program, the user,
/// whether the script is the user's, and the script.
const PREPARE: &str = r#"
setup=$1 program=$2 user=$3 plain=$4
mount --make-rprivate /
mknod -m 666 "$setup/fuse" c 10 229
mount --bind "$setup/fuse" /dev/fuse
cp "$program" "$setup/overlayfs-fuse"
{ cat /etc/passwd; echo "plain:x:$user:$user::/:/bin/sh"; } > "$setup/passwd"
mount --bind "$setup/passwd" /etc/passwd
export P="$setup/overlayfs-fuse" OUT="$setup/out" HOME="$setup/home" TMPDIR="$setup/tmp"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
install -d -o "$user" -m 700 "$HOME" "$TMPDIR"
mount -t tmpfs -o mode=755,uid=$user,gid=$user tmpfs "$OUT/disk"
echo disk > "$OUT/disk/file"; chown $user:$user "$OUT/disk/file"
cd "$OUT"
case $plain in
yes) setpriv --reuid "$user" --regid "$user" --clear-groups bash -euc "$5" ;;
no) bash -euc "$5" ;;
esac
# Nothing is left: no process, and no mount.
for wait in $(seq 100); do
    left=$(pgrep -f "^$P" || true)
    test -n "$left" || break
    sleep .1
done
test -z "$left" || { echo "processes are left:"; ps -fp $left; exit 1; } >&2
! grep -F "$HOME" /proc/self/mountinfo >&2
grep -qx disk "$OUT/disk/file"
umount "$OUT/disk"
"#;

/// The start of each script.
const BEGIN: &str = r#"
trap 'echo "failed: $BASH_COMMAND" >&2' ERR
fail() { echo "$*"; exit 1; } >&2
# Runs a command, and fails unless it ends with this status.
gives() {
    local wanted=$1 got=0; shift
    "$@" || got=$?
    test $got = $wanted || fail "$*: the status is $got"
}
"#;

/// The files of the user.
fn setup() -> Setup {
    let setup = Setup::for_users(&["out"]);
    let out = setup.path("out");
    put::file(&out, "file", "content\n");
    put::file(&out, "dir/inner", "inner\n");
    put::file(&out, "dir/other", "other\n");
    put::file(&out, "large", vec![7; 3 << 20]);
    put::symlink(&out, "link", "file");
    put::dir(&out, "disk");
    own(&out);
    // What only root may change, and what everybody may.
    put::file(&out, "of-root/file", "root\n");
    put::file(&out, "of-root/shared", "shared\n");
    mode(&out.join("of-root/shared"), 0o666);
    put::file(&out, "of-root/secret", "secret\n");
    mode(&out.join("of-root/secret"), 0o600);
    setup
}

fn own(path: &Path) {
    let user = USER.parse().ok();
    std::os::unix::fs::lchown(path, user, user).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| own(&entry.unwrap().path()));
    }
}

fn run_as(setup: &Setup, plain: &str, script: &str) -> Output {
    let mut command = run::command("unshare");
    command.args(["--mount", "bash", "-euc", PREPARE, "bash"]).arg(setup.root());
    command.args([env!("CARGO_BIN_EXE_overlayfs-fuse"), USER, plain]).arg(BEGIN.to_owned() + script);
    run::finish(&mut command)
}

fn succeeds(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out.into_owned() + &err
}

/// The digest of a tree of the system, by content and attributes without times of access.
fn digest(tree: &str) -> String {
    let script = format!("find {tree} -xdev -printf '%p %m %U %G %s %T@ %l\\n' | sort | sha256sum");
    String::from_utf8(run::finish(run::command("sh").args(["-c", &script])).stdout).unwrap()
}

/// Runs a script that changes nothing outside. Returns what it said.
fn unchanged(plain: &str, script: &str) -> String {
    let setup = setup();
    let system = ["/etc", "/usr/local", "/opt"].map(digest);
    let before = Snapshot::take(&setup.path("out"), Detail::Xattrs);
    let said = succeeds(&run_as(&setup, plain, script));
    before.assert_same(&Snapshot::take(&setup.path("out"), Detail::Xattrs), "the directory outside");
    assert_eq!(system, ["/etc", "/usr/local", "/opt"].map(digest), "the system changed");
    said
}

/// Runs a script of the plain user that changes nothing outside.
fn plainly(script: &str) -> String {
    unchanged("yes", script)
}

/// Runs a script of root that changes nothing outside.
fn as_root(script: &str) -> String {
    unchanged("no", script)
}

#[test]
fn a_command_runs_as_it_is() {
    plainly(
        r#"
        run="$P run --keep --"
        test "$($run id -u):$($run id -g)" = "$(id -u):$(id -g)"
        test "$($run pwd)" = "$OUT"
        test "$(cd dir; $run pwd)" = "$OUT/dir"
        test "$(A='a  b' $run sh -c 'echo "$A,$1,$2"' x 'c  d' --keep)" = 'a  b,c  d,--keep'
        test "$(echo in | $run cat)" = in
        test "$($run sh -c 'echo out; echo err >&2' 2> /dev/null)" = out
        test "$($run sh -c 'echo out; echo err >&2' 2>&1 > /dev/null | head -1)" = err
        test "$($run cat file)" = content
        test "$($run sh -c 'cat < /proc/self/status | grep ^NoNewPrivs | cut -f2')" = 1
        test "$($run seq 100000 | head -1)" = 1
        test "$($run diff <(echo a) <(echo a) && echo same)" = same
        test "$($run sh -c 'ulimit -Sn')" = "$(ulimit -Sn)"
        test "$($run sh -c 'umask')" = "$(umask)"
        "#,
    );
}

#[test]
fn the_exit_status_is_that_of_the_command() {
    let said = plainly(
        r#"
        for status in 0 1 3 255; do gives $status $P run --keep -- sh -c "exit $status"; done
        gives 143 $P run --keep -- sh -c 'kill -TERM $$'
        gives 137 $P run --keep -- sh -c 'kill -KILL $$'
        gives 139 $P run --keep -- sh -c 'ulimit -c 0; kill -SEGV $$'
        gives 127 $P run --keep -- no-such-program
        gives 126 $P run --keep -- ./file
        gives 125 $P run --upper "$OUT/dir" --keep -- true
        gives 1 $P run --kepe -- true
        gives 125 $P run --lower /no/such/directory -- true
        "#,
    );
    for sentence in [
        "Cannot run no-such-program: No such file",
        "Cannot run ./file: Permission denied",
        "is not empty, and no earlier run made it",
        "There is no option --kepe. Did you mean --keep?",
        "The directory /no/such/directory cannot be overlaid: No such file",
    ] {
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
}

#[test]
fn changes_stay_apart_and_go_on() {
    let said = plainly(
        r#"
        $P run --upper $HOME/changes --keep -- sh -c '
            echo more >> file; rm -r dir; mkdir new; echo x > new/x; echo "a b" > disk/file; mv large moved
            echo mine > of-root/file; mkdir /usr/local/mine; echo hosts > /etc/hosts; rm /usr/bin/awk
        ' 2> $HOME/said
        cat $HOME/said
        test "$(cat file)" = content; test -e dir/inner; test ! -e new; test "$(cat disk/file)" = disk
        for line in "M content,times $OUT/file" "D directory $OUT/dir" "A file $OUT/new/x" "R - $OUT/moved <- $OUT/large" \
            "M content,times $OUT/disk/file" "M content,times $OUT/of-root/file" "A directory /usr/local/mine" "D symlink /usr/bin/awk"; do
            grep -qxF "  $line" $HOME/said || fail "no line $line"
        done
        grep -q "overlayfs-fuse run --upper $HOME/changes --commit" $HOME/said
        # A later run sees them.
        $P run --upper $HOME/changes --keep -- sh -c '
            test "$(tail -1 file)" = more; test ! -e dir; test "$(cat new/x disk/file)" = "x
a b"
            test "$(cat /etc/hosts)" = hosts; rm -r new
        ' 2> $HOME/said
        ! grep -q /new $HOME/said
        # Two at once are refused.
        $P run --upper $HOME/changes --keep -- sh -c 'echo > started; sleep 5' & first=$!
        until test -e $HOME/changes/root$OUT/started; do sleep .1; kill -0 $first; done 2> /dev/null
        gives 125 $P run --upper $HOME/changes --keep -- true
        kill $first; wait $first || true
        $P run --upper $HOME/changes --discard
        test ! -e $HOME/changes/root; ls -A $HOME
        "#,
    );
    assert!(said.contains("the upper layer is in use by"), "{said}");
}

#[test]
fn the_choice_without_a_terminal_keeps() {
    plainly(
        r#"
        $P run -- sh -c 'echo x > x'
        test "$(ls $HOME/.cache/overlayfs-fuse)" = run-1
        $P run --tmp -- sh -c 'echo x > x'
        ls -d $TMPDIR/overlayfs-fuse-*
        $P run --discard -- sh -c 'mkdir -m 0 closed; echo x > x'
        $P run -- true
        XDG_CACHE_HOME=$HOME/xdg $P run -- sh -c 'echo x > x'
        test "$(ls $HOME/.cache/overlayfs-fuse $HOME/xdg/overlayfs-fuse | grep -c run-1)" = 2
        test "$(ls $HOME/.cache/overlayfs-fuse)" = run-1
        (unset HOME; gives 125 $P run -- true) 2>&1 | grep -q "Give --upper or --tmp"
        gives 125 $P run --upper $HOME/none --commit
        test ! -e $HOME/none
        "#,
    );
}

/// Runs a script that commits as a user. Returns what it said.
fn committed(plain: &str, script: &str) -> (Setup, String) {
    let setup = setup();
    let said = succeeds(&run_as(&setup, plain, script));
    (setup, said)
}

#[test]
fn a_commit_of_a_user_makes_what_the_user_may() {
    let (_setup, said) = committed(
        "yes",
        r#"
        touch -d 2001-01-01 dir/other
        $P run --upper $HOME/changes --commit -- sh -c '
            echo more >> file; rm -r dir/inner; mkdir -m 700 new; echo x > new/x; chmod 640 new/x; ln new/x new/y
            touch -d 2002-02-02 new/x; ln -s x new/link; mkfifo new/fifo; mv large moved; echo d > disk/file
            setfattr -n user.a -v b new/x; truncate -s 100M new/sparse; chmod 600 dir/other
            echo mine >> of-root/shared; echo mine > of-root/file; rm of-root/secret; mkdir of-root/new; echo x > of-root/new/x
        ' 2> $HOME/said || status=$?
        cat $HOME/said
        test "$status" = 125
        test "$(tail -1 file)" = more; test ! -e dir/inner
        test "$(stat -c %a new)" = 700; test "$(stat -c '%a %h %y' new/y)" = "640 2 2002-02-02 00:00:00.000000000 +0000"
        test "$(readlink new/link)" = x; test -p new/fifo; test ! -e large; test "$(stat -c %s moved)" = 3145728
        test "$(getfattr -n user.a --only-values new/x)" = b
        test "$(stat -c %s new/sparse)" = 104857600; test "$(stat -c %b new/sparse)" -lt 1000
        test "$(stat -c '%a %Y' dir/other)" = "600 978307200"
        test "$(cat disk/file)" = d
        # What is of others keeps its owner, or stays as it is.
        test "$(cat of-root/shared)" = "shared
mine"
        test "$(stat -c %U of-root/shared)" = root
        test "$(cat of-root/file)" = root; test -e of-root/secret; test ! -e of-root/new
        # The rest stays, and only that.
        ! grep -q "$OUT/new" $HOME/changes -r
        $P run --upper $HOME/changes --keep -- sh -c 'cat of-root/file of-root/new/x; test ! -e of-root/secret' | tee $HOME/rest
        test "$(cat $HOME/rest)" = "mine
x"
        test ! -e $HOME/changes/root$OUT/new/sparse
        # No record of an owner arrives.
        test -z "$(getfattr -Rhd -m - . 2> /dev/null | grep override_stat)"
        test -z "$(find . -name '.overlayfs*' -o -name '.wh.*')"
        rm -rf new moved disk/file; echo disk > disk/file
        "#,
    );
    for path in
        ["of-root/file: Permission denied", "of-root/new: Permission denied", "of-root/secret: Permission denied"]
    {
        assert!(said.contains(path), "{path}: {said}");
    }
    assert!(!said.contains("of-root/new/x: "), "what is in a directory that is not there is not said: {said}");
}

#[test]
fn a_commit_of_root_sets_owners() {
    let (_setup, _) = committed(
        "no",
        r#"
        $P run --commit -- sh -c '
            mkdir new; echo x > new/x; chown 7:8 new/x new; chown 9:9 file; rm link; ln -s dir link; mv dir new/dir
            chmod 4755 new/x; chmod 2750 new; ln new/x new/y; rm -r of-root
        '
        test "$(stat -c '%u:%g %a' new/x)" = "7:8 4755"; test "$(stat -c '%u:%g %a' new)" = "7:8 2750"
        test "$(stat -c %u:%g file)" = 9:9; test "$(readlink link)" = dir
        test "$(cat new/dir/inner)" = inner; test "$(stat -c %u new/dir/inner)" = 4244; test ! -e dir
        test "$(stat -c %h new/y)" = 2; test ! -e of-root
        test ! -e $HOME/.cache/overlayfs-fuse/run-1
        "#,
    );
}

/// A change of a file with several names shows under each. To find them, the whole lower directory
/// is read.
#[test]
fn a_commit_keeps_the_names_of_a_file() {
    committed(
        "yes",
        r#"
        ln file second; ln dir/other third
        $P run --lower $OUT --commit -- sh -c 'echo more >> second; ln third fourth; rm dir/other; ln large large2'
        test "$(tail -1 file)" = more; test "$(stat -c %h file)" = 2; test file -ef second
        test "$(cat fourth)" = other; test third -ef fourth; test ! -e dir/other; test large -ef large2
        "#,
    );
}

#[test]
fn a_commit_spares_the_directory_of_the_changes() {
    let (_setup, said) = committed(
        "yes",
        r#"
        mkdir keep keep/sub; echo x > keep/x
        gives 125 $P run --upper $OUT/keep/sub/changes --commit -- sh -c 'rm -rf keep; echo y > y'
        test -d keep/sub/changes; test "$(cat y)" = y; test -e keep/x
        "#,
    );
    assert!(said.contains("the directory of the changes is in it"), "{said}");
}

/// The commit goes on from wherever it was killed, and the result is what the command saw.
const KILLED: &str = r#"
tree() {
    find . -xdev \( -type d -printf '%p d %m\n' -o -printf '%p %y %m %s %T@ %l %n\n' \) | sort
    find . -xdev -type f -exec sha256sum {} + | sort
}
export -f tree
$P run --upper $HOME/changes --keep -- bash -ec '
    for i in $(seq 20); do mkdir d$i; echo $i > d$i/file; cp large d$i/large; ln d$i/file d$i/hard; done
    mv dir renamed; rm link; ln -s new link; echo more >> file; ln file second
    touch -d @1000 d3/file; chmod 600 d4/file
    rm -r d5; mkdir d5; mkfifo d5/pipe; echo x | dd of=large seek=1 bs=1M conv=notrunc status=none
    tree' > $HOME/wanted 2> /dev/null
killed=0
while test -e $HOME/changes; do
    $P run --upper $HOME/changes --commit > /dev/null 2>&1 & run=$!
    sleep 0.$((RANDOM % 100 + 100 + killed * 20))
    set -- $(cat /proc/$run/task/$run/children 2> /dev/null || true)
    if test $((RANDOM % 2)) = 0; then kill -KILL $run; else kill -KILL ${1:-$run}; fi 2> /dev/null || true
    if wait $run; then break; fi
    killed=$((killed + 1))
    test $killed -lt 200 || fail "the commit never ends"
done
tree > $TMPDIR/got
diff $HOME/wanted $TMPDIR/got || fail "the tree differs after $killed kills"
"#;

#[test]
fn a_killed_commit_of_a_user_goes_on() {
    committed("yes", KILLED);
}

#[test]
fn a_killed_commit_of_root_goes_on() {
    committed("no", KILLED);
}

#[test]
fn signals_reach_the_command() {
    plainly(
        r#"
        for signal in TERM HUP USR1 USR2; do
            : > $HOME/said
            $P run --keep -- sh -c "trap 'echo got $signal; exit 7' $signal; echo ready; while :; do sleep .1; done" > $HOME/said &
            pid=$!
            until grep -q ready $HOME/said; do sleep .05; kill -0 $pid; done
            kill -$signal $pid
            gives 7 wait $pid
            grep -q "got $signal" $HOME/said || fail $signal
        done
        "#,
    );
}

#[test]
fn nothing_is_left_after_a_kill() {
    plainly(
        r#"
        children() { cat /proc/$1/task/$1/children; }
        for round in 1 2 3 4 5 6 7 8 9 10 11 12; do
            rm -f $HOME/begun
            $P run --upper $HOME/changes --keep -- sh -c '
                setsid sleep 98761 & sleep 98761 & echo x >> file; echo begun
                while :; do echo x >> file; cp large copy; mv copy dir/; rm -r dir; mkdir dir; done' > $HOME/begun 2> /dev/null &
            run=$!
            # Some are killed before the command starts.
            until test $round -lt 7 || grep -q begun $HOME/begun; do sleep .05; done
            sleep 0.$((RANDOM % 90 + 10))
            set -- $(children $run)
            case $((round % 3)) in
            0) kill -KILL $run ;;
            1) kill -KILL ${1:-$run} ;;
            2) kill -KILL ${2:-$run} ;;
            esac
            wait $run || true
            for try in $(seq 100); do pgrep -f "^$P run" > /dev/null || break; sleep .1; done
            ! pgrep -fa "^$P run" || fail "round $round: processes are left"
            ! pgrep -fa '^sleep 98761' || fail "round $round: commands are left"
        done
        test "$($P run --upper $HOME/changes --keep -- tail -1 file)" = x
        $P run --upper $HOME/changes --discard
        # Also the processes that a command leaves behind.
        gives 0 timeout 20 $P run --keep -- sh -c 'setsid sleep 98761 > /dev/null 2>&1 & exit 0'
        ! pgrep -fa '^sleep 98761'
        "#,
    );
}

/// The calls by which a command could reach what is outside.
const ATTACKS: &str = r#"
import ctypes, os, socket, sys, fcntl, signal, struct
libc = ctypes.CDLL(None, use_errno=True)
out, outer = sys.argv[1], int(sys.argv[2])
def works(name, call):
    try:
        done = call()
    except (OSError, PermissionError) as error:
        return
    if done != -1:
        print("WORKS:", name, done)
def sys_call(*args):
    return libc.syscall(*args)
# Other roots, through processes.
for pid in list(range(1, 5)) + [outer, os.getpid(), os.getppid()]:
    for way in ("root", "cwd"):
        path = f"/proc/{pid}/{way}"
        works(f"{path} shows outside", lambda: os.stat(f"{path}{out}/outside-only") and 0)
    works(f"ptrace {pid}", lambda: sys_call(101, 16, pid, 0, 0) if pid not in (os.getpid(), os.getppid()) else -1)
    if pid not in (os.getpid(), os.getppid()):
        works(f"mem of {pid}", lambda: open(f"/proc/{pid}/mem", "r+b") and 0)
works("kill of an outer process", lambda: os.kill(outer, 0))
for descriptor in os.listdir("/proc/self/fd"):
    if int(descriptor) > 2:
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:
            continue
        if not target.startswith(("/proc", "pipe:", "socket:")) and "attack" not in target:
            print("WORKS: descriptor", descriptor, target)
# Mounts.
works("remount", lambda: libc.mount(b"none", b"/sys", None, 32 | 4096, None))
works("remount of /dev", lambda: libc.mount(b"none", b"/dev", None, 32 | 4096, None))
for path in (b"/proc", b"/sys", b"/dev", b"/", out.encode() + b"/disk"):
    works(f"umount {path}", lambda: libc.umount2(path, 2))
works("mount tmpfs", lambda: libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None))
works("pivot_root", lambda: sys_call(155, b".", b"."))
works("mknod of a disk", lambda: os.mknod("attack-disk", 0o60666, os.makedev(254, 0)))
works("mknod of memory", lambda: os.mknod("attack-mem", 0o20666, os.makedev(1, 1)))
# Handles of files.
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
for length, kind in ((8, 1), (12, 2)):
    handle = Handle(length, kind)
    handle.data[0] = 2
    works("open_by_handle_at", lambda: sys_call(304, os.open("/", os.O_RDONLY), ctypes.byref(handle), os.O_RDONLY))
# Keys, and input for the terminal.
for number, arguments in ((250, (0, -4, 0)), (250, (6, -4)), (248, (b"user", b"x", b"y", 1, -4)), (249, (b"user", b"x", 0, -4))):
    works(f"keys {number}", lambda: sys_call(number, *arguments))
TIOCSTI = 0x5412
for descriptor in (0, 1, 2):
    works("TIOCSTI", lambda: libc.ioctl(descriptor, ctypes.c_ulong(TIOCSTI), b"x"))
    works("TIOCSTI with high bits", lambda: libc.ioctl(descriptor, ctypes.c_ulong(TIOCSTI | 1 << 32), b"x"))
# Sockets.
for path in ("/run/docker.sock", "/var/run/docker.sock", f"{out}/socket"):
    if os.path.exists(path):
        stream = socket.socket(socket.AF_UNIX)
        works(f"connect {path}", lambda: stream.connect(path) or 0)
stream = socket.socket(socket.AF_UNIX)
works("abstract socket", lambda: stream.connect(b"\0overlayfs-outer-%d" % outer) or 0)
# The system.
for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/power/state", "/sys/fs/cgroup/cgroup.procs",
             "/proc/sys/kernel/hostname", "/sys/fs/cgroup/unified/cgroup.procs", "/sys/kernel/uevent_helper"):
    works(f"write {path}", lambda: open(path, "w") and 0)
works("hostname", lambda: libc.sethostname(b"attack", 6))
works("chroot out", lambda: os.stat("/../../../.." + out + "/outside-only") and 0)
# The same with all rights in a namespace of its own.
if os.fork() == 0:
    libc.unshare(0x10000000 | 0x00020000)
    for path in (b"/proc", b"/sys", b"/dev", out.encode() + b"/disk", out.encode() + b"/of-root/bound"):
        works(f"umount {path} in a namespace", lambda: libc.umount2(path, 2))
        works(f"remount {path} in a namespace", lambda: libc.mount(b"none", path, None, 32 | 4096, None) if path != out.encode() + b"/disk" else -1)
    works("mknod in a namespace", lambda: os.mknod("attack-disk", 0o60666, os.makedev(254, 0)))
    works("keys in a namespace", lambda: sys_call(250, 0, -4, 0))
    os._exit(0)
os.wait()
print("attacked")
"#;

/// The script that attacks. `$1` is more options of the run.
fn attacks() -> String {
    format!(
        r#"
        cat > $TMPDIR/attack.py <<'END'
{ATTACKS}
END
        python3 -c '
import os, socket, sys, time
one = socket.socket(socket.AF_UNIX); one.bind(b"\0overlayfs-outer-%d" % os.getpid()); one.listen()
print("bound", flush=True); time.sleep(100)' > $TMPDIR/bound & outer=$!
        until grep -q bound $TMPDIR/bound; do sleep .05; done
        exec 7< . 8< file
        for options in "" "--root" "--no-net"; do
            $P run $options --discard -- sh -c 'echo x > of-root/mine 2> /dev/null || true; python3 $TMPDIR/attack.py "$@"' x $OUT $outer > $TMPDIR/said 2> $TMPDIR/error || fail "$(cat $TMPDIR/error)"
            cat $TMPDIR/said
            grep -qx attacked $TMPDIR/said || fail "no attack: $(cat $TMPDIR/error)"
            ! grep WORKS $TMPDIR/said || fail "$options"
        done
        kill $outer; wait $outer || true
        "#
    )
}

#[test]
fn attacks_of_a_user_fail() {
    plainly(&attacks());
}

#[test]
fn attacks_of_root_fail() {
    as_root(&attacks());
}

#[test]
fn signals_to_the_group_stay_inside() {
    plainly(
        r#"
        (trap 'echo hit > $HOME/hit' USR1; $P run --keep -- sh -c 'trap "" USR1; kill -USR1 0; kill -USR1 -1; true'; sleep .2)
        test ! -e $HOME/hit
        "#,
    );
}

#[test]
fn an_input_file_cannot_be_changed() {
    let said = plainly(
        r#"
        gives 0 $P run --keep -- sh -c '
            test "$(head -c 3)" = con
            ! echo bad > /proc/self/fd/0 || exit 9
            ! chmod 777 /proc/self/fd/0 || exit 8
            ! python3 -c "import os; os.fchmod(0, 0o777)" || exit 7
        ' < file 2> /dev/null
        # The caller reads on where the command stopped.
        { $P run --keep -- python3 -c 'import os; os.read(0, 4)' 2> /dev/null; test "$(cat)" = ent; } < file
        gives 0 $P run --keep -- cat <<< text
        gives 125 $P run --keep -- true < dir
        $P run --keep -- echo text > $HOME/written
        test "$(cat $HOME/written)" = text
        "#,
    );
    assert!(said.contains("The standard input is a directory or a disk"), "{said}");
}

#[test]
fn a_directory_alone_is_overlaid() {
    plainly(
        r#"
        gives 0 $P run --lower $OUT/dir --upper $HOME/changes --keep -- sh -c '
            echo x > dir/new; rm dir/inner
            ! echo x > file; ! echo x > disk/file; ! touch /tmp/x
            echo x > /dev/null; echo x > /dev/shm/x; cat file /etc/passwd > /dev/null
        ' 2> /dev/null
        test "$(ls $HOME/changes)" = "room
root${OUT//\//-}-dir" || ls $HOME/changes
        gives 0 $P run --lower dir --lower disk --upper $HOME/two --keep -- sh -c 'echo x > dir/x; echo x > disk/x' 2> /dev/null
        test "$(ls $HOME/two | wc -l)" = 3
        "#,
    );
}

#[test]
fn other_filesystems_are_protected() {
    as_root(
        r#"
        mkdir /run/run-test; mount -t tmpfs tmpfs /run/run-test; mkdir /run/run-test/{ro,inner,hidden}
        mount -t tmpfs tmpfs /run/run-test/inner; echo i > /run/run-test/inner/i
        mount -t tmpfs -o ro tmpfs /run/run-test/ro
        echo f > /run/run-test/f; touch /run/run-test/bound; mount --bind /run/run-test/f /run/run-test/bound
        $P run --upper $HOME/changes --keep -- sh -c '
            cd /run/run-test
            echo x > inner/x; echo x > x; cat inner/i; ! echo x > ro/x; ! echo x > bound; cat bound
        ' > $HOME/said 2> /dev/null
        test "$(cat $HOME/said)" = "i
f"
        ! test -e /run/run-test/inner/x; ! test -e /run/run-test/x; test "$(cat /run/run-test/f)" = f
        find $HOME/changes -name x | sort
        test "$(find $HOME/changes -name x | wc -l)" = 2
        umount -R /run/run-test; rmdir /run/run-test
        "#,
    );
}

#[test]
fn binds_reach_outside() {
    let (_setup, said) = committed(
        "yes",
        r#"
        $P run --bind $OUT/dir --bind $OUT/file:$OUT/dir/other:ro --discard -- sh -c '
            echo x > dir/new; cat dir/other; ! echo x > dir/other; echo y > y' 2> $HOME/said | grep -x content
        test "$(cat dir/new)" = x; test "$(cat dir/other)" = other; test ! -e y
        gives 125 $P run --bind /no/such --keep -- true
        gives 125 $P run --bind dir:/no/such --keep -- true
        rm dir/new
        "#,
    );
    assert!(said.contains("/no/such cannot be bound: No such file"), "{said}");
    assert!(said.contains("Cannot show /no/such: No such file"), "{said}");
}

#[test]
fn a_network_of_its_own_has_only_loopback() {
    plainly(
        r#"
        test "$($P run --no-net --keep -- sh -c 'tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d " "')" = lo
        $P run --no-net --keep -- python3 -c '
import socket
one = socket.socket(); one.bind(("127.0.0.1", 0)); one.listen()
socket.create_connection(one.getsockname())'
        test "$($P run --net --keep -- readlink /proc/self/ns/net)" = "$(readlink /proc/self/ns/net)"
        "#,
    );
}

#[test]
fn a_full_disk_is_an_error_of_the_command() {
    as_root(
        r#"
        mkdir $HOME/small; mount -t tmpfs -o size=2m tmpfs $HOME/small
        gives 1 $P run --upper $HOME/small/changes --keep -- sh -c 'cp large copy 2> $HOME/error || exit 1'
        $P run --upper $HOME/small/changes --keep -- sh -c 'rm -f copy; echo small > small'
        $P run --upper $HOME/small/changes --keep -- cat small | grep -x small
        umount $HOME/small
        "#,
    );
}

#[test]
fn a_working_directory_that_is_gone_is_reported() {
    let said = plainly(
        r#"
        mkdir $HOME/gone; cd $HOME/gone; rmdir $HOME/gone
        gives 125 $P run --keep -- true
        cd $OUT
        "#,
    );
    assert!(said.contains("The working directory cannot be used"), "{said}");
}

#[test]
fn programs_work() {
    plainly(
        r#"
        cat > $TMPDIR/script <<'END'
set -e
git init -q repo; cd repo; git config user.name n; git config user.email e
printf 'all: hello\n\thello: hello.c\n' | sed 's/^\thello/hello/' > Makefile
printf '\tcc -o hello hello.c\n' >> Makefile
printf '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n' > hello.c
make -s; ./hello | grep -x hello
git add .; git commit -qm one; git clone -q . ../clone; git -C ../clone log --oneline | grep one
install -D hello /usr/local/bin/hello-of-run; hello-of-run
python3 -m venv --without-pip $HOME/venv; $HOME/venv/bin/python -c 'print("venv")'
tar -cf - . | tar -xf - -C /opt; /opt/hello
END
        $P run --discard -- sh $TMPDIR/script
        test ! -e repo
        "#,
    );
}

#[test]
fn a_package_is_installed_by_root() {
    as_root(
        r#"
        mkdir -p $TMPDIR/pkg/DEBIAN $TMPDIR/pkg/usr/bin $TMPDIR/pkg/etc
        printf 'Package: of-run\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: x\n' > $TMPDIR/pkg/DEBIAN/control
        printf '#!/bin/sh\nset -e\ninstall -d -o nobody -g 12 -m 2750 /var/lib/of-run\nchown daemon /etc/of-run\n' > $TMPDIR/pkg/DEBIAN/postinst
        chmod 755 $TMPDIR/pkg/DEBIAN/postinst
        printf '#!/bin/sh\necho installed\n' > $TMPDIR/pkg/usr/bin/of-run; chmod 755 $TMPDIR/pkg/usr/bin/of-run
        echo conf > $TMPDIR/pkg/etc/of-run
        dpkg-deb --root-owner-group -b $TMPDIR/pkg $TMPDIR/of-run.deb
        before=$(dpkg -l | sha256sum)
        $P run --upper $HOME/changes --keep -- sh -ec '
            DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $TMPDIR/of-run.deb
            of-run | grep -x installed; dpkg -s of-run | grep -q "^Status: install ok"
            test "$(stat -c "%U %g %a" /var/lib/of-run)" = "nobody 12 2750"; test "$(stat -c %U /etc/of-run)" = daemon
            su nobody -s /bin/sh -c id
        ' 2>&1
        test "$before" = "$(dpkg -l | sha256sum)"; test ! -e /usr/bin/of-run; test ! -e /var/lib/of-run
        $P run --upper $HOME/changes --discard
        "#,
    );
}

/// Works at a terminal: starts a shell, types, and waits for what it says.
const TERMINAL: &str = r#"
import fcntl, os, pty, re, select, struct, sys, termios, time
program, home = sys.argv[1], sys.argv[2]
pid, master = pty.fork()
if pid == 0:
    os.environ["PS1"] = "outer> "
    os.environ["ENV"] = ""
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
seen = ""
def expect(pattern, seconds=20):
    global seen
    end = time.time() + seconds
    while not re.search(pattern, seen):
        ready, _, _ = select.select([master], [], [], max(0, end - time.time()))
        if not ready:
            sys.exit(f"no {pattern!r} in {seen!r}")
        seen += os.read(master, 4096).decode(errors="replace")
    seen = seen[re.search(pattern, seen).end():]
def type_in(text):
    os.write(master, text.encode())
expect("outer> ")
type_in(f"{program} run --keep -- sh -c 'stty size; tty; test -t 0 && echo ter''minal'\n")
expect("33 77"); expect("/dev/"); expect("terminal"); expect("outer> ")
# Ctrl-C.
type_in(f"{program} run --keep -- sleep 100; echo st''atus $?\n"); time.sleep(2); type_in("\x03")
expect("status 130"); expect("outer> ")
# Ctrl-Z, and on.
type_in(f"{program} run --keep -- sh -c 'echo ready; read a; echo got $a'\n")
expect("ready\r"); type_in("\x1a"); expect("Stopped"); expect("outer> ")
type_in("fg\n"); expect("run --keep"); time.sleep(.5); type_in("word\n"); expect("got word"); expect("outer> ")
# A shell inside has jobs of its own, and gives the terminal back.
type_in(f"PS1='inner> ' {program} run --ask -- bash --norc --noprofile -i\n"); expect("inner> ")
type_in("sleep 100\n"); time.sleep(1); type_in("\x1a"); expect("Stopped"); expect("inner> ")
type_in("fg\n"); time.sleep(.5); type_in("\x03"); expect("inner> ")
type_in("echo new > new-file; exit 4\n"); expect("A file .*new-file"); expect(r"\? ")
type_in("l\n"); expect("A file .*new-file"); expect(r"\? "); type_in("d\n"); expect("discarded"); expect("outer> ")
type_in("echo st''atus $?\n"); expect("status 4"); expect("outer> ")
# A pager after it reads from the terminal.
type_in(f"{program} run --keep -- seq 3 2> /dev/null | {{ cat; read a < /dev/tty; echo ti''ed $a; }}\n")
expect("3\r"); type_in("knot\n"); expect("tied knot"); expect("outer> ")
type_in(f"{program} run --keep -- sh -c 'echo {home} > kept'\n"); expect("kept in"); expect("outer> ")
type_in("exit\n")
os.waitpid(pid, 0)
print("all was said")
"#;

#[test]
fn a_terminal_is_the_commands_own() {
    let said = plainly(&format!(
        r#"
        cat > $TMPDIR/terminal.py <<'END'
{TERMINAL}
END
        TERM=dumb python3 $TMPDIR/terminal.py $P $HOME
        "#
    ));
    assert!(said.contains("all was said"), "{said}");
}
