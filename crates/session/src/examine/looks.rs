//! From what was found to the report's words; and several looks at a process
//! that runs.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread::sleep;
use std::time::Duration;

use leakscope_analysis::groups::{Group, Type};
use leakscope_analysis::mark::Marked;
use leakscope_analysis::records::content_ids;
use leakscope_analysis::roots;
use leakscope_heap::Walked;
use leakscope_heap::glibc::Heaps;
use leakscope_memory::MemoryReader;
use leakscope_model::{
    Addr, Consistency, Content, Family, Leak, LiveBlock, LossKind, LossSummary, Notice, OtherHeap,
    Range, quantity,
};
use leakscope_proc::Process;
use leakscope_tracee::LiveMemory;

use super::usage::Usage;
use super::{Asked, CheckError, CheckOptions, Found, Picture, error, judge};
use crate::Word;

/// Looks at a running process, at least and at most.
const FEWEST: u64 = 3;
const MOST: u64 = 24;
/// So many looks in a row must find nothing to take back: where a program
/// allocates and frees all the time, each look takes much for lost that was
/// freed between the reading of the heap and that of the roots.
const STEADY: u64 = 4;
/// Between two of them: what a thread holds only in its registers is stored
/// somewhere, or used up, long before.
const PAUSE: Duration = Duration::from_millis(20);
/// Bytes of a lost block that must stay as they are.
const COMPARED: usize = 64 << 10;

/// Looks at a process that runs on. A block that is truly lost stays lost and
/// is never written again, so what is lost in every look, with the same bytes,
/// is lost; what one look took for lost because something moved meanwhile is
/// not lost in the next.
pub(super) fn racing(
    options: &CheckOptions,
    process: &Process,
    asked: &Asked<'_>,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<Found, CheckError> {
    let failed = |e| error(format!("failed to {e}"));
    let mut live = LiveMemory::open(options.pid).map_err(failed)?;
    let mut agreed: Option<HashMap<Addr, Seen>> = None;
    let mut looks = 0;
    let mut steady = 0;
    loop {
        looks += 1;
        progress(Word {
            text: &format!("look {looks} at a running process"),
            is_lasting: false,
        });
        live.refresh().map_err(failed)?;
        let mut threads = leakscope_tracee::blocked_threads(process);
        let usage = Usage::of(process, live.map(), &threads);
        let sparse = usage.as_ref().map(|usage| usage.reader(&live));
        let memory: &dyn MemoryReader = match &sparse {
            Some(sparse) => sparse,
            None => &live,
        };
        roots::find_control_blocks(memory, &mut threads);
        let heaps = leakscope_heap::walk(memory, &threads);
        // What does not agree of other allocators' is held in this look.
        let malloc = &heaps.malloc;
        let usable = malloc.is_consistent() && !(malloc.arenas.is_empty() && looks < FEWEST);
        if !usable && looks < MOST {
            sleep(PAUSE);
            continue;
        }
        let mut judged = judge(&options.heuristics, memory, &threads, heaps);
        if judged.objects.is_collecting && looks < MOST {
            sleep(PAUSE);
            continue;
        }
        let lost = lost(memory, &judged.blocks, &judged.marked);
        let before = agreed.as_ref().map(HashMap::len);
        let now: HashMap<Addr, Seen> = match agreed.take() {
            // It never stood still enough: nothing is known of any block.
            _ if !usable => HashMap::new(),
            None => lost,
            Some(agreed) => {
                let again = |(addr, seen): &(Addr, Seen)| lost.get(addr) == Some(seen);
                agreed.into_iter().filter(again).collect()
            }
        };
        steady = match before {
            Some(before) if before == now.len() => steady + 1,
            _ => 0,
        };
        let settled = usable && (now.is_empty() || steady >= STEADY);
        if settled || looks >= MOST {
            let now = if settled { now } else { HashMap::new() };
            keep_only(&mut judged.marked, &judged.blocks, &now);
            return Ok(Found {
                picture: Picture::of(memory, &threads, judged, usage.as_ref(), looks, asked),
                consistency: Consistency::Racing,
                pause: Duration::ZERO,
                settled,
                notices: vec![racing_notice(looks, settled)],
            });
        }
        agreed = Some(now);
        sleep(PAUSE);
    }
}

fn racing_notice(looks: u64, settled: bool) -> Notice {
    let looks = quantity::counted(looks, "look");
    Notice {
        code: "racing",
        message: if settled {
            format!(
                "the process ran on while memory was read: lost is what was lost and unchanged in \
                 each of {looks}; what a thread holds in registers only is not seen"
            )
        } else {
            format!(
                "the process ran on while memory was read, and {looks} did not agree on what is \
                 lost: nothing is called lost; --mode stop tells"
            )
        },
    }
}

/// A lost block: its size and what it holds.
type Seen = (u64, u64);

fn lost(memory: &dyn MemoryReader, blocks: &[LiveBlock], marked: &Marked) -> HashMap<Addr, Seen> {
    let lost = blocks
        .iter()
        .zip(&marked.kinds)
        .filter(|(_, kind)| **kind != LossKind::Reachable);
    let mut bytes = Vec::new();
    lost.map(|(block, _)| {
        bytes.resize((block.size as usize).min(COMPARED), 0);
        let got = memory.read_some(block.addr, &mut bytes);
        let mut hasher = DefaultHasher::new();
        bytes.get(..got).hash(&mut hasher);
        (block.addr, (block.size, hasher.finish()))
    })
    .collect()
}

/// Where parts of a heap were not found, or lists of free chunks not followed
/// to their ends, what looks lost may be held there, or free.
pub(super) fn doubt(marked: &mut Marked) {
    for (i, kind) in marked.kinds.iter_mut().enumerate() {
        if matches!(kind, LossKind::Definite | LossKind::Indirect) {
            *kind = LossKind::Possible;
            if let Some(leader) = marked.leader.get_mut(i) {
                *leader = i as u32;
            }
        }
    }
    marked.cycle.fill(false);
    marked.cycle_members.clear();
}

/// Only these stay lost, and what is lost through others of them.
pub(super) fn keep_only(marked: &mut Marked, blocks: &[LiveBlock], agreed: &HashMap<Addr, Seen>) {
    let agrees: Vec<bool> = blocks
        .iter()
        .map(|b| agreed.contains_key(&b.addr))
        .collect();
    for (i, kind) in marked.kinds.iter_mut().enumerate() {
        let leader = marked.leader.get(i).map_or(i, |l| *l as usize);
        if !(agrees.get(i) == Some(&true) && agrees.get(leader) == Some(&true)) {
            *kind = LossKind::Reachable;
            if let Some(leader) = marked.leader.get_mut(i) {
                *leader = i as u32;
            }
            if let Some(cycle) = marked.cycle.get_mut(i) {
                *cycle = false;
            }
        }
    }
}

/// Every block once, by kind.
pub(super) fn summary(blocks: &[LiveBlock], marked: &Marked) -> LossSummary {
    let mut loss = LossSummary::default();
    for (block, kind) in blocks.iter().zip(&marked.kinds) {
        loss.of_mut(*kind).add(block.size);
    }
    loss
}

/// A type as people read it.
pub(super) fn type_name(found: &Type) -> String {
    match found {
        Type::Mangled(name) => leakscope_symbols::type_name(name),
        Type::Python(name) => format!("python {name}"),
    }
}

/// Groups as records of the report.
pub(super) fn records(content: bool, groups: Vec<Group>, types: &[Type]) -> Vec<Leak> {
    let mut names: HashMap<usize, String> = HashMap::new();
    let named: Vec<(Group, Option<String>)> = groups
        .into_iter()
        .map(|group| {
            let name = group.type_index.and_then(|at| {
                let found = types.get(at)?;
                let readable = || type_name(found);
                Some(names.entry(at).or_insert_with(readable).clone())
            });
            (group, name)
        })
        .collect();
    let ids = content_ids(named.iter().map(|(group, name)| {
        let what = name.as_deref().unwrap_or(&group.shape);
        (group.kind, what)
    }));
    let records = named.into_iter().zip(ids);
    records
        .map(|((group, type_name), id)| Leak {
            id,
            kind: group.kind,
            family: Family::Malloc,
            bytes: group.totals.bytes,
            blocks: group.totals.blocks,
            indirect: group.indirect,
            type_name,
            cycle: group.cycle,
            cycle_members: Vec::new(),
            addresses: group.addresses,
            stack: Vec::new(),
            free_sites: Vec::new(),
            lifetime: None,
            estimate: None,
            content: Some(Content {
                shape: group.shape,
                preview: if content { group.preview } else { Vec::new() },
            }),
            growth: None,
            holder: None,
        })
        .collect()
}

/// Another allocator's heap in the report's words.
pub(super) fn other_heap(walked: &Walked) -> OtherHeap {
    let bytes = |ranges: &[Range]| {
        let lengths = ranges.iter().map(Range::len);
        lengths.fold(0, u64::saturating_add)
    };
    OtherHeap {
        allocator: walked.allocator,
        pieces: walked.extents.len() as u64,
        blocks: walked.blocks.len() as u64,
        block_bytes: walked.blocks.iter().map(|block| block.size).sum(),
        free_bytes: bytes(&walked.free),
        unwalked_bytes: bytes(&walked.unwalked),
    }
}

/// Why the heap's own numbers do not agree with what was found.
pub(super) fn doubtful(heaps: &Heaps, looks: u64) -> Notice {
    let mut why = Vec::new();
    let unwalked: u64 = heaps.unwalked.iter().map(|r| r.len()).sum();
    if unwalked > 0 {
        let part = quantity::bytes(unwalked);
        why.push(format!(
            "chunks do not fit together in {part} of heap, which counts as held"
        ));
    }
    if heaps.missing_arenas > 0 {
        let arenas = quantity::counted(u64::from(heaps.missing_arenas), "arena");
        why.push(format!("{arenas} could not be read"));
    }
    if heaps.broken_lists > 0 {
        let lists = quantity::counted(u64::from(heaps.broken_lists), "list");
        why.push(format!(
            "{lists} of free chunks cannot be followed to the end"
        ));
    }
    for arena in heaps.arenas.iter().filter(|a| !a.agrees()) {
        why.push(format!(
            "the arena at {} has {} from the system, of which {} were found",
            Addr(arena.at),
            quantity::bytes(arena.said),
            quantity::bytes(arena.found)
        ));
    }
    if let Some((count, bytes)) = heaps.said_mapped.filter(|_| !heaps.mapped_agree()) {
        why.push(format!(
            "malloc counts {} of their own with {}, but {} were found",
            quantity::counted(count, "mapped block"),
            quantity::bytes(bytes),
            quantity::count(heaps.mapped.len() as u64)
        ));
    }
    why.truncate(4);
    Notice {
        code: "heap-doubtful",
        message: format!(
            "glibc's heap does not agree with its own sums after {} ({}): the numbers may be off",
            quantity::counted(looks, "look"),
            why.join("; ")
        ),
    }
}
