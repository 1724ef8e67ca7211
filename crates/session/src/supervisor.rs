//! What all threads of a run share: the processes, how they ended, their
//! sections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use leakscope_analysis::suppressions::Suppression;
use leakscope_model::{ExitKind, Notice, ProcessReport};
use leakscope_proc::ProcRoot;

use crate::clock::Clock;
use crate::image::Image;
use crate::options::{Follow, RunOptions};
use crate::pool::Pool;
use crate::segment::Orders;
use crate::signals::Arrival;

/// Process images that are recorded in one run, all in all. A tree with more
/// is a fork bomb; its later members run unrecorded.
pub(crate) const MAX_IMAGES: usize = 20_000;
/// Images at one time: each has a thread of ours and a mapping.
pub(crate) const MAX_LIVE: usize = 4_096;

/// What the main thread is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// A signal arrived.
    Signal(Arrival),
    /// The roster changed.
    Changed,
}

impl From<Arrival> for Event {
    fn from(arrival: Arrival) -> Event {
        Event::Signal(arrival)
    }
}

/// How a process ended, from wait(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// For the report.
    pub exit: ExitKind,
    /// As wait(2) encodes it.
    pub status: i32,
}

/// An image that was replaced by exec and not judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Replaced {
    /// Its executable.
    pub exe: String,
    /// Live bytes.
    pub bytes: u64,
    /// Live blocks.
    pub blocks: u64,
}

/// Who is there.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// The program itself, once started.
    pub main: Option<u32>,
    /// How the processes ended that we waited for.
    pub ended: HashMap<u32, Ended>,
    /// Images being watched, by order of hello.
    pub open: HashMap<usize, Arc<Image>>,
    /// Finished sections, by order of hello.
    pub sections: Vec<(usize, ProcessReport)>,
    /// By process: images that exec replaced and nobody judged, for a word in
    /// the section of the next one.
    pub replaced: HashMap<u32, Vec<Replaced>>,
    /// Why a process that said hello could not be recorded.
    pub not_recorded: HashMap<u32, Notice>,
    /// Images accepted so far.
    pub accepted: usize,
    /// Images that were refused for lack of room.
    pub refused: u64,
    /// Checks running, by order of hello: since when, and whether told.
    pub checking: HashMap<usize, (Instant, u32, bool)>,
}

/// See the module's page.
pub(crate) struct Supervisor {
    /// The request.
    pub options: RunOptions,
    /// The user's suppressions.
    pub suppressions: Vec<Suppression>,
    /// Our process id.
    pub own: u32,
    /// The kernel's tables.
    pub proc: ProcRoot,
    /// Recorder time.
    pub clock: Arc<Clock>,
    /// Symbol tables.
    pub names: Pool,
    /// To the main thread.
    events: Sender<Event>,
    roster: Mutex<Roster>,
    changed: Condvar,
    /// No more waiting: report what lives.
    finish: AtomicBool,
    /// The run is over; threads end.
    over: AtomicBool,
}

impl Supervisor {
    /// Nothing started yet.
    pub(crate) fn new(
        options: RunOptions,
        suppressions: Vec<Suppression>,
        clock: Arc<Clock>,
        events: Sender<Event>,
    ) -> Supervisor {
        Supervisor {
            options,
            suppressions,
            own: std::process::id(),
            proc: ProcRoot::default(),
            clock,
            names: Pool::default(),
            events,
            roster: Mutex::default(),
            changed: Condvar::new(),
            finish: AtomicBool::new(false),
            over: AtomicBool::new(false),
        }
    }

    /// The roster, locked. A thread that died holding it has left it whole:
    /// every change is a single insertion or removal.
    pub(crate) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the main thread and all that wait for the roster.
    pub(crate) fn tell(&self, event: Event) {
        self.changed.notify_all();
        // Nobody listens any more once the run is over.
        let _ = self.events.send(event);
    }

    /// Wakes all that wait for the roster.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits until `found` finds something in the roster, at most `limit`.
    pub(crate) fn wait_for<T>(
        &self,
        limit: Duration,
        mut found: impl FnMut(&mut Roster) -> Option<T>,
    ) -> Option<T> {
        let deadline = Instant::now() + limit;
        let mut roster = self.roster();
        loop {
            if let Some(value) = found(&mut roster) {
                return Some(value);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            roster = self
                .changed
                .wait_timeout(roster, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Ends all waiting for processes that still run.
    pub(crate) fn finish(&self) {
        self.finish.store(true, Relaxed);
        for image in self.roster().open.values() {
            image.rouse();
        }
    }

    /// True after [`Supervisor::finish`].
    pub(crate) fn finishing(&self) -> bool {
        self.finish.load(Relaxed)
    }

    /// Ends the threads.
    pub(crate) fn end(&self) {
        self.over.store(true, Relaxed);
        self.clock.end();
    }

    /// True after [`Supervisor::end`].
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// What recorders are told.
    pub(crate) fn orders(&self) -> Orders {
        use leakscope_wire::layout::config;
        let options = &self.options;
        let mut bits = config::FDS;
        for (on, bit) in [
            (options.mmap_min.is_some(), config::MMAPS),
            (options.free_sites, config::FREE_SITES),
            (options.follow == Follow::Children, config::FOLLOW),
            (options.at_exec, config::AT_EXEC),
        ] {
            if on {
                bits |= bit;
            }
        }
        Orders {
            config: bits,
            max_depth: u64::from(options.max_depth),
            sample_bytes: options.sample.unwrap_or(0),
            mmap_min: options.mmap_min.unwrap_or(0),
        }
    }

    /// True when the process may be recorded under `--follow`.
    pub(crate) fn follows(&self, pid: u32) -> bool {
        match self.options.follow {
            Follow::Children => true,
            // The program's hello may come before its start has returned.
            Follow::None => self
                .wait_for(Duration::from_secs(5), |roster| roster.main)
                .is_some_and(|main| main == pid),
        }
    }
}
