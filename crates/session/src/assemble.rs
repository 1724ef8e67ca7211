//! From a judgement to a section of the report: names, suppressions, words.

mod errors;
mod notices;
mod records;

use leakscope_model::{
    Consistency, Coverage, ExitKind, HeapSummary, LossSummary, Notice, ProcessReport, RootCounts,
};

use crate::check::Judgement;
use crate::image::Image;
use crate::supervisor::Supervisor;

pub(crate) use notices::{lsan_notice, replaced_notice};

/// The section of a recorded process.
pub(crate) fn section(
    supervisor: &Supervisor,
    image: &Image,
    judgement: Judgement,
    exit: Option<ExitKind>,
) -> ProcessReport {
    let mut names = records::Names::new(supervisor, image, &judgement.table);
    let found = records::find(supervisor, &judgement, &mut names);
    let errors = errors::errors(&judgement, &mut names);
    let mappings = records::mappings(&judgement, &mut names);
    let totals = judgement.table.totals;
    let loss = &found.loss;
    let kinds = [
        loss.definite,
        loss.indirect,
        loss.possible,
        loss.reachable,
        loss.suppressed,
    ];
    let live_bytes = kinds
        .iter()
        .fold(0u64, |sum, kind| sum.saturating_add(kind.bytes));
    let mut notices = judgement.notices;
    notices.extend(notices::recorder(&image.segment.reader(), &judgement.table));
    notices.extend(found.notices);
    notices.extend(names.notices());
    drop(names);
    ProcessReport {
        pid: image.pid,
        parent_pid: image.parent,
        exe: image.exe.clone(),
        argv: image.argv.clone(),
        exit,
        heap: HeapSummary {
            uncounted: false,
            live_bytes,
            live_blocks: kinds
                .iter()
                .fold(0u64, |sum, kind| sum.saturating_add(kind.blocks)),
            allocations: totals.allocations,
            frees: totals.frees,
            allocated_bytes: totals.allocated_bytes,
            // The recorder's peak is summed up now and then; what lives at
            // the end has been there for certain.
            peak_bytes: totals.peak_bytes.max(live_bytes),
        },
        residence: None,
        watched: None,
        loss: found.loss,
        leaks: found.leaks,
        largest: None,
        found: Vec::new(),
        mappings,
        errors,
        coverage: judgement.coverage,
        suppressions: found.suppressions,
        notices,
    }
}

/// Loss by kind after suppressions.
pub(crate) fn losses(supervisor: &Supervisor, image: &Image, judgement: &Judgement) -> LossSummary {
    let mut names = records::Names::new(supervisor, image, &judgement.table);
    records::find(supervisor, judgement, &mut names).loss
}

/// What is known of a process in which nothing was recorded.
pub(crate) struct Unrecorded {
    /// Process id.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Executable.
    pub exe: String,
    /// Arguments.
    pub argv: Vec<String>,
    /// How it ended.
    pub exit: Option<ExitKind>,
    /// Why.
    pub notices: Vec<Notice>,
}

/// The section of a process in which nothing was recorded.
pub(crate) fn unrecorded(process: Unrecorded) -> ProcessReport {
    ProcessReport {
        pid: process.pid,
        parent_pid: process.parent,
        exe: process.exe,
        argv: process.argv,
        exit: process.exit,
        heap: HeapSummary::default(),
        residence: None,
        watched: None,
        loss: LossSummary::default(),
        leaks: Vec::new(),
        largest: None,
        found: Vec::new(),
        mappings: Vec::new(),
        errors: Vec::new(),
        coverage: Coverage {
            consistency: Consistency::Dead,
            pause_seconds: 0.0,
            sampled_every_bytes: None,
            dropped_events: 0,
            unreadable_bytes: 0,
            scanned_block_bytes: 0,
            roots: RootCounts::default(),
            reachability: false,
            heap_check: None,
        },
        suppressions: Vec::new(),
        notices: process.notices,
    }
}
