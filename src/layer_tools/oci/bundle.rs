//! The file of an image: a tar archive with the files of an image layout, or with those that
//! `docker save` writes.
//!
//! Nothing is unpacked. The places of the files in the archive are noted once, and a part of the
//! image is read from its place. So a name in the archive, or in one of its documents, never leads
//! to a file of the system.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use crate::layer_tools::archive::read::Reader;
use crate::layer_tools::archive::{Member, MemberKind};

/// The most members of an image's archive. An image has at most a few hundred layers.
const MEMBERS: usize = 1 << 14;
/// The most links on the way to a file.
const LINKS: usize = 8;

/// An archive with the parts of an image.
pub struct Bundle {
    file: File,
    places: HashMap<PathBuf, Place>,
}

/// What the archive has under a name.
enum Place {
    /// A file: the offset and the length of its content.
    File(u64, u64),
    /// A link to this path in the archive. Older versions of docker write equal layers once.
    Link(PathBuf),
}

/// The content of a file in an archive.
struct Section<'b> {
    file: &'b File,
    at: u64,
    end: u64,
}

impl Bundle {
    /// Notes the files of an archive. Returns None if it cannot be one of an image: it has other
    /// members, or is compressed or damaged.
    ///
    /// # Errors
    ///
    /// Those of [`File::open`].
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        Ok(places(&file).map(|places| Bundle { file, places }))
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(Path::new(name)).is_some()
    }

    /// Returns a reader of a file, and the length of that.
    ///
    /// # Errors
    ///
    /// - ENOENT: the archive has no such file.
    pub fn part(&self, name: &Path) -> io::Result<(impl Read + '_, u64)> {
        let (at, length) = self.find(name).ok_or(io::ErrorKind::NotFound)?;
        Ok((Section { file: &self.file, at, end: at + length }, length))
    }

    fn find(&self, name: &Path) -> Option<(u64, u64)> {
        let mut path = within(Path::new(""), name)?;
        for _ in 0..LINKS {
            match self.places.get(&path)? {
                Place::File(at, length) => return Some((*at, *length)),
                Place::Link(to) => path.clone_from(to),
            }
        }
        None
    }
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Returns the places of all files of an archive. None if it has what an image does not.
fn places(file: &File) -> Option<HashMap<PathBuf, Place>> {
    let mut reader = Reader::new(BufReader::new(file), u64::MAX);
    let mut places = HashMap::new();
    let mut members = 0;
    while let Some(member) = reader.next_member().ok()? {
        members += 1;
        let path = within(Path::new(""), &member.path)?;
        if members > MEMBERS || !is_of_image(&path) {
            return None;
        }
        let (at, length) = reader.pass_over().ok()?;
        places.extend(place(member, &path, at, length)?.map(|place| (path, place)));
    }
    Some(places)
}

/// Returns what a member with its content at this place means. The outer None: no image has such a
/// member.
fn place(member: Member, path: &Path, at: u64, length: u64) -> Option<Option<Place>> {
    Some(match member.kind {
        // A file with holes is not stored as it is.
        MemberKind::File { size, .. } => (size == length).then_some(Place::File(at, length)),
        MemberKind::Dir => None,
        MemberKind::Symlink(to) => Some(Place::Link(within(path.parent().unwrap_or(Path::new("")), Path::new(&to))?)),
        MemberKind::Link(to) => Some(Place::Link(within(Path::new(""), &to)?)),
        MemberKind::Fifo | MemberKind::CharDev(_) | MemberKind::BlockDev(_) => return None,
    })
}

/// Whether the archive of an image may have such a path.
fn is_of_image(path: &Path) -> bool {
    let Some(first) = path.iter().next() else { return true };
    let Some(first) = first.to_str() else { return false };
    let is_id = first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_alone = path.iter().nth(1).is_none();
    is_id
        || first == "blobs"
        || is_alone
            && (matches!(first, "repositories" | "oci-layout")
                || [".json", ".tar"].iter().any(|end| first.ends_with(end)))
}

/// Returns the path of `name` in a directory of the archive. None if it leads out of the archive.
fn within(dir: &Path, name: &Path) -> Option<PathBuf> {
    let mut path = dir.to_owned();
    for component in name.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => path.pop().then_some(())?,
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}
