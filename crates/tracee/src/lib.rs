//! One process under examination: its memory while it runs, and all of its
//! threads stopped for a moment.
//!
//! [`stop`] stops every thread and returns a guard; dropping the guard (or
//! the death of our own process, in whatever way) lets the target go on
//! exactly as if nothing had happened: its signals are delivered, its
//! blocked calls go on waiting, and a stopped process stays stopped.
//!
//! What it never does: write to the target's memory, run code in it, wait
//! for processes that are not its business, judge what it reads.
//!
//! Begin with [`stop`], or with [`LiveMemory::open`] where stopping is not
//! wanted or not allowed.

mod core_file;
mod error;
mod exit;
mod gather;
mod memory;
mod refusal;
mod restart;
mod stopped;
mod sys;

pub use core_file::{Absence, CoreError, CoreFile, OpenMapped};
pub use error::{OpenError, StopError};
pub use exit::wait_exit;
pub use gather::blocked_threads;
pub use memory::LiveMemory;
pub use refusal::{Refusal, RefusalCause};
pub use stopped::{Stopped, stop};
