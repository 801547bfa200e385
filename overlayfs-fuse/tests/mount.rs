//! The FUSE mount as its users meet it: the program `overlayfs-fuse`, and ordinary calls below its
//! mount point.
//!
//! Runs as root, or as another user with `fusermount3`. A test with two users needs root.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use program::{program, program_for};
use tempfile::TempDir;

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/program.rs"]
mod program;

/// The timeout for events that the test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Directories for one mount.
struct Setup {
    dir: TempDir,
    front_end: String,
}

impl Setup {
    fn new(front_end: &str) -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["lower", "upper", "mount"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir, front_end: front_end.to_owned() }
    }

    fn lower(&self, name: &str) -> PathBuf {
        self.dir.path().join("lower").join(name)
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    fn options(&self) -> String {
        let dir = self.dir.path().display();
        format!("door={},lowerdir={dir}/lower,upperdir={dir}/upper", self.front_end)
    }

    /// Mounts the layers, and returns when the mount is visible.
    fn mount(self) -> Mount {
        let options = self.options();
        self.mount_with(&options)
    }

    fn mount_with(self, options: &str) -> Mount {
        let child =
            Command::new(program_for(options)).arg("-f").arg("-o").arg(options).arg(self.point()).spawn().unwrap();
        let mount = Mount { setup: self, child };
        eventually("it is mounted", || is_mounted(&mount.setup.point()));
        mount
    }
}

/// A mount with its program in the foreground. The drop unmounts it.
struct Mount {
    setup: Setup,
    child: Child,
}

impl Mount {
    fn path(&self, name: &str) -> PathBuf {
        self.setup.point().join(name)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: takes two numbers. The process is a child of this one and was not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the program has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        unmount(&self.setup.point());
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            std::thread::sleep(Duration::from_millis(200));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn is_root() -> bool {
    // SAFETY: takes no argument.
    unsafe { libc::geteuid() == 0 }
}

/// Unmounts lazily, so nothing stays mounted, even if a test has open files.
fn unmount(point: &Path) {
    let (program, flag) = if is_root() { ("umount", "-l") } else { ("fusermount3", "-uz") };
    let _ = Command::new(program).arg(flag).arg(point).stderr(Stdio::null()).status();
}

fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn refused(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program()).args(arguments).output().unwrap();
    assert_eq!(status.code(), Some(1), "{arguments:?}");
    assert!(stdout.is_empty());
    String::from_utf8(stderr).unwrap()
}

#[test]
fn the_command_line() {
    let help = Command::new(program()).arg("--help").output().unwrap();
    assert!(help.status.success());
    for option in ["-o", "-f", "-h", "-V", "lowerdir", "upperdir", "workdir", "door"] {
        assert!(String::from_utf8_lossy(&help.stdout).contains(option), "{option} is not explained");
    }
    for (arguments, sentence) in [
        (&["/mnt"][..], "No lower directory is given: an overlay needs at least one."),
        (&["-o", "lowerdir=/"], "The mount point is missing."),
        (
            &["-o", "lowerdir=/", "a", "/b", "/c"],
            "The command line has a word too many, /c: it takes [NAME] MOUNTPOINT.",
        ),
        (
            &["-o", "lowerdir=/,door=scheme", "/mnt"],
            "There is no door=scheme: requests are calls of the overlay's engine.",
        ),
        (&["-o", "lowerdir=/,door", "/mnt"], "The mount option door needs a value: door=engine."),
        (&["-o", "upperdri=/u", "/mnt"], "There is no mount option upperdri. Did you mean upperdir?"),
        (&["-x"], "There is no option -x."),
        (&["--long"], "There is no option --long."),
    ] {
        assert_eq!(refused(arguments), format!("overlayfs-fuse: {sentence} See overlayfs-fuse --help.\n"));
    }
}

#[test]
fn a_failed_mount_is_reported_in_both_modes() {
    let setup = Setup::new("engine");
    let (missing, point) = (setup.lower("missing").display().to_string(), setup.point().display().to_string());
    let options = format!("lowerdir={missing}");
    for flags in [&[][..], &["-f"]] {
        let said = refused(&[flags, &["-o", options.as_str(), point.as_str()][..]].concat());
        assert!(said.contains(&missing), "{said}");
        let said = refused(&[flags, &["-o", setup.options().as_str(), missing.as_str()][..]].concat());
        assert!(said.contains(&format!("The mount point {missing} cannot be used: No such file")), "{said}");
    }
    assert!(!is_mounted(&setup.point()));
}

/// The pipe for messages is full at first, so the daemon must wait before it writes its own.
#[test]
fn in_the_background_a_failed_mount_returns_after_its_message() {
    let setup = Setup::new("engine");
    let (mut reader, writer) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while (&writer).write(&[b'.'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut command = Command::new(program());
    command.args(["-o", &setup.options()]).arg(setup.lower("missing")).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "the program has ended before it says why");
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert!(said.trim_start_matches('.').contains("cannot be used: No such file"), "{said}");
}

fn in_the_background_the_mount_is_visible_at_once_and_ends_with_umount(front_end: &str) {
    let setup = Setup::new(front_end);
    fs::write(setup.lower("file"), "data").unwrap();
    for _ in 0..3 {
        // One daemon at a time can hold the upper directory. So each round shows that the daemon
        // before has ended.
        let mut output = None;
        eventually("the last daemon has ended", || {
            let tried = Command::new(program_for(&setup.options()))
                .arg("-o")
                .arg(setup.options())
                .arg(setup.point())
                .output()
                .unwrap();
            let mounted = tried.status.success();
            output = Some(tried);
            mounted
        });
        assert!(output.unwrap().stderr.is_empty());
        assert_eq!(fs::read_to_string(setup.point().join("file")).unwrap(), "data");
        unmount(&setup.point());
        assert!(!is_mounted(&setup.point()));
    }
}

fn signals_unmount(front_end: &str) {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut mount = Setup::new(front_end).mount();
        mount.signal(signal);
        assert!(mount.wait().success());
        assert!(!is_mounted(&mount.setup.point()));
    }
}

fn open_files_stay_usable_after_a_signal(front_end: &str) {
    let mut mount = Setup::new(front_end).mount();
    fs::write(mount.path("file"), "data").unwrap();
    let mut file = File::open(mount.path("file")).unwrap();
    mount.signal(libc::SIGTERM);
    eventually("it is unmounted", || !is_mounted(&mount.setup.point()));
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "data");
    drop(file);
    assert!(mount.wait().success());
}

fn without_an_upper_layer_nothing_changes(front_end: &str) {
    let setup = Setup::new(front_end);
    fs::write(setup.lower("file"), "data").unwrap();
    let options = format!("door={front_end},lowerdir={}", setup.lower("").display());
    let mount = setup.mount_with(&options);
    assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "data");
    assert_eq!(fs::write(mount.path("file"), "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::create_dir(mount.path("new")).unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

fn a_mount_point_inside_the_lower_layer_works(front_end: &str) {
    let setup = Setup::new(front_end);
    fs::write(setup.lower("file"), "data").unwrap();
    let options = format!("door={front_end},lowerdir={}", setup.dir.path().display());
    let mount = setup.mount_with(&options);
    assert_eq!(fs::read_to_string(mount.path("lower/file")).unwrap(), "data");
    assert_eq!(fs::read_dir(mount.path("mount")).unwrap().count(), 0);
}

fn all_kinds_of_objects(front_end: &str) {
    let mount = Setup::new(front_end).mount();
    fs::create_dir(mount.path("dir")).unwrap();
    fs::write(mount.path("dir/file"), "data").unwrap();
    symlink("dir/file", mount.path("link")).unwrap();
    let fifo = CString::new(mount.path("fifo").as_os_str().as_bytes()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    let socket = std::os::unix::net::UnixListener::bind(mount.path("socket")).unwrap();
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("dir/file"));
    assert_eq!(fs::read_to_string(mount.path("link")).unwrap(), "data");

    let mut listing: Vec<_> = fs::read_dir(mount.path("")).unwrap().map(Result::unwrap).collect();
    listing.sort_by_key(fs::DirEntry::file_name);
    let kinds: Vec<_> = listing.iter().map(|entry| (entry.file_name(), entry.file_type().unwrap())).collect();
    assert_eq!(kinds.len(), 4);
    assert!(
        kinds[0].1.is_dir() && kinds[1].1.is_fifo() && kinds[2].1.is_symlink() && kinds[3].1.is_socket(),
        "{kinds:?}"
    );
    for entry in listing {
        assert_eq!(entry.metadata().unwrap().ino(), std::os::unix::fs::DirEntryExt::ino(&entry), "{entry:?}");
    }

    let reader = std::thread::spawn({
        let path = mount.path("fifo");
        move || fs::read_to_string(path).unwrap()
    });
    fs::write(mount.path("fifo"), "through").unwrap();
    assert_eq!(reader.join().unwrap(), "through");
    drop(socket);
}

fn names_links_and_listings(front_end: &str) {
    let setup = Setup::new(front_end);
    for index in 0..1000 {
        fs::write(setup.lower(&format!("lower-{index}")), "").unwrap();
    }
    let mount = setup.mount();
    for index in 0..1000 {
        fs::write(mount.path(&format!("upper-{index}")), "").unwrap();
    }
    let names: std::collections::BTreeSet<_> =
        fs::read_dir(mount.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2000);

    fs::hard_link(mount.path("lower-1"), mount.path("again")).unwrap();
    let (first, second) = (fs::metadata(mount.path("lower-1")).unwrap(), fs::metadata(mount.path("again")).unwrap());
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    fs::rename(mount.path("again"), mount.path("lower-2")).unwrap();
    fs::write(mount.path("lower-2"), "written").unwrap();
    assert_eq!(fs::read_to_string(mount.path("lower-1")).unwrap(), "written");

    let rename = |from: &str, to: &str, flags| {
        let path = |name: &str| CString::new(mount.path(name).as_os_str().as_bytes()).unwrap();
        let (from, to) = (path(from), path(to));
        // SAFETY: both paths are C strings.
        match unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap()),
        }
    };
    assert_eq!(rename("upper-1", "upper-2", libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    assert_eq!(rename("lower-1", "upper-2", libc::RENAME_EXCHANGE), Ok(()));
    assert_eq!(fs::read_to_string(mount.path("upper-2")).unwrap(), "written");
    assert_eq!(fs::read_to_string(mount.path("lower-1")).unwrap(), "");
}

/// A file that is in the kernel's cache but not open costs the daemon no descriptor.
fn more_files_than_descriptors_are_read_and_written(front_end: &str) {
    let setup = Setup::new(front_end);
    for index in 0..500 {
        fs::write(setup.lower(&format!("lower-{index}")), "data").unwrap();
    }
    let options = setup.options();
    let command = format!("ulimit -n 200; exec {} -f -o {options} {}", program_for(&options), setup.point().display());
    let child = Command::new("sh").arg("-c").arg(command).spawn().unwrap();
    let mount = Mount { setup, child };
    eventually("it is mounted", || is_mounted(&mount.setup.point()));
    for index in 0..500 {
        assert_eq!(fs::read_to_string(mount.path(&format!("lower-{index}"))).unwrap(), "data");
        fs::write(mount.path(&format!("upper-{index}")), "data").unwrap();
    }
}

fn attributes(front_end: &str) {
    let mount = Setup::new(front_end).mount();
    let path = mount.path("file");
    let file = OpenOptions::new().write(true).create_new(true).mode(0o6755).open(&path).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
    file.set_len(5000).unwrap();
    let before_1970 = UNIX_EPOCH - Duration::new(5, 250_000_000);
    let later = UNIX_EPOCH + Duration::new(1 << 33, 999_999_999);
    file.set_times(fs::FileTimes::new().set_accessed(later).set_modified(before_1970)).unwrap();
    let stat = fs::metadata(&path).unwrap();
    assert_eq!((stat.mode(), stat.len()), (0o100640, 5000));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-6, 750_000_000));
    assert_eq!((stat.atime(), stat.atime_nsec()), (1 << 33, 999_999_999));

    // One of the two times alone, and the current time.
    file.set_modified(UNIX_EPOCH).unwrap();
    assert_eq!((fs::metadata(&path).unwrap().atime(), fs::metadata(&path).unwrap().mtime()), (1 << 33, 0));
    assert!(Command::new("touch").arg(&path).status().unwrap().success());
    assert!(fs::metadata(&path).unwrap().modified().unwrap().elapsed().unwrap() < PATIENCE);

    let script = "umask 027; touch a; mkdir b; mkfifo c";
    assert!(Command::new("sh").arg("-c").arg(script).current_dir(mount.path("")).status().unwrap().success());
    let modes = ["a", "b", "c"].map(|name| fs::metadata(mount.path(name)).unwrap().mode() & 0o7777);
    assert_eq!(modes, [0o640, 0o750, 0o640]);
}

fn contents(front_end: &str) {
    let mount = Setup::new(front_end).mount();
    let path = mount.path("file");
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    let big: Vec<u8> = (0..3_000_000u32).map(|index| ((index * 7) >> 3) as u8).collect();
    file.write_all(&big).unwrap();
    file.sync_all().unwrap();
    assert!(fs::read(&path).unwrap() == big);
    file.set_len(10).unwrap();
    file.write_all_at(b"end", 20).unwrap();
    assert_eq!(fs::read(&path).unwrap(), [&big[..10], &[0; 10], b"end"].concat());
    assert_eq!(file.seek(SeekFrom::End(-3)).unwrap(), 20);
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"!").unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 24);
    drop(OpenOptions::new().write(true).truncate(true).open(&path).unwrap());
    assert_eq!(file.metadata().unwrap().len(), 0, "seen through a descriptor that was open before");

    fs::remove_file(&path).unwrap();
    file.write_all_at(b"still here", 0).unwrap();
    let mut text = [0; 10];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"still here");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

/// Also for a file that was opened with O_APPEND.
fn a_mapping_is_written_where_it_was_mapped(front_end: &str) {
    let setup = Setup::new(front_end);
    fs::write(setup.lower("file"), vec![b'.'; 8192]).unwrap();
    let mount = setup.mount();
    let mut file = OpenOptions::new().read(true).append(true).open(mount.path("file")).unwrap();
    // SAFETY: a new mapping of a file of that length. Only the code below uses it, up to the
    // munmap.
    let map = unsafe {
        let flags = libc::MAP_SHARED;
        libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0)
    };
    assert_ne!(map, libc::MAP_FAILED);
    // SAFETY: the mapping has that many bytes, and no other code uses it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), 8192) };
    bytes[5000] = b'M';
    file.write_all(b"end").unwrap();
    bytes[1] = b'm';
    // SAFETY: the mapping of this test, which is no longer in use.
    assert_eq!(unsafe { libc::munmap(map, 8192) }, 0);
    file.sync_all().unwrap();
    drop(file);
    let data = fs::read(mount.path("file")).unwrap();
    assert_eq!((data.len(), data[1], data[5000]), (8195, b'm', b'M'));
    assert!(data.ends_with(b".end"));
    assert!(fs::read(mount.setup.lower("file")).unwrap() == [b'.'; 8192]);
}

/// The scheme checks the ids of the calling program. For the engine the kernel does.
fn modes_decide_for_programs_of_other_users(front_end: &str) {
    assert!(is_root(), "needs two users");
    let mount = Setup::new(front_end).mount();
    fs::copy("/bin/true", mount.path("prog")).unwrap();
    fs::set_permissions(mount.path("prog"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(mount.path("secret"), "").unwrap();
    fs::set_permissions(mount.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(mount.path("closed")).unwrap();
    fs::write(mount.path("closed/file"), "").unwrap();
    fs::set_permissions(mount.path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(mount.path("open")).unwrap();
    fs::set_permissions(mount.path("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(mount.path("open/of-root"), "").unwrap();

    let succeeds = |script: &str| {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).current_dir(mount.path("")).stderr(Stdio::null()).stdout(Stdio::null());
        shell.uid(4242).gid(4242).status().unwrap().success()
    };
    assert!(succeeds("./prog"), "may be executed without being read");
    assert!(!succeeds("cat prog"));
    assert!(!succeeds("cat secret"));
    assert!(!succeeds("test -r secret") && !succeeds("test -x secret") && succeeds("test -x prog && test -e secret"));
    assert!(!succeeds("cat closed/file") && !succeeds("cd closed") && !succeeds("ls closed"));
    assert!(!succeeds("touch new") && !succeeds("mkdir new") && !succeeds("mv secret new") && !succeeds("rm secret"));
    assert!(succeeds(
        "cd open && touch mine && mkdir dir && ln -s x link && ln mine again && mv mine moved && rm again"
    ));
    assert!(!succeeds("rm -f open/of-root") && !succeeds("mv open/of-root open/taken"), "the directory is sticky");
    assert!(!succeeds("chmod 666 secret") && !succeeds("chown 4242 secret") && !succeeds("touch -d 2000-01-01 secret"));
    assert!(succeeds("chmod 600 open/moved && chgrp 4242 open/moved && touch -d 2000-01-01 open/moved"));
    assert!(!succeeds("./secret") && !succeeds("ln secret open/secret-too && cat open/secret-too"));
    let owner = |name: &str| fs::symlink_metadata(mount.path(name)).map(|stat| (stat.uid(), stat.gid())).unwrap();
    assert_eq!(["open/moved", "open/dir", "open/link"].map(owner), [(4242, 4242); 3]);
}

through_both_front_ends! {
    in_the_background_the_mount_is_visible_at_once_and_ends_with_umount,
    signals_unmount,
    open_files_stay_usable_after_a_signal,
    without_an_upper_layer_nothing_changes,
    a_mount_point_inside_the_lower_layer_works,
    all_kinds_of_objects,
    names_links_and_listings,
    more_files_than_descriptors_are_read_and_written,
    attributes,
    contents,
    a_mapping_is_written_where_it_was_mapped,
    modes_decide_for_programs_of_other_users
}
