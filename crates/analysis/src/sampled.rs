//! Reachability where only a sample of the blocks was recorded.
//!
//! A sampled block is mostly held by blocks that were not sampled. They are
//! found by walking glibc's heaps and take part in the marking without being
//! counted ([`complete`]); what cannot be walked (another allocator's memory,
//! a heap in the middle of a change) stays a root as a whole, which may hide
//! a leak but invents none. [`Completed::sample`] leaves the sample's kinds.

use crate::mark::Marked;
use crate::roots::{self, RootInput};
use leakscope_heap::glibc;
use leakscope_model::{Addr, LiveBlock, LossKind, Range};

/// Sampled blocks and all others.
#[derive(Clone, Debug, Default)]
pub struct Completed {
    /// All blocks that are known to be in use, ascending. Those that were not
    /// sampled have weight 0.
    pub blocks: Vec<LiveBlock>,
    /// Heaps every block of which is among `blocks`, ascending.
    pub heaps: Vec<Range>,
    /// Where the sampled ones are, in their order.
    positions: Vec<u32>,
}

/// The sampled blocks alone: if none of them is lost when nothing of the heaps
/// is a root, none is lost. Most are held by others, but where few are left
/// this spares a look at all of the heap.
pub fn alone(input: &RootInput<'_>) -> Completed {
    let mut completed = Completed {
        heaps: roots::rough_heaps(input),
        ..Completed::default()
    };
    completed.extend(input.blocks);
    completed
}

/// Finds the blocks that were not sampled. `input.blocks` are the sampled ones,
/// ascending.
pub fn complete(input: &RootInput<'_>) -> Completed {
    let mut completed = Completed::default();
    let mut sampled = input.blocks;
    for heap in glibc::walk(input.memory, input.threads).segments {
        let (before, rest) = split_at(sampled, heap.range.start);
        let (inside, behind) = split_at(rest, heap.range.end);
        // A sampled block that is no block of the heap: it was not read right.
        let mut known = heap.blocks.iter().map(|found| found.addr);
        if !inside.iter().all(|b| known.any(|addr| addr == b.addr.0)) {
            continue;
        }
        completed.extend(before);
        let mut next = inside.iter().peekable();
        for found in &heap.blocks {
            match next.next_if(|b| b.addr.0 == found.addr) {
                Some(block) => completed.push(*block, true),
                None => completed.push(unsampled(found.addr, found.size), false),
            }
        }
        completed.heaps.push(heap.range);
        sampled = behind;
    }
    completed.extend(sampled);
    completed
}

fn split_at(blocks: &[LiveBlock], at: Addr) -> (&[LiveBlock], &[LiveBlock]) {
    blocks.split_at(blocks.partition_point(|block| block.addr < at))
}

fn unsampled(addr: u64, size: u64) -> LiveBlock {
    LiveBlock {
        weight: 0.0,
        ..LiveBlock::new(addr, size)
    }
}

impl Completed {
    fn push(&mut self, block: LiveBlock, sampled: bool) {
        let at = u32::try_from(self.blocks.len());
        if let (true, Ok(at)) = (sampled, at) {
            self.positions.push(at);
        }
        self.blocks.push(block);
    }

    fn extend(&mut self, sampled: &[LiveBlock]) {
        for block in sampled {
            self.push(*block, true);
        }
    }

    /// The kinds of the sampled blocks, in their order, from those of all. A
    /// block that is lost with one that was not sampled leads itself.
    pub fn sample(&self, marked: &Marked) -> Marked {
        let of_sample = |at: u32| self.positions.binary_search(&at).ok().map(|i| i as u32);
        let mut sample = Marked {
            unreadable_bytes: marked.unreadable_bytes,
            scanned_block_bytes: marked.scanned_block_bytes,
            scanned_root_bytes: marked.scanned_root_bytes,
            ..Marked::default()
        };
        for (own, &at) in (0..).zip(&self.positions) {
            let position = at as usize;
            let get = |of: &[u32]| of.get(position).copied();
            let kind = marked.kinds.get(position).copied();
            let kind = kind.unwrap_or(LossKind::Reachable);
            let leader = of_sample(get(&marked.leader).unwrap_or(at));
            sample.kinds.push(match (kind, leader) {
                (LossKind::Indirect, None) => LossKind::Definite,
                (kind, _) => kind,
            });
            sample.leader.push(leader.unwrap_or(own));
            let cycle = marked.cycle.get(position).copied();
            sample.cycle.push(cycle.unwrap_or(false));
        }
        for (leader, members) in &marked.cycle_members {
            if let Some(leader) = of_sample(*leader) {
                let members = members.iter().filter_map(|at| of_sample(*at)).collect();
                sample.cycle_members.insert(leader, members);
            }
        }
        sample
    }
}

#[cfg(test)]
mod tests;
