//! glibc malloc's own structures, recognised without symbols.
//!
//! `malloc_state` as of glibc 2.26 to 2.43 (malloc/malloc.c), offsets in
//! bytes:
//!
//! ```text
//!    0  mutex, flags, have_fastchunks      2144  binmap
//!   16  fastbinsY[10]                      2160  next
//!   96  top                                2168  next_free
//!  104  last_remainder                     2176  attached_threads
//!  112  bins[254]: 127 (fd, bk) pairs      2184  system_mem
//!                                          2192  max_system_mem
//! ```
//!
//! An empty bin's fd and bk hold the address of its pair minus 16 (as if the
//! pair were the fd and bk of a chunk). `heap_info` at the start of a thread
//! arena's 64 MiB heap (malloc/arena.c): ar_ptr, prev, size, mprotect_size.

use crate::regions::{Class, Classified};
use crate::words::{Words, read_words};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};

/// `top` from the start of `malloc_state`.
const TOP: u64 = 96;
/// `bins` from the start of `malloc_state`.
const BINS: u64 = 112;
/// `fastbinsY` and `system_mem` from the start of `malloc_state`.
const FASTBINS: u64 = 16;
const SYSTEM_MEM: u64 = 2184;
/// `next` from the start of `malloc_state`.
const NEXT: u64 = 2160;
/// Lists of fastbins.
const FASTBIN_COUNT: u64 = 10;
/// Size of `malloc_state`.
pub(super) const STATE: u64 = 2200;
const PAIRS: usize = 127;
/// Bins empty in any real arena, and not by chance elsewhere.
const EMPTY_PAIRS: usize = 20;
/// Bins that may look wrong: a thread may be stopped inside malloc.
const BAD_PAIRS: usize = 2;
/// `HEAP_MAX_SIZE`: thread arenas' heaps are aligned to it.
pub const ARENA_HEAP: u64 = 64 << 20;
/// Places in one mapping that are tested at most.
const TESTED: usize = 64;
/// Module data is read in pieces of this many bytes when looking for bins.
const PIECE: u64 = 1 << 20;

/// Flag bit of a chunk's size word: the chunk is a mapping of its own.
pub(super) const IS_MMAPPED: u64 = 2;
pub(super) const SIZE_FLAGS: u64 = 7;
/// Smallest chunk.
pub(super) const MIN_CHUNK: u64 = 32;
/// Chunks walked at most to prove that a heap begins where we think.
const WALK: u32 = 1 << 22;

/// The `malloc_state`s within `range` (module data).
pub fn main_arenas(memory: &dyn MemoryReader, range: Range) -> Vec<Range> {
    let mut found = Vec::new();
    let mut tested = 0;
    let mut at = range.start.0;
    while at < range.end.0 {
        // Pieces overlap so that no arena is cut.
        let len = (PIECE + STATE).min(range.end.0 - at);
        let words = read_words(memory, at, len);
        let mut empty = empty_pairs(&words, at).peekable();
        while let Some(first) = empty.next() {
            // All bins of an arena lie within 127 pairs of its first empty.
            let mut last = first;
            let mut count = 1;
            while let Some(next) = empty.next_if(|next| next - first < 2 * PAIRS) {
                if (next - first).is_multiple_of(2) {
                    last = next;
                    count += 1;
                }
            }
            if count < EMPTY_PAIRS || tested == TESTED {
                continue;
            }
            tested += 1;
            if let Some(bins) = bins_around(memory, &words, at, first, last) {
                found.push(Range::new(bins.saturating_sub(BINS), bins + STATE - BINS));
            }
        }
        at = at.saturating_add(PIECE);
    }
    found.dedup();
    found
}

/// Where the memory ends that an arena has from the system: behind its top
/// chunk, the last one, at the end of a page.
pub fn top_end(memory: &dyn MemoryReader, arena: Range) -> Option<u64> {
    let word = |at: u64| memory.read_u64(Addr(at)).ok();
    let top = word(arena.start.0.checked_add(TOP)?)?;
    let size = word(top.checked_add(8)?)? & !SIZE_FLAGS;
    let end = top.checked_add(size)?;
    (size >= MIN_CHUNK && end.is_multiple_of(4096)).then_some(end)
}

/// Word indexes of pairs that look like empty bins.
fn empty_pairs(words: &[u64], base: u64) -> impl Iterator<Item = usize> {
    words
        .windows(2)
        .enumerate()
        .filter(move |(i, pair)| pair[0] == pair[1] && is_own(pair[0], base, *i))
        .map(|(i, _)| i)
}

fn is_own(word: u64, base: u64, index: usize) -> bool {
    word.checked_add(16) == base.checked_add(8 * index as u64)
}

/// The address of `bins` when the empty pairs from word `first` to `last`
/// belong to an arena: the place where most of 127 pairs are right.
fn bins_around(
    memory: &dyn MemoryReader,
    words: &[u64],
    base: u64,
    first: usize,
    last: usize,
) -> Option<u64> {
    let lowest = (last + 2).saturating_sub(2 * PAIRS).max(first % 2);
    let lowest = lowest + (first - lowest) % 2;
    // Each pair: empty, a list that leads back here, or wrong.
    let end = (first + 2 * PAIRS).min(words.len());
    let mut kinds = Vec::new();
    for index in (lowest..end.saturating_sub(1)).step_by(2) {
        let (fd, bk) = (words[index], words[index + 1]);
        let empty = fd == bk && is_own(fd, base, index);
        let list = !empty && {
            let bin = base + 8 * index as u64 - 16;
            let leads_back = |chunk: u64, offset: u64| {
                chunk
                    .checked_add(offset)
                    .and_then(|at| memory.read_u64(Addr(at)).ok())
                    == Some(bin)
            };
            fd != 0 && leads_back(fd, 24) && leads_back(bk, 16)
        };
        kinds.push((empty, list));
    }
    let score = |window: &[(bool, bool)]| {
        let empty = window.iter().filter(|k| k.0).count();
        let good = window.iter().filter(|k| k.0 || k.1).count();
        (good, empty)
    };
    let (place, (good, empty)) = kinds
        .windows(PAIRS)
        .enumerate()
        .map(|(place, window)| (place, score(window)))
        .max_by_key(|(place, (good, _))| (*good, *place))?;
    (good + BAD_PAIRS >= PAIRS && empty >= EMPTY_PAIRS)
        .then(|| base + 8 * (lowest + 2 * place) as u64)
}

/// What an arena says of itself.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// First chunks of its fastbins, 0 for an empty one.
    pub fastbins: Vec<u64>,
    /// Bytes it has from the system.
    pub system_mem: u64,
}

/// Reads the `malloc_state` at `arena`.
pub(super) fn read(memory: &dyn MemoryReader, arena: u64) -> Option<State> {
    let word = |offset: u64| memory.read_u64(Addr(arena.checked_add(offset)?)).ok();
    let lists = read_words(memory, arena.checked_add(FASTBINS)?, 8 * FASTBIN_COUNT);
    Some(State {
        fastbins: lists,
        system_mem: word(SYSTEM_MEM)?,
    })
}

/// The arena behind the one at `arena` in the ring of all.
pub(super) fn next(memory: &dyn MemoryReader, arena: u64) -> Option<u64> {
    memory.read_u64(Addr(arena.checked_add(NEXT)?)).ok()
}

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
    arena: Range,
    brk: &[Range],
) -> Option<Params> {
    let around = regions.iter().position(|r| r.range.contains(arena.start))?;
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
        && mapped_bytes.is_multiple_of(4096)
        && (mapped == 0) == (mapped_bytes == 0)
        // Where there is a [heap], it begins there: elsewhere zeros may fit.
        && if brk.is_empty() {
            sbrk_base == 0
        } else {
            brk.iter().any(in_heap)
        };
    fits.then_some(Params {
        mapped,
        mapped_bytes,
        sbrk_base,
    })
}

/// The part in use of the thread arena's heap that begins at `start`, when
/// one does. `start` is a multiple of [`ARENA_HEAP`].
pub(super) fn arena_heap(memory: &dyn MemoryReader, start: u64) -> Option<Range> {
    let info = read_words(memory, start, 32);
    let &[arena, previous, size, committed] = info.as_slice() else {
        return None;
    };
    let sizes_fit = size >= MIN_CHUNK && size <= committed && committed <= ARENA_HEAP;
    if !sizes_fit || !size.is_multiple_of(4096) || !previous.is_multiple_of(ARENA_HEAP) {
        return None;
    }
    let first_heap = arena & !(ARENA_HEAP - 1);
    // The arena's first heap holds its malloc_state behind heap_info; a later
    // heap names an earlier one.
    if (first_heap == start) != (previous == 0) || arena - first_heap > 256 {
        return None;
    }
    let area = Range::new(arena, arena.saturating_add(STATE));
    if main_arenas(memory, area).is_empty() {
        return None;
    }
    Some(Range::new(start, start + committed))
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
    let start = chunk.checked_sub(before)?;
    let end = chunk.checked_add(own)?;
    let fits = start.is_multiple_of(4096)
        && end.is_multiple_of(4096)
        && own >= MIN_CHUNK
        && block.checked_add(size)? <= end;
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
