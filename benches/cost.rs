//! What the overlay costs, as Markdown: backing calls per operation, and requests per second through the scheme beside the same
//! calls made directly on a directory. `cargo bench --bench cost` prints it; `docs/cost.md` is its output.

#[path = "../tests/cost/measure.rs"]
mod measure;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use linux_delegate::{Process, kernel};
use overlayfs::options::Options;
use redox_scheme::scheme::register_sync_scheme;
use syscall::flag::{O_DIRECTORY, O_RDONLY, SEEK_SET};

/// The name that the scheme is registered as.
const NAME: &str = "cost";
/// How often each round repeats an operation, and how many rounds there are: the median counts.
const REPEAT: usize = 2000;
const ROUNDS: usize = 5;

fn main() {
    println!("# What the overlay costs\n");
    println!(
        "Printed by `cargo bench --bench cost`, on a filesystem where a copy needs a sync; on ext4 and XFS `write_through` takes its place.\n"
    );
    println!("## Backing calls\n");
    println!(
        "Calls of the engine to its layers, for one operation: *warm*, when every directory was read and every object was looked at; *cold*, \
         on a new overlay, with all that is needed to find the object. What is above the goal is bold. The *goal* of what is done once only (a copy-up, a \
         marker) allows 1 to 3 calls for each. `tests/cost.rs` fails if a warm number comes above its *limit*.\n"
    );
    println!("| operation | goal | limit | warm | cold |\n| --- | --- | --- | --- | --- |");
    for row in measure::rows() {
        println!("{}", row.line());
    }
    println!("\nA walk over a cold tree of two directories and 10 files in each layer:\n");
    println!("| lower layers | calls |\n| --- | --- |");
    for layers in [1, 4, 64] {
        println!("| {layers} | {} |", measure::cold_walk(layers));
    }
    println!("\n## Requests\n");
    println!(
        "A thousand operations per second, median of {ROUNDS} interleaved rounds: through the delegate's kernel and the scheme in the same \
         process, and the same calls made on the layer's directory. The machine decides about the numbers; only the ratio says something, \
         and most of it is two switches of threads for each request.\n"
    );
    println!("| operation (requests) | scheme | directly | ratio |\n| --- | --- | --- | --- |");
    requests();
}

/// The same operation through the scheme and on the directory, by name and count of requests.
type Pair<'a> = (&'static str, &'a dyn Fn(), &'a dyn Fn());

fn requests() {
    let dir = tempfile::TempDir::new().expect("a temporary directory");
    let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
    for dir in [&lower, &upper] {
        fs::create_dir(dir).expect("a layer");
    }
    fs::write(upper.join("file"), [1; 65536]).expect("a file");
    for number in 0..50 {
        fs::write(upper.join(format!("other{number}")), "").expect("a file");
    }

    let options = Options { lowers: vec![lower], upper: Some(upper.clone()), ..Options::default() };
    let overlay = overlayfs::mount::mount(&options).expect("an overlay");
    let (ready, wait) = std::sync::mpsc::channel();
    let daemon = std::thread::spawn(move || {
        overlayfs::daemon::serve(overlay, NAME, |socket, scheme, _| {
            register_sync_scheme(socket, NAME, scheme)?;
            ready.send(()).expect("somebody waits");
            Ok::<_, syscall::Error>(())
        })
    });
    wait.recv().expect("the daemon starts");
    compare(&upper);
    kernel::stop(NAME).expect("the scheme to be served");
    daemon.join().expect("the daemon ends").expect("in peace");
}

fn compare(direct: &Path) {
    let client = Process::new(0, 0);
    let path = |name: &str| format!("/scheme/{NAME}/{name}");
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
