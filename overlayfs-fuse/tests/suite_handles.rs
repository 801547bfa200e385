//! File handles of the mount: what they lead to after the kernel forgot the object, in later
//! mounts, and through a server of NFS.
//!
//! Needs root, /dev/fuse, and of Debian's packages libnfs-utils, nfs-ganesha and nfs-ganesha-vfs;
//! fails without them.

#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/nfs.rs"]
mod nfs;
#[path = "suite/run.rs"]
mod run;

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use test_common::put;

use fixture::Fixture;
use mount::{eventually, program};
use nfs::{STALE, Server};

/// A file handle, in the layout of name_to_handle_at(2).
#[repr(C)]
#[derive(Clone, Copy)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

/// Returns the handle of the object with this path. A symlink is not followed.
fn handle(path: &Path) -> Handle {
    let (mut handle, mut id) = (Handle { bytes: 128, kind: 0, data: [0; 128] }, 0_i32);
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    assert_eq!(offset_of!(Handle, data), 8);
    // SAFETY: the path ends with a zero, and the handle has room for the bytes that it names.
    let done = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, libc::AT_FDCWD, path.as_ptr(), &raw mut handle, &raw mut id, 0)
    };
    assert_eq!(done, 0, "{path:?}: {}", io::Error::last_os_error());
    handle
}

/// Opens the object of a handle in the filesystem at `point`.
fn open(point: &Path, handle: &Handle, flags: i32) -> io::Result<File> {
    let mount = File::open(point)?;
    let mut handle = *handle;
    // SAFETY: the handle is valid for the call, which returns a new descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw mut handle, flags);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd as i32)) }
    }
}

/// Returns the content of the file of a handle, or the errno.
fn read(point: &Path, handle: &Handle) -> Result<String, i32> {
    let mut text = String::new();
    let read = open(point, handle, libc::O_RDONLY).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|error| error.raw_os_error().unwrap())
}

const GONE: Result<String, i32> = Err(libc::ESTALE);

fn has(text: &str) -> Result<String, i32> {
    Ok(text.to_owned())
}

/// Has the kernel forget all objects that are not in use, and the daemon too.
fn forget(point: &Path) {
    rustix::mount::mount_remount(point, MountFlags::empty(), "").unwrap();
}

/// Runs a command of the program.
fn command(words: &[&str], point: &Path) {
    let output = run::finish(run::command(program()).args(words).arg(point));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Fills the lower layer with objects of all sorts.
fn fill(lower: &Path) {
    put::file(lower, "dir/deep/below", "below");
    put::file(lower, "dir/changed", "old");
    put::file(lower, "dir/renamed", "renamed");
    put::file(lower, "dir/removed", "removed");
    put::file(lower, "one", "both");
    fs::hard_link(lower.join("one"), lower.join("dir/other")).unwrap();
    symlink("one", lower.join("symlink")).unwrap();
    for number in 0..300 {
        put::file(lower, &format!("many/{number}"), format!("{number}"));
    }
}

/// Paths of objects, with their contents as far as they are files.
const OBJECTS: [(&str, Option<&str>); 11] = [
    ("dir", None),
    ("dir/deep", None),
    ("dir/deep/below", Some("below")),
    ("dir/changed", Some("new")),
    ("dir/renamed", Some("renamed")),
    ("dir/own", Some("own")),
    ("dir/own dir", None),
    ("one", Some("both")),
    ("dir/other", Some("both")),
    ("symlink", None),
    ("many/299", Some("299")),
];

fn make(point: &Path) -> Vec<Handle> {
    fs::write(point.join("dir/changed"), "new").unwrap();
    fs::write(point.join("dir/own"), "own").unwrap();
    fs::create_dir(point.join("dir/own dir")).unwrap();
    OBJECTS.iter().map(|(path, _)| handle(&point.join(path))).collect()
}

/// Checks that the handles lead to the objects, some of which have these other paths now.
fn check(point: &Path, handles: &[Handle], moved: &[(&str, &str)]) {
    for ((path, content), known) in OBJECTS.iter().zip(handles) {
        if let Some(content) = content {
            assert_eq!(read(point, known), has(content), "{path}");
        }
        let file = open(point, known, libc::O_PATH).unwrap_or_else(|error| panic!("{path}: {error}"));
        let now = moved.iter().find(|(from, _)| from == path).map_or(*path, |(_, to)| to);
        let shown = point.join(now).symlink_metadata().unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.ino(), found.mode()), (shown.ino(), shown.mode()), "{path}");
        if found.is_dir() {
            // The kernel finds the way from a directory up to the root.
            let link: PathBuf = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!(link, point.join(now));
        }
    }
}

fn handles_last(fixture: &Fixture, more: &str) {
    fill(&fixture.path("lower"));
    let guard = fixture.guard();
    let point = fixture.point();
    let mount = fixture.mount(more);
    let handles = make(&point);
    let (renamed, removed) = (handle(&point.join("dir/renamed")), handle(&point.join("dir/removed")));
    check(&point, &handles, &[]);
    forget(&point);
    check(&point, &handles, &[]);
    forget(&point);
    fs::remove_file(point.join("dir/removed")).unwrap();
    forget(&point);
    assert_eq!(read(&point, &removed), GONE);
    mount.unmount();

    // In a later mount, and after a change there.
    let mount = fixture.mount(more);
    check(&point, &handles, &[]);
    assert_eq!(read(&point, &removed), GONE);
    fs::rename(point.join("dir/renamed"), point.join("many/renamed")).unwrap();
    forget(&point);
    assert_eq!(read(&point, &renamed), has("renamed"));
    mount.unmount();
    let mount = fixture.mount(more);
    assert_eq!(read(&point, &renamed), has("renamed"));
    let mut file = open(&point, &renamed, libc::O_WRONLY).unwrap();
    file.write_all(b"RE").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(point.join("many/renamed")).unwrap(), "REnamed");
    fs::remove_file(point.join("many/renamed")).unwrap();
    mount.unmount();
    let mount = fixture.mount(more);
    assert_eq!(read(&point, &renamed), GONE);
    mount.unmount();
    drop(guard);
}

#[test]
fn handles_last_longer_than_a_mount() {
    handles_last(&Fixture::new(), "");
}

#[test]
fn handles_last_in_the_kernels_format() {
    handles_last(&Fixture::with_work(), ",format=kernel");
}

#[test]
fn directories_move_while_handles_are_known() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(""), fixture.point());
    let handles = make(&point);
    let paths = [("dir", "many/moved"), ("dir/deep", "far")];
    fs::rename(point.join("dir/deep"), point.join("far")).unwrap();
    fs::rename(point.join("dir"), point.join("many/moved")).unwrap();
    let moved: Vec<_> = OBJECTS
        .iter()
        .map(|(path, _)| {
            let known = paths.iter().rev().find(|(from, _)| Path::new(path).starts_with(from));
            let to = known.map_or(PathBuf::from(path), |(from, to)| {
                let rest = Path::new(path).strip_prefix(from).unwrap();
                if rest.as_os_str().is_empty() { PathBuf::from(to) } else { Path::new(to).join(rest) }
            });
            (*path, to.into_os_string().into_string().unwrap())
        })
        .collect();
    let moved: Vec<_> = moved.iter().map(|(from, to)| (*from, to.as_str())).collect();
    check(&point, &handles, &moved);
    forget(&point);
    check(&point, &handles, &moved);
    // The table of places follows a directory that moves after the walk.
    fs::rename(point.join("many/moved"), point.join("dir")).unwrap();
    fs::rename(point.join("far"), point.join("dir/deep")).unwrap();
    forget(&point);
    check(&point, &handles, &[]);
    mount.unmount();
    let mount = fixture.mount("");
    check(&point, &handles, &[]);
    mount.unmount();
}

#[test]
fn a_handle_leads_to_no_later_object_with_the_same_number() {
    let fixture = Fixture::new();
    let (mut mount, point) = (fixture.mount(""), fixture.point());
    let mut numbers = 0;
    for round in 0..100 {
        let (old, new) = (point.join("old"), point.join("new"));
        fs::write(&old, "old").unwrap();
        let (known, number) = (handle(&old), old.metadata().unwrap().ino());
        fs::remove_file(&old).unwrap();
        if round % 20 == 0 {
            forget(&point);
        }
        if round % 50 == 0 {
            mount.unmount();
            mount = fixture.mount("");
        }
        fs::write(&new, "new").unwrap();
        numbers += usize::from(new.metadata().unwrap().ino() == number);
        // The kernel may still have the removed file in use, to write its data back.
        eventually("the file is gone", || {
            let found = read(&point, &known);
            assert_ne!(found, has("new"), "round {round}");
            found == GONE
        });
        let known = handle(&new);
        if round % 20 == 0 {
            forget(&point);
        }
        assert_eq!(read(&point, &known), has("new"), "round {round}");
        fs::remove_file(&new).unwrap();
    }
    println!("the layer gave a number to the next file {numbers} times");
    mount.unmount();
}

#[test]
fn one_of_several_names_is_enough() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(""), fixture.point());
    fs::write(point.join("own"), "own").unwrap();
    fs::hard_link(point.join("own"), point.join("many/own")).unwrap();
    let [lower, own] = ["one", "own"].map(|name| handle(&point.join(name)));
    forget(&point);
    assert_eq!((read(&point, &lower), read(&point, &own)), (has("both"), has("own")));
    for name in ["one", "own"] {
        fs::remove_file(point.join(name)).unwrap();
    }
    forget(&point);
    assert_eq!((read(&point, &lower), read(&point, &own)), (has("both"), has("own")));
    mount.unmount();
    let mount = fixture.mount("");
    assert_eq!((read(&point, &lower), read(&point, &own)), (has("both"), has("own")));
    for name in ["dir/other", "many/own"] {
        fs::remove_file(point.join(name)).unwrap();
    }
    forget(&point);
    assert_eq!((read(&point, &lower), read(&point, &own)), (GONE, GONE));
    mount.unmount();
}

#[test]
fn handles_last_over_snapshots_and_rollbacks() {
    let mut fixture = Fixture::new();
    let snapshots = fixture.setup.dir("snapshots");
    fixture.add(&format!(",snapshots={}", snapshots.display()));
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(""), fixture.point());
    let handles = make(&point);
    command(&["snapshot"], &point);
    check(&point, &handles, &[]);
    // Copies of objects that only a frozen layer has.
    for (name, text) in [("dir/own", "own"), ("dir/changed", "new")] {
        fs::write(point.join(name), text).unwrap();
    }
    fs::write(point.join("dir/own dir/in"), "in").unwrap();
    let inside = handle(&point.join("dir/own dir/in"));
    forget(&point);
    check(&point, &handles, &[]);
    mount.unmount();
    let mount = fixture.mount("");
    check(&point, &handles, &[]);
    command(&["snapshot"], &point);
    fs::write(point.join("dir/own"), "much longer than before").unwrap();
    fs::remove_file(point.join("dir/changed")).unwrap();
    let made = point.join("made");
    fs::write(&made, "made").unwrap();
    let made = handle(&made);
    let held = File::open(point.join("dir/own")).unwrap();
    command(&["rollback"], &point);
    assert_eq!(read(&point, &made), GONE);
    assert_eq!(fs::read_to_string(point.join("dir/own")).unwrap(), "own");
    drop(held);
    forget(&point);
    check(&point, &handles, &[]);
    assert_eq!((read(&point, &made), read(&point, &inside)), (GONE, has("in")));
    mount.unmount();
    let mount = fixture.mount("");
    check(&point, &handles, &[]);
    assert_eq!((read(&point, &made), read(&point, &inside)), (GONE, has("in")));
    mount.unmount();
}

#[test]
fn handles_last_over_restarts() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    // Over io_uring no other process can take a mount over.
    let (mount, point) = (fixture.mount(",io_uring=off"), fixture.point());
    let handles = make(&point);
    let removed = handle(&point.join("dir/removed"));
    command(&["restart"], &point);
    check(&point, &handles, &[]);
    forget(&point);
    command(&["restart"], &point);
    check(&point, &handles, &[]);
    fs::rename(point.join("dir"), point.join("many/dir")).unwrap();
    fs::remove_file(point.join("many/dir/removed")).unwrap();
    forget(&point);
    command(&["restart"], &point);
    assert_eq!((read(&point, &handles[2]), read(&point, &removed)), (has("below"), GONE));
    mount.unmount();
}

#[test]
fn handles_of_nothing_are_refused() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let (mount, point) = (fixture.mount(",ro"), fixture.point());
    let (known, number) = (handle(&point.join("one")), point.join("one").metadata().unwrap().ino());
    for byte in 0..known.bytes as usize {
        let mut other = known;
        other.data[byte] ^= 0x15;
        match open(&point, &other, libc::O_PATH) {
            // Objects of a lower layer have one generation, so this is the handle of another one.
            Ok(file) => assert!(byte < 8 && file.metadata().unwrap().ino() != number, "another byte {byte}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "another byte {byte}"),
        }
    }
    assert_eq!(read(&point, &known), has("both"));
    mount.unmount();
}

/// A client keeps handles while the server is restarted and the mount is mounted anew, unless the
/// mount gets another number of the device meanwhile: the server's handles have it.
#[test]
fn clients_of_nfs_keep_their_handles() {
    let fixture = Fixture::new();
    fill(&fixture.path("lower"));
    let guard = fixture.guard();
    let state = fixture.setup.dir("server");
    let (mount, point) = (fixture.mount(""), fixture.point());
    let server = Server::start(&point, &state);
    let source = put::file(fixture.setup.root(), "source", "own");
    nfs::program("nfs-cp", &[source.to_str().unwrap(), &server.address("dir/own")]);
    assert_eq!(fs::read_to_string(point.join("dir/own")).unwrap(), "own");
    fs::write(point.join("dir/changed"), "new").unwrap();
    let names = ["dir/own", "dir/changed", "dir/deep/below", "dir/other", "dir/removed"];
    let handles = names.map(|name| server.handle(name).unwrap());
    let read = |server: &Server| handles.each_ref().map(|handle| server.read(handle));
    let all = ["own", "new", "below", "both", "removed"].map(|text| Ok(text.to_owned()));
    let device = || point.metadata().unwrap().dev();
    let first = device();
    let check = |server: &Server, expected: &[Result<String, u32>; 5]| {
        let found = read(server);
        let is_stale = found.iter().all(|found| *found == Err(STALE));
        assert!(found == *expected || is_stale && device() != first, "{found:?}");
    };
    assert_eq!(read(&server), all);
    fs::rename(point.join("dir/deep"), point.join("far")).unwrap();
    forget(&point);
    assert_eq!(read(&server), all);
    drop(server);
    mount.unmount();

    let mount = fixture.mount("");
    let server = Server::start(&point, &state);
    check(&server, &all);
    assert_eq!(nfs::program("nfs-cat", &[&server.address("far/below")]), b"below");
    fs::write(point.join("far/below"), "written here").unwrap();
    fs::remove_file(point.join("dir/removed")).unwrap();
    drop(server);
    mount.unmount();

    let mount = fixture.mount("");
    let server = Server::start(&point, &state);
    let text = |text: &str| Ok(text.to_owned());
    check(&server, &[text("own"), text("new"), text("written here"), text("both"), Err(STALE)]);
    drop(server);
    mount.unmount();
    drop(guard);
}
