//! Where `run` and `check` meet: a recorded process is checked, and a program
//! that no recorder can enter is looked at when it ends.

use std::process::Command;

use leakscope_e2e::{Outcome, Section, build};
use leakscope_testkit::{Need, Target, compile_c, need};
use libtest_mimic::Trial;

use crate::check::{can_examine, check, ensure};
use crate::trial;

/// Its name, what it needs, and the test.
type Case = (&'static str, Need, fn() -> Outcome);

pub fn trials() -> Vec<Trial> {
    let cases: [Case; 2] = [
        (
            "stacks_of_a_running_process",
            Need::Preload,
            stacks_of_a_running_process,
        ),
        (
            "a_static_executable",
            Need::Program("g++"),
            a_static_executable,
        ),
    ];
    let trials = cases.into_iter().map(|(name, wanted, test)| {
        trial(format!("recorded::{name}"), move || {
            if can_examine() && need(wanted) {
                test()
            } else {
                Ok(())
            }
        })
    });
    trials.collect()
}

const SERVER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static void *volatile kept;
__attribute__((noinline)) static void leak_here(int n) { while (n--) kept = malloc(100); kept = 0; }
int main(void) {
    char line[64];
    printf("%d\n", getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        leak_here(7);
        printf("done\n");
        fflush(stdout);
    }
    return 7;
}
"#;

fn sections(pid: &str) -> Result<Vec<Section>, String> {
    let done = check(&["--format", "json", pid])?;
    ensure(done.code() == 0 && done.stderr.is_empty(), || {
        String::from_utf8_lossy(&done.stderr).into_owned()
    })?;
    Section::all(&String::from_utf8_lossy(&done.stdout))
}

fn stacks_of_a_running_process() -> Outcome {
    let program = compile_c(SERVER, &[]);
    let leakscope = build::leakscope()?;
    let mut command = Command::new(leakscope);
    command.args(["run", "--quiet", "--"]).arg(program.path());
    let mut target = Target::spawn(&mut command);
    let pid = target.line().ok_or("no process id")?;
    for round in 1..=3u64 {
        target.send("");
        target.expect_line("done");
        let sections = sections(&pid)?;
        let [section] = sections.as_slice() else {
            return Err(format!("{} sections", sections.len()));
        };
        let notices = section.at("/notices").to_string();
        if notices.contains("recorder-unreadable") {
            // Not root: the heap was walked.
            continue;
        }
        // A dead word somewhere may still name the last one.
        let (_, blocks) = section.loss("definite");
        ensure([round * 7, round * 7 - 1].contains(&blocks), || {
            section.summary()
        })?;
        let stack = section.at("/leaks/0/stack").to_string();
        ensure(
            stack.contains("leak_here") && notices.contains("\"recorded\""),
            || format!("{stack} {notices}"),
        )?;
        let errors = section.at("/errors");
        ensure(errors.as_array().is_some_and(Vec::is_empty), || {
            errors.to_string()
        })?;
    }
    // And the run itself was not disturbed.
    target.close();
    let ended = target.wait();
    ensure(ended.code() == Some(7), || format!("{ended}"))
}

const STATIC: &str = r#"
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <unistd.h>
struct Base { virtual ~Base() {} };
struct Widget : Base { int parts[20]; Widget *next = nullptr; };
static Widget *kept;
static volatile sig_atomic_t got;
__attribute__((noinline)) static void leak() {
    for (int i = 0; i < 50; i++) { Widget *lost = new Widget; lost->next = new Widget; }
}
__attribute__((noinline)) static void wipe() {
    volatile char bytes[8000];
    memset((void *)bytes, 0, sizeof bytes);
}
int main(int count, char **arguments) {
    signal(SIGUSR1, [](int) { got = 1; });
    kept = new Widget;
    leak();
    std::thread(leak).join();
    raise(SIGUSR1);
    wipe();
    if (count > 1 && !strcmp(arguments[1], "abort")) abort();
    if (count > 1 && !strcmp(arguments[1], "_exit")) _exit(5);
    return got ? 7 : 1;
}
"#;

fn a_static_executable() -> Outcome {
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let source = place.path().join("program.cc");
    let program = place.path().join("program");
    std::fs::write(&source, STATIC).map_err(|e| e.to_string())?;
    let compiler = Command::new("g++")
        .args(["-g", "-O0", "-static", "-o"])
        .args([&program, &source])
        .status();
    ensure(compiler.is_ok_and(|s| s.success()), || {
        "g++ failed".to_owned()
    })?;
    let leakscope = build::leakscope()?;
    for (how, status) in [("", 7), ("_exit", 5), ("abort", 128 + 6)] {
        let report = place.path().join("report.json");
        let done = Command::new(&leakscope)
            .args(["run", "--quiet", "-o"])
            .arg(&report)
            .arg("--")
            .arg(&program)
            .arg(how)
            .output()
            .map_err(|e| format!("run leakscope: {e}"))?;
        ensure(done.status.code() == Some(status), || {
            format!("{how}: {}", done.status)
        })?;
        let text = std::fs::read_to_string(&report).map_err(|e| e.to_string())?;
        let sections = Section::all(&text)?;
        let section = sections.first().ok_or("no section")?;
        let lost = [section.loss("definite").1, section.loss("indirect").1];
        ensure(lost == [100, 100], || {
            format!("{how}: {}", section.summary())
        })?;
        ensure(
            section.at("/leaks").to_string().contains("\"Widget\"")
                && section.at("/coverage/heap_check/agrees") == true
                && section
                    .at("/notices")
                    .to_string()
                    .contains("static-executable"),
            || format!("{how}: {text}"),
        )?;
    }
    Ok(())
}
