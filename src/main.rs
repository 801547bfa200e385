//! The daemon that serves an overlay as a scheme of a Redox system.

use std::process::ExitCode;

use overlayfs::options::{Arguments, Command};
use overlayfs::usage::overlayfs::PROGRAM;

fn main() -> ExitCode {
    match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => {
            print!("{}", PROGRAM.help());
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            println!("overlayfs {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Command::Serve(arguments)) => match serve(arguments) {
            Ok(code) => code,
            Err(sentence) => fail(&sentence),
        },
        Err(error) => fail(&format!("{error} See overlayfs --help.")),
    }
}

fn fail(sentence: &str) -> ExitCode {
    eprintln!("overlayfs: {sentence}");
    ExitCode::FAILURE
}

#[cfg(target_os = "redox")]
fn serve(arguments: Arguments) -> Result<ExitCode, String> {
    use overlayfs::daemon::{Init, Kept, keep, remove_name, run, start_log};
    use overlayfs::layer_tools::ending::Planned;

    let ending = Planned::new(&arguments.options).map_err(|error| format!("The option --on-exit: {error}."))?;
    // SAFETY: the process has no other thread yet.
    let init = unsafe { Init::from_environment() };
    let as_child = |kept: Kept| {
        start_log(arguments.verbose);
        match run(&arguments, init, kept) {
            Ok(()) => ExitCode::SUCCESS,
            Err(sentence) => fail(&sentence),
        }
    };
    // SAFETY: the process has no other thread yet.
    unsafe { keep(arguments.detach, as_child, || ending.make(), || remove_name(&arguments.name)) }
}

#[cfg(not(target_os = "redox"))]
fn serve(_: Arguments) -> Result<ExitCode, String> {
    Err("This is the daemon for Redox, and it needs a Redox kernel. On Linux, overlayfs-fuse mounts the same overlay."
        .to_owned())
}
