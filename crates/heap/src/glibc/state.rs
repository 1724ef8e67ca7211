//! glibc malloc's parameters and heaps, recognised without symbols.
//!
//! `mp_` by what must be true of its fields, `heap_info` at the start of a
//! thread arena's 64 MiB heap (malloc/arena.c: ar_ptr, prev, size,
//! mprotect_size), and single chunks.

use super::arena::Arena;
use crate::regions::{Class, Classified};
use crate::words::{Words, read_words};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};

/// `HEAP_MAX_SIZE`: thread arenas' heaps are aligned to it.
pub const ARENA_HEAP: u64 = 64 << 20;
/// What they are aligned to at least: from 2.35 to 2.42, when huge pages are
/// asked for, four of these make a heap.
pub(super) const ARENA_ALIGN: u64 = 8 << 20;
/// Data of a module in which `mp_` is looked for, bytes at most.
const PIECE: u64 = 1 << 20;

/// Flag bit of a chunk's size word: the chunk is a mapping of its own.
pub(super) const IS_MMAPPED: u64 = 2;
pub(super) const SIZE_FLAGS: u64 = 7;
/// Bytes of a mapping behind its chunk since 2.43.
pub(super) const TAIL: u64 = 16;
/// Mark of an offset in a mapping of huge pages, since 2.43.
const HUGE: u64 = 1;
/// Smallest chunk.
pub(super) const MIN_CHUNK: u64 = 32;
/// Chunks walked at most to prove that a heap begins where we think.
const WALK: u32 = 1 << 22;

/// What `mp_` (`struct malloc_par`) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Params {
    /// Blocks that are mappings of their own.
    pub mapped: u64,
    /// Their bytes, whole pages.
    pub mapped_bytes: u64,
    /// Where `[heap]`'s chunks begin; 0 before the first.
    pub sbrk_base: u64,
}

/// `n_mmaps_max`, unless tuned.
const MAPPED_MAX: u64 = 65536;

/// Finds `mp_` in the data of the arena's module, by what must be true of
/// these fields, which have stayed side by side since 2.26:
///
/// ```text
/// int n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold      since 2.35 an int before them
/// size_t mmapped_mem, max_mmapped_mem
/// char *sbrk_base
/// ```
pub(super) fn params(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    arena: &Arena,
    brk: &[Range],
) -> Option<Params> {
    let at = arena.range.start;
    let around = regions.iter().position(|r| r.range.contains(at))?;
    // The module's data and the zeroed data behind.
    let data = regions.get(around.saturating_sub(1)..(around + 2).min(regions.len()))?;
    let mut found = None;
    for region in data {
        if !matches!(region.class, Class::Data | Class::Bss) || region.range.len() > PIECE {
            continue;
        }
        let words = read_words(memory, region.range.start.0, region.range.len());
        for window in words.windows(6) {
            let fits = params_at(window, brk);
            // Two that fit are none.
            if fits.is_some() && found.is_some() {
                return None;
            }
            found = found.or(fits);
        }
    }
    found
}

fn params_at(words: &[u64], brk: &[Range]) -> Option<Params> {
    let &[first, second, third, fourth, fifth, sixth] = words else {
        return None;
    };
    let (low, high) = (|word: u64| word & 0xffff_ffff, |word: u64| word >> 32);
    let aligned = (high(first) == MAPPED_MAX).then(|| {
        let counts = [low(first), low(second), high(second)];
        (counts, third, fourth, fifth)
    });
    let shifted = (low(second) == MAPPED_MAX && high(third) == 0).then(|| {
        let counts = [high(first), high(second), low(third)];
        (counts, fourth, fifth, sixth)
    });
    let ([mapped, peak, fixed], mapped_bytes, peak_bytes, sbrk_base) = aligned.or(shifted)?;
    let in_heap = |heap: &Range| heap.contains(Addr(sbrk_base));
    let fits = mapped <= peak
        && peak <= MAPPED_MAX
        && fixed <= 1
        && mapped_bytes <= peak_bytes
        // Where there is a [heap], it begins there: elsewhere zeros may fit.
        && if brk.is_empty() {
            let pages = mapped_bytes.is_multiple_of(4096);
            sbrk_base == 0 && pages && (mapped == 0) == (mapped_bytes == 0)
        } else {
            // glibc 2.43 adds 16 too many each time it moves such a block.
            let known = mapped_bytes.is_multiple_of(16);
            brk.iter().any(in_heap) && known && (mapped == 0 || mapped_bytes != 0)
        };
    fits.then_some(Params {
        mapped,
        mapped_bytes,
        sbrk_base,
    })
}

/// The part in use of the thread arena's heap that begins at `start`, when
/// one does. `start` is a multiple of [`ARENA_ALIGN`].
pub(super) fn arena_heap(memory: &dyn MemoryReader, start: u64) -> Option<Range> {
    let info = read_words(memory, start, 32);
    let &[arena, previous, size, committed] = info.as_slice() else {
        return None;
    };
    let sizes_fit = size >= MIN_CHUNK && size <= committed && committed <= ARENA_HEAP;
    if !sizes_fit || !size.is_multiple_of(4096) || !previous.is_multiple_of(ARENA_ALIGN) {
        return None;
    }
    let first_heap = arena & !(ARENA_ALIGN - 1);
    // The arena's first heap holds its malloc_state behind heap_info; a later
    // heap names an earlier one.
    if (first_heap == start) != (previous == 0) || arena - first_heap > 256 {
        return None;
    }
    Arena::at(memory, arena)?;
    Some(Range::new(start, start + committed))
}

/// Of a mapped chunk, by its two header words: its offset in the mapping, and
/// the mapping's end. Up to 2.42 the chunk ends there, since 2.43 16 bytes
/// before; and an offset may be marked (huge pages).
pub(super) fn mapped_extent(chunk: u64, before: u64, header: u64) -> Option<(u64, u64)> {
    let end = chunk.checked_add(header & !SIZE_FLAGS)?;
    let ends = [Some(end), end.checked_add(TAIL)];
    let end = ends.into_iter().flatten();
    let end = end.into_iter().find(|end| end.is_multiple_of(4096))?;
    Some((before & !HUGE, end))
}

/// The mapping that glibc made for the block at `block` alone, when its
/// header says so and the claim holds together.
pub fn mapped_chunk(words: &mut Words<'_>, block: u64, size: u64) -> Option<Range> {
    let chunk = block.checked_sub(16)?;
    let before = words.at(chunk)?;
    let header = words.at(chunk + 8)?;
    let own = header & !SIZE_FLAGS;
    // Never in a thread arena (bit 4), never with a neighbour (bit 1).
    if header & SIZE_FLAGS != IS_MMAPPED {
        return None;
    }
    let (offset, end) = mapped_extent(chunk, before, header)?;
    let start = chunk.checked_sub(offset)?;
    let fits = start.is_multiple_of(4096) && own >= MIN_CHUNK && block.checked_add(size)? <= end;
    fits.then(|| Range::new(start, end))
}

/// True when chunks lead from the one at `from` exactly to `to`.
pub fn chunks_lead(words: &mut Words<'_>, from: u64, to: u64) -> bool {
    let mut at = from;
    for _ in 0..WALK {
        if at >= to {
            return at == to;
        }
        let Some(header) = words.at(at.saturating_add(8)) else {
            return false;
        };
        let size = header & !SIZE_FLAGS;
        if size < MIN_CHUNK || !size.is_multiple_of(16) {
            return false;
        }
        at = at.saturating_add(size);
    }
    false
}
