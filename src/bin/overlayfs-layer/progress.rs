//! The progress of long work on standard error: a bar on a terminal, otherwise a line now and then.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use overlayfs::layer_tools::Progress;

/// The time before the first sign of progress. Short work shows none.
const PATIENCE: Duration = Duration::from_millis(500);
/// The time between two changes of the bar, and between two lines.
const BAR_PAUSE: Duration = Duration::from_millis(100);
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// The form of the progress.
enum Form {
    /// A bar on a terminal.
    Bar(ProgressBar),
    Lines,
    None,
}

/// The progress that a person sees.
pub struct Shown {
    form: Form,
    started: Instant,
    all: Cell<Progress>,
    done: Cell<Progress>,
    next: Cell<Instant>,
}

impl Shown {
    /// Begins at zero. Shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let (form, first) = match (quiet, is_terminal) {
            (true, _) => (Form::None, PATIENCE),
            (false, true) => {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
                (Form::Bar(bar.with_style(style(SPINNER))), PATIENCE)
            }
            (false, false) => (Form::Lines, LINE_PAUSE),
        };
        let started = Instant::now();
        let (all, done) = (Cell::default(), Cell::default());
        Shown { form, started, all, done, next: Cell::new(started + first) }
    }

    /// Whether a person can see it.
    pub fn is_visible(&self) -> bool {
        !matches!(self.form, Form::None)
    }

    /// Takes in the amount of work.
    pub fn expect(&self, all: Progress) {
        self.all.set(all);
    }

    /// Counts work that is done.
    pub fn advance(&self, more: Progress) {
        let Progress { objects, bytes } = self.done.get();
        let done = Progress { objects: objects + more.objects, bytes: bytes + more.bytes };
        self.done.set(done);
        let now = Instant::now();
        if now < self.next.get() {
            return;
        }
        let pause = match &self.form {
            Form::Bar(bar) => {
                self.draw(bar, now);
                BAR_PAUSE
            }
            Form::Lines => {
                eprintln!("overlayfs-layer: {}", self.text(now));
                LINE_PAUSE
            }
            Form::None => LINE_PAUSE,
        };
        self.next.set(now + pause);
    }

    /// Returns the way to print beside the progress.
    pub fn aside(&self) -> Aside {
        match &self.form {
            Form::Bar(bar) => Aside(Some(bar.clone())),
            Form::Lines | Form::None => Aside(None),
        }
    }

    /// Removes the bar.
    pub fn end(&self) {
        if let Form::Bar(bar) = &self.form {
            bar.finish_and_clear();
        }
    }

    fn draw(&self, bar: &ProgressBar, now: Instant) {
        if let Some((part, whole)) = self.parts() {
            if bar.length().is_none() {
                bar.set_style(style(BAR));
            }
            bar.set_length(whole);
            bar.set_position(part);
        }
        bar.set_message(self.text(now));
        if bar.is_hidden() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        bar.tick();
    }

    /// Returns the part that is done and the whole: bytes, or objects if there are no bytes. None
    /// if the whole is unknown.
    fn parts(&self) -> Option<(u64, u64)> {
        let (all, done) = (self.all.get(), self.done.get());
        match all {
            Progress { bytes: 0, objects: 0 } => None,
            Progress { bytes: 0, objects } => Some((done.objects.min(objects), objects)),
            Progress { bytes, .. } => Some((done.bytes.min(bytes), bytes)),
        }
    }

    fn text(&self, now: Instant) -> String {
        let (all, done) = (self.all.get(), self.done.get());
        let Some((part, whole)) = self.parts() else {
            return format!("{}, {} files", BinaryBytes(done.bytes), done.objects);
        };
        let left = match part {
            0 => String::new(),
            part => {
                let left = (now - self.started).mul_f64((whole - part) as f64 / part as f64);
                format!(", {} left", HumanDuration(left))
            }
        };
        let (bytes, all_bytes) = (BinaryBytes(done.bytes), BinaryBytes(all.bytes));
        // An archive does not say how many files it has.
        let files = match all.objects {
            0 => done.objects.to_string(),
            all => format!("{} of {all}", done.objects),
        };
        format!("{bytes} of {all_bytes}, {files} files{left}")
    }
}

/// The way to print to a terminal that may show a bar.
pub struct Aside(Option<ProgressBar>);

impl Aside {
    /// Calls `print`, which may write to the terminal.
    pub fn print<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

/// The forms of the bar for work of a known and of an unknown size.
const BAR: &str = "{wide_bar} {msg}";
const SPINNER: &str = "{spinner} {msg}";

/// Returns the style of one of these forms. A test parses them all.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(all: Progress, done: Progress) -> Shown {
        let shown = Shown::new(true);
        shown.expect(all);
        shown.advance(done);
        shown
    }

    #[test]
    fn the_text_has_bytes_files_and_the_time_left() {
        let all = Progress { objects: 8, bytes: 4 << 20 };
        let shown = shown(all, Progress { objects: 2, bytes: 1 << 20 });
        let after = shown.started + Duration::from_secs(10);
        assert_eq!(shown.text(after), "1.00 MiB of 4.00 MiB, 2 of 8 files, 30 seconds left");
    }

    #[test]
    fn work_of_unknown_size_has_no_time_left() {
        let shown = shown(Progress::default(), Progress { objects: 3, bytes: 512 });
        assert_eq!(shown.text(shown.started), "512 B, 3 files");
    }

    #[test]
    fn objects_without_bytes_count() {
        let shown = shown(Progress { objects: 4, bytes: 0 }, Progress { objects: 1, bytes: 0 });
        assert_eq!(shown.parts(), Some((1, 4)));
    }

    #[test]
    fn the_bar_has_valid_forms() {
        assert!([BAR, SPINNER].iter().all(|template| ProgressStyle::with_template(template).is_ok()));
    }
}
