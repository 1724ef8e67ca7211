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
    let options = libc::PTRACE_O_TRACECLONE as usize as *mut c_void;
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
