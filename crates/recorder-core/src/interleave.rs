//! Where another thread may come between: the steps of the shared tables that
//! the interleaving check (`shuttle`) tries in many orders. Nothing but in
//! this crate's tests.

/// Another thread may run here.
#[cfg(any(not(test), miri))]
#[inline(always)]
pub(crate) fn point() {}

#[cfg(all(test, not(miri)))]
pub(crate) use checked::point;

#[cfg(all(test, not(miri)))]
mod checked {
    use crate::heap::Heap;
    use crate::table::{Entry, Inserted, Table};
    use crate::testing::{Memory, by_touch};
    use crate::trie::Trie;
    use leakscope_wire::layout::word;
    use leakscope_wire::{Reader, Segment};
    use shuttle::sync::atomic::{AtomicU8, Ordering::SeqCst};
    use shuttle::thread;
    use std::cell::Cell;
    use std::collections::{HashMap, HashSet};
    use std::sync::Arc;
    use std::vec::Vec;

    /// Schedules tried of each test.
    const SCHEDULES: usize = 700;
    /// Switches forced by the scheduler that looks for rare orders.
    const DEPTH: usize = 4;

    std::thread_local! {
        /// This system thread runs a check: all of its threads are coroutines on it.
        static CHECKING: Cell<bool> = const { Cell::new(false) };
    }

    pub(crate) fn point() {
        if CHECKING.get() {
            // A value of the checker: touching it lets it choose who goes on.
            AtomicU8::new(0).load(SeqCst);
        }
    }

    fn check(body: impl Fn() + Send + Sync + Clone + 'static) {
        CHECKING.set(true);
        shuttle::check_random(body.clone(), SCHEDULES);
        shuttle::check_pct(body, SCHEDULES, DEPTH);
        CHECKING.set(false);
    }

    fn table(segment: Segment<'_>) -> Table<'_> {
        let heap = Heap::new(segment, thread::yield_now, by_touch);
        Table::new(segment, heap, thread::yield_now)
    }

    fn entry(size: u64) -> Entry {
        Entry {
            size,
            stack: 5,
            flags: 0,
            birth: 0,
        }
    }

    /// Addresses of one page.
    fn at(i: u64) -> u64 {
        0x5555_0000_0000 + i % 64 * 48 + i / 64 * 8
    }

    /// Runs each of `bodies` on a thread of its own, with the memory.
    fn run(memory: &Arc<Memory>, bodies: Vec<fn(Segment<'_>)>) {
        let threads: Vec<_> = bodies
            .into_iter()
            .map(|body| {
                let memory = Arc::clone(memory);
                thread::spawn(move || body(memory.segment()))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_page_grows_and_shrinks_under_its_users() {
        check(|| {
            let memory = Arc::new(Memory::new());
            // The slots are 64 by now, and grow at 48.
            for i in 0..46 {
                table(memory.segment()).insert(at(i), entry(i));
            }
            let inserts: fn(Segment<'_>) = |segment| {
                for i in 100..103 {
                    assert_eq!(table(segment).insert(at(i), entry(i)), Inserted::New);
                }
            };
            let removes: fn(Segment<'_>) = |segment| {
                for i in [3, 7, 31] {
                    assert_eq!(table(segment).remove(at(i)), Some(entry(i)));
                    assert_eq!(table(segment).insert(at(i + 200), entry(i)), Inserted::New);
                }
            };
            let reads: fn(Segment<'_>) = |segment| {
                for _ in 0..3 {
                    point();
                    let seen: HashSet<u64> =
                        Reader::new(segment).blocks().map(|b| b.addr).collect();
                    for i in (0..46).filter(|i| ![3, 7, 31].contains(i)) {
                        assert!(seen.contains(&at(i)), "{i}");
                    }
                }
            };
            run(&memory, std::vec![inserts, removes, reads]);
            let mut left: Vec<u64> = Reader::new(memory.segment())
                .blocks()
                .map(|b| b.addr)
                .collect();
            left.sort_unstable();
            let gone = [3, 7, 31];
            let mut wanted: Vec<u64> = (0..46)
                .filter(|i| !gone.contains(i))
                .chain(100..103)
                .chain(gone.map(|i| i + 200))
                .map(at)
                .collect();
            wanted.sort_unstable();
            assert_eq!(left, wanted);
        });
    }

    #[test]
    fn full_buckets_close_their_gaps_under_a_reader() {
        check(|| {
            let memory = Arc::new(Memory::new());
            // All of one home, the last: they fill three buckets, two of them
            // the first ones of the page.
            fn crowd() -> impl Iterator<Item = u64> {
                (0..12).map(|i| 0x5555_0000_0c00 + i * 16)
            }
            for addr in crowd() {
                table(memory.segment()).insert(addr, entry(addr));
            }
            let removes: fn(Segment<'_>) = |segment| {
                for addr in crowd().step_by(2) {
                    assert_eq!(table(segment).remove(addr), Some(entry(addr)));
                }
            };
            let reads: fn(Segment<'_>) = |segment| {
                for _ in 0..9 {
                    point();
                    let seen: HashSet<u64> =
                        Reader::new(segment).blocks().map(|b| b.addr).collect();
                    assert!(crowd().skip(1).step_by(2).all(|a| seen.contains(&a)));
                }
            };
            run(&memory, std::vec![removes, reads]);
            assert_eq!(Reader::new(memory.segment()).blocks().count(), 6);
        });
    }

    #[test]
    fn threads_agree_on_new_stacks() {
        check(|| {
            let memory = Arc::new(Memory::new());
            let threads: Vec<_> = (0..3u64)
                .map(|t| {
                    let memory = Arc::clone(&memory);
                    thread::spawn(move || {
                        let trie = Trie::new(memory.segment());
                        // Three stacks in an order of its own.
                        (0..3)
                            .map(|i| (i + t) % 3)
                            .map(|i| (i, trie.intern(trie.intern(0, 0x1000), 0x2000 + i)))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            let mut ids = HashMap::new();
            for thread in threads {
                for (i, id) in thread.join().unwrap() {
                    assert_ne!(id, 0);
                    assert_eq!(*ids.entry(i).or_insert(id), id, "two nodes for one stack");
                }
            }
            let trie = Trie::new(memory.segment());
            let before = memory.segment().word(word::NODE_NEXT).load(SeqCst);
            for (i, id) in ids {
                assert_eq!(trie.intern(trie.intern(0, 0x1000), 0x2000 + i), id, "lost");
            }
            let after = memory.segment().word(word::NODE_NEXT).load(SeqCst);
            assert_eq!(after, before);
        });
    }
}
