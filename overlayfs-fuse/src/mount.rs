//! Mounts and unmounts: by system calls, or by `fusermount3` for a user without the right to mount.
//!
//! Both need rights that the daemon drops before it serves. So a process of its own keeps them,
//! does nothing else, and waits for the unmount. Three more of its threads serve [`crate::settle`].
//! One makes the kernel wait before it takes the filesystem down, and one finds out whether it is
//! about to. The third makes the ending: what happens to the changes after a clean unmount.

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

use overlayfs::process::{Side, Streams, fork};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

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

impl Unmounter {
    /// Starts the process for a later mount at `path`, which must be absolute. [`Ender::end`] calls
    /// `ending` there. The caller must have no other threads. Nor may it have opened a file that
    /// must be closed at its end.
    ///
    /// # Errors
    ///
    /// - EAGAIN: the system has no more processes for the user.
    /// - EMFILE: there is no descriptor for the sockets.
    pub fn start(
        path: &Path,
        ending: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> io::Result<(Self, Ender, Waiter, Prober)> {
        let (ours, theirs) = UnixStream::pair()?;
        let (mut ours_to_wait, theirs_to_wait) = UnixStream::pair()?;
        let (ours_to_probe, theirs_to_probe) = UnixStream::pair()?;
        let (ours_to_end, theirs_to_end) = UnixStream::pair()?;
        // SAFETY: there is no other thread, so the child has all that this process has.
        match unsafe { fork()? } {
            Side::Child => {
                drop((ours, ours_to_wait, ours_to_probe, ours_to_end));
                // Without these threads the mount works, and umount does not wait.
                let _ = std::thread::Builder::new().spawn(|| wait_in_ustat(theirs_to_wait));
                let _ = std::thread::Builder::new().spawn(|| probe_with_ustat(theirs_to_probe));
                // Without this one, the daemon says that the changes stay.
                let _ = std::thread::Builder::new().spawn(|| wait_to_end(theirs_to_end, ending));
                wait_to_unmount(theirs, path);
                // SAFETY: takes a number and does not return. The parent's work at its end is not
                // this child's.
                unsafe { libc::_exit(0) }
            }
            Side::Parent(_) => {
                drop((theirs, theirs_to_wait, theirs_to_probe, theirs_to_end));
                let mut thread = [0; size_of::<u32>()];
                let thread = ours_to_wait.read_exact(&mut thread).map_or(0, |()| u32::from_ne_bytes(thread));
                Ok((Self(ours), Ender(ours_to_end), Waiter { line: ours_to_wait, thread }, Prober(ours_to_probe)))
            }
        }
    }

    /// Removes the mount from the tree at once. Programs keep their open files, and the service
    /// ends with the last of them.
    ///
    /// # Errors
    ///
    /// - EINVAL: nothing is mounted at the path.
    /// - EPIPE: the process has ended.
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

/// A thread of the process `unmounter`. It makes the ending: what happens to the changes after the
/// unmount. It is not the thread that unmounts, since umount waits for the ending.
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

/// Makes the ending at the request of the other process, and answers with the length of a sentence
/// and the sentence. If the other process dies without that request, there is no ending.
fn wait_to_end(mut line: UnixStream, ending: impl FnOnce() -> Result<(), String>) {
    if line.read_exact(&mut [0]).is_ok() {
        let sentence = ending().err().unwrap_or_default();
        // If the other process is gone, no process waits.
        let _ = line.write_all(&[&(sentence.len() as u32).to_ne_bytes(), sentence.as_bytes()].concat());
    }
}

/// A thread of the process `unmounter`. It asks for the space that is left in a filesystem, and
/// waits for the answer.
pub struct Waiter {
    line: UnixStream,
    /// The number of the thread; 0 if there is none.
    thread: u32,
}

impl Waiter {
    /// Returns the number of the thread, which is in its requests.
    pub fn thread(&self) -> u32 {
        self.thread
    }

    /// Makes it begin to wait. `number` names this wait.
    ///
    /// # Errors
    ///
    /// - ENOENT: the process has no such thread.
    /// - EPIPE: the process has ended.
    pub fn ask(&self, device: Device, number: u32) -> io::Result<()> {
        if self.thread == 0 {
            return Err(ErrorKind::NotFound.into());
        }
        let words = [device.number(), number].map(u32::to_ne_bytes);
        (&self.line).write_all(words.as_flattened())
    }

    /// Returns the socket that is readable when a wait has ended.
    pub fn line(&self) -> &UnixStream {
        &self.line
    }

    /// Returns the number of the wait that has ended.
    ///
    /// # Errors
    ///
    /// - `UnexpectedEof`: the process has ended.
    pub fn take_end(&self) -> io::Result<u32> {
        let mut number = [0; size_of::<u32>()];
        (&self.line).read_exact(&mut number)?;
        Ok(u32::from_ne_bytes(number))
    }
}

/// Threads of the process `unmounter`. They find out whether a thread waits for the lock that a
/// [`Waiter`] holds.
pub struct Prober(UnixStream);

impl Prober {
    /// Whether umount or a remount of the filesystem waits. None: unknown. Each call causes a
    /// request, which another thread must answer.
    pub fn is_awaited(&self, device: Device) -> Option<bool> {
        let mut line = &self.0;
        let mut answer = [0];
        line.write_all(&device.number().to_ne_bytes()).and_then(|()| line.read_exact(&mut answer)).ok()?;
        match answer[0] {
            NOT_AWAITED => Some(false),
            AWAITED => Some(true),
            _ => None,
        }
    }
}

/// The answers to a [`Prober`].
const NOT_AWAITED: u8 = 0;
const AWAITED: u8 = 1;
const UNKNOWN: u8 = 2;

/// How long to look for the answer, in milliseconds.
const PROBE: u32 = 500;

/// Asks for the space that is left in the filesystem with this number, by ustat(2).
#[cfg(target_arch = "x86_64")]
fn ustat(device: u32) {
    let mut answer = [0_u64; 8];
    // SAFETY: takes a number, and writes a structure of 32 bytes to memory that has room for it.
    unsafe { libc::syscall(libc::SYS_ustat, device, answer.as_mut_ptr()) };
}

/// Makes another thread call ustat(2) at each question of the daemon. Its reply says whether the
/// call has ended, or waits for a lock.
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
        // A call that waits since an earlier question is the answer.
        if !under_way.swap(true, Ordering::AcqRel) && questions.send(u32::from_ne_bytes(device)).is_err() {
            return;
        }
        let found = (0..PROBE).find_map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            let waits = || waits_for_superblock(thread).then_some(AWAITED);
            if under_way.load(Ordering::Acquire) { waits() } else { Some(NOT_AWAITED) }
        });
        if line.write_all(&[found.unwrap_or(UNKNOWN)]).is_err() {
            return;
        }
    }
}

/// Whether a thread of this process waits for the lock of a superblock, in a sleep that no signal
/// ends.
#[cfg(target_arch = "x86_64")]
fn waits_for_superblock(thread: rustix::thread::Pid) -> bool {
    let read = |name| std::fs::read_to_string(format!("/proc/self/task/{}/{name}", thread.as_raw_nonzero()));
    // The state follows the name, which is in parentheses.
    let sleeps = read("stat").is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('D')));
    // A kernel without names of functions writes 0.
    let place = if sleeps { read("wchan") } else { return false };
    place.is_ok_and(|place| place.contains("super") || place == "0")
}

/// ustat(2) does not exist here.
#[cfg(not(target_arch = "x86_64"))]
fn probe_with_ustat(_: UnixStream) {}

/// Waits in ustat(2) at each request of the other process, and tells it when the call has ended.
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

/// ustat(2) does not exist here.
#[cfg(not(target_arch = "x86_64"))]
fn wait_in_ustat(_: UnixStream) {}

/// Unmounts at each request of the other process, and answers an errno or 0, until that process has
/// ended.
fn wait_to_unmount(mut line: UnixStream, path: &Path) {
    // So a search for the daemon by its name finds only the daemon.
    let _ = rustix::thread::set_name(c"unmounter");
    // A process that waits for the end of the daemon's output must not wait for this process. If
    // that fails, the streams stay.
    let _ = Streams::open().and_then(Streams::put_in_place);
    let _ = std::env::set_current_dir("/");
    while line.read_exact(&mut [0]).is_ok() {
        let errno = unmount(path, true).err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        if line.write_all(&errno.to_ne_bytes()).is_err() {
            return;
        }
    }
}

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
