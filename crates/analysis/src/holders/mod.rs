//! Who holds it: from any block back to the root that keeps it.
//!
//! A breadth-first search over the pointers that the marking kept gives every
//! block one holder. Which root counts is a matter of taste, and the taste is
//! the reader's, who looks for what keeps a block *for long*: first all that
//! globals and thread-local storage lead to, then what only other mappings,
//! and last what only stacks and registers hold, where a word is often left
//! over from a call that is done. Within each of these, start pointers come
//! before interior ones, and fewer steps before more.

mod frame;
mod path;
mod pointing;
mod retained;
mod search;
#[cfg(test)]
mod tests;

pub use frame::frame_of;
pub use path::{Link, Path, Walker};
pub use pointing::{Pointing, Source, pointing};
pub use retained::{Overview, Retained, Retainer, retained};
pub use search::{Search, search};

use crate::mark::{Marked, Pointers};
use crate::roots::{RootKind, RootPlan};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, LiveBlock, ThreadState};

/// What the marking knew, while memory is still at hand.
#[derive(Clone, Copy)]
pub struct HolderInput<'a> {
    /// The process's memory.
    pub memory: &'a dyn MemoryReader,
    /// Its threads.
    pub threads: &'a [ThreadState],
    /// Its live blocks, ascending by address.
    pub blocks: &'a [LiveBlock],
    /// What became of them.
    pub marked: &'a Marked,
    /// The roots that they were marked from.
    pub plan: &'a RootPlan,
    /// The pointers that the marking followed.
    pub pointers: &'a Pointers,
}

/// Where a word is that no block contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootPlace {
    /// In memory of this kind.
    Memory(RootKind),
    /// In a register of the thread with this id.
    Register(u32),
    /// A word that the process keeps for its threads: the thread pointer, or
    /// the vector of their thread-local storage.
    Threads,
}

/// A word outside of all blocks that points to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RootWord {
    /// Where it is.
    pub place: RootPlace,
    /// Its address; zero for a register.
    pub at: Addr,
    /// What it holds.
    pub value: u64,
}

/// The thread that a word on a stack or in thread-local storage belongs to.
pub fn thread_of(input: &HolderInput<'_>, word: &RootWord) -> Option<u32> {
    let threads = input.threads.iter();
    match word.place {
        RootPlace::Register(tid) => Some(tid),
        RootPlace::Memory(RootKind::Stack) => {
            let region = input.memory.map().find(word.at)?.range;
            // Below its stack pointer lies at most the red zone.
            let own = threads
                .filter(|t| region.contains(t.sp) && t.sp.0.saturating_sub(RED_ZONE) <= word.at.0);
            own.max_by_key(|t| t.sp).map(|t| t.tid)
        }
        RootPlace::Memory(RootKind::Tls) => {
            let region = input.memory.map().find(word.at)?.range;
            let own = threads.filter(|t| {
                region.contains(t.tcb) && word.at.0 < t.tcb.0.saturating_add(DESCRIPTOR)
            });
            own.min_by_key(|t| t.tcb).map(|t| t.tid)
        }
        RootPlace::Memory(_) | RootPlace::Threads => None,
    }
}

/// Bytes below the stack pointer that a leaf function may use (System V ABI).
const RED_ZONE: u64 = 128;
/// Bytes of glibc's `struct pthread`, behind the thread pointer.
const DESCRIPTOR: u64 = 0x900;
