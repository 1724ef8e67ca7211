//! A page of text: colours, folding, columns.

use std::io;

use crate::Options;

/// Writes lines, folded at the terminal's width.
pub(super) struct Page<'a> {
    out: &'a mut dyn io::Write,
    width: Option<usize>,
    pub(super) paint: Paint,
}

impl<'a> Page<'a> {
    pub(super) fn new(out: &'a mut dyn io::Write, options: &Options) -> Page<'a> {
        Page {
            out,
            // Below this, folding makes things worse.
            width: options.width.filter(|&w| w >= 40),
            paint: Paint { on: options.colour },
        }
    }

    /// Columns left behind `indent`; `None` when lines are not folded.
    pub(super) fn room(&self, indent: usize) -> Option<usize> {
        self.width.map(|w| w.saturating_sub(indent))
    }

    pub(super) fn blank(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n")
    }

    /// One line, as it is.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Words behind `indent` columns, folded between words at the width;
    /// further lines begin at column `hang`.
    pub(super) fn paragraph(&mut self, indent: usize, hang: usize, text: &str) -> io::Result<()> {
        let mut line = " ".repeat(indent);
        let mut column = indent;
        let mut empty = true;
        for word in text.split(' ') {
            let len = visible_len(word);
            if !empty && self.width.is_some_and(|w| column + 1 + len > w) {
                self.line(line.trim_end())?;
                line = " ".repeat(hang);
                column = hang;
                empty = true;
            }
            if !empty {
                line.push(' ');
                column += 1;
            }
            line.push_str(word);
            column += len;
            empty = false;
        }
        self.line(line.trim_end())
    }
}

/// Characters that take room: not those of our own colour escapes.
fn visible_len(text: &str) -> usize {
    let mut len = 0;
    let mut in_escape = false;
    for c in text.chars() {
        match c {
            '\u{1b}' => in_escape = true,
            'm' if in_escape => in_escape = false,
            _ if in_escape => {}
            _ => len += 1,
        }
    }
    len
}

/// Colours, or none.
#[derive(Clone, Copy)]
pub(super) struct Paint {
    on: bool,
}

impl Paint {
    fn wrap(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What needs no attention.
    pub(super) fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    pub(super) fn alarm(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    pub(super) fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.wrap("1;32", text)
    }

    /// The frame to look at.
    pub(super) fn place(self, text: &str) -> String {
        self.wrap("1;36", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(width: Option<usize>, text: &str) -> String {
        let mut out = Vec::new();
        let options = Options {
            width,
            ..Options::default()
        };
        Page::new(&mut out, &options)
            .paragraph(0, 4, text)
            .expect("a Vec takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn lines_fold_between_words_only() {
        let words = "0123456789 ".repeat(9);
        let text = folded(Some(40), &words);
        assert!(text.lines().all(|l| l.len() <= 40), "{text}");
        assert!(text.lines().skip(1).all(|l| l.starts_with("    0")));
        assert_eq!(folded(None, &words).lines().count(), 1);
        let long = "x".repeat(91);
        assert_eq!(folded(Some(40), &long), format!("{long}\n"));
    }

    #[test]
    fn colours_take_no_room() {
        assert_eq!(visible_len("\u{1b}[1;31mlost\u{1b}[0m"), 4);
    }
}
