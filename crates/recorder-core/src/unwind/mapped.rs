//! Reads of this process's own memory: the unsafe floor of the unwinder.
#![allow(unsafe_code)]

use core::ptr;

/// The word at `addr`.
///
/// # Safety
/// `addr` is a multiple of 8 and its 8 bytes are mapped and readable.
#[inline(always)]
pub(crate) unsafe fn word(addr: u64) -> u64 {
    // SAFETY: aligned and readable by the caller's promise. Volatile, because
    // the compiler must not reason about memory of other functions' frames.
    unsafe { ptr::with_exposed_provenance::<u64>(addr as usize).read_volatile() }
}

/// A range of memory that can be read at any offset, safely.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    start: u64,
    end: u64,
}

impl Mapped {
    /// The range `start..end`.
    ///
    /// # Safety
    /// All of it is mapped, readable and not written to while the value (or a
    /// copy) is in use.
    pub(crate) unsafe fn new(start: u64, end: u64) -> Self {
        Mapped { start, end }
    }

    /// End of the range, exclusive.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// `N` bytes at `at`, if they lie inside.
    fn bytes<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        if at < self.start || at.checked_add(N as u64)? > self.end {
            return None;
        }
        // SAFETY: inside `start..end`, which `new`'s caller vouched for.
        Some(unsafe { ptr::with_exposed_provenance::<[u8; N]>(at as usize).read_unaligned() })
    }

    /// Whether the bytes at `at` are exactly `want`.
    pub(crate) fn holds<const N: usize>(&self, at: u64, want: [u8; N]) -> bool {
        self.bytes(at) == Some(want)
    }

    /// A reader of `at..end`, kept inside the range.
    pub(crate) fn cursor(&self, at: u64, end: u64) -> Cursor {
        Cursor {
            mem: *self,
            at,
            end: end.min(self.end),
        }
    }
}

/// Reads one value after the other; `None` at the end, for good.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor {
    mem: Mapped,
    at: u64,
    end: u64,
}

macro_rules! fixed {
    ($($name:ident: $int:ty),*) => {$(
        pub(crate) fn $name(&mut self) -> Option<$int> {
            self.take().map(<$int>::from_le_bytes)
        }
    )*};
}

impl Cursor {
    fixed!(u8: u8, u16: u16, u32: u32, u64: u64, i8: i8, i16: i16, i32: i32);

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let next = self.at.checked_add(N as u64)?;
        if next > self.end {
            return None;
        }
        let bytes = self.mem.bytes(self.at)?;
        self.at = next;
        Some(bytes)
    }

    /// Where the next value begins.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    /// Where reading ends.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    /// Leaves out `n` bytes.
    pub(crate) fn skip(&mut self, n: u64) -> Option<()> {
        let next = self.at.checked_add(n)?;
        if next > self.end {
            return None;
        }
        self.at = next;
        Some(())
    }

    /// The next `n` bytes as a cursor of their own, left out here.
    pub(crate) fn split(&mut self, n: u64) -> Option<Cursor> {
        let at = self.at;
        self.skip(n)?;
        Some(Cursor {
            mem: self.mem,
            at,
            end: self.at,
        })
    }

    /// LEB128, unsigned; bits above 63 are dropped.
    pub(crate) fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        let mut shift = 0u32;
        loop {
            let byte = self.u8()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f).wrapping_shl(shift);
                shift = shift.wrapping_add(7);
            }
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
    }

    /// LEB128, signed; bits above 63 are dropped.
    pub(crate) fn sleb(&mut self) -> Option<i64> {
        let mut value = 0u64;
        let mut shift = 0u32;
        loop {
            let byte = self.u8()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f).wrapping_shl(shift);
                shift = shift.wrapping_add(7);
            }
            if byte & 0x80 == 0 {
                if byte & 0x40 != 0 && shift < 64 {
                    value |= u64::MAX.wrapping_shl(shift);
                }
                return Some(value as i64);
            }
        }
    }
}
