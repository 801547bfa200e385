//! The talk from the side of the next daemon.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use overlayfs::errno::Error;
use overlayfs::packed::Packer;

use super::{ENDED, FAILED, GO, HELLO, Passed, READY, Received, VERSION};
use crate::line::Line;

/// The next daemon, which this process is about to become.
pub struct Heir(Line);

impl Heir {
    /// Takes the line from standard input, and leaves an empty file there.
    ///
    /// # Errors
    ///
    /// - Those of open(2) for `/dev/null`.
    pub fn this() -> io::Result<Self> {
        let line = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self(line.into()))
    }

    /// Waits for the legacy.
    ///
    /// # Errors
    ///
    /// - A sentence says what failed.
    pub fn receive(&self) -> Result<Received, String> {
        let mut hello = Packer::default();
        hello.number(VERSION);
        let said = self.0.send(&[&[HELLO], &hello.done()[..]].concat(), None);
        let passed = said.and_then(|()| Passed::receive(&self.0));
        let passed = passed.map_err(|error| format!("The daemon of the mount gives no legacy: {error}."))?;
        passed.open().map_err(|error: Error| format!("The legacy of the daemon of the mount makes no sense: {error}."))
    }

    /// Says why this process cannot serve. If the other one is gone, no process wants to know.
    pub fn fail(&self, sentence: &str) {
        let _ = self.0.send(&[&[FAILED], sentence.as_bytes()].concat(), None);
    }

    /// Says that this process can serve, and waits until it should.
    ///
    /// # Errors
    ///
    /// - A sentence says that the daemon of the mount goes on.
    pub fn begin(&self) -> Result<(), String> {
        match self.0.send(&[READY], None) {
            Ok(()) if self.is_told_to_go() => Ok(()),
            _ => Err("The daemon of the mount goes on itself.".to_owned()),
        }
    }

    /// Whether the mount was given to this process, which has died. The process that asks has a
    /// copy of its memory and the same descriptors.
    pub fn was_given_the_mount(&self) -> bool {
        if !self.0.has_news() {
            // The line lives on, so the other process would wait for a word of the dead one.
            self.fail("It was killed.");
        }
        self.is_told_to_go()
    }

    /// Waits for the decision of the other process. It stays on the line: if this process dies at
    /// any moment from now on, its keeper finds it.
    fn is_told_to_go(&self) -> bool {
        matches!(self.0.peek(), Ok(Some(message)) if message.bytes.first() == Some(&GO))
    }

    /// Returns the line once more. A process may wait on it for the end of the mount.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn line_again(&self) -> io::Result<Line> {
        self.0.as_fd().try_clone_to_owned().map(Line::from)
    }
}

/// Tells the process that waits for the end of the mount that it has ended well. If that process is
/// gone, none waits.
pub fn report_end(line: &Line) {
    let _ = line.send(&[ENDED], None);
}
