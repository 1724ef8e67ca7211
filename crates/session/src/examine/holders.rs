//! Who holds what is shown: paths are looked for while memory is at hand, and
//! get their names afterwards.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::path::PathBuf;

use leakscope_analysis::groups::{Group, Type};
use leakscope_analysis::holders::{
    HolderInput, Path, RootPlace, RootWord, Search, Walker, frame_of, retained, search, thread_of,
};
use leakscope_analysis::roots::RootKind as Place;
use leakscope_heap::glibc::Heaps;
use leakscope_model::{
    Addr, Find, Holder, HolderRoot, HolderStep, KindTotals, Largest, Leak, LossKind, ModuleId,
    Notice, RawFrame, RecordedModule, Retaining, RootKind,
};
use leakscope_symbols::{Options, Symbolizer};

use super::find::{self, UnnamedFind};
use super::looks;
use super::modules;

/// Records with a holder, at most.
const MOST: usize = 1000;
/// Of these, records that grew since the first look.
const MOST_GROWN: usize = 100;
/// Addresses that are looked for, each with a look at the whole heap.
const FOUND: usize = 64;
/// Blocks of a record whose roots are compared.
const ASKED: usize = 32;
/// Roots of these whose paths are kept until they have names.
const PATHS: usize = 6;

/// Of which records the holder is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HolderOptions {
    /// Kinds that are shown. Only what is reachable or possibly lost has a
    /// holder.
    pub kinds: Vec<LossKind>,
    /// As many of the largest records of these kinds; zero for all.
    pub top: usize,
    /// So many blocks, and kinds of blocks, by what would be freed with them.
    pub largest: Option<usize>,
    /// Addresses of which it is said what is there, and who points to it.
    pub find: Vec<Addr>,
}

/// What the first of several looks saw of reachable records: bytes by type or
/// shape.
pub(super) type Baseline = HashMap<String, u64>;

/// From the records of a look.
pub(super) fn baseline(leaks: &[Leak]) -> Baseline {
    let mut seen = Baseline::new();
    for leak in leaks.iter().filter(|l| l.kind == LossKind::Reachable) {
        let shape = leak.content.as_ref().map(|c| c.shape.as_str());
        let what = leak.type_name.as_deref().or(shape).unwrap_or_default();
        let bytes = seen.entry(what.to_owned()).or_default();
        *bytes = bytes.saturating_add(leak.bytes);
    }
    seen
}

/// Blocks and their groups.
pub(super) struct Grouped<'a> {
    pub groups: &'a [Group],
    /// The group of each block.
    pub of_block: &'a [u32],
    pub types: &'a [Type],
}

impl Grouped<'_> {
    fn type_name(&self, group: &Group) -> Option<String> {
        Some(looks::type_name(self.types.get(group.type_index?)?))
    }
}

/// Where a root is, with what only the living process tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Seat {
    word: RootWord,
    thread: Option<u32>,
    pub caller: Option<Addr>,
    mapping: Vec<u8>,
}

impl Seat {
    pub fn new(input: &HolderInput<'_>, word: RootWord) -> Seat {
        let mapping = match word.place {
            RootPlace::Memory(_) => input.memory.map().find(word.at),
            RootPlace::Register(_) | RootPlace::Threads => None,
        };
        Seat {
            word,
            thread: thread_of(input, &word),
            caller: frame_of(input, &word),
            mapping: mapping.map(|r| r.path.clone()).unwrap_or_default(),
        }
    }
}

/// A path without names.
struct Way {
    seat: Seat,
    skipped: u64,
    steps: Vec<HolderStep>,
}

/// What was found of one record.
#[derive(Default)]
pub(super) struct Held {
    /// Roots of the blocks that were asked.
    seats: Vec<Seat>,
    /// Paths from some of them.
    ways: Vec<Way>,
}

/// What was found, by the number of the group.
#[derive(Default)]
pub(super) struct Unnamed {
    largest: Option<UnnamedLargest>,
    found: Vec<UnnamedFind>,
    held: HashMap<usize, Held>,
    modules: Vec<RecordedModule>,
}

/// What retains most, without names of roots. The holders of kinds are among
/// those of the groups.
#[derive(Default)]
struct UnnamedLargest {
    kinds: Vec<(usize, Retaining)>,
    blocks: Vec<(Held, Retaining)>,
    /// It would have taken too much memory to find out.
    refused: bool,
}

/// What retains less than this part of the largest is not told.
const NEGLIGIBLE: u64 = 1000;
/// Bytes that finding out what retains most may take.
const RETAINED: u64 = 4 << 30;

/// The groups whose holders are asked for: the largest that are shown, and
/// those that grew since the first look.
pub(super) fn wanted(
    options: &HolderOptions,
    grouped: &Grouped<'_>,
    before: Option<&Baseline>,
) -> Vec<usize> {
    let top = match options.top {
        0 => MOST,
        top => top.min(MOST),
    };
    let groups = || grouped.groups.iter().enumerate();
    let held = |kind| matches!(kind, LossKind::Reachable | LossKind::Possible);
    let mut wanted: Vec<usize> = groups()
        .filter(|(_, g)| options.kinds.contains(&g.kind))
        .take(top)
        .filter(|(_, g)| held(g.kind))
        .map(|(at, _)| at)
        .collect();
    if let Some(before) = before {
        let grown = groups().filter(|(_, g)| g.kind == LossKind::Reachable);
        let grown = grown.filter_map(|(at, group)| {
            let name = grouped.type_name(group);
            let what = name.as_deref().unwrap_or(&group.shape);
            let known = before.get(what).copied().unwrap_or(0);
            let more = group.totals.bytes.checked_sub(known)?;
            (more > 0).then_some((more, at))
        });
        let mut grown: Vec<(u64, usize)> = grown.collect();
        grown.sort_unstable_by(|a, b| b.cmp(a));
        wanted.extend(grown.iter().take(MOST_GROWN).map(|(_, at)| *at));
        wanted.sort_unstable();
        wanted.dedup();
    }
    wanted
}

/// Looks for the holders of these groups.
pub(super) fn find(
    input: &HolderInput<'_>,
    heaps: &Heaps,
    grouped: &Grouped<'_>,
    options: &HolderOptions,
    mut wanted: Vec<usize>,
) -> Unnamed {
    if wanted.is_empty() && options.largest.is_none() && options.find.is_empty() {
        return Unnamed::default();
    }
    let Some(found) = search(input) else {
        return Unnamed::default();
    };
    let mut walker = Walker::new(input, &found);
    let largest = options
        .largest
        .map(|most| largest(input, grouped, &found, &mut walker, most));
    let asked = options.find.iter().take(FOUND);
    let answers = asked
        .map(|at| find::find(input, heaps, grouped, &found, &mut walker, *at))
        .collect();
    let kinds = largest.iter().flat_map(|l| &l.kinds);
    wanted.extend(kinds.map(|(group, _)| *group));
    wanted.sort_unstable();
    wanted.dedup();
    let examples = examples(grouped, &wanted);
    let held = examples.into_iter().map(|(group, blocks)| {
        let held = held(input, grouped, &found, &mut walker, &blocks);
        (group, held)
    });
    Unnamed {
        largest,
        found: answers,
        held: held.collect(),
        modules: modules::modules(input.memory),
    }
}

/// What retains most.
fn largest(
    input: &HolderInput<'_>,
    grouped: &Grouped<'_>,
    found: &Search,
    walker: &mut Walker<'_>,
    most: usize,
) -> UnnamedLargest {
    let most = most.min(MOST);
    let Some(retained) = retained(input, found, RETAINED) else {
        return UnnamedLargest {
            refused: true,
            ..UnnamedLargest::default()
        };
    };
    let overview = retained.overview(grouped.of_block, grouped.groups.len(), most);
    let retaining = |group: &Group, address, own, retained| Retaining {
        type_name: grouped.type_name(group),
        shape: group.shape.clone(),
        address,
        own,
        retained,
        holder: None,
    };
    let mut kinds: Vec<(usize, KindTotals)> = overview.groups.into_iter().enumerate().collect();
    kinds.retain(|(_, totals)| totals.blocks > 0);
    // Groups are in order themselves, so that equal ones are.
    kinds.sort_by_key(|(_, totals)| Reverse(totals.bytes));
    let kinds = kinds.into_iter().take(most).filter_map(|(at, totals)| {
        let group = grouped.groups.get(at)?;
        Some((at, retaining(group, None, group.totals, totals)))
    });
    let blocks = overview.blocks.iter().filter_map(|retainer| {
        let at = retainer.block as usize;
        let block = input.blocks.get(at)?;
        let group = *grouped.of_block.get(at)? as usize;
        let own = KindTotals {
            bytes: block.size,
            blocks: 1,
        };
        let held = held(input, grouped, found, walker, &[retainer.block]);
        let group = grouped.groups.get(group)?;
        Some((
            held,
            retaining(group, Some(block.addr), own, retainer.totals),
        ))
    });
    let mut kinds: Vec<(usize, Retaining)> = kinds.collect();
    let mut blocks: Vec<(Held, Retaining)> = blocks.collect();
    // A block among ten thousand others is no answer.
    let largest = kinds.iter().map(|(_, r)| r.retained.bytes).max();
    let least = largest.unwrap_or(0) / NEGLIGIBLE;
    kinds.retain(|(_, r)| r.retained.bytes >= least);
    blocks.retain(|(_, r)| r.retained.bytes >= least);
    UnnamedLargest {
        kinds,
        blocks,
        refused: false,
    }
}

/// Some blocks of each of these groups, spread over all of them.
fn examples(grouped: &Grouped<'_>, wanted: &[usize]) -> Vec<(usize, Vec<u32>)> {
    let mut place: Vec<u32> = vec![u32::MAX; grouped.groups.len()];
    let mut examples: Vec<(usize, Vec<u32>)> = Vec::new();
    let mut seen: Vec<(u64, u64)> = Vec::new();
    for group in wanted {
        let Some(blocks) = grouped.groups.get(*group).map(|g| g.totals.blocks) else {
            continue;
        };
        if let Some(place) = place.get_mut(*group) {
            *place = examples.len() as u32;
        }
        examples.push((*group, Vec::new()));
        seen.push((0, blocks.div_ceil(ASKED as u64).max(1)));
    }
    for (block, group) in (0..).zip(grouped.of_block) {
        let at = place
            .get(*group as usize)
            .map_or(usize::MAX, |at| *at as usize);
        if let (Some((_, blocks)), Some((seen, every))) = (examples.get_mut(at), seen.get_mut(at)) {
            if seen.is_multiple_of(*every) {
                blocks.push(block);
            }
            *seen += 1;
        }
    }
    examples
}

pub(super) fn held(
    input: &HolderInput<'_>,
    grouped: &Grouped<'_>,
    found: &Search,
    walker: &mut Walker<'_>,
    blocks: &[u32],
) -> Held {
    let roots = blocks
        .iter()
        .filter_map(|block| Some((*block, found.root(*block)?)));
    let mut roots: Vec<(u32, RootWord, u32)> = roots
        .map(|(block, (word, depth))| (block, word, depth))
        .collect();
    // The shortest path is the one to show.
    roots.sort_by_key(|(_, _, depth)| *depth);
    let mut known: HashMap<RootWord, Seat> = HashMap::new();
    let mut held = Held::default();
    for (block, word, _) in roots {
        let first = !known.contains_key(&word);
        let seat = known
            .entry(word)
            .or_insert_with(|| Seat::new(input, word))
            .clone();
        if first
            && held.ways.len() < PATHS
            && let Some(path) = walker.path(block)
        {
            held.ways.push(Way {
                seat: seat.clone(),
                skipped: path.skipped,
                steps: steps(input, grouped, &path),
            });
        }
        held.seats.push(seat);
    }
    held
}

fn steps(input: &HolderInput<'_>, grouped: &Grouped<'_>, path: &Path) -> Vec<HolderStep> {
    let links = path.links.iter();
    let steps = links.filter_map(|link| {
        Some(HolderStep {
            into: link.into,
            offset: link.offset,
            skipped: link.skipped,
            ..step(input, grouped, link.block)?
        })
    });
    steps.collect()
}

/// A block as it is told.
pub(super) fn step(
    input: &HolderInput<'_>,
    grouped: &Grouped<'_>,
    block: u32,
) -> Option<HolderStep> {
    let own = input.blocks.get(block as usize)?;
    let group = grouped.of_block.get(block as usize)?;
    let group = grouped.groups.get(*group as usize)?;
    Some(HolderStep {
        address: own.addr,
        bytes: own.size,
        type_name: grouped.type_name(group),
        shape: group.shape.clone(),
        into: 0,
        offset: None,
        skipped: 0,
    })
}

/// Where names are.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// Root folder of the process, where it is not ours.
    pub root: Option<PathBuf>,
    /// Another way to its executable, and the path that it had.
    pub exe: Option<(Vec<u8>, PathBuf)>,
}

/// What has names.
#[derive(Default)]
pub(super) struct Named {
    pub largest: Option<Largest>,
    pub found: Vec<Find>,
    pub notices: Vec<Notice>,
}

/// Names the holders of records, which are in the order of their groups, and
/// whatever else was found.
pub(super) fn name(unnamed: Unnamed, files: &Files, leaks: &mut [Leak]) -> Named {
    let mut named = Named::default();
    let mut names = Names::new(unnamed.modules, files);
    for (group, held) in unnamed.held {
        if let Some(leak) = leaks.get_mut(group) {
            leak.holder = names.holder(held);
        }
    }
    let found = unnamed.found.into_iter();
    named.found = found.map(|f| find::name(f, &mut names)).collect();
    let Some(largest) = unnamed.largest else {
        return named;
    };
    if largest.refused {
        named.notices.push(Notice {
            code: "retained-unknown",
            message: "there are too many blocks and pointers to find out what retains most"
                .to_owned(),
        });
        return named;
    }
    let kinds = largest
        .kinds
        .into_iter()
        .map(|(group, retaining)| Retaining {
            holder: leaks.get(group).and_then(|leak| leak.holder.clone()),
            ..retaining
        });
    let kinds = kinds.collect();
    let blocks = largest
        .blocks
        .into_iter()
        .map(|(held, retaining)| Retaining {
            holder: names.holder(held),
            ..retaining
        });
    named.largest = Some(Largest {
        kinds,
        blocks: blocks.collect(),
    });
    named
}

pub(super) struct Names {
    pub modules: Vec<RecordedModule>,
    pub symbolizer: Symbolizer,
    known: HashMap<Seat, HolderRoot>,
}

impl Names {
    fn new(modules: Vec<RecordedModule>, files: &Files) -> Names {
        let mut options = Options {
            variables: true,
            root: files.root.clone(),
            ..Options::default()
        };
        if let Some((path, way)) = &files.exe {
            let own = (0..).zip(&modules).find(|(_, m)| m.path == *path);
            options
                .alternatives
                .extend(own.map(|(at, _)| (ModuleId(at), way.clone())));
        }
        Names {
            symbolizer: Symbolizer::new(options, &modules),
            modules,
            known: HashMap::new(),
        }
    }

    /// The root that holds most of the blocks, and a path from it.
    pub fn holder(&mut self, held: Held) -> Option<Holder> {
        let all = held.seats.len();
        let mut counts: HashMap<Key, usize> = HashMap::new();
        for seat in &held.seats {
            *counts.entry(key(&self.root(seat))).or_default() += 1;
        }
        let mut best: Option<(usize, Way)> = None;
        for way in held.ways {
            let count = counts
                .get(&key(&self.root(&way.seat)))
                .copied()
                .unwrap_or(0);
            // Of equals the first, whose path is the shortest.
            if best.as_ref().is_none_or(|(most, _)| count > *most) {
                best = Some((count, way));
            }
        }
        let (count, way) = best?;
        Some(Holder {
            root: self.root(&way.seat),
            skipped: way.skipped,
            path: way.steps,
            share: count as f64 / all.max(1) as f64,
        })
    }

    pub fn root(&mut self, seat: &Seat) -> HolderRoot {
        if let Some(known) = self.known.get(seat) {
            return known.clone();
        }
        let root = self.look_up(seat);
        self.known.insert(seat.clone(), root.clone());
        root
    }

    fn look_up(&mut self, seat: &Seat) -> HolderRoot {
        let word = &seat.word;
        let kind = match word.place {
            RootPlace::Memory(Place::Globals) => RootKind::Global,
            RootPlace::Memory(Place::Stack) => RootKind::Stack,
            RootPlace::Memory(Place::Tls) | RootPlace::Threads => RootKind::ThreadLocal,
            RootPlace::Memory(Place::Mapping) => RootKind::Mapping,
            RootPlace::Memory(Place::Declared) => RootKind::Declared,
            RootPlace::Register(_) => RootKind::Register,
        };
        let mut root = HolderRoot {
            kind,
            address: (word.at.0 != 0).then_some(word.at),
            variable: None,
            offset: None,
            module: None,
            module_offset: None,
            thread: seat.thread,
            function: None,
            mapping: None,
        };
        let module = match kind {
            RootKind::Global => modules::module_at(&self.modules, word.at),
            _ => None,
        };
        if kind == RootKind::Global && module.is_none() && !self.modules.is_empty() {
            // The kernel joined it to the module's data; it is not part of it.
            root.kind = RootKind::Mapping;
        }
        if let Some(id) = module
            && let Some(own) = self.modules.get(usize::from(id.0))
        {
            root.module = Some(module_path(own));
            root.module_offset = Some(word.at.0.wrapping_sub(own.bias));
            if let Some(variable) = self.symbolizer.variable(id, word.at) {
                root.variable = Some(variable.name);
                root.offset = Some(variable.inside);
            }
        } else if !seat.mapping.is_empty() {
            root.mapping = Some(String::from_utf8_lossy(&seat.mapping).into_owned());
        }
        root.function = seat.caller.and_then(|pc| self.function(pc));
        root
    }

    /// The function that a return address leads to.
    pub fn function(&mut self, pc: Addr) -> Option<String> {
        let module = modules::module_at(&self.modules, pc)?;
        let frames = self.symbolizer.resolve(RawFrame { module, pc });
        frames.into_iter().find_map(|f| f.function)
    }
}

/// The path of a module, without what the kernel appends when its file is gone.
pub(super) fn module_path(module: &RecordedModule) -> String {
    let path = module.path.strip_suffix(b" (deleted)");
    String::from_utf8_lossy(path.unwrap_or(&module.path)).into_owned()
}

/// What makes two roots the same to a reader.
type Key = (RootKind, Option<u32>, Option<String>, Option<String>);

fn key(root: &HolderRoot) -> Key {
    let name = match root.kind {
        RootKind::Stack => root.function.clone(),
        _ => root.variable.clone(),
    };
    let place = root.module.clone().or_else(|| root.mapping.clone());
    (root.kind, root.thread, name, place)
}
