//! The last stacks of one thread, one for each place that it comes from often.
//!
//! ```text
//! (ip, sp)  ─ fork? ─ word of the stack ─ fork? ─ …  →  tag  →  snapshot
//!                                                            →  the kept stack
//! ```
//! Sites that take turns, as an insertion into a map does, each find their own
//! stack unchanged, which costs the comparison of its slots and no walk. A site
//! that is reached on several ways at the same depth is told apart by the word
//! of the stack that was different: that word becomes part of its tag
//! ([`Fork`]). What has no snapshot that holds is walked from the one stack that
//! is kept with all its frames, and gets a snapshot when it comes again.
//!
//! Which snapshot is tried decides about speed alone: each compares all that it
//! depends on.
#![allow(unsafe_code)]

use super::host::Host;
use super::mapped;
use super::region::StackBounds;
use super::row::RowCache;
use super::stack::{self, Captured, Context, StackCache};
use super::walk::Slot;

/// Tags that are searched at once.
const WAYS: usize = 4;
/// Most sets of a thread.
const SETS: usize = 1 << 6;
/// log2 of the sets of a thread that is one of many: 256 KiB, when it comes
/// from as many places.
const LOG2_FEW: u32 = 4;
const LOG2_SETS: u32 = SETS.trailing_zeros();
const LOG2_FORKS: u32 = 7;
const FORKS: usize = 1 << LOG2_FORKS;
/// Words of the stack that a tag may depend on.
const MOST_FORKS: usize = 3;
/// Slots of a snapshot, which then is a page. Deeper stacks have none.
const SLOTS: usize = 251;

/// The slot at `addr` decides between several stacks that share `tag`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Fork {
    tag: u64,
    addr: u64,
}

/// A stack at one place: what it depends on, and what it was.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Snapshot {
    context: Context,
    epoch: u64,
    memory_epoch: u64,
    captured: Captured,
    /// Nothing is computed from rbp.
    any_bp: bool,
    /// Some slots lie outside the thread's own stack.
    foreign: bool,
    len: u16,
    slots: [Slot; SLOTS],
}

/// The last stacks of one thread. All zero bytes are a valid, empty value.
#[repr(C)]
pub struct ThreadStacks {
    tags: [[u64; WAYS]; SETS],
    forks: [Fork; FORKS],
    /// Tags that were met lately and have no snapshot, latest first.
    seen: [[u32; WAYS]; FORKS],
    /// log2 of the sets in use.
    log2_sets: u32,
    /// Whose turn it is to go.
    turn: [u8; SETS],
    snapshots: [[Snapshot; WAYS]; SETS],
    kept: StackCache,
}

/// 2^64 / golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads `tag` and `word` over all bits; never 0.
#[inline(always)]
const fn mix(tag: u64, word: u64) -> u64 {
    let product = (tag ^ word).wrapping_mul(MIX);
    (product ^ product >> 29) | 1
}

/// The highest `bits` bits.
#[inline(always)]
const fn top(tag: u64, bits: u32) -> usize {
    (tag.wrapping_mul(MIX) >> (64 - bits)) as usize
}

impl ThreadStacks {
    /// The stack at `context`, of the calling thread, whose own stack is
    /// `bounds`. The caller keeps a signal handler from entering this for the
    /// same thread a second time.
    ///
    /// Cost: a few nanoseconds and half of one for each frame, when this place
    /// was reached on this way lately; else a look-up in `rows` and one in the
    /// stack tree for each frame that is new.
    #[inline]
    pub fn capture<H: Host>(
        &mut self,
        context: &Context,
        bounds: StackBounds,
        host: &H,
        rows: &RowCache<'_>,
    ) -> Captured {
        let tag = self.tag(context, bounds);
        let own = self.find(tag);
        let mut changed = None;
        if let Some((_, snapshot)) = own {
            match snapshot.again(context, host, rows) {
                Ok(captured) => return captured,
                Err(at) => changed = at,
            }
        }
        let way = own.map(|(way, _)| way);
        self.walk(context, bounds, host, rows, (tag, way, changed))
    }

    /// The tag of the place and, where that is known to matter, of the way.
    #[inline]
    fn tag(&self, context: &Context, bounds: StackBounds) -> u64 {
        let mut tag = mix(context.ip, context.sp << 20);
        for _ in 0..MOST_FORKS {
            let Some(fork) = self.forks.get(top(tag, LOG2_FORKS)) else {
                break;
            };
            if fork.tag != tag
                || fork.addr < context.sp
                || !bounds.covers(context.sp)
                || !bounds.covers(fork.addr)
            {
                break;
            }
            // SAFETY: an aligned word of the thread's own stack between its
            // stack pointer and the end: mapped as long as the thread lives.
            tag = mix(tag, unsafe { mapped::word(fork.addr) });
        }
        tag
    }

    #[inline(always)]
    fn set(&self, tag: u64) -> usize {
        tag.wrapping_mul(MIX)
            .wrapping_shr(64u32.wrapping_sub(self.log2_sets)) as usize
    }

    /// The way and the snapshot of `tag`.
    #[inline]
    fn find(&self, tag: u64) -> Option<(usize, &Snapshot)> {
        let set = self.set(tag);
        let way = self.tags.get(set)?.iter().position(|other| *other == tag)?;
        Some((way, self.snapshots.get(set)?.get(way)?))
    }

    /// Looks further than the snapshot of `tag`, if it has one (`way`), in which
    /// the slot at address `changed` does not hold.
    #[inline(never)]
    fn walk<H: Host>(
        &mut self,
        context: &Context,
        bounds: StackBounds,
        host: &H,
        rows: &RowCache<'_>,
        (tag, way, changed): (u64, Option<usize>, Option<u64>),
    ) -> Captured {
        let captured = self.kept.capture(context, bounds, host, rows);
        let set = self.set(tag);
        if let Some(way) = way
            && let Some(addr) = changed
            && let Some(fork) = self.forks.get_mut(top(tag, LOG2_FORKS))
            && fork.tag != tag
        {
            *fork = Fork { tag, addr };
            // It leads to others now.
            if let Some(place) = self.tags.get_mut(set).and_then(|ways| ways.get_mut(way)) {
                *place = 0;
            }
            return captured;
        }
        if let Some(way) = way.or_else(|| self.adopt(tag))
            && let Some(snapshot) = self.snapshots.get_mut(set).and_then(|s| s.get_mut(way))
            && !snapshot.take(context, captured, &self.kept)
            && let Some(place) = self.tags.get_mut(set).and_then(|ways| ways.get_mut(way))
        {
            *place = 0;
        }
        captured
    }

    /// A way for `tag`, if this is not its first time.
    fn adopt(&mut self, tag: u64) -> Option<usize> {
        let seen = self.seen.get_mut(top(tag, LOG2_FORKS))?;
        // The lowest bit is always 1.
        let short = (tag >> 1) as u32;
        let [first, second, third, fourth] = *seen;
        *seen = [short, first, second, third];
        if ![first, second, third, fourth].contains(&short) {
            return None;
        }
        let set = self.set(tag);
        let turn = self.turn.get_mut(set)?;
        let way = usize::from(*turn) % WAYS;
        *turn = turn.wrapping_add(1);
        *self.tags.get_mut(set)?.get_mut(way)? = tag;
        Some(way)
    }

    /// Drops all that is known, for a thread that takes over from another; it
    /// is one of `few` or of many.
    pub fn forget(&mut self, few: bool) {
        // What no tag leads to is not read.
        self.tags = [[0; WAYS]; SETS];
        self.log2_sets = if few { LOG2_SETS } else { LOG2_FEW };
        self.kept.clear();
    }

    /// Numbers of frames and slots of the kept stack.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        self.kept.size()
    }
}

impl Snapshot {
    /// The stack, if it is the same again; else the address of the innermost
    /// slot of the thread's own stack that does not hold, if that is why.
    #[inline]
    fn again<H: Host>(
        &self,
        context: &Context,
        host: &H,
        rows: &RowCache<'_>,
    ) -> Result<Captured, Option<u64>> {
        if self.epoch != rows.epoch()
            || (self.foreign && self.memory_epoch != host.memory_epoch())
            || self.context.ip != context.ip
            || self.context.sp != context.sp
            || (self.context.bp != context.bp && !self.any_bp)
        {
            return Err(None);
        }
        match stack::last_changed(&self.slots, (0, usize::from(self.len))) {
            None => Ok(self.captured),
            Some(_) if self.foreign => Err(None),
            Some(at) => Err(self.slots.get(at).map(|slot| slot.addr)),
        }
    }

    /// Copies what `kept` has just captured at `context`; false if it does not
    /// fit.
    fn take(&mut self, context: &Context, captured: Captured, kept: &StackCache) -> bool {
        let last = kept.last();
        let Some(place) = self.slots.get_mut(..last.slots.len()) else {
            return false;
        };
        place.copy_from_slice(last.slots);
        self.len = last.slots.len() as u16;
        self.context = *context;
        self.captured = captured;
        self.any_bp = last.any_bp;
        self.foreign = last.foreign;
        self.epoch = last.epoch;
        self.memory_epoch = last.memory_epoch;
        true
    }
}
