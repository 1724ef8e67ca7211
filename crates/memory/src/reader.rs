//! The trait itself.

use crate::MemoryMap;
use leakscope_model::Addr;
use std::fmt;

/// Why memory could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// Nothing is mapped there, or it is not readable.
    Unmapped,
    /// The process is gone.
    Gone,
    /// The kernel refused.
    Denied,
}

/// A failed read: the first bad address and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First address that could not be read.
    pub at: Addr,
    /// Why.
    pub reason: FaultReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.reason {
            FaultReason::Unmapped => "not mapped",
            FaultReason::Gone => "the process is gone",
            FaultReason::Denied => "permission denied",
        };
        write!(f, "read memory at {}: {why}", self.at)
    }
}

impl std::error::Error for Fault {}

/// Somebody's memory. Its contents are hostile input.
pub trait MemoryReader {
    /// The map that was taken with this picture.
    fn map(&self) -> &MemoryMap;

    /// Fills `into` from `at`, or says where it failed; `into` is then
    /// unspecified.
    fn read(&self, at: Addr, into: &mut [u8]) -> Result<(), Fault> {
        match self.read_some(at, into) {
            got if got == into.len() => Ok(()),
            got => Err(Fault {
                at: Addr(at.0.saturating_add(got as u64)),
                reason: FaultReason::Unmapped,
            }),
        }
    }

    /// Fills as much of `into` as is readable from `at` without a gap, and
    /// returns how many bytes that was. For scans.
    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize;

    /// The 8-byte little-endian word at `at`.
    fn read_u64(&self, at: Addr) -> Result<u64, Fault> {
        let mut word = [0; 8];
        self.read(at, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }
}
