//! An upper layer on some lower ones, all made by random work in overlays.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

use overlayfs::format::Wanted;
use overlayfs::layer::OsLayer;
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::overlay::{Overlay, Settings};
use test_common::{Random, Setup};

use crate::tree::{Tree, tree};
use crate::work::work;

/// The layers of a case, in a filesystem of its own.
pub struct Case {
    pub setup: Setup,
    /// Topmost first.
    pub lowers: Vec<PathBuf>,
}

impl Case {
    /// Makes `lowers` lower layers in these formats, the lowest first, then an upper layer. Each
    /// has the changes of so many steps; a lower one of twice as many.
    pub fn new(seed: u64, lowers: usize, formats: &[Wanted], upper: Wanted, steps: usize) -> Self {
        let mut random = Random(seed);
        let mut case = Case { setup: Setup::in_memory(), lowers: Vec::new() };
        for layer in 0..lowers {
            let upper = case.setup.dir(&format!("lower{layer}"));
            let options = Options {
                upper: Some(upper.clone()),
                work: Some(case.setup.dir(&format!("lower{layer}.work"))),
                lowers: case.lowers.clone(),
                format: Some(formats[layer % formats.len()]),
                ..Options::default()
            };
            work(&mount(&options), &mut random, 2 * steps);
            case.lowers.insert(0, upper);
        }
        work(&mount(&Options { format: Some(upper), ..case.options() }), &mut random, steps);
        case
    }

    /// Returns the options of a mount, which finds the format of the upper layer itself.
    pub fn options(&self) -> Options {
        Options {
            upper: Some(self.setup.dir("upper")),
            work: Some(self.setup.dir("work")),
            lowers: self.lowers.clone(),
            trusted: true,
            ..Options::default()
        }
    }

    /// Returns what a mount shows.
    pub fn shown(&self) -> Tree {
        tree(&mount(&self.options()))
    }

    /// Returns a program with these words and the layers, without the work directory.
    pub fn command(&self, program: &str, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(program);
        command.args(words).arg("--upper").arg(self.setup.path("upper"));
        for lower in &self.lowers {
            command.arg("--lower").arg(lower);
        }
        command
    }
}

/// Returns the exit status of a command, and what it printed to both streams.
pub fn outcome(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

pub fn mount(options: &Options) -> Overlay<OsLayer> {
    let Options { trusted, format, .. } = *options;
    Overlay::with_settings(open_layers(options, true).unwrap(), Settings { trusted, format, ..Settings::default() })
        .unwrap()
}

/// Returns the seeds of the cases of a test. The variable OVERLAYFS_CASES sets their number.
pub fn seeds(first: u64) -> std::ops::Range<u64> {
    let count = std::env::var("OVERLAYFS_CASES").ok().and_then(|count| count.parse().ok());
    first..first + count.unwrap_or(16)
}
