//! The memory of each subcommand at layers with very many files ([`shapes`](super::shapes)).

use std::env;
use std::io::{self, Write};
use std::process::Command;

use super::shapes::{COMMANDS, SHAPES};
use super::{Arguments, Place, empty, run_measured};

/// Prints a table of the largest resident memory, at the layers that are named or at all.
pub fn run(place: &Place, arguments: &Arguments) -> io::Result<()> {
    let Arguments { layers: wanted, kernel, .. } = arguments;
    println!("{} files, memory in MiB\n", place.files);
    println!("| layers | {} |", COMMANDS.map(|(name, ..)| name).join(" | "));
    println!("| --- {}|", "| --- ".repeat(COMMANDS.len()));
    for (name, _) in SHAPES.iter().filter(|(name, _)| wanted.is_empty() || wanted.iter().any(|one| one == name)) {
        print!("| {name} |");
        for (_, command, arguments, needs_new) in COMMANDS {
            if needs_new {
                make_apart(place, name)?;
                if *kernel {
                    run_measured(tool(place, "convert", &["--to", "kernel", "--work", "work"]), place)?;
                }
            }
            let mut tool = tool(place, command, arguments);
            // The kernel's format has its work directory beside the upper one.
            if *kernel && command != "import" && !arguments.contains(&"--work") {
                tool.args(["--work", "work"]);
            }
            print!(" {} |", run_measured(tool, place)?.peak >> 20);
            io::stdout().flush()?;
        }
        println!();
    }
    Ok(())
}

/// Returns the command of `overlayfs-layer` in the folder. `import` needs no layers.
fn tool(place: &Place, command: &str, arguments: &[&str]) -> Command {
    let mut tool = match command {
        "import" => Command::new(env!("CARGO_BIN_EXE_overlayfs-layer")),
        _ => place.tool(command),
    };
    if command == "import" {
        tool.args([command, "--quiet"]);
    }
    tool.current_dir(place.path("")).args(arguments);
    tool
}

/// Makes new layers in another process.
fn make_apart(place: &Place, name: &str) -> io::Result<()> {
    let made =
        Command::new(env::current_exe()?).args(["--make", name, "--files", &place.files.to_string()]).status()?;
    if made.success() { Ok(()) } else { Err(io::Error::other(format!("the layers {name} cannot be made"))) }
}

/// Makes the layers with this name, and empty directories for the results.
pub fn make(place: &Place, name: &str) -> io::Result<()> {
    let (_, make) = SHAPES.iter().find(|(known, _)| *known == name).ok_or(io::ErrorKind::NotFound)?;
    place.make_empty()?;
    for target in ["flat", "copy", "work", "imported"] {
        empty(place.path(target))?;
    }
    make(&place.top, place.files)
}
