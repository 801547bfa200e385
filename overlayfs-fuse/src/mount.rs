//! Mounting and unmounting: by the system calls, or by `fusermount3` for a user who may not.
//!
//! Both need rights that the daemon gives up once it serves. So a process of its own, which has
//! them and does nothing else, waits until the mount is to be taken away. Other threads of it have
//! the kernel wait before it takes the filesystem down, and find out whether it does (see
//! [`super::settle`]).

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

/// The type of the filesystem in `/proc/mounts`.
pub const TYPE: &str = "fuse.overlayfs-fuse";

/// Where requests come from.
pub const DEVICE: &str = "/dev/fuse";

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

/// Mounts a filesystem at the directory `path`, which must be absolute. Answers the device whose
/// requests are to be served.
pub fn mount(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    match mount_by_call(path, options) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => mount_by_helper(path, options),
        mounted => mounted,
    }
}

/// Gives what is mounted at `path` these flags instead of those that it has. EPERM without
/// CAP_SYS_ADMIN, EINVAL if nothing is mounted there.
pub fn remount(path: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(path, flags, "")?)
}

/// Opens the device of FUSE. The error says what to do.
fn open_device() -> io::Result<File> {
    File::options().read(true).write(true).open(DEVICE).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOENT) => {
                "; in a container, start that with --device /dev/fuse; elsewhere, modprobe fuse makes it"
            }
            Some(libc::EPERM | libc::EACCES) => "; in a container, start that with --device /dev/fuse",
            Some(libc::ENODEV | libc::ENXIO) => "; modprobe fuse loads the kernel's part of FUSE",
            _ => "",
        };
        io::Error::new(error.kind(), format!("{DEVICE} cannot be opened: {error}{remedy}"))
    })
}

/// The number of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// That of the filesystem that was mounted at `path`, which is not asked for anything.
    pub fn of_mounted(path: &Path) -> io::Result<Self> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::empty())?;
        Ok(Self { major: stat.stx_dev_major, minor: stat.stx_dev_minor })
    }

    /// As ustat(2) takes it.
    fn number(self) -> u32 {
        crate::wire::device_to_wire(libc::makedev(self.major, self.minor))
    }
}

impl fmt::Display for Device {
    /// As `/proc/self/mountinfo` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A process that waits to unmount what is mounted at a path. It ends with this one.
pub struct Unmounter(UnixStream);

impl Unmounter {
    /// Starts it, for what is going to be mounted at `path`, which must be absolute. To be called
    /// before this process has opened anything that must be closed when it ends, and before it has
    /// other threads.
    pub fn start(path: &Path) -> io::Result<(Self, Waiter, Prober)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (mut ours_to_wait, theirs_to_wait) = UnixStream::pair()?;
        let (ours_to_probe, theirs_to_probe) = UnixStream::pair()?;
        // SAFETY: there is no other thread, so the child has all that this process has.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop((ours, ours_to_wait, ours_to_probe));
                // Without it the mount works, and umount does not wait.
                let _ = std::thread::Builder::new().spawn(|| wait_in_ustat(theirs_to_wait));
                let _ = std::thread::Builder::new().spawn(|| probe_with_ustat(theirs_to_probe));
                wait_to_unmount(theirs, path);
                // SAFETY: takes a number and does not return. Nothing of what the parent would do
                // at its end is this child's to do.
                unsafe { libc::_exit(0) }
            }
            _ => {
                drop((theirs, theirs_to_wait, theirs_to_probe));
                let mut thread = [0; size_of::<u32>()];
                let thread = ours_to_wait.read_exact(&mut thread).map_or(0, |()| u32::from_ne_bytes(thread));
                Ok((Self(ours), Waiter { line: ours_to_wait, thread }, Prober(ours_to_probe)))
            }
        }
    }

    /// Takes the mount away from the tree at once. Programs that have files open keep them, and
    /// serving ends with the last of them.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.write_all(&[0])?;
        let mut answer = [0; size_of::<i32>()];
        self.0.read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A thread of the process that unmounts, which asks for the space that is left in a filesystem,
/// and waits for the answer.
pub struct Waiter {
    line: UnixStream,
    /// Its number; 0 if there is none.
    thread: u32,
}

impl Waiter {
    /// The number of the thread, as its requests have it.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Has it begin to wait, and call that `number`.
    pub fn ask(&self, device: Device, number: u32) -> io::Result<()> {
        if self.thread == 0 {
            return Err(ErrorKind::NotFound.into());
        }
        let words = [device.number(), number].map(u32::to_ne_bytes);
        (&self.line).write_all(words.as_flattened())
    }

    /// What can be read when it has ended to wait.
    pub fn line(&self) -> &UnixStream {
        &self.line
    }

    /// The number of what has ended. Fails if the process has ended.
    pub fn take_end(&self) -> io::Result<u32> {
        let mut number = [0; size_of::<u32>()];
        (&self.line).read_exact(&mut number)?;
        Ok(u32::from_ne_bytes(number))
    }
}

/// Threads of the process that unmounts, which find out whether somebody waits for the lock that a
/// [`Waiter`] has.
pub struct Prober(UnixStream);

impl Prober {
    /// Whether umount or a remount of the filesystem waits. None: that cannot be found out. A
    /// request comes for each question, which another thread must be there to answer.
    pub fn is_awaited(&self, device: Device) -> Option<bool> {
        let mut line = &self.0;
        let mut answer = [0];
        line.write_all(&device.number().to_ne_bytes()).and_then(|()| line.read_exact(&mut answer)).ok()?;
        match answer[0] {
            NOBODY => Some(false),
            SOMEBODY => Some(true),
            _ => None,
        }
    }
}

/// What is answered to a [`Prober`].
const NOBODY: u8 = 0;
const SOMEBODY: u8 = 1;
const UNKNOWN: u8 = 2;

/// How long an answer is looked for, in milliseconds.
const PROBE: u32 = 500;

/// Asks for the space that is left in the filesystem with this number, by ustat(2).
#[cfg(target_arch = "x86_64")]
fn ustat(device: u32) {
    let mut answer = [0_u64; 8];
    // SAFETY: takes a number, and writes a structure of 32 bytes to memory that has room for it.
    unsafe { libc::syscall(libc::SYS_ustat, device, answer.as_mut_ptr()) };
}

/// Has another thread call ustat(2) whenever the daemon asks, and says whether that has ended or
/// waits for a lock.
#[cfg(target_arch = "x86_64")]
fn probe_with_ustat(line: UnixStream) {
    let mut line = line;
    let (questions, to_ask) = mpsc::channel();
    let (say_who, who) = mpsc::channel();
    let under_way = Arc::new(AtomicBool::new(false));
    let busy = under_way.clone();
    let asking = std::thread::Builder::new().spawn(move || {
        let _ = say_who.send(rustix::thread::gettid());
        for device in to_ask {
            ustat(device);
            busy.store(false, Ordering::Release);
        }
    });
    let (Ok(_), Ok(thread)) = (asking, who.recv()) else { return };
    let mut device = [0; size_of::<u32>()];
    while line.read_exact(&mut device).is_ok() {
        // One that waits since it was asked before says all.
        if !under_way.swap(true, Ordering::AcqRel) && questions.send(u32::from_ne_bytes(device)).is_err() {
            return;
        }
        let found = (0..PROBE).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            let waits = || waits_for_superblock(thread).then_some(SOMEBODY);
            if under_way.load(Ordering::Acquire) { waits() } else { Some(NOBODY) }
        });
        if line.write_all(&[found.unwrap_or(UNKNOWN)]).is_err() {
            return;
        }
    }
}

/// Whether a thread of this process waits, in a way that no signal ends, for the lock of a
/// superblock.
#[cfg(target_arch = "x86_64")]
fn waits_for_superblock(thread: rustix::thread::Pid) -> bool {
    let read = |name| std::fs::read_to_string(format!("/proc/self/task/{}/{name}", thread.as_raw_nonzero()));
    // Behind the name, which is in parentheses.
    let sleeps = read("stat").is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D')));
    // A kernel that names no functions says 0.
    let place = if sleeps { read("wchan") } else { return false };
    place.is_ok_and(|place| place.contains("super") || place == "0")
}

/// There is no ustat(2).
#[cfg(not(target_arch = "x86_64"))]
fn probe_with_ustat(_: UnixStream) {}

/// Waits in ustat(2) whenever the other process asks for it, and says when that has ended.
#[cfg(target_arch = "x86_64")]
fn wait_in_ustat(line: UnixStream) {
    let mut line = line;
    let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    let (mut device, mut number) = ([0; size_of::<u32>()], [0; size_of::<u32>()]);
    let mut said = line.write_all(&thread.to_ne_bytes());
    while said.is_ok() && line.read_exact(&mut device).and_then(|()| line.read_exact(&mut number)).is_ok() {
        ustat(u32::from_ne_bytes(device));
        said = line.write_all(&number);
    }
}

/// There is no ustat(2).
#[cfg(not(target_arch = "x86_64"))]
fn wait_in_ustat(_: UnixStream) {}

/// Unmounts whenever the other process asks for it, and answers an errno or 0, until that has
/// ended.
fn wait_to_unmount(mut line: UnixStream, path: &Path) {
    // So that who looks for the daemon by its name finds one.
    let _ = rustix::thread::set_name(c"unmounter");
    // Whoever waits for the end of what the daemon prints does not wait for this process.
    let null = File::options().read(true).write(true).open("/dev/null");
    // Where that fails they are what they were.
    let _ = null.and_then(|null| crate::inherited::replace_streams(&null));
    let _ = std::env::set_current_dir("/");
    while line.read_exact(&mut [0]).is_ok() {
        let errno = unmount(path).err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        if line.write_all(&errno.to_ne_bytes()).is_err() {
            return;
        }
    }
}

fn unmount(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // A user who may not mount may not unmount either.
        Err(rustix::io::Errno::PERM) => {
            let mut helper = Command::new("fusermount3");
            let done = helper.args(["-u", "-z", "-q", "--"]).arg(path).stdin(Stdio::null()).status()?;
            if done.success() { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
        }
        unmounted => Ok(unmounted?),
    }
}

fn mount_by_call(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    let mode = FileType::Directory.as_raw_mode();
    if !rustix::fs::statat(CWD, path, AtFlags::empty()).is_ok_and(|stat| stat.st_mode & mode != 0) {
        return Err(ErrorKind::NotADirectory.into());
    }
    let device = open_device()?;
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
    let helper = Command::new("fusermount3")
        .arg("-o")
        .arg(list)
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3 (package fuse3) cannot be run: {error}")))?;
    drop(theirs);
    let device = receive(&ours);
    let done = helper.wait_with_output()?;
    match device {
        Some(device) if done.status.success() => Ok(device),
        _ => Err(io::Error::other(refusal(&done.stderr))),
    }
}

/// Why the helper refused, by what it said.
fn refusal(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<_> = said.lines().map(|line| line.strip_prefix("fusermount3: ").unwrap_or(line)).collect();
    let why = if lines.is_empty() { "without a reason".to_owned() } else { lines.join("; ") };
    let remedy = match why.contains(DEVICE) {
        true if why.contains("ermission denied") => {
            "; root lets all open it by chmod 666 /dev/fuse; in a container, start that with --device /dev/fuse"
        }
        true => "; in a container, start that with --device /dev/fuse",
        false => "",
    };
    format!("fusermount3 refused: {why}{remedy}")
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

/// A path as `/proc/mounts` has it.
pub fn escaped_in_table(path: &[u8]) -> Vec<u8> {
    let bytes = path.iter().flat_map(|byte| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![*byte],
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_the_kernel_does() {
        assert_eq!(escaped_in_table(b"/a b\\c\n"), b"/a\\040b\\134c\\012");
    }
}
