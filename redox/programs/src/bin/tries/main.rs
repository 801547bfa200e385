//! tries COMMAND ARGUMENT...: runs a check that needs more than one line of a transcript. Each
//! command prints one line, or fails with a sentence.

mod churn;
mod contexts;
mod files;
mod latency;
mod mapping;
mod pattern;
mod socket;

use std::process::ExitCode;

pub type Answer = Result<String, Box<dyn std::error::Error>>;

/// The list of commands, for the error of an unknown command.
const COMMANDS: &str = "\
pattern-make FILE KIB              writes a file of a pattern
pattern-check FILE KIB [OFFSET LENGTH]  the file is the pattern, but for a range of Z
poke FILE OFFSET LENGTH            writes a range of Z, and syncs
fill FILE                          writes until the filesystem is full
many DIR COUNT                     makes files and lists them
overwrite DIR                      gives new contents to all files in a directory
change DIR                         changes the first bytes of all files in a directory
names DIR                          odd names
locks FILE                         flock of two descriptors
mapping FILE                       shared mappings of one process
mapping-shared FILE                shared mappings of two processes
socket DIR                         binds a socket in a directory and talks through it
beside BIG SMALL                   how long stat and read of SMALL take while BIG is copied up
stat-for PATH MS                   how long stat takes
churn DIR THREADS SECONDS          changes of all kinds, all answers checked
spin PATH SECONDS                  opens a path without a pause, until it was there 100 times
signal PROGRAM SIGNAL [all|first|last] to the processes of a program
contexts MS                        after a time, what the kernel says all threads wait for";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(answer) => println!("{answer}"),
        Err(error) => {
            println!("{} failed: {error}", words.join(" "));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(words: &[&str]) -> Answer {
    match *words {
        ["pattern-make", file, kib] => pattern::make(file, kib.parse()?),
        ["pattern-check", file, kib] => pattern::check(file, kib.parse()?, 0..0),
        ["pattern-check", file, kib, offset, length] => {
            let offset: u64 = offset.parse()?;
            pattern::check(file, kib.parse()?, offset..offset + length.parse::<u64>()?)
        }
        ["poke", file, offset, length] => pattern::poke(file, offset.parse()?, length.parse()?),
        ["fill", file] => files::fill(file),
        ["many", dir, count] => files::many(dir, count.parse()?),
        ["overwrite", dir] => files::overwrite(dir),
        ["change", dir] => files::change(dir),
        ["names", dir] => files::names(dir),
        ["locks", file] => files::locks(file),
        ["mapping", file] => mapping::one_process(file),
        ["mapping-shared", file] => mapping::two_processes(file),
        ["mapping-peer", file] => mapping::peer(file),
        ["socket", dir] => socket::talk(dir),
        ["beside", big, small] => latency::beside(big, small),
        ["stat-for", path, ms] => latency::stat_for(path, ms.parse()?),
        ["churn", dir, threads, seconds] => churn::run(dir, threads.parse()?, seconds.parse()?),
        ["spin", path, seconds] => latency::spin(path, seconds.parse()?),
        ["signal", program, signal] => contexts::signal(program, signal.parse()?, "all"),
        ["signal", program, signal, which] => contexts::signal(program, signal.parse()?, which),
        ["contexts", ms] => contexts::watch(ms.parse()?),
        _ => Err(format!("there is no such command; there are:\n{COMMANDS}").into()),
    }
}
