//! Text for people: the verdict, then the evidence, then what to do next.
//!
//! Wording follows memcheck. Everything that came from the target is escaped
//! before it is painted, so each escape character in the output is ours.

mod errors;
mod holders;
mod leaks;
mod next;
mod page;
mod process;
mod stack;

use std::collections::BTreeMap;
use std::io;

use leakscope_model::{ErrorCode, ProcessReport, Report, VerdictStatus, quantity};

use crate::{Options, Sink, escape, selected};
use page::Page;

/// The format `text`.
#[derive(Clone, Copy, Debug)]
pub struct Text;

impl Sink for Text {
    fn name(&self) -> &'static str {
        "text"
    }

    fn extension(&self) -> &'static str {
        ".txt"
    }

    fn write(&self, report: &Report, options: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let mut page = Page::new(out, options);
        let sentence = escape(&report.verdict.sentence);
        let sentence = match report.verdict.status {
            VerdictStatus::Leaking | VerdictStatus::Growing => page.paint.alarm(&sentence),
            VerdictStatus::Clean => page.paint.good(&sentence),
            VerdictStatus::Retained | VerdictStatus::Inconclusive => page.paint.warn(&sentence),
        };
        page.paragraph(0, 2, &format!("leakscope: {sentence}"))?;
        if options.quiet {
            return Ok(());
        }
        let mut folded = Vec::new();
        for (i, process) in report.processes.iter().enumerate() {
            // When nobody has anything to say, the program speaks for all.
            let alone = i == 0 && !report.processes.iter().any(|p| is_telling(p, options));
            if alone || is_telling(process, options) {
                page.blank()?;
                section(&mut page, process, report.processes.len() > 1, options)?;
            } else {
                folded.push(process);
            }
        }
        if !folded.is_empty() {
            page.blank()?;
            fold(&mut page, &folded)?;
        }
        page.blank()?;
        let advice = next::advice(report, options);
        let label = page.paint.bold("next:");
        page.paragraph(0, 6, &format!("{label} {advice}"))
    }
}

/// True when a process deserves a section of its own. Notices alone are no
/// reason: hundreds of short-lived children may share one.
fn is_telling(process: &ProcessReport, options: &Options) -> bool {
    selected(process, options).next().is_some()
        || leaks::shown_mappings(process, options).next().is_some()
        || process.errors.iter().any(|e| e.code != ErrorCode::FdLeak)
        || (options.fds && !process.errors.is_empty())
        || process.largest.is_some()
        || !process.found.is_empty()
}

fn section(
    page: &mut Page<'_>,
    process: &ProcessReport,
    several: bool,
    options: &Options,
) -> io::Result<()> {
    process::header(page, process, several)?;
    page.blank()?;
    if process::is_unrecorded(process) {
        return process::notices(page, process);
    }
    process::summary(page, process)?;
    if let Some(residence) = &process.residence {
        page.blank()?;
        process::residence(page, residence)?;
    }
    leaks::records(page, process, options)?;
    for find in &process.found {
        holders::found(page, find)?;
    }
    if let Some(largest) = &process.largest {
        holders::largest(page, largest)?;
    }
    leaks::mappings(page, process, options)?;
    errors::wrong_frees(page, process, options)?;
    errors::descriptors(page, process, options)?;
    page.blank()?;
    process::heap(page, process)?;
    process::coverage(page, process)?;
    process::suppressions(page, process)?;
    process::notices(page, process)
}

/// One line for all processes with nothing to say, and one for each notice
/// and for the descriptors that they share.
fn fold(page: &mut Page<'_>, processes: &[&ProcessReport]) -> io::Result<()> {
    const NAMED: usize = 8;
    let mut names: Vec<String> = processes
        .iter()
        .take(NAMED)
        .map(|p| format!("{} {}", p.pid, process::short_name(p)))
        .collect();
    if processes.len() > NAMED {
        names.push("…".to_owned());
    }
    let reachable = processes
        .iter()
        .fold(0u64, |sum, p| sum.saturating_add(p.loss.reachable.bytes));
    page.paragraph(
        0,
        2,
        &format!(
            "Nothing to show for {}: {} ({} still reachable)",
            count_processes(processes.len(), "more "),
            names.join(", "),
            quantity::bytes(reachable),
        ),
    )?;
    let descriptors = processes
        .iter()
        .flat_map(|p| &p.errors)
        .filter(|e| e.code == ErrorCode::FdLeak)
        .fold(0u64, |sum, e| sum.saturating_add(e.count));
    if descriptors > 0 {
        let n = quantity::count(descriptors);
        page.line(&format!(
            "Descriptors: {n} opened and never closed; --fds shows where"
        ))?;
    }
    let mut notices: BTreeMap<&str, usize> = BTreeMap::new();
    for notice in processes.iter().flat_map(|p| &p.notices) {
        *notices.entry(&notice.message).or_default() += 1;
    }
    for (message, times) in notices {
        let label = page.paint.warn("Note:");
        let of = match processes.len() {
            1 => String::new(),
            _ => format!(" ({})", count_processes(times, "")),
        };
        page.paragraph(0, 2, &format!("{label} {}{of}", escape(message)))?;
    }
    Ok(())
}

fn count_processes(n: usize, more: &str) -> String {
    match n {
        1 => format!("1 {more}process"),
        n => format!("{} {more}processes", quantity::count(n as u64)),
    }
}
