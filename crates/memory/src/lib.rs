//! The seam to somebody's memory: a live process, a forked child, a core
//! file, a test double.
//!
//! [`MemoryReader`] reads and nothing else. Stopping, resuming, registers
//! and writing belong to `leakscope-tracee`'s guard types.

mod map;
pub mod ranges;
mod reader;

pub use map::{MemoryMap, Region};
pub use reader::{Fault, FaultReason, MemoryReader};
