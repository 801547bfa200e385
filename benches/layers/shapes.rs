//! Layers of several kinds with very many files, and the subcommands whose memory is measured at
//! them, for the benchmark and for `tests/layer_memory.rs`.
//!
//! | layers | content |
//! | --- | --- |
//! | `new` | the upper layer has files that no lower layer has, a hundred in a directory |
//! | `narrow` | the same, ten in a directory |
//! | `one` | the same, all in one directory |
//! | `copies` | each file of the lower layer is copied up, through an overlay |
//! | `links` | each file of the upper layer has two names, in two directories |
//! | `copied-links` | the same in the lower layer, and each file is copied up |
//! | `whiteouts` | each file of the lower layer is deleted |
//! | `renamed` | the directories of the lower layer are in one that is renamed |

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use overlayfs::layer::{OsLayer, RenameMode};
use overlayfs::overlay::{Layers, Overlay, Settings};

/// The files of a directory.
pub const WIDTH: usize = 100;

/// Makes layers with so many files in `lower` and `upper` of a folder.
type Make = fn(&Path, usize) -> io::Result<()>;

/// The kinds of layers.
pub const SHAPES: [(&str, Make); 8] = [
    ("new", |top, files| make_files(&top.join("upper"), 0..files, WIDTH, 0)),
    ("narrow", |top, files| make_files(&top.join("upper"), 0..files, 10, 0)),
    ("one", |top, files| make_files(&top.join("upper"), 0..files, files, 0)),
    ("copies", |top, files| {
        make_files(&top.join("lower"), 0..files, WIDTH, 0)?;
        copy_up(top, files)
    }),
    ("links", |top, files| make_links(&top.join("upper"), files)),
    ("copied-links", |top, files| {
        make_links(&top.join("lower"), files)?;
        copy_up(top, files)
    }),
    ("whiteouts", |top, files| {
        make_files(&top.join("lower"), 0..files, WIDTH, 0)?;
        (0..files).try_for_each(|file| hide(&file_of(&top.join("upper"), file, WIDTH)))
    }),
    ("renamed", |top, files| {
        make_files(&top.join("lower/old"), 0..files, WIDTH, 0)?;
        let (overlay, root) = (overlay(top)?, ["old", "new"].map(OsStr::new));
        Ok(overlay.rename(overlay.root(), root[0], overlay.root(), root[1], RenameMode::NoReplace)?)
    }),
];

/// The name of a row, its subcommand, its arguments behind the layers, and whether it needs new
/// layers: one before has changed them.
pub type Row = (&'static str, &'static str, &'static [&'static str], bool);

/// The subcommands, in the order in which they run.
pub const COMMANDS: [Row; 14] = [
    ("info", "info", &[], true),
    ("diff", "diff", &[], false),
    ("export", "export", &["archive.tar"], false),
    ("import", "import", &["archive.tar", "imported"], false),
    ("vacuum", "vacuum", &["--dry-run"], false),
    ("flatten", "flatten", &["--into", "flat"], false),
    ("commit --into", "commit", &["--into", "copy"], false),
    ("commit --include", "commit", &["--include", "**/*5"], false),
    ("discard", "discard", &[], false),
    ("commit --atomic", "commit", &["--atomic"], true),
    ("convert --to kernel", "convert", &["--to", "kernel", "--work", "work"], true),
    ("convert --to oci", "convert", &["--to", "oci", "--work", "work"], false),
    ("convert --deref", "convert", &["--deref", "--work", "work"], false),
    ("commit", "commit", &["--work", "work"], false),
];

/// Returns the path of a small file, if each directory has `width` of them.
pub fn file_of(top: &Path, file: usize, width: usize) -> PathBuf {
    top.join(format!("dir{}/file{}", file / width, file % width))
}

/// Writes the whiteout of a file.
pub fn hide(path: &Path) -> io::Result<()> {
    let mut hidden = OsString::from(".wh.");
    hidden.push(path.file_name().unwrap_or(OsStr::new("")));
    let path = path.with_file_name(hidden);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    fs::write(path, "")
}

/// Makes small files of `size` bytes, `width` in each directory.
pub fn make_files(top: &Path, files: std::ops::Range<usize>, width: usize, size: usize) -> io::Result<()> {
    for file in files {
        let path = file_of(top, file, width);
        if file % width == 0 {
            fs::create_dir_all(path.parent().unwrap_or(top))?;
        }
        let mut content = format!("{} {file}", top.display()).into_bytes();
        content.resize(size, b'.');
        fs::write(path, content)?;
    }
    Ok(())
}

/// Makes files with two names each, in two directories.
fn make_links(top: &Path, files: usize) -> io::Result<()> {
    let half = files / 2 / WIDTH * WIDTH;
    make_files(top, 0..half, WIDTH, 0)?;
    for file in 0..half {
        let other = file_of(top, half + file, WIDTH);
        if file % WIDTH == 0 {
            fs::create_dir_all(other.parent().unwrap_or(top))?;
        }
        fs::hard_link(file_of(top, file, WIDTH), other)?;
    }
    Ok(())
}

/// Stacks the layers.
fn overlay(top: &Path) -> io::Result<Overlay<OsLayer>> {
    let open = |name, for_writing| OsLayer::open(&top.join(name), for_writing);
    let layers = Layers { upper: Some(open("upper", true)?), work: None, lowers: vec![open("lower", false)?] };
    let settings = Settings { volatile: true, ..Settings::default() };
    Overlay::with_settings(layers, settings).map_err(|error| io::Error::other(error.to_string()))
}

/// Changes the mode of each file through an overlay.
fn copy_up(top: &Path, files: usize) -> io::Result<()> {
    let overlay = overlay(top)?;
    for file in 0..files {
        let path = file_of(Path::new(""), file, WIDTH);
        let [dir, name] = [path.parent(), path.file_name().map(Path::new)].map(|part| part.unwrap_or(&path));
        let dir = overlay.lookup(overlay.root(), dir.as_os_str())?;
        let node = overlay.lookup(&dir, OsStr::new(name))?;
        overlay.set_mode(&node, 0o600)?;
        overlay.release(node);
    }
    Ok(())
}
