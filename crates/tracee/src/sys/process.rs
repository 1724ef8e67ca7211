//! Processes of our own.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Splits this process in two; `None` in the new one, which has the calling
/// thread only.
pub(crate) fn fork() -> io::Result<Option<u32>> {
    // SAFETY: the new process has one thread. What it runs takes no lock that
    // another thread of ours may hold (glibc's fork keeps malloc usable), and
    // never returns to the caller's callers: see become_guard.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid.unsigned_abs())),
    }
}

/// In a new process: does `work` out of reach of what is meant for our first
/// process (its terminal's signals, its group's), and ends. Of the descriptors
/// only `keep` stay open: who waits for the end of a pipe waits for all.
pub(crate) fn become_guard(keep: [RawFd; 2], work: impl FnOnce()) -> ! {
    super::block_signals();
    // SAFETY: setsid takes nothing, setpriority numbers; prctl reads a C string; open one, too;
    // dup2 and close_range take descriptors, of which none that is closed is
    // ever used again: only `work` runs here. Failures change nothing that
    // matters.
    unsafe {
        libc::setsid();
        // Somebody stands still until we come to it, however busy the machine.
        libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        libc::prctl(libc::PR_SET_NAME, c"leaks-guard".as_ptr());
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null >= 0 {
            for standard in 0..3 {
                libc::dup2(null, standard);
            }
        }
        let mut from = 3;
        let mut keep = keep.map(|fd| fd.unsigned_abs());
        keep.sort_unstable();
        for fd in keep.into_iter().chain([u32::MAX]) {
            if from < fd {
                libc::syscall(libc::SYS_close_range, from, fd - 1, 0);
            }
            from = fd.saturating_add(1);
        }
    }
    // A panic must not unwind into the caller's frames, of which this process
    // has a copy.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    // SAFETY: ends the process without running handlers that are not its own.
    unsafe { libc::_exit(0) }
}

/// Has the calling thread trace the program that it will start, from its first
/// instruction: it stands still there.
pub(crate) fn trace_from_birth(command: &mut Command) {
    // SAFETY: in the new process only ptrace is called, which is a bare system
    // call there and allocates nothing.
    unsafe {
        command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// Waits for the end of our child `pid`.
pub(crate) fn wait(pid: u32) {
    let Ok(pid) = super::id(pid) else { return };
    // SAFETY: waitpid may be given no place for the status.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}
