//! Checks the upper directory of an overlay, and repairs it. The exit status has the bits of
//! fsck(8).

use std::io;
use std::path::Path;
use std::process::ExitCode;

use overlayfs::format;
use overlayfs::fsck::beside::{self, Left};
use overlayfs::fsck::options::Command;
use overlayfs::fsck::{Checker, Finding};
use overlayfs::layer::{self, OsLayer};
use overlayfs::mount::open_layers;
use overlayfs::options::Options;
use overlayfs::usage::fsck::PROGRAM;

const REPAIRED: u8 = 1;
const LEFT: u8 = 4;
const FAILED: u8 = 8;
const USAGE: u8 = 16;

fn main() -> ExitCode {
    match Command::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => print!("{}", PROGRAM.help()),
        Ok(Command::Version) => println!("overlayfs-fsck {}", env!("CARGO_PKG_VERSION")),
        Ok(Command::Check { options, repair }) => {
            let mut code = 0;
            if let Err(sentence) = run(&options, repair, &mut code) {
                eprintln!("overlayfs-fsck: {sentence}.");
                code |= FAILED;
            }
            return code.into();
        }
        Err(error) => {
            eprintln!("overlayfs-fsck: {error} See overlayfs-fsck --help.");
            return USAGE.into();
        }
    }
    ExitCode::SUCCESS
}

/// Runs the check, and the repairs if `repair`. Sets the bits of `code` at once, so that they are
/// right even after a later error.
fn run(options: &Options, repair: bool, code: &mut u8) -> Result<(), String> {
    let layers = open_layers(options, repair).map_err(|error| error.to_string())?;
    let upper = options.upper.clone().unwrap_or_default();
    let work = options.work.clone().unwrap_or_else(|| upper.join(format::WORK));
    let unread = |cause: &dyn std::fmt::Display| format!("{} cannot be checked: {cause}", upper.display());
    let checker = Checker::new(layers).map_err(|refused| unread(&refused))?;
    if checker.is_in_use() {
        if repair {
            return Err(format!(
                "{} is in use by another overlay, so it cannot be repaired: unmount that one first",
                upper.display()
            ));
        }
        println!("{} is mounted: its tree is checked as it is now, the work directory is not.", upper.display());
    }
    if let Some(difference) = checker.other_layers() {
        println!(
            "{} was mounted last on other lower layers: {difference}. Damage that depends on them is not repaired.",
            upper.display()
        );
    }
    let findings = checker.check().map_err(|error| unread(&cause(error)))?;
    let at = |finding: &Finding<_>| if finding.in_work { &work } else { &upper }.join(&finding.path);
    if !findings.is_empty() {
        *code |= LEFT;
    }
    for finding in &findings {
        if treat(&checker, finding, &at(finding), repair, "repaired")? {
            *code |= REPAIRED;
        }
    }
    for unused in checker.unused().map_err(|error| unread(&cause(error)))? {
        treat(&checker, &unused, &at(&unused), repair, "removed")?;
    }
    let mut beside = 0;
    for lower in &options.lowers {
        let found = beside::find(lower).map_err(|error| format!("{} cannot be checked: {error}", lower.display()))?;
        for left in found {
            match treat_beside(&left, repair)? {
                true => *code |= REPAIRED,
                false => beside += 1,
            }
        }
    }
    let left = if repair { checker.check().map_err(|error| unread(&cause(error)))? } else { findings };
    *code = *code & !LEFT | if left.is_empty() && beside == 0 { 0 } else { LEFT };
    if *code & REPAIRED != 0 {
        println!("Damage was repaired.");
    }
    match left.len() {
        0 => println!("{} has no damage.", upper.display()),
        count => println!("{} has damage: {count} finding{}.", upper.display(), if count == 1 { "" } else { "s" }),
    }
    Ok(())
}

/// Prints a finding, and repairs it if `repairs`. Returns whether it was repaired; `done` is the
/// word for that in an error.
fn treat(
    checker: &Checker<OsLayer>,
    finding: &Finding<OsLayer>,
    path: &Path,
    repairs: bool,
    done: &str,
) -> Result<bool, String> {
    say(path, finding, repairs);
    let Some(repair) = finding.repair.as_ref().filter(|_| repairs) else { return Ok(false) };
    let repaired = checker.repair(repair);
    repaired.map(|()| true).map_err(|error| format!("{} cannot be {done}: {}", path.display(), cause(error)))
}

/// Prints what a commit has left, and removes it if `repairs` and nothing needs it. Returns whether
/// it was removed.
fn treat_beside(left: &Left, repairs: bool) -> Result<bool, String> {
    print!("{}: {left}. ", left.path.display());
    match (left.is_needless, repairs) {
        (false, _) => println!("Left alone."),
        (true, false) => println!("With -y: remove it."),
        (true, true) => {
            println!("Repair: remove it.");
            let removed =
                left.remove().map_err(|error| format!("{} cannot be removed: {}", left.path.display(), cause(error)));
            return removed.map(|()| true);
        }
    }
    Ok(false)
}

fn say(path: &Path, finding: &Finding<OsLayer>, repairs: bool) {
    let loss = if finding.damage.is_loss() { " (a loss)" } else { "" };
    print!("{}: {}{loss}. ", path.display(), finding.damage);
    match &finding.repair {
        Some(repair) if repairs => println!("Repair: {repair}."),
        Some(repair) => println!("With -y: {repair}."),
        None => println!("Left alone."),
    }
}

fn cause(error: layer::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno)
}
