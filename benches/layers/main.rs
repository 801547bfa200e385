//! The speed and memory of `overlayfs-layer`, beside programs for plain directories.
//!
//! `cargo bench -p overlayfs --bench layers -- [--files N] [--bytes N] [--rounds N]`
//! `cargo bench -p overlayfs --bench layers -- --memory [--kernel] [--files N] [--layers NAME]...`
//!
//! Each round runs every row with both programs, one after the other, so other load on the machine
//! slows both alike. The table has the medians of the ratios of the times, and of the processor
//! times, which other load changes less, and the largest resident memory of `overlayfs-layer`. With
//! `--memory` the table has only the memory, of every subcommand at layers of several kinds, or
//! those that are named; with `--kernel` in the format of the kernel's overlayfs. `--memory --files
//! 1000000` shows whether it is bounded. The benchmark makes these layers in another process: a
//! program that a large one starts counts as large as that at its start.
//!
//! | row | the other program |
//! | --- | --- |
//! | `diff` | `find`, printing the attributes of each object of the upper directory |
//! | `export` | `tar` of the upper directory, sorted, with extended attributes |
//! | `import` | `tar` that unpacks the archive of the row before |
//! | `commit` | `cp -a` of the upper directory into the lower one |
//! | `commit, one file` | the same for one large file |
//!
//! All data are in a folder below `target`, which is removed at the end.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod memory;
mod shapes;

use shapes::{WIDTH, file_of, hide, make_files};

/// The files of the lower layer. The upper layer hides some of them, and changes others.
const LOWER_FILES: usize = 1000;
/// The bytes of a small file.
const SMALL: usize = 1000;

/// The arguments of the command line.
struct Arguments {
    /// The small files of the upper layer.
    files: usize,
    /// The bytes of the large file.
    bytes: u64,
    rounds: usize,
    /// Measure only memory.
    memory: bool,
    /// In the format of the kernel's overlayfs.
    kernel: bool,
    /// The layers for that; all if there are none.
    layers: Vec<String>,
    /// Only make these layers, for the benchmark in another process.
    make: Option<String>,
}

/// One comparison. A function returns the command, after it has made new data for it.
struct Row {
    name: &'static str,
    ours: fn(&Place) -> io::Result<Command>,
    other: fn(&Place) -> io::Result<Command>,
}

const ROWS: [Row; 5] = [
    Row { name: "diff", ours: |place| Ok(place.tool("diff")), other: find },
    Row {
        name: "export",
        ours: |place| {
            let mut command = place.tool("export");
            command.arg(place.archive());
            Ok(command)
        },
        other: tar,
    },
    Row { name: "import", ours: import, other: untar },
    Row {
        name: "commit",
        ours: |place| {
            place.make_layers()?;
            Ok(place.tool("commit"))
        },
        other: |place| {
            place.make_layers()?;
            Ok(place.copy())
        },
    },
    Row {
        name: "commit, one file",
        ours: |place| {
            place.make_large()?;
            Ok(place.tool("commit"))
        },
        other: |place| {
            place.make_large()?;
            Ok(place.copy())
        },
    },
];

fn main() -> ExitCode {
    match parse().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("layers: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        files: 100_000,
        bytes: 4 << 30,
        rounds: 3,
        memory: false,
        kernel: false,
        layers: Vec::new(),
        make: None,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(word) = parser.next().map_err(|error| format!("{error}."))? {
        let lexopt::Arg::Long(name) = word else { return Err(format!("{}.", word.unexpected())) };
        let name = name.to_owned();
        let mut text = || {
            let value = parser.value().map_err(|error| format!("{error}."))?;
            value.into_string().map_err(|_| format!("--{name} needs a text."))
        };
        let mut number = || text()?.parse().map_err(|_| format!("--{name} needs a number."));
        match name.as_str() {
            // cargo passes this argument to every benchmark.
            "bench" => {}
            "memory" => arguments.memory = true,
            "kernel" => arguments.kernel = true,
            "files" => arguments.files = number()?,
            "bytes" => arguments.bytes = number()? as u64,
            "rounds" => arguments.rounds = number()?,
            "layers" => arguments.layers.push(text()?),
            "make" => arguments.make = Some(text()?),
            _ => return Err(format!("There is no option --{name}.")),
        }
    }
    Ok(arguments)
}

fn run(arguments: &Arguments) -> Result<(), String> {
    let place = Place::new(arguments);
    let failed = |error| format!("The data cannot be made: {error}.");
    if let Some(layers) = &arguments.make {
        return memory::make(&place, layers).map_err(failed);
    }
    let place = &Cleared(place);
    if arguments.memory {
        return memory::run(place, arguments).map_err(|error| format!("{error}."));
    }
    place.make_layers().map_err(failed)?;
    println!("{} files, a large file of {} bytes\n", arguments.files, arguments.bytes);
    println!("| row | time, as a ratio to the other program | processor time, likewise | memory in MiB |");
    println!("| --- | --- | --- | --- |");
    for row in &ROWS {
        let (mut times, mut processor, mut peak) = (Vec::new(), Vec::new(), 0);
        for _ in 0..arguments.rounds {
            let ours = measure(place, row.ours).map_err(|error| format!("{}: {error}.", row.name))?;
            let other = measure(place, row.other).map_err(|error| format!("{}: {error}.", row.name))?;
            times.push(ours.time.div_duration_f64(other.time));
            processor.push(ours.processor.div_duration_f64(other.processor));
            peak = peak.max(ours.peak);
        }
        println!("| {} | {:.2} | {:.2} | {} |", row.name, median(times), median(processor), peak >> 20);
    }
    Ok(())
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// The result of one run.
struct Measurement {
    time: Duration,
    processor: Duration,
    /// The largest resident memory in bytes.
    peak: u64,
}

/// Prepares and runs a command. The time includes the sync of all that it wrote.
fn measure(place: &Place, ready: fn(&Place) -> io::Result<Command>) -> io::Result<Measurement> {
    run_measured(ready(place)?, place)
}

/// Runs a command.
fn run_measured(mut command: Command, place: &Place) -> io::Result<Measurement> {
    rustix::fs::sync();
    let start = Instant::now();
    let child = command.stdout(Stdio::null()).spawn()?;
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both pointers are valid for writes, and only this call waits for the child.
    let pid = unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, usage.as_mut_ptr()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    rustix::fs::syncfs(&place.open()?)?;
    let time = start.elapsed();
    // `diff` has the exit status 1 after differences.
    if !libc::WIFEXITED(status) || libc::WEXITSTATUS(status) > 1 {
        return Err(io::Error::other(format!("{command:?} failed")));
    }
    // SAFETY: all zeros are valid, and the call has set it.
    let usage = unsafe { usage.assume_init() };
    let [user, system] = [usage.ru_utime, usage.ru_stime]
        .map(|time| Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64));
    Ok(Measurement { time, processor: user + system, peak: usage.ru_maxrss as u64 * 1024 })
}

/// The folder with all data.
struct Place {
    top: PathBuf,
    files: usize,
    bytes: u64,
}

impl Place {
    fn new(arguments: &Arguments) -> Self {
        let top = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layers");
        Self { top, files: arguments.files, bytes: arguments.bytes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }

    fn archive(&self) -> PathBuf {
        self.path("archive.tar")
    }

    fn open(&self) -> io::Result<fs::File> {
        fs::File::open(&self.top)
    }

    /// Makes a new lower and a new upper layer of small files.
    fn make_layers(&self) -> io::Result<()> {
        let (lower, upper) = self.make_empty()?;
        make_files(&lower, 0..LOWER_FILES, WIDTH, SMALL)?;
        make_files(&upper, LOWER_FILES / 2..self.files, WIDTH, SMALL)?;
        for file in (0..LOWER_FILES / 2).step_by(10) {
            hide(&file_of(&upper, file, WIDTH))?;
        }
        Ok(())
    }

    /// Makes an empty lower layer, and an upper layer with the large file.
    fn make_large(&self) -> io::Result<()> {
        let (_, upper) = self.make_empty()?;
        let file = fs::File::create(upper.join("large"))?;
        let mut block = vec![0; 1 << 20];
        for offset in (0..self.bytes).step_by(block.len()) {
            block[..8].copy_from_slice(&offset.to_le_bytes());
            file.write_all_at(&block[..block.len().min((self.bytes - offset) as usize)], offset)?;
        }
        Ok(())
    }

    fn make_empty(&self) -> io::Result<(PathBuf, PathBuf)> {
        let layers = ["lower", "upper"].map(|name| self.path(name));
        for layer in &layers {
            remove(layer)?;
            fs::create_dir_all(layer)?;
        }
        let [lower, upper] = layers;
        Ok((lower, upper))
    }

    /// Returns the command of `overlayfs-layer` for these layers.
    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
        command.args([name, "--quiet", "--lower"]).arg(self.path("lower")).arg("--upper").arg(self.path("upper"));
        command
    }

    fn copy(&self) -> Command {
        let mut command = Command::new("cp");
        command.arg("-a").arg(self.path("upper/.")).arg(self.path("lower"));
        command
    }
}

/// The folder, which is removed at the end.
struct Cleared(Place);

impl Deref for Cleared {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.0
    }
}

impl Drop for Cleared {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.top) {
            eprintln!("layers: {} cannot be removed: {error}.", self.top.display());
        }
    }
}

fn find(place: &Place) -> io::Result<Command> {
    let mut command = Command::new("find");
    command.arg(place.path("upper")).args(["-printf", "%p %s %m %U %G %T@ %l\\n"]);
    Ok(command)
}

fn tar(place: &Place) -> io::Result<Command> {
    let mut command = Command::new("tar");
    command.args(["--xattrs", "--sort=name", "--format=posix", "-cf"]).arg(place.archive());
    command.arg("-C").arg(place.path("upper")).arg(".");
    Ok(command)
}

fn import(place: &Place) -> io::Result<Command> {
    let target = empty(place.path("imported"))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_overlayfs-layer"));
    command.args(["import", "--quiet"]).arg(place.archive()).arg(target);
    Ok(command)
}

fn untar(place: &Place) -> io::Result<Command> {
    let target = empty(place.path("imported"))?;
    let mut command = Command::new("tar");
    command.args(["--xattrs", "-xf"]).arg(place.archive()).arg("-C").arg(target);
    Ok(command)
}

fn empty(dir: PathBuf) -> io::Result<PathBuf> {
    remove(&dir)?;
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
