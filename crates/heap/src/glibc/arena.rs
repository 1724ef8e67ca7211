//! `malloc_state` ("arena"), recognised by its bins.
//!
//! Offsets from the bins, which are what is recognised, in bytes
//! (malloc/malloc.c):
//!
//! ```text
//!          2.26 to 2.42    from 2.43
//! start    -112            -24           mutex, flags
//!           -96            none          fastbinsY[10]
//! top       -16            -16
//! bins        0              0           254 words: 127 (fd, bk) pairs
//! next     2048           2048           of the ring of all arenas
//! system_mem 2072         2072
//! end      2088           2088
//! ```
//!
//! An empty bin's fd and bk hold the address of its pair minus 16 (as if the
//! pair were the fd and bk of a chunk); a list of free chunks leads back to it.

use super::MOST_ARENAS;
use super::state::{MIN_CHUNK, SIZE_FLAGS};
use crate::words::read_words;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};

/// From the start of a `malloc_state` to its bins: with fastbins and without.
const STARTS: [u64; 2] = [112, 24];
/// The other fields, from the bins: fastbins and `top` before, the rest
/// behind.
const FASTBINS: u64 = 96;
const TOP: u64 = 16;
const NEXT: u64 = 2048;
const SYSTEM_MEM: u64 = 2072;
const END: u64 = 2088;
/// Lists of fastbins.
const FASTBIN_COUNT: u64 = 10;
const PAIRS: usize = 127;
/// Bins that may look wrong: a thread may be stopped inside malloc.
const BAD_PAIRS: usize = 2;
/// Places in one mapping that are tested at most.
const TESTED: usize = 64;
/// Module data is read in pieces of this many bytes when looking for bins.
const PIECE: u64 = 1 << 20;

/// A `malloc_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// All of it.
    pub range: Range,
    /// Address of its bins.
    bins: u64,
}

impl Arena {
    fn new(bins: u64, start: u64) -> Arena {
        Arena {
            range: Range::new(bins.saturating_sub(start), bins.saturating_add(END)),
            bins,
        }
    }

    /// The one at the address `at`, if its bins are there.
    pub(super) fn at(memory: &dyn MemoryReader, at: u64) -> Option<Arena> {
        STARTS.into_iter().find_map(|start| {
            let bins = at.checked_add(start)?;
            let words = read_words(memory, bins, 16 * PAIRS as u64);
            let kinds = kinds(memory, &words, bins, 0, words.len());
            (kinds.len() == PAIRS && fits(score(&kinds))).then(|| Arena::new(bins, start))
        })
    }

    /// The one at `at`, of the same library.
    pub(super) fn like(&self, at: u64) -> Option<Arena> {
        let start = self.bins.checked_sub(self.address())?;
        Some(Arena::new(at.checked_add(start)?, start))
    }

    /// Its address.
    pub(super) fn address(&self) -> u64 {
        self.range.start.0
    }

    fn word(&self, memory: &dyn MemoryReader, offset: u64) -> Option<u64> {
        memory.read_u64(Addr(self.bins.checked_add(offset)?)).ok()
    }

    /// Bytes that it has from the system.
    pub(super) fn system_mem(&self, memory: &dyn MemoryReader) -> Option<u64> {
        self.word(memory, SYSTEM_MEM)
    }

    /// The address of the arena behind it in the ring of all.
    pub(super) fn next(&self, memory: &dyn MemoryReader) -> Option<u64> {
        self.word(memory, NEXT)
    }

    /// The same of the arena at `at`, which must be of the same layout.
    pub(super) fn next_of(&self, memory: &dyn MemoryReader, at: u64) -> Option<u64> {
        self.like(at)?.next(memory)
    }

    /// First chunks of its fastbins, 0 for an empty one; none where the libc
    /// has none.
    pub(super) fn fastbins(&self, memory: &dyn MemoryReader) -> Vec<u64> {
        match self.bins.checked_sub(FASTBINS) {
            Some(at) if at >= self.address() => read_words(memory, at, 8 * FASTBIN_COUNT),
            _ => Vec::new(),
        }
    }
}

/// Where the memory ends that an arena has from the system: behind its top
/// chunk, the last one, at the end of a page.
pub fn top_end(memory: &dyn MemoryReader, arena: Arena) -> Option<u64> {
    let word = |at: u64| memory.read_u64(Addr(at)).ok();
    let top = word(arena.bins.checked_sub(TOP)?)?;
    let size = word(top.checked_add(8)?)? & !SIZE_FLAGS;
    let end = top.checked_add(size)?;
    (size >= MIN_CHUNK && end.is_multiple_of(4096)).then_some(end)
}

/// The main arenas within `range` (module data).
pub fn main_arenas(memory: &dyn MemoryReader, range: Range) -> Vec<Arena> {
    let mut found = Vec::new();
    let mut tested = 0;
    let mut at = range.start.0;
    while at < range.end.0 {
        // Pieces overlap so that no arena is cut.
        let len = (PIECE + STARTS[0] + END).min(range.end.0 - at);
        let words = read_words(memory, at, len);
        let mut empty = empty_pairs(&words, at).peekable();
        while let Some(first) = empty.next() {
            // All bins of an arena lie within 127 pairs of its first empty
            // one. There is always one: the last bin is never used. But in a
            // heap that is cut to pieces there may be hardly another.
            let mut last = first;
            while let Some(next) = empty.next_if(|next| next - first < 2 * PAIRS) {
                if (next - first).is_multiple_of(2) {
                    last = next;
                }
            }
            if tested == TESTED {
                break;
            }
            tested += 1;
            if let Some(bins) = bins_around(memory, &words, at, first, last) {
                found.push(main_arena(memory, bins));
            }
        }
        at = at.saturating_add(PIECE);
    }
    found.dedup();
    found
}

/// The main arena with these bins. Where it begins is told by the ring of all
/// arenas, which leads back to its beginning.
fn main_arena(memory: &dyn MemoryReader, bins: u64) -> Arena {
    let layouts = STARTS.map(|start| Arena::new(bins, start));
    let closes = |arena: &&Arena| {
        let mut at = arena.address();
        for _ in 0..MOST_ARENAS {
            at = match arena.next_of(memory, at) {
                Some(next) if next == arena.address() => return true,
                Some(next) if next != 0 => next,
                _ => return false,
            };
        }
        false
    };
    let [first, _] = layouts;
    layouts.iter().find(closes).copied().unwrap_or(first)
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

/// Of each pair from word `from` to `end`: is it an empty bin; is it a list
/// that leads back here. Neither is wrong.
fn kinds(
    memory: &dyn MemoryReader,
    words: &[u64],
    base: u64,
    from: usize,
    end: usize,
) -> Vec<(bool, bool)> {
    let indexes = (from..end.saturating_sub(1)).step_by(2);
    let kind = |index: usize| {
        let (fd, bk) = (*words.get(index)?, *words.get(index + 1)?);
        let empty = fd == bk && is_own(fd, base, index);
        let bin = (base.checked_add(8 * index as u64)?).checked_sub(16)?;
        let leads_back = |chunk: u64, offset: u64| {
            let at = chunk.checked_add(offset);
            at.and_then(|at| memory.read_u64(Addr(at)).ok()) == Some(bin)
        };
        let list = !empty && fd != 0 && leads_back(fd, 24) && leads_back(bk, 16);
        Some((empty, list))
    };
    indexes.filter_map(kind).collect()
}

/// How many pairs are right, and how many empty.
fn score(kinds: &[(bool, bool)]) -> (usize, usize) {
    let empty = kinds.iter().filter(|k| k.0).count();
    let good = kinds.iter().filter(|k| k.0 || k.1).count();
    (good, empty)
}

fn fits((good, empty): (usize, usize)) -> bool {
    good + BAD_PAIRS >= PAIRS && empty > 0
}

/// The address of the bins when the empty pairs from word `first` to `last`
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
    let end = (first + 2 * PAIRS).min(words.len());
    let kinds = kinds(memory, words, base, lowest, end);
    let windows = kinds.windows(PAIRS).map(score).enumerate();
    let (place, score) = windows.max_by_key(|(place, (good, _))| (*good, *place))?;
    fits(score).then(|| base + 8 * (lowest + 2 * place) as u64)
}
