//! Everything about recording that can be thought about apart from a running
//! target: the live-block table, the stack tree, the unwinder, the counters.
//!
//! All memory is handed in; nothing here allocates, waits for long, aborts
//! or panics. `preload/` adds what cannot be tested this way: symbols,
//! thread-local storage, system calls.
//!
//! Begin with [`table::Table`] and [`trie::Trie`].
#![no_std]

#[cfg(test)]
extern crate std;

pub mod counters;
pub mod filter;
pub mod freed;
pub mod heap;
mod interleave;
pub mod lock;
pub mod rows;
pub mod table;
pub mod trie;
pub mod unwind;

#[cfg(test)]
mod testing;
