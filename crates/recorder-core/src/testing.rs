//! A segment in ordinary memory, for this crate's tests.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use leakscope_wire::layout::{MIN_SEGMENT, word};
use leakscope_wire::{Layout, Segment};
use std::alloc::{Layout as Shape, alloc_zeroed, dealloc};

/// Owns the bytes of a smallest segment.
pub struct Memory {
    whole: *mut u8,
    base: *mut u8,
}

const PAGE: usize = 4096;

// SAFETY: the bytes are only reached through `Segment`, which is atomic.
unsafe impl Sync for Memory {}
// SAFETY: any thread may free what another allocated.
unsafe impl Send for Memory {}

fn shape() -> Shape {
    // Aligned by hand: only small alignments come zeroed without being written.
    Shape::from_size_align(MIN_SEGMENT as usize + PAGE, 8).unwrap()
}

impl Memory {
    /// Zeroed, with an empty stack tree.
    pub fn new() -> Memory {
        // SAFETY: the size is not zero.
        let whole = unsafe { alloc_zeroed(shape()) };
        assert!(!whole.is_null());
        // SAFETY: less than a page on, of a page more than the segment has.
        let base = unsafe { whole.add(whole.align_offset(PAGE)) };
        let memory = Memory { whole, base };
        memory.segment().word(word::NODE_NEXT).store(1, Relaxed);
        memory
    }

    /// The segment in it.
    pub fn segment(&self) -> Segment<'_> {
        // SAFETY: base is page-aligned and MIN_SEGMENT bytes long, and lives
        // as long as self.
        unsafe { Segment::new(self.base, Layout::new(MIN_SEGMENT).unwrap()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with the same shape in `new`.
        unsafe { dealloc(self.whole, shape()) }
    }
}

/// Leaves pages to be touched.
pub fn by_touch(_: &[AtomicU64]) {}
