//! Times as people read them.

use leakscope_model::quantity;

/// `17 µs`, `3.2 ms`, `1.5 s`, `2 min 5 s`, `3 h 12 min`.
pub fn seconds(s: f64) -> String {
    if !s.is_finite() || s < 0.0 {
        return "an unknown time".to_owned();
    }
    if s >= 7200.0 {
        let minutes = (s / 60.0).round() as u64;
        return format!("{} h {} min", quantity::count(minutes / 60), minutes % 60);
    }
    if s >= 119.5 {
        let whole = s.round() as u64;
        return format!("{} min {} s", whole / 60, whole % 60);
    }
    let (value, unit) = match s {
        s if s >= 0.9995 => (s, "s"),
        s if s >= 0.000_999_5 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    format!("{} {unit}", three_digits(value))
}

/// How long blocks lived. The recorder's clock ticks every 10 ms, so below
/// that no figure means anything.
pub(crate) fn lifetime(s: f64) -> String {
    if (0.0..0.01).contains(&s) {
        return "under 10 ms".to_owned();
    }
    seconds(s)
}

fn three_digits(v: f64) -> String {
    let text = match v {
        v if v >= 99.95 => return format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_follows_the_size() {
        let table = [
            (0.0, "0 µs"),
            (0.000_017, "17 µs"),
            (0.0032, "3.2 ms"),
            (0.999_7, "1 s"),
            (1.5, "1.5 s"),
            (59.97, "60 s"),
            (125.0, "2 min 5 s"),
            (11_520.0, "3 h 12 min"),
            (f64::NAN, "an unknown time"),
            (-1.0, "an unknown time"),
        ];
        for (s, text) in table {
            assert_eq!(seconds(s), text);
        }
    }

    #[test]
    fn a_lifetime_below_the_clocks_tick_has_no_figure() {
        for (s, text) in [
            (0.0, "under 10 ms"),
            (0.0099, "under 10 ms"),
            (0.01, "10 ms"),
            (13.7, "13.7 s"),
            (f64::NAN, "an unknown time"),
        ] {
            assert_eq!(lifetime(s), text);
        }
    }
}
