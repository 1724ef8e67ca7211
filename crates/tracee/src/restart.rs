//! Calls that our interruption would make fail with `EINTR`.
//!
//! Stopping a thread wakes it from the call that it is blocked in. Most calls
//! then tell the kernel to start them again, and the program sees nothing.
//! Some give up instead, as if a signal handler had run: `signal(7)` lists
//! them under "interruption of system calls by stop signals". Programs that
//! use no signals often take that for a real error, so such a call is put
//! back: the call's number into rax and the instruction pointer onto the
//! `syscall` instruction.
//!
//! Two effects remain, both allowed by the calls' documentation: a relative
//! timeout begins anew, and a signal that arrives in the microseconds between
//! the decision and the detach runs its handler without ending the call.

use crate::sys::ptrace::Registers;

/// Length of `syscall` (0f 05).
const SYSCALL_BYTES: u64 = 2;
/// Code segment of 64-bit user code (`__USER_CS`, `arch/x86/include/asm/segment.h`):
/// only there do the call numbers below hold.
const USER_CS: u64 = 0x33;

/// The registers that start the call again, if the thread's call failed for
/// nothing but our interruption.
///
/// The caller knows that the thread is in the stop that it asked for, and
/// that no signal waits for it.
pub(crate) fn put_back(registers: &Registers) -> Option<Registers> {
    let interrupted = -i64::from(libc::EINTR);
    if registers.cs != USER_CS
        || registers.rax.cast_signed() != interrupted
        || !gives_up(registers.orig_rax.cast_signed())
    {
        return None;
    }
    let mut again = *registers;
    again.rax = registers.orig_rax;
    again.rip = registers.rip.checked_sub(SYSCALL_BYTES)?;
    Some(again)
}

/// Calls that answer an interruption with `EINTR`, and that have done
/// nothing by then, so that doing them once more is right. `close` is not
/// among them: it has closed the descriptor. Nor is `write`: a file system in
/// user space may have done the write. Some belong here only when the socket
/// has a timeout (`SO_RCVTIMEO`, `SO_SNDTIMEO`); without one the kernel
/// starts them again by itself.
fn gives_up(call: i64) -> bool {
    matches!(
        call,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_rt_sigtimedwait
            | libc::SYS_semop
            | libc::SYS_semtimedop
            | libc::SYS_io_getevents
            | libc::SYS_io_uring_enter
            | libc::SYS_read
            | libc::SYS_readv
            | libc::SYS_recvfrom
            | libc::SYS_recvmsg
            | libc::SYS_recvmmsg
            | libc::SYS_sendto
            | libc::SYS_sendmsg
            | libc::SYS_sendmmsg
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_connect
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace::zeroed_registers;

    fn interrupted(call: i64) -> Registers {
        Registers {
            cs: USER_CS,
            rax: (-i64::from(libc::EINTR)).cast_unsigned(),
            orig_rax: call.cast_unsigned(),
            rip: 0x40_1002,
            rdi: 17,
            ..zeroed_registers()
        }
    }

    #[test]
    fn an_interrupted_call_starts_again() {
        let again = put_back(&interrupted(libc::SYS_epoll_wait)).unwrap();
        assert_eq!(again.rax, libc::SYS_epoll_wait.cast_unsigned());
        assert_eq!((again.rip, again.rdi), (0x40_1000, 17));
    }

    #[test]
    fn nothing_else_does() {
        for call in [libc::SYS_close, libc::SYS_write, libc::SYS_poll, -1] {
            assert!(put_back(&interrupted(call)).is_none(), "{call}");
        }
        let wait = interrupted(libc::SYS_epoll_wait);
        // Came back with an event; 32-bit code; no room for the instruction.
        assert!(put_back(&Registers { rax: 1, ..wait }).is_none());
        assert!(put_back(&Registers { cs: 0x23, ..wait }).is_none());
        assert!(put_back(&Registers { rip: 1, ..wait }).is_none());
    }
}
