//! Looking at what happened to traced threads and children.

use super::id;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What a thread has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has not stopped since the last look.
    Nothing,
    /// It is stopped; the status word as `si_status` gives it: the signal
    /// number, and above it the ptrace event.
    Stopped(i32),
    /// It has ended.
    Ended,
}

/// Looks at thread `tid`, traced by the calling thread, without taking the
/// notice away: whoever else may be interested (the parent; the kernel, when
/// we die) sees it still.
///
/// # Errors
/// `ECHILD` when the calling thread does not trace it.
pub(crate) fn peek(tid: u32) -> io::Result<Change> {
    let tid = id(tid)?.unsigned_abs();
    let flags = libc::WNOWAIT
        | libc::WNOHANG
        | libc::WEXITED
        | libc::WSTOPPED
        | libc::__WALL
        | libc::__WNOTHREAD;
    look(libc::P_PID, tid, flags).map(|(_, change)| change)
}

/// Who, and what happened.
fn look(which: libc::idtype_t, id: u32, flags: i32) -> io::Result<(u32, Change)> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: waitid writes one `siginfo_t` at its third argument, which
    // points at one.
    let status = unsafe { libc::waitid(which, id, info.as_mut_ptr(), flags) };
    if status == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was zeroed, which is a valid value, or written by waitid.
    let info = unsafe { info.assume_init() };
    // SAFETY: reads the bytes of the union as the variant that waitid
    // writes; all bytes are initialised.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let change = match info.si_code {
        _ if pid == 0 => Change::Nothing,
        libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED => Change::Ended,
        _ => Change::Stopped(status),
    };
    Ok((pid.unsigned_abs(), change))
}

/// Waits until something happens to any thread that the calling thread traces
/// or has started, and leaves the notice where it is.
///
/// # Errors
/// `ECHILD` when there are none.
pub(crate) fn peek_any() -> io::Result<(u32, Change)> {
    let flags = libc::WNOWAIT | libc::WEXITED | libc::WSTOPPED | libc::__WALL | libc::__WNOTHREAD;
    loop {
        match look(libc::P_ALL, 0, flags) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Takes the exit status of child `pid` if it has ended; stops are
/// passed over.
///
/// # Errors
/// `ECHILD` when it is not our child, or its status was taken.
pub(crate) fn reap(pid: u32) -> io::Result<Option<i32>> {
    let mut status = 0;
    // Only an end is asked for, but notices of ptrace stops come whether
    // asked for or not. Bounded: each call takes one notice away.
    for _ in 0..1024 {
        // SAFETY: waitpid writes one int at its second argument, which
        // points at one.
        let got = unsafe { libc::waitpid(id(pid)?, &raw mut status, libc::WNOHANG | libc::__WALL) };
        match got {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(None),
            _ if libc::WIFSTOPPED(status) => {}
            _ => return Ok(Some(status)),
        }
    }
    Ok(None)
}

/// A descriptor that becomes readable when process `pid` has ended.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, id(pid)?, 0) };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just given us this descriptor; nobody else
        // knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits until `fd` is readable; false when `limit` has passed before. May
/// return early (a signal), also with false.
pub(crate) fn readable(fd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // Rounded up: a limit below one millisecond must not spin.
    let limit = limit.as_nanos().div_ceil(1_000_000);
    let limit = libc::c_int::try_from(limit).unwrap_or(libc::c_int::MAX);
    // SAFETY: poll reads and writes one `pollfd`, which `entry` is.
    match unsafe { libc::poll(&raw mut entry, 1, limit) } {
        -1 => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                Ok(false)
            } else {
                Err(error)
            }
        }
        ready => Ok(ready > 0),
    }
}

/// Takes the notice of an ended thread that the calling thread traces.
pub(crate) fn take(tid: u32) {
    take_with(tid, libc::__WNOTHREAD);
}

/// Takes the notice of an ended thread that any thread of ours traces.
pub(crate) fn take_for_siblings(tid: u32) {
    take_with(tid, 0);
}

fn take_with(tid: u32, flags: i32) {
    let Ok(tid) = id(tid) else { return };
    let flags = flags | libc::WNOHANG | libc::__WALL;
    // SAFETY: waitpid may be given no place for the status.
    unsafe { libc::waitpid(tid, std::ptr::null_mut(), flags) };
}
