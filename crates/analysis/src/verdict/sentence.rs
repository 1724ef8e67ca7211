//! The sentences.

use super::facts::{Facts, Problems, plus};
use super::own_code::place;
use leakscope_model::quantity::{bytes, counted, percent};
use leakscope_model::{Consistency, ExitKind, KindTotals, LossKind, ProcessReport};
use std::collections::HashMap;

/// `who` names the process when there are several; `others` is what there is
/// to say about the rest.
pub(super) fn leaking(facts: &Facts, process: &ProcessReport, who: &str, others: &str) -> String {
    let loss = &facts.loss;
    let amount = |totals: KindTotals| amount(totals, "block", facts.sampled_every.is_some());
    let mut said = Vec::new();
    let kind = if loss.definite.blocks > 0 {
        let mut definite = format!("{} definitely lost", amount(loss.definite));
        if loss.indirect.blocks > 0 {
            definite.push_str(&format!(" and {} indirectly", amount(loss.indirect)));
        }
        said.push(definite);
        if loss.possible.blocks > 0 {
            said.push(format!("{} possibly lost", amount(loss.possible)));
        }
        Some(LossKind::Definite)
    } else if loss.possible.blocks > 0 {
        said.push(format!("{} possibly lost", amount(loss.possible)));
        Some(LossKind::Possible)
    } else {
        None
    };
    let mut also = problems(&facts.problems);
    let mappings = mappings(facts);
    match kind {
        Some(_) => also.splice(0..0, mappings).for_each(drop),
        None => said.extend(mappings),
    }
    let top = match kind {
        Some(kind) if facts.walked => top_content(process, kind),
        Some(kind) => top_block_place(process, kind),
        None => top_mapping_place(process),
    };
    said.extend(top);
    let also = match also.as_slice() {
        [] => String::new(),
        also => format!("; also {}", list(also)),
    };
    let rate = match facts.rising_lost {
        0 => String::new(),
        rising => format!("; rising{}", per_minute(facts, rising)),
    };
    let doubts = doubts(facts);
    format!(
        "Leaking: {who}{}{rate}{also}{others}{doubts}.",
        said.join(", ")
    )
}

pub(super) fn inconclusive(facts: &Facts, process: &ProcessReport, who: &str) -> String {
    let live = match (facts.live.blocks, facts.allocations) {
        (0, 0) => "no allocation was recorded".to_owned(),
        (0, _) => "no block was live".to_owned(),
        (1, _) => format!("1 block ({}) was live", bytes(facts.live.bytes)),
        (n, _) => format!(
            "{} ({}) were live",
            counted(n, "block"),
            bytes(facts.live.bytes)
        ),
    };
    let dropped = match facts.dropped {
        1 => "1 event was dropped".to_owned(),
        n => format!("{} were dropped", counted(n, "event")),
    };
    let reason = if facts.walked && facts.live.blocks == 0 && !facts.reachability {
        "no heap of glibc's malloc was found in the process".to_owned()
    } else if facts.doubtful {
        format!(
            "{} lost among the {} that were found, but malloc's own sums say that there is more, or \
             was being changed (see the note)",
            match facts.loss.possible.blocks {
                0 => "nothing is".to_owned(),
                n => format!("{n} may be"),
            },
            counted(facts.live.blocks, "block")
        )
    } else if facts.opaque_heaps {
        format!(
            "nothing is lost among the {} of glibc's malloc, but another allocator's heap could \
             not be walked",
            counted(facts.live.blocks, "block")
        )
    } else if facts.reachability {
        let among = match facts.live.blocks {
            0 => "no recorded block is live at the end".to_owned(),
            n => format!(
                "nothing is lost among the {} recorded",
                counted(n, "live block")
            ),
        };
        format!("{among}, but {dropped}")
    } else {
        let how = match &process.exit {
            Some(ExitKind::Signal(signal)) => {
                format!("killed by {signal} before memory could be examined")
            }
            Some(ExitKind::Code(code)) => {
                format!("exited with status {code} before memory could be examined")
            }
            None => "memory could not be examined".to_owned(),
        };
        match facts.dropped {
            0 => format!("{how}; {live}"),
            _ => format!("{how}; {live}, and {dropped}"),
        }
    };
    let also = match problems(&facts.problems).as_slice() {
        [] => String::new(),
        also => format!("; also {}", list(also)),
    };
    format!("Inconclusive: {who}{reason}{also}.")
}

/// Nothing is lost, and what is held gets more and more.
pub(super) fn growing(facts: &Facts, process: &ProcessReport) -> String {
    let watched = facts.watched.unwrap_or_default();
    let rising = process
        .leaks
        .iter()
        .filter(|leak| leak.kind == LossKind::Reachable)
        .filter_map(|leak| Some((leak, leak.growth.filter(|g| g.rising)?)));
    let weighed = rising.map(|(leak, growth)| {
        let totals = KindTotals {
            bytes: growth.bytes.unsigned_abs(),
            blocks: growth.blocks.unsigned_abs(),
        };
        (leak.type_name.clone(), totals)
    });
    let top = most(weighed, "in objects of type").map_or(String::new(), |top| format!(", {top}"));
    format!(
        "Growing: nothing is lost, but still reachable memory rose by {} from look to look{}{top} \
         ({}, {}).",
        bytes(facts.rising),
        per_minute(facts, facts.rising),
        counted(watched.looks, "look"),
        coverage(facts),
    )
}

/// `, 1.2 MiB a minute`; nothing when nobody watched.
fn per_minute(facts: &Facts, rising: u64) -> String {
    match facts.rate(rising).filter(|rate| *rate > 0.0) {
        Some(rate) => format!(", {} a minute", bytes((rate * 60.0) as u64)),
        None => String::new(),
    }
}

/// Nothing is lost, and malloc keeps what was freed.
pub(super) fn retained(facts: &Facts) -> String {
    let residence = facts.residence.unwrap_or_default();
    let kept = residence.retained.total();
    let keeper = match residence.retained.pools {
        0 => "malloc keeps",
        _ => "the allocators keep",
    };
    format!(
        "Retained: nothing is lost, but {} of the {} resident ({}) are free memory that {keeper}; \
         malloc_trim would give back about {} ({}).",
        bytes(kept),
        bytes(residence.rss),
        percent(kept, residence.rss),
        bytes(residence.trimmable),
        coverage(facts),
    )
}

/// `processes` is the number of processes that `facts` sums up.
pub(super) fn clean(facts: &Facts, processes: u64) -> String {
    let coverage = coverage(facts);
    let found = &facts.problems;
    let wrong_frees = wrong_frees(found);
    let descriptors = match found.open_descriptors {
        0 => None,
        1 => Some("1 descriptor was never closed".to_owned()),
        n => Some(format!("{} were never closed", counted(n, "descriptor"))),
    };
    let of = match processes {
        1 => String::new(),
        n => format!(" of {n} processes"),
    };
    match (wrong_frees.as_slice(), descriptors) {
        ([], None) => {}
        ([], Some(descriptors)) => return format!("No memory leak; {descriptors} ({coverage})."),
        (wrong, None) => return format!("No memory leak, but {} ({coverage}).", list(wrong)),
        (wrong, Some(descriptors)) => {
            return format!(
                "No memory leak, but {}; {descriptors} ({coverage}).",
                list(wrong)
            );
        }
    }
    // Each byte is sampled with the same chance, so a leak of n times the
    // mean gap is missed with probability e^-n: 1 % for 4.6.
    let missed = match facts.sampled_every {
        None => String::new(),
        Some(_) if facts.held_heaps => ", but all that another allocator than glibc's made \
            counts as held when sampling, and its leaks may have been missed"
            .to_owned(),
        Some(every) => {
            let limit = bytes((every as f64 * 4.6) as u64);
            format!(", but a leak of less than about {limit} may have been missed")
        }
    };
    if facts.live.blocks == 0 {
        let block = match facts.sampled_every {
            None => "no block",
            Some(_) => "no sampled block",
        };
        return format!(
            "Clean: {block}{of} is live at the end; nothing is lost{missed} ({coverage})."
        );
    }
    let blocks = match (facts.live.blocks, facts.sampled_every) {
        (1, None) => format!("the only live block{of} is still reachable"),
        (n, None) => format!("all {}{of} are still reachable", counted(n, "live block")),
        (n, Some(_)) => format!(
            "all sampled blocks{of}, standing for about {}, are still reachable",
            counted(n, "live block")
        ),
    };
    let rest = match (facts.loss.suppressed.blocks, facts.loss.indirect.blocks) {
        (0, 0) => "; nothing is lost",
        (_, 0) => " or suppressed; nothing else is lost",
        _ => ", suppressed, or lost only through suppressed ones; nothing else is lost",
    };
    format!("Clean: {blocks}{rest}{missed} ({coverage}).")
}

fn amount(totals: KindTotals, noun: &str, sampled: bool) -> String {
    let about = if sampled { "about " } else { "" };
    format!(
        "{about}{} in {}",
        bytes(totals.bytes),
        counted(totals.blocks, noun)
    )
}

fn mappings(facts: &Facts) -> Vec<String> {
    let say = |totals: KindTotals, how: &str| {
        (totals.blocks > 0).then(|| {
            let count = counted(totals.blocks, "mapping");
            format!("{count}, {}, {how}", bytes(totals.bytes))
        })
    };
    let sure = say(facts.lost_mappings, "lost");
    let maybe = say(facts.maybe_lost_mappings, "possibly lost");
    sure.into_iter().chain(maybe).collect()
}

fn wrong_frees(found: &Problems) -> Vec<String> {
    let kinds = [
        (found.double_frees, "double free"),
        (found.invalid_frees, "invalid free"),
        (found.mismatched_frees, "mismatched free"),
    ];
    let seen = kinds.into_iter().filter(|(n, _)| *n > 0);
    seen.map(|(n, what)| counted(n, what)).collect()
}

fn problems(found: &Problems) -> Vec<String> {
    let mut all = wrong_frees(found);
    if found.open_descriptors > 0 {
        let count = counted(found.open_descriptors, "descriptor");
        all.push(format!("{count} never closed"));
    }
    all
}

/// `a`, `a and b`, `a, b and c`; with semicolons when a part holds a comma.
fn list(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [rest @ .., last] => {
            let commas = parts.iter().any(|part| part.contains(','));
            let between = if commas { "; " } else { ", " };
            format!("{} and {last}", rest.join(between))
        }
    }
}

/// What makes a found leak less certain, or the list incomplete.
fn doubts(facts: &Facts) -> String {
    let mut doubts = Vec::new();
    if facts.dropped > 0 {
        let were = if facts.dropped == 1 { "was" } else { "were" };
        let dropped = counted(facts.dropped, "event");
        doubts.push(format!("{dropped} {were} dropped, so there may be more"));
    }
    if facts.unreadable > 0 {
        let unread = bytes(facts.unreadable);
        doubts.push(format!(
            "{unread} could not be read, so some may be reachable"
        ));
    }
    if facts.consistency == Some(Consistency::Racing) {
        doubts.push("read while threads ran".to_owned());
    }
    if facts.doubtful {
        doubts.push("malloc's own sums differ, see the note".to_owned());
    }
    if doubts.is_empty() {
        return String::new();
    }
    format!(" ({})", doubts.join("; "))
}

/// How well it was looked.
fn coverage(facts: &Facts) -> String {
    let exact = match facts.sampled_every {
        None if facts.walked => "heap walked".to_owned(),
        None => "exact".to_owned(),
        Some(every) => format!("sampled every {}", bytes(every)),
    };
    let consistency = match facts.consistency {
        _ if !facts.reachability => "memory not examined",
        Some(Consistency::Stopped) => "stopped",
        Some(Consistency::Forked) => "forked",
        Some(Consistency::Racing) => "racing",
        Some(Consistency::Dead) | None => "dead",
    };
    let mut text = format!("{exact}, {consistency}");
    if !facts.walked {
        text.push_str(&format!(", {} dropped", facts.dropped));
    }
    if facts.unreadable > 0 {
        text.push_str(&format!(", {} unreadable", bytes(facts.unreadable)));
    }
    text
}

/// Who allocated most of what is lost, counting what is lost through it.
fn top_block_place(process: &ProcessReport, kind: LossKind) -> Option<String> {
    let leaks = process.leaks.iter().filter(|leak| leak.kind == kind);
    let weighed = leaks.map(|leak| {
        let direct = KindTotals {
            bytes: leak.bytes,
            blocks: leak.blocks,
        };
        let mut totals = leak.indirect;
        plus(&mut totals, direct);
        (place(&leak.stack), totals)
    });
    most(weighed, "allocated by")
}

/// What most of what is lost is, where nobody knows who allocated it.
fn top_content(process: &ProcessReport, kind: LossKind) -> Option<String> {
    let leaks = process.leaks.iter().filter(|leak| leak.kind == kind);
    let weighed = leaks.map(|leak| {
        let mut totals = leak.indirect;
        plus(
            &mut totals,
            KindTotals {
                bytes: leak.bytes,
                blocks: leak.blocks,
            },
        );
        (leak.type_name.clone(), totals)
    });
    most(weighed, "in objects of type")
}

fn top_mapping_place(process: &ProcessReport) -> Option<String> {
    let lost = |kind| matches!(kind, LossKind::Definite | LossKind::Possible);
    let mappings = process.mappings.iter().filter(|m| lost(m.kind));
    let weighed = mappings.map(|m| {
        let totals = KindTotals {
            bytes: m.bytes,
            blocks: m.count,
        };
        (place(&m.stack), totals)
    });
    most(weighed, "mapped by")
}

/// The place with the largest share, and that share; `None` when that place
/// has no name.
fn most(weighed: impl Iterator<Item = (Option<String>, KindTotals)>, verb: &str) -> Option<String> {
    let mut all = KindTotals::default();
    let mut by_place: HashMap<Option<String>, KindTotals> = HashMap::new();
    for (place, totals) in weighed {
        plus(&mut all, totals);
        plus(by_place.entry(place).or_default(), totals);
    }
    let places = by_place.len();
    let (place, share) = by_place
        .into_iter()
        .max_by(|(p, a), (q, b)| (a.bytes, a.blocks).cmp(&(b.bytes, b.blocks)).then(q.cmp(p)))?;
    let place = place?;
    // Blocks of zero bytes have a share too.
    let (part, whole) = match all.bytes {
        0 => (share.blocks, all.blocks),
        _ => (share.bytes, all.bytes),
    };
    let share = percent(part, whole);
    Some(if places == 1 {
        format!("all {verb} {place}")
    } else if part >= whole.saturating_sub(part) {
        format!("most ({share}) {verb} {place}")
    } else {
        format!("the largest part ({share}) {verb} {place}")
    })
}
