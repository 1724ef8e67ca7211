//! Waiting for a child that may be stopped by us meanwhile.

use crate::sys::wait;
use leakscope_model::ExitKind;
use std::io;
use std::time::{Duration, Instant};

/// How long one look waits where there are no pidfds.
const LOOK: Duration = Duration::from_millis(5);

/// Waits for the end of our child `pid`, at most for `limit`; `None` when it
/// still runs then. Takes the exit status: to be called once.
///
/// Use this and not `wait` of the standard library for a process that
/// another thread stops: the notices of ptrace stops come to every waiter
/// of the parent process, and a blocked waiter is not woken for a child that
/// ends while a thread of ours traces it. This function waits on a pidfd, for
/// which both do not matter.
///
/// # Errors
/// When `pid` is not our child or its status has been taken.
pub fn wait_exit(pid: u32, limit: Duration) -> io::Result<Option<ExitKind>> {
    let began = Instant::now();
    let pidfd = wait::pidfd(pid).ok();
    loop {
        if let Some(status) = wait::reap(pid)? {
            return Ok(Some(kind(status)));
        }
        let left = limit.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        match &pidfd {
            Some(fd) => {
                if wait::readable(fd, left)? {
                    // Readable, but the status cannot be taken yet while
                    // another thread of ours looks at the same child.
                    if let Some(status) = wait::reap(pid)? {
                        return Ok(Some(kind(status)));
                    }
                    std::thread::sleep(LOOK.min(left));
                }
            }
            None => std::thread::sleep(LOOK.min(left)),
        }
    }
}

/// What a status of `waitpid` says about an ended process.
fn kind(status: i32) -> ExitKind {
    if libc::WIFSIGNALED(status) {
        ExitKind::Signal(signal_name(libc::WTERMSIG(status)))
    } else {
        ExitKind::Code(libc::WEXITSTATUS(status))
    }
}

fn signal_name(number: i32) -> String {
    // x86-64 and arm64 numbers (`include/uapi/asm-generic/signal.h`).
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let index = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
    match index.and_then(|i| NAMES.get(i)) {
        Some(name) => format!("SIG{name}"),
        None => format!("SIG{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(signal_name(libc::SIGSEGV), "SIGSEGV");
        assert_eq!(signal_name(libc::SIGKILL), "SIGKILL");
        assert_eq!(signal_name(libc::SIGSYS), "SIGSYS");
        assert_eq!(signal_name(37), "SIG37");
        assert_eq!(signal_name(0), "SIG0");
    }
}
