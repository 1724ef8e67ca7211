//! The spin lock of the shared tables. It never waits forever: code in
//! somebody else's process may lose an event, but not hang.

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
        self.0.store(FREE, Release);
    }
}

/// Takes the lock, or gives up after a bounded wait.
#[inline]
pub fn acquire(word: &AtomicU64, give_way: Yield) -> Option<Held<'_>> {
    if word.compare_exchange(FREE, HELD, Acquire, Relaxed).is_ok() {
        return Some(Held(word));
    }
    wait(word, give_way)
}

#[cold]
fn wait(word: &AtomicU64, give_way: Yield) -> Option<Held<'_>> {
    let mut yields = 0;
    while yields < YIELDS {
        for _ in 0..SPINS {
            match word.load(Relaxed) {
                FREE => {
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
}
