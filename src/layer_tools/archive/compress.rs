//! The compression of archives, and the digests of what is read or written.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sha2::{Digest as _, Sha256};

/// The data that one frame of zstd holds, in bytes.
const FRAME: usize = 1 << 20;

/// A form of compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None: a plain archive.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// All forms, with the word for each.
    pub const ALL: [(&'static str, Compression); 3] =
        [("tar", Compression::None), ("tar.gz", Compression::Gzip), ("tar.zst", Compression::Zstd)];

    /// Returns the form that begins with these bytes.
    fn of_content(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            // A frame of data, or one that is skipped.
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// Returns a reader of what `source` holds in any form, which its first bytes tell.
///
/// # Errors
///
/// Those of the source.
pub fn decompress<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    source.by_ref().take(4).read_to_end(&mut start)?;
    let compression = Compression::of_content(&start);
    let source = io::Cursor::new(start).chain(source);
    Ok(match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(ZstdReader { source, decoder: FrameDecoder::new(), in_frame: false }),
    })
}

/// Reads all frames of a zstd stream.
struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdReader<R> {
    /// Begins the next frame. Returns false behind the last one.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        let said = self.decoder.get_checksum_from_data();
        match said.is_none() || said == self.decoder.get_calculated_checksum() {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum of a zstd frame is wrong")),
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            if !self.in_frame {
                self.in_frame = self.next_frame()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            if self.decoder.can_collect() > 0 {
                return self.decoder.read(buffer);
            }
            if self.decoder.is_finished() {
                self.end_frame()?;
                continue;
            }
            let decoded = self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
            decoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        Ok(0)
    }
}

/// Compresses what is written. The same input gives the same output.
pub enum Compressor<W: Write> {
    /// Passes it on.
    None(W),
    /// gzip.
    Gzip(Box<GzEncoder<W>>),
    /// zstd, and the data for the next frame.
    Zstd(W, Vec<u8>),
}

impl<W: Write> Compressor<W> {
    /// Begins a stream.
    pub fn new(to: W, compression: Compression) -> Self {
        match compression {
            Compression::None => Compressor::None(to),
            Compression::Gzip => Compressor::Gzip(Box::new(GzEncoder::new(to, flate2::Compression::default()))),
            Compression::Zstd => Compressor::Zstd(to, Vec::with_capacity(FRAME)),
        }
    }

    /// Ends the stream and returns the writer.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Compressor::None(to) => Ok(to),
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Zstd(mut to, data) => {
                to.write_all(&compress_to_vec(&data[..], CompressionLevel::Fastest))?;
                Ok(to)
            }
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::None(to) => to.write(bytes),
            Compressor::Gzip(encoder) => encoder.write(bytes),
            Compressor::Zstd(to, data) => {
                // The encoder of the crate panics if its writer fails, so it writes to memory.
                if data.len() == FRAME {
                    to.write_all(&compress_to_vec(&data[..], CompressionLevel::Fastest))?;
                    data.clear();
                }
                let taken = bytes.len().min(FRAME - data.len());
                data.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }
        }
    }

    /// Flushes the writer. Compressed data waits for the end of its block.
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::None(to) | Compressor::Zstd(to, _) => to.flush(),
            Compressor::Gzip(encoder) => encoder.get_mut().flush(),
        }
    }
}

/// The SHA-256 digest of some bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(Sha256::digest(bytes).into())
    }

    /// Parses the form `sha256:HEX`. None if it is another one.
    pub fn parse(text: &str) -> Option<Self> {
        let (pairs, rest) = text.strip_prefix("sha256:")?.as_bytes().as_chunks::<2>();
        let mut digest = [0; 32];
        if pairs.len() != digest.len() || !rest.is_empty() {
            return None;
        }
        for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
            *byte = hex_digit(*high)? << 4 | hex_digit(*low)?;
        }
        Some(Digest(digest))
    }

    /// Returns the 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A reader or writer that computes the digest of what passes.
pub struct Hashed<T> {
    inner: T,
    hasher: Sha256,
    count: u64,
}

impl<T> Hashed<T> {
    /// Wraps a reader or a writer.
    pub fn new(inner: T) -> Self {
        Hashed { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Returns what was wrapped, the digest, and the number of bytes that passed.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, Digest(self.hasher.finalize().into()), self.count)
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pass(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.pass(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_as_it_was_written() {
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251 * (i / 4096)) as u8).collect();
        for data in [&data[..], &data[..FRAME], b"x", b""] {
            for (word, compression) in Compression::ALL {
                let mut compressor = Compressor::new(Vec::new(), compression);
                compressor.write_all(data).unwrap();
                let compressed = compressor.finish().unwrap();
                let mut read = Vec::new();
                decompress(&compressed[..]).unwrap().read_to_end(&mut read).unwrap();
                assert!(read == data, "{word}, {} bytes", data.len());
            }
        }
    }

    /// podman writes zstd with frames that hold a table for itself.
    #[test]
    fn skipped_frames_and_several_members_are_one_stream() {
        let part = |data: &[u8], compression| {
            let mut compressor = Compressor::new(Vec::new(), compression);
            compressor.write_all(data).unwrap();
            compressor.finish().unwrap()
        };
        let skipped = [&0x184D_2A50_u32.to_le_bytes()[..], &3_u32.to_le_bytes(), b"abc"].concat();
        let zstd = [&part(b"one", Compression::Zstd)[..], &skipped, &part(b"two", Compression::Zstd)].concat();
        let gzip = [part(b"one", Compression::Gzip), part(b"two", Compression::Gzip)].concat();
        for stream in [zstd, gzip] {
            let mut read = Vec::new();
            decompress(&stream[..]).unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, b"onetwo");
        }
    }

    #[test]
    fn damage_is_an_error() {
        let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let mut compressor = Compressor::new(Vec::new(), compression);
            compressor.write_all(&data).unwrap();
            let whole = compressor.finish().unwrap();
            let mut changed = whole.clone();
            let middle = changed.len() / 2;
            changed[middle] ^= 1;
            for damaged in [&changed[..], &whole[..middle], &whole[..whole.len() - 1]] {
                let read = decompress(damaged).unwrap().read_to_end(&mut Vec::new());
                assert!(read.is_err(), "{compression:?}, {} bytes", damaged.len());
            }
        }
    }

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        for wrong in ["", "sha256:", "sha512:00", "sha256:E3", &digest.to_string()[..70], &digest.hex()] {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }
}
