//! Which block points to which, found in one pass over the heap.
//!
//! Blocks are read in the order of their addresses, into one buffer that
//! stays in the processor's cache, and only their pointers are kept: a word
//! of 4 bytes each, where copying the heap took all its bytes, and a search
//! afterwards touches nothing but numbers. Every block is judged by what it
//! holds, reachable or lost, so no read is in vain.

use super::index::Index;
use super::inside::Inside;
use super::source::Scanner;
use crate::mappings::Watch;
use leakscope_model::LiveBlock;

/// Most bytes of pointers to keep. The marker runs beside a program that may
/// already use most of the machine; blocks whose pointers do not fit are read
/// when they are reached.
pub(super) const LIMIT: usize = 1 << 30;
/// Blocks read between two looks at the limit.
const BATCH: usize = 4096;
/// Candidate words gathered before they are looked up: their cache misses
/// overlap.
const WORDS: usize = 4096;
/// Marks an interior pointer: the rest is its place in `Graph::inner`.
const INNER: u32 = 1 << 31;

/// A word inside a block, and the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inner {
    pub word: u64,
    pub block: u32,
}

/// A pointer to another block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointer {
    /// To the start of this block.
    Start(u32),
    /// Elsewhere into it.
    Inner(Inner),
}

/// All pointers of the blocks below [`Graph::covered`]; those of a block to
/// itself are left out, since they never matter.
#[derive(Default)]
pub(crate) struct Graph {
    /// Where each block's pointers begin in `edges`; they end where the next
    /// block's begin.
    first: Vec<u32>,
    edges: Vec<u32>,
    inner: Vec<Inner>,
}

impl Graph {
    /// Reads `blocks` until their pointers take `limit` bytes. `watch` is
    /// told of pointers to mappings.
    pub fn new(
        scanner: &mut Scanner<'_>,
        blocks: &[LiveBlock],
        index: &Index,
        inside: Inside<'_>,
        watch: &mut Watch,
        limit: usize,
    ) -> Graph {
        let mut graph = Graph {
            first: Vec::with_capacity(blocks.len() + 1),
            ..Graph::default()
        };
        // Their numbers must leave room for the mark.
        if blocks.len() < INNER as usize {
            let mut words = Words::new(index, inside, watch);
            let mut batch: Vec<u32> = Vec::with_capacity(BATCH);
            let mut at = 0;
            while at < blocks.len() && graph.bytes() < limit {
                let end = blocks.len().min(at + BATCH);
                batch.extend(at as u32..end as u32);
                scanner.blocks(&mut batch, |block, bytes| {
                    for part in bytes.chunks(WORDS * 8) {
                        if !words.has_room(part) {
                            words.flush(blocks, index, watch, &mut graph);
                        }
                        words.take(block, part);
                    }
                });
                words.flush(blocks, index, watch, &mut graph);
                graph.begin(end);
                at = end;
            }
        }
        graph.first.push(graph.edges.len() as u32);
        graph
    }

    /// Number of blocks whose pointers are here: all below it.
    pub fn covered(&self) -> usize {
        self.first.len().saturating_sub(1)
    }

    /// Number of pointers.
    pub fn len(&self) -> usize {
        self.edges.len()
    }

    fn bytes(&self) -> usize {
        self.edges.len() * size_of::<u32>() + self.inner.len() * size_of::<Inner>()
    }

    /// The pointers of all blocks below `end` are known, but for the last's.
    fn begin(&mut self, end: usize) {
        self.first.resize(end, self.edges.len() as u32);
    }

    fn push(&mut self, from: u32, edge: u32) {
        let own = self.first.get(from as usize).map_or(0, |n| *n as usize);
        if self.edges.get(own..).and_then(<[u32]>::last) != Some(&edge) {
            self.edges.push(edge);
        }
    }

    /// Where a block's pointers are: to be handed to [`Graph::pointers`].
    #[inline]
    pub fn place(&self, block: u32) -> (u32, u32) {
        let block = block as usize;
        match (self.first.get(block), self.first.get(block + 1)) {
            (Some(first), Some(end)) => (*first, *end),
            _ => (0, 0),
        }
    }

    /// The pointers at a place.
    #[inline]
    pub fn pointers(&self, (first, end): (u32, u32)) -> impl Iterator<Item = Pointer> + '_ {
        let edges = self.edges.get(first as usize..end as usize);
        edges.unwrap_or_default().iter().filter_map(|edge| {
            if edge & INNER == 0 {
                return Some(Pointer::Start(*edge));
            }
            let inner = self.inner.get((edge & !INNER) as usize)?;
            Some(Pointer::Inner(*inner))
        })
    }
}

/// Words that may be pointers, with the blocks that hold them.
struct Words<'a> {
    /// From the lowest block to the end of the highest: start and length.
    heap: (u64, u64),
    inside: Inside<'a>,
    /// The same of mappings.
    watched: (u64, u64),
    words: Box<[u64]>,
    len: usize,
    /// Block, and `len` behind its words.
    ends: Vec<(u32, usize)>,
}

impl<'a> Words<'a> {
    fn new(index: &Index, inside: Inside<'a>, watch: &Watch) -> Words<'a> {
        Words {
            heap: (index.low(), index.span()),
            inside,
            watched: watch.span(),
            words: vec![0; 2 * WORDS].into_boxed_slice(),
            len: 0,
            ends: Vec::with_capacity(WORDS),
        }
    }

    fn has_room(&self, bytes: &[u8]) -> bool {
        self.len + bytes.len() / 8 <= self.words.len() && self.ends.len() < WORDS
    }

    /// Without a branch per word: what they hold is hard to predict.
    #[inline]
    fn take(&mut self, block: u32, bytes: &[u8]) {
        let (low, span) = self.heap;
        let (map, maps) = self.watched;
        let mut len = self.len;
        for word in bytes.as_chunks::<8>().0 {
            let word = u64::from_le_bytes(*word);
            if let Some(slot) = self.words.get_mut(len) {
                *slot = word;
            }
            len += usize::from((word.wrapping_sub(low) < span) | (word.wrapping_sub(map) < maps));
        }
        if len > self.len {
            self.len = len;
            self.ends.push((block, len));
        }
    }

    fn flush(&mut self, blocks: &[LiveBlock], index: &Index, watch: &mut Watch, graph: &mut Graph) {
        let (map, maps) = self.watched;
        let mut from = 0;
        for (block, end) in self.ends.drain(..) {
            graph.begin(block as usize + 1);
            for &word in self.words.get(from..end).unwrap_or_default() {
                if word.wrapping_sub(map) < maps
                    && let Some(holder) = blocks.get(block as usize)
                {
                    watch.held(word, block, holder.addr);
                }
                let Some(hit) = index.find(word) else {
                    continue;
                };
                if hit.block == block {
                    continue;
                }
                if hit.start {
                    graph.push(block, hit.block);
                } else if graph.inner.len() < INNER as usize
                    && let Some(target) = blocks.get(hit.block as usize)
                    && word - target.addr.0 < target.size
                {
                    if self.inside.is_start(hit.block, target.addr, word) {
                        graph.push(block, hit.block);
                        continue;
                    }
                    let inner = Inner {
                        word,
                        block: hit.block,
                    };
                    let own = graph.first.last().map_or(0, |n| *n as usize);
                    let last = graph.edges.get(own..).and_then(<[u32]>::last);
                    let same = last.is_some_and(|edge| {
                        edge & INNER != 0 && graph.inner.last() == Some(&inner)
                    });
                    if !same {
                        graph.edges.push(graph.inner.len() as u32 | INNER);
                        graph.inner.push(inner);
                    }
                }
            }
            from = end;
        }
        self.len = 0;
    }
}
