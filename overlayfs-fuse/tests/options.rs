//! The program `overlayfs-fuse` as other programs start it: mount(8) and podman. Also command lines
//! with mistakes.

#[path = "suite/mount.rs"]
mod mount;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use mount::{Mount, eventually, is_mounted, program};
use tempfile::TempDir;

/// The mark that a volatile mount leaves after a crash.
const MARK: &str = "upper/.wh..wh.work/work/incompat/volatile";

/// Directories for one mount.
struct Setup(TempDir);

impl Setup {
    fn new() -> Self {
        let setup = Self(TempDir::new().unwrap());
        for name in ["lower", "upper", "mount"] {
            fs::create_dir(setup.path(name)).unwrap();
        }
        fs::write(setup.path("lower/file"), "lower").unwrap();
        setup
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn point(&self) -> PathBuf {
        self.path("mount")
    }

    fn options(&self, more: &str) -> String {
        let dir = self.0.path().display();
        format!("lowerdir={dir}/lower,upperdir={dir}/upper{more}")
    }

    /// Returns the line of the mount in `/proc/self/mounts`.
    fn line(&self) -> String {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let point = self.point();
        let found = mounts.lines().find(|line| line.split(' ').nth(1) == point.to_str());
        found.expect("it is mounted").to_owned()
    }

    /// Runs the program without `-f`. Its output goes to a pipe, and this function returns when all
    /// writers have closed the pipe.
    fn run(&self, more: &str) -> Output {
        Command::new("timeout")
            .args(["20", &program(), "-o", &self.options(more)])
            .arg(self.point())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if is_mounted(&self.point()) {
            let _ = unmount(&self.point());
        }
    }
}

fn unmount(point: &Path) -> bool {
    Command::new("umount").arg("-l").arg(point).status().unwrap().success()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the sentence of a failure.
fn sentence(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    text(&output.stderr)
}

#[test]
fn the_pipe_is_closed_when_the_mount_is_visible() {
    let setup = Setup::new();
    let output = setup.run(",volatile,nodev,context=\"a:b,c\"");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(is_mounted(&setup.point()));
    assert_eq!(fs::read(setup.point().join("file")).unwrap(), b"lower");
    assert!(setup.path(MARK).is_dir());
    assert!(unmount(&setup.point()));
    eventually("the mark is gone", || !setup.path(MARK).exists());
}

#[test]
fn mount_finds_the_program_by_its_type() {
    let setup = Setup::new();
    let path = format!("{}:{}", Path::new(&program()).parent().unwrap().display(), std::env::var("PATH").unwrap());
    let helper = Command::new("mount.fuse3")
        .env("PATH", path)
        .args(["a source"])
        .arg(setup.point())
        .args(["-t", "fuse.overlayfs-fuse", "-v", "-o"])
        .arg(setup.options(",rw,noexec,nosuid,nofail,noauto,x-systemd.automount,user=me,_netdev"))
        .output()
        .expect("mount.fuse3 of the package fuse3 runs");
    assert!(helper.status.success(), "{helper:?}");
    let line = setup.line();
    assert!(line.starts_with("a\\040source "), "{line}");
    assert!(line.contains(" fuse.overlayfs-fuse rw,nosuid,noexec,"), "{line}");
}

/// mount(8) runs the program again, with the options of the mount and the new ones.
#[test]
fn a_mount_is_made_read_only_and_writable_again() {
    let setup = Setup::new();
    let mount = Mount::new(&setup.point(), &setup.options(",nosuid"));
    fs::write(setup.point().join("before"), "x").unwrap();
    let remount = |more: &str| {
        let list = format!("rw,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,{more}");
        let done = Command::new(program()).arg("source").arg(setup.point()).args(["-o", &list]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    remount("ro");
    assert!(setup.line().contains(" ro,nosuid"), "{}", setup.line());
    let refused = fs::write(setup.point().join("new"), "").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    remount("rw,noexec");
    assert!(setup.line().contains(" rw,nosuid,noexec"), "{}", setup.line());
    fs::write(setup.point().join("new"), "").unwrap();
    mount.unmount();
    let words = ["-o", "remount,ro"];
    let said = sentence(&Command::new(program()).args(words).arg(setup.point()).output().unwrap());
    let expected =
        format!("overlayfs-fuse: The mount at {} cannot be changed: nothing is mounted there", setup.point().display());
    assert!(said.starts_with(&expected), "{said}");
}

#[test]
fn the_kernel_takes_the_flags_of_mount() {
    let setup = Setup::new();
    for (list, shown) in [
        ("nosuid,nodev,noexec,noatime", "rw,nosuid,nodev,noexec,noatime"),
        ("nodiratime,sync,dirsync", "rw,sync,dirsync,nodiratime"),
        ("lazytime,nosymfollow,strictatime", "rw,lazytime,nosymfollow"),
        ("ro,fsname=x", "ro"),
    ] {
        let mount = Mount::new(&setup.point(), &setup.options(&format!(",{list}")));
        let line = setup.line();
        let flags: Vec<_> = line.split(' ').nth(3).unwrap().split(',').collect();
        for flag in shown.split(',') {
            assert!(flags.contains(&flag), "{list} gave {line}");
        }
        mount.unmount();
    }
}

#[test]
fn a_read_only_mount_shows_the_upper_layer() {
    let setup = Setup::new();
    fs::write(setup.path("upper/file"), "upper").unwrap();
    let mount = Mount::new(&setup.point(), &setup.options(",ro"));
    assert_eq!(fs::read(setup.point().join("file")).unwrap(), b"upper");
    let error = fs::write(setup.point().join("new"), "").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    mount.unmount();
    assert_eq!(fs::read_dir(setup.path("upper")).unwrap().count(), 1, "not even a work directory");
}

#[test]
fn a_killed_volatile_mount_is_refused_without_reuse_volatile() {
    let setup = Setup::new();
    let mut child = foreground(&setup, ",volatile");
    eventually("it is mounted", || is_mounted(&setup.point()));
    fs::write(setup.point().join("file"), "upper").unwrap();
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(unmount(&setup.point()));

    for options in ["", ",volatile"] {
        let said = sentence(&setup.run(options));
        assert!(said.contains("an overlay with the option volatile has left its mark"), "{said}");
        assert!(said.contains("mount with reuse_volatile"), "{said}");
        assert!(said.contains(&format!("or remove the directory {} (", setup.path(MARK).display())), "{said}");
        assert!(!is_mounted(&setup.point()));
    }
    Mount::new(&setup.point(), &setup.options(",reuse_volatile")).unmount();
    assert!(!setup.path(MARK).exists());
    Mount::new(&setup.point(), &setup.options("")).unmount();
}

#[test]
fn mistakes_are_reported_and_nothing_is_mounted() {
    let setup = Setup::new();
    let said = sentence(&setup.run(",squash_root"));
    assert_eq!(
        said,
        "overlayfs-fuse: There is no mount option squash_root. Did you mean squash_to_root? See overlayfs-fuse --help.\n"
    );
    let said = sentence(&setup.run(",workdir=/nowhere"));
    let expected = "overlayfs-fuse: Cannot mount: cannot open the work directory /nowhere: No such file";
    assert!(said.starts_with(expected), "{said}");
    assert!(!is_mounted(&setup.point()));
    fs::remove_dir(setup.point()).unwrap();
    let said = sentence(&setup.run(""));
    let expected = format!("overlayfs-fuse: The mount point {} cannot be used: No such file", setup.point().display());
    assert!(said.starts_with(&expected), "{said}");
}

/// Returns the messages on standard error of a mount in the foreground, during `work`.
fn log(setup: &Setup, word: Option<&str>, work: impl FnOnce(&Path)) -> String {
    let mut program = Command::new(program());
    program.args(["-f", "-o", &setup.options("")]).args(word).arg(setup.point());
    let child = program.stderr(Stdio::piped()).spawn().unwrap();
    eventually("it is mounted", || is_mounted(&setup.point()));
    work(&setup.point());
    assert!(unmount(&setup.point()));
    text(&child.wait_with_output().unwrap().stderr)
}

#[test]
fn messages_of_the_log() {
    let setup = Setup::new();
    let read = |point: &Path| assert_eq!(fs::read(point.join("file")).unwrap(), b"lower");
    assert_eq!(log(&setup, None, read), "");
    let verbose = log(&setup, Some("-v"), read);
    assert_eq!(verbose.lines().count(), 3, "{verbose}");
    assert!(verbose.contains("/lower, writing to "), "{verbose}");
    let debug = log(&setup, Some("-d"), read);
    assert!(debug.contains("lookup of 1"), "{debug}");
}

#[test]
fn a_large_file_that_is_copied_up_is_logged() {
    let setup = Setup::new();
    fs::create_dir(setup.path("lower/dir")).unwrap();
    fs::write(setup.path("lower/dir/large"), vec![1; (64 << 20) + 1]).unwrap();
    let change = |point: &Path| {
        let file = fs::File::options().write(true).open(point.join("dir/large")).unwrap();
        file.write_all_at(b"upper", 0).unwrap();
        drop(file);
        let content = fs::read(point.join("dir/large")).unwrap();
        assert!(content.starts_with(b"upper\x01") && content.ends_with(b"\x01\x01"));
        assert_eq!(content.len(), (64 << 20) + 1);
    };
    let said = log(&setup, Some("-v"), change);
    let line = said.lines().find(|line| line.starts_with("overlayfs-fuse: copied up dir/large: 64 MiB in ")).unwrap();
    assert!(line.ends_with(" s"), "{line}");
}

fn foreground(setup: &Setup, more: &str) -> Child {
    let mut program = Command::new(program());
    program.args(["-f", "-o", &setup.options(more)]).arg(setup.point()).stdin(Stdio::null()).spawn().unwrap()
}
