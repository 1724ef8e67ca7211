//! The bytes of blocks and roots, read in large pieces: blocks that lie close
//! together with one read, large ones piece by piece, always into the same
//! buffer.

use super::heuristics::Peek;
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{Addr, LiveBlock, Range};
use std::collections::HashMap;

/// Blocks from here on are streamed: one read each costs nothing then.
const LARGE: u64 = 1 << 20;
/// Bytes of one streamed piece, and most bytes read at once for several
/// blocks: what was read should still be cached when it is looked at.
const PIECE: u64 = 256 << 10;
/// Gaps between blocks up to here are read along: that costs less than
/// another read.
const GAP: u64 = 16 << 10;
const PAGE: u64 = 4096;
/// Pages kept for the idioms' look-ups.
const PEEKED_PAGES: usize = 4096;

/// How much was scanned, and what could not be read of it. Bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub scanned: u64,
    pub unreadable: u64,
}

/// A copied stretch of memory. Unreadable bytes are zero and listed.
#[derive(Default)]
struct Stretch {
    start: u64,
    bytes: Vec<u8>,
    /// Ascending and disjoint.
    holes: Vec<Range>,
}

impl Stretch {
    fn load(&mut self, memory: &dyn MemoryReader, start: u64, len: u64) {
        self.start = start;
        self.holes.clear();
        self.bytes.resize(len as usize, 0);
        let end = start + len;
        let mut at = start;
        let mut failures = 0;
        while at < end {
            let done = memory.read_some(Addr(at), &mut self.bytes[(at - start) as usize..]);
            if done > 0 {
                at += (done as u64).min(end - at);
                failures = 0;
                continue;
            }
            // A hole: to the next page, in growing steps so that a large
            // one costs few reads; to the next region where the map has none.
            let step = PAGE << failures.min(8u32);
            failures += 1;
            let skip = match memory.map().find(Addr(at)) {
                Some(region) if region.read => (at | (PAGE - 1)).saturating_add(1 + step - PAGE),
                Some(region) => region.range.end.0,
                None => next_region(memory.map(), at),
            };
            let next = skip.clamp(at + 1, end);
            self.bytes[(at - start) as usize..(next - start) as usize].fill(0);
            match self.holes.last_mut() {
                Some(last) if last.end.0 == at => last.end = Addr(next),
                _ => self.holes.push(Range::new(at, next)),
            }
            at = next;
        }
    }

    /// The bytes `[start, start + len)`, when all of them are here.
    fn slice(&self, start: u64, len: u64) -> Option<&[u8]> {
        let from = usize::try_from(start.checked_sub(self.start)?).ok()?;
        let to = from.checked_add(usize::try_from(len).ok()?)?;
        self.bytes.get(from..to)
    }

    fn unreadable(&self, start: u64, len: u64) -> u64 {
        let range = Range::new(start, start + len);
        let from = self.holes.partition_point(|h| h.end.0 <= start);
        self.holes[from..]
            .iter()
            .map_while(|h| h.intersect(&range))
            .map(|r| r.len())
            .sum()
    }
}

fn next_region(map: &MemoryMap, at: u64) -> u64 {
    let i = map.regions().partition_point(|r| r.range.start.0 <= at);
    map.regions().get(i).map_or(u64::MAX, |r| r.range.start.0)
}

/// Length of a block's part that is its own: to its end, or to the next
/// block where the records contradict each other.
pub(crate) fn extent(blocks: &[LiveBlock], at: u32) -> (u64, u64) {
    let at = at as usize;
    let Some(block) = blocks.get(at) else {
        return (0, 0);
    };
    let room = match blocks.get(at + 1) {
        Some(next) => next.addr.0 - block.addr.0,
        None => (1 << 47) - block.addr.0.min(1 << 47),
    };
    (block.addr.0, block.size.min(room))
}

/// Reads blocks and ranges.
pub(crate) struct Scanner<'a> {
    memory: &'a dyn MemoryReader,
    blocks: &'a [LiveBlock],
    buffer: Stretch,
    extents: Vec<(u32, u64, u64)>,
    pub tally: Tally,
}

impl<'a> Scanner<'a> {
    pub fn new(memory: &'a dyn MemoryReader, blocks: &'a [LiveBlock]) -> Scanner<'a> {
        Scanner {
            memory,
            blocks,
            buffer: Stretch::default(),
            extents: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Hands over `range` in pieces with their addresses. A range whose ends
    /// are multiples of 8 comes in pieces whose ends are.
    pub fn range(&mut self, range: Range, mut sink: impl FnMut(u64, &[u8])) {
        let mut at = range.start.0;
        while at < range.end.0 {
            let Some(region) = self.memory.map().find(Addr(at)).filter(|r| r.read) else {
                // Round up again: words stay aligned to the range's start.
                let next = match self.memory.map().find(Addr(at)) {
                    Some(region) => region.range.end.0,
                    None => next_region(self.memory.map(), at),
                };
                let skip = next.min(range.end.0) - at;
                let skip = skip.checked_next_multiple_of(8).unwrap_or(skip);
                self.tally.unreadable += skip.min(range.end.0 - at);
                at = at.saturating_add(skip);
                continue;
            };
            let mut len = PIECE.min(range.end.0 - at);
            if region.range.end.0 - at >= 8 {
                len = len.min(region.range.end.0 - at);
            }
            self.buffer.load(self.memory, at, len);
            self.tally.scanned += len;
            self.tally.unreadable += self.buffer.unreadable(at, len);
            sink(at, &self.buffer.bytes);
            at += len;
        }
    }

    /// Hands over the bytes of each block in `batch` in ascending order (a
    /// large block in several pieces, one after the other) and empties the
    /// batch. Blocks without bytes are left out.
    pub fn blocks(&mut self, batch: &mut Vec<u32>, mut sink: impl FnMut(u32, &[u8])) {
        let mut extents = std::mem::take(&mut self.extents);
        extents.clear();
        extents.extend(batch.drain(..).filter_map(|at| {
            let (start, len) = extent(self.blocks, at);
            (len > 0).then_some((at, start, len))
        }));
        if !extents.is_sorted() {
            extents.sort_unstable();
        }
        self.read(&extents, &mut sink);
        self.extents = extents;
    }

    fn read(&mut self, extents: &[(u32, u64, u64)], sink: &mut impl FnMut(u32, &[u8])) {
        let mut from = 0;
        while let Some(&(at, start, len)) = extents.get(from) {
            if len >= LARGE {
                self.range(Range::new(start, start + len), |_, bytes| sink(at, bytes));
                from += 1;
                continue;
            }
            let mut end = start + len;
            let mut to = from + 1;
            while let Some(&(_, next, len)) = extents.get(to) {
                if next - end > GAP || next + len - start > PIECE {
                    break;
                }
                end = next + len;
                to += 1;
            }
            self.buffer.load(self.memory, start, end - start);
            let whole = self.buffer.holes.is_empty();
            for &(at, start, len) in &extents[from..to] {
                if let Some(bytes) = self.buffer.slice(start, len) {
                    self.tally.scanned += len;
                    if !whole {
                        self.tally.unreadable += self.buffer.unreadable(start, len);
                    }
                    sink(at, bytes);
                }
            }
            from = to;
        }
    }
}

/// Single look-ups for the idioms.
pub(super) struct Peeker<'a> {
    memory: &'a dyn MemoryReader,
    pages: HashMap<u64, Option<Box<[u8]>>>,
}

impl<'a> Peeker<'a> {
    pub fn new(memory: &'a dyn MemoryReader) -> Peeker<'a> {
        Peeker {
            memory,
            pages: HashMap::new(),
        }
    }

    fn page(&mut self, number: u64) -> Option<&[u8]> {
        if self.pages.len() >= PEEKED_PAGES && !self.pages.contains_key(&number) {
            self.pages.clear();
        }
        let memory = self.memory;
        self.pages
            .entry(number)
            .or_insert_with(|| {
                let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
                memory
                    .read(Addr(number * PAGE), &mut bytes)
                    .is_ok()
                    .then_some(bytes)
            })
            .as_deref()
    }
}

impl Peek for Peeker<'_> {
    fn word(&mut self, at: u64) -> Option<u64> {
        let mut word = [0; 8];
        self.bytes(at, &mut word).then(|| u64::from_le_bytes(word))
    }

    fn bytes(&mut self, at: u64, into: &mut [u8]) -> bool {
        let mut done = 0;
        while done < into.len() {
            let Some(here) = at.checked_add(done as u64) else {
                return false;
            };
            let offset = (here % PAGE) as usize;
            let part = (PAGE as usize - offset).min(into.len() - done);
            let Some(page) = self.page(here / PAGE) else {
                return false;
            };
            into[done..done + part].copy_from_slice(&page[offset..offset + part]);
            done += part;
        }
        true
    }
}
