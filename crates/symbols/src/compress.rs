//! Compressed sections, with a limit on what comes out.
//!
//! ```text
//! SHF_COMPRESSED: u32 type (1 zlib, 2 zstd), u32 0, u64 size, u64 alignment
//! .zdebug_…:      "ZLIB", u64 size (big-endian)
//! .gnu_debugdata: a whole .xz file
//! ```

use std::io::{self, Read};

use crate::bytes::{u32_at, u64_at};

enum Method {
    Zlib,
    Zstd,
}

/// A compressed section, its header taken off.
pub(crate) struct Stream<'a> {
    method: Method,
    /// Size that the header promises, bytes.
    size: u64,
    data: &'a [u8],
}

impl<'a> Stream<'a> {
    /// Takes off the header of a section with `SHF_COMPRESSED`.
    pub(crate) fn chdr(raw: &'a [u8]) -> Option<Stream<'a>> {
        let method = match u32_at(raw, 0)? {
            1 => Method::Zlib,
            2 => Method::Zstd,
            _ => return None,
        };
        Some(Stream {
            method,
            size: u64_at(raw, 8)?,
            data: raw.get(24..)?,
        })
    }

    /// Takes off the header of a `.zdebug_` section.
    pub(crate) fn zdebug(raw: &'a [u8]) -> Option<Stream<'a>> {
        if raw.get(..4)? != b"ZLIB" {
            return None;
        }
        Some(Stream {
            method: Method::Zlib,
            size: u64_at(raw, 4)?.swap_bytes(),
            data: raw.get(12..)?,
        })
    }

    /// Decompresses to exactly the promised size, which must be `room` at
    /// most.
    pub(crate) fn decode(&self, room: u64) -> io::Result<Vec<u8>> {
        if self.size > room {
            return Err(bad("a compressed section is too large"));
        }
        let out = match self.method {
            Method::Zlib => {
                let stream = flate2::bufread::ZlibDecoder::new(self.data);
                read_bounded(stream, self.size, self.data.len())?
            }
            Method::Zstd => {
                let stream = ruzstd::decoding::StreamingDecoder::new(self.data)
                    .map_err(|e| bad(&e.to_string()))?;
                read_bounded(stream, self.size, self.data.len())?
            }
        };
        if out.len() as u64 != self.size {
            return Err(bad("a compressed section ends too early"));
        }
        Ok(out)
    }
}

/// Decompresses an `.xz` file of at most `room` bytes.
pub(crate) fn xz(data: &[u8], room: u64) -> io::Result<Vec<u8>> {
    /// More than the dictionary of any `xz` preset (64 MiB), KiB.
    const MEMORY_KIB: u32 = 128 << 10;
    let stream = lzma_rust2::XzReader::new_mem_limit(data, true, MEMORY_KIB);
    let out = read_bounded(stream, room.saturating_add(1), data.len())?;
    if out.len() as u64 > room {
        return Err(bad("compressed symbols are too large"));
    }
    Ok(out)
}

/// Reads `limit` bytes or to the end. The size is a promise of the file: what
/// is set aside at first is no more than usual ratios need.
fn read_bounded(stream: impl Read, limit: u64, packed: usize) -> io::Result<Vec<u8>> {
    let likely = limit.min(packed as u64 * 8);
    let mut out = Vec::with_capacity(usize::try_from(likely).unwrap_or(0));
    stream.take(limit).read_to_end(&mut out)?;
    Ok(out)
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn zlib(plain: &[u8], promise: u64) -> Vec<u8> {
        let mut out = 1u32.to_le_bytes().to_vec();
        out.extend(0u32.to_le_bytes());
        out.extend(promise.to_le_bytes());
        out.extend(1u64.to_le_bytes());
        let mut enc = flate2::write::ZlibEncoder::new(out, flate2::Compression::best());
        enc.write_all(plain).unwrap();
        enc.finish().unwrap()
    }

    #[test]
    fn a_promise_is_kept_or_an_error() {
        let plain = vec![7u8; 100_003];
        let good = zlib(&plain, 100_003);
        let stream = Stream::chdr(&good).unwrap();
        assert_eq!(stream.decode(1 << 20).unwrap(), plain);
        assert!(stream.decode(100_002).is_err());
        let more = zlib(&plain, 100_019);
        assert!(Stream::chdr(&more).unwrap().decode(1 << 20).is_err());
        // A promise smaller than the contents cuts, as the section then
        // lies about itself anyway; it never grows.
        let less = zlib(&plain, 11);
        assert_eq!(
            Stream::chdr(&less).unwrap().decode(1 << 20).unwrap().len(),
            11
        );
        assert!(Stream::chdr(&good[..23]).is_none());
    }

    #[test]
    fn garbage_is_an_error() {
        for kind in [1u8, 2] {
            let mut raw = vec![0x5a; 300];
            raw[..8].copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
            raw[8..16].copy_from_slice(&1000u64.to_le_bytes());
            assert!(Stream::chdr(&raw).unwrap().decode(1 << 20).is_err());
        }
        assert!(xz(&[0x5a; 300], 1 << 20).is_err());
        assert!(xz(b"\xfd7zXZ\0\0\x04", 1 << 20).is_err());
    }
}
