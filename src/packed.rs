//! Values as bytes, for another process of this system: numbers of eight bytes in little-endian
//! order, and texts with their length before them.
//!
//! The reader decides nothing by what it finds but its own values. So bytes that were not packed in
//! the same order are an error, or other values.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::errno::{EINVAL, Error, Result};

/// Appends values.
#[derive(Debug, Default)]
pub struct Packer(Vec<u8>);

impl Packer {
    /// Appends a number.
    pub fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// Appends several numbers.
    pub fn numbers(&mut self, numbers: &[u64]) {
        numbers.iter().for_each(|number| self.number(*number));
    }

    /// Appends a text.
    pub fn text(&mut self, text: &OsStr) {
        self.bytes(text.as_bytes());
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// Appends what another packer packed.
    pub fn append(&mut self, packed: &[u8]) {
        self.0.extend_from_slice(packed);
    }

    /// Appends whether there is a value, and the value.
    pub fn option<T>(&mut self, value: Option<T>, pack: impl FnOnce(&mut Self, T)) {
        self.number(value.is_some().into());
        if let Some(value) = value {
            pack(self, value);
        }
    }

    /// Appends the number of values, and each.
    pub fn list<T>(&mut self, values: impl ExactSizeIterator<Item = T>, mut pack: impl FnMut(&mut Self, T)) {
        self.number(values.len() as u64);
        values.for_each(|value| pack(self, value));
    }

    /// Returns the bytes.
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Takes values in the order in which they were packed.
///
/// Each method has one error:
///
/// - EINVAL: the bytes end too early, or are no such value.
#[derive(Debug)]
pub struct Unpacker<'a>(&'a [u8]);

#[expect(clippy::missing_errors_doc, reason = "see the type")]
impl<'a> Unpacker<'a> {
    /// Takes values from these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Takes a number.
    pub fn number(&mut self) -> Result<u64> {
        let (number, rest) = self.0.split_first_chunk().ok_or(Error::new(EINVAL))?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    /// Takes a number that a smaller type holds.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        T::try_from(self.number()?).map_err(|_| Error::new(EINVAL))
    }

    /// Takes a truth value.
    pub fn flag(&mut self) -> Result<bool> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Error::new(EINVAL)),
        }
    }

    /// Takes a text.
    pub fn text(&mut self) -> Result<OsString> {
        Ok(OsString::from_vec(self.bytes()?.to_owned()))
    }

    /// Takes bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.small()?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Error::new(EINVAL))?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Takes a value that may be missing.
    pub fn option<T>(&mut self, unpack: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        if self.flag()? { unpack(self).map(Some) } else { Ok(None) }
    }

    /// Takes several values.
    pub fn list<T>(&mut self, mut unpack: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        // The number may be any, so nothing is reserved for it.
        let count = self.number()?;
        (0..count).map(|_| unpack(self)).collect()
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that nothing is left.
    pub fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::new(EINVAL)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(bytes: &[u8]) -> Result<(Vec<OsString>, Option<u32>, bool)> {
        let mut from = Unpacker::new(bytes);
        let found = (from.list(Unpacker::text)?, from.option(Unpacker::small)?, from.flag()?);
        from.end().map(|()| found)
    }

    #[test]
    fn values_come_back_in_their_order() {
        let mut packer = Packer::default();
        packer.list(["", "name"].iter(), |packer, text| packer.text(OsStr::new(text)));
        packer.option(Some(7), Packer::number);
        packer.number(1);
        let bytes = packer.done();
        assert_eq!(unpack(&bytes), Ok((vec!["".into(), "name".into()], Some(7), true)));
        for length in 0..bytes.len() {
            assert_eq!(unpack(&bytes[..length]), Err(Error::new(EINVAL)), "{length} bytes");
        }
        assert_eq!(unpack(&[&bytes[..], b"x"].concat()), Err(Error::new(EINVAL)));
    }

    #[test]
    fn huge_numbers_are_errors() {
        for length in [u64::MAX, 1 << 40] {
            let bytes = [length.to_le_bytes(), 0_u64.to_le_bytes()].concat();
            assert_eq!(Unpacker::new(&bytes).bytes(), Err(Error::new(EINVAL)));
            assert_eq!(Unpacker::new(&bytes).list(Unpacker::number), Err(Error::new(EINVAL)));
        }
    }
}
