//! Processes that `leakscope check` may not examine, or that are none: one
//! sentence that names the remedy, status 125, and the process untouched.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_e2e::run::{Done, Job};
use leakscope_e2e::{Outcome, build};
use leakscope_testkit::{Need, Program, Target, compile_c, need};
use libtest_mimic::Trial;

use crate::check::{can_examine, check, ensure};
use crate::trial;

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 8] = [
    ("another_user", another_user),
    ("not_dumpable", not_dumpable),
    ("capabilities", capabilities),
    ("traced_by_another", traced_by_another),
    ("a_thread_of_the_kernel", a_thread_of_the_kernel),
    ("a_thread", a_thread),
    ("another_kind_of_processor", another_kind_of_processor),
    ("gone_in_the_middle", gone_in_the_middle),
];

pub fn trials() -> Vec<Trial> {
    let cases = CASES.into_iter().map(|(name, test)| {
        trial(format!("refused::{name}"), move || {
            if can_examine() { test() } else { Ok(()) }
        })
    });
    cases.collect()
}

/// Writes its id, and waits for the end of its input.
const WAITS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1) prctl(PR_SET_DUMPABLE, 0);
    void *volatile block = malloc(31);
    printf("%d\n", getpid());
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {}
    free(block);
    return 7;
}
"#;

/// The user nobody.
const NOBODY: [&str; 5] = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];

/// True for root with setpriv, who can be anybody.
fn can_change_user() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    let can = is_root && need(Need::Program("setpriv"));
    let may = Command::new("setpriv").args(NOBODY).arg("true").status();
    if !can || !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: only root can be another user");
        return false;
    }
    true
}

/// A folder that everybody may look into, with leakscope and the program.
fn public() -> Result<(tempfile::TempDir, PathBuf, PathBuf), String> {
    let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let mode = std::fs::Permissions::from_mode(0o755);
    let program: Program = compile_c(WAITS, &[]);
    let (leakscope, waits) = (folder.path().join("leakscope"), folder.path().join("waits"));
    let own = build::leakscope()?;
    let copied = std::fs::set_permissions(folder.path(), mode)
        .and_then(|()| std::fs::copy(own, &leakscope))
        .and_then(|_| std::fs::copy(program.path(), &waits));
    copied.map_err(|e| format!("copy: {e}"))?;
    Ok((folder, leakscope, waits))
}

/// The program, started by `before`, and its id.
fn started(before: &[&str], program: &Path, further: &[&str]) -> Result<(Target, u32), String> {
    let mut argv: Vec<_> = before.iter().map(std::ffi::OsStr::new).collect();
    argv.push(program.as_os_str());
    argv.extend(further.iter().map(std::ffi::OsStr::new));
    let (first, rest) = argv.split_first().ok_or("no program")?;
    let mut target = Target::spawn(Command::new(first).args(rest));
    let pid = target.line().and_then(|line| line.parse().ok());
    Ok((target, pid.ok_or("the program said nothing")?))
}

/// leakscope is refused, stopping and racing, with each of these words; and
/// then the program goes on and ends as it would have.
fn refused(
    before: &[&str],
    leakscope: &Path,
    (target, pid): &mut (Target, u32),
    words: &[&str],
) -> Outcome {
    for mode in ["stop", "racing"] {
        let mut argv: Vec<_> = before.iter().map(std::ffi::OsString::from).collect();
        argv.push(leakscope.into());
        argv.extend(["check", "--mode", mode, &pid.to_string()].map(Into::into));
        is_refusal(&Job::new(argv).run()?, words).map_err(|e| format!("{mode}: {e}"))?;
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    let state = status.unwrap_or_default();
    let state = state.lines().find(|l| l.starts_with("State:"));
    ensure(state.is_some_and(|s| s.contains("S (sleeping)")), || {
        format!("it is {state:?}")
    })?;
    target.close();
    let ended = target.wait();
    ensure(ended.code() == Some(7), || format!("{ended}"))
}

fn is_refusal(done: &Done, words: &[&str]) -> Outcome {
    let stderr = String::from_utf8_lossy(&done.stderr);
    let one_line = stderr.lines().count() == 1 && stderr.starts_with("leakscope: ");
    ensure(
        done.code() == 125
            && done.stdout.is_empty()
            && one_line
            && words.iter().all(|word| stderr.contains(word)),
        || format!("status {}, not {words:?}: {stderr}", done.code()),
    )
}

fn another_user() -> Outcome {
    if !can_change_user() {
        return Ok(());
    }
    let (_folder, leakscope, program) = public()?;
    let as_nobody = [&["setpriv"], &NOBODY[..]].concat();
    let mut target = started(&[], &program, &[])?;
    let words = ["it belongs to user 0; run leakscope as root"];
    refused(&as_nobody, &leakscope, &mut target, &words)
}

fn not_dumpable() -> Outcome {
    if !can_change_user() {
        return Ok(());
    }
    let (_folder, leakscope, program) = public()?;
    let as_nobody = [&["setpriv"], &NOBODY[..]].concat();
    let mut target = started(&as_nobody, &program, &["hide"])?;
    let words = [
        "it does not let itself be examined",
        "as root",
        "CAP_SYS_PTRACE",
    ];
    refused(&as_nobody, &leakscope, &mut target, &words)
}

fn capabilities() -> Outcome {
    if !can_change_user() {
        return Ok(());
    }
    let (_folder, leakscope, program) = public()?;
    let without = ["setpriv", "--bounding-set", "-sys_ptrace"];
    let mut target = started(&[], &program, &[])?;
    let words = [
        "capabilities that leakscope has not",
        "--cap-add=SYS_PTRACE",
    ];
    refused(&without, &leakscope, &mut target, &words)
}

fn traced_by_another() -> Outcome {
    if !need(Need::Program("strace")) {
        return Ok(());
    }
    let program = compile_c(WAITS, &[]);
    let (mut tracer, pid) = started(&["strace", "-o", "/dev/null"], program.path(), &[])?;
    let words = [
        format!("already traced by process {} (strace)", tracer.pid()),
        "detach".to_owned(),
    ];
    // Racing asks for no more than to read.
    let done = check(&["--mode", "stop", &pid.to_string()])?;
    is_refusal(&done, &words.each_ref().map(String::as_str))?;
    let racing = check(&["--mode", "racing", &pid.to_string()])?;
    ensure(racing.code() == 0, || {
        format!("racing ends with {}", racing.code())
    })?;
    tracer.close();
    let ended = tracer.wait();
    ensure(ended.code() == Some(7), || format!("{ended}"))
}

fn a_thread_of_the_kernel() -> Outcome {
    // kthreadd, where the first process namespace is ours.
    let comm = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if comm.trim() != "kthreadd" {
        eprintln!("skipped: no thread of the kernel is to be seen");
        return Ok(());
    }
    is_refusal(&check(&["2"])?, &["thread of the kernel"])
}

fn a_thread() -> Outcome {
    let program = compile_c(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
static void *work(void *none) {
    printf("%ld\n", syscall(SYS_gettid));
    fflush(stdout);
    pause();
    return none;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, work, 0);
    char byte;
    while (read(0, &byte, 1) > 0) {}
    return 7;
}
"#,
        &["-pthread"],
    );
    let (target, tid) = started(&[], program.path(), &[])?;
    let words = format!("is a thread of process {0}: check {0}", target.pid());
    is_refusal(&check(&[&tid.to_string()])?, &[&words])
}

fn another_kind_of_processor() -> Outcome {
    // No library of that kind is needed for it.
    let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let (source, program) = (folder.path().join("p.c"), folder.path().join("p"));
    let text = "void _start(void) { for (;;) { int r; \
                __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(29)); } }";
    std::fs::write(&source, text).map_err(|e| format!("write: {e}"))?;
    let built = Command::new("cc")
        .args(["-m32", "-nostdlib", "-static", "-ffreestanding", "-o"])
        .args([&program, &source])
        .output();
    let runs = built.is_ok_and(|done| done.status.success());
    let child = Command::new(&program).spawn();
    let (true, Ok(mut child)) = (runs, child) else {
        eprintln!("skipped: no 32-bit programs can be built and run here");
        return Ok(());
    };
    let refused = check(&[&child.id().to_string()])
        .and_then(|done| is_refusal(&done, &["only x86-64 programs can be examined"]));
    let _ = child.kill();
    let _ = child.wait();
    refused
}

/// Whenever a process ends, there is a report or one sentence.
fn gone_in_the_middle() -> Outcome {
    let program = compile_c(WAITS, &[]);
    for round in 0..40u32 {
        let mode = ["stop", "racing"][round as usize % 2];
        let (mut target, pid) = started(&[], program.path(), &[])?;
        let leakscope = build::leakscope()?;
        let checking = Command::new(leakscope)
            .args([
                "check",
                "--format",
                "json",
                "--mode",
                mode,
                &pid.to_string(),
            ])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .map_err(|e| format!("start leakscope: {e}"))?;
        // Later and later, in steps that a loop takes.
        let mut waited = 0u64;
        while waited < u64::from(round) * 400_000 {
            waited = std::hint::black_box(waited + 1);
        }
        target.signal(9);
        target.wait();
        let done = checking.wait_with_output();
        let done = done.map_err(|e| format!("wait: {e}"))?;
        let (out, err) = (done.stdout.len(), String::from_utf8_lossy(&done.stderr));
        let good = match done.status.code() {
            Some(0) => out > 0 && err.is_empty(),
            Some(125) => out == 0 && err.lines().count() == 1,
            _ => false,
        };
        ensure(good, || {
            format!("round {round}, {mode}: {}, {out} bytes, {err}", done.status)
        })?;
    }
    Ok(())
}
