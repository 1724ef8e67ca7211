//! The verdict: one sentence that says what leaks, how much and where, or
//! why nothing can be said.
//!
//! Statuses: *leaking* when a block or mapping is definitely or possibly
//! lost (blocks lost only through suppressed ones do not count);
//! *inconclusive* when nothing is lost but memory was not examined or events
//! were dropped; *growing* when nothing is lost, but reachable
//! memory rises from look to look; *retained* when nothing is lost, but much of the resident set
//! is free memory that malloc keeps; *clean* otherwise. Wrong frees and
//! descriptors never closed do not change the status, but the sentence names
//! them.
//!
//! Begin with [`process_verdict`] and [`overall`]; [`FailOn`] decides the
//! exit status.

mod facts;
mod fail_on;
mod own_code;
mod sentence;
#[cfg(test)]
mod tests;

pub use fail_on::{FailOn, UnknownFailKind};
pub use own_code::{own_frame, place, short_name};

use facts::Facts;
use leakscope_model::quantity::count;
use leakscope_model::{ProcessReport, Verdict, VerdictStatus};
use std::cmp::Reverse;

/// Judges one process by its finished report.
pub fn process_verdict(process: &ProcessReport) -> Verdict {
    let facts = Facts::of(process);
    let status = facts.status();
    let sentence = match status {
        VerdictStatus::Leaking => sentence::leaking(&facts, process, "", ""),
        VerdictStatus::Inconclusive => sentence::inconclusive(&facts, process, ""),
        VerdictStatus::Growing => sentence::growing(&facts, process),
        VerdictStatus::Retained => sentence::retained(&facts),
        _ => sentence::clean(&facts, 1),
    };
    let rate = match status {
        VerdictStatus::Leaking => facts.rate(facts.rising_lost),
        VerdictStatus::Growing => facts.rate(facts.rising),
        _ => None,
    };
    Verdict {
        rate_bytes_per_second: rate,
        ..verdict(status, sentence)
    }
}

/// Judges all processes: the worst decides, and is named when there are
/// several. Images that exec replaced without a look count only when they
/// leak.
pub fn overall(processes: &[ProcessReport]) -> Verdict {
    let judged: Vec<(&ProcessReport, Facts)> = processes
        .iter()
        .enumerate()
        .map(|(i, p)| (i, p, Facts::of(p)))
        .filter(|(i, p, facts)| {
            let later = processes.get(i + 1..).unwrap_or_default();
            let replaced = p.exit.is_none() && later.iter().any(|l| l.pid == p.pid);
            !replaced || facts.reachability || facts.status() == VerdictStatus::Leaking
        })
        .map(|(_, p, facts)| (p, facts))
        .collect();
    if let [(only, _)] = judged.as_slice() {
        return process_verdict(only);
    }
    let worst = judged
        .iter()
        .min_by_key(|(_, facts)| (Reverse(severity(facts.status())), facts.least_lost()));
    let Some((worst, facts)) = worst else {
        let sentence = "Inconclusive: no process was recorded.".to_owned();
        return verdict(VerdictStatus::Inconclusive, sentence);
    };
    let mut all = Facts::default();
    for (_, facts) in &judged {
        all.add(facts);
    }
    let status = facts.status();
    let who = format!("{}: ", process_name(worst));
    let whole = facts.with_problems_of(&all);
    let sentence = match status {
        VerdictStatus::Leaking => {
            let leaking = judged
                .iter()
                .filter(|(_, facts)| facts.status() == VerdictStatus::Leaking)
                .count();
            let others = match leaking {
                0 | 1 => String::new(),
                2 => "; 1 other process leaks too".to_owned(),
                n => format!("; {} other processes leak too", count(n as u64 - 1)),
            };
            sentence::leaking(&whole, worst, &who, &others)
        }
        VerdictStatus::Inconclusive => sentence::inconclusive(&whole, worst, &who),
        _ => sentence::clean(&all, judged.len() as u64),
    };
    verdict(status, sentence)
}

fn verdict(status: VerdictStatus, sentence: String) -> Verdict {
    Verdict {
        status,
        sentence,
        rate_bytes_per_second: None,
        rate_interval: None,
        detectable_bytes_per_second: None,
    }
}

/// What is worse has the higher number.
fn severity(status: VerdictStatus) -> u8 {
    match status {
        VerdictStatus::Leaking => 4,
        VerdictStatus::Growing => 3,
        VerdictStatus::Retained => 2,
        VerdictStatus::Inconclusive => 1,
        VerdictStatus::Clean => 0,
    }
}

/// The program's name and pid.
fn process_name(process: &ProcessReport) -> String {
    let path = match process.exe.as_str() {
        "" => process.argv.first().map_or("", String::as_str),
        exe => exe.strip_suffix(" (deleted)").unwrap_or(exe),
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    format!("{name} (pid {})", process.pid)
}
