//! The Rust files of the checkout, and what in them is code.

use std::fs;
use std::path::{Path, PathBuf};

/// A file's path relative to the checkout, and its text.
pub struct Source {
    pub path: String,
    pub text: String,
}

/// Every Rust file that belongs to the project.
pub fn all() -> Result<Vec<Source>, String> {
    let root = crate::root();
    let mut paths = Vec::new();
    for folder in ["benches", "crates", "fuzz", "preload", "tests", "xtask"] {
        collect(&root.join(folder), &mut paths)?;
    }
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).map_err(|e| format!("read {path:?}: {e}"))?;
        let short = path.strip_prefix(&root).unwrap_or(&path);
        sources.push(Source {
            path: short.to_string_lossy().into_owned(),
            text,
        });
    }
    Ok(sources)
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result<(), String> {
    if !folder.exists() {
        return Ok(());
    }
    let entries = fs::read_dir(folder).map_err(|e| format!("read {folder:?}: {e}"))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("read {folder:?}: {e}"))?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "target") {
                collect(&path, into)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// The text with comments, strings and character literals blanked out.
/// Raw strings are known; lifetimes are not taken for characters.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let skip = if rest.starts_with(b"//") {
            find(rest, b"\n").unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if byte == b'"' {
            string(rest)
        } else if byte == b'r' && !before_is_word(bytes, at) {
            raw_string(rest).unwrap_or(0)
        } else if byte == b'\'' {
            character(rest)
        } else {
            0
        };
        if skip == 0 {
            out.push(char::from(byte));
            at += 1;
        } else {
            out.push(' ');
            at += skip;
        }
    }
    out
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

fn before_is_word(bytes: &[u8], at: usize) -> bool {
    at.checked_sub(1)
        .and_then(|i| bytes.get(i))
        .is_some_and(|b| (b.is_ascii_alphanumeric() && *b != b'b' && *b != b'c') || *b == b'_')
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while let Some(&byte) = rest.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let open = 2 + hashes;
    Some(find(&rest[open..], &end).map_or(rest.len(), |i| open + i + end.len()))
}

/// `'x'`, `'\n'`, `'\u{1f}'`; a lifetime is 0 bytes long.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return find(&rest[3.min(rest.len())..], b"'").map_or(0, |i| 3 + i + 1);
    }
    // One character of up to four bytes.
    (2..=5)
        .find(|i| rest.get(*i) == Some(&b'\''))
        .filter(|i| *i == 2 || rest.get(1).is_some_and(|b| *b >= 0x80))
        .map_or(0, |i| i + 1)
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn only_code_is_left() {
        for (text, left) in [
            ("a // unsafe\nb", "a  \nb"),
            ("a /* x /* unsafe */ y */ b", "a   b"),
            (r#"f("un\"safe", 1)"#, "f( , 1)"),
            (r###"f(r#"un"safe"#)"###, "f( )"),
            (r#"f('"', '\'', 'x')"#, "f( ,  ,  )"),
            ("fn f<'a>(x: &'a str)", "fn f<'a>(x: &'a str)"),
            ("for x in 'outer: loop", "for x in 'outer: loop"),
        ] {
            assert_eq!(code(text), left, "{text}");
        }
    }
}
