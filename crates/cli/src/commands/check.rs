//! `leakscope check`: a process or a core file becomes a report.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use leakscope_model::Report;
use leakscope_session::{CheckOptions, CoreOptions, HolderOptions};

use crate::args::{self, Mode};
use crate::commands::delivery::{Delivery, Stream};
use crate::failure::Failure;
use crate::progress::Progress;

/// Examines the process and reports.
///
/// # Errors
/// When it cannot be examined, or the report not be written.
pub fn check(args: args::Check) -> Result<u8, Failure> {
    let holders = HolderOptions {
        kinds: args.report.show.list(),
        top: args.report.top,
        largest: args.largest,
        find: args.find.iter().map(|at| at.0).collect(),
    };
    let delivery = Delivery::new(args.report, Stream::Stdout)?;
    let own = |e: leakscope_session::CheckError| Failure::own(e.to_string());
    let pid = match (&args.pid, &args.name) {
        (Some(target), _) => match number(target)? {
            Some(pid) => pid,
            None => {
                let options = CoreOptions {
                    path: target.into(),
                    sysroot: args.sysroot,
                    exe: args.exe,
                    heuristics: args.interior_heuristics,
                    content: !args.no_content,
                    holders,
                };
                let report = leakscope_session::check_core(&options).map_err(own)?;
                return deliver(&delivery, report);
            }
        },
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
        holders,
    };
    let mut progress = Progress::new(delivery.progress, delivery.view.quiet);
    let report = leakscope_session::check(&options, &mut |what| progress.show(what));
    progress.clear();
    deliver(&delivery, report.map_err(own)?)
}

fn deliver(delivery: &Delivery, report: Report) -> Result<u8, Failure> {
    delivery.deliver(&report, "")?;
    let status = delivery.found(&report).unwrap_or(0);
    // Taking millions of names apart one by one would be waiting for nothing.
    std::mem::forget(report);
    Ok(status)
}

/// A process id; `None` for the name of a file.
fn number(target: &OsStr) -> Result<Option<u32>, Failure> {
    let text = target.to_string_lossy();
    match text.parse::<u64>() {
        Ok(pid) => match u32::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(Some(pid)),
            _ => Err(Failure::own(format!("'{text}' is no process id"))),
        },
        Err(_) if Path::new(target).exists() => Ok(None),
        Err(_) => Err(Failure::own(format!(
            "'{text}' is neither a process id nor a file; --name finds a process by its name"
        ))),
    }
}
