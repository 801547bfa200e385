//! `export`: what an upper layer changes becomes an OCI image layer, as tar or in an image.
//!
//! | file | subject |
//! | --- | --- |
//! | `tree` | from the changes between two merged trees to the members of an archive |

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::archive::compress::{Compression, Compressor, Digest, Hashed};
use super::oci::{Blob, Image, ImageName, Layout, layer_descriptor, new_config};
use super::options::{Word, Words, check_upper};
use super::{Error, Outcome, Tool, Views, Watch, escaped};
use crate::layer::{Layer, OsLayer};
use crate::options::{self, Options};
use crate::overlay::on_disk::other_lowers;

mod tree;

pub use tree::{Exported, Holes, write_layer};

/// The space for data on its way, in bytes.
const BUFFER: usize = 1 << 17;

/// The tag of an image without another one.
const TAG: &str = "latest";

/// The place that gets the export.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Output,
    File(PathBuf),
    Image { name: ImageName, base: Option<ImageName> },
}

/// The subcommand `export`.
struct Export {
    layers: Options,
    compression: Compression,
    place: Place,
}

/// Parses the options of `export`.
///
/// # Errors
///
/// Each names the wrong or missing word.
pub fn parse(words: &mut Words) -> Result<Box<dyn Tool>, options::Error> {
    let mut layers = Options::default();
    let (mut file, mut layout, mut base, mut wanted) = (None, None, None, None);
    while let Some(word) = words.word()? {
        match &word {
            Word::Value(place) if file.is_none() => file = Some(PathBuf::from(place)),
            Word::Option(option) if option == "--oci-layout" => layout = Some(PathBuf::from(words.value()?)),
            Word::Option(option) if option == "--base" => base = Some(PathBuf::from(words.value()?)),
            Word::Option(option) if option == "--format" => wanted = Some(format(&words.value()?)?),
            _ => words.take_layers(&word, &mut layers)?,
        }
    }
    check_upper(&mut layers)?;
    let refused = |sentence: &str| Err(options::Error::new(sentence.to_owned()));
    let (place, usual) = match (file, layout) {
        (Some(_), None) if base.is_some() => return refused("--base needs --oci-layout."),
        (Some(file), None) if file == Path::new("-") => (Place::Output, Some(Compression::None)),
        (Some(file), None) => {
            let usual = of_name(&file);
            (Place::File(file), usual)
        }
        (None, Some(layout)) => {
            let base =
                base.map(|base| ImageName::existing(base.as_os_str()).unwrap_or_else(|| ImageName::parse(&base)));
            (Place::Image { name: ImageName::parse(&layout), base }, Some(Compression::Gzip))
        }
        (Some(_), Some(_)) => return refused("A file and --oci-layout are both given: leave one of them out."),
        (None, None) => return refused("Nothing is named to write to: name a file, - or --oci-layout."),
    };
    let Some(compression) = wanted.or(usual) else {
        return refused("The name of the file does not tell its format: add --format tar, tar.gz or tar.zst.");
    };
    Ok(Box::new(Export { layers, compression, place }))
}

/// Returns the format of a word.
fn format(word: &OsStr) -> Result<Compression, options::Error> {
    let found = Compression::ALL.iter().find(|(name, _)| *name == word);
    let unknown = || options::Error::new(format!("There is no format {}: use tar, tar.gz or tar.zst.", word.display()));
    found.map(|(_, compression)| *compression).ok_or_else(unknown)
}

/// Returns the format that the name of a file tells.
fn of_name(file: &Path) -> Option<Compression> {
    let name = file.file_name()?.as_bytes();
    Compression::ALL.iter().find(|(end, _)| name.ends_with(format!(".{end}").as_bytes())).map(|(_, found)| *found)
}

impl Tool for Export {
    fn run(&self, out: &mut dyn Write, watch: &dyn Watch) -> Result<Outcome, Error> {
        match &self.place {
            Place::Output => {
                if io::stdout().is_terminal() {
                    return Err(Error::Refused("standard output is a terminal: name a file".to_owned()));
                }
                let views = self.views(watch)?;
                let form = (self.compression, Holes::Kept);
                export(&views, out, Path::new("standard output"), form, watch)?.report();
            }
            Place::File(path) => {
                let views = self.views(watch)?;
                let form = (self.compression, Holes::Kept);
                in_new_file(path, |file| export(&views, file, path, form, watch))?.report();
            }
            Place::Image { name, base } => self.image(name, base.as_ref(), watch)?,
        }
        Ok(Outcome::Done)
    }
}

impl Export {
    /// Opens the trees with and without the upper layer. Tells if that was on other lower layers:
    /// its deletions and renames are about these.
    fn views(&self, watch: &dyn Watch) -> Result<Views<OsLayer>, Error> {
        let views = Views::open_without_numbers(&self.layers, None)?;
        let difference = views.above.as_ref().map_or(Ok(None), other_lowers);
        let upper = || self.layers.upper.clone().unwrap_or_default();
        if let Some(difference) = difference.map_err(|error| Error::at("read", upper(), error))? {
            watch.tell(&format!(
                "{} was mounted last on other lower layers, so what it deletes and renames may be wrong here: \
                 {difference}",
                escaped(&upper())
            ));
        }
        Ok(views)
    }

    /// Adds an image: that of `base` with the changes of the upper layer on top, or without a base
    /// one with a layer for each directory.
    fn image(&self, name: &ImageName, base: Option<&ImageName>, watch: &dyn Watch) -> Result<(), Error> {
        let layout = Layout::open_or_make(&name.layout)?;
        let Options { lowers, .. } = &self.layers;
        let mut image = match base {
            Some(base) => layout.take_image(&Layout::open(&base.layout)?, base.tag.as_deref())?,
            None => Image { config: new_config(), layers: Vec::new() },
        };
        if base.is_none() {
            for (at, _) in lowers.iter().enumerate().rev() {
                let above = Options { lowers: lowers[at..].to_owned(), ..Options::default() };
                self.layer(&layout, &Views::open_without_numbers(&above, Some(&lowers[at + 1..]))?, &mut image, watch)?;
            }
        }
        self.layer(&layout, &self.views(watch)?, &mut image, watch)?;
        layout.add_image(&image, name.tag.as_deref().unwrap_or(TAG))
    }

    /// Adds a layer to an image.
    fn layer<L: Layer>(
        &self,
        layout: &Layout,
        views: &Views<L>,
        image: &mut Image,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let compression = self.compression;
        let (blob, (diff_id, exported)): (Blob, _) =
            layout.add_blob(|to| export_for_image(views, to, layout.path(), compression, watch))?;
        exported.report();
        image.layers.push((layer_descriptor(&blob, compression), diff_id));
        let step = json!({"created_by": "overlayfs-layer export"});
        // Where the layers below have no history, one of this layer alone would be wrong.
        if let Some(history) = image.config["history"].as_array_mut() {
            history.push(step);
        }
        Ok(())
    }
}

impl Exported {
    fn report(&self) {
        if self.sockets > 0 {
            log::warn!("left out: {} sockets, which an archive cannot have", self.sockets);
        }
    }
}

/// Writes the changes between two trees as an archive, compressed. `name` stands for `to` in
/// errors.
///
/// # Errors
///
/// Those of [`write_layer`].
pub fn export<L: Layer>(
    views: &Views<L>,
    to: impl Write,
    name: &Path,
    (compression, holes): (Compression, Holes),
    watch: &dyn Watch,
) -> Result<Exported, Error> {
    let compressed = Compressor::new(BufWriter::with_capacity(BUFFER, to), compression);
    let plain = BufWriter::with_capacity(BUFFER, compressed);
    let (plain, exported) = write_layer(views, plain, name, holes, watch)?;
    let ended = plain.into_inner().map_err(io::IntoInnerError::into_error).and_then(end);
    ended.map_err(|cause| Error::at("write to", name, cause))?;
    Ok(exported)
}

/// Does the same for an image. Also returns the digest without the compression (DiffID).
fn export_for_image<L: Layer>(
    views: &Views<L>,
    to: impl Write,
    name: &Path,
    compression: Compression,
    watch: &dyn Watch,
) -> Result<(Digest, Exported), Error> {
    let compressed = Compressor::new(BufWriter::with_capacity(BUFFER, to), compression);
    let plain = BufWriter::with_capacity(BUFFER, Hashed::new(compressed));
    let (plain, exported) = write_layer(views, plain, name, Holes::Zeros, watch)?;
    let finish = || {
        let (compressed, digest, _) = plain.into_inner().map_err(io::IntoInnerError::into_error)?.finish();
        end(compressed).map(|()| digest)
    };
    Ok((finish().map_err(|cause| Error::at("write to", name, cause))?, exported))
}

/// Ends a compressed stream.
fn end(compressed: Compressor<BufWriter<impl Write>>) -> io::Result<()> {
    compressed.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.flush()
}

/// Writes a file that gets its name when it is whole. A pipe or a device is written to as it is.
fn in_new_file<T>(path: &Path, write: impl FnOnce(&File) -> Result<T, Error>) -> Result<T, Error> {
    let failed = |cause| Error::at("write to", path, cause);
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return write(&File::options().write(true).open(path).map_err(failed)?);
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let file = File::create(&new).map_err(failed)?;
    let written = write(&file).and_then(|done| {
        file.sync_all().and_then(|()| fs::rename(&new, path)).map_err(failed)?;
        Ok(done)
    });
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&new);
    }
    written
}
