//! Memory for the live-block table: blocks of 2^k bytes out of one area of
//! the segment.

use crate::interleave::point;
use crate::lock::{self, Yield};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use leakscope_wire::Segment;
use leakscope_wire::layout::{Area, word};

/// Smallest block: 1 KiB.
pub const MIN_LOG2: u32 = 10;
/// Blocks from this size on are given back to the kernel while unused.
const PUNCH_LOG2: u32 = 16;

/// Gives the pages behind `words` back to the kernel; they read as zero
/// afterwards. False when it could not.
pub type Punch = fn(words: &[AtomicU64]) -> bool;

/// The area and its free lists.
#[derive(Clone, Copy)]
pub struct Heap<'a> {
    segment: Segment<'a>,
    words: &'a [AtomicU64],
    give_way: Yield,
    punch: Punch,
}

impl<'a> Heap<'a> {
    /// The heap of `segment`.
    pub fn new(segment: Segment<'a>, give_way: Yield, punch: Punch) -> Heap<'a> {
        Heap {
            segment,
            words: segment.words(Area::Heap),
            give_way,
            punch,
        }
    }

    /// The `2^log2` bytes at byte `offset` of the area, as words; empty when
    /// they do not lie inside.
    #[inline]
    pub fn words(&self, offset: u64, log2: u32) -> &'a [AtomicU64] {
        let start = (offset / 8) as usize;
        let len = 1usize.checked_shl(log2.wrapping_sub(3)).unwrap_or(0);
        match start.checked_add(len) {
            Some(end) if end <= self.words.len() => self.words.get(start..end).unwrap_or(&[]),
            _ => outside(),
        }
    }

    /// A zeroed block of `2^log2` bytes: its offset, or `None` when full.
    pub fn take(&self, log2: u32) -> Option<u64> {
        let log2 = log2.max(MIN_LOG2);
        let held = lock::acquire(self.segment.word(word::HEAP_LOCK), self.give_way)?;
        let head = self.list(log2)?;
        let first = head.load(Relaxed);
        if first != 0 {
            let offset = first - 1;
            let block = self.words(offset, log2);
            point();
            head.store(block.first().map_or(0, |w| w.load(Relaxed)), Relaxed);
            drop(held);
            if log2 >= PUNCH_LOG2 {
                // Only the link was written since the pages were given back.
                if let Some(link) = block.first() {
                    link.store(0, Relaxed);
                }
            } else {
                for w in block {
                    w.store(0, Relaxed);
                }
            }
            return Some(offset);
        }
        let next = self.segment.word(word::HEAP_NEXT);
        let offset = next.load(Relaxed);
        let end = offset.checked_add(1 << log2)?;
        if end > self.segment.layout().area(Area::Heap).1 {
            return None;
        }
        next.store(end, Relaxed);
        Some(offset)
    }

    /// Gives a block back.
    pub fn give(&self, offset: u64, log2: u32) {
        let block = self.words(offset, log2);
        if log2 >= PUNCH_LOG2 && !(self.punch)(block) {
            for w in block {
                w.store(0, Relaxed);
            }
        }
        let Some(_held) = lock::acquire(self.segment.word(word::HEAP_LOCK), self.give_way) else {
            return;
        };
        if let (Some(head), Some(link)) = (self.list(log2), block.first()) {
            link.store(head.load(Relaxed), Relaxed);
            point();
            head.store(offset + 1, Relaxed);
        }
    }

    fn list(&self, log2: u32) -> Option<&'a AtomicU64> {
        (log2 < 40).then(|| self.segment.word(word::FREE_LISTS + log2 as usize))
    }
}

/// A branch that is not taken, rather than an empty slice chosen each time.
#[cold]
#[inline(never)]
fn outside<'a>() -> &'a [AtomicU64] {
    &[]
}
