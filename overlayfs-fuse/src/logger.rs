//! The targets of messages: standard error, or syslog after the program has left its terminal, and
//! a file with the option `log`.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::options::Verbosity;

/// The name before each message.
const NAME: &str = "overlayfs-fuse";
/// Where the syslog daemon, or the journal in its place, takes messages.
const SYSLOG: &str = "/dev/log";
/// Syslog's number for daemons.
const FACILITY: u8 = 3;

static LOGGER: Logger = Logger { file: OnceLock::new(), syslog: OnceLock::new(), is_away: AtomicBool::new(false) };

struct Logger {
    /// The file of the option `log`. It gets all messages.
    file: OnceLock<File>,
    /// Empty before [`prepare_to_leave`]. None afterwards if no syslog daemon listens.
    syslog: OnceLock<Option<UnixDatagram>>,
    /// Whether the program has left its terminal.
    is_away: AtomicBool,
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

/// Appends messages to a file too. After the program has left its terminal they go only there, not
/// to syslog.
///
/// # Errors
///
/// - The errors of open(2).
pub fn log_to(path: &Path) -> io::Result<()> {
    let file = File::options().create(true).append(true).open(path)?;
    LOGGER.file.get_or_init(|| file);
    Ok(())
}

/// Connects to syslog, for [`leave_terminal`].
pub fn prepare_to_leave() {
    LOGGER.syslog.get_or_init(|| connect().ok());
}

/// Sends messages to syslog from now on. Without syslog they are lost, and with a log file they go
/// only there.
pub fn leave_terminal() {
    LOGGER.is_away.store(true, Ordering::Relaxed);
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG)?;
    // A full socket loses a message rather than delay a request.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string();
        // An error of the log itself has no place to go.
        if let Some(mut file) = self.file.get() {
            let _ = file.write_all(for_file(record.level(), std::process::id(), &text, SystemTime::now()).as_bytes());
        }
        let _ = match (self.is_away.load(Ordering::Relaxed), self.file.get(), self.syslog.get()) {
            (false, _, _) => io::stderr().lock().write_all(for_terminal(record.level(), &text).as_bytes()),
            (true, None, Some(Some(socket))) => {
                socket.send(for_syslog(record.level(), std::process::id(), &text).as_bytes()).map(drop)
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
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    format!("<{}>{NAME}[{process}]: {text}", FACILITY * 8 + severity)
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
}
