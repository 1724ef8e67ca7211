//! When two stacks count as the same.

use leakscope_model::{RawFrame, StackId, StackTable};
use std::collections::HashMap;

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
/// alone do not tell whole stacks apart. Nodes are numbered anew so that equal
/// paths share a number: each node is looked up once, with its caller's
/// number, and no stack is ever hashed frame by frame.
pub(super) struct StackKeys<'a> {
    stacks: &'a StackTable,
    numbers: Vec<u32>,
    known: HashMap<(u32, RawFrame), u32>,
}

/// Node not numbered yet; the root's number is 0.
const UNKNOWN: u32 = u32::MAX;

impl<'a> StackKeys<'a> {
    pub(super) fn new(stacks: &'a StackTable) -> StackKeys<'a> {
        StackKeys {
            stacks,
            numbers: vec![UNKNOWN; stacks.len()],
            known: HashMap::new(),
        }
    }

    /// The key of `stack` by its innermost `frames` frames (at most
    /// [`LONGEST_PREFIX`]), or by all with `None`.
    pub(super) fn key(&mut self, stack: StackId, frames: Option<usize>) -> StackKey {
        let Some(frames) = frames else {
            return StackKey::Whole(self.number(stack));
        };
        let mut prefix = [None; LONGEST_PREFIX];
        let innermost = self.stacks.frames(stack).take(frames);
        for (slot, frame) in prefix.iter_mut().zip(innermost) {
            *slot = Some(frame);
        }
        StackKey::Prefix(prefix)
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
            let next = self.known.len() as u32 + 1;
            number = *self.known.entry((number, frame)).or_insert(next);
            if let Some(slot) = self.numbers.get_mut(node.0 as usize) {
                *slot = number;
            }
        }
        number
    }
}
