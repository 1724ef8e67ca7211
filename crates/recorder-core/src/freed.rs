//! What was freed lately, and where blocks of a site are usually freed.

use core::sync::atomic::Ordering::Relaxed;
use leakscope_wire::layout::{Area, freed, pair};
use leakscope_wire::{Segment, entry};

/// Frees of a site whose stack is always taken; later ones by lot.
const ALWAYS: u8 = 16;
/// Of later frees, one in this many has its stack taken.
const ONE_IN: u32 = 256;
/// Slots searched for a pair before it is dropped.
const PROBES: usize = 16;

/// A recently freed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// Allocating stack.
    pub allocated: u32,
    /// Freeing stack; 0 when it was not taken.
    pub freed: u32,
}

/// True when the stack of this free should be taken: always for a site's
/// first ones, then by lot. `lot` is any random number.
#[inline]
pub fn wants_stack(segment: &Segment<'_>, allocated: u32, lot: u32) -> bool {
    let Some(seen) = segment.bytes(Area::Seen).get(allocated as usize) else {
        return false;
    };
    let count = seen.load(Relaxed);
    if count < ALWAYS {
        seen.store(count + 1, Relaxed);
        return true;
    }
    lot.is_multiple_of(ONE_IN)
}

/// Notes that `addr` was freed by thread number `thread`.
#[inline]
pub fn remember(segment: &Segment<'_>, thread: u16, addr: u64, past: Past) {
    let at = slot(usize::from(thread) % freed::PARTS, addr);
    if let Some([key, stacks]) = segment.words(Area::Freed).get(at..at + freed::WORDS) {
        stacks.store(
            u64::from(past.allocated) << 32 | u64::from(past.freed),
            Relaxed,
        );
        key.store(addr, Relaxed);
    }
}

/// What is remembered about `addr`.
pub fn recall(segment: &Segment<'_>, addr: u64) -> Option<Past> {
    let rows = segment.words(Area::Freed);
    (0..freed::PARTS).find_map(|part| {
        let at = slot(part, addr);
        let [key, stacks] = rows.get(at..at + freed::WORDS)? else {
            return None;
        };
        let stacks = stacks.load(Relaxed);
        (key.load(Relaxed) == addr).then_some(Past {
            allocated: (stacks >> 32) as u32,
            freed: stacks as u32,
        })
    })
}

/// log2 of the rows in a page of the pairs.
const PAGE_ROWS: u32 = 7;
/// The same, of the freed blocks.
const PAGE_FREED: u32 = 8;

/// First word of the row of `addr` in a part. Blocks of one page of the target
/// share a page of rows, so that a small heap touches few.
fn slot(part: usize, addr: u64) -> usize {
    let page = entry::hash(addr >> 12 << 3) >> (64 - (freed::LOG2_COUNT - PAGE_FREED));
    let row = entry::hash(addr) >> (64 - PAGE_FREED);
    (part << freed::LOG2_COUNT | (page << PAGE_FREED | row) as usize) * freed::WORDS
}

/// Where the search for a pair begins. Stacks that were first met one after
/// the other share a page of rows.
fn pair_slot(past: Past) -> usize {
    let near = u64::from(past.allocated >> 6) << 32 | u64::from(past.freed >> 10);
    let exact = u64::from(past.allocated) << 32 | u64::from(past.freed);
    let page = near.wrapping_mul(MIX) >> (64 - (pair::LOG2_COUNT - PAGE_ROWS));
    let row = (exact ^ exact >> 29).wrapping_mul(MIX) >> (64 - PAGE_ROWS);
    (page << PAGE_ROWS | row) as usize
}

/// 2^64 / golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Counts one sampled free of a block of `past.allocated` at `past.freed`
/// after `lifetime_cs` centiseconds.
pub fn count_pair(segment: &Segment<'_>, past: Past, lifetime_cs: u64) {
    let wanted = u64::from(past.allocated) << 32 | u64::from(past.freed);
    if wanted == 0 {
        return;
    }
    let words = segment.words(Area::Pairs);
    let mut at = pair_slot(past);
    for _ in 0..PROBES {
        let start = at * pair::WORDS;
        let Some([key, hits, lifetime, ..]) = words.get(start..start + pair::WORDS) else {
            return;
        };
        let found = match key.compare_exchange(0, wanted, Relaxed, Relaxed) {
            Ok(_) => wanted,
            Err(found) => found,
        };
        if found == wanted {
            hits.fetch_add(1, Relaxed);
            lifetime.fetch_add(lifetime_cs, Relaxed);
            return;
        }
        at = (at + 1) & (pair::COUNT - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use leakscope_wire::Reader;

    #[test]
    fn pairs_add_up_and_the_past_is_kept() {
        let memory = Memory::new();
        let segment = memory.segment();
        let past = Past {
            allocated: 3,
            freed: 5,
        };
        for _ in 0..7 {
            count_pair(&segment, past, 11);
        }
        count_pair(
            &segment,
            Past {
                allocated: 3,
                freed: 6,
            },
            1,
        );
        let mut pairs: std::vec::Vec<_> = Reader::new(segment)
            .pairs()
            .map(|p| (p.allocated, p.freed, p.hits, p.lifetime_cs))
            .collect();
        pairs.sort_unstable();
        assert_eq!(pairs, [(3, 5, 7, 77), (3, 6, 1, 1)]);
        assert_eq!(recall(&segment, 0x1230), None);
        remember(&segment, 4097, 0x1230, past);
        assert_eq!(recall(&segment, 0x1230), Some(past));
    }

    #[test]
    fn small_heaps_touch_few_pages_and_forget_little() {
        // 4096 blocks of 48 bytes: 48 pages of the target.
        let blocks = || (0..4096u64).map(|i| 0x5555_5556_0010 + i * 48);
        let pages: std::collections::HashSet<_> =
            blocks().map(|addr| slot(0, addr) * 8 / 4096).collect();
        assert!(pages.len() <= 48, "{}", pages.len());
        let memory = Memory::new();
        let past = Past {
            allocated: 7,
            freed: 11,
        };
        for addr in blocks() {
            remember(&memory.segment(), 3, addr, past);
        }
        let kept = blocks()
            .filter(|&addr| recall(&memory.segment(), addr).is_some())
            .count();
        assert!(kept > 2048, "{kept}");
    }

    #[test]
    fn pairs_of_many_stacks_find_room() {
        let memory = Memory::new();
        let mut sites = 0;
        for allocated in (5..5000).step_by(17) {
            for k in 0..31 {
                let freed = allocated + 1 + k * 41;
                count_pair(&memory.segment(), Past { allocated, freed }, 1);
                sites += 1;
            }
        }
        let kept = Reader::new(memory.segment()).pairs().count();
        assert!(kept * 100 >= sites * 99, "{kept} of {sites}");
    }

    #[test]
    fn first_frees_are_always_taken() {
        let memory = Memory::new();
        let taken = (1..1000)
            .filter(|i| wants_stack(&memory.segment(), 9, *i))
            .count();
        assert_eq!(taken, usize::from(ALWAYS) + 3);
    }
}
