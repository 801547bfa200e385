//! The lines of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount, with its fields as in the table.
pub struct Line<'a> {
    /// The number of the mount.
    pub id: &'a [u8],
    /// The number of its filesystem.
    pub device: &'a [u8],
    /// The directory of the filesystem that is mounted, with escapes.
    pub root: &'a [u8],
    /// The mount point.
    pub point: PathBuf,
    /// The options of the mount.
    pub options: &'a [u8],
    /// The type of the filesystem.
    pub kind: &'a [u8],
    /// The options of the filesystem.
    pub filesystem_options: &'a [u8],
}

/// Parses a table. A line that is none is left out.
pub fn lines(table: &[u8]) -> impl Iterator<Item = Line<'_>> {
    table.split(|byte| *byte == b'\n').filter_map(line)
}

fn line(line: &[u8]) -> Option<Line<'_>> {
    let fields: Vec<_> = line.split(|byte| *byte == b' ').collect();
    // Any number of optional fields comes before the dash.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    Some(Line {
        id: fields[0],
        device: fields[2],
        root: fields[3],
        point: OsString::from_vec(unescaped(fields[4])).into(),
        options: fields[5],
        kind: fields.get(dash + 1)?,
        filesystem_options: fields.get(dash + 3)?,
    })
}

/// Replaces each backslash with three octal digits by the byte that it stands for.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), field);
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) if *first == b'\\' => (bytes.push(byte), rest = &behind[3..]),
            _ => (bytes.push(*first), rest = behind),
        };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_octal() {
        assert_eq!(unescaped(b"a\\040b\\134c\\012"), b"a b\\c\n");
        assert_eq!(unescaped(b"\\04\\999\\"), b"\\04\\999\\");
    }
}
