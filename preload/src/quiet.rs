//! Programs that filter their own system calls (seccomp): a call that the
//! filter does not know may kill them, so the recorder stops making any.

use crate::recorder::{FILTERED, QUIET, STRICT};
use crate::signals;
use core::sync::atomic::Ordering::Relaxed;

const PR_SET_SECCOMP: u64 = 22;
const SECCOMP_MODE_STRICT: u64 = 1;
const SYS_PRCTL: u64 = 157;
const SYS_SECCOMP: u64 = 317;
const SECCOMP_SET_MODE_STRICT: u64 = 0;

fn note(strict: bool) {
    if !on() {
        signals::stop();
    }
    QUIET.fetch_max(if strict { STRICT } else { FILTERED }, Relaxed);
}

/// prctl is about to run (prctl(2)).
pub fn prctl(option: u64, mode: u64) {
    if option & 0xffff_ffff == PR_SET_SECCOMP {
        note(mode == SECCOMP_MODE_STRICT);
    }
}

/// syscall(2) is about to run: libseccomp installs its filters so.
pub fn syscall(args: [u64; 6]) {
    match args[0] {
        SYS_PRCTL => prctl(args[1], args[2]),
        SYS_SECCOMP => note(args[1] == SECCOMP_SET_MODE_STRICT),
        _ => {}
    }
}

/// True once a filter may be there.
pub fn on() -> bool {
    QUIET.load(Relaxed) != 0
}

/// True in strict mode, where not even futex is allowed.
pub fn strict() -> bool {
    QUIET.load(Relaxed) >= STRICT
}
