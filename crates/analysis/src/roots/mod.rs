//! Which memory is a root.

use leakscope_model::{Range, RootCounts};

/// Why a range is a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// Writable data of an executable or library.
    Globals,
    /// A thread's stack from its stack pointer upward.
    Stack,
    /// Thread-local storage and the thread's control block.
    Tls,
    /// Any other writable memory that is no heap.
    Mapping,
    /// Declared by the program.
    Declared,
}

/// Everything that holds blocks without being held itself.
#[derive(Clone, Debug, Default)]
pub struct RootPlan {
    /// Ranges to scan, ascending and disjoint.
    pub ranges: Vec<(Range, RootKind)>,
    /// Single words (registers).
    pub words: Vec<u64>,
    /// Single words that hold a block even when they point inside it.
    pub start_words: Vec<u64>,
    /// What the ranges and words add up to.
    pub counts: RootCounts,
}
