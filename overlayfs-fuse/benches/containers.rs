//! An image of eleven steps, built by podman on each kind of overlay.
//!
//! `cargo bench -p overlayfs-fuse --bench containers -- [--rounds N]`
//!
//! Every round builds the image on the kernel's overlayfs, on fuse-overlayfs and on ours. The
//! benchmark prints medians, and ratios to the kernel's. A step of the image adds, changes or
//! removes 200 files.
//!
//! All data are in a new ext4 filesystem, in a file below `target` that is removed at the end. The
//! benchmark needs root, e2fsprogs, podman with runc, busybox-static and fuse-overlayfs.

#[path = "shared/call.rs"]
mod call;
#[path = "shared/disk.rs"]
mod disk;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use call::call;
use disk::Disk;

/// Each overlay with the program that mounts it. The kernel needs none.
const SUBJECTS: [(&str, Option<&str>); 3] = [
    ("kernel", None),
    ("fuse-overlayfs", Some("/usr/bin/fuse-overlayfs")),
    ("ours", Some(env!("CARGO_BIN_EXE_overlayfs-fuse"))),
];

/// Limits below those of the session, which podman may not raise.
const LIMITS: [&str; 2] = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];

const STEPS: usize = 11;

/// The place of podman's working files, removed at the end. It wants a short path.
const RUN: &str = "/run/overlayfs-bench";

fn main() -> ExitCode {
    match rounds().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("containers: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn rounds() -> Result<usize, String> {
    use lexopt::Arg::Long;

    let mut rounds = 3;
    let mut parser = lexopt::Parser::from_env();
    while let Some(word) = parser.next().map_err(|error| format!("{error}."))? {
        match word {
            // cargo passes this argument to every benchmark.
            Long("bench") => {}
            Long("rounds") => {
                let value = parser.value().map_err(|error| format!("{error}."))?;
                rounds = value.to_string_lossy().parse().map_err(|_| "--rounds needs a number.".to_owned())?;
            }
            word => return Err(format!("{}.", word.unexpected())),
        }
    }
    Ok(rounds)
}

fn run(rounds: usize) -> Result<(), String> {
    let disk = Disk::new("containers", 1_000_000)?;
    let top = &disk.top;
    make_image(top).map_err(|error| format!("The image cannot be made: {error}."))?;
    for (name, program) in SUBJECTS {
        let podman = |words: &[&str]| call(podman(top, name, program).args(words));
        podman(&["import", "root.tar", "base"])?;
    }
    let mut times: [Vec<f64>; SUBJECTS.len()] = Default::default();
    for round in 1..=rounds {
        for ((name, program), times) in SUBJECTS.into_iter().zip(&mut times) {
            eprintln!("round {round} of {rounds}: {name}");
            rustix::fs::sync();
            let start = Instant::now();
            let words = ["build", "--no-cache", "--layers", "--isolation=chroot", "--network=host"];
            call(podman(top, name, program).args(words).args(LIMITS).args(["-t", "built", "."]))?;
            times.push(start.elapsed().as_secs_f64());
        }
    }
    fs::remove_dir_all(RUN).map_err(|error| format!("{RUN} cannot be removed: {error}."))?;
    println!("| overlay | seconds | least and most | ratio |\n| --- | --- | --- | --- |");
    let mut first = None;
    for ((name, _), times) in SUBJECTS.into_iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
        let ratio = median / *first.get_or_insert(median);
        println!("| {name} | {median:.1} | {least:.1}–{most:.1} | {ratio:.2} |");
    }
    Ok(())
}

/// Returns a command of podman with its storage in `top`, on this overlay.
fn podman(top: &Path, name: &str, program: Option<&str>) -> Command {
    let mut command = Command::new("podman");
    let place = |kind: &str| top.join(name).join(kind);
    let run = Path::new(RUN).join(name);
    command.arg("--root").arg(place("root")).arg("--runroot").arg(run).arg("--tmpdir").arg(place("tmp"));
    command.args(["--storage-driver=overlay", "--runtime=runc", "--events-backend=none", "--cgroup-manager=cgroupfs"]);
    if let Some(program) = program {
        command.arg(format!("--storage-opt=overlay.mount_program={program}"));
    }
    command.current_dir(top).env("TMPDIR", top);
    command
}

/// Makes the root filesystem of the base, and the recipe of the image.
fn make_image(top: &Path) -> std::io::Result<()> {
    let root = top.join("rootfs");
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp", "lib"] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for name in ["sh", "cp", "mkdir", "rm", "mv", "seq", "find"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    for index in 0..2000 {
        fs::write(root.join(format!("lib/file-{index}")), vec![b'x'; 3000])?;
    }
    let mut recipe = "FROM localhost/base\n".to_owned();
    for step in 0..STEPS - 1 {
        let from = step * 200;
        recipe += &match step % 3 {
            0 => format!("RUN mkdir /new-{step}; for i in $(seq 200); do echo $i > /new-{step}/$i; done\n"),
            1 => format!("RUN for i in $(seq {from} {}); do echo more >> /lib/file-$i; done\n", from + 199),
            _ => format!("RUN for i in $(seq {from} {}); do rm /lib/file-$i; done\n", from + 199),
        };
    }
    fs::write(top.join("Containerfile"), recipe)?;
    let tar = Command::new("tar").arg("-C").arg(&root).args(["-cf", "root.tar", "."]).current_dir(top).status()?;
    fs::remove_dir_all(&root)?;
    if tar.success() { Ok(()) } else { Err(std::io::Error::other(format!("tar fails: {tar}"))) }
}
