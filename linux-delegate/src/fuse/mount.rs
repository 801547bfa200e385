//! Mounting and unmounting: by the system calls, or by `fusermount3` for a user who may not.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

/// The type of the filesystem in `/proc/mounts`.
const TYPE: &str = "fuse.overlayfs-fuse";

/// How a filesystem is mounted.
#[derive(Clone, Debug)]
pub struct Options {
    /// What `/proc/mounts` names as its source.
    pub source: OsString,
    /// `ro`, `nosuid`, `nodev`, `noexec`, `noatime`.
    pub flags: MountFlags,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// The kernel checks access by the attributes that it is told.
    pub default_permissions: bool,
}

/// A mounted filesystem. It stays mounted when this is dropped.
pub struct Mounted {
    path: PathBuf,
    /// A user who may not mount may not unmount either.
    by_helper: bool,
}

/// Mounts a filesystem at the directory `path`, which must be absolute. Answers the device whose requests are to be served.
pub fn mount(path: &Path, options: &Options) -> io::Result<(OwnedFd, Mounted)> {
    match mount_by_call(path, options) {
        Ok(device) => Ok((device, Mounted { path: path.to_owned(), by_helper: false })),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            mount_by_helper(path, options).map(|device| (device, Mounted { path: path.to_owned(), by_helper: true }))
        }
        Err(error) => Err(error),
    }
}

impl Mounted {
    /// Takes the mount away from the tree at once. Programs that have files open keep them, and serving ends with the last of them.
    pub fn unmount(&self) -> io::Result<()> {
        if self.by_helper {
            let done = Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(&self.path).status()?;
            return if done.success() { Ok(()) } else { Err(io::Error::other("fusermount3 failed")) };
        }
        Ok(rustix::mount::unmount(&self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
    }
}

fn mount_by_call(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    let mode = FileType::Directory.as_raw_mode();
    if !rustix::fs::statat(CWD, path, rustix::fs::AtFlags::empty()).is_ok_and(|stat| stat.st_mode & mode != 0) {
        return Err(ErrorKind::NotADirectory.into());
    }
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode={mode:o},user_id={uid},group_id={gid}", device.as_raw_fd());
    if options.allow_other {
        data += ",allow_other";
    }
    if options.default_permissions {
        data += ",default_permissions";
    }
    let data = CString::new(data)?;
    rustix::mount::mount(options.source.as_os_str(), path, TYPE, options.flags, data.as_c_str())?;
    Ok(device.into())
}

/// `fusermount3` mounts with the rights of root and sends the device through a socket.
fn mount_by_helper(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
    let mut list = OsString::from("subtype=overlayfs-fuse,fsname=");
    list.push(escaped(&options.source));
    let flags = [(MountFlags::RDONLY, ",ro"), (MountFlags::NOEXEC, ",noexec"), (MountFlags::NOATIME, ",noatime")];
    for (_, word) in flags.iter().filter(|(flag, _)| options.flags.contains(*flag)) {
        list.push(word);
    }
    for (wanted, word) in [(options.allow_other, ",allow_other"), (options.default_permissions, ",default_permissions")]
    {
        if wanted {
            list.push(word);
        }
    }
    let mut helper = Command::new("fusermount3")
        .arg("-o")
        .arg(list)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3 (package fuse3) cannot be run: {error}")))?;
    drop(theirs);
    let device = receive(&ours);
    let done = helper.wait()?;
    match device {
        Some(device) if done.success() => Ok(device),
        _ => Err(io::Error::other("fusermount3 refused, for the reason it says above")),
    }
}

/// The descriptor that comes through a socket; None if the other end is closed without one.
fn receive(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

/// With a backslash before what the helper takes for the end of an option.
fn escaped(text: &OsStr) -> OsString {
    let bytes = text.as_bytes().iter().flat_map(|byte| match byte {
        b',' | b'\\' => vec![b'\\', *byte],
        _ => vec![*byte],
    });
    OsString::from_vec(bytes.collect())
}
