//! Help, refusals of what was typed, the environment, generated files.

use crate::{golden, leakscope, refusal, run, stderr, stdout};

#[test]
fn help_is_as_agreed() {
    for (name, words) in [
        ("help.txt", &["--help"][..]),
        ("help-run-short.txt", &["run", "-h"]),
        ("help-run.txt", &["run", "--help"]),
        ("help-check.txt", &["check", "--help"]),
        ("help-snapshot.txt", &["snapshot", "--help"]),
    ] {
        let output = run(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}");
        assert_eq!(stderr(&output), "", "{words:?}");
        golden(name, &stdout(&output));
    }
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(
        stdout(&version),
        concat!("leakscope ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn generated_files_know_the_visible_commands_only() {
    let page = run(&["man"]);
    assert_eq!(page.status.code(), Some(0));
    let page = stdout(&page);
    for part in [".TH leakscope 1", "\\-\\-fail\\-on", "LEAKSCOPE_OPTIONS"] {
        assert!(page.contains(part), "{part} in {page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        assert_eq!(script.status.code(), Some(0));
        let script = stdout(&script);
        assert!(script.contains("leak-resolution"), "{shell}");
        assert!(!script.contains("completions SHELL"), "{shell}");
    }
}

#[test]
fn no_command_prints_the_help() {
    let output = run::<&str>(&[]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("Usage: leakscope"));
}

#[test]
fn what_cannot_be_understood_is_one_sentence_and_125() {
    let table: &[(&[&str], &str)] = &[
        (&["run"], "required arguments were not provided: <CMD>"),
        (&["frob"], "unrecognized subcommand 'frob'"),
        (&["run", "--sho", "all", "--", "x"], "exists: '--show'"),
        (
            &["run", "--top", "x", "--", "x"],
            "invalid value 'x' for '--top <N>'",
        ),
        (&["run", "--show", "x", "--", "x"], "'x' is no loss kind"),
        (&["run", "--fail-on", "x", "--", "x"], "'x'"),
        (
            &["run", "--error-exitcode", "0", "--", "x"],
            "0 is not in 1..=255",
        ),
        (
            &["run", "--error-exitcode", "256", "--", "x"],
            "256 is not in 1..=255",
        ),
        (
            &["run", "--leak-resolution", "x", "--", "x"],
            "low, med or high",
        ),
        (&["run", "--sample", "0", "--", "x"], "at least one byte"),
        (&["run", "--sample", "1Q", "--", "x"], "'1Q' is no size"),
        (
            &["run", "--max-depth", "0", "--", "x"],
            "0 is not in 1..=512",
        ),
        (
            &["run", "--interior-heuristics", "x", "--", "x"],
            "newarray",
        ),
        (&["run", "--follow", "x", "--", "x"], "children, none"),
        (&["run", "--format", "xml", "--", "x"], "text, json"),
        (
            &["run", "--gen-suppressions", "--format", "json", "--", "x"],
            "needs --format text",
        ),
    ];
    for (words, reason) in table {
        let sentence = refusal(&run(words), 125);
        assert!(sentence.contains(reason), "{words:?}: {sentence}");
    }
}

#[test]
fn a_suppression_file_is_read_before_anything_runs() {
    let dir = tempfile::tempdir().expect("make a folder");
    let missing = dir.path().join("none.supp");
    let broken = dir.path().join("broken.supp");
    std::fs::write(&broken, "{\n   name\n   Memcheck:Leak\n   fun:main\n").expect("write");
    for (file, reason) in [(missing, "No such file"), (broken, "broken.supp:")] {
        let file = file.to_str().expect("the folder's name is text");
        let words = ["run", "--suppressions", file, "--", "echo", "ran"];
        let sentence = refusal(&run(&words), 125);
        assert!(sentence.contains(reason), "{sentence}");
    }
}

#[test]
fn the_environment_holds_options_of_run_and_nothing_else() {
    let with = |options: &str, words: &[&str]| {
        let mut command = leakscope();
        command.env("LEAKSCOPE_OPTIONS", options).args(words);
        command.output().expect("start leakscope")
    };
    for bad in ["--top x", "--frob", "echo ran", "-- echo ran", "--top 'x"] {
        let sentence = refusal(&with(bad, &["run", "--", "echo", "ran"]), 125);
        assert!(sentence.contains("LEAKSCOPE_OPTIONS"), "{bad}: {sentence}");
    }
    // Other commands do not look at it.
    let version = with("--frob", &["--version"]);
    assert_eq!(version.status.code(), Some(0));
    // The command line wins: a later --top replaces the earlier one, so the
    // refusal is about what was typed.
    let sentence = refusal(&with("--top 3", &["run", "--top", "x", "--", "x"]), 125);
    assert!(!sentence.contains("LEAKSCOPE_OPTIONS"), "{sentence}");
}
