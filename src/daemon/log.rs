//! Writes messages to standard error, a line at a time.
//!
//! While the daemon serves, it must look up no path, since the process for that may be waiting for
//! this daemon (see `namespace`). Local times need a file, so the times here are UTC. A backtrace
//! reads the program's own file, so a panic has none.

use std::fmt;
use std::io::{self, Write};
use std::panic;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::control::warnings;
use crate::turn;

struct Logger;

/// Begins to log, with `verbose` also requests. From now on panics are logged too.
pub fn start_log(verbose: bool) {
    log::set_max_level(if verbose { LevelFilter::Debug } else { LevelFilter::Info });
    // The call fails only if a logger was set before.
    let _ = log::set_logger(&Logger);
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
        log::error!("panicked{place}: {}", info.payload_as_str().unwrap_or("without a message"));
    }));
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            if record.level() <= Level::Warn {
                warnings::keep(&record.args().to_string());
            }
            let line = line(SystemTime::now(), record.level(), record.args());
            // The process that stores the log may wait for a request of its own.
            turn::pass();
            // An error of the log itself has no place to go.
            let _ = io::stderr().lock().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

fn line(now: SystemTime, level: Level, text: &fmt::Arguments<'_>) -> String {
    let warning = if level == Level::Warn { "warning: " } else { "" };
    format!("{} overlayfs: {warning}{text}\n", Utc(now.duration_since(UNIX_EPOCH).unwrap_or_default()))
}

/// A time since 1970, shown as a date and a time of day.
struct Utc(Duration);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0.as_secs() / 86400, self.0.as_secs() % 86400);
        // Here a year begins in March, so that a leap day is its last day. 400 years have 146,097
        // days.
        let day = days + 719_468;
        let (era, day) = (day / 146_097, day % 146_097);
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day + 2) / 153;
        let day = day - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = era * 400 + year + next;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let millis = self.0.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_it_was_written() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00.250Z"),
            (951_782_399, "2000-02-28T23:59:59.250Z"),
            (951_782_400, "2000-02-29T00:00:00.250Z"),
            (951_868_800, "2000-03-01T00:00:00.250Z"),
            (1_798_761_599, "2026-12-31T23:59:59.250Z"),
            (4_107_542_400, "2100-03-01T00:00:00.250Z"),
        ] {
            assert_eq!(Utc(Duration::new(seconds, 250_000_000)).to_string(), date);
        }
        let text = line(UNIX_EPOCH, Level::Warn, &format_args!("late"));
        assert_eq!(text, "1970-01-01T00:00:00.000Z overlayfs: warning: late\n");
    }
}
