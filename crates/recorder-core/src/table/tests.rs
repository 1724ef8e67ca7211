use super::*;
use crate::testing::{Memory, by_touch};
use leakscope_wire::Reader;
use proptest::prelude::*;
use std::collections::HashMap;
use std::vec::Vec;

fn table(memory: &Memory) -> Table<'_> {
    let heap = Heap::new(memory.segment(), std::thread::yield_now, by_touch);
    Table::new(memory.segment(), heap, std::thread::yield_now)
}

fn entry(size: u64, stack: u32) -> Entry {
    Entry {
        size,
        stack,
        flags: 0,
        birth: 0,
    }
}

#[test]
fn remembers_and_forgets() {
    let memory = Memory::new();
    let table = table(&memory);
    assert_eq!(table.remove(0x1000), None);
    assert_eq!(table.insert(0x1000, entry(31, 7)), Inserted::New);
    assert_eq!(table.insert(0x1008, entry(37, 8)), Inserted::New);
    assert_eq!(
        table.insert(0x1000, entry(41, 9)),
        Inserted::Replaced(entry(31, 7))
    );
    assert_eq!(table.remove(0x1000), Some(entry(41, 9)));
    assert_eq!(table.remove(0x1000), None);
    assert_eq!(
        table.contains_inside(0x1010, 64).map(|(at, _)| at),
        Some(0x1008)
    );
    assert_eq!(table.contains_inside(0x1008 + 37, 64), None);
}

#[test]
fn only_the_exact_address_is_found() {
    let memory = Memory::new();
    let table = table(&memory);
    let at = 0x7fff_1234_5670;
    table.insert(at, entry(99, 3));
    for wrong in [
        0,
        1,
        at + 1,
        at + 7,
        at | leakscope_wire::entry::ADDR_LIMIT,
        at + 8,
        u64::MAX,
    ] {
        assert_eq!(table.remove(wrong), None, "{wrong:#x}");
        assert_eq!(table.update(wrong, |e| e.stack = 0), None, "{wrong:#x}");
    }
    assert_eq!(table.insert(at + 4, entry(1, 1)), Inserted::Dropped);
    assert_eq!(table.remove(at), Some(entry(99, 3)));
}

#[test]
fn sizes_beyond_32_bits_are_exact() {
    let memory = Memory::new();
    let table = table(&memory);
    for (i, size) in [u64::from(u32::MAX) - 1, u64::from(u32::MAX), 5 << 40]
        .into_iter()
        .enumerate()
    {
        let at = 0x7000_0000 + i as u64 * 16;
        table.insert(at, entry(size, 1));
        assert_eq!(
            Reader::new(memory.segment())
                .blocks()
                .find(|b| b.addr == at)
                .unwrap()
                .size,
            size
        );
        assert_eq!(table.remove(at), Some(entry(size, 1)));
    }
}

#[test]
fn grows_until_the_segment_is_full_then_drops() {
    let memory = Memory::new();
    let table = table(&memory);
    let mut kept = 0u64;
    for i in 1..2_000_000u64 {
        if table.insert(
            0x10_0000_0000 + i % 65536 * 16 + ((i / 65536) << 20),
            entry(i, 1),
        ) == Inserted::Dropped
        {
            break;
        }
        kept += 1;
    }
    assert!(kept > 100_000, "{kept}");
    assert_eq!(Reader::new(memory.segment()).blocks().count() as u64, kept);
}

#[test]
fn full_buckets_forget_in_any_order() {
    let memory = Memory::new();
    let table = table(&memory);
    // No room to grow: the page fills up to its last slot but one.
    let heap = Heap::new(memory.segment(), std::thread::yield_now, by_touch);
    let at = |i: u64| 0x7700_0000 + i * 40;
    for i in 0..31 {
        assert_eq!(table.insert(at(i), entry(i, 1)), Inserted::New);
    }
    for log2 in (6..15).rev() {
        while heap.take(log2).is_some() {}
    }
    let kept = (31..)
        .take_while(|&i| table.insert(at(i), entry(i, 1)) == Inserted::New)
        .count() as u64
        + 30;
    assert_eq!(kept, 62);
    for i in 0..=kept {
        let i = (i * 37 + 11) % (kept + 1);
        assert!(table.remove(at(i)).is_some(), "{i}");
        assert_eq!(table.remove(at(i)), None, "{i}");
    }
    assert_eq!(Reader::new(memory.segment()).blocks().count(), 0);
}

#[test]
fn memory_of_emptied_pages_is_used_again() {
    let memory = Memory::new();
    let table = table(&memory);
    let next = || memory.segment().word(word::HEAP_NEXT).load(Relaxed);
    let mut high = 0;
    for round in 0..13u64 {
        // Other pages of the same granules each time.
        let at = |i: u64| 0x9000_0000 + (i / 97) * 0x10_0000 + round * 4096 + i % 97 * 32;
        for i in 0..9700 {
            assert_eq!(table.insert(at(i), entry(24, 1)), Inserted::New);
        }
        assert_eq!(Reader::new(memory.segment()).blocks().count(), 9700);
        for i in 0..9700 {
            assert_eq!(table.remove(at(i)), Some(entry(24, 1)));
        }
        if round == 0 {
            high = next();
        }
    }
    assert_eq!(Reader::new(memory.segment()).blocks().count(), 0);
    assert_eq!(next(), high);
}

#[test]
fn granules_that_collide_are_told_apart() {
    let memory = Memory::new();
    let table = table(&memory);
    // All granules whose home is one slot.
    let home = granule::home(0x7f00_0000_0000 >> granule::SHIFT);
    let all: Vec<u64> = (64..1 << 27)
        .step_by(64)
        .map(|n| n + home as u64 % 64)
        .filter(|n| granule::home(*n) == home)
        .take(granule::PROBES + 3)
        .collect();
    for (i, number) in all.iter().enumerate() {
        let inserted = table.insert(number << granule::SHIFT | 0x40, entry(i as u64, 1));
        let expected = if i < granule::PROBES {
            Inserted::New
        } else {
            Inserted::Dropped
        };
        assert_eq!(inserted, expected);
    }
    assert!(table.lock_all());
    table.unlock_all();
    assert_eq!(
        Reader::new(memory.segment()).blocks().count(),
        granule::PROBES
    );
    for (i, number) in all.iter().enumerate().take(granule::PROBES) {
        let removed = table.remove(number << granule::SHIFT | 0x40);
        assert_eq!(removed, Some(entry(i as u64, 1)));
    }
}

#[test]
fn threads_share_it() {
    let memory = Memory::new();
    let table = table(&memory);
    std::thread::scope(|s| {
        for t in 0..4u64 {
            s.spawn(move || {
                for round in 0..30u64 {
                    for i in 0..700u64 {
                        // All threads in the same granules.
                        let at = 0x5000_0000 + (i * 4 + t) * 48 + round % 3 * 8;
                        assert_eq!(table.insert(at, entry(i, t as u32)), Inserted::New);
                    }
                    for i in 0..700u64 {
                        let at = 0x5000_0000 + (i * 4 + t) * 48 + round % 3 * 8;
                        assert_eq!(table.remove(at), Some(entry(i, t as u32)));
                    }
                }
            });
        }
    });
    assert_eq!(Reader::new(memory.segment()).blocks().count(), 0);
}

proptest! {
    #[test]
    fn behaves_like_a_map(steps in proptest::collection::vec((0u64..600, 0u8..3, 1u32..99), 1..3000)) {
        let memory = Memory::new();
        let table = table(&memory);
        let mut model: HashMap<u64, Entry> = HashMap::new();
        for (slot, what, stack) in steps {
            let at = 0x6000_0000 + slot * 24;
            match what {
                0 => { prop_assert_eq!(table.remove(at), model.remove(&at)); }
                _ => {
                    let e = entry(slot + 1, stack);
                    let expected = model.insert(at, e).map_or(Inserted::New, Inserted::Replaced);
                    prop_assert_eq!(table.insert(at, e), expected);
                }
            }
        }
        let mut seen: Vec<_> = Reader::new(memory.segment()).blocks().map(|b| (b.addr, b.size)).collect();
        seen.sort_unstable();
        let mut wanted: Vec<_> = model.iter().map(|(a, e)| (*a, e.size)).collect();
        wanted.sort_unstable();
        prop_assert_eq!(seen, wanted);
    }
}
