//! The channel to a mount at work, and the commands that use it: who may, and what they tell about
//! mounts of all kinds.
//!
//! Needs root and /dev/fuse; fails without them.

#[path = "suite/child.rs"]
mod child;
#[path = "suite/command.rs"]
mod command;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::control::frame::{self, Frame};
use overlayfs::control::{IOCTL, fact};
use serde_json::{Value, json};
use test_common::{Random, put};

use child::as_another_user;
use command::command;
use fixture::Fixture;
use mount::{Mount, eventually, program};

/// The numbers of the commands, as `docs/control.md` names them.
const INFO: u16 = 1;
const SYNC: u16 = 2;

/// Sends bytes to the channel of an open directory, and returns the answer.
fn exchange(root: &File, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    assert_eq!(bytes.len(), frame::SIZE);
    // SAFETY: the call reads and writes as many bytes as its number says, and these are there.
    match unsafe { libc::ioctl(root.as_raw_fd(), IOCTL as libc::Ioctl, bytes.as_mut_ptr()) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a command without arguments to a directory, and returns the errno of the call.
fn errno_of(dir: &Path, command: u16) -> i32 {
    let request = Frame { command, error: 0, cursor: 0, payload: &[] }.bytes().unwrap();
    let sent = File::open(dir).and_then(|root| exchange(&root, request));
    sent.err().map_or(0, |error| error.raw_os_error().unwrap())
}

fn synced(point: &Path) {
    assert_eq!(command(&["sync"], point), (0, String::new(), String::new()));
}

#[test]
fn sync_completes_partial_copies() {
    for more in ["", ",volatile"] {
        let fixture = Fixture::new();
        put::file(&fixture.path("lower"), "large", vec![7; 4 << 20]);
        let mount = fixture.mount(more);
        File::options().write(true).open(fixture.point().join("large")).unwrap().write_all(b"new").unwrap();
        fs::write(fixture.point().join("small"), "data").unwrap();
        synced(&fixture.point());
        let copy = fs::read(fixture.path("upper/large")).unwrap();
        assert_eq!((copy.len(), &copy[..4]), (4 << 20, &b"new\x07"[..]));
        assert!(copy[3..].iter().all(|byte| *byte == 7));
        assert_eq!(fs::read_to_string(fixture.path("upper/small")).unwrap(), "data");
        mount.unmount();
    }
}

#[test]
fn a_read_only_mount_has_the_channel_too() {
    let fixture = Fixture::new();
    for more in [",ro", ""] {
        let mount = fixture.mount(more);
        synced(&fixture.point());
        mount.unmount();
    }
}

#[test]
fn only_the_root_directory_is_the_channel() {
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "dir/file", "data");
    let mount = fixture.mount("");
    assert_eq!(errno_of(&fixture.point(), INFO), 0);
    for path in ["dir", "dir/file"] {
        assert_eq!(errno_of(&fixture.point().join(path), INFO), libc::ENOTTY, "{path}");
    }
    assert_eq!(errno_of(&fixture.point(), 0), libc::ENOTTY, "an unknown command");
    mount.unmount();
}

#[test]
fn another_user_is_refused() {
    let fixture = Fixture::new();
    let mount = fixture.mount("");
    let point = fixture.point();
    assert!(as_another_user(|| [INFO, SYNC, 77].iter().all(|command| errno_of(&point, *command) == libc::EPERM)));
    // An open descriptor gives no right either.
    let root = File::open(&point).unwrap();
    assert!(as_another_user(|| {
        let request = Frame { command: INFO, error: 0, cursor: 0, payload: &[] }.bytes().unwrap();
        exchange(&root, request).is_err_and(|error| error.raw_os_error() == Some(libc::EPERM))
    }));
    drop(root);
    mount.unmount();
}

#[test]
fn other_paths_are_refused_with_a_sentence() {
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "dir/file", "data");
    let mount = fixture.mount("");
    for path in [fixture.path("lower"), fixture.point().join("dir"), "/proc".into()] {
        let (code, out, said) = command(&["sync"], &path);
        assert_eq!((code, &*out), (1, ""));
        let shown = path.display();
        let sentence = format!(
            "overlayfs-fuse: The overlay at {shown} cannot be synced: no overlay of overlayfs-fuse is mounted there.\n"
        );
        assert_eq!(said, sentence);
    }
    mount.unmount();
    assert!(command(&["sync"], &fixture.path("gone")).2.ends_with("No such file or directory (os error 2).\n"));
}

#[test]
fn any_bytes_are_answered() {
    let fixture = Fixture::new();
    let mount = fixture.mount("");
    let root = File::open(fixture.point()).unwrap();
    let mut chance = Random(1);
    for number in 0..500 {
        let mut bytes = Frame { command: INFO, error: 0, cursor: 0, payload: &[] }.bytes().unwrap();
        for _ in 0..chance.below(200) + number {
            let at = if chance.below(2) == 0 { chance.below(40) } else { chance.below(frame::SIZE) };
            bytes[at] = chance.below(256) as u8;
        }
        match exchange(&root, bytes) {
            Ok(answer) => assert!(Frame::parse(&answer).is_ok()),
            Err(error) => assert!(matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOTTY)), "{error}"),
        }
    }
    let request = Frame { command: INFO, error: 0, cursor: 0, payload: &[] }.bytes().unwrap();
    let answer = exchange(&root, request).unwrap();
    let facts = fact::parse(Frame::parse(&answer).unwrap().payload).unwrap();
    assert!(facts.contains(&fact::Fact::number("pid", mount.daemon.id().into())), "{facts:?}");
    drop(root);
    mount.unmount();
}

/// Returns the objects that `ls --json` prints.
fn listed() -> Vec<Value> {
    let output = run::finish(run::command(program()).args(["ls", "--json"]));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the one object of a mount point.
fn object_at<'a>(objects: &'a [Value], point: &Path) -> &'a Value {
    let found: Vec<_> = objects.iter().filter(|object| object["mount_point"] == *point.to_str().unwrap()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

fn listed_at(point: &Path) -> Value {
    object_at(&listed(), point).clone()
}

/// Returns the object that `status --json` prints.
fn status(point: &Path) -> Value {
    let (code, out, said) = command(&["status", "--json"], point);
    assert_eq!((code, &*said), (0, ""));
    serde_json::from_str(&out).unwrap()
}

#[test]
fn ls_shows_what_a_mount_is() {
    let fixture = Fixture::with_work();
    let mount = fixture.mount(",noacl,volatile,max_threads=3");
    let shown = listed_at(&fixture.point());
    let path = |name| fixture.path(name).to_str().unwrap().to_owned();
    assert_eq!(shown["state"], "serving");
    assert_eq!(shown["pid"], mount.daemon.id());
    assert_eq!(shown["lower"], json!([path("lower")]));
    assert_eq!((&shown["upper"], &shown["work"]), (&json!(path("upper")), &json!(path("work"))));
    assert_eq!((&shown["format"], &shown["option"]), (&json!("oci"), &json!(["noacl", "volatile", "max_threads=3"])));
    let output = run::finish(run::command(program()).arg("ls"));
    let text = String::from_utf8(output.stdout).unwrap();
    let paragraph = text.split_once(&format!("{}\n    version", fixture.point().display())).unwrap().1;
    assert!(paragraph.contains(&format!("    pid             {}\n", mount.daemon.id())), "{text}");
    assert!(paragraph.contains(&format!("    lower           {}\n", path("lower"))), "{text}");
    mount.unmount();
}

#[test]
fn hundreds_of_layers_are_listed_and_shortened_in_the_table() {
    let fixture = Fixture::new();
    let lowers: Vec<_> = (0..300).map(|number| fixture.setup.dir(&format!("layer with spaces {number}"))).collect();
    let shown: Vec<_> = lowers.iter().map(|path| path.to_str().unwrap()).collect();
    let mount = Mount::new(&fixture.point(), &format!("lowerdir={}", shown.join(":")));
    assert_eq!(listed_at(&fixture.point())["lower"], json!(shown));
    let table = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(1) == fixture.point().to_str()).unwrap();
    let source = line.split(' ').next().unwrap();
    assert!(source.starts_with(&format!("lowerdir={}", shown[0].replace(' ', "\\040"))), "{source}");
    assert!(source.ends_with(":...") && source.len() <= 512, "{source}");
    // Programs that read the table understand the line.
    let found = run::finish(run::command("findmnt").args(["-no", "TARGET,FSTYPE", "-T"]).arg(fixture.point()));
    let found = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.trim(), format!("{} fuse.overlayfs-fuse", fixture.point().display()));
    mount.unmount();
}

#[test]
fn a_mount_remounts_with_its_source() {
    let fixture = Fixture::new();
    let mount = fixture.mount("");
    let source = run::finish(run::command("findmnt").args(["-no", "SOURCE", "-T"]).arg(fixture.point()));
    let source = String::from_utf8(source.stdout).unwrap();
    assert_eq!(source.trim(), fixture.options(""));
    let remount =
        run::finish(run::command(program()).args(["-o", "remount,ro", "--", source.trim()]).arg(fixture.point()));
    assert!(remount.status.success(), "{remount:?}");
    assert!(fs::write(fixture.point().join("new"), "").is_err());
    mount.unmount();
}

#[test]
fn a_daemon_that_does_not_answer_delays_nothing_for_long() {
    let (hangs, works) = (Fixture::new(), Fixture::new());
    let (hanging, working) = (hangs.mount(""), works.mount(""));
    let signal = |signal| {
        // SAFETY: takes two numbers. No code has waited for the process, which is a child.
        assert_eq!(unsafe { libc::kill(hanging.daemon.id().cast_signed(), signal) }, 0);
    };
    signal(libc::SIGSTOP);
    let begun = Instant::now();
    let point = works.point();
    let listed = thread::scope(|scope| {
        let listing = scope.spawn(listed);
        thread::sleep(Duration::from_secs(1));
        // While the list waits for the other daemon, it keeps this mount no more in use.
        assert!(Command::new("umount").arg(&point).status().unwrap().success());
        assert!(!listing.is_finished());
        listing.join().unwrap()
    });
    let state = |fixture: &Fixture| &object_at(&listed, &fixture.point())["state"];
    assert_eq!((state(&hangs), state(&works)), (&json!("silent"), &json!("serving")));
    let (code, _, said) = command(&["status"], &hangs.point());
    let sentence = format!(
        "overlayfs-fuse: The overlay at {} cannot be looked at: its program does not answer.\n",
        hangs.point().display()
    );
    assert_eq!((code, said), (1, sentence));
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    signal(libc::SIGCONT);
    assert_eq!(listed_at(&hangs.point())["state"], "serving");
    drop(working);
    hanging.unmount();
}

#[test]
fn a_dead_mount_is_shown_as_such() {
    let fixture = Fixture::new();
    let mut mount = fixture.mount("");
    mount.daemon.kill().unwrap();
    mount.daemon.wait().unwrap();
    assert_eq!(listed_at(&fixture.point())["state"], "dead");
    let (code, _, said) = command(&["status"], &fixture.point());
    assert!(code == 1 && said.ends_with("its program ended without an unmount.\n"), "{said}");
}

#[test]
fn a_mount_in_namespaces_of_its_own_is_listed() {
    let fixture = Fixture::new();
    // Another test may list all mounts just then. Its open root makes umount busy for that moment.
    let script = format!(
        "{} -f -o {} {} & until mountpoint -q {3}; do sleep .05; done; echo mounted; read -r _ || true;
        left=200; until umount {3}; do left=$((left - 1)); [ $left -gt 0 ]; sleep .05; done; wait",
        program(),
        fixture.options(""),
        fixture.point().display(),
        fixture.point().display()
    );
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-euc", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    io::BufRead::read_line(&mut io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "mounted\n");
    // A busy machine may answer later than the listing waits.
    let mut shown = json!(null);
    eventually("the mount answers", || {
        shown = listed_at(&fixture.point());
        shown["state"] == "serving"
    });
    assert_eq!(shown["upper"], json!(fixture.path("upper").to_str()));
    assert!(shown["seen_by"].is_u64(), "{shown}");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn status_counts_what_happens() {
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "large", vec![7; 4 << 20]);
    put::file(&fixture.path("lower"), "small", "x");
    let mount = fixture.mount("");
    let point = fixture.point();
    let before = status(&point);
    assert_eq!(
        (&before["copied_files"], &before["partial_copies"], &before["missing"]),
        (&json!(0), &json!(0), &json!(0))
    );
    let mut large = File::options().write(true).open(point.join("large")).unwrap();
    large.write_all(b"new").unwrap();
    rustix::fs::syncfs(&large).unwrap();
    File::options().append(true).open(point.join("small")).unwrap().write_all(b"y").unwrap();
    assert!(File::open(point.join("gone")).is_err() && fs::create_dir(point.join("small/dir")).is_err());
    let after = status(&point);
    assert_eq!((&after["copied_files"], &after["partial_copies"]), (&json!(2), &json!(1)));
    let missing = after["missing"].as_u64().unwrap();
    assert!(((4 << 20) - (1 << 17)..4 << 20).contains(&missing), "{missing}");
    assert!(after["copied"].as_u64().unwrap() >= 1);
    let count = |status: &Value, kind: &str| status["requests"][kind]["count"].as_u64().unwrap_or(0);
    assert!(count(&after, "lookup") > count(&before, "lookup") && count(&after, "ioctl") > count(&before, "ioctl"));
    // The mount does not know the flush of a close.
    assert!(count(&after, "other") > 0 && after["requests"][""].is_null(), "{after}");
    assert_eq!(after["requests"]["lookup"]["buckets"].as_array().unwrap().len(), 26);
    assert!(after["objects"].as_u64().unwrap() >= 2 && after["open_files"].as_u64().unwrap() >= 1);
    assert!(after["memory"].as_u64().unwrap() > 1 << 20 && after["descriptors"].as_u64().unwrap() > 5);
    assert!(after["backing_calls"]["stat"].as_u64().unwrap() > 0, "{after}");
    assert!(after["lookups"].as_u64() >= after["lookup_hits"].as_u64());
    drop(large);
    synced(&point);
    let synced = status(&point);
    assert_eq!((&synced["partial_copies"], &synced["missing"]), (&json!(0), &json!(0)));
    assert!(synced["copied"].as_u64().unwrap() >= missing);
    mount.unmount();
}

#[test]
fn errors_are_counted_by_errno() {
    let fixture = Fixture::new();
    let mount = fixture.mount("");
    let point = fixture.point();
    let absent = |_| rustix::fs::getxattr(&point, "user.none", &mut [0; 8]).unwrap_err();
    assert!((0..7).map(absent).all(|errno| errno == rustix::io::Errno::NODATA));
    assert_eq!(status(&point)["errors"][libc::ENODATA.to_string()], 7);
    mount.unmount();
}

#[test]
fn metrics_have_the_form_of_prometheus() {
    let fixture = Fixture::new();
    put::file(&fixture.path("lower"), "file", "x");
    let mount = fixture.mount("");
    fs::read(fixture.point().join("file")).unwrap();
    let (code, out, _) = command(&["status", "--metrics"], &fixture.point());
    assert_eq!(code, 0);
    let place = format!("mount_point=\"{}\"", fixture.point().display());
    let (mut declared, mut met) = (Vec::new(), 0);
    for line in out.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            declared.push(kind.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            let (name, rest) = line.split_once('{').unwrap();
            let (labels, value) = rest.rsplit_once("} ").unwrap();
            assert!(labels.starts_with(&place) && value.parse::<f64>().is_ok(), "{line}");
            let last = declared.last().unwrap();
            assert!(
                name == last || ["_bucket", "_sum", "_count"].iter().any(|end| name == format!("{last}{end}")),
                "{line}"
            );
            met += 1;
        }
    }
    assert!(met > 40 && declared.contains(&"overlayfs_copied_bytes_total".to_owned()), "{declared:?}");
    assert_eq!(declared.len(), declared.iter().collect::<std::collections::HashSet<_>>().len());
    assert!(out.contains("overlayfs_requests_seconds_bucket{") && out.contains("le=\"+Inf\"}"), "{out}");
    mount.unmount();
}

#[test]
fn watching_ends_with_the_mount() {
    let fixture = Fixture::new();
    let mount = fixture.mount("");
    let mut watching = Command::new(program())
        .args(["status", "--json", "--watch"])
        .arg(fixture.point())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(watching.stdout.take().unwrap()));
    for _ in 0..2 {
        let object: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(object["pid"], mount.daemon.id());
    }
    // The channel is open, so the mount is in use. It leaves the tree, and stays for the watcher.
    assert!(Command::new("umount").arg(fixture.point()).stderr(Stdio::null()).status().unwrap().code() != Some(0));
    watching.kill().unwrap();
    watching.wait().unwrap();
    mount.unmount();
}

/// Runs a script in a mount namespace of its own, with the socket of the journal or of syslog in
/// this process. Returns the messages that it gets. In the script $P is the program, $O the list of
/// the layers, and $M the mount point.
fn messages_to(socket: &str, script: &str) -> Vec<Vec<u8>> {
    let fixture = Fixture::new();
    let place = fixture.setup.dir("socket");
    let socket_path = Path::new(socket);
    let listener = UnixDatagram::bind(place.join(socket_path.file_name().unwrap())).unwrap();
    let dir = socket_path.parent().unwrap();
    let prepare = format!("mkdir -p {0}; mount --bind {1} {0}; {script}", dir.display(), place.display());
    let mut command = run::command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", &prepare]).env("P", program());
    let done = run::finish(command.env("O", fixture.options("")).env("M", fixture.point()));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    listener.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; 1 << 16];
    let messages = std::iter::from_fn(|| listener.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()));
    messages.collect()
}

/// A mount in the background that logs its events, from start to end.
const IN_BACKGROUND: &str =
    r#"$P -v -o "$O,log=$T" "$M" 2> said; umount "$M"; while pgrep -f "^$P .*$M" > pids; do sleep .1; done"#;

#[test]
fn the_journal_gets_messages_with_fields() {
    let script = format!("cd $(mktemp -d); T=journal; {IN_BACKGROUND}");
    let messages = messages_to("/run/systemd/journal/socket", &script);
    let texts: Vec<_> = messages.iter().map(|message| String::from_utf8(message.clone()).unwrap()).collect();
    assert!(texts.len() >= 3, "{texts:?}");
    for text in &texts {
        let fields: Vec<_> = text.lines().map(|line| line.split_once('=').unwrap().0).collect();
        assert_eq!(fields, ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "SYSLOG_FACILITY", "MOUNTPOINT"], "{text}");
        assert!(text.contains("\nPRIORITY=6\n") && text.ends_with("/mount\n"), "{text}");
    }
    assert!(
        texts[0].starts_with("MESSAGE=mounting ") && texts.last().unwrap().contains(" is unmounted\n"),
        "{texts:?}"
    );
}

#[test]
fn a_target_that_is_not_there_is_refused() {
    let fixture = Fixture::new();
    let script = "mkdir -p /run/systemd/journal; mount -t tmpfs tmpfs /run/systemd/journal; \"$@\"";
    let mut command = run::command("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh", &program(), "-o"]);
    let refused = run::finish(command.arg(fixture.options(",log=journal")).arg(fixture.point()));
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    let sentence = "The socket of the journal, /run/systemd/journal/socket, cannot be opened: ";
    assert!(said.starts_with(&format!("overlayfs-fuse: {sentence}")), "{said}");
}

#[test]
fn standard_error_stays_a_target_in_the_background() {
    let fixture = Fixture::new();
    let said = fixture.path("said");
    let started = run::command(program())
        .args(["-v", "-o", &fixture.options(",log=stderr")])
        .arg(fixture.point())
        .stderr(File::create(&said).unwrap())
        .status()
        .unwrap();
    assert!(started.success());
    eventually("it is unmounted", || Command::new("umount").arg(fixture.point()).status().unwrap().success());
    eventually("the last message is there", || fs::read_to_string(&said).unwrap().ends_with(" is unmounted\n"));
    let text = fs::read_to_string(&said).unwrap();
    assert!(text.starts_with("overlayfs-fuse: mounting ") && text.matches(" is unmounted").count() == 1, "{text}");
}

#[test]
fn the_units_of_systemd_are_right() {
    let fixture = Fixture::new();
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/systemd"));
    for (unit, name) in
        [("overlayfs-fuse@.service", "overlayfs-fuse@srv-data.service"), ("srv-data.mount", "srv-data.mount")]
    {
        let text = fs::read_to_string(folder.join(unit)).unwrap().replace("/usr/bin/overlayfs-fuse", &program());
        fs::write(fixture.path(name), text).unwrap();
        let mut verify = run::command("systemd-analyze");
        let checked = run::finish(verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(fixture.path(name)));
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success() && !said.contains(name), "{said}");
    }
}
