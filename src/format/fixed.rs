//! The value of the mark of an immutable or append-only object. The object has the mark if its
//! layer cannot give it the flag. Both formats use the value of the kernel's `overlay.protattr`
//! (`ovl_set_protattr` in fs/overlayfs/util.c).

use crate::layer::Fixed;

const APPEND: u8 = b'a';
const IMMUTABLE: u8 = b'i';

/// Returns the value for these flags.
pub fn value(fixed: Fixed) -> Vec<u8> {
    let letters = [(fixed.append, APPEND), (fixed.immutable, IMMUTABLE)];
    letters.into_iter().filter_map(|(is_set, letter)| is_set.then_some(letter)).collect()
}

/// Parses a value. None if it is damaged.
pub fn parse(value: &[u8]) -> Option<Fixed> {
    let is_known = |letter: &u8| matches!(*letter, APPEND | IMMUTABLE);
    let is_right = !value.is_empty() && value.iter().all(is_known);
    is_right.then(|| Fixed { immutable: value.contains(&IMMUTABLE), append: value.contains(&APPEND) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_is_written() {
        for (immutable, append, written) in [(true, false, "i"), (false, true, "a"), (true, true, "ai")] {
            let fixed = Fixed { immutable, append };
            assert_eq!(value(fixed), written.as_bytes());
            assert_eq!(parse(written.as_bytes()), Some(fixed));
        }
        for bad in ["", "x", "ax", "i\n"] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
