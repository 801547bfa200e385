//! `overlayfs-fuse` from its start to its end: the moment when it returns, its refusals, and the
//! ways to unmount it. Also nested layers, the rights of two users, and a tree larger than the
//! cache. `OVERLAYFS_ENTRIES=1000000` makes that tree larger.
//!
//! Needs root and /dev/fuse; fails without them.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::{env, io, process};

use rustix::fs::{CWD, FileType};

use fixture::Fixture;
use mount::{Mount, eventually, is_mounted, program};
use test_common::{LowerGuard, mode, names, owner, put};

/// Makes a fixture with a file in the lower layer, and a directory `work`.
fn filled() -> Fixture {
    let fixture = Fixture::new();
    fixture.setup.dir("work");
    put::file(&fixture.path("lower"), "dir/file", "data");
    fixture
}

/// Returns a text with the path of the setup in place of each @.
fn expanded(fixture: &Fixture, text: &str) -> String {
    text.replace('@', fixture.setup.root().to_str().unwrap())
}

/// Mounts with a list of options that has the path of the setup in place of each @.
fn mount_with(fixture: &Fixture, list: &str) -> Mount {
    Mount::new(&fixture.point(), &expanded(fixture, list))
}

const LAYERS: &str = "lowerdir=@/lower,upperdir=@/upper";

/// The default number of entries: more than the cache holds.
const ENTRIES: usize = 100_000;
/// The number of entries in one directory.
const IN_ONE: usize = 500;
/// The limit of memory of the daemon in KiB, for any number of entries.
const MEMORY: usize = 200 * 1024;

fn start(list: &str, point: &Path) -> Output {
    run::finish(run::command(program()).args(["-o", list]).arg(point))
}

/// Returns the daemons with this mount point that have not ended.
fn daemons(point: &Path) -> Vec<i32> {
    let is_daemon = |pid: &i32| {
        // The unmounter of each mount has another name.
        if fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end() == "unmounter" {
            return false;
        }
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = words.split(|byte| *byte == 0);
        words.next() == Some(program().as_bytes()) && words.any(|word| Some(word) == point.to_str().map(str::as_bytes))
    };
    let processes = fs::read_dir("/proc").unwrap();
    processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok()).filter(is_daemon).collect()
}

fn umount(point: &Path) -> bool {
    run::finish(run::command("umount").arg(point)).status.success()
}

/// Returns whether a shell of another user than root can run this script.
fn stranger_can(script: &str, dir: &Path) -> bool {
    let mut command = run::command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-ec", script]);
    run::finish(command.current_dir(dir)).status.success()
}

#[test]
fn in_the_background_it_returns_with_the_mount_ready_and_ends_with_umount() {
    let fixture = filled();
    let point = fixture.point();
    let output = start(&fixture.options(""), &point);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert!(is_mounted(&point));
    assert_eq!(fs::read_to_string(point.join("dir/file")).unwrap(), "data");
    assert_eq!(daemons(&point).len(), 1);
    eventually("it is unmounted", || umount(&point));
    eventually("the daemon has ended", || daemons(&point).is_empty());
}

#[test]
fn in_the_foreground_it_stays_until_umount() {
    let fixture = filled();
    // The unmount waits for the daemon, which must succeed.
    let mount = fixture.mount("");
    assert_eq!(daemons(&fixture.point()).len(), 1);
    fs::write(fixture.point().join("new"), "x").unwrap();
    mount.unmount();
    assert!(!is_mounted(&fixture.point()));
    assert_eq!(names(&fixture.point()), [""; 0]);
    assert_eq!(fs::read_to_string(fixture.path("upper/new")).unwrap(), "x");
}

#[test]
fn a_busy_mount_stays_mounted() {
    let fixture = filled();
    let mount = fixture.mount("");
    let mut file = File::options().append(true).open(fixture.point().join("dir/file")).unwrap();
    assert!(!umount(&fixture.point()), "a file is open");
    file.write_all(b" and more").unwrap();
    assert_eq!(fs::read_to_string(fixture.point().join("dir/file")).unwrap(), "data and more");
    drop(file);
    mount.unmount();
}

#[test]
fn signals_unmount_also_with_files_open() {
    for signal in ["INT", "TERM"] {
        let fixture = filled();
        let point = fixture.point();
        let guard = fixture.guard();
        assert!(start(&fixture.options(""), &point).status.success());
        let mut file = File::options().append(true).open(point.join("dir/file")).unwrap();
        file.write_all(b", before").unwrap();
        let [daemon] = daemons(&point)[..] else { panic!("there is not one daemon") };
        assert!(run::finish(run::command("kill").args(["-s", signal, &daemon.to_string()])).status.success());
        eventually("nothing is mounted", || !is_mounted(&point));
        file.write_all(b" and after").unwrap();
        file.sync_all().unwrap();
        drop(file);
        eventually("the daemon has ended", || daemons(&point).is_empty());
        assert_eq!(fs::read_to_string(fixture.path("upper/dir/file")).unwrap(), "data, before and after", "{signal}");
        guard.check();
        // Nothing is left that prevents the next mount.
        let mount = fixture.mount("");
        assert_eq!(fs::read_to_string(point.join("dir/file")).unwrap(), "data, before and after");
        mount.unmount();
    }
}

#[test]
fn refusals_are_sentences_that_name_path_and_cause() {
    let fixture = filled();
    put::file(fixture.setup.root(), "plain-file", "");
    fixture.setup.dir("upper/inside");
    fixture.setup.dir("work/inside");
    symlink("upper", fixture.path("link-to-upper")).unwrap();
    let missing = "No such file or directory";
    for (list, named, cause) in [
        ("lowerdir=@/missing", "@/missing", missing),
        ("lowerdir=@/lower:@/missing,upperdir=@/upper", "@/missing", missing),
        ("lowerdir=@/lower,upperdir=@/missing", "@/missing", missing),
        ("lowerdir=@/lower,upperdir=@/upper,workdir=@/missing", "@/missing", missing),
        ("lowerdir=@/plain-file", "@/plain-file", "is not a directory"),
        ("lowerdir=@/lower,upperdir=@/plain-file", "@/plain-file", "is not a directory"),
        ("lowerdir=@/upper/inside,upperdir=@/upper", "@/upper/inside", "is inside the upper layer"),
        ("lowerdir=@/upper,upperdir=@/upper", "@/upper", "both as the upper layer and as a lower one"),
        ("lowerdir=@/link-to-upper,upperdir=@/upper", "@/upper", "both as the upper layer and as a lower one"),
        ("lowerdir=@/work/inside,upperdir=@/upper,workdir=@/work", "@/work/inside", "is inside the work directory"),
        ("lowerdir=@/lower,upperdir=@/upper,workdir=@/upper/inside", "@/upper/inside", "contain each other"),
        ("lowerdir=@/lower,upperdir=@/upper,workdir=/dev/shm", "/dev/shm", "not on the filesystem of the upper layer"),
        ("lowerdir=@/lower,upperdir=/proc", "/proc", "upper layer"),
        ("lowerdir=@/lower,wrokdir=@/work", "wrokdir", "Did you mean workdir?"),
        ("lowerdir=@/lower,uperdir=@/work", "uperdir", "Did you mean upperdir?"),
        ("upperdir=@/upper", "", "No lower directory is given"),
    ] {
        refused(&fixture, list, &fixture.point(), named, cause);
    }
    refused(&fixture, LAYERS, &fixture.path("nowhere"), "@/nowhere", missing);
    refused(&fixture, LAYERS, &fixture.path("plain-file"), "@/plain-file", "not a directory");
}

/// Panics unless a mount is refused with one sentence that contains the given words. Tries it in
/// the background and in the foreground. No mount may stay.
fn refused(fixture: &Fixture, list: &str, point: &Path, named: &str, cause: &str) {
    for flags in [&[][..], &["-f"]] {
        let list = expanded(fixture, list);
        let output = run::finish(run::command(program()).args(flags).args(["-o", &list]).arg(point));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{list}: {said}");
        assert!(said.starts_with("overlayfs-fuse: ") && said.lines().count() == 1, "{list}: {said}");
        assert!(said.contains(&expanded(fixture, named)) && said.contains(cause), "{list}: {said}");
        assert!(!is_mounted(point));
        assert_eq!(daemons(point), []);
    }
}

#[test]
fn an_upper_layer_has_one_daemon() {
    let fixture = filled();
    let other = fixture.setup.dir("other");
    let mount = fixture.mount("");
    refused(&fixture, LAYERS, &other, "@/upper", &expanded(&fixture, "in use by the overlay at @/mount"));
    refused(
        &fixture,
        "lowerdir=@/lower,upperdir=@/upper,workdir=@/work",
        &other,
        "@/upper",
        "in use by another overlay",
    );
    fs::write(fixture.point().join("still"), "works").unwrap();
    mount.unmount();
    let mount = Mount::new(&other, &fixture.options(""));
    assert_eq!(fs::read_to_string(other.join("still")).unwrap(), "works");
    mount.unmount();
}

#[test]
fn without_an_upper_layer_every_change_is_refused() {
    let fixture = filled();
    let guard = fixture.guard();
    let mount = mount_with(&fixture, "lowerdir=@/lower");
    let path = |name: &str| fixture.point().join(name);
    assert_eq!(fs::read_to_string(path("dir/file")).unwrap(), "data");
    let file = path("dir/file");
    let attempts: [(&str, io::Result<()>); 10] = [
        ("write", File::options().write(true).open(&file).map(drop)),
        ("truncate", File::options().write(true).truncate(true).open(&file).map(drop)),
        ("create", File::create_new(path("new")).map(drop)),
        ("mkdir", fs::create_dir(path("new"))),
        ("symlink", symlink("target", path("new"))),
        ("link", fs::hard_link(&file, path("new"))),
        ("rename", fs::rename(&file, path("new"))),
        ("unlink", fs::remove_file(&file)),
        ("chmod", fs::set_permissions(&file, fs::metadata(&file).unwrap().permissions())),
        ("chown", std::os::unix::fs::chown(&file, Some(1), None)),
    ];
    for (what, result) in attempts {
        assert_eq!(result.map_err(|error| error.kind()), Err(ErrorKind::ReadOnlyFilesystem), "{what}");
    }
    mount.unmount();
    guard.check();
}

#[test]
fn a_large_file_is_changed_without_a_copy_until_the_end() {
    let fixture = filled();
    let lower = fixture.path("lower/dir/large");
    let content: Vec<u8> = (0..64usize << 20).map(|index| (index >> 10) as u8 | 1).collect();
    fs::write(&lower, &content).unwrap();
    let guard = fixture.guard();
    for more in ["", ",door=scheme"] {
        let mount = fixture.mount(more);
        let file = fixture.point().join("dir/large");
        mode(&file, 0o604);
        File::options().append(true).open(&file).unwrap().write_all(b"end").unwrap();
        File::options().write(true).open(&file).unwrap().write_all_at(b"in between", 5_000_000).unwrap();
        let mut bytes = [&content[..], b"end"].concat();
        bytes[5_000_000..5_000_010].copy_from_slice(b"in between");
        let part = fs::metadata(test_common::partial_file(&fixture.path("upper/dir"), "part", "large")).unwrap();
        assert!(part.blocks() * 512 < 1 << 20);
        // The kernel may show its cached attributes.
        let read =
            Command::new("dd").arg(format!("if={}", file.display())).args(["iflag=direct", "bs=1M"]).output().unwrap();
        assert!(read.stdout == bytes, "{}", String::from_utf8_lossy(&read.stderr));
        mount.unmount();
        assert_eq!(names(&fixture.path("upper/dir")), ["large"]);
        assert!(fs::read(fixture.path("upper/dir/large")).unwrap() == bytes);
        fs::remove_dir_all(fixture.path("upper")).unwrap();
        fixture.setup.dir("upper");
    }
    guard.check();
}

/// Users overlay `/`, with the upper layer, the work directory and the mount point somewhere in it.
#[test]
fn a_lower_layer_may_contain_all_the_others() {
    let fixture = filled();
    let mount = mount_with(&fixture, "lowerdir=@,upperdir=@/upper,workdir=@/work");
    let point = fixture.point();
    fs::write(point.join("lower/dir/file"), "changed").unwrap();
    fs::write(point.join("new"), "new").unwrap();
    for name in ["upper", "work", "mount"] {
        assert_eq!(names(&point.join(name)), [""; 0], "/{name}");
    }
    let found = run::finish(run::command("find").arg(&point).args(["-printf", "%P\n"]));
    let mut found: Vec<_> = str::from_utf8(&found.stdout).unwrap().lines().filter(|path| !path.is_empty()).collect();
    found.sort();
    assert_eq!(found, ["lower", "lower/dir", "lower/dir/file", "mount", "new", "upper", "work"]);
    assert_eq!(fs::read_to_string(point.join("lower/dir/file")).unwrap(), "changed");
    mount.unmount();
    assert_eq!(fs::read_to_string(fixture.path("lower/dir/file")).unwrap(), "data");
    assert_eq!(fs::read_to_string(fixture.path("upper/lower/dir/file")).unwrap(), "changed");
    assert_eq!(names(fixture.setup.root()), ["lower", "mount", "upper", "work"]);
}

#[test]
fn the_upper_layer_without_a_work_directory_inside_a_lower_layer() {
    let fixture = filled();
    let mount = mount_with(&fixture, "lowerdir=@,upperdir=@/upper");
    fs::rename(fixture.point().join("lower"), fixture.point().join("renamed")).unwrap();
    assert_eq!(names(&fixture.point()), ["mount", "renamed", "upper", "work"]);
    assert_eq!(fs::read_to_string(fixture.point().join("renamed/dir/file")).unwrap(), "data");
    assert_eq!(names(&fixture.point().join("upper")), [""; 0]);
    mount.unmount();
}

#[test]
fn signs_of_the_list_may_be_in_names() {
    let fixture = filled();
    put::file(fixture.setup.root(), "a:b,c\\d/inside", "found");
    let mount = mount_with(&fixture, r"lowerdir=@/a\:b\,c\\d:@/lower,upperdir=@/upper");
    assert_eq!(names(&fixture.point()), ["dir", "inside"]);
    assert_eq!(fs::read_to_string(fixture.point().join("inside")).unwrap(), "found");
    mount.unmount();
}

#[test]
fn the_modes_of_the_layers_decide_for_each_user() {
    let fixture = filled();
    let lower = fixture.path("lower");
    put::file(&lower, "private", "of root");
    put::file(&lower, "closed/file", "");
    put::file(&lower, "shared/of-root", "");
    put::file(&lower, "theirs", "of the stranger");
    for (name, bits) in [("private", 0o600), ("closed", 0o700), ("shared", 0o1777), ("theirs", 0o600), ("dir", 0o755)] {
        mode(&lower.join(name), bits);
    }
    owner(&lower.join("theirs"), 65534, 65534);
    let guard = LowerGuard::new([lower]);
    let mount = fixture.mount("");
    let point = fixture.point();
    for script in [
        "cat dir/file; ls dir; cat theirs; ls shared",
        "echo more >> theirs; chmod 640 theirs; touch -d 2001-01-01 theirs",
        "echo x > shared/mine; mkdir shared/dir; ln shared/mine shared/again; mv shared/mine shared/dir; rm shared/again",
        "test ! -r private; test ! -x closed; test ! -w .; test -w theirs",
    ] {
        assert!(stranger_can(script, &point), "{script}");
    }
    for script in [
        "cat private",
        "echo x >> private",
        "chmod 777 private",
        "ls closed",
        "cat closed/file",
        "echo x >> dir/file",
        "rm -f dir/file",
        "mv dir moved",
        "mkdir new",
        "touch shared/../new",
        "rm -f shared/of-root",
        "mv shared/of-root shared/dir/taken",
        "chown 0 theirs",
        "chmod 700 shared",
    ] {
        assert!(!stranger_can(script, &point), "{script}");
    }
    mount.unmount();
    guard.check();
    let of =
        |name: &str| run::finish(run::command("stat").args(["-c", "%u:%g %a"]).arg(fixture.path("upper").join(name)));
    assert_eq!(str::from_utf8(&of("theirs").stdout).unwrap(), "65534:65534 640\n");
    assert_eq!(str::from_utf8(&of("shared/dir/mine").stdout).unwrap().split(' ').next(), Some("65534:65534"));
}

/// Walks a tree, and returns the number of entries and the sum of their inode numbers.
fn walk(dir: &Path) -> (usize, u64) {
    let mut met = (0, 0u64);
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        met = (met.0 + 1, met.1.wrapping_add(stat.ino()));
        if stat.is_dir() {
            let below = walk(&path);
            met = (met.0 + below.0, met.1.wrapping_add(below.1));
        }
    }
    met
}

/// Returns the peak memory of a process in KiB.
fn memory(pid: u32) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_large_tree_is_walked_in_bounded_memory_with_few_descriptors() {
    // The run of an unprivileged user needs only a smaller tree.
    let entries = if env::var_os(unprivileged::VARIABLE).is_some() { ENTRIES / 5 } else { ENTRIES };
    let entries = env::var("OVERLAYFS_ENTRIES").map_or(entries, |number| number.parse().unwrap());
    let fixture = filled();
    let (lower, point) = (fixture.path("lower/many"), fixture.point());
    fs::create_dir(&lower).unwrap();
    let dirs = entries / IN_ONE;
    for index in 0..dirs {
        let dir = lower.join(format!("dir-{index}"));
        fs::create_dir(&dir).unwrap();
        for index in 0..IN_ONE {
            rustix::fs::mknodat(CWD, dir.join(index.to_string()), FileType::RegularFile, rustix::fs::Mode::RUSR, 0)
                .unwrap();
        }
    }
    let options = fixture.options("");
    let script = format!("ulimit -n 1024; exec {} -f -o {options} {}", program(), point.display());
    let mut daemon = process::Command::new("sh").arg("-c").arg(script).spawn().unwrap();
    eventually("it is mounted", || is_mounted(&point));

    let first = walk(&point.join("many"));
    assert_eq!(first.0, dirs * (IN_ONE + 1));
    assert_eq!(walk(&point.join("many")), first, "the second walk meets the same objects");
    let taken = memory(daemon.id());
    assert!(taken < MEMORY, "the daemon takes {taken} KiB for {entries} entries");

    eventually("it is unmounted", || umount(&point));
    assert!(daemon.wait().unwrap().success());
}

/// With `debug` the daemon logs each request.
#[test]
fn files_are_opened_and_closed_without_a_request() {
    let fixture = filled();
    let (point, log) = (fixture.point(), fixture.path("log"));
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 2>\"$LOG\" \"$0\" \"$@\""]).env("LOG", &log);
    let mount = Mount::by(shell, &point, &fixture.options(",debug"));
    // The daemon looks for files that may not be opened, a step for each request.
    for index in 0..50 {
        assert!(fs::metadata(point.join(index.to_string())).is_err());
    }
    for index in 0..3 {
        fs::write(point.join(index.to_string()), "content").unwrap();
        assert_eq!(fs::read_to_string(point.join(index.to_string())).unwrap(), "content");
    }
    mount.unmount();
    let said = fs::read_to_string(log).unwrap();
    let requests = |name: &str| said.lines().filter(|line| line.contains(&format!(" {name} of "))).count();
    // The first of a kind learns that there are no others.
    assert_eq!((requests("create"), requests("mknod"), requests("open"), requests("release")), (1, 3, 1, 0), "{said}");
}

#[test]
fn as_an_unprivileged_user() {
    let forbidden = "there is no other user in the namespace";
    unprivileged::again(&[""], &[("the_modes_of_the_layers_decide_for_each_user", forbidden)], &[]);
}
