//! Files that the kernel dates otherwise than the layer.
//!
//! The kernel keeps the times of files whose data it writes back, and takes them from nobody. So a
//! time that was set, and that the layer has moved to the nearest that it keeps, is shown until the
//! kernel lets go of the file; and so is the time of last change of status from before a change of
//! the file's flags, which the kernel does not date. It is asked to let go by a thread of its own:
//! as long as whoever made the change waits for the answer, or has not closed the file, it is in
//! use.

use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use crate::session::Notifier;

/// How long is waited before each time that the kernel is asked, in milliseconds.
const WAITS: [u64; 5] = [1, 4, 20, 100, 500];

/// Hands files to the thread. None: it cannot be started, or not be of use.
#[derive(Default)]
pub struct Misdated(OnceLock<Option<Sender<u64>>>);

impl Misdated {
    /// Has the kernel let go of a file as soon as nobody uses it.
    pub fn add(&self, notifier: &Notifier, number: u64) {
        let start = || {
            let (sender, files) = mpsc::channel();
            let notifier = notifier.clone();
            let started = thread::Builder::new().name("times".to_owned()).spawn(move || ask(&notifier, &files));
            started.inspect_err(|error| log::warn!("times out of range are shown as they were set: {error}")).ok()?;
            Some(sender)
        };
        if notifier.can_prune()
            && let Some(thread) = self.0.get_or_init(start)
        {
            // It ends with the mount.
            let _ = thread.send(number);
        }
    }
}

fn ask(notifier: &Notifier, files: &Receiver<u64>) {
    while let Ok(first) = files.recv() {
        let mut asked = vec![first];
        for wait in WAITS {
            thread::sleep(Duration::from_millis(wait));
            asked.extend(files.try_iter());
            if let Err(error) = notifier.prune(&asked) {
                log::debug!("the kernel does not let go of files: {error}");
            }
        }
    }
}
