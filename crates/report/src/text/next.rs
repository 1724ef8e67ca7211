//! The last line: one thing to do next.

use leakscope_model::{
    ErrorCode, ErrorRecord, Frame, Holder, Leak, LossKind, MappingLeak, ProcessReport, Report,
    VerdictStatus, quantity,
};

use super::process::is_unrecorded;
use super::{errors, holders, leaks, stack};
use crate::options::total_bytes;
use crate::{Options, escape, selected};

/// What the reader should do next; the most urgent thing only.
pub(super) fn advice(report: &Report, options: &Options) -> String {
    let processes = || report.processes.iter();
    let errors = || processes().flat_map(|p| &p.errors);
    if let Some(error) = errors()
        .filter(|e| e.code != ErrorCode::FdLeak)
        .min_by_key(|e| e.code as u8)
    {
        return wrong_free(error, options);
    }
    // The first of equals, so that the text names what it shows first.
    let largest = |kind: LossKind| {
        processes()
            .filter(|p| p.coverage.reachability)
            .flat_map(|p| selected(p, options))
            .filter(|l| l.kind == kind)
            .reduce(|a, b| {
                if total_bytes(b) > total_bytes(a) {
                    b
                } else {
                    a
                }
            })
    };
    for kind in [LossKind::Definite, LossKind::Possible] {
        if let Some(leak) = largest(kind) {
            let is_static = processes()
                .flat_map(|p| &p.notices)
                .any(|notice| notice.code == "static-executable");
            return lost(leak, is_static, options);
        }
    }
    let mut mappings = processes().flat_map(|p| leaks::shown_mappings(p, options));
    let is_lost = |m: &&MappingLeak| m.kind != LossKind::Reachable;
    if let Some(mapping) = mappings.find(is_lost) {
        let at = place(&mapping.stack, options);
        return format!("look at {at}: what it mapped is never unmapped");
    }
    if let Some(process) = processes().find(|p| hides_loss(p)) {
        return format!(
            "re-run with --show all --min-bytes 0 to see the losses of process {} that these \
             options leave out",
            process.pid
        );
    }
    if let Some(process) = processes().find(|p| p.heap.uncounted && !p.coverage.reachability) {
        if process.notices.iter().any(|n| n.code == "managed-heap") {
            return format!(
                "ask the language's own profiler: process {} has no heap of malloc's",
                process.pid
            );
        }
        return format!(
            "start the program with 'leakscope run' to record what process {} hides",
            process.pid
        );
    }
    if report.verdict.status == VerdictStatus::Growing
        && let Some(holder) = rising(report, options)
    {
        return format!(
            "look at who adds to what is held by {}, and when it should be taken out; 'leakscope \
             run' tells who allocates it",
            holders::root(&holder.root)
        );
    }
    if report.verdict.status == VerdictStatus::Growing {
        return "look at who adds to what rose above and when it should be taken out; 'leakscope run' \
                tells who allocates it"
            .to_owned();
    }
    if report.verdict.status == VerdictStatus::Retained {
        return "nothing leaks; malloc_trim(0), a lower M_TRIM_THRESHOLD, or fewer arenas \
                (MALLOC_ARENA_MAX) would make the process smaller"
            .to_owned();
    }
    let unjudged = || processes().filter(|p| !p.coverage.reachability);
    if let Some(process) = unjudged().find(|p| !is_unrecorded(p)) {
        return not_judged(process, options);
    }
    if let Some(process) = unjudged().next() {
        return format!(
            "nothing was recorded in process {}; its note says why and what would help",
            process.pid
        );
    }
    if errors().next().is_some() && !options.fds {
        return "re-run with --fds to see where the descriptors were opened".to_owned();
    }
    if let Some(error) = errors().next() {
        return format!("close what {} opens", place(&error.stack, options));
    }
    let reachable = processes().fold(0u64, |sum, p| sum.saturating_add(p.loss.reachable.bytes));
    if reachable > 0 && !options.kinds.reachable {
        return format!(
            "nothing to fix; re-run with --show all to see the {} still reachable",
            quantity::bytes(reachable)
        );
    }
    "nothing to fix".to_owned()
}

/// Who holds what rose most.
fn rising<'r>(report: &'r Report, options: &Options) -> Option<&'r Holder> {
    let processes = report.processes.iter();
    let leaks = processes.flat_map(|p| selected(p, options));
    let rising = leaks.filter_map(|leak| Some((leak.growth.filter(|g| g.rising)?.bytes, leak)));
    // The first of equals.
    let most = rising.reduce(|a, b| if b.0 > a.0 { b } else { a });
    most.and_then(|(_, leak)| leak.holder.as_ref())
}

fn wrong_free(error: &ErrorRecord, options: &Options) -> String {
    format!(
        "fix the {} at {} first: after it the heap cannot be trusted",
        errors::name(error.code),
        place(&error.stack, options)
    )
}

fn lost(leak: &Leak, is_static: bool, options: &Options) -> String {
    if let Some(content) = &leak.content {
        let what = match &leak.type_name {
            Some(name) => format!("objects of type {}", escape(name)),
            None => format!("blocks ({})", escape(&content.shape)),
        };
        let how = if is_static {
            "link the program dynamically once and start it"
        } else {
            "start the program"
        };
        return format!(
            "find who should have released these {what}; to see who allocates them, {how} with \
             'leakscope run'"
        );
    }
    let Some(frame) = (options.own_frame)(&leak.stack) else {
        return "no call stack was recorded for the largest loss; see the notices".to_owned();
    };
    let at = stack::describe(frame, options, None);
    let mut text = match leak.kind {
        LossKind::Possible => {
            format!("look at {at}: only pointers into the middle of its blocks are left")
        }
        _ => format!("look at {at}: nothing points to what it allocated any more"),
    };
    if frame.function.is_none() {
        let module = frame.module.as_deref().unwrap_or("that code");
        text += &format!(
            "; for names, install debug symbols of {} or set DEBUGINFOD_URLS",
            escape(module)
        );
        return text;
    }
    if let Some(site) = leak.free_sites.first().filter(|_| options.free_sites) {
        text += &format!(
            "; its other blocks are freed by {}",
            place(&site.stack, options)
        );
    } else if frame.file.is_none() {
        text += "; compile with -g (or install debug symbols) for file and line";
    }
    text
}

fn not_judged(process: &ProcessReport, options: &Options) -> String {
    let sites = selected(process, options).next();
    let largest = sites.map_or(String::new(), |leak| {
        format!("look at {} (largest live) or ", place(&leak.stack, options))
    });
    format!(
        "{largest}let process {} end by itself, by exit or SIGTERM: then lost blocks can be told \
         from reachable ones",
        process.pid
    )
}

/// Lost blocks that the options keep from being shown.
fn hides_loss(process: &ProcessReport) -> bool {
    let loss = &process.loss;
    loss.definite.blocks > 0 || loss.possible.blocks > 0
}

fn place(frames: &[Frame], options: &Options) -> String {
    match (options.own_frame)(frames) {
        Some(frame) => stack::describe(frame, options, None),
        None => "the place shown above".to_owned(),
    }
}
