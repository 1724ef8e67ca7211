//! From the segment's words to a [`LiveTable`].

use leakscope_model::{
    Addr, Family, FdRecord, FreeSite, HeapTotals, LiveBlock, LiveMapping, LiveTable, LossCounters,
    ModuleId, Range, RawFrame, RecordedError, RecordedErrorKind, RecordedModule, RootHints,
    StackId, StackTable, ThreadState,
};
use leakscope_wire::layout::{FD_COUNT, error, granule, page, word};
use leakscope_wire::{Block, Reader, entry};

/// Whether a thread waits inside the recorder for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asking {
    /// Yes: its state at entry is in the header.
    Yes,
    /// No: the process was stopped anywhere, or is dead.
    No,
}

/// Copies everything that the recorder knows.
pub(crate) fn table(reader: &Reader<'_>, asking: Asking) -> LiveTable {
    let sample = reader.word(word::SAMPLE_BYTES);
    let now = reader.word(word::CLOCK);
    let blocks = reader.blocks();
    let mut blocks = ascending(blocks.map(|b| live_block(&b, now, sample)).collect());
    // A block may be met twice where the recorder was stopped while it moved
    // entries; both copies are the same block.
    blocks.dedup_by_key(|block| block.addr);

    let (application, allocator): (Vec<_>, Vec<_>) = reader.mappings().partition(|m| !m.allocator);
    let mut mappings: Vec<LiveMapping> = application
        .iter()
        .map(|m| LiveMapping {
            addr: Addr(m.addr),
            len: m.len,
            stack: StackId(m.stack),
        })
        .collect();
    mappings.sort_unstable_by_key(|m| m.addr);

    let totals = reader.totals();
    LiveTable {
        blocks,
        mappings,
        stacks: stacks(reader),
        modules: modules(reader),
        totals: HeapTotals {
            allocations: totals.allocations,
            frees: totals.frees,
            allocated_bytes: totals.bytes,
            peak_bytes: totals.peak,
        },
        free_sites: reader
            .pairs()
            .map(|pair| FreeSite {
                allocated: StackId(pair.allocated),
                freed: StackId(pair.freed),
                count: pair.hits,
                lifetime_sum_cs: pair.lifetime_cs,
            })
            .collect(),
        fds: (0..FD_COUNT as u32)
            .filter_map(|fd| {
                reader.fd(fd).map(|stack| FdRecord {
                    fd,
                    stack: StackId(stack),
                })
            })
            .collect(),
        errors: reader
            .errors()
            .filter_map(|row| wrong_release(&row))
            .collect(),
        losses: LossCounters {
            dropped_events: reader.word(word::DROPPED),
            unknown_frees: reader.word(word::UNKNOWN_FREES),
            cut_stacks: reader.word(word::CUT_STACKS),
            deep_stacks: reader.word(word::DEEP_STACKS),
        },
        sampled_every_bytes: (sample > 0).then_some(sample),
        hints: RootHints {
            own: reader.own().map(|(a, b)| Range::new(a, b)).collect(),
            allocator_mappings: allocator
                .iter()
                .map(|m| Range::new(m.addr, m.addr.saturating_add(m.len)))
                .collect(),
            ended_threads: reader
                .threads()
                .filter(|(_, running)| !running)
                .map(|(tcb, _)| Addr(tcb))
                .collect(),
            declared_roots: reader.roots().map(|(a, b)| Range::new(a, b)).collect(),
            asking: (asking == Asking::Yes).then(|| asking_thread(reader)),
        },
    }
}

/// Most blocks of a page that are sorted by insertion: as many as it has room
/// for, at multiples of 8.
const PAGE_BLOCKS: usize = 1 << (page::SHIFT - 3);
/// log2 of the stretches of memory whose pages the recorder keeps together.
const STRETCH_SHIFT: u32 = granule::SHIFT + granule::GROUP.trailing_zeros();
/// Fewest blocks of a run, on average, for which runs are put in order as
/// wholes.
const RUN: usize = 16;

/// Sorts by address. The recorder keeps the blocks of each page of memory
/// together and nearly ascending, and the pages of each larger stretch
/// together and ascending: blocks are a few places away from their own, and
/// stretches are out of order. Moving both costs a fraction of a sort.
fn ascending(mut blocks: Vec<LiveBlock>) -> Vec<LiveBlock> {
    let same = |a: &LiveBlock, b: &LiveBlock, shift: u32| a.addr.0 >> shift == b.addr.0 >> shift;
    for together in blocks.chunk_by_mut(|a, b| same(a, b, page::SHIFT)) {
        if together.len() <= PAGE_BLOCKS {
            sort_nearly_sorted(together);
        }
    }
    if blocks.is_sorted_by_key(|block| block.addr) {
        return blocks;
    }
    let most = blocks.len() / RUN;
    let mut runs: Vec<&[LiveBlock]> = blocks
        .chunk_by(|a, b| a.addr <= b.addr && same(a, b, STRETCH_SHIFT))
        .take(most + 1)
        .collect();
    if runs.len() <= most {
        let first = |run: &[LiveBlock]| run.first().map(|block| block.addr);
        let last = |run: &[LiveBlock]| run.last().map(|block| block.addr);
        runs.sort_unstable_by_key(|run| first(run));
        if runs.is_sorted_by(|a, b| last(a) <= first(b)) {
            return runs.concat();
        }
    }
    blocks.sort_unstable_by_key(|block| block.addr);
    blocks
}

/// Insertion sort: a step per block and per place that one is away.
fn sort_nearly_sorted(blocks: &mut [LiveBlock]) {
    for end in 2..=blocks.len() {
        let mut rest = blocks.get_mut(..end).unwrap_or_default();
        while let [.., before, last] = rest
            && before.addr > last.addr
        {
            std::mem::swap(before, last);
            let shorter = rest.len() - 1;
            rest = rest.get_mut(..shorter).unwrap_or_default();
        }
    }
}

fn live_block(block: &Block, now: u64, sample: u64) -> LiveBlock {
    let age = now.saturating_sub(block.born_cs);
    LiveBlock {
        addr: Addr(block.addr),
        size: block.size,
        stack: StackId(block.stack),
        family: family(block.flags & entry::FAMILY_MASK),
        ignored: block.flags & entry::IGNORED != 0,
        age_cs: u32::try_from(age).unwrap_or(u32::MAX),
        weight: weight(block.size, sample) as f32,
    }
}

/// How many blocks a sampled one stands for: bytes are sampled as a Poisson
/// process of one sample per `mean` bytes, so a block of `size` bytes is met
/// with probability 1 - exp(-size/mean).
fn weight(size: u64, mean: u64) -> f64 {
    if mean == 0 {
        return 1.0;
    }
    // A block of no bytes takes room for one.
    let chance = -(-(size.max(1) as f64) / mean as f64).exp_m1();
    if chance > 0.0 { 1.0 / chance } else { 1.0 }
}

fn family(code: u32) -> Family {
    match code {
        entry::FAMILY_NEW => Family::New,
        entry::FAMILY_NEW_ARRAY => Family::NewArray,
        _ => Family::Malloc,
    }
}

fn stacks(reader: &Reader<'_>) -> StackTable {
    let nodes = (0..reader.node_count()).map(|id| {
        let node = reader.node(id);
        let frame = RawFrame {
            module: ModuleId(node.module),
            pc: Addr(node.pc),
        };
        (StackId(node.parent), frame)
    });
    StackTable::new(nodes.collect())
}

fn modules(reader: &Reader<'_>) -> Vec<RecordedModule> {
    reader
        .modules()
        .map(|row| RecordedModule {
            path: reader.string(row.path).collect(),
            start: Addr(row.start),
            end: Addr(row.end.max(row.start)),
            bias: row.bias,
            build_id: Some(reader.string(row.build_id).collect::<Vec<u8>>())
                .filter(|id| !id.is_empty()),
            loaded: row.loaded,
        })
        .collect()
}

fn wrong_release(row: &leakscope_wire::ErrorRow) -> Option<RecordedError> {
    let kind = match row.kind {
        error::DOUBLE_FREE => RecordedErrorKind::DoubleFree,
        error::INVALID_FREE => RecordedErrorKind::InvalidFree,
        error::MISMATCHED => RecordedErrorKind::MismatchedFree {
            allocated: family(row.allocated_family),
            released: family(row.released_family),
        },
        _ => return None,
    };
    let [stack, allocated, freed] = row.stacks.map(StackId);
    Some(RecordedError {
        kind,
        addr: Addr(row.addr),
        stack,
        allocated,
        freed,
        count: row.hits.max(1),
    })
}

/// The asking thread as it entered the recorder. Its id is one of its own
/// namespace: ours is found by the thread control block.
fn asking_thread(reader: &Reader<'_>) -> ThreadState {
    ThreadState {
        tid: u32::try_from(reader.word(word::ASK_TID)).unwrap_or(0),
        sp: Addr(reader.word(word::ASK_SP)),
        tcb: Addr(reader.word(word::ASK_TCB)),
        registers: (0..word::ASK_REGS_LEN)
            .map(|i| reader.word(word::ASK_REGS + i))
            .collect(),
        in_syscall: false,
    }
}

/// The suppressions that the program brought along (LSan's
/// `__lsan_default_suppressions`); empty when there are none.
pub(crate) fn own_suppressions(reader: &Reader<'_>) -> Vec<u8> {
    let place = reader.word(word::LSAN_SUPPRESSIONS);
    reader
        .string(((place >> 32) as u32, place as u32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Orders, SharedSegment};
    use leakscope_wire::layout::{Area, module};
    use std::sync::atomic::Ordering::Relaxed;

    fn store(words: &[std::sync::atomic::AtomicU64], at: usize, value: u64) {
        words[at].store(value, Relaxed);
    }

    #[test]
    fn converts_what_a_recorder_wrote() {
        let (made, _file) = SharedSegment::create(512 << 20, &Orders::default()).unwrap();
        let segment = made.segment();
        let granules = segment.words(Area::Granules);
        let heap = segment.words(Area::Heap);
        // The granules' pages at offsets 4096 and 8192, the slots of the first
        // page of each at 16384 and 16448; one block twice.
        for (number, pages, slots) in [(0x700, 4096, 16384), (0x500, 8192, 16448)] {
            let slot = granule::home(number);
            let group = slot / granule::GROUP;
            segment.header()[word::GROUPS + group / 64].fetch_or(1 << (group % 64), Relaxed);
            let row = slot * granule::WORDS;
            store(granules, row + granule::KEY, number + 1);
            store(granules, row + granule::PAGES, pages + 1);
            let packed = page::pack(slots, 2, page::MIN_LOG2);
            store(heap, pages as usize / 8, packed);
        }
        for (slot, addr, flags) in [
            (0, 0x7000_0010, entry::FAMILY_NEW),
            (5, 0x5000_0020, entry::IGNORED),
            (3, 0x7000_0010, entry::FAMILY_NEW),
        ] {
            store(heap, 2048 + slot * 2, entry::key(addr, 13));
            store(heap, 2049 + slot * 2, entry::value(1, flags, 31));
        }
        store(segment.header(), word::CLOCK, 113);
        store(segment.header(), word::NODE_NEXT, 2);
        store(
            segment.words(Area::Nodes),
            2,
            entry::node::frame(0, 0x40_1234),
        );
        store(segment.header(), word::MODULE_NEXT, 1);
        let rows = segment.words(Area::Modules);
        store(rows, module::START, 0x40_0000);
        store(rows, module::END, 0x41_0000);
        store(rows, module::PATH, 7 << 32 | 4);
        store(rows, module::STATUS, 1);
        for (at, byte) in b"/a.x".iter().enumerate() {
            segment.bytes(Area::Strings)[7 + at].store(*byte, Relaxed);
        }
        let table = table(&made.reader(), Asking::No);
        let blocks: Vec<_> = table
            .blocks
            .iter()
            .map(|b| (b.addr.0, b.size, b.family, b.ignored, b.age_cs))
            .collect();
        assert_eq!(
            blocks,
            [
                (0x5000_0020, 31, Family::Malloc, true, 100),
                (0x7000_0010, 31, Family::New, false, 100),
            ]
        );
        let frames: Vec<_> = table.stacks.frames(StackId(1)).collect();
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].pc, Addr(0x40_1234));
        assert_eq!(table.modules[0].path, b"/a.x");
        assert!(table.modules[0].build_id.is_none());
        assert!(table.hints.asking.is_none());
    }

    #[test]
    fn a_hostile_segment_only_gives_wrong_numbers() {
        let (made, _file) = SharedSegment::create(512 << 20, &Orders::default()).unwrap();
        let segment = made.segment();
        for word in segment.header() {
            word.store(u64::MAX, Relaxed);
        }
        for area in [Area::Granules, Area::Modules, Area::Errors, Area::Threads] {
            for word in segment.words(area) {
                word.store(u64::MAX, Relaxed);
            }
        }
        let table = table(&made.reader(), Asking::Yes);
        assert!(table.blocks.is_empty());
        assert!(own_suppressions(&made.reader()).len() <= 65536);
    }

    #[test]
    fn blocks_come_out_ascending_however_they_lay() {
        let make = |addr: u64| {
            let block = Block {
                addr: addr * 16,
                size: addr,
                stack: 0,
                flags: 0,
                born_cs: 0,
            };
            live_block(&block, 0, 0)
        };
        let run = |range: std::ops::Range<u64>| range.map(make).collect::<Vec<_>>();
        let shuffled_pages = |mut blocks: Vec<LiveBlock>| {
            for page in blocks.chunk_by_mut(|a, b| a.addr.0 >> 12 == b.addr.0 >> 12) {
                page.rotate_left(3.min(page.len()));
                page.reverse();
            }
            blocks
        };
        let mut scattered = run(0..1009);
        scattered.sort_by_key(|block| block.addr.0.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let cases = [
            vec![],
            run(7..8),
            run(0..1009),
            [run(500..1009), run(0..499)].concat(),
            [run(700..1009), run(0..300), run(300..700)].concat(),
            // Overlapping runs, and a block met twice.
            [run(300..800), run(0..301), run(500..600)].concat(),
            [run(3..4), run(2..3), run(1..2)].concat(),
            shuffled_pages(run(0..1009)),
            shuffled_pages([run(512..1009), run(0..512)].concat()),
            shuffled_pages([run(700..1009), run(0..700)].concat()),
            // Stretches out of order, of which neighbours ascend.
            [5, 7, 2, 9]
                .map(|s| run((s << 22)..(s << 22) + 31))
                .concat(),
            // More blocks at one place than a page can hold.
            std::iter::repeat_n(run(0..97), 7).flatten().collect(),
            scattered,
        ];
        for blocks in cases {
            let mut expected = blocks.clone();
            expected.sort_by_key(|block| block.addr);
            assert_eq!(ascending(blocks), expected);
        }
    }

    #[test]
    fn weights_are_inverse_chances() {
        assert_eq!(weight(37, 0), 1.0);
        assert!((weight(524_288, 524_288) - 1.581_976).abs() < 1e-5);
        assert!((weight(1, 524_288) - 524_288.5).abs() < 0.1);
        assert!((weight(1 << 40, 4096) - 1.0).abs() < 1e-12);
    }
}
