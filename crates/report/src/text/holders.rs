//! Who holds a block: a root and the way from it.

use std::io;

use leakscope_model::{
    Find, Holder, HolderRoot, HolderStep, Largest, LossKind, Place, PlaceKind, PointedBy,
    Retaining, RootKind, quantity,
};

use super::page::Page;
use crate::escape;

/// The line below a record.
pub(super) fn held_by(page: &mut Page<'_>, holder: &Holder) -> io::Result<()> {
    let label = if holder.share >= 1.0 {
        "held by:".to_owned()
    } else {
        let share = quantity::percent((holder.share.clamp(0.0, 1.0) * 1e6) as u64, 1_000_000);
        format!("held by (about {share} of them):")
    };
    let root = page.paint.place(&root(&holder.root));
    let way = way(holder.skipped, &holder.path);
    page.paragraph(4, 6, &format!("{label} {root}{way}"))
}

/// What retains most: kinds, then single blocks.
pub(super) fn largest(page: &mut Page<'_>, largest: &Largest) -> io::Result<()> {
    let parts = [
        (
            "What would be freed with each block of a kind, summed up",
            &largest.kinds,
        ),
        ("What would be freed with one block", &largest.blocks),
    ];
    for (title, entries) in parts {
        page.blank()?;
        let title = page.paint.bold(title);
        page.line(&title)?;
        for (i, entry) in entries.iter().enumerate() {
            retaining(page, i + 1, entry)?;
        }
    }
    Ok(())
}

fn retaining(page: &mut Page<'_>, nth: usize, entry: &Retaining) -> io::Result<()> {
    let all = page.paint.bold(&quantity::bytes(entry.retained.bytes));
    let blocks = quantity::counted(entry.retained.blocks, "block");
    let what = match &entry.type_name {
        Some(name) => format!("type {}", escape(name)),
        None => escape(&entry.shape).into_owned(),
    };
    let size = quantity::bytes(entry.own.bytes);
    let own = match entry.address {
        Some(at) => format!("at {at}, {size} of its own"),
        None => format!("{size} in {}", quantity::counted(entry.own.blocks, "block")),
    };
    page.paragraph(
        2,
        4,
        &format!("{nth}: {all} in {blocks} with {what} ({own})"),
    )?;
    match &entry.holder {
        Some(holder) => held_by(page, holder),
        None => Ok(()),
    }
}

/// What is at an address, and who points to it.
pub(super) fn found(page: &mut Page<'_>, find: &Find) -> io::Result<()> {
    page.blank()?;
    let label = page.paint.bold(&format!("Address {}:", find.address));
    page.paragraph(0, 2, &format!("{label} {}", place(&find.place)))?;
    let all = quantity::counted(find.pointer_count, "pointer");
    let listed = find.pointers.len() as u64;
    match find.pointer_count {
        0 if find.place.kind == PlaceKind::Unmapped => {}
        0 => page.line("  nothing points there")?,
        n if n > listed => page.line(&format!("  {all} to it, of which {listed} are:"))?,
        _ => page.line(&format!("  {all} to it:"))?,
    }
    for pointer in &find.pointers {
        let (from, into) = match pointer {
            PointedBy::Root { root: from, into } => (root(from), *into),
            PointedBy::Block(step) => {
                let plain = HolderStep {
                    into: 0,
                    ..step.clone()
                };
                let offset = step.offset.unwrap_or(0);
                let from = format!("{} at {} +{offset}", what(&plain), step.address);
                (from, step.into)
            }
        };
        let into = match into {
            0 => String::new(),
            into => format!(", to its +{into}"),
        };
        page.paragraph(4, 6, &format!("{from}{into}"))?;
    }
    match &find.holder {
        Some(holder) => {
            let from = page.paint.place(&root(&holder.root));
            let way = way(holder.skipped, &holder.path);
            page.paragraph(2, 4, &format!("held by: {from}{way}"))
        }
        None => Ok(()),
    }
}

/// An address in words.
fn place(place: &Place) -> String {
    let module = place.module.as_deref().map(|m| {
        let name = m.rsplit('/').next().unwrap_or(m);
        format!(" of {}", escape(name))
    });
    let module = module.unwrap_or_default();
    let start = place.start.map(|s| format!(" at {s}")).unwrap_or_default();
    let bytes = quantity::counted(place.bytes.unwrap_or(0), "byte");
    let into = match place.offset {
        Some(0) | None => "the start of".to_owned(),
        Some(n) => format!("{} into", quantity::counted(n, "byte")),
    };
    let inside = inside(place.offset.unwrap_or(0));
    let thread = place.thread.map(|t| format!(" of thread {t}"));
    let thread = thread.unwrap_or_default();
    let name = place.mapping.as_deref().map(|m| format!(" {}", escape(m)));
    let name = name.unwrap_or_default();
    let offset = place.module_offset.unwrap_or(0);
    match place.kind {
        PlaceKind::Block => {
            let what = match (&place.type_name, &place.shape) {
                (Some(name), _) => format!("type {}", escape(name)),
                (None, Some(shape)) => escape(shape).into_owned(),
                (None, None) => "a block".to_owned(),
            };
            let loss = match place.loss {
                Some(LossKind::Definite) => ", definitely lost",
                Some(LossKind::Indirect) => ", indirectly lost",
                Some(LossKind::Possible) => ", possibly lost",
                Some(LossKind::Reachable) => ", still reachable",
                None => "",
            };
            format!("{into} a block of {bytes}{start} ({what}){loss}")
        }
        PlaceKind::Free => format!(
            "{into} {bytes}{start} that are free, kept by malloc in {}",
            place.kept.unwrap_or("its lists")
        ),
        PlaceKind::Allocator => "malloc's own: the header of a chunk, or its tables".to_owned(),
        PlaceKind::Global => match &place.variable {
            Some(name) => format!("global variable {}{inside}{module}", escape(name)),
            None => format!("global data{module} at {offset:#x}"),
        },
        PlaceKind::Code => match (&place.variable, &place.function) {
            (Some(name), _) => format!("constant {}{inside}{module}", escape(name)),
            (_, Some(name)) => format!("in the code of {}{module}", escape(name)),
            _ => format!("code or constants{module} at {offset:#x}"),
        },
        PlaceKind::Stack if place.left_over => {
            format!("below the stack{thread}: left over from calls that are done")
        }
        PlaceKind::Stack => {
            let function = place.function.as_deref();
            let function = function.map(|f| format!(", in {}", escape(f)));
            format!("on the stack{thread}{}", function.unwrap_or_default())
        }
        PlaceKind::ThreadLocal => format!("in the thread-local storage{thread}"),
        PlaceKind::Mapping => format!("{into} the mapping{name} of {bytes}{start}"),
        PlaceKind::Unmapped => "nothing is mapped there".to_owned(),
    }
}

/// A root in words.
pub(super) fn root(root: &HolderRoot) -> String {
    let module = root.module.as_deref().map(|m| {
        let name = m.rsplit('/').next().unwrap_or(m);
        escape(name).into_owned()
    });
    let of_module = module
        .as_ref()
        .map_or(String::new(), |m| format!(" of {m}"));
    let address = root.address.map(|a| format!(" at {a}")).unwrap_or_default();
    let thread = match root.thread {
        Some(thread) => format!(" of thread {thread}"),
        None => String::new(),
    };
    match root.kind {
        RootKind::Global => match (&root.variable, root.module_offset) {
            (Some(name), _) => {
                let inside = inside(root.offset.unwrap_or(0));
                format!("global variable {}{inside}{of_module}", escape(name))
            }
            (None, Some(offset)) => format!("global data{of_module} at {offset:#x}"),
            (None, None) => format!("global data{address}"),
        },
        RootKind::Stack => {
            let function = root.function.as_deref();
            let function = function.map(|f| format!(", in {}", escape(f)));
            let whose = if thread.is_empty() { &address } else { &thread };
            format!("stack{whose}{}", function.unwrap_or_default())
        }
        RootKind::ThreadLocal => match &root.variable {
            Some(name) => {
                let inside = inside(root.offset.unwrap_or(0));
                format!(
                    "thread-local variable {}{inside}{of_module}{thread}",
                    escape(name)
                )
            }
            None => format!("thread-local storage{thread}"),
        },
        RootKind::Register => format!("a register{thread}"),
        RootKind::Mapping => {
            let name = root.mapping.as_deref().map(|m| format!(" {}", escape(m)));
            format!("mapping{}{address}", name.unwrap_or_default())
        }
        RootKind::Declared => format!("a region that the program declared{address}"),
    }
}

fn inside(offset: u64) -> String {
    match offset {
        0 => String::new(),
        offset => format!("+{offset}"),
    }
}

/// The blocks behind a root; equal steps in a row are told once.
pub(super) fn way(skipped: u64, path: &[HolderStep]) -> String {
    let mut text = left_out(skipped);
    let Some((last, before)) = path.split_last() else {
        return text;
    };
    let mut rest = before;
    while let Some(first) = rest.first() {
        // Before a gap it is not known where the pointer is.
        let alike = |step: &&HolderStep| {
            let offset = step.offset.is_none() || step.offset == first.offset;
            what(step) == what(first) && offset
        };
        let run = rest.iter().take_while(alike).count().max(1);
        let (done, more) = rest.split_at(run.min(rest.len()));
        // A gap between blocks that are alike is most likely of their kind.
        let gap = done.iter().fold(0, |sum, s| s.skipped.saturating_add(sum));
        let ends = done.last().is_some_and(|s| s.skipped > 0);
        let times = match (run as u64).saturating_add(if ends { 0 } else { gap }) {
            1 => String::new(),
            n if gap > 0 && !ends => format!("about {} × ", quantity::count(n)),
            n => format!("{n} × "),
        };
        let offset = first.offset.map(|o| format!(" +{o}")).unwrap_or_default();
        text += &format!(" → {times}{}{offset}", what(first));
        if ends {
            text += &left_out(gap);
        }
        rest = more;
    }
    let into = match last.into {
        0 => String::new(),
        into => format!("{into} bytes into "),
    };
    text + &format!(" → {into}the block at {}", last.address)
}

fn left_out(skipped: u64) -> String {
    match skipped {
        0 => String::new(),
        n => format!(" → … {}", quantity::counted(n, "more block")),
    }
}

fn what(step: &HolderStep) -> String {
    let what = match &step.type_name {
        Some(name) => escape(name).into_owned(),
        None => quantity::counted(step.bytes, "byte"),
    };
    match step.into {
        0 => what,
        into => format!("{what} (at its +{into})"),
    }
}
