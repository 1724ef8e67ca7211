//! Little-endian numbers out of untrusted bytes.

/// The `N` bytes at `at`, or `None` when they are not all there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    let end = at.checked_add(N)?;
    bytes.get(at..end)?.try_into().ok()
}

/// The 16-bit number at `at`.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

/// The 32-bit number at `at`.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

/// The 64-bit number at `at`.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

/// The bytes from `at` up to the next zero, which must come within `limit`
/// bytes.
pub(crate) fn string_at(bytes: &[u8], at: usize, limit: usize) -> Option<&[u8]> {
    let tail = bytes.get(at..)?;
    let tail = tail.get(..limit).unwrap_or(tail);
    let end = tail.iter().position(|b| *b == 0)?;
    tail.get(..end)
}

/// `bytes` in hexadecimal digits, as build ids are written.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(bytes.len() * 2);
    for b in bytes {
        // Writing into a string cannot fail.
        let _ = write!(out, "{b:02x}");
    }
    out
}
