//! What is going on, on one line of a terminal, gone afterwards.

use std::io::{self, Write};

use leakscope_session::Word;

use crate::terminal::Terminal;

/// The line. Where stderr is no terminal, only what lasts is shown, on lines
/// of their own.
pub struct Progress {
    width: Option<usize>,
    quiet: bool,
    is_shown: bool,
}

impl Progress {
    /// `quiet` shows nothing either.
    pub fn new(terminal: Terminal, quiet: bool) -> Progress {
        Progress {
            // Moving the cursor takes as much of a terminal as colours do,
            // but NO_COLOR does not speak of it.
            width: terminal
                .is_one
                .then(|| terminal.width.unwrap_or(80))
                .filter(|_| !quiet),
            quiet,
            is_shown: false,
        }
    }

    /// Replaces the line.
    pub fn show(&mut self, word: Word<'_>) {
        let what = word.text;
        let Some(width) = self.width else {
            if word.is_lasting && !self.quiet {
                _ = writeln!(
                    io::stderr(),
                    "leakscope: {}",
                    leakscope_report::escape(what)
                );
            }
            return;
        };
        let room = width.saturating_sub("leakscope: ".len() + 1);
        let text: String = leakscope_report::escape(what).chars().take(room).collect();
        // A terminal that went away is no reason to stop measuring.
        _ = write!(io::stderr(), "\r\u{1b}[Kleakscope: {text}");
        self.is_shown = true;
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.is_shown {
            _ = write!(io::stderr(), "\r\u{1b}[K");
            self.is_shown = false;
        }
    }
}
