//! Programs that filter their own system calls (seccomp): a call that the
//! filter does not know may kill them, so the recorder stops making any.

use crate::recorder::QUIET;
use crate::signals;
use core::sync::atomic::Ordering::Relaxed;

const PR_SET_SECCOMP: u64 = 22;
const SYS_PRCTL: u64 = 157;
const SYS_SECCOMP: u64 = 317;

fn note() {
    if !on() {
        signals::stop();
    }
    QUIET.store(1, Relaxed);
}

/// prctl is about to run (prctl(2)).
pub fn prctl(option: u64) {
    if option & 0xffff_ffff == PR_SET_SECCOMP {
        note();
    }
}

/// syscall(2) is about to run: libseccomp installs its filters so.
pub fn syscall(args: [u64; 6]) {
    match args[0] {
        SYS_PRCTL => prctl(args[1]),
        SYS_SECCOMP => note(),
        _ => {}
    }
}

/// True once a filter may be there.
pub fn on() -> bool {
    QUIET.load(Relaxed) != 0
}
