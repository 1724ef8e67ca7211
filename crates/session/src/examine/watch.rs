//! Looking again and again: what grows.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_analysis::growth::{Look, difference, growth};
use leakscope_model::{KindTotals, Notice, ProcessReport, Watched, quantity};
use leakscope_proc::Process;
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::unregister;

use super::{CheckError, CheckOptions, holders, look};
use crate::Word;

/// How often a wait is interrupted to see whether it shall end.
const NAP: Duration = Duration::from_millis(50);
/// Most looks: each remembers its records.
const MOST: usize = 100_000;

/// Looks once, or as often as there is time, and says what changed. SIGINT and
/// SIGTERM end the waiting, not the report; so does the end of the process.
///
/// # Errors
/// When not even one look succeeds.
pub(super) fn over_time(
    options: &CheckOptions,
    process: &Process,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<ProcessReport, CheckError> {
    let mut section = look(options, process, None, progress)?;
    if options.wait.is_zero() {
        return Ok(section);
    }
    let first = holders::baseline(&section.leaks);
    let stop = Interrupted::new();
    let began = Instant::now();
    let mut last = began;
    let mut looks = vec![seen(&section)];
    let start_time = process.stat().map(|s| s.start_time).ok();
    while looks.len() < MOST && last.duration_since(began) < options.wait {
        let due = (last + options.every).min(began + options.wait);
        let left = quantity::counted((began + options.wait - last).as_secs(), "second");
        let text = format!(
            "{} so far, {left} to go",
            quantity::counted(looks.len() as u64, "look")
        );
        progress(Word {
            text: &text,
            is_lasting: false,
        });
        while Instant::now() < due && !stop.is_asked() {
            sleep(NAP.min(due.saturating_duration_since(Instant::now())));
        }
        if stop.is_asked() && looks.len() > 1 {
            break;
        }
        let same = process.stat().map(|s| s.start_time).ok() == start_time;
        match look(options, process, Some(&first), progress)
            .ok()
            .filter(|_| same)
        {
            Some(next) => section = next,
            None => {
                section.notices.push(Notice {
                    code: "ended",
                    message: format!(
                        "the process ended, or could no longer be examined, after {}",
                        quantity::counted(looks.len() as u64, "look")
                    ),
                });
                break;
            }
        }
        last = Instant::now();
        looks.push(seen(&section));
        if stop.is_asked() {
            break;
        }
    }
    let ends = looks.first().zip(looks.last());
    section.watched = Some(Watched {
        looks: looks.len() as u64,
        seconds: last.duration_since(began).as_secs_f64(),
        bytes: ends.map_or(0, |(first, last)| difference(last.bytes(), first.bytes())),
    });
    for leak in &mut section.leaks {
        leak.growth = growth(&looks, &leak.id);
    }
    Ok(section)
}

fn seen(section: &ProcessReport) -> Look {
    let records = section.leaks.iter().map(|leak| {
        let totals = KindTotals {
            bytes: leak.bytes,
            blocks: leak.blocks,
        };
        (leak.id.clone(), totals)
    });
    Look::new(records)
}

/// Whether somebody wants to see the report now.
struct Interrupted {
    asked: Arc<AtomicBool>,
    handlers: Vec<SigId>,
}

impl Interrupted {
    fn new() -> Interrupted {
        let asked = Arc::new(AtomicBool::new(false));
        let register = |signal| signal_hook::flag::register(signal, Arc::clone(&asked)).ok();
        // Where no handler can be had, the signal ends leakscope as ever.
        let handlers = [SIGINT, SIGTERM].into_iter().filter_map(register).collect();
        Interrupted { asked, handlers }
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }
}

impl Drop for Interrupted {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            unregister(handler);
        }
    }
}
