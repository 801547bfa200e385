//! The daemon that serves an overlay as a scheme of a Redox system, and the commands for it.

use std::process::ExitCode;

use overlayfs::client::Line;
use overlayfs::client::run::{Asked, Run};
use overlayfs::control::options::Request;
use overlayfs::options::{Arguments, Command};
use overlayfs::usage::overlayfs::PROGRAM;

fn main() -> ExitCode {
    let done = match Line::parse(std::env::args_os().skip(1)) {
        Ok(Line::Daemon(Command::Help) | Line::Run(Asked::Help)) => {
            print!("{}", PROGRAM.help());
            return ExitCode::SUCCESS;
        }
        Ok(Line::Daemon(Command::Version)) => {
            println!("overlayfs {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Ok(Line::Daemon(Command::Serve(arguments))) => serve(arguments),
        Ok(Line::Control(request)) => control(request),
        Ok(Line::Run(Asked::Run(program))) => run(program),
        Err(error) => return fail(&format!("{error} See overlayfs --help.")),
    };
    done.unwrap_or_else(|sentence| fail(&sentence))
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

#[cfg(target_os = "redox")]
fn control(request: Request) -> Result<ExitCode, String> {
    overlayfs::client::perform(&request).map(|()| ExitCode::SUCCESS)
}

#[cfg(target_os = "redox")]
fn run(program: Run) -> Result<ExitCode, String> {
    // SAFETY: the process has no other thread yet.
    unsafe { overlayfs::client::run::run(&program) }
}

#[cfg(not(target_os = "redox"))]
fn serve(_: Arguments) -> Result<ExitCode, String> {
    elsewhere()
}

#[cfg(not(target_os = "redox"))]
fn control(_: Request) -> Result<ExitCode, String> {
    elsewhere()
}

#[cfg(not(target_os = "redox"))]
fn run(_: Run) -> Result<ExitCode, String> {
    elsewhere()
}

#[cfg(not(target_os = "redox"))]
fn elsewhere() -> Result<ExitCode, String> {
    Err("This is the daemon for Redox, and it needs a Redox kernel. On Linux, overlayfs-fuse mounts the same overlay."
        .to_owned())
}
