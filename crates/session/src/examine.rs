//! The recipe of `leakscope check`: a process that nobody prepared.
//!
//! Its memory is read while it stands still, the allocator's heaps are walked
//! to find the blocks, and everything else is as at the end of a `run`: roots,
//! marking, verdict. Without call stacks, records are told apart by what their
//! blocks hold.

mod containers;
mod core;
mod ending;
mod environs;
mod find;
mod forked;
mod go;
mod holders;
mod looks;
mod modules;
mod recorded;
mod snapshot;
mod sparse;
mod unpack;
mod usage;
mod watch;

pub use self::core::{CoreOptions, check_core};
pub use containers::find_container;
pub(crate) use ending::at_end;
pub use environs::find_process;
pub use holders::HolderOptions;
pub use snapshot::{Saved, SnapshotError, snapshot};

use std::collections::HashMap;
use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use leakscope_analysis::garbage;
use leakscope_analysis::groups::{Group, Looks, Type, group_with_members};
use leakscope_analysis::holders::HolderInput;
use leakscope_analysis::mark::{Heuristics, Inside, Marked, Pointers, mark_keeping};
use leakscope_analysis::residence::residence;
use leakscope_analysis::roots::{self, RootInput, RootPlan, RootSwitches};
use leakscope_analysis::verdict;
use leakscope_heap::cpython::{Objects, Unlinked};
use leakscope_heap::{Heaps, glibc};
use leakscope_memory::MemoryReader;
use leakscope_model::{
    Command, Consistency, Coverage, HeapCheck, HeapSummary, KindTotals, LiveBlock, LossKind,
    Notice, ProcessReport, Range, Report, Residence, RootCounts, RootHints, ThreadState,
};
use leakscope_proc::{ProcRoot, Process};

use holders::{Baseline, Grouped};
use usage::Usage;

use crate::Word;

/// Looks until the heap agrees with itself: a thread may stand in the middle
/// of malloc.
const LOOKS: u64 = 6;
/// Between two of them.
const BETWEEN_LOOKS: Duration = Duration::from_millis(3);

/// The same where CPython's collector is at work, which takes longer.
const BETWEEN_COLLECTIONS: Duration = Duration::from_millis(40);

/// Everything that `leakscope check` needs to know.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The process.
    pub pid: u32,
    /// How its memory is read.
    pub mode: Mode,
    /// Interior-pointer idioms that count as start pointers.
    pub heuristics: Heuristics,
    /// Keep the first bytes of an example of each record.
    pub content: bool,
    /// Kinds that the user asked to see.
    pub show: Vec<LossKind>,
    /// Look again and again for so long; zero for a single look.
    pub wait: Duration,
    /// From one look to the next, at least.
    pub every: Duration,
    /// Of which records it is said who holds them.
    pub holders: HolderOptions,
}

/// How memory is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The best that is possible here.
    Auto,
    /// All threads are stopped while memory is read.
    Stop,
    /// The process is stopped for as long as it takes to copy itself, and the
    /// copy is read.
    Fork,
    /// Nobody is stopped: what is lost in every one of several looks, and
    /// unchanged, is lost.
    Racing,
}

/// Why a process could not be examined: one clause, without a final dot,
/// that names the remedy where there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckError {
    /// The clause.
    pub text: String,
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for CheckError {}

fn error(text: impl fmt::Display) -> CheckError {
    CheckError {
        text: text.to_string(),
    }
}

/// Examines a running process. `progress` is told what takes long.
///
/// # Errors
/// When there is no such process, it may not be examined, or it is of a kind
/// that cannot be; it then runs on untouched.
pub fn check(
    options: &CheckOptions,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<Report, CheckError> {
    let process = ProcRoot::default().process(options.pid);
    environs::refuse(&process)?;
    let section = watch::over_time(options, &process, progress)?;
    Ok(Report {
        command: Command::Check,
        verdict: verdict::process_verdict(&section),
        processes: vec![section],
    })
}

/// One look, as a section of the report.
fn look(
    options: &CheckOptions,
    process: &Process,
    before: Option<&Baseline>,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<ProcessReport, CheckError> {
    let facts = environs::facts(process);
    let unreadable = match recorded::recorded(options, process, &facts) {
        Some(Ok(section)) => return Ok(section),
        Some(Err(notice)) => Some(notice),
        None => None,
    };
    let asked = Asked {
        holders: &options.holders,
        before,
    };
    let mut found = match options.mode {
        Mode::Auto => match forked::forked(options, process, &asked, progress)? {
            Ok(found) => found,
            Err(why) => forked::instead(&why, stopped(options, process, &asked, progress)?),
        },
        Mode::Fork => {
            forked::forked(options, process, &asked, progress)?.map_err(forked::refused)?
        }
        Mode::Stop => stopped(options, process, &asked, progress)?,
        Mode::Racing => looks::racing(options, process, &asked, progress)?,
    };
    found.notices.extend(unreadable);
    Ok(section(options.content, facts, found))
}

/// What is to be found out besides what is lost.
struct Asked<'a> {
    holders: &'a HolderOptions,
    /// What an earlier look saw.
    before: Option<&'a Baseline>,
}

/// What was found while memory was at hand.
struct Found {
    picture: Picture,
    consistency: Consistency,
    pause: Duration,
    /// Several looks agreed, or one was enough.
    settled: bool,
    notices: Vec<Notice>,
}

fn stopped(
    options: &CheckOptions,
    process: &Process,
    asked: &Asked<'_>,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<Found, CheckError> {
    let mut look = 1;
    let mut pause = Duration::ZERO;
    loop {
        progress(Word {
            text: "reading memory",
            is_lasting: false,
        });
        let stopped = leakscope_tracee::stop_guarded(options.pid);
        let stopped = stopped.map_err(|e| error(format!("failed to {e}")))?;
        let threads = stopped.threads();
        let usage = Usage::of(process, stopped.memory().map(), threads);
        let sparse = usage.as_ref().map(|usage| usage.reader(stopped.memory()));
        let memory: &dyn MemoryReader = match &sparse {
            Some(sparse) => sparse,
            None => stopped.memory(),
        };
        let heaps = leakscope_heap::walk(memory, threads);
        if !heaps.is_consistent() && look < LOOKS {
            pause += stopped.release();
            look += 1;
            sleep(BETWEEN_LOOKS);
            continue;
        }
        let judged = judge(&options.heuristics, memory, threads, heaps);
        if judged.objects.is_collecting && look < LOOKS {
            pause += stopped.release();
            look += 1;
            sleep(BETWEEN_COLLECTIONS);
            continue;
        }
        let picture = Picture::of(memory, threads, judged, usage.as_ref(), look, asked);
        let skipped = stopped.skipped().len() as u64;
        pause += stopped.release();
        let mut notices = Vec::new();
        if skipped > 0 {
            notices.push(crate::check::not_stopped(skipped));
        }
        return Ok(Found {
            picture,
            consistency: if skipped > 0 {
                Consistency::Racing
            } else {
                Consistency::Stopped
            },
            pause,
            settled: true,
            notices,
        });
    }
}

/// One look at a process: nothing of it is read any more afterwards.
struct Picture {
    heaps: Heaps,
    blocks: Vec<LiveBlock>,
    marked: Marked,
    roots: RootCounts,
    groups: Vec<Group>,
    types: Vec<Type>,
    holders: holders::Unnamed,
    residence: Option<Residence>,
    /// Nothing could be called lost.
    is_collecting: bool,
    runtimes: Vec<Notice>,
    looks: u64,
}

/// Blocks and what became of them.
struct Judged {
    heaps: Heaps,
    blocks: Vec<LiveBlock>,
    marked: Marked,
    plan: RootPlan,
    pointers: Option<Pointers>,
    objects: Objects,
    /// What a collector will free, so that it is no leak.
    garbage: KindTotals,
}

impl Picture {
    fn of(
        memory: &dyn MemoryReader,
        threads: &[ThreadState],
        judged: Judged,
        usage: Option<&Usage>,
        looks: u64,
        asked: &Asked<'_>,
    ) -> Picture {
        let Judged {
            heaps,
            blocks,
            marked,
            plan,
            pointers,
            objects,
            garbage,
        } = judged;
        let mut beginnings = Looks::new(memory, heaps.extents()).with_objects(&objects);
        let (groups, of_block) = group_with_members(memory, &blocks, &marked, &mut beginnings);
        let grouped = Grouped {
            groups: &groups,
            of_block: &of_block,
            types: beginnings.types(),
        };
        let wanted = holders::wanted(asked.holders, &grouped, asked.before);
        let unlinked = Unlinked::new(memory, &objects.links);
        let holders = pointers.as_ref().map(|pointers| {
            let input = HolderInput {
                memory: &unlinked,
                threads,
                blocks: &blocks,
                marked: &marked,
                plan: &plan,
                pointers,
            };
            holders::find(&input, &heaps.malloc, &grouped, asked.holders, wanted)
        });
        let residence = usage.map(|usage| {
            let resident = |range| usage.resident(range);
            residence(&usage.mapped, &heaps, &blocks, &marked.kinds, resident)
        });
        Picture {
            residence,
            is_collecting: objects.is_collecting,
            types: beginnings.types().to_vec(),
            holders: holders.unwrap_or_default(),
            runtimes: environs::runtimes(
                memory,
                usage.map_or(0, Usage::unknown),
                &heaps,
                objects.count(),
                garbage,
            ),
            heaps,
            blocks,
            marked,
            roots: plan.counts,
            groups,
            looks,
        }
    }
}

/// Finds out what became of all blocks of the heaps.
fn judge(
    heuristics: &Heuristics,
    memory: &dyn MemoryReader,
    threads: &[ThreadState],
    mut heaps: Heaps,
) -> Judged {
    let blocks = heaps.take_blocks();
    let objects = environs::objects(memory, &heaps, &blocks);
    let hints = RootHints {
        own: environs::recorder(memory.map()),
        ended_threads: roots::ended_threads(memory, threads),
        ..RootHints::default()
    };
    let mut plan = roots::plan(&RootInput {
        memory,
        threads,
        blocks: &blocks,
        hints: &hints,
        switches: RootSwitches::default(),
        known_heaps: Some(&heaps.extents()),
    });
    // Inside malloc and free a thread may know a block by its chunk only.
    let registers = threads.iter().flat_map(|t| &t.registers);
    plan.start_words
        .extend(registers.map(|word| word.wrapping_add(glibc::CHUNK_HEADER)));
    let unlinked = Unlinked::new(memory, &objects.links);
    let inside = Inside {
        offsets: &objects.offsets,
        words: &objects.aliases,
    };
    let (mut marked, pointers) = mark_keeping(&unlinked, &blocks, &plan, heuristics, inside);
    let garbage = garbage::take_out(&unlinked, &blocks, &objects, &mut marked);
    // Other allocators' parts that do not agree are roots.
    if !heaps.malloc.is_consistent() {
        looks::doubt(&mut marked);
    }
    if objects.is_collecting {
        looks::keep_only(&mut marked, &blocks, &HashMap::new());
    }
    Judged {
        heaps,
        blocks,
        marked,
        plan,
        pointers,
        objects,
        garbage,
    }
}

fn section(content: bool, facts: environs::Facts, found: Found) -> ProcessReport {
    let Found {
        picture,
        consistency,
        pause,
        settled,
        mut notices,
    } = found;
    let heaps = &picture.heaps.malloc;
    let others = &picture.heaps.others;
    let unwalked = heaps.unwalked.iter().map(Range::len).sum();
    let loss = looks::summary(&picture.blocks, &picture.marked);
    if heaps.arenas.is_empty() {
        notices.push(environs::no_heap());
    } else if !heaps.is_consistent() {
        notices.push(looks::doubtful(heaps, picture.looks));
    }
    if picture.is_collecting {
        notices.push(environs::collecting());
    }
    notices.extend(picture.runtimes);
    let mut leaks = looks::records(content, picture.groups, &picture.types);
    let named = holders::name(picture.holders, &facts.files, &mut leaks);
    notices.extend(named.notices);
    ProcessReport {
        pid: facts.pid,
        parent_pid: facts.parent,
        exe: facts.exe,
        argv: facts.argv,
        exit: None,
        heap: HeapSummary {
            uncounted: true,
            live_bytes: picture.blocks.iter().map(|b| b.size).sum(),
            live_blocks: picture.blocks.len() as u64,
            ..HeapSummary::default()
        },
        residence: picture.residence,
        watched: None,
        loss,
        leaks,
        largest: named.largest,
        found: named.found,
        mappings: Vec::new(),
        errors: Vec::new(),
        coverage: Coverage {
            consistency,
            pause_seconds: pause.as_secs_f64(),
            sampled_every_bytes: None,
            dropped_events: 0,
            unreadable_bytes: picture.marked.unreadable_bytes,
            scanned_block_bytes: picture.marked.scanned_block_bytes,
            roots: picture.roots,
            reachability: !heaps.arenas.is_empty(),
            heap_check: Some(HeapCheck {
                arenas: heaps.arenas.len() as u64,
                heaps: heaps.segments.len() as u64,
                mapped_blocks: heaps.mapped.len() as u64,
                unwalked_bytes: unwalked,
                agrees: heaps.is_consistent() && settled && !picture.is_collecting,
                others: others.iter().map(looks::other_heap).collect(),
                looks: picture.looks,
            }),
        },
        suppressions: Vec::new(),
        notices,
    }
}
