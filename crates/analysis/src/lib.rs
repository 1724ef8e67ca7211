//! Judging facts: which memory is a root, which blocks are lost, how losses
//! group into records, which suppressions apply, and what the verdict says.
//!
//! What it never does: input, output, clocks, symbols. It reads memory only
//! through [`leakscope_memory::MemoryReader`], and every byte it reads is
//! hostile.
//!
//! Begin with [`roots::plan`] (which memory is a root) and [`mark::mark`]
//! (memcheck's loss kinds for every block).
#![forbid(unsafe_code)]

pub mod garbage;
pub mod groups;
pub mod growth;
pub mod holders;
pub mod mappings;
pub mod mark;
pub mod records;
pub mod residence;
pub mod roots;
pub mod sampled;
pub mod suppressions;
pub mod verdict;
