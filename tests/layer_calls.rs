//! An open Linux layer makes only the system calls that it lists: each method runs under a filter
//! that allows no others.
//!
//! Needs root, for owners and device nodes. The program ends at a call that is not listed.
#![cfg(target_os = "linux")]

use std::ffi::{OsStr, c_int, c_void};
use std::path::Path;
use std::thread;

use overlayfs::errno::{EOPNOTSUPP, Result};
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::linux::{IOCTLS, LinuxLayer, SYSTEM_CALLS};
use overlayfs::layer::{Access, Allocation, Kind, Layer, Object, Owner, RenameMode, THROUGH, Time, XattrMode};
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// The system calls of a thread that allocates memory, prints a panic and ends.
const RUNTIME: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_write,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const ALICE: Owner = Owner { uid: 12345, gid: 23456 };

fn n(name: &str) -> &OsStr {
    OsStr::new(name)
}

#[test]
fn an_open_layer_makes_only_the_calls_that_it_lists() {
    assert!(rustix::process::geteuid().is_root(), "this test gives files to other users: run it as root");
    // Without the right to clone mounts, a layer reaches its objects by other calls.
    for can_clone in [true, false] {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().to_owned();
        let uncalled = thread::spawn(move || uncalled_methods(&path, can_clone)).join().unwrap().unwrap();
        assert_eq!(uncalled, [], "`call_all` must call these methods");
    }
}

/// Calls all methods of a layer under the filter. Returns the methods that were not called.
fn uncalled_methods(path: &Path, can_clone: bool) -> Result<Vec<Method>> {
    if !can_clone {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::SYS_ADMIN);
        rustix::thread::set_capabilities(None, sets).unwrap();
    }
    let counts = Counts::default();
    let layer = Counted::new(LinuxLayer::open(path, true)?, &counts);
    // As in the daemon, the thread that calls the layer is not the one that opened it.
    let called = thread::spawn(move || {
        forbid_other_calls();
        call_all(&layer)
    });
    called.join().unwrap()?;
    let tally = counts.tally();
    Ok(Method::ALL.iter().copied().filter(|method| tally.of(*method) == 0).collect())
}

/// Ends the program at a system call that neither a layer nor this thread may make.
fn forbid_other_calls() {
    // SAFETY: the handler takes the arguments of SA_SIGINFO.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO;
        action.sa_sigaction = on_forbidden_call as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()), 0);
    }
    let is_request = |request: &libc::Ioctl| {
        let request = u64::from(*request as u32);
        let is_this = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request).unwrap();
        SeccompRule::new(vec![is_this]).unwrap()
    };
    let listed = SYSTEM_CALLS.iter().chain(RUNTIME).map(|call| (*call, Vec::new()));
    let ioctl = (libc::SYS_ioctl, IOCTLS.iter().map(is_request).collect());
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let (otherwise, allow) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(listed.chain([ioctl]).collect(), otherwise, allow, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

extern "C" fn on_forbidden_call(_: c_int, info: *const libc::siginfo_t, _: *const c_void) {
    // SAFETY: with SIGSYS the kernel fills `_sigsys` of `asm-generic/siginfo.h`: three numbers and
    // padding, the address of the call, its number.
    let call = unsafe { info.cast::<c_int>().add(6).read() };
    let sentence = format!("system call {call} is not in SYSTEM_CALLS of src/layer/linux/calls.rs\n");
    // SAFETY: the buffer is as long as said. The program ends here.
    unsafe {
        libc::write(libc::STDERR_FILENO, sentence.as_ptr().cast(), sentence.len());
        libc::_exit(101);
    }
}

/// Not every filesystem can do it.
fn if_supported<T>(result: Result<T>) -> Result<()> {
    match result {
        Err(error) if error.errno != EOPNOTSUPP => Err(error),
        _ => Ok(()),
    }
}

fn call_all<L: Layer>(layer: &L) -> Result<()> {
    let root = layer.root()?;
    layer.hold()?;
    for _is_there in [false, true] {
        layer.hold_by(&root, n("lock"))?;
        layer.release()?;
    }
    layer.stat_fs()?;
    create(layer, &root)?;
    for object in [Object::Dir(&root), Object::Entry(&root, n("file")), Object::Entry(&root, n("dir"))] {
        attributes(layer, object)?;
    }
    let file = layer.open_file(&root, n("file"), Access::ReadWrite)?;
    attributes(layer, Object::File(&file))?;
    data(layer, &root, &file)?;
    names(layer, &root, &file)?;
    layer.sync(&file)?;
    layer.sync_dir(&root)?;
    layer.sync_all()
}

fn create<L: Layer>(layer: &L, root: &L::Dir) -> Result<()> {
    layer.create_dir(root, n("shared"), 0o2777, layer.identity())?;
    let shared = layer.open_dir(root, n("shared"))?;
    for (dir, owner) in [(root, layer.identity()), (&shared, ALICE)] {
        layer.create_file(dir, n("file"), 0o4640, owner)?;
        layer.create_empty(dir, n("empty"))?;
        layer.create_dir(dir, n("dir"), 0o750, owner)?;
        layer.create_symlink(dir, n("link"), n("target"), owner)?;
        layer.create_node(dir, n("fifo"), Kind::Fifo, 0o600, 0, owner)?;
        layer.create_node(dir, n("char"), Kind::CharDev, 0o600, 0, owner)?;
    }
    layer.list(root, &mut |_| {})?;
    layer.list(&layer.open_dir(root, n("dir"))?, &mut |_| {})?;
    layer.read_link(root, n("link")).map(drop)
}

fn attributes<L: Layer>(layer: &L, object: Object<'_, L>) -> Result<()> {
    layer.stat(object)?;
    layer.birth(object)?;
    layer.set_owner(object, ALICE)?;
    layer.set_mode(object, 0o700)?;
    layer.set_times(object, Time { sec: 1, nsec: 0 }, Time { sec: 2, nsec: 0 })?;
    if_supported(layer.set_xattr(object, n("user.a"), b"value", XattrMode::Set))?;
    if_supported(layer.xattr(object, n("user.a")))?;
    layer.xattrs(object)?;
    if_supported(layer.remove_xattr(object, n("user.a")))?;
    if_supported(layer.flags(object).and_then(|flags| layer.set_flags(object, flags)))
}

fn data<L: Layer>(layer: &L, root: &L::Dir, file: &L::File) -> Result<()> {
    layer.write_at(file, &[1; 5000], 0)?;
    if_supported(layer.write_through(file, &[2; 100], 4 * THROUGH))?;
    layer.read_at(file, &mut [0; 100], 0)?;
    layer.next_data(file, 0)?;
    layer.truncate(file, 5000)?;
    let other = layer.create_file(root, n("other"), 0o600, layer.identity())?;
    if_supported(layer.share_data(file, &other))?;
    layer.copy_range(file, 0..5000, &other, 0)?;
    if_supported(layer.allocate(&other, Allocation::Reserve { keep_size: true }, 0..10_000))?;
    for access in [Access::Read, Access::Append] {
        layer.open_file(root, n("other"), access)?;
    }
    Ok(())
}

fn names<L: Layer>(layer: &L, root: &L::Dir, file: &L::File) -> Result<()> {
    layer.link(Object::Entry(root, n("file")), root, n("second"))?;
    layer.link(Object::File(file), root, n("third"))?;
    layer.rename(root, n("second"), root, n("third"), RenameMode::Replace)?;
    layer.rename(root, n("other"), root, n("fourth"), RenameMode::NoReplace)?;
    if layer.capabilities().exchange {
        layer.rename(root, n("third"), root, n("fourth"), RenameMode::Exchange)?;
    }
    layer.unlink(root, n("fourth"))?;
    layer.remove_dir(root, n("dir"))
}
