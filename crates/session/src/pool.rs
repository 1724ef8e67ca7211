//! Symbol tables, kept from one process to the next.
//!
//! Decoding the debug information of a C library takes longer than checking
//! a small process, and forked children have their parent's modules, at the
//! same addresses.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use leakscope_model::RecordedModule;
use leakscope_symbols::Symbolizer;

/// Tables kept while nobody uses them. They may be large.
const IDLE: usize = 2;

/// See the module's page.
#[derive(Default)]
pub(crate) struct Pool {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    /// Oldest first.
    idle: Vec<Kept>,
    busy: usize,
}

/// A symbolizer and what it is good for.
pub(crate) struct Kept {
    /// The modules it was made for.
    pub modules: Vec<RecordedModule>,
    /// The executable whose descriptor it may still open.
    pub _exe_file: Option<Arc<File>>,
    /// The tables.
    pub symbolizer: Symbolizer,
}

impl Pool {
    /// Waits for a turn, so that a fork bomb does not decode the same tables
    /// everywhere at once; then what was kept for these modules, or a new one.
    pub(crate) fn take(&self, modules: &[RecordedModule], new: impl FnOnce() -> Kept) -> Kept {
        let turns = std::thread::available_parallelism().map_or(2, usize::from);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.busy >= turns {
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.busy += 1;
        let found = state.idle.iter().position(|kept| kept.modules == modules);
        match found {
            Some(at) => state.idle.remove(at),
            None => {
                drop(state);
                new()
            }
        }
    }

    /// Gives back what was taken.
    pub(crate) fn put(&self, kept: Kept) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy = state.busy.saturating_sub(1);
        state.idle.push(kept);
        let surplus = state.idle.len().saturating_sub(IDLE);
        let old: Vec<Kept> = state.idle.drain(..surplus).collect();
        drop(state);
        self.freed.notify_one();
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_model::Addr;
    use leakscope_symbols::Options;

    fn modules(start: u64) -> Vec<RecordedModule> {
        vec![RecordedModule {
            path: b"/x".to_vec(),
            start: Addr(start),
            end: Addr(start + 4096),
            bias: start,
            build_id: None,
            loaded: true,
        }]
    }

    fn kept(modules: &[RecordedModule]) -> Kept {
        Kept {
            modules: modules.to_vec(),
            _exe_file: None,
            symbolizer: Symbolizer::new(Options::default(), modules),
        }
    }

    #[test]
    fn keeps_the_latest_for_equal_modules() {
        let pool = Pool::default();
        let mut made = 0;
        for (start, fresh) in [(31, true), (31, false), (37, true), (41, true), (37, false)] {
            let wanted = modules(start << 12);
            let before = made;
            let taken = pool.take(&wanted, || {
                made += 1;
                kept(&wanted)
            });
            assert_eq!(made > before, fresh, "{start}");
            assert_eq!(taken.modules, wanted);
            pool.put(taken);
        }
        assert_eq!(pool.state.lock().unwrap().idle.len(), IDLE);
        assert_eq!(pool.state.lock().unwrap().busy, 0);
    }
}
