//! When two stacks count as the same.

use hashbrown::HashTable;
use leakscope_model::{RawFrame, StackId, StackTable};
use std::hash::{BuildHasher, Hasher, RandomState};

/// The most frames that a [`StackKey::Prefix`] compares.
pub(super) const LONGEST_PREFIX: usize = 4;

/// Equal for stacks that agree in the frames compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StackKey {
    /// The whole stack, by its number among the different ones.
    Whole(u32),
    /// The innermost frames; `None` behind the end of a short stack.
    Prefix([Option<RawFrame>; LONGEST_PREFIX]),
}

/// Makes keys.
///
/// The recorder's threads may store the same frames under two nodes, so ids
/// alone do not tell whole stacks apart. Nodes are numbered so that equal paths
/// share a number, that of the first node met of them: each node is looked up
/// once, with its caller's number, and no stack is ever hashed frame by frame.
pub(super) struct StackKeys<'a> {
    stacks: &'a StackTable,
    numbers: Vec<u32>,
    /// Nodes that number themselves, found by frame and caller's number. With
    /// a million of them, what it weighs decides what it costs.
    known: HashTable<u32>,
    keyed: Keyed,
}

/// Node not numbered yet; the root's number is 0.
const UNKNOWN: u32 = u32::MAX;

impl<'a> StackKeys<'a> {
    pub(super) fn new(stacks: &'a StackTable) -> StackKeys<'a> {
        StackKeys {
            stacks,
            numbers: vec![UNKNOWN; stacks.len()],
            known: HashTable::with_capacity(stacks.len()),
            keyed: Keyed::default(),
        }
    }

    /// The key of `stack` by its innermost `frames` frames (at most
    /// [`LONGEST_PREFIX`]), or by all with `None`.
    pub(super) fn key(&mut self, stack: StackId, frames: Option<usize>) -> StackKey {
        let Some(frames) = frames else {
            return StackKey::Whole(self.number(stack));
        };
        shortened(&self.innermost(stack), frames)
    }

    fn innermost(&self, stack: StackId) -> [Option<RawFrame>; LONGEST_PREFIX] {
        let mut prefix = [None; LONGEST_PREFIX];
        for (slot, frame) in prefix.iter_mut().zip(self.stacks.frames(stack)) {
            *slot = Some(frame);
        }
        prefix
    }

    fn number(&mut self, stack: StackId) -> u32 {
        // Outwards to the first node with a number, then back again.
        let mut path = Vec::new();
        let mut at = stack;
        let mut number = loop {
            match self.numbers.get(at.0 as usize) {
                _ if at.0 == 0 => break 0,
                None => break 0,
                Some(&UNKNOWN) => path.push(at),
                Some(&number) => break number,
            }
            at = self.stacks.caller(at);
        };
        while let Some(node) = path.pop() {
            let Some(frame) = self.stacks.frames(node).next() else {
                continue;
            };
            let StackKeys {
                stacks,
                numbers,
                known,
                keyed,
            } = &mut *self;
            let frame_of = |id: u32| stacks.frames(StackId(id)).next();
            let outer_of = |id: u32| match stacks.caller(StackId(id)).0 {
                0 => Some(0),
                caller => numbers.get(caller as usize).copied(),
            };
            let hash = keyed.hash_one((number, frame));
            let same = |id: &u32| frame_of(*id) == Some(frame) && outer_of(*id) == Some(number);
            let hash_of = |id: &u32| {
                let outer = outer_of(*id).unwrap_or(0);
                frame_of(*id).map_or(0, |frame| keyed.hash_one((outer, frame)))
            };
            number = *known.entry(hash, same, hash_of).or_insert(node.0).get();
            if let Some(slot) = numbers.get_mut(node.0 as usize) {
                *slot = number;
            }
        }
        number
    }
}

fn shortened(innermost: &[Option<RawFrame>; LONGEST_PREFIX], frames: usize) -> StackKey {
    let mut prefix = *innermost;
    prefix.iter_mut().skip(frames).for_each(|slot| *slot = None);
    StackKey::Prefix(prefix)
}

/// Hashes a few numbers with a multiplication each, for there are millions of
/// nodes. The keys are drawn anew in each run, so that a program cannot have
/// prepared frames that collide.
pub(crate) struct Keyed {
    start: u64,
    factor: u64,
}

impl Default for Keyed {
    fn default() -> Keyed {
        let random = RandomState::new();
        Keyed {
            start: random.hash_one(0),
            // An even factor would lose the upper bit.
            factor: random.hash_one(1) | 1,
        }
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded {
            state: self.start,
            factor: self.factor,
        }
    }
}

pub(crate) struct Folded {
    state: u64,
    factor: u64,
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    /// Both halves of the product, so that every bit reaches every other.
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.state ^ number) * u128::from(self.factor);
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    /// Once more, for the last number has seen one multiplication only.
    fn finish(&self) -> u64 {
        let product = u128::from(self.state.rotate_left(32)) * u128::from(self.factor);
        product as u64 ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_model::{Addr, ModuleId};
    use std::collections::HashSet;

    #[test]
    fn neighbours_spread_over_all_places() {
        for _ in 0..97 {
            let keyed = Keyed::default();
            let mut low = HashSet::new();
            let mut high = HashSet::new();
            for i in 0..4096u64 {
                let frame = RawFrame {
                    module: ModuleId(0),
                    pc: Addr(0x5555_0000_0000 + i * 16),
                };
                let hash = keyed.hash_one((7u32, frame));
                low.insert(hash & 0xfff);
                high.insert(hash >> 52);
            }
            // Of 4096 drawn at random from as many, about 63 % are hit.
            assert!(low.len() > 512 && high.len() > 512);
        }
    }
}
