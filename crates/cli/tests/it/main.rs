//! The command as a user meets it: help, refusals, exit statuses, files.
//!
//! `LEAKSCOPE_GOLDEN=write cargo test -p leakscope-cli` rewrites the golden
//! files; a missing one is written, and fails once so that somebody looks.

mod arguments;
mod outputs;
mod statuses;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

/// `leakscope` with a plain environment.
fn leakscope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_leakscope"));
    for name in [
        "LEAKSCOPE_OPTIONS",
        "NO_COLOR",
        "DEBUGINFOD_URLS",
        "COLUMNS",
    ] {
        command.env_remove(name);
    }
    command
}

fn run<S: AsRef<OsStr>>(words: &[S]) -> Output {
    leakscope().args(words).output().expect("start leakscope")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("stdout is text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is text")
}

/// The one line on stderr of a refusal, which leaves nothing on stdout.
fn refusal(output: &Output, status: i32) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert_eq!(stdout(output), "");
    let sentence = text.trim_end().strip_prefix("leakscope: ");
    sentence.expect("says who speaks").to_owned()
}

/// Compares with `tests/golden/NAME`, the version redacted.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let rewrite = std::env::var_os("LEAKSCOPE_GOLDEN").is_some_and(|v| v == "write");
    let expected = std::fs::read_to_string(&path).ok();
    if rewrite || expected.is_none() {
        std::fs::create_dir_all(path.parent().expect("it has a folder")).expect("make it");
        std::fs::write(&path, &text).expect("the golden folder is writable");
    }
    if rewrite {
        return;
    }
    let Some(expected) = expected else {
        panic!("{name} was missing and is written now: look at it, then commit it")
    };
    assert!(
        expected == text,
        "{name} differs; LEAKSCOPE_GOLDEN=write rewrites it\n--- expected\n{expected}\n--- got\n{text}"
    );
}
