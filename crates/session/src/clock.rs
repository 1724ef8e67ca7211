//! Recorder time: every live segment's clock word, advanced from here, so
//! that no recorder needs a clock of its own.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use leakscope_wire::layout::word;

use crate::segment::SharedSegment;

/// One tick: a centisecond.
const TICK: Duration = Duration::from_millis(10);

/// Segments whose clocks run, each with the moment it was made.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    segments: Mutex<Vec<(Instant, Weak<SharedSegment>)>>,
    added: Condvar,
    over: AtomicBool,
}

impl Clock {
    /// Starts the clock's thread.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn run(self: &Arc<Clock>) -> std::io::Result<()> {
        let ticking = Arc::clone(self);
        std::thread::Builder::new()
            .name("clock".to_owned())
            .spawn(move || ticking.tick())?;
        Ok(())
    }

    /// Lets a segment's clock run until the segment is dropped.
    pub(crate) fn add(&self, segment: &Arc<SharedSegment>) {
        let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
        segments.push((Instant::now(), Arc::downgrade(segment)));
        self.added.notify_one();
    }

    /// Ends the clock's thread.
    pub(crate) fn end(&self) {
        self.over.store(true, Relaxed);
        self.added.notify_one();
    }

    fn tick(&self) {
        while !self.over.load(Relaxed) {
            let mut segments = self.segments.lock().unwrap_or_else(PoisonError::into_inner);
            segments.retain(|(made, segment)| {
                let Some(segment) = segment.upgrade() else {
                    return false;
                };
                let ticks = made.elapsed().as_millis() / TICK.as_millis();
                let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
                segment.segment().word(word::CLOCK).store(ticks, Release);
                true
            });
            if segments.is_empty() {
                // Bounded: `end` sets its flag without taking the lock.
                let _ = self.added.wait_timeout(segments, TICK * 50);
            } else {
                drop(segments);
                std::thread::sleep(TICK);
            }
        }
    }
}
