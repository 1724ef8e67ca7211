//! The calling thread's own stack: the range that may be read without
//! asking the kernel.

use crate::cell::Fields;
use crate::modules;
use crate::sys;
use leakscope_recorder_core::unwind::StackBounds;

const PAGE: u64 = 4096;
/// Pages that are asked for at once when the stack has grown; 64 MiB, asked
/// once for each page that a thread's stack ever reaches.
const MAX_PROBES: u64 = 16 << 10;

/// What a thread knows of its stacks. All zero: nothing yet.
#[derive(Clone, Copy)]
pub struct Stacks {
    own: StackBounds,
    /// A stack pointer in this range is on another stack (coroutine, signal
    /// stack), as long as the memory epoch is the same.
    elsewhere: (u64, u64),
    epoch: u64,
}

impl Stacks {
    /// Nothing known.
    pub const NONE: Stacks = Stacks {
        own: StackBounds { lo: 0, hi: 0 },
        elsewhere: (0, 0),
        epoch: 0,
    };
}

impl Stacks {
    /// True for an address on the known part of the thread's own stack.
    pub fn owns(&self, at: u64) -> bool {
        (self.own.lo..self.own.hi).contains(&at)
    }
}

/// The bounds for a walk that begins at `sp`.
#[inline(always)]
pub fn bounds(fields: &mut Fields, sp: u64) -> StackBounds {
    let s = &fields.stacks;
    if sp >= s.own.lo && sp < s.own.hi {
        return s.own;
    }
    learn(&mut fields.stacks, sp)
}

#[cold]
#[inline(never)]
fn learn(s: &mut Stacks, sp: u64) -> StackBounds {
    let page = sp & !(PAGE - 1);
    if s.own.hi == 0 {
        let hi = modules::stack_top(sp);
        if hi == 0 {
            return s.own;
        }
        s.own = StackBounds {
            lo: hi & !(PAGE - 1),
            hi,
        };
    }
    let epoch = modules::memory_epoch();
    if sp >= s.own.hi || s.epoch == epoch && (s.elsewhere.0..s.elsewhere.1).contains(&sp) {
        return s.own;
    }
    // The stack has grown, if every page up to its known part is there; a
    // guard page or hole means that this is another stack.
    let mut at = page;
    for _ in 0..MAX_PROBES {
        if at >= s.own.lo {
            s.own.lo = page;
            return s.own;
        }
        if !sys::readable(at) {
            break;
        }
        at += PAGE;
    }
    s.elsewhere = (page, at);
    s.epoch = epoch;
    s.own
}
