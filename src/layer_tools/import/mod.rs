//! `import`: a layer as tar, or the layers of an OCI image, become lower directories.
//!
//! Each layer is unpacked in `UNFINISHED`, and then renamed to its digest. So a directory with
//! such a name is whole, and an import that was stopped goes on behind it.
//!
//! | file | subject |
//! | --- | --- |
//! | `unpack` | makes the objects of one archive |

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::archive::compress::{Digest, Hashed, decompress};
use super::oci::{Blob, ImageName, Layout, StoredLayer, check_blob, is_image};
use super::options::{Word, Words};
use super::{Error, Outcome, Progress, Tool, Watch, escaped};
use crate::errno::{EEXIST, ENOENT, EWOULDBLOCK};
use crate::layer::{Access, Kind, Layer, Object, OsLayer, Owner, RenameMode, read_start};
use crate::options;
use crate::overlay::on_disk::{Stack, remove_tree};

mod unpack;

pub use unpack::{LeftOut, Wishes, unpack};

/// The name of a layer that is not whole yet.
const UNFINISHED: &str = "unfinished";

/// The space for data on its way, in bytes.
const BUFFER: usize = 1 << 17;

/// The bytes of a file that tell whether an archive is one of an image.
const START: u64 = 4 << 20;

/// The source of an import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A layer as tar, with or without compression, or the archive of an image.
    Archive(PathBuf),
    /// A layer from standard input.
    Input,
    /// An image in an OCI layout, or in an archive.
    Image(ImageName),
}

impl Source {
    /// Returns the source that a word of the command line names: `-`, the file of an archive, or an
    /// image.
    pub fn parse(word: &OsStr) -> Self {
        let path = Path::new(word);
        if word == "-" {
            Source::Input
        } else if path.is_dir() {
            Source::Image(ImageName { layout: path.to_owned(), tag: None })
        } else if let Some(name) = ImageName::existing(word).filter(|_| !path.exists()) {
            Source::Image(name)
        } else {
            Source::Archive(path.to_owned())
        }
    }
}

/// The layers of an import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The directories, the topmost first.
    pub dirs: Vec<PathBuf>,
    /// The objects that they lack.
    pub left_out: LeftOut,
}

/// Imports the layers of `source` into directories of `into`, which is made if it is missing.
///
/// # Errors
///
/// - [`Error::At`]: the source is damaged or has what a layer cannot have, or `into` cannot be
///   written.
/// - [`Error::Refused`]: another import works there, or the source has no such image.
/// - [`Error::Stopped`]: `watch` wants to stop. The layers that are whole stay.
pub fn import(source: &Source, into: &Path, wishes: Wishes, watch: &dyn Watch) -> Result<Imported, Error> {
    let target = Target::open(made(into)?, wishes)?;
    let mut imported = Imported::default();
    match source {
        Source::Input => target.add(io::stdin().lock(), Path::new("standard input"), None, watch, &mut imported)?,
        Source::Archive(path) => match Layout::in_archive(path)? {
            Some(layout) => target.add_image(&layout, None, watch, &mut imported)?,
            None => {
                let file = File::open(path).map_err(|cause| Error::at("read", path, cause))?;
                watch.expect(Progress { objects: 0, bytes: file.metadata().map_or(0, |data| data.len()) });
                target.add(file, path, None, watch, &mut imported)?;
            }
        },
        Source::Image(name) => {
            target.add_image(&Layout::open(&name.layout)?, name.tag.as_deref(), watch, &mut imported)?;
        }
    }
    imported.dirs.reverse();
    Ok(imported)
}

/// Opens the directory for layers. Makes it if it is missing.
fn made(path: &Path) -> Result<OsLayer, Error> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::at("make", path, error)),
        _ => {}
    }
    let failed = |cause| Error::at("import into", path, cause);
    let path = path.canonicalize().map_err(failed)?;
    OsLayer::open(&path, true).map_err(|error| failed(error.into()))
}

/// Imports the layer that `source` has into a directory of `into`, as [`import`] does. `name`
/// stands for the source in errors. Returns the path of the directory, and what it lacks.
///
/// # Errors
///
/// Those of [`import`].
pub fn import_layer<L: Layer>(
    source: impl Read,
    name: &Path,
    into: L,
    wishes: Wishes,
    watch: &dyn Watch,
) -> Result<Imported, Error> {
    let mut imported = Imported::default();
    Target::open(into, wishes)?.add(source, name, None, watch, &mut imported)?;
    Ok(imported)
}

/// The directory that gets the layers.
struct Target<L: Layer> {
    /// Its content. The drop releases it for other imports.
    stack: Stack<L>,
    path: PathBuf,
    wishes: Wishes,
}

impl<L: Layer> Target<L> {
    fn open(layer: L, wishes: Wishes) -> Result<Self, Error> {
        let path = layer.path().unwrap_or(Path::new("")).to_owned();
        let failed = |cause: crate::errno::Error| Error::at("import into", &path, cause);
        match layer.hold() {
            Err(error) if error.errno == EWOULDBLOCK => {
                let path = escaped(&path);
                return Err(Error::Refused(format!("another program works on {path}: let it finish first")));
            }
            held => held.map_err(failed)?,
        }
        let stack = Stack::new(vec![layer], true).map_err(failed)?;
        let target = Target { stack, path: path.clone(), wishes };
        target.clear().map_err(failed)?;
        Ok(target)
    }

    /// Removes the leftover of an import that was stopped.
    fn clear(&self) -> crate::layer::Result<()> {
        let Some(root) = self.stack.upper_root() else { return Ok(()) };
        match remove_tree(&self.stack, root, OsStr::new(UNFINISHED), Kind::Dir) {
            Err(error) if error.errno == ENOENT => Ok(()),
            removed => removed,
        }
    }

    /// Returns the name of a layer, which tells what is in it.
    fn name(&self, diff_id: &Digest) -> String {
        let Wishes { no_devices, owner, rootless, limit: _ } = self.wishes;
        let mut name = diff_id.hex();
        if no_devices {
            name.push_str("-no-devices");
        }
        if let Some(Owner { uid, gid }) = owner {
            name.push_str(&format!("-{uid}-{gid}"));
        }
        if rootless {
            name.push_str("-rootless");
        }
        name
    }

    /// Whether a layer is there already. It is then the next one of `imported`.
    fn has(&self, diff_id: &Digest, imported: &mut Imported) -> Result<bool, Error> {
        let path = self.path.join(self.name(diff_id));
        let root = self.stack.top().root().map_err(|error| Error::at("read", &self.path, error))?;
        match self.stack.top().stat(Object::Entry(&root, OsStr::new(&self.name(diff_id)))) {
            Err(error) if error.errno == ENOENT => Ok(false),
            Err(error) => Err(Error::at("read", path, error)),
            Ok(_) => {
                if imported.dirs.last() != Some(&path) {
                    imported.dirs.push(path);
                }
                Ok(true)
            }
        }
    }

    /// Adds the layers of an image, the lowest first.
    fn add_image(
        &self,
        layout: &Layout,
        tag: Option<&str>,
        watch: &dyn Watch,
        imported: &mut Imported,
    ) -> Result<(), Error> {
        let layers = layout.layers(tag)?;
        watch.expect(Progress { objects: 0, bytes: layers.iter().map(|layer| layer.size).sum() });
        for layer in layers {
            if self.has(&layer.diff_id, imported)? {
                watch.advance(Progress { objects: 0, bytes: layer.size });
                continue;
            }
            let (source, _) = layout.part(&layer.path).map_err(|cause| Error::at("read", &layer.path, cause))?;
            self.add(source, &layer.path, Some(&layer), watch, imported)?;
        }
        Ok(())
    }

    /// Adds the layer that `source` has. Removes what it made if that fails.
    fn add(
        &self,
        source: impl Read,
        name: &Path,
        wanted: Option<&StoredLayer>,
        watch: &dyn Watch,
        imported: &mut Imported,
    ) -> Result<(), Error> {
        let added = self.try_add(source, name, wanted, watch, imported);
        if added.is_err()
            && let Err(error) = self.clear()
        {
            log::warn!("cannot remove {}: {error}", self.path.join(UNFINISHED).display());
        }
        added
    }

    fn try_add(
        &self,
        source: impl Read,
        name: &Path,
        wanted: Option<&StoredLayer>,
        watch: &dyn Watch,
        imported: &mut Imported,
    ) -> Result<(), Error> {
        let failed = |cause: crate::errno::Error| Error::at("import into", &self.path, cause);
        let unreadable = |cause| unpack::archive_error(name, super::archive::Error::Io(cause));
        let (parent, unfinished) = (self.stack.top(), OsStr::new(UNFINISHED));
        let root = parent.root().map_err(failed)?;
        parent.create_dir(&root, unfinished, 0o700, parent.identity()).map_err(failed)?;
        let layer = self.unfinished(true).map_err(failed)?;

        let blob = wanted.and_then(|wanted| wanted.wanted.as_ref()).map(|(blob, _)| *blob);
        // Only a layout says the digest of what is compressed.
        let mut stored = match blob {
            Some(_) => Stored::Hashed(Hashed::new(Watched { source, watch })),
            None => Stored::Plain(Watched { source, watch }),
        };
        let mut plain = Hashed::new(decompress(BufReader::with_capacity(BUFFER, &mut stored)).map_err(unreadable)?);
        let left_out = unpack(layer, BufReader::with_capacity(BUFFER, &mut plain), name, self.wishes, watch)?;
        let (rest, diff_id, _) = plain.finish();
        drop(rest);
        io::copy(&mut stored, &mut io::sink()).map_err(unreadable)?;
        if let (Some(blob), Stored::Hashed(stored)) = (blob, stored) {
            let (_, digest, size) = stored.finish();
            check_blob(name, &blob, &Blob { digest, size })?;
        }
        match wanted {
            Some(layer) if diff_id != layer.diff_id => {
                let (form, wanted) = (layer.media_type(), layer.diff_id);
                let cause = format!("the digest of its content ({form}) is {diff_id}, and its image says {wanted}");
                return Err(Error::at("use", name, io::Error::other(cause)));
            }
            None if self.has_image().map_err(failed)? => {
                let cause = "it is the archive of an image: import it from a file, without compression";
                return Err(Error::at("use", name, io::Error::other(cause)));
            }
            _ => {}
        }
        let LeftOut { devices, attributes, reserved } = left_out;
        imported.left_out.devices += devices;
        imported.left_out.attributes += attributes;
        imported.left_out.reserved += reserved;
        let new_name = self.name(&diff_id);
        match parent.rename(&root, unfinished, &root, OsStr::new(&new_name), RenameMode::NoReplace) {
            // The same archive was imported before.
            Err(error) if error.errno == EEXIST => self.clear().map_err(failed)?,
            renamed => renamed.map_err(failed)?,
        }
        parent.sync_dir(&root).map_err(failed)?;
        imported.dirs.push(self.path.join(new_name));
        Ok(())
    }

    /// Opens the layer that is not whole yet.
    fn unfinished(&self, for_writing: bool) -> crate::layer::Result<L> {
        let parent = self.stack.top();
        let dir = parent.open_dir(&parent.root()?, OsStr::new(UNFINISHED))?;
        parent.below(&dir, &self.path.join(UNFINISHED), for_writing)
    }

    /// Whether the layer that is not whole yet has the files of an image.
    fn has_image(&self) -> crate::layer::Result<bool> {
        let layer = self.unfinished(false)?;
        let root = layer.root()?;
        Ok(is_image(|name| {
            let file = layer.open_file(&root, OsStr::new(name), Access::Read).ok()?;
            let size = layer.stat(Object::File(&file)).ok()?.size;
            read_start(&layer, &file, size.min(START) as usize).ok()
        }))
    }
}

/// A source, with the digest of what was read or without it.
enum Stored<R> {
    Plain(R),
    Hashed(Hashed<R>),
}

impl<R: Read> Read for Stored<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stored::Plain(source) => source.read(buffer),
            Stored::Hashed(source) => source.read(buffer),
        }
    }
}

/// A reader that counts for an observer, and ends with an error if that wants to stop.
struct Watched<'a, R> {
    source: R,
    watch: &'a dyn Watch,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.wants_stop() {
            return Err(stop());
        }
        let count = self.source.read(buffer)?;
        self.watch.advance(Progress { objects: 0, bytes: count as u64 });
        Ok(count)
    }
}

/// The error of a reader that was stopped.
#[derive(Debug)]
struct Stop;

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the work was stopped")
    }
}

impl std::error::Error for Stop {}

fn stop() -> io::Error {
    io::Error::other(Stop)
}

fn is_stop(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Stop>())
}

/// The subcommand `import`.
struct Import {
    source: OsString,
    into: PathBuf,
    wishes: Wishes,
}

/// Parses the options of `import`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let (mut wishes, mut places) = (Wishes::default(), Vec::new());
    while let Some(word) = words.word()? {
        match word {
            Word::Value(place) => places.push(place),
            Word::Option(option) => match option.as_str() {
                "--no-devices" => wishes.no_devices = true,
                "--rootless" => wishes.rootless = true,
                "--owner" => wishes.owner = Some(owner(&words.value()?)?),
                "--limit" => wishes.limit = Some(bytes(&words.value()?)?),
                other => return Err(words.unknown(other)),
            },
        }
    }
    match <[OsString; 2]>::try_from(places) {
        Ok([source, into]) => Ok(Box::new(Import { source, into: into.into(), wishes })),
        Err(_) => {
            Err(options::Error::new("import needs two words: the archive or image, and the directory for layers."))
        }
    }
}

/// Parses `UID:GID`.
fn owner(word: &OsStr) -> Result<Owner, options::Error> {
    let ids = word.to_str().and_then(|word| word.split_once(':'));
    let ids = ids.and_then(|(uid, gid)| Some(Owner { uid: uid.parse().ok()?, gid: gid.parse().ok()? }));
    ids.ok_or_else(|| options::Error::new(format!("{} is no owner: write UID:GID.", word.display())))
}

/// Parses a number of bytes, with or without one of the letters K, M, G and T.
fn bytes(word: &OsStr) -> Result<u64, options::Error> {
    let parse = || {
        let word = word.to_str()?;
        let unit =
            word.bytes().last().and_then(|last| "KMGT".bytes().position(|unit| unit == last.to_ascii_uppercase()));
        let (digits, shift) = match unit {
            Some(unit) => (&word[..word.len() - 1], 10 * (unit + 1)),
            None => (word, 0),
        };
        digits.parse::<u64>().ok()?.checked_mul(1 << shift)
    };
    parse().ok_or_else(|| options::Error::new(format!("{} is no number of bytes, such as 500M.", word.display())))
}

impl Tool for Import {
    fn run(&self, out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        let imported = import(&Source::parse(&self.source), &self.into, self.wishes, watch)?;
        print(out, &imported).map_err(Error::output)?;
        Ok(Outcome::Done)
    }
}

/// Prints the directories, the topmost first, and the option for a mount.
fn print(out: &mut dyn Write, imported: &Imported) -> io::Result<()> {
    let mut option = b"lowerdir=".to_vec();
    for (at, dir) in imported.dirs.iter().enumerate() {
        out.write_all(dir.as_os_str().as_bytes())?;
        out.write_all(b"\n")?;
        if at > 0 {
            option.push(b':');
        }
        for byte in dir.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                option.push(b'\\');
            }
            option.push(*byte);
        }
    }
    option.push(b'\n');
    out.write_all(&option)?;
    let LeftOut { devices, attributes, reserved } = imported.left_out;
    let counts = [
        (devices, "devices"),
        (attributes, "extended attributes that only root may set"),
        (reserved, "entries of other programs (.wh..wh.*)"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        log::warn!("left out: {count} {what}");
    }
    out.flush()
}
