//! Heaps from outside: an allocator's memory becomes blocks, without symbols
//! and without the allocator's help.
//!
//! What it never does: input, output, judging what is lost. It reads memory
//! only through [`leakscope_memory::MemoryReader`], and every byte it reads is
//! hostile: loops are bounded, offsets checked, and a structure is believed
//! only where its parts agree.
//!
//! Begin with [`walk`]: glibc's malloc ([`glibc`]), and what has memory of its
//! own beside it, as [`Walked`].
#![forbid(unsafe_code)]

pub mod cpython;
pub mod glibc;
mod heaps;
pub mod pymalloc;
pub mod regions;
mod walked;
pub mod words;

pub use heaps::{Heaps, walk};
pub use walked::Walked;
