//! The observer of a subcommand: tells its progress, and takes the wish to stop.

use std::cell::Cell;
use std::io::{self, StdoutLock, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};
use overlayfs::layer_tools::{Progress, Watch};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::STOPPED;
use super::progress::{Aside, Shown};

pub struct Observer {
    shown: Shown,
    stop: Arc<AtomicBool>,
    /// Whether the user knows that the work is about to stop.
    told: Cell<bool>,
}

impl Observer {
    /// Begins to observe. The first SIGINT or SIGTERM asks the subcommand to stop, the second one
    /// ends the process at once.
    pub fn new(quiet: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the first signal must find the flag unset.
            let taken = flag::register_conditional_shutdown(signal, STOPPED.into(), stop.clone())
                .and_then(|_| flag::register(signal, stop.clone()));
            if let Err(error) = taken {
                eprintln!("overlayfs-layer: signal {signal} will end the work at once: {error}.");
            }
        }
        let shown = Shown::new(quiet);
        // Nothing else in this process sets a logger.
        if log::set_logger(Box::leak(Box::new(Warnings(shown.aside())))).is_ok() {
            log::set_max_level(LevelFilter::Warn);
        }
        Observer { shown, stop, told: Cell::new(false) }
    }

    /// Returns standard output, which takes a listing beside the progress.
    pub fn output(&self) -> Output {
        Output { aside: self.shown.aside(), out: io::stdout().lock() }
    }

    /// Takes the progress away.
    pub fn end(&self) {
        self.shown.end();
    }
}

impl Watch for Observer {
    fn wants_total(&self) -> bool {
        self.shown.is_visible()
    }

    fn expect(&self, all: Progress) {
        self.shown.expect(all);
    }

    fn advance(&self, done: Progress) {
        self.shown.advance(done);
    }

    fn wants_stop(&self) -> bool {
        let wanted = self.stop.load(Ordering::Relaxed);
        if wanted && !self.told.replace(true) {
            log::warn!("stopping at the next point from which the work can go on. A second signal ends it at once");
        }
        wanted
    }
}

/// Standard output. A listing on the terminal does not mix with the progress there.
pub struct Output {
    aside: Aside,
    out: StdoutLock<'static>,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.aside.print(|| self.out.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.aside.print(|| self.out.flush())
    }
}

/// The warnings of the engine and of the subcommands, as sentences on standard error.
struct Warnings(Aside);

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.print(|| eprintln!("overlayfs-layer: {}.", record.args()));
        }
    }

    fn flush(&self) {}
}
