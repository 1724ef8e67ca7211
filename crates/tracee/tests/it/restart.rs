//! Blocked calls do not notice a stop.

use crate::{possible, until_blocked};
use leakscope_testkit::{Target, compile_c};
use leakscope_tracee::stop;

/// Each thread blocks for a long time in another call, and counts how often
/// it came back. Without care, the first seven come back with `EINTR`.
pub const BLOCKED: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static int pair[2];
static struct timespec long_time = {.tv_sec = 100000};
static int do_epoll(void) {
    struct epoll_event event;
    return epoll_wait(epoll_create1(0), &event, 1, 100000000);
}
static int do_epoll_forever(void) {
    struct epoll_event event;
    sigset_t none;
    sigemptyset(&none);
    return epoll_pwait(epoll_create1(0), &event, 1, -1, &none);
}
static int do_sigtimedwait(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    return sigtimedwait(&set, 0, &long_time);
}
static int do_semop(void) {
    struct sembuf take = {.sem_op = -1};
    int set = semget(IPC_PRIVATE, 1, 0600);
    int status = semtimedop(set, &take, 1, &long_time);
    semctl(set, 0, IPC_RMID);
    return status;
}
static int with_timeout(void) {
    int pair[2];
    struct timeval time = {.tv_sec = 100000};
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    return pair[0];
}
static int do_recv(void) { char byte; return recv(with_timeout(), &byte, 1, 0); }
static int do_read(void) { char byte; return read(with_timeout(), &byte, 1); }
static int do_recvmsg(void) {
    char byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return recvmsg(with_timeout(), &message, 0);
}
static int do_nanosleep(void) { return nanosleep(&long_time, 0); }
static int do_poll(void) { return poll(0, 0, 100000000); }
static int do_select(void) { struct timeval time = {.tv_sec = 100000}; return select(0, 0, 0, 0, &time); }
static int do_pause(void) { return pause(); }
static int do_pipe(void) { int ends[2]; char byte; pipe(ends); return read(ends[0], &byte, 1); }
static int do_condition(void) {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 100000;
    pthread_mutex_lock(&lock);
    return pthread_cond_timedwait(&condition, &lock, &until) ? -1 : 0;
}
#define CALLS X(epoll) X(epoll_forever) X(sigtimedwait) X(semop) X(recv) X(read) X(recvmsg) \
    X(nanosleep) X(poll) X(select) X(pause) X(pipe) X(condition)
#define X(name) static atomic_int back_##name; \
    static void *run_##name(void *unused) { for (;;) { do_##name(); back_##name++; } return unused; }
CALLS
#undef X
int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    pthread_t thread;
#define X(name) pthread_create(&thread, 0, run_##name, 0);
    CALLS
#undef X
    printf("ready\n");
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) == 1) {
        printf("back:");
#define X(name) if (back_##name) printf(" " #name " %d", back_##name);
        CALLS
#undef X
        printf("\n");
        fflush(stdout);
    }
    return 7;
}
"#;

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
        let stopped = stop(target.pid()).unwrap();
        assert_eq!(stopped.threads().len(), 14);
        assert!(stopped.threads().iter().all(|t| t.in_syscall));
        drop(stopped);
        // A call that came back has counted before its thread blocks again.
        until_blocked(target.pid());
    }
    target.send("");
    assert_eq!(target.expect_line("back:"), "");
    assert_eq!(target.wait().code(), Some(7));
}

/// A real signal still ends the call, as it does without us.
#[test]
fn a_signal_still_interrupts() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>
static void handle(int number) { (void)number; }
int main(void) {
    struct epoll_event event;
    struct sigaction action = {.sa_handler = handle};
    sigaction(SIGUSR1, &action, 0);
    int set = epoll_create1(0);
    printf("ready\n");
    fflush(stdout);
    for (int i = 0; i < 13; i++) {
        if (epoll_wait(set, &event, 1, 100000000) == -1 && errno == EINTR) printf("interrupted\n");
        fflush(stdout);
    }
    return 7;
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    for _ in 0..13 {
        until_blocked(target.pid());
        drop(stop(target.pid()).unwrap());
        until_blocked(target.pid());
        let stopped = stop(target.pid()).unwrap();
        target.signal(libc::SIGUSR1);
        drop(stopped);
        target.expect_line("interrupted");
    }
    assert_eq!(target.wait().code(), Some(7));
}
