//! Loss records: blocks of one kind, merged by call stack.
//!
//! Two steps keep this linear in the number of blocks and nodes: blocks are
//! grouped by stack id first (an array look-up per block), then the groups,
//! far fewer, by as many innermost frames as the [`Resolution`] compares.
//!
//! Begin with [`merge`]; then [`FreeSiteIndex`] says where the siblings of a
//! record's blocks were freed, and [`stable_ids`] names the records.

mod content_id;
mod free_sites;
mod order;
mod stable_id;
mod stack_key;
#[cfg(test)]
mod tests;

pub use content_id::content_ids;
pub use free_sites::{FreeSiteIndex, FreeSites};
pub use stable_id::{stable_id, stable_ids};
pub(crate) use stack_key::Keyed;

use leakscope_model::{
    Family, KindTotals, LiveBlock, LiveTable, LossKind, SampleEstimate, StackId,
};
use stack_key::{StackKey, StackKeys};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// How many example blocks a record keeps.
pub const EXAMPLES: usize = 8;

/// How many innermost frames must agree for two blocks to share a record
/// (memcheck's `--leak-resolution`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// Two frames.
    Low,
    /// Four frames.
    Med,
    /// All frames.
    #[default]
    High,
}

impl Resolution {
    /// The number of frames compared; `None` compares all.
    pub fn frames(self) -> Option<usize> {
        match self {
            Resolution::Low => Some(2),
            Resolution::Med => Some(4),
            Resolution::High => None,
        }
    }
}

/// A word that names no [`Resolution`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownResolution(String);

impl fmt::Display for UnknownResolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown leak resolution '{}': use low, med or high",
            self.0
        )
    }
}

impl std::error::Error for UnknownResolution {}

impl FromStr for Resolution {
    type Err = UnknownResolution;

    fn from_str(word: &str) -> Result<Resolution, UnknownResolution> {
        match word {
            "low" => Ok(Resolution::Low),
            "med" => Ok(Resolution::Med),
            "high" => Ok(Resolution::High),
            _ => Err(UnknownResolution(word.to_owned())),
        }
    }
}

/// What the marker decided for each block of a [`LiveTable`]; every slice
/// runs parallel to [`LiveTable::blocks`]. Where a slice is too short, a
/// block is reachable, its own leader and in no cycle.
#[derive(Clone, Copy, Debug, Default)]
pub struct Classified<'a> {
    /// Loss kind of each block.
    pub kinds: &'a [LossKind],
    /// For an indirect block the index of the block through which it is
    /// lost; its own index otherwise.
    pub leader: &'a [u32],
    /// True for each block that leads a lost cycle or belongs to one.
    pub cycle: &'a [bool],
}

impl Classified<'_> {
    fn kind(&self, i: usize) -> LossKind {
        self.kinds.get(i).copied().unwrap_or(LossKind::Reachable)
    }

    fn leader(&self, i: usize) -> usize {
        self.leader.get(i).map_or(i, |l| *l as usize)
    }

    fn in_cycle(&self, i: usize) -> bool {
        self.cycle.get(i).copied().unwrap_or(false)
    }
}

/// A loss record before it has symbols.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRecord {
    /// Loss kind of every block in it.
    pub kind: LossKind,
    /// Stack of its block with the lowest address.
    pub stack: StackId,
    /// All stacks merged in it, in ascending order.
    pub stacks: Vec<StackId>,
    /// Functions that made the block with the lowest address.
    pub family: Family,
    /// Direct bytes; an estimate in sampled mode.
    pub bytes: u64,
    /// Direct blocks; an estimate in sampled mode.
    pub blocks: u64,
    /// What is lost only through these blocks; an estimate in sampled mode.
    pub indirect: KindTotals,
    /// Its first block that leads a lost cycle; the marker knows the members.
    pub cycle_leader: Option<u32>,
    /// Indexes of its blocks, lowest address first, at most [`EXAMPLES`].
    pub examples: Vec<u32>,
    /// How uncertain `bytes` is; `None` when every block was recorded.
    pub estimate: Option<SampleEstimate>,
}

/// What a group of blocks adds up to. One cache line: with millions of stacks
/// every block touches another one.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    direct: KindTotals,
    indirect: KindTotals,
    /// The lowest blocks' indexes; as many as `direct` has blocks, at most.
    examples: [u32; EXAMPLES],
}

impl Sums {
    fn add(&mut self, index: u32, size: u64) {
        if let Some(slot) = self.examples.get_mut(self.direct.blocks as usize) {
            *slot = index;
        }
        self.direct.add(size);
    }

    fn examples(&self) -> &[u32] {
        let kept = (self.direct.blocks as usize).min(EXAMPLES);
        self.examples.get(..kept).unwrap_or_default()
    }

    fn merge(&mut self, other: &Sums) {
        // Of both ascending lists the lowest.
        let mut both = [u32::MAX; 2 * EXAMPLES];
        let all = self.examples().iter().chain(other.examples());
        for (slot, example) in both.iter_mut().zip(all) {
            *slot = *example;
        }
        both.sort_unstable();
        for (slot, example) in self.examples.iter_mut().zip(both) {
            *slot = example;
        }
        plus(&mut self.direct, other.direct);
        plus(&mut self.indirect, other.indirect);
    }
}

/// Sums over sampled blocks, each standing for `weight` blocks.
///
/// The recorder samples bytes as a Poisson process: a block of `s` bytes is
/// seen with probability `p = 1 - exp(-s / mean)`, independently of all
/// others, and its weight is `1 / p`. The sum of the weights then estimates
/// the blocks and the sum of `weight * s` the bytes, both without bias
/// (Horvitz and Thompson). With `w = 1 / p`, the variance of the latter is
/// estimated without bias by the sum of `w * (w - 1) * s * s`.
#[derive(Clone, Copy, Debug, Default)]
struct Weighted {
    bytes: f64,
    blocks: f64,
    variance: f64,
}

impl Weighted {
    fn add(&mut self, block: &LiveBlock) {
        // A weight below one is impossible, and a hostile one may be no number.
        let weight = if block.weight.is_finite() {
            f64::from(block.weight.max(1.0))
        } else {
            1.0
        };
        let size = block.size as f64;
        self.bytes += weight * size;
        self.blocks += weight;
        self.variance += weight * (weight - 1.0) * size * size;
    }

    fn merge(&mut self, other: &Weighted) {
        self.bytes += other.bytes;
        self.blocks += other.blocks;
        self.variance += other.variance;
    }

    fn totals(&self) -> KindTotals {
        // Float casts saturate, so hostile sums stay in range.
        KindTotals {
            bytes: self.bytes.round() as u64,
            blocks: self.blocks.round() as u64,
        }
    }
}

/// Blocks that were added up, one place per group.
#[derive(Default)]
struct Groups {
    /// Kind and stack node of each; the first node's after merging.
    of: Vec<(LossKind, StackId)>,
    sums: Vec<Sums>,
    /// In sampled mode: direct and indirect.
    weighted: Vec<[Weighted; 2]>,
    /// The lowest cycle leader of the groups that have one.
    cycle_leaders: HashMap<u32, u32>,
}

/// Merges blocks into records, largest first: by bytes with the indirect
/// ones, then blocks, then kind, then stack (compared by addresses relative
/// to their modules, so that the order survives address randomisation).
///
/// Every block is in exactly one record; an indirect one besides counts in
/// `indirect` of its leader's record. A table holds fewer than 2^32 blocks,
/// the width of a leader's index; any beyond are left out.
pub fn merge(
    table: &LiveTable,
    classes: &Classified<'_>,
    resolution: Resolution,
) -> Vec<RawRecord> {
    let by_id = group_by_id(table, classes);
    let (merged, stacks) = merge_groups(table, by_id, resolution);
    let records: Vec<RawRecord> = (0..)
        .zip(merged.of.iter().zip(&merged.sums).zip(stacks))
        .map(|(place, ((of, sums), stacks))| {
            let first = sums.examples().first();
            let block = first.and_then(|i| table.blocks.get(*i as usize));
            let mut record = RawRecord {
                kind: of.0,
                stack: block.map_or(of.1, |block| block.stack),
                stacks,
                family: block.map_or(Family::Malloc, |block| block.family),
                bytes: sums.direct.bytes,
                blocks: sums.direct.blocks,
                indirect: sums.indirect,
                cycle_leader: merged.cycle_leaders.get(&place).copied(),
                examples: sums.examples().to_vec(),
                estimate: None,
            };
            if let Some([direct, indirect]) = merged.weighted.get(place as usize) {
                let totals = direct.totals();
                (record.bytes, record.blocks) = (totals.bytes, totals.blocks);
                record.indirect = indirect.totals();
                record.estimate = Some(SampleEstimate {
                    bytes_standard_error: direct.variance.sqrt(),
                    samples: sums.direct.blocks,
                });
            }
            record
        })
        .collect();
    order::sort(table, records)
}

/// No group yet.
const NONE: u32 = u32::MAX;

/// Number of [`LossKind`]s.
const KINDS: usize = 4;

/// Where each kind and stack node has its group.
struct Slots(Vec<u32>);

impl Slots {
    fn new(table: &LiveTable) -> Slots {
        Slots(vec![NONE; table.stacks.len().max(1) * KINDS])
    }

    /// Stacks that the table does not hold are the empty one.
    fn at(&mut self, kind: LossKind, stack: StackId) -> (StackId, Option<&mut u32>) {
        let nodes = self.0.len() / KINDS;
        let node = if (stack.0 as usize) < nodes {
            stack
        } else {
            StackId(0)
        };
        let slot = self.0.get_mut(node.0 as usize * KINDS + kind as usize);
        (node, slot)
    }
}

/// Adds up blocks by kind and stack node. Groups are in the order of their
/// first blocks.
fn group_by_id(table: &LiveTable, classes: &Classified<'_>) -> Groups {
    let sampled = table.sampled_every_bytes.is_some();
    let mut slots = Slots::new(table);
    let mut groups = Groups::default();
    for (i, block) in (0..NONE).zip(&table.blocks) {
        let kind = classes.kind(i as usize);
        let (node, Some(place)) = slots.at(kind, block.stack) else {
            continue;
        };
        if *place == NONE {
            *place = groups.sums.len() as u32;
            groups.of.push((kind, node));
            groups.sums.push(Sums::default());
            if sampled {
                groups.weighted.push(Default::default());
            }
        }
        let place = *place;
        if let Some(sums) = groups.sums.get_mut(place as usize) {
            sums.add(i, block.size);
        }
        if let Some([direct, _]) = groups.weighted.get_mut(place as usize) {
            direct.add(block);
        }
        if kind != LossKind::Indirect && classes.in_cycle(i as usize) {
            groups.cycle_leaders.entry(place).or_insert(i);
        }
    }
    // Each indirect block counts in its leader's group too.
    for (i, block) in table.blocks.iter().enumerate() {
        if classes.kind(i) != LossKind::Indirect {
            continue;
        }
        let leader = classes.leader(i);
        let Some(leading) = table.blocks.get(leader).filter(|_| leader != i) else {
            continue;
        };
        let (_, Some(place)) = slots.at(classes.kind(leader), leading.stack) else {
            continue;
        };
        let place = *place as usize;
        if let Some(sums) = groups.sums.get_mut(place) {
            sums.indirect.add(block.size);
        }
        if let Some([_, indirect]) = groups.weighted.get_mut(place) {
            indirect.add(block);
        }
    }
    groups
}

/// Merges groups whose stacks count as the same; also returns each one's
/// stack nodes, ascending.
fn merge_groups(
    table: &LiveTable,
    groups: Groups,
    resolution: Resolution,
) -> (Groups, Vec<Vec<StackId>>) {
    let mut keys = StackKeys::new(&table.stacks);
    let mut places: HashMap<(LossKind, StackKey), u32, Keyed> =
        HashMap::with_capacity_and_hasher(groups.of.len(), Keyed::default());
    let mut merged = Groups::default();
    let mut stacks: Vec<Vec<StackId>> = Vec::new();
    for (from, (of, sums)) in (0..).zip(groups.of.iter().zip(&groups.sums)) {
        let key = (of.0, keys.key(of.1, resolution.frames()));
        let next = merged.sums.len() as u32;
        let place = *places.entry(key).or_insert(next);
        let weighted = groups.weighted.get(from as usize);
        match merged.sums.get_mut(place as usize) {
            Some(into) => into.merge(sums),
            None => {
                merged.of.push(*of);
                merged.sums.push(*sums);
                stacks.push(Vec::with_capacity(1));
                merged
                    .weighted
                    .extend(weighted.map(|_| [Weighted::default(); 2]));
            }
        }
        let into = merged.weighted.get_mut(place as usize);
        for (into, more) in into
            .into_iter()
            .flatten()
            .zip(weighted.into_iter().flatten())
        {
            into.merge(more);
        }
        if let Some(nodes) = stacks.get_mut(place as usize) {
            nodes.push(of.1);
        }
        if let Some(leader) = groups.cycle_leaders.get(&from) {
            let first = merged.cycle_leaders.entry(place).or_insert(*leader);
            *first = (*first).min(*leader);
        }
    }
    for nodes in &mut stacks {
        nodes.sort_unstable();
    }
    (merged, stacks)
}

fn plus(sum: &mut KindTotals, more: KindTotals) {
    sum.bytes = sum.bytes.saturating_add(more.bytes);
    sum.blocks = sum.blocks.saturating_add(more.blocks);
}
