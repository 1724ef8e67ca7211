//! Application mappings, judged like blocks but apart from them.
//!
//! A mapping is a root for blocks, so it is never part of the marking. Who
//! points to it is asked afterwards: a start pointer makes it reachable, an
//! interior pointer possible, none definite. Asked are all roots outside the
//! mapping itself, registers, and blocks that are not lost; what a possible
//! block says makes possible at best. So a mapping that only lost memory or
//! its own contents point to is lost, while two mappings that hold each other
//! are not told apart from mappings in use.

use crate::mark::{Marked, for_each_holding_word};
use crate::roots::RootPlan;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, LiveBlock, LiveMapping, LossKind, Range};

/// Judges each mapping; the order is kept.
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
        for word in plan.words.iter().chain(&plan.start_words) {
            targets.see(*word, None, LossKind::Reachable);
        }
        for_each_holding_word(memory, blocks, marked, plan, |at, word, kind| {
            targets.see(word, Some(at), kind);
        });
    }
    mappings.iter().copied().zip(targets.kinds).collect()
}

/// The mappings in address order, and the best seen of each.
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

    /// A word that stands at `at` (`None`: a register), in memory of `kind`.
    fn see(&mut self, word: u64, at: Option<Addr>, kind: LossKind) {
        let word = Addr(word);
        if !self.span.contains(word) {
            return;
        }
        let next = self.ranges.partition_point(|(r, _)| r.start <= word);
        let Some((range, place)) = next.checked_sub(1).and_then(|i| self.ranges.get(i)) else {
            return;
        };
        if !range.contains(word) || at.is_some_and(|at| range.contains(at)) {
            return;
        }
        let seen = if range.start == word {
            kind
        } else {
            LossKind::Possible
        };
        if let Some(best) = self.kinds.get_mut(*place) {
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
    use leakscope_model::{Family, StackId};
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
            .map(|addr| LiveBlock {
                addr: Addr(addr),
                size: 64,
                stack: StackId(0),
                family: Family::Malloc,
                ignored: false,
                age_cs: 0,
                weight: 1.0,
            })
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
}
