//! The records of a PAX extended header: `LENGTH KEYWORD=VALUE`, each with a newline behind it.
//!
//! A value may be any bytes, also with newlines, so only LENGTH tells the end of a record.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::layer::Time;

/// The prefix of the keyword of an extended attribute.
pub const XATTR: &[u8] = b"SCHILY.xattr.";
/// The keyword of the text of an ACL, as GNU tar and star write it.
pub const ACL_ACCESS: &[u8] = b"SCHILY.acl.access";
/// The same for the ACL that new objects in a directory get.
pub const ACL_DEFAULT: &[u8] = b"SCHILY.acl.default";

/// Adds a record.
pub fn add(records: &mut Vec<u8>, keyword: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = keyword.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + digits(length) {
        length = rest + digits(length);
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", keyword, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

fn digits(number: usize) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Splits off the first record. Returns its keyword, its value and the records behind it. None if
/// it is damaged.
pub fn first(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let (record, rest) = records.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], rest))
}

/// Returns the keyword of an extended attribute. `=` would end a keyword, so it is escaped, as GNU
/// tar does.
pub fn xattr_keyword(name: &OsStr) -> Vec<u8> {
    let mut keyword = XATTR.to_vec();
    for byte in name.as_bytes() {
        match byte {
            b'=' => keyword.extend_from_slice(b"%3D"),
            b'%' => keyword.extend_from_slice(b"%25"),
            other => keyword.push(*other),
        }
    }
    keyword
}

/// Returns the name of the extended attribute with this keyword. None if it is of none.
pub fn xattr_name(keyword: &[u8]) -> Option<OsString> {
    let mut escaped = keyword.strip_prefix(XATTR)?;
    let mut name = Vec::with_capacity(escaped.len());
    while let Some((first, rest)) = escaped.split_first() {
        let (byte, rest) = match escaped {
            [b'%', b'3', b'D', rest @ ..] => (b'=', rest),
            [b'%', b'2', b'5', rest @ ..] => (b'%', rest),
            _ => (*first, rest),
        };
        name.push(byte);
        escaped = rest;
    }
    Some(OsString::from_vec(name))
}

/// Returns a time as decimal seconds.
pub fn time(time: Time) -> Vec<u8> {
    let mut text = Vec::new();
    // The digits behind the point count away from 0.
    let (sign, sec, nsec) = match time.sec < 0 && time.nsec > 0 {
        true => ("-", (time.sec + 1).unsigned_abs(), 1_000_000_000 - time.nsec),
        false => (if time.sec < 0 { "-" } else { "" }, time.sec.unsigned_abs(), time.nsec),
    };
    // A write to memory does not fail.
    let _ = write!(text, "{sign}{sec}");
    if nsec > 0 {
        let _ = write!(text, ".{nsec:09}");
        while text.last() == Some(&b'0') {
            text.pop();
        }
    }
    text
}

/// Parses decimal seconds. Digits behind the ninth are dropped, towards the past. None if they are
/// no number, or out of range.
pub fn parse_time(text: &[u8]) -> Option<Time> {
    let text = str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (sec, fraction) = text.split_once('.').unwrap_or((text, ""));
    if ![sec, fraction].iter().all(|digits| digits.bytes().all(|digit| digit.is_ascii_digit())) {
        return None;
    }
    let sec: i64 = sec.parse().ok()?;
    let (kept, dropped) = fraction.split_at_checked(9).unwrap_or((fraction, ""));
    let nsec: u32 = format!("{kept:0<9}").parse().ok()?;
    if !negative {
        return Some(Time { sec, nsec });
    }
    let away = nsec + u32::from(dropped.bytes().any(|digit| digit != b'0'));
    Some(match away {
        0 => Time { sec: -sec, nsec: 0 },
        _ => Time { sec: -sec - 1, nsec: 1_000_000_000 - away },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written() {
        let long = vec![b'\n'; 10_000];
        for length in (0..12).chain(85..100).chain(980..1000).chain([10_000]) {
            let mut records = Vec::new();
            add(&mut records, b"key", &long[..length]);
            add(&mut records, b"next", b"a=b");
            let (keyword, value, rest) = first(&records).unwrap();
            assert_eq!((keyword, value), (&b"key"[..], &long[..length]), "{length}");
            assert_eq!(first(rest), Some((&b"next"[..], &b"a=b"[..], &b""[..])));
        }
    }

    #[test]
    fn damaged_records_are_none() {
        let damaged: [&[u8]; 9] = [
            b"",
            b"9 key=val",
            b"99 key=v\n",
            b"0 key=v\n",
            b"1 key=v\n",
            b"-5 key=v\n",
            b"x key=v\n",
            b"6 key\n",
            b"18446744073709551615 k=v\n",
        ];
        for records in damaged {
            assert_eq!(first(records), None, "{}", records.escape_ascii());
        }
    }

    #[test]
    fn names_of_attributes_keep_every_byte() {
        for name in ["user.a", "user.a=b", "user.50%", "user.%3D", "user.%25=%"] {
            let keyword = xattr_keyword(OsStr::new(name));
            assert!(!keyword.contains(&b'='));
            assert_eq!(xattr_name(&keyword).unwrap(), name);
        }
        assert_eq!(xattr_name(b"mtime"), None);
    }

    #[test]
    fn times_are_exact() {
        for (sec, nsec, text) in [
            (0, 0, "0"),
            (7, 1, "7.000000001"),
            (7, 500_000_000, "7.5"),
            (-1, 0, "-1"),
            (-2, 500_000_000, "-1.5"),
            (-1, 999_999_999, "-0.000000001"),
            (i64::MIN + 1, 1, "-9223372036854775806.999999999"),
            (i64::MAX, 999_999_999, "9223372036854775807.999999999"),
        ] {
            assert_eq!(time(Time { sec, nsec }), text.as_bytes());
            assert_eq!(parse_time(text.as_bytes()), Some(Time { sec, nsec }), "{text}");
        }
        assert_eq!(parse_time(b"1.0000000019"), Some(Time { sec: 1, nsec: 1 }));
        assert_eq!(parse_time(b"-1.0000000019"), Some(Time { sec: -2, nsec: 999_999_998 }));
        assert_eq!(parse_time(b"-1.9999999999"), Some(Time { sec: -2, nsec: 0 }));
        for wrong in ["", "-", ".5", "1e3", "+1", "--1", "1.2.3", "1.-5", "9223372036854775808", "\u{0661}"] {
            assert_eq!(parse_time(wrong.as_bytes()), None, "{wrong}");
        }
    }
}
