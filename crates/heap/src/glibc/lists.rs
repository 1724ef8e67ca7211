//! Lists of free chunks that look used: thread caches and fastbins.
//!
//! ```text
//! tcache_perthread_struct      counts            lists        chunk
//!   2.26 to 2.29               64 of one byte    64           0x250
//!   2.30 to 2.41               64 of two bytes   64           0x290
//!   from 2.42                  76 of two bytes   76           0x300
//! ```
//! From 2.42 the counts tell how many chunks more there is room for; from 2.43
//! there are no fastbins. The first
//! word of a free chunk names the next: of a cache by its user's address, of a
//! fastbin by the chunk's; mangled with the word's own address since 2.32
//! ("safe-linking").

use super::segments::{Found, Free, FreePlace, Segment};
use super::{Arena, CHUNK_HEADER as HEADER, Heaps};
use crate::words::read_words;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range, ThreadState};
use std::collections::{HashMap, HashSet};

/// Chunks in a bin of a cache, unless tuned: up to 2.42, and from then on.
const CACHED: [usize; 2] = [7, 16];
/// Chunks in a bin of a cache at most: the counts have two bytes.
const MOST_CACHED: usize = 1 << 16;
/// Chunks in a fastbin at most: a hostile list may lead through all memory.
const MOST_IN_FASTBIN: usize = 1 << 24;
/// Bytes below the thread control block that hold glibc's own thread-local
/// variables, the cache's address among them.
const STATIC_TLS: u64 = 4096;

/// The shape of a cache, by the usable size of its chunk. One that was made
/// from a free chunk may be 16 bytes larger: so much cannot be a chunk.
struct Shape {
    bins: usize,
    /// Bytes of a count.
    width: u64,
    /// Counts tell the room left.
    counts_room: bool,
}

fn shape(usable: u64) -> Option<Shape> {
    let (bins, width, counts_room) = match usable {
        0x248 | 0x258 => (64, 1, false),
        0x288 | 0x298 => (64, 2, false),
        0x2f8 | 0x308 => (76, 2, true),
        _ => return None,
    };
    Some(Shape {
        bins,
        width,
        counts_room,
    })
}

/// Moves what is in such lists from the blocks to the free chunks, and takes
/// the caches themselves out.
pub(super) fn take_out(
    memory: &dyn MemoryReader,
    threads: &[ThreadState],
    arenas: &[Arena],
    heaps: &mut Heaps,
) {
    let (free, caches, broken) = find(memory, threads, arenas, heaps);
    heaps.caches = caches.len() as u32;
    heaps.broken_lists = broken;
    if free.is_empty() && caches.is_empty() {
        return;
    }
    // Blocks ascend, and few of them are meant: no look-up for each.
    let mut out: Vec<(u64, Option<FreePlace>)> = free
        .iter()
        .map(|(at, place)| (*at, Some(*place)))
        .chain(caches.into_iter().map(|at| (at, None)))
        .collect();
    // A cache that a list leads to is a chunk that was free before.
    out.sort_unstable_by_key(|(at, place)| (*at, place.is_none()));
    out.dedup_by_key(|(at, _)| *at);
    let mut out = out.into_iter().peekable();
    for segment in &mut heaps.segments {
        let moved = &mut segment.free;
        segment.blocks.retain(|block| {
            while out.next_if(|(at, _)| *at < block.addr).is_some() {}
            let Some((_, place)) = out.next_if(|(at, _)| *at == block.addr) else {
                return true;
            };
            let chunk = block.addr - HEADER;
            moved.extend(place.map(|place| Free {
                chunk: Range::new(chunk, chunk + block.size + 8),
                place,
            }));
            false
        });
        moved.sort_unstable_by_key(|free| free.chunk.start);
    }
    take_out_mapped(&free, heaps);
}

/// Since 2.43 a cache that is allowed large chunks takes mapped ones, too.
fn take_out_mapped(free: &HashMap<u64, FreePlace>, heaps: &mut Heaps) {
    let said = &mut heaps.said_mapped;
    let before = heaps.segments.len();
    let segments = &mut heaps.segments;
    heaps.mapped.retain(|(range, block)| {
        let Some(place) = free.get(&block.addr) else {
            return true;
        };
        if let Some((count, bytes)) = said {
            *count = count.saturating_sub(1);
            *bytes = bytes.saturating_sub(range.len());
        }
        segments.push(Segment {
            range: *range,
            free: vec![Free {
                chunk: *range,
                place: *place,
            }],
            ..Segment::default()
        });
        false
    });
    if heaps.segments.len() > before {
        heaps.segments.sort_unstable_by_key(|heap| heap.range);
    }
}

/// User's addresses of free chunks, of caches, and how many lists broke off.
fn find(
    memory: &dyn MemoryReader,
    threads: &[ThreadState],
    arenas: &[Arena],
    heaps: &Heaps,
) -> (HashMap<u64, FreePlace>, HashSet<u64>, u32) {
    let is_block = |addr: u64| is_block(heaps, addr);
    let mut free = HashMap::new();
    let mut broken = 0;
    let known = of_threads(memory, threads, heaps);
    let first: HashSet<u64> = heaps
        .segments
        .iter()
        .filter_map(|segment| Some(segment.blocks.first()?.addr))
        .collect();
    let mut caches = HashSet::new();
    let blocks = heaps.segments.iter().flat_map(|s| &s.blocks);
    for cache in blocks.filter(|found| shape(found.size).is_some()) {
        // Where threads cannot tell: the first thing that malloc makes in an
        // arena is its thread's cache, up to 2.42. But when the thread has
        // ended, or uses none, the chunk may be anything.
        let of_thread = known.as_ref().is_some_and(|k| k.contains(&cache.addr));
        let likely = of_thread || known.is_none() && first.contains(&cache.addr);
        let mut chunks = HashSet::new();
        let fits = in_cache(memory, *cache, likely, &is_block, &mut chunks);
        if fits && (likely || !chunks.is_empty()) {
            caches.insert(cache.addr);
        } else if of_thread {
            // Its thread is at work on it: what was followed is free.
            broken += 1;
        } else {
            // Whatever it is, it is the program's.
            continue;
        }
        free.extend(chunks.into_iter().map(|at| (at, FreePlace::Cache)));
    }
    for arena in arenas {
        let fastbins = arena.fastbins(memory);
        for first in fastbins.iter().filter(|first| **first != 0) {
            let mut list = HashSet::new();
            let link = Link {
                first: first.wrapping_add(HEADER),
                shift: HEADER,
                most: MOST_IN_FASTBIN,
            };
            if link.follow(memory, &is_block, &mut list).is_none() {
                broken += 1;
            }
            free.extend(list.into_iter().map(|at| (at, FreePlace::Fastbin)));
        }
    }
    (free, caches, broken)
}

fn is_block(heaps: &Heaps, addr: u64) -> bool {
    let mapped = |addr| heaps.mapped.binary_search_by_key(&addr, |(_, b)| b.addr);
    block(&heaps.segments, addr).is_some() || mapped(addr).is_ok()
}

fn block(segments: &[Segment], addr: u64) -> Option<&Found> {
    let at = segments.partition_point(|s| s.range.end.0 <= addr);
    let blocks = &segments.get(at)?.blocks;
    let at = blocks.binary_search_by_key(&addr, |found| found.addr);
    blocks.get(at.ok()?)
}

/// The caches that threads' static TLS points to; `None` when no thread's can
/// be read. glibc's variable is at the
/// same distance from every thread's control block; other words there, on
/// stacks too, may point to blocks of the same size.
fn of_threads(
    memory: &dyn MemoryReader,
    threads: &[ThreadState],
    heaps: &Heaps,
) -> Option<HashSet<u64>> {
    let is_block = |addr: u64| is_block(heaps, addr);
    // The block, whether it reads as a cache, and how many chunks it has.
    let mut by_distance: HashMap<u64, Vec<(u64, bool, usize)>> = HashMap::new();
    let mut read = false;
    for thread in threads.iter().filter(|t| t.tcb.0 > STATIC_TLS) {
        // The first thread's may begin the mapping.
        let region = memory.map().find(thread.tcb).map_or(0, |r| r.range.start.0);
        let low = (thread.tcb.0 - STATIC_TLS).max(region);
        let words = read_words(memory, low, thread.tcb.0 - low);
        read |= !words.is_empty();
        for (i, word) in words.iter().enumerate() {
            let found = block(&heaps.segments, *word);
            let Some(cache) = found.filter(|found| shape(found.size).is_some()) else {
                continue;
            };
            let distance = thread.tcb.0 - low - 8 * i as u64;
            let mut chunks = HashSet::new();
            let fits = in_cache(memory, *cache, true, &is_block, &mut chunks);
            let cache = (*word, fits, chunks.len());
            by_distance.entry(distance).or_default().push(cache);
        }
    }
    let fitting = |caches: &Vec<(u64, bool, usize)>| {
        let fitting = caches.iter().filter(|(_, fits, _)| *fits);
        // A block of zeros reads as an empty cache.
        (fitting.clone().count(), fitting.map(|(_, _, n)| *n).sum())
    };
    let best = by_distance.iter().max_by_key(|(distance, caches)| {
        let (count, chunks): (usize, usize) = fitting(caches);
        let nearest = std::cmp::Reverse(**distance);
        (count, chunks, caches.len(), nearest)
    });
    let best = best.filter(|(_, caches)| fitting(caches).0 > 0);
    let caches = best.into_iter().flat_map(|(_, caches)| caches);
    read.then(|| caches.map(|(cache, ..)| *cache).collect())
}

/// Puts the user's addresses of the chunks in the thread cache that the block
/// `cache` holds into `all`; false when it is no cache, or is being changed:
/// then those that could be followed are there.
fn in_cache(
    memory: &dyn MemoryReader,
    cache: Found,
    likely: bool,
    is_block: &dyn Fn(u64) -> bool,
    all: &mut HashSet<u64>,
) -> bool {
    let Some(Shape {
        bins,
        width,
        counts_room,
    }) = shape(cache.size)
    else {
        return false;
    };
    let counted = bins as u64 * width;
    let words = read_words(memory, cache.addr, counted + 8 * bins as u64);
    let Some((counts, lists)) = words.split_at_checked((counted / 8) as usize) else {
        return false;
    };
    let count = |bin: usize| {
        let bit = bin as u64 * width * 8;
        let word = counts.get((bit / 64) as usize).copied().unwrap_or(0);
        ((word >> (bit % 64)) & ((1 << (width * 8)) - 1)) as usize
    };
    let most = if likely { MOST_CACHED } else { CACHED[1] };
    let mut fits = lists.len() == bins;
    let mut room = None;
    for (bin, head) in lists.iter().enumerate() {
        let link = Link {
            first: *head,
            shift: 0,
            most,
        };
        let length = match head {
            0 => Some(0),
            _ => link.follow(memory, is_block, all),
        };
        let Some(length) = length else {
            fits = false;
            continue;
        };
        if counts_room {
            // All lists have the same room in all.
            fits &= *room.get_or_insert(length + count(bin)) == length + count(bin);
        } else {
            fits &= length == count(bin);
        }
    }
    // A block of zeros is no cache.
    fits && (likely || room.is_none_or(|room| CACHED.contains(&room)))
}

/// A list of free chunks.
struct Link {
    /// User's address of the first.
    first: u64,
    /// From what a link names to a user's address.
    shift: u64,
    /// Most chunks that it may have.
    most: usize,
}

impl Link {
    /// Follows it and puts those of its chunks that are blocks into `into`; how
    /// many chunks it has, or `None` when it breaks off, turns back or is too
    /// long. It may lead through parts of a heap that were not found.
    fn follow(
        &self,
        memory: &dyn MemoryReader,
        is_block: &dyn Fn(u64) -> bool,
        into: &mut HashSet<u64>,
    ) -> Option<usize> {
        let mut seen = HashSet::new();
        let mut at = self.first;
        while seen.len() < self.most {
            let known = is_block(at);
            if !(known || like_a_chunk(memory, at)) || !seen.insert(at) {
                return None;
            }
            if known {
                into.insert(at);
            }
            let plain = memory.read_u64(Addr(at)).ok()?;
            let demangled = plain ^ at >> 12;
            if demangled == 0 || plain == 0 {
                return Some(seen.len());
            }
            let [demangled, plain] = [demangled, plain].map(|word| word.wrapping_add(self.shift));
            at = if is_block(demangled) {
                demangled
            } else if is_block(plain) {
                plain
            } else if like_a_chunk(memory, demangled) {
                demangled
            } else {
                plain
            };
        }
        None
    }
}

/// The words before `user` could be a small chunk's header.
fn like_a_chunk(memory: &dyn MemoryReader, user: u64) -> bool {
    let header = user.checked_sub(8).filter(|at| at % 16 == 8);
    let header = header.and_then(|at| memory.read_u64(Addr(at)).ok());
    header.is_some_and(|word| word & 1 != 0 && (0x20..0x1_0000).contains(&(word & !7)))
}
