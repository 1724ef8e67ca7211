//! `leakscope check` reads a copy that the process made of itself.

use leakscope_e2e::{Outcome, build};
use leakscope_testkit::{Program, Target, compile_c};
use libtest_mimic::Trial;
use std::process::{Command, Stdio};

use crate::check::{can_examine, check, ensure, named, section};
use crate::trial;

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 6] = [
    ("says_the_same_as_stopped", says_the_same_as_stopped),
    ("a_filtered_process", a_filtered_process),
    ("a_stack_of_its_own", a_stack_of_its_own),
    ("a_snapshot_tells_the_same", a_snapshot_tells_the_same),
    ("leaves_nothing_behind", leaves_nothing_behind),
    ("killed_at_any_moment", killed_at_any_moment),
];

pub fn trials() -> Vec<Trial> {
    let cases = CASES.into_iter().map(|(name, test)| {
        trial(format!("forked::{name}"), move || {
            if can_examine() { test() } else { Ok(()) }
        })
    });
    cases.collect()
}

fn says_the_same_as_stopped() -> Outcome {
    for name in [
        "type_objects.cc",
        "shape_tree.c",
        "root_stack_thread.c",
        "root_register.c",
        "root_tls_static.c",
    ] {
        let target = named(name)?;
        let stopped = section(&target, &["--mode", "stop"])?;
        for mode in ["fork", "auto"] {
            let forked = section(&target, &["--mode", mode])?;
            ensure(stopped.summary() == forked.summary(), || {
                format!(
                    "{name}: {} stopped, {} {mode}",
                    stopped.summary(),
                    forked.summary()
                )
            })?;
            let pause = forked.at("/coverage/pause_seconds").as_f64();
            ensure(
                forked.at("/coverage/consistency") == "forked" && pause.is_some_and(|p| p > 0.0),
                || format!("{name}, {mode}: {}", forked.at("/coverage")),
            )?;
        }
    }
    Ok(())
}

/// Allows everything, but is there; a filter may kill.
const FILTERED: &str = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
int main(void) {
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_wait4, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    malloc(100);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
    printf("runs\n");
    fflush(stdout);
    getchar();
    return 7;
}
"#;

/// Its main thread runs on a stack that is part of a larger array.
const OWN_STACK: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
static char memory[1 << 20];
static ucontext_t here, there;
static void run(void) {
    printf("runs\n");
    fflush(stdout);
    getchar();
}
int main(void) {
    malloc(100);
    getcontext(&there);
    there.uc_stack.ss_sp = memory + (1 << 19);
    there.uc_stack.ss_size = 1 << 18;
    there.uc_link = &here;
    makecontext(&there, run, 0);
    swapcontext(&here, &there);
    return 7;
}
"#;

/// Auto stops it instead, says why, and finds the same.
fn falls_back(source: &str, why: &str) -> Outcome {
    let program: Program = compile_c(source, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    let pid = target.pid().to_string();
    let found = section(&target, &[])?;
    let notices = found.at("/notices").to_string();
    if found.at("/coverage/consistency") == "forked" {
        // Root on a kernel that allows it suspends filters.
        ensure(!notices.contains("not-copied"), || notices.clone())?;
    } else {
        ensure(
            found.at("/coverage/consistency") == "stopped" && notices.contains(why),
            || format!("{} {notices}", found.at("/coverage")),
        )?;
        let done = check(&["--mode", "fork", &pid])?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        ensure(done.code() == 125 && stderr.contains(why), || {
            format!("status {}: {stderr}", done.code())
        })?;
    }
    let stopped = section(&target, &["--mode", "stop"])?;
    ensure(found.summary() == stopped.summary(), || {
        format!("{} {}", found.summary(), stopped.summary())
    })?;
    target.send("");
    let ended = target.wait();
    ensure(ended.code() == Some(7), || format!("{ended}"))
}

fn a_filtered_process() -> Outcome {
    falls_back(FILTERED, "seccomp")
}

fn a_stack_of_its_own() -> Outcome {
    falls_back(OWN_STACK, "none of its threads")
}

fn a_snapshot_tells_the_same() -> Outcome {
    use std::os::unix::fs::PermissionsExt;
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let leakscope = build::leakscope()?;
    for name in [
        "type_objects.cc",
        "root_stack_thread.c",
        "root_tls_static.c",
    ] {
        let target = named(name)?;
        let pid = target.pid().to_string();
        let live = section(&target, &["--mode", "stop"])?;
        for mode in ["auto", "stop"] {
            let packed = if mode == "auto" { ".gz" } else { "" };
            let path = place.path().join(format!("{name}.{mode}{packed}"));
            let file = path.to_string_lossy().into_owned();
            let snapshot = |options: &[&str]| {
                let mut command = Command::new(&leakscope);
                let output = command.arg("snapshot").args(options).output();
                output.map_err(|e| format!("run leakscope: {e}"))
            };
            let done = snapshot(&[&pid, "--mode", mode, "-o", &file])?;
            let said = String::from_utf8_lossy(&done.stdout);
            ensure(done.status.success() && said.contains(&file), || {
                format!(
                    "{} {said} {}",
                    done.status,
                    String::from_utf8_lossy(&done.stderr)
                )
            })?;
            let meta = std::fs::metadata(&path).map_err(|e| e.to_string())?;
            ensure(meta.permissions().mode() & 0o77 == 0, || {
                "others may read it".to_owned()
            })?;
            let saved = check(&["--format", "json", &file])?;
            let saved = leakscope_e2e::Section::all(&String::from_utf8_lossy(&saved.stdout))?;
            let saved = saved.first().ok_or("no section")?;
            ensure(saved.summary() == live.summary(), || {
                format!(
                    "{name}, {mode}: {} saved, {} live",
                    saved.summary(),
                    live.summary()
                )
            })?;
            let full = snapshot(&[&pid, "-o", "/dev/full"])?;
            ensure(full.status.code() == Some(125), || full.status.to_string())?;
        }
    }
    // What could not be finished is gone.
    let left = std::fs::read_dir(place.path()).map_err(|e| e.to_string())?;
    ensure(left.count() == 6, || "files were left over".to_owned())
}

fn children(pid: u32) -> usize {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().count()
}

fn leaves_nothing_behind() -> Outcome {
    let target = named("type_objects.cc")?;
    for _ in 0..50 {
        section(&target, &["--mode", "fork"])?;
    }
    ensure(children(target.pid()) == 0, || {
        format!("{} children", children(target.pid()))
    })
}

/// Reads, sleeps and computes, and says what went wrong.
const WORKING: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>
static atomic_int failed, rounds;
static void *sleeps(void *unused) {
    struct timespec time = {.tv_nsec = 3000000};
    for (;; rounds++) if (nanosleep(&time, 0)) failed++;
    return unused;
}
static void *waits(void *unused) {
    struct epoll_event event;
    int set = epoll_create1(0);
    for (;; rounds++) if (epoll_wait(set, &event, 1, 3)) failed++;
    return unused;
}
static void *computes(void *unused) {
    for (double sum = 0;; sum = 0, rounds++) {
        for (int i = 1; i < 100000; i++) sum += 1.0 / i;
        if (sum < 12.0901 || sum > 12.0902) failed++;
    }
    return unused;
}
static void *allocates(void *unused) {
    for (;; rounds++) {
        char *parts[64];
        for (int i = 0; i < 64; i++) memset(parts[i] = malloc(i * 37 + 1), i, i * 37 + 1);
        for (int i = 0; i < 64; i++) {
            for (int j = 0; j <= i * 37; j++) if (parts[i][j] != i) failed++;
            free(parts[i]);
        }
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, sleeps, 0);
    pthread_create(&thread, 0, waits, 0);
    pthread_create(&thread, 0, computes, 0);
    pthread_create(&thread, 0, allocates, 0);
    printf("runs\n");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) == 1) {
        int before = rounds;
        while (rounds < before + 10) sched_yield();
        printf("failed %d\n", failed);
        fflush(stdout);
    }
    return 7;
}
"#;

/// leakscope itself, by SIGKILL: what it was about to do does not matter.
fn killed_at_any_moment() -> Outcome {
    let program = compile_c(WORKING, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    let leakscope = build::leakscope()?;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        let mut child = Command::new(&leakscope)
            .args(["check", "--mode", "fork", &target.pid().to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("start leakscope: {e}"))?;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        for _ in 0..(seed >> 44) {
            std::hint::spin_loop();
        }
        let _ = child.kill();
        child.wait().map_err(|e| format!("wait: {e}"))?;
        target.send("");
        let failed = target.expect_line("failed ");
        ensure(failed == "0", || format!("round {round}: {failed} failed"))?;
    }
    target.close();
    let ended = target.wait();
    ensure(ended.code() == Some(7), || format!("{ended}"))
}
