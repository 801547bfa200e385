//! The rights that the command does not have, though its user has them.
//!
//! - No program gains rights (`no_new_privs`): set-user-id programs, such as sudo, have no effect.
//! - Capabilities: of root's, those over files and ids stay. They count in the namespace only, so
//!   the command changes no mount, loads no module and makes no device.
//! - Landlock: signals and abstract sockets reach only the command's own processes.
//! - seccomp: no terminal takes input that a program makes up (TIOCSTI, TIOCLINUX). There are no
//!   keyrings, since the kernel finds keys of the user by their numbers alone.

use std::io;

use landlock::{ABI, Access, Ruleset, RulesetAttr, Scope};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::sock_filter;

/// The capabilities that a command of root keeps, in its namespace.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// Drops the rights, for this thread and the program that it becomes. The thread must have the
/// capabilities of its namespace.
///
/// # Errors
///
/// - EPERM: it has not.
/// - `Unsupported`: the kernel has no seccomp.
pub fn drop() -> io::Result<()> {
    for capability in CapabilitySet::all().difference(KEPT).iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel is older than the capability.
            Err(rustix::io::Errno::INVAL) => {}
            dropped => dropped?,
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let had = rustix::thread::capabilities(None)?;
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..had })?;
    rustix::thread::set_no_new_privs(true)?;
    // An older kernel has no such scopes; the manual says so.
    let scoped = Ruleset::default().scope(Scope::from_all(ABI::V6)).and_then(Ruleset::create);
    scoped.and_then(landlock::RulesetCreated::restrict_self).map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter()).map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))
}

/// One kind of programs: the number of its architecture, the numbers of its ioctl(2), and those of
/// add_key(2), request_key(2) and keyctl(2).
struct Architecture {
    number: u32,
    ioctls: &'static [u32],
    keys: [u32; 3],
}

/// The architectures of the kernels on which this program runs, and those of their older programs.
/// Numbers of x32 are taken without their bit.
const ARCHITECTURES: [Architecture; 5] = [
    Architecture { number: 0xc000_003e, ioctls: &[16, 514], keys: [248, 249, 250] },
    Architecture { number: 0x4000_0003, ioctls: &[54], keys: [286, 287, 288] },
    Architecture { number: 0xc000_00b7, ioctls: &[29], keys: [217, 218, 219] },
    Architecture { number: 0x4000_0028, ioctls: &[54], keys: [309, 310, 311] },
    Architecture { number: 0xc000_00f3, ioctls: &[29], keys: [217, 218, 219] },
];

/// The bit of the numbers of x32.
const X32: u32 = 0x4000_0000;

/// The offsets in `struct seccomp_data`. The machines above store the low half of an argument
/// first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const SECOND_ARGUMENT: u32 = 24;

/// Makes the filter. The crate `seccompiler` has a filter for one architecture, and kills programs
/// of another.
fn filter() -> Vec<sock_filter> {
    let mut program = vec![load(ARCHITECTURE)];
    for Architecture { number, ioctls, keys } in ARCHITECTURES {
        let mut block = vec![load(NUMBER), instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !X32)];
        for call in keys {
            block.extend([unless(call, 1), refuse(libc::ENOSYS)]);
        }
        for call in ioctls {
            let inner = [
                load(SECOND_ARGUMENT),
                unless(libc::TIOCSTI as u32, 1),
                refuse(libc::EPERM),
                unless(libc::TIOCLINUX as u32, 1),
                refuse(libc::EPERM),
                allow(),
            ];
            block.push(unless(*call, inner.len()));
            block.extend(inner);
        }
        block.push(allow());
        program.push(unless(number, block.len()));
        program.extend(block);
    }
    program.push(refuse(libc::ENOSYS));
    program
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

/// Skips so many instructions unless the loaded number is `value`.
fn unless(value: u32, skipped: usize) -> sock_filter {
    sock_filter { jf: skipped as u8, ..instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value) }
}

fn refuse(errno: i32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32)
}

fn allow() -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW)
}
