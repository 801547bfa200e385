//! `overlayfs run`: a program in an overlay of the system, and what happens to its changes.
//!
//! There are three processes beside the program:
//!
//! - This one waits for the program, shows its changes, and keeps, discards or commits them.
//! - The supervisor and the daemon serve the overlay, as they do for `overlayfs NAME`. They are in
//!   a session of their own, so the terminal signals neither. The daemon ends when this process
//!   lets a pipe go, also by its death.
//!
//! The program is in a namespace whose `/` is the overlay (`namespace`).

use std::ffi::OsString;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;

use log::LevelFilter;
use redox_scheme::Socket;

use super::namespace::Namespace;
use crate::daemon::{Init, Kept, Lent, Stop, Watcher, keep, remove_name, start_log};
use crate::layer_tools::choice::{Choice, ask};
use crate::layer_tools::ending::Planned;
use crate::layer_tools::summary::{Summary, diff_command, list, quoted};
use crate::mount::resolved;
use crate::options::{Arguments, Ending, Error, Options, unknown};
use crate::process::{Side, fork, wait_for};
use crate::usage::overlayfs::RUN;

/// The schemes of the system that every program reaches. None of them has files of the system, or
/// the network, or other processes.
const SCHEMES: [&str; 8] = ["event", "null", "pipe", "pty", "rand", "shm", "time", "zero"];

/// The schemes of the network.
const NET: [&str; 3] = ["icmp", "tcp", "udp"];

/// The program to which a handler passes a signal.
static PROGRAM: AtomicI32 = AtomicI32::new(0);

/// A program and its overlay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The directories that the program sees as its `/`, topmost first. Empty: that of the system.
    pub lowers: Vec<PathBuf>,
    /// The place of the changes. None: a new directory among temporary files.
    pub upper: Option<PathBuf>,
    /// More schemes that the program reaches.
    pub schemes: Vec<String>,
    /// Whether the program reaches the network.
    pub net: bool,
    /// What happens to the changes. None: as [`Choice::Ask`].
    pub choice: Option<Choice>,
    /// The program and its arguments.
    pub command: Vec<OsString>,
}

/// A command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Show the options.
    Help,
    /// Run the program.
    Run(Run),
}

impl Run {
    /// Parses a command line without its first two words.
    ///
    /// # Errors
    ///
    /// - A sentence names the word that does not fit.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Asked, Error> {
        use lexopt::Arg::{Long, Short, Value};

        let mut run = Run::default();
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Short('h') | Long("help") => return Ok(Asked::Help),
                Long("lower") => run.lowers.push(parser.value()?.into()),
                Long("upper") => run.upper = Some(parser.value()?.into()),
                Long("scheme") => run.schemes.push(parser.value()?.to_string_lossy().into_owned()),
                Long("net") => run.net = true,
                Long("no-net") => run.net = false,
                Long("keep") => run.set_choice(Choice::Keep)?,
                Long("discard") => run.set_choice(Choice::Discard)?,
                Long("commit") => run.set_choice(Choice::Commit)?,
                Long("ask") => run.set_choice(Choice::Ask)?,
                Value(program) => {
                    run.command = std::iter::once(program).chain(parser.raw_args()?).collect();
                    return Ok(Asked::Run(run));
                }
                Short(other) => return Err(Error::new(format!("There is no option -{other}."))),
                Long(other) => return Err(unknown("option", &format!("--{other}"), &RUN.long_words())),
            }
        }
        Err(Error::new("The program to run is missing."))
    }

    fn set_choice(&mut self, choice: Choice) -> Result<(), Error> {
        match self.choice.replace(choice) {
            None => Ok(()),
            Some(_) => Err(Error::new("One of --keep, --discard, --commit and --ask can be given, and once.")),
        }
    }
}

/// The place of the changes. If the run made it, it goes away when it has no use.
struct Upper {
    path: PathBuf,
    is_new: bool,
}

impl Upper {
    fn make(given: Option<&Path>) -> Result<Self, String> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!("overlayfs-run.{}", std::process::id())),
        };
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self { path, is_new: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && given.is_some() => {
                Ok(Self { path, is_new: false })
            }
            Err(error) => Err(format!("The directory {} for the changes cannot be made: {error}.", path.display())),
        }
    }

    /// Removes a directory that the run made.
    fn remove(&self) -> Result<(), String> {
        match self.is_new {
            true => self.done(fs::remove_dir_all(&self.path)),
            false => Ok(()),
        }
    }

    /// Throws the changes away.
    fn discard(&self) -> Result<(), String> {
        if self.is_new {
            return self.remove();
        }
        let remove_all = || {
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                match entry.file_type()?.is_dir() {
                    true => fs::remove_dir_all(entry.path())?,
                    false => fs::remove_file(entry.path())?,
                }
            }
            Ok(())
        };
        self.done(remove_all())
    }

    fn done(&self, removed: io::Result<()>) -> Result<(), String> {
        removed.map_err(|error| format!("The changes in {} cannot be removed: {error}.", self.path.display()))
    }
}

/// Runs the program, and returns its exit code in this process. Also returns in the two processes
/// that serve, at their end. The error is a sentence.
///
/// # Safety
///
/// The process must have one thread.
///
/// # Errors
///
/// The sentence says which step failed.
pub unsafe fn run(run: &Run) -> Result<ExitCode, String> {
    let upper = Upper::make(run.upper.as_deref())?;
    let lowers = if run.lowers.is_empty() { vec![PathBuf::from("/")] } else { run.lowers.clone() };
    let layers = resolved(&Options { lowers, upper: Some(upper.path.clone()), ..Options::default() });
    let ending = Ends::plan(run.choice.unwrap_or(Choice::Ask), &layers).inspect_err(|_| {
        let _ = upper.remove();
    })?;
    let name = format!("run{}", std::process::id());
    // SAFETY: as the caller promises.
    let started = unsafe { serve(&layers, &name) };
    let server = match started.inspect_err(|_| drop(upper.remove()))? {
        Served::Here(server) => server,
        Served::AtItsEnd(code) => return Ok(code),
    };
    let ran = server.ready().and_then(|()| start(run, &name));
    let served = server.end();
    let status = match ran.and_then(|status| served.map(|()| status)) {
        Ok(status) => status,
        Err(sentence) => return Err(stay(&upper, &layers, &sentence)),
    };
    end(&upper, &layers, ending)?;
    Ok(code_of(status))
}

/// What happens to the changes.
enum Ends {
    Keep,
    Discard,
    Commit(Planned),
    Ask,
}

impl Ends {
    /// Checks that the layers can have this ending.
    fn plan(choice: Choice, layers: &Options) -> Result<Self, String> {
        match choice {
            Choice::Keep => Ok(Ends::Keep),
            Choice::Discard => Ok(Ends::Discard),
            Choice::Commit => Planned::new(&Options { on_exit: Ending::Commit, ..layers.clone() })
                .map(Ends::Commit)
                .map_err(|error| format!("The changes cannot be committed: {error}.")),
            Choice::Ask => Ok(Ends::Ask),
        }
    }

    /// Asks the user, until the layers can have the ending.
    fn ask(layers: &Options) -> Self {
        let list_all = || {
            if let Err(error) = list(layers, Path::new("/"), true) {
                eprintln!("The changes cannot be read: {error}.");
            }
        };
        loop {
            match Self::plan(ask(list_all), layers) {
                Ok(ending) => return ending,
                Err(sentence) => eprintln!("{sentence}"),
            }
        }
    }
}

/// Adds to a sentence where the changes are, if there are any.
fn stay(upper: &Upper, layers: &Options, sentence: &str) -> String {
    let mut summary = Summary::default();
    match summary.add(layers, Path::new("/"), true) {
        Ok(()) if summary.count == 0 => {
            let _ = upper.remove();
            sentence.to_owned()
        }
        _ => format!("{sentence} The changes are in {}.", quoted(&upper.path)),
    }
}

/// Returns the code of a shell for the end of a program.
fn code_of(status: ExitStatus) -> ExitCode {
    let signal = status.signal().map(|signal| 128 + signal);
    ExitCode::from(status.code().or(signal).unwrap_or(1) as u8)
}

/// The processes that serve.
struct Server {
    process: libc::pid_t,
    is_ready: PipeReader,
    /// The daemon ends when this is closed.
    wanted: PipeWriter,
}

/// The process in which [`serve`] returns.
enum Served {
    /// The caller's.
    Here(Server),
    /// One that has served, and ends with this code.
    AtItsEnd(ExitCode),
}

/// Starts the processes that serve an overlay as the scheme `name`.
///
/// # Safety
///
/// The process must have one thread.
unsafe fn serve(layers: &Options, name: &str) -> Result<Served, String> {
    let pipe = || io::pipe().map_err(|error| format!("No pipe can be made: {error}."));
    let ((is_ready, ready), (is_wanted, wanted)) = (pipe()?, pipe()?);
    // SAFETY: as the caller promises.
    match unsafe { fork() }.map_err(|error| format!("No process can be started: {error}."))? {
        Side::Parent(process) => Ok(Served::Here(Server { process, is_ready, wanted })),
        Side::Child => {
            drop((is_ready, wanted));
            // SAFETY: the call touches no memory. A child is no leader of a group, so it succeeds.
            unsafe { libc::setsid() };
            let arguments = Arguments {
                options: layers.clone(),
                name: name.to_owned(),
                replace: false,
                detach: false,
                hand_to_init: false,
                protected_hardlinks: true,
                verbose: false,
            };
            let serve = |kept: Kept| {
                start_log(false);
                // The output belongs to the program.
                log::set_max_level(LevelFilter::Warn);
                match crate::daemon::run(&arguments, Init::absent(), Wanted { kept, ready, is_wanted }) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(sentence) => {
                        eprintln!("overlayfs: {sentence}");
                        ExitCode::FAILURE
                    }
                }
            };
            // SAFETY: a child of a process with one thread has one.
            unsafe { keep(false, serve, || Ok(()), || remove_name(name)) }.map(Served::AtItsEnd)
        }
    }
}

/// The daemon of a run: it tells that it is ready, and ends when it is not wanted any more.
struct Wanted {
    kept: Kept,
    ready: PipeWriter,
    is_wanted: PipeReader,
}

impl Watcher for Wanted {
    fn owns_name(&mut self, owns: bool) {
        self.kept.owns_name(owns);
    }

    fn lend(&mut self, socket: &Socket) -> Option<Lent> {
        self.kept.lend(socket)
    }

    fn ready(mut self, stop: Arc<Stop>) {
        self.kept.ready(stop.clone());
        // The call fails if the caller is gone. Then the pipe of the other direction has ended.
        let _ = self.ready.write_all(&[0]);
        thread::spawn(move || {
            // No process writes to it.
            let _ = self.is_wanted.read(&mut [0]);
            stop.stop();
        });
    }
}

impl Server {
    /// Waits until the overlay can be used.
    fn ready(&self) -> Result<(), String> {
        (&self.is_ready).read_exact(&mut [0]).map_err(|_| "The overlay cannot be served.".to_owned())
    }

    /// Ends the daemon, and waits until all is on the disk.
    fn end(self) -> Result<(), String> {
        drop(self.wanted);
        match wait_for(self.process) == ExitCode::SUCCESS {
            true => Ok(()),
            false => Err("The program that served the overlay failed.".to_owned()),
        }
    }
}

/// Runs the program, and waits for its end.
fn start(run: &Run, name: &str) -> Result<ExitStatus, String> {
    let (program, arguments) = run.command.split_first().ok_or("The program to run is missing.")?;
    let net = NET.into_iter().filter(|_| run.net);
    let more = net.chain(run.schemes.iter().map(String::as_str));
    let namespace = Namespace::of(name, &SCHEMES.into_iter().chain(more).collect::<Vec<_>>())
        .map_err(|error| format!("No namespace can be made for the program: {error}."))?;
    let place = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let mut command = std::process::Command::new(program);
    command.args(arguments);
    let enter = move || {
        for signal in [libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: the default has no handler that could do anything.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        namespace.enter().map_err(|error| io::Error::from_raw_os_error(error.errno))?;
        // With other lower directories than `/` the overlay may not have it.
        std::env::set_current_dir(&place).or_else(|_| std::env::set_current_dir("/"))
    };
    // SAFETY: this process has one thread, so the child may do all that this one may.
    unsafe { command.pre_exec(enter) };
    // The terminal sends them to the program, too.
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: an ignored signal has no handler that could do anything.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    let mut child = command.spawn().map_err(|error| format!("{} cannot be run: {error}.", program.display()))?;
    PROGRAM.store(child.id() as i32, Ordering::Relaxed);
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only makes a call that a handler may make.
        unsafe { libc::signal(signal, pass_on as extern "C" fn(libc::c_int) as libc::sighandler_t) };
    }
    child.wait().map_err(|error| format!("The end of {} is not known: {error}.", program.display()))
}

extern "C" fn pass_on(signal: libc::c_int) {
    // SAFETY: a handler may call kill.
    unsafe { libc::kill(PROGRAM.load(Ordering::Relaxed), signal) };
}

/// Shows the changes, and does with them what was chosen.
fn end(upper: &Upper, layers: &Options, ending: Ends) -> Result<(), String> {
    let mut summary = Summary::default();
    if let Err(error) = summary.add(layers, Path::new("/"), true) {
        return Err(format!("The changes stay in {}, since they cannot be read: {error}.", quoted(&upper.path)));
    }
    if summary.count == 0 {
        eprintln!("Nothing changed.");
        return upper.remove();
    }
    eprint!("{}", summary.text(&[diff_command(layers)]));
    match if let Ends::Ask = ending { Ends::ask(layers) } else { ending } {
        Ends::Keep | Ends::Ask => {
            eprintln!("The changes are kept in {}. These commands go on:", quoted(&upper.path));
            eprintln!("  {}", diff_command(layers));
            let lowers = layers.lowers.iter().map(|lower| format!(" --lower {}", quoted(lower)));
            eprintln!("  overlayfs run{} --upper {} PROGRAM", lowers.collect::<String>(), quoted(&upper.path));
        }
        Ends::Discard => {
            upper.discard()?;
            eprintln!("The changes are discarded.");
        }
        Ends::Commit(planned) => {
            planned.make()?;
            eprintln!("The changes are committed.");
            upper.remove()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Asked, String> {
        Run::parse(words.iter().map(OsString::from)).map_err(|error| error.to_string())
    }

    #[test]
    fn options_end_at_the_program() {
        let words =
            ["--lower", "/a", "--lower=/b", "--upper", "/u", "--scheme=tcp", "--net", "--commit", "cp", "--keep", "x"];
        let run = Run {
            lowers: vec!["/a".into(), "/b".into()],
            upper: Some("/u".into()),
            schemes: vec!["tcp".to_owned()],
            net: true,
            choice: Some(Choice::Commit),
            command: ["cp", "--keep", "x"].map(OsString::from).to_vec(),
        };
        assert_eq!(parse(&words), Ok(Asked::Run(run)));
        let run = Run { command: vec!["-x".into()], ..Run::default() };
        assert_eq!(parse(&["--", "-x"]), Ok(Asked::Run(run)));
        assert_eq!(
            parse(&["--net", "--no-net", "x"]),
            Ok(Asked::Run(Run { command: vec!["x".into()], ..Run::default() }))
        );
        assert_eq!(parse(&["--keep", "-h"]), Ok(Asked::Help));
    }

    #[test]
    fn refusals_are_sentences() {
        for (words, sentence) in [
            (&["--keep"][..], "The program to run is missing."),
            (&["--keep", "--commit", "x"], "One of --keep, --discard, --commit and --ask can be given, and once."),
            (&["--uper", "/u", "x"], "There is no option --uper. Did you mean --upper?"),
            (&["-k", "x"], "There is no option -k."),
        ] {
            assert_eq!(parse(words), Err(sentence.to_owned()), "{words:?}");
        }
    }

    #[test]
    fn every_explained_word_is_an_option() {
        for word in RUN.long_words() {
            let said = parse(&[word, "value", "program"]);
            assert!(said.is_ok(), "{word}: {said:?}");
        }
    }
}
