//! A process whose threads are all stopped.

use crate::core_write::UserRegisters;
use crate::error::StopError;
use crate::fork::{Ended, ForkError};
use crate::gather::Gathering;
use crate::guard::{self, Guard, NoReply, nanos, put, put_registers, put_threads, word};
use crate::memory::LiveMemory;
use crate::sys::{own_tid, wait};
use leakscope_model::ThreadState;
use leakscope_proc::ProcRoot;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// Stops every thread of `pid` and takes their registers and the map.
///
/// The process may be our child or not. Threads that cannot be stopped
/// within a bounded time (waiting for a `vfork` child, or for a disk) are
/// left alone and listed in [`Stopped::skipped`].
///
/// # Errors
/// Gone, NotPermitted, TimedOut or Io; the process then runs on.
pub fn stop(pid: u32) -> Result<Stopped, StopError> {
    // ptrace belongs to a thread, not to a process: requests and the detach
    // must come from the thread that seized, and what cannot be detached (a
    // thread that never reached its stop) the kernel lets go only when that
    // thread ends. So the stop gets a thread of its own, which ends with it.
    let (report, picture) = channel();
    let (release, released) = channel();
    let tracer = Builder::new()
        .name("leakscope-stop".to_owned())
        .spawn(move || trace(pid, &report, &released))
        .map_err(|e| StopError::Io(format!("start a thread to stop process {pid}"), e))?;
    let tracer = Tracer::Thread {
        release: Some(release),
        thread: Some(tracer),
    };
    loop {
        match picture.recv_timeout(LOOK) {
            // All ended or were left alone: nothing stands still, so there is
            // nothing to look at. The tracer lets go when it is dropped.
            Ok(Ok(picture)) if picture.threads.is_empty() => {
                return Err(StopError::TimedOut(pid));
            }
            Ok(Ok(picture)) => return Ok(Stopped { picture, tracer }),
            Ok(Err(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => take_ended_threads(pid),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(StopError::Io(
                    format!("stop process {pid}"),
                    io::Error::other("the stopping thread ended early"),
                ));
            }
        }
    }
}

/// As [`stop`], by a process of our own that outlives the death of this one
/// for as long as it takes to let the process go. Not for a process that this
/// one started: it is nobody's ancestor.
///
/// # Errors
/// As [`stop`].
pub fn stop_guarded(pid: u32) -> Result<Stopped, StopError> {
    let guard = Guard::start(|line| match stop(pid) {
        Ok(stopped) => {
            let mut message = Vec::new();
            put(&mut message, nanos(stopped.pause_so_far()));
            put_threads(&mut message, stopped.threads(), stopped.skipped());
            put_registers(&mut message, stopped.registers());
            if line.found(&message) {
                line.wait();
            }
            let pause = stopped.release();
            line.ended(Ended { pause, taken: true });
        }
        Err(error) => line.failed(&error.into()),
    });
    let Ok(mut guard) = guard else {
        return stop(pid);
    };
    let picture = guard.reply(|from| {
        let pause = Duration::from_nanos(word(from)?);
        Ok((pause, guard::threads(from)?, guard::registers(from)?))
    });
    let (pause, (threads, skipped), registers) = match picture {
        Ok(picture) => picture,
        Err(NoReply::Told(ForkError::Stop(error))) => return Err(error),
        Err(_) => return stop(pid),
    };
    let now = Instant::now();
    Ok(Stopped {
        picture: Picture {
            began: now.checked_sub(pause).unwrap_or(now),
            threads,
            skipped,
            registers,
            memory: LiveMemory::open(pid)?,
        },
        tracer: Tracer::Process(guard),
    })
}

/// Frees a thread of `pid` that is starting another program, and with it our
/// own tracing thread. The former holds a lock and waits until all other
/// threads have ended and their notices are taken; the latter, about to seize
/// it, waits for that lock, and cannot take the notices of the threads that
/// it traces already. Any thread of ours can.
pub(crate) fn take_ended_threads(pid: u32) {
    let process = ProcRoot::default().process(pid);
    for tid in process.tasks().unwrap_or_default() {
        let ended = process.task(tid).stat().is_ok_and(|s| s.is_dead());
        // The first thread's notice is its parent's, and nobody waits for it.
        if ended && tid != pid {
            wait::take_for_siblings(tid);
        }
    }
}

/// How often the asking thread looks whether the tracing thread is stuck.
const LOOK: Duration = Duration::from_millis(3);

/// What the tracing thread hands over while everything is stopped.
struct Picture {
    began: Instant,
    threads: Vec<ThreadState>,
    skipped: Vec<u32>,
    registers: Vec<(u32, UserRegisters)>,
    memory: LiveMemory,
}

/// What the tracing thread tells when it ends.
struct Release {
    pause: Duration,
    /// Its own id, if threads remain that are let go only when it is gone.
    remaining: Option<u32>,
}

/// The body of the tracing thread.
fn trace(
    pid: u32,
    report: &Sender<Result<Picture, StopError>>,
    released: &Receiver<()>,
) -> Release {
    let mut gathering = Gathering::new(pid);
    let picture = gathering.stop_all().and_then(|threads| {
        Ok(Picture {
            began: gathering.began(),
            threads,
            skipped: gathering.skipped(),
            registers: gathering.user_registers(),
            memory: LiveMemory::open(pid)?,
        })
    });
    match picture {
        Ok(picture) => {
            if report.send(Ok(picture)).is_ok() {
                // A message or a dropped sender: both mean "let go".
                let _ = released.recv();
            }
            let_go(&mut gathering)
        }
        Err(error) => {
            // Detached before the error is told: who hears it may rely on
            // the process running.
            let release = let_go(&mut gathering);
            let _ = report.send(Err(error));
            release
        }
    }
}

fn let_go(gathering: &mut Gathering) -> Release {
    let pause = gathering.release();
    let remaining = (!gathering.are_all_detached()).then(own_tid);
    Release { pause, remaining }
}

/// How long the kernel may take to end the tracing thread.
const END: Duration = Duration::from_secs(2);

/// Who traces, and the way to end it.
#[derive(Debug)]
enum Tracer {
    Thread {
        release: Option<Sender<()>>,
        thread: Option<JoinHandle<Release>>,
    },
    Process(Guard),
}

impl Tracer {
    fn end(&mut self) -> Option<Duration> {
        let (release, thread) = match self {
            Tracer::Thread { release, thread } => (release, thread),
            Tracer::Process(guard) => return guard.end().map(|ended| ended.pause),
        };
        drop(release.take());
        let release = thread.take()?.join().ok()?;
        if let Some(tid) = release.remaining {
            // Joining returns a little before the kernel lets go.
            let own = ProcRoot::default().process(std::process::id());
            let began = Instant::now();
            while own.task(tid).stat().is_ok() && began.elapsed() < END {
                std::thread::yield_now();
            }
        }
        Some(release.pause)
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.end();
    }
}

/// A stopped process. Dropping it lets the process go on, as does the end of
/// our own process by whatever cause.
#[must_use = "dropping it lets the process go on"]
pub struct Stopped {
    picture: Picture,
    tracer: Tracer,
}

impl Stopped {
    /// Its memory, with the map as it is while stopped.
    pub fn memory(&self) -> &LiveMemory {
        &self.picture.memory
    }

    /// Its threads, in ascending order of id. Of those in
    /// [`skipped`](Stopped::skipped) only what the kernel tells about a
    /// blocked thread is known: stack pointer and the call's arguments.
    pub fn threads(&self) -> &[ThreadState] {
        &self.picture.threads
    }

    /// All general registers of its stopped threads, the first one's first.
    pub fn registers(&self) -> &[(u32, UserRegisters)] {
        &self.picture.registers
    }

    /// Ids of threads that could not be stopped, and may run at any moment.
    pub fn skipped(&self) -> &[u32] {
        &self.picture.skipped
    }

    /// How long the process has been stopped by now.
    pub fn pause_so_far(&self) -> Duration {
        self.picture.began.elapsed()
    }

    /// Lets the process go on; returns how long it was stopped, from the
    /// first request to stop until the last thread was let go.
    pub fn release(self) -> Duration {
        let Stopped {
            picture,
            mut tracer,
        } = self;
        let pause = tracer.end();
        pause.unwrap_or_else(|| picture.began.elapsed())
    }

    /// The same, keeping the memory to read on while the process runs.
    pub fn release_keeping_memory(self) -> (Duration, LiveMemory) {
        let Stopped {
            picture,
            mut tracer,
        } = self;
        let pause = tracer.end();
        (
            pause.unwrap_or_else(|| picture.began.elapsed()),
            picture.memory,
        )
    }
}

impl std::fmt::Debug for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopped")
            .field("pid", &self.picture.memory.pid())
            .field("threads", &self.picture.threads.len())
            .field("skipped", &self.picture.skipped)
            .finish_non_exhaustive()
    }
}
