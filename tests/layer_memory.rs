//! The memory that `overlayfs-layer` takes for each further file.
//!
//! The test counts the bytes of the heap at two sizes of a layer, so it needs neither a million
//! files nor time. A cache that a large layer fills is not full at these sizes. So a limit here is
//! above what each of a million files takes; `docs/layers.md` tells that.

#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use overlayfs::layer_tools::options::Command;
use test_common::Setup;

#[path = "../benches/layers/shapes.rs"]
mod shapes;

use shapes::{COMMANDS, SHAPES};

/// The files of the smaller layer. The larger one has twice as many.
const FILES: usize = 4000;

/// The most bytes for each further file, by the layers and the subcommand.
const LIMITS: [(&str, &[(&str, usize)]); 5] = [
    ("copies", &[("info", 4), ("diff", 48), ("vacuum", 14), ("commit --into", 10), ("commit --include", 12)]),
    ("links", &[("info", 8), ("diff", 22), ("commit --into", 24), ("commit --include", 45)]),
    (
        "copied-links",
        &[
            ("info", 8),
            ("diff", 66),
            ("export", 55),
            ("vacuum", 104),
            ("flatten", 34),
            ("commit --into", 42),
            ("commit --include", 75),
            ("convert --to kernel", 68),
        ],
    ),
    ("whiteouts", &[("diff", 22), ("commit --include", 42)]),
    ("renamed", &[("commit --include", 75)]),
];

/// The allocator of the system, which counts the bytes in use.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn add(bytes: usize) {
    PEAK.fetch_max(USED.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

// SAFETY: the allocator of the system does all the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The system moves large blocks without a copy.
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        add(size);
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a subcommand. Returns the most bytes that it had in use at once.
fn measure(words: &[&str]) -> usize {
    let command = Command::parse(words.iter().map(OsString::from));
    let Ok(Command::Run { tool, .. }) = command else { panic!("{words:?} is no command") };
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    tool.run(&mut io::sink(), &()).unwrap_or_else(|error| panic!("{words:?}: {error}"));
    PEAK.load(Ordering::Relaxed) - before
}

/// Returns the bytes of the subcommands at layers with so many files, in the order of the table.
fn peaks(layers: &str, wanted: &[(&str, usize)], files: usize) -> Vec<usize> {
    let (_, make) = SHAPES.iter().find(|(name, _)| *name == layers).unwrap();
    let setup = Setup::in_memory();
    std::env::set_current_dir(setup.root()).unwrap();
    let mut peaks = Vec::new();
    // Each group runs at the same layers.
    for group in COMMANDS.chunk_by(|_, (.., needs_new)| !needs_new) {
        let rows = group.iter().filter(|(name, ..)| wanted.iter().any(|(wanted, _)| wanted == name));
        for (at, (_, command, arguments, _)) in rows.enumerate() {
            if at == 0 {
                for dir in ["lower", "upper", "copy", "flat", "work"] {
                    let _ = fs::remove_dir_all(dir);
                    fs::create_dir(dir).unwrap();
                }
                make(setup.root(), files).unwrap();
            }
            peaks.push(measure(&[&[*command, "--lower", "lower", "--upper", "upper"], *arguments].concat()));
        }
    }
    std::env::set_current_dir("/").unwrap();
    peaks
}

#[test]
fn each_further_file_takes_a_few_bytes() {
    let mut above = Vec::new();
    for (layers, limits) in LIMITS {
        let [small, large] = [FILES, 2 * FILES].map(|files| peaks(layers, limits, files));
        for ((name, limit), (small, large)) in limits.iter().zip(small.into_iter().zip(large)) {
            let each = large.saturating_sub(small) / FILES;
            println!("{name} at {layers}: {each} bytes for each file");
            if each > *limit {
                above.push(format!("{name} at {layers}: {each} bytes instead of {limit}"));
            }
        }
    }
    assert!(above.is_empty(), "{above:#?}");
}
