//! Per-thread counters, so that no event touches a cache line that another
//! thread writes.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use leakscope_wire::Segment;
use leakscope_wire::layout::{Area, thread, word};

/// Live bytes a thread may gather before it tells the others. The peak of a
/// single-threaded program is exact; with n threads it can be off by n times
/// this.
const FLUSH_BYTES: i64 = 64 << 10;

const IN_USE: u64 = 1;
const ENDED: u64 = 2;

/// The words of a row.
pub type Row = [AtomicU64; thread::WORDS];

/// Counts in `row`, its thread's own, an allocation that is not followed: its
/// release will not be seen as such.
#[inline(always)]
pub fn count_allocation(row: &Row, bytes: u64) {
    bump(&row[thread::ALLOCATIONS], 1);
    bump(&row[thread::BYTES], bytes);
}

/// Counts in `row`, its thread's own, the release of a block that was not
/// followed.
#[inline(always)]
pub fn count_release(row: &Row) {
    bump(&row[thread::FREES], 1);
}

/// One thread's row in the segment.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    segment: Segment<'a>,
    row: &'a Row,
    index: u16,
}

impl<'a> Slot<'a> {
    /// Takes a row for the thread whose control block is `tcb`: one whose
    /// thread ended with the same control block, a free one, or the oldest
    /// ended one. `None` when all are in use.
    pub fn claim(segment: Segment<'a>, tcb: u64) -> Option<Slot<'a>> {
        let rows = segment.words(Area::Threads);
        let count = segment.word(word::THREAD_NEXT);
        let known = (count.load(Relaxed) as usize).min(thread::COUNT);
        // The same stack, used again: its words are live again.
        for (index, row) in rows.chunks_exact(thread::WORDS).enumerate().take(known) {
            if row.get(thread::TCB).is_some_and(|t| t.load(Relaxed) == tcb)
                && let Some(slot) = take(segment, row, index, ENDED, tcb)
            {
                return Some(slot);
            }
        }
        for (index, row) in rows
            .chunks_exact(thread::WORDS)
            .enumerate()
            .take(thread::COUNT)
        {
            if let Some(slot) = take(segment, row, index, 0, tcb) {
                count.fetch_max(index as u64 + 1, Relaxed);
                return Some(slot);
            }
        }
        for (index, row) in rows
            .chunks_exact(thread::WORDS)
            .enumerate()
            .take(thread::COUNT)
        {
            if let Some(slot) = take(segment, row, index, ENDED, tcb) {
                return Some(slot);
            }
        }
        None
    }

    /// The row at `index`, which this thread claimed before.
    #[inline]
    pub fn at(segment: Segment<'a>, index: u16) -> Option<Slot<'a>> {
        let start = usize::from(index) * thread::WORDS;
        let row = segment
            .words(Area::Threads)
            .get(start..start + thread::WORDS)?;
        Some(Slot {
            segment,
            row: row.try_into().ok()?,
            index,
        })
    }

    /// Its position.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Counts an allocation of `bytes`, which stands for `live` bytes: the
    /// same, but in a sample.
    #[inline]
    pub fn allocated(&self, bytes: u64, live: u64) {
        count_allocation(self.row, bytes);
        self.live(live as i64);
    }

    /// Its words.
    pub fn row(&self) -> &'a Row {
        self.row
    }

    /// Counts a release of what stood for `live` bytes.
    #[inline]
    pub fn freed(&self, live: u64) {
        count_release(self.row);
        self.live((live as i64).wrapping_neg());
    }

    /// The allocation that was counted with `before` bytes, standing for so
    /// many, had `now`.
    pub fn resized(&self, before: (u64, u64), now: (u64, u64)) {
        bump(&self.row[thread::BYTES], now.0.wrapping_sub(before.0));
        self.live((now.1 as i64).wrapping_sub(before.1 as i64));
    }

    /// Live bytes changed without an allocation or a release.
    #[inline]
    pub fn live(&self, change: i64) {
        let delta = &self.row[thread::DELTA];
        let now = (delta.load(Relaxed) as i64).wrapping_add(change);
        delta.store(now as u64, Relaxed);
        let peak = &self.row[thread::DELTA_PEAK];
        if now > peak.load(Relaxed) as i64 {
            peak.store(now as u64, Relaxed);
        }
        if !(-FLUSH_BYTES..=FLUSH_BYTES).contains(&now) {
            self.flush();
        }
    }

    #[cold]
    fn flush(&self) {
        let live = self.segment.word(word::LIVE_BYTES);
        let delta = self.row[thread::DELTA].swap(0, Relaxed);
        let rise = self.row[thread::DELTA_PEAK].swap(0, Relaxed) as i64;
        let before = live.fetch_add(delta, Relaxed) as i64;
        let peak = before.saturating_add(rise.max(0)).max(0) as u64;
        self.segment.word(word::PEAK_BYTES).fetch_max(peak, Relaxed);
    }

    /// Adds the row to the totals of ended threads and marks it ended.
    pub fn retire(&self) {
        self.flush();
        for (row, total) in [
            (thread::ALLOCATIONS, word::RETIRED_ALLOCATIONS),
            (thread::FREES, word::RETIRED_FREES),
            (thread::BYTES, word::RETIRED_BYTES),
        ] {
            if let Some(counter) = self.row.get(row) {
                self.segment
                    .word(total)
                    .fetch_add(counter.swap(0, Relaxed), Relaxed);
            }
        }
        self.row[thread::STATUS].store(ENDED, Relaxed);
    }
}

/// Only the owning thread writes its row, so no read-modify-write is needed.
#[inline]
fn bump(word: &AtomicU64, by: u64) {
    word.store(word.load(Relaxed).wrapping_add(by), Relaxed);
}

fn take<'a>(
    segment: Segment<'a>,
    row: &'a [AtomicU64],
    index: usize,
    from: u64,
    tcb: u64,
) -> Option<Slot<'a>> {
    let row: &[AtomicU64; thread::WORDS] = row.try_into().ok()?;
    row[thread::STATUS]
        .compare_exchange(from, IN_USE, Relaxed, Relaxed)
        .ok()?;
    row[thread::TCB].store(tcb, Relaxed);
    Some(Slot {
        segment,
        row,
        index: index as u16,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use leakscope_wire::Reader;

    #[test]
    fn one_thread_has_an_exact_peak() {
        let memory = Memory::new();
        let slot = Slot::claim(memory.segment(), 0x7000).unwrap();
        for _ in 0..101 {
            slot.allocated(1009, 1009);
        }
        for _ in 0..101 {
            slot.freed(1009);
        }
        slot.allocated(31, 31);
        let t = Reader::new(memory.segment()).totals();
        assert_eq!(
            (t.allocations, t.frees, t.bytes, t.peak),
            (102, 101, 101 * 1009 + 31, 101 * 1009)
        );
    }

    #[test]
    fn ended_threads_keep_counting_and_their_rows_come_back() {
        let memory = Memory::new();
        let a = Slot::claim(memory.segment(), 0x1000).unwrap();
        let b = Slot::claim(memory.segment(), 0x2000).unwrap();
        a.allocated(23, 23);
        b.allocated(37, 37);
        a.retire();
        assert_eq!(Reader::new(memory.segment()).totals().bytes, 60);
        let states: std::vec::Vec<_> = Reader::new(memory.segment()).threads().collect();
        assert_eq!(states, [(0x1000, false), (0x2000, true)]);
        let again = Slot::claim(memory.segment(), 0x1000).unwrap();
        assert_eq!(again.index(), a.index());
        for i in 0..thread::COUNT as u64 {
            Slot::claim(memory.segment(), 0x10_0000 + i);
        }
        assert!(Slot::claim(memory.segment(), 0x9000).is_none());
        again.retire();
        assert!(Slot::claim(memory.segment(), 0x9000).is_some());
    }
}
