//! Memory for the live-block table: blocks of 2^k bytes out of one area of
//! the segment.

use crate::interleave::point;
use crate::lock::{self, Yield};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use leakscope_wire::Segment;
use leakscope_wire::layout::{Area, page, word};

/// The first bytes are left to the kernel's own way, page by page when they
/// are touched: a small program shall stay small.
const BY_TOUCH: u64 = 256 << 10;
/// From there on memory is asked for in pieces of up to this, which costs a
/// fraction of a fault for each page.
const MOST_AT_ONCE: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Has the kernel give memory to the pages behind `words`, or does nothing.
pub type Prepare = fn(words: &[AtomicU64]);

/// The area and its free lists.
#[derive(Clone, Copy)]
pub struct Heap<'a> {
    segment: Segment<'a>,
    words: &'a [AtomicU64],
    give_way: Yield,
    prepare: Prepare,
}

impl<'a> Heap<'a> {
    /// The heap of `segment`.
    pub fn new(segment: Segment<'a>, give_way: Yield, prepare: Prepare) -> Heap<'a> {
        Heap {
            segment,
            words: segment.words(Area::Heap),
            give_way,
            prepare,
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

    /// A zeroed block of `2^log2` bytes, at least 64: its offset, or `None`
    /// when full.
    pub fn take(&self, log2: u32) -> Option<u64> {
        self.take_zeroing(log2, 1)
    }

    /// The same, but what was used before has only its even words zeroed: the
    /// keys of entries.
    pub fn take_entries(&self, log2: u32) -> Option<u64> {
        self.take_zeroing(log2, 2)
    }

    #[inline]
    fn take_zeroing(&self, log2: u32, each: usize) -> Option<u64> {
        let held = lock::acquire(self.segment.word(word::HEAP_LOCK), self.give_way)?;
        let head = self.list(log2)?;
        let first = head.load(Relaxed);
        if first != 0 {
            let offset = first - 1;
            let block = self.words(offset, log2);
            point();
            head.store(block.first().map_or(0, |w| w.load(Relaxed)), Relaxed);
            drop(held);
            for w in block.iter().step_by(each) {
                w.store(0, Relaxed);
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
        if end > self.segment.word(word::HEAP_READY).load(Relaxed) {
            self.make_ready(end);
        }
        Some(offset)
    }

    /// The area's first `end` bytes are in use, more than were made ready.
    #[cold]
    fn make_ready(&self, end: u64) {
        let from = end.next_multiple_of(PAGE);
        if from < BY_TOUCH {
            return;
        }
        let piece = (from / 8).min(MOST_AT_ONCE) & !(PAGE - 1);
        let to = from + piece;
        self.segment.word(word::HEAP_READY).store(to, Relaxed);
        if let Some(words) = self.words.get((from / 8) as usize..(to / 8) as usize) {
            (self.prepare)(words);
        }
    }

    /// Gives a block back.
    pub fn give(&self, offset: u64, log2: u32) {
        let block = self.words(offset, log2);
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
        (page::MIN_LOG2..40)
            .contains(&log2)
            .then(|| self.segment.word(word::FREE_LISTS + log2 as usize))
    }
}

/// A branch that is not taken, rather than an empty slice chosen each time.
#[cold]
#[inline(never)]
fn outside<'a>() -> &'a [AtomicU64] {
    &[]
}
