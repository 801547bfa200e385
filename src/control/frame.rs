//! The frame of a request and of its answer. Numbers are in little-endian order.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | `OvCt` |
//! | 4 | 2 | the version, 1 |
//! | 6 | 2 | the command |
//! | 8 | 4 | in an answer the errno of the command, 0 for success; 0 in a request |
//! | 12 | 4 | the length of the payload |
//! | 16 | 8 | in a request where the page begins; in an answer where the next page begins, 0 for none |
//! | 24 | 8168 | the payload, then zeros |

use crate::errno::{EINVAL, ENOTTY, Error, Result};

/// The size of a frame in bytes.
pub const SIZE: usize = 8192;
/// The most bytes of a payload.
pub const ROOM: usize = SIZE - HEAD;
/// The version of the layout.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"OvCt";
const HEAD: usize = 24;

/// A request, or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The number of the command.
    pub command: u16,
    /// The errno of the command, 0 for success.
    pub error: i32,
    /// Where a page begins: in a request this one, in an answer the next one. 0: the first page, or
    /// no next one.
    pub cursor: u64,
    /// Facts, or the sentence of a failure.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    ///
    /// - EINVAL: the bytes are no frame.
    /// - ENOTTY: the frame has another version.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut rest = bytes.get(..SIZE).ok_or(Error::new(EINVAL))?;
        if take::<4>(&mut rest)? != MAGIC {
            return Err(Error::new(EINVAL));
        }
        if u16::from_le_bytes(take(&mut rest)?) != VERSION {
            return Err(Error::new(ENOTTY));
        }
        let command = u16::from_le_bytes(take(&mut rest)?);
        let error = i32::from_le_bytes(take(&mut rest)?);
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        let cursor = u64::from_le_bytes(take(&mut rest)?);
        let payload = rest.get(..length).ok_or(Error::new(EINVAL))?;
        Ok(Self { command, error, cursor, payload })
    }

    /// Writes the frame.
    ///
    /// # Errors
    ///
    /// - EINVAL: the payload is too long.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let Self { command, error, cursor, payload } = self;
        if payload.len() > ROOM {
            return Err(Error::new(EINVAL));
        }
        let mut bytes = Vec::with_capacity(SIZE);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&command.to_le_bytes());
        bytes.extend_from_slice(&error.to_le_bytes());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&cursor.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes.resize(SIZE, 0);
        Ok(bytes)
    }
}

/// Takes the next `N` bytes.
///
/// # Errors
///
/// - EINVAL: there are fewer.
pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (first, behind) = rest.split_first_chunk().ok_or(Error::new(EINVAL))?;
    *rest = behind;
    Ok(*first)
}

/// Cuts a text that is too long for a payload.
pub(super) fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(ROOM));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        for payload in [&b""[..], b"x", &[7; ROOM]] {
            let frame = Frame { command: 0x0102, error: 28, cursor: 1 << 40, payload };
            let bytes = frame.bytes().unwrap();
            assert_eq!((bytes.len(), Frame::parse(&bytes)), (SIZE, Ok(frame)));
        }
        let long = Frame { command: 1, error: 0, cursor: 0, payload: &[0; ROOM + 1] };
        assert_eq!(long.bytes(), Err(Error::new(EINVAL)));
    }

    #[test]
    fn the_layout_does_not_change() {
        let bytes = Frame { command: 2, error: 3, cursor: 4, payload: b"ab" }.bytes().unwrap();
        let head = b"OvCt\x01\0\x02\0\x03\0\0\0\x02\0\0\0\x04\0\0\0\0\0\0\0ab\0";
        assert_eq!(&bytes[..head.len()], head);
    }

    #[test]
    fn other_bytes_are_no_frame() {
        let right = Frame { command: 1, error: 0, cursor: 0, payload: b"" }.bytes().unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = right.clone();
            bytes[at] = byte;
            Frame::parse(&bytes).map(drop).map_err(|error| error.errno)
        };
        assert_eq!(with(0, b'o'), Err(EINVAL));
        assert_eq!((with(4, 2), with(5, 1)), (Err(ENOTTY), Err(ENOTTY)));
        assert_eq!((with(13, 0x1f), with(13, 0x20), with(15, 0xff)), (Ok(()), Err(EINVAL), Err(EINVAL)));
        for length in [0, 3, 23, SIZE - 1] {
            assert_eq!(Frame::parse(&right[..length]), Err(Error::new(EINVAL)));
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(shortened("é".repeat(ROOM)).len(), ROOM);
        assert_eq!(shortened(format!("a{}", "é".repeat(ROOM))).len(), ROOM - 1);
        assert_eq!(shortened("short".to_owned()), "short");
    }
}
