//! No file is long without a reason.

use crate::{Findings, source};

/// Lines above which a file must say why, in a line of its head that
/// contains `Long because`.
const LONG: usize = 800;
/// Lines that count as the head.
const HEAD: usize = 30;

/// Long files without a reason.
pub fn check() -> Findings {
    Ok(source::all()?
        .iter()
        .filter_map(|s| finding(&s.path, &s.text))
        .collect())
}

fn finding(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    let reason = text.lines().take(HEAD).any(|l| l.contains("Long because"));
    (lines > LONG && !reason).then(|| {
        format!("{path} has {lines} lines; above {LONG} its head must say 'Long because …'")
    })
}

#[cfg(test)]
mod tests {
    use super::finding;

    #[test]
    fn a_reason_excuses() {
        let long = "x\n".repeat(801);
        assert!(finding("a", &long).is_some());
        assert!(finding("a", &format!("//! Long because it is a table.\n{long}")).is_none());
        assert!(finding("a", &"x\n".repeat(800)).is_none());
    }
}
