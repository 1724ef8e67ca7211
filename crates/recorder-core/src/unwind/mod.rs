//! The call stack of the calling thread, without an unwinding library.
//!
//! ```text
//! ThreadStacks::capture    a stack that was seen at this place lately is checked
//!   │                      slot by slot and is the same again, mostly
//!   ├─ StackCache          else frames that changed since the last walk are walked
//!   ├─ RowCache            pc → one 64-bit Row, shared by all threads, lock-free
//!   │    └─ cfi, x86_64    on a miss: .eh_frame of the module that holds the pc
//!   └─ Host                modules, stack tree, page probes: the recorder's side
//! ```
//! Nothing is built ahead: a program pays for the call sites that it uses.
//! Begin with [`ThreadStacks::capture`].
//!
//! **Never**: allocates, takes a lock, panics, writes outside the memory that
//! was handed in, or reads a stack beyond what is known to be mapped. Where
//! unwind information ends, the stack is cut and says so.

mod cfi;
mod host;
mod mapped;
mod region;
mod resolve;
mod row;
mod sites;
mod stack;
mod walk;
mod x86_64;

#[cfg(test)]
mod tests;

pub use host::{Boundary, Host, Module};
pub use region::StackBounds;
pub use row::RowCache;
pub use sites::ThreadStacks;
pub use stack::{Captured, Context, DEEP_WINDOW, MAX_DEPTH};
