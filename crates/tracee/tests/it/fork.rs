//! Copies of programs that do something meanwhile.

use crate::others::{another, expect_among};
use crate::restart::BLOCKED;
use crate::stop::{COUNTER, count};
use crate::{possible, process, until_blocked};
use leakscope_testkit::{Target, compile_c};
use leakscope_tracee::fork;

#[test]
fn blocked_calls_go_on_waiting() {
    if !possible() {
        return;
    }
    let program = compile_c(BLOCKED, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    until_blocked(target.pid());
    for _ in 0..11 {
        let forked = fork(target.pid()).unwrap();
        assert_eq!(forked.threads().len(), 14);
        assert!(forked.threads().iter().all(|t| t.in_syscall));
        // Its threads go on while the copy is there.
        until_blocked(target.pid());
        assert!(forked.end().taken);
        until_blocked(target.pid());
    }
    target.send("");
    assert_eq!(target.expect_line("back:"), "");
    assert_eq!(target.wait().code(), Some(7));
}

/// All threads compute, handlers run, and real-time signals queue.
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
        let (mut copies, mut tries) = (0, 0);
        while !sender.is_finished() || copies < 7 {
            // Where every thread is about to take a signal, none can copy.
            copies += u32::from(fork(pid).is_ok());
            tries += 1;
            assert!(tries < 100_000);
        }
    });
    while count(&mut target, "queued") < SENT {
        std::thread::yield_now();
    }
    assert_eq!(count(&mut target, "queued"), SENT);
}

#[test]
fn five_hundred_threads() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *run(void *unused) { for (;;) pause(); return unused; }
int main(void) {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    pthread_t thread;
    for (int i = 0; i < 500; i++) pthread_create(&thread, &small, run, 0);
    printf("ready\n");
    fflush(stdout);
    getchar();
    return 7;
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    let forked = fork(target.pid()).unwrap();
    assert_eq!(forked.threads().len(), 501);
    assert!(forked.skipped().is_empty());
    assert!(forked.end().taken);
    target.send("");
    assert_eq!(target.wait().code(), Some(7));
}

/// The thread in `vfork` cannot be stopped, and wakes up while the copy is
/// there: it must go on at once.
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
static int ends[2];
static void *run(void *unused) {
    char byte;
    if (vfork() == 0) {
        write(1, "born\n", 5);
        read(ends[0], &byte, 1);
        _exit(0);
    }
    write(1, "resumed\n", 8);
    return unused;
}
int main(void) {
    pthread_t thread;
    pipe(ends);
    pthread_create(&thread, 0, run, 0);
    getchar();
    write(ends[1], "", 1);
    getchar();
    return 7;
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("born");
    until_blocked_first(target.pid());
    let forked = fork(target.pid()).unwrap();
    assert_eq!(forked.skipped().len(), 1);
    target.send("");
    target.expect_line("resumed");
    assert!(forked.end().taken);
    target.send("");
    assert_eq!(target.wait().code(), Some(7));
}

/// As Go's: threads whose stacks and thread pointers lie in one heap. Nothing
/// is written there.
#[test]
fn threads_of_another_kind() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
static char *heap;
static long call3(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory");
    return result;
}
static int run(void *tls) {
    call3(SYS_arch_prctl, ARCH_SET_FS, (long)tls, 0);
    for (;;) call3(SYS_pause, 0, 0, 0);
}
int main(void) {
    heap = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(heap, 0x55, 1 << 20);
    char *stack = heap + (1 << 16);
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    clone(run, stack, flags, heap + (1 << 19));
    printf("ready\n");
    fflush(stdout);
    char byte;
    /* The main thread's stack is not its own either. */
    __asm__ volatile("mov %%rsp, %%r12\n mov %[stack], %%rsp\n syscall\n mov %%r12, %%rsp"
                     : : "a"(0L), "D"(0L), "S"(&byte), "d"(1L), [stack] "r"(heap + (1 << 18))
                     : "rcx", "r11", "r12", "memory");
    long wrong = 0;
    for (long i = 0; i < 1 << 20; i++) wrong += heap[i] != 0x55 && (i < (1 << 16) - 1024 || i >= 1 << 16);
    printf("wrong %ld\n", wrong);
    return 7;
}
"#,
        &["-O1"],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    until_blocked(target.pid());
    let error = fork(target.pid()).unwrap_err().to_string();
    assert!(error.contains("none of its threads"), "{error}");
    target.send("");
    assert_eq!(target.expect_line("wrong "), "0");
    assert_eq!(target.wait().code(), Some(7));
}

fn until_blocked_first(pid: u32) {
    while process(pid).stat().expect("read the state").state != b'S' {
        std::thread::yield_now();
    }
}

/// The process ends, or becomes another program, while its copy is read.
#[test]
fn a_process_that_goes_away() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <stdio.h>
#include <unistd.h>
int main(int count, char **arguments) {
    char line[64];
    write(1, "begins\n", 7);
    while (read(0, line, sizeof line) > 0)
        if (line[0] == 'x') execl(arguments[0], arguments[0], (char *)0);
        else if (line[0] == 'q') return 7;
        else write(1, "here\n", 5);
    return count;
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("begins");
    let forked = fork(target.pid()).unwrap();
    target.send("x");
    target.expect_line("begins");
    target.send("");
    target.expect_line("here");
    let top = forked.threads()[0].sp;
    assert!(forked.memory().read_u64(top).is_ok());
    assert!(forked.end().taken);
    let forked = fork(target.pid()).unwrap();
    target.send("q");
    assert_eq!(target.wait().code(), Some(7));
    let top = forked.threads()[0].sp;
    assert!(forked.memory().read_u64(top).is_ok());
    forked.end();
}

/// Whenever we are killed, the process goes on: its blocked calls wait, its
/// computing threads compute.
#[test]
fn killing_us_at_any_moment() {
    if !possible() {
        return;
    }
    let blocked = compile_c(BLOCKED, &[]);
    let counter = compile_c(COUNTER, &["-DTHREADS=2"]);
    let mut blocked = Target::spawn(&mut blocked.command());
    let mut counter = Target::spawn(&mut counter.command());
    blocked.expect_line("ready");
    counter.expect_line("ready");
    until_blocked(blocked.pid());
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 1..=150 {
        for target in [&mut blocked, &mut counter] {
            let mut copier = Target::spawn(&mut another("copy", target.pid()));
            expect_among(&mut copier, "begin");
            // Anywhere in the first few copies.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            for _ in 0..(seed >> 46) {
                std::hint::spin_loop();
            }
            copier.signal(libc::SIGKILL);
            copier.wait();
        }
        counter.signal(libc::SIGUSR1);
        while count(&mut counter, "usual") < round {
            std::thread::yield_now();
        }
        until_blocked(blocked.pid());
    }
    blocked.send("");
    assert_eq!(blocked.expect_line("back:"), "");
    assert_eq!(blocked.wait().code(), Some(7));
    assert_eq!(counter.wait().code(), Some(7));
}
