//! Making hostile text harmless on a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// `text` with everything replaced that a terminal would obey or that hides
/// or reorders its neighbours: control characters (C0, DEL, C1), bidirectional
/// controls, invisible characters, line and paragraph separators. They appear
/// as `\n`, `\t`, `\x1b` or `\u{202e}`.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if !is_hostile(c) => out.push(c),
            // Writing to a String cannot fail.
            c if (c as u32) < 0x100 => _ = write!(out, "\\x{:02x}", c as u32),
            c => _ = write!(out, "\\u{{{:x}}}", c as u32),
        }
    }
    Cow::Owned(out)
}

/// True for characters that must not reach a terminal as they are.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_is_left_alone() {
        for text in ["", "main", "a b", "größe", "日本語", "C:\\x", "{{closure}}"] {
            assert!(
                matches!(escape(text), Cow::Borrowed(t) if t == text),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_terminal_obeys_is_spelled_out() {
        let table = [
            ("a\nb", "a\\nb"),
            ("\u{1b}[31mred", "\\x1b[31mred"),
            ("\u{9b}2J", "\\x9b2J"),
            ("\u{7f}", "\\x7f"),
            ("\0", "\\x00"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
            ("tab\there\r", "tab\\there\\r"),
        ];
        for (raw, shown) in table {
            assert_eq!(escape(raw), shown);
        }
    }
}
