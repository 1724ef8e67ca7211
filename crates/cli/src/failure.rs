//! leakscope's own failures, and the exit statuses that name them.

use std::fmt;

/// leakscope itself failed.
pub const OWN: u8 = 125;
/// The program could not be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;
/// Something that `--fail-on` names was found.
pub const FOUND: u8 = 23;

/// Why a command ends early: a status and one sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit status.
    pub status: u8,
    /// The sentence, without the leading `leakscope:` and the final dot.
    pub text: String,
}

impl Failure {
    /// A failure of leakscope itself.
    pub fn own(text: impl Into<String>) -> Failure {
        Failure {
            status: OWN,
            text: text.into(),
        }
    }
}

impl fmt::Display for Failure {
    /// One line, whatever the text contains.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        write!(
            f,
            "leakscope: {}",
            leakscope_report::escape(&words.join(" "))
        )
    }
}

impl From<clap::Error> for Failure {
    /// clap explains over several lines; the reason and its tip are kept.
    fn from(error: clap::Error) -> Failure {
        let text = error.render().to_string();
        let mut parts: Vec<String> = Vec::new();
        for paragraph in text.split("\n\n") {
            let lines = paragraph.lines().map(str::trim);
            // Passing an unknown option on as a value is never what is meant.
            let lines: Vec<&str> = lines.filter(|l| !l.starts_with("tip: to pass")).collect();
            let sentence = lines.join(" ");
            let is_usage = ["Usage:", "For more information"]
                .iter()
                .any(|start| sentence.starts_with(start));
            if !sentence.is_empty() && !is_usage {
                let sentence = sentence.strip_prefix("error: ").unwrap_or(&sentence);
                parts.push(sentence.trim().to_owned());
            }
        }
        Failure::own(format!(
            "{}; --help behind the command lists the options",
            parts.join("; ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_harmless_line() {
        let f = Failure::own("cannot read\n  a\u{1b}[31m file");
        assert_eq!(f.to_string(), "leakscope: cannot read a\\x1b[31m file");
    }
}
