//! The archives of `docker save`, and of `podman save` without another format: `manifest.json`
//! names the configuration and the layers of each image.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::{Layout, StoredLayer};
use crate::layer_tools::Error;
use crate::layer_tools::archive::compress::Digest;

/// The list of images.
pub const MANIFEST: &str = "manifest.json";

/// Whether a document is a list of images.
pub fn is_list(document: &Value) -> bool {
    let images = document.as_array().filter(|images| !images.is_empty());
    images.is_some_and(|images| images.iter().all(|image| image["Config"].is_string() && image["Layers"].is_array()))
}

/// Returns the configuration of an image, and its layers, the lowest first.
///
/// # Errors
///
/// - [`Error::At`]: a part is missing or damaged.
/// - [`Error::Refused`]: there is no such image, or several without a tag.
pub fn stored(layout: &Layout, tag: Option<&str>) -> Result<(Value, Vec<StoredLayer>), Error> {
    let list_path = layout.dir.join(MANIFEST);
    let damaged = |cause: &str| Error::at("read", &list_path, io::Error::other(cause.to_owned()));
    let list = layout.document(&list_path, None)?;
    let images: Vec<_> = list.as_array().into_iter().flatten().map(|image| (tags(image), image)).collect();
    let image = layout.choose(&images, tag)?;
    let name = image["Config"].as_str().ok_or_else(|| damaged("it names no configuration"))?;
    let config_path = layout.dir.join(name);
    let bytes = layout.bytes(&config_path)?;
    // The name is the digest of the content.
    let said = Path::new(name).file_stem().and_then(|stem| Digest::parse(&format!("sha256:{}", stem.to_str()?)));
    if let Some(said) = said.filter(|said| *said != Digest::of(&bytes)) {
        return Err(Error::at("use", config_path, io::Error::other(format!("its digest is not {said}"))));
    }
    let config: Value =
        serde_json::from_slice(&bytes).map_err(|error| Error::at("read", &config_path, io::Error::other(error)))?;
    let names: Vec<_> = image["Layers"].as_array().into_iter().flatten().map(Value::as_str).collect();
    let diff_ids = super::diff_ids(&config, names.len()).ok_or_else(|| {
        Error::at("read", &config_path, io::Error::other("it does not have the digest of each layer"))
    })?;
    let layer = |(name, diff_id): (Option<&str>, Digest)| {
        let path = layout.dir.join(name.ok_or_else(|| damaged("the name of a layer is no text"))?);
        let size = layout.part(&path).map_err(|cause| Error::at("read", &path, cause))?.1;
        Ok(StoredLayer { path, size, wanted: None, diff_id })
    };
    let layers = names.into_iter().zip(diff_ids).map(layer).collect::<Result<_, Error>>()?;
    Ok((config, layers))
}

/// Returns the names of an image: each with its repository, and the tag alone.
fn tags(image: &Value) -> Vec<String> {
    let names = image["RepoTags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let names = names.flat_map(|name| [Some(name), name.rsplit_once(':').map(|(_, tag)| tag)]);
    names.flatten().map(str::to_owned).collect()
}
