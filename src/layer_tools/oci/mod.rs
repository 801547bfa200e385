//! OCI image layouts: a directory with the layers of images, as skopeo, podman and umoci read and
//! write it (image-spec, `image-layout.md`). A layout may also be in an archive.
//!
//! Every blob that is read is compared with its size and digest.
//!
//! | file | subject |
//! | --- | --- |
//! | `bundle` | reads parts of an image in an archive |
//! | `docker` | the archives of `docker save` |

use std::env::consts;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Error;
use super::archive::compress::{Compression, Digest, Hashed};
use bundle::Bundle;

mod bundle;
mod docker;

/// The most bytes of an index, a manifest or a configuration.
const DOCUMENT_MAX: u64 = 4 << 20;
/// The most indexes on the way to a manifest.
const INDEXES: usize = 4;

/// The annotation with the tag of an image.
const TAG: &str = "org.opencontainers.image.ref.name";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The file that makes a directory a layout.
const VERSION: &str = "oci-layout";
/// The list of images in a layout.
const IMAGES: &str = "index.json";

/// An image layout.
pub struct Layout {
    /// The directory, or the archive. Then paths of parts begin with the path of the archive too.
    dir: PathBuf,
    bundle: Option<Bundle>,
}

/// A layer of an image in a layout.
pub struct StoredLayer {
    /// Its path, for [`Layout::part`].
    pub path: PathBuf,
    /// The size of the file in bytes.
    pub size: u64,
    /// The digest and size of the file, and the descriptor that says them. None in an archive of
    /// docker, where nothing does.
    pub wanted: Option<(Blob, Value)>,
    /// The digest without compression (DiffID).
    pub diff_id: Digest,
}

impl StoredLayer {
    /// Returns the form that the image says.
    pub fn media_type(&self) -> &str {
        self.wanted.as_ref().map_or("layer of docker", |(_, said)| said["mediaType"].as_str().unwrap_or("no type"))
    }
}

/// The digest and the size of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The digest.
    pub digest: Digest,
    /// The size in bytes.
    pub size: u64,
}

/// An image: its configuration, and its layers with the lowest first.
pub struct Image {
    /// The configuration.
    pub config: Value,
    /// The descriptor and the digest without compression (DiffID) of each layer.
    pub layers: Vec<(Value, Digest)>,
}

/// A name of an image: a layout, and maybe a tag in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// The directory of the layout.
    pub layout: PathBuf,
    /// The tag. None: the only image, or `latest`.
    pub tag: Option<String>,
}

impl ImageName {
    /// Returns the image of a word `PATH:TAG`, if the path exists. A tag may have colons and
    /// slashes.
    pub fn existing(word: &OsStr) -> Option<Self> {
        let bytes = word.as_bytes();
        let colons = bytes.iter().enumerate().rev().filter(|(at, byte)| **byte == b':' && at + 1 < bytes.len());
        colons.map(|(at, _)| (Path::new(OsStr::from_bytes(&bytes[..at])), &bytes[at + 1..])).find_map(|(path, tag)| {
            let tag = str::from_utf8(tag).ok().filter(|_| path.exists())?;
            Some(ImageName { layout: path.to_owned(), tag: Some(tag.to_owned()) })
        })
    }

    /// Parses `LAYOUT` or `LAYOUT:TAG`. A colon behind the last slash begins a tag.
    pub fn parse(text: &Path) -> Self {
        let name = text.file_name().and_then(|name| name.to_str()).and_then(|name| name.rsplit_once(':'));
        match name {
            Some((name, tag)) if !name.is_empty() && !tag.is_empty() => {
                ImageName { layout: text.with_file_name(name), tag: Some(tag.to_owned()) }
            }
            _ => ImageName { layout: text.to_owned(), tag: None },
        }
    }
}

impl Layout {
    /// Opens a layout, or the archive of one, or one of `docker save`.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be read, or is none.
    pub fn open(path: &Path) -> Result<Self, Error> {
        if path.is_dir() {
            let layout = Layout { dir: path.to_owned(), bundle: None };
            return layout.check_version().map(|()| layout);
        }
        let none = "it is no archive of an image, or is compressed";
        Self::in_archive(path)?.ok_or_else(|| Error::at("use", path, io::Error::other(none)))
    }

    /// Opens the layout in an archive, or what `docker save` writes. None if that has no image.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be read, or has another version.
    pub fn in_archive(path: &Path) -> Result<Option<Self>, Error> {
        let bundle = Bundle::open(path).map_err(|cause| Error::at("read", path, cause))?;
        let Some(bundle) = bundle else { return Ok(None) };
        let is_oci = bundle.has(VERSION);
        let layout = Layout { dir: path.to_owned(), bundle: Some(bundle) };
        let bytes = |name: &str| layout.bytes(&layout.dir.join(name)).ok();
        if !is_image(bytes) {
            return Ok(None);
        }
        if is_oci {
            layout.check_version()?;
        }
        Ok(Some(layout))
    }

    fn check_version(&self) -> Result<(), Error> {
        let path = self.dir.join(VERSION);
        let said = self.document(&path, None)?;
        match said["imageLayoutVersion"].as_str() {
            Some(version) if version.starts_with("1.") => Ok(()),
            _ => Err(Error::at("read", path, io::Error::other("it does not name the version 1 of layouts"))),
        }
    }

    /// Whether a directory is a layout.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(VERSION).is_file()
    }

    /// Opens a layout, or makes an empty one.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be read or made.
    pub fn open_or_make(dir: &Path) -> Result<Self, Error> {
        if Self::is_at(dir) {
            return Self::open(dir);
        }
        let failed = |cause| Error::at("make the image layout", dir, cause);
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(failed(io::Error::other("the directory has other content")));
        }
        fs::create_dir_all(dir.join("blobs/sha256")).map_err(failed)?;
        let layout = Layout { dir: dir.to_owned(), bundle: None };
        layout.replace(IMAGES, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}))?;
        // The last file makes it a layout.
        layout.replace(VERSION, &json!({"imageLayoutVersion": "1.0.0"}))?;
        Ok(layout)
    }

    /// Returns an image.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a part cannot be read, is damaged, or has another digest.
    /// - [`Error::Refused`]: there is no such image, or several without a tag.
    pub fn image(&self, tag: Option<&str>) -> Result<Image, Error> {
        let index = self.document(&self.dir.join(IMAGES), None)?;
        let images = index["manifests"].as_array().into_iter().flatten();
        let images: Vec<_> =
            images.map(|image| (tag_of(image).map(str::to_owned).into_iter().collect(), image)).collect();
        let mut found = self.choose(&images, tag)?.clone();
        for _ in 0..INDEXES {
            let path = self.blob_path(&blob_of(&found, &self.dir)?.digest);
            let document = self.document(&path, Some(&found))?;
            if document["manifests"].is_array() {
                found = self.for_this_machine(&document)?;
                continue;
            }
            return self.image_of(&document, &path);
        }
        Err(self.refused("has indexes in indexes"))
    }

    /// Returns the layers of an image, the lowest first.
    ///
    /// # Errors
    ///
    /// Those of [`Layout::image`].
    pub fn layers(&self, tag: Option<&str>) -> Result<Vec<StoredLayer>, Error> {
        self.stored(tag).map(|(_, layers)| layers)
    }

    /// Returns the configuration of an image, and its layers, the lowest first.
    fn stored(&self, tag: Option<&str>) -> Result<(Value, Vec<StoredLayer>), Error> {
        if self.bundle.as_ref().is_some_and(|bundle| !bundle.has(VERSION)) {
            return docker::stored(self, tag);
        }
        let layer = |(descriptor, diff_id): (Value, Digest)| {
            let blob = blob_of(&descriptor, &self.dir)?;
            let path = self.blob_path(&blob.digest);
            Ok(StoredLayer { path, size: blob.size, wanted: Some((blob, descriptor)), diff_id })
        };
        let Image { config, layers } = self.image(tag)?;
        Ok((config, layers.into_iter().map(layer).collect::<Result<_, Error>>()?))
    }

    /// Returns the image with this tag. Each image has its tags before it.
    fn choose<'i>(&self, images: &[(Vec<String>, &'i Value)], tag: Option<&str>) -> Result<&'i Value, Error> {
        let with =
            |tag: &str| images.iter().find(|(tags, _)| tags.iter().any(|one| one == tag)).map(|(_, image)| *image);
        let found = match (tag, images) {
            (Some(tag), _) => with(tag),
            (None, [(_, only)]) => Some(*only),
            (None, _) => with("latest"),
        };
        found.ok_or_else(|| {
            let tags: Vec<_> = images.iter().flat_map(|(tags, _)| tags.iter().map(String::as_str)).collect();
            match tag {
                _ if images.is_empty() => self.refused("has no image"),
                Some(tag) => self.refused(&format!("has no image with the tag {tag}, only: {}", tags.join(", "))),
                None => self.refused(&format!("has several images: name one of the tags {}", tags.join(", "))),
            }
        })
    }

    /// Returns the entry of an index for this system and processor, or the only one.
    fn for_this_machine(&self, index: &Value) -> Result<Value, Error> {
        let images: Vec<_> = index["manifests"].as_array().into_iter().flatten().collect();
        let fits = |image: &&&Value| {
            let platform = &image["platform"];
            platform["architecture"] == architecture() && platform["os"] == consts::OS
        };
        let found = images.iter().find(fits).or(images.first().filter(|_| images.len() == 1));
        let cause = || self.refused(&format!("has no image for {} on {}", consts::OS, architecture()));
        found.map(|image| (*image).clone()).ok_or_else(cause)
    }

    fn image_of(&self, manifest: &Value, path: &Path) -> Result<Image, Error> {
        let damaged = |cause: &str| Error::at("read", path, io::Error::other(cause.to_owned()));
        let layers = manifest["layers"].as_array().ok_or_else(|| damaged("it is no manifest of an image"))?;
        let config_path = self.blob_path(&blob_of(&manifest["config"], path)?.digest);
        let config = self.document(&config_path, Some(&manifest["config"]))?;
        let diff_ids = diff_ids(&config, layers.len());
        let diff_ids = diff_ids.ok_or_else(|| damaged("its configuration does not have the digest of each layer"))?;
        Ok(Image { config, layers: layers.iter().cloned().zip(diff_ids).collect() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Returns the path of a blob.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// Reads a JSON document. With a descriptor it must be that blob.
    fn document(&self, path: &Path, descriptor: Option<&Value>) -> Result<Value, Error> {
        let bytes = self.bytes(path)?;
        if let Some(descriptor) = descriptor {
            let found = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
            check_blob(path, &blob_of(descriptor, path)?, &found)?;
        }
        serde_json::from_slice(&bytes).map_err(|error| Error::at("read", path, io::Error::other(error)))
    }

    /// Reads a small file of the layout.
    fn bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let failed = |cause| Error::at("read", path, cause);
        let mut bytes = Vec::new();
        let (part, _) = self.part(path).map_err(failed)?;
        part.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        match bytes.len() as u64 > DOCUMENT_MAX {
            true => Err(failed(io::Error::other(format!("it has more than {DOCUMENT_MAX} bytes")))),
            false => Ok(bytes),
        }
    }

    /// Returns a reader of a file of the layout, and the length of that.
    ///
    /// # Errors
    ///
    /// Those of [`File::open`].
    pub fn part(&self, path: &Path) -> io::Result<(Box<dyn Read + '_>, u64)> {
        let Some(bundle) = &self.bundle else {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            return Ok((Box::new(file), length));
        };
        let (part, length) = bundle.part(path.strip_prefix(&self.dir).unwrap_or(path))?;
        Ok((Box::new(part), length))
    }

    fn refused(&self, cause: &str) -> Error {
        Error::Refused(format!("the image layout {} {cause}", self.dir.display()))
    }

    /// Replaces a file of the layout in one step.
    fn replace(&self, name: &str, content: &Value) -> Result<(), Error> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(content.to_string().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        });
        written.map_err(|cause| Error::at("write", path, cause))
    }

    /// Writes a blob through `write`, and returns it with what `write` returned.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be written.
    ///
    /// Others of `write`.
    pub fn add_blob<T>(&self, write: impl FnOnce(&mut Hashed<File>) -> Result<T, Error>) -> Result<(Blob, T), Error> {
        let new = self.dir.join(format!("blob.{}.new", std::process::id()));
        let added = File::create(&new).map_err(|cause| Error::at("write", &new, cause)).and_then(|file| {
            let mut file = Hashed::new(file);
            let done = write(&mut file)?;
            let (file, digest, size) = file.finish();
            let path = self.blob_path(&digest);
            let placed = file.sync_all().and_then(|()| fs::rename(&new, &path));
            placed.map_err(|cause| Error::at("write", path, cause))?;
            Ok((Blob { digest, size }, done))
        });
        if added.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&new);
        }
        added
    }

    /// Copies the layers of an image of another layout, unless they are here already. Returns the
    /// image.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a layer cannot be read or written, or has another digest.
    ///
    /// Others of [`Layout::image`].
    pub fn take_image(&self, from: &Layout, tag: Option<&str>) -> Result<Image, Error> {
        let (config, layers) = from.stored(tag)?;
        let take = |layer: StoredLayer| Ok((self.take_layer(from, &layer)?, layer.diff_id));
        Ok(Image { config, layers: layers.into_iter().map(take).collect::<Result<_, Error>>()? })
    }

    /// Copies a layer of another layout. Returns its descriptor.
    fn take_layer(&self, from: &Layout, layer: &StoredLayer) -> Result<Value, Error> {
        let StoredLayer { path, wanted, diff_id, .. } = layer;
        let digest = wanted.as_ref().map_or(diff_id, |(blob, _)| &blob.digest);
        if let Some((_, descriptor)) = wanted.as_ref().filter(|_| self.blob_path(digest).is_file()) {
            return Ok(descriptor.clone());
        }
        let (found, ()) = self.add_blob(|to| {
            let (part, _) = from.part(path).map_err(|cause| Error::at("read", path, cause))?;
            let copied = io::copy(&mut BufReader::with_capacity(1 << 17, part), to);
            copied.map(drop).map_err(|cause| Error::at("copy", path, cause))
        })?;
        if let Some((blob, descriptor)) = wanted {
            return check_blob(path, blob, &found).map(|()| descriptor.clone());
        }
        match found.digest == *diff_id {
            true => Ok(layer_descriptor(&found, Compression::None)),
            false => {
                let cause = format!("its digest is {}, and its image says {diff_id}", found.digest);
                Err(Error::at("use", path, io::Error::other(cause)))
            }
        }
    }

    /// Writes the configuration and the manifest of an image, and gives it a tag. An image that had
    /// the tag loses it.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a part cannot be read or written.
    pub fn add_image(&self, image: &Image, tag: &str) -> Result<(), Error> {
        let mut config = image.config.clone();
        let diff_ids: Vec<_> = image.layers.iter().map(|(_, digest)| digest.to_string()).collect();
        config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
        let config = self.add_document(&config)?;
        let layers: Vec<_> = image.layers.iter().map(|(descriptor, _)| descriptor).collect();
        let manifest = self.add_document(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers,
        }))?;
        let mut entry = descriptor(MANIFEST, &manifest);
        entry["annotations"] = json!({TAG: tag});
        let mut index = self.document(&self.dir.join(IMAGES), None)?;
        let Some(images) = index["manifests"].as_array_mut() else {
            return Err(self.refused("has a damaged index"));
        };
        images.retain(|image| tag_of(image) != Some(tag));
        images.push(entry);
        self.replace(IMAGES, &index)
    }

    fn add_document(&self, document: &Value) -> Result<Blob, Error> {
        let write = |to: &mut Hashed<File>| {
            let written = to.write_all(document.to_string().as_bytes());
            written.map_err(|cause| Error::at("write to", &self.dir, cause))
        };
        Ok(self.add_blob(write)?.0)
    }
}

/// Returns the descriptor of a layer.
pub fn layer_descriptor(blob: &Blob, compression: Compression) -> Value {
    let suffix = match compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    descriptor(&format!("{LAYER}{suffix}"), blob)
}

/// Returns the configuration of an image without layers for this system and processor.
pub fn new_config() -> Value {
    json!({"architecture": architecture(), "os": consts::OS, "config": {}, "history": []})
}

/// Whether a directory has an image: a layout, or what `docker save` writes. `file` returns the
/// content of a file.
pub fn is_image(file: impl Fn(&str) -> Option<Vec<u8>>) -> bool {
    let parsed = |name| file(name).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    parsed(VERSION).is_some_and(|said| said["imageLayoutVersion"].is_string()) && file(IMAGES).is_some()
        || parsed(docker::MANIFEST).is_some_and(|list| docker::is_list(&list))
}

/// Returns the digests without compression that a configuration has for this many layers.
fn diff_ids(config: &Value, count: usize) -> Option<Vec<Digest>> {
    let digests = config["rootfs"]["diff_ids"].as_array()?.iter();
    let digests: Vec<_> = digests.map(|digest| Digest::parse(digest.as_str()?)).collect::<Option<_>>()?;
    Some(digests).filter(|digests| digests.len() == count)
}

/// Compares a blob with the one that was wanted.
///
/// # Errors
///
/// - [`Error::At`]: it has another size or digest.
pub fn check_blob(path: &Path, wanted: &Blob, found: &Blob) -> Result<(), Error> {
    let cause = if wanted.size != found.size {
        format!("it has {} bytes, and its image says {}", found.size, wanted.size)
    } else if wanted.digest != found.digest {
        format!("its digest is {}", found.digest)
    } else {
        return Ok(());
    };
    Err(Error::at("use", path, io::Error::other(cause)))
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({"mediaType": media_type, "digest": blob.digest.to_string(), "size": blob.size})
}

fn blob_of(descriptor: &Value, place: &Path) -> Result<Blob, Error> {
    let (digest, size) = (descriptor["digest"].as_str(), descriptor["size"].as_u64());
    match (digest.and_then(Digest::parse), size) {
        (Some(digest), Some(size)) => Ok(Blob { digest, size }),
        _ => {
            let digest = digest.unwrap_or("nothing");
            Err(Error::at(
                "use",
                place,
                io::Error::other(format!("it names a blob by {digest}, not by SHA-256 and size")),
            ))
        }
    }
}

fn tag_of(descriptor: &Value) -> Option<&str> {
    descriptor["annotations"][TAG].as_str()
}

/// Returns the name that images have for this processor.
fn architecture() -> &'static str {
    match consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_have_a_tag() {
        for (text, layout, tag) in [
            ("image", "image", None),
            ("a/image:tag", "a/image", Some("tag")),
            ("a:b/image", "a:b/image", None),
            ("image:", "image:", None),
            (":tag", ":tag", None),
        ] {
            let name = ImageName { layout: layout.into(), tag: tag.map(str::to_owned) };
            assert_eq!(ImageName::parse(Path::new(text)), name, "{text}");
        }
    }
}
