//! Exit statuses, as the contract lists them.

use leakscope_testkit::compile_c;

use crate::{refusal, run, stderr, stdout};

#[test]
fn the_programs_own_status_passes_through() {
    for status in [0, 1, 3, 42, 255] {
        let script = format!("exit {status}");
        let output = run(&["run", "-q", "--", "sh", "-c", &script]);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
    }
    for (signal, status) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let script = format!("kill -{signal} $$");
        let output = run(&["run", "-q", "--", "sh", "-c", &script]);
        assert_eq!(output.status.code(), Some(status), "{}", stderr(&output));
    }
}

#[test]
fn a_program_that_cannot_start_is_126_or_127() {
    let sentence = refusal(&run(&["run", "--", "/no/such/program"]), 127);
    assert!(sentence.contains("/no/such/program"), "{sentence}");
    let sentence = refusal(&run(&["run", "--", "no-such-program-anywhere"]), 127);
    assert!(sentence.contains("no-such-program-anywhere"), "{sentence}");
    let dir = tempfile::tempdir().expect("make a folder");
    let file = dir.path().join("data");
    std::fs::write(&file, "no program\n").expect("write");
    let file = file.to_str().expect("the folder's name is text");
    let sentence = refusal(&run(&["run", "--", file]), 126);
    assert!(sentence.contains(file), "{sentence}");
}

#[test]
fn the_programs_arguments_are_its_own() {
    let output = run(&["run", "-q", "--", "echo", "-h", "--", "--top", "x"]);
    assert_eq!(stdout(&output), "-h -- --top x\n");
    let output = run(&["run", "-q", "echo", "-h", "--", "--top", "x"]);
    assert_eq!(stdout(&output), "-h -- --top x\n");
}

/// 17 blocks of 31 bytes, none of them kept.
const LEAKING: &str = r#"
#include <stdlib.h>
int main(void) {
    for (int i = 0; i < 17; i++) {
        volatile char *p = malloc(31);
        p[0] = 1;
    }
    return 7;
}
"#;

#[test]
fn fail_on_decides_by_what_was_found() {
    let program = compile_c(LEAKING, &[]);
    let path = program.path().to_str().expect("its path is text");
    let table: &[(&[&str], i32)] = &[
        (&[], 7),
        (&["--fail-on", "definite"], 23),
        (&["--fail-on", "leak", "--error-exitcode", "99"], 99),
        (&["--fail-on", "double-free,fd-leak"], 7),
        (&["--fail-on", "none"], 7),
    ];
    for (options, status) in table {
        let mut words = vec!["run", "-q"];
        words.extend_from_slice(options);
        words.extend_from_slice(&["--", path]);
        let output = run(&words);
        assert_eq!(output.status.code(), Some(*status), "{}", stderr(&output));
    }
}

#[test]
fn a_suppressed_leak_is_none() {
    let program = compile_c(LEAKING, &[]);
    let path = program.path().to_str().expect("its path is text");
    let dir = tempfile::tempdir().expect("make a folder");
    let file = dir.path().join("mine.supp");
    let output = run(&["run", "--gen-suppressions", "--", path]);
    let text = stderr(&output);
    let from = text.find("\n{\n").expect("a suppression is printed");
    std::fs::write(&file, &text[from..]).expect("write");
    let file = file.to_str().expect("the folder's name is text");
    let words = ["run", "--fail-on", "definite", "--suppressions", file];
    let output = run(&[&words[..], &["--", path]].concat());
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}
