//! Owners: mapped and squashed ones, and owners that a user's daemon cannot set. Also the objects
//! of other users that the owner of a part of a layer could show.
//!
//! Needs root and /dev/fuse.

#[path = "suite/child.rs"]
mod child;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use child::{as_another_user, as_user, in_a_child};
use fixture::Fixture;
use mount::Mount;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Gid, Mode, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use test_common::{Detail, LowerGuard, Snapshot, mode, names, owner, put};

/// The user of [`as_another_user`].
const USER: u32 = 4242;
/// A user who rarely owns anything.
const NOBODY: u32 = 65534;

/// An attempt to change a directory with objects of other users.
type Try = fn(&Path) -> rustix::io::Result<()>;

fn open(path: &Path, options: &mut OpenOptions) -> rustix::io::Result<File> {
    options.open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn io<T>(result: std::io::Result<T>) -> rustix::io::Result<()> {
    result.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Stores to a file through a shared mapping.
fn store(path: &Path) -> rustix::io::Result<()> {
    let file = open(path, File::options().read(true).write(true))?;
    let (rights, length) = (libc::PROT_READ | libc::PROT_WRITE, 4096);
    // SAFETY: a new mapping of a file that is not empty. Its first byte is within it.
    let stored = unsafe {
        let at = libc::mmap(std::ptr::null_mut(), length, rights, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if at != libc::MAP_FAILED {
            at.cast::<u8>().write(b'X');
        }
        at != libc::MAP_FAILED && libc::msync(at, length, libc::MS_SYNC) == 0
    };
    if stored { Ok(()) } else { io::<()>(Err(std::io::Error::last_os_error())) }
}

const ANY_TIME: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 1, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 1, tv_nsec: 0 },
};

/// An id that is not mapped belongs to no user. Neither root nor the user with the number that the
/// kernel shows for it can change the objects, as on a mount with mapped ids.
#[test]
fn no_user_changes_objects_with_unmapped_ids() {
    let tries: [(&str, Try); 24] = [
        ("write", |dir| open(&dir.join("file"), File::options().write(true)).map(drop)),
        ("append", |dir| open(&dir.join("file"), File::options().append(true)).map(drop)),
        ("empty", |dir| open(&dir.join("file"), File::options().write(true).truncate(true)).map(drop)),
        ("truncate", |dir| {
            let path = std::ffi::CString::new(dir.join("file").to_str().unwrap()).unwrap();
            // SAFETY: a path and a number.
            if unsafe { libc::truncate(path.as_ptr(), 1) } == 0 {
                Ok(())
            } else {
                io::<()>(Err(std::io::Error::last_os_error()))
            }
        }),
        ("store", |dir| store(&dir.join("file"))),
        ("chmod", |dir| rustix::fs::chmod(dir.join("file"), Mode::RWXU | Mode::SUID)),
        ("chmod of a directory", |dir| rustix::fs::chmod(dir.join("dir"), Mode::RWXU)),
        ("chown to the same user", |dir| {
            let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
            rustix::fs::chown(dir.join("file"), Some(uid), None).and(rustix::fs::chown(
                dir.join("file"),
                None,
                Some(gid),
            ))
        }),
        ("chgrp", |dir| rustix::fs::chown(dir.join("file"), None, Some(Gid::from_raw(NOBODY)))),
        ("chown to nobody", |dir| rustix::fs::chown(dir.join("file"), Some(Uid::from_raw(NOBODY)), None)),
        ("times", |dir| rustix::fs::utimensat(CWD, dir.join("file"), &ANY_TIME, AtFlags::empty())),
        ("attribute", |dir| rustix::fs::setxattr(dir.join("file"), "user.a", b"b", XattrFlags::empty())),
        ("no attribute", |dir| rustix::fs::removexattr(dir.join("file"), "user.there")),
        ("unlink in it", |dir| rustix::fs::unlink(dir.join("dir/inner"))),
        ("unlink", |dir| rustix::fs::unlink(dir.join("file"))),
        ("rmdir", |dir| rustix::fs::rmdir(dir.join("empty"))),
        ("rename", |dir| rustix::fs::rename(dir.join("file"), dir.join("other"))),
        ("rename over", |dir| rustix::fs::rename(dir.join("mine"), dir.join("file"))),
        ("exchange", |dir| {
            rustix::fs::renameat_with(CWD, dir.join("mine"), CWD, dir.join("file"), RenameFlags::EXCHANGE)
        }),
        ("rename into it", |dir| rustix::fs::rename(dir.join("mine"), dir.join("dir/mine"))),
        ("link", |dir| rustix::fs::link(dir.join("file"), dir.join("link"))),
        ("create in it", |dir| open(&dir.join("dir/new"), File::options().write(true).create(true)).map(drop)),
        ("mkdir in it", |dir| rustix::fs::mkdir(dir.join("dir/new"), Mode::RWXU)),
        ("mknod in it", |dir| rustix::fs::mknodat(CWD, dir.join("dir/new"), FileType::Fifo, Mode::RWXU, 0)),
    ];
    let fixture = Fixture::new();
    let lower = fixture.path("lower");
    let dir = put::dir(&lower, "shared");
    for (path, kind) in [("file", 0o666), ("dir/inner", 0o666)] {
        let path = put::file(&dir, path, "content");
        mode(&path, kind);
        owner(&path, 5000, 5000);
        rustix::fs::setxattr(&path, "user.there", b"x", XattrFlags::empty()).unwrap();
    }
    for path in ["dir", "empty"] {
        mode(&put::dir(&dir, path), 0o777);
        owner(&dir.join(path), 5000, 5000);
    }
    mode(&put::file(&dir, "mine", "of all"), 0o666);
    mode(&dir, 0o777);
    let guard = LowerGuard::new([lower]);
    // All ids except 5000. Another user has the number that the kernel shows for unmapped ids.
    let map = "0:0:5000:5001:5001:100000";
    let mount = fixture.mount(&format!(",uidmapping={map},gidmapping={map}"));
    let shared = fixture.path("mount/shared");
    let shown = fs::metadata(shared.join("file")).unwrap();
    assert_eq!((shown.uid(), shown.gid()), (NOBODY, NOBODY));
    let refused = |error| matches!(error, Errno::ACCESS | Errno::PERM | Errno::OVERFLOW);
    for (name, attempt) in tries {
        for id in [0, NOBODY, USER] {
            if (name, id) == ("chown to the same user", 0) || (name, id) == ("chown to nobody", NOBODY) {
                continue;
            }
            assert!(as_user(id, || attempt(&shared).is_err_and(refused)), "{name}, by {id}: {:?}", attempt(&shared));
        }
    }
    assert_eq!(names(&fixture.path("upper")), [".wh..wh.work"], "nothing was copied up");
    // Other users can read a file if its mode allows it. Root can give it to a user.
    assert!(as_another_user(|| fs::read(shared.join("file")).is_ok_and(|found| found == b"content")));
    owner(&shared.join("file"), 7, 8);
    assert!(as_user(7, || open(&shared.join("file"), File::options().write(true)).is_ok()));
    mount.unmount();
    drop(guard);
}

/// Returns the set-id objects below a directory with their owners, but no directories.
fn set_id_files(dir: &Path) -> Vec<(PathBuf, u32, u32, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stat = fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            found.extend(set_id_files(&path));
        } else if stat.mode() & 0o6000 != 0 {
            found.push((path, stat.mode() & 0o7777, stat.uid(), stat.gid()));
        }
    }
    found
}

/// Changes by a user who is shown as the owner of objects of another one.
const EDITS: [(&str, Try); 14] = [
    ("chmod", |dir| rustix::fs::chmod(dir.join("file"), Mode::from_raw_mode(0o6755))),
    ("chmod of a program", |dir| rustix::fs::chmod(dir.join("chmod"), Mode::from_raw_mode(0o6775))),
    ("write", |dir| io(open(&dir.join("write"), File::options().write(true))?.write_at(b"X", 0))),
    ("store", |dir| store(&dir.join("store"))),
    ("truncate", |dir| io(open(&dir.join("truncate"), File::options().write(true))?.set_len(3))),
    ("allocate", |dir| {
        rustix::fs::fallocate(
            open(&dir.join("allocate"), File::options().write(true))?,
            FallocateFlags::empty(),
            0,
            9000,
        )
    }),
    ("copy", |dir| {
        let (from, to) = (
            open(&dir.join("file"), File::options().read(true))?,
            open(&dir.join("copy"), File::options().write(true))?,
        );
        rustix::fs::copy_file_range(&from, None, &to, None, 4).map(drop)
    }),
    ("chown", |dir| rustix::fs::chown(dir.join("chown"), None, Some(rustix::process::getgid()))),
    ("rename", |dir| rustix::fs::rename(dir.join("rename"), dir.join("renamed")).and(store(&dir.join("renamed")))),
    ("link", |dir| rustix::fs::link(dir.join("link"), dir.join("linked")).and(store(&dir.join("linked")))),
    ("create", |dir| open(&dir.join("new"), File::options().write(true).create_new(true).mode(0o6755)).map(drop)),
    ("create for another group", |dir| {
        open(&dir.join("handed/new"), File::options().write(true).create_new(true).mode(0o6755)).map(drop)
    }),
    ("mknod", |dir| rustix::fs::mknodat(CWD, dir.join("node"), FileType::RegularFile, Mode::from_raw_mode(0o6755), 0)),
    ("chmod of the new", |dir| {
        rustix::fs::chmod(dir.join("new"), Mode::from_raw_mode(0o6755))
            .and(rustix::fs::chmod(dir.join("handed/new"), Mode::from_raw_mode(0o6755)))
    }),
];

/// Makes set-id programs of root, one for each of [`EDITS`], and a directory that passes on root's
/// group.
fn programs(dir: &Path) {
    for name in ["chmod", "write", "store", "truncate", "allocate", "copy", "chown", "rename", "link"] {
        mode(&put::file(dir, name, "a program"), 0o6755);
    }
    put::file(dir, "file", "content");
    mode(&put::dir(dir, "handed"), 0o2755);
}

/// A set-id bit in a layer must belong to the owner that the mount shows. The shown owner may
/// change the file. Outside of the mount it would run with the rights of the stored owner.
#[test]
fn a_set_id_bit_is_stored_for_the_shown_owner_only() {
    for options in [",squash_to_uid=4242,squash_to_gid=4242", ",uidmapping=0:4242:1,gidmapping=0:4242:1"] {
        let fixture = Fixture::new();
        programs(&put::dir(&fixture.path("lower"), "below"));
        programs(&put::dir(&fixture.path("upper"), "above"));
        let guard = fixture.guard();
        let mount = fixture.mount(options);
        for place in ["below", "above"] {
            let dir = fixture.point().join(place);
            for (name, edit) in EDITS {
                assert!(as_another_user(|| edit(&dir) == Ok(())), "{options}: {name} {place}");
            }
        }
        mount.unmount();
        drop(guard);
        let unsafe_ones: Vec<_> = set_id_files(&fixture.path("upper"))
            .into_iter()
            .filter(|(_, bits, uid, gid)| bits & 0o4000 != 0 && *uid != USER || bits & 0o2000 != 0 && *gid != USER)
            .collect();
        assert!(unsafe_ones.is_empty(), "{options}: {unsafe_ones:x?}");
        assert_eq!(fs::read(fixture.path("upper/below/store")).unwrap(), b"X program");
    }
}

/// A set-id file of a user in a layer gives the rights of that user. It never gives the rights of
/// the user that all files are shown to belong to.
#[test]
fn a_squashed_file_gives_only_its_owners_rights() {
    let fixture = Fixture::new();
    for (id, name) in [(USER, "of-the-user"), (0, "of-root")] {
        let path = fixture.path("lower").join(name);
        fs::copy("/usr/bin/id", &path).unwrap();
        owner(&path, id, id);
        mode(&path, 0o6755);
    }
    let runs_as = |name: &str| {
        let output = Command::new(fixture.point().join(name)).arg("-u").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let mount = fixture.mount(",squash_to_root");
    assert!(as_another_user(|| runs_as("of-the-user") == "4242\n"), "root's rights came out of a user's file");
    assert!(as_another_user(|| runs_as("of-root") == "0\n"));
    mount.unmount();
    // A mapped id is the same user with another number: su works in a container.
    let mount = fixture.mount(",uidmapping=0:7000:1:4242:4242:1,gidmapping=0:7000:1:4242:4242:1");
    assert!(as_another_user(|| runs_as("of-root") == "7000\n"));
    mount.unmount();
    assert!(in_a_child(|| set_id_files(&fixture.path("upper")).is_empty()));
}

fn attribute(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Makes a file of a user or of root in a layer.
fn file_of(id: u32, layer: &Path, path: &str, content: &str, bits: u32) -> PathBuf {
    let path = put::file(layer, path, content);
    owner(&path, id, id);
    mode(&path, bits);
    path
}

fn dir_of(id: u32, layer: &Path, path: &str, bits: u32) -> PathBuf {
    let path = put::dir(layer, path);
    owner(&path, id, id);
    mode(&path, bits);
    path
}

/// So its owner can remove it from a sticky directory.
#[test]
fn the_device_of_a_rename_belongs_to_the_caller() {
    for more in [",format=oci", ",noacl"] {
        let fixture = Fixture::new();
        mode(&put::dir(&fixture.path("lower"), "all"), 0o1777);
        let mount = fixture.mount(more);
        let all = fixture.path("mount/all");
        assert!(as_another_user(|| {
            let (file, moved) = (all.join("file"), all.join("moved"));
            fs::write(&file, "his").is_ok()
                && rustix::fs::renameat_with(CWD, &file, CWD, &moved, RenameFlags::WHITEOUT).is_ok()
                && fs::symlink_metadata(&file).is_ok_and(|left| left.rdev() == 0 && left.uid() == USER)
                && fs::remove_file(&file).is_ok()
                && fs::read_to_string(&moved).is_ok_and(|text| text == "his")
        }));
        mount.unmount();
    }
}

/// Returns the texts that [`USER`] can read below the mount.
fn readable(mount: &Path) -> Vec<String> {
    let script = "cd \"$1\" && find . -type f -readable -exec cat {} + | sort -u";
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "4242", "--regid", "4242", "--clear-groups", "sh", "-c", script, "sh"]).arg(mount);
    let output = command.stderr(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Fills a layer of root with private and public objects.
fn roots_layer(layer: &Path) {
    dir_of(0, layer, "secret", 0o700);
    file_of(0, layer, "secret/file", "secret behind a directory\n", 0o644);
    dir_of(0, layer, "secret/open", 0o755);
    file_of(0, layer, "secret/open/file", "secret behind two directories\n", 0o644);
    file_of(USER, layer, "secret/of-the-user", "of the user, behind a directory\n", 0o600);
    dir_of(0, layer, "open", 0o755);
    file_of(0, layer, "open/file", "open\n", 0o644);
    dir_of(0, layer, "open/closed", 0o700);
    file_of(0, layer, "open/closed/file", "secret in an open directory\n", 0o644);
    file_of(0, layer, "private", "private file\n", 0o600);
    file_of(0, layer, "public", "public file\n", 0o644);
    dir_of(USER, layer, "home", 0o755);
    file_of(0, layer, "home/same", "private file at home\n", 0o600);
}

/// Fills a layer with objects by which the owner of a directory could show more of the layers
/// below. `redirect` makes a directory redirect.
fn users_layer(layer: &Path, redirect: fn(&Path, &str)) {
    dir_of(USER, layer, "home", 0o755);
    for (name, target) in
        [("dir", "/secret"), ("deep", "/secret/open"), ("wide", "/open"), ("chain", "/home/wide/closed")]
    {
        redirect(&dir_of(USER, layer, &format!("home/{name}"), 0o755), target);
    }
    dir_of(USER, layer, "home/wide/closed", 0o755);
    let length = |path: &Path, target: &Path| {
        File::options().write(true).open(path).unwrap().set_len(fs::metadata(target).unwrap().len())
    };
    let base = layer.parent().unwrap().join("lower");
    for (name, target) in
        [("same", "home/same"), ("file", "private"), ("good", "public"), ("hidden", "secret/of-the-user")]
    {
        let path = file_of(USER, layer, &format!("home/{name}"), "", 0o644);
        length(&path, &base.join(target)).unwrap();
        attribute(&path, "user.overlay.metacopy", "");
        if name != "same" {
            attribute(&path, "user.overlay.redirect", &format!("/{target}"));
        }
    }
}

fn redirect_file(dir: &Path, target: &str) {
    file_of(USER, dir, ".wh..wh.redirect", target, 0o644);
}

fn redirect_attribute(dir: &Path, target: &str) {
    attribute(dir, "user.overlay.redirect", target);
}

/// Redirects and metacopies of a user show nothing that the user could not read without them. The
/// same holds if the redirect lies below a directory of that user. The user who mounts can declare
/// the layers as trusted.
#[test]
fn redirects_of_users_reveal_nothing() {
    for redirect in [redirect_file, redirect_attribute] {
        let fixture = Fixture::new();
        roots_layer(&fixture.path("lower"));
        users_layer(&fixture.setup.dir("user"), redirect);
        let guard = LowerGuard::new([fixture.path("lower"), fixture.path("user")]);
        let [lower, user] = ["lower", "user"].map(|name| fixture.path(name));
        let layers = format!("lowerdir={}:{}", user.display(), lower.display());
        let point = fixture.point();

        let mount = Mount::new(&point, &layers);
        assert_eq!(readable(&point), ["open", "public file"]);
        // Root sees the same.
        assert_eq!(names(&point.join("home/wide")), ["closed", "file"]);
        for empty in ["home/dir", "home/deep", "home/wide/closed", "home/chain"] {
            assert!(names(&point.join(empty)).is_empty(), "{empty}");
        }
        assert_eq!(fs::read_to_string(point.join("home/good")).unwrap(), "public file\n");
        assert!(fs::read(point.join("home/file")).is_err());
        mount.unmount();

        let mount = Mount::new(&point, &format!("{layers},userxattr"));
        assert_eq!(
            readable(&point),
            [
                "of the user, behind a directory",
                "open",
                "private file",
                "private file at home",
                "public file",
                "secret behind a directory",
                "secret behind two directories",
                "secret in an open directory",
            ]
        );
        mount.unmount();
        drop(guard);
    }
}

/// The same in the upper layer. A rename by the overlay must not turn a user's redirect into a
/// trusted one. Users can still rename their own directories.
#[test]
fn the_overlay_launders_no_redirect() {
    let fixture = Fixture::new();
    roots_layer(&fixture.path("lower"));
    dir_of(USER, &fixture.path("lower"), "home/own/inner", 0o755);
    owner(&fixture.path("lower/home/own"), USER, USER);
    file_of(USER, &fixture.path("lower"), "home/own/inner/file", "own\n", 0o600);
    users_layer(&fixture.path("upper"), redirect_file);
    let mount = fixture.mount("");
    let home = fixture.path("mount/home");
    let moved = |from: &str, to: &str| {
        let (from, to) = (home.join(from), home.join(to));
        move || as_another_user(|| rustix::fs::rename(&from, &to) == Ok(()))
    };
    assert!(as_another_user(|| {
        rustix::fs::rename(home.join("wide/closed"), home.join("taken")) == Err(Errno::XDEV)
    }));
    assert!(moved("wide", "moved")() && moved("dir", "moved-too")());
    assert!(moved("own", "renamed")() && moved("renamed/inner", "inner")());
    mount.unmount();
    // As the lower layer of another mount, above the same one.
    let [lower, upper] = ["lower", "upper"].map(|name| fixture.path(name));
    let mount = Mount::new(&fixture.point(), &format!("lowerdir={}:{}", upper.display(), lower.display()));
    assert_eq!(readable(&fixture.point()), ["open", "own", "public file"]);
    assert_eq!(names(&home.join("moved")), ["closed", "file"]);
    assert_eq!(fs::read_to_string(home.join("inner/file")).unwrap(), "own\n");
    mount.unmount();
}

/// A redirect that root's overlay wrote in a directory of a user counts.
#[test]
fn redirects_of_root_count_wherever_they_are() {
    let fixture = Fixture::new();
    let lower = fixture.path("lower");
    dir_of(0, &lower, "secret", 0o700);
    file_of(0, &lower, "secret/file", "secret\n", 0o644);
    let user = fixture.setup.dir("user");
    let dir = dir_of(USER, &user, "by-root", 0o755);
    file_of(0, &dir, ".wh..wh.redirect", "/secret", 0o644);
    let dir = dir_of(USER, &user, "by-anybody", 0o755);
    file_of(0, &dir, ".wh..wh.redirect", "/secret", 0o666);
    attribute(&dir_of(USER, &user, "trusted", 0o755), "trusted.overlay.redirect", "/secret");
    attribute(&dir_of(0, &user, "of-root", 0o755), "user.overlay.redirect", "/secret");
    let layers = format!("lowerdir={}:{}", user.display(), lower.display());
    let mount = Mount::new(&fixture.point(), &layers);
    for (name, shown) in [("by-root", true), ("by-anybody", false), ("trusted", true), ("of-root", true)] {
        assert_eq!(fixture.point().join(name).join("file").exists(), shown, "{name}");
    }
    mount.unmount();
}

/// Changes of a user in a tree of root, and their result. The given program makes the mount with
/// the given options, in a namespace where the user may open the device.
const SESSION: &str = r#"
setup=$1 program=$2 options=$3; shift 3
mount --bind "$setup/fuse" /dev/fuse
{ cat /etc/passwd; echo user:x:4242:4242::/:/bin/sh; } > "$setup/passwd"
mount --bind "$setup/passwd" /etc/passwd
exec setpriv --reuid 4242 --regid 4242 --clear-groups "$@" sh -euc '
umask 022
cd "$1"
"$2" -o "lowerdir=lower,upperdir=upper,workdir=work,$3" mount
list() {
    find . ! -name . -printf "%P %y %u %g %m %l\n" | sort
    find . -type f | sort | xargs cat
    getfattr -R -d -m "user\.[ac]" . | sort
}
session() {
    echo new > dir/new
    mv dir/new dir/renamed
    mkdir dir/made
    echo more >> dir/sub/file
    chmod 700 dir/sub
    chmod 755 dir/sub/deep
    mv dir/gone dir/here
    rm dir/removed
    rm -r dir/tree
    ln -s target dir/symlink
    ln dir/linked dir/link
    cp -a dir/sub/deep dir/copy
    touch -d 2001-01-01 dir/copy/file
    setfattr -n user.a -v b dir/here
    : > dir/emptied
}
(cd mount; session; list)
fusermount3 -u mount || umount mount
tries=0
until "$2" -o "lowerdir=lower,upperdir=upper,workdir=work,$3" mount; do tries=$((tries + 1)); test $tries -lt 50; sleep 0.1; done
echo again
(cd mount; list)
fusermount3 -u mount || umount mount
' sh "$setup" "$program" "$options"
"#;

/// Makes a tree of root, and directories of [`USER`] for one mount.
fn roots_tree() -> Fixture {
    let fixture = Fixture::new();
    let lower = fixture.path("lower");
    for file in ["sub/file", "sub/deep/file", "gone", "removed", "tree/a/b", "linked", "emptied"] {
        let path = put::file(&lower.join("dir"), file, format!("{file}\n"));
        mode(&path, 0o644);
    }
    owner(&lower.join("dir/gone"), 5, 6);
    for dir in ["", "dir", "dir/sub", "dir/sub/deep", "dir/tree", "dir/tree/a"] {
        mode(&lower.join(dir), 0o755);
    }
    mode(&put::dir(&lower, "shared"), 0o1777);
    for name in ["upper", "work", "mount"] {
        owner(&fixture.setup.dir(name), USER, USER);
    }
    put::node(fixture.setup.root(), "fuse", FileType::CharacterDevice, 0o666, rustix::fs::makedev(10, 229));
    fs::copy(env!("CARGO_BIN_EXE_overlayfs-fuse"), fixture.path("overlayfs-fuse")).unwrap();
    fixture
}

/// Runs a script that begins like [`SESSION`], and returns its output.
fn in_a_session(fixture: &Fixture, script: &str, program: &Path, options: &str, namespace: &[&str]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", script, "sh"]).arg(fixture.setup.root()).arg(program).arg(options);
    let output = command.args(namespace).stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} with {options}: {error}", program.display());
    String::from_utf8(output.stdout).unwrap()
}

/// A user edits a tree of root that is shown as the user's own, as with fuse-overlayfs, and as root
/// on an ordinary mount. The overlay records owners that it cannot set.
#[test]
fn a_user_edits_a_tree_of_roots() {
    let in_a_namespace = &["unshare", "--user", "--map-root-user", "--mount"][..];
    for (options, namespace) in [("squash_to_uid=4242,squash_to_gid=4242", &[][..]), ("squash_to_root", in_a_namespace)]
    {
        let found = ["overlayfs-fuse", "fuse-overlayfs"].map(|program| {
            let fixture = roots_tree();
            // The user may not read files of root without a change of their access times.
            let before = Snapshot::take(&fixture.path("lower"), Detail::Times);
            let program = if program == "overlayfs-fuse" { fixture.path(program) } else { program.into() };
            let found = in_a_session(&fixture, SESSION, &program, options, namespace);
            before.assert_same(&Snapshot::take(&fixture.path("lower"), Detail::Times), "the lower layer");
            (fixture, found)
        });
        let [(fixture, ours), (_, theirs)] = &found;
        assert!(ours.contains("dir/copy/file f"), "{ours}");
        let (first, again) = ours.split_once("again\n").unwrap();
        assert_eq!(first, again, "after another mount");
        assert_eq!(first, theirs.split_once("again\n").unwrap().0, "fuse-overlayfs, with {options}");
        let mut record = [0; 64];
        let length =
            rustix::fs::getxattr(fixture.path("upper/dir/here"), "user.containers.override_stat", &mut record).unwrap();
        let owner = if namespace.is_empty() { "5:6" } else { "65534:65534" };
        assert_eq!(std::str::from_utf8(&record[..length]).unwrap(), format!("{owner}:644"));
        // A mount of root ignores records of a user.
        let mount = Mount::new(&fixture.point(), &format!("lowerdir={}", fixture.path("upper").display()));
        assert_eq!(fs::metadata(fixture.path("mount/dir/here")).unwrap().uid(), USER);
        mount.unmount();
    }
}

/// Without squashing: the owners of other objects show unchanged after a copy-up by a user's mount.
const SHARED: &str = r#"
setup=$1 program=$2; shift 3
mount --bind "$setup/fuse" /dev/fuse
{ cat /etc/passwd; echo user:x:4242:4242::/:/bin/sh; } > "$setup/passwd"
mount --bind "$setup/passwd" /etc/passwd
exec setpriv --reuid 4242 --regid 4242 --clear-groups "$@" sh -euc '
cd "$1"
for turn in 1 2; do
    tries=0
    until "$2" -o lowerdir=lower,upperdir=upper,workdir=work mount; do tries=$((tries + 1)); test $tries -lt 50; sleep 0.1; done
    mkdir mount/shared/$turn
    stat -c "%u:%g %a" mount/shared mount/shared/$turn mount/dir
    touch mount/dir/new || echo refused
    fusermount3 -u mount
done
' sh "$setup" "$program"
"#;

#[test]
fn an_owner_that_cannot_be_given_shows() {
    let fixture = roots_tree();
    let found = in_a_session(&fixture, SHARED, &fixture.path("overlayfs-fuse"), "", &[]);
    assert_eq!(found, "0:0 1777\n4242:4242 755\n0:0 755\nrefused\n".repeat(2));
    assert_eq!(fs::metadata(fixture.path("upper/shared")).unwrap().uid(), USER);
}

/// A mount of root uses only records that root alone can have written. A record cannot be made
/// through a mount.
#[test]
fn records_of_users_do_not_count_for_root() {
    const RECORD: &str = "user.containers.override_stat";
    let fixture = Fixture::new();
    let lower = fixture.path("lower");
    attribute(&lower, RECORD, "0:0:755");
    for (name, id, bits) in [("root", 0, 0o644), ("user", USER, 0o644), ("anybody", 0, 0o666)] {
        attribute(&file_of(id, &lower, name, "content", bits), RECORD, "7:8:4755");
    }
    let shown = |name: &str| {
        let stat = fs::metadata(fixture.point().join(name)).unwrap();
        (stat.uid(), stat.gid(), stat.mode() & 0o7777)
    };
    let mount = fixture.mount("");
    assert_eq!(shown("root"), (7, 8, 0o4755));
    assert_eq!(shown("user"), (USER, USER, 0o644));
    assert_eq!(shown("anybody"), (0, 0, 0o666));
    for name in ["root", "user"] {
        let path = fixture.point().join(name);
        assert_eq!(rustix::fs::getxattr(&path, RECORD, &mut [0; 64]), Err(Errno::NODATA));
        attribute(&path, RECORD, "0:0:6777");
    }
    mount.unmount();
    for (name, expected) in [("root", (7, 8, 0o4755)), ("user", (USER, USER, 0o644))] {
        let stat = fs::metadata(fixture.path("upper").join(name)).unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), expected);
    }
    let mount = fixture.mount("");
    assert_eq!(shown("root"), (7, 8, 0o4755));
    assert_eq!(shown("user"), (USER, USER, 0o644));
    mount.unmount();
}
