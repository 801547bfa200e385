//! The commands for snapshots of a mount at work.

use std::io::{self, Write};
use std::path::Path;

use overlayfs::control::fact::Fact;
use overlayfs::control::{Command, snapshots};

use super::{Channel, Mounted, Trouble};

/// Freezes the upper layer of a mount, and prints the name of the snapshot.
pub fn freeze(point: &Path, name: Option<&str>) -> Result<(), Trouble> {
    let channel = Channel::open(&Mounted::at(point)?)?;
    // What programs have written until now belongs to the frozen layer.
    channel.write_back()?;
    let arguments: Vec<_> = name.iter().map(|name| Fact::text("name", *name)).collect();
    print_name(&channel.ask(Command::Snapshot, &arguments)?)
}

/// Goes back to the last snapshot of a mount, and prints its name.
pub fn roll_back(point: &Path) -> Result<(), Trouble> {
    let channel = Channel::open(&Mounted::at(point)?)?;
    // What programs have written until now is rolled back.
    channel.write_back()?;
    print_name(&channel.ask(Command::RollBack, &[])?)
}

/// Prints a line for each snapshot: number, seconds since 1970, name.
pub fn list(point: &Path) -> Result<(), Trouble> {
    let facts = Channel::open(&Mounted::at(point)?)?.ask(Command::Snapshots, &[])?;
    Ok(io::stdout().write_all(snapshots::lines(&facts).as_bytes())?)
}

fn print_name(facts: &[Fact]) -> Result<(), Trouble> {
    let name = snapshots::name_of(facts).ok_or(Trouble::Malformed)?;
    Ok(writeln!(io::stdout(), "{name}")?)
}
