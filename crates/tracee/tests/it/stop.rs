//! Stopping and letting go.

use crate::{possible, process, until_blocked, until_state};
use leakscope_memory::MemoryReader;
use leakscope_model::ExitKind;
use leakscope_testkit::{Target, compile_c};
use leakscope_tracee::{StopError, stop, wait_exit};
use std::time::Duration;

/// 503 threads: one spins with a mark in rbx, the others wait for a lock.
const THREADS: &str = r#"
#include <pthread.h>
#include <stdio.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *wait_for_lock(void *unused) {
    pthread_mutex_lock(&lock);
    pthread_mutex_unlock(&lock);
    return unused;
}
static volatile int go = 1;
static void *spin(void *unused) {
    printf("spinning\n");
    fflush(stdout);
    while (go) __asm__ volatile(
        "mov $0x5ca1ab1e, %%rbx\n mov $1000000, %%ecx\n1: pause\n dec %%ecx\n jnz 1b" ::: "rbx", "rcx");
    return unused;
}
int main(void) {
    pthread_t threads[502];
    pthread_mutex_lock(&lock);
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (int i = 0; i < 501; i++) pthread_create(&threads[i], &small, wait_for_lock, 0);
    pthread_create(&threads[501], &small, spin, 0);
    getchar();
    go = 0;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < 502; i++) pthread_join(threads[i], 0);
    return 7;
}
"#;

#[test]
fn five_hundred_threads() {
    if !possible() {
        return;
    }
    let program = compile_c(THREADS, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("spinning");
    let pid = target.pid();
    for _ in 0..3 {
        let stopped = stop(pid).unwrap();
        assert!(stopped.skipped().is_empty());
        let threads = stopped.threads();
        assert_eq!(threads.len(), 503);
        let ids: Vec<u32> = threads.iter().map(|t| t.tid).collect();
        assert_eq!(ids, process(pid).tasks().unwrap());
        let marked = threads.iter().filter(|t| t.registers[1] == 0x5ca1_ab1e);
        let marked: Vec<_> = marked.collect();
        assert_eq!(marked.len(), 1, "the spinning thread's rbx");
        assert!(!marked[0].in_syscall);
        for thread in threads {
            assert_eq!(process(pid).task(thread.tid).stat().unwrap().state, b't');
            assert_eq!(thread.registers.len(), 15);
            let stack = stopped.memory().map().find(thread.sp).unwrap();
            assert!(stack.read && stack.write);
            // The control block's first word is its own address.
            assert_eq!(stopped.memory().read_u64(thread.tcb), Ok(thread.tcb.0));
        }
        let asleep = threads.iter().filter(|t| t.in_syscall).count();
        assert!(asleep >= 501, "{asleep}");
        let so_far = stopped.pause_so_far();
        let pause = stopped.release();
        assert!(pause >= so_far && so_far > Duration::ZERO);
        println!("pause with 503 threads: {pause:?}");
    }
    target.send("");
    assert_eq!(target.wait().code(), Some(7));
}

/// Counts SIGUSR1 and the first real-time signal.
pub(crate) const COUNTER: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
static atomic_int usual, queued;
static void count(int number) { atomic_fetch_add(number == SIGUSR1 ? &usual : &queued, 1); }
static void *run(void *unused) {
    for (volatile unsigned i = 0;; i++)
        if (i % 4096 == 0) getppid();
    return unused;
}
int main(void) {
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, 0);
    sigaction(SIGRTMIN, &action, 0);
    pthread_t thread;
    for (int i = 0; i < THREADS; i++) pthread_create(&thread, 0, run, 0);
    printf("ready\n");
    fflush(stdout);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        /* Handlers that are due have run before this system call returns. */
        getppid();
        printf("usual %d\nqueued %d\n", usual, queued);
        fflush(stdout);
    }
    return 7;
}
"#;

pub fn count(target: &mut Target, which: &str) -> u32 {
    target.send("");
    let usual = target.expect_line("usual ");
    let queued = target.expect_line("queued ");
    let text = if which == "usual" { usual } else { queued };
    text.parse().unwrap()
}

#[test]
fn a_signal_sent_while_stopped_arrives_afterwards() {
    if !possible() {
        return;
    }
    let program = compile_c(COUNTER, &["-DTHREADS=0"]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    for round in 1..=23 {
        let stopped = stop(target.pid()).unwrap();
        target.signal(libc::SIGUSR1);
        drop(stopped);
        assert_eq!(count(&mut target, "usual"), round);
    }
}

/// Real-time signals queue: each one counts, whenever it comes. Some reach a
/// thread just before its stop, which then is the signal's own stop.
#[test]
fn no_signal_is_lost_or_doubled() {
    if !possible() {
        return;
    }
    let program = compile_c(COUNTER, &["-DTHREADS=3"]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    const SENT: u32 = 1009;
    std::thread::scope(|scope| {
        let pid = target.pid();
        let target = &mut target;
        let sender = scope.spawn(move || {
            for _ in 0..SENT {
                target.signal(libc::SIGRTMIN());
                std::thread::yield_now();
            }
        });
        let mut stops = 0;
        while !sender.is_finished() || stops < 7 {
            drop(stop(pid).unwrap());
            stops += 1;
        }
    });
    // Several threads take signals: the last ones may still be on their way.
    while count(&mut target, "queued") < SENT {
        std::thread::yield_now();
    }
    assert_eq!(count(&mut target, "queued"), SENT);
}

#[test]
fn a_stopped_process_stays_stopped() {
    if !possible() {
        return;
    }
    let program = compile_c(COUNTER, &["-DTHREADS=2"]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    target.signal(libc::SIGSTOP);
    until_state(target.pid(), b'T');
    for _ in 0..5 {
        let stopped = stop(target.pid()).unwrap();
        assert_eq!(stopped.threads().len(), 3);
        drop(stopped);
        for tid in process(target.pid()).tasks().unwrap() {
            let task = process(target.pid()).task(tid);
            while task.stat().unwrap().state != b'T' {
                std::thread::yield_now();
            }
        }
    }
    target.send("");
    assert!(target.is_silent());
    target.signal(libc::SIGCONT);
    assert_eq!(target.expect_line("usual "), "0");
}

#[test]
fn a_process_killed_while_stopped() {
    if !possible() {
        return;
    }
    let program = compile_c(COUNTER, &["-DTHREADS=3"]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    let stopped = stop(target.pid()).unwrap();
    let sp = stopped.threads()[0].sp;
    assert!(stopped.memory().read_u64(sp).is_ok());
    target.signal(libc::SIGKILL);
    while stopped.memory().is_alive() {
        std::thread::yield_now();
    }
    assert!(stopped.memory().read_u64(sp).is_err());
    drop(stopped);
    let exit = wait_exit(target.pid(), Duration::from_secs(60)).unwrap();
    assert_eq!(exit, Some(ExitKind::Signal("SIGKILL".to_owned())));
}

#[test]
fn memory_can_be_kept() {
    if !possible() {
        return;
    }
    let program = compile_c(COUNTER, &["-DTHREADS=0"]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    until_blocked(target.pid());
    let stopped = stop(target.pid()).unwrap();
    let tcb = stopped.threads()[0].tcb;
    let (_, memory) = stopped.release_keeping_memory();
    assert_eq!(memory.read_u64(tcb), Ok(tcb.0));
    assert_eq!(count(&mut target, "usual"), 0);
}

#[test]
fn nobody_to_stop() {
    if !possible() {
        return;
    }
    let program = compile_c("int main(void) { return 7; }", &[]);
    let mut target = Target::spawn(&mut program.command());
    let pid = target.pid();
    until_state(pid, b'Z');
    assert!(matches!(stop(pid), Err(StopError::Gone(p)) if p == pid));
    assert_eq!(target.wait().code(), Some(7));
    let error = stop(pid).unwrap_err();
    assert_eq!(error.to_string(), format!("stop process {pid}: it is gone"));
    assert!(matches!(stop(u32::MAX), Err(StopError::Gone(_))));
    assert!(matches!(stop(0), Err(StopError::Gone(_))));
}
