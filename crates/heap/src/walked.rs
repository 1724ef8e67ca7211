//! What a walker found, whatever the allocator.

use crate::glibc::Found;
use leakscope_memory::ranges::joined;
use leakscope_model::Range;

/// The heap of one allocator that has memory of its own beside malloc's.
///
/// Only parts that agree with themselves are in `extents`; whatever else was
/// found is `unwalked`, and stays the roots' business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The allocator, as its users call it.
    pub allocator: &'static str,
    /// Memory of which every byte is known: a block's, free, or a table's.
    /// Ascending, one for each of the allocator's own large pieces.
    pub extents: Vec<Range>,
    /// Blocks in use, ascending.
    pub blocks: Vec<Found>,
    /// Memory that the allocator would hand out next, ascending and disjoint.
    pub free: Vec<Range>,
    /// Pieces whose parts contradict each other: they were being changed, or
    /// are no such pieces.
    pub unwalked: Vec<Range>,
}

impl Walked {
    /// An allocator of which nothing was found yet.
    pub fn new(allocator: &'static str) -> Walked {
        Walked {
            allocator,
            extents: Vec::new(),
            blocks: Vec::new(),
            free: Vec::new(),
            unwalked: Vec::new(),
        }
    }

    /// Nothing of it is in the process.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty() && self.unwalked.is_empty()
    }

    /// All that was found agrees with itself.
    pub fn is_consistent(&self) -> bool {
        self.unwalked.is_empty()
    }

    /// Brings everything into the order of addresses.
    pub(crate) fn sort(&mut self) {
        self.extents.sort_unstable();
        self.extents.dedup();
        self.blocks.sort_unstable_by_key(|block| block.addr);
        self.unwalked.sort_unstable();
        self.unwalked.dedup();
        self.free = joined(std::mem::take(&mut self.free));
    }
}
