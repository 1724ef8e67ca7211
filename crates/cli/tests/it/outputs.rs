//! Reports in files.

use crate::{leakscope, refusal, run, stderr, stdout};

#[test]
fn what_cannot_be_written_is_refused_before_anything_runs() {
    let dir = tempfile::tempdir().expect("make a folder");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let table = [
        (at("x.html"), "format html is not available in this version"),
        (format!("sarif={}", at("x.json")), "format sarif is not"),
        (at("x"), "cannot tell the format of"),
        (at("none/x.json"), "No such file or directory"),
        (format!("json={}", dir.path().display()), "directory"),
        ("json=".to_owned(), "-o needs a file name"),
    ];
    for (output, reason) in &table {
        let sentence = refusal(&run(&["run", "-o", output, "--", "echo", "ran"]), 125);
        assert!(sentence.contains(reason), "{output}: {sentence}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("read it").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn each_output_gets_its_format_and_the_program_keeps_stdout() {
    let dir = tempfile::tempdir().expect("make a folder");
    let path = |name: &str| dir.path().join(name);
    let output = leakscope()
        .args(["run", "-o", "x.json", "-o", "x.txt", "-o", "text=x.log"])
        .args(["--", "sh", "-c", "echo out; exit 3"])
        .current_dir(dir.path())
        .output()
        .expect("start leakscope");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert_eq!(stdout(&output), "out\n");
    let shown = stderr(&output);
    assert!(shown.starts_with("leakscope: "), "{shown}");
    let json = std::fs::read_to_string(path("x.json")).expect("x.json");
    let json: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
    assert_eq!(json["schema"], "leakscope-report/1");
    let sentence = json["verdict"]["sentence"].as_str().expect("a sentence");
    assert!(shown.contains(sentence), "{shown}");
    let text = std::fs::read_to_string(path("x.txt")).expect("x.txt");
    assert_eq!(text, shown);
    assert_eq!(std::fs::read_to_string(path("x.log")).expect("x.log"), text);
    let names = std::fs::read_dir(dir.path()).expect("read it").count();
    assert_eq!(names, 3, "temporary files are gone");
}

#[test]
fn json_on_stderr_is_only_json() {
    let output = run(&["run", "--format", "json", "--", "true"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value = serde_json::from_str(&stderr(&output)).expect("it is JSON");
    assert_eq!(json["command"], "run");
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let output = run(&["run", "-q", "-o", "json=/dev/full", "--", "echo", "ran"]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(stdout(&output), "ran\n");
    let text = stderr(&output);
    assert!(
        text.contains("cannot write /dev/full: No space left"),
        "{text}"
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    // `true` never reads: writing meets a closed pipe, sooner or later.
    let mut reader = std::process::Command::new("true")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("start true");
    let pipe = reader.stdin.take().expect("its input is a pipe");
    reader.wait().expect("true ends");
    let output = leakscope()
        .args(["run", "-q", "-o", "json=-", "--", "true"])
        .stdout(pipe)
        .output()
        .expect("start leakscope");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}
