//! Application mappings, judged like blocks but apart from them.
//!
//! A mapping is a root for blocks, so it is never part of the marking. Who
//! points to it is asked afterwards: a start pointer makes it reachable, an
//! interior pointer possible, none definite. Asked are all roots outside the
//! mapping itself, registers, and blocks that are not lost; what a possible
//! block says makes possible at best. So a mapping that only lost memory or
//! its own contents point to is lost, while two mappings that hold each other
//! are not told apart from mappings in use.

use crate::mark::{Heuristics, Marked, for_each_holding_word, mark_watching};
use crate::roots::RootPlan;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, LiveBlock, LiveMapping, LossKind, Range};

/// Most pointers from blocks to mappings that are remembered until the
/// blocks' kinds are known.
const HELD: usize = 1 << 20;

/// Places for mappings that are known to be pointed to, and log2 of the bytes
/// of memory that share a place.
const KNOWN: usize = 256;
const KNOWN_SHIFT: u32 = 18;

/// Classifies all `blocks` (ascending by address, see
/// [`mark`](crate::mark::mark)) and judges each mapping; their order is kept.
/// The heap is read once for both.
pub fn mark_and_judge(
    memory: &dyn MemoryReader,
    mappings: &[LiveMapping],
    blocks: &[LiveBlock],
    plan: &RootPlan,
    heuristics: &Heuristics,
) -> (Marked, Vec<(LiveMapping, LossKind)>) {
    let mut watch = Watch::new(mappings);
    let marked = mark_watching(memory, blocks, plan, heuristics, &mut watch);
    let kinds = match watch.settle(&marked, plan) {
        Some(kinds) => mappings.iter().copied().zip(kinds).collect(),
        None => judge(memory, mappings, blocks, &marked, plan),
    };
    (marked, kinds)
}

/// Judges each mapping after the blocks, reading the heap again; the order is
/// kept.
///
/// `blocks`, `marked` and `plan` are those of the same picture.
pub fn judge(
    memory: &dyn MemoryReader,
    mappings: &[LiveMapping],
    blocks: &[LiveBlock],
    marked: &Marked,
    plan: &RootPlan,
) -> Vec<(LiveMapping, LossKind)> {
    let mut targets = Targets::new(mappings);
    if !mappings.is_empty() {
        targets.registers(plan);
        for_each_holding_word(memory, blocks, marked, plan, |at, word, kind| {
            targets.see(word, Some(at), kind);
        });
    }
    mappings.iter().copied().zip(targets.kinds).collect()
}

/// Pointers to mappings, seen while blocks are marked.
#[derive(Default)]
pub(crate) struct Watch {
    targets: Targets,
    /// From blocks: the block, the mapping's place, and whether it is the
    /// mapping's start.
    held: Vec<(u32, usize, bool)>,
    gave_up: bool,
}

impl Watch {
    fn new(mappings: &[LiveMapping]) -> Watch {
        Watch {
            targets: Targets::new(mappings),
            ..Watch::default()
        }
    }

    /// From the first mapping to the end of the highest: start and length;
    /// the length is 0 when there is nothing to watch.
    pub(crate) fn span(&self) -> (u64, u64) {
        let span = self.targets.span;
        (span.start.0, span.end.0.saturating_sub(span.start.0))
    }

    /// Root memory that begins at `start`.
    pub(crate) fn root(&mut self, start: u64, bytes: &[u8]) {
        let (low, span) = self.span();
        if span == 0 {
            return;
        }
        // Structures all over the mappings point to them again and again: of
        // those that are known already only the start may tell more, and what
        // lies between them, or points to its own mapping, tells nothing.
        let mut known = [(Range::default(), Addr(0)); KNOWN];
        let mut own = Range::default();
        for (at, word) in (start..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            let word = u64::from_le_bytes(*word);
            if word.wrapping_sub(low) >= span {
                continue;
            }
            let (at, to) = (Addr(at), Addr(word));
            if own.contains(to) && own.contains(at) {
                continue;
            }
            let slot = known.get_mut((word >> KNOWN_SHIFT) as usize % KNOWN);
            if let Some((range, telling)) = &slot
                && range.contains(to)
                && *telling != to
            {
                continue;
            }
            let (range, mapping) = self.targets.around(word);
            if mapping && range.contains(at) {
                own = range;
                continue;
            }
            if let Some((place, start)) = self.targets.find(word, Some(at)) {
                self.targets.improve(place, start, LossKind::Reachable);
            }
            if let Some(slot) = slot {
                *slot = (range, if mapping { range.start } else { Addr(0) });
            }
        }
    }

    /// The block number `block`, at `at`, holds `word`. Roots come before
    /// blocks.
    pub(crate) fn held(&mut self, word: u64, block: u32, at: Addr) {
        let Some((place, start)) = self.targets.find(word, Some(at)) else {
            return;
        };
        // What roots hold need not be remembered: it cannot become better.
        let best = if start {
            LossKind::Reachable
        } else {
            LossKind::Possible
        };
        let known = self.targets.kinds.get(place);
        if known.is_some_and(|known| *known >= best)
            || self.held.last() == Some(&(block, place, start))
        {
            return;
        }
        if self.held.len() < HELD {
            self.held.push((block, place, start));
        } else {
            self.gave_up = true;
        }
    }

    /// Not all blocks were seen, or under other numbers.
    pub(crate) fn give_up(&mut self) {
        self.gave_up = true;
    }

    /// The mappings' kinds, now that the blocks' are known; `None` when not
    /// all pointers are.
    fn settle(mut self, marked: &Marked, plan: &RootPlan) -> Option<Vec<LossKind>> {
        if self.gave_up && !self.targets.kinds.is_empty() {
            return None;
        }
        self.targets.registers(plan);
        for (block, place, start) in self.held {
            if let Some(kind @ (LossKind::Reachable | LossKind::Possible)) =
                marked.kinds.get(block as usize)
            {
                self.targets.improve(place, start, *kind);
            }
        }
        Some(self.targets.kinds)
    }
}

/// The mappings in address order, and the best seen of each.
#[derive(Default)]
struct Targets {
    /// Range and place in the caller's order.
    ranges: Vec<(Range, usize)>,
    /// From the first mapping to the end of the highest.
    span: Range,
    kinds: Vec<LossKind>,
}

impl Targets {
    fn new(mappings: &[LiveMapping]) -> Targets {
        let mut ranges: Vec<(Range, usize)> = mappings
            .iter()
            .enumerate()
            .map(|(i, m)| {
                let end = m.addr.0.saturating_add(m.len.max(1));
                (Range::new(m.addr.0, end), i)
            })
            .collect();
        ranges.sort_unstable();
        let start = ranges.first().map_or(Addr(0), |(r, _)| r.start);
        let end = ranges.iter().map(|(r, _)| r.end).max().unwrap_or(start);
        Targets {
            ranges,
            span: Range { start, end },
            kinds: vec![LossKind::Definite; mappings.len()],
        }
    }

    fn registers(&mut self, plan: &RootPlan) {
        for word in plan.words.iter().chain(&plan.start_words) {
            self.see(*word, None, LossKind::Reachable);
        }
    }

    /// The mapping that a word points to, unless the word stands in it at
    /// `at`: its place in the caller's order, and whether it is its start.
    fn find(&self, word: u64, at: Option<Addr>) -> Option<(usize, bool)> {
        let word = Addr(word);
        if !self.span.contains(word) {
            return None;
        }
        let next = self.ranges.partition_point(|(r, _)| r.start <= word);
        let (range, place) = self.ranges.get(next.checked_sub(1)?)?;
        if !range.contains(word) || at.is_some_and(|at| range.contains(at)) {
            return None;
        }
        Some((*place, range.start == word))
    }

    /// The range of the mapping that a word points to, and true; or what lies
    /// between the mappings around it, and false.
    fn around(&self, word: u64) -> (Range, bool) {
        let next = self.ranges.partition_point(|(r, _)| r.start.0 <= word);
        let below = next.checked_sub(1).and_then(|i| self.ranges.get(i));
        let above = self.ranges.get(next);
        match below {
            Some((range, _)) if range.contains(Addr(word)) => (*range, true),
            _ => {
                let start = below.map_or(0, |(range, _)| range.end.0);
                let end = above.map_or(u64::MAX, |(range, _)| range.start.0);
                (Range::new(start, end), false)
            }
        }
    }

    /// A word that stands at `at` (`None`: a register), in memory of `kind`.
    fn see(&mut self, word: u64, at: Option<Addr>, kind: LossKind) {
        if let Some((place, start)) = self.find(word, at) {
            self.improve(place, start, kind);
        }
    }

    fn improve(&mut self, place: usize, start: bool, kind: LossKind) {
        let seen = if start { kind } else { LossKind::Possible };
        if let Some(best) = self.kinds.get_mut(place) {
            *best = seen.max(*best);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{Heuristics, mark};
    use crate::roots::RootKind;
    use LossKind::{Definite, Possible, Reachable};
    use leakscope_model::StackId;
    use leakscope_testkit::FakeMemory;

    const ROOT: u64 = 0x1000;
    const HEAP: u64 = 0x2000;
    const A: u64 = 0x10_0000;
    const B: u64 = 0x20_0000;
    const LEN: u64 = 0x1_1000;

    fn kinds(words: &[(u64, u64)], registers: &[u64]) -> Vec<LossKind> {
        let mut memory = FakeMemory::new();
        memory
            .region(ROOT, 0x1000, "rw-p", "/bin/program")
            .region(HEAP, 0x1000, "rw-p", "[heap]")
            .region(A, LEN, "rw-p", "")
            .region(B, LEN, "rw-p", "");
        for (at, word) in words {
            memory.word(*at, *word);
        }
        let blocks: Vec<LiveBlock> = [HEAP + 0x10, HEAP + 0x100]
            .map(|addr| LiveBlock::new(addr, 64))
            .to_vec();
        let plan = RootPlan {
            ranges: [ROOT, A, B]
                .into_iter()
                .zip([0x1000, LEN, LEN])
                .map(|(start, len)| (Range::new(start, start + len), RootKind::Mapping))
                .collect(),
            words: registers.to_vec(),
            ..RootPlan::default()
        };
        let mappings = [B, A].map(|addr| LiveMapping {
            addr: Addr(addr),
            len: LEN,
            stack: StackId(7),
        });
        let marked = mark(&memory, &blocks, &plan, &Heuristics::NONE);
        let judged = judge(&memory, &mappings, &blocks, &marked, &plan);
        assert_eq!(judged[0].0, mappings[0]);
        let together = mark_and_judge(&memory, &mappings, &blocks, &plan, &Heuristics::NONE);
        assert_eq!(together, (marked, judged.clone()));
        judged.into_iter().map(|(_, kind)| kind).collect()
    }

    #[test]
    fn pointers_decide() {
        assert_eq!(kinds(&[], &[]), [Definite, Definite]);
        assert_eq!(kinds(&[(ROOT, B)], &[]), [Reachable, Definite]);
        assert_eq!(kinds(&[(ROOT, B + 4096)], &[]), [Possible, Definite]);
        assert_eq!(kinds(&[(ROOT, B + LEN)], &[]), [Definite, Definite]);
        assert_eq!(kinds(&[], &[A, B + 1]), [Possible, Reachable]);
        // The best wins.
        assert_eq!(kinds(&[(ROOT, B), (ROOT + 8, B + 8)], &[])[0], Reachable);
        // Only another mapping's word counts.
        assert_eq!(kinds(&[(B + 8, B)], &[]), [Definite, Definite]);
        assert_eq!(kinds(&[(B + 8, A)], &[]), [Definite, Reachable]);
    }

    #[test]
    fn blocks_speak_when_they_are_not_lost() {
        let (first, second) = (HEAP + 0x10, HEAP + 0x100);
        assert_eq!(kinds(&[(first, B)], &[]), [Definite, Definite]);
        assert_eq!(
            kinds(&[(ROOT, first), (first + 8, B)], &[]),
            [Reachable, Definite]
        );
        assert_eq!(
            kinds(&[(ROOT, second + 8), (second, B)], &[]),
            [Possible, Definite]
        );
    }

    /// Another order of blocks than the marker's: numbers differ.
    #[test]
    fn impossible_blocks_do_not_shift_the_others() {
        let mut memory = FakeMemory::new();
        memory
            .region(ROOT, 0x1000, "rw-p", "/bin/program")
            .region(HEAP, 0x1000, "rw-p", "[heap]")
            .region(A, LEN, "rw-p", "")
            .word(ROOT, HEAP + 0x40)
            .word(HEAP + 0x40, A);
        let block = |addr: u64| LiveBlock::new(addr, 24);
        let blocks = [block(HEAP + 3), block(HEAP + 0x10), block(HEAP + 0x40)];
        let mapping = LiveMapping {
            addr: Addr(A),
            len: LEN,
            stack: StackId(0),
        };
        let plan = RootPlan {
            ranges: vec![(Range::new(ROOT, ROOT + 0x1000), RootKind::Globals)],
            ..RootPlan::default()
        };
        let (_, judged) = mark_and_judge(&memory, &[mapping], &blocks, &plan, &Heuristics::NONE);
        assert_eq!(judged, [(mapping, Reachable)]);
    }

    #[test]
    fn too_many_pointers_are_read_again() {
        let mapping = LiveMapping {
            addr: Addr(A),
            len: LEN,
            stack: StackId(0),
        };
        let mut watch = Watch::new(&[mapping]);
        for block in 0..=HELD as u32 {
            watch.held(A, block, Addr(HEAP));
        }
        assert!(
            watch
                .settle(&Marked::default(), &RootPlan::default())
                .is_none()
        );
    }

    proptest::proptest! {
        /// Judged together or one after the other: the same.
        #[test]
        fn one_reading_is_enough(
            words in proptest::collection::vec((0u64..72, 0u64..6, 0u64..4), 0..40),
            registers in proptest::collection::vec((0u64..6, 0u64..3), 0..3),
            rooted: bool,
        ) {
            // Places: 16 words of roots, six blocks of eight words in the
            // heap and the mapping A, where the sixth block lies, and B.
            let place = |n: u64| match n {
                0..16 => ROOT + 8 * n,
                16..56 => HEAP + 8 * (n - 16) + 16,
                56..64 => A + 0x100 + 8 * (n - 56),
                _ => B + 0x100 + 8 * (n - 64),
            };
            let target = |to: u64, offset: u64| match to {
                0 => A + offset * 0x108,
                1 => B + offset * 0x108,
                // Between the two.
                5 => A + LEN + offset * 8,
                to => HEAP + 64 * (to - 2) + 16 + offset * 8,
            };
            let mut memory = FakeMemory::new();
            memory
                .region(ROOT, 0x1000, "rw-p", "/bin/program")
                .region(HEAP, 0x1000, "rw-p", "[heap]")
                .region(A, LEN, "rw-p", "")
                .region(B, LEN, "rw-p", "");
            for (at, to, offset) in words {
                memory.word(place(at), target(to, offset));
            }
            let starts = (0..5).map(|n| HEAP + 64 * n + 16).chain([A + 0x100]);
            let blocks: Vec<LiveBlock> = starts
                .map(|addr| LiveBlock::new(addr, 64))
                .collect();
            let mappings = [A, B].map(|addr| LiveMapping {
                addr: Addr(addr),
                len: LEN,
                stack: StackId(0),
            });
            let plan = RootPlan {
                ranges: [ROOT, A, B][..if rooted { 3 } else { 1 }]
                    .iter()
                    .map(|at| (Range::new(*at, at + 0x1000), RootKind::Globals))
                    .collect(),
                words: registers.iter().map(|(to, offset)| target(*to, *offset)).collect(),
                ..RootPlan::default()
            };
            let marked = mark(&memory, &blocks, &plan, &Heuristics::ALL);
            let judged = judge(&memory, &mappings, &blocks, &marked, &plan);
            let together = mark_and_judge(&memory, &mappings, &blocks, &plan, &Heuristics::ALL);
            proptest::prop_assert_eq!(together, (marked, judged));
        }
    }
}
