//! Where messages go: to standard error, or to syslog for a program that has left its terminal.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::options::Verbosity;

/// The name before each message.
const NAME: &str = "overlayfs-fuse";
/// Where the syslog daemon, or the journal in its place, takes messages.
const SYSLOG: &str = "/dev/log";
/// Syslog's number for daemons.
const FACILITY: u8 = 3;

static LOGGER: Logger = Logger { syslog: OnceLock::new() };

struct Logger {
    /// Empty before [`leave_terminal`]. None afterwards if nobody takes messages.
    syslog: OnceLock<Option<UnixDatagram>>,
}

/// Begins to log, to standard error. Without effect the second time.
pub fn start(verbosity: Verbosity) {
    log::set_max_level(match verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Verbose => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Trace,
    });
    // It fails only if a logger was set before.
    let _ = log::set_logger(&LOGGER);
}

/// Sends what is logged from now on to syslog, or nowhere if there is none.
pub fn leave_terminal() {
    LOGGER.syslog.get_or_init(|| connect().ok());
}

fn connect() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(SYSLOG)?;
    // A message is lost rather than a request held up.
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
        // Nobody can be told that nobody can be told.
        let _ = match self.syslog.get() {
            None => io::stderr().lock().write_all(for_terminal(record.level(), &text).as_bytes()),
            Some(Some(socket)) => {
                socket.send(for_syslog(record.level(), std::process::id(), &text).as_bytes()).map(drop)
            }
            Some(None) => Ok(()),
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
    use super::*;

    #[test]
    fn messages_have_the_form_that_their_reader_expects() {
        assert_eq!(for_terminal(Level::Error, "No."), "overlayfs-fuse: No.\n");
        assert_eq!(for_terminal(Level::Warn, "maybe not"), "overlayfs-fuse: warning: maybe not\n");
        assert_eq!(for_terminal(Level::Trace, "LOOKUP"), "overlayfs-fuse: LOOKUP\n");
        assert_eq!(for_syslog(Level::Error, 12, "No."), "<27>overlayfs-fuse[12]: No.");
        assert_eq!(for_syslog(Level::Warn, 12, "maybe not"), "<28>overlayfs-fuse[12]: maybe not");
        assert_eq!(for_syslog(Level::Info, 12, "mounted"), "<30>overlayfs-fuse[12]: mounted");
        assert_eq!(for_syslog(Level::Trace, 12, "LOOKUP"), "<31>overlayfs-fuse[12]: LOOKUP");
    }
}
