//! What CPython's collector will free when it runs next.
//!
//! Objects in a cycle that nothing reaches are no leak as long as their counts
//! say that only the cycle holds them: the collector compares the two as well.
//! An object with a higher count is held by a reference that is nowhere: its
//! owner forgot it. What a forgotten object holds is lost with it.
//!
//! In doubt an object is garbage: a stale word that looks like a reference makes
//! a forgotten object look explained, never the reverse.

use crate::mark::Marked;
use leakscope_heap::cpython::{LINKS, Objects};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, KindTotals, LiveBlock, LossKind};

/// Bytes read of a block at a time.
const PIECE: usize = 64 << 10;
/// References among lost blocks that are looked at; where there are more, it
/// is not known which of them are garbage.
const MOST_EDGES: usize = 1 << 24;

/// Lost blocks, numbered, and what they say of each other.
struct Lost<'a> {
    memory: &'a dyn MemoryReader,
    objects: &'a Objects,
    blocks: &'a [LiveBlock],
    /// Places among all blocks, ascending.
    places: Vec<u32>,
    /// Which block names which.
    edges: Vec<(u32, u32)>,
    /// For each: words that name its object, and whether another names it.
    references: Vec<u64>,
    named: Vec<bool>,
}

/// Makes what the collector will free reachable, and says how much that is:
/// `marked` is of `blocks` (ascending), and so is `objects`.
pub fn take_out(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    objects: &Objects,
    marked: &mut Marked,
) -> KindTotals {
    let all = marked.kinds.iter().zip(0u32..);
    let places: Vec<u32> = all
        .filter(|(kind, _)| **kind != LossKind::Reachable)
        .map(|(_, place)| place)
        .collect();
    let mut lost = Lost {
        memory,
        objects,
        blocks,
        references: vec![0; places.len()],
        named: vec![false; places.len()],
        places,
        edges: Vec::new(),
    };
    if objects.links.is_empty() || lost.places.is_empty() {
        return KindTotals::default();
    }
    if lost.find_edges().is_none() {
        for place in &lost.places {
            let place = *place as usize;
            if let (Some(kind), Some(leader)) =
                (marked.kinds.get_mut(place), marked.leader.get_mut(place))
            {
                *kind = LossKind::Possible;
                *leader = place as u32;
            }
        }
        marked.cycle.fill(false);
        marked.cycle_members.clear();
        return KindTotals::default();
    }
    let facts: Vec<Fact> = (0..lost.places.len()).map(|at| lost.fact(at)).collect();
    let seeds = |of: Fact| {
        let facts = facts.iter().zip(0u32..);
        facts
            .filter(move |(fact, _)| **fact == of)
            .map(|(_, at)| at)
    };
    let forgotten = lost.reached(seeds(Fact::Forgotten));
    let garbage = lost.reached(seeds(Fact::Explained));
    let mut totals = KindTotals::default();
    let of_both = lost.places.iter().zip(forgotten.into_iter().zip(garbage));
    for (own, (forgotten, garbage)) in of_both {
        let place = *own as usize;
        let (Some(kind), Some(leader), Some(cycle), Some(block)) = (
            marked.kinds.get_mut(place),
            marked.leader.get_mut(place),
            marked.cycle.get_mut(place),
            blocks.get(place),
        ) else {
            continue;
        };
        match forgotten.and_then(|seed| lost.places.get(seed as usize)) {
            Some(_) if *kind == LossKind::Possible => {}
            Some(seed) => {
                *leader = *seed;
                *kind = match seed == own {
                    true => LossKind::Definite,
                    false => LossKind::Indirect,
                };
            }
            None if garbage.is_some() => {
                totals.add(block.size);
                *kind = LossKind::Reachable;
                *leader = *own;
                *cycle = false;
            }
            None => {}
        }
    }
    let kinds = &marked.kinds;
    marked
        .cycle_members
        .retain(|leader, _| kinds.get(*leader as usize) == Some(&LossKind::Definite));
    totals
}

/// What a lost block's count says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fact {
    /// Somebody who is nowhere holds it.
    Forgotten,
    /// The collector knows it, and only lost blocks hold it.
    Explained,
    /// It goes with what holds it.
    Held,
}

impl Lost<'_> {
    /// `None` when there are too many.
    fn find_edges(&mut self) -> Option<()> {
        let mut bytes = vec![0; PIECE];
        let mut last = None;
        for from in 0..self.places.len() {
            let block = *self.block(from)?;
            let mut done = 0;
            while done < block.size {
                let piece = (block.size - done).min(PIECE as u64) as usize;
                let at = block.addr.checked_add(done)?;
                let into = bytes.get_mut(..piece)?;
                let got = self.memory.read_some(at, into);
                if got == 0 {
                    break;
                }
                let words = into.get(..got).unwrap_or_default().as_chunks::<8>().0;
                for word in words.iter().map(|word| u64::from_le_bytes(*word)) {
                    let Some(to) = self.holding(word) else {
                        continue;
                    };
                    if Some(word) == self.object(to)
                        && let Some(count) = self.references.get_mut(to)
                    {
                        *count += 1;
                    }
                    let edge = (from as u32, to as u32);
                    if last != Some(edge) && from != to {
                        if self.edges.len() == MOST_EDGES {
                            return None;
                        }
                        self.edges.push(edge);
                        if let Some(named) = self.named.get_mut(to) {
                            *named = true;
                        }
                        last = Some(edge);
                    }
                }
                done += piece as u64;
            }
        }
        Some(())
    }

    fn block(&self, at: usize) -> Option<&LiveBlock> {
        self.blocks.get(*self.places.get(at)? as usize)
    }

    /// The lost block that `word` points into.
    fn holding(&self, word: u64) -> Option<usize> {
        let begins = |place: &u32| self.blocks.get(*place as usize).map_or(0, |b| b.addr.0);
        let next = self.places.partition_point(|place| begins(place) <= word);
        let at = next.checked_sub(1)?;
        let block = self.block(at)?;
        (word - block.addr.0 < block.size).then_some(at)
    }

    /// Where the object in a block begins.
    fn object(&self, at: usize) -> Option<u64> {
        let place = *self.places.get(at)? as usize;
        let offset = self.objects.offsets.get(place)?;
        let block = self.blocks.get(place)?;
        block.addr.0.checked_add(8 * u64::from(*offset))
    }

    fn fact(&self, at: usize) -> Fact {
        let references = self.references.get(at).copied().unwrap_or(0);
        let is_named = self.named.get(at) == Some(&true);
        let place = self.places.get(at).map_or(0, |place| *place as usize);
        let kind = self.objects.of_block.get(place).copied().unwrap_or(0);
        let Some(object) = self.object(at).filter(|_| kind != 0) else {
            // Whoever names it owns it.
            return if is_named {
                Fact::Held
            } else {
                Fact::Forgotten
            };
        };
        match self.memory.read_u64(Addr(object)) {
            Ok(count) if count & 0xffff_ffff <= references => {
                let links = object.wrapping_sub(LINKS);
                match self.objects.links.binary_search(&links) {
                    Ok(_) => Fact::Explained,
                    Err(_) => Fact::Held,
                }
            }
            _ => Fact::Forgotten,
        }
    }

    /// For each block, the first of `seeds` that leads to it.
    fn reached(&self, seeds: impl Iterator<Item = u32>) -> Vec<Option<u32>> {
        let mut found = vec![None; self.places.len()];
        let mut work = Vec::new();
        for seed in seeds {
            work.push(seed);
            while let Some(at) = work.pop() {
                match found.get_mut(at as usize) {
                    Some(by @ None) => *by = Some(seed),
                    _ => continue,
                }
                let first = self.edges.partition_point(|(from, _)| *from < at);
                let own = self.edges.get(first..).unwrap_or_default();
                work.extend(
                    own.iter()
                        .take_while(|(from, _)| *from == at)
                        .map(|(_, to)| *to),
                );
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::{Heuristics, Inside, mark_inside};
    use crate::roots::{RootKind, RootPlan};
    use leakscope_model::Range;
    use leakscope_testkit::FakeMemory;

    const HEAP: u64 = 0x10_0000;
    const ROOT: u64 = 0x1000;

    /// Blocks of 64 bytes: objects behind their links where they have a count.
    struct World {
        memory: FakeMemory,
        blocks: Vec<LiveBlock>,
        objects: Objects,
    }

    fn block(number: u64) -> u64 {
        HEAP + 64 * number
    }

    fn object(number: u64) -> u64 {
        block(number) + 16
    }

    impl World {
        fn new(counts: &[Option<u64>]) -> World {
            let mut memory = FakeMemory::new();
            memory
                .region(ROOT, 0x1000, "rw-p", "/bin/python3")
                .region(HEAP, 0x1_0000, "rw-p", "[heap]");
            let mut objects = Objects::default();
            let mut blocks = Vec::new();
            for (number, count) in (0..).zip(counts) {
                blocks.push(LiveBlock::new(block(number), 64));
                objects.of_block.push(u32::from(count.is_some()));
                objects.offsets.push(if count.is_some() { 2 } else { 0 });
                if let Some(count) = count {
                    objects.links.push(block(number));
                    memory.word(object(number), *count);
                }
            }
            World {
                memory,
                blocks,
                objects,
            }
        }

        fn put(mut self, from: u64, slot: u64, word: u64) -> World {
            self.memory.word(block(from) + 32 + 8 * slot, word);
            self
        }

        /// Kinds and leaders, and how much is garbage.
        fn judge(&self) -> (Vec<LossKind>, Vec<u32>, u64) {
            let plan = RootPlan {
                ranges: vec![(Range::new(ROOT, ROOT + 0x1000), RootKind::Globals)],
                ..RootPlan::default()
            };
            let inside = Inside {
                offsets: &self.objects.offsets,
                words: &self.objects.aliases,
            };
            let heuristics = &Heuristics::NONE;
            let mut marked = mark_inside(&self.memory, &self.blocks, &plan, heuristics, inside);
            let totals = take_out(&self.memory, &self.blocks, &self.objects, &mut marked);
            (marked.kinds, marked.leader, totals.blocks)
        }
    }

    use LossKind::{Definite, Indirect, Reachable};

    #[test]
    fn a_cycle_that_only_itself_holds_is_garbage() {
        // Itself, one through another, and what they hold.
        let world = World::new(&[Some(1), Some(1), Some(1), None])
            .put(0, 0, object(0))
            .put(1, 0, object(2))
            .put(2, 0, object(1))
            .put(2, 1, block(3));
        let (kinds, leaders, garbage) = world.judge();
        assert_eq!(kinds, [Reachable; 4]);
        assert_eq!((leaders, garbage), (vec![0, 1, 2, 3], 4));
    }

    #[test]
    fn a_cycle_with_a_reference_too_many_is_lost() {
        let world = World::new(&[Some(1), Some(2), None, Some(1)])
            .put(0, 0, object(1))
            .put(1, 0, object(0))
            .put(0, 1, block(2))
            // Garbage names it, but that is all its count says.
            .put(3, 0, object(3));
        let (kinds, leaders, garbage) = world.judge();
        assert_eq!(kinds, [Indirect, Definite, Indirect, Reachable]);
        assert_eq!((leaders, garbage), (vec![1, 1, 1, 3], 1));
    }

    #[test]
    fn what_garbage_holds_is_lost_if_another_forgot_it() {
        let world = World::new(&[Some(1), Some(2), Some(1)])
            .put(0, 0, object(0))
            .put(0, 1, object(1))
            .put(1, 0, object(2));
        let (kinds, leaders, garbage) = world.judge();
        assert_eq!(kinds, [Reachable, Definite, Indirect]);
        assert_eq!((leaders, garbage), (vec![0, 1, 1], 1));
    }

    #[test]
    fn what_the_collector_does_not_know_it_will_not_free() {
        let mut world = World::new(&[Some(1), Some(1)])
            .put(0, 0, object(1))
            .put(1, 0, object(0));
        world.objects.links.clear();
        let (kinds, _, garbage) = world.judge();
        assert_eq!((kinds, garbage), (vec![Definite, Indirect], 0));
        // Plain memory in a ring, beside an object that is garbage.
        let world = World::new(&[None, None, Some(1)])
            .put(0, 0, block(1))
            .put(1, 0, block(0))
            .put(2, 0, object(2));
        let (kinds, _, garbage) = world.judge();
        assert_eq!((kinds, garbage), (vec![Definite, Indirect, Reachable], 1));
        // It holds an object that has no other holder.
        let world = World::new(&[None, Some(1)]).put(0, 0, object(1));
        let (kinds, _, garbage) = world.judge();
        assert_eq!((kinds, garbage), (vec![Definite, Indirect], 0));
    }
}
