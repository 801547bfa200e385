//! tries COMMAND ARGUMENT...: runs a check that needs more than one line of a transcript. Each
//! command prints one line, or fails with a sentence.

mod churn;
mod contexts;
mod files;
mod interrupt;
mod latency;
mod mapping;
mod pattern;
mod snapshots;
mod socket;
mod terminal;

use std::process::ExitCode;

pub type Answer = Result<String, Box<dyn std::error::Error>>;

/// The list of commands, for the error of an unknown command.
const COMMANDS: &str = "\
pattern-make FILE KIB              writes a file with a pattern
pattern-check FILE KIB [OFFSET LENGTH]  checks the pattern of a file, with a range of Z if given
poke FILE OFFSET LENGTH            writes a range of Z, and syncs
fill FILE                          writes until the filesystem is full
many DIR COUNT                     makes files and lists them
create DIR COUNT                   measures creations and removals of empty files
overwrite DIR                      gives new contents to all files in a directory
change DIR                         changes the first bytes of all files in a directory
names DIR                          creates, reads and removes odd names
locks FILE                         locks a file through two descriptors with flock
mapping FILE                       checks shared mappings of one process
mapping-shared FILE                checks shared mappings of two processes
held DIR NAME                      makes a snapshot of the overlay NAME with files in DIR open
rolled-back DIR NAME               rolls the overlay back with files of `held` open
snapshots NAME COUNT MS            makes snapshots, each after a pause
socket DIR                         binds a socket in a directory and talks through it
interrupt FILE MS                  sends a signal to a process that copies a file up
beside BIG SMALL                   prints the times of stat and read of SMALL during a copy-up of BIG
stat-for PATH MS                   prints the times of stat
churn DIR THREADS SECONDS          makes changes of all kinds, and checks all answers
spin PATH SECONDS                  opens a path without a pause, until 100 opens have succeeded
signal PROGRAM SIGNAL [all|first|last]  sends a signal to the processes of a program
terminal PROGRAM ARGUMENT... / WORD...  types lines to a program on a pseudo-terminal
memory PROGRAM                     prints the KiB of memory that each process of a program has
contexts MS                        waits, then prints what each thread waits for";

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
        ["create", dir, count] => files::create(dir, count.parse()?),
        ["overwrite", dir] => files::overwrite(dir),
        ["change", dir] => files::change(dir),
        ["names", dir] => files::names(dir),
        ["locks", file] => files::locks(file),
        ["mapping", file] => mapping::one_process(file),
        ["mapping-shared", file] => mapping::two_processes(file),
        ["mapping-peer", file] => mapping::peer(file),
        ["held", dir, name] => snapshots::held(dir, name),
        ["rolled-back", dir, name] => snapshots::rolled_back(dir, name),
        ["snapshots", name, count, ms] => snapshots::many(name, count.parse()?, ms.parse()?),
        ["socket", dir] => socket::talk(dir),
        ["interrupt", file, ms] => interrupt::run(file, ms.parse()?),
        ["interrupted", file] => interrupt::victim(file),
        ["beside", big, small] => latency::beside(big, small),
        ["stat-for", path, ms] => latency::stat_for(path, ms.parse()?),
        ["churn", dir, threads, seconds] => churn::run(dir, threads.parse()?, seconds.parse()?),
        ["spin", path, seconds] => latency::spin(path, seconds.parse()?),
        ["signal", program, signal] => contexts::signal(program, signal.parse()?, "all"),
        ["signal", program, signal, which] => contexts::signal(program, signal.parse()?, which),
        ["terminal", program, ref lines @ ..] => terminal::talk(program, lines),
        ["memory", program] => contexts::memory(program),
        ["contexts", ms] => contexts::watch(ms.parse()?),
        _ => Err(format!("unknown command; the commands are:\n{COMMANDS}").into()),
    }
}
