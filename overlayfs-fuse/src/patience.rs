//! How long a mount waits for another that has the same upper layer: as long as that is ending,
//! which is when nobody can use it any more.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::{Duration, Instant};

use overlayfs::overlay::Holder;

use crate::mount::{TYPE, escaped_in_table};

/// How long one is waited for that says that it is ending.
const ENDING: Duration = Duration::from_secs(60);
/// And one whose mount is not to be seen: it may have been unmounted just now, or be in another
/// namespace of mounts.
const UNSEEN: Duration = Duration::from_secs(10);
/// And one that does not say who it is: it may have begun just now, or be about to end.
const UNKNOWN: Duration = Duration::from_secs(2);
/// How often it is looked whether it has ended.
const EVERY: Duration = Duration::from_millis(20);

/// Somebody who waits.
pub struct Patience {
    since: Instant,
    /// Whether it was said who is waited for.
    has_said: bool,
}

impl Patience {
    /// From now on.
    pub fn new() -> Self {
        Self { since: Instant::now(), has_said: false }
    }

    /// Waits a moment for this holder of the upper layer. Answers whether it is worth another try.
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

/// Whether an overlay is mounted where a holder says, as far as this namespace of mounts tells.
fn is_mounted(holder: &Holder) -> bool {
    // What cannot be read says nothing, so there is no reason to wait.
    let Ok(table) = fs::read("/proc/self/mounts") else { return true };
    let place = escaped_in_table(holder.place.as_os_str().as_bytes());
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut words = line.split(|byte| *byte == b' ').skip(1);
        words.next() == Some(&place) && words.next() == Some(TYPE.as_bytes())
    })
}
