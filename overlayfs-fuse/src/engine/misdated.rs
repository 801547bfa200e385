//! Files that show other times in the kernel than in the layer.
//!
//! The kernel keeps the times of files with write-back itself, and takes none from a daemon. Two
//! kinds of times stay wrong until the kernel drops the file. The first is a time that a program
//! set and that the layer moved into its range. The second is the time of last change of status
//! after chattr(1), which the kernel does not date.
//!
//! So a thread of its own asks the kernel to drop these files. The thread of the request cannot:
//! the program still waits for the answer, or has the file open, so the file is in use.

use std::sync::OnceLock;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use crate::session::Notifier;

/// The waits before each request to the kernel, in milliseconds.
const WAITS: [u64; 5] = [1, 4, 20, 100, 500];

/// Sends files to the thread. None: the thread cannot start.
#[derive(Default)]
pub struct Misdated(OnceLock<Option<Sender<u64>>>);

impl Misdated {
    /// Asks the kernel to drop a file as soon as it is not in use.
    pub fn add(&self, notifier: &Notifier, number: u64) {
        let start = || {
            let (sender, files) = mpsc::channel();
            let notifier = notifier.clone();
            let started = thread::Builder::new().name("times".to_owned()).spawn(move || ask(&notifier, &files));
            started
                .inspect_err(|error| {
                    log::warn!(
                        "cannot start the thread for times of files, which show times out of range as they were set: \
                         {error}"
                    )
                })
                .ok()?;
            Some(sender)
        };
        if notifier.can_prune()
            && let Some(thread) = self.0.get_or_init(start)
        {
            // The thread ends with the mount.
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
                log::debug!("the kernel does not drop files: {error}");
            }
        }
    }
}
