//! Paths in messages and listings: any bytes, on one line.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The letters that change the direction of the text. One of them could hide the end of a path.
const TURNS: [RangeInclusive<char>; 3] = ['\u{200e}'..='\u{200f}', '\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}'];

/// Returns a path for people: control characters, backslashes and bytes that are not UTF-8 become
/// escapes (`\n`, `\\`, `\x1b`). The empty path, the root of a tree, becomes `.`.
///
/// A space in front of `<- ` becomes `\x20`, so that `ARROW` in a line is never part of a path.
pub fn escaped(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return ".".to_owned();
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for (at, letter) in chunk.valid().char_indices() {
            match letter {
                // Most letters are among these, so they come first.
                '!'..='[' | ']'..='~' => text.push(letter),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\\' => text.push_str("\\\\"),
                ' ' if chunk.valid()[at..].starts_with(ARROW) => text.push_str("\\x20"),
                letter if letter.is_control() || TURNS.iter().any(|range| range.contains(&letter)) => {
                    letter.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape(&mut text, byte));
                }
                letter => text.push(letter),
            }
        }
        chunk.invalid().iter().for_each(|byte| escape(&mut text, *byte));
    }
    text
}

/// The mark between the new and the old path of a rename.
pub const ARROW: &str = " <- ";

fn escape(text: &mut String, byte: u8) {
    // A String takes every write.
    let _ = write!(text, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn a_path_is_one_line_that_tells_its_bytes() {
        for (path, shown) in [
            (&b""[..], "."),
            (b"a b/\xc3\xa4", "a b/\u{e4}"),
            (b"line\nbreak\ttab\\", "line\\nbreak\\ttab\\\\"),
            (b"\x1b[31m\xff\xc2\x85", "\\x1b[31m\\xff\\xc2\\x85"),
            (b"new <- old <-", "new\\x20<- old <-"),
            ("\u{202e}txt".as_bytes(), "\\xe2\\x80\\xaetxt"),
        ] {
            assert_eq!(escaped(Path::new(OsStr::from_bytes(path))), shown);
        }
    }
}
