//! ptrace requests. All but [`seize`] must come from the thread that seized.

use super::id;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// `PTRACE_EVENT_STOP` (`include/uapi/linux/ptrace.h`): the stop that
/// `PTRACE_INTERRUPT` asks for, a group stop, or the first stop of a thread
/// born traced.
pub(crate) const EVENT_STOP: i32 = 128;
/// `PTRACE_EVENT_CLONE`: the thread has just made another one.
pub(crate) const EVENT_CLONE: i32 = libc::PTRACE_EVENT_CLONE;

/// `PTRACE_EVENT_EXEC`: it runs another program now.
pub(crate) const EVENT_EXEC: i32 = libc::PTRACE_EVENT_EXEC;
/// `PTRACE_EVENT_EXIT`: the thread is about to end.
pub(crate) const EVENT_EXIT: i32 = libc::PTRACE_EVENT_EXIT;

/// Set in the signal number of a stop at the border of a system call, where
/// [`TRACE_CALLS`] was asked for (ptrace(2)).
pub(crate) const AT_CALL: i32 = 0x80;

/// What a tracer may ask for (`PTRACE_O_*`), as a set of bits.
pub(crate) type Options = i32;
/// A new thread or process is traced from birth.
pub(crate) const TRACE_BIRTHS: Options = libc::PTRACE_O_TRACECLONE;
/// Stops at calls are told apart from SIGTRAP.
pub(crate) const TRACE_CALLS: Options = libc::PTRACE_O_TRACESYSGOOD;
/// It stops when it is about to end.
pub(crate) const AT_EXIT: Options = libc::PTRACE_O_TRACEEXIT;
/// It stops when it has executed another program.
pub(crate) const AT_EXEC: Options = libc::PTRACE_O_TRACEEXEC;
/// The kernel kills it when its tracer ends.
pub(crate) const DIE_WITH_TRACER: Options = libc::PTRACE_O_EXITKILL;
/// No seccomp filter of its own is asked while it is traced; needs
/// `CAP_SYS_ADMIN` and a kernel with `CONFIG_CHECKPOINT_RESTORE`.
pub(crate) const SUSPEND_SECCOMP: Options = 1 << 21;

/// How far a stopped thread goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Until something happens to it.
    On,
    /// To the next border of a system call.
    ToCall,
}

/// Longest extended state that is asked for: twice that of processors with
/// AMX, whose tiles alone take 8 KiB.
const EXTENDED: usize = 24 << 10;

/// Registers of a stopped thread.
pub(crate) type Registers = libc::user_regs_struct;

fn checked(status: libc::c_long) -> io::Result<()> {
    if status == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Becomes the tracer of thread `tid` without stopping it; threads that it
/// makes are traced from birth.
pub(crate) fn seize(tid: u32) -> io::Result<()> {
    seize_with(tid, TRACE_BIRTHS)
}

/// The same, asking for something else.
pub(crate) fn seize_with(tid: u32, options: Options) -> io::Result<()> {
    let options = options as usize as *mut c_void;
    // SAFETY: the kernel takes `options` as a number and touches no memory
    // of ours.
    checked(unsafe { libc::ptrace(libc::PTRACE_SEIZE, id(tid)?, null_mut::<c_void>(), options) })
}

/// Asks a seized thread to stop.
pub(crate) fn interrupt(tid: u32) -> io::Result<()> {
    // SAFETY: no pointers are involved.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_INTERRUPT,
            id(tid)?,
            null_mut::<c_void>(),
            null_mut::<c_void>(),
        )
    })
}

/// Lets a stopped thread go, delivering `signal` unless it is 0.
pub(crate) fn detach(tid: u32, signal: i32) -> io::Result<()> {
    let signal = signal as usize as *mut c_void;
    // SAFETY: the kernel takes `signal` as a number.
    checked(unsafe { libc::ptrace(libc::PTRACE_DETACH, id(tid)?, null_mut::<c_void>(), signal) })
}

/// General registers of a stopped thread.
pub(crate) fn registers(tid: u32) -> io::Result<Registers> {
    let mut registers = MaybeUninit::<Registers>::zeroed();
    // SAFETY: PTRACE_GETREGS writes one `user_regs_struct` at its fourth
    // argument, which points at one.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGS,
            id(tid)?,
            null_mut::<c_void>(),
            registers.as_mut_ptr(),
        )
    })?;
    // SAFETY: zero is a valid value of each of its integer fields, and the
    // kernel has overwritten them.
    Ok(unsafe { registers.assume_init() })
}

/// Replaces the general registers of a stopped thread.
pub(crate) fn set_registers(tid: u32, registers: &Registers) -> io::Result<()> {
    // SAFETY: PTRACE_SETREGS reads one `user_regs_struct` at its fourth
    // argument, which points at one.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGS,
            id(tid)?,
            null_mut::<c_void>(),
            std::ptr::from_ref(registers),
        )
    })
}

/// Replaces what is asked for a stopped thread.
pub(crate) fn set_options(tid: u32, options: Options) -> io::Result<()> {
    let options = options as usize as *mut c_void;
    // SAFETY: the kernel takes `options` as a number.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_SETOPTIONS,
            id(tid)?,
            null_mut::<c_void>(),
            options,
        )
    })
}

/// Lets a stopped thread run on, without any signal.
pub(crate) fn resume(tid: u32, how: Resume) -> io::Result<()> {
    let request = match how {
        Resume::On => libc::PTRACE_CONT,
        Resume::ToCall => libc::PTRACE_SYSCALL,
    };
    request_with(request, tid, 0)
}

/// Lets a stopped thread run on, delivering `signal` unless it is 0.
pub(crate) fn resume_with(tid: u32, signal: i32) -> io::Result<()> {
    request_with(libc::PTRACE_CONT, tid, signal)
}

/// Leaves a thread in its group stop, to be told when that ends.
pub(crate) fn listen(tid: u32) -> io::Result<()> {
    request_with(libc::PTRACE_LISTEN, tid, 0)
}

fn request_with(request: libc::c_uint, tid: u32, data: i32) -> io::Result<()> {
    let data = data as usize as *mut c_void;
    // SAFETY: the requests above take `data` as a number.
    checked(unsafe { libc::ptrace(request, id(tid)?, null_mut::<c_void>(), data) })
}

/// The signals that a stopped thread has blocked (those of its own, where a
/// call such as `ppoll` has replaced them for its duration).
pub(crate) fn blocked_signals(tid: u32) -> io::Result<u64> {
    let mut set: u64 = 0;
    // SAFETY: PTRACE_GETSIGMASK writes as many bytes as its third argument
    // says, the size of a kernel's signal set, at its fourth, which points at
    // as many.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGMASK,
            id(tid)?,
            size_of::<u64>() as *mut c_void,
            &raw mut set,
        )
    })?;
    Ok(set)
}

/// The extended state (x87, SSE, AVX, …) of a stopped thread, in the layout of
/// `XSAVE` that is not compacted.
pub(crate) fn extended_state(tid: u32) -> io::Result<Vec<u8>> {
    /// `NT_X86_XSTATE` (`include/uapi/linux/elf.h`).
    const XSTATE: usize = 0x202;
    let mut bytes = vec![0u8; EXTENDED];
    let mut window = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast::<c_void>(),
        iov_len: bytes.len(),
    };
    // SAFETY: PTRACE_GETREGSET writes at most `iov_len` bytes to `iov_base`,
    // which is as long, and corrects `iov_len`.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            id(tid)?,
            XSTATE as *mut c_void,
            &raw mut window,
        )
    })?;
    bytes.truncate(window.iov_len);
    Ok(bytes)
}

/// Where a thread has registered its area of restartable sequences; 0 where it
/// has none.
pub(crate) fn restartable_sequences(tid: u32) -> io::Result<u64> {
    /// `PTRACE_GET_RSEQ_CONFIGURATION`, Linux 5.13.
    const REQUEST: libc::c_uint = 0x420f;
    // `struct ptrace_rseq_configuration` (`include/uapi/linux/ptrace.h`): the
    // area's address; its size and signature; flags and padding.
    let mut configuration = [0u64; 3];
    // SAFETY: the kernel writes at most as many bytes as the third argument
    // says at the fourth, which points at as many.
    checked(unsafe {
        libc::ptrace(
            REQUEST,
            id(tid)?,
            size_of_val(&configuration) as *mut c_void,
            configuration.as_mut_ptr(),
        )
    })?;
    Ok(configuration[0])
}

/// What a ptrace event is about; for [`EVENT_CLONE`] the new thread's id.
pub(crate) fn event_message(tid: u32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: PTRACE_GETEVENTMSG writes one `unsigned long` at its fourth
    // argument, which points at one.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_GETEVENTMSG,
            id(tid)?,
            null_mut::<c_void>(),
            &raw mut message,
        )
    })?;
    Ok(message)
}

/// Signal number and code (`si_signo`, `si_code`) of a stopped thread's
/// present stop. Fails when the thread is not stopped.
pub(crate) fn stop_signal(tid: u32) -> io::Result<(c_int, c_int)> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: PTRACE_GETSIGINFO writes one `siginfo_t` at its fourth
    // argument, which points at one.
    checked(unsafe {
        libc::ptrace(
            libc::PTRACE_GETSIGINFO,
            id(tid)?,
            null_mut::<c_void>(),
            info.as_mut_ptr(),
        )
    })?;
    // SAFETY: zero is a valid value of each of its integer fields, and the
    // kernel has overwritten them.
    let info = unsafe { info.assume_init() };
    Ok((info.si_signo, info.si_code))
}

/// True when a filter (a container's, say) keeps us from calling ptrace at
/// all. Asks to interrupt ourselves, whom nobody can trace: the kernel says
/// "no such process", a filter says something else.
pub(crate) fn is_filtered() -> bool {
    interrupt(super::own_tid()).is_err_and(|e| !super::is_gone(&e))
}

/// Registers that are all zero, for tests.
#[cfg(test)]
pub(crate) fn zeroed_registers() -> Registers {
    // SAFETY: zero is a valid value of each of its integer fields.
    unsafe { MaybeUninit::zeroed().assume_init() }
}
