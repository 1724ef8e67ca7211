//! Where the resident set is: held, lost, kept by the allocator, or none of
//! its business.

use leakscope_heap::Heaps;
use leakscope_heap::glibc::FreePlace;
use leakscope_model::{LiveBlock, LossKind, Range, Residence};

/// What a mapping is to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A stack.
    Stack,
    /// A file's pages.
    File,
    /// Shared memory without a file on disk.
    Shared,
    /// Private anonymous memory.
    Anonymous,
}

/// A mapping and how much of it is in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its addresses.
    pub range: Range,
    /// What it is.
    pub used_as: Use,
    /// Resident bytes.
    pub rss: u64,
    /// Swapped bytes.
    pub swap: u64,
}

const PAGE: u64 = 4096;
/// What malloc keeps of a free chunk that it gives back: its header and links.
const CHUNK_HEAD: u64 = 48;

/// Adds up. `kinds` are those of `blocks`, which are all blocks of the heaps,
/// ascending; `resident` tells how many bytes of a range of heap memory are in
/// RAM.
pub fn residence(
    mappings: &[Mapped],
    heaps: &Heaps,
    blocks: &[LiveBlock],
    kinds: &[LossKind],
    resident: impl Fn(Range) -> u64,
) -> Residence {
    let at = |addr: u64| blocks.partition_point(|b| b.addr.0 < addr);
    let kind = |at: usize| kinds.get(at).copied().unwrap_or(LossKind::Reachable);
    let mut sum = Residence::default();
    let mut in_heaps = 0u64;
    for segment in &heaps.malloc.segments {
        let mut told = 0;
        let first = segment.blocks.first().map_or(0, |block| at(block.addr));
        for (i, block) in segment.blocks.iter().enumerate() {
            let start = block.addr.saturating_sub(16);
            let bytes = resident(Range::new(start, start.saturating_add(block.size + 8)));
            *of_kind(&mut sum, kind(first + i)) += bytes;
            told += bytes;
        }
        for free in &segment.free {
            let bytes = resident(free.chunk);
            let retained = &mut sum.retained;
            *match free.place {
                FreePlace::Cache => &mut retained.caches,
                FreePlace::Fastbin => &mut retained.fastbins,
                FreePlace::Bin => &mut retained.bins,
                FreePlace::Top => &mut retained.top,
            } += bytes;
            told += bytes;
            if matches!(free.place, FreePlace::Bin | FreePlace::Top) {
                let start = (free.chunk.start.0.saturating_add(CHUNK_HEAD)).next_multiple_of(PAGE);
                let end = free.chunk.end.0 & !(PAGE - 1);
                if start < end {
                    sum.trimmable += resident(Range::new(start, end));
                }
            }
        }
        // Thread caches, fence posts, and an arena before its first chunk.
        let whole = resident(segment.range);
        sum.allocator += whole.saturating_sub(told);
        in_heaps += whole.max(told);
    }
    for (range, block) in &heaps.malloc.mapped {
        let bytes = resident(*range);
        *of_kind(&mut sum, kind(at(block.addr))) += bytes;
        in_heaps += bytes;
    }
    for walked in &heaps.others {
        let mut told = 0;
        // In most places nothing of another allocator lies between two blocks.
        let mut next = 0;
        for block in &walked.blocks {
            if blocks.get(next).is_none_or(|b| b.addr.0 != block.addr) {
                next = at(block.addr);
            }
            let bytes = resident(Range::new(
                block.addr,
                block.addr.saturating_add(block.size),
            ));
            *of_kind(&mut sum, kind(next)) += bytes;
            told += bytes;
            next += 1;
        }
        for free in &walked.free {
            let bytes = resident(*free);
            sum.retained.pools += bytes;
            told += bytes;
        }
        let whole = walked.extents.iter().map(|extent| resident(*extent));
        let whole = whole.fold(0, u64::saturating_add);
        sum.allocator += whole.saturating_sub(told);
        in_heaps += whole.max(told);
    }
    for mapped in mappings {
        sum.rss = sum.rss.saturating_add(mapped.rss);
        sum.swap = sum.swap.saturating_add(mapped.swap);
        *match mapped.used_as {
            Use::Stack => &mut sum.stacks,
            Use::File => &mut sum.files,
            Use::Shared => &mut sum.shared,
            Use::Anonymous => &mut sum.other_anonymous,
        } += mapped.rss;
    }
    sum.other_anonymous = sum.other_anonymous.saturating_sub(in_heaps);
    sum
}

fn of_kind(sum: &mut Residence, kind: LossKind) -> &mut u64 {
    match kind {
        LossKind::Definite => &mut sum.definite,
        LossKind::Indirect => &mut sum.indirect,
        LossKind::Possible => &mut sum.possible,
        LossKind::Reachable => &mut sum.reachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_heap::Walked;
    use leakscope_heap::glibc::{self, Found, Free, Segment};
    use leakscope_model::Addr;

    const HEAP: u64 = 0x5555_5555_0000;
    const POOLS: Range = Range {
        start: Addr(0x7100_0000),
        end: Addr(0x7100_1000),
    };

    fn mapped(range: Range, used_as: Use, rss: u64) -> Mapped {
        Mapped {
            range,
            used_as,
            rss,
            swap: 512,
        }
    }

    #[test]
    fn every_resident_byte_is_counted_once() {
        let heap = Range::new(HEAP, HEAP + 0x8000);
        let large = Range::new(0x7000_0000, 0x7000_5000);
        let chunk = |start: u64, len: u64, place| Free {
            chunk: Range::new(HEAP + start, HEAP + start + len),
            place,
        };
        let malloc = glibc::Heaps {
            segments: vec![Segment {
                range: heap,
                arena: 0,
                // A cache of 0x290 bytes before them.
                blocks: vec![
                    Found {
                        addr: HEAP + 0x2a0,
                        size: 0x38,
                    },
                    Found {
                        addr: HEAP + 0x2e0,
                        size: 0x1018,
                    },
                ],
                free: vec![
                    chunk(0x12f0, 0x20, FreePlace::Fastbin),
                    chunk(0x1310, 0x30, FreePlace::Cache),
                    chunk(0x1340, 0x2d00, FreePlace::Bin),
                    chunk(0x4040, 0x3fc0, FreePlace::Top),
                ],
            }],
            mapped: vec![(
                large,
                Found {
                    addr: 0x7000_0010,
                    size: 0x4ff0,
                },
            )],
            ..glibc::Heaps::default()
        };
        let heaps = Heaps {
            malloc,
            others: vec![Walked {
                extents: vec![POOLS],
                blocks: vec![
                    Found {
                        addr: POOLS.start.0 + 0x30,
                        size: 0x40,
                    },
                    Found {
                        addr: POOLS.start.0 + 0x70,
                        size: 0x40,
                    },
                ],
                free: vec![Range::new(POOLS.start.0 + 0xb0, POOLS.end.0)],
                ..Walked::new("pools")
            }],
        };
        let mappings = [
            mapped(heap, Use::Anonymous, 0x7000),
            mapped(large, Use::Anonymous, 0x3000),
            mapped(Range::new(0x1000, 0x9000), Use::File, 0x4000),
            mapped(Range::new(0x10000, 0x20000), Use::Anonymous, 0x1000),
            mapped(Range::new(0x30000, 0x40000), Use::Stack, 0x2000),
            mapped(Range::new(0x50000, 0x60000), Use::Shared, 0x6000),
            mapped(POOLS, Use::Anonymous, 0x1000),
        ];
        let pools = [0x30, 0x70].map(|at| POOLS.start.0 + at);
        let blocks = [0x7000_0010, pools[0], pools[1], HEAP + 0x2a0, HEAP + 0x2e0];
        let blocks = blocks.map(|a| LiveBlock::new(a, 0));
        use LossKind::{Definite, Possible, Reachable};
        let kinds = [Reachable, Definite, Reachable, Definite, Possible];
        // The last page of the heap and the end of the mapped block are not
        // in RAM.
        let resident = |range: Range| {
            let out = [
                Range::new(HEAP + 0x7000, HEAP + 0x8000),
                Range::new(0x7000_3000, 0x7000_5000),
            ];
            let cut = out.iter().filter_map(|o| o.intersect(&range));
            range.len() - cut.map(|r| r.len()).sum::<u64>()
        };
        let sum = residence(&mappings, &heaps, &blocks, &kinds, resident);
        assert_eq!(
            (sum.definite, sum.possible, sum.reachable),
            (0x80, 0x1020, 0x3040)
        );
        let kept = sum.retained;
        assert_eq!(
            (kept.fastbins, kept.caches, kept.bins, kept.top),
            (0x20, 0x30, 0x2d00, 0x2fc0)
        );
        assert_eq!(kept.pools, 0xf50);
        assert_eq!((sum.allocator, sum.other_anonymous), (0x2c0, 0x1000));
        assert_eq!(
            (sum.files, sum.stacks, sum.shared),
            (0x4000, 0x2000, 0x6000)
        );
        // Pages 2, 3 of the bin, 5 and 6 of the top.
        assert_eq!(sum.trimmable, 0x4000);
        assert_eq!(sum.swap, 7 * 512);
        let parts = [
            sum.reachable,
            sum.definite,
            sum.indirect,
            sum.possible,
            sum.retained.total(),
            sum.allocator,
            sum.other_anonymous,
            sum.stacks,
            sum.files,
            sum.shared,
        ];
        assert_eq!(parts.iter().sum::<u64>(), sum.rss);
    }
}
