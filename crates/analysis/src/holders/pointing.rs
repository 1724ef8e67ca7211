//! Who points to an address: one look at every root and every block.

use super::{HolderInput, RootPlace, RootWord, frame};
use crate::mark::{Scanner, aligned};
use leakscope_model::{Addr, Range};

/// Blocks read at a time.
const BATCH: usize = 4096;

/// A word that points somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Of a root.
    Root(RootWord),
    /// In a block.
    Block {
        /// Its index.
        block: u32,
        /// Where in it.
        offset: u64,
        /// What the word holds.
        value: u64,
    },
}

/// The words that point into a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pointing {
    /// Some of them: those of roots first.
    pub sources: Vec<Source>,
    /// How many there are.
    pub all: u64,
}

impl Pointing {
    fn add(&mut self, most: usize, source: Source) {
        self.all += 1;
        if self.sources.len() < most {
            self.sources.push(source);
        }
    }
}

/// All words that point into `target`; at most `most` are listed. What a block
/// says of itself does not count.
pub fn pointing(input: &HolderInput<'_>, target: Range, most: usize) -> Pointing {
    let mut found = Pointing::default();
    let (low, len) = (target.start.0, target.len());
    let hits = |word: u64| word.wrapping_sub(low) < len;
    let mut scanner = Scanner::new(input.memory, input.blocks);
    let ranges = input.plan.ranges.iter();
    for (range, kind) in ranges.flat_map(|(range, kind)| frame::split(input, *range, *kind)) {
        scanner.range(aligned(&range), |start, bytes| {
            for (at, word) in (start..).step_by(8).zip(bytes.as_chunks::<8>().0) {
                let value = u64::from_le_bytes(*word);
                if hits(value) {
                    let (place, at) = (RootPlace::Memory(kind), Addr(at));
                    found.add(most, Source::Root(RootWord { place, at, value }));
                }
            }
        });
    }
    for thread in input.threads {
        for value in thread.registers.iter().copied().filter(|v| hits(*v)) {
            let (place, at) = (RootPlace::Register(thread.tid), Addr(0));
            found.add(most, Source::Root(RootWord { place, at, value }));
        }
    }
    let mut batch = Vec::with_capacity(BATCH);
    // A large block comes in several pieces.
    let (mut last, mut done) = (u32::MAX, 0);
    for first in (0..input.blocks.len()).step_by(BATCH) {
        let end = input.blocks.len().min(first + BATCH);
        batch.extend(first as u32..end as u32);
        scanner.blocks(&mut batch, |block, bytes| {
            if block != last {
                (last, done) = (block, 0);
            }
            let own = input.blocks.get(block as usize);
            for (offset, word) in (done..).step_by(8).zip(bytes.as_chunks::<8>().0) {
                let value = u64::from_le_bytes(*word);
                if hits(value) && own.is_none_or(|own| own.addr != target.start) {
                    let source = Source::Block {
                        block,
                        offset,
                        value,
                    };
                    found.add(most, source);
                }
            }
            done += bytes.len() as u64;
        });
    }
    found
}
