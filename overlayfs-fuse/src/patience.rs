//! How long a mount waits for another one that holds the same upper layer. It waits
//! while that one is ending, so that no program can use it any more.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::overlay::Holder;

use crate::mount::{TYPE, escaped_in_table};

/// How long to wait for a holder that is ending by its record.
const ENDING: Duration = Duration::from_secs(60);
/// How long to wait for a holder that has no visible mount. It may have been unmounted just now, or
/// be in another mount namespace.
const UNSEEN: Duration = Duration::from_secs(10);
/// How long to wait for a holder without a record. It may have begun just now, or be about to end.
const UNKNOWN: Duration = Duration::from_secs(2);
/// The pause between two tries.
const EVERY: Duration = Duration::from_millis(20);

/// The wait of one mount.
pub struct Patience {
    since: Instant,
    /// Whether the log names the holder already.
    has_said: bool,
}

impl Patience {
    /// Begins to wait now.
    pub fn new() -> Self {
        Self { since: Instant::now(), has_said: false }
    }

    /// Waits a moment for this holder of the upper layer. Returns whether another try makes sense.
    pub fn waits_for(&mut self, holder: Option<&Holder>) -> bool {
        let limit = match holder {
            Some(holder) if holder.ending => ENDING,
            Some(holder) if is_mounted(holder) => return false,
            Some(_) => UNSEEN,
            None => UNKNOWN,
        };
        let waited = self.since.elapsed();
        if waited >= limit {
            return false;
        }
        if let Some(holder) = holder
            && waited > Duration::from_secs(1)
            && !self.has_said
        {
            log::warn!("waiting for {holder}");
            self.has_said = true;
        }
        thread::sleep(EVERY);
        true
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether an overlay is mounted at the place of a holder, as far as this mount namespace shows.
fn is_mounted(holder: &Holder) -> bool {
    // An unreadable table says nothing, so there is no reason to wait.
    let Ok(table) = fs::read("/proc/self/mounts") else { return true };
    let place = escaped_in_table(holder.place.as_os_str().as_bytes());
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut words = line.split(|byte| *byte == b' ').skip(1);
        words.next() == Some(&place) && words.next() == Some(TYPE.as_bytes())
    })
}
