//! Where allocators keep blocks: memory that is scanned block by block, when
//! a block is reached, and never as a whole. Freed memory and the allocator's
//! headers there are full of stale pointers.
//!
//! A mapping may hold a heap *and* something else (the kernel joins
//! neighbours), so heaps are cut out of the map, not mappings left out.

use leakscope_heap::glibc::{self, arena_heaps, likely_starts};
use leakscope_heap::regions::{Class, Classified};
use leakscope_heap::words::Words;
use leakscope_memory::ranges::joined;
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{Addr, LiveBlock, Range};

/// Between blocks of an unknown allocator, headers up to this length.
const HEADER: u64 = 64;

/// What [`extents`] needs to know.
pub(super) struct HeapInput<'a> {
    pub memory: &'a dyn MemoryReader,
    pub blocks: &'a [LiveBlock],
    pub regions: &'a [Classified],
    /// glibc's main arenas.
    pub arenas: &'a [glibc::Arena],
    /// Joined: memory known to be an allocator's.
    pub known: &'a [Range],
    /// Stack pointers and thread control blocks of live threads: a mapping
    /// that holds one is not given up to an unknown allocator.
    pub inhabited: &'a [Addr],
}

/// All heaps, joined. Every block lies in one of them.
pub(super) fn extents(input: &HeapInput<'_>) -> Vec<Range> {
    let map = input.memory.map();
    let mut found = brk_heap(input);
    for region in input.regions {
        if matches!(region.class, Class::Anonymous | Class::Bss) {
            found.extend(arena_heaps(input.memory, region.range));
        }
    }
    let found = joined(found);
    let mut words = Words::new(input.memory);
    let mut more: Vec<Range> = Vec::new();
    let (mut in_found, mut in_known) = (Cursor::new(&found), Cursor::new(input.known));
    for block in input.blocks {
        let own = own_range(block);
        let covers = |range: &Range| range.contains(block.addr) && own.end <= range.end;
        if in_found.reach(block.addr).is_some_and(covers)
            || in_known.reach(block.addr).is_some_and(covers)
            || more.last().is_some_and(covers)
        {
            continue;
        }
        if let Some(range) = glibc::mapped_chunk(&mut words, block.addr.0, block.size) {
            more.push(range);
        } else if let Some(region) = foreign_heap(input, map, block.addr) {
            more.push(region);
        } else {
            match more.last_mut() {
                Some(last) if own.start >= last.end && own.start.0 - last.end.0 <= HEADER => {
                    last.end = own.end;
                }
                _ => more.push(own),
            }
        }
    }
    more.extend(found);
    joined(more)
}

/// Walks joined ranges along with ascending addresses.
struct Cursor<'a> {
    ranges: &'a [Range],
}

impl<'a> Cursor<'a> {
    fn new(ranges: &'a [Range]) -> Cursor<'a> {
        Cursor { ranges }
    }

    /// The first range that ends behind `at`.
    fn reach(&mut self, at: Addr) -> Option<&'a Range> {
        while let Some((first, rest)) = self.ranges.split_first() {
            if first.end > at {
                return Some(first);
            }
            self.ranges = rest;
        }
        None
    }
}

/// The bytes of a block; one for an empty block.
pub(super) fn own_range(block: &LiveBlock) -> Range {
    Range::new(block.addr.0, block.addr.0.saturating_add(block.size.max(1)))
}

/// malloc's part of `[heap]`: from its first chunk to the end of its last.
/// What lies before (a static executable's TLS, the program's own sbrk
/// memory) stays, and so does what the program took by sbrk behind it; but
/// not in between, where only a walk over all chunks could find it.
///
/// The first chunk is where the chunks from the beginning of `[heap]`, or
/// from something that looks like the first thread's cache, lead exactly to
/// the lowest recorded block (without one: to the end). Failing that, the
/// page of the lowest block's header.
fn brk_heap(input: &HeapInput<'_>) -> Vec<Range> {
    let parts: Vec<Range> = input
        .regions
        .iter()
        .filter(|r| r.class == Class::Heap)
        .map(|r| r.range)
        .collect();
    let mut words = Words::new(input.memory);
    joined(parts)
        .into_iter()
        .filter_map(|heap| {
            let lowest = input.blocks.partition_point(|b| b.addr < heap.start);
            let lowest = input
                .blocks
                .get(lowest)
                .filter(|b| heap.contains(b.addr))
                .map(|b| b.addr.0.saturating_sub(16).max(heap.start.0));
            let goal = lowest.unwrap_or(heap.end.0);
            let start = first_chunk(&mut words, heap.start.0, goal)
                .or(lowest.map(|chunk| (chunk & !4095).max(heap.start.0)))?;
            let end = last_chunk(input, heap).unwrap_or(heap.end.0);
            Some(Range::new(start, end.max(start)))
        })
        .collect()
}

/// The end of malloc's last chunk in `heap`, if its arena tells and no block
/// contradicts.
fn last_chunk(input: &HeapInput<'_>, heap: Range) -> Option<u64> {
    let ends = input.arenas.iter();
    let ends = ends.filter_map(|arena| glibc::top_end(input.memory, *arena));
    let end = ends
        .filter(|end| heap.start.0 < *end && *end <= heap.end.0)
        .max()?;
    let behind = input.blocks.partition_point(|b| b.addr.0 < end);
    let block = input.blocks.get(behind);
    (!block.is_some_and(|b| heap.contains(b.addr))).then_some(end)
}

fn first_chunk(words: &mut Words<'_>, start: u64, goal: u64) -> Option<u64> {
    let starts = likely_starts(words, start, goal);
    let mut starts = starts.into_iter();
    starts.find(|at| glibc::chunks_lead(words, *at, goal))
}

/// A whole anonymous mapping, for a block of an allocator that we do not
/// know, unless something else visibly lives there.
fn foreign_heap(input: &HeapInput<'_>, map: &MemoryMap, block: Addr) -> Option<Range> {
    let region = map.find(block)?;
    let classified = input.regions.iter().find(|r| r.range == region.range)?;
    let free = classified.class == Class::Anonymous
        && !input.inhabited.iter().any(|at| region.range.contains(*at));
    free.then_some(region.range)
}
