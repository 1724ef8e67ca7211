//! The order of records.
//!
//! Where nearly every block has a stack of its own, millions of records of
//! the same size differ only in their frames, and each frame is a cache miss.
//! So equals are not compared pairwise from their innermost frames on, again
//! and again, but sorted frame by frame: each step looks at one more frame of
//! those that agreed so far.

use super::RawRecord;
use leakscope_model::{LiveTable, LossKind, StackId};
use std::cmp::Reverse;

/// A frame as module and address in the module, which is the same in every
/// run; `None` behind the outermost.
type Place = Option<(u16, u64)>;

/// A record on its way to its place.
#[derive(Clone, Copy)]
struct Item {
    size: Reverse<u64>,
    blocks: Reverse<u64>,
    kind: LossKind,
    record: u32,
    /// The node whose frame is compared next, and that frame.
    node: StackId,
    place: Place,
}

/// Sorts records as [`merge`](super::merge) promises; of equal stacks the one
/// with the lowest blocks comes first.
pub(super) fn sort(table: &LiveTable, records: Vec<RawRecord>) -> Vec<RawRecord> {
    let mut items: Vec<Item> = (0..)
        .zip(&records)
        .map(|(record, r)| Item {
            size: Reverse(r.bytes.saturating_add(r.indirect.bytes)),
            blocks: Reverse(r.blocks.saturating_add(r.indirect.blocks)),
            kind: r.kind,
            record,
            node: r.stack,
            place: place(table, r.stack),
        })
        .collect();
    items.sort_unstable_by_key(|i| (i.size, i.blocks, i.kind, i.place));
    let mut ties = Vec::new();
    find_ties(&items, 0, &mut ties, |i| {
        (i.size, i.blocks, i.kind, i.place)
    });
    while let Some((from, to)) = ties.pop() {
        let Some(tied) = items.get_mut(from..to) else {
            continue;
        };
        // Equal to the end, or from here on the very same.
        let Some(first) = tied.first().copied() else {
            continue;
        };
        if first.place.is_none() || tied.iter().all(|i| i.node == first.node) {
            let examples = |i: &Item| records.get(i.record as usize).map(|r| &r.examples);
            tied.sort_unstable_by(|a, b| examples(a).cmp(&examples(b)));
            continue;
        }
        for item in &mut *tied {
            item.node = table.stacks.caller(item.node);
            item.place = place(table, item.node);
        }
        tied.sort_unstable_by_key(|i| i.place);
        find_ties(tied, from, &mut ties, |i| i.place);
    }
    let mut slots: Vec<Option<RawRecord>> = records.into_iter().map(Some).collect();
    items
        .iter()
        .filter_map(|item| slots.get_mut(item.record as usize)?.take())
        .collect()
}

/// Lists where two or more neighbours are equal by `key`; `base` is the place
/// of the first item.
fn find_ties<K: PartialEq>(
    items: &[Item],
    base: usize,
    ties: &mut Vec<(usize, usize)>,
    key: impl Fn(&Item) -> K,
) {
    let mut from = base;
    for tied in items.chunk_by(|a, b| key(a) == key(b)) {
        let to = from + tied.len();
        if tied.len() > 1 {
            ties.push((from, to));
        }
        from = to;
    }
}

fn place(table: &LiveTable, stack: StackId) -> Place {
    let frame = table.stacks.frames(stack).next()?;
    let module = table.modules.get(usize::from(frame.module.0));
    let bias = module.map_or(0, |m| m.bias);
    Some((frame.module.0, frame.pc.0.wrapping_sub(bias)))
}
