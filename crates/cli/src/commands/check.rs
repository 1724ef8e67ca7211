//! `leakscope check`: a process becomes a report.

use std::os::unix::ffi::OsStrExt;

use leakscope_session::CheckOptions;

use crate::args::{self, Mode};
use crate::commands::delivery::{Delivery, Stream};
use crate::failure::Failure;
use crate::progress::Progress;

/// Examines the process and reports.
///
/// # Errors
/// When it cannot be examined, or the report not be written.
pub fn check(args: args::Check) -> Result<u8, Failure> {
    let delivery = Delivery::new(args.report, Stream::Stdout)?;
    let own = |e: leakscope_session::CheckError| Failure::own(e.to_string());
    let pid = match (&args.pid, &args.name) {
        (Some(pid), _) => number(pid)?,
        (None, Some(name)) => leakscope_session::find_process(name.as_bytes()).map_err(own)?,
        (None, None) => return Err(Failure::own("name a process: its PID, or --name")),
    };
    let options = CheckOptions {
        pid,
        mode: match args.mode {
            Mode::Auto => leakscope_session::Mode::Auto,
            Mode::Stop => leakscope_session::Mode::Stop,
            Mode::Racing => leakscope_session::Mode::Racing,
        },
        heuristics: args.interior_heuristics,
        content: !args.no_content,
        wait: args.wait,
        every: args.every.unwrap_or(args.wait / 4),
    };
    let mut progress = Progress::new(delivery.progress, delivery.view.quiet);
    let report = leakscope_session::check(&options, &mut |what| progress.show(what));
    progress.clear();
    let report = report.map_err(own)?;
    delivery.deliver(&report, "")?;
    let status = delivery.found(&report).unwrap_or(0);
    std::mem::forget(report);
    Ok(status)
}

fn number(text: &str) -> Result<u32, Failure> {
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(Failure::own(format!(
            "'{text}' is no process id; --name finds a process by its name (core files cannot be \
             checked in this version)"
        ))),
    }
}
