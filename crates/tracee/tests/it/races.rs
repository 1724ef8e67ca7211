//! One test for each race.

use crate::{possible, process, until_blocked};
use leakscope_model::ExitKind;
use leakscope_testkit::{Target, compile_c};
use leakscope_tracee::{StopError, stop, wait_exit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(120);

/// Three threads make short-lived threads without end.
const BIRTHS: &str = r#"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
static atomic_int births;
static void *be_born(void *unused) { atomic_fetch_add(&births, 1); return unused; }
static void *give_birth(void *unused) {
    for (;;) {
        pthread_t child[3];
        int made = 0;
        while (made < 3 && !pthread_create(&child[made], 0, be_born, 0)) made++;
        while (made) pthread_join(child[--made], 0);
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    for (int i = 0; i < 3; i++) pthread_create(&thread, 0, give_birth, 0);
    char line[64];
    while (fgets(line, sizeof line, stdin)) { printf("births %d\n", births); fflush(stdout); }
    return 7;
}
"#;

fn births(target: &mut Target) -> u64 {
    target.send("");
    target.expect_line("births ").parse().unwrap()
}

#[test]
fn threads_born_while_stopping() {
    if !possible() {
        return;
    }
    let program = compile_c(BIRTHS, &[]);
    let mut target = Target::spawn(&mut program.command());
    let pid = target.pid();
    let mut before = 0;
    for _ in 0..61 {
        while births(&mut target) == before {}
        let stopped = stop(pid).unwrap();
        assert!(stopped.skipped().is_empty());
        let listed = process(pid).tasks().unwrap();
        for &tid in &listed {
            let state = process(pid).task(tid).stat().unwrap().state;
            assert!(matches!(state, b't' | b'Z'), "{}", state as char);
        }
        let stopped_ids: Vec<u32> = stopped.threads().iter().map(|t| t.tid).collect();
        let alive = |&tid: &u32| process(pid).task(tid).stat().unwrap().state == b't';
        let listed: Vec<u32> = listed.into_iter().filter(alive).collect();
        assert_eq!(stopped_ids, listed);
        assert!(listed.len() >= 4);
        drop(stopped);
        before = births(&mut target);
    }
    target.close();
    assert_eq!(target.wait().code(), Some(7));
}

/// Ends, with threads coming and going, while it is being stopped.
#[test]
fn a_process_that_ends_while_it_is_stopped() {
    if !possible() {
        return;
    }
    let program = compile_c(BIRTHS, &[]);
    let (mut stops, mut gone) = (0, 0);
    for _ in 0..53 {
        let mut target = Target::spawn(&mut program.command());
        births(&mut target);
        target.close();
        loop {
            match stop(target.pid()) {
                Ok(stopped) => drop(stopped),
                Err(StopError::Gone(_)) => break,
                Err(error) => panic!("{error}"),
            }
            stops += 1;
        }
        gone += 1;
        let exit = wait_exit(target.pid(), LONG).unwrap();
        assert_eq!(exit, Some(ExitKind::Code(7)));
    }
    println!("{stops} stops, {gone} ends");
}

/// A thread other than the first starts the program again: it takes over the
/// first thread's id while the others die.
#[test]
fn a_process_that_starts_another_program_while_it_is_stopped() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static char **arguments;
static void *spin(void *unused) { for (;;) getppid(); return unused; }
static void *again(void *unused) {
    char left[32];
    snprintf(left, sizeof left, "%d", atoi(arguments[1]) - 1);
    execl(arguments[0], arguments[0], left, (char *)0);
    return unused;
}
int main(int argc, char **argv) {
    (void)argc;
    arguments = argv;
    if (atoi(argv[1]) == 0) return 7;
    pthread_t thread;
    pthread_create(&thread, 0, spin, 0);
    pthread_create(&thread, 0, spin, 0);
    pthread_create(&thread, 0, again, 0);
    for (;;) getppid();
}
"#,
        &[],
    );
    let target = Target::spawn(program.command().arg("307"));
    let mut stops = 0;
    loop {
        match stop(target.pid()) {
            Ok(stopped) => {
                assert!(!stopped.threads().is_empty());
                stops += 1;
            }
            Err(StopError::Gone(_)) => {
                if process(target.pid()).stat().unwrap().is_dead() {
                    break;
                }
            }
            // All threads died between two looks, on a busy machine.
            Err(StopError::TimedOut(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    println!("{stops} stops");
    let exit = wait_exit(target.pid(), LONG).unwrap();
    assert_eq!(exit, Some(ExitKind::Code(7)));
}

/// A thread in vfork cannot stop until its child has gone. It is left alone,
/// and must not stop later, when nobody is there to let it go.
#[test]
fn a_thread_in_vfork() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *run(void *unused) {
    char byte;
    if (vfork() == 0) {
        write(1, "born\n", 5);
        read(0, &byte, 1);
        _exit(0);
    }
    write(1, "resumed\n", 8);
    return unused;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    pthread_join(thread, 0);
    return 7;
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("born");
    let pid = target.pid();
    for _ in 0..3 {
        let stopped = stop(pid).unwrap();
        let tids = process(pid).tasks().unwrap();
        assert_eq!(tids.len(), 2);
        assert_eq!(stopped.skipped(), &tids[1..]);
        // What the kernel tells of it still finds its stack.
        let skipped = &stopped.threads()[1];
        assert_eq!(skipped.tid, tids[1]);
        use leakscope_memory::MemoryReader;
        assert!(stopped.memory().map().find(skipped.sp).unwrap().write);
        drop(stopped);
    }
    // The child of vfork shares its memory: leaving it may not hang either.
    let stopped = stop(pid).unwrap();
    target.send("");
    drop(stopped);
    target.expect_line("resumed");
    assert_eq!(target.wait().code(), Some(7));
}

/// Notices of stops are shown to every thread of the parent, and another
/// waiter may take them. This one does nothing else.
#[test]
fn a_waiter_that_takes_the_notices() {
    if !possible() {
        return;
    }
    let program = compile_c(BIRTHS, &[]);
    let mut target = Target::spawn(&mut program.command());
    births(&mut target);
    let pid = target.pid();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(wait_exit(pid, Duration::ZERO).unwrap(), None);
            }
        });
        for _ in 0..101 {
            let stopped = stop(pid).unwrap();
            assert!(stopped.skipped().is_empty());
        }
        done.store(true, Ordering::Relaxed);
    });
    births(&mut target);
}

/// The status of a child that ends while a thread of ours traces it reaches
/// the thread that waits for it.
#[test]
fn a_waiter_gets_the_status() {
    if !possible() {
        return;
    }
    let program = compile_c(BIRTHS, &[]);
    for _ in 0..17 {
        let mut target = Target::spawn(&mut program.command());
        births(&mut target);
        let pid = target.pid();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(move || wait_exit(pid, LONG).unwrap());
            let stopped = stop(pid).unwrap();
            target.signal(libc::SIGTERM);
            drop(stopped);
            loop {
                match stop(pid) {
                    Ok(stopped) => drop(stopped),
                    Err(StopError::Gone(_)) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let exit = waiter.join().unwrap();
            assert_eq!(exit, Some(ExitKind::Signal("SIGTERM".to_owned())));
        });
    }
}

/// A process made by `clone` without the usual exit signal is traced from
/// birth like a thread, but is none.
#[test]
fn a_process_born_while_stopping() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int go = 1;
static void *run(void *unused) {
    while (go) {
        long child = syscall(SYS_clone, 0, 0, 0, 0, 0);
        if (child == 0) syscall(SYS_exit_group, 0);
        if (child > 0) waitpid(child, 0, __WALL);
    }
    return unused;
}
int main(void) {
    pthread_t thread;
    pthread_create(&thread, 0, run, 0);
    printf("ready\n");
    fflush(stdout);
    getchar();
    go = 0;
    pthread_join(thread, 0);
    return 7;
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    for _ in 0..101 {
        let stopped = stop(target.pid()).unwrap();
        let tids: Vec<u32> = stopped.threads().iter().map(|t| t.tid).collect();
        assert_eq!(tids, process(target.pid()).tasks().unwrap());
        assert_eq!(tids.len(), 2);
    }
    target.send("");
    assert_eq!(target.wait().code(), Some(7));
}

/// Stopping twice at once: the second finds the first.
#[test]
fn one_tracer_at_most() {
    if !possible() {
        return;
    }
    let mut target = Target::spawn(&mut std::process::Command::new("cat"));
    until_blocked(target.pid());
    let stopped = stop(target.pid()).unwrap();
    let second = stop(target.pid());
    assert!(
        matches!(second, Err(StopError::NotPermitted(_))),
        "{second:?}"
    );
    drop(stopped);
    target.send("alive");
    target.expect_line("alive");
}
