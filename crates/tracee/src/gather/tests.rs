//! Stops that are not ours. From outside they are a matter of microseconds
//! (between seize and interrupt); here they are made to happen.

use super::*;
use leakscope_testkit::{Need, Target, compile_c, need};

/// Prints how many SIGUSR1 it took, for each line that it reads.
const COUNTER: &str = r#"
#include <signal.h>
#include <stdio.h>
static volatile int count;
static void handle(int number) { (void)number; count++; }
int main(void) {
    char line[64];
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, 0);
    do { printf("count %d\n", count); fflush(stdout); } while (fgets(line, sizeof line, stdin));
    return 7;
}
"#;

fn target() -> Option<(leakscope_testkit::Program, Target)> {
    if !need(Need::Compiler) || !need(Need::Ptrace) {
        return None;
    }
    let program = compile_c(COUNTER, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("count 0");
    Some((program, target))
}

/// Traces the process's only thread, and has it stop to take a signal.
fn stop_with_signal(target: &Target) -> Gathering {
    let pid = target.pid();
    let mut gathering = Gathering::new(pid);
    ptrace::seize(pid).unwrap();
    gathering.threads.insert(pid, State::Awaited);
    target.signal(libc::SIGUSR1);
    while !gathering.look(pid) {
        std::thread::yield_now();
    }
    assert!(matches!(
        gathering.threads.get(&pid),
        Some(State::Stopped(Stop { ours: false, signal, .. })) if *signal == libc::SIGUSR1
    ));
    gathering
}

#[test]
fn the_signal_that_stopped_a_thread_is_delivered() {
    let Some((_program, mut target)) = target() else {
        return;
    };
    let mut gathering = stop_with_signal(&target);
    let threads = gathering.stop_all().unwrap();
    assert_eq!(threads.len(), 1);
    gathering.release();
    assert!(gathering.are_all_detached());
    target.send("");
    target.expect_line("count 1");
}

/// What happens when our process is killed: nothing is detached by us.
#[test]
fn the_signal_is_delivered_without_us_too() {
    let Some((_program, mut target)) = target() else {
        return;
    };
    std::thread::scope(|scope| {
        let target = &mut target;
        scope.spawn(move || std::mem::forget(stop_with_signal(target)));
    });
    target.send("");
    target.expect_line("count 1");
}

/// A thread left alone may reach its stop later, even to take a signal.
#[test]
fn a_skipped_thread_s_signal_is_delivered() {
    let Some((_program, mut target)) = target() else {
        return;
    };
    let mut gathering = stop_with_signal(&target);
    gathering.threads.insert(target.pid(), State::Skipped);
    gathering.release();
    target.send("");
    target.expect_line("count 1");
}
