//! Numbers as the kernel prints them: no sign (but for decimal), no prefix,
//! no separators.

/// The value of 1 to 16 hexadecimal digits.
pub(crate) fn hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &byte| {
        let digit = (byte as char).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

/// The value of decimal digits that fit in 64 bits.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &byte| {
        let digit = (byte as char).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The same, for values that fit in 32 bits (process ids, user ids).
pub(crate) fn decimal32(digits: &[u8]) -> Option<u32> {
    decimal(digits)?.try_into().ok()
}

/// Cuts the bytes before the first `byte` off `rest`; `rest` then begins
/// behind it. `None` when there is none.
pub(crate) fn cut<'a>(rest: &mut &'a [u8], byte: u8) -> Option<&'a [u8]> {
    let all: &'a [u8] = rest;
    let at = all.iter().position(|&b| b == byte)?;
    *rest = all.get(at + 1..)?;
    all.get(..at)
}

/// The parts of `text` between runs of blanks and tabs.
pub(crate) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|b| matches!(b, b' ' | b'\t'))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(hex(b"ffffffffffffffff"), Some(u64::MAX));
        assert_eq!(hex(b"10000000000000000"), None);
        assert_eq!(hex(b"0x10"), None);
        assert_eq!(hex(b"+1"), None);
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"18446744073709551616"), None);
        assert_eq!(decimal(b"-1"), None);
        assert_eq!(decimal32(b"4294967296"), None);
        assert_eq!(decimal(b""), None);
    }
}
