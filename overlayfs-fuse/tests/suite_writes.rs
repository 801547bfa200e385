//! An accepted write is not lost. Programs that ignore the result of close(2) get the error from
//! open(2) or write(2). A filesystem without an overlay and the kernel's overlayfs do the same.
//!
//! Needs root, /dev/fuse, loop devices, mkfs.ext4, btrfs, chattr, setfacl, python3 and sqlite3.

#[path = "suite/disk.rs"]
mod disk;
#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/mount.rs"]
mod mount;
#[path = "writes/random.rs"]
mod random;
#[path = "suite/run.rs"]
mod run;

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use disk::Disk;
use mount::{Mount, eventually};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use test_common::{Detail, LowerGuard, Setup, Snapshot, mode, owner, put};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Programs that write the text `$1` to the existing file `$0`.
const WRITERS: &[&str] = &[
    r#"echo "$1" >> "$0""#,
    r#"printf '%s\n' "$1" >> "$0""#,
    r#"cat >> "$0" <<< "$1""#,
    r#"python3 -c 'import sys; file = open(sys.argv[1], "a"); file.write(sys.argv[2] + "\n"); file.close()' "$0" "$1""#,
    r#"awk -v text="$1" -v file="$0" 'BEGIN { print text >> file }'"#,
    r#"echo "$1" | dd of="$0" oflag=append conv=notrunc status=none"#,
    r#"echo "$1" | tee -a "$0" > /dev/null"#,
];

/// Directories for a mount, on a filesystem of their own.
struct Fixture {
    setup: Setup,
    disk: Disk,
}

impl Fixture {
    fn new(size: u64) -> Self {
        let setup = Setup::new();
        let disk = Disk::ext4(&setup, &setup.path("image"), size, "has_journal");
        for name in ["lower", "upper", "work"] {
            disk.dir(name);
        }
        Self { setup, disk }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.disk.point.join(path)
    }

    fn mounted(&self, path: &str) -> PathBuf {
        self.setup.path("mount").join(path)
    }

    fn options(&self) -> String {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.path(name).display().to_string());
        format!("lowerdir={lower},upperdir={upper},workdir={work}")
    }

    fn mount(&self, more: &str) -> Mount {
        Mount::new(&self.setup.dir("mount"), &format!("{}{more}", self.options()))
    }

    /// Mounts by a command that runs its last arguments.
    fn mount_by(&self, command: Command, more: &str) -> Mount {
        Mount::by(command, &self.setup.dir("mount"), &format!("{}{more}", self.options()))
    }
}

/// Runs a script in bash with two arguments. Returns whether it succeeded.
fn runs(script: &str, file: &Path, text: &str) -> bool {
    run::finish(run::command("bash").args(["-c", script]).arg(file).arg(text)).status.success()
}

/// Runs every writer: it either fails, or its text must be in the file, also after another mount.
/// Returns the number of failures.
fn write_all_ways(files: &[PathBuf], told: &mut Vec<(PathBuf, String)>) -> usize {
    let mut failed = 0;
    for file in files {
        for (number, writer) in WRITERS.iter().enumerate() {
            let text = format!("text {number}");
            match runs(writer, file, &text) {
                true => told.push((file.clone(), text)),
                false => failed += 1,
            }
        }
    }
    failed
}

#[track_caller]
fn check(told: &[(PathBuf, String)]) {
    for (file, text) in told {
        let content = fs::read(file).unwrap();
        let found = content.windows(text.len()).any(|part| part == text.as_bytes());
        assert!(found, "{text:?} was written to {} and is not there", file.display());
    }
}

/// Takes all space that is left.
fn fill(path: &Path) {
    let file = File::create(path).unwrap();
    let mut at = 0;
    for size in [64 * MIB, MIB, 64 << 10] {
        while rustix::fs::fallocate(&file, FallocateFlags::empty(), at, size).is_ok() {
            at += size;
        }
    }
    while file.write_all_at(&[1; 1024], at).and_then(|()| file.sync_all()).is_ok() {
        at += 1024;
    }
}

/// In a small filesystem the kernel announces every write to the daemon. In a large one it stopped
/// that before the space was gone.
fn a_full_disk(size: u64, more: &str) {
    let fixture = Fixture::new(size);
    for name in ["one", "two", "three"] {
        put::file(&fixture.path("lower"), name, "lower");
        // One more byte of text needs another block.
        put::file(&fixture.path("upper"), &format!("upper-{name}"), vec![b'-'; 4096]);
    }
    let guard = LowerGuard::new([fixture.path("lower")]);
    let mount = fixture.mount(more);
    let known: Vec<_> = ["upper-one", "upper-two"].map(|name| fixture.mounted(name)).into();
    let held = OpenOptions::new().append(true).open(&known[0]).unwrap();
    (&held).write_all(&[b'+'; 4096]).unwrap();
    let mut told = Vec::new();
    assert_eq!(write_all_ways(&known[1..], &mut told), 0, "there is space");

    fill(&fixture.path("filler"));
    // A creation of a file checks the space at once, and other calls follow.
    assert!(!runs(r#"echo "$1" > "$0""#, &fixture.mounted("new"), "text"));
    let refused = (&held).write_all(&[b'+'; 8192]).and_then(|()| (&held).write_all(&[b'+'; 8192])).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC), "a file that was open");
    let files: Vec<_> = ["upper-two", "upper-three", "one"].map(|name| fixture.mounted(name)).into();
    let failed = write_all_ways(&files, &mut told);
    assert!(failed > 0, "nothing failed");
    for script in [
        r#"cp /bin/sh "$0""#,
        r#"sqlite3 "$0" 'create table t (x); insert into t values (randomblob(100000));'"#,
        r#"cat /bin/sh > "$0""#,
        r#"dd if=/bin/sh of="$0" bs=4k status=none"#,
    ] {
        assert!(!runs(script, &fixture.mounted("more"), ""), "{script}");
        let _ = fs::remove_file(fixture.mounted("more"));
    }
    check(&told);

    // Freed space is available at once.
    fs::remove_file(fixture.path("filler")).unwrap();
    assert_eq!(write_all_ways(&files, &mut told), 0, "there is space again");
    check(&told);
    drop(held);
    mount.unmount();
    let mount = fixture.mount("");
    check(&told);
    mount.unmount();
    guard.check();
}

#[test]
fn a_full_small_disk() {
    a_full_disk(24 * MIB, "");
}

#[test]
fn a_full_disk_without_write_back() {
    a_full_disk(24 * MIB, ",writeback=0");
}

#[test]
fn a_disk_filled_by_another_program() {
    // The size is more than the kernel holds back for one mount.
    a_full_disk(1024 * MIB, "");
}

/// Changes the middle of files of a lower layer. Not all of them fit into the upper one. Returns
/// the errno of each change.
fn large_changes(fixture: &Fixture, count: usize) -> Vec<Option<i32>> {
    let change = |index: usize| {
        let file = OpenOptions::new().write(true).open(fixture.mounted(&index.to_string()))?;
        file.write_all_at(b"changed", MIB + 77)
    };
    (0..count).map(|index| change(index).err().and_then(|error| error.raw_os_error())).collect()
}

/// A change of a large file is refused where the kernel's overlayfs refuses it. An accepted change
/// has space for the rest of its file.
#[test]
fn large_files_without_room() {
    let all = ["linux", "", ",writeback=0", ",volatile", ",format=kernel", ",door=scheme"];
    for (disk, size, kinds) in [(48, 15, &all[..]), (210, 70, &all[..2])] {
        let mut right = None;
        for kind in kinds {
            let fixture = Fixture::new(disk * MIB);
            let lower = fixture.setup.dir("large");
            let content = |index: u8| vec![b'0' + index; (size * MIB) as usize];
            for index in 0..4 {
                put::file(&lower, &index.to_string(), content(index));
            }
            let [upper, work] = ["upper", "work"].map(|name| fixture.path(name).display().to_string());
            let options = format!("lowerdir={},upperdir={upper},workdir={work}", lower.display());
            let point = fixture.setup.dir("mount");
            if *kind == "linux" {
                disk::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&point));
                right = Some(large_changes(&fixture, 4));
                mount::unmount(&point);
                continue;
            }
            let mount = Mount::new(&point, &format!("{options}{kind}"));
            let refused = large_changes(&fixture, 4);
            assert_eq!(Some(&refused), right.as_ref(), "{disk} MiB{kind}");
            mount.unmount();
            let mount = Mount::new(&point, &options);
            for (index, refused) in (0..).zip(&refused) {
                let mut content = content(index);
                if refused.is_none() {
                    content[MIB as usize + 77..][..7].copy_from_slice(b"changed");
                }
                assert!(fs::read(fixture.mounted(&index.to_string())).unwrap() == content, "{disk} MiB{kind}: {index}");
            }
            mount.unmount();
        }
        assert!(right.is_some_and(|right| right.first() == Some(&None) && right.last() == Some(&Some(libc::ENOSPC))));
    }
}

#[test]
fn random_changes_on_a_disk_that_is_full_at_times() {
    // With `volatile` fsync completes nothing, so another program could take the space for the rest
    // of a large file.
    let all = ["", "", ",writeback=0", ",format=kernel", ",volatile,whole_copies"];
    for (seed, more) in (1..).zip(all) {
        random::changes(seed, more);
    }
}

/// A quota that the statistics of the filesystem do not show. An accepted write may be the first
/// call to reach it. Here the creation of a file is the first.
#[test]
fn a_quota_that_is_exhausted() {
    let setup = Setup::new();
    let image = setup.path("image");
    File::create(&image).unwrap().set_len(600 * MIB).unwrap();
    disk::run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
    let disk = Disk { point: setup.dir("disk") };
    disk.mount(&image);
    let volume = disk.point.join("volume");
    let btrfs = |words: &[&str]| disk::run(Command::new("btrfs").args(words));
    btrfs(&["subvolume", "create", volume.to_str().unwrap()]);
    for (layer, name) in [("lower", "lower"), ("upper", "one"), ("upper", "two")] {
        put::file(&put::dir(&volume, layer), name, vec![b'-'; 4096]);
    }
    btrfs(&["quota", "enable", disk.point.to_str().unwrap()]);
    btrfs(&["qgroup", "limit", "8M", volume.to_str().unwrap()]);
    disk::run(Command::new("sync").arg("-f").arg(&disk.point));
    let [lower, upper] = ["lower", "upper"].map(|name| volume.join(name).display().to_string());
    let mount = Mount::new(&setup.dir("mount"), &format!("lowerdir={lower},upperdir={upper}"));
    let mounted = |name: &str| setup.path("mount").join(name);
    let files: Vec<_> = ["one", "two", "lower"].map(mounted).into();
    let mut told = Vec::new();
    assert_eq!(write_all_ways(&files[..1], &mut told), 0, "there is space");

    let filler = File::create(volume.join("filler")).unwrap();
    let piece = vec![1; 64 << 10];
    for at in 0.. {
        let offset = at * piece.len() as u64;
        if filler.write_all_at(&piece, offset).and_then(|()| filler.sync_all()).is_err() {
            break;
        }
    }
    eventually("the quota is exhausted", || {
        let more = mounted("more");
        fs::write(&more, vec![1; 64 << 10]).and_then(|()| File::open(&more)?.sync_all()).is_err()
    });
    let failed = write_all_ways(&files, &mut told);
    assert_eq!(failed, files.len() * WRITERS.len(), "something was taken");
    check(&told);
    mount.unmount();
}

/// Returns the errnos of the same calls, for the kernel's overlayfs and for this one. With
/// `appends` there are appends too.
fn refusals(point: &Path, appends: bool) -> Vec<(String, Option<i32>)> {
    let mut said = Vec::new();
    for name in ["immutable", "append"] {
        let file = point.join(name);
        let mut say = |what: &str, result: io::Result<()>| {
            said.push((format!("{what} {name}"), result.err().and_then(|error| error.raw_os_error())));
        };
        let open = |options: &mut OpenOptions| options.open(&file).map(drop);
        say("open for reading", open(OpenOptions::new().read(true)));
        say("open for writing", open(OpenOptions::new().write(true)));
        say("open for both", open(OpenOptions::new().read(true).write(true)));
        say("open and truncate", open(OpenOptions::new().write(true).custom_flags(libc::O_TRUNC)));
        let path = CString::new(file.as_os_str().as_encoded_bytes()).unwrap();
        // SAFETY: the path is a C string that outlives the call.
        let truncated = unsafe { libc::truncate(path.as_ptr(), 0) };
        say("truncate", if truncated == 0 { Ok(()) } else { Err(io::Error::last_os_error()) });
        say("unlink", fs::remove_file(&file));
        say("rename", fs::rename(&file, point.join("other")));
        say("link", fs::hard_link(&file, point.join("other")));
        say("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o600)));
        say("rename over", fs::rename(point.join("usual"), &file));
        let append = |bytes: &[u8]| {
            let mut open = OpenOptions::new().append(true).open(&file)?;
            open.write_all(bytes)?;
            open.sync_all()
        };
        // Within a page, and over the end of several pages.
        let lines = ["a line\n".to_owned(), "x".repeat(5000), "\n".to_owned(), "y".repeat(9000)];
        let lines = if appends { &lines[..] } else { &[] };
        for line in lines {
            say("append to", append(line.as_bytes()));
        }
        let appended = if name == "append" { lines.concat() } else { String::new() };
        assert!(fs::read_to_string(&file).unwrap() == format!("old{appended}"), "{name}");
    }
    said.push(("open the usual".to_owned(), OpenOptions::new().write(true).open(point.join("usual")).err().map(|_| 1)));
    said
}

/// Files of the upper layer that no user may write to, on the kernel's overlayfs and on this one.
fn immutable_and_append_only_files(front_end: &str) {
    // The scheme opens without O_APPEND and gets the flag with each write, which is too late.
    let appends = front_end != "scheme";
    let mut right = None;
    for kind in ["linux", "oci", "kernel"] {
        let fixture = Fixture::new(24 * MIB);
        let upper = fixture.path("upper");
        for name in ["immutable", "append", "usual", "later"] {
            put::file(&upper, name, "old");
        }
        put::dir(&upper, "dir");
        put::file(&fixture.path("lower"), "dir/lower", "lower");
        let flags = |flag: &str, path: &str| disk::run(Command::new("chattr").arg(flag).arg(upper.join(path)));
        flags("+i", "immutable");
        flags("+a", "append");
        let point = fixture.setup.dir("mount");
        if kind == "linux" {
            disk::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &fixture.options()]).arg(&point));
            right = Some(refusals(&point, appends));
            mount::unmount(&point);
            continue;
        }
        let mount = fixture.mount(&format!(",door={front_end},format={kind}"));
        assert_eq!(Some(refusals(&point, appends)), right, "{kind}");
        // If a file becomes immutable outside of the mount, a write finds it.
        for file in ["later", "dir/lower"] {
            assert!(fs::read(point.join(file)).is_ok());
        }
        flags("+i", "later");
        flags("+i", "dir");
        for file in ["later", "dir/lower"] {
            let open = OpenOptions::new().append(true).open(point.join(file));
            let refused = open.and_then(|mut file| file.write_all(b"x")).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM), "{file}");
        }
        mount.unmount();
        let appended = if appends { "a line\n\n".len() + 14_000 } else { 0 };
        assert_eq!(fs::read(upper.join("append")).unwrap().len(), "old".len() + appended, "in the layer, {kind}");
    }
}

through_both_front_ends!(immutable_and_append_only_files);

/// Calls on objects that are immutable or append-only in a lower layer, in the directory of the
/// mount.
const FIXED_BELOW: &str = r#"
t() { if out=$(bash -c "$1" 2>&1); then echo "done: $1"; else echo "refused: $1: ${out##*: }"; fi; }
f() { echo "$* $(lsattr -d "$1" | cut -c1-22 | tr -d 'e-')"; }
for file in imm imm2 app both plain idir adir; do f $file; done
for change in 'echo x >> F' 'echo x > F' 'rm -f F' 'mv F x' 'ln F x' 'chmod 600 F' 'chown 5 F' 'touch F' 'touch -d 2001-01-01 F'     'setfattr -n user.x -v 1 F' 'mv plain F' 'truncate -s 1 F' 'fallocate -l 10 F' 'cat F'; do
    t "${change//F/imm}"; t "${change//F/imm2}"; t "${change//F/both}"
done
for change in 'touch idir/new' 'rm -f idir/f' 'mkdir idir/d' 'mv plain idir/p' 'mv idir/f f' 'mv idir idir2' 'rmdir idir/sub' 'rmdir idir' 'rmdir adir' 'chmod 700 idir'     'ln plain idir/l' 'ln -s x idir/s' 'rm -f adir/f' 'mv adir/f adir/g' 'mv adir adir2' 'chmod 700 adir' 'touch adir/new' 'ls adir'; do t "$change"; done
for file in app big; do
    for change in 'echo more >> F' 'echo again >> F' 'tail -c 20 F' 'echo x > F' 'truncate -s 0 F' 'rm -f F' 'mv F x' 'touch -d 2001-01-01 F'         'chmod 600 F' 'stat -c %s F'; do t "${change//F/$file}"; done
    f $file
done
temp() { python3 -c '
import os, sys
try: os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR)
except OSError as error: sys.exit(error.strerror)' "$1"; }
export -f temp
t 'temp idir'; t 'temp adir'; t 'echo x >> idir/f'; t 'cat idir/f'; f idir; f adir; t 'temp idir'; t 'temp adir'
for change in 'touch idir/new' 'rm -f idir/f' 'mv idir/f f' 'mv idir idir2' 'chmod 700 idir' 'touch idir' 'rm -f adir/new' 'mv adir/f adir/g'     'mv adir adir2' 'chmod 700 adir' 'touch adir/newer' 'setfattr -n user.x -v 1 adir'; do t "$change"; done
t 'chattr -i both'; f both; t 'rm -f both'; t 'echo y >> both'; t 'chattr -a both'; f both; t 'rm -f both'
t 'chattr -i imm'; f imm; t 'echo new >> imm'; t 'cat imm'; t 'rm -f imm'
t 'chattr -i idir'; f idir; t 'touch idir/new'; t 'rm -r idir'
t 'chattr -a adir app big'; t 'rm -r adir app big'
t 'ls'
"#;

/// Leaves objects that are immutable or append-only in an upper layer, in the directory of the
/// mount.
const FIX: &str = r#"
set -e
echo x >> idir/f; touch adir/new; mkdir dir; chattr +i dir
echo x > immutable; chattr +i immutable; echo x > append; chattr +a append
"#;

/// The changes to try with them. They change nothing but the end of a file.
const TRY_FIXED: &str = r#"
t() { if out=$(bash -c "$1" 2>&1); then echo "done: $1"; else echo "refused: $1: ${out##*: }"; fi; }
for path in idir adir dir immutable append idir/f; do echo "$path $(lsattr -d $path | cut -c1-22 | tr -d 'e-')"; done
for change in 'touch idir/new' 'rm -f idir/f' 'chmod 700 idir' 'mv idir i2' 'rm -f adir/new' 'rm -f adir/f' 'chmod 700 adir' 'touch dir/new'     'rmdir dir' 'echo x >> immutable' 'rm -f immutable' 'chmod 600 immutable' 'ln immutable link' 'echo y >> append' 'echo x > append'     'rm -f append' 'truncate -s 0 append'; do t "$change"; done
"#;

/// Each overlay obeys what the other has marked, and removes it.
#[test]
fn immutable_directories_of_the_kernels_overlayfs() {
    let mut right: Option<String> = None;
    for kinds in [["linux", "linux"], [",format=kernel", "linux"], ["linux", ",format=kernel"], ["", ""]] {
        let fixture = Fixture::new(48 * MIB);
        let lower = fixture.path("lower");
        for (name, flag) in [("idir", "+i"), ("adir", "+a")] {
            put::file(&lower.join(name), "f", "old\n");
            disk::run(Command::new("chattr").arg(flag).arg(lower.join(name)));
        }
        let point = fixture.setup.dir("mount");
        let on_mount = |kind: &str, script: &str| {
            let run = || run::finish(run::command("bash").args(["-c", script]).current_dir(&point));
            let output = if kind == "linux" {
                let options = fixture.options();
                disk::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&point));
                let output = run();
                mount::unmount(&point);
                output
            } else {
                let mount = fixture.mount(kind);
                let output = run();
                mount.unmount();
                output
            };
            assert!(output.status.success(), "{kind}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let [writer, reader] = kinds;
        on_mount(writer, FIX);
        let said = on_mount(reader, TRY_FIXED);
        assert_eq!(&said, right.get_or_insert_with(|| said.clone()), "{kinds:?}");
        // The kernel's overlayfs cannot remove the real flag of an append-only file.
        let remover = if writer == "linux" { reader } else { writer };
        on_mount(remover, "chattr -i idir dir immutable && chattr -a adir append && rm -r *");
        assert_eq!(on_mount(writer, "ls"), "");
    }
}

/// An immutable or append-only object of a lower layer cannot be changed before its flag is
/// removed. The kernel's overlayfs does the same.
#[test]
fn immutable_and_append_only_objects_in_a_lower_layer() {
    let mut right = None;
    for kind in ["linux", ",format=oci", ",format=kernel", ",writeback=0"] {
        let fixture = Fixture::new(48 * MIB);
        let lower = fixture.path("lower");
        for name in ["imm", "app", "both", "plain", "idir/f", "adir/f"] {
            put::file(&lower, name, "old\n");
        }
        put::dir(&lower, "idir/sub");
        put::file(&lower, "big", vec![b'-'; 3 << 20]);
        fs::hard_link(lower.join("imm"), lower.join("imm2")).unwrap();
        let flags = |flag: &str, names: &[&str]| {
            names.iter().for_each(|name| disk::run(Command::new("chattr").arg(flag).arg(lower.join(name))));
        };
        flags("+i", &["imm", "idir"]);
        flags("+a", &["app", "adir", "big"]);
        flags("+ia", &["both"]);
        let guard = LowerGuard::new([lower.clone()]);
        let point = fixture.setup.dir("mount");
        let tried = || {
            let output = run::finish(run::command("bash").args(["-c", FIXED_BELOW]).current_dir(&point));
            String::from_utf8(output.stdout).unwrap()
        };
        if kind == "linux" {
            disk::run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &fixture.options()]).arg(&point));
            right = Some(tried());
            mount::unmount(&point);
        } else {
            let mount = fixture.mount(kind);
            let said = tried();
            for (said, right) in said.lines().zip(right.as_deref().unwrap_or_default().lines()) {
                assert_eq!(said, right, "{kind}");
            }
            assert_eq!(Some(said), right, "{kind}");
            mount.unmount();
        }
        guard.check();
    }
}

/// Reads of attributes write nothing.
#[test]
fn reads_of_attributes_copy_nothing_up() {
    let fixture = Fixture::new(24 * MIB);
    put::file(&fixture.path("lower"), "file", "lower");
    put::file(&fixture.path("upper"), "upper", "upper");
    let mount = fixture.mount("");
    let before = Snapshot::take(&fixture.path("upper"), Detail::Times);
    for name in ["file", "upper"] {
        let file = fixture.mounted(name);
        for size in [0, 100] {
            let asked = rustix::fs::getxattr(&file, "security.capability", &mut vec![0; size]);
            assert_eq!(asked, Err(Errno::NODATA));
        }
        assert_eq!(rustix::fs::removexattr(&file, "security.capability"), Err(Errno::NODATA));
        fs::read(&file).unwrap();
        assert!(runs(
            r#"ls --color=always -l "$0" && cp -a "$0" "$1" && tar --xattrs -cf - "$0" > /dev/null"#,
            &file,
            &fixture.setup.path("copy").display().to_string()
        ));
    }
    before.assert_same(&Snapshot::take(&fixture.path("upper"), Detail::Times), "the upper layer");
    // The attribute exists after it is set, and the first write removes it.
    let file = fixture.mounted("file");
    let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(&file, "security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(rustix::fs::getxattr(&file, "security.capability", &mut [0; 100][..]), Ok(20));
    OpenOptions::new().append(true).open(&file).unwrap().write_all(b"x").unwrap();
    assert_eq!(rustix::fs::getxattr(&file, "security.capability", &mut [0; 100][..]), Err(Errno::NODATA));
    mount.unmount();
    assert_eq!(fs::read_to_string(fixture.path("upper/file")).unwrap(), "lowerx");
}

/// A mount of a user, in a namespace without ids of other users. The arguments are a directory and
/// the program.
const IN_NAMESPACE: &str = r#"
cd "$0" && mount --bind fuse /dev/fuse
"$1" -f -o lowerdir=lower,upperdir=upper,workdir=work mount &
until mountpoint -q mount; do sleep 0.05; done
say() { name=$1; shift; "$@" > out 2>&1; echo "$name $? $(tail -n 1 out)"; }
say read cat mount/dir/file
say acl getfacl -cn mount/dir
say append sh -c 'echo x >> mount/acl'
say chmod chmod 700 mount/acl
say new sh -c 'echo x > mount/dir/new'
say move mv -T mount/dir mount/moved
say append-above sh -c 'echo x >> mount/upper/file'
say chmod-above chmod 750 mount/upper/file
say new-above sh -c 'echo x > mount/upper/new'
say set-above setfacl -m u:0:rwx mount/upper/file
say owner sh -c 'echo x >> mount/owner'
cat mount/owner
umount mount && wait
"#;

/// ACLs and owners with ids outside of the daemon's namespace. In the upper layer they are kept. A
/// copy-up that would lose them fails.
#[test]
fn ids_outside_of_the_namespace() {
    let setup = Setup::new();
    mode(setup.root(), 0o777);
    let [lower, upper, ..] = ["lower", "upper", "work", "mount"].map(|name| setup.dir(name));
    for (layer, path) in [(&lower, "dir/file"), (&lower, "acl"), (&lower, "owner"), (&upper, "upper/file")] {
        put::file(layer, path, "old\n");
    }
    let acl = |entries: &str, path: PathBuf| disk::run(Command::new("setfacl").args(["-m", entries]).arg(path));
    acl("u:5:rwx,d:u:5:rwx", lower.join("dir"));
    acl("u:5:rwx,d:u:5:rwx", upper.join("upper"));
    acl("u:5:rw", lower.join("acl"));
    acl("u:5:rw", upper.join("upper/file"));
    disk::run(Command::new("chown").args(["-R", "4242:4242"]).arg(setup.root()));
    owner(&lower.join("owner"), 5, 5);
    mode(&lower.join("owner"), 0o666);
    let guard = LowerGuard::new([lower.clone()]);
    let prepare = r#"
        cp "$2" "$1/program" && chmod 755 "$1/program" && mknod -m 666 "$1/fuse" c 10 229
        exec setpriv --reuid 4242 --regid 4242 --clear-groups unshare --user --map-root-user --mount sh -c "$3" "$1" ./program
    "#;
    let program = mount::program();
    let mut command = run::command("sh");
    let output = run::finish(command.args(["-c", prepare, "sh"]).arg(setup.root()).args([&program, IN_NAMESPACE]));
    let said = String::from_utf8(output.stdout).unwrap();
    let overflow = "Value too large for defined data type";
    let lines: Vec<_> = said.lines().collect();
    let said_of = |name: &str| {
        let line = lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing in {said}{}", String::from_utf8_lossy(&output.stderr)))
    };
    for (name, right) in [("read", "0 old"), ("append-above", "0 "), ("chmod-above", "0 "), ("new-above", "0 ")] {
        assert_eq!(said_of(name), right, "{name}");
    }
    assert!(said_of("acl").starts_with("0 "), "{}", said_of("acl"));
    for name in ["append", "chmod", "new", "move"] {
        let said = said_of(name);
        assert!(!said.starts_with('0') && (name == "append" || said.ends_with(overflow)), "{name}: {said}");
    }
    assert!(said_of("set-above").ends_with("Invalid argument"), "{}", said_of("set-above"));
    assert_eq!(said_of("owner").starts_with("0 "), lines.last() == Some(&"x"), "{said}");
    let kept =
        Command::new("getfacl").args(["-cn", "--absolute-names"]).arg(upper.join("upper/file")).output().unwrap();
    assert!(String::from_utf8_lossy(&kept.stdout).contains("user:5:rw"), "the entry is kept");
    guard.check();
}
