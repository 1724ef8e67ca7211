//! Wrong frees, and descriptors that were never closed.

use std::io;

use leakscope_model::{ErrorCode, ErrorRecord, ProcessReport, quantity};

use super::page::Page;
use super::stack;
use crate::{Options, escape};

/// What people call an error.
pub(super) fn name(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::DoubleFree => "double free",
        ErrorCode::InvalidFree => "invalid free",
        ErrorCode::MismatchedFree => "mismatched free",
        ErrorCode::FdLeak => "descriptor never closed",
    }
}

/// Wrong frees with every stack that is known.
pub(super) fn wrong_frees(
    page: &mut Page<'_>,
    process: &ProcessReport,
    options: &Options,
) -> io::Result<()> {
    let errors = process
        .errors
        .iter()
        .filter(|e| e.code != ErrorCode::FdLeak);
    section(page, "Wrong frees", errors, options)
}

/// One line, or each place that opened descriptors when they are asked for.
pub(super) fn descriptors(
    page: &mut Page<'_>,
    process: &ProcessReport,
    options: &Options,
) -> io::Result<()> {
    let leaks = || {
        process
            .errors
            .iter()
            .filter(|e| e.code == ErrorCode::FdLeak)
    };
    if options.fds {
        return section(page, "Descriptors never closed", leaks(), options);
    }
    let open = leaks().fold(0u64, |sum, e| sum.saturating_add(e.count));
    if open > 0 {
        page.blank()?;
        let n = quantity::count(open);
        page.paragraph(
            0,
            2,
            &format!("Descriptors: {n} opened and never closed; --fds shows where"),
        )?;
    }
    Ok(())
}

fn section<'a>(
    page: &mut Page<'_>,
    title: &str,
    errors: impl Iterator<Item = &'a ErrorRecord> + Clone,
    options: &Options,
) -> io::Result<()> {
    let of = errors.clone().count();
    if of == 0 {
        return Ok(());
    }
    let shown = options.top.unwrap_or(of).min(of);
    page.blank()?;
    let title = page.paint.bold(title);
    page.line(&title)?;
    for (i, error) in errors.take(shown).enumerate() {
        let message = escape(&error.message);
        let text = match (error.code, error.count) {
            // Its message says all of it.
            (ErrorCode::FdLeak, _) => message.into_owned(),
            (code, 0 | 1) => format!("{}: {message}", page.paint.alarm(name(code))),
            (code, n) => {
                let code = page.paint.alarm(name(code));
                format!("{code}, {} times: {message}", quantity::count(n))
            }
        };
        page.paragraph(2, 4, &format!("{} of {of}: {text}", i + 1))?;
        stack::write(page, 6, &error.stack, options)?;
        for (label, frames) in [
            ("allocated", &error.allocated),
            ("first freed", &error.freed),
        ] {
            if !frames.is_empty() {
                page.line(&format!("    {label}"))?;
                stack::write(page, 6, frames, options)?;
            }
        }
    }
    if shown < of {
        let more = quantity::count((of - shown) as u64);
        page.line(&format!("  … {more} more not shown; --top 0 shows all"))?;
    }
    Ok(())
}
