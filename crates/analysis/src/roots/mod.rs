//! Which memory is a root: what the program can reach without any block.
//!
//! Begin with every readable and writable mapping, and with data of modules
//! that was made read-only, then cut out
//!
//! - heaps: a block counts when it is reached, freed memory never
//!   (found by the structure of their contents),
//! - the allocator's tables: glibc's `main_arena` points into the last block,
//! - stacks below the stack pointer, with the 128 bytes under it when the
//!   thread is inside a system call,
//! - stacks that glibc keeps of ended threads,
//! - the recorder's own memory.
//!
//! In doubt memory stays a root: that may hide a leak but invents none.

mod heaps;
#[cfg(test)]
mod tests;
mod threads;

use leakscope_heap::glibc;
use leakscope_heap::regions::{self, Class, Classified};
use leakscope_memory::MemoryReader;
use leakscope_memory::ranges::{joined, subtract};
use leakscope_model::{Addr, LiveBlock, Range, RootCounts, RootHints, ThreadState};

/// Static TLS below the control block is labelled as such up to this many
/// bytes (its true size is the loader's secret); the label decides only
/// which count it goes to.
const STATIC_TLS: u64 = 4096;

/// Why a range is a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootKind {
    /// Data of an executable or library that is or was writable.
    Globals,
    /// A thread's stack from its stack pointer upward.
    Stack,
    /// Thread-local storage and the thread's control block.
    Tls,
    /// Any other writable memory that is no heap.
    Mapping,
    /// Declared by the program.
    Declared,
}

/// Everything that holds blocks without being held itself.
#[derive(Clone, Debug, Default)]
pub struct RootPlan {
    /// Ranges to scan, ascending and disjoint.
    pub ranges: Vec<(Range, RootKind)>,
    /// Single words (registers).
    pub words: Vec<u64>,
    /// Single words that hold a block even when they point inside it: dtv
    /// pointers, and stack pointers of threads that run on a block.
    pub start_words: Vec<u64>,
    /// What the ranges and words add up to.
    pub counts: RootCounts,
}

/// What to look at.
#[derive(Clone, Copy)]
pub struct RootInput<'a> {
    /// The process's memory.
    pub memory: &'a dyn MemoryReader,
    /// Its threads.
    pub threads: &'a [ThreadState],
    /// Its live blocks, ascending by address.
    pub blocks: &'a [LiveBlock],
    /// What the recorder knows.
    pub hints: &'a RootHints,
    /// What to leave out.
    pub switches: RootSwitches,
    /// Ascending: the only heaps whose blocks are all among `blocks`. Other
    /// heaps are roots, but for the blocks. `None`: all blocks of all heaps are
    /// known, and the heaps are looked for.
    pub known_heaps: Option<&'a [Range]>,
}

/// Each kind of root and each exclusion can be switched off, for tests.
/// Everything is on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootSwitches {
    /// Writable data of modules are roots.
    pub globals: bool,
    /// Stacks are roots.
    pub stacks: bool,
    /// Registers are roots.
    pub registers: bool,
    /// Thread-local storage, control blocks and dtv pointers are roots.
    pub tls: bool,
    /// Other writable mappings are roots.
    pub mappings: bool,
    /// Declared regions are roots.
    pub declared: bool,
    /// Free memory of heaps is excluded (live blocks always are).
    pub exclude_heaps: bool,
    /// The allocator's tables are excluded.
    pub exclude_allocator_metadata: bool,
    /// Stacks of ended threads are excluded.
    pub exclude_ended_stacks: bool,
    /// Stack memory below the stack pointer is excluded.
    pub exclude_dead_stack: bool,
    /// So is the red zone of threads inside a system call.
    pub exclude_red_zone: bool,
}

impl Default for RootSwitches {
    fn default() -> RootSwitches {
        RootSwitches {
            globals: true,
            stacks: true,
            registers: true,
            tls: true,
            mappings: true,
            declared: true,
            exclude_heaps: true,
            exclude_allocator_metadata: true,
            exclude_ended_stacks: true,
            exclude_dead_stack: true,
            exclude_red_zone: true,
        }
    }
}

impl RootSwitches {
    fn has(&self, kind: RootKind) -> bool {
        match kind {
            RootKind::Globals => self.globals,
            RootKind::Stack => self.stacks,
            RootKind::Tls => self.tls,
            RootKind::Mapping => self.mappings,
            RootKind::Declared => self.declared,
        }
    }
}

/// Decides what is a root.
pub fn plan(input: &RootInput<'_>) -> RootPlan {
    let switches = &input.switches;
    let threads = with_asking(input.threads, input.hints.asking.as_ref());
    let regions = regions::classify(input.memory.map());
    let inhabited: Vec<Addr> = threads
        .iter()
        .flat_map(|t| [t.sp, t.tcb])
        .filter(|at| at.0 != 0)
        .collect();
    let stacks: Vec<threads::Stack> = threads
        .iter()
        .filter_map(|t| threads::stack(input.memory, &regions, t, switches.exclude_red_zone))
        .collect();
    let mut plan = RootPlan::default();
    plan.counts.threads = stacks.len() as u64;

    let mut excluded = input.hints.own.clone();
    let arenas = glibc::arenas(input.memory, &regions);
    if switches.exclude_allocator_metadata {
        // These may hold blocks that are not known.
        if input.known_heaps.is_none() {
            excluded.extend(&input.hints.allocator_mappings);
        }
        excluded.extend(arenas.iter().map(|arena| arena.range));
    }
    if let Some(heaps) = input.known_heaps {
        excluded.extend(heaps);
        excluded.extend(outside(input.blocks, heaps).map(heaps::own_range));
    } else if switches.exclude_heaps {
        excluded.extend(heaps::extents(&heaps::HeapInput {
            memory: input.memory,
            blocks: input.blocks,
            regions: &regions,
            arenas: &arenas,
            known: &joined(input.hints.allocator_mappings.clone()),
            inhabited: &inhabited,
        }));
    } else {
        excluded.extend(input.blocks.iter().map(heaps::own_range));
    }
    if switches.exclude_dead_stack {
        excluded.extend(stacks.iter().map(|s| s.dead));
    }
    for tcb in &input.hints.ended_threads {
        let Some(stack) = threads::ended_stack(input.memory, &regions, *tcb, &inhabited) else {
            continue;
        };
        if switches.exclude_ended_stacks {
            excluded.push(stack);
        }
        // glibc keeps the dtv with the stack, for the thread that gets it.
        if switches.tls {
            plan.start_words.extend(threads::dtv(input.memory, *tcb));
        }
    }

    let declared = joined(readable(input.memory, &input.hints.declared_roots));
    excluded.extend(&declared);
    let excluded = joined(excluded);
    let labels = labels(&threads, &stacks, &regions);
    for region in &regions {
        let kind = match region.class {
            Class::Data | Class::Bss => RootKind::Globals,
            Class::Stack => RootKind::Stack,
            Class::Heap | Class::Anonymous | Class::Other => RootKind::Mapping,
        };
        for piece in subtract(region.range, &excluded) {
            plan.ranges.extend(label(piece, kind, &labels));
        }
    }
    plan.ranges
        .extend(declared.iter().map(|range| (*range, RootKind::Declared)));
    plan.ranges.retain(|(_, kind)| switches.has(*kind));
    plan.ranges.sort_unstable();

    for thread in &threads {
        if switches.registers {
            plan.words.extend(&thread.registers);
        }
        if switches.stacks {
            plan.start_words.push(thread.sp.0);
        }
        if switches.tls && thread.tcb.0 != 0 {
            plan.start_words.push(thread.tcb.0);
            plan.start_words
                .extend(threads::dtv(input.memory, thread.tcb));
        }
    }
    count(&mut plan);
    plan
}

/// Fills in the control blocks of threads of which only stack pointers are
/// known: where nobody could ask for their registers.
pub fn find_control_blocks(memory: &dyn MemoryReader, threads: &mut [ThreadState]) {
    let regions = regions::classify(memory.map());
    for thread in threads.iter_mut().filter(|t| t.tcb.0 == 0) {
        if let Some(tcb) = threads::control_block(memory, &regions, thread.sp) {
            thread.tcb = tcb;
        }
    }
}

/// Thread control blocks of threads that have ended and whose stacks glibc
/// keeps, for [`RootHints::ended_threads`]: where no recorder saw them end.
pub fn ended_threads(memory: &dyn MemoryReader, threads: &[ThreadState]) -> Vec<Addr> {
    let regions = regions::classify(memory.map());
    threads::ended(memory, &regions, threads)
}

/// The blocks in none of `heaps`; both ascend.
fn outside<'a>(blocks: &'a [LiveBlock], heaps: &'a [Range]) -> impl Iterator<Item = &'a LiveBlock> {
    blocks.iter().filter(move |block| {
        let next = heaps.partition_point(|heap| heap.end <= block.addr);
        !heaps
            .get(next)
            .is_some_and(|heap| heap.contains(block.addr))
    })
}

/// glibc's heaps as far as the map tells, ascending: perhaps more than them.
pub(crate) fn rough_heaps(input: &RootInput<'_>) -> Vec<Range> {
    let regions = regions::classify(input.memory.map());
    let (mut all, thread_heaps) = glibc::heap_regions(input.memory, &regions);
    all.extend(thread_heaps);
    joined(all)
}

/// The threads, with the asking one's state as it was when it asked.
fn with_asking(threads: &[ThreadState], asking: Option<&ThreadState>) -> Vec<ThreadState> {
    let mut all = threads.to_vec();
    if let Some(asking) = asking {
        match all.iter_mut().find(|t| t.tid == asking.tid) {
            Some(thread) => {
                let tcb = if asking.tcb.0 == 0 {
                    thread.tcb
                } else {
                    asking.tcb
                };
                *thread = ThreadState {
                    tcb,
                    ..asking.clone()
                };
            }
            None => all.push(asking.clone()),
        }
    }
    all
}

/// The readable parts of ranges that a program declared.
fn readable(memory: &dyn MemoryReader, ranges: &[Range]) -> Vec<Range> {
    let regions = memory.map().regions();
    ranges
        .iter()
        .flat_map(|range| {
            let first = regions.partition_point(|r| r.range.end <= range.start);
            regions[first..]
                .iter()
                .take_while(|r| r.range.start < range.end)
                .filter(|r| r.read)
                .filter_map(|r| r.range.intersect(range))
        })
        .collect()
}

/// Parts of mappings that are something better than the mapping: ascending
/// and disjoint.
fn labels(
    threads: &[ThreadState],
    stacks: &[threads::Stack],
    regions: &[Classified],
) -> Vec<(Range, RootKind)> {
    let mut tls = Vec::new();
    for thread in threads.iter().filter(|t| t.tcb.0 != 0) {
        let Some(region) = regions.iter().find(|r| {
            r.range.contains(thread.tcb) && matches!(r.class, Class::Anonymous | Class::Heap)
        }) else {
            continue;
        };
        let on_stack = stacks.iter().find(|s| s.live.contains(thread.tcb));
        let low = match on_stack {
            Some(stack) => stack
                .live
                .start
                .0
                .max(thread.tcb.0.saturating_sub(STATIC_TLS)),
            None if region.class == Class::Anonymous => region.range.start.0,
            None => thread.tcb.0.saturating_sub(STATIC_TLS),
        };
        let high = match on_stack {
            Some(stack) => stack.live.end.0,
            None => thread.tcb.0.saturating_add(threads::DESCRIPTOR),
        };
        tls.extend(Range::new(low, high).intersect(&region.range));
    }
    let tls = joined(tls);
    let live = joined(stacks.iter().map(|s| s.live).collect());
    let mut all: Vec<(Range, RootKind)> = tls.iter().map(|r| (*r, RootKind::Tls)).collect();
    for stack in live {
        all.extend(
            subtract(stack, &tls)
                .into_iter()
                .map(|r| (r, RootKind::Stack)),
        );
    }
    all.sort_unstable();
    all
}

/// Splits `piece` by the labels; what has none is of `kind`.
fn label(piece: Range, kind: RootKind, labels: &[(Range, RootKind)]) -> Vec<(Range, RootKind)> {
    let mut out = Vec::new();
    let mut named = Vec::new();
    let first = labels.partition_point(|(r, _)| r.end <= piece.start);
    for (range, label) in &labels[first..] {
        if range.start >= piece.end {
            break;
        }
        if let Some(part) = range.intersect(&piece) {
            out.push((part, *label));
            named.push(part);
        }
    }
    out.extend(subtract(piece, &named).into_iter().map(|r| (r, kind)));
    out
}

fn count(plan: &mut RootPlan) {
    let counts = &mut plan.counts;
    for (range, kind) in &plan.ranges {
        let sum = match kind {
            RootKind::Globals => &mut counts.globals,
            RootKind::Stack => &mut counts.stacks,
            RootKind::Tls | RootKind::Mapping => &mut counts.mappings,
            RootKind::Declared => &mut counts.declared,
        };
        *sum += range.len();
    }
    counts.registers = 8 * plan.words.len() as u64;
}
