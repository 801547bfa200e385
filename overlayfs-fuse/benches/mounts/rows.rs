//! The rows of the benchmark, and the contents of the lower layers.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Result, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::fs::FileType;

use crate::{fio, programs};

/// The size of the data.
#[derive(Clone, Copy)]
pub struct Size {
    /// The number of directories of 31 files in the tree.
    dirs: usize,
    small: usize,
    appended: usize,
    big: u64,
    written: usize,
    listed: usize,
    created: usize,
    renamed: usize,
    pieces: usize,
    /// The MiB of all jobs of fio.
    fio: u64,
    /// The number of packages for dpkg and npm.
    pub packages: usize,
}

impl Size {
    pub const FULL: Size = Size {
        dirs: 900,
        small: 10_000,
        appended: 1000,
        big: 1 << 30,
        written: 20_000,
        listed: 50_000,
        created: 10_000,
        renamed: 5000,
        pieces: 64,
        fio: 256,
        packages: 50,
    };
    pub const QUICK: Size = Size {
        dirs: 60,
        small: 500,
        appended: 50,
        big: 16 << 20,
        written: 1000,
        listed: 2000,
        created: 500,
        renamed: 300,
        pieces: 8,
        fio: 16,
        packages: 5,
    };
}

/// A part of a row. It gets the mount point.
type Step = fn(&Path, Size) -> Result<()>;

/// The work of a row.
#[derive(Clone, Copy)]
pub enum Work {
    Step(Step),
    /// A job of fio, whose own start is not timed.
    Fio(fio::Job),
}

impl Work {
    /// Does the work. Returns its time in seconds.
    pub fn run(self, view: &Path, size: Size) -> Result<f64> {
        match self {
            Work::Step(step) => {
                let start = Instant::now();
                step(view, size)?;
                Ok(start.elapsed().as_secs_f64())
            }
            Work::Fio(job) => job.run(view, size.fio),
        }
    }
}

pub struct Row {
    pub name: &'static str,
    /// The goal of the project's own mount, as a ratio to the bare filesystem.
    pub goal: f64,
    /// The number of files, entries or writes of the work. System calls are given for each of them.
    pub operations: usize,
    /// The part of the data that the row uses as its lower layer.
    pub part: &'static str,
    /// Whether each directory in the part is a lower layer.
    pub pieces: bool,
    /// Whether the work runs on a new mount with empty caches, after the preparation.
    pub cold: bool,
    /// Fills the upper layer before the mount.
    pub upper: Step,
    /// Runs in the mount before the work.
    pub before: Step,
    pub work: Work,
}

impl Row {
    const fn new(name: &'static str, goal: f64, operations: usize, part: &'static str, work: Step) -> Self {
        let work = Work::Step(work);
        Row { name, goal, operations, part, pieces: false, cold: false, upper: nothing, before: nothing, work }
    }

    /// A job of fio on files of 8 MiB that are in the upper layer.
    const fn fio(name: &'static str, goal: f64, size: Size, job: fio::Job) -> Self {
        let row = Row::new(name, goal, job.operations(size.fio), "none", nothing);
        Row { before: fio::make_files, work: Work::Fio(job), ..row }
    }

    const fn after(self, before: Step) -> Self {
        Row { before, ..self }
    }

    const fn on_upper(self, upper: Step) -> Self {
        Row { upper, ..self }
    }

    const fn cold(self) -> Self {
        Row { cold: true, ..self }
    }

    const fn in_pieces(self) -> Self {
        Row { pieces: true, ..self }
    }
}

/// Returns every row, in the order of the table.
pub fn all(size: Size) -> Vec<Row> {
    let one_big = if size.big >> 30 > 0 {
        "append a byte to one 1 GiB lower file"
    } else {
        "append a byte to one large lower file"
    };
    // The numbers of directories and their contents, and of pieces of 128 KiB.
    let (tree, pieces) = (size.dirs * 32, size.dirs / size.pieces * size.pieces * 31);
    let (big, upper) = ((size.big >> 17) as usize, 4 * (64 << 20 >> 17));
    vec![
        Row::new("walk + lstat of the tree, cold", 1.3, tree, "tree", walk).cold(),
        Row::new("walk + lstat of the tree, warm", 1.1, tree, "tree", walk).after(walk),
        Row::new("walk + lstat of many layers, cold", 1.3, pieces, "pieces", walk).in_pieces().cold(),
        Row::new("open + read + close of small files, warm", 3.0, size.small, "small", read_small).after(read_small),
        Row::new("sequential read of a lower file, warm", 1.0, big, "big", read_big).after(read_big),
        Row::new("sequential read of an upper file, warm", 1.0, upper, "none", read_upper).after(make_upper),
        Row::new("4 KiB random writes", 1.2, size.written, "none", write_randomly).after(make_upper),
        Row::new("append a byte to small lower files", 10.0, size.appended, "appended", append).after(read_appended),
        Row::new("append again", 3.0, size.appended, "appended", append).after(append),
        Row::new(one_big, 10.0, 1, "big", append_big),
        Row::new("create files", 3.0, size.created, "none", create),
        Row::new("unlink lower files", 1.0, size.small, "small", unlink).after(walk),
        Row::new("mkdir", 2.5, size.renamed, "none", make_dirs),
        Row::new("rename files", 4.0, size.renamed, "none", rename).after(create_renamed),
        Row::new("rename a lower directory (mv)", 1.5, 1, "moved", rename_dir).after(walk),
        Row::new("readdir of lower + upper entries, cold", 1.5, 2 * size.listed, "listed", list)
            .on_upper(fill_listed)
            .cold(),
        Row::new("with lstat of each, warm", 1.3, 2 * size.listed, "listed", walk).on_upper(fill_listed).after(walk),
        Row::new("git clone", 2.0, tree, "repository", clone),
        Row::new("git status, second", 1.5, tree, "repository", status).after(clone_and_look),
        Row::new("tar x", 2.0, tree, "archive", unpack),
        Row::new("rm -rf of a lower tree", 1.0, tree, "tree", remove_tree).after(walk),
        Row::new("dpkg -i", 2.0, size.packages * 40, "packages", programs::dpkg),
        Row::new("npm install", 2.0, size.packages * 40, "packages", programs::npm),
        Row::new("cargo build", 1.2, 1, "crate", programs::cargo),
        Row::fio("fio: random reads, 1 job", 1.2, size, fio::Job { kind: "randread", piece: "4k", jobs: 1 }),
        Row::fio("fio: random reads, 8 jobs", 1.2, size, fio::Job { kind: "randread", piece: "4k", jobs: 8 }),
        Row::fio("fio: random writes, 1 job", 1.2, size, fio::Job { kind: "randwrite", piece: "4k", jobs: 1 }),
        Row::fio("fio: random writes, 8 jobs", 1.2, size, fio::Job { kind: "randwrite", piece: "4k", jobs: 8 }),
        Row::fio("fio: sequential reads, 1 job", 1.2, size, fio::Job { kind: "read", piece: "128k", jobs: 1 }),
        Row::fio("fio: sequential reads, 8 jobs", 1.2, size, fio::Job { kind: "read", piece: "128k", jobs: 8 }),
        Row::fio("fio: sequential writes, 1 job", 1.2, size, fio::Job { kind: "write", piece: "128k", jobs: 1 }),
        Row::fio("fio: sequential writes, 8 jobs", 1.2, size, fio::Job { kind: "write", piece: "128k", jobs: 8 }),
    ]
}

/// Makes the contents of the lower layers, one directory for each part.
pub fn make_lower(lower: &Path, size: Size) -> Result<()> {
    let files = |dir: &Path, count: usize, length: usize| -> Result<()> {
        fs::create_dir_all(dir)?;
        (0..count).try_for_each(|index| fs::write(dir.join(format!("file-{index}")), vec![b'x'; length + index % 7]))
    };
    for index in 0..size.dirs {
        files(&lower.join(format!("tree/{}/dir-{index}", index / 30)), 31, 300)?;
    }
    for index in 0..size.pieces {
        for dir in 0..size.dirs / size.pieces {
            files(&lower.join(format!("pieces/{index}/dir-{dir}/of-{index}")), 30, 300)?;
        }
    }
    for index in 0..100 {
        files(&lower.join(format!("small/{index}")), size.small / 100, 2000)?;
    }
    files(&lower.join("appended"), size.appended, 3000)?;
    files(&lower.join("moved/dir"), 1000, 2000)?;
    files(&lower.join("listed/dir"), size.listed, 0)?;
    fs::create_dir_all(lower.join("none"))?;
    fs::create_dir_all(lower.join("big"))?;
    let mut big = File::create(lower.join("big/file"))?;
    let mut block = vec![0; 1 << 20];
    for index in 0..size.big >> 20 {
        block[..8].copy_from_slice(&(index + 1).to_le_bytes());
        big.write_all(&block)?;
    }
    fs::create_dir_all(lower.join("archive"))?;
    run(lower, "tar", &["-cf", "archive/all.tar", "tree"])?;
    run(lower, "cp", &["-a", "tree", "repository"])?;
    let repository = lower.join("repository");
    let git = |words: &[&str]| run(&repository, "git", words);
    git(&["init", "-q", "-b", "main"])?;
    git(&["add", "."])?;
    git(&["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "All"])?;
    fs::rename(repository.join(".git"), lower.join("bare.git"))?;
    fs::remove_dir_all(&repository)?;
    fs::create_dir(&repository)?;
    fs::rename(lower.join("bare.git"), repository.join("bare.git"))?;
    run(&repository, "git", &["-C", "bare.git", "config", "core.bare", "true"])?;
    programs::make_packages(&lower.join("packages"), size.packages)?;
    programs::make_crate(&lower.join("crate"))
}

/// Runs a program to its end.
pub fn run(dir: &Path, program: &str, words: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(words).current_dir(dir).stdout(Stdio::null()).stdin(Stdio::null());
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{program} {words:?} fails: {status}"))) }
}

fn nothing(_: &Path, _: Size) -> Result<()> {
    Ok(())
}

fn walk(view: &Path, _: Size) -> Result<()> {
    walk_dir(view)
}

fn walk_dir(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // std would also ask for the time of birth.
        if FileType::from_raw_mode(rustix::fs::lstat(&path)?.st_mode).is_dir() {
            walk_dir(&path)?;
        }
    }
    Ok(())
}

fn read_whole(path: &Path, buffer: &mut [u8]) -> Result<()> {
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}

fn read_small(view: &Path, size: Size) -> Result<()> {
    let mut buffer = vec![0; 4096];
    (0..size.small)
        .try_for_each(|index| read_whole(&view.join(format!("{}/file-{}", index % 100, index / 100)), &mut buffer))
}

fn read_big(view: &Path, _: Size) -> Result<()> {
    read_whole(&view.join("file"), &mut vec![0; 1 << 17])
}

fn make_upper(view: &Path, _: Size) -> Result<()> {
    fs::write(view.join("upper"), vec![1; 64 << 20])
}

fn read_upper(view: &Path, _: Size) -> Result<()> {
    (0..4).try_for_each(|_| read_whole(&view.join("upper"), &mut vec![0; 1 << 17]))
}

fn write_randomly(view: &Path, size: Size) -> Result<()> {
    let file = OpenOptions::new().write(true).open(view.join("upper"))?;
    let mut state = 1u64;
    for _ in 0..size.written {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.write_all_at(&[2; 4096], (state >> 40) % (64 << 8) * 4096)?;
    }
    Ok(())
}

fn append_to(path: &Path) -> Result<()> {
    OpenOptions::new().append(true).open(path)?.write_all(b"x")
}

fn read_appended(view: &Path, size: Size) -> Result<()> {
    let mut buffer = vec![0; 4096];
    (0..size.appended).try_for_each(|index| read_whole(&view.join(format!("file-{index}")), &mut buffer))
}

fn append(view: &Path, size: Size) -> Result<()> {
    (0..size.appended).try_for_each(|index| append_to(&view.join(format!("file-{index}"))))
}

fn append_big(view: &Path, _: Size) -> Result<()> {
    append_to(&view.join("file"))
}

fn create_many(dir: &Path, count: usize) -> Result<()> {
    fs::create_dir_all(dir)?;
    (0..count).try_for_each(|index| fs::write(dir.join(format!("new-{index}")), b"a hundred bytes or so".repeat(5)))
}

fn create(view: &Path, size: Size) -> Result<()> {
    create_many(&view.join("new"), size.created)
}

fn create_renamed(view: &Path, size: Size) -> Result<()> {
    create_many(&view.join("new"), size.renamed)
}

fn fill_listed(view: &Path, size: Size) -> Result<()> {
    let dir = view.join("dir");
    fs::create_dir_all(&dir)?;
    (0..size.listed).try_for_each(|index| File::create(dir.join(format!("upper-{index}"))).map(drop))
}

fn unlink(view: &Path, size: Size) -> Result<()> {
    (0..size.small).try_for_each(|index| fs::remove_file(view.join(format!("{}/file-{}", index % 100, index / 100))))
}

fn make_dirs(view: &Path, size: Size) -> Result<()> {
    (0..size.renamed).try_for_each(|index| fs::create_dir(view.join(format!("dir-{index}"))))
}

fn rename(view: &Path, size: Size) -> Result<()> {
    (0..size.renamed)
        .try_for_each(|index| fs::rename(view.join(format!("new/new-{index}")), view.join(format!("new/old-{index}"))))
}

/// Renames as mv does: where the filesystem refuses, copies everything and removes it.
fn rename_dir(view: &Path, _: Size) -> Result<()> {
    match fs::rename(view.join("dir"), view.join("moved")) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            run(view, "cp", &["-a", "dir", "moved"])?;
            fs::remove_dir_all(view.join("dir"))
        }
        renamed => renamed,
    }
}

/// Lists a directory below the root, which fuse-overlayfs reads at mount.
fn list(view: &Path, _: Size) -> Result<()> {
    fs::read_dir(view.join("dir"))?.try_for_each(|entry| entry.map(drop))
}

fn clone(view: &Path, _: Size) -> Result<()> {
    run(view, "git", &["clone", "-q", "--no-hardlinks", "bare.git", "clone"])
}

fn clone_and_look(view: &Path, size: Size) -> Result<()> {
    clone(view, size)?;
    status(view, size)
}

fn status(view: &Path, _: Size) -> Result<()> {
    run(&view.join("clone"), "git", &["status", "--porcelain"])
}

fn unpack(view: &Path, _: Size) -> Result<()> {
    run(view, "tar", &["-xf", "all.tar"])
}

fn remove_tree(view: &Path, _: Size) -> Result<()> {
    for entry in fs::read_dir(view)? {
        fs::remove_dir_all(entry?.path())?;
    }
    Ok(())
}
