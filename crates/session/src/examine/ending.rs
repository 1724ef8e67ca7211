//! A program that no recorder can enter, looked at when it is about to end.

use std::time::Instant;

use leakscope_analysis::mark::Heuristics;
use leakscope_memory::MemoryReader;
use leakscope_model::{Consistency, ProcessReport, ThreadState};
use leakscope_proc::ProcRoot;
use leakscope_tracee::LiveMemory;

use super::usage::Usage;
use super::{Asked, Found, HolderOptions, Picture, environs, judge, section};

/// What its heaps tell. All threads stand still before their ends.
pub(crate) fn at_end(
    heuristics: &Heuristics,
    memory: &LiveMemory,
    threads: &[ThreadState],
) -> ProcessReport {
    let began = Instant::now();
    let process = ProcRoot::default().process(memory.pid());
    let facts = environs::facts(&process);
    let usage = Usage::of(&process, memory.map(), threads);
    let sparse = usage.as_ref().map(|usage| usage.reader(memory));
    let memory: &dyn MemoryReader = match &sparse {
        Some(sparse) => sparse,
        None => memory,
    };
    let heaps = leakscope_heap::walk(memory, threads);
    let judged = judge(heuristics, memory, threads, heaps);
    let asked = Asked {
        holders: &HolderOptions::default(),
        before: None,
    };
    let found = Found {
        picture: Picture::of(memory, threads, judged, usage.as_ref(), 1, &asked),
        consistency: Consistency::Stopped,
        pause: began.elapsed(),
        settled: true,
        notices: Vec::new(),
    };
    section(true, facts, found)
}
