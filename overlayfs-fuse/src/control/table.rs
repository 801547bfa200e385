//! The mounts of overlays in the tables of mounts: that of this process, and those of other mount
//! namespaces that it may see.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Trouble;
use crate::mount::TYPE;
use crate::mountinfo::{self, Line};

/// A mount of this program, or of one that names itself so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The mount point.
    pub point: PathBuf,
    /// The number of its filesystem, in the form of the table.
    pub device: String,
    /// The user and the group that mounted it, in their user namespace.
    pub user: (u32, u32),
    /// A process in whose namespaces the mount is. None: those of this process.
    pub seen_by: Option<u32>,
}

impl Mounted {
    /// Returns the uppermost mount at a path.
    ///
    /// # Errors
    ///
    /// - [`Trouble::NoMount`]: no overlay is mounted there.
    /// - [`Trouble::Call`]: the path or the table cannot be read.
    pub fn at(path: &Path) -> Result<Self, Trouble> {
        let path = path.canonicalize().map_err(Trouble::Call)?;
        let all = Self::all().map_err(Trouble::Call)?;
        all.into_iter().rfind(|mounted| mounted.point == path).ok_or(Trouble::NoMount)
    }

    /// Returns the mounts in this namespace, in the order of the table.
    ///
    /// # Errors
    ///
    /// Those of reading `/proc/self/mountinfo`.
    pub fn all() -> io::Result<Vec<Self>> {
        Ok(overlays(&fs::read("/proc/self/mountinfo")?, None))
    }

    /// Returns the mounts in all mount namespaces that this process may see, each filesystem once.
    ///
    /// # Errors
    ///
    /// Those of [`Mounted::all`].
    pub fn everywhere() -> io::Result<Vec<Self>> {
        let mut found = Self::all()?;
        let mut spaces: HashSet<_> = fs::read_link("/proc/self/ns/mnt").into_iter().collect();
        let mut filesystems: HashSet<_> = found.iter().map(|mounted| mounted.device.clone()).collect();
        for process in fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()) {
            let of = |file| format!("/proc/{process}/{file}");
            // The process may end at any time, or belong to another user.
            let Ok(space) = fs::read_link(of("ns/mnt")) else { continue };
            if !spaces.insert(space) {
                continue;
            }
            let table = fs::read(of("mountinfo")).unwrap_or_default();
            found
                .extend(overlays(&table, Some(process)).into_iter().filter(|it| filesystems.insert(it.device.clone())));
        }
        Ok(found)
    }
}

/// Returns the mounts of overlays in a table. Mounts of a directory inside an overlay are none.
fn overlays(table: &[u8], seen_by: Option<u32>) -> Vec<Mounted> {
    mountinfo::lines(table).filter_map(|line| overlay(line, seen_by)).collect()
}

fn overlay(line: Line<'_>, seen_by: Option<u32>) -> Option<Mounted> {
    if line.kind != TYPE.as_bytes() || line.root != b"/" {
        return None;
    }
    let id = |name: &str| -> Option<u32> {
        let options = str::from_utf8(line.filesystem_options).ok()?;
        options.split(',').find_map(|option| option.strip_prefix(name)?.parse().ok())
    };
    let user = (id("user_id=")?, id("group_id=")?);
    let device = String::from_utf8(line.device.to_vec()).ok()?;
    Some(Mounted { point: line.point, device, user, seen_by })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_overlays_by_their_type() {
        let table = b"\
30 23 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 30 0:50 / /m\\040x rw,relatime - fuse.overlayfs-fuse overlayfs rw,user_id=7,group_id=8
41 30 0:51 / /a shared:5 master:3 - fuse.overlayfs-fuse a rw,group_id=0,user_id=0,allow_other
42 30 0:50 /sub /b rw - fuse.overlayfs-fuse overlayfs rw,user_id=0,group_id=0
43 30 0:52 / /c rw - fuse.sshfs x rw,user_id=0,group_id=0
44 30 0:53 / /d rw
";
        let mounted = |point: &str, device: &str, user| Mounted {
            point: point.into(),
            device: device.to_owned(),
            user,
            seen_by: Some(5),
        };
        assert_eq!(overlays(table, Some(5)), [mounted("/m x", "0:50", (7, 8)), mounted("/a", "0:51", (0, 0))]);
    }
}
