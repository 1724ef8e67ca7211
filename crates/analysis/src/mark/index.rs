//! From an address to the block that contains it, in one or two cache misses.
//!
//! The address space is cut into granules of 16 MiB. A granule in which
//! blocks start has a table of slots; a slot covers 64 units (a unit is 16
//! bytes, or 8 when some block is only 8-aligned) and holds one bit per unit
//! at which a block starts and the number of blocks that start before it.
//! Bit and rank give the only candidate block without any search:
//!
//! ```text
//! address  =  granule | slot | unit | byte
//! block    =  slot.before + popcount(slot.starts up to and including unit) - 1
//! ```

use leakscope_model::LiveBlock;

/// log2 of the bytes of a granule.
const GRANULE_SHIFT: u32 = 24;
/// User addresses on x86-64 with four-level page tables end here; with five
/// levels they do too unless a program asks for more, and no allocator does.
const ADDRESS_END: u64 = 1 << 47;

#[derive(Clone, Copy, Default)]
struct Slot {
    /// Bit `u`: a block starts at unit `u` of this slot.
    starts: u64,
    /// Number of blocks that start below this slot.
    before: u32,
}

/// What a word may point to, by its address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hit {
    /// Index of the last block that starts at or below the address. The
    /// address may still lie behind that block's end unless `start`.
    pub block: u32,
    /// True when the address is that block's first.
    pub start: bool,
}

/// The index. Answers are exact for the blocks that [`indexable`] accepts.
pub(crate) struct Index {
    /// First address of the first block.
    low: u64,
    /// Length from `low` to the end of the last block.
    span: u64,
    /// Granule number of `directory[0]`.
    first_granule: u64,
    /// Per granule: slot table number plus one in the upper half (0: no
    /// block starts here), blocks that start before it in the lower half.
    /// Plain integers so that untouched pages of it cost nothing.
    directory: Vec<u64>,
    slots: Vec<Slot>,
    /// log2 of the bytes of a unit: 4 or 3.
    unit_shift: u32,
}

/// True when the blocks can be indexed as they are: ascending, 8-aligned,
/// inside the user's half of the address space, fewer than 2^32.
pub(super) fn indexable(blocks: &[LiveBlock]) -> bool {
    blocks.len() < u32::MAX as usize
        && blocks.iter().all(block_is_indexable)
        && blocks.windows(2).all(|w| w[0].addr < w[1].addr)
}

/// The part of [`indexable`] that concerns one block.
pub(super) fn block_is_indexable(block: &LiveBlock) -> bool {
    block.addr.0.is_multiple_of(8) && block.addr.0 < ADDRESS_END
}

impl Index {
    /// Builds the index over blocks that are [`indexable`].
    pub fn new(blocks: &[LiveBlock]) -> Index {
        let low = blocks.first().map_or(0, |b| b.addr.0);
        let end = blocks.last().map_or(0, |b| {
            b.addr.0.saturating_add(b.size.max(1)).min(ADDRESS_END)
        });
        let unit_shift = if blocks.iter().all(|b| b.addr.0.is_multiple_of(16)) {
            4
        } else {
            3
        };
        let first_granule = low >> GRANULE_SHIFT;
        let granules = if blocks.is_empty() {
            0
        } else {
            (((end - 1) >> GRANULE_SHIFT) - first_granule + 1) as usize
        };
        let slots_per_granule = 1usize << (GRANULE_SHIFT - unit_shift - 6);
        let mut directory = vec![0u64; granules];
        let mut slots: Vec<Slot> = Vec::new();

        let mut at = 0;
        while let Some(first) = blocks.get(at) {
            let granule = first.addr.0 >> GRANULE_SHIFT;
            let base = slots.len();
            slots.resize(base + slots_per_granule, Slot::default());
            directory[(granule - first_granule) as usize] =
                ((base / slots_per_granule) as u64 + 1) << 32 | at as u64;
            let mut filled = 0;
            while let Some(block) = blocks.get(at) {
                if block.addr.0 >> GRANULE_SHIFT != granule {
                    break;
                }
                let unit = (block.addr.0 & ((1 << GRANULE_SHIFT) - 1)) >> unit_shift;
                let slot = (unit >> 6) as usize;
                while filled <= slot {
                    slots[base + filled].before = at as u32;
                    filled += 1;
                }
                slots[base + slot].starts |= 1 << (unit & 63);
                at += 1;
            }
            for slot in &mut slots[base + filled..] {
                slot.before = at as u32;
            }
            // Granules in which only the last block continues.
            let previous = &blocks[at - 1];
            let last = previous
                .addr
                .0
                .saturating_add(previous.size.max(1) - 1)
                .min(blocks.get(at).map_or(end - 1, |b| b.addr.0 - 1));
            for inner in granule + 1..=last >> GRANULE_SHIFT {
                if let Some(entry) = directory.get_mut((inner - first_granule) as usize) {
                    *entry = at as u64;
                }
            }
        }
        Index {
            low,
            span: end.saturating_sub(low),
            first_granule,
            directory,
            slots,
            unit_shift,
        }
    }

    /// Lowest indexed address.
    pub fn low(&self) -> u64 {
        self.low
    }

    /// Distance from [`Index::low`] to the highest indexed address.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// The candidate for an address; `None` when no block starts at or below
    /// it near enough to reach it.
    #[inline]
    pub fn find(&self, address: u64) -> Option<Hit> {
        let granule = (address >> GRANULE_SHIFT).wrapping_sub(self.first_granule);
        let entry = *self.directory.get(granule as usize)?;
        let Some(table) = ((entry >> 32) as usize).checked_sub(1) else {
            let block = (entry as u32).checked_sub(1)?;
            return Some(Hit {
                block,
                start: false,
            });
        };
        let unit = (address & ((1 << GRANULE_SHIFT) - 1)) >> self.unit_shift;
        let at = (table << (GRANULE_SHIFT - self.unit_shift - 6)) + (unit >> 6) as usize;
        let slot = self.slots.get(at)?;
        let up_to = slot.starts << (63 - (unit & 63));
        let block = (slot.before + up_to.count_ones()).checked_sub(1)?;
        let offset = address & ((1 << self.unit_shift) - 1);
        Some(Hit {
            block,
            start: up_to >> 63 == 1 && offset == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(list: &[(u64, u64)]) -> Vec<LiveBlock> {
        list.iter()
            .map(|&(addr, size)| LiveBlock::new(addr, size))
            .collect()
    }

    fn check(list: &[(u64, u64)], probes: &[u64]) {
        let blocks = blocks(list);
        let index = Index::new(&blocks);
        for &probe in probes {
            let expected = list.iter().rposition(|&(addr, _)| addr <= probe);
            let hit = index.find(probe);
            let inside = expected.filter(|&i| probe - list[i].0 < list[i].1.max(1));
            if let Some(i) = inside {
                assert_eq!(
                    hit,
                    Some(Hit {
                        block: i as u32,
                        start: probe == list[i].0
                    }),
                    "{probe:#x}"
                );
            } else if let Some(hit) = hit {
                assert_eq!(Some(hit.block as usize), expected, "{probe:#x}");
                assert!(!hit.start);
            }
        }
    }

    #[test]
    fn finds_starts_interiors_and_nothing() {
        let g = 1 << GRANULE_SHIFT;
        let list = [
            (0x1000, 0),
            (0x1010, 31),
            (0x1400, 16),
            (g - 16, 32),
            (3 * g, 5 * g),
            (9 * g + 0x100, 3),
            (0x7fff_0000_0000, 17),
        ];
        let mut probes = vec![0, 8, u64::MAX, 1 << 63];
        for (addr, size) in list {
            for d in [0, 1, 7, 8, 15, 16] {
                probes.extend([addr + d, addr + size + d, (addr + size / 2 + d), addr - d]);
            }
        }
        check(&list, &probes);
    }

    #[test]
    fn eight_aligned_blocks_are_told_apart() {
        let list: Vec<_> = (0..97).map(|i| (0x5000 + 8 * i, 8)).collect();
        let probes: Vec<_> = (0x4f00..0x5400).collect();
        check(&list, &probes);
    }

    #[test]
    fn hostile_sizes_do_not_hurt() {
        check(
            &[
                (0x1000, u64::MAX),
                (0x2000, 8),
                (0x7fff_ffff_fff0, u64::MAX),
            ],
            &[0x2000, 0x2004, 0x7fff_ffff_fff0],
        );
        assert!(Index::new(&[]).find(0x1000).is_none());
        assert!(!indexable(&blocks(&[(0x1004, 4)])));
        assert!(!indexable(&blocks(&[(1 << 47, 4)])));
        assert!(!indexable(&blocks(&[(0x2000, 4), (0x1000, 4)])));
    }
}
