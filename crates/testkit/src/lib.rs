//! Test doubles shared by the crates' own tests.
//!
//! What it never does: ship. It is a development dependency only.
//!
//! Begin with [`FakeMemory`], a process's memory written word by word, or
//! with [`Target`], a real program under a guard; [`need`] asks whether this
//! machine can run the test.

mod memory;
mod need;
mod spawn;

pub use memory::FakeMemory;
pub use need::{Need, libcs, need};
pub use spawn::{Program, Target, compile_c};
