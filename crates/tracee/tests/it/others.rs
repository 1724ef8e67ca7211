//! Other tracers, other users, and our own violent death.

use crate::{possible, until_blocked};
use leakscope_testkit::{Target, compile_c};
use leakscope_tracee::{LiveMemory, RefusalCause, StopError, fork, stop};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Tells [`helper`] what to do: an action and a process id.
const ACTION: &str = "LEAKSCOPE_TEST_ACTION";

/// Runs this test program again, as a process of its own that does `action`.
pub fn another(action: &str, pid: u32) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("know our own path"));
    command
        .args(["--exact", "others::helper", "--nocapture"])
        .env(ACTION, format!("{action} {pid}"));
    command
}

/// Skips what the test harness prints.
pub fn expect_among(target: &mut Target, prefix: &str) -> String {
    loop {
        let line = target.line().expect("a line before the end");
        if let Some((_, rest)) = line.split_once(prefix) {
            return rest.trim().to_owned();
        }
    }
}

/// Not a test of its own: what [`another`] runs.
#[test]
fn helper() {
    let Ok(action) = std::env::var(ACTION) else {
        return;
    };
    let (action, pid) = action.split_once(' ').expect("action and id");
    let pid: u32 = pid.parse().expect("a process id");
    if action == "copy" {
        println!("begin");
        loop {
            let _ = fork(pid).map(|copy| copy.memory().map().regions().len());
        }
    }
    let result = stop(pid);
    match &result {
        Ok(stopped) => println!("held {}", stopped.threads().len()),
        Err(error) => println!("refused {error}"),
    }
    if action == "hold" {
        let _ = std::io::stdin().read_line(&mut String::new());
    }
}

#[test]
fn killing_the_tracer_frees_the_target() {
    if !possible() {
        return;
    }
    let program = compile_c(crate::stop::COUNTER, &["-DTHREADS=3"]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    for round in 1..=7 {
        let mut tracer = Target::spawn(&mut another("hold", target.pid()));
        assert_eq!(expect_among(&mut tracer, "held "), "4");
        target.signal(libc::SIGUSR1);
        target.send("");
        assert!(target.is_silent());
        tracer.signal(libc::SIGKILL);
        tracer.wait();
        let mut usual: u32 = target.expect_line("usual ").parse().unwrap();
        target.expect_line("queued ");
        // Another thread may take the signal, a moment after the answer.
        while usual < round {
            target.send("");
            usual = target.expect_line("usual ").parse().unwrap();
            target.expect_line("queued ");
        }
        assert_eq!(usual, round);
    }
    assert_eq!(target.wait().code(), Some(7));
}

#[test]
fn killing_the_tracer_fails_no_call() {
    if !possible() {
        return;
    }
    let program = compile_c(crate::restart::BLOCKED, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    until_blocked(target.pid());
    for _ in 0..7 {
        let mut tracer = Target::spawn(&mut another("hold", target.pid()));
        assert_eq!(expect_among(&mut tracer, "held "), "14");
        tracer.signal(libc::SIGKILL);
        tracer.wait();
        until_blocked(target.pid());
    }
    target.send("");
    assert_eq!(target.expect_line("back:"), "");
    assert_eq!(target.wait().code(), Some(7));
}

#[test]
fn a_process_that_is_traced_already() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    pid_t traced = getpid(), tracer = fork();
    if (tracer == 0) {
        int status = 0;
        prctl(PR_SET_NAME, "odd) tracer");
        if (ptrace(PTRACE_SEIZE, traced, 0, 0) == 0) write(1, "traced\n", 7);
        while (waitpid(traced, &status, __WALL) == traced && !WIFSIGNALED(status)) {}
        _exit(0);
    }
    printf("tracer %d\n", tracer);
    fflush(stdout);
    for (;;) pause();
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    // Two processes print: in either order.
    let lines = [target.line().unwrap(), target.line().unwrap()];
    assert!(lines.contains(&"traced".to_owned()));
    let tracer = lines.iter().find_map(|l| l.strip_prefix("tracer "));
    let tracer: u32 = tracer.unwrap().parse().unwrap();
    let error = stop(target.pid()).unwrap_err();
    let StopError::NotPermitted(refusal) = &error else {
        panic!("{error}");
    };
    let cause = RefusalCause::Traced {
        by: tracer,
        name: "odd) tracer".to_owned(),
    };
    assert_eq!(refusal.cause, cause);
    assert!(error.to_string().contains(&format!("process {tracer}")));
    // Reading needs no stop, and is still allowed.
    assert!(LiveMemory::open(target.pid()).is_ok());
}

#[test]
fn our_own_process_and_the_kernel_s() {
    let error = stop(std::process::id()).unwrap_err();
    assert!(
        matches!(&error, StopError::NotPermitted(r) if r.cause == RefusalCause::OwnProcess),
        "{error}"
    );
    // Process 2 makes the kernel's threads, unless we live in a container.
    let kernel = crate::process(2).stat();
    if kernel.is_ok_and(|s| s.is_kernel_thread()) {
        let error = stop(2).unwrap_err();
        assert!(
            matches!(&error, StopError::NotPermitted(r) if r.cause == RefusalCause::KernelThread),
            "{error}"
        );
    }
}

/// Needs root, to become two other users.
#[test]
fn another_user_s_process() {
    if !possible() {
        return;
    }
    const NOBODY: u32 = 65534;
    let mut probe = Command::new("true");
    if probe.uid(NOBODY).gid(NOBODY).status().is_err() {
        eprintln!("skipped: this user cannot become another");
        return;
    }
    let target = Target::spawn(&mut Command::new("cat"));
    until_blocked(target.pid());
    // A copy in a place that the other user can reach.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("tests");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    use std::os::unix::fs::PermissionsExt;
    for path in [dir.path(), copy.as_path()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let as_nobody = |pid: u32| {
        let mut command = Command::new(&copy);
        command
            .args(["--exact", "others::helper", "--nocapture"])
            .env(ACTION, format!("try {pid}"))
            .current_dir("/")
            .uid(NOBODY)
            .gid(NOBODY);
        expect_among(&mut Target::spawn(&mut command), "refused ")
    };
    let refusal = as_nobody(target.pid());
    assert!(
        refusal.contains("it belongs to user 0; run leakscope as"),
        "{refusal}"
    );

    // Starting a program that one may not read makes a process undumpable.
    let secret = compile_c(
        "#include <stdio.h>\nint main(void) { puts(\"ready\"); fflush(stdout); return getchar(); }",
        &[],
    );
    let secret_copy = dir.path().join("secret");
    std::fs::copy(secret.path(), &secret_copy).unwrap();
    std::fs::set_permissions(&secret_copy, std::fs::Permissions::from_mode(0o711)).unwrap();
    let mut target = Target::spawn(Command::new(&secret_copy).uid(NOBODY).gid(NOBODY));
    target.expect_line("ready");
    let refusal = as_nobody(target.pid());
    assert!(
        refusal.contains("does not let itself be examined"),
        "{refusal}"
    );
}
