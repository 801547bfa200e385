//! Creates objects for another user: the thread changes its filesystem ids for one call.
//!
//! A thread that leaves filesystem uid 0 loses its capabilities over files. It could then not write
//! to the work directory, or create a device node. SECBIT_NO_SETUID_FIXUP keeps them, so only the
//! owner of the new object changes. The bit belongs to the thread, stays set, and passes to the
//! threads that it starts.

use std::cell::Cell;

use rustix::io::Result;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, capabilities, capabilities_secure_bits, set_capabilities_secure_bits,
};

use crate::layer::Owner;

thread_local! {
    static KEEPS_CAPABILITIES: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread, and those that it starts, can create objects for other users.
pub fn can_act() -> bool {
    let ids = CapabilitySet::SETUID | CapabilitySet::SETGID;
    keep_capabilities().is_ok() && capabilities(None).is_ok_and(|sets| sets.effective.contains(ids))
}

/// Makes this thread keep its capabilities while it has other ids.
///
/// # Errors
///
/// - EPERM: the process lacks CAP_SETPCAP.
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

/// While this value lives, objects that the thread creates belong to another owner.
pub struct ActingAs {
    own: Owner,
}

impl ActingAs {
    /// Takes the ids of `owner`. `own` are the ids to which the thread returns.
    ///
    /// # Errors
    ///
    /// - EPERM: the process lacks CAP_SETPCAP.
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

/// Sets the filesystem ids of this thread only. The calls report no failure: without CAP_SETUID and
/// CAP_SETGID they do nothing. So the caller must check the owner of a new object.
fn set_ids(owner: Owner) {
    // SAFETY: both calls take a number and touch no memory.
    unsafe {
        libc::setfsgid(owner.gid);
        libc::setfsuid(owner.uid);
    }
}
