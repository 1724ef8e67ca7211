//! A copy of a process, made by the process itself in an instant and never
//! run: its memory as it was at that moment, to be read at leisure.
//!
//! All threads are stopped, one of them makes a `clone` for us (`inject.rs`),
//! and all go on. The kernel copies page tables only; a page is copied when
//! the process writes to it while the copy lives. The copy is held at its very
//! first stop, shares the descriptors (so that what the process closes is
//! closed), and is killed with us whatever happens. When it is no longer
//! wanted, one thread of the process makes a `wait4` for us: nothing remains.

mod memory;

use crate::core_write::UserRegisters;
use crate::error::StopError;
use crate::gather::Gathering;
use crate::gather::call::{Made, Means, NoCall};
use crate::guard::{
    self, Guard, NoReply, bytes, nanos, put, put_map, put_registers, put_text, put_threads, word,
};
use crate::inject::code::{self, Code};
use crate::inject::{Call, Step, await_halt};
use crate::memory::LiveMemory;
use crate::stopped::take_ended_threads;
use crate::sys::ptrace::{self, DIE_WITH_TRACER, EVENT_STOP, Resume};
use crate::sys::wait::{self, Change};
use crate::sys::{block_signals, kill};
use leakscope_memory::ranges::{joined, subtract};
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{Range, ThreadState};
use leakscope_proc::ProcRoot;
use memory::ForkedMemory;
use std::cell::Cell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Most memory that is copied by hand, because a copied process does not have
/// it (`MADV_DONTFORK`, `MADV_WIPEONFORK`), bytes.
const BY_HAND: u64 = 64 << 20;
/// How long a thread is looked for that takes the copy's end, and the time
/// between two looks.
const TAKING: Duration = Duration::from_secs(1);
const BETWEEN: Duration = Duration::from_millis(5);
/// Times that a copy is tried where signals come in between.
const TRIES: u32 = 10;
/// Threads that are asked each time.
const TAKERS: usize = 8;
/// How long the kernel may take to end the copy.
const END: Duration = Duration::from_secs(60);

/// Why no copy could be made. The process runs on unharmed, and may be
/// stopped instead.
#[derive(Debug)]
#[non_exhaustive]
pub enum ForkError {
    /// It cannot even be stopped.
    Stop(StopError),
    /// It can be stopped, but not be copied: a clause that says why.
    Refused(String),
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ForkError::Stop(error) => error.fmt(f),
            ForkError::Refused(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ForkError {}

impl From<StopError> for ForkError {
    fn from(error: StopError) -> ForkError {
        ForkError::Stop(error)
    }
}

/// Makes a copy of process `pid`, which is stopped for as long as the kernel
/// needs to copy its page tables (some ten milliseconds for each GiB).
///
/// Whether there is memory enough for what the process writes meanwhile is
/// the caller's to judge. A process of our own does it, which outlives the
/// death of this one for as long as it takes to leave nothing behind.
///
/// # Errors
/// As [`stop`](crate::stop); and refused when the process has seccomp filters
/// that cannot be suspended, waits for forks itself (`userfaultfd`), has a
/// shadow stack, or no thread of it is where it could make the call.
pub fn fork(pid: u32) -> Result<Forked, ForkError> {
    let guard = Guard::start(|line| match fork_here(pid) {
        Ok(forked) => {
            let mut message = Vec::new();
            put(&mut message, nanos(forked.pause()));
            put(&mut message, u64::from(forked.pid()));
            put_threads(&mut message, forked.threads(), forked.skipped());
            put_registers(&mut message, forked.registers());
            put_map(&mut message, forked.memory().map());
            let saved = &forked.picture.memory.saved;
            put(&mut message, saved.len() as u64);
            for (at, bytes) in saved {
                put(&mut message, *at);
                put_text(&mut message, bytes);
            }
            if line.found(&message) {
                line.wait();
            }
            line.ended(forked.end());
        }
        Err(error) => line.failed(&error),
    });
    let Ok(mut guard) = guard else {
        return fork_here(pid);
    };
    let reply = guard.reply(|from| {
        let pause = Duration::from_nanos(word(from)?);
        let copy = word(from)?;
        let (threads, skipped) = guard::threads(from)?;
        let registers = guard::registers(from)?;
        let map = guard::map(from)?;
        let saved = guard::list(from, |from| Ok((word(from)?, bytes(from, BY_HAND)?)))?;
        Ok((pause, copy, threads, skipped, registers, map, saved))
    });
    let (pause, copy, threads, skipped, registers, map, saved) = match reply {
        Ok(reply) => reply,
        Err(NoReply::Told(error)) => return Err(error),
        Err(NoReply::Unable) => return fork_here(pid),
    };
    let copy = LiveMemory::open(u32::try_from(copy).unwrap_or(0));
    let copy = copy.map_err(|_| ForkError::Refused("the copy was killed at once".to_owned()))?;
    Ok(Forked {
        picture: Picture {
            memory: ForkedMemory { map, copy, saved },
            threads,
            skipped,
            registers,
            pause,
        },
        tracer: Tracer::Process(guard),
    })
}

/// As [`fork`], by a thread of this process: when this process is killed while
/// it stops the threads, a blocked call of one of them may fail with `EINTR`.
///
/// # Errors
/// As [`fork`].
pub fn fork_here(pid: u32) -> Result<Forked, ForkError> {
    let (report, picture) = channel();
    let (release, released) = channel();
    let tracer = Builder::new()
        .name("leakscope-fork".to_owned())
        .spawn(move || trace(pid, &report, &released))
        .map_err(|e| StopError::Io(format!("start a thread to copy process {pid}"), e))?;
    let tracer = Tracer::Thread {
        release: Some(release),
        thread: Some(tracer),
    };
    loop {
        match picture.recv_timeout(LOOK) {
            Ok(picture) => {
                return picture.map(|picture| Forked { picture, tracer });
            }
            Err(RecvTimeoutError::Timeout) => take_ended_threads(pid),
            Err(RecvTimeoutError::Disconnected) => {
                let early = io::Error::other("the tracing thread ended early");
                return Err(StopError::Io(format!("copy process {pid}"), early).into());
            }
        }
    }
}

/// What the tracing thread hands over.
struct Picture {
    memory: ForkedMemory,
    threads: Vec<ThreadState>,
    skipped: Vec<u32>,
    registers: Vec<(u32, UserRegisters)>,
    pause: Duration,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ended {
    /// For how long a thread of the process was stopped for it.
    pub pause: Duration,
    /// False when a dead child remains until the process ends.
    pub taken: bool,
}

fn trace(pid: u32, report: &Sender<Result<Picture, ForkError>>, released: &Receiver<()>) -> Ended {
    // A handler of ours shall not run between two steps of theirs.
    block_signals();
    let mut gathering = Gathering::new(pid);
    let made = Copying::prepare(pid).and_then(|copying| {
        let mut tries = 1;
        let mut before = Duration::ZERO;
        loop {
            match copying.make(&mut gathering, &mut |_| ()) {
                Ok((mut picture, born)) => {
                    picture.pause += before;
                    return Ok((copying, picture, born));
                }
                Err(ForkError::Refused(_)) if copying.interrupted.take() && tries < TRIES => {}
                Err(error) => return Err(error),
            }
            before += gathering.release();
            std::thread::sleep(BETWEEN);
            gathering = Gathering::new(pid);
            tries += 1;
        }
    });
    match made {
        Ok((copying, picture, born)) => {
            if report.send(Ok(picture)).is_ok() {
                // A message or a dropped sender: both mean "end it".
                while let Err(RecvTimeoutError::Timeout) = released.recv_timeout(LOOK) {
                    gathering.release_rest();
                }
            }
            copying.end(born)
        }
        Err(error) => {
            // Let go before the error is told: who hears it may rely on the
            // process running.
            gathering.release();
            let _ = report.send(Err(error));
            Ended::default()
        }
    }
}

/// How often each of the two threads looks after what the other one cannot: a
/// tracing thread that is stuck, threads that could not be stopped and may
/// have come to their stop since.
const LOOK: Duration = Duration::from_millis(2);

/// The copy: its id for us, and for the process.
#[derive(Clone, Copy, Debug)]
struct Born {
    ours: u32,
    theirs: u64,
    /// The thread that made it.
    maker: u32,
}

/// What is known before anybody is stopped.
struct Copying {
    pid: u32,
    code: Code,
    is_filtered: bool,
    /// Mappings of which a copy has zeros only.
    wiped: Vec<Range>,
    writable: File,
    /// A signal came in between: trying again may help.
    interrupted: Cell<bool>,
}

impl Copying {
    fn prepare(pid: u32) -> Result<Copying, ForkError> {
        let refused = |why: &str| ForkError::Refused(why.to_owned());
        let process = ProcRoot::default().process(pid);
        let memory = LiveMemory::open(pid).map_err(StopError::from)?;
        let status = process.status().unwrap_or_default();
        if status.has_shadow_stack {
            return Err(refused("it runs with a shadow stack"));
        }
        let usage = process.smaps().unwrap_or_default();
        if usage.iter().any(|usage| usage.flags.userfault) {
            return Err(refused("it handles page faults itself (userfaultfd)"));
        }
        let wiped = usage.iter().filter(|usage| usage.flags.wiped_on_fork);
        Ok(Copying {
            pid,
            code: find_code(&memory)?,
            is_filtered: status.seccomp.unwrap_or(0) != 0,
            wiped: joined(wiped.map(|usage| usage.range).collect()),
            writable: writable(&memory)?,
            interrupted: Cell::new(false),
        })
    }

    /// Stops the process, copies it, and lets it go.
    fn make(
        &self,
        gathering: &mut Gathering,
        on_step: &mut dyn FnMut(Step),
    ) -> Result<(Picture, Born), ForkError> {
        let threads = gathering.stop_all()?;
        let live = LiveMemory::open(self.pid).map_err(StopError::from)?;
        let made = self.call(gathering, &live, Call::Copy, on_step)?;
        let born = match (made.born, u64::try_from(made.value)) {
            (Some(ours), Ok(theirs)) if theirs > 0 => Born {
                ours,
                theirs,
                maker: made.by,
            },
            _ => {
                let error = i32::try_from(made.value.saturating_neg()).unwrap_or(0);
                let error = io::Error::from_raw_os_error(error);
                return Err(ForkError::Refused(format!(
                    "the kernel refused to copy it ({error})"
                )));
            }
        };
        let memory = self.hold(born).and_then(|copy| self.overlay(live, copy));
        let skipped = gathering.skipped();
        let registers = gathering.user_registers();
        let pause = gathering.release();
        match memory {
            Ok(memory) => Ok((
                Picture {
                    memory,
                    threads,
                    skipped,
                    registers,
                    pause,
                },
                born,
            )),
            Err(error) => {
                self.end(born);
                Err(error)
            }
        }
    }

    fn call(
        &self,
        gathering: &mut Gathering,
        live: &LiveMemory,
        call: Call,
        on_step: &mut dyn FnMut(Step),
    ) -> Result<Made, ForkError> {
        let refused = |why: String| Err(ForkError::Refused(why));
        if !code::is_there(live, self.code) {
            return refused("its code has changed meanwhile".to_owned());
        }
        let mut means = Means {
            code: self.code,
            memory: &self.writable,
            map: live.map(),
            is_filtered: self.is_filtered,
            on_step,
        };
        gathering
            .call(call, &mut means)
            .or_else(|error| match error {
                NoCall::NoThread => refused(
                    "none of its threads is where it could make a system call for us".to_owned(),
                ),
                NoCall::Signals => {
                    self.interrupted.set(true);
                    refused("signals kept coming".to_owned())
                }
                NoCall::Filtered => refused(
                    "it has seccomp filters, which only root on a kernel that allows it can \
                     suspend"
                        .to_owned(),
                ),
                NoCall::Io(error) => refused(format!("the kernel does not permit it ({error})")),
                NoCall::Lost => refused("its thread did not come back in time".to_owned()),
            })
    }

    /// Waits until the copy stands still, and ties it to us.
    fn hold(&self, born: Born) -> Result<LiveMemory, ForkError> {
        let lost = || ForkError::Refused("the copy was killed at once".to_owned());
        let halt = await_halt(born.ours).ok_or_else(lost)?;
        // A signal to the process's group may stop it before its birth does.
        if halt.event != EVENT_STOP && halt.event != 0 {
            return Err(lost());
        }
        ptrace::set_options(born.ours, DIE_WITH_TRACER).map_err(|_| lost())?;
        // Where memory runs out, it is the first to go.
        let file = ProcRoot::default().process(born.ours).file("oom_score_adj");
        let _ = std::fs::write(file, "1000");
        LiveMemory::open(born.ours).map_err(|_| lost())
    }

    /// The copy's memory, with what only the process has.
    fn overlay(&self, live: LiveMemory, copy: LiveMemory) -> Result<ForkedMemory, ForkError> {
        let ranges = |map: &MemoryMap| joined(map.regions().iter().map(|r| r.range).collect());
        let copied = ranges(copy.map());
        let regions = live.map().regions().iter().filter(|r| r.read);
        let missing = regions.flat_map(|r| subtract(r.range, &copied));
        let mut left = BY_HAND;
        let mut saved = Vec::new();
        for range in joined(missing.chain(self.wiped.iter().copied()).collect()) {
            if range.len() > left || live.map().find(range.start).is_none() {
                continue;
            }
            left -= range.len();
            let mut bytes = vec![0; range.len() as usize];
            let got = live.read_some(range.start, &mut bytes);
            bytes.truncate(got);
            saved.push((range.start.0, bytes));
        }
        Ok(ForkedMemory {
            map: live.map().clone(),
            copy,
            saved,
        })
    }

    /// Ends the copy, and takes the notice of its end.
    fn end(&self, born: Born) -> Ended {
        if kill(born.ours).is_err() {
            // Not permitted, where only ptrace is: it ends itself.
            let _ = ptrace::resume(born.ours, Resume::On);
        }
        let began = Instant::now();
        while began.elapsed() < END && !matches!(wait::peek(born.ours), Ok(Change::Ended) | Err(_))
        {
            std::thread::sleep(Duration::from_micros(100));
        }
        wait::take(born.ours);
        let mut ended = Ended::default();
        let began = Instant::now();
        while began.elapsed() < TAKING {
            let candidates = Gathering::new(self.pid).candidates();
            if candidates.is_empty() {
                // The process is gone, and whoever inherits the notice takes it.
                ended.taken = true;
            }
            // Not every thread is where it can make a call: the one that made
            // the copy was, and often comes back there.
            let maker = candidates.iter().copied().filter(|tid| *tid == born.maker);
            let others = candidates.iter().copied().filter(|tid| *tid != born.maker);
            for tid in maker.chain(others.take(TAKERS)) {
                if let Ok((pause, taken)) = self.take(born, tid) {
                    ended.pause += pause;
                    ended.taken |= taken;
                }
                if ended.taken || began.elapsed() > TAKING {
                    break;
                }
            }
            if ended.taken {
                break;
            }
            std::thread::sleep(BETWEEN);
        }
        ended
    }

    /// Has thread `tid` of the process take the notice.
    fn take(&self, born: Born, tid: u32) -> Result<(Duration, bool), ForkError> {
        let mut gathering = Gathering::new(self.pid);
        gathering.stop_one(tid)?;
        let live = LiveMemory::open(self.pid).map_err(StopError::from)?;
        let call = Call::Take(born.theirs);
        let made = if code::is_there(&live, self.code) {
            self.call(&mut gathering, &live, call, &mut |_| ())
        } else {
            // It runs another program by now.
            let now = Copying {
                pid: self.pid,
                code: find_code(&live)?,
                is_filtered: self.is_filtered,
                wiped: Vec::new(),
                writable: writable(&live)?,
                interrupted: Cell::new(false),
            };
            now.call(&mut gathering, &live, call, &mut |_| ())
        };
        let pause = gathering.release();
        let value = made?.value;
        // ECHILD: it is no more.
        let taken = u64::try_from(value) == Ok(born.theirs) || value == -i64::from(libc::ECHILD);
        Ok((pause, taken))
    }
}

fn find_code(memory: &LiveMemory) -> Result<Code, ForkError> {
    code::find(memory).ok_or_else(|| {
        let why = "it has no code to make a system call with and return from it";
        ForkError::Refused(why.to_owned())
    })
}

fn writable(memory: &LiveMemory) -> Result<File, ForkError> {
    let path = memory.live_thread().file("mem");
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(|e| ForkError::Refused(format!("its memory cannot be written ({e})")))
}

/// Who traces, and the way to end it.
enum Tracer {
    Thread {
        release: Option<Sender<()>>,
        thread: Option<JoinHandle<Ended>>,
    },
    Process(Guard),
}

impl Tracer {
    fn end(&mut self) -> Ended {
        let ended = match self {
            Tracer::Thread { release, thread } => {
                drop(release.take());
                thread.take().and_then(|thread| thread.join().ok())
            }
            Tracer::Process(guard) => guard.end(),
        };
        ended.unwrap_or_default()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A copy of a process. Dropping it ends the copy, as does the end of our own
/// process by whatever cause.
#[must_use = "dropping it ends the copy"]
pub struct Forked {
    picture: Picture,
    tracer: Tracer,
}

impl Forked {
    /// The memory as it was when the copy was made.
    pub fn memory(&self) -> &dyn MemoryReader {
        &self.picture.memory
    }

    /// Process id of the copy.
    pub fn pid(&self) -> u32 {
        self.picture.memory.copy.pid()
    }

    /// The process's threads, as [`Stopped::threads`](crate::Stopped::threads).
    pub fn threads(&self) -> &[ThreadState] {
        &self.picture.threads
    }

    /// All general registers of its stopped threads, the first one's first.
    pub fn registers(&self) -> &[(u32, UserRegisters)] {
        &self.picture.registers
    }

    /// Ids of threads that could not be stopped, and ran on meanwhile.
    pub fn skipped(&self) -> &[u32] {
        &self.picture.skipped
    }

    /// How long the process was stopped.
    pub fn pause(&self) -> Duration {
        self.picture.pause
    }

    /// Ends the copy: the sooner, the fewer pages the kernel has to copy.
    pub fn end(mut self) -> Ended {
        self.tracer.end()
    }
}

impl fmt::Debug for Forked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forked")
            .field("pid", &self.pid())
            .field("threads", &self.picture.threads.len())
            .field("pause", &self.picture.pause)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
