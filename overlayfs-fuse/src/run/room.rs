//! The tree that the command sees as `/`: the overlays, and all else below them.
//!
//! | path | what is there |
//! | --- | --- |
//! | overlaid directories, and filesystems mounted in them | overlays |
//! | other filesystems, and all else if not `/` is overlaid | the system's own, only to be read |
//! | `/dev` | null, zero, full, random, urandom, tty, fuse; new terminals and shared memory |
//! | `/proc` | the processes of the command |
//! | `/sys` | that of the system, only to be read |
//! | binds | objects outside, as they are |
//!
//! The process that builds the room has root's rights in its namespaces only. The command has not,
//! so it can change none of these mounts. In a namespace of its own it gets them locked.

use std::fmt::Display;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::calls::set_read_only;
use super::options::Bind;
use super::plan::Place;
use super::serve::result_of;
use crate::line::Line;
use crate::mount as fuse_mount;

/// The devices of the system that the command has.
const DEVICES: [&str; 7] = ["null", "zero", "full", "random", "urandom", "tty", "fuse"];

/// The symlinks in `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The parts of a room.
pub struct Room<'r> {
    /// Where the room is built: an empty directory.
    pub at: &'r Path,
    /// What is there, the overlays in the order of the server's trees.
    pub places: &'r [Place],
    /// The objects outside that it shows.
    pub binds: &'r [Bind],
    /// Whether the caller is root, who may write to `/proc`.
    pub of_root: bool,
    /// The line to the server.
    pub server: &'r Line,
}

/// Makes the sentence for a failed step at a path.
fn failed<E: Display>(action: &str, path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("Cannot {action} {}: {error}.", path.display())
}

impl Room<'_> {
    /// Builds the room. Returns the roots of its overlays, to sync them.
    ///
    /// # Errors
    ///
    /// - A sentence names the path that cannot be shown, and why.
    pub fn build(&self) -> Result<Vec<OwnedFd>, String> {
        let top = Path::new("/");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(failed("detach the mounts of", top))?;
        if self.places.first().is_none_or(|place| place.path != top) {
            self.bind(top, top, true)?;
        }
        let mut roots = Vec::new();
        for place in self.places {
            match place.overlaid {
                true => roots.push(self.overlay(&place.path, roots.len() as u8)?),
                false => self.bind(&place.path, &place.path, true)?,
            }
        }
        self.build_dev().map_err(failed("make", Path::new("/dev")))?;
        self.build_proc().map_err(failed("show", Path::new("/proc")))?;
        if self.inside(Path::new("/sys")).is_dir() {
            self.bind(Path::new("/sys"), Path::new("/sys"), true)?;
        }
        for Bind { source, at, read_only } in self.binds {
            self.bind(source, at, *read_only)?;
        }
        Ok(roots)
    }

    /// Makes the room the root of this process.
    ///
    /// # Errors
    ///
    /// - A sentence says which step failed, and why.
    pub fn enter(&self) -> Result<(), String> {
        let enter = || {
            std::env::set_current_dir(self.at)?;
            rustix::process::pivot_root(".", ".")?;
            rustix::mount::unmount(".", UnmountFlags::DETACH)?;
            std::env::set_current_dir("/")
        };
        enter().map_err(failed("enter the overlay at", self.at))
    }

    /// Returns the path that an object of the room has before it is entered.
    fn inside(&self, path: &Path) -> PathBuf {
        self.at.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Mounts the overlay of a place. Returns its root.
    fn overlay(&self, path: &Path, number: u8) -> Result<OwnedFd, String> {
        let at = self.inside(path);
        let options = fuse_mount::Options {
            source: "overlayfs".into(),
            flags: MountFlags::empty(),
            allow_other: true,
            default_permissions: true,
        };
        let device = fuse_mount::mount(&at, &options).map_err(failed("mount the overlay of", path))?;
        let served = self.server.send(&[number], Some(device.as_fd()));
        // Only the server keeps it. So if the server dies, requests end.
        drop(device);
        let answer = served.and_then(|()| self.server.receive()).map_err(failed("serve the overlay of", path))?;
        let answer = answer.ok_or_else(|| "The process that serves the overlay has ended.".to_owned())?;
        result_of(&answer.bytes)?;
        File::open(&at).map(OwnedFd::from).map_err(failed("open the overlay of", path))
    }

    /// Shows an object of the system with all mounts in it.
    fn bind(&self, source: &Path, at: &Path, read_only: bool) -> Result<(), String> {
        let inside = self.inside(at);
        rustix::mount::mount_bind_recursive(source, &inside).map_err(failed("show", at))?;
        match read_only {
            true => set_read_only(&inside).map_err(failed("protect", at)),
            false => Ok(()),
        }
    }

    fn build_dev(&self) -> io::Result<()> {
        let dev = self.inside(Path::new("/dev"));
        if !dev.is_dir() {
            return Ok(());
        }
        let quiet = MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount("tmpfs", &dev, "tmpfs", MountFlags::NOSUID, c"mode=755,size=64k")?;
        for name in DEVICES {
            let source = Path::new("/dev").join(name);
            if source.exists() {
                File::create(dev.join(name))?;
                rustix::mount::mount_bind(&source, dev.join(name))?;
            }
        }
        for (name, target) in LINKS {
            symlink(target, dev.join(name))?;
        }
        fs::create_dir(dev.join("pts"))?;
        rustix::mount::mount("devpts", dev.join("pts"), "devpts", quiet, c"newinstance,ptmxmode=0666,mode=0620")?;
        fs::create_dir(dev.join("shm"))?;
        rustix::mount::mount("tmpfs", dev.join("shm"), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, c"mode=1777")?;
        // So ttyname(3) finds the terminal.
        if let Some(terminal) = terminal() {
            File::create(dev.join("console"))?;
            rustix::mount::mount_bind(terminal, dev.join("console"))?;
        }
        set_read_only_alone(&dev)
    }

    /// Shows the processes of this namespace. Where the system hides parts of `/proc`, as in a
    /// container, the kernel permits no other view of it. The one that is there then stays.
    fn build_proc(&self) -> io::Result<()> {
        let (proc, flags) =
            (self.inside(Path::new("/proc")), MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC);
        if !proc.is_dir() {
            return Ok(());
        }
        match rustix::mount::mount("proc", &proc, "proc", flags, None) {
            Err(rustix::io::Errno::PERM) => rustix::mount::mount_bind_recursive("/proc", &proc)?,
            mounted => mounted?,
        }
        // The kernel lets root change the system there by its id alone.
        for entry in fs::read_dir(&proc)?.flatten().filter(|_| self.of_root) {
            let is_process = entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
            let Ok(meta) = entry.metadata() else { continue };
            let is_file = meta.is_file() && meta.permissions().mode() & 0o222 != 0;
            if !is_process && (is_file || meta.is_dir()) {
                rustix::mount::mount_bind_recursive(entry.path(), entry.path())?;
                set_read_only(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Makes one mount read-only, and none of those in it.
fn set_read_only_alone(path: &Path) -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID;
    Ok(rustix::mount::mount_remount(path, flags, "")?)
}

/// Returns the path of the terminal that a standard stream is.
fn terminal() -> Option<PathBuf> {
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    let stream = streams.into_iter().find(|stream| rustix::termios::isatty(stream))?;
    let path = fs::read_link(format!("/proc/self/fd/{}", stream.as_raw_fd())).ok()?;
    path.metadata().is_ok_and(|meta| meta.file_type().is_char_device()).then_some(path)
}

/// Makes a standard input that is a file only readable, also by its name in `/proc`. The command
/// has the same descriptor, with the same offset at first. Returns the file.
///
/// # Errors
///
/// - A sentence: it is a directory or a disk, or it has no path here.
pub fn protect_input() -> Result<Option<File>, String> {
    let sentence = |error: io::Error| format!("The standard input cannot be protected: {error}.");
    for (name, stream) in [("input", rustix::stdio::stdin()), ("output", rustix::stdio::stdout())] {
        let kind = rustix::fs::fstat(stream).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        if let Ok(rustix::fs::FileType::Directory | rustix::fs::FileType::BlockDevice) = kind {
            return Err(format!(
                "The standard {name} is a directory or a disk, through which the command could change files outside."
            ));
        }
    }
    let input = rustix::stdio::stdin();
    let (Ok(stat), Ok(flags)) = (rustix::fs::fstat(input), rustix::fs::fcntl_getfl(input)) else { return Ok(None) };
    let is_read = flags & rustix::fs::OFlags::ACCMODE == rustix::fs::OFlags::RDONLY;
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::RegularFile;
    // No other program can reach a file without a name.
    if !is_read || !is_file || stat.st_nlink == 0 {
        return Ok(None);
    }
    let path = fs::read_link("/proc/self/fd/0").map_err(sentence)?;
    let found = path.metadata().map_err(sentence)?;
    if (found.dev(), found.ino()) != (stat.st_dev, stat.st_ino) {
        return Err(sentence(io::Error::other("another mount hides its path")));
    }
    let file = super::calls::open_read_only(&path).map_err(sentence)?;
    let moved = rustix::fs::tell(input).and_then(|at| rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(at)));
    moved.and_then(|_| rustix::stdio::dup2_stdin(&file)).map_err(|error| sentence(error.into()))?;
    Ok(Some(file))
}
