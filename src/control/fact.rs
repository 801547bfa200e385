//! The payload of a frame: facts. A fact has a name, maybe a label that tells it from others of its
//! name, and a value. A reader skips the names that it does not know.
//!
//! | bytes | field |
//! | --- | --- |
//! | 2 | the length of all that follows |
//! | 1 | the kind of the value: 1 text, 2 numbers |
//! | 1 | the length of the name |
//! | 1 | the length of the label, 0 for none |
//! | … | the name, then the label: text |
//! | … | the value: bytes, or numbers of 8 bytes |

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::frame::{self, take};
use crate::errno::{EINVAL, Error, Result};

/// The longest text, in bytes: a path of any length that a system call takes.
pub const TEXT_MAX: usize = 4096;
/// The most numbers of one fact.
pub const NUMBERS_MAX: usize = 64;

const TEXT: u8 = 1;
const NUMBERS: u8 = 2;

/// A fact about an overlay, or an argument of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Its name: lower-case words with underscores.
    pub name: String,
    /// Tells it from others of its name. Empty: there is one, or their order tells them apart.
    pub label: String,
    /// Its value.
    pub value: Value,
}

/// The value of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text or a path.
    Text(Vec<u8>),
    /// One number or several.
    Numbers(Vec<u64>),
}

impl Fact {
    /// Makes a fact of a text. A longer one than [`TEXT_MAX`] is cut.
    pub fn text(name: &str, text: impl Into<Vec<u8>>) -> Self {
        let mut text = text.into();
        text.truncate(TEXT_MAX);
        Self { name: name.to_owned(), label: String::new(), value: Value::Text(text) }
    }

    /// Makes a fact of a path.
    pub fn path(name: &str, path: &Path) -> Self {
        Self::text(name, path.as_os_str().as_bytes())
    }

    /// Makes a fact of one number.
    pub fn number(name: &str, number: u64) -> Self {
        Self { name: name.to_owned(), label: String::new(), value: Value::Numbers(vec![number]) }
    }

    /// Appends the fact.
    ///
    /// # Errors
    ///
    /// - EINVAL: a part is too long.
    fn write(&self, to: &mut Vec<u8>) -> Result<()> {
        let short = |text: &str| u8::try_from(text.len()).map_err(|_| Error::new(EINVAL));
        let (kind, value) = match &self.value {
            Value::Text(text) if text.len() <= TEXT_MAX => (TEXT, text.clone()),
            Value::Numbers(numbers) if numbers.len() <= NUMBERS_MAX => {
                (NUMBERS, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
            }
            _ => return Err(Error::new(EINVAL)),
        };
        let head = [kind, short(&self.name)?, short(&self.label)?];
        let parts = [&head, self.name.as_bytes(), self.label.as_bytes(), &value];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        to.extend_from_slice(&(length as u16).to_le_bytes());
        parts.iter().for_each(|part| to.extend_from_slice(part));
        Ok(())
    }

    /// Reads the fact in these bytes, which have nothing else.
    fn read(mut rest: &[u8]) -> Result<Self> {
        let wrong = || Error::new(EINVAL);
        let [kind, name, label] = take(&mut rest)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| wrong());
        let (name, rest) = rest.split_at_checked(name.into()).ok_or_else(wrong)?;
        let (label, rest) = rest.split_at_checked(label.into()).ok_or_else(wrong)?;
        let value = match kind {
            TEXT if rest.len() <= TEXT_MAX => Value::Text(rest.to_vec()),
            NUMBERS => match rest.as_chunks() {
                (numbers, []) if numbers.len() <= NUMBERS_MAX => {
                    Value::Numbers(numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
                }
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        Ok(Self { name: text(name)?, label: text(label)?, value })
    }
}

/// Returns the page of an answer that begins with the fact `cursor`, and where the next one begins,
/// 0 for none. A page has whole facts. So it stays right if the numbers change between two pages.
///
/// # Errors
///
/// - EINVAL: the cursor is behind the end, or a part of a fact is too long.
pub fn page(facts: &[Fact], cursor: u64) -> Result<(Vec<u8>, u64)> {
    let start = usize::try_from(cursor).ok().filter(|start| *start <= facts.len()).ok_or(Error::new(EINVAL))?;
    let mut page = Vec::new();
    for (i, fact) in facts.iter().enumerate().skip(start) {
        let before = page.len();
        fact.write(&mut page)?;
        if page.len() > frame::ROOM {
            page.truncate(before);
            return Ok((page, i as u64));
        }
    }
    Ok((page, 0))
}

/// Reads the facts of a payload.
///
/// # Errors
///
/// - EINVAL: the bytes are no facts.
pub fn parse(mut payload: &[u8]) -> Result<Vec<Fact>> {
    let mut facts = Vec::new();
    while !payload.is_empty() {
        let length = u16::from_le_bytes(take(&mut payload)?);
        let (fact, rest) = payload.split_at_checked(length.into()).ok_or(Error::new(EINVAL))?;
        facts.push(Fact::read(fact)?);
        payload = rest;
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labelled(name: &str, label: &str, value: Value) -> Fact {
        Fact { name: name.to_owned(), label: label.to_owned(), value }
    }

    #[test]
    fn facts_are_read_as_they_were_written() {
        let facts = [
            Fact::text("", ""),
            Fact::text("path", b"\xff\n/a".to_vec()),
            Fact::number("count", u64::MAX),
            labelled("requests", "lookup", Value::Numbers((0..NUMBERS_MAX as u64).collect())),
            labelled(&"n".repeat(255), &"é".repeat(127), Value::Text(vec![0; TEXT_MAX])),
        ];
        let (page, next) = page(&facts, 0).unwrap();
        assert_eq!((parse(&page), next), (Ok(facts.to_vec()), 0));
        for end in 1..page.len() {
            let part = parse(&page[..end]);
            assert!(part.is_err() || facts.starts_with(&part.unwrap()), "cut at {end}");
        }
    }

    #[test]
    fn the_layout_does_not_change() {
        let facts = [labelled("ab", "c", Value::Numbers(vec![258])), Fact::text("d", "ef")];
        let expected = b"\x0e\0\x02\x02\x01abc\x02\x01\0\0\0\0\0\0\x06\0\x01\x01\0def";
        assert_eq!(page(&facts, 0).unwrap().0, expected);
    }

    #[test]
    fn every_fact_is_in_one_page_even_the_longest() {
        let facts: Vec<_> =
            (0..5).map(|i| labelled("path", &"l".repeat(255), Value::Text(vec![i; TEXT_MAX]))).collect();
        let (mut found, mut cursor) = (Vec::new(), 0);
        loop {
            let (bytes, next) = page(&facts, cursor).unwrap();
            assert!(!bytes.is_empty() && bytes.len() <= frame::ROOM);
            found.extend(parse(&bytes).unwrap());
            cursor = next;
            if next == 0 {
                break;
            }
        }
        assert_eq!(found, facts);
        assert_eq!(page(&facts, 5), Ok((Vec::new(), 0)));
        assert_eq!(page(&facts, 6), Err(Error::new(EINVAL)));
    }

    #[test]
    fn parts_that_are_too_long_are_refused() {
        for fact in [
            labelled(&"n".repeat(256), "", Value::Numbers(Vec::new())),
            labelled("n", &"l".repeat(256), Value::Numbers(Vec::new())),
            labelled("n", "", Value::Numbers(vec![0; NUMBERS_MAX + 1])),
            labelled("n", "", Value::Text(vec![0; TEXT_MAX + 1])),
        ] {
            assert_eq!(page(&[fact], 0), Err(Error::new(EINVAL)));
        }
        assert_eq!(Fact::text("n", vec![b'x'; 5000]).value, Value::Text(vec![b'x'; TEXT_MAX]));
    }

    #[test]
    fn wrong_bytes_are_no_facts() {
        for bytes in [
            &b"\x01"[..],
            b"\x04\0\x01\0\0",
            b"\x03\0\x03\0\0",
            b"\x03\0\x01\x01\0",
            b"\x03\0\x01\0\x01",
            b"\x04\0\x02\0\0x",
            b"\x04\0\x01\x01\0\xff",
        ] {
            assert_eq!(parse(bytes), Err(Error::new(EINVAL)), "{bytes:?}");
        }
    }
}
