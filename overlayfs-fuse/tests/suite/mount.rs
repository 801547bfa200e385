//! A mount of `overlayfs-fuse` that cannot hang a test, and does not outlive it.

#[path = "program.rs"]
mod program;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

#[allow(unused_imports, reason = "not every suite starts the program itself")]
pub use program::{program, program_for, via_scheme};

/// The lifetime of one mount. After it the daemon is killed, and callers that wait for the mount
/// get an error.
const LIFETIME: Duration = Duration::from_secs(600);

/// The timeout for events that the test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// The timeout for the end of a daemon. It syncs its changes, and other programs use the disk too.
const ENDING: Duration = Duration::from_secs(120);

/// The line that a test prints before its first mount.
pub const MOUNTING: &str = "Now it mounts.";

/// A mount with its daemon as a child of the test. The drop unmounts it by force.
pub struct Mount {
    point: PathBuf,
    pub daemon: Child,
    watchdog: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Mount {
    /// Mounts with these options, a list as behind `-o`. Returns when the mount is visible.
    pub fn new(point: &Path, options: &str) -> Self {
        Self::for_long(point, options, LIFETIME)
    }

    /// Mounts as [`Mount::new`], with a command that runs its last arguments.
    #[allow(dead_code, reason = "not every suite has one")]
    pub fn by(mut command: Command, point: &Path, options: &str) -> Self {
        command.arg(program_for(options));
        Self::start(command, point, options, LIFETIME)
    }

    /// Mounts as [`Mount::new`], with this lifetime.
    pub fn for_long(point: &Path, options: &str, lifetime: Duration) -> Self {
        Self::start(Command::new(program_for(options)), point, options, lifetime)
    }

    fn start(mut command: Command, point: &Path, options: &str, lifetime: Duration) -> Self {
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing, and without it nothing can be tested here");
        println!("{MOUNTING}");
        let options = &over_ring(options);
        let daemon = command.args(["-f", "-o", options]).arg(point).stdin(Stdio::null()).spawn().unwrap();
        let (done, wait) = mpsc::channel();
        let pid = daemon.id().cast_signed();
        let watchdog = thread::spawn(move || {
            if wait.recv_timeout(lifetime) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the mount is in use for {lifetime:?}: its daemon is killed");
                // SAFETY: takes two numbers. Other code waits for the process only after this
                // thread has ended, so the number is still the daemon's.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        });
        let mut mount = Self { point: point.to_owned(), daemon, watchdog: Some((done, watchdog)) };
        eventually("the mount is there", || {
            let ended = mount.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "overlayfs-fuse {options} ended at once");
            is_mounted(point)
        });
        mount
    }

    /// Unmounts as a user does, and waits for the successful end of the daemon.
    pub fn unmount(self) {
        let status = self.unmount_and_wait();
        assert!(status.success(), "the daemon failed: {status}");
    }

    /// Unmounts as a user does, and returns the exit status of the daemon. A program that another
    /// test starts inherits descriptors of this process for a moment. So the mount may be busy at
    /// first.
    pub fn unmount_and_wait(mut self) -> ExitStatus {
        eventually("it is unmounted", || {
            Command::new("umount").arg(&self.point).stderr(Stdio::null()).status().unwrap().success()
        });
        self.dismiss_watchdog();
        self.wait().expect("the daemon does not end though it is unmounted")
    }

    fn dismiss_watchdog(&mut self) {
        if let Some((done, thread)) = self.watchdog.take() {
            drop(done);
            thread.join().unwrap();
        }
    }

    fn wait(&mut self) -> Option<ExitStatus> {
        let start = Instant::now();
        while start.elapsed() < ENDING {
            if let Some(status) = self.daemon.try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.dismiss_watchdog();
        if is_mounted(&self.point) {
            let _ = Command::new("umount").arg("-l").arg(&self.point).status();
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// Returns the options of a mount. With the variable OVERLAYFS_FUSE_RING they demand FUSE over
/// io_uring, unless they decide about it.
fn over_ring(options: &str) -> String {
    let decides = |option: &str| option.starts_with("io_uring=") || option.starts_with("max_threads=");
    let demand = env::var_os("OVERLAYFS_FUSE_RING").is_some() && !options.split(',').any(decides);
    format!("{options}{}", if demand { ",io_uring=on" } else { "" })
}

/// Returns whether `point` is a mount point.
pub fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    mounts.lines().any(|line| line.split(' ').nth(1) == point.to_str())
}

/// Unmounts what no daemon of this project serves. A program that another test starts inherits
/// descriptors of this process for a moment. So the mount may be busy at first.
#[allow(dead_code, reason = "not every suite mounts another filesystem")]
pub fn unmount(point: &Path) {
    eventually("it is unmounted", || rustix::mount::unmount(point, UnmountFlags::empty()).is_ok());
}

/// Waits for a condition. Panics after the timeout.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
