//! The rights that the daemon drops before it serves. An attacker that takes the daemon over
//! through a fault has the layers and little else.
//!
//! There are four parts. A part that the kernel lacks is a warning in the log, not an error.
//!
//! - No started program gains rights (`no_new_privs`). The mount needed `fusermount3`, which gains
//!   some. For the unmount there is a process that was started before (see [`crate::mount`]).
//! - Capabilities: those over files stay, if the daemon had them.
//! - Landlock: the daemon opens, makes, removes and renames only objects below the layers'
//!   directories. It only reads lower layers, and runs no program.
//! - seccomp: a list of the daemon's system calls. Only openat2 opens files. No call in the list
//!   starts a process, opens a socket, mounts, or makes memory executable. Any other call returns
//!   ENOSYS.
//!
//! All of it belongs to threads, and the threads that they start inherit it. So the daemon enters
//! the sandbox before it starts the first thread.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use overlayfs::layer::linux::{IOCTLS, OpenRoot, SYSTEM_CALLS};
use overlayfs::mount::Roots;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::options::MountOptions;
use crate::wire::{IOC_BACKING_CLOSE, IOC_BACKING_OPEN};

/// The newest version of landlock of which this code knows the rights.
const LANDLOCK: ABI = ABI::V7;

/// The capabilities that the daemon uses. They let it change files of other users, and make objects
/// for them. They let it write `trusted.*` attributes, file capabilities, labels and the flags of
/// chattr(1). SYS_RESOURCE gives root's share of the space.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_RESOURCE);

/// The system calls that the filter allows with any arguments, beside those of the layers.
const ALLOWED: &[libc::c_long] = &[
    // Requests.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_io_uring_enter,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    // The standard streams.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads, signals and time.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    // Syslog, the process that unmounts, and the next daemon.
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
];

/// The request of io_uring_register(2) that starts a ring (`IORING_REGISTER_ENABLE_RINGS`).
const ENABLE_RING: u64 = 12;

/// Why a part of the sandbox is missing. Its text is the end of a sentence.
#[derive(Debug)]
enum Missing {
    Landlock(RulesetError),
    /// This kernel has no landlock, or one without the right to rename between directories.
    NoLandlock,
    Seccomp(Box<dyn std::error::Error>),
    Capabilities(io::Error),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Missing::Landlock(error) => write!(f, "landlock cannot confine it to the layers: {error}"),
            Missing::NoLandlock => write!(f, "this kernel's landlock cannot confine it to the layers (Linux 5.19 can)"),
            Missing::Seccomp(error) => write!(f, "seccomp cannot limit its system calls: {error}"),
            Missing::Capabilities(error) => write!(f, "its capabilities cannot be dropped: {error}"),
        }
    }
}

/// A sandbox before its entry. It knows the layers by their descriptors.
pub struct Sandbox {
    readable: Vec<File>,
    writable: Vec<File>,
    /// Whether the kernel reads files of the layers in the name of the daemon.
    passthrough: bool,
}

/// The requests of ioctl(2) to the FUSE device for that.
const PASSTHROUGH: &[libc::Ioctl] = &[IOC_BACKING_OPEN, IOC_BACKING_CLOSE];

impl Sandbox {
    /// Opens the directories of the layers of a mount.
    ///
    /// # Errors
    ///
    /// - A sentence names the directory that cannot be opened, and why.
    pub fn new(options: &MountOptions) -> Result<Self, String> {
        let layers = &options.layers;
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for lower in &layers.lowers {
            readable.push(directory(lower)?);
        }
        for path in layers.upper.iter().chain(&layers.work).chain(&layers.snapshots) {
            let place = if layers.read_only { &mut readable } else { &mut writable };
            place.push(directory(path)?);
        }
        Ok(Self { readable, writable, passthrough: options.passthrough })
    }

    /// Makes the sandbox of a daemon that goes on with these roots of layers. `is_writable` says
    /// whether it writes.
    ///
    /// # Errors
    ///
    /// - A sentence says what failed.
    pub(crate) fn of_roots(roots: &Roots, is_writable: bool, passthrough: bool) -> Result<Self, String> {
        let again = |root: &Option<OpenRoot>| {
            let root = root.as_ref().map(OpenRoot::again).transpose();
            root.map_err(|error| format!("A layer cannot be opened for the sandbox: {error}."))
        };
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for (index, root) in roots.all().iter().enumerate() {
            let place = if index < Roots::LOWER && is_writable { &mut writable } else { &mut readable };
            place.extend(again(root)?.map(|root| File::from(root.directory)));
        }
        Ok(Self { readable, writable, passthrough })
    }

    /// Drops the rights that the daemon does not need, for this thread and those that it starts
    /// later. No other thread may exist.
    pub fn enter(self) {
        let ioctls = if self.passthrough { PASSTHROUGH } else { &[] };
        let parts = [drop_capabilities(), self.confine(), limit_calls(ioctls)];
        for missing in parts.into_iter().filter_map(Result::err) {
            log::warn!("the daemon keeps more rights than it needs: {missing}");
        }
    }

    fn confine(self) -> Result<(), Missing> {
        let status = self.ruleset().and_then(RulesetCreated::restrict_self).map_err(Missing::Landlock)?;
        match status.ruleset {
            RulesetStatus::NotEnforced => Err(Missing::NoLandlock),
            RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
        }
    }

    fn ruleset(self) -> Result<RulesetCreated, RulesetError> {
        let every = AccessFs::from_all(LANDLOCK);
        let mut rules = Ruleset::default()
            .handle_access(every)?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?;
        let beneath = |directories: Vec<File>, rights: BitFlags<AccessFs>| {
            directories.into_iter().map(move |directory| Ok::<_, RulesetError>(PathBeneath::new(directory, rights)))
        };
        let mut read = AccessFs::ReadFile | AccessFs::ReadDir;
        if self.passthrough {
            // The kernel opens programs too. seccomp lets the daemon itself run none.
            read |= AccessFs::Execute;
        }
        rules = rules.add_rules(beneath(self.readable, read))?;
        rules.add_rules(beneath(self.writable, every & !(AccessFs::Execute | AccessFs::IoctlDev)))
    }
}

fn directory(path: &Path) -> Result<File, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(directory) => Ok(directory.into()),
        Err(error) => Err(format!("The layer {} cannot be opened for the sandbox: {error}.", path.display())),
    }
}

fn drop_capabilities() -> Result<(), Missing> {
    let drop = || {
        let had = rustix::thread::capabilities(None)?;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets {
                effective: had.effective & KEPT,
                permitted: had.permitted & KEPT,
                inheritable: CapabilitySet::empty(),
            },
        )
    };
    drop().map_err(|error: rustix::io::Errno| Missing::Capabilities(error.into()))
}

/// Also sets `no_new_privs`.
fn limit_calls(ioctls: &[libc::Ioctl]) -> Result<(), Missing> {
    let limit = || {
        let program: BpfProgram = filter(ioctls)?.try_into()?;
        Ok(seccompiler::apply_filter(&program)?)
    };
    limit().map_err(Missing::Seccomp)
}

/// Allows these requests of ioctl(2) beside those of the layers.
fn filter(ioctls: &[libc::Ioctl]) -> Result<SeccompFilter, Box<dyn std::error::Error>> {
    let only = |argument, length, mask: u64, value| {
        let condition = SeccompCondition::new(argument, length, SeccompCmpOp::MaskedEq(mask), value)?;
        SeccompRule::new(vec![condition]).map(|rule| vec![rule])
    };
    let not_executable = || only(2, SeccompCmpArgLen::Dword, libc::PROT_EXEC as u64, 0);
    let thread = libc::CLONE_THREAD as u64;
    let share = u64::from(u32::MAX);
    // The request of ioctl(2) is an int to the kernel, whatever type these constants have.
    let ioctls = IOCTLS.iter().chain(ioctls).map(|ioctl| only(1, SeccompCmpArgLen::Dword, share, *ioctl));
    let ioctls = ioctls.collect::<Result<Vec<_>, _>>()?;
    let conditional = [
        (libc::SYS_mmap, not_executable()?),
        (libc::SYS_mprotect, not_executable()?),
        // Not clone3: no filter can see its flags. libc falls back to clone where clone3 is
        // missing.
        (libc::SYS_clone, only(0, SeccompCmpArgLen::Qword, thread, thread)?),
        // Of the calling thread.
        (libc::SYS_sched_setaffinity, only(0, SeccompCmpArgLen::Dword, share, 0)?),
        (libc::SYS_io_uring_register, only(1, SeccompCmpArgLen::Dword, share, ENABLE_RING)?),
        (libc::SYS_ioctl, ioctls.into_iter().flatten().collect()),
    ];
    let rules = ALLOWED.iter().chain(SYSTEM_CALLS).map(|call| (*call, Vec::new())).chain(conditional);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let (otherwise, listed) = (SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow);
    Ok(SeccompFilter::new(rules.collect(), otherwise, listed, arch)?)
}
