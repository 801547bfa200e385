//! Creating objects in another user's name: the filesystem ids of the thread are changed for the
//! time of one call.
//!
//! A thread that leaves filesystem uid 0 loses the capabilities over files, and with them the right
//! to write the work directory or to create a device node. SECBIT_NO_SETUID_FIXUP keeps them, so
//! only the owner of what is created changes. The bit is the thread's own, is inherited by the
//! threads that it starts, and stays.

use std::cell::Cell;

use rustix::io::Result;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, capabilities, capabilities_secure_bits, set_capabilities_secure_bits,
};

use crate::layer::Owner;

thread_local! {
    static KEEPS_CAPABILITIES: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread, and those that it starts, can act in the name of others.
pub fn can_act() -> bool {
    let ids = CapabilitySet::SETUID | CapabilitySet::SETGID;
    keep_capabilities().is_ok() && capabilities(None).is_ok_and(|sets| sets.effective.contains(ids))
}

/// Lets this thread keep its capabilities while it acts in another name. EPERM without CAP_SETPCAP.
fn keep_capabilities() -> Result<()> {
    if !KEEPS_CAPABILITIES.get() {
        let bits = capabilities_secure_bits()?;
        if !bits.contains(CapabilitiesSecureBits::NO_SETUID_FIXUP) {
            set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
        }
        KEEPS_CAPABILITIES.set(true);
    }
    Ok(())
}

/// While it lives, what this thread creates belongs to another owner.
pub struct ActingAs {
    own: Owner,
}

impl ActingAs {
    /// Takes the other owner's ids on; `own` is what the thread goes back to. EPERM as
    /// [`keep_capabilities`].
    pub fn new(owner: Owner, own: Owner) -> Result<ActingAs> {
        keep_capabilities()?;
        set_ids(owner);
        Ok(ActingAs { own })
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        set_ids(self.own);
    }
}

/// Sets the filesystem ids of this thread only. The calls tell of no failure: without CAP_SETUID
/// and CAP_SETGID nothing changes, so whoever creates an object must look at its owner.
fn set_ids(owner: Owner) {
    // SAFETY: both calls take a number and touch no memory.
    unsafe {
        libc::setfsgid(owner.gid);
        libc::setfsuid(owner.uid);
    }
}
