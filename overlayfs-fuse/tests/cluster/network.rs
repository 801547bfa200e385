//! A network of the test's own, with one address. Servers of clustered filesystems refuse the
//! addresses of the loopback network, and other tests use the same ports.

use rustix::thread::UnshareFlags;

use crate::run;

/// The address of all servers: one of those that documents use, which no host has.
pub const HOST: &str = "192.0.2.1";

/// Gives this thread, and the processes that it starts, a network of their own.
pub fn own() {
    // SAFETY: the thread leaves only the network. Descriptors and memory of other threads do not
    // change.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace needs root");
    for words in [["link", "set", "lo", "up"].as_slice(), &["address", "add", HOST, "dev", "lo"]] {
        let done = run::finish(run::command("ip").args(words));
        assert!(done.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}
