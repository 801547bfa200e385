//! The curves: what each makes, and the work at a point.

use std::fs::{self, File};
use std::io::Result;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};

use crate::disk::Disk;
use crate::subject::{Subject, View};

/// The files of the trees whose size is not the point of the curve.
const FILES: usize = 20_000;
/// The directories of these trees.
const DIRS: usize = 50;

/// A row of measurements, one for each point.
pub struct Curve {
    pub name: &'static str,
    /// What a point counts.
    pub unit: &'static str,
    pub points: Vec<usize>,
    /// How many lower layers a point has.
    layers: fn(usize) -> usize,
    /// Makes the content of a lower layer; also gets the number of the layer.
    make: fn(&Path, usize, usize) -> Result<()>,
    /// The work in the mount.
    work: fn(&Path, usize) -> Result<()>,
}

/// Returns every curve.
pub fn all(quick: bool, huge: bool) -> Vec<Curve> {
    let few = |points: &[usize]| {
        let most = if quick { 2 } else { points.len() };
        points.iter().copied().take(most).collect::<Vec<_>>()
    };
    let mut objects = few(&[10_000, 100_000, 1_000_000]);
    if huge {
        objects.push(10_000_000);
    }
    let one: fn(usize) -> usize = |_| 1;
    vec![
        Curve {
            name: "walk of 20,000 files in many layers, cold",
            unit: "layers",
            points: few(&[1, 4, 16, 64]),
            layers: |point| point,
            make: make_part,
            work: |view, _| walk(view),
        },
        Curve {
            name: "list of one directory, cold",
            unit: "entries",
            points: few(&[1000, 10_000, 100_000, 1_000_000]),
            layers: one,
            make: |lower, point, _| (0..point).try_for_each(|index| touch(lower, index)),
            work: |view, _| fs::read_dir(view)?.try_for_each(|entry| entry.map(drop)),
        },
        Curve {
            name: "walk + lstat of a tree, cold",
            unit: "objects",
            points: objects,
            layers: one,
            make: make_tree,
            work: |view, _| walk(view),
        },
        Curve {
            name: "way to the deepest directory, cold",
            unit: "depth",
            points: few(&[10, 100, 1000, 2000]),
            layers: one,
            make: |lower, point, _| make_deep(lower, point),
            work: descend,
        },
        Curve {
            name: "create and write of 20,000 files by clients at once",
            unit: "clients",
            points: few(&[1, 4, 16, 64]),
            layers: one,
            make: |_, _, _| Ok(()),
            work: create_at_once,
        },
    ]
}

/// The place of all data.
pub struct Place {
    disk: Disk,
}

impl Place {
    /// Makes it, with room for this many objects.
    pub fn new(objects: u64) -> std::result::Result<Self, String> {
        Ok(Self { disk: Disk::new("scale", objects)? })
    }

    /// Returns a new directory.
    pub fn dir(&self, name: &str) -> std::result::Result<PathBuf, String> {
        let dir = self.disk.top.join(name);
        let failed = |error| format!("{} cannot be made: {error}.", dir.display());
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(failed)?;
        }
        fs::create_dir_all(&dir).map_err(failed)?;
        Ok(dir)
    }

    /// Does the work of a point once. Returns the seconds, and the peak memory of the daemon in
    /// KiB.
    pub fn measure(&self, curve: &Curve, subject: Subject, point: usize) -> std::result::Result<(f64, u64), String> {
        let failed = |error| format!("{} at {point} fails on {}: {error}.", curve.name, subject.name());
        let lowers = self.lowers(curve, point).map_err(failed)?;
        let work = self.dir("work")?;
        for name in ["upper", "work", "view"] {
            fs::create_dir(work.join(name)).map_err(failed)?;
        }
        let view = View::new(subject, &lowers, &work)?;
        // The bare filesystem has the content of all layers beside each other.
        let tops = if subject == Subject::Bare { &*lowers } else { std::slice::from_ref(&view.path) };
        rustix::fs::sync();
        fs::write("/proc/sys/vm/drop_caches", "3").map_err(failed)?;
        let start = Instant::now();
        tops.iter().try_for_each(|top| (curve.work)(top, point)).map_err(failed)?;
        Ok((start.elapsed().as_secs_f64(), view.peak()))
    }

    /// Makes the lower layers of a point. The point that was made last stays until the next one.
    fn lowers(&self, curve: &Curve, point: usize) -> Result<Vec<PathBuf>> {
        let kept = self.disk.top.join("lower");
        let dir = kept.join(format!("{} {point}", curve.unit));
        let layers: Vec<_> = (0..(curve.layers)(point)).map(|layer| dir.join(layer.to_string())).collect();
        if curve.unit == "clients" || !dir.exists() {
            if kept.exists() {
                fs::remove_dir_all(&kept)?;
            }
            for (index, layer) in layers.iter().enumerate() {
                fs::create_dir_all(layer)?;
                (curve.make)(layer, point, index)?;
            }
        }
        Ok(layers)
    }
}

fn touch(dir: &Path, index: usize) -> Result<()> {
    File::create(dir.join(format!("file-{index}"))).map(drop)
}

/// Makes this layer's part of the files. Every layer has every directory.
fn make_part(lower: &Path, layers: usize, layer: usize) -> Result<()> {
    (0..DIRS).try_for_each(|dir| fs::create_dir(lower.join(format!("dir-{dir}"))))?;
    let mine = (0..FILES).filter(|index| index / DIRS % layers == layer);
    mine.into_iter().try_for_each(|index| touch(&lower.join(format!("dir-{}", index % DIRS)), index))
}

/// Makes a tree with this many files, 100 in each directory.
fn make_tree(lower: &Path, files: usize, _: usize) -> Result<()> {
    for index in 0..files {
        let dir = lower.join(format!("{}/{}", index / 10_000, index / 100));
        if index % 100 == 0 {
            fs::create_dir_all(&dir)?;
        }
        touch(&dir, index)?;
    }
    Ok(())
}

/// Makes a directory in a directory, this many times.
fn make_deep(lower: &Path, depth: usize) -> Result<()> {
    let mut dir = rustix::fs::open(lower, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, "dir", Mode::RWXU)?;
        dir = rustix::fs::openat(&dir, "dir", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    Ok(())
}

fn descend(view: &Path, depth: usize) -> Result<()> {
    let mut dir = rustix::fs::openat(CWD, view, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..depth {
        dir = rustix::fs::openat(&dir, "dir", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    rustix::fs::statat(&dir, "", AtFlags::EMPTY_PATH)?;
    Ok(())
}

fn walk(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        // std would also ask for the time of birth.
        if FileType::from_raw_mode(rustix::fs::lstat(&path)?.st_mode).is_dir() {
            walk(&path)?;
        }
    }
    Ok(())
}

/// Creates the files from this many threads, each in a directory of its own.
fn create_at_once(view: &Path, clients: usize) -> Result<()> {
    let create = |client: usize| {
        let dir = view.join(format!("client-{client}"));
        fs::create_dir(&dir)?;
        (0..FILES / clients).try_for_each(|index| fs::write(dir.join(format!("file-{index}")), "a line of text\n"))
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|client| scope.spawn(move || create(client))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| std::io::Error::other("a client panics"))?)
    })
}
