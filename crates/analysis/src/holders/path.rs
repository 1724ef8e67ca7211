//! From one block back to its root, step by step.

use super::search::{Holder, Search};
use super::{HolderInput, RootWord};
use crate::mark::extent;
use leakscope_model::Addr;

/// Blocks of a path that are told at either end.
const TOLD: usize = 4;
/// Steps that all paths together may take: a list of ten million blocks is
/// walked a few times, not once for each record that it holds.
const STEPS: u64 = 1 << 24;
/// Bytes that all paths together may read, to find where in a block the
/// pointer to the next one is.
const BYTES: u64 = 1 << 30;
/// Bytes read at a time.
const PIECE: u64 = 64 << 10;

/// A block on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub block: u32,
    /// How far inside it the pointer to it points; zero for its start.
    pub into: u64,
    /// Where in it the pointer to the next block is; `None` for the last
    /// block, before blocks that are left out, and where it is not there any
    /// more.
    pub offset: Option<u64>,
    /// Blocks left out between this one and the next.
    pub skipped: u64,
}

/// The way from a root to a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// Where it begins.
    pub root: RootWord,
    /// Blocks that are left out at its beginning.
    pub skipped: u64,
    /// The blocks, from the root's on to the one that was asked for.
    pub links: Vec<Link>,
}

/// Walks paths, with bounds on all of them together.
pub struct Walker<'a> {
    input: &'a HolderInput<'a>,
    search: &'a Search,
    steps: u64,
    bytes: u64,
}

impl<'a> Walker<'a> {
    /// For the outcome of a search.
    pub fn new(input: &'a HolderInput<'a>, search: &'a Search) -> Walker<'a> {
        Walker {
            input,
            search,
            steps: STEPS,
            bytes: BYTES,
        }
    }

    /// The way to `block`; `None` where nothing holds it.
    pub fn path(&mut self, block: u32) -> Option<Path> {
        let (root, depth) = self.search.root(block)?;
        let mut near = Vec::new();
        let mut far = Vec::new();
        let mut at = block;
        // Blocks still to come before the root's own, this one included.
        let mut left = u64::from(depth) + 1;
        let whole = left <= 2 * TOLD as u64;
        let mut skipped = 0;
        let mut lost = 0;
        loop {
            if near.len() < TOLD || whole {
                near.push(at);
            } else if left <= TOLD as u64 {
                far.push(at);
            } else {
                skipped += 1;
            }
            left = left.saturating_sub(1);
            match self.search.holder(at) {
                Some(Holder::Block(next)) if left > 0 && self.steps > 0 => at = next,
                Some(Holder::Block(_)) => {
                    lost = left;
                    break;
                }
                _ => break,
            }
            self.steps -= 1;
        }
        if far.is_empty() && lost > 0 {
            (skipped, lost) = (0, lost + skipped);
        }
        let mut blocks: Vec<(u32, u64)> = far.iter().rev().map(|block| (*block, 0)).collect();
        if let Some(last) = blocks.last_mut() {
            last.1 = skipped;
        }
        blocks.extend(near.iter().rev().map(|block| (*block, 0)));
        let mut links: Vec<Link> = Vec::with_capacity(blocks.len());
        let mut into = match blocks.first() {
            Some((first, _)) if lost == 0 => self.inside(*first, root.value),
            _ => 0,
        };
        for (i, (block, skipped)) in blocks.iter().enumerate() {
            let next = blocks.get(i + 1).filter(|_| *skipped == 0);
            let found = next.and_then(|(next, _)| self.pointer(*block, *next));
            links.push(Link {
                block: *block,
                into,
                offset: found.map(|(offset, _)| offset),
                skipped: *skipped,
            });
            into = found.map_or(0, |(_, into)| into);
        }
        Some(Path {
            root,
            skipped: lost,
            links,
        })
    }

    /// How far inside `block` an address is.
    fn inside(&self, block: u32, address: u64) -> u64 {
        let own = self.input.blocks.get(block as usize);
        own.map_or(0, |own| address.wrapping_sub(own.addr.0))
    }

    /// Where in `holder` a word points to `block`, and how far inside: one
    /// that points to its start, else the first.
    fn pointer(&mut self, holder: u32, block: u32) -> Option<(u64, u64)> {
        let (start, len) = extent(self.input.blocks, holder);
        let (low, size) = extent(self.input.blocks, block);
        let mut inner = None;
        let mut bytes = vec![0; PIECE.min(len) as usize];
        let mut done = 0;
        while done < len && self.bytes > 0 {
            let part = (len - done).min(PIECE);
            let into = bytes.get_mut(..part as usize)?;
            let got = self.input.memory.read_some(Addr(start + done), into);
            self.bytes = self.bytes.saturating_sub(part);
            let read = into.get(..got)?;
            for (offset, word) in (done..).step_by(8).zip(read.as_chunks::<8>().0) {
                let into = u64::from_le_bytes(*word).wrapping_sub(low);
                if into == 0 {
                    return Some((offset, 0));
                }
                if into < size && inner.is_none() {
                    inner = Some((offset, into));
                }
            }
            // What cannot be read holds nothing.
            done += part;
        }
        inner
    }
}
