//! Loss records and mapping records.

use std::io;

use leakscope_model::{Content, Leak, LossKind, MappingLeak, ProcessReport, quantity};

use super::holders;
use super::page::Page;
use super::stack;
use crate::options::{selected, total_blocks, total_bytes};
use crate::{Options, duration, escape};

/// Free sites shown for a record; more of them are summed up by their shares.
const FREE_SITES: usize = 3;
/// Rows of 16 bytes shown of a block.
const PREVIEW_ROWS: usize = 4;
/// Members of a cycle that are named.
const CYCLE_MEMBERS: usize = 6;

/// The shown records, largest first, as the report orders them.
pub(super) fn records(
    page: &mut Page<'_>,
    process: &ProcessReport,
    options: &Options,
) -> io::Result<()> {
    let of = selected(process, options).count();
    let shown = options.top.unwrap_or(of).min(of);
    for (i, leak) in selected(process, options).take(shown).enumerate() {
        page.blank()?;
        record(page, process, leak, (i + 1, of), options)?;
    }
    if shown < of {
        let (mut bytes, mut blocks) = (0u64, 0u64);
        for leak in selected(process, options).skip(shown) {
            bytes = bytes.saturating_add(total_bytes(leak));
            blocks = blocks.saturating_add(total_blocks(leak));
        }
        page.blank()?;
        page.paragraph(
            0,
            2,
            &format!(
                "… {} not shown ({} in {}); --top 0 shows all",
                quantity::counted((of - shown) as u64, "more record"),
                quantity::bytes(bytes),
                quantity::counted(blocks, "block")
            ),
        )?;
    }
    Ok(())
}

fn record(
    page: &mut Page<'_>,
    process: &ProcessReport,
    leak: &Leak,
    (nth, of): (usize, usize),
    options: &Options,
) -> io::Result<()> {
    let bytes = match &leak.estimate {
        Some(e) => format!(
            "about {} ± {} bytes",
            quantity::count(total_bytes(leak)),
            quantity::count(e.bytes_standard_error.max(0.0).round() as u64)
        ),
        None => quantity::counted(total_bytes(leak), "byte"),
    };
    let mut head = format!("{nth} of {of}: {}", page.paint.bold(&bytes));
    let blocks = quantity::counted(total_blocks(leak), "block");
    if leak.indirect.blocks > 0 {
        head += &format!(
            " ({} direct + {} indirect) in {blocks} ({} + {})",
            quantity::count(leak.bytes),
            quantity::count(leak.indirect.bytes),
            quantity::count(leak.blocks),
            quantity::count(leak.indirect.blocks)
        );
    } else {
        head += &format!(" in {blocks}");
    }
    let judged = process.coverage.reachability;
    let kind = match leak.kind {
        LossKind::Definite => page.paint.alarm("definitely lost"),
        LossKind::Indirect => page.paint.alarm("indirectly lost"),
        LossKind::Possible => page.paint.warn("possibly lost"),
        LossKind::Reachable if judged => "still reachable".to_owned(),
        LossKind::Reachable => "live at the end".to_owned(),
    };
    let (whole, name) = whole(process, leak);
    let share = quantity::percent(total_bytes(leak), whole);
    let id = page.paint.dim(&format!("[{}]", escape(&leak.id)));
    head += &format!(", {kind}, {share} of all {name}  {id}");
    page.paragraph(0, 4, &head)?;
    if let Some(e) = &leak.estimate {
        let samples = quantity::counted(e.samples, "sampled block");
        page.line(&format!("    estimated from {samples}"))?;
    }
    if let Some(name) = &leak.type_name {
        page.line(&format!("    type: {}", escape(name)))?;
    }
    if leak.cycle {
        cycle(page, leak)?;
    }
    if let Some(content) = &leak.content {
        grew(page, process, leak)?;
        if let Some(holder) = &leak.holder {
            holders::held_by(page, holder)?;
        }
        return holds(page, leak, content);
    }
    stack::write(page, 4, &leak.stack, options)?;
    freed_by(page, leak, options)
}

/// What a record is a share of.
fn whole(process: &ProcessReport, leak: &Leak) -> (u64, &'static str) {
    let loss = &process.loss;
    match leak.kind {
        LossKind::Reachable if process.coverage.reachability => (loss.reachable.bytes, "reachable"),
        LossKind::Reachable => (loss.reachable.bytes, "live"),
        _ => {
            let lost = [loss.definite, loss.indirect, loss.possible];
            let sum = |sum: u64, t: &leakscope_model::KindTotals| sum.saturating_add(t.bytes);
            (lost.iter().fold(0, sum), "lost")
        }
    }
}

/// How the record changed from the first look to the last.
fn grew(page: &mut Page<'_>, process: &ProcessReport, leak: &Leak) -> io::Result<()> {
    let (Some(growth), Some(watched)) = (leak.growth, process.watched) else {
        return Ok(());
    };
    let amount = quantity::bytes(growth.bytes.unsigned_abs());
    let blocks = quantity::counted(growth.blocks.unsigned_abs(), "block");
    let time = duration::seconds(watched.seconds);
    let text = match growth.bytes {
        0 => format!("unchanged in {time}"),
        1.. if growth.rising => format!("rose by {amount} ({blocks}) in {time}, look by look"),
        1.. => format!("grew by {amount} ({blocks}) in {time}"),
        _ => format!("shrank by {amount} ({blocks}) in {time}"),
    };
    let text = if growth.rising {
        page.paint.warn(&text)
    } else {
        text
    };
    page.paragraph(4, 6, &text)
}

/// What blocks hold that have no call stack.
fn holds(page: &mut Page<'_>, leak: &Leak, content: &Content) -> io::Result<()> {
    page.paragraph(4, 6, &format!("holds: {}", escape(&content.shape)))?;
    let examples: Vec<String> = leak.addresses.iter().map(|a| a.to_string()).collect();
    let more = if leak.blocks > examples.len() as u64 {
        ", …"
    } else {
        ""
    };
    page.paragraph(4, 6, &format!("at: {}{more}", examples.join(", ")))?;
    for (i, row) in content.preview.chunks(16).take(PREVIEW_ROWS).enumerate() {
        let hex: Vec<String> = row.iter().map(|b| format!("{b:02x}")).collect();
        let (low, high) = hex.split_at(hex.len().min(8));
        let printable = |b: &u8| b.is_ascii_graphic() || *b == b' ';
        let text: String = row
            .iter()
            .map(|b| if printable(b) { char::from(*b) } else { '.' })
            .collect();
        let line = format!("{:<23}  {:<23}  |{text}|", low.join(" "), high.join(" "));
        page.line(&page.paint.dim(&format!("      +{:02x}  {line}", 16 * i)))?;
    }
    Ok(())
}

fn cycle(page: &mut Page<'_>, leak: &Leak) -> io::Result<()> {
    let mut members: Vec<String> = leak
        .cycle_members
        .iter()
        .take(CYCLE_MEMBERS)
        .map(|m| escape(m).into_owned())
        .collect();
    if leak.cycle_members.len() > CYCLE_MEMBERS {
        members.push("…".to_owned());
    }
    let text = if members.is_empty() {
        "these blocks hold each other in a cycle".to_owned()
    } else {
        format!(
            "these blocks hold each other in a cycle; allocated by {} → back to the first",
            members.join(" → ")
        )
    };
    page.paragraph(4, 6, &text)
}

/// Where other blocks of the same place were freed: the call that is missing.
fn freed_by(page: &mut Page<'_>, leak: &Leak, options: &Options) -> io::Result<()> {
    if !options.free_sites || matches!(leak.kind, LossKind::Indirect | LossKind::Reachable) {
        return Ok(());
    }
    let lifetime = leak.lifetime.map_or(String::new(), |l| {
        format!(", typical lifetime {}", duration::lifetime(l.mean_seconds))
    });
    if leak.free_sites.is_empty() {
        return match leak.lifetime {
            Some(l) if l.samples > 0 => page.paragraph(
                4,
                6,
                &format!(
                    "other blocks of this place were freed ({}{lifetime})",
                    quantity::counted(l.samples, "sampled free")
                ),
            ),
            _ => page.line("    never freed anywhere (in what was seen)"),
        };
    }
    let sum = leak
        .free_sites
        .iter()
        .fold(0u64, |sum, s| sum.saturating_add(s.count));
    let all = leak.lifetime.map_or(sum, |l| l.samples.max(sum));
    for (i, site) in leak.free_sites.iter().take(FREE_SITES).enumerate() {
        let by = match (options.own_frame)(&site.stack) {
            Some(frame) => stack::describe(frame, options, page.room(6)),
            None => "(no call stack)".to_owned(),
        };
        let share = quantity::percent((site.share.clamp(0.0, 1.0) * 1e6) as u64, 1_000_000);
        let text = if i == 0 {
            let frees = quantity::counted(all, "sampled free");
            let seen = match all {
                0 | 1 => frees,
                _ => format!("{share} of {frees}"),
            };
            format!(
                "usually freed by: {} — {seen}{lifetime}",
                page.paint.place(&by)
            )
        } else {
            format!("also freed by: {by} — {share}")
        };
        page.paragraph(4, 6, &text)?;
    }
    Ok(())
}

/// The mapping records that the options ask for.
pub(super) fn shown_mappings<'a>(
    process: &'a ProcessReport,
    options: &Options,
) -> impl Iterator<Item = &'a MappingLeak> {
    let mut kinds = options.kinds;
    kinds.reachable |= !process.coverage.reachability;
    let min_bytes = options.min_bytes;
    process
        .mappings
        .iter()
        .filter(move |m| kinds.has(m.kind) && m.bytes >= min_bytes)
}

/// Application mappings: a section of their own, never part of the summary.
pub(super) fn mappings(
    page: &mut Page<'_>,
    process: &ProcessReport,
    options: &Options,
) -> io::Result<()> {
    let of = shown_mappings(process, options).count();
    if of == 0 {
        return Ok(());
    }
    let shown = options.top.unwrap_or(of).min(of);
    page.blank()?;
    let title = page.paint.bold("Mappings");
    page.line(&format!("{title} (mmap; not part of the summary)"))?;
    for (i, mapping) in shown_mappings(process, options).take(shown).enumerate() {
        let kind = match mapping.kind {
            LossKind::Definite => page.paint.alarm("definitely lost"),
            LossKind::Indirect => page.paint.alarm("indirectly lost"),
            LossKind::Possible => page.paint.warn("possibly lost"),
            LossKind::Reachable if process.coverage.reachability => "still reachable".to_owned(),
            LossKind::Reachable => "mapped at the end".to_owned(),
        };
        page.paragraph(
            2,
            4,
            &format!(
                "{} of {of}: {} in {}, {kind}",
                i + 1,
                page.paint.bold(&quantity::counted(mapping.bytes, "byte")),
                quantity::counted(mapping.count, "mapping"),
            ),
        )?;
        stack::write(page, 6, &mapping.stack, options)?;
    }
    if shown < of {
        let more = quantity::counted((of - shown) as u64, "more mapping record");
        page.line(&format!("  … {more} not shown; --top 0 shows all"))?;
    }
    Ok(())
}
