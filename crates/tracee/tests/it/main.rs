//! Real processes: small C programs that print what the test must know, then
//! block on their input.

mod fork;
mod memory;
mod others;
mod races;
mod restart;
mod stop;

use leakscope_proc::{ProcRoot, Process, Syscall};
use leakscope_testkit::{Need, need};

/// True when this machine can run these tests.
fn possible() -> bool {
    need(Need::Compiler) && need(Need::Ptrace)
}

fn process(pid: u32) -> Process {
    ProcRoot::default().process(pid)
}

/// Returns once every thread is blocked in a system call. Looks again and
/// again without sleeping.
fn until_blocked(pid: u32) {
    let process = process(pid);
    let is_blocked = |&tid: &u32| {
        let call = process.task(tid).syscall();
        matches!(call, Ok(Syscall::Inside { .. }))
    };
    loop {
        let state = process.stat().expect("read the state");
        assert!(!state.is_dead(), "process {pid} has ended");
        let tids = process.tasks().expect("list the threads");
        if tids.iter().all(is_blocked) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Returns once the first thread's state letter is `state`.
fn until_state(pid: u32, state: u8) {
    while process(pid).stat().expect("read the state").state != state {
        std::thread::yield_now();
    }
}
