//! One process under examination: its memory while it runs, and all of its
//! threads stopped for a moment.
//!
//! [`stop`] stops every thread and returns a guard; dropping the guard (or
//! the death of our own process, in whatever way) lets the target go on
//! exactly as if nothing had happened: its signals are delivered, its
//! blocked calls go on waiting, and a stopped process stays stopped.
//!
//! [`fork`] stops it only for as long as it takes to copy itself. For that one
//! of its threads makes a system call for us, and memory below that thread's
//! stack is written to, as the kernel would for a signal.
//!
//! What it never does: change memory that the target uses, bring code into
//! it, wait for processes that are not its business, judge what it reads.
//!
//! Begin with [`fork`] or [`stop`], or with [`LiveMemory::open`] where stopping is not
//! wanted or not allowed.

mod core_file;
mod core_write;
mod error;
mod exit;
mod fork;
mod gather;
mod guard;
mod inject;
mod memory;
mod refusal;
mod restart;
mod stopped;
mod sys;
mod watched;

pub use core_file::{Absence, CoreError, CoreFile, OpenMapped};
pub use core_write::{CoreImage, CoreTarget, CoreWritten, UserRegisters, write_core};
pub use error::{OpenError, StopError};
pub use exit::wait_exit;
pub use fork::{Ended, ForkError, Forked, fork, fork_here};
pub use gather::blocked_threads;
pub use memory::LiveMemory;
pub use refusal::{Refusal, RefusalCause};
pub use stopped::{Stopped, stop, stop_guarded};
pub use watched::{AtEnd, spawn_watched};
