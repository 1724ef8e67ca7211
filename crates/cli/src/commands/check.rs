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
        (Some(target), _) => match target_of(target)? {
            Target::Process(pid) => pid,
            Target::Core => {
                let options = CoreOptions {
                    path: target.into(),
                    sysroot: args.sysroot,
                    exe: args.exe,
                    heuristics: args.interior_heuristics,
                    content: !args.no_content,
                    holders,
                };
                let mut progress = Progress::new(delivery.progress, delivery.view.quiet);
                let report = leakscope_session::check_core(&options, &mut |w| progress.show(w));
                progress.clear();
                return deliver(&delivery, report.map_err(own)?);
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
            Mode::Fork => leakscope_session::Mode::Fork,
            Mode::Racing => leakscope_session::Mode::Racing,
        },
        heuristics: args.interior_heuristics,
        content: !args.no_content,
        show: delivery.view.kinds.list(),
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

/// What the argument names.
pub enum Target {
    /// A process, perhaps the first one of a container or service.
    Process(u32),
    /// A file.
    Core,
}

/// A process id, a file, or else a container or service.
///
/// # Errors
/// When it is none of these.
pub fn target_of(target: &OsStr) -> Result<Target, Failure> {
    let text = target.to_string_lossy();
    if let Ok(pid) = text.parse::<u64>()
        && text.len() < SHORT_ID
    {
        return match u32::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(Target::Process(pid)),
            _ => Err(Failure::own(format!("'{text}' is no process id"))),
        };
    }
    if Path::new(target).exists() {
        return Ok(Target::Core);
    }
    let found = leakscope_session::find_container(&text);
    match found.map_err(|e| Failure::own(e.to_string()))? {
        Some(pid) => Ok(Target::Process(pid)),
        None => Err(Failure::own(format!(
            "'{text}' is neither a process id nor a file, a container (by its id) or a service; \
             --name finds a process by its name"
        ))),
    }
}

/// Digits of a container's id as engines show it; they may all be decimal.
const SHORT_ID: usize = 12;
