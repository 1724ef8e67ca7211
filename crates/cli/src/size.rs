//! Sizes as people type them.

/// Reads bytes with an optional binary suffix: `4096`, `64K`, `512KiB`, `1M`,
/// `2G`.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "'{}' is no size; give bytes such as 4096, 64K, 1M or 2G",
            leakscope_report::escape(text)
        )
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match suffix.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// As [`parse`], and at least one byte.
pub fn parse_positive(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("must be at least one byte".to_owned()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        let table = [
            ("0", 0),
            ("4096", 4096),
            ("512K", 524_288),
            ("512kib", 524_288),
            ("1M", 1 << 20),
            ("3GB", 3 << 30),
            ("16777215T", 16_777_215 << 40),
        ];
        for (text, n) in table {
            assert_eq!(parse(text), Ok(n), "{text}");
        }
        for bad in ["", "K", "-1", "1.5M", "1 M", "1Q", "16777216T", "0x10"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse_positive("0K").is_err());
    }
}
