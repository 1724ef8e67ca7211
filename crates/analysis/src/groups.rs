//! Loss records without call stacks: blocks of one kind merged by what they
//! hold.
//!
//! A block whose first word points to a C++ vtable belongs to the type that
//! its run-time type information names; any other is known by its size and by
//! what its first words are ("heap pointer, number, zero"), or by being text.

mod looks;
#[cfg(test)]
mod tests;

pub use looks::{Looks, Type};

use crate::mark::Marked;
use crate::records::Keyed;
use hashbrown::HashMap;
use leakscope_heap::words::Words;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, KindTotals, LiveBlock, LossKind};
use looks::{LOOKED_AT, Look};
use std::cmp::Ordering;

/// Example addresses kept of a group.
const EXAMPLES: usize = 5;

/// Blocks of one kind that look alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Their kind.
    pub kind: LossKind,
    /// Their type, where it is known: an index into [`Looks::types`].
    pub type_index: Option<usize>,
    /// What they hold, in words.
    pub shape: String,
    /// Direct bytes and blocks.
    pub totals: KindTotals,
    /// What is lost only through them.
    pub indirect: KindTotals,
    /// Some of them lead a lost cycle.
    pub cycle: bool,
    /// The lowest of them.
    pub addresses: Vec<Addr>,
    /// First bytes of the lowest.
    pub preview: Vec<u8>,
}

/// Groups all `blocks` (ascending), largest first, counting what is lost
/// through each. Their beginnings are read.
pub fn group(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    marked: &Marked,
    looks: &mut Looks<'_>,
) -> Vec<Group> {
    let (mut groups, _) = gather(memory, blocks, marked, looks);
    groups.sort_by(larger);
    groups
}

/// The same, and the group of every block: its place among the groups.
pub fn group_with_members(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    marked: &Marked,
    looks: &mut Looks<'_>,
) -> (Vec<Group>, Vec<u32>) {
    let (groups, mut of_block) = gather(memory, blocks, marked, looks);
    let mut numbered: Vec<(u32, Group)> = (0..).zip(groups).collect();
    numbered.sort_by(|(_, a), (_, b)| larger(a, b));
    let mut place = vec![0; numbered.len()];
    for (now, (before, _)) in (0..).zip(&numbered) {
        if let Some(place) = place.get_mut(*before as usize) {
            *place = now;
        }
    }
    for at in &mut of_block {
        *at = place.get(*at as usize).copied().unwrap_or(*at);
    }
    let groups = numbered.into_iter().map(|(_, group)| group).collect();
    (groups, of_block)
}

/// Larger groups come first.
fn larger(a: &Group, b: &Group) -> Ordering {
    let bytes = |g: &Group| g.totals.bytes.saturating_add(g.indirect.bytes);
    let order = bytes(b).cmp(&bytes(a));
    order.then_with(|| a.addresses.cmp(&b.addresses))
}

/// Groups in the order in which they were met, and that of each block.
fn gather(
    memory: &dyn MemoryReader,
    blocks: &[LiveBlock],
    marked: &Marked,
    looks: &mut Looks<'_>,
) -> (Vec<Group>, Vec<u32>) {
    let mut words = Words::new(memory);
    let mut first = [0; LOOKED_AT];
    let mut by_look: HashMap<(LossKind, Look), u32, Keyed> = HashMap::default();
    let mut last = None;
    let mut groups: Vec<(Look, Group)> = Vec::new();
    let mut of_block: Vec<u32> = Vec::with_capacity(blocks.len());
    for (number, (block, kind)) in blocks.iter().zip(&marked.kinds).enumerate() {
        let begin = beginning(&mut words, block, &mut first);
        let look = looks.at(number, begin, block.size);
        let next = groups.len() as u32;
        // Neighbours are often alike.
        let at = match last {
            Some((before, at)) if before == (*kind, look) => at,
            _ => *by_look.entry((*kind, look)).or_insert(next),
        };
        last = Some(((*kind, look), at));
        if at == next {
            groups.push((look, Group::new(*kind, begin, block)));
        }
        if let Some((_, group)) = groups.get_mut(at as usize) {
            group.totals.add(block.size);
            if group.addresses.len() < EXAMPLES {
                group.addresses.push(block.addr);
            }
        }
        of_block.push(at);
    }
    for (i, block) in blocks.iter().enumerate() {
        let leader = marked.leader.get(i).copied().unwrap_or(i as u32) as usize;
        let indirect = marked.kinds.get(i) == Some(&LossKind::Indirect);
        let own = of_block.get(if indirect { leader } else { i });
        let Some((_, group)) = own.and_then(|at| groups.get_mut(*at as usize)) else {
            continue;
        };
        if indirect {
            group.indirect.add(block.size);
        } else {
            group.cycle |= marked.cycle.get(i) == Some(&true);
        }
    }
    let groups = groups
        .into_iter()
        .map(|(look, group)| Group {
            shape: looks.describe(look),
            type_index: look.type_index(),
            ..group
        })
        .collect();
    (groups, of_block)
}

impl Group {
    fn new(kind: LossKind, begin: &[u64], block: &LiveBlock) -> Group {
        let bytes: Vec<u8> = begin.iter().flat_map(|w| w.to_le_bytes()).collect();
        let len = bytes.len().min(block.size as usize);
        Group {
            kind,
            type_index: None,
            shape: String::new(),
            totals: KindTotals::default(),
            indirect: KindTotals::default(),
            cycle: false,
            addresses: Vec::new(),
            preview: bytes.get(..len).unwrap_or_default().to_vec(),
        }
    }
}

/// The block's first words, as far as they can be read.
fn beginning<'w>(
    words: &mut Words<'_>,
    block: &LiveBlock,
    into: &'w mut [u64; LOOKED_AT],
) -> &'w [u64] {
    let len = block.size.div_ceil(8).min(LOOKED_AT as u64);
    let mut read = 0;
    for (into, at) in into
        .iter_mut()
        .zip((block.addr.0..).step_by(8))
        .take(len as usize)
    {
        let Some(word) = words.at(at) else { break };
        *into = word;
        read += 1;
    }
    into.get(..read).unwrap_or_default()
}
