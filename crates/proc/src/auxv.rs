//! `/proc/PID/auxv`: what the kernel told the program at its start.

/// Program headers' address (`AT_PHDR`, `include/uapi/linux/auxvec.h`).
pub const AT_PHDR: u64 = 3;
/// Interpreter's load address.
pub const AT_BASE: u64 = 7;
/// Entry point.
pub const AT_ENTRY: u64 = 9;
/// Nonzero when the kernel restricted the program (setuid, capabilities):
/// the loader then ignores preloads.
pub const AT_SECURE: u64 = 23;
/// The vdso's address.
pub const AT_SYSINFO_EHDR: u64 = 33;

/// Pairs of type and value, up to the terminator (`AT_NULL`); an incomplete
/// last pair is dropped. 64-bit processes only.
pub fn parse(bytes: &[u8]) -> Vec<(u64, u64)> {
    let (pairs, _) = bytes.as_chunks::<16>();
    pairs
        .iter()
        .map(|pair| {
            let (kind, value) = pair.split_at(8);
            (word(kind), word(value))
        })
        .take_while(|&(kind, _)| kind != 0)
        .collect()
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |word, &byte| word << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_until_the_terminator() {
        let mut bytes = Vec::new();
        for word in [AT_ENTRY, 0x1234_5678_9abc, AT_SECURE, 1, 0, 0, 7, 7] {
            bytes.extend_from_slice(&u64::to_le_bytes(word));
        }
        let want = [(AT_ENTRY, 0x1234_5678_9abc), (AT_SECURE, 1)];
        assert_eq!(parse(&bytes), want);
        assert_eq!(parse(&bytes[..24]), want[..1]);
        assert!(parse(b"").is_empty());
    }
}
