//! Blocks that are mappings of their own: the largest.
//!
//! ```text
//! mapping   0 … | prev_size = bytes before the chunk | size, flag 2 | user's bytes …
//! ```
//! The chunk begins with the mapping, or later where an alignment was asked
//! for (then what lies before was a chunk's beginning, and may look like one).
//! The kernel joins mappings, so a block may begin at any page; which pages are
//! tried depends on how many blocks the allocator says there are.

use super::segments::Found;
use super::state::{IS_MMAPPED, MIN_CHUNK, SIZE_FLAGS};
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
    let mut found = Vec::new();
    for place in &places {
        side_by_side(&mut words, *place, &mut found);
    }
    if said.is_none_or(|said| said == sum(&found)) {
        return found;
    }
    let mut thorough = Vec::new();
    for place in &places {
        at_any_page(&mut words, *place, &mut thorough);
    }
    if said.is_some_and(|said| said == sum(&thorough)) {
        return thorough;
    }
    found
}

fn sum(found: &[(Range, Found)]) -> (u64, u64) {
    let bytes = found.iter().map(|(range, _)| range.len()).sum();
    (found.len() as u64, bytes)
}

/// Blocks from the beginning of `place` on, one behind the other.
fn side_by_side(words: &mut Words<'_>, place: Range, found: &mut Vec<(Range, Found)>) {
    let mut at = place.start.0;
    while let Some(block) = mapped_at(words, at, place.end.0, MAX_ALIGN) {
        at = block.0.end.0;
        found.push(block);
    }
}

/// Blocks wherever one can begin.
fn at_any_page(words: &mut Words<'_>, place: Range, found: &mut Vec<(Range, Found)>) {
    let Some(mut at) = place.start.0.checked_next_multiple_of(PAGE) else {
        return;
    };
    while at < place.end.0 {
        match mapped_at(words, at, place.end.0, MAX_ALIGN_ANYWHERE) {
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
) -> Option<(Range, Found)> {
    let plain = chunk(words, start, start, end);
    // Where an alignment was asked for, the header of the whole mapping is left
    // behind, and both end at the same place.
    let stop = plain.map(|(range, _)| range.end.0);
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
    let stop = at.checked_add(size)?;
    let fits = header & SIZE_FLAGS == IS_MMAPPED
        && size >= MIN_CHUNK
        && stop <= end
        && stop.is_multiple_of(PAGE)
        && words.at(at)? == at - start;
    fits.then(|| {
        let block = Found {
            addr: at + 16,
            size: size - 16,
        };
        (Range::new(start, stop), block)
    })
}
