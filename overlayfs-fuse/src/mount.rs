//! Mounts and unmounts: by system calls, or by `fusermount3` for a user without the right to mount.
//!
//! Both need rights that the daemon drops before it serves. So a process of its own keeps them, and
//! works for the daemon over a few lines (`unmounter`). It unmounts. For [`crate::settle`] it makes
//! the kernel wait before it takes the filesystem down, finds out whether it is about to, and makes
//! the ending: what happens to the changes after a clean unmount. It starts the next daemon
//! (`succession`), which talks to it over the same lines.

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use overlayfs::process::{Side, fork};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recv, recvmsg,
    socketpair,
};

use crate::line::Line;
use crate::succession::{Program, Starter};
use crate::unmounter;
use crate::waker::Waker;

/// The type of the filesystem in `/proc/mounts`.
pub const TYPE: &str = "fuse.overlayfs-fuse";

/// The device from which the requests come.
pub const DEVICE: &str = "/dev/fuse";

/// The options of a mount.
#[derive(Clone, Debug)]
pub struct Options {
    /// The source in `/proc/mounts`.
    pub source: OsString,
    /// `ro`, `nosuid`, `nodev`, `noexec`, `noatime`.
    pub flags: MountFlags,
    /// Other users than the one of the mount may use it.
    pub allow_other: bool,
    /// The kernel checks access by the attributes that it gets.
    pub default_permissions: bool,
}

/// Mounts a filesystem at the directory `path`, which must be absolute. Returns the device that
/// delivers its requests.
///
/// # Errors
///
/// - ENOTDIR: `path` is no directory.
/// - ENOENT: there is no `/dev/fuse`, or no `fusermount3` for a caller without the right to mount.
/// - The error of mount(2), or the message of `fusermount3`.
pub fn mount(path: &Path, options: &Options) -> io::Result<OwnedFd> {
    match mount_by_call(path, options) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => mount_by_helper(path, options),
        mounted => mounted,
    }
}

/// Sets new flags for the mount at `path`, in place of its flags.
///
/// # Errors
///
/// - EPERM: the caller lacks CAP_SYS_ADMIN.
/// - EINVAL: nothing is mounted there.
pub fn remount(path: &Path, flags: MountFlags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(path, flags, "")?)
}

/// Opens the FUSE device. The error says what to do.
fn open_device() -> io::Result<File> {
    File::options().read(true).write(true).open(DEVICE).map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::ENOENT) => {
                "; in a container, start the container with --device /dev/fuse; elsewhere, modprobe fuse makes the \
                 device"
            }
            Some(libc::EPERM | libc::EACCES) => "; in a container, start the container with --device /dev/fuse",
            Some(libc::ENODEV | libc::ENXIO) => "; modprobe fuse loads the FUSE module of the kernel",
            _ => "",
        };
        io::Error::new(error.kind(), format!("{DEVICE} cannot be opened: {error}{remedy}"))
    })
}

/// The device number of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// Returns the number of the filesystem that is mounted at `path`, without a request to it.
    ///
    /// # Errors
    ///
    /// - The errors of statx(2).
    pub fn of_mounted(path: &Path) -> io::Result<Self> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::empty())?;
        Ok(Self { major: stat.stx_dev_major, minor: stat.stx_dev_minor })
    }

    /// Returns the number of the filesystem of an open file, without a request to it.
    ///
    /// # Errors
    ///
    /// - The errors of statx(2).
    pub fn of(file: &File) -> io::Result<Self> {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
        let stat = rustix::fs::statx(file, c"", flags, StatxFlags::empty())?;
        Ok(Self { major: stat.stx_dev_major, minor: stat.stx_dev_minor })
    }

    /// Makes it of its parts.
    pub(crate) fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Returns its parts.
    pub(crate) fn parts(self) -> (u32, u32) {
        (self.major, self.minor)
    }

    /// Returns the number in the form of ustat(2).
    fn number(self) -> u32 {
        crate::wire::device_to_wire(libc::makedev(self.major, self.minor))
    }
}

impl fmt::Display for Device {
    /// Writes the number in the form of `/proc/self/mountinfo`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A process that waits to unmount the mount at a path. It ends with this one.
pub struct Unmounter(UnixStream);

/// The ways to the process `unmounter`.
pub(crate) struct Threads {
    pub unmounter: Unmounter,
    pub ender: Ender,
    pub waiter: Waiter,
    pub prober: Prober,
    pub starter: Starter,
}

impl Threads {
    /// Takes the lines over from another process.
    pub fn again([unmounter, ender, waiter, prober, starter]: [OwnedFd; 5]) -> Self {
        Self {
            unmounter: Unmounter(unmounter.into()),
            ender: Ender(ender.into()),
            waiter: Waiter(waiter.into()),
            prober: Prober::new(prober.into()),
            starter: Starter::new(Line::from(starter)),
        }
    }

    /// Returns all lines but that of the starter once more, for another process: to unmount, to
    /// end, to wait, to probe.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn lines(&self) -> io::Result<[OwnedFd; 4]> {
        let again = |line: &UnixStream| line.as_fd().try_clone_to_owned();
        let Self { unmounter, ender, waiter, prober, starter: _ } = self;
        Ok([again(&unmounter.0)?, again(&ender.0)?, again(&waiter.0)?, again(&prober.line)?])
    }
}

impl AsFd for Unmounter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Unmounter {
    /// Starts the process for a later mount at `path`, which must be absolute. [`Ender::end`] calls
    /// `ending` there, and [`Starter::start`] runs `program`. The caller must have no other
    /// threads. Nor may it have opened a file that must be closed at its end.
    ///
    /// # Errors
    ///
    /// - EAGAIN: the system has no more processes for the user.
    /// - EMFILE: there is no descriptor for the sockets.
    pub(crate) fn start(
        path: &Path,
        ending: impl FnOnce() -> Result<(), String> + Send + 'static,
        program: Program,
    ) -> io::Result<Threads> {
        let (ours, theirs) = UnixStream::pair()?;
        let (ours_to_wait, theirs_to_wait) = UnixStream::pair()?;
        let (ours_to_probe, theirs_to_probe) = UnixStream::pair()?;
        let (ours_to_end, theirs_to_end) = UnixStream::pair()?;
        let (ours_to_start, theirs_to_start) = Line::pair()?;
        let lines = unmounter::Lines {
            waker: Waker::new()?,
            unmount: theirs,
            wait: theirs_to_wait,
            probe: theirs_to_probe,
            end: theirs_to_end,
            start: theirs_to_start,
        };
        // SAFETY: there is no other thread, so the child has all that this process has.
        match unsafe { fork()? } {
            Side::Child => {
                drop((ours, ours_to_wait, ours_to_probe, ours_to_end, ours_to_start));
                unmounter::serve(&lines, path, ending, &program);
            }
            Side::Parent(_) => Ok(Threads {
                unmounter: Self(ours),
                ender: Ender(ours_to_end),
                waiter: Waiter(ours_to_wait),
                prober: Prober::new(ours_to_probe),
                starter: Starter::new(ours_to_start),
            }),
        }
    }

    /// Removes the mount from the tree at once. Programs keep their open files, and the service
    /// ends with the last of them.
    ///
    /// # Errors
    ///
    /// - EINVAL: nothing is mounted at the path.
    /// - EPIPE: the process has ended.
    pub fn unmount(&self) -> io::Result<()> {
        self.ask()?;
        self.answer()
    }

    /// Begins with [`Unmounter::unmount`].
    ///
    /// # Errors
    ///
    /// - EPIPE: the process has ended.
    pub fn ask(&self) -> io::Result<()> {
        (&self.0).write_all(&[0])
    }

    /// Waits for the result. The line is readable when it is there.
    ///
    /// # Errors
    ///
    /// As [`Unmounter::unmount`].
    pub fn answer(&self) -> io::Result<()> {
        let mut answer = [0; size_of::<i32>()];
        (&self.0).read_exact(&mut answer)?;
        match i32::from_ne_bytes(answer) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The way to a thread of the process `unmounter` that makes the ending: what happens to the
/// changes after the unmount.
pub struct Ender(UnixStream);

impl Ender {
    /// Makes the ending, and waits for it. The layers must be unlocked.
    ///
    /// # Errors
    ///
    /// - A sentence says what failed, and why.
    pub fn end(&self) -> Result<(), String> {
        let ask = || {
            let mut line = &self.0;
            line.write_all(&[0])?;
            let mut length = [0; size_of::<u32>()];
            line.read_exact(&mut length)?;
            let mut sentence = vec![0; u32::from_ne_bytes(length) as usize];
            line.read_exact(&mut sentence)?;
            Ok(String::from_utf8_lossy(&sentence).into_owned())
        };
        match ask() {
            Ok(sentence) if sentence.is_empty() => Ok(()),
            Ok(sentence) => Err(sentence),
            Err(error @ io::Error { .. }) => Err(format!(
                "The changes stay in the upper directory: the process for the ending does not answer: {error}."
            )),
        }
    }
}

/// The way to a thread of the process `unmounter` that asks for the space that is left in a
/// filesystem, and waits for the answer.
pub struct Waiter(UnixStream);

/// What the thread says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A thread with this number, which is in its request, begins to wait.
    Begins {
        /// The number of the thread.
        thread: u32,
        /// The number that [`Waiter::ask`] got.
        asked: u32,
    },
    /// The wait that [`Waiter::ask`] got this number for has ended.
    Ends(u32),
}

impl Waiter {
    /// Makes a thread begin to wait. `number` names this wait.
    ///
    /// # Errors
    ///
    /// - EPIPE: the process has ended.
    pub fn ask(&self, device: Device, number: u32) -> io::Result<()> {
        let words = [device.number(), number].map(u32::to_ne_bytes);
        (&self.0).write_all(words.as_flattened())
    }

    /// Returns the socket that is readable when the thread has said something.
    pub fn line(&self) -> &UnixStream {
        &self.0
    }

    /// Returns the next that the thread has said. It says that it begins before it makes its
    /// request.
    ///
    /// # Errors
    ///
    /// - `WouldBlock`: it has said nothing more.
    /// - `UnexpectedEof`: the process has ended.
    pub fn hear(&self) -> io::Result<Said> {
        let mut words = [[0; size_of::<u32>()]; 2];
        match recv(&self.0, words.as_flattened_mut(), RecvFlags::DONTWAIT)? {
            (_, length) if length < words.as_flattened().len() => Err(ErrorKind::UnexpectedEof.into()),
            _ => {
                let [thread, number] = words.map(u32::from_ne_bytes);
                Ok(if thread == 0 { Said::Ends(number) } else { Said::Begins { thread, asked: number } })
            }
        }
    }
}

/// The way to threads of the process `unmounter` that find out whether a thread waits for the lock
/// that a [`Waiter`] holds.
pub struct Prober {
    line: UnixStream,
    /// The number of the next question. The answer has it too: a daemon that was killed may have
    /// left a question without an answer.
    next: AtomicU32,
}

impl Prober {
    fn new(line: UnixStream) -> Self {
        // No other process of the mount has asked with these numbers lately.
        Self { line, next: AtomicU32::new(std::process::id() << 8) }
    }

    /// Whether umount or a remount of the filesystem waits. None: unknown. Each call causes a
    /// request, which another thread must answer.
    pub fn is_awaited(&self, device: Device) -> Option<bool> {
        let mut line = &self.line;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        line.write_all([device.number(), number].map(u32::to_ne_bytes).as_flattened()).ok()?;
        loop {
            let (mut of, mut answer) = ([0; size_of::<u32>()], [0]);
            line.read_exact(&mut of).and_then(|()| line.read_exact(&mut answer)).ok()?;
            match answer[0] {
                _ if u32::from_ne_bytes(of) != number => {}
                NOT_AWAITED => return Some(false),
                AWAITED => return Some(true),
                _ => return None,
            }
        }
    }
}

/// The answers to a [`Prober`].
pub(crate) const NOT_AWAITED: u8 = 0;
pub(crate) const AWAITED: u8 = 1;
pub(crate) const UNKNOWN: u8 = 2;

/// Unmounts the mount at `path`; `detach` also where a program uses it.
///
/// # Errors
///
/// - EINVAL: nothing is mounted there.
/// - EBUSY: a program uses the mount.
/// - The message of `fusermount3`.
pub(crate) fn unmount(path: &Path, detach: bool) -> io::Result<()> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        // A user without the right to mount cannot unmount either.
        Err(rustix::io::Errno::PERM) => {
            let mut helper = Command::new("fusermount3");
            helper.arg("-u").args(detach.then_some("-z")).arg("--").arg(path).stdin(Stdio::null());
            let done = helper.stdout(Stdio::null()).output()?;
            if done.status.success() { Ok(()) } else { Err(io::Error::other(refusal(&done.stderr))) }
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

/// Mounts by `fusermount3`, which has root's rights and sends the device through a socket.
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

/// Returns why the helper refused, from its message.
fn refusal(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<_> = said.lines().map(|line| line.strip_prefix("fusermount3: ").unwrap_or(line)).collect();
    let why = if lines.is_empty() { "without a reason".to_owned() } else { lines.join("; ") };
    let remedy = match why.contains(DEVICE) {
        true if why.contains("ermission denied") => {
            "; as root, chmod 666 /dev/fuse lets all users open it; in a container, start the container with \
             --device /dev/fuse"
        }
        true => "; in a container, start the container with --device /dev/fuse",
        false => "",
    };
    format!("fusermount3 refused: {why}{remedy}")
}

/// Receives a descriptor from a socket. None: the other end closed without one.
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

/// Puts a backslash before characters that end an option for the helper.
fn escaped(text: &OsStr) -> OsString {
    let bytes = text.as_bytes().iter().flat_map(|byte| match byte {
        b',' | b'\\' => vec![b'\\', *byte],
        _ => vec![*byte],
    });
    OsString::from_vec(bytes.collect())
}

/// Returns a path in the form of `/proc/mounts`.
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
