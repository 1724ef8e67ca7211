//! `LEAKSCOPE_OPTIONS`: options of `run`, put before those that were typed.

use std::ffi::{OsStr, OsString};

use clap::Parser;

use crate::args::EnvironmentOptions;
use crate::failure::Failure;

const VARIABLE: &str = "LEAKSCOPE_OPTIONS";

/// The command line with the options of the environment in it. They come
/// first, so that what was typed wins.
///
/// # Errors
/// When the variable cannot be split, or holds anything but options.
pub fn command_line(typed: Vec<OsString>) -> Result<Vec<OsString>, Failure> {
    match std::env::var_os(VARIABLE) {
        Some(options) => spliced(typed, &options),
        None => Ok(typed),
    }
}

fn spliced(mut typed: Vec<OsString>, options: &OsStr) -> Result<Vec<OsString>, Failure> {
    if typed.get(1).is_none_or(|command| command != "run") {
        return Ok(typed);
    }
    let text = options
        .to_str()
        .ok_or_else(|| Failure::own(format!("{VARIABLE} is not UTF-8")))?;
    let words = shell_words::split(text)
        .map_err(|e| Failure::own(format!("cannot split {VARIABLE}: {e}")))?;
    // Checked on their own: a stray word must not become the program.
    EnvironmentOptions::try_parse_from(&words).map_err(|e| {
        let failure = Failure::from(e);
        Failure::own(format!("in {VARIABLE}: {}", failure.text))
    })?;
    typed.splice(2..2, words.into_iter().map(OsString::from));
    Ok(typed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn options_come_before_those_typed() {
        let typed = line(&["leakscope", "run", "--top", "3", "--", "x"]);
        assert_eq!(
            spliced(typed, OsStr::new("--top 7 --suppressions 'a b'")),
            Ok(line(&[
                "leakscope",
                "run",
                "--top",
                "7",
                "--suppressions",
                "a b",
                "--top",
                "3",
                "--",
                "x"
            ]))
        );
        let other = line(&["leakscope", "man"]);
        assert_eq!(spliced(other.clone(), OsStr::new("--top 7")), Ok(other));
    }

    #[test]
    fn anything_but_options_is_refused() {
        let typed = line(&["leakscope", "run", "x"]);
        for bad in ["--top 7 evil", "-- evil", "--no-such", "--top 'x", "--help"] {
            let failure = spliced(typed.clone(), OsStr::new(bad)).expect_err(bad);
            assert!(failure.text.contains(VARIABLE), "{bad}: {}", failure.text);
        }
    }
}
