//! Prints how many requests the scheme answers, as Markdown. It compares them with the same calls
//! on a directory. It also measures several clients at once, and clients beside the copy-up of a
//! large file. `docs/requests.md` is the output of `cargo bench --bench requests`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::thread;
use std::time::Instant;

use linux_delegate::{Daemon, Process};
use overlayfs::options::Options;
use syscall::flag::{O_DIRECTORY, O_RDONLY, O_WRONLY, SEEK_SET};
use tempfile::TempDir;

/// The name that the scheme is registered as.
const NAME: &str = "requests";
/// How often each round repeats an operation, and how many rounds there are: the median counts.
const REPEAT: usize = 2000;
const ROUNDS: usize = 5;
/// How many clients there are at once, one line for each.
const CLIENTS: [usize; 3] = [1, 2, 4];
/// The size of the file that is copied up.
const LARGE: u64 = 1 << 30;

fn main() {
    println!(
        "# How many requests the scheme answers

`cargo bench --bench requests` prints this page. Clients, the kernel of the Redox simulator and the scheme are in one
process. The numbers depend on the machine. Most of each is two switches of threads for a request.
"
    );
    println!("## One client\n");
    println!(
        "Thousands of operations per second through the scheme, and of the same calls on the layer's directory. Each number
is the median of {ROUNDS} interleaved rounds.
"
    );
    println!("| operation (requests) | scheme | directly | ratio |\n| --- | --- | --- | --- |");
    one_client();
    println!("\n## Several clients\n");
    println!(
        "Thousands of requests per second of all clients together. Each client calls stat (openat, fstat, close) on its own
file.
"
    );
    println!("| clients | requests |\n| --- | --- |");
    several_clients();
    println!("\n## Beside a copy-up\n");
    println!(
        "Microseconds of stat (openat, fstat, close) on one file, while another of {} MiB is copied up whole.
",
        LARGE >> 20
    );
    println!("| | calls | median | 99th of 100 | longest |\n| --- | --- | --- | --- | --- |");
    beside_a_copy_up();
}

/// The same operation through the scheme and on the directory, by name and count of requests.
type Pair<'a> = (&'static str, &'a dyn Fn(), &'a dyn Fn());

/// An overlay that is served, of two directories.
struct Served {
    _daemon: Daemon,
    dir: TempDir,
}

impl Served {
    /// `fill` is called with the lower directory and the upper one.
    fn new(fill: impl FnOnce(&Path, &Path)) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        for dir in [&lower, &upper] {
            fs::create_dir(dir).expect("a layer");
        }
        fill(&lower, &upper);
        let options = Options { lowers: vec![lower], upper: Some(upper), whole_copies: true, ..Options::default() };
        let overlay = overlayfs::mount::mount(&options).expect("an overlay");
        Self { _daemon: Daemon::serve(overlay, NAME), dir }
    }
}

fn path(name: &str) -> String {
    format!("/scheme/{NAME}/{name}")
}

fn one_client() {
    let served = Served::new(|_, upper| {
        fs::write(upper.join("file"), [1; 65536]).expect("a file");
        for number in 0..50 {
            fs::write(upper.join(format!("other{number}")), "").expect("a file");
        }
    });
    compare(&served.dir.path().join("upper"));
}

/// Thousands of requests per second that so many clients get answered together.
fn clients(count: usize) -> f64 {
    let requests: usize = 3;
    let start = Instant::now();
    thread::scope(|scope| {
        for number in 0..count {
            scope.spawn(move || {
                let client = Process::new(0, 0);
                let file = path(&format!("file{number}"));
                (0..REPEAT).for_each(|_| ok(client.stat(&file)));
            });
        }
    });
    (count * REPEAT * requests) as f64 / start.elapsed().as_secs_f64() / 1000.0
}

fn several_clients() {
    let _served = Served::new(|lower, _| {
        for number in 0..CLIENTS[CLIENTS.len() - 1] {
            fs::write(lower.join(format!("file{number}")), "x").expect("a file");
        }
    });
    for count in CLIENTS {
        let rates = (0..ROUNDS).map(|_| clients(count)).collect();
        println!("| {count} | {:.1} |", median(rates));
    }
}

/// How long each of many calls of stat takes, in microseconds, sorted; for as long as `goes_on`.
fn latencies(goes_on: impl Fn(usize) -> bool) -> Vec<f64> {
    let client = Process::new(0, 0);
    let file = path("small");
    let mut taken = Vec::new();
    while goes_on(taken.len()) {
        let start = Instant::now();
        ok(client.stat(&file));
        taken.push(start.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    taken
}

fn beside_a_copy_up() {
    let _served = Served::new(|lower, _| {
        fs::write(lower.join("small"), "x").expect("a file");
        let mut large = File::create(lower.join("large")).expect("a file");
        (0..LARGE >> 20).for_each(|_| large.write_all(&[7; 1 << 20]).expect("to write"));
    });
    let alone = latencies(|done| done < REPEAT);
    let start = Instant::now();
    let copying = thread::spawn(move || {
        let file = Process::new(0, 0).open(path("large"), O_WRONLY, 0).expect("the file");
        file.write_at(b"x", 0).expect("to write");
        start.elapsed().as_secs_f64() * 1e3
    });
    let beside = latencies(|_| !copying.is_finished());
    let took = copying.join().expect("a copy-up");
    for (what, taken) in [("alone", alone), ("while the file is copied up", beside)] {
        let count = taken.len();
        println!(
            "| {what} | {count} | {:.0} | {:.0} | {:.0} |",
            taken[count / 2],
            taken[count * 99 / 100],
            taken[count - 1]
        );
    }
    println!("\nThe copy-up took {took:.0} ms.");
}

fn compare(direct: &Path) {
    let client = Process::new(0, 0);
    let (file, directly) = (path("file"), direct.join("file"));
    let open = client.open(&file, O_RDONLY, 0).expect("the file");
    let (new, new_directly) = (path("new"), direct.join("new-directly"));
    let pairs: [Pair<'_>; 6] = [
        ("stat (openat, fstat, close)", &|| ok(client.stat(&file)), &|| ok(fs::metadata(&directly))),
        ("stat of a missing name (openat)", &|| fails(client.stat(path("gone"))), &|| {
            fails(fs::metadata(direct.join("gone")))
        }),
        ("open, close", &|| ok(client.open(&file, O_RDONLY, 0)), &|| ok(File::open(&directly))),
        (
            "read of 4 KiB",
            &|| {
                let mut bytes = [0; 4096];
                ok(open.lseek(0, SEEK_SET));
                assert_eq!(open.read(&mut bytes).expect("to read"), 4096);
            },
            &|| {
                let mut bytes = [0; 4096];
                assert_eq!(File::open(&directly).and_then(|mut file| file.read(&mut bytes)).expect("to read"), 4096);
            },
        ),
        (
            "create, write, unlink",
            &|| {
                client.write_file(&new, "x").expect("to write");
                client.unlink(&new).expect("to unlink");
            },
            &|| {
                File::create(&new_directly).and_then(|mut file| file.write_all(b"x")).expect("to write");
                fs::remove_file(&new_directly).expect("to unlink");
            },
        ),
        (
            "readdir of 51 entries",
            &|| {
                let root = client.open(path(""), O_RDONLY | O_DIRECTORY, 0).expect("the root");
                assert!(root.entries().expect("a listing").len() >= 51);
            },
            &|| assert!(fs::read_dir(direct).expect("a directory").count() >= 51),
        ),
    ];
    for (operation, scheme, directly) in pairs {
        let (mut through, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            through.push(rate(scheme));
            beside.push(rate(directly));
        }
        let (through, beside) = (median(through), median(beside));
        println!("| {operation} | {through:.1} | {beside:.1} | {:.2} |", through / beside);
    }
}

fn ok<T, E: std::fmt::Debug>(result: Result<T, E>) {
    assert!(result.is_ok(), "an operation that is measured must work: {:?}", result.err());
}

fn fails<T, E>(result: Result<T, E>) {
    assert!(result.is_err(), "a missing name is found");
}

/// Thousands per second.
fn rate(operation: &dyn Fn()) -> f64 {
    let start = Instant::now();
    for _ in 0..REPEAT {
        operation();
    }
    REPEAT as f64 / start.elapsed().as_secs_f64() / 1000.0
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
