//! The recipe of `leakscope snapshot`: a process becomes a core file, to be
//! examined later, elsewhere, with any reader of cores.

use std::time::Duration;

use leakscope_memory::{MemoryReader, Region};
use leakscope_model::{Consistency, ThreadState};
use leakscope_proc::{MappedUsage, ProcRoot, Process};
use leakscope_tracee::{CoreImage, CoreTarget, CoreWritten, ForkError, UserRegisters, write_core};

use super::usage::Usage;
use super::{CheckError, Mode, environs, error, forked};
use crate::Word;

/// What was saved.
#[derive(Clone, Debug)]
pub struct Saved {
    /// How much was written.
    pub written: CoreWritten,
    /// How long the process was stopped.
    pub pause: Duration,
    /// How memory was read.
    pub consistency: Consistency,
    /// Why the process was stopped instead of copied, where `auto` had the
    /// choice.
    pub not_copied: Option<String>,
    /// Threads that could not be stopped; they are not in the file.
    pub skipped: usize,
}

/// Why nothing was saved.
#[derive(Debug)]
pub enum SnapshotError {
    /// The process could not be examined.
    Process(CheckError),
    /// The file could not be written.
    Write(std::io::Error),
}

/// Saves a running process.
///
/// # Errors
/// When it cannot be examined (it then runs on untouched), or the file cannot
/// be written.
pub fn snapshot(
    pid: u32,
    mode: Mode,
    to: &mut CoreTarget<'_>,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<Saved, SnapshotError> {
    let process = ProcRoot::default().process(pid);
    environs::refuse(&process).map_err(SnapshotError::Process)?;
    let failed =
        |e: &dyn std::fmt::Display| SnapshotError::Process(error(format!("failed to {e}")));
    let not_copied = match mode {
        Mode::Auto | Mode::Fork => match copy(&process) {
            Ok(forked) => {
                let copy = ProcRoot::default().process(forked.pid());
                let view = View {
                    memory: forked.memory(),
                    threads: forked.threads(),
                    registers: forked.registers(),
                };
                let usage = Usage::of_copy(&process, &copy, view.memory.map(), view.threads);
                let mapped = copy.smaps().unwrap_or_default();
                let written = view.write(&process, usage.as_ref(), &mapped, to, progress)?;
                let skipped = forked.skipped().len();
                return Ok(Saved {
                    written,
                    skipped,
                    pause: forked.pause() + forked.end().pause,
                    consistency: consistency(skipped, Consistency::Forked),
                    not_copied: None,
                });
            }
            Err(ForkError::Refused(why)) if mode == Mode::Auto => Some(why),
            Err(ForkError::Refused(why)) => {
                return Err(SnapshotError::Process(forked::refused(why)));
            }
            Err(e) => return Err(failed(&e)),
        },
        Mode::Stop | Mode::Racing => None,
    };
    let stopped = leakscope_tracee::stop_guarded(pid).map_err(|e| failed(&e))?;
    let view = View {
        memory: stopped.memory(),
        threads: stopped.threads(),
        registers: stopped.registers(),
    };
    let usage = Usage::of(&process, view.memory.map(), view.threads);
    let mapped = process.smaps().unwrap_or_default();
    let written = view.write(&process, usage.as_ref(), &mapped, to, progress)?;
    let skipped = stopped.skipped().len();
    Ok(Saved {
        written,
        skipped,
        pause: stopped.release(),
        consistency: consistency(skipped, Consistency::Stopped),
        not_copied,
    })
}

fn copy(process: &Process) -> Result<leakscope_tracee::Forked, ForkError> {
    forked::has_room(process).map_err(ForkError::Refused)?;
    leakscope_tracee::fork(process.id())
}

fn consistency(skipped: usize, otherwise: Consistency) -> Consistency {
    match skipped {
        0 => otherwise,
        _ => Consistency::Racing,
    }
}

/// A process at one moment.
struct View<'a> {
    memory: &'a dyn MemoryReader,
    threads: &'a [ThreadState],
    registers: &'a [(u32, UserRegisters)],
}

impl View<'_> {
    fn write(
        &self,
        process: &Process,
        usage: Option<&Usage>,
        mapped: &[MappedUsage],
        to: &mut CoreTarget<'_>,
        progress: &mut dyn FnMut(Word<'_>),
    ) -> Result<CoreWritten, SnapshotError> {
        let sparse = usage.map(|usage| usage.reader(self.memory));
        let memory: &dyn MemoryReader = match &sparse {
            Some(sparse) => sparse,
            None => self.memory,
        };
        let status = process.status().unwrap_or_default();
        let stat = process.stat().ok();
        let arguments = process.cmdline().unwrap_or_default().join(&b' ');
        let image = CoreImage {
            memory,
            threads: self.registers,
            pid: process.id(),
            parent: stat.as_ref().map_or(0, |s| s.parent),
            owner: (
                status.uids.map_or(0, |ids| ids[0]),
                status.gids.map_or(0, |ids| ids[0]),
            ),
            name: stat.as_ref().map_or(b"", |s| s.comm.as_slice()),
            arguments: &arguments,
            auxiliary: &process.auxv().unwrap_or_default(),
            is_kept: &|region| is_kept(region, mapped),
            untouched: &|at| sparse.as_ref().map_or(0, |sparse| sparse.untouched(at)),
        };
        let mut shown = None;
        let written = write_core(&image, to, &mut |done, all| {
            let percent = done.saturating_mul(100).checked_div(all).unwrap_or(100);
            if shown != Some(percent) {
                shown = Some(percent);
                progress(Word {
                    text: &format!("saving memory: {percent} %"),
                    is_lasting: false,
                });
            }
        });
        written.map_err(SnapshotError::Write)
    }
}

/// True for memory whose bytes no file has: what the process wrote.
fn is_kept(region: &Region, mapped: &[MappedUsage]) -> bool {
    if region.inode == 0 {
        // The kernel's clock pages cannot be read from outside.
        return !region.path.starts_with(b"[vvar");
    }
    if region.shared {
        let nowhere: [&[u8]; 4] = [b"/memfd:", b"/dev/shm/", b"/SYSV", b"/dev/zero"];
        return nowhere.iter().any(|p| region.path.starts_with(p));
    }
    let at = mapped.binary_search_by_key(&region.range.start, |m| m.range.start);
    let written = at
        .ok()
        .and_then(|at| mapped.get(at))
        .map(|m| m.anonymous + m.swap);
    region.write || written.is_some_and(|bytes| bytes > 0)
}
