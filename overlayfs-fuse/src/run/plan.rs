//! What the command sees at which path: the trees that are overlaid, and the mounts of the system
//! that it can only read.
//!
//! A filesystem that is mounted below an overlaid directory is not part of the overlay. Each gets
//! an overlay of its own. Below `/dev`, `/proc` and `/sys` the command has others
//! ([`super::room`]).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};

use crate::mountinfo::{self, Line};

/// The directories that the command gets anew.
pub const OWN: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The filesystems of the kernel that hold no files of users.
const OF_KERNEL: [&str; 19] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
    "tracefs",
];

/// One path, and what the command sees there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// An absolute path without symlinks.
    pub path: PathBuf,
    /// Whether it is overlaid. The command can only read other places.
    pub overlaid: bool,
}

/// Finds the places for these overlaid directories, which are absolute and without symlinks. A
/// place comes before those below it.
///
/// # Errors
///
/// - The list of mounts cannot be read.
pub fn places(lowers: &[PathBuf]) -> io::Result<Vec<Place>> {
    let mut places: Vec<_> = lowers.iter().map(|path| Place { path: path.clone(), overlaid: true }).collect();
    for mount in parse(&fs::read("/proc/self/mountinfo")?) {
        let is_inside = lowers.iter().any(|lower| mount.point.starts_with(lower) && mount.point != *lower);
        let is_own = OWN.iter().any(|own| mount.point.starts_with(own));
        if !is_inside || is_own || places.iter().any(|place| place.path == mount.point) {
            continue;
        }
        if let Some(is_dir) = mount.shows() {
            let overlaid = is_dir && !mount.read_only && !OF_KERNEL.contains(&&*mount.kind);
            places.push(Place { path: mount.point, overlaid });
        }
    }
    places.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(places)
}

/// A line of the list of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    point: PathBuf,
    read_only: bool,
    /// The type of the filesystem.
    kind: String,
}

impl Mount {
    /// Whether a directory is mounted. None: the caller does not reach the mount, or a later one
    /// hides it.
    fn shows(&self) -> Option<bool> {
        let flags = AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
        let stat = rustix::fs::statx(CWD, &self.point, flags, StatxFlags::MNT_ID | StatxFlags::TYPE).ok()?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        (stat.stx_mnt_id == self.id).then_some(kind == FileType::Directory)
    }
}

/// Parses `/proc/self/mountinfo`. A line that is none is left out.
fn parse(list: &[u8]) -> Vec<Mount> {
    mountinfo::lines(list).filter_map(mount).collect()
}

fn mount(line: Line<'_>) -> Option<Mount> {
    let text = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let is_read_only = |options: &[u8]| options.split(|byte| *byte == b',').any(|option| option == b"ro");
    Some(Mount {
        id: text(line.id).parse().ok()?,
        point: line.point,
        read_only: is_read_only(line.options) || is_read_only(line.filesystem_options),
        kind: text(line.kind),
    })
}

/// Returns the name of the part of the changes for an overlaid directory: `root` for `/`,
/// `root-var-lib` for `/var/lib`. Different directories have different names.
pub fn part_name(path: &Path) -> OsString {
    let mut name = b"root".to_vec();
    for component in path.strip_prefix("/").unwrap_or(path) {
        name.push(b'-');
        for byte in component.as_bytes() {
            match byte {
                b'-' => name.extend(b"%2D"),
                b'%' => name.extend(b"%25"),
                byte => name.push(*byte),
            }
        }
    }
    OsString::from_vec(name)
}

/// Returns the directory for which a part has this name. None: it is no name of a part.
pub fn part_path(name: &OsStr) -> Option<PathBuf> {
    let rest = name.as_bytes().strip_prefix(b"root")?;
    let mut path = vec![b'/'];
    let mut bytes = rest.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'-' if path.len() == 1 => {}
            b'-' => path.push(b'/'),
            b'%' => {
                let digits = [*bytes.next()?, *bytes.next()?];
                path.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
            }
            byte => path.push(*byte),
        }
    }
    let path = PathBuf::from(OsString::from_vec(path));
    (part_name(&path) == name).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let list = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            31 22 8:2 /sub /a\\040b\\134 ro,nosuid shared:7 master:1 - ext4 /dev/sda2 rw\n\
            32 22 8:3 / /c rw - fuse.sshfs me@host:/x ro,user_id=0\n\
            malformed\n";
        let mount = |id, point: &str, read_only, kind: &str| Mount {
            id,
            point: point.into(),
            read_only,
            kind: kind.to_owned(),
        };
        let parsed =
            [mount(22, "/proc", false, "proc"), mount(31, "/a b\\", true, "ext4"), mount(32, "/c", true, "fuse.sshfs")];
        assert_eq!(parse(list), parsed);
    }

    #[test]
    fn parts_have_names_of_their_own() {
        let name = |path: &str| part_name(Path::new(path)).into_string().unwrap();
        assert_eq!(name("/"), "root");
        assert_eq!(name("/var/lib"), "root-var-lib");
        assert_eq!(name("/var-lib"), "root-var%2Dlib");
        assert_eq!(name("/var%2Dlib"), "root-var%252Dlib");
        for path in ["/", "/var/lib", "/var-lib", "/var%2Dlib", "/-/%"] {
            assert_eq!(part_path(OsStr::new(&name(path))), Some(path.into()));
        }
        for other in ["", "room", "rootx", "root-", "root--a", "root-%zz", "root-a%2"] {
            assert_eq!(part_path(OsStr::new(other)), None, "{other}");
        }
    }
}
