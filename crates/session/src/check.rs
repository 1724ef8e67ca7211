//! The leak check: stop, read, judge, let go.
//!
//! Everything that needs the process happens here; symbols and wording come
//! after it was let go (`assemble`).

use std::collections::HashMap;
use std::fs;

use leakscope_analysis::mappings;
use leakscope_analysis::mark::Marked;
use leakscope_analysis::roots::{self, RootInput, RootSwitches};
use leakscope_analysis::sampled::{self, Completed};
use leakscope_memory::MemoryReader;
use leakscope_model::{
    Addr, Consistency, Coverage, ExitKind, LiveMapping, LiveTable, LossKind, Notice, RootCounts,
    StackId, ThreadState,
};
use leakscope_tracee::{StopError, Stopped};
use leakscope_wire::layout::{note, word};

use crate::image::Image;
use crate::live::{self, Asking};
use crate::mailbox::MailMemory;
use crate::program;
use crate::supervisor::Supervisor;

/// A descriptor that the program opened and has not closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenFd {
    /// Number.
    pub fd: u32,
    /// What it refers to; empty when that cannot be known any more.
    pub target: String,
    /// Stack that opened it, 0 when unknown.
    pub stack: StackId,
}

/// Facts and kinds, before they have names.
#[derive(Debug)]
pub(crate) struct Judgement {
    /// What the recorder knew.
    pub table: LiveTable,
    /// Loss kinds; `None` where reachability could not be judged.
    pub marked: Option<Marked>,
    /// Application mappings and their kinds.
    pub mappings: Vec<(LiveMapping, LossKind)>,
    /// Coverage.
    pub coverage: Coverage,
    /// Descriptors.
    pub fds: Vec<OpenFd>,
    /// Notices of the check itself.
    pub notices: Vec<Notice>,
    /// Suppressions that the program brought along.
    pub suppressions: Vec<u8>,
}

/// Checks an image whose asking thread waits.
pub(crate) fn judge(supervisor: &Supervisor, image: &Image) -> Judgement {
    judge_live(supervisor, image, Asking::Yes, leakscope_tracee::stop)
}

/// Checks an image that was not asked and still runs.
pub(crate) fn judge_running(supervisor: &Supervisor, image: &Image) -> Judgement {
    judge_live(supervisor, image, Asking::No, leakscope_tracee::stop)
}

/// Checks an image of somebody else's run.
pub(crate) fn judge_foreign(supervisor: &Supervisor, image: &Image) -> Judgement {
    judge_live(
        supervisor,
        image,
        Asking::No,
        leakscope_tracee::stop_guarded,
    )
}

fn judge_live(
    supervisor: &Supervisor,
    image: &Image,
    asking: Asking,
    stop: fn(u32) -> Result<Stopped, StopError>,
) -> Judgement {
    let stopped = match stop(image.pid) {
        Ok(stopped) => stopped,
        Err(StopError::Gone(_)) => return judge_dead(image, None),
        Err(error) => return without_ptrace(supervisor, image, asking, &error),
    };
    let mut table = live::table(&image.segment.reader(), asking);
    name_asking_thread(&mut table, stopped.threads());
    let picture = reach(supervisor, &table, stopped.memory(), stopped.threads());
    let fds = open_fds(supervisor, image, &table);
    let mut notices = Vec::new();
    let skipped = stopped.skipped().len() as u64;
    let pause = stopped.release();
    let unstopped = skipped > 0;
    if unstopped {
        notices.push(not_stopped(skipped));
    }
    let consistency = if unstopped {
        Consistency::Racing
    } else {
        Consistency::Stopped
    };
    let coverage = coverage(&table, consistency, pause.as_secs_f64(), Some(&picture));
    finish(image, table, Some(picture), coverage, fds, notices)
}

/// What to say of threads that could not be stopped.
pub(crate) fn not_stopped(threads: u64) -> Notice {
    Notice {
        code: "threads-not-stopped",
        message: format!(
            "{} could not be stopped for the check (waiting for a vfork child or a disk), so what \
             they held may be missing",
            leakscope_model::quantity::counted(threads, "thread")
        ),
    }
}

/// The cooperative way: the asking thread hands over memory itself.
fn without_ptrace(
    supervisor: &Supervisor,
    image: &Image,
    asking: Asking,
    error: &StopError,
) -> Judgement {
    let reason = match error {
        // Its text names the remedy.
        StopError::NotPermitted(refusal) => refusal.to_string(),
        other => other.to_string(),
    };
    let memory = match asking {
        Asking::Yes => MailMemory::open(&image.segment),
        Asking::No => None,
    };
    let Some(memory) = memory else {
        let mut judgement = judge_dead(image, None);
        judgement.notices = vec![Notice {
            code: "no-reachability",
            message: format!(
                "the process could not be stopped for the check (failed to {reason}), so all its \
                 live blocks count as reachable"
            ),
        }];
        return judgement;
    };
    let table = live::table(&image.segment.reader(), asking);
    // Of other threads no stack pointer is known: their stacks are roots as
    // a whole, as any mapping is.
    let threads: Vec<ThreadState> = table.hints.asking.iter().cloned().collect();
    let picture = reach(supervisor, &table, &memory, &threads);
    let fds = open_fds(supervisor, image, &table);
    let notices = vec![Notice {
        code: "no-ptrace",
        message: format!(
            "the process handed over its memory itself while its other threads ran on, which \
             may hide leaks: failed to {reason}"
        ),
    }];
    // Nobody was stopped: the asking thread would have waited anyway.
    let coverage = coverage(&table, Consistency::Racing, 0.0, Some(&picture));
    finish(image, table, Some(picture), coverage, fds, notices)
}

/// What is left of a process that ended without asking.
pub(crate) fn judge_dead(image: &Image, exit: Option<&ExitKind>) -> Judgement {
    let table = live::table(&image.segment.reader(), Asking::No);
    let how = match exit {
        Some(ExitKind::Signal(name)) => format!("was killed by {name}"),
        Some(ExitKind::Code(_)) | None => "ended without the usual exit".to_owned(),
    };
    let notices = vec![Notice {
        code: "no-reachability",
        message: format!(
            "the process {how}, so its memory could not be read: all live blocks count as \
             reachable"
        ),
    }];
    let coverage = coverage(&table, Consistency::Dead, 0.0, None);
    let fds = recorded_fds(&table);
    finish(image, table, None, coverage, fds, notices)
}

/// What marking found.
struct Picture {
    marked: Marked,
    mappings: Vec<(LiveMapping, LossKind)>,
    roots: RootCounts,
}

fn finish(
    image: &Image,
    mut table: LiveTable,
    picture: Option<Picture>,
    mut coverage: Coverage,
    fds: Vec<OpenFd>,
    mut notices: Vec<Notice>,
) -> Judgement {
    // The loader does not name the executable itself.
    for module in table.modules.iter_mut().filter(|m| m.path.is_empty()) {
        module.path = image.exe.as_bytes().to_vec();
    }
    let reader = image.segment.reader();
    let noted = |bit: u64| reader.word(word::NOTES) & bit != 0;
    let unjudged = |m: &LiveMapping| (*m, LossKind::Reachable);
    let (mut marked, mappings) = match picture {
        Some(picture) => (Some(picture.marked), picture.mappings),
        None => (None, table.mappings.iter().map(unjudged).collect()),
    };
    if noted(note::LSAN_TURNED_OFF)
        && let Some(marked) = &mut marked
    {
        marked.kinds.fill(LossKind::Reachable);
        marked.cycle.fill(false);
        marked.cycle_members.clear();
    }
    let nothing = table.totals.allocations == 0;
    let brings = || {
        image
            .exe_file
            .as_deref()
            .is_some_and(program::brings_malloc)
    };
    if noted(note::ALLOCATOR_BYPASS) || (nothing && brings()) {
        // What lives was not seen, nor what it points to.
        coverage.reachability = false;
        notices.push(Notice {
            code: "own-allocator",
            message: format!(
                "{} brings its own malloc, which the loader prefers to the recorder's: its \
                 blocks were not recorded",
                image.exe
            ),
        });
    }
    Judgement {
        table,
        marked,
        mappings,
        coverage,
        fds,
        notices,
        suppressions: live::own_suppressions(&reader),
    }
}

fn reach(
    supervisor: &Supervisor,
    table: &LiveTable,
    memory: &dyn MemoryReader,
    threads: &[ThreadState],
) -> Picture {
    let input = RootInput {
        memory,
        threads,
        blocks: &table.blocks,
        hints: &table.hints,
        switches: RootSwitches::default(),
        known_heaps: None,
    };
    let heuristics = &supervisor.options.heuristics;
    let judge = |input: &RootInput<'_>| {
        let plan = roots::plan(input);
        let (marked, mappings) =
            mappings::mark_and_judge(memory, &table.mappings, input.blocks, &plan, heuristics);
        Picture {
            mappings,
            marked,
            roots: plan.counts,
        }
    };
    let among = |all: &Completed| {
        let mut picture = judge(&RootInput {
            blocks: &all.blocks,
            known_heaps: Some(&all.heaps),
            ..input
        });
        picture.marked = all.sample(&picture.marked);
        picture
    };
    if table.sampled_every_bytes.is_none() {
        return judge(&input);
    }
    let picture = among(&sampled::alone(&input));
    let mappings = picture.mappings.iter().map(|(_, kind)| kind);
    if picture
        .marked
        .kinds
        .iter()
        .chain(mappings)
        .all(|kind| *kind == LossKind::Reachable)
    {
        return picture;
    }
    among(&sampled::complete(&input))
}

fn coverage(
    table: &LiveTable,
    consistency: Consistency,
    pause_seconds: f64,
    picture: Option<&Picture>,
) -> Coverage {
    Coverage {
        consistency,
        pause_seconds,
        sampled_every_bytes: table.sampled_every_bytes,
        dropped_events: table.losses.dropped_events,
        unreadable_bytes: picture.map_or(0, |p| p.marked.unreadable_bytes),
        scanned_block_bytes: picture.map_or(0, |p| p.marked.scanned_block_bytes),
        roots: picture.map(|p| p.roots).unwrap_or_default(),
        reachability: picture.is_some(),
        heap_check: None,
    }
}

/// The recorder names the asking thread by an id of the target's namespace;
/// its control block is the same everywhere.
fn name_asking_thread(table: &mut LiveTable, threads: &[ThreadState]) {
    let Some(asking) = table.hints.asking.as_mut() else {
        return;
    };
    let same = |t: &&ThreadState| asking.tcb != Addr(0) && t.tcb == asking.tcb;
    if let Some(thread) = threads.iter().find(same) {
        asking.tid = thread.tid;
    }
}

/// Open descriptors that the program did not inherit.
fn open_fds(supervisor: &Supervisor, image: &Image, table: &LiveTable) -> Vec<OpenFd> {
    let Ok(open) = supervisor.proc.process(image.pid).descriptors() else {
        // Not ours to look at: what the recorder saw must do.
        return recorded_fds(table);
    };
    let recorded: HashMap<u32, StackId> = table.fds.iter().map(|r| (r.fd, r.stack)).collect();
    open.into_iter()
        .filter_map(|open| {
            let stack = recorded.get(&open.number).copied();
            // The standard streams are the program's by right, also where it
            // put something else there.
            let inherited = image.inherited_fds.get(&open.number) == Some(&open.target);
            if open.number <= 2 || (inherited && stack.is_none()) {
                return None;
            }
            Some(OpenFd {
                fd: open.number,
                target: String::from_utf8_lossy(&open.target).into_owned(),
                stack: stack.unwrap_or_default(),
            })
        })
        .collect()
}

/// The descriptors that the recorder saw opened and not closed.
fn recorded_fds(table: &LiveTable) -> Vec<OpenFd> {
    table
        .fds
        .iter()
        .filter(|record| record.fd > 2)
        .map(|record| OpenFd {
            fd: record.fd,
            target: String::new(),
            stack: record.stack,
        })
        .collect()
}

/// True when the process runs another program by now: the segment is no
/// longer in its map. False when that cannot be seen.
pub(crate) fn was_replaced(image: &Image) -> bool {
    let Ok(maps) = fs::read(format!("/proc/{}/maps", image.pid)) else {
        return false;
    };
    const NAME: &[u8] = b"/memfd:leakscope";
    !maps.is_empty() && !maps.windows(NAME.len()).any(|part| part == NAME)
}
