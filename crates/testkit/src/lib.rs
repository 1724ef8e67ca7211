//! Test doubles shared by the crates' own tests.
//!
//! What it never does: ship. It is a development dependency only.
//!
//! Begin with [`FakeMemory`], a process's memory written word by word.

mod memory;

pub use memory::FakeMemory;
