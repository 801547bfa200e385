//! Files with a known value for every byte, so that a check finds an error in a copy.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::Answer;

const BLOCK: u64 = 64 << 10;

/// Returns the bytes of a pattern at an offset. The offset is a multiple of 8.
pub fn bytes(offset: u64, length: u64) -> Vec<u8> {
    let words = offset / 8..(offset + length).div_ceil(8);
    let mut bytes: Vec<u8> = words.flat_map(|word| word.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()).collect();
    bytes.truncate(length as usize);
    bytes
}

/// Returns the offset and length of each block of a file.
fn blocks(size: u64) -> impl Iterator<Item = (u64, u64)> {
    (0..size).step_by(BLOCK as usize).map(move |offset| (offset, BLOCK.min(size - offset)))
}

pub fn make(file: &str, kib: u64) -> Answer {
    let mut file = File::create(file)?;
    for (offset, length) in blocks(kib << 10) {
        file.write_all(&bytes(offset, length))?;
    }
    Ok("made".to_owned())
}

pub fn check(file: &str, kib: u64, poked: Range<u64>) -> Answer {
    let file = File::open(file)?;
    for (offset, length) in blocks(kib << 10) {
        let mut right = bytes(offset, length);
        for (position, byte) in (offset..).zip(&mut right) {
            if poked.contains(&position) {
                *byte = b'Z';
            }
        }
        let mut found = vec![0; right.len()];
        file.read_exact_at(&mut found, offset)?;
        if let Some(wrong) = found.iter().zip(&right).position(|(found, right)| found != right) {
            return Err(format!("the byte at {} is wrong", offset + wrong as u64).into());
        }
    }
    Ok(format!("right, size {}", file.metadata()?.len()))
}

pub fn poke(file: &str, offset: u64, length: usize) -> Answer {
    let file = OpenOptions::new().write(true).open(file)?;
    file.write_all_at(&vec![b'Z'; length], offset)?;
    file.sync_all()?;
    Ok("poked".to_owned())
}
