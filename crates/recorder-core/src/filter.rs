//! Which addresses may be in the sample: the question of every release in
//! sampled mode, nearly always answered with no.

use core::sync::atomic::{AtomicU8, Ordering::Relaxed};

const LOG2_PLACES: u32 = 16;
const PLACES: usize = 1 << LOG2_PLACES;
/// A count that was reached stays: then it is not known when to say no again.
const FULL: u8 = u8::MAX;

/// A set of addresses that never misses a member: counters by hash (Fan, Cao,
/// Almeida and Broder, Summary Cache, 2000). 64 KiB, which the caches keep; with
/// 2 000 members 3 % of other addresses seem to belong.
pub struct Filter([AtomicU8; PLACES]);

impl Default for Filter {
    fn default() -> Filter {
        Filter::new()
    }
}

impl Filter {
    /// No address.
    pub const fn new() -> Filter {
        Filter([const { AtomicU8::new(0) }; PLACES])
    }

    #[inline(always)]
    fn place(&self, addr: u64) -> Option<&AtomicU8> {
        // 2^64 / golden ratio, odd (Knuth, The Art of Computer Programming 3,
        // 6.4).
        let hash = addr.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0.get((hash >> (64 - LOG2_PLACES)) as usize)
    }

    /// False only if `addr` is not a member.
    #[inline(always)]
    pub fn may_hold(&self, addr: u64) -> bool {
        self.place(addr)
            .is_none_or(|count| count.load(Relaxed) != 0)
    }

    /// Adds an address. One that is added twice must be removed twice.
    pub fn add(&self, addr: u64) {
        let more = |count| (count != FULL).then(|| count + 1);
        if let Some(count) = self.place(addr) {
            // Full is as good as one more.
            let _ = count.fetch_update(Relaxed, Relaxed, more);
        }
    }

    /// Removes an address that was added.
    pub fn remove(&self, addr: u64) {
        let less = |count| (count != FULL && count != 0).then(|| count - 1);
        if let Some(count) = self.place(addr) {
            let _ = count.fetch_update(Relaxed, Relaxed, less);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::vec::Vec;

    #[test]
    fn members_are_never_missed() {
        let filter = Filter::new();
        let mut members: BTreeMap<u64, u32> = BTreeMap::new();
        let mut state = 7u64;
        for _ in 0..200_003 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let addr = (state >> 40) << 4;
            match members.get_mut(&addr) {
                Some(times) if state >> 33 & 1 == 0 => {
                    filter.remove(addr);
                    *times -= 1;
                    if *times == 0 {
                        members.remove(&addr);
                    }
                }
                _ => {
                    filter.add(addr);
                    *members.entry(addr).or_default() += 1;
                }
            }
        }
        assert!(members.keys().all(|addr| filter.may_hold(*addr)));
    }

    #[test]
    fn few_others_seem_to_belong() {
        let filter = Filter::new();
        let members: Vec<u64> = (0..2000)
            .map(|i| 0x5555_0000_0000 + i * 4096 * 31)
            .collect();
        members.iter().for_each(|addr| filter.add(*addr));
        let others = (0..100_000u64).map(|i| 0x7f00_0000_0010 + i * 48);
        let taken = others.filter(|addr| filter.may_hold(*addr)).count();
        assert!(taken < 6000, "{taken}");
        members.iter().for_each(|addr| filter.remove(*addr));
        assert!(!members.iter().any(|addr| filter.may_hold(*addr)));
    }

    #[test]
    fn a_full_place_stays() {
        let filter = Filter::new();
        (0..300).for_each(|_| filter.add(16));
        (0..300).for_each(|_| filter.remove(16));
        assert!(filter.may_hold(16));
        filter.remove(32);
        assert!(!filter.may_hold(32));
    }
}
