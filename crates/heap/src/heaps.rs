//! All heaps of a process.

use crate::glibc::{self, Found};
use crate::pymalloc;
use crate::walked::Walked;
use leakscope_memory::MemoryReader;
use leakscope_memory::ranges::joined;
use leakscope_model::{LiveBlock, Range, ThreadState};

/// Everything that allocators have, as far as it could be read.
#[derive(Clone, Debug, Default)]
pub struct Heaps {
    /// glibc's.
    pub malloc: glibc::Heaps,
    /// Those of allocators with memory of their own, without empty ones.
    pub others: Vec<Walked>,
}

/// Walks all heaps of a process; see [`glibc::walk`].
pub fn walk(memory: &dyn MemoryReader, threads: &[ThreadState]) -> Heaps {
    let malloc = glibc::walk(memory, threads);
    let mut others = vec![pymalloc::walk(memory, &malloc)];
    others.retain(|walked| !walked.is_empty());
    Heaps { malloc, others }
}

impl Heaps {
    /// Every part agrees with the allocators' own numbers.
    pub fn is_consistent(&self) -> bool {
        self.malloc.is_consistent() && self.others.iter().all(Walked::is_consistent)
    }

    /// Memory of which every byte is known, ascending.
    pub fn extents(&self) -> Vec<Range> {
        let mut all = self.malloc.extents();
        all.extend(self.others.iter().flat_map(|walked| &walked.extents));
        joined(all)
    }

    /// All blocks in use, ascending. They have no weight: their sizes are usable
    /// ones, not those asked for. Those of malloc's segments are taken out: of
    /// millions of blocks one list is enough.
    pub fn take_blocks(&mut self) -> Vec<LiveBlock> {
        let block = |found: &Found| LiveBlock {
            weight: 0.0,
            ..LiveBlock::new(found.addr, found.size)
        };
        let segments = self.malloc.segments.iter().map(|s| s.blocks.len());
        let others = self.others.iter().map(|walked| walked.blocks.len());
        let count = segments.chain(others).sum::<usize>();
        let mut all = Vec::with_capacity(count + self.malloc.mapped.len());
        for segment in &mut self.malloc.segments {
            all.extend(std::mem::take(&mut segment.blocks).iter().map(block));
        }
        for walked in &self.others {
            all.extend(walked.blocks.iter().map(block));
        }
        all.extend(self.malloc.mapped.iter().map(|(_, found)| block(found)));
        all.sort_unstable_by_key(|block: &LiveBlock| block.addr);
        all
    }

    /// What was found of this allocator.
    pub fn of(&self, allocator: &str) -> Option<&Walked> {
        self.others
            .iter()
            .find(|walked| walked.allocator == allocator)
    }
}
