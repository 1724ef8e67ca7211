//! Walking the chunks of a heap.
//!
//! ```text
//! chunk   prev_size | size, flags | user's bytes …      flag 1: the chunk before is in use
//! ```
//! Chunks tile a heap up to its top chunk, or to fence posts at the end of a
//! heap that was left. A free chunk of a bin is known by the flag in the next;
//! those in fastbins and in a thread's cache look used (see `lists`).

use super::state::{self, ARENA_ALIGN, IS_MMAPPED, MIN_CHUNK, Params, SIZE_FLAGS};
use super::{ARENA_HEAP, Arena, ArenaSum, Heaps, top_end};
use crate::regions::{Class, Classified};
use crate::words::{Words, read_words};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};

/// The chunk before is in use.
const PREV_INUSE: u64 = 1;
/// Fence posts at the end of a heap that its arena has left.
const FENCE: u64 = 16;
/// Size words of the chunk that holds a thread's cache, the first that a
/// thread's first malloc makes: glibc 2.26 to 2.29, to 2.41, from 2.42.
const CACHE_CHUNKS: [u64; 3] = [0x251, 0x291, 0x301];
/// How far into `[heap]` malloc's first chunk is looked for.
pub const HEAD: u64 = 1 << 20;
/// Starts of heaps tried.
const TRIES: usize = 64;
/// Bytes walked in vain, all in all, while parts are looked for: the process
/// stands still.
const EFFORT: u64 = 256 << 20;
/// Parts that a program may cut `[heap]` into.
const MOST_PARTS: usize = 1024;
/// Where the first chunk of a thread arena's heap may lie: behind `heap_info`
/// and, in the first heap, `malloc_state`.
const ARENA_HEAD: u64 = 4096;
/// Pages of a mapping at which a part of the main arena may begin.
const PAGES_TRIED: usize = 1024;

/// A block of a heap: its user's address and usable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Address that the program received.
    pub addr: u64,
    /// Bytes that the program may use, at least what it asked for.
    pub size: u64,
}

/// Where a free chunk is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FreePlace {
    /// A thread's cache.
    Cache,
    /// A fastbin.
    Fastbin,
    /// A bin: small, large or unsorted.
    Bin,
    /// The top of its heap.
    Top,
}

/// A free chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// The chunk, header included.
    pub chunk: Range,
    /// Where it is kept.
    pub place: FreePlace,
}

/// A heap whose chunks fit together.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// All of it: from its first chunk, in a thread's arena with what lies
    /// before, to its end.
    pub range: Range,
    /// Address of its arena's `malloc_state`.
    pub arena: u64,
    /// Blocks in use, ascending.
    pub blocks: Vec<Found>,
    /// Free chunks, ascending.
    pub free: Vec<Free>,
}

/// Walks all heaps. `brk` are `[heap]`s, `arenas` the main ones among `all`,
/// `thread_heaps` the parts in use of thread arenas' heaps.
pub(super) fn walk(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    brk: &[Range],
    arenas: &[Arena],
    all: &[Arena],
    thread_heaps: &[Range],
    params: Option<Params>,
) -> Heaps {
    let mut heaps = Heaps::default();
    let base = params.map_or(0, |p| p.sbrk_base);
    let main = arenas.first().map_or(0, Arena::address);
    let mut between = 0;
    for heap in brk {
        let parts = brk_segments(memory, *heap, arenas, base);
        match (parts.first(), parts.last()) {
            (Some(first), Some(last)) => {
                // malloc counts what lies between as its own.
                let all = last.range.end.0 - first.range.start.0;
                between += all - parts.iter().map(|part| part.range.len()).sum::<u64>();
            }
            // Without an arena it is not malloc's.
            _ if arenas.is_empty() => {}
            _ => heaps.unwalked.push(*heap),
        }
        heaps
            .segments
            .extend(parts.into_iter().map(|segment| Segment {
                arena: main,
                ..segment
            }));
    }
    for arena in arenas {
        let elsewhere = mapped_top(memory, regions, *arena, brk);
        heaps.segments.extend(elsewhere.map(|segment| Segment {
            arena: arena.address(),
            ..segment
        }));
    }
    for heap in thread_heaps {
        match arena_segment(memory, all, *heap) {
            Some(segment) => heaps.segments.push(segment),
            None => heaps.unwalked.push(*heap),
        }
    }
    heaps.segments.sort_unstable_by_key(|heap| heap.range);
    heaps.arenas = all
        .iter()
        .filter_map(|arena| {
            let at = arena.address();
            let own = heaps.segments.iter().filter(|s| s.arena == at);
            Some(ArenaSum {
                at,
                said: arena.system_mem(memory)?,
                found: own.map(|s| s.range.len()).sum::<u64>()
                    + if at == main { between } else { 0 },
            })
        })
        // An arena that never had memory: the loader's, in a static program's
        // library.
        .filter(|sum| sum.said != 0)
        .collect();
    heaps
}

/// The main arenas and those of the threads' heaps, which were looked at when
/// the heaps were found.
pub(super) fn all_arenas(
    memory: &dyn MemoryReader,
    main: &[Arena],
    thread_heaps: &[Range],
) -> Vec<Arena> {
    let mut all = main.to_vec();
    for heap in thread_heaps {
        let at = memory.read_u64(heap.start).unwrap_or(0);
        if !all.iter().any(|arena| arena.address() == at) {
            all.extend(match main.first() {
                Some(main) => main.like(at),
                None => Arena::at(memory, at),
            });
        }
    }
    all
}

/// Walks `[heap]`: up to the end of the top chunk or, when the top is
/// elsewhere, to its own end. Where the program moved the break itself, the
/// part before ends with fence posts, and another begins behind its memory.
fn brk_segments(
    memory: &dyn MemoryReader,
    heap: Range,
    arenas: &[Arena],
    base: u64,
) -> Vec<Segment> {
    let ends = arenas.iter().filter_map(|a| top_end(memory, *a));
    let top = ends
        .filter(|end| heap.start.0 < *end && *end <= heap.end.0)
        .max();
    let end = match top {
        Some(end) => end,
        None if arenas.is_empty() => return Vec::new(),
        None => heap.end.0,
    };
    let mut words = Words::new(memory);
    let base = base.checked_next_multiple_of(16).unwrap_or(0);
    if heap.contains(Addr(base)) {
        let parts = parts(&mut words, base, end);
        if !parts.is_empty() {
            return parts;
        }
    }
    let whole = first_walk_of(memory, Range::new(heap.start.0, end));
    whole.into_iter().collect()
}

/// The chunks from `from` to `end`, in as many parts as fence posts make of
/// them; none if they do not lead there.
pub(super) fn parts(words: &mut Words<'_>, from: u64, end: u64) -> Vec<Segment> {
    let mut parts = Vec::new();
    let mut from = from;
    let mut effort = EFFORT;
    while parts.len() < MOST_PARTS {
        let fence = match segment(words, from, end) {
            Ok(last) => {
                parts.push(last);
                return parts;
            }
            Err(stopped) => stopped.fence,
        };
        // Two posts end the part; what follows is not malloc's.
        let Some(fence) = fence else { break };
        let Ok(part) = segment(words, from, fence) else {
            break;
        };
        let behind = (fence..end.min(fence.saturating_add(HEAD))).step_by(16);
        let next = behind.skip(1).find(|at| {
            let header = words.at(at + 8);
            let likely = header.is_some_and(|w| w & PREV_INUSE != 0 && w & !SIZE_FLAGS != FENCE);
            if !likely || effort == 0 {
                return false;
            }
            match segment(words, *at, end) {
                Ok(_) => true,
                Err(stopped) => {
                    effort = effort.saturating_sub(stopped.at - at);
                    // Behind it is another such place.
                    stopped.fence.is_some_and(|f| f - at > HEAD)
                }
            }
        });
        let Some(next) = next else { break };
        from = next;
        parts.push(part);
    }
    Vec::new()
}

/// The walk to the end of `heap` from where its first chunk may lie.
pub(super) fn first_walk_of(memory: &dyn MemoryReader, heap: Range) -> Option<Segment> {
    let mut words = Words::new(memory);
    let starts = likely_starts(&mut words, heap.start.0, heap.end.0);
    first_walk(&mut words, starts, heap.end.0, HEAD)
}

/// Where malloc's first chunk in the `[heap]` from `start` to `end` may lie:
/// at its beginning, or where something looks like a thread's cache.
pub fn likely_starts(words: &mut Words<'_>, start: u64, end: u64) -> Vec<u64> {
    let Some(first) = start.checked_next_multiple_of(16) else {
        return Vec::new();
    };
    let others = (first..end.min(first.saturating_add(HEAD))).step_by(16);
    let others = others
        .filter(|at| *at != first)
        .filter(|at| words.at(at + 8).is_some_and(|w| CACHE_CHUNKS.contains(&w)))
        .take(TRIES);
    std::iter::once(first).chain(others).collect()
}

/// Where sbrk failed, or the program moved the break itself, the main arena
/// goes on in a mapping: the one that holds its top chunk.
fn mapped_top(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    arena: Arena,
    brk: &[Range],
) -> Option<Segment> {
    let end = top_end(memory, arena)?;
    let last = Addr(end.checked_sub(1)?);
    if brk.iter().any(|heap| heap.contains(last)) {
        return None;
    }
    let region = regions.iter().find(|r| r.range.contains(last))?;
    if region.class != Class::Anonymous {
        return None;
    }
    // The kernel joins mappings, so it may begin at any page.
    let mut words = Words::new(memory);
    let pages = (region.range.start.0..end).step_by(4096).take(PAGES_TRIED);
    first_walk(&mut words, pages, end, HEAD)
}

/// The heaps of thread arenas in `range`: of each the part in use.
pub fn arena_heaps(memory: &dyn MemoryReader, range: Range) -> Vec<Range> {
    let mut found = Vec::new();
    let mut at = range.start.0.checked_next_multiple_of(ARENA_ALIGN);
    while let Some(start) = at.filter(|start| *start < range.end.0) {
        found.extend(state::arena_heap(memory, start));
        at = start.checked_add(ARENA_ALIGN);
    }
    found
}

/// Walks the heap of a thread arena: `heap` is its part in use.
fn arena_segment(memory: &dyn MemoryReader, all: &[Arena], heap: Range) -> Option<Segment> {
    let info = read_words(memory, heap.start.0, 24);
    let arena = *info.first()?;
    let end = heap.start.0.checked_add(*info.get(2)?)?;
    // Its first heap holds the arena itself.
    let own = arena.checked_sub(heap.start.0);
    let begin = if own.is_some_and(|d| d < ARENA_HEAD) {
        let own = all.iter().find(|a| a.address() == arena);
        own?.range.end.0
    } else {
        heap.start.0.checked_add(32)?
    };
    let first = begin.checked_next_multiple_of(16)?;
    let starts = (first..end.min(first.saturating_add(ARENA_HEAD))).step_by(16);
    let found = first_walk(&mut Words::new(memory), starts, end, ARENA_HEAP)?;
    Some(Segment {
        arena,
        range: Range::new(heap.start.0, end),
        ..found
    })
}

/// The walk from the first of `starts` that leads to `end`. One that comes
/// further than `head` bytes was on true chunks: where it ends, the others
/// would, too.
fn first_walk(
    words: &mut Words<'_>,
    starts: impl IntoIterator<Item = u64>,
    end: u64,
    head: u64,
) -> Option<Segment> {
    for from in starts {
        match segment(words, from, end) {
            Ok(walked) => return Some(walked),
            Err(stopped) if stopped.at.saturating_sub(from) > head => return None,
            Err(_) => {}
        }
    }
    None
}

/// Where a walk stopped short of its goal.
#[derive(Clone, Copy, Debug)]
struct Stopped {
    /// The chunk that is none.
    at: u64,
    /// Behind the first two fence posts that it passed.
    fence: Option<u64>,
}

/// The chunks from the one at `from` to `end`, if they lead there; else where
/// they stop.
fn segment(words: &mut Words<'_>, from: u64, end: u64) -> Result<Segment, Stopped> {
    let mut all = Segment {
        range: Range::new(from, end),
        ..Segment::default()
    };
    let mut fence = None;
    let mut posts = 0;
    let mut last: Option<Range> = None;
    let mut at = from;
    while at < end {
        let stopped = Stopped { at, fence };
        let header = words.at(at.saturating_add(8)).ok_or(stopped)?;
        let size = header & !SIZE_FLAGS;
        let used_before = header & PREV_INUSE != 0;
        // The chunk before is a block, if this one says that it is in use.
        let freed_before = last.is_some() && !used_before;
        if let Some(chunk) = last.take() {
            if used_before {
                all.blocks.push(Found {
                    addr: chunk.start.0 + 16,
                    size: chunk.len() - 8,
                });
            } else {
                all.free.push(Free {
                    chunk,
                    place: FreePlace::Bin,
                });
            }
        }
        let post = size == FENCE || (size == 0 && end - at <= 2 * FENCE);
        if post && (used_before || freed_before) {
            at = at.checked_add(FENCE).ok_or(stopped)?;
            posts += 1;
            if posts == 2 {
                fence = fence.or(Some(at));
            }
            continue;
        }
        posts = 0;
        let next = at.checked_add(size).filter(|next| *next <= end);
        let next = next.ok_or(stopped)?;
        if size < MIN_CHUNK || !size.is_multiple_of(16) || header & IS_MMAPPED != 0 {
            return Err(stopped);
        }
        last = Some(Range::new(at, next));
        at = next;
    }
    all.free.extend(last.map(|chunk| Free {
        chunk,
        place: FreePlace::Top,
    }));
    Ok(all)
}
