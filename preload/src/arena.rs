//! Memory for the allocations that looking up the originals makes.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

const BYTES: usize = 64 << 10;

#[repr(align(16))]
struct Arena(core::cell::UnsafeCell<[u8; BYTES]>);

// SAFETY: parts of it are handed out once each, by an atomic counter.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(core::cell::UnsafeCell::new([0; BYTES]));
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Zeroed memory that is never given back; 0 when there is none left.
pub fn take(size: usize, align: usize) -> usize {
    let align = align.clamp(16, 4096);
    let Some(room) = size.checked_add(align - 1 + 16) else {
        return 0;
    };
    if room > BYTES {
        return 0;
    }
    let at = NEXT.fetch_add((room + 15) & !15, Relaxed);
    if at.saturating_add(room) > BYTES {
        return 0;
    }
    // The word before the block holds its size, for realloc.
    let start = ARENA.0.get() as usize + at + 16;
    let start = (start + align - 1) & !(align - 1);
    // SAFETY: start - 8 .. start lies in the arena, in this block's part.
    unsafe { ((start - 8) as *mut usize).write(size) };
    start
}

/// True for memory of the arena.
#[inline(always)]
pub fn owns(at: usize) -> bool {
    at.wrapping_sub(ARENA.0.get() as usize) < BYTES
}

/// Size of a block of the arena.
pub fn size(at: usize) -> usize {
    if !owns(at) || !owns(at.wrapping_sub(8)) {
        return 0;
    }
    // SAFETY: inside the arena; `take` wrote it.
    unsafe { ((at - 8) as *const usize).read_unaligned() }
}
