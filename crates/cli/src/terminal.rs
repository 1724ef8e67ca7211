//! What stderr and stdout are.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// The terminal behind a stream, if it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terminal {
    /// Columns; `None` when unknown or no terminal.
    pub width: Option<usize>,
    /// Colours are understood and wanted.
    pub colour: bool,
    /// It is a terminal.
    pub is_one: bool,
}

impl Terminal {
    /// Looks at stderr, `NO_COLOR` and `TERM`.
    pub fn of_stderr() -> Terminal {
        Terminal::of(std::io::stderr())
    }

    /// The same for stdout.
    pub fn of_stdout() -> Terminal {
        Terminal::of(std::io::stdout())
    }

    fn of(stream: impl IsTerminal + AsFd) -> Terminal {
        if !stream.is_terminal() {
            return Terminal::default();
        }
        let columns = rustix::termios::tcgetwinsize(&stream).map_or(0, |size| size.ws_col);
        let is_set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let is_dumb = std::env::var_os("TERM").is_none_or(|t| t.is_empty() || t == "dumb");
        Terminal {
            width: (columns > 0).then_some(usize::from(columns)),
            colour: !is_set("NO_COLOR") && !is_dumb,
            is_one: true,
        }
    }
}
