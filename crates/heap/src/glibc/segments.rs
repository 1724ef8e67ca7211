//! Every block of glibc's heaps, by walking their chunks (malloc/malloc.c,
//! glibc 2.26 to 2.41): what a sampling recorder did not see.
//!
//! ```text
//! chunk   prev_size | size, flags | user's bytes …      flag 1: the chunk before is in use
//! ```
//! Chunks tile a heap up to its top chunk, or to fence posts at the end of a
//! heap that was left. A free chunk of a bin is known by the flag in the next;
//! those in fastbins and in a thread's cache look used. The cache, which itself
//! is a block, holds some of its own by plain pointers: these are found by its
//! lists. Nothing points to the user's address of a chunk in a fastbin, so it
//! holds nothing as long as it is not held.

use super::glibc::{self, IS_MMAPPED, MIN_CHUNK, SIZE_FLAGS};
use super::heaps::{HEAD, likely_starts};
use super::words::{Words, read_words};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};
use std::collections::HashSet;

/// The chunk before is in use.
const PREV_INUSE: u64 = 1;
/// Fence posts at the end of a heap that its arena has left.
const FENCE: u64 = 16;
/// Bins of a thread's cache; counts of one byte (2.26 to 2.29) or two (to 2.41).
const CACHE_BINS: u64 = 64;
/// Chunks in a bin of a cache, unless tuned. More would make a cache out of
/// much that is none.
const CACHED: u64 = 7;
/// Where the first chunk of a thread arena's heap may lie: behind `heap_info`
/// and, in the first heap, `malloc_state`.
const ARENA_HEAD: u64 = 4096;

/// A block of a heap: its user's address and usable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub addr: u64,
    pub size: u64,
}

/// A heap whose chunks fit together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walked {
    /// From its first chunk to its end.
    pub range: Range,
    /// Blocks in use, ascending.
    pub blocks: Vec<Found>,
}

/// Walks `[heap]`, whose malloc part ends at `end`.
fn brk(memory: &dyn MemoryReader, heap: Range, end: u64) -> Option<Walked> {
    let mut words = Words::new(memory);
    let starts = likely_starts(&mut words, heap.start.0, end);
    first_walk(&mut words, starts, end, HEAD)
}

/// Walks the heap of a thread arena: `heap` is its part in use.
fn arena(memory: &dyn MemoryReader, heap: Range) -> Option<Walked> {
    let info = read_words(memory, heap.start.0, 24);
    let end = heap.start.0.checked_add(*info.get(2)?)?;
    let first = heap.start.0.checked_add(32)?;
    let starts = (first..end.min(heap.start.0.saturating_add(ARENA_HEAD))).step_by(16);
    first_walk(&mut Words::new(memory), starts, end, ARENA_HEAD)
}

/// The walk from the first of `starts` that leads to `end`. One that comes
/// further than `head` bytes was on true chunks: where it ends, the others
/// would, too.
fn first_walk(
    words: &mut Words<'_>,
    starts: impl IntoIterator<Item = u64>,
    end: u64,
    head: u64,
) -> Option<Walked> {
    for from in starts {
        match walk(words, from, end) {
            Ok(walked) => return Some(walked),
            Err(at) if at.saturating_sub(from) > head => return None,
            Err(_) => {}
        }
    }
    None
}

/// The blocks from the chunk at `from` to `end`, if the chunks lead there;
/// else where they stop.
fn walk(words: &mut Words<'_>, from: u64, end: u64) -> Result<Walked, u64> {
    let mut blocks = Vec::new();
    let mut last: Option<Found> = None;
    let mut at = from;
    while at < end {
        let header = words.at(at.saturating_add(8)).ok_or(at)?;
        let size = header & !SIZE_FLAGS;
        // The chunk before is a block, if this one says that it is in use.
        if let Some(found) = last.take()
            && header & PREV_INUSE != 0
        {
            blocks.push(found);
        }
        let fence = size == FENCE || (size == 0 && end - at <= 2 * FENCE);
        if fence && header & PREV_INUSE != 0 {
            at = at.checked_add(FENCE).ok_or(at)?;
            continue;
        }
        let next = at.checked_add(size).filter(|next| *next <= end).ok_or(at)?;
        if size < MIN_CHUNK || !size.is_multiple_of(16) || header & IS_MMAPPED != 0 {
            return Err(at);
        }
        last = Some(Found {
            addr: at + 16,
            size: size - 8,
        });
        at = next;
    }
    // What ends here is the top chunk, or a fence post.
    let range = Range::new(from, end);
    Ok(Walked { range, blocks })
}

/// User addresses of the chunks in the thread cache that lies in a block of
/// `cache`, when it is one.
fn in_cache(memory: &dyn MemoryReader, cache: Found, free: &mut HashSet<u64>) {
    // One byte or two for each count, then eight for each list.
    let width = match cache.size {
        0x248 => 1,
        0x288 => 2,
        _ => return,
    };
    let words = read_words(memory, cache.addr, CACHE_BINS * (width + 8));
    let counts = (CACHE_BINS * width / 8) as usize;
    let Some((counts, lists)) = words.split_at_checked(counts) else {
        return;
    };
    let mut all = Vec::new();
    for (bin, head) in lists.iter().enumerate() {
        let bit = bin as u64 * width * 8;
        let word = counts.get((bit / 64) as usize).copied().unwrap_or(0);
        let count = (word >> (bit % 64)) & ((1 << (width * 8)) - 1);
        if (count == 0) != (*head == 0) || count > CACHED || !head.is_multiple_of(16) {
            return;
        }
        if *head != 0 {
            let mut list = HashSet::new();
            if follow(memory, *head, count as usize, &mut list) != count as usize {
                return;
            }
            all.extend(list);
        }
    }
    free.extend(all);
}

/// Follows a list of free chunks by the first word of each, which is mangled
/// since 2.32 (safe-linking). Returns its length, at most `most`.
fn follow(memory: &dyn MemoryReader, first: u64, most: usize, free: &mut HashSet<u64>) -> usize {
    let mut at = first;
    let mut length = 0;
    while length < most && at.is_multiple_of(16) {
        let Ok(word) = memory.read_u64(Addr(at)) else {
            break;
        };
        if !free.insert(at) {
            break;
        }
        length += 1;
        let plain = |next: u64| {
            next == 0 || (next.is_multiple_of(16) && memory.read_u64(Addr(next)).is_ok())
        };
        let demangled = word ^ at >> 12;
        at = if plain(demangled) { demangled } else { word };
        if at == 0 {
            break;
        }
    }
    length
}

/// The heaps of glibc that could be walked, ascending, without what is free.
pub(super) fn walked(
    memory: &dyn MemoryReader,
    brk_heaps: &[Range],
    arenas: &[Range],
    thread_heaps: &[Range],
) -> Vec<Walked> {
    let mut heaps: Vec<Walked> = Vec::new();
    for heap in brk_heaps {
        let ends = arenas.iter().filter_map(|a| glibc::top_end(memory, *a));
        let end = ends
            .filter(|end| heap.start.0 < *end && *end <= heap.end.0)
            .max();
        heaps.extend(end.and_then(|end| brk(memory, *heap, end)));
    }
    heaps.extend(thread_heaps.iter().filter_map(|heap| arena(memory, *heap)));
    heaps.sort_unstable_by_key(|heap| heap.range);
    let mut free = HashSet::new();
    let caches = |found: &&Found| matches!(found.size, 0x248 | 0x288);
    let mut tables = HashSet::new();
    for cache in heaps
        .iter()
        .flat_map(|heap| heap.blocks.iter().filter(caches))
    {
        let before = free.len();
        in_cache(memory, *cache, &mut free);
        if free.len() != before {
            tables.insert(cache.addr);
        }
    }
    for heap in &mut heaps {
        heap.blocks
            .retain(|found| !free.contains(&found.addr) && !tables.contains(&found.addr));
    }
    heaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_testkit::FakeMemory;

    const HEAP: u64 = 0x5555_5555_9000;
    const END: u64 = HEAP + 0x2000;

    /// A heap of chunks: sizes with flags, from [`HEAP`]; their user addresses.
    fn heap(headers: &[u64]) -> (FakeMemory, Vec<u64>) {
        let mut memory = FakeMemory::new();
        memory.region(HEAP, END - HEAP, "rw-p", "[heap]");
        let mut at = HEAP;
        let mut users = Vec::new();
        for header in headers {
            memory.words(at + 8, &[*header]);
            users.push(at + 16);
            at += (header & !SIZE_FLAGS).max(FENCE);
        }
        (memory, users)
    }

    fn addrs(walked: &Walked) -> Vec<u64> {
        walked.blocks.iter().map(|found| found.addr).collect()
    }

    #[test]
    fn blocks_are_what_the_next_chunk_calls_used() {
        // The third is free; the last is the top.
        let (memory, users) = heap(&[0x291, 0x31, 0x71, 0x50, 0x21, 0x1c61]);
        let heap = Range::new(HEAP, END);
        let found = brk(&memory, heap, END).expect("chunks fit");
        assert_eq!(addrs(&found), [users[0], users[1], users[3], users[4]]);
        assert_eq!(found.blocks[1].size, 0x28);
        assert_eq!(found.range, heap);
        assert!(brk(&memory, heap, END - 16).is_none(), "beyond the end");
        let (memory, _) = heap_with_own_start();
        let found = brk(&memory, heap, END).expect("begins at the cache");
        assert_eq!(addrs(&found), [HEAP + 0x150]);
    }

    /// The program's own sbrk memory lies before malloc's.
    fn heap_with_own_start() -> (FakeMemory, Vec<u64>) {
        let (mut memory, users) = heap(&[]);
        memory.words(HEAP + 8, &[7, 9, 11]);
        memory.words(HEAP + 0x148, &[0x291]);
        memory.words(HEAP + 0x3d8, &[(END - (HEAP + 0x3d0)) | 1]);
        (memory, users)
    }

    #[test]
    fn a_walk_that_came_far_is_not_tried_again() {
        let mut memory = FakeMemory::new();
        let len = 3 * HEAD;
        memory.region(HEAP, len, "rw-p", "[heap]");
        // Chunks lead far and then nowhere; a second start would lead to the
        // end, past chunks that the first says are there.
        memory.words(HEAP + 8, &[(2 * HEAD) | 1]);
        memory.words(HEAP + 2 * HEAD + 8, &[7]);
        memory.words(HEAP + 0x108, &[0x291]);
        memory.words(HEAP + 0x398, &[(len - 0x390) | 1]);
        let heap = Range::new(HEAP, HEAP + len);
        assert!(brk(&memory, heap, HEAP + len).is_none());
        // One that did not come far is no obstacle.
        memory.words(HEAP + 8, &[0]);
        assert!(brk(&memory, heap, HEAP + len).is_some());
    }

    #[test]
    fn a_heap_that_was_left_ends_with_fence_posts() {
        let (memory, users) = heap(&[0x291, 0x1d51, 0x11, 0x1]);
        let found = brk(&memory, Range::new(HEAP, END), END);
        assert_eq!(found.map(|f| addrs(&f)), Some(users[..2].to_vec()));
        let (memory, _) = heap(&[0x291, 0x0, 0x1d61]);
        assert!(brk(&memory, Range::new(HEAP, END), END).is_none());
    }

    #[test]
    fn lists_of_free_chunks_are_followed_mangled_or_not() {
        let (mut memory, users) = heap(&[0x291, 0x31, 0x31, 0x31, 0x31]);
        let mangled = |at: u64, next: u64| at >> 12 ^ next;
        // The cache: three of 0x31 in bin 1, counted in two bytes each.
        memory.words(users[0], &[3 << 16]);
        memory.words(users[0] + 128 + 8, &[users[1]]);
        memory.words(users[1], &[mangled(users[1], users[3])]);
        memory.words(users[3], &[mangled(users[3], users[2])]);
        memory.words(users[2], &[mangled(users[2], 0)]);
        let cache = Found {
            addr: users[0],
            size: 0x288,
        };
        let mut free = HashSet::new();
        in_cache(&memory, cache, &mut free);
        assert_eq!(free, [users[1], users[2], users[3]].into());
        // A count that does not fit: no cache at all.
        memory.words(users[0], &[5 << 16]);
        free.clear();
        in_cache(&memory, cache, &mut free);
        assert!(free.is_empty());
        // As before 2.32, and in a circle.
        memory.words(users[0], &[3 << 16]);
        memory.words(users[1], &[users[3]]);
        memory.words(users[3], &[users[2]]);
        memory.words(users[2], &[0]);
        in_cache(&memory, cache, &mut free);
        assert_eq!(free, [users[1], users[2], users[3]].into());
        free.clear();
        memory.words(users[3], &[users[1]]);
        in_cache(&memory, cache, &mut free);
        assert!(free.is_empty());
    }
}
