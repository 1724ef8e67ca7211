//! Access to the mapped bytes: the only place with `unsafe`.
#![allow(unsafe_code)]

use crate::layout::{Area, HEADER_BYTES, Layout};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// A mapped segment. All access is atomic, because the other side may write
/// at any moment, and checked, because the other side may be hostile.
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    base: *const u8,
    layout: Layout,
    _lifetime: core::marker::PhantomData<&'a [AtomicU64]>,
}

// SAFETY: every access goes through atomics; the mapping outlives 'a by the
// contract of `Segment::new`.
unsafe impl Send for Segment<'_> {}
// SAFETY: as above.
unsafe impl Sync for Segment<'_> {}

impl<'a> Segment<'a> {
    /// Takes the mapping at `base`.
    ///
    /// # Safety
    /// `base` is page-aligned and `layout.len()` bytes from it stay mapped
    /// readable and writable for `'a`, and nobody makes plain references to
    /// them.
    pub unsafe fn new(base: *const u8, layout: Layout) -> Segment<'a> {
        Segment {
            base,
            layout,
            _lifetime: core::marker::PhantomData,
        }
    }

    /// Its layout.
    #[inline]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Address at which it is mapped here.
    #[inline]
    pub fn base(&self) -> *const u8 {
        self.base
    }

    /// The 512 words of the header.
    #[inline]
    pub fn header(&self) -> &'a [AtomicU64] {
        // SAFETY: the header lies inside the mapping by Layout::new, is
        // aligned, and is only accessed atomically.
        unsafe { core::slice::from_raw_parts(self.base.cast(), (HEADER_BYTES / 8) as usize) }
    }

    /// One word of the header; the first for an index out of range.
    #[inline]
    pub fn word(&self, index: usize) -> &'a AtomicU64 {
        let header = self.header();
        header.get(index).unwrap_or(&header[0])
    }

    /// The low half of a header word, for futexes.
    #[inline]
    pub fn futex(&self, index: usize) -> &'a AtomicU32 {
        let word: *const AtomicU64 = self.word(index);
        // SAFETY: a word is 8 bytes and aligned; its low half (little-endian)
        // lies first.
        unsafe { &*word.cast() }
    }

    /// An area as 64-bit words.
    #[inline]
    pub fn words(&self, area: Area) -> &'a [AtomicU64] {
        let (at, len) = self.layout.area(area);
        // SAFETY: areas lie inside the mapping and on pages (Layout::new,
        // tested), and are only accessed atomically.
        unsafe {
            core::slice::from_raw_parts(self.base.add(at as usize).cast(), (len / 8) as usize)
        }
    }

    /// An area as 32-bit words.
    #[inline]
    pub fn halves(&self, area: Area) -> &'a [AtomicU32] {
        let (at, len) = self.layout.area(area);
        // SAFETY: as in `words`.
        unsafe {
            core::slice::from_raw_parts(self.base.add(at as usize).cast(), (len / 4) as usize)
        }
    }

    /// An area as bytes.
    #[inline]
    pub fn bytes(&self, area: Area) -> &'a [AtomicU8] {
        let (at, len) = self.layout.area(area);
        // SAFETY: as in `words`.
        unsafe { core::slice::from_raw_parts(self.base.add(at as usize).cast(), len as usize) }
    }
}
