//! The file system exerciser `fsx` from crates.io on a mount. It makes thousands of random reads,
//! writes, mappings and truncations of one file, and compares each read with the writes before.
//!
//! Needs root, /dev/fuse, and `fsx` in PATH or in target/tools/bin; fails without them.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/tool.rs"]
mod tool;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use fixture::Fixture;
use test_common::put;

/// The limit of the size of the file, in bytes.
const LENGTH: usize = 1 << 18;

/// The operations that both front ends have. A scheme has no request to punch a hole.
const ALL: &str = "
flen = 262144
[weights]
close_open = 1
invalidate = 1
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 1
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
";

/// All operations.
const WITH_HOLES: &str = "
flen = 262144
[weights]
close_open = 1
invalidate = 0.2
truncate = 5
fsync = 0.2
fdatasync = 0.2
posix_fallocate = 1
punch_hole = 2
sendfile = 2
posix_fadvise = 1
copy_file_range = 2
";

/// The operations that keep the size of a file. With them `fsx` takes an existing file and does not
/// truncate it.
const SAME_LENGTH: &str = "
flen = 262144
blockmode = true
[weights]
truncate = 0
fsync = 1
sendfile = 2
copy_file_range = 2
";

/// Makes a fixture with files in the lower layer.
fn filled() -> Fixture {
    let fixture = Fixture::new();
    let bytes: Vec<u8> = (0..LENGTH).map(|index| ((index * 31) >> 4) as u8).collect();
    for name in ["truncated", "kept", "untouched"] {
        put::file(&fixture.path("lower"), name, &bytes);
    }
    fixture
}

/// Runs `fsx` on a file of the mount.
fn fsx(fixture: &Fixture, name: &str, config: &str, seed: u32, operations: u32) {
    let fsx = tool::tool("fsx", "0.3.2");
    let config = put::file(fixture.setup.root(), &format!("{name}-{seed}.toml"), config);
    let mut command = run::command(fsx);
    command.arg("-f").arg(config).arg("-P").arg(fixture.setup.dir("artifacts")).arg("-N").arg(operations.to_string());
    let output = run::finish(command.arg("-S").arg(seed.to_string()).arg(fixture.point().join(name)));
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("All operations completed A-OK!"),
        "fsx with seed {seed} fails on {name}:\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn assert_same_bytes(found: &[u8], expected: &[u8], what: &str) {
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    assert!(found == expected, "{what}: {} bytes, not {}; unlike from {first:?}", found.len(), expected.len());
}

/// Exercises files, then reads each by its path and by a descriptor from before. Reads them again
/// after another mount.
fn exercise(fixture: &Fixture, front_end: &str, names: &[&str], work: impl Fn(&str) + Sync) {
    let guard = fixture.guard();
    let path = |name: &str| fixture.point().join(name);
    let more = format!(",door={front_end}");
    let mount = fixture.mount(&more);
    let before: Vec<_> = names.iter().map(|name| File::open(path(name)).ok()).collect();
    thread::scope(|scope| {
        for name in names {
            scope.spawn(|| work(name));
        }
    });
    let bytes: Vec<_> = names.iter().map(|name| fs::read(path(name)).unwrap()).collect();
    for ((name, file), bytes) in names.iter().zip(&before).zip(&bytes) {
        if let Some(file) = file {
            assert_same_bytes(
                &content(file),
                bytes,
                &format!("{name} through a descriptor opened before it was copied up"),
            );
        }
    }
    drop(before);
    mount.unmount();
    guard.check();

    let mount = fixture.mount(&more);
    for (name, bytes) in names.iter().zip(&bytes) {
        assert_same_bytes(&fs::read(path(name)).unwrap(), bytes, &format!("{name} after another mount"));
        let upper = fixture.path("upper").join(name);
        assert_same_bytes(&fs::read(upper).unwrap(), bytes, &format!("{name} in the upper layer"));
    }
    assert!(!Path::exists(&fixture.path("upper/untouched")));
    mount.unmount();
}

fn new_files(front_end: &str) {
    let fixture = filled();
    exercise(&fixture, front_end, &["new", "other"], |name| {
        for seed in 1..=3 {
            fsx(&fixture, name, ALL, seed + name.len() as u32, 1000);
        }
    });
}

fn files_of_a_lower_layer(front_end: &str) {
    let fixture = filled();
    exercise(&fixture, front_end, &["truncated", "kept"], |name| {
        let config = if name == "kept" { SAME_LENGTH } else { ALL };
        for seed in 11..=13 {
            fsx(&fixture, name, config, seed, 1000);
        }
    });
}

through_both_front_ends! { new_files, files_of_a_lower_layer }

/// Mappings and holes are among the operations. `OVERLAYFS_OPERATIONS` is their number in each run.
#[test]
fn ten_long_runs_through_the_engine() {
    let operations = std::env::var("OVERLAYFS_OPERATIONS").map_or(5000, |number| number.parse().unwrap());
    let fixture = filled();
    let names: Vec<_> = (0..10).map(|run| format!("long-{run}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    for pair in names.chunks(2) {
        exercise(&fixture, "engine", pair, |name| {
            fsx(&fixture, name, WITH_HOLES, name.bytes().map(u32::from).sum(), operations)
        });
    }
}

#[test]
fn as_an_unprivileged_user() {
    unprivileged::again(&["engine::"], &[], &[&tool::tool("fsx", "0.3.2")]);
}
