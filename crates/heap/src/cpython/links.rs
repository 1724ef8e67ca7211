//! The collector's lists.
//!
//! `PyGC_Head` (Include/internal/pycore_gc.h): the next object's head, and the
//! previous one's with two flags in its low bits. From 3.14 on the lowest bit
//! of the first is a flag, too. Both are empty in an object that the collector
//! does not know. A list is a ring through a head in the interpreter's state.

use leakscope_memory::MemoryReader;
use leakscope_model::Addr;
use std::collections::HashMap;

/// Heads of lists, and objects of types that were not recognised, that are
/// asked at most.
const MOST_ASKED: usize = 1 << 16;

/// `PREV_MASK_COLLECTING`.
const COLLECTING: u64 = 2;
/// Links that are looked at before they are searched for.
const NEAR: usize = 4;

/// Links as they were read.
#[derive(Default)]
pub(super) struct Links {
    /// Where, next, previous: ascending.
    all: Vec<(u64, u64, u64)>,
    /// Some object's second word is a count, while the collector is at work.
    pub(super) is_collecting: bool,
}

impl Links {
    /// At `at`: the words `next` and `previous`.
    pub(super) fn add(&mut self, at: u64, next: u64, previous: u64) {
        self.is_collecting |= next != 0 && previous & COLLECTING != 0;
        let (next, previous) = (next & !1, previous & !3);
        if next != 0 && previous != 0 {
            self.all.push((at, next, previous));
        }
    }

    /// Where both neighbours name the one between: ascending. Among them the
    /// heads of lists.
    pub(super) fn confirmed(self, memory: &dyn MemoryReader) -> Vec<u64> {
        let mut asked: HashMap<u64, Option<(u64, u64)>> = HashMap::new();
        let mut heads = Vec::new();
        let mut confirmed: Vec<u64> = Vec::with_capacity(self.all.len());
        for (place, (at, next, previous)) in self.all.iter().enumerate() {
            let mut neighbour = |of: u64| {
                if let Some(links) = self.near(place, of) {
                    return Some(links);
                }
                if asked.len() >= MOST_ASKED && !asked.contains_key(&of) {
                    return None;
                }
                let links = *asked.entry(of).or_insert_with(|| read(memory, of));
                heads.extend(links.map(|_| of));
                links
            };
            let behind = neighbour(*next).is_some_and(|(_, previous)| previous == *at);
            let before = neighbour(*previous).is_some_and(|(next, _)| next == *at);
            if behind && before {
                confirmed.push(*at);
            }
        }
        heads.sort_unstable();
        heads.dedup();
        let is_ours = |at: u64| confirmed.binary_search(&at).is_ok();
        heads.retain(|at| {
            let links = asked.get(at).copied().flatten();
            links.is_some_and(|(next, previous)| is_ours(next) && is_ours(previous))
        });
        confirmed.extend(heads);
        confirmed.sort_unstable();
        confirmed.dedup();
        confirmed
    }
}

impl Links {
    /// The links at `of`, if they were added: often those of a neighbour.
    fn near(&self, place: usize, of: u64) -> Option<(u64, u64)> {
        let first = place.saturating_sub(NEAR);
        let around = self.all.get(first..self.all.len().min(place + NEAR + 1));
        let beside = around
            .unwrap_or_default()
            .iter()
            .find(|(at, _, _)| *at == of);
        let found = beside.or_else(|| {
            let place = self.all.binary_search_by_key(&of, |(at, _, _)| *at);
            self.all.get(place.ok()?)
        });
        found.map(|(_, next, previous)| (*next, *previous))
    }
}

fn read(memory: &dyn MemoryReader, at: u64) -> Option<(u64, u64)> {
    if !at.is_multiple_of(8) {
        return None;
    }
    let next = memory.read_u64(Addr(at)).ok()?;
    let previous = memory.read_u64(Addr(at.checked_add(8)?)).ok()?;
    Some((next & !1, previous & !3))
}
