//! How amounts are written for people, the same in every view: `37 bytes`,
//! `1.2 MiB`, `1,204 blocks`, `89 %`.

/// Binary units above the byte, each 1024 times the one before (IEC 80000-13).
const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Bytes: exact below 1024 (`1 byte`, `37 bytes`), else one decimal in the
/// largest unit that keeps the number at or above one (`1.2 MiB`).
pub fn bytes(n: u64) -> String {
    if n < 1024 {
        return counted(n, "byte");
    }
    let mut shown = String::new();
    for (i, unit) in UNITS.iter().enumerate() {
        // Each unit rounds (half up) from the exact value, or errors would
        // add up; what rounds to 1024.0 belongs to the next unit.
        let shift = 10 * (i + 1);
        let tenths = (u128::from(n) * 10 + (1 << (shift - 1))) >> shift;
        shown = format!("{}.{} {unit}", tenths / 10, tenths % 10);
        if tenths < 10_240 {
            break;
        }
    }
    shown
}

/// A count with thousands separators: `1,204`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count and its noun, with a plural `s` unless it is one: `1 block`,
/// `1,204 blocks`.
pub fn counted(n: u64, noun: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(n))
}

/// A share in whole percent. Says `100 %` and `0 %` only when that is exact;
/// otherwise `>99 %` and `<1 %`. A share of nothing is `0 %`.
pub fn percent(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".to_owned();
    }
    if part >= whole {
        return "100 %".to_owned();
    }
    let (part, whole) = (u128::from(part), u128::from(whole));
    match (part * 200 + whole) / (whole * 2) {
        0 => "<1 %".to_owned(),
        100.. => ">99 %".to_owned(),
        n => format!("{n} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_exact_when_small_and_rounded_when_large() {
        let table: [(u64, &str); 17] = [
            (0, "0 bytes"),
            (1, "1 byte"),
            (37, "37 bytes"),
            (1023, "1,023 bytes"),
            (1024, "1.0 KiB"),
            (1075, "1.0 KiB"),
            (1076, "1.1 KiB"),
            (33 * 1024, "33.0 KiB"),
            (1_048_524, "1023.9 KiB"),
            (1_048_525, "1.0 MiB"),
            (1_048_576, "1.0 MiB"),
            (1_258_291, "1.2 MiB"),
            (72_704, "71.0 KiB"),
            (1 << 30, "1.0 GiB"),
            (1 << 40, "1.0 TiB"),
            (1 << 50, "1.0 PiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (n, expected) in table {
            assert_eq!(bytes(n), expected, "{n}");
        }
    }

    #[test]
    fn counts_have_separators_and_plurals() {
        for (n, expected) in [
            (0, "0"),
            (999, "999"),
            (1_204, "1,204"),
            (1_000_000, "1,000,000"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(count(n), expected);
        }
        assert_eq!(counted(1, "block"), "1 block");
        assert_eq!(counted(0, "block"), "0 blocks");
        assert_eq!(counted(1_204, "block"), "1,204 blocks");
    }

    #[test]
    fn percent_never_rounds_to_certainty() {
        for (part, whole, expected) in [
            (0, 0, "0 %"),
            (0, 7, "0 %"),
            (7, 7, "100 %"),
            (9, 7, "100 %"),
            (1, 1000, "<1 %"),
            (999, 1000, ">99 %"),
            (89, 100, "89 %"),
            (2, 3, "67 %"),
            (u64::MAX - 1, u64::MAX, ">99 %"),
        ] {
            assert_eq!(percent(part, whole), expected, "{part}/{whole}");
        }
    }
}
