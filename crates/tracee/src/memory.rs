//! The memory of a live process.

use crate::error::OpenError;
use crate::sys::is_gone;
use leakscope_memory::{Fault, FaultReason, MemoryMap, MemoryReader};
use leakscope_model::Addr;
use leakscope_proc::{Maps, ProcRoot, Process};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// The memory of a process that may be running.
///
/// Reading it never disturbs the process. What was read is the memory of the
/// very process (and program) that was opened: when it ends, when it starts
/// another program, or when its id is used again, reading fails with
/// [`FaultReason::Gone`]. `/proc/PID/mem`, held open, pins the address space
/// and so tells. `process_vm_readv` would be no faster, and it pins pages: of
/// one that the process shares with a forked relative, the kernel would make a
/// copy first (`FAULT_FLAG_UNSHARE`), so that looking takes memory.
#[derive(Debug)]
pub struct LiveMemory {
    pid: u32,
    start_time: u64,
    /// A live thread of the process: its first thread, or another one when
    /// that has already ended.
    via: Process,
    mem: File,
    map: MemoryMap,
    skipped_map_lines: usize,
}

/// How long a refusal may be a passing one: a process that starts another
/// program belongs to nobody while its credentials and memory are replaced.
pub(crate) const PATIENCE_WITH_EXEC: Duration = Duration::from_millis(100);
/// Between two tries.
const PAUSE_BETWEEN_TRIES: Duration = Duration::from_millis(1);

impl LiveMemory {
    /// Opens the memory of `pid` and takes its map.
    ///
    /// # Errors
    /// Gone (also: ended, but not yet waited for), NotPermitted, Io.
    pub fn open(pid: u32) -> Result<LiveMemory, OpenError> {
        let asked = Instant::now();
        loop {
            match LiveMemory::open_once(pid) {
                Err(OpenError::NotPermitted(_)) if asked.elapsed() < PATIENCE_WITH_EXEC => {
                    std::thread::sleep(PAUSE_BETWEEN_TRIES);
                }
                done => return done,
            }
        }
    }

    fn open_once(pid: u32) -> Result<LiveMemory, OpenError> {
        let process = ProcRoot::default().process(pid);
        let failed = |error| OpenError::from_proc(pid, error);
        let stat = process.stat().map_err(failed)?;
        if stat.is_kernel_thread() {
            return Err(OpenError::NotPermitted(Box::new(crate::Refusal::explain(
                pid, pid,
            ))));
        }
        let via = live_thread(&process).ok_or(OpenError::Gone(pid))?;
        let mem = File::open(via.file("mem")).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::Gone(pid),
            io::ErrorKind::PermissionDenied => {
                OpenError::NotPermitted(Box::new(crate::Refusal::explain(pid, via.id())))
            }
            _ if is_gone(&error) => OpenError::Gone(pid),
            _ => OpenError::Io(format!("open the memory of process {pid}"), error),
        })?;
        let mut memory = LiveMemory {
            pid,
            start_time: stat.start_time,
            via,
            mem,
            map: MemoryMap::default(),
            skipped_map_lines: 0,
        };
        memory.refresh()?;
        Ok(memory)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A thread of it that was alive when its memory was opened.
    pub(crate) fn live_thread(&self) -> &Process {
        &self.via
    }

    /// When the process started, in clock ticks since boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Lines of the map that could not be understood and were left out.
    pub fn skipped_map_lines(&self) -> usize {
        self.skipped_map_lines
    }

    /// Takes the map anew.
    ///
    /// # Errors
    /// Gone when the process has ended or runs another program by now;
    /// NotPermitted, Io.
    pub fn refresh(&mut self) -> Result<(), OpenError> {
        let maps = self.via.maps();
        let Maps { map, skipped } = maps.map_err(|e| OpenError::from_proc(self.pid, e))?;
        // Asked after the map was read: only then is it this program's map.
        if !self.is_alive() {
            return Err(OpenError::Gone(self.pid));
        }
        self.map = map;
        self.skipped_map_lines = skipped;
        Ok(())
    }

    /// False once the process has ended or runs another program.
    pub fn is_alive(&self) -> bool {
        // The kernel answers "no bytes" for an address space that is no
        // longer used, and an error for an address that is not mapped.
        !matches!(self.mem.read_at(&mut [0], 0), Ok(0))
    }

    /// Fills what it can; returns how much, and why it ended before the end.
    fn fill(&self, at: Addr, into: &mut [u8]) -> (usize, Option<FaultReason>) {
        let mut done = 0;
        loop {
            let rest = into.get_mut(done..).unwrap_or_default();
            if rest.is_empty() {
                return (done, None);
            }
            let Some(here) = at.checked_add(done as u64) else {
                return (done, Some(FaultReason::Unmapped));
            };
            match self.piece(here, rest) {
                Ok(0) => return (done, Some(FaultReason::Unmapped)),
                Ok(more) => done = done.saturating_add(more),
                Err(reason) => return (done, Some(reason)),
            }
        }
    }

    /// One system call's worth, at least one byte.
    fn piece(&self, at: Addr, into: &mut [u8]) -> Result<usize, FaultReason> {
        let wanted = self.readable_prefix(at, into.len());
        let into = into.get_mut(..wanted).unwrap_or_default();
        if into.is_empty() {
            return Err(FaultReason::Unmapped);
        }
        loop {
            return match self.mem.read_at(into, at.0) {
                Ok(0) => Err(FaultReason::Gone),
                Ok(got) => Ok(got),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ESRCH) => Err(FaultReason::Gone),
                    Some(libc::EACCES | libc::EPERM) => Err(FaultReason::Denied),
                    _ => Err(FaultReason::Unmapped),
                },
            };
        }
    }

    /// How many of `length` bytes from `at` lie before the first region that
    /// the process itself cannot read. The file reads those too (it forces
    /// its way, as debuggers need it), and `process_vm_readv` does not: both
    /// ways must agree. Addresses outside of the map may be newer than it.
    fn readable_prefix(&self, at: Addr, length: usize) -> usize {
        let regions = self.map.regions();
        let first = regions.partition_point(|r| r.range.end <= at);
        let end = at.0.saturating_add(length as u64);
        let blocked = regions
            .iter()
            .skip(first)
            .take_while(|r| r.range.start.0 < end)
            .find(|r| !r.read);
        let room = blocked.map_or(u64::MAX, |r| r.range.start.0.saturating_sub(at.0));
        usize::try_from(room).map_or(length, |room| room.min(length))
    }
}

impl MemoryReader for LiveMemory {
    fn map(&self) -> &MemoryMap {
        &self.map
    }

    fn read(&self, at: Addr, into: &mut [u8]) -> Result<(), Fault> {
        match self.fill(at, into) {
            (_, None) => Ok(()),
            (done, Some(reason)) => Err(Fault {
                at: Addr(at.0.saturating_add(done as u64)),
                reason,
            }),
        }
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        self.fill(at, into).0
    }
}

/// The first thread unless it has ended, otherwise the first that lives: a
/// process goes on after its main thread called `pthread_exit`.
fn live_thread(process: &Process) -> Option<Process> {
    let lives = |thread: &Process| thread.stat().is_ok_and(|s| !s.is_dead());
    if lives(process) {
        return Some(process.clone());
    }
    let tids = process.tasks().ok()?;
    tids.into_iter().map(|tid| process.task(tid)).find(lives)
}
