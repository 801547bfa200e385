//! OCI image layouts: a directory with the layers of images, as skopeo, podman and umoci read and
//! write it (image-spec, `image-layout.md`).
//!
//! Every blob that is read is compared with its size and digest.

use std::env::consts;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::Error;
use super::archive::compress::{Compression, Digest, Hashed};

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

/// An image layout.
pub struct Layout {
    dir: PathBuf,
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
    /// Opens a layout.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be read, or is none.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let layout = Layout { dir: dir.to_owned() };
        let path = dir.join("oci-layout");
        let said = layout.document(&path, None)?;
        match said["imageLayoutVersion"].as_str() {
            Some(version) if version.starts_with("1.") => Ok(layout),
            _ => Err(Error::at("read", path, io::Error::other("it does not name the version 1 of layouts"))),
        }
    }

    /// Whether a directory is a layout.
    pub fn is_at(dir: &Path) -> bool {
        dir.join("oci-layout").is_file()
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
        let layout = Layout { dir: dir.to_owned() };
        layout.replace("index.json", &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}))?;
        // The last file makes it a layout.
        layout.replace("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        Ok(layout)
    }

    /// Returns an image.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: a part cannot be read, is damaged, or has another digest.
    /// - [`Error::Refused`]: there is no such image, or several without a tag.
    pub fn image(&self, tag: Option<&str>) -> Result<Image, Error> {
        let index = self.document(&self.dir.join("index.json"), None)?;
        let mut found = self.tagged(&index, tag)?;
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

    /// Returns the entry of the index with this tag.
    fn tagged(&self, index: &Value, tag: Option<&str>) -> Result<Value, Error> {
        let images: Vec<_> = index["manifests"].as_array().into_iter().flatten().collect();
        let with = |tag| images.iter().find(|image| tag_of(image) == Some(tag)).copied();
        let found = match (tag, &images[..]) {
            (Some(tag), _) => with(tag),
            (None, [only]) => Some(*only),
            (None, _) => with("latest"),
        };
        found.cloned().ok_or_else(|| {
            let tags: Vec<_> = images.iter().filter_map(|image| tag_of(image)).collect();
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
        let diff_ids = config["rootfs"]["diff_ids"].as_array().into_iter().flatten();
        let diff_ids = diff_ids.map(|digest| digest.as_str().and_then(Digest::parse)).collect::<Option<Vec<_>>>();
        let diff_ids = diff_ids.filter(|digests| digests.len() == layers.len());
        let diff_ids = diff_ids.ok_or_else(|| damaged("its configuration does not have the digest of each layer"))?;
        Ok(Image { config, layers: layers.iter().cloned().zip(diff_ids).collect() })
    }

    /// Returns the digest and size of a layer of an image.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: the descriptor is damaged.
    pub fn blob_of(&self, descriptor: &Value) -> Result<Blob, Error> {
        blob_of(descriptor, &self.dir)
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
        let failed = |cause| Error::at("read", path, cause);
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(DOCUMENT_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(failed(io::Error::other(format!("it has more than {DOCUMENT_MAX} bytes"))));
        }
        if let Some(descriptor) = descriptor {
            let found = Blob { digest: Digest::of(&bytes), size: bytes.len() as u64 };
            check_blob(path, &blob_of(descriptor, path)?, &found)?;
        }
        serde_json::from_slice(&bytes).map_err(|error| failed(io::Error::other(error)))
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

    /// Copies a layer of another layout, unless it is here already.
    ///
    /// # Errors
    ///
    /// - [`Error::At`]: it cannot be read or written, or has another digest.
    pub fn copy_blob(&self, from: &Layout, descriptor: &Value) -> Result<(), Error> {
        let wanted = blob_of(descriptor, &from.dir)?;
        if self.blob_path(&wanted.digest).is_file() {
            return Ok(());
        }
        let source = from.blob_path(&wanted.digest);
        let (found, ()) = self.add_blob(|to| {
            let file = File::open(&source).map_err(|cause| Error::at("read", &source, cause))?;
            io::copy(&mut BufReader::with_capacity(1 << 17, file), to)
                .map(drop)
                .map_err(|cause| Error::at("copy", &source, cause))
        })?;
        check_blob(&source, &wanted, &found)
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
        let mut index = self.document(&self.dir.join("index.json"), None)?;
        let Some(images) = index["manifests"].as_array_mut() else {
            return Err(self.refused("has a damaged index"));
        };
        images.retain(|image| tag_of(image) != Some(tag));
        images.push(entry);
        self.replace("index.json", &index)
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
