//! Heaps from outside: an allocator's memory becomes blocks, without symbols
//! and without the allocator's help.
//!
//! What it never does: input, output, judging what is lost. It reads memory
//! only through [`leakscope_memory::MemoryReader`], and every byte it reads is
//! hostile: loops are bounded, offsets checked, and a structure is believed
//! only where its parts agree.
//!
//! Begin with [`glibc::walk`].
#![forbid(unsafe_code)]

pub mod glibc;
pub mod regions;
pub mod words;
