//! The shared segment: what the recorder inside the target and the
//! supervisor outside agree on, byte by byte.
//!
//! The segment is a sparse memory file. The supervisor creates it, hands it
//! over a socket and keeps it mapped, so the picture survives any death of
//! the target. The recorder writes; the supervisor reads, and believes
//! nothing: every id, offset and length is checked here, in [`Segment`] and
//! [`Reader`].
//!
//! No allocation, no panic, no standard library: this crate is also linked
//! into the object that lives in other people's processes.
//!
//! Begin with [`layout`] (where everything is) and [`Segment`] (how to reach
//! it).
#![no_std]

pub mod entry;
pub mod hello;
pub mod layout;
mod reader;
mod segment;

pub use layout::Layout;
pub use reader::{Block, ErrorRow, FreePair, Mapping, ModuleRow, Node, Reader, Totals};
pub use segment::Segment;
