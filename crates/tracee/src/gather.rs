//! Stopping all threads of a process, and letting them go.
//!
//! Runs on one thread from beginning to end (see `stopped.rs`). Each thread
//! of the target is in one of these states:
//!
//! ```text
//!           seize, interrupt            registers cannot be read
//!  listed ──────────────────► Awaited ◄──────────────────────── Stopped
//!                               │  └────────────────────────────►  │
//!                               │            stop seen              │
//!                    patience   ▼                                   ▼
//!                            Skipped                              Ended
//! ```
//!
//! Notices are looked at and left where they are (`WNOWAIT`): the exit
//! status of a child stays for its parent, and when our process is killed,
//! the kernel still delivers the signal that a thread was stopped with.

use crate::core_write::UserRegisters;
use crate::error::StopError;
use crate::memory::PATIENCE_WITH_EXEC;
use crate::refusal::{Refusal, RefusalCause};
use crate::restart;
use crate::sys::ptrace::{self, EVENT_CLONE, EVENT_STOP, Registers};
use crate::sys::wait::{self, Change};
use crate::sys::{is_gone, own_tid};
use leakscope_model::{Addr, ThreadState};
use leakscope_proc::{ErrorKind, ProcRoot, Process, Syscall};
use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant};

/// Without progress for this long, threads that the kernel cannot interrupt
/// (state D: a `vfork` parent, a disk) are left alone.
const PATIENCE: Duration = Duration::from_millis(20);
/// Without progress for this long, any thread is left alone: it is runnable,
/// but the machine is too busy to let it reach its stop.
const PATIENCE_WHEN_BUSY: Duration = Duration::from_secs(1);
/// The whole stop gives up after this long.
const LIMIT: Duration = Duration::from_secs(10);
/// How long an earlier stop of our own process may take to be over.
const PATIENCE_WITH_OURSELVES: Duration = Duration::from_millis(300);
/// Names of threads that trace, `leakscope-` before them.
const TRACERS: [&[u8]; 2] = [b"leakscope-stop", b"leakscope-fork"];
/// Pauses between two looks, growing from the first to the second.
const FIRST_NAP: Duration = Duration::from_micros(50);
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// Where one thread is.
#[derive(Debug)]
enum State {
    /// Asked to stop, or about to stop by itself.
    Awaited,
    /// Stopped.
    Stopped(Stop),
    /// Left alone; still traced.
    Skipped,
    /// Ended; its notice is kept for whom it concerns.
    Ended,
}

/// A stop.
#[derive(Debug)]
struct Stop {
    /// It is the stop that we asked for, and nothing else.
    ours: bool,
    /// The signal that it was about to take, 0 for none.
    signal: i32,
    /// Its registers, once they are taken: as they were when it stopped.
    registers: Option<Box<Registers>>,
    /// Its interrupted call was put back into its real registers: should we
    /// be killed, it goes on waiting.
    put_back: bool,
}

/// All threads of one process, on their way to being stopped. Dropping it
/// lets all of them go.
#[derive(Debug)]
pub(crate) struct Gathering {
    pid: u32,
    process: Process,
    threads: BTreeMap<u32, State>,
    began: Instant,
    released: bool,
    /// Every thread could be detached, or had ended.
    all_detached: bool,
}

impl Gathering {
    pub(crate) fn new(pid: u32) -> Gathering {
        Gathering {
            pid,
            process: ProcRoot::default().process(pid),
            threads: BTreeMap::new(),
            began: Instant::now(),
            released: false,
            all_detached: true,
        }
    }

    /// When the first thread was asked to stop.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Threads left alone.
    pub(crate) fn skipped(&self) -> Vec<u32> {
        let skipped =
            |(&tid, state): (&u32, &State)| matches!(state, State::Skipped).then_some(tid);
        self.threads.iter().filter_map(skipped).collect()
    }

    /// Stops all threads; returns their registers.
    ///
    /// # Errors
    /// Gone, NotPermitted, TimedOut, Io. The caller releases what was
    /// stopped until then.
    pub(crate) fn stop_all(&mut self) -> Result<Vec<ThreadState>, StopError> {
        if self.pid == std::process::id() {
            return Err(StopError::NotPermitted(Box::new(Refusal {
                pid: self.pid,
                cause: RefusalCause::OwnProcess,
            })));
        }
        self.began = Instant::now();
        loop {
            let listed = self.list()?;
            let found = self.seize_new(&listed)?;
            if !found && !self.is_anyone_awaited() {
                // Nothing new in a list that was read while all were
                // stopped: nobody was left to make a thread. Had one slid
                // back, taking its registers has noticed. But a thread that
                // ends while the list is read can keep another one out of it
                // (fs/proc/base.c, next_tid): so the list is read twice.
                let mut all = self.list()?;
                if !self.seize_new(&all)? {
                    all.extend(listed);
                    all.sort_unstable();
                    all.dedup();
                    if let Some(threads) = self.take_registers(&all) {
                        return self.judge(threads);
                    }
                }
            }
            if self.began.elapsed() > LIMIT {
                return Err(StopError::TimedOut(self.pid));
            }
            self.await_stops();
        }
    }

    /// The living threads, those inside a call first, the process's first one before
    /// the others.
    pub(crate) fn candidates(&self) -> Vec<u32> {
        let mut listed = self.list().unwrap_or_default();
        listed.retain(|&tid| self.process.task(tid).stat().is_ok_and(|s| !s.is_dead()));
        let is_running = |&tid: &u32| {
            let call = self.process.task(tid).syscall();
            matches!(call, Ok(Syscall::Running) | Err(_))
        };
        let (running, inside): (Vec<u32>, Vec<u32>) = listed.into_iter().partition(is_running);
        inside.into_iter().chain(running).collect()
    }

    /// Stops one thread only.
    ///
    /// # Errors
    /// As [`stop_all`](Gathering::stop_all).
    pub(crate) fn stop_one(&mut self, tid: u32) -> Result<(), StopError> {
        self.began = Instant::now();
        self.seize_new(&[tid])?;
        self.await_stops();
        let stopped = matches!(self.threads.get(&tid), Some(State::Stopped(_)));
        if stopped && self.take_registers(&[tid]).is_some() {
            return Ok(());
        }
        Err(StopError::TimedOut(self.pid))
    }

    fn judge(&self, threads: Vec<ThreadState>) -> Result<Vec<ThreadState>, StopError> {
        let stopped = |state: &State| matches!(state, State::Stopped(_));
        if self.threads.values().any(stopped) {
            Ok(threads)
        } else if self.skipped().is_empty() {
            Err(StopError::Gone(self.pid))
        } else {
            Err(StopError::TimedOut(self.pid))
        }
    }

    fn list(&self) -> Result<Vec<u32>, StopError> {
        self.process.tasks().map_err(|error| match error.kind() {
            ErrorKind::Gone => StopError::Gone(self.pid),
            _ => StopError::Io(
                format!("list the threads of process {}", self.pid),
                std::io::Error::other(error),
            ),
        })
    }

    /// Seizes the listed threads that are not known; true if there were any.
    fn seize_new(&mut self, listed: &[u32]) -> Result<bool, StopError> {
        let mut found = false;
        for &tid in listed {
            if !self.threads.contains_key(&tid) {
                found |= self.seize(tid)?;
            }
        }
        Ok(found)
    }

    fn seize(&mut self, tid: u32) -> Result<bool, StopError> {
        let asked = Instant::now();
        loop {
            let Err(error) = ptrace::seize(tid) else {
                self.threads.insert(tid, State::Awaited);
                // A failure means that it ended meanwhile; the next look
                // tells.
                let _ = ptrace::interrupt(tid);
                return Ok(true);
            };
            if is_gone(&error) {
                return Ok(false);
            }
            if error.raw_os_error() != Some(libc::EPERM) {
                let text = format!("stop thread {tid} of process {}", self.pid);
                return Err(StopError::Io(text, error));
            }
            // "Not permitted" is also the answer for a thread that has ended,
            // and for one that we trace already, born to one we trace.
            let Ok(status) = self.process.task(tid).status() else {
                return Ok(false);
            };
            if status.state.is_some_and(leakscope_proc::status::is_dead) {
                self.threads.insert(tid, State::Ended);
                return Ok(false);
            }
            let tracer = status.tracer.unwrap_or(0);
            if tracer == own_tid() {
                self.threads.insert(tid, State::Awaited);
                return Ok(true);
            }
            // The thread of an earlier stop of ours may still be on its way
            // out, and the kernel lets go of skipped threads only then. And a
            // thread of a process that starts another program is refused
            // while it dies and hands its id on.
            let patience = if self.is_ours(tracer) {
                PATIENCE_WITH_OURSELVES
            } else if tracer == 0 && self.is_permitted(tid) {
                PATIENCE_WHEN_BUSY
            } else if tracer == 0 && !ptrace::is_filtered() {
                PATIENCE_WITH_EXEC
            } else {
                Duration::ZERO
            };
            if asked.elapsed() >= patience {
                let refusal = Refusal::explain(self.pid, tid);
                return Err(StopError::NotPermitted(Box::new(refusal)));
            }
            std::thread::sleep(FIRST_NAP);
        }
    }

    /// True for a thread of our own process, or of the guard of one of us that
    /// was killed: it will be gone in a moment.
    fn is_ours(&self, tid: u32) -> bool {
        let root = ProcRoot::default();
        let own = root.process(std::process::id());
        let is_guard = || root.process(tid).stat().map(|stat| stat.comm);
        tid != 0
            && (own.task(tid).stat().is_ok()
                || is_guard().is_ok_and(|name| TRACERS.contains(&&name[..])))
    }

    /// True when the kernel's other check of the same permission passes: a
    /// refusal then has a passing reason.
    fn is_permitted(&self, tid: u32) -> bool {
        !ptrace::is_filtered() && File::open(self.process.task(tid).file("mem")).is_ok()
    }

    fn is_anyone_awaited(&self) -> bool {
        let mut states = self.threads.values();
        states.any(|state| matches!(state, State::Awaited))
    }

    fn awaited(&self) -> Vec<u32> {
        let awaited =
            |(&tid, state): (&u32, &State)| matches!(state, State::Awaited).then_some(tid);
        self.threads.iter().filter_map(awaited).collect()
    }

    /// Waits until every awaited thread has stopped, ended, or been waited
    /// for long enough.
    fn await_stops(&mut self) {
        let mut progress = Instant::now();
        let mut nap = FIRST_NAP;
        loop {
            let awaited = self.awaited();
            let mut moved = false;
            for &tid in &awaited {
                moved |= self.look(tid);
            }
            if !self.is_anyone_awaited() {
                return;
            }
            if moved {
                progress = Instant::now();
                nap = FIRST_NAP;
                continue;
            }
            let idle = progress.elapsed();
            if idle > PATIENCE_WHEN_BUSY || (idle > PATIENCE && self.are_uninterruptible(&awaited))
            {
                for tid in awaited {
                    self.threads.insert(tid, State::Skipped);
                }
                return;
            }
            std::thread::sleep(nap);
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }

    fn are_uninterruptible(&self, tids: &[u32]) -> bool {
        let mut stats = tids.iter().map(|&tid| self.process.task(tid).stat());
        stats.all(|stat| stat.is_ok_and(|s| s.state == b'D'))
    }

    /// Looks at an awaited thread; true if it has moved on.
    fn look(&mut self, tid: u32) -> bool {
        match wait::peek(tid) {
            Ok(Change::Stopped(status)) => self.stopped(tid, status & 0xff, status >> 8),
            Ok(Change::Ended) => self.ended(tid),
            Ok(Change::Nothing) => {
                // Another waiter of ours may have taken the notice (it is
                // shown to all threads of the parent): ask the thread.
                let Ok((signal, code)) = ptrace::stop_signal(tid) else {
                    return false;
                };
                // The code of a ptrace event repeats the signal below the
                // event's number; codes of real signals are below 256.
                let is_event = code > 0xff && code & 0xff == signal;
                self.stopped(tid, signal, if is_event { code >> 8 } else { 0 });
            }
            // Not ours to wait for any more: it has gone, or has become the
            // process's first thread by starting another program.
            Err(_) => {
                self.threads.remove(&tid);
            }
        }
        true
    }

    fn stopped(&mut self, tid: u32, signal: i32, event: i32) {
        if event == EVENT_CLONE {
            // The new thread is traced from birth, and stops by itself.
            let born = ptrace::event_message(tid).ok();
            if let Some(born) = born.and_then(|m| u32::try_from(m).ok()) {
                self.threads.entry(born).or_insert(State::Awaited);
            }
        }
        let stop = Stop {
            ours: event == EVENT_STOP && signal == libc::SIGTRAP,
            signal: if event == 0 { signal } else { 0 },
            registers: None,
            put_back: false,
        };
        self.threads.insert(tid, State::Stopped(stop));
    }

    fn ended(&mut self, tid: u32) {
        if tid == self.pid {
            // Its status is its parent's.
            self.threads.insert(tid, State::Ended);
        } else {
            // Nobody else can take the notice of another thread; while it
            // is there, a thread that starts a new program waits for it.
            wait::take(tid);
            self.threads.remove(&tid);
        }
    }

    /// Registers of all stopped threads, and what is known of skipped ones;
    /// `None` if one of them is not stopped any more (killed, or replaced by
    /// a thread that started another program), which is then awaited anew.
    fn take_registers(&mut self, listed: &[u32]) -> Option<Vec<ThreadState>> {
        let mut taken = Vec::new();
        let mut complete = true;
        for &tid in listed {
            match self.threads.get_mut(&tid) {
                Some(State::Stopped(stop)) => match ptrace::registers(tid) {
                    Ok(registers) => {
                        let first = stop.registers.get_or_insert(Box::new(registers));
                        taken.push(thread_state(tid, first));
                    }
                    Err(_) => {
                        self.threads.insert(tid, State::Awaited);
                        complete = false;
                    }
                },
                Some(State::Skipped) => taken.extend(blocked_state(&self.process, tid)),
                // The first thread ended, and another took its id by
                // starting a program.
                Some(State::Ended)
                    if wait::peek(tid).is_ok_and(|change| change != Change::Ended) =>
                {
                    self.threads.insert(tid, State::Awaited);
                    complete = false;
                }
                _ => {}
            }
        }
        if complete {
            self.put_back_calls();
        }
        complete.then_some(taken)
    }

    /// Keeps our interruption from being seen as failed calls, even if we do
    /// not live to let the threads go.
    fn put_back_calls(&mut self) {
        for (&tid, state) in &mut self.threads {
            let State::Stopped(stop) = state else {
                continue;
            };
            let registers = stop
                .registers
                .as_deref()
                .filter(|_| stop.ours && !stop.put_back);
            let Some(again) = registers.and_then(restart::put_back) else {
                continue;
            };
            let status = self.process.task(tid).status();
            if status.is_ok_and(|s| !s.has_deliverable_signal()) {
                // Fails only for a thread that was killed.
                stop.put_back = ptrace::set_registers(tid, &again).is_ok();
            }
        }
    }

    /// All general registers of the stopped threads, as they were when they
    /// stopped, ascending by id but for the process's first thread.
    pub(crate) fn user_registers(&self) -> Vec<(u32, UserRegisters)> {
        let stopped = self.threads.iter().filter_map(|(&tid, state)| match state {
            State::Stopped(stop) => Some((tid, user_registers(stop.registers.as_deref()?))),
            _ => None,
        });
        let mut stopped: Vec<_> = stopped.collect();
        stopped.sort_by_key(|(tid, _)| (*tid != self.pid, *tid));
        stopped
    }

    /// Lets every thread go; returns the pause.
    pub(crate) fn release(&mut self) -> Duration {
        if !std::mem::replace(&mut self.released, true) {
            let mut all_detached = true;
            for (&tid, state) in &self.threads {
                let signal = match state {
                    State::Stopped(stop) => {
                        self.leave_to_signal(tid, stop);
                        stop.signal
                    }
                    State::Ended => continue,
                    // Perhaps it has stopped since, with a signal to take.
                    State::Awaited | State::Skipped => late_signal(tid),
                };
                // A thread that is not stopped cannot be detached: the
                // kernel lets it go when this thread ends, which is next.
                all_detached &= ptrace::detach(tid, signal).is_ok();
            }
            self.all_detached = all_detached;
        }
        self.began.elapsed()
    }

    /// After the release: lets threads go that could not be stopped and have
    /// come to their stop since.
    pub(crate) fn release_rest(&mut self) {
        self.threads.retain(|&tid, state| match state {
            State::Awaited | State::Skipped => match wait::peek(tid) {
                Ok(Change::Nothing) => true,
                // Its status is its parent's.
                Ok(Change::Ended) if tid == self.pid => false,
                Ok(Change::Ended) => {
                    wait::take(tid);
                    false
                }
                Ok(Change::Stopped(_)) => ptrace::detach(tid, late_signal(tid)).is_err(),
                Err(_) => false,
            },
            State::Stopped(_) | State::Ended => false,
        });
    }

    /// After the release: false when threads remain that the kernel lets go
    /// only when the calling thread ends.
    pub(crate) fn are_all_detached(&self) -> bool {
        self.all_detached
    }

    /// A signal that came meanwhile ends a call that was put back, as it would
    /// have ended it without us.
    fn leave_to_signal(&self, tid: u32, stop: &Stop) {
        let Some(registers) = stop.registers.as_deref().filter(|_| stop.put_back) else {
            return;
        };
        let status = self.process.task(tid).status();
        if status.is_ok_and(|s| s.has_deliverable_signal()) {
            // Fails only for a thread that was killed.
            let _ = ptrace::set_registers(tid, registers);
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        self.release();
    }
}

/// What the kernel tells of the threads of `process` that are blocked, without
/// stopping anybody: stack pointers and the arguments of their calls.
pub fn blocked_threads(process: &Process) -> Vec<ThreadState> {
    let tids = process.tasks().unwrap_or_default();
    tids.into_iter()
        .filter_map(|tid| blocked_state(process, tid))
        .collect()
}

fn blocked_state(process: &Process, tid: u32) -> Option<ThreadState> {
    let (sp, registers) = match process.task(tid).syscall().ok()? {
        Syscall::Running => return None,
        Syscall::Blocked { sp, .. } => (sp, Vec::new()),
        Syscall::Inside { sp, arguments, .. } => (sp, arguments.to_vec()),
    };
    Some(ThreadState {
        tid,
        sp: Addr(sp),
        tcb: Addr(0),
        registers,
        in_syscall: true,
    })
}

/// The signal that a thread is stopped with, if it is.
fn late_signal(tid: u32) -> i32 {
    match wait::peek(tid) {
        Ok(Change::Stopped(status)) if status >> 8 == 0 => status,
        _ => 0,
    }
}

fn user_registers(r: &Registers) -> UserRegisters {
    [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx,
        r.rsi, r.rdi, r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds,
        r.es, r.fs, r.gs,
    ]
}

/// x86-64: the fifteen general registers without the stack pointer.
pub(crate) fn thread_state(tid: u32, r: &Registers) -> ThreadState {
    ThreadState {
        tid,
        sp: Addr(r.rsp),
        tcb: Addr(r.fs_base),
        registers: vec![
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
            r.r13, r.r14, r.r15,
        ],
        // The kernel stores -1 (never a call's number) when it was entered
        // otherwise than by a call.
        in_syscall: r.orig_rax.cast_signed() >= 0,
    }
}

pub(crate) mod call;
#[cfg(test)]
mod tests;
