//! Files that show other times in the kernel than in the layer.
//!
//! The kernel keeps the times of files with write-back itself, and takes none from a daemon. Two
//! kinds of times stay wrong until the kernel drops the file. The first is a time that a program
//! set and that the layer moved into its range. The second is the time of last change of status
//! after chattr(1), which the kernel does not date.
//!
//! So a thread of its own asks the kernel to drop these files. The thread of the request cannot:
//! the program still waits for the answer, or has the file open, so the file is in use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::session::Notifier;

/// The waits before each request to the kernel, in milliseconds.
const WAITS: [u64; 5] = [1, 4, 20, 100, 500];

/// The files that the thread asks for. None: there is no thread.
#[derive(Default)]
pub struct Misdated(Arc<Mutex<Option<Vec<u64>>>>);

impl Misdated {
    /// Asks the kernel to drop a file as soon as it is not in use.
    pub fn add(&self, notifier: &Notifier, number: u64) {
        if !notifier.can_prune() {
            return;
        }
        let mut files = lock(&self.0);
        if let Some(files) = &mut *files {
            files.push(number);
            return;
        }
        let (notifier, shared) = (notifier.clone(), self.0.clone());
        match thread::Builder::new().name("times".to_owned()).spawn(move || ask(&notifier, &shared)) {
            Ok(_) => *files = Some(vec![number]),
            Err(error) => log::warn!(
                "cannot start the thread for times of files, which show times out of range as they were set: {error}"
            ),
        }
    }
}

fn lock(files: &Mutex<Option<Vec<u64>>>) -> MutexGuard<'_, Option<Vec<u64>>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Asks until no file is left.
fn ask(notifier: &Notifier, files: &Mutex<Option<Vec<u64>>>) {
    let next = || lock(files).take_if(|files| files.is_empty()).is_none();
    while next() {
        let mut asked = Vec::new();
        for wait in WAITS {
            thread::sleep(Duration::from_millis(wait));
            asked.extend(lock(files).iter_mut().flat_map(std::mem::take));
            if let Err(error) = notifier.prune(&asked) {
                log::debug!("the kernel does not drop files: {error}");
            }
        }
    }
}
