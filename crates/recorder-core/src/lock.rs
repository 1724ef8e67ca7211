//! The spin lock of the shared tables. It never waits forever: code in
//! somebody else's process may lose an event, but not hang.

use crate::interleave::point;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

const FREE: u64 = 0;
const HELD: u64 = 1;
/// Its holder vanished (cancelled thread, longjmp out of a signal handler):
/// nobody waits for it any more.
const ABANDONED: u64 = 2;

/// Turns of busy waiting before the processor is given away.
const SPINS: u32 = 200;
/// Times that the processor is given away before the lock is given up. With
/// hundreds of threads a holder may be off the processor for long; each turn
/// lets at least one other thread run.
const YIELDS: u32 = 200_000;

/// Gives the processor to another thread.
pub type Yield = fn();

/// A held lock; released when dropped.
pub struct Held<'a>(&'a AtomicU64);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        point();
        self.0.store(FREE, Release);
    }
}

/// Takes the lock, or gives up after a bounded wait.
#[inline]
pub fn acquire(word: &AtomicU64, give_way: Yield) -> Option<Held<'_>> {
    point();
    if word.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok() {
        return Some(Held(word));
    }
    wait(word, give_way)
}

/// The same for a caller that is the process's only thread: plain loads and
/// stores, which do not wait until earlier stores have left the processor.
/// The lock is marked all the same, so a thread that is started later (which
/// orders its memory after ours) finds it in the right state.
#[inline]
pub fn acquire_alone(word: &AtomicU64, give_way: Yield) -> Option<Held<'_>> {
    if word.load(Relaxed) == FREE {
        word.store(HELD, Relaxed);
        return Some(Held(word));
    }
    wait(word, give_way)
}

#[cold]
#[inline(never)]
fn wait(word: &AtomicU64, give_way: Yield) -> Option<Held<'_>> {
    let mut yields = 0;
    while yields < YIELDS {
        for _ in 0..SPINS {
            match word.load(Relaxed) {
                FREE => {
                    point();
                    if word.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok() {
                        return Some(Held(word));
                    }
                }
                ABANDONED => return None,
                _ => core::hint::spin_loop(),
            }
        }
        give_way();
        yields += 1;
    }
    let _ = word.compare_exchange(HELD, ABANDONED, Relaxed, Relaxed);
    None
}

/// Makes a lock usable again whose holder is known to be gone: after fork,
/// where only the forking thread exists.
pub fn reset(word: &AtomicU64) {
    word.store(FREE, Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_and_gives_up() {
        let word = AtomicU64::new(0);
        let held = acquire(&word, || {}).expect("free");
        assert!(acquire(&word, || {}).is_none(), "bounded");
        drop(held);
        // The wait above marked it abandoned, the holder then freed it.
        assert!(acquire(&word, || {}).is_some());
    }

    #[test]
    fn alone_and_shared_exclude_each_other() {
        let word = AtomicU64::new(0);
        let held = acquire_alone(&word, || {}).expect("free");
        assert!(acquire(&word, || {}).is_none(), "bounded");
        drop(held);
        let held = acquire(&word, || {}).expect("free");
        assert!(acquire_alone(&word, || {}).is_none(), "bounded");
        drop(held);
        assert!(acquire_alone(&word, || {}).is_some());
    }
}
