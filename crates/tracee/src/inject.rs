//! One system call made by a stopped thread for us.
//!
//! Whoever dies meanwhile, the thread comes back to what it was doing: see
//! `frame.rs`. Nothing is executed that is not the target's own code.

pub(crate) mod code;
pub(crate) mod frame;

use crate::sys::ptrace::{self, AT_CALL, EVENT_CLONE, Registers, Resume};
use crate::sys::wait::{self, Change};
use code::Code;
use frame::Frames;
use std::time::{Duration, Instant};

/// How long a call may take: copying the page tables of a terabyte takes
/// about as long.
const LIMIT: Duration = Duration::from_secs(30);
/// For so long only the processor is yielded between two looks, then we nap.
const EAGER: Duration = Duration::from_micros(300);
/// Between two looks.
const NAP: Duration = Duration::from_micros(200);

/// A call and its first three arguments; the others are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// `clone`: a copy of the process. It shares the table of descriptors, so
    /// that what the process closes meanwhile is closed; its end tells nobody,
    /// so that the process's own waiting for children does not see it.
    Copy,
    /// `wait4` for such a child, by the id that the process knows it under.
    Take(u64),
}

impl Call {
    fn registers(self, real: &Registers, code: Code, frames: &Frames) -> Registers {
        let (number, arguments) = match self {
            Call::Copy => (
                libc::SYS_clone,
                [libc::CLONE_FILES as u64, frames.born, 0, 0],
            ),
            Call::Take(child) => (
                libc::SYS_wait4,
                [child, 0, (libc::__WCLONE | libc::WNOHANG) as u64, 0],
            ),
        };
        let [rdi, rsi, rdx, r10] = arguments;
        Registers {
            rax: number.unsigned_abs(),
            // Not inside of any call that could be started again.
            orig_rax: u64::MAX,
            rip: code.call,
            rsp: frames.at,
            rdi,
            rsi,
            rdx,
            r10,
            r8: 0,
            r9: 0,
            ..*real
        }
    }
}

/// A step of making a call: a test ends the tracer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Prepared,
    Entered,
    Born,
    Left,
    Returned,
}

/// Where a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Halt {
    pub signal: i32,
    pub event: i32,
}

impl Halt {
    const AT_CALL: Halt = Halt {
        signal: libc::SIGTRAP | AT_CALL,
        event: 0,
    };
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Driven {
    /// The stop that the thread is in now; `None` when it has ended, or did
    /// not stop in time.
    pub halt: Option<Halt>,
    /// What the call returned; `None` when it was not made.
    pub value: Option<i64>,
    /// The process that it made, by our id.
    pub born: Option<u32>,
}

/// Makes the call in thread `tid`, which is in a stop that we asked for. Its
/// registers are those of the call afterwards; the caller restores them.
///
/// Allocates nothing: from the first change of the registers to the last, as
/// little as can be goes on here.
pub(crate) fn drive(
    tid: u32,
    call: Call,
    real: &Registers,
    code: Code,
    frames: &Frames,
    on_step: &mut dyn FnMut(Step),
) -> Driven {
    let mut driven = Driven {
        halt: None,
        value: None,
        born: None,
    };
    if ptrace::set_registers(tid, &call.registers(real, code, frames)).is_err() {
        return driven;
    }
    on_step(Step::Prepared);
    driven.halt = go(tid, Resume::ToCall);
    if driven.halt != Some(Halt::AT_CALL) {
        // A signal came first.
        return driven;
    }
    on_step(Step::Entered);
    driven.halt = go(tid, Resume::ToCall);
    if driven.halt.is_some_and(|h| h.event == EVENT_CLONE) {
        let born = ptrace::event_message(tid).ok();
        driven.born = born.and_then(|id| u32::try_from(id).ok());
        on_step(Step::Born);
        driven.halt = go(tid, Resume::ToCall);
    }
    if driven.halt != Some(Halt::AT_CALL) {
        return driven;
    }
    on_step(Step::Left);
    driven.value = ptrace::registers(tid).ok().map(|r| r.rax.cast_signed());
    // Only in a stop between two instructions of the program does the kernel
    // look at the registers again to start an interrupted call anew.
    if ptrace::interrupt(tid).is_ok() {
        driven.halt = go(tid, Resume::On);
    }
    on_step(Step::Returned);
    driven
}

/// Lets a thread go on; returns its next stop.
fn go(tid: u32, how: Resume) -> Option<Halt> {
    ptrace::resume(tid, how).ok()?;
    await_halt(tid)
}

/// Waits for a thread's next stop; `None` when it has ended or none comes.
pub(crate) fn await_halt(tid: u32) -> Option<Halt> {
    let began = Instant::now();
    loop {
        match wait::peek(tid) {
            Ok(Change::Stopped(status)) => {
                return Some(Halt {
                    signal: status & 0xff,
                    event: status >> 8,
                });
            }
            Ok(Change::Nothing) if began.elapsed() < EAGER => std::thread::yield_now(),
            Ok(Change::Nothing) if began.elapsed() < LIMIT => std::thread::sleep(NAP),
            _ => return None,
        }
    }
}
