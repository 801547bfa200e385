//! Log lines about copy-ups that take long.

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The number of bytes between two checks for a log line or a cancellation. Smaller copies log
/// nothing.
pub const PIECE: u64 = 16 << 20;

/// The time between two log lines.
const PAUSE: Duration = Duration::from_secs(1);

/// The progress of the copy of one file.
pub struct Progress {
    path: PathBuf,
    size: u64,
    started: Instant,
    said: Instant,
}

impl Progress {
    /// Begins at `now` to copy `size` bytes of the file `path`.
    pub fn new(path: PathBuf, size: u64, now: Instant) -> Self {
        Self { path, size, started: now, said: now }
    }

    /// Returns the line to log at `now`, after `bytes` are copied. None if the last line is recent.
    pub fn copied(&mut self, bytes: u64, now: Instant) -> Option<String> {
        if now - self.said < PAUSE {
            return None;
        }
        self.said = now;
        Some(format!("copying up {}: {} of {} MiB", self.path.display(), bytes >> 20, self.size >> 20))
    }

    /// Returns the line to log at the end.
    pub fn done(&self, now: Instant) -> String {
        let seconds = (now - self.started).as_secs_f64();
        format!("copied up {}: {} MiB in {seconds:.1} s", self.path.display(), self.size >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_every_second_and_at_the_end() {
        let start = Instant::now();
        let after = |tenths: u64| start + Duration::from_millis(100 * tenths);
        let mut progress = Progress::new("dir/file".into(), 300 << 20, start);
        assert_eq!(progress.copied(PIECE, after(9)), None);
        assert_eq!(progress.copied(8 * PIECE, after(11)), Some("copying up dir/file: 128 of 300 MiB".to_owned()));
        assert_eq!(progress.copied(9 * PIECE, after(20)), None);
        assert_eq!(progress.copied(16 * PIECE, after(21)), Some("copying up dir/file: 256 of 300 MiB".to_owned()));
        assert_eq!(progress.done(after(25)), "copied up dir/file: 300 MiB in 2.5 s");
    }
}
