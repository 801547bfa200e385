//! Lists, keeps, moves and removes the changes in the upper directory of an overlay.

mod observer;
mod progress;

use std::io::BufWriter;
use std::process::ExitCode;

use observer::Observer;
use overlayfs::layer_tools::options::Command;
use overlayfs::layer_tools::{Error, Outcome};
use overlayfs::usage::layer::PROGRAM;

const DIFFERS: u8 = 1;
const USAGE: u8 = 2;
const FAILED: u8 = 3;
/// As a shell reports a command that SIGINT ended.
const STOPPED: u8 = 130;

fn main() -> ExitCode {
    map_large_blocks();
    match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print!("{}", PROGRAM.help()),
        Ok(Command::Version) => println!("overlayfs-layer {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Run { tool, quiet }) => {
            let observer = Observer::new(quiet);
            let ended = tool.run(&mut BufWriter::new(observer.output()), &observer);
            observer.end();
            match ended {
                Ok(Outcome::Done) => {}
                Ok(Outcome::Differs) => return DIFFERS.into(),
                Err(error) => {
                    eprintln!("overlayfs-layer: {error}.");
                    return if matches!(error, Error::Stopped) { STOPPED } else { FAILED }.into();
                }
            }
        }
        Err(error) => {
            eprintln!("overlayfs-layer: {error} See overlayfs-layer --help.");
            return USAGE.into();
        }
    }
    ExitCode::SUCCESS
}

/// Makes the allocator map large blocks apart, at any time. By itself glibc raises the size of such
/// blocks once one is freed. Then the tables of a large layer leave holes where they grow.
fn map_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call only sets this parameter, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}
