//! `leakscope check` on a process that `leakscope run` records.

use std::process::Command;

use leakscope_e2e::{Outcome, Section, build};
use leakscope_testkit::{Need, Target, compile_c, need};
use libtest_mimic::Trial;

use crate::check::{can_examine, check, ensure};
use crate::trial;

pub fn trials() -> Vec<Trial> {
    vec![trial(
        "recorded::stacks_of_a_running_process".to_owned(),
        || {
            if can_examine() && need(Need::Preload) {
                stacks_of_a_running_process()
            } else {
                Ok(())
            }
        },
    )]
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
        ensure(section.at("/errors").to_string() == "[]", || {
            section.at("/errors").to_string()
        })?;
    }
    // And the run itself was not disturbed.
    target.close();
    let ended = target.wait();
    ensure(ended.code() == Some(7), || format!("{ended}"))
}
