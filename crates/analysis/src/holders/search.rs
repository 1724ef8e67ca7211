//! The search itself.

use super::{HolderInput, RootPlace, RootWord, frame};
use crate::mark::{Graph, Index, Pointer, Scanner, aligned, is_inside};
use crate::roots::RootKind;
use leakscope_heap::glibc::CHUNK_HEADER;
use leakscope_model::{Addr, LossKind, Range};
use std::collections::HashMap;

/// No holder.
const NONE: u32 = u32::MAX;
/// Marks a root word: the rest is its place in `Search::words`.
const ROOT: u32 = 1 << 31;

/// Kinds of roots in the order of what they say: those of a row are searched
/// together.
const ROWS: [&[RootKind]; 3] = [
    &[RootKind::Globals, RootKind::Tls, RootKind::Declared],
    &[RootKind::Mapping],
    &[RootKind::Stack],
];

/// Who holds a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Another block, by its index.
    Block(u32),
    /// A word of a root.
    Root(RootWord),
}

/// One holder for each block that anything holds. Vectors are indexed like
/// the blocks: 12 bytes for each.
pub struct Search {
    /// The holding block, or a root word.
    parent: Vec<u32>,
    /// Blocks between it and its root.
    depth: Vec<u32>,
    /// Place of its root's word in `words`.
    root: Vec<u32>,
    words: Vec<RootWord>,
    /// One bit for each block: a root points to it. What a thread works on at
    /// the moment, or did before, does not count where more lasting roots lead
    /// to the block: it would cut every structure in pieces.
    rooted: Vec<u64>,
}

impl Search {
    /// Who holds `block`; `None` where nobody does.
    pub fn holder(&self, block: u32) -> Option<Holder> {
        match self.parent.get(block as usize) {
            Some(&NONE) | None => None,
            Some(&parent) if parent & ROOT != 0 => {
                let word = self.words.get((parent & !ROOT) as usize)?;
                Some(Holder::Root(*word))
            }
            Some(&parent) => Some(Holder::Block(parent)),
        }
    }

    /// True when a root points to `block` itself; a stack or a register only
    /// where no other root leads to it.
    pub(super) fn is_rooted(&self, block: u32) -> bool {
        let bits = self.rooted.get(block as usize / 64);
        bits.is_some_and(|bits| bits >> (block % 64) & 1 == 1)
    }

    /// The root at the end of the path, and the number of blocks between.
    pub fn root(&self, block: u32) -> Option<(RootWord, u32)> {
        let at = block as usize;
        if *self.parent.get(at)? == NONE {
            return None;
        }
        let word = self.words.get(*self.root.get(at)? as usize)?;
        Some((*word, *self.depth.get(at)?))
    }
}

/// Finds a holder for every block. Takes about as long as reading the roots
/// once more; `None` when there are too many blocks to number their holders.
pub fn search(input: &HolderInput<'_>) -> Option<Search> {
    let blocks = input.blocks.len();
    if blocks >= ROOT as usize {
        return None;
    }
    let mut front = Front {
        input,
        index: &input.pointers.index,
        graph: &input.pointers.graph,
        found: Search {
            parent: vec![NONE; blocks],
            depth: vec![0; blocks],
            root: vec![0; blocks],
            words: Vec::new(),
            rooted: vec![0; blocks.div_ceil(64)],
        },
        inner: vec![NONE; blocks],
        maybe: Vec::new(),
        queue: Vec::new(),
        words: Vec::new(),
    };
    let mut scanner = Scanner::new(input.memory, input.blocks);
    // Not all words for threads last: what a register holds of a chunk does
    // not, nor does a stack pointer.
    let threads = input.threads.iter();
    let passing: HashMap<u64, u32> = threads
        .flat_map(|t| {
            let chunks = t.registers.iter().map(|r| r.wrapping_add(CHUNK_HEADER));
            chunks.chain([t.sp.0]).map(|word| (word, t.tid))
        })
        .collect();
    let words = || input.plan.start_words.iter();
    let ranges = input.plan.ranges.iter();
    let ranges: Vec<(Range, RootKind)> = ranges
        .flat_map(|(range, kind)| frame::split(input, *range, *kind))
        .collect();
    for (number, row) in ROWS.iter().enumerate() {
        for kind in *row {
            let ranges = ranges.iter().filter(|(_, k)| k == kind);
            for (range, kind) in ranges {
                scanner.range(aligned(range), |start, bytes| {
                    front.memory(RootPlace::Memory(*kind), start, bytes);
                });
            }
        }
        match number {
            0 => words()
                .filter(|word| !passing.contains_key(word))
                .for_each(|word| front.word(RootPlace::Threads, Addr(0), *word)),
            2 => {
                front.registers();
                for word in words() {
                    if let Some(tid) = passing.get(word) {
                        front.word(RootPlace::Register(*tid), Addr(0), *word);
                    }
                }
            }
            _ => {}
        }
        front.drain(&mut scanner, |kind| kind == LossKind::Reachable);
    }
    front.drain(&mut scanner, |_| true);
    Some(front.found)
}

struct Front<'a> {
    input: &'a HolderInput<'a>,
    index: &'a Index,
    graph: &'a Graph,
    found: Search,
    /// For a block that nobody is known to hold by its start: who points into
    /// it, as in `Search::parent`.
    inner: Vec<u32>,
    /// The blocks with an entry there.
    maybe: Vec<u32>,
    /// Blocks whose pointers are to be followed, first come first.
    queue: Vec<u32>,
    /// Room for the words of one block that is read.
    words: Vec<u64>,
}

impl Front<'_> {
    fn memory(&mut self, place: RootPlace, start: u64, bytes: &[u8]) {
        let (low, span) = (self.index.low(), self.index.span());
        for (at, word) in (start..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            let word = u64::from_le_bytes(*word);
            if word.wrapping_sub(low) < span {
                self.word(place, Addr(at), word);
            }
        }
    }

    fn registers(&mut self) {
        for thread in self.input.threads {
            for register in &thread.registers {
                self.word(RootPlace::Register(thread.tid), Addr(0), *register);
            }
        }
    }

    /// A word of a root.
    fn word(&mut self, place: RootPlace, at: Addr, value: u64) {
        let Some((block, start)) = self.target(value) else {
            return;
        };
        let known = |list: &[u32]| list.get(block as usize).is_none_or(|p| *p != NONE);
        let fleeting = matches!(
            place,
            RootPlace::Memory(RootKind::Stack) | RootPlace::Register(_)
        );
        if !(fleeting && known(&self.found.parent))
            && let Some(bits) = self.found.rooted.get_mut(block as usize / 64)
        {
            *bits |= 1 << (block % 64);
        }
        let next = self.found.words.len();
        if known(&self.found.parent) || (!start && known(&self.inner)) || next >= ROOT as usize - 1
        {
            return;
        }
        self.found.words.push(RootWord { place, at, value });
        self.hold(block, start, next as u32 | ROOT);
    }

    /// The block that a word points to, and whether to its start.
    fn target(&self, word: u64) -> Option<(u32, bool)> {
        let hit = self.index.find(word)?;
        is_inside(self.input.blocks, hit, word).then_some((hit.block, hit.start))
    }

    /// `holder` points to `block`.
    fn hold(&mut self, block: u32, start: bool, holder: u32) {
        let at = block as usize;
        if self.found.parent.get(at) != Some(&NONE) {
            return;
        }
        if start {
            self.reach(block, holder);
        } else if let Some(inner) = self.inner.get_mut(at)
            && *inner == NONE
        {
            *inner = holder;
            self.maybe.push(block);
        }
    }

    fn reach(&mut self, block: u32, holder: u32) {
        let (root, depth) = if holder & ROOT != 0 {
            (holder & !ROOT, 0)
        } else {
            let of = |list: &[u32]| list.get(holder as usize).copied().unwrap_or(0);
            (
                of(&self.found.root),
                of(&self.found.depth).saturating_add(1),
            )
        };
        let at = block as usize;
        for (list, value) in [
            (&mut self.found.parent, holder),
            (&mut self.found.root, root),
            (&mut self.found.depth, depth),
        ] {
            if let Some(slot) = list.get_mut(at) {
                *slot = value;
            }
        }
        self.queue.push(block);
    }

    /// Follows all pointers from here; then those into blocks of kinds that
    /// `inside` accepts, as long as there are any.
    fn drain(&mut self, scanner: &mut Scanner<'_>, inside: impl Fn(LossKind) -> bool) {
        loop {
            let mut next = 0;
            while let Some(&block) = self.queue.get(next) {
                next += 1;
                self.follow(block, scanner);
            }
            self.queue.clear();
            let maybe = std::mem::take(&mut self.maybe);
            for block in maybe {
                let at = block as usize;
                if self.found.parent.get(at) != Some(&NONE) {
                    continue;
                }
                let kind = self.input.marked.kinds.get(at);
                match self.inner.get(at) {
                    Some(&holder) if kind.is_some_and(|kind| inside(*kind)) => {
                        self.reach(block, holder);
                    }
                    _ => self.maybe.push(block),
                }
            }
            if self.queue.is_empty() {
                return;
            }
        }
    }

    fn follow(&mut self, block: u32, scanner: &mut Scanner<'_>) {
        let graph = self.graph;
        if (block as usize) < graph.covered() {
            for pointer in graph.pointers(graph.place(block)) {
                match pointer {
                    Pointer::Start(to) => self.hold(to, true, block),
                    Pointer::Inner(inner) => self.hold(inner.block, false, block),
                }
            }
            return;
        }
        // More pointers than are kept: this one's are read.
        let (low, span) = (self.index.low(), self.index.span());
        let mut words = std::mem::take(&mut self.words);
        scanner.blocks(&mut vec![block], |_, bytes| {
            for word in bytes.as_chunks::<8>().0 {
                let word = u64::from_le_bytes(*word);
                if word.wrapping_sub(low) < span {
                    words.push(word);
                }
            }
        });
        for word in words.drain(..) {
            if let Some((to, start)) = self.target(word) {
                self.hold(to, start, block);
            }
        }
        self.words = words;
    }
}
