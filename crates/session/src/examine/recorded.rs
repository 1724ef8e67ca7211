//! A process in which a recorder is: what that knows is better than any walk
//! of heaps, as it has the call stacks.

use std::fs::OpenOptions;
use std::sync::Arc;
use std::sync::mpsc::channel;

use leakscope_analysis::records::Resolution;
use leakscope_model::{Notice, ProcessReport};
use leakscope_proc::Process;
use leakscope_wire::layout::{state, word};

use super::CheckOptions;
use super::environs::Facts;
use crate::assemble;
use crate::check;
use crate::clock::Clock;
use crate::image::Image;
use crate::options::{Follow, RunOptions, SymbolOptions};
use crate::segment::SharedSegment;
use crate::supervisor::Supervisor;

/// The name of the recorder's memory in the map.
const NAME: &[u8] = b"/memfd:leakscope";

/// What the recorder in `process` knows; `None` when there is none, or it is
/// that of a parent. The second: why one that is there cannot be read.
pub(super) fn recorded(
    options: &CheckOptions,
    process: &Process,
    facts: &Facts,
) -> Option<Result<ProcessReport, Notice>> {
    let map = process.maps().ok()?.map;
    let region = map
        .regions()
        .iter()
        .find(|r| r.shared && r.offset == 0 && r.path.starts_with(NAME))?;
    let name = format!(
        "map_files/{:x}-{:x}",
        region.range.start.0, region.range.end.0
    );
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(process.file(&name));
    let unreadable = |why: &dyn std::fmt::Display| {
        Some(Err(Notice {
            code: "recorder-unreadable",
            message: format!(
                "a recorder is in the process, but what it knows cannot be read ({why}): run \
                 leakscope as root to see call stacks"
            ),
        }))
    };
    let segment = match file.and_then(|file| SharedSegment::open(&file)) {
        Ok(segment) => segment,
        Err(why) => return unreadable(&why),
    };
    let own = process.status().ok()?.namespace_pids.last().copied();
    let is_its = own.map(u64::from) == Some(segment.reader().word(word::PID));
    let segment = Arc::new(segment);
    let (exe, argv) = (facts.exe.clone(), facts.argv.clone());
    let image = Image::found(process, segment, facts.parent, exe, argv);
    if !is_its || image.state() != state::RUNNING {
        // A child that nobody follows; or it is about to end.
        return None;
    }
    let (events, _arrivals) = channel();
    let supervisor = Supervisor::new(
        like_run(options),
        Vec::new(),
        Arc::new(Clock::default()),
        events,
    );
    let mut judgement = check::judge_foreign(&supervisor, &image);
    // Open descriptors are none that were never closed.
    judgement.fds.clear();
    let mut section = assemble::section(&supervisor, &image, judgement, None);
    section.notices.push(Notice {
        code: "recorded",
        message: "a recorder of 'leakscope run' is in the process: blocks and call stacks are \
                  what it knows"
            .to_owned(),
    });
    Some(Ok(section))
}

fn like_run(options: &CheckOptions) -> RunOptions {
    RunOptions {
        argv: Vec::new(),
        follow: Follow::None,
        max_depth: 0,
        sample: None,
        mmap_min: None,
        at_exec: false,
        free_sites: false,
        resolution: Resolution::High,
        heuristics: options.heuristics,
        suppressions: Vec::new(),
        builtin_suppressions: true,
        symbols: SymbolOptions::default(),
        show: options.show.clone(),
        symbolise: options.show.clone(),
    }
}
