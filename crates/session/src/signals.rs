//! Signals that reach leakscope while the program runs.
//!
//! The program is in our process group, so what the terminal sends reaches it
//! without us. What somebody sends to leakscope alone is passed on. None of
//! them ends leakscope: the report is still owed.

use std::io;
use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXFSZ};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::backend::Handle;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

/// A signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// A child changed its state.
    Child,
    /// One that asks to end, from the terminal or to the whole group (the
    /// program has it too) or to us alone.
    Ask {
        /// Signal number.
        signal: i32,
        /// True when a process sent it, to us or to the group.
        sent: bool,
    },
}

/// Catches signals until dropped.
#[derive(Debug)]
pub(crate) struct Catcher {
    handle: Handle,
}

impl Catcher {
    /// Installs handlers (which, unlike an ignored signal, are not inherited
    /// by the program) and reports arrivals to `events`. Signals that are
    /// ignored stay ignored, here and in the program: `nohup` wants that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn install<E: From<Arrival> + Send + 'static>(
        events: Sender<E>,
    ) -> io::Result<Catcher> {
        let ignored = ignored_signals();
        // SIGXFSZ: making a segment may exceed RLIMIT_FSIZE, which then fails
        // with an error instead.
        let mut signals: Vec<i32> = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGXFSZ]
            .into_iter()
            .filter(|signal| ignored & (1u64 << (signal - 1)) == 0)
            .collect();
        signals.push(SIGCHLD);
        let mut catcher = SignalsInfo::<WithOrigin>::new(&signals)?;
        let handle = catcher.handle();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for origin in catcher.forever() {
                    let arrival = match origin.signal {
                        SIGXFSZ => continue,
                        SIGCHLD => Arrival::Child,
                        signal => Arrival::Ask {
                            signal,
                            sent: matches!(origin.cause, Cause::Sent(_)),
                        },
                    };
                    if events.send(E::from(arrival)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Catcher { handle })
    }
}

impl Drop for Catcher {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// Bit set of the signals this process ignores; bit 0 is signal 1.
fn ignored_signals() -> u64 {
    // SigIgn:	0000000000001000
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// True for the signals by which people end programs at a terminal.
pub(crate) fn asks_to_end(signal: i32) -> bool {
    matches!(signal, SIGINT | SIGTERM | SIGHUP | SIGQUIT)
}

/// Name of a signal, such as `SIGSEGV`.
pub(crate) fn name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal)
        .map_or_else(|| format!("signal {signal}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name(11), "SIGSEGV");
        assert_eq!(name(9), "SIGKILL");
        assert_eq!(name(34), "signal 34");
        // The Rust runtime ignores SIGPIPE (13), so the mask is never empty.
        assert_ne!(ignored_signals() & (1 << 12), 0);
    }
}
