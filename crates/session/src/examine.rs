//! The recipe of `leakscope check`: a process that nobody prepared.
//!
//! Its memory is read while it stands still, the allocator's heaps are walked
//! to find the blocks, and everything else is as at the end of a `run`: roots,
//! marking, verdict. Without call stacks, records are told apart by what their
//! blocks hold.

mod core;
mod environs;
mod find;
mod holders;
mod looks;
mod modules;
mod sparse;
mod usage;
mod watch;

pub use self::core::{CoreOptions, check_core};
pub use environs::find_process;
pub use holders::HolderOptions;

use std::fmt;
use std::thread::sleep;
use std::time::Duration;

use leakscope_analysis::groups::{Group, Looks, Type, group_with_members};
use leakscope_analysis::holders::HolderInput;
use leakscope_analysis::mark::{Heuristics, Marked, Pointers, mark_keeping};
use leakscope_analysis::residence::residence;
use leakscope_analysis::roots::{self, RootInput, RootPlan, RootSwitches};
use leakscope_analysis::verdict;
use leakscope_heap::glibc::{self, Heaps};
use leakscope_memory::MemoryReader;
use leakscope_memory::ranges::joined;
use leakscope_model::{
    Command, Consistency, Coverage, HeapCheck, HeapSummary, LiveBlock, Notice, ProcessReport,
    Range, Report, Residence, RootCounts, RootHints, ThreadState,
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
    let asked = Asked {
        holders: &options.holders,
        before,
    };
    let found = match options.mode {
        Mode::Auto | Mode::Stop => stopped(options, process, &asked, progress)?,
        Mode::Racing => looks::racing(options, process, &asked, progress)?,
    };
    Ok(section(options.content, environs::facts(process), found))
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
        let stopped =
            leakscope_tracee::stop(options.pid).map_err(|e| error(format!("failed to {e}")))?;
        let threads = stopped.threads();
        let usage = Usage::of(process, stopped.memory().map(), threads);
        let sparse = usage.as_ref().map(|usage| usage.reader(stopped.memory()));
        let memory: &dyn MemoryReader = match &sparse {
            Some(sparse) => sparse,
            None => stopped.memory(),
        };
        let heaps = glibc::walk(memory, threads);
        if !heaps.is_consistent() && look < LOOKS {
            pause += stopped.release();
            look += 1;
            sleep(BETWEEN_LOOKS);
            continue;
        }
        let judged = judge(&options.heuristics, memory, threads, heaps);
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
        } = judged;
        let mut beginnings = Looks::new(memory, extents(&heaps));
        let (groups, of_block) = group_with_members(memory, &blocks, &marked, &mut beginnings);
        let grouped = Grouped {
            groups: &groups,
            of_block: &of_block,
            types: beginnings.types(),
        };
        let wanted = holders::wanted(asked.holders, &grouped, asked.before);
        let holders = pointers.as_ref().map(|pointers| {
            let input = HolderInput {
                memory,
                threads,
                blocks: &blocks,
                marked: &marked,
                plan: &plan,
                pointers,
            };
            holders::find(&input, &heaps, &grouped, asked.holders, wanted)
        });
        let residence = usage.map(|usage| {
            let resident = |range| usage.resident(range);
            residence(&usage.mapped, &heaps, &blocks, &marked.kinds, resident)
        });
        Picture {
            residence,
            types: beginnings.types().to_vec(),
            holders: holders.unwrap_or_default(),
            runtimes: environs::runtimes(memory.map(), usage.map_or(0, Usage::unknown)),
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
    heaps: Heaps,
) -> Judged {
    let in_segments = heaps.segments.iter().flat_map(|s| &s.blocks);
    let found = in_segments.chain(heaps.mapped.iter().map(|(_, found)| found));
    // Without weight: their sizes are usable ones, not those asked for.
    let mut blocks: Vec<LiveBlock> = found
        .map(|f| LiveBlock {
            weight: 0.0,
            ..LiveBlock::new(f.addr, f.size)
        })
        .collect();
    blocks.sort_unstable_by_key(|b| b.addr);
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
        known_heaps: Some(&extents(&heaps)),
    });
    // Inside malloc and free a thread may know a block by its chunk only.
    let registers = threads.iter().flat_map(|t| &t.registers);
    plan.start_words
        .extend(registers.map(|word| word.wrapping_add(glibc::CHUNK_HEADER)));
    let (mut marked, pointers) = mark_keeping(memory, &blocks, &plan, heuristics);
    if !heaps.is_consistent() {
        looks::doubt(&mut marked);
    }
    Judged {
        heaps,
        blocks,
        marked,
        plan,
        pointers,
    }
}

/// The memory of all heaps that were walked, ascending.
fn extents(heaps: &Heaps) -> Vec<Range> {
    let segments = heaps.segments.iter().map(|s| s.range);
    joined(
        segments
            .chain(heaps.mapped.iter().map(|(range, _)| *range))
            .collect(),
    )
}

fn section(content: bool, facts: environs::Facts, found: Found) -> ProcessReport {
    let Found {
        picture,
        consistency,
        pause,
        settled,
        mut notices,
    } = found;
    let heaps = &picture.heaps;
    let unwalked = heaps.unwalked.iter().map(Range::len).sum();
    let loss = looks::summary(&picture.blocks, &picture.marked);
    if heaps.arenas.is_empty() {
        notices.push(environs::no_heap());
    } else if !heaps.is_consistent() {
        notices.push(looks::doubtful(heaps, picture.looks));
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
                agrees: heaps.is_consistent() && settled,
                looks: picture.looks,
            }),
        },
        suppressions: Vec::new(),
        notices,
    }
}
