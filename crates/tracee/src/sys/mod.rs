//! System calls, each as a function that is safe to call.
//!
//! The only place of this crate with `unsafe`. Nothing here decides
//! anything: numbers in, numbers or an `io::Error` out.
#![allow(unsafe_code)]

pub(crate) mod process;
pub(crate) mod ptrace;
pub(crate) mod wait;

use std::io;

/// Process and thread ids as the kernel's calls take them.
fn id(pid: u32) -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(pid)
        .ok()
        .filter(|&pid| pid > 0)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// The calling thread's id.
pub(crate) fn own_tid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    let tid = unsafe { libc::gettid() };
    tid.unsigned_abs()
}

/// Kills process `pid`.
pub(crate) fn kill(pid: u32) -> io::Result<()> {
    send(pid, libc::SIGKILL)
}

/// Sends process `pid` a signal.
pub(crate) fn send(pid: u32, signal: i32) -> io::Result<()> {
    // SAFETY: takes two numbers.
    match unsafe { libc::kill(id(pid)?, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps every signal that can be kept away from the calling thread.
pub(crate) fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that it is given, which is then
    // read only.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut());
    }
}

/// True when the error is "no such process".
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH)
}
