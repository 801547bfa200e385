//! The source of a mount in `/proc/mounts`, if none is given: the layers, as the kernel's overlayfs
//! shows them among its options. A FUSE mount has no other place for them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use overlayfs::options::Options;

use crate::mount::escaped_in_table;

/// The longest source, in bytes of the table. Programs read the table by lines into buffers of
/// 4096 bytes, and `df` makes its first column as wide.
const LONGEST: usize = 512;
/// The most of these for the upper layer and the work directory.
const ROOM_FOR_UPPER: usize = LONGEST / 4 * 3;
/// Stands for layers that do not fit, and for a path that does not.
const MORE: &[u8] = b"...";

/// Returns the layers as a list of options. Lower layers that do not fit are left out, from the
/// bottom on. `overlayfs-fuse ls` has them all.
pub fn of(layers: &Options) -> OsString {
    let named = |name: &[u8], path: &Path| [name, &written(path)].concat();
    let upper = layers.upper.iter().map(|path| named(b",upperdir=", path));
    let tail = upper.chain(layers.work.iter().map(|path| named(b",workdir=", path))).collect::<Vec<_>>().concat();
    // An upper layer that leaves no room is left out too.
    let tail = if width(&tail) > ROOM_FOR_UPPER { [b",", MORE].concat() } else { tail };
    let room = LONGEST - width(&tail) - MORE.len() - 1;
    let mut source = b"lowerdir=".to_vec();
    for (i, lower) in layers.lowers.iter().enumerate() {
        let next = [if i == 0 { &b""[..] } else { b":" }, &written(lower)].concat();
        if width(&source) + width(&next) > room {
            source.extend([if i == 0 { &b""[..] } else { b":" }, MORE].concat());
            break;
        }
        source.extend(next);
    }
    source.extend(tail);
    OsString::from_vec(source)
}

/// Returns the number of bytes in the table.
fn width(part: &[u8]) -> usize {
    escaped_in_table(part).len()
}

/// Returns an absolute path as an option has it.
fn written(path: &Path) -> Vec<u8> {
    // Without a working directory the path stays as it is.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let bytes = path.as_os_str().as_bytes().iter().flat_map(|byte| match byte {
        b',' | b':' | b'\\' => vec![b'\\', *byte],
        _ => vec![*byte],
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn source(lowers: Vec<PathBuf>, upper: Option<&str>) -> String {
        let layers = Options {
            lowers,
            upper: upper.map(PathBuf::from),
            work: upper.map(|upper| format!("{upper}-work").into()),
            ..Options::default()
        };
        of(&layers).into_string().unwrap()
    }

    #[test]
    fn it_is_a_list_of_options() {
        assert_eq!(source(vec!["/a".into(), "/b".into()], Some("/u")), "lowerdir=/a:/b,upperdir=/u,workdir=/u-work");
        assert_eq!(source(vec![r"/a:b,c\d".into()], None), r"lowerdir=/a\:b\,c\\d");
    }

    #[test]
    fn a_relative_path_becomes_absolute() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(source(vec!["l/A".into()], None), format!("lowerdir={}/l/A", here.display()));
    }

    #[test]
    fn it_is_never_long() {
        for length in [1, 10, 100, 250, 252, 253, 490, 500, 600, 4000] {
            for count in [1, 2, 3, 10, 500] {
                let lowers = vec![PathBuf::from(format!("/{}", " ".repeat(length / 4))); count];
                let upper = format!("/{}", "u".repeat(length));
                let source = source(lowers, Some(&upper));
                assert!(escaped_in_table(source.as_bytes()).len() <= LONGEST, "{source}");
                assert!(source.starts_with("lowerdir="), "{source}");
                assert_eq!(source.contains(&upper), length < 180, "{source}");
            }
        }
        let many = source((0..500).map(|i| format!("/layers/{i}").into()).collect(), Some("/u"));
        assert!(
            many.starts_with("lowerdir=/layers/0:/layers/1:") && many.ends_with(":...,upperdir=/u,workdir=/u-work")
        );
    }
}
