//! Reading a copy, which the process has made of itself: it is stopped for
//! that moment only.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use leakscope_memory::MemoryReader;
use leakscope_model::{Consistency, Notice, quantity};
use leakscope_proc::{ProcRoot, Process, cgroup};
use leakscope_tracee::{ForkError, Forked};

use super::usage::Usage;
use super::{
    Asked, BETWEEN_COLLECTIONS, BETWEEN_LOOKS, CheckError, CheckOptions, Found, LOOKS, Picture,
    error, judge,
};
use crate::Word;

/// Where control groups' limits are.
const GROUPS: &str = "/sys/fs/cgroup";
/// Memory and tasks that remain for others.
const SPARE_MEMORY: u64 = 64 << 20;
const SPARE_TASKS: u64 = 3;
/// Page tables take 8 bytes for each 4096, and a little on top.
const TABLES: u64 = 500;

/// Looks at a copy. Refused when the kernel does not make one, or when it
/// could take memory that others need: the inner error says why.
///
/// # Errors
/// When the process cannot be examined at all.
pub(super) fn forked(
    options: &CheckOptions,
    process: &Process,
    asked: &Asked<'_>,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<Result<Found, String>, CheckError> {
    let mut look = 1;
    let mut pause = Duration::ZERO;
    loop {
        if let Err(why) = has_room(process) {
            return Ok(Err(why));
        }
        let forked = match leakscope_tracee::fork(options.pid) {
            Ok(forked) => forked,
            Err(ForkError::Refused(why)) => return Ok(Err(why)),
            Err(e) => return Err(error(format!("failed to {e}"))),
        };
        pause += forked.pause();
        progress(Word {
            text: "reading memory",
            is_lasting: false,
        });
        let memory = forked.memory();
        let threads = forked.threads();
        let copy = ProcRoot::default().process(forked.pid());
        let usage = Usage::of_copy(process, &copy, memory.map(), threads);
        let sparse = usage.as_ref().map(|usage| usage.reader(memory));
        let memory: &dyn MemoryReader = match &sparse {
            Some(sparse) => sparse,
            None => memory,
        };
        let heaps = leakscope_heap::walk(memory, threads);
        if !heaps.is_consistent() && look < LOOKS {
            drop(sparse);
            pause += forked.end().pause;
            look += 1;
            sleep(BETWEEN_LOOKS);
            continue;
        }
        let judged = judge(&options.heuristics, memory, threads, heaps);
        if judged.objects.is_collecting && look < LOOKS {
            drop(sparse);
            pause += forked.end().pause;
            look += 1;
            sleep(BETWEEN_COLLECTIONS);
            continue;
        }
        let picture = Picture::of(memory, threads, judged, usage.as_ref(), look, asked);
        drop(sparse);
        return Ok(Ok(found(picture, forked, pause)));
    }
}

fn found(picture: Picture, forked: Forked, pause: Duration) -> Found {
    let skipped = forked.skipped().len() as u64;
    let ended = forked.end();
    let mut notices = Vec::new();
    if skipped > 0 {
        notices.push(crate::check::not_stopped(skipped));
    }
    if !ended.taken {
        notices.push(Notice {
            code: "copy-remains",
            message: "the copy that was read is dead, but remains in the process list until the \
                      process ends: no thread of it could be asked to take the notice"
                .to_owned(),
        });
    }
    Found {
        picture,
        consistency: match skipped {
            0 => Consistency::Forked,
            _ => Consistency::Racing,
        },
        pause: pause + ended.pause,
        settled: true,
        notices,
    }
}

/// Whether everybody lives on when the process writes to each of its pages
/// while the copy is there.
pub(super) fn has_room(process: &Process) -> Result<(), String> {
    let anonymous = process.status().ok().and_then(|s| s.anonymous_bytes);
    let anonymous = anonymous.unwrap_or(0);
    let needed = (anonymous + anonymous / TABLES).saturating_add(SPARE_MEMORY);
    let room = cgroup::room(&ProcRoot::default(), process, Path::new(GROUPS));
    if let Some(memory) = room.memory.filter(|memory| *memory < needed) {
        return Err(format!(
            "a copy may take {} where {} are left, should the process write to all of its memory \
             meanwhile",
            quantity::bytes(needed),
            quantity::bytes(memory)
        ));
    }
    match room.tasks {
        Some(tasks) if tasks < SPARE_TASKS => Err(format!(
            "its control group allows {} more threads and processes only",
            quantity::count(tasks)
        )),
        _ => Ok(()),
    }
}

/// What was found another way, and why.
pub(super) fn instead(why: &str, mut found: Found) -> Found {
    found.notices.push(Notice {
        code: "not-copied",
        message: format!("the process was stopped while it was read, not copied: {why}"),
    });
    found
}

/// The refusal, where nothing else was asked for.
pub(super) fn refused(why: String) -> CheckError {
    error(format!(
        "failed to copy the process: {why}; --mode stop stops it while it is read"
    ))
}
