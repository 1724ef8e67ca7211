//! What is said of a process as a whole.

use std::io;

use leakscope_model::{
    Consistency, ExitKind, HeapCheck, KindTotals, ProcessReport, Residence, Watched, quantity,
};

use super::page::Page;
use crate::{duration, escape};

/// Characters of a command line that are shown.
const COMMAND_CHARS: usize = 160;

/// `Process 4242: ./leaky --fast, exited with status 0`.
pub(super) fn header(
    page: &mut Page<'_>,
    process: &ProcessReport,
    several: bool,
) -> io::Result<()> {
    let name = page.paint.bold(&format!("Process {}:", process.pid));
    let child = if several {
        format!(", child of {}", process.parent_pid)
    } else {
        String::new()
    };
    let end = match &process.exit {
        Some(ExitKind::Code(code)) => format!("exited with status {code}"),
        Some(ExitKind::Signal(signal)) => format!("killed by {}", escape(signal)),
        None if from_core(process) => "as a core file holds it".to_owned(),
        None if process.heap.uncounted || is_examined(process) => "running".to_owned(),
        None => "still running, or replaced by exec".to_owned(),
    };
    page.paragraph(0, 2, &format!("{name} {}{child}, {end}", command(process)))
}

/// True for a process that is no more than a core file.
fn from_core(process: &ProcessReport) -> bool {
    process.notices.iter().any(|n| n.code == "core-file")
}

/// True for a process in which nothing was recorded, and a notice says why:
/// its numbers would all be zero and mean nothing.
pub(super) fn is_unrecorded(process: &ProcessReport) -> bool {
    const REASONS: [&str; 6] = [
        "foreign-machine",
        "foreign-proc",
        "not-recorded",
        "own-allocator",
        "setuid-program",
        "static-executable",
    ];
    process.heap.allocations == 0
        && !process.coverage.reachability
        && process.notices.iter().any(|n| REASONS.contains(&n.code))
}

/// The command line as one would type it, escaped and bounded.
fn command(process: &ProcessReport) -> String {
    let mut words = Vec::new();
    let mut chars = 0;
    for word in &process.argv {
        let word = escape(word);
        chars += word.chars().count() + 1;
        if chars > COMMAND_CHARS {
            let room = COMMAND_CHARS.saturating_sub(chars - word.chars().count());
            words.push(format!("{}…", word.chars().take(room).collect::<String>()));
            break;
        }
        let plain = |c: char| c.is_alphanumeric() || "-_./:=+,@%\\".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            words.push(word.into_owned());
        } else {
            words.push(format!("'{}'", word.replace('\'', "'\\''")));
        }
    }
    let exe = escape(&process.exe);
    match process.argv.first() {
        None => exe.into_owned(),
        Some(first) if base(first) == base(&process.exe) => words.join(" "),
        Some(_) => format!("{} ({exe})", words.join(" ")),
    }
}

/// True for a process that another run records, and `check` looks at.
fn is_examined(process: &ProcessReport) -> bool {
    process.notices.iter().any(|n| n.code == "recorded")
}

/// The executable's file name, escaped.
pub(super) fn short_name(process: &ProcessReport) -> String {
    escape(base(&process.exe)).into_owned()
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The loss summary: each live block once, by kind.
pub(super) fn summary(page: &mut Page<'_>, process: &ProcessReport) -> io::Result<()> {
    let loss = &process.loss;
    let judged = process.coverage.reachability;
    let reachable = if judged {
        "still reachable"
    } else {
        "live, not judged"
    };
    let rows = [
        ("definitely lost", loss.definite),
        ("indirectly lost", loss.indirect),
        ("possibly lost", loss.possible),
        (reachable, loss.reachable),
        ("suppressed", loss.suppressed),
    ];
    let column = |title: &str, of: fn(&KindTotals) -> u64| {
        let widest = rows.iter().map(|(_, t)| quantity::count(of(t)).len()).max();
        widest.unwrap_or(0).max(title.len())
    };
    let bytes_width = column("bytes", |t| t.bytes);
    let blocks_width = column("blocks", |t| t.blocks);
    let title = match process.coverage.sampled_every_bytes {
        Some(_) => "Leak summary (est.)",
        None => "Leak summary",
    };
    let head = format!(
        "{title:<19}  {:>bytes_width$}  {:>blocks_width$}",
        "bytes", "blocks"
    );
    let head = page.paint.bold(&head);
    page.line(&head)?;
    for (i, (name, totals)) in rows.iter().enumerate() {
        let row = format!(
            "  {name:<17}  {:>bytes_width$}  {:>blocks_width$}",
            quantity::count(totals.bytes),
            quantity::count(totals.blocks)
        );
        let row = match i {
            _ if totals.blocks == 0 => page.paint.dim(&row),
            0 | 1 => page.paint.alarm(&row),
            2 => page.paint.warn(&row),
            _ => row,
        };
        page.line(&row)?;
    }
    Ok(())
}

/// Heap totals.
pub(super) fn heap(page: &mut Page<'_>, process: &ProcessReport) -> io::Result<()> {
    let heap = &process.heap;
    if heap.uncounted {
        return page.paragraph(
            0,
            2,
            &format!(
                "Heap: {} in {} live (usable bytes){}",
                quantity::bytes(heap.live_bytes),
                quantity::counted(heap.live_blocks, "block"),
                process.watched.map_or(String::new(), changed),
            ),
        );
    }
    page.paragraph(
        0,
        2,
        &format!(
            "Heap: {}, {}, {} allocated, {} at the peak, {} in {} live at the end",
            quantity::counted(heap.allocations, "allocation"),
            quantity::counted(heap.frees, "free"),
            quantity::bytes(heap.allocated_bytes),
            quantity::bytes(heap.peak_bytes),
            quantity::bytes(heap.live_bytes),
            quantity::counted(heap.live_blocks, "block"),
        ),
    )
}

/// Where the resident set is, largest part first.
pub(super) fn residence(page: &mut Page<'_>, residence: &Residence) -> io::Result<()> {
    let r = residence;
    let retained = &r.retained;
    let of_malloc = retained.total().saturating_sub(retained.pools);
    let mut parts = vec![
        ("blocks still reachable", r.reachable),
        ("blocks definitely lost", r.definite),
        ("blocks indirectly lost", r.indirect),
        ("blocks possibly lost", r.possible),
        ("free, kept by malloc", of_malloc),
        ("free, in other pools", retained.pools),
        ("allocators' own tables", r.allocator),
        ("other anonymous memory", r.other_anonymous),
        ("stacks", r.stacks),
        ("files and code", r.files),
        ("shared memory", r.shared),
    ];
    parts.retain(|(_, bytes)| *bytes > 0);
    parts.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    let width = parts
        .iter()
        .map(|(_, bytes)| quantity::bytes(*bytes).len())
        .chain([quantity::bytes(r.rss).len()])
        .max()
        .unwrap_or(0);
    let head = page.paint.bold("Resident set");
    page.line(&format!(
        "{head}{:16}{:>width$}",
        "",
        quantity::bytes(r.rss)
    ))?;
    for (name, bytes) in parts {
        let share = quantity::percent(bytes, r.rss);
        let row = format!(
            "  {name:<24}  {:>width$}  {share:>6}",
            quantity::bytes(bytes)
        );
        let row = match name {
            "blocks definitely lost" | "blocks indirectly lost" => page.paint.alarm(&row),
            "blocks possibly lost" => page.paint.warn(&row),
            _ => row,
        };
        page.line(&row)?;
    }
    if of_malloc > 0 {
        page.paragraph(
            2,
            4,
            &format!(
                "malloc keeps {} in bins, {} in threads' caches, {} in fastbins and {} at the top \
                 of heaps; malloc_trim(3) would give back about {}",
                quantity::bytes(retained.bins),
                quantity::bytes(retained.caches),
                quantity::bytes(retained.fastbins),
                quantity::bytes(retained.top),
                quantity::bytes(r.trimmable),
            ),
        )?;
    }
    if r.swap > 0 {
        page.line(&format!(
            "  swapped out besides: {}",
            quantity::bytes(r.swap)
        ))?;
    }
    Ok(())
}

/// What happened to live bytes between looks.
fn changed(watched: Watched) -> String {
    let way = match watched.bytes {
        0 => return format!(", as many as {} before", duration::seconds(watched.seconds)),
        1.. => "more",
        _ => "less",
    };
    format!(
        ", {} {way} than {} before",
        quantity::bytes(watched.bytes.unsigned_abs()),
        duration::seconds(watched.seconds)
    )
}

/// How the blocks were found.
fn walked(check: &HeapCheck) -> String {
    let agrees = if check.agrees {
        "all sums agree with malloc's own"
    } else {
        "sums differ from malloc's own"
    };
    let mut heaps = quantity::counted(check.heaps, "heap");
    if check.mapped_blocks > 0 {
        heaps += &format!(
            " and {}",
            quantity::counted(check.mapped_blocks, "mapped block")
        );
    }
    let arenas = quantity::counted(check.arenas, "arena");
    let mut text = format!("{heaps} of {arenas} walked, {agrees}");
    for other in &check.others {
        text += &format!(
            ", and {} of {} with {}",
            quantity::counted(other.pieces, "arena"),
            other.allocator,
            quantity::counted(other.blocks, "block")
        );
        if other.unwalked_bytes > 0 {
            text += &format!(", but for {}", quantity::bytes(other.unwalked_bytes));
        }
    }
    text
}

/// What was seen and what was not.
pub(super) fn coverage(page: &mut Page<'_>, process: &ProcessReport) -> io::Result<()> {
    let c = &process.coverage;
    let mut clauses = Vec::new();
    match c.sampled_every_bytes {
        Some(every) => clauses.push(format!(
            "one allocation sampled about every {}: sizes and counts are estimates",
            quantity::bytes(every)
        )),
        None if process.heap.uncounted => clauses.extend(c.heap_check.as_ref().map(walked)),
        None if c.dropped_events == 0 => clauses.push("every allocation recorded".to_owned()),
        None => {}
    }
    if c.dropped_events > 0 {
        clauses.push(format!(
            "{} lost, so numbers may be too low",
            quantity::counted(c.dropped_events, "event")
        ));
    }
    let pause = duration::seconds(c.pause_seconds);
    clauses.push(match c.consistency {
        Consistency::Stopped if from_core(process) => "read from a core file".to_owned(),
        Consistency::Stopped => format!("all threads stopped for {pause} while memory was read"),
        Consistency::Forked => format!("a copy of the process read, which stopped it for {pause}"),
        Consistency::Racing => "threads ran while memory was read".to_owned(),
        Consistency::Dead => "the process was gone, no memory could be read".to_owned(),
    });
    if c.reachability {
        let r = &c.roots;
        let total = [r.globals, r.stacks, r.registers, r.mappings, r.declared]
            .iter()
            .fold(0u64, |sum, part| sum.saturating_add(*part));
        let mut parts = vec![
            format!("globals {}", quantity::bytes(r.globals)),
            format!(
                "stacks {} of {}",
                quantity::bytes(r.stacks),
                quantity::counted(r.threads, "thread")
            ),
        ];
        if r.mappings > 0 {
            parts.push(format!("other mappings {}", quantity::bytes(r.mappings)));
        }
        if r.declared > 0 {
            parts.push(format!("declared {}", quantity::bytes(r.declared)));
        }
        clauses.push(format!(
            "{} of blocks searched from {} of roots ({})",
            quantity::bytes(c.scanned_block_bytes),
            quantity::bytes(total),
            parts.join(", ")
        ));
    } else {
        clauses.push("reachability not judged: live blocks are not told from leaks".to_owned());
    }
    if c.unreadable_bytes > 0 {
        clauses.push(format!(
            "{} could not be read",
            quantity::bytes(c.unreadable_bytes)
        ));
    }
    page.paragraph(0, 2, &format!("Coverage: {}", clauses.join("; ")))
}

/// Which suppressions hid what, and which hid nothing.
pub(super) fn suppressions(page: &mut Page<'_>, process: &ProcessReport) -> io::Result<()> {
    let mut used: Vec<_> = process
        .suppressions
        .iter()
        .filter(|s| s.hidden.blocks > 0)
        .collect();
    used.sort_by(|a, b| {
        let order = b.hidden.bytes.cmp(&a.hidden.bytes);
        order.then_with(|| (&a.name, &a.origin).cmp(&(&b.name, &b.origin)))
    });
    let used: Vec<String> = used
        .iter()
        .map(|s| {
            format!(
                "{} in {} by {} ({})",
                quantity::bytes(s.hidden.bytes),
                quantity::counted(s.hidden.blocks, "block"),
                escape(&s.name),
                escape(&s.origin)
            )
        })
        .collect();
    if !used.is_empty() {
        page.paragraph(0, 2, &format!("Suppressed: {}", used.join("; ")))?;
    }
    let unused: Vec<String> = process
        .suppressions
        .iter()
        .filter(|s| s.hidden.blocks == 0)
        .map(|s| format!("{} ({})", escape(&s.name), escape(&s.origin)))
        .collect();
    if !unused.is_empty() {
        page.paragraph(0, 2, &format!("Unused suppressions: {}", unused.join(", ")))?;
    }
    Ok(())
}

/// Notices, in the report's order.
pub(super) fn notices(page: &mut Page<'_>, process: &ProcessReport) -> io::Result<()> {
    for notice in &process.notices {
        let label = page.paint.warn("Note:");
        page.paragraph(0, 2, &format!("{label} {}", escape(&notice.message)))?;
    }
    Ok(())
}
