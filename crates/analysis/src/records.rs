//! Loss records: blocks of one kind, merged by call stack.
//!
//! Two steps keep this linear in the number of blocks and nodes: blocks are
//! grouped by stack id first (an array look-up per block), then the groups,
//! far fewer, by as many innermost frames as the [`Resolution`] compares.
//!
//! Begin with [`merge`]; then [`FreeSiteIndex`] says where the siblings of a
//! record's blocks were freed, and [`stable_ids`] names the records.

mod free_sites;
mod stable_id;
mod stack_key;
#[cfg(test)]
mod tests;

pub use free_sites::{FreeSiteIndex, FreeSites};
pub use stable_id::{stable_id, stable_ids};

use leakscope_model::{
    Family, KindTotals, LiveBlock, LiveTable, LossKind, SampleEstimate, StackId,
};
use stack_key::{StackKey, StackKeys};
use std::cmp::{Ordering, Reverse};
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

/// Sums over blocks, each standing for `weight` blocks.
///
/// The recorder samples bytes as a Poisson process: a block of `s` bytes is
/// seen with probability `p = 1 - exp(-s / mean)`, independently of all
/// others, and its weight is `1 / p`. The sum of the weights then estimates
/// the blocks and the sum of `weight * s` the bytes, both without bias
/// (Horvitz and Thompson). With `w = 1 / p`, the variance of the latter is
/// estimated without bias by the sum of `w * (w - 1) * s * s`.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    exact: KindTotals,
    bytes: f64,
    blocks: f64,
    variance: f64,
}

impl Sums {
    fn add(&mut self, block: &LiveBlock) {
        self.exact.add(block.size);
        // A weight below one is impossible, and a hostile one may be no number.
        let weight = if block.weight.is_finite() {
            block.weight.max(1.0)
        } else {
            1.0
        };
        let size = block.size as f64;
        self.bytes += weight * size;
        self.blocks += weight;
        self.variance += weight * (weight - 1.0) * size * size;
    }

    fn merge(&mut self, other: &Sums) {
        self.exact.bytes = self.exact.bytes.saturating_add(other.exact.bytes);
        self.exact.blocks = self.exact.blocks.saturating_add(other.exact.blocks);
        self.bytes += other.bytes;
        self.blocks += other.blocks;
        self.variance += other.variance;
    }

    fn totals(&self, sampled: bool) -> KindTotals {
        if sampled {
            // Float casts saturate, so hostile sums stay in range.
            KindTotals {
                bytes: self.bytes.round() as u64,
                blocks: self.blocks.round() as u64,
            }
        } else {
            self.exact
        }
    }
}

/// A record while it grows: first one per kind and stack id, then merged.
struct Group {
    kind: LossKind,
    stacks: Vec<StackId>,
    direct: Sums,
    indirect: Sums,
    first: u32,
    examples: Vec<u32>,
    cycle_leader: Option<u32>,
}

impl Group {
    fn new(kind: LossKind, stack: StackId, first: u32) -> Group {
        Group {
            kind,
            stacks: vec![stack],
            direct: Sums::default(),
            indirect: Sums::default(),
            first,
            examples: Vec::new(),
            cycle_leader: None,
        }
    }

    fn merge(&mut self, other: Group) {
        self.stacks.extend(other.stacks);
        self.direct.merge(&other.direct);
        self.indirect.merge(&other.indirect);
        self.first = self.first.min(other.first);
        self.examples.extend(other.examples);
        self.examples.sort_unstable();
        self.examples.truncate(EXAMPLES);
        let leaders = [self.cycle_leader, other.cycle_leader];
        self.cycle_leader = leaders.into_iter().flatten().min();
    }

    fn finish(mut self, table: &LiveTable) -> RawRecord {
        let sampled = table.sampled_every_bytes.is_some();
        let direct = self.direct.totals(sampled);
        let first = table.blocks.get(self.first as usize);
        self.stacks.sort_unstable();
        RawRecord {
            kind: self.kind,
            stack: first.map_or(StackId(0), |block| block.stack),
            stacks: self.stacks,
            family: first.map_or(Family::Malloc, |block| block.family),
            bytes: direct.bytes,
            blocks: direct.blocks,
            indirect: self.indirect.totals(sampled),
            cycle_leader: self.cycle_leader,
            examples: self.examples,
            estimate: sampled.then(|| SampleEstimate {
                bytes_standard_error: self.direct.variance.sqrt(),
                samples: self.direct.exact.blocks,
            }),
        }
    }
}

/// Merges blocks into records, largest first: by bytes with the indirect
/// ones, then blocks, then kind, then stack (compared by addresses relative
/// to their modules, so that the order survives address randomisation).
///
/// Every block is in exactly one record; an indirect one besides counts in
/// `indirect` of its leader's record. A table holds fewer than 2^32 blocks,
/// as [`Classified::leader`] is that wide; any beyond are left out.
pub fn merge(
    table: &LiveTable,
    classes: &Classified<'_>,
    resolution: Resolution,
) -> Vec<RawRecord> {
    let mut by_id = ById::new(table);
    by_id.add_direct(table, classes);
    by_id.add_indirect(table, classes);

    let mut keys = StackKeys::new(&table.stacks);
    let mut places: HashMap<(LossKind, StackKey), usize> = HashMap::new();
    let mut merged: Vec<Group> = Vec::new();
    for group in by_id.groups {
        let stack = group.stacks.first().copied().unwrap_or_default();
        let key = (group.kind, keys.key(stack, resolution.frames()));
        let place = *places.entry(key).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(into) => into.merge(group),
            None => merged.push(group),
        }
    }

    let mut records: Vec<RawRecord> = merged.into_iter().map(|g| g.finish(table)).collect();
    records.sort_by(|a, b| order(table, a, b));
    records
}

/// One group per kind and stack id.
struct ById {
    groups: Vec<Group>,
    /// For each stack node and kind the group's place, or [`NONE`].
    places: Vec<u32>,
}

/// No group yet.
const NONE: u32 = u32::MAX;

/// Number of [`LossKind`]s.
const KINDS: usize = 4;

impl ById {
    fn new(table: &LiveTable) -> ById {
        ById {
            groups: Vec::new(),
            places: vec![NONE; table.stacks.len().max(1) * KINDS],
        }
    }

    /// Where `places` keeps this kind and stack. Stacks that the table does
    /// not hold are the empty one.
    fn slot(&self, kind: LossKind, stack: StackId) -> usize {
        let slot = (stack.0 as usize).saturating_mul(KINDS) + kind as usize;
        if slot < self.places.len() {
            slot
        } else {
            kind as usize
        }
    }

    fn group(&mut self, slot: usize) -> Option<&mut Group> {
        let place = *self.places.get(slot)?;
        self.groups.get_mut(place as usize)
    }

    fn add_direct(&mut self, table: &LiveTable, classes: &Classified<'_>) {
        for (i, block) in (0..NONE).zip(&table.blocks) {
            let kind = classes.kind(i as usize);
            let slot = self.slot(kind, block.stack);
            if self.places.get(slot) == Some(&NONE) {
                self.places[slot] = self.groups.len() as u32;
                let stack = StackId((slot / KINDS) as u32);
                self.groups.push(Group::new(kind, stack, i));
            }
            let Some(group) = self.group(slot) else {
                continue;
            };
            group.direct.add(block);
            if group.examples.len() < EXAMPLES {
                group.examples.push(i);
            }
            let leads = kind != LossKind::Indirect && classes.in_cycle(i as usize);
            if leads && group.cycle_leader.is_none() {
                group.cycle_leader = Some(i);
            }
        }
    }

    /// Counts each indirect block in its leader's group too.
    fn add_indirect(&mut self, table: &LiveTable, classes: &Classified<'_>) {
        for (i, block) in (0..NONE).zip(&table.blocks) {
            if classes.kind(i as usize) != LossKind::Indirect {
                continue;
            }
            let leader = classes.leader(i as usize);
            let Some(leading) = table.blocks.get(leader).filter(|_| leader != i as usize) else {
                continue;
            };
            let slot = self.slot(classes.kind(leader), leading.stack);
            if let Some(group) = self.group(slot) {
                group.indirect.add(block);
            }
        }
    }
}

fn order(table: &LiveTable, a: &RawRecord, b: &RawRecord) -> Ordering {
    let size = |r: &RawRecord| Reverse(r.bytes.saturating_add(r.indirect.bytes));
    let blocks = |r: &RawRecord| Reverse(r.blocks.saturating_add(r.indirect.blocks));
    size(a)
        .cmp(&size(b))
        .then_with(|| blocks(a).cmp(&blocks(b)))
        .then_with(|| a.kind.cmp(&b.kind))
        .then_with(|| places(table, a.stack).cmp(places(table, b.stack)))
        .then_with(|| a.examples.cmp(&b.examples))
}

/// The frames of a stack as module and address in the module.
fn places(table: &LiveTable, stack: StackId) -> impl Iterator<Item = (u16, u64)> + '_ {
    table.stacks.frames(stack).map(|frame| {
        let module = table.modules.get(usize::from(frame.module.0));
        let bias = module.map_or(0, |m| m.bias);
        (frame.module.0, frame.pc.0.wrapping_sub(bias))
    })
}
