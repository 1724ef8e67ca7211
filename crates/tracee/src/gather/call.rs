//! Calls made by one of the stopped threads.

use super::{Gathering, State, Stop};
use crate::inject::code::Code;
use crate::inject::frame::frames;
use crate::inject::{Call, Driven, Step, drive};
use crate::sys::ptrace::{
    self, AT_CALL, EVENT_STOP, Options, Registers, SUSPEND_SECCOMP, TRACE_BIRTHS, TRACE_CALLS,
};
use leakscope_memory::MemoryMap;
use leakscope_model::Addr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Threads that are tried.
const TRIED: usize = 16;
/// Code segment of 64-bit user code (`arch/x86/include/asm/segment.h`).
const USER_CS: u64 = 0x33;

/// What a call needs besides a thread.
pub(crate) struct Means<'a> {
    pub code: Code,
    /// The target's memory, to be written.
    pub memory: &'a File,
    /// Its map, as it is now.
    pub map: &'a MemoryMap,
    /// It has seccomp filters, which are not to be asked.
    pub is_filtered: bool,
    /// Told how far it is, for tests.
    pub on_step: &'a mut dyn FnMut(Step),
}

/// Why no thread made the call.
#[derive(Debug)]
pub(crate) enum NoCall {
    /// None is where it can be done.
    NoThread,
    /// A signal came first: in a moment it may be possible.
    Signals,
    /// Its filters would see the call, and may kill the process for it.
    Filtered,
    /// The kernel refused something on the way.
    Io(io::Error),
    /// The thread did not come back in time.
    Lost,
}

/// A call that was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Made {
    /// What it returned.
    pub value: i64,
    /// The process that it made, by our id.
    pub born: Option<u32>,
    /// The thread that made it.
    pub by: u32,
}

impl Gathering {
    /// Has one of the stopped threads make a call. All are as stopped as
    /// before afterwards, each in its own place.
    ///
    /// # Errors
    /// When none can.
    pub(crate) fn call(&mut self, call: Call, means: &mut Means<'_>) -> Result<Made, NoCall> {
        let mut last = NoCall::NoThread;
        for tid in self.able().into_iter().take(TRIED) {
            match self.call_in(tid, call, means) {
                // ERESTARTNOINTR: no process is copied while a signal waits.
                Ok(made) if made.value == -513 => last = NoCall::Signals,
                Ok(made) => return Ok(made),
                Err(error @ (NoCall::Filtered | NoCall::Lost)) => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Threads that may make a call, the best ones first: those inside a call
    /// of their own are in no restartable sequence, and lose nothing when the
    /// call is made once more.
    fn able(&self) -> Vec<u32> {
        let able = self.threads.iter().filter_map(|(&tid, state)| match state {
            State::Stopped(stop) if stop.ours => {
                let registers = stop.registers.as_deref()?;
                let is_inside = registers.orig_rax.cast_signed() >= 0;
                (registers.cs == USER_CS).then_some((!is_inside, tid != self.pid, tid))
            }
            _ => None,
        });
        let mut able: Vec<_> = able.collect();
        able.sort_unstable();
        able.into_iter().map(|(_, _, tid)| tid).collect()
    }

    fn call_in(&mut self, tid: u32, call: Call, means: &mut Means<'_>) -> Result<Made, NoCall> {
        // With an interrupted call put back, perhaps.
        let real = ptrace::registers(tid).map_err(NoCall::Io)?;
        if real.orig_rax.cast_signed() < 0 && self.is_in_sequence(tid) {
            return Err(NoCall::NoThread);
        }
        let signals = ptrace::blocked_signals(tid).map_err(NoCall::Io)?;
        // Without it a thread that we do not live to bring back would lose its
        // vector registers.
        let extended = ptrace::extended_state(tid).map_err(NoCall::Io)?;
        let frames = frames(&real, signals, &extended, means.code).ok_or(NoCall::NoThread)?;
        let is_first = tid == self.pid;
        let mut own = [0; 8];
        let read = means.memory.read_exact_at(&mut own, real.fs_base);
        let is_posix = read.is_ok() && u64::from_le_bytes(own) == real.fs_base;
        if !has_room(means.map, &real, frames.at, is_first, is_posix) {
            return Err(NoCall::NoThread);
        }
        let mut options: Options = TRACE_BIRTHS | TRACE_CALLS;
        if means.is_filtered {
            options |= SUSPEND_SECCOMP;
        }
        ptrace::set_options(tid, options).map_err(|e| match means.is_filtered {
            true => NoCall::Filtered,
            false => NoCall::Io(e),
        })?;
        let mut old = vec![0; frames.bytes.len()];
        let written = means
            .memory
            .read_exact_at(&mut old, frames.at)
            .and_then(|()| means.memory.write_all_at(&frames.bytes, frames.at));
        if let Err(error) = written {
            let _ = ptrace::set_options(tid, TRACE_BIRTHS);
            return Err(NoCall::Io(error));
        }
        let driven = drive(tid, call, &real, means.code, &frames, means.on_step);
        self.bring_back(tid, &real, &driven)?;
        // Fails only when the thread was killed.
        let _ = means.memory.write_all_at(&old, frames.at);
        let _ = ptrace::set_options(tid, TRACE_BIRTHS);
        match driven.value {
            Some(value) => Ok(Made {
                value,
                born: driven.born,
                by: tid,
            }),
            None => Err(NoCall::Signals),
        }
    }

    /// The thread's own registers, and what stop it is in now.
    fn bring_back(&mut self, tid: u32, real: &Registers, driven: &Driven) -> Result<(), NoCall> {
        let Some(halt) = driven.halt else {
            // It has ended, or will come back by itself.
            self.threads.insert(tid, State::Awaited);
            return Err(NoCall::Lost);
        };
        let Some(State::Stopped(stop)) = self.threads.get_mut(&tid) else {
            return Err(NoCall::Lost);
        };
        let ours = halt.event == EVENT_STOP && halt.signal == libc::SIGTRAP;
        let first = stop.registers.as_deref().copied();
        // A signal that came meanwhile ends its call, as it would without us.
        let registers = match first {
            Some(first) if stop.put_back && !ours => first,
            _ => *real,
        };
        // Fails only when the thread was killed.
        let _ = ptrace::set_registers(tid, &registers);
        *stop = Stop {
            ours,
            signal: match halt.event {
                0 if halt.signal & AT_CALL == 0 => halt.signal,
                _ => 0,
            },
            registers: stop.registers.take(),
            put_back: stop.put_back && ours,
        };
        Ok(())
    }

    /// True when the thread may be inside of a restartable sequence, or this
    /// cannot be known: once it stands elsewhere, the kernel takes the
    /// sequence for finished.
    fn is_in_sequence(&self, tid: u32) -> bool {
        match ptrace::restartable_sequences(tid) {
            Ok(0) => false,
            // struct rseq: cpu_id_start, cpu_id, rseq_cs
            // (include/uapi/linux/rseq.h).
            Ok(area) => {
                let mut sequence = [0; 8];
                let read = File::open(self.process.task(tid).file("mem"))
                    .and_then(|memory| memory.read_exact_at(&mut sequence, area.wrapping_add(8)));
                read.is_err() || sequence != [0; 8]
            }
            Err(_) => true,
        }
    }
}

/// True when everything from `from` to the stack pointer is the thread's own
/// stack: that of the first thread, or of a POSIX thread (whose control block
/// begins with its own address) the mapping that ends in the control block.
/// Stacks that a program has laid out itself (coroutines, goroutines,
/// alternative ones for signals) may have something else below.
fn has_room(
    map: &MemoryMap,
    registers: &Registers,
    from: u64,
    is_first: bool,
    is_posix: bool,
) -> bool {
    let Some(region) = map.find(Addr(registers.rsp)) else {
        return false;
    };
    let control_block = Addr(registers.fs_base);
    let is_own = if is_first {
        region.path == b"[stack]"
    } else {
        // Its guard page keeps the mapping from being joined with others below.
        is_posix && region.range.contains(control_block) && control_block.0 > registers.rsp
    };
    is_own
        && region.read
        && region.write
        && region.is_anonymous()
        && region.range.contains(Addr(from))
}
