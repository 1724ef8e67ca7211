//! glibc's malloc, 2.26 to 2.43 (malloc/malloc.c, malloc/arena.c).
//!
//! ```text
//! malloc_state ("arena")   bins, fastbins, top      one for the process, one for some threads
//! heap                     chunks, side by side     [heap], or 64 MiB of a thread's arena
//! mapped chunk             one large block          a mapping of its own
//! thread cache             short lists of free chunks, in a chunk itself
//! ```
//! [`walk`] finds the arenas by the shape of their bins, walks the chunks of
//! every heap, follows the lists of free chunks that look used, and compares
//! what it found with the allocator's own sums.

mod arena;
mod lists;
mod mapped;
mod segments;
mod state;
#[cfg(test)]
mod tests;

use crate::regions::{self, Class, Classified};
use leakscope_memory::MemoryReader;
use leakscope_memory::ranges::joined;
use leakscope_model::{Range, ThreadState};

pub use arena::{Arena, main_arenas, top_end};
pub use segments::{Found, Free, FreePlace, HEAD, Segment, arena_heaps, likely_starts};
pub use state::{ARENA_HEAP, chunks_lead, mapped_chunk};

/// From a chunk to the block in it, bytes.
pub const CHUNK_HEADER: u64 = 16;

/// Everything that glibc has, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Heaps {
    /// Heaps whose chunks fit together, ascending.
    pub segments: Vec<Segment>,
    /// Blocks that are mappings of their own: the mapping and the block.
    pub mapped: Vec<(Range, Found)>,
    /// The arenas, the main one first, and how their own sums compare.
    pub arenas: Vec<ArenaSum>,
    /// What the allocator says of mapped blocks: their number and bytes.
    pub said_mapped: Option<(u64, u64)>,
    /// Heaps whose chunks do not fit together.
    pub unwalked: Vec<Range>,
    /// Lists of free chunks that end in the middle.
    pub broken_lists: u32,
    /// Thread caches.
    pub caches: u32,
    /// Arenas that others name and that were not found: they were being changed.
    pub missing_arenas: u32,
}

/// What an arena says it has from the system, and what was found of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaSum {
    /// Address of its `malloc_state`.
    pub at: u64,
    /// Its `system_mem`, bytes.
    pub said: u64,
    /// Bytes of its heaps that were walked.
    pub found: u64,
}

impl ArenaSum {
    /// The sums agree: what a page's alignment takes may be missing.
    pub fn agrees(&self) -> bool {
        self.said.abs_diff(self.found) < 4096
    }
}

impl Heaps {
    /// Every part agrees with the allocator's own numbers.
    pub fn is_consistent(&self) -> bool {
        self.unwalked.is_empty()
            && self.broken_lists == 0
            && self.missing_arenas == 0
            && self.arenas.iter().all(ArenaSum::agrees)
            && self.mapped_agree()
    }

    /// The memory of all heaps that were walked, ascending.
    pub fn extents(&self) -> Vec<Range> {
        let segments = self.segments.iter().map(|s| s.range);
        let mapped = self.mapped.iter().map(|(range, _)| *range);
        joined(segments.chain(mapped).collect())
    }

    /// As many mapped blocks were found as there are.
    pub fn mapped_agree(&self) -> bool {
        self.said_mapped
            .is_none_or(|said| mapped::excess(said, &self.mapped).is_some())
    }
}

/// Walks all heaps of a process. `threads` are where thread caches are known
/// from; without them, caches are recognised by their contents.
pub fn walk(memory: &dyn MemoryReader, threads: &[ThreadState]) -> Heaps {
    let regions = regions::classify(memory.map());
    let arenas = arenas(memory, &regions);
    let (brk, thread_heaps) = heap_regions(memory, &regions);
    let params = arenas
        .first()
        .and_then(|arena| state::params(memory, &regions, arena, &brk));
    let all = segments::all_arenas(memory, &arenas, &thread_heaps);
    let mut heaps = segments::walk(memory, &regions, &brk, &arenas, &all, &thread_heaps, params);
    heaps.missing_arenas = missing(memory, &all);
    heaps.said_mapped = params.map(|p| (p.mapped, p.mapped_bytes));
    heaps.mapped = mapped::find(memory, &regions, &thread_heaps, heaps.said_mapped);
    lists::take_out(memory, threads, &all, &mut heaps);
    heaps
}

/// Arenas in the ring that begins with the first, but not among `arenas`.
fn missing(memory: &dyn MemoryReader, arenas: &[Arena]) -> u32 {
    let Some(first) = arenas.first() else {
        return 0;
    };
    let mut missing = 0;
    let mut at = first.address();
    for _ in 0..MOST_ARENAS {
        at = match first.next_of(memory, at) {
            Some(next) if next != first.address() && next != 0 => next,
            _ => break,
        };
        missing += u32::from(!arenas.iter().any(|arena| arena.address() == at));
    }
    missing
}

/// Arenas that are followed at most: by default there are eight for each
/// processor.
const MOST_ARENAS: usize = 1 << 14;

/// The main arenas among the data of modules.
pub fn arenas(memory: &dyn MemoryReader, regions: &[Classified]) -> Vec<Arena> {
    regions
        .iter()
        .filter(|region| matches!(region.class, Class::Data | Class::Bss))
        .flat_map(|region| main_arenas(memory, region.range))
        .collect()
}

/// `[heap]`s, and the heaps of thread arenas.
pub fn heap_regions(memory: &dyn MemoryReader, regions: &[Classified]) -> (Vec<Range>, Vec<Range>) {
    let of = |classes: &[Class]| -> Vec<Range> {
        let regions = regions.iter().filter(|r| classes.contains(&r.class));
        regions.map(|r| r.range).collect()
    };
    let thread_heaps = of(&[Class::Anonymous, Class::Bss])
        .into_iter()
        .flat_map(|range| arena_heaps(memory, range));
    let thread_heaps = thread_heaps.collect();
    (joined(of(&[Class::Heap])), thread_heaps)
}
