//! Blocks that are mappings of their own: the largest.
//!
//! ```text
//! mapping   0 … | prev_size = bytes before the chunk | size, flag 2 | user's bytes …
//! ```
//! The chunk begins with the mapping, or later where an alignment was asked
//! for (then what lies before was a chunk's beginning, and may look like one).
//! It ends with the mapping; since 2.43 it counts 16 bytes less, of which its
//! user has 8.
//! The kernel joins mappings, so a block may begin at any page; which pages are
//! tried depends on how many blocks the allocator says there are.

use super::segments::Found;
use super::state::{IS_MMAPPED, MIN_CHUNK, SIZE_FLAGS, TAIL, mapped_extent};
use crate::regions::{Class, Classified};
use crate::words::Words;
use leakscope_memory::MemoryReader;
use leakscope_memory::ranges::{joined, subtract};
use leakscope_model::Range;

const PAGE: u64 = 4096;
/// Largest alignment at which an aligned block is looked for, at the likely
/// places and at any page.
const MAX_ALIGN: u64 = 1 << 21;
const MAX_ALIGN_ANYWHERE: u64 = PAGE;

/// The mapped blocks, ascending. `said` are their number and bytes, where the
/// allocator tells.
pub(super) fn find(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    thread_heaps: &[Range],
    said: Option<(u64, u64)>,
) -> Vec<(Range, Found)> {
    if said.is_some_and(|(count, _)| count == 0) {
        return Vec::new();
    }
    let heaps = joined(thread_heaps.to_vec());
    let places: Vec<Range> = regions
        .iter()
        .filter(|r| matches!(r.class, Class::Anonymous | Class::Bss))
        .flat_map(|r| subtract(r.range, &heaps))
        .collect();
    let mut words = Words::new(memory);
    let excess = |found: &[(Range, Found)]| said.map_or(Some(0), |said| excess(said, found));
    let mut first = Vec::new();
    for place in &places {
        side_by_side(&mut words, *place, &mut first);
    }
    if excess(&first) == Some(0) {
        return first;
    }
    let mut all = vec![first];
    for headers in [Headers::True, Headers::Left] {
        let mut found = Vec::new();
        for place in &places {
            at_any_page(&mut words, *place, headers, &mut found);
        }
        all.push(found);
        if all.last().and_then(|found| excess(found)) == Some(0) {
            break;
        }
    }
    let certain = all.first().map_or(&[][..], Vec::as_slice);
    let anywhere = all.get(1).map_or(&[][..], Vec::as_slice);
    if let Some(said) = said
        && all.iter().all(|found| excess(found).is_none())
        && let Some(found) = completed(said, certain, anywhere)
    {
        return found;
    }
    // The one that agrees best; if none does, what is certain.
    let best = all.iter().enumerate().rev();
    let best = best.filter_map(|(i, found)| Some((excess(found)?, i)));
    let best = best.min_by_key(|(excess, _)| *excess).map_or(0, |(_, i)| i);
    all.swap_remove(best)
}

/// Most blocks that are missing, and most places where they may be, for the
/// search to end soon.
const MISSING: usize = 3;
const MAYBE: usize = 64;

/// The certain ones, and of those that only look like blocks (old memory of a
/// collector's heap holds such words, too) the only few that make up for what
/// malloc counts more.
fn completed(
    (count, bytes): (u64, u64),
    certain: &[(Range, Found)],
    anywhere: &[(Range, Found)],
) -> Option<Vec<(Range, Found)>> {
    let sum: u64 = certain.iter().map(|(range, _)| range.len()).sum();
    let missing = usize::try_from(count.checked_sub(certain.len() as u64)?).ok()?;
    let more = bytes.checked_sub(sum)?;
    let taken = joined(certain.iter().map(|(range, _)| *range).collect());
    let is_free = |range: Range| subtract(range, &taken) == [range];
    let maybe: Vec<&(Range, Found)> = anywhere.iter().filter(|(r, _)| is_free(*r)).collect();
    if missing == 0 || missing > MISSING || maybe.len() > MAYBE {
        return None;
    }
    let sizes: Vec<u64> = maybe.iter().map(|(range, _)| range.len()).collect();
    let mut chosen = Vec::new();
    let mut solutions = Vec::new();
    choose(&sizes, 0, missing, more, &mut chosen, &mut solutions);
    let [solution] = solutions.as_slice() else {
        return None;
    };
    let chosen = solution.iter().filter_map(|at| maybe.get(*at));
    let mut all: Vec<(Range, Found)> = chosen.map(|block| **block).collect();
    all.extend_from_slice(certain);
    all.sort_unstable_by_key(|(range, _)| range.start);
    Some(all)
}

/// All ways to take `missing` of `sizes`, from `from` on, that sum up to
/// `bytes`; two are as bad as many.
fn choose(
    sizes: &[u64],
    from: usize,
    missing: usize,
    bytes: u64,
    chosen: &mut Vec<usize>,
    solutions: &mut Vec<Vec<usize>>,
) {
    if missing == 0 {
        if bytes == 0 {
            solutions.push(chosen.clone());
        }
        return;
    }
    for (at, size) in sizes.iter().enumerate().skip(from) {
        let Some(rest) = bytes.checked_sub(*size) else {
            continue;
        };
        if solutions.len() > 1 {
            return;
        }
        chosen.push(at);
        choose(sizes, at + 1, missing - 1, rest, chosen, solutions);
        chosen.pop();
    }
}

/// What a header at the beginning of a mapping is worth, where another one
/// behind it names that beginning, too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Headers {
    /// Both lead to the same end.
    True,
    /// It was left behind when realloc moved or cut the block.
    Left,
}

/// Bytes that malloc counts beyond those of `found`; `None` when that cannot be
/// all that there is.
pub(super) fn excess((count, bytes): (u64, u64), found: &[(Range, Found)]) -> Option<u64> {
    let sum: u64 = found.iter().map(|(range, _)| range.len()).sum();
    let more = bytes.checked_sub(sum);
    // glibc 2.43 adds 16 too many each time it moves such a block, and never
    // takes them back.
    let of_2_43 = |(range, block): &(Range, Found)| range.end.0 != block.addr + block.size;
    let drifts = found.is_empty() || found.iter().any(of_2_43);
    let more = more.filter(|more| *more == 0 || drifts && more.is_multiple_of(16));
    more.filter(|_| count == found.len() as u64)
}

/// Blocks from the beginning of `place` on, one behind the other.
fn side_by_side(words: &mut Words<'_>, place: Range, found: &mut Vec<(Range, Found)>) {
    let mut at = place.start.0;
    while let Some(block) = mapped_at(words, at, place.end.0, MAX_ALIGN, Headers::True) {
        at = block.0.end.0;
        found.push(block);
    }
}

/// Blocks wherever one can begin.
fn at_any_page(
    words: &mut Words<'_>,
    place: Range,
    headers: Headers,
    found: &mut Vec<(Range, Found)>,
) {
    let Some(mut at) = place.start.0.checked_next_multiple_of(PAGE) else {
        return;
    };
    while at < place.end.0 {
        match mapped_at(words, at, place.end.0, MAX_ALIGN_ANYWHERE, headers) {
            Some(block) => {
                at = block.0.end.0;
                found.push(block);
            }
            None => at += PAGE,
        }
    }
}

/// The block whose mapping begins at `start` and ends at `end` or before.
fn mapped_at(
    words: &mut Words<'_>,
    start: u64,
    end: u64,
    max_align: u64,
    headers: Headers,
) -> Option<(Range, Found)> {
    let plain = chunk(words, start, start, end);
    // Where an alignment was asked for, the header of the whole mapping is left
    // behind, and both end at the same place.
    let stop = plain.filter(|_| headers == Headers::True);
    let stop = stop.map(|(range, _)| range.end.0);
    let mut align = 32;
    while align <= max_align {
        let aligned = start.checked_add(16)?.checked_next_multiple_of(align)?;
        // The next one, where the first is where a plain block would be.
        let user = if aligned == start + 16 {
            aligned + align
        } else {
            aligned
        };
        if user >= stop.unwrap_or(end) {
            break;
        }
        let found = chunk(words, start, user - 16, stop.unwrap_or(end));
        if let Some((range, _)) = found
            && stop.is_none_or(|stop| stop == range.end.0)
        {
            return found;
        }
        align *= 2;
    }
    plain
}

fn chunk(words: &mut Words<'_>, start: u64, at: u64, end: u64) -> Option<(Range, Found)> {
    let header = words.at(at.checked_add(8)?)?;
    let size = header & !SIZE_FLAGS;
    let (offset, stop) = mapped_extent(at, words.at(at)?, header)?;
    let fits = header & SIZE_FLAGS == IS_MMAPPED
        && size >= MIN_CHUNK
        && stop <= end
        && offset == at - start;
    let tail = stop - (at + size);
    fits.then(|| {
        let block = Found {
            addr: at + 16,
            size: size - 16 + if tail == TAIL { 8 } else { 0 },
        };
        (Range::new(start, stop), block)
    })
}
