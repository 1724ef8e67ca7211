//! A program of ours that is looked at when it is about to end: no library
//! can be loaded into it, so the kernel is asked to stop it there.
//!
//! A thread of ours is its tracer from its first instruction. It passes every
//! signal on, lets group stops be group stops, and lets go when the program
//! executes another one. When the last thread is about to end, memory is
//! still there: that is the moment.

use crate::gather::thread_state;
use crate::memory::LiveMemory;
use crate::sys::ptrace::{self, AT_EXEC, AT_EXIT, EVENT_EXEC, EVENT_EXIT, EVENT_STOP, Resume};
use crate::sys::wait::{self, Change};
use crate::sys::{process, send};
use leakscope_model::ThreadState;
use leakscope_proc::ProcRoot;
use std::collections::BTreeMap;
use std::io;
use std::process::Command;
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long the other threads may take to reach their ends.
const PATIENCE: Duration = Duration::from_secs(2);
const NAP: Duration = Duration::from_micros(100);

/// What is done with a program that is about to end.
pub type AtEnd<T> = Box<dyn FnOnce(&LiveMemory, &[ThreadState]) -> T + Send>;

/// Starts `command` and has `at_end` look at its first process when that is
/// about to end; the thread's result is `None` when there was no such moment
/// (it executed another program, or was killed without one).
///
/// Not for programs that change their user: the kernel takes that from whom
/// it finds traced.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_watched<T: Send + 'static>(
    mut command: Command,
    at_end: AtEnd<T>,
) -> io::Result<(u32, JoinHandle<Option<T>>)> {
    let (tell, told) = channel();
    let thread = Builder::new()
        .name("leakscope-watch".to_owned())
        .spawn(move || {
            process::trace_from_birth(&mut command);
            // The handle only waits, and waiting is the caller's business.
            let pid = match command.spawn() {
                Ok(child) => child.id(),
                Err(error) => {
                    let _ = tell.send(Err(error));
                    return None;
                }
            };
            let watch = Watch::begin(pid);
            let _ = tell.send(Ok(pid));
            watch.ok()?.until_the_end(at_end)
        })?;
    let early = || io::Error::other("the watching thread ended early");
    let pid = told.recv().unwrap_or_else(|_| Err(early()))?;
    Ok((pid, thread))
}

/// A thread of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thread {
    Runs,
    /// It stands before its end.
    Ends,
}

struct Watch {
    pid: u32,
    threads: BTreeMap<u32, Thread>,
}

impl Watch {
    /// Takes over a program that stands at its first instruction.
    ///
    /// A tracee from birth cannot be in a group stop. So it is let go with one
    /// under way, seized in it, and continued.
    fn begin(pid: u32) -> io::Result<Watch> {
        await_stop(pid)?;
        ptrace::detach(pid, libc::SIGSTOP)?;
        let options = ptrace::TRACE_BIRTHS | AT_EXIT | AT_EXEC;
        let seized = ptrace::seize_with(pid, options);
        if seized.is_ok() {
            await_stop(pid)?;
            ptrace::listen(pid)?;
        }
        send(pid, libc::SIGCONT)?;
        seized?;
        Ok(Watch {
            pid,
            threads: BTreeMap::from([(pid, Thread::Runs)]),
        })
    }

    fn until_the_end<T>(mut self, at_end: AtEnd<T>) -> Option<T> {
        loop {
            let (tid, change) = wait::peek_any().ok()?;
            match change {
                Change::Nothing => {}
                // Its status is for others.
                Change::Ended if tid == self.pid => return None,
                Change::Ended => {
                    wait::take(tid);
                    self.threads.remove(&tid);
                }
                Change::Stopped(status) => {
                    self.threads.entry(tid).or_insert(Thread::Runs);
                    let (signal, event) = (status & 0xff, status >> 8);
                    match event {
                        EVENT_EXEC => {
                            self.let_go();
                            return None;
                        }
                        EVENT_EXIT => {
                            self.threads.insert(tid, Thread::Ends);
                            if self.is_the_end(tid) {
                                self.await_others();
                                let found = self.look(at_end);
                                self.let_go();
                                return found;
                            }
                            let _ = ptrace::resume(tid, Resume::On);
                        }
                        EVENT_STOP if signal != libc::SIGTRAP => {
                            let _ = ptrace::listen(tid);
                        }
                        0 => {
                            let _ = ptrace::resume_with(tid, signal);
                        }
                        _ => {
                            let _ = ptrace::resume(tid, Resume::On);
                        }
                    }
                }
            }
        }
    }

    /// True when the whole process ends with this thread: by a signal, by
    /// `exit_group`, or as the last one.
    fn is_the_end(&self, tid: u32) -> bool {
        let killed = ptrace::event_message(tid).is_ok_and(|status| status & 0x7f != 0);
        let call = ptrace::registers(tid).map(|r| r.orig_rax.cast_signed());
        killed
            || call.is_ok_and(|call| call == libc::SYS_exit_group)
            || !self.threads.values().any(|t| *t == Thread::Runs)
    }

    /// The kernel ends the other threads by itself: each stands still before.
    fn await_others(&mut self) {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            let tids = ProcRoot::default().process(self.pid).tasks();
            let mut waits = false;
            for tid in tids.unwrap_or_default() {
                if self.threads.get(&tid) == Some(&Thread::Ends) {
                    continue;
                }
                match wait::peek(tid) {
                    Ok(Change::Stopped(status)) if status >> 8 == EVENT_EXIT => {
                        self.threads.insert(tid, Thread::Ends);
                    }
                    Ok(Change::Stopped(status)) => {
                        let signal = if status >> 8 == 0 { status & 0xff } else { 0 };
                        let _ = ptrace::resume_with(tid, signal);
                        waits = true;
                    }
                    Ok(Change::Nothing) => waits = true,
                    Ok(Change::Ended) | Err(_) => {}
                }
            }
            if !waits {
                return;
            }
            std::thread::sleep(NAP);
        }
    }

    fn look<T>(&self, at_end: AtEnd<T>) -> Option<T> {
        let ends = self.threads.iter().filter(|(_, t)| **t == Thread::Ends);
        let states: Vec<ThreadState> = ends
            .filter_map(|(&tid, _)| Some(thread_state(tid, &ptrace::registers(tid).ok()?)))
            .collect();
        let memory = LiveMemory::open(self.pid).ok()?;
        Some(at_end(&memory, &states))
    }

    /// Every thread that stands still goes on; the kernel lets go of the
    /// others when the calling thread ends.
    fn let_go(&self) {
        for &tid in self.threads.keys() {
            let _ = ptrace::detach(tid, 0);
        }
    }
}

fn await_stop(pid: u32) -> io::Result<()> {
    loop {
        match wait::peek(pid)? {
            Change::Stopped(_) => return Ok(()),
            Change::Ended => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Change::Nothing => std::thread::sleep(NAP),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_memory::MemoryReader;
    use leakscope_testkit::{Need, compile_c, need};
    use std::os::unix::process::ExitStatusExt;

    const PROGRAM: &str = r#"
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static volatile unsigned long mark = 0x1234;
static volatile sig_atomic_t got;
static void handle(int n) { got += n; }
static void *run(void *until) { while (until) pause(); return 0; }
static void *last(void *unused) { usleep(20000); mark = 0x99; return unused; }
int main(int count, char **arguments) {
    pthread_t thread;
    mark = 0x4321;
    pthread_create(&thread, 0, run, 0);
    pthread_join(thread, 0);
    pthread_create(&thread, 0, run, &thread);
    signal(SIGUSR1, handle);
    raise(SIGUSR1);
    if (got != SIGUSR1) return 1;
    if (!strcmp(arguments[1], "return")) return 7;
    if (!strcmp(arguments[1], "abort")) abort();
    if (!strcmp(arguments[1], "stop")) { raise(SIGSTOP); return 8; }
    if (!strcmp(arguments[1], "exec")) execl("/bin/true", "true", (char *)0);
    if (!strcmp(arguments[1], "thread")) {
        pthread_cancel(thread);
        pthread_join(thread, 0);
        pthread_create(&thread, 0, last, 0);
        pthread_exit(0);
    }
    return 2;
}
"#;

    /// How it ended, and the marks and threads that were seen.
    fn watched(program: &std::path::Path, how: &str, mark: u64) -> (i32, Option<(u64, usize)>) {
        let mut command = Command::new(program);
        command.arg(how);
        let at_end: AtEnd<(u64, usize)> = Box::new(move |memory, threads| {
            (
                memory.read_u64(leakscope_model::Addr(mark)).unwrap_or(0),
                threads.len(),
            )
        });
        let (pid, thread) = spawn_watched(command, at_end).unwrap();
        // Its stop may still be to come.
        while how == "stop" && !thread.is_finished() {
            send(pid, libc::SIGCONT).unwrap();
            std::thread::yield_now();
        }
        let seen = thread.join().unwrap();
        let status = loop {
            if let Ok(Some(status)) = wait::reap(pid) {
                break status;
            }
            std::thread::yield_now();
        };
        (status, seen)
    }

    #[test]
    fn the_moment_before_the_end() {
        if !need(Need::Compiler) || !need(Need::Ptrace) {
            return;
        }
        let program = compile_c(PROGRAM, &["-static", "-no-pie"]);
        let symbols = Command::new("nm").arg(program.path()).output().unwrap();
        let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
        let line = symbols.lines().find(|l| l.ends_with(" mark")).unwrap();
        let mark = u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap();
        let at = |how: &str| watched(program.path(), how, mark);
        let code = |status: i32| std::process::ExitStatus::from_raw(status).code();
        for _ in 0..20 {
            let (status, seen) = at("return");
            assert_eq!((code(status), seen), (Some(7), Some((0x4321, 2))));
        }
        let (status, seen) = at("stop");
        assert_eq!((code(status), seen), (Some(8), Some((0x4321, 2))));
        let (status, seen) = at("abort");
        assert_eq!(status & 0x7f, libc::SIGABRT);
        assert_eq!(seen.map(|(mark, _)| mark), Some(0x4321));
        let (status, seen) = at("thread");
        assert_eq!(code(status), Some(0));
        assert_eq!(seen.map(|(mark, _)| mark), Some(0x99));
        let (status, seen) = at("exec");
        assert_eq!((code(status), seen), (Some(0), None));
        let missing = Command::new("/no/such/program");
        let none: AtEnd<()> = Box::new(|_, _| ());
        assert!(spawn_watched(missing, none).is_err());
    }
}
