//! Addresses of a running process.

use std::fmt;

/// A virtual address in the process under examination (never one of ours).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64);

impl Addr {
    /// The address `bytes` further, or `None` on overflow.
    pub fn checked_add(self, bytes: u64) -> Option<Addr> {
        self.0.checked_add(bytes).map(Addr)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A half-open range of addresses: `start` belongs to it, `end` does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// First address.
    pub start: Addr,
    /// First address behind the range.
    pub end: Addr,
}

impl Range {
    /// The range from `start` to `end`; empty when `end <= start`.
    pub fn new(start: u64, end: u64) -> Range {
        Range {
            start: Addr(start),
            end: Addr(end.max(start)),
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// True when no address belongs to it.
    pub fn is_empty(&self) -> bool {
        self.end.0 <= self.start.0
    }

    /// True when `at` belongs to it.
    pub fn contains(&self, at: Addr) -> bool {
        self.start <= at && at < self.end
    }

    /// What both ranges share, or `None`.
    pub fn intersect(&self, other: &Range) -> Option<Range> {
        let r = Range {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        };
        (!r.is_empty()).then_some(r)
    }
}
