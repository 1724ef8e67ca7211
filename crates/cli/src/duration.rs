//! Times as people type them.

use std::time::Duration;

/// Longest time that is understood: ten years.
const MOST: f64 = 10.0 * 366.0 * 86_400.0;

/// Reads seconds, or a number with a unit: `90`, `1.5s`, `250ms`, `5m`, `1h`,
/// `2d`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "'{}' is no time; give seconds, or a number with ms, s, m, h or d",
            leakscope_report::escape(text)
        )
    };
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "ms" => 0.001,
        "" | "s" | "sec" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    let seconds = number * unit;
    if seconds > MOST {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_understood_and_nonsense_is_not() {
        let table = [
            ("0", 0),
            ("90", 90_000),
            ("1.5s", 1_500),
            ("250ms", 250),
            ("5m", 300_000),
            ("1H", 3_600_000),
            ("2d", 172_800_000),
        ];
        for (text, ms) in table {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "", "s", "-1", "1y", "1e9", "9999999d", "1.2.3", "nan", "5 m",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
