//! transcript FILE: runs the commands of a file, one a line. transcript -c COMMAND: runs one
//! command. Prints each command with its answer, and `scripts/redox-vm` compares the answers.
//!
//! There is no quoting: spaces separate words. A command prints `$ COMMAND`, then `= ANSWER` for
//! each line of its answer, or `! ERROR` if it failed.
//!
//! - `run` answers with the output of the program, and with its exit status unless that is success.
//! - `start` lets the program write to the output of this one, for daemons.
//! - `bg` starts a program and does not wait for it. `wait`, `kill` and `end` (SIGTERM) act on the
//!   last started program that still runs.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

type Answer = Result<String, Box<dyn Error>>;

/// The folder of the programs. It is independent of the folder of the check's script.
const PROGRAMS: &str = "/scheme/initfs/bin";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut running = Vec::new();
    match arguments.as_slice() {
        ["-c", command @ ..] if !command.is_empty() => answer(command, &mut running),
        [file] => {
            for line in fs::read_to_string(file)?.lines() {
                println!("$ {line}");
                answer(&line.split_whitespace().collect::<Vec<_>>(), &mut running);
            }
        }
        _ => return Err("Usage: transcript FILE, or transcript -c COMMAND".into()),
    }
    Ok(())
}

fn answer(words: &[&str], running: &mut Vec<Child>) {
    match run(words, running) {
        Ok(answer) => answer.lines().for_each(|line| println!("= {line}")),
        Err(error) => println!("! {error}"),
    }
}

fn run(words: &[&str], running: &mut Vec<Child>) -> Answer {
    let argument = |index: usize| words.get(index).copied().ok_or_else(|| format!("{words:?} lacks an argument"));
    let rest = |index: usize| words.get(index..).unwrap_or_default();
    let mut last = || running.pop().ok_or("nothing was started with bg");
    match argument(0)? {
        "echo" => return Ok(rest(1).join(" ")),
        "sleep" => std::thread::sleep(Duration::from_millis(argument(1)?.parse()?)),

        "cat" => return contents(argument(1)?),
        "ls" => return list(argument(1)?),
        "tree" => return tree(argument(1)?.as_ref()),
        "stat" => return Ok(describe(&fs::metadata(argument(1)?)?)),
        "lstat" => return Ok(describe(&fs::symlink_metadata(argument(1)?)?)),
        "same" => return same(argument(1)?, argument(2)?),
        "readlink" => return Ok(fs::read_link(argument(1)?)?.display().to_string()),
        "canon" => return Ok(fs::canonicalize(argument(1)?)?.display().to_string()),

        "write" => fs::write(argument(1)?, rest(2).join(" "))?,
        "append" => OpenOptions::new().append(true).open(argument(1)?)?.write_all(rest(2).join(" ").as_bytes())?,
        "truncate" => OpenOptions::new().write(true).open(argument(1)?)?.set_len(argument(2)?.parse()?)?,
        "mkdir" => fs::create_dir(argument(1)?)?,
        "rm" => fs::remove_file(argument(1)?)?,
        "rmdir" => fs::remove_dir(argument(1)?)?,
        "rmrf" => fs::remove_dir_all(argument(1)?)?,
        "mv" => fs::rename(argument(1)?, argument(2)?)?,
        "ln" => fs::hard_link(argument(1)?, argument(2)?)?,
        "symlink" => symlink(argument(1)?, argument(2)?)?,
        "cp" => drop(fs::copy(argument(1)?, argument(2)?)?),
        "chmod" => fs::set_permissions(argument(2)?, PermissionsExt::from_mode(u32::from_str_radix(argument(1)?, 8)?))?,

        "run" => return ended(program(argument(1)?).args(rest(2)).stdin(Stdio::inherit()).output()?),
        "env" => {
            let (name, value) = argument(1)?.split_once('=').ok_or("env NAME=VALUE PROGRAM")?;
            return left(program(argument(2)?).args(rest(3)).env(name, value).status()?);
        }
        "as" => {
            let (uid, gid) = (argument(1)?.parse()?, argument(2)?.parse()?);
            return ended(program(argument(3)?).args(rest(4)).uid(uid).gid(gid).stdin(Stdio::inherit()).output()?);
        }
        "start" => return left(program(argument(1)?).args(rest(2)).status()?),
        "bg" => {
            let command = &mut program(argument(1)?);
            running.push(command.args(rest(2)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?);
        }
        "wait" => return ended(last()?.wait_with_output()?),
        "kill" => {
            let mut child = last()?;
            child.kill()?;
            return ended(child.wait_with_output()?);
        }
        "end" => {
            let child = last()?;
            // SAFETY: a plain call. The child was not waited for, so the number is still the
            // child's.
            if unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) } != 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            return ended(child.wait_with_output()?);
        }
        other => return Err(format!("unknown command {other}").into()),
    }
    Ok(String::new())
}

/// Returns the command for a program of the initfs by its name, or for another program by its path.
fn program(name: &str) -> Command {
    if name.contains('/') { Command::new(name) } else { Command::new(format!("{PROGRAMS}/{name}")) }
}

/// Returns the output of a program, and its status if it failed.
fn ended(output: Output) -> Answer {
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    Ok(format!("{}\n{}", printed.trim_end(), left(output.status)?).trim().to_owned())
}

/// Describes the status of a program that failed.
fn left(status: ExitStatus) -> Answer {
    Ok(if status.success() { String::new() } else { status.to_string() })
}

fn contents(path: &str) -> Answer {
    let mut text = String::new();
    fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(format!("{text:?}"))
}

fn list(path: &str) -> Answer {
    let names: BTreeSet<String> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    Ok(names.into_iter().collect::<Vec<_>>().join(" "))
}

/// Reads everything below a directory, and returns the number of entries and bytes.
fn tree(path: &Path) -> Answer {
    fn walk(path: &Path, entries: &mut u64, bytes: &mut u64) -> std::io::Result<()> {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            let kind = fs::symlink_metadata(&path)?.file_type();
            *entries += 1;
            if kind.is_dir() {
                walk(&path, entries, bytes)?;
            } else if kind.is_file() {
                *bytes += fs::read(&path)?.len() as u64;
            }
        }
        Ok(())
    }
    let (mut entries, mut bytes) = (0, 0);
    walk(path, &mut entries, &mut bytes)?;
    Ok(format!("{entries} entries, {bytes} bytes"))
}

fn describe(meta: &fs::Metadata) -> String {
    format!("{:o} {}:{} nlink={} size={}", meta.mode(), meta.uid(), meta.gid(), meta.nlink(), meta.size())
}

/// Compares the files of two names: same or different.
fn same(one: &str, other: &str) -> Answer {
    let (one, other) = (fs::metadata(one)?, fs::metadata(other)?);
    Ok(if (one.dev(), one.ino()) == (other.dev(), other.ino()) { "same" } else { "different" }.to_owned())
}
