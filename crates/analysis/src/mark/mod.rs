//! memcheck's loss kinds for every live block.
//!
//! **Nodes** are blocks and roots, **edges** are aligned words: a *start
//! pointer* holds a block's first address (or is an idiom for it, see
//! [`Heuristics`]), an *interior pointer* any other address inside. A block of
//! zero bytes counts as one byte; one past the end is outside.
//!
//! | | chain from the roots to block B (through A) | kind of A | kind of B |
//! |---|---|---|---|
//! | 1 | root → B | | reachable |
//! | 2 | root → A → B | reachable | reachable |
//! | 3 | B, nothing points to it | | definite |
//! | 4 | A → B, nothing points to A | definite | indirect |
//! | 5 | root ⇢ B (interior) | | possible |
//! | 6 | root → A ⇢ B | reachable | possible |
//! | 7 | root ⇢ A → B | possible | possible |
//! | 8 | root ⇢ A ⇢ B | possible | possible |
//! | 9 | A ⇢ B, nothing points to A | definite | indirect |
//!
//! Where several chains lead to a block, the best kind wins: reachable, then
//! possible, then indirect. All this is forced; arbitrary is only who leads a
//! lost cycle (its lowest block) and to which of several definitely lost
//! parents an indirectly lost block is counted (the lowest).
//!
//! Every block is read once, in the order of addresses, and its pointers are
//! kept (`graph`); then they are followed from the roots, definite chains
//! first, then possible ones, whose children cannot improve any more. What is
//! left is lost (`lost`).

mod graph;
mod heuristics;
mod index;
mod inside;
mod lost;
mod source;
#[cfg(test)]
mod tests;

pub use heuristics::{Heuristics, UnknownHeuristic};
pub use inside::Inside;

use crate::mappings::Watch;
use crate::roots::RootPlan;
use graph::Inner;
pub(crate) use graph::{Graph, Pointer};
use heuristics::Judge;
pub(crate) use index::{Hit, Index};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, LiveBlock, LossKind, Range};
use source::Peeker;
pub(crate) use source::{Scanner, extent};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Blocks followed at a time: enough for their cache misses to overlap.
const BATCH: usize = 64;
/// Blocks read at a time where their pointers are not kept: the more, the
/// more of them are near each other.
const DIRECT_BATCH: usize = 1 << 15;
/// Candidate words gathered before they are looked up.
const WORDS: usize = 4096;
/// Interior pointers put off before their idioms are looked at.
const DEFERRED: usize = 1 << 20;

const UNREACHED: u8 = 0;
const POSSIBLE: u8 = 1;
const REACHABLE: u8 = 2;

/// What became of every block. Vectors are indexed like the blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// The block's kind.
    pub kinds: Vec<LossKind>,
    /// For an indirectly lost block, the index of the definitely lost block
    /// it is lost with; for any other block its own index.
    pub leader: Vec<u32>,
    /// True for a lost block in a cycle of two or more lost blocks.
    pub cycle: Vec<bool>,
    /// For a definitely lost block in a cycle: the indexes of the blocks of
    /// one shortest cycle through it, in pointer order, itself first; cut
    /// after 16. At most 65 536 leaders have a list.
    pub cycle_members: BTreeMap<u32, Vec<u32>>,
    /// Bytes of roots and blocks that should have been scanned but could not
    /// be read.
    pub unreadable_bytes: u64,
    /// Bytes of blocks scanned; lost blocks are included.
    pub scanned_block_bytes: u64,
    /// Bytes of root ranges scanned, without registers.
    pub scanned_root_bytes: u64,
}

/// Classifies all `blocks` (ascending by address).
///
/// Blocks that cannot exist (misaligned, outside the user's address space,
/// out of order) are not judged: they count as reachable.
pub fn mark(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    heuristics: &Heuristics,
) -> Marked {
    mark_inside(memory, blocks, plan, heuristics, Inside::default())
}

/// The same, where more is known of pointers into blocks.
pub fn mark_inside(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    heuristics: &Heuristics,
    inside: Inside<'_>,
) -> Marked {
    let watch = &mut Watch::default();
    mark_all(memory, blocks, plan, heuristics, inside, watch)
}

/// Where the pointers of all blocks lead, as the marking found them: kept for
/// those who ask who holds what.
pub struct Pointers {
    pub(crate) index: Index,
    pub(crate) graph: Graph,
}

/// The same as [`mark_inside`], and hands over the pointers that it followed.
/// `None` for blocks that cannot exist as they are.
pub fn mark_keeping(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    heuristics: &Heuristics,
    inside: Inside<'_>,
) -> (Marked, Option<Pointers>) {
    if !index::indexable(blocks) {
        return (mark_inside(memory, blocks, plan, heuristics, inside), None);
    }
    let how = How {
        heuristics: *heuristics,
        inside,
        limit: graph::LIMIT,
    };
    let (marked, pointers) = judge_keeping(memory, blocks, plan, how, &mut Watch::default());
    (marked, Some(pointers))
}

/// The same; `watch` is told of every word of roots and blocks that may point
/// to a mapping, unless it is told that it was not.
pub(crate) fn mark_watching(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    heuristics: &Heuristics,
    watch: &mut Watch,
) -> Marked {
    mark_all(memory, blocks, plan, heuristics, Inside::default(), watch)
}

fn mark_all(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    heuristics: &Heuristics,
    inside: Inside<'_>,
    watch: &mut Watch,
) -> Marked {
    let (usable, positions) = usable(blocks);
    // It numbers all blocks.
    let inside = match positions {
        None => inside,
        Some(_) => Inside::default(),
    };
    let how = How {
        heuristics: *heuristics,
        inside,
        limit: graph::LIMIT,
    };
    let judged = judge(memory, &usable, plan, how, watch);
    match positions {
        None => judged,
        Some(positions) => {
            // It was told other numbers than the caller's.
            watch.give_up();
            spread(judged, &positions, blocks.len())
        }
    }
}

/// The blocks that can be judged, and where they were when some cannot.
fn usable(blocks: &[LiveBlock]) -> (Cow<'_, [LiveBlock]>, Option<Vec<u32>>) {
    if index::indexable(blocks) {
        return (Cow::Borrowed(blocks), None);
    }
    let mut kept: Vec<LiveBlock> = Vec::new();
    let mut positions = Vec::new();
    for (at, block) in blocks.iter().enumerate().take(u32::MAX as usize - 1) {
        let ascending = kept.last().is_none_or(|last| last.addr < block.addr);
        if ascending && index::block_is_indexable(block) {
            kept.push(*block);
            positions.push(at as u32);
        }
    }
    (Cow::Owned(kept), Some(positions))
}

/// Takes a judgement over some of the blocks back to all of them.
fn spread(judged: Marked, positions: &[u32], blocks: usize) -> Marked {
    let place = |at: u32| positions.get(at as usize).copied().unwrap_or(at);
    let mut all = Marked {
        kinds: vec![LossKind::Reachable; blocks],
        leader: (0..blocks).map(|at| at as u32).collect(),
        cycle: vec![false; blocks],
        cycle_members: BTreeMap::new(),
        ..judged
    };
    for (at, position) in positions.iter().enumerate() {
        let position = *position as usize;
        all.kinds[position] = judged.kinds[at];
        all.leader[position] = place(judged.leader[at]);
        all.cycle[position] = judged.cycle[at];
    }
    all.cycle_members = judged
        .cycle_members
        .into_iter()
        .map(|(leader, members)| (place(leader), members.into_iter().map(place).collect()))
        .collect();
    all
}

/// How pointers are judged.
#[derive(Clone, Copy)]
struct How<'a> {
    heuristics: Heuristics,
    inside: Inside<'a>,
    /// Bytes of pointers that are kept.
    limit: usize,
}

fn judge(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    how: How<'_>,
    watch: &mut Watch,
) -> Marked {
    judge_keeping(memory, blocks, plan, how, watch).0
}

fn judge_keeping(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    plan: &RootPlan,
    how: How<'_>,
    watch: &mut Watch,
) -> (Marked, Pointers) {
    let How {
        heuristics,
        inside,
        limit,
    } = how;
    let index = Index::new(blocks);
    let mut scanner = Scanner::new(memory, blocks);
    let mut sieve = Sieve {
        blocks,
        index: &index,
        peeker: Peeker::new(memory),
        judge: Judge::new(heuristics, memory.map()),
        inside,
        state: vec![UNREACHED; blocks.len()],
        work: Vec::new(),
        maybe: Vec::new(),
        deferred: Vec::new(),
        words: Vec::new(),
    };

    for (at, _) in blocks.iter().enumerate().filter(|(_, b)| b.ignored) {
        sieve.reach(at as u32);
    }
    for word in &plan.start_words {
        if let Some(block) = sieve.inside(*word) {
            sieve.reach(block);
        }
    }
    sieve.words.extend(&plan.words);
    sieve.resolve(true);
    for (range, _) in &plan.ranges {
        scanner.range(aligned(range), |start, bytes| {
            watch.root(start, bytes);
            sieve.feed(bytes, true);
        });
    }
    sieve.resolve(true);
    let scanned_root_bytes = std::mem::take(&mut scanner.tally.scanned);

    let graph = Graph::new(&mut scanner, blocks, &index, inside, watch, limit);
    if graph.covered() < blocks.len() {
        watch.give_up();
    }
    sieve.drain(&graph, &mut scanner, true);
    sieve.drain(&graph, &mut scanner, false);

    let mut marked = Marked {
        kinds: sieve
            .state
            .iter()
            .map(|state| match *state {
                REACHABLE => LossKind::Reachable,
                POSSIBLE => LossKind::Possible,
                _ => LossKind::Definite,
            })
            .collect(),
        leader: (0..blocks.len() as u32).collect(),
        cycle: vec![false; blocks.len()],
        ..Marked::default()
    };
    judge_lost(&graph, &index, blocks, &mut scanner, &mut marked);
    marked.scanned_root_bytes = scanned_root_bytes;
    marked.scanned_block_bytes = scanner.tally.scanned;
    marked.unreadable_bytes = scanner.tally.unreadable;
    (marked, Pointers { index, graph })
}

/// Hands over every aligned word that holds something after the marking:
/// those of root ranges, then those of blocks that are not lost. With each
/// word comes its address (in a block: the block's) and its memory's kind.
pub(crate) fn for_each_holding_word(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    marked: &Marked,
    plan: &RootPlan,
    mut sink: impl FnMut(Addr, u64, LossKind),
) {
    let (usable, positions) = usable(blocks);
    let mut scanner = Scanner::new(memory, &usable);
    for (range, _) in &plan.ranges {
        scanner.range(aligned(range), |start, bytes| {
            for (at, word) in (start..).step_by(8).zip(bytes.as_chunks::<8>().0) {
                sink(Addr(at), u64::from_le_bytes(*word), LossKind::Reachable);
            }
        });
    }
    let kind_of = |at: u32| {
        let position = match &positions {
            Some(positions) => positions.get(at as usize).copied().unwrap_or(at),
            None => at,
        };
        marked.kinds.get(position as usize).copied()
    };
    let mut batch = Vec::new();
    let mut at = 0;
    while (at as usize) < usable.len() {
        let end = (usable.len() as u32).min(at + DIRECT_BATCH as u32);
        batch.extend(
            (at..end).filter(|at| {
                matches!(kind_of(*at), Some(LossKind::Reachable | LossKind::Possible))
            }),
        );
        scanner.blocks(&mut batch, |at, bytes| {
            let (Some(block), Some(kind)) = (usable.get(at as usize), kind_of(at)) else {
                return;
            };
            for word in bytes.as_chunks::<8>().0 {
                sink(block.addr, u64::from_le_bytes(*word), kind);
            }
        });
        at = end;
    }
}

/// The part of a range that whole aligned words fill.
pub(crate) fn aligned(range: &Range) -> Range {
    let start = range.start.0.checked_next_multiple_of(8);
    Range::new(start.unwrap_or(u64::MAX), range.end.0 & !7)
}

/// Gathers words, looks them up, upgrades blocks.
struct Sieve<'a> {
    blocks: &'a [LiveBlock],
    index: &'a Index,
    peeker: Peeker<'a>,
    judge: Judge<'a>,
    inside: Inside<'a>,
    state: Vec<u8>,
    /// Reachable blocks still to be scanned.
    work: Vec<u32>,
    /// Possible blocks still to be scanned, and perhaps reachable since.
    maybe: Vec<u32>,
    /// Interior pointers from reachable memory, which may be idioms for their
    /// blocks' starts. Looked at last: most of those blocks turn out to be
    /// reachable anyway.
    deferred: Vec<Inner>,
    words: Vec<u64>,
}

impl Sieve<'_> {
    #[inline]
    fn feed(&mut self, bytes: &[u8], definite: bool) {
        gather(self.index, bytes, &mut self.words);
        if self.words.len() >= WORDS {
            self.resolve(definite);
        }
    }

    fn reach(&mut self, block: u32) {
        if let Some(state) = self.state.get_mut(block as usize)
            && *state != REACHABLE
        {
            *state = REACHABLE;
            self.work.push(block);
        }
    }

    fn inside(&self, word: u64) -> Option<u32> {
        let hit = self.index.find(word)?;
        is_inside(self.blocks, hit, word).then_some(hit.block)
    }

    /// Looks up the gathered words.
    fn resolve(&mut self, definite: bool) {
        let words = std::mem::take(&mut self.words);
        for &word in &words {
            let Some(hit) = self.index.find(word) else {
                continue;
            };
            if hit.start {
                self.follow(Pointer::Start(hit.block), definite);
            } else if let Some(addr) = holding(self.blocks, hit, word) {
                let block = hit.block;
                let pointer = if self.inside.is_start(block, addr, word) {
                    Pointer::Start(block)
                } else {
                    Pointer::Inner(Inner { word, block })
                };
                self.follow(pointer, definite);
            }
        }
        self.words = words;
        self.words.clear();
    }

    /// A pointer was found in memory that is reachable (`definite`) or
    /// possible.
    #[inline]
    fn follow(&mut self, pointer: Pointer, definite: bool) {
        let block = match pointer {
            Pointer::Start(block) => {
                if definite {
                    return self.reach(block);
                }
                block
            }
            Pointer::Inner(inner) => inner.block,
        };
        let Some(state) = self.state.get_mut(block as usize) else {
            return;
        };
        if *state == REACHABLE {
            return;
        }
        if *state == UNREACHED {
            *state = POSSIBLE;
            self.maybe.push(block);
        }
        if let Pointer::Inner(inner) = pointer
            && definite
        {
            self.deferred.push(inner);
        }
    }

    /// Looks whether the deferred pointers are idioms.
    fn settle(&mut self) {
        let mut deferred = std::mem::take(&mut self.deferred);
        for inner in deferred.drain(..) {
            if self.state.get(inner.block as usize) == Some(&REACHABLE) {
                continue;
            }
            let Some(block) = self.blocks.get(inner.block as usize) else {
                continue;
            };
            // Of one that was not recorded only the usable size is known.
            let size = match block.weight {
                0.0 => heuristics::of_usable(block.size),
                _ => block.size..=block.size,
            };
            let addr = block.addr.0;
            if self
                .judge
                .is_start(&mut self.peeker, addr, &size, inner.word)
            {
                self.reach(inner.block);
            }
        }
        self.deferred = deferred;
    }

    /// Follows the pointers of pending blocks, and of what they lead to,
    /// until none is left.
    fn drain(&mut self, graph: &Graph, scanner: &mut Scanner<'_>, definite: bool) {
        let covered = graph.covered();
        let mut places: Vec<(u32, u32)> = Vec::with_capacity(BATCH);
        let mut direct: Vec<u32> = Vec::new();
        loop {
            let (list, kind) = if definite {
                (&mut self.work, REACHABLE)
            } else {
                (&mut self.maybe, POSSIBLE)
            };
            let from = list.len().saturating_sub(BATCH);
            for at in list.drain(from..) {
                if self.state.get(at as usize) != Some(&kind) {
                    continue;
                }
                if (at as usize) < covered {
                    places.push(graph.place(at));
                } else {
                    direct.push(at);
                }
            }
            for place in places.drain(..) {
                for pointer in graph.pointers(place) {
                    self.follow(pointer, definite);
                }
            }
            let more = if definite { &self.work } else { &self.maybe };
            if !more.is_empty() && direct.len() < DIRECT_BATCH && self.deferred.len() < DEFERRED {
                continue;
            }
            if !direct.is_empty() {
                scanner.blocks(&mut direct, |_, bytes| self.feed(bytes, definite));
                self.resolve(definite);
            } else if !self.deferred.is_empty() {
                self.settle();
            } else {
                return;
            }
        }
    }
}

/// Keeps the words that lie between the first block and the last.
#[inline]
fn gather(index: &Index, bytes: &[u8], words: &mut Vec<u64>) {
    let (low, span) = (index.low(), index.span());
    for word in bytes.as_chunks::<8>().0 {
        let word = u64::from_le_bytes(*word);
        if word.wrapping_sub(low) < span {
            words.push(word);
        }
    }
}

/// Where the block begins that `word` lies in.
fn holding(blocks: &[LiveBlock], hit: Hit, word: u64) -> Option<Addr> {
    let block = blocks.get(hit.block as usize)?;
    (word - block.addr.0 < block.size).then_some(block.addr)
}

pub(crate) fn is_inside(blocks: &[LiveBlock], hit: Hit, word: u64) -> bool {
    hit.start
        || blocks
            .get(hit.block as usize)
            .is_some_and(|block| word - block.addr.0 < block.size)
}

/// Splits the unreached blocks into definite and indirect.
fn judge_lost(
    graph: &Graph,
    index: &Index,
    blocks: &[LiveBlock],
    scanner: &mut Scanner<'_>,
    marked: &mut Marked,
) {
    let lost: Vec<u32> = (0..blocks.len() as u32)
        .filter(|at| marked.kinds[*at as usize] == LossKind::Definite)
        .collect();
    if lost.is_empty() {
        return;
    }
    // Until the leaders are known, `leader` numbers the lost blocks.
    for (number, at) in lost.iter().enumerate() {
        marked.leader[*at as usize] = number as u32;
    }
    let mut edges = lost::Edges::new(lost.len());
    let uncovered = lost.partition_point(|at| (*at as usize) < graph.covered());
    let (covered, uncovered) = lost.split_at(uncovered);
    for (from, at) in (0..).zip(covered) {
        for pointer in graph.pointers(graph.place(*at)) {
            let to = match pointer {
                Pointer::Start(block) => block,
                Pointer::Inner(inner) => inner.block,
            } as usize;
            if marked.kinds.get(to) == Some(&LossKind::Definite) {
                edges.add(from, marked.leader[to]);
            }
        }
    }
    let mut batch = Vec::new();
    let mut words = Vec::new();
    for part in uncovered.chunks(DIRECT_BATCH) {
        batch.extend_from_slice(part);
        scanner.blocks(&mut batch, |from, bytes| {
            gather(index, bytes, &mut words);
            for word in words.drain(..) {
                let Some(hit) = index.find(word) else {
                    continue;
                };
                let to = hit.block as usize;
                if marked.kinds.get(to) == Some(&LossKind::Definite) && is_inside(blocks, hit, word)
                {
                    edges.add(marked.leader[from as usize], marked.leader[to]);
                }
            }
        });
    }
    let judged = lost::judge(edges, lost.len());
    for (number, at) in lost.iter().enumerate() {
        let at = *at as usize;
        let leader = lost[judged.leader[number] as usize];
        marked.leader[at] = leader;
        marked.cycle[at] = judged.cycle[number];
        if leader as usize != at {
            marked.kinds[at] = LossKind::Indirect;
        }
    }
    marked.cycle_members = judged
        .members
        .into_iter()
        .map(|(leader, members)| {
            let place = |number: u32| lost[number as usize];
            (place(leader), members.into_iter().map(place).collect())
        })
        .collect();
}
