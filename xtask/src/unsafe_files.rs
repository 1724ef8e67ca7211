//! `unsafe` appears only in the files that `layers.toml` lists, and every
//! listed file has some.

use crate::{Findings, layers, source};

/// Files with `unsafe` that are not listed, and the reverse.
pub fn check() -> Findings {
    let rules = layers::Rules::read()?;
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    for source in source::all()? {
        let lines = lines_with_unsafe(&source.text);
        let Some(first) = lines.first() else { continue };
        let rule = rules
            .unsafe_files
            .iter()
            .find(|rule| covers(rule, &source.path));
        match rule {
            Some(rule) => seen.push(rule.clone()),
            None => findings.push(format!(
                "{}:{first}: unsafe in a file that layers.toml does not list",
                source.path
            )),
        }
    }
    for rule in &rules.unsafe_files {
        if !seen.contains(rule) {
            findings.push(format!("layers.toml lists {rule}, which has no unsafe"));
        }
    }
    Ok(findings)
}

/// A rule is a path, or a folder ending in `/`.
fn covers(rule: &str, path: &str) -> bool {
    path == rule || (rule.ends_with('/') && path.starts_with(rule))
}

fn lines_with_unsafe(text: &str) -> Vec<usize> {
    let code = source::code(text);
    if !code.contains("unsafe") {
        return Vec::new();
    }
    // Blanked parts lose their line ends, so look line by line in the text
    // once the code is known to have some.
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let has = |code: &str| code.split(|c| !is_word(c)).any(|w| w == "unsafe");
    // `#[unsafe(no_mangle)]` and `unsafe(naked)` are attributes: they count.
    if !has(&code) {
        return Vec::new();
    }
    let lines = text.lines().enumerate();
    lines
        .filter(|(_, line)| has(&source::code(line)))
        .map(|(i, _)| i + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_count_and_names_do_not() {
        assert_eq!(lines_with_unsafe("fn a() {}\nunsafe fn b() {}\n"), [2]);
        assert!(lines_with_unsafe("#![forbid(unsafe_code)]\n// unsafe\n").is_empty());
        assert!(lines_with_unsafe("let x = \"unsafe\";").is_empty());
        assert_eq!(lines_with_unsafe("#[unsafe(no_mangle)]"), [1]);
    }

    #[test]
    fn folders_cover_what_is_below() {
        assert!(covers("preload/", "preload/src/lib.rs"));
        assert!(covers("a/b.rs", "a/b.rs"));
        assert!(!covers("a/b", "a/b.rs"));
    }
}
