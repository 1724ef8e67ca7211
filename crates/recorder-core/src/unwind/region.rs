//! Which stack memory may be read.

use super::host::Host;

/// The mapped range of a thread's own stack, `lo..hi`. From `sp` to `hi`
/// everything must be readable for as long as the thread lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StackBounds {
    /// Lowest address that may ever be used.
    pub lo: u64,
    /// End, exclusive.
    pub hi: u64,
}

impl StackBounds {
    /// Whether an aligned word at `addr` lies inside.
    #[inline]
    pub(crate) fn covers(&self, addr: u64) -> bool {
        addr & 7 == 0 && addr >= self.lo && addr < self.hi && self.hi.wrapping_sub(addr) >= 8
    }
}

const PAGE: u64 = 4096;
/// Distance from the end of a thread's own stack within which a frame without
/// a caller is its first: start code aligns sp and pushes a few words before
/// it calls (glibc's `_dl_start_user`, which has no unwind information).
const FIRST_FRAME: u64 = 64;
/// Pages that one capture may probe (each costs a system call).
const MAX_PROBES: u32 = 256;
/// Foreign stacks remembered by a thread.
const REMEMBERED: usize = 4;

/// Foreign stacks (coroutines, signal stacks) whose pages were probed.
/// All zero: none.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Probed {
    ranges: [StackBounds; REMEMBERED],
    next: u64,
}

impl Probed {
    /// The remembered range that holds `addr`.
    fn find(&self, addr: u64) -> Option<StackBounds> {
        self.ranges.iter().find(|r| r.covers(addr)).copied()
    }

    /// Puts `range` in place of one that it extends, or of the oldest.
    fn remember(&mut self, range: StackBounds) {
        let old = self
            .ranges
            .iter()
            .position(|r| r.lo < range.hi && range.lo < r.hi);
        let at = old.unwrap_or_else(|| {
            self.next = self.next.wrapping_add(1);
            self.next as usize % REMEMBERED
        });
        if let Some(slot) = self.ranges.get_mut(at) {
            *slot = range;
        }
    }
}

/// The stack that a walk is on.
pub(crate) struct Region<'a, H> {
    host: &'a H,
    own: StackBounds,
    /// Lowest address of the own stack known to be in use; `u64::MAX` if the
    /// walk began elsewhere.
    floor: u64,
    probed: &'a mut Probed,
    now: StackBounds,
    foreign: bool,
    probes: u32,
    /// Whether any foreign stack was met.
    pub(crate) met_foreign: bool,
}

impl<'a, H: Host> Region<'a, H> {
    /// Begins on the stack that holds `sp`, the live stack pointer.
    pub(crate) fn new(host: &'a H, own: StackBounds, probed: &'a mut Probed, sp: u64) -> Self {
        let mut region = Region {
            host,
            own,
            floor: u64::MAX,
            probed,
            now: StackBounds::default(),
            foreign: false,
            probes: 0,
            met_foreign: false,
        };
        if own.covers(sp) {
            region.floor = sp;
            region.now = own;
        } else {
            region.enter(sp);
        }
        region
    }

    /// Whether `addr` lies on the stack that the walk is on, without probing.
    #[inline]
    pub(crate) fn is_here(&self, addr: u64) -> bool {
        self.now.covers(addr)
    }

    /// Whether a frame with this sp is where the thread's own stack begins.
    pub(crate) fn is_first_frame(&self, sp: u64) -> bool {
        !self.foreign && self.now == self.own && sp.abs_diff(self.own.hi) <= FIRST_FRAME
    }

    /// Goes to the stack that holds the word at `addr`; false (and nothing
    /// changes) if there is none that can be read.
    pub(crate) fn enter(&mut self, addr: u64) -> bool {
        if self.now.covers(addr) {
            return true;
        }
        let page = addr & !(PAGE - 1);
        if addr & 7 != 0 || page == 0 || page.checked_add(PAGE).is_none() {
            return false;
        }
        if self.own.covers(addr) {
            // Below the live part there may be holes; from a readable page up
            // a stack is one mapping.
            let live = match self.floor {
                u64::MAX => self.probe(page),
                floor => addr >= floor,
            };
            if live {
                self.now = self.own;
                self.foreign = false;
            }
            return live;
        }
        let range = match self.probed.find(addr) {
            Some(range) => range,
            None if self.probe(page) => {
                let range = StackBounds {
                    lo: page,
                    hi: page.wrapping_add(PAGE),
                };
                self.probed.remember(range);
                range
            }
            None => return false,
        };
        self.now = range;
        self.foreign = true;
        self.met_foreign = true;
        true
    }

    /// Whether the word at `addr` can be read; probes further pages of a
    /// foreign stack.
    #[inline]
    pub(crate) fn reach(&mut self, addr: u64) -> bool {
        self.now.covers(addr) || (self.foreign && self.extend(addr))
    }

    #[cold]
    #[inline(never)]
    fn extend(&mut self, addr: u64) -> bool {
        if addr & 7 != 0 || addr < self.now.hi {
            return false;
        }
        while addr >= self.now.hi {
            let next = self.now.hi;
            let Some(end) = next.checked_add(PAGE) else {
                return false;
            };
            if let Some(above) = self.probed.find(next) {
                self.now.hi = above.hi;
            } else if self.probe(next) {
                self.now.hi = end;
            } else {
                return false;
            }
        }
        self.probed.remember(self.now);
        true
    }

    fn probe(&mut self, page: u64) -> bool {
        if self.probes >= MAX_PROBES {
            return false;
        }
        self.probes = self.probes.wrapping_add(1);
        self.host.readable(page)
    }
}
