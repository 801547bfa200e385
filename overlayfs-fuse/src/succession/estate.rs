//! What the present daemon keeps for the next one, and the talk from its side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use overlayfs::control::Failure;
use overlayfs::errno::{EBUSY, EINVAL, Error};
use overlayfs::layer::linux::locks;
use overlayfs::mount::Roots;
use overlayfs::options::Options;
use overlayfs::packed::Unpacker;
use rustix::event::{PollFd, PollFlags, poll};

use super::{ENDED, FAILED, GO, HELLO, Legacy, Passed, READY, Starter, VERSION};
use crate::dispatch::Agreed;
use crate::line::Line;
use crate::logger;
use crate::mount::Device;
use crate::session::Outside;

/// How long a program may take to say which legacy it takes. The present daemon still serves.
const GREETING: Duration = Duration::from_secs(20);
/// How long the next daemon may take to be ready. Programs wait meanwhile.
const PREPARING: Duration = Duration::from_secs(20);

/// What stays the same from the mount on.
pub struct Estate {
    pub mount_point: PathBuf,
    /// With absolute paths.
    pub layers: Options,
    pub roots: Roots,
    /// When the mount began, in seconds since 1970.
    pub since: u64,
    /// When it came back, in milliseconds since 1970.
    pub comebacks: Vec<u64>,
    /// The lines to the process `unmounter`: to unmount, to end, to wait, to probe.
    pub lines: [OwnedFd; 4],
    pub starter: Starter,
    pub is_foreground: bool,
    /// The line to the process that waits for the end of the mount. None in the background, and in
    /// that process itself.
    pub report: Option<Line>,
    /// The line to the next daemon, once it serves.
    pub next: Mutex<Option<Line>>,
}

/// The part of a legacy that the session knows.
pub struct Terms<'a> {
    /// The device of the mount.
    pub device: &'a File,
    /// The agreement with the kernel.
    pub agreed: Agreed,
    /// How many times the process `unmounter` was asked to wait.
    pub asked: u32,
    /// The device number of the mount. None: the mount is read-only.
    pub filesystem: Option<Device>,
    /// The time in milliseconds since 1970, if the daemon that gives the mount away was killed.
    pub comeback: Option<u64>,
}

impl Estate {
    /// Starts the next daemon, which waits for its legacy.
    ///
    /// # Errors
    ///
    /// - A clause says why there is none.
    pub fn start(&self) -> Result<Next<'_>, Failure> {
        let line = self.starter.start().map_err(failure)?;
        let next = Next { line: Some(line), estate: self };
        let hello = next.line()?.receive_within(GREETING);
        let message = match hello {
            Ok(Some(message)) => message.bytes,
            Ok(None) => return Err(failure("the new program ended at once; it may be of a version before 0.2".into())),
            Err(error) => return Err(failure(format!("the new program says nothing: {error}"))),
        };
        match message.split_first() {
            Some((&HELLO, rest)) if Unpacker::new(rest).number() == Ok(VERSION) => Ok(next),
            Some((&HELLO, _)) => Err(failure(
                "the new program cannot take over from this version; unmount it and mount it again".to_owned(),
            )),
            Some((&FAILED, sentence)) => Err(failure(clause(sentence))),
            _ => Err(failure("the new program says nothing that makes sense".to_owned())),
        }
    }

    /// Waits for the end of the mount that another process serves now, and for `outside`. Returns
    /// whether it ended well. In the background the answer is true at once.
    pub fn wait_for_end(&self, outside: &dyn Outside) -> bool {
        let next = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(line) = next.filter(|_| self.is_foreground && self.report.is_none()) else { return true };
        loop {
            let awaited = [line.as_fd()].into_iter().chain(outside.awaited());
            let mut awaited: Vec<_> = awaited.map(|it| PollFd::from_borrowed_fd(it, PollFlags::IN)).collect();
            if poll(&mut awaited, None).is_ok() && !awaited[0].revents().is_empty() {
                let message = line.receive().ok().flatten();
                match message.and_then(|message| message.bytes.first().copied()) {
                    // Too late: it was killed after the mount was given to it, and another one serves.
                    Some(FAILED) => {}
                    end => return end == Some(ENDED),
                }
            }
            outside.look();
        }
    }
}

/// The next daemon before it serves. The drop kills it.
pub struct Next<'a> {
    /// None: it serves.
    line: Option<Line>,
    estate: &'a Estate,
}

impl Next<'_> {
    fn line(&self) -> Result<&Line, Failure> {
        self.line.as_ref().ok_or(Error::new(EINVAL).into())
    }

    /// Sends the legacy, to which the front end added `front_end`, and lets the next daemon serve.
    /// From then on this one takes no request.
    ///
    /// # Errors
    ///
    /// - A clause says why the next daemon cannot go on. It does not serve then.
    pub fn inherit(mut self, terms: &Terms<'_>, front_end: Vec<u8>, mut passed: Passed) -> Result<(), Failure> {
        let Estate { mount_point, layers, roots, since, comebacks, .. } = self.estate;
        let Estate { lines, starter, is_foreground, report, next, .. } = self.estate;
        let held = locks::held()?;
        let logs = logger::open_targets();
        let (output, error) = (io::stdout(), io::stderr());
        let [unmount, end, wait, probe] = lines.each_ref().map(AsFd::as_fd);
        passed.add(&Legacy {
            device: terms.device.as_fd(),
            lines: [unmount, end, wait, probe, starter.line().as_fd()],
            asked: terms.asked,
            report: report.as_ref().map(AsFd::as_fd),
            streams: is_foreground.then(|| [output.as_fd(), error.as_fd()]),
            logs,
            locks: held.iter().map(AsFd::as_fd).collect(),
            roots: roots.all().iter().map(|root| root.as_ref().map(|it| (it.directory.as_fd(), it.cloned))).collect(),
            mount_point: mount_point.clone(),
            layers: layers.clone(),
            since: *since,
            comebacks: comebacks.iter().copied().chain(terms.comeback).collect(),
            asks_again: terms.comeback.is_some(),
            agreed: terms.agreed,
            filesystem: terms.filesystem.map_or((0, 0), Device::parts),
            front_end,
        })?;
        let line = self.line()?;
        let failed = |error: io::Error| failure(format!("the new program does not take over: {error}"));
        passed.send(line).map_err(failed)?;
        drop(passed);
        match line.receive_within(PREPARING).map_err(failed)? {
            Some(message) if message.bytes.first() == Some(&READY) => {}
            Some(message) => return Err(failure(clause(message.bytes.get(1..).unwrap_or_default()))),
            None => return Err(failure("the new program ended before it took over".to_owned())),
        }
        line.send(&[GO], None).map_err(failed)?;
        *next.lock().unwrap_or_else(PoisonError::into_inner) = self.line.take();
        Ok(())
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        if self.line.take().is_none() {
            return;
        }
        if let Err(clause) = self.estate.starter.stop() {
            log::error!("The process that should take over may go on: {clause}.");
        }
        // It may have unlocked the layers at its end.
        if let Err(error) = locks::lock_again() {
            log::error!("The layers may be used by another overlay from now on: {error}.");
        }
    }
}

fn failure(clause: String) -> Failure {
    Failure { error: Error::new(EBUSY), clause }
}

/// Makes a clause of a sentence.
fn clause(sentence: &[u8]) -> String {
    let sentence = String::from_utf8_lossy(sentence);
    format!("the new program says: {}", sentence.strip_suffix('.').unwrap_or(&sentence))
}
