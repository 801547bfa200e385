//! What the daemon of a mount tells about the mount and about itself.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use overlayfs::control::fact::Fact;
use overlayfs::control::info;
use overlayfs::control::requests::Requests;
use overlayfs::mount::resolved;
use overlayfs::options::Options;

use crate::dispatch::KINDS;
use crate::options::MountOptions;

/// A mount and its process, as the owner may know them.
#[derive(Debug)]
pub struct About {
    /// The user that mounted it.
    pub(crate) owner: u32,
    /// The facts that stay the same.
    pub(crate) facts: Vec<Fact>,
    /// The counters of the threads that serve.
    pub(crate) requests: Requests,
    /// Files of `/proc` about this process: its memory, and its descriptors. The sandbox lets
    /// nothing be opened later.
    memory: Option<File>,
    descriptors: Option<File>,
}

impl About {
    /// Describes the mount that this process is about to serve. `format` is that of the upper
    /// layer.
    pub fn this(mount_point: &Path, options: &MountOptions, format: Option<&str>) -> Self {
        Self::since(seconds(SystemTime::now()), mount_point, &resolved(&options.layers), options, format)
    }

    /// Does the same as [`About::this`] for a mount that began at `since`, in seconds since 1970.
    /// `layers` have absolute paths. Looks no path up.
    pub(crate) fn since(
        since: u64,
        mount_point: &Path,
        layers: &Options,
        options: &MountOptions,
        format: Option<&str>,
    ) -> Self {
        let mut facts = vec![
            Fact::text("version", env!("CARGO_PKG_VERSION")),
            Fact::path("mount_point", mount_point),
            Fact::number("pid", std::process::id().into()),
            Fact::number("since", since),
        ];
        facts.extend(format.map(|format| Fact::text("format", format)));
        facts.extend(info::layers(layers));
        facts.extend(options.given.iter().map(|item| Fact::text("option", item.clone().into_vec())));
        Self {
            owner: rustix::process::getuid().as_raw(),
            facts,
            requests: Requests::new(&KINDS),
            memory: File::open("/proc/self/statm").ok(),
            descriptors: File::open("/proc/self/fd").ok(),
        }
    }

    /// Returns the numbers of the process at this moment, as far as the system tells them.
    pub(crate) fn process(&self) -> Vec<Fact> {
        let resident = self.memory.as_ref().and_then(|file| {
            let mut line = [0; 128];
            let length = file.read_at(&mut line, 0).ok()?;
            let pages: u64 = str::from_utf8(&line[..length]).ok()?.split(' ').nth(1)?.parse().ok()?;
            Some(pages * rustix::param::page_size() as u64)
        });
        // Linux tells the number as the size since 6.2, before that 0.
        let open = self.descriptors.as_ref().and_then(|dir| dir.metadata().ok()).map(|stat| stat.size());
        let known = [("memory", resident), ("descriptors", open.filter(|count| *count > 0))];
        known.into_iter().filter_map(|(name, value)| Some(Fact::number(name, value?))).collect()
    }
}

/// Returns the seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Whether an option only names layers, which have facts of their own.
pub(crate) fn names_layers(key: &str) -> bool {
    matches!(key, "lowerdir" | "lowerdir+" | "upperdir" | "workdir")
}

/// Returns an option as it was written.
pub(crate) fn written(key: &str, value: Option<&[u8]>) -> OsString {
    match value {
        Some(value) => OsString::from_vec([key.as_bytes(), b"=", value].concat()),
        None => key.into(),
    }
}
