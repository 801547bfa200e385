//! The targets of messages: standard error, or syslog after the program has left its terminal. With
//! the option `log` a file, syslog, the journal or standard error.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};
use overlayfs::control::warnings;

use crate::options::Verbosity;

/// The name before each message.
const NAME: &str = "overlayfs-fuse";
/// Where the syslog daemon, or the journal in its place, takes messages.
const SYSLOG: &str = "/dev/log";
/// Where the journal takes messages with fields.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// The most bytes of a message for a socket. A longer datagram could be refused.
const LONGEST: usize = 32 << 10;
/// Syslog's number for daemons.
const FACILITY: u8 = 3;

static LOGGER: Logger = Logger { chosen: OnceLock::new(), syslog: OnceLock::new(), is_away: AtomicBool::new(false) };

struct Logger {
    /// The target of the option `log`. It gets all messages.
    chosen: OnceLock<Open>,
    /// Empty before [`prepare_to_leave`]. None afterwards if no syslog daemon listens.
    syslog: OnceLock<Option<UnixDatagram>>,
    /// Whether the program has left its terminal.
    is_away: AtomicBool,
}

/// A target that the option `log` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file, to which messages are appended.
    File(PathBuf),
    /// Syslog, from the start on.
    Syslog,
    /// The journal, with fields.
    Journal,
    /// The standard error of the start, in the background too.
    Stderr,
}

/// An open target.
enum Open {
    File(File),
    Syslog(UnixDatagram),
    Journal(UnixDatagram, PathBuf),
    /// A copy, since the program replaces its standard streams in the background.
    Stderr(File),
}

impl Target {
    /// Returns the target that a value of the option means.
    pub fn of(value: PathBuf) -> Self {
        match value.as_os_str().as_bytes() {
            b"syslog" => Self::Syslog,
            b"journal" => Self::Journal,
            b"stderr" => Self::Stderr,
            _ => Self::File(value),
        }
    }

    /// Returns the name of the target for a sentence.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => format!("log file {}", path.display()),
            Self::Syslog => format!("socket of syslog, {SYSLOG},"),
            Self::Journal => format!("socket of the journal, {JOURNAL},"),
            Self::Stderr => "standard error".to_owned(),
        }
    }
}

/// Begins to log to standard error. A second call has no effect.
pub fn start(verbosity: Verbosity) {
    log::set_max_level(match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Trace,
    });
    // The call fails only if a logger was set before.
    let _ = log::set_logger(&LOGGER);
}

/// Sends messages about the mount at `mount_point` to a target too. After the program has left its
/// terminal they go only there.
///
/// # Errors
///
/// - The errors of open(2) for a file, of connect(2) for a socket.
pub fn log_to(target: &Target, mount_point: &Path) -> io::Result<()> {
    let open = match target {
        Target::File(path) => Open::File(File::options().create(true).append(true).open(path)?),
        Target::Syslog => Open::Syslog(connect(SYSLOG)?),
        Target::Journal => Open::Journal(connect(JOURNAL)?, mount_point.to_owned()),
        Target::Stderr => Open::Stderr(io::stderr().as_fd().try_clone_to_owned()?.into()),
    };
    LOGGER.chosen.get_or_init(|| open);
    Ok(())
}

/// Returns the open targets for the next daemon: that of the option `log`, and syslog.
pub(crate) fn open_targets() -> [Option<BorrowedFd<'static>>; 2] {
    let syslog = LOGGER.syslog.get().and_then(Option::as_ref);
    [LOGGER.chosen.get().map(Open::descriptor), syslog.map(AsFd::as_fd)]
}

/// Sends messages to the open targets of the daemon before this one. `target` is that of the
/// option.
pub(crate) fn go_on_with([chosen, syslog]: [Option<OwnedFd>; 2], target: Option<&Target>, mount_point: &Path) {
    if let Some((descriptor, target)) = chosen.zip(target) {
        let open = match target {
            Target::File(_) => Open::File(descriptor.into()),
            Target::Syslog => Open::Syslog(descriptor.into()),
            Target::Journal => Open::Journal(descriptor.into(), mount_point.to_owned()),
            Target::Stderr => Open::Stderr(descriptor.into()),
        };
        LOGGER.chosen.get_or_init(|| open);
    }
    LOGGER.syslog.get_or_init(|| syslog.map(UnixDatagram::from));
}

/// Connects to syslog, for [`leave_terminal`].
pub fn prepare_to_leave() {
    LOGGER.syslog.get_or_init(|| connect(SYSLOG).ok());
}

/// Sends messages to syslog from now on. Without syslog they are lost. With the option `log` they
/// go only to its target.
pub fn leave_terminal() {
    LOGGER.is_away.store(true, Ordering::Relaxed);
}

fn connect(path: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    // A full socket loses a message rather than delay a request.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Open {
    fn write(&self, level: Level, text: &str) -> io::Result<()> {
        let process = std::process::id();
        match self {
            Open::File(file) => {
                let mut file = file;
                file.write_all(for_file(level, process, text, SystemTime::now()).as_bytes())
            }
            Open::Syslog(socket) => socket.send(for_syslog(level, process, text).as_bytes()).map(drop),
            Open::Journal(socket, mount_point) => socket.send(&for_journal(level, text, mount_point)).map(drop),
            Open::Stderr(stderr) => {
                let mut stderr = stderr;
                stderr.write_all(for_terminal(level, text).as_bytes())
            }
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Open::File(file) | Open::Stderr(file) => file.as_fd(),
            Open::Syslog(socket) | Open::Journal(socket, _) => socket.as_fd(),
        }
    }

    /// Whether standard error is another place.
    fn is_elsewhere(&self) -> bool {
        !matches!(self, Open::Stderr(_))
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, text) = (record.level(), record.args().to_string());
        if level <= Level::Warn {
            warnings::keep(&text);
        }
        let chosen = self.chosen.get();
        // An error of the log itself has no place to go.
        let _ = chosen.map_or(Ok(()), |target| target.write(level, &text));
        let _ = match (self.is_away.load(Ordering::Relaxed), self.syslog.get()) {
            (false, _) if chosen.is_none_or(Open::is_elsewhere) => {
                io::stderr().lock().write_all(for_terminal(level, &text).as_bytes())
            }
            (true, Some(Some(socket))) if chosen.is_none() => {
                socket.send(for_syslog(level, std::process::id(), &text).as_bytes()).map(drop)
            }
            _ => Ok(()),
        };
    }

    fn flush(&self) {}
}

fn for_terminal(level: Level, text: &str) -> String {
    match level {
        Level::Warn => format!("{NAME}: warning: {text}\n"),
        _ => format!("{NAME}: {text}\n"),
    }
}

/// Begins with the seconds since 1970, since a file does not date its lines.
fn for_file(level: Level, process: u32, text: &str, now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let warning = if level == Level::Warn { "warning: " } else { "" };
    format!("{seconds}.{millis:03} {NAME}[{process}]: {warning}{text}\n")
}

fn for_syslog(level: Level, process: u32, text: &str) -> String {
    format!("<{}>{NAME}[{process}]: {}", FACILITY * 8 + severity(level), cut(text))
}

/// Returns a message in the protocol of the journal: a field on each line. A value with a line
/// break has its length before it.
fn for_journal(level: Level, text: &str, mount_point: &Path) -> Vec<u8> {
    let mut message = Vec::new();
    for (name, value) in [
        ("MESSAGE", cut(text).as_bytes()),
        ("PRIORITY", severity(level).to_string().as_bytes()),
        ("SYSLOG_IDENTIFIER", NAME.as_bytes()),
        ("SYSLOG_FACILITY", FACILITY.to_string().as_bytes()),
        ("MOUNTPOINT", mount_point.as_os_str().as_bytes()),
    ] {
        message.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            message.push(b'\n');
            message.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            message.push(b'=');
        }
        message.extend_from_slice(value);
        message.push(b'\n');
    }
    message
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST)]
}

/// Returns syslog's number of a level.
fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn messages_have_the_form_that_their_reader_expects() {
        assert_eq!(for_terminal(Level::Error, "No."), "overlayfs-fuse: No.\n");
        assert_eq!(for_terminal(Level::Warn, "maybe not"), "overlayfs-fuse: warning: maybe not\n");
        assert_eq!(for_terminal(Level::Trace, "LOOKUP"), "overlayfs-fuse: LOOKUP\n");
        let now = UNIX_EPOCH + Duration::from_millis(5_007);
        assert_eq!(for_file(Level::Warn, 12, "maybe not", now), "5.007 overlayfs-fuse[12]: warning: maybe not\n");
        assert_eq!(for_syslog(Level::Error, 12, "No."), "<27>overlayfs-fuse[12]: No.");
        assert_eq!(for_syslog(Level::Warn, 12, "maybe not"), "<28>overlayfs-fuse[12]: maybe not");
        assert_eq!(for_syslog(Level::Info, 12, "mounted"), "<30>overlayfs-fuse[12]: mounted");
        assert_eq!(for_syslog(Level::Trace, 12, "LOOKUP"), "<31>overlayfs-fuse[12]: LOOKUP");
    }

    #[test]
    fn the_journal_gets_fields() {
        let message = for_journal(Level::Warn, "maybe not", Path::new("/m"));
        let fields =
            "MESSAGE=maybe not\nPRIORITY=4\nSYSLOG_IDENTIFIER=overlayfs-fuse\nSYSLOG_FACILITY=3\nMOUNTPOINT=/m\n";
        assert_eq!(String::from_utf8(message).unwrap(), fields);
        let message = for_journal(Level::Error, "a\nb", Path::new("/m\n"));
        assert!(message.starts_with(b"MESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nPRIORITY=3\n"));
        assert!(message.ends_with(b"\nMOUNTPOINT\n\x03\0\0\0\0\0\0\0/m\n\n"));
        assert!(for_journal(Level::Info, &"x".repeat(1 << 20), Path::new("/m")).len() < LONGEST + 200);
    }

    #[test]
    fn words_name_targets_and_paths_files() {
        let target = |value: &str| Target::of(value.into());
        assert_eq!(
            (target("syslog"), target("journal"), target("stderr")),
            (Target::Syslog, Target::Journal, Target::Stderr)
        );
        assert_eq!(target("./journal"), Target::File("./journal".into()));
    }
}
