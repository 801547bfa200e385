//! The layout of a legacy: bytes, and the descriptors that they name by their number.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use overlayfs::errno::{EINVAL, Error, Result};
use overlayfs::layer::linux::OpenRoot;
use overlayfs::mount::Roots;
use overlayfs::options::Options;
use overlayfs::packed::{Packer, Unpacker};

use crate::dispatch::Agreed;
use crate::line::{Line, MAX, Message};

/// How long the other process may take for a part of a legacy.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a daemon passes on.
#[derive(Debug)]
pub struct Legacy<D> {
    /// The device of the mount.
    pub device: D,
    /// The lines to the process `unmounter`: to unmount, to end, to wait, to probe,
    /// to start.
    pub lines: [D; 5],
    /// How many times that process was asked to wait.
    pub asked: u32,
    /// The line to the process that waits for the end of the mount, which is in the foreground.
    pub report: Option<D>,
    /// Standard output and error of a mount in the foreground.
    pub streams: Option<[D; 2]>,
    /// The open target of messages: that of the option `log`, and syslog.
    pub logs: [Option<D>; 2],
    /// The locks of the layers.
    pub locks: Vec<D>,
    /// The roots of the layers, and whether each is in a clone of its mount.
    pub roots: Vec<Option<(D, bool)>>,
    /// The absolute path of the mount point.
    pub mount_point: PathBuf,
    /// The absolute paths of the layers. Its other fields are the defaults.
    pub layers: Options,
    /// When the mount began, in seconds since 1970.
    pub since: u64,
    /// When it came back, in milliseconds since 1970.
    pub comebacks: Vec<u64>,
    /// Whether the kernel must send requests again, since the daemon was killed.
    pub asks_again: bool,
    /// The agreement with the kernel.
    pub agreed: Agreed,
    /// The device number of the mount, major and minor.
    pub filesystem: (u32, u32),
    /// What the front end packed. It has descriptors too.
    pub front_end: Vec<u8>,
}

/// A legacy on the way: its bytes, and its descriptors.
#[derive(Debug, Default)]
pub struct Passed {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Passed {
    /// Adds a descriptor of the front end. Returns its number.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn keep(&mut self, descriptor: BorrowedFd<'_>) -> Result<u64> {
        let again = descriptor.try_clone_to_owned().map_err(|error| Error::new(error.raw_os_error().unwrap_or(EINVAL)));
        self.descriptors.push(again?);
        Ok(self.descriptors.len() as u64 - 1)
    }

    /// Adds all else.
    ///
    /// # Errors
    ///
    /// - EMFILE: too many descriptors are open.
    pub fn add(&mut self, legacy: &Legacy<BorrowedFd<'_>>) -> Result<()> {
        let mut to = Packer::default();
        to.number(self.keep(legacy.device)?);
        for line in legacy.lines {
            to.number(self.keep(line)?);
        }
        to.number(legacy.asked.into());
        let streams = legacy.streams.map_or([None; 2], |streams| streams.map(Some));
        for descriptor in [legacy.report].into_iter().chain(streams).chain(legacy.logs) {
            let number = descriptor.map(|descriptor| self.keep(descriptor)).transpose()?;
            to.option(number, Packer::number);
        }
        let locks = legacy.locks.iter().map(|lock| self.keep(*lock)).collect::<Result<Vec<_>>>()?;
        to.list(locks.into_iter(), Packer::number);
        let keep = |root: &Option<(BorrowedFd<'_>, bool)>| {
            root.map(|(root, cloned)| Ok((self.keep(root)?, cloned))).transpose()
        };
        let roots = legacy.roots.iter().map(keep).collect::<Result<Vec<_>>>()?;
        to.list(roots.into_iter(), |to, root| {
            to.option(root, |to, (root, cloned)| to.numbers(&[root, cloned.into()]));
        });
        to.text(legacy.mount_point.as_os_str());
        let Options { lowers, upper, work, snapshots, .. } = &legacy.layers;
        to.list(lowers.iter(), |to, path| to.text(path.as_os_str()));
        for path in [upper, work, snapshots] {
            to.option(path.as_ref(), |to, path| to.text(path.as_os_str()));
        }
        let Agreed { flags, valid, max_answer, prunes } = legacy.agreed;
        to.numbers(&[legacy.since, flags, valid.as_secs(), valid.subsec_nanos().into()]);
        let (major, minor) = legacy.filesystem;
        to.numbers(&[max_answer as u64, prunes.into(), major.into(), minor.into()]);
        to.list(legacy.comebacks.iter().copied(), Packer::number);
        to.number(legacy.asks_again.into());
        to.bytes(&legacy.front_end);
        self.bytes = to.done();
        Ok(())
    }

    /// Sends the legacy: the number of its descriptors and the length of its bytes, then both.
    ///
    /// # Errors
    ///
    /// - EPIPE: the other process has ended.
    pub fn send(&self, line: &Line) -> io::Result<()> {
        let mut head = Packer::default();
        head.numbers(&[self.descriptors.len() as u64, self.bytes.len() as u64]);
        line.send(&head.done(), None)?;
        for descriptor in &self.descriptors {
            line.send(&[0], Some(descriptor.as_fd()))?;
        }
        self.bytes.chunks(MAX).try_for_each(|piece| line.send(piece, None))
    }

    /// Receives a legacy.
    ///
    /// # Errors
    ///
    /// - `UnexpectedEof`: the other process has ended.
    /// - `InvalidData`: it sent something else.
    /// - `TimedOut`: it sends nothing.
    pub fn receive(line: &Line) -> io::Result<Self> {
        let next =
            || -> io::Result<Message> { line.receive_within(PATIENCE)?.ok_or_else(|| ErrorKind::UnexpectedEof.into()) };
        let head = next()?.bytes;
        let mut head = Unpacker::new(&head);
        let mut number = || head.number().map_err(|_| io::Error::from(ErrorKind::InvalidData));
        let (count, length) = (number()?, number()?);
        let mut passed = Self::default();
        for _ in 0..count {
            passed.descriptors.push(next()?.descriptor.ok_or(ErrorKind::InvalidData)?);
        }
        while (passed.bytes.len() as u64) < length {
            passed.bytes.extend_from_slice(&next()?.bytes);
        }
        Ok(passed)
    }

    /// Takes the legacy apart.
    ///
    /// # Errors
    ///
    /// - EINVAL: it is none.
    pub fn open(self) -> Result<Received> {
        let mut open =
            Open { from: Unpacker::new(&self.bytes), left: self.descriptors.into_iter().map(Some).collect() };
        let legacy = open.legacy()?;
        let Open { from, left } = open;
        from.end()?;
        Ok(Received { legacy, left })
    }
}

/// A legacy that has arrived.
#[derive(Debug)]
pub struct Received {
    /// What does not depend on the front end.
    pub legacy: Legacy<OwnedFd>,
    left: Vec<Option<OwnedFd>>,
}

impl Received {
    /// Takes a descriptor of the front end by its number.
    pub fn take(&mut self, number: u64) -> Option<OwnedFd> {
        self.left.get_mut(usize::try_from(number).ok()?)?.take()
    }

    /// Takes the roots of the layers.
    pub fn roots(&mut self) -> Roots {
        let roots = std::mem::take(&mut self.legacy.roots);
        let open = |(directory, cloned)| OpenRoot { directory, cloned };
        Roots::from_all(roots.into_iter().map(|root| root.map(open)).collect())
    }
}

/// A legacy that is taken apart.
struct Open<'a> {
    from: Unpacker<'a>,
    left: Vec<Option<OwnedFd>>,
}

impl Open<'_> {
    fn legacy(&mut self) -> Result<Legacy<OwnedFd>> {
        let device = self.descriptor()?;
        let lines =
            [self.descriptor()?, self.descriptor()?, self.descriptor()?, self.descriptor()?, self.descriptor()?];
        let asked = self.from.small()?;
        let report = self.maybe()?;
        let streams = self.maybe()?.zip(self.maybe()?).map(|(output, error)| [output, error]);
        let logs = [self.maybe()?, self.maybe()?];
        let count: u64 = self.from.number()?;
        let locks = (0..count).map(|_| self.descriptor()).collect::<Result<_>>()?;
        let count: u64 = self.from.number()?;
        let roots = (0..count).map(|_| self.root()).collect::<Result<_>>()?;
        let from = &mut self.from;
        let mount_point = from.text()?.into();
        let lowers = from.list(|from| from.text().map(PathBuf::from))?;
        let mut path = || from.option(|from| from.text().map(PathBuf::from));
        let (upper, work, snapshots) = (path()?, path()?, path()?);
        let layers = Options { lowers, upper, work, snapshots, ..Options::default() };
        let since = from.number()?;
        let agreed = Agreed {
            flags: from.number()?,
            valid: Duration::from_secs(from.number()?).saturating_add(Duration::from_nanos(from.number()?)),
            max_answer: from.small()?,
            prunes: from.flag()?,
        };
        let filesystem = (from.small()?, from.small()?);
        let (comebacks, asks_again) = (from.list(Unpacker::number)?, from.flag()?);
        let front_end = from.bytes()?.to_owned();
        Ok(Legacy {
            device,
            lines,
            asked,
            report,
            streams,
            logs,
            locks,
            roots,
            mount_point,
            layers,
            since,
            comebacks,
            asks_again,
            agreed,
            filesystem,
            front_end,
        })
    }

    fn descriptor(&mut self) -> Result<OwnedFd> {
        let number: usize = self.from.small()?;
        self.left.get_mut(number).and_then(Option::take).ok_or(Error::new(EINVAL))
    }

    fn maybe(&mut self) -> Result<Option<OwnedFd>> {
        if self.from.flag()? { self.descriptor().map(Some) } else { Ok(None) }
    }

    fn root(&mut self) -> Result<Option<(OwnedFd, bool)>> {
        if !self.from.flag()? {
            return Ok(None);
        }
        Ok(Some((self.descriptor()?, self.from.flag()?)))
    }
}
