use super::*;
use crate::glibc::Segment;
use leakscope_testkit::FakeMemory;
use proptest::prelude::*;

const HEAP: u64 = 0x5555_5555_0000;
/// A page behind the mapping's beginning, so not at a multiple of 16 KiB.
const MAPPING: u64 = 0x7f00_0000_0000;

/// An interpreter's pools, written as CPython leaves them.
struct Process {
    memory: FakeMemory,
    table: Found,
    pool: u64,
    arena: u64,
    first: u64,
    carved: u64,
    free_pools: Vec<u64>,
}

impl Process {
    fn new(pool: u64, arena: u64) -> Process {
        let mut memory = FakeMemory::new();
        memory.region(HEAP, 0x2000, "rw-p", "[heap]").region(
            MAPPING,
            128 * pool + 0x1000,
            "rw-p",
            "",
        );
        Process {
            memory,
            table: Found {
                addr: HEAP + 0x100,
                size: 776,
            },
            pool,
            arena,
            first: arena.next_multiple_of(pool),
            carved: 0,
            free_pools: Vec::new(),
        }
    }

    /// A pool with blocks of `16 (class + 1)` bytes: `made` were handed out,
    /// those in `freed` came back, in this order.
    fn pool(&mut self, class: u64, made: u64, freed: &[u64]) -> u64 {
        let at = self.first + self.carved * self.pool;
        let size = 16 * (class + 1);
        let block = |n: u64| at + 48 + n * size;
        let mut link = 0;
        for n in freed {
            self.memory.word(block(*n), link);
            link = block(*n);
        }
        let (next, last) = (48 + made * size, self.pool - size);
        self.memory.words(
            at,
            &[
                made - freed.len() as u64,
                link,
                0xbad,
                0xbad,
                class << 32 | 1,
                last << 32 | next,
            ],
        );
        self.carved += 1;
        at
    }

    /// A pool that was given back whole.
    fn free_pool(&mut self) -> u64 {
        let at = self.pool(3, 2, &[0, 1]);
        let next = self.free_pools.last().copied().unwrap_or(0);
        self.memory.word(at + 16, next);
        self.free_pools.push(at);
        at
    }

    /// Writes the table: the arena is its second entry.
    fn walk(&mut self) -> Walked {
        let table = self.table.addr;
        let all = 64 - u64::from(self.first != self.arena);
        let free = all - self.carved + self.free_pools.len() as u64;
        for entry in 0..16 {
            let next = if entry == 15 {
                0
            } else {
                table + 48 * (entry + 1)
            };
            self.memory
                .words(table + 48 * entry, &[0, 7, 7, 7, next, 7]);
        }
        self.memory.words(
            table + 48,
            &[
                self.arena,
                self.first + self.carved * self.pool,
                all << 32 | free,
                self.free_pools.last().copied().unwrap_or(0),
                0,
                0,
            ],
        );
        self.again()
    }

    fn again(&self) -> Walked {
        walk(&self.memory, &self.malloc())
    }

    fn malloc(&self) -> Heaps {
        Heaps {
            segments: vec![Segment {
                range: Range::new(HEAP, HEAP + 0x2000),
                blocks: vec![self.table],
                ..Segment::default()
            }],
            ..Heaps::default()
        }
    }

    fn range(&self) -> Range {
        Range::new(self.arena, self.arena + 64 * self.pool)
    }
}

fn addresses(walked: &Walked) -> Vec<u64> {
    walked.blocks.iter().map(|block| block.addr).collect()
}

/// A usual arena: a pool in use, a full one, free ones, the rest untouched.
fn usual(pool: u64, arena: u64) -> Process {
    let mut process = Process::new(pool, arena);
    process.pool(1, 5, &[3, 1]);
    process.free_pool();
    process.pool(31, (pool - 48) / 512, &[]);
    process.free_pool();
    process
}

#[test]
fn blocks_are_what_was_handed_out_and_not_given_back() {
    for (pool, arena) in [
        (4096, MAPPING),
        (4096, MAPPING + 0x1000),
        (16384, MAPPING),
        (16384, MAPPING + 0x1000),
    ] {
        let mut process = usual(pool, arena);
        let walked = process.walk();
        let first = process.first;
        let full = first + 2 * pool + 48;
        let blocks = [0, 2, 4].map(|n| first + 48 + 32 * n);
        let blocks: Vec<u64> = blocks
            .into_iter()
            .chain((0..(pool - 48) / 512).map(|n| full + 512 * n))
            .collect();
        assert_eq!(addresses(&walked), blocks);
        assert_eq!(walked.extents, [process.range()]);
        assert!(walked.is_consistent());
        // Everything else but headers and rests that are too small.
        let free: u64 = walked.free.iter().map(|r| r.len()).sum();
        let used = 3 * 32 + (pool - 48) / 512 * 512;
        let rests = (pool - 48) % 32 + (pool - 48) % 512;
        let before = first - arena;
        assert_eq!(free, 64 * pool - before - used - rests - 96);
    }
}

#[test]
fn a_table_may_lie_behind_the_debug_hooks_head() {
    let mut process = usual(16384, MAPPING);
    process.table = Found {
        addr: HEAP + 0x100 + 16,
        size: 776,
    };
    process.walk();
    process.table = Found {
        addr: HEAP + 0x100,
        size: 808,
    };
    let walked = process.again();
    assert!(walked.is_consistent() && walked.extents.len() == 1);
}

#[test]
fn one_contradiction_and_the_arena_is_left_alone() {
    let first = MAPPING;
    let table = HEAP + 0x100 + 48;
    let damages: [(&str, u64, u64); 14] = [
        ("a block more in use", first, 4),
        ("a block less in use", first, 2),
        ("a list that ends early", first + 8, 0),
        ("a list that leaves the pool", first + 8, first + 16384 + 48),
        (
            "a list that points between blocks",
            first + 8,
            first + 48 + 16,
        ),
        (
            "a list through what was never handed out",
            first + 8,
            first + 48 + 5 * 32,
        ),
        (
            "a list that turns back",
            first + 48 + 3 * 32,
            first + 48 + 32,
        ),
        ("another arena's pool", first + 32, 1 << 32 | 2),
        ("another size class", first + 32, 2 << 32 | 1),
        ("no size class", first + 32, 99 << 32 | 1),
        (
            "an end that is none",
            first + 40,
            (16384 - 32) << 32 | (48 + 5 * 32 + 16),
        ),
        ("a free pool more", table + 16, 64 << 32 | 63),
        ("a list of free pools that ends early", table + 24, 0),
        ("a list of free pools in use", table + 24, first),
    ];
    for (damage, at, word) in damages {
        let mut process = usual(16384, MAPPING);
        // So that the size of pools is known from another.
        process.walk();
        process.memory.word(at, word);
        let walked = process.again();
        assert!(walked.blocks.is_empty(), "{damage}");
        assert!(
            walked.extents.is_empty() && walked.free.is_empty(),
            "{damage}"
        );
    }
}

#[test]
fn an_arena_in_doubt_is_told_beside_a_sound_one() {
    let mut process = usual(4096, MAPPING);
    process.walk();
    // The second arena's only pool has another's number.
    let other = MAPPING + 64 * 4096;
    let pool = [1, 0, 0, 0, 3 << 32 | 9, (4096 - 64) << 32 | (48 + 64)];
    process.memory.words(other, &pool);
    let entry = HEAP + 0x100 + 5 * 48;
    process
        .memory
        .words(entry, &[other, other + 4096, 64 << 32 | 63, 0, 0, 0]);
    let walked = process.again();
    assert_eq!(walked.extents, [process.range()]);
    assert_eq!(walked.unwalked, [Range::new(other, other + 64 * 4096)]);
    process.memory.word(other + 32, 3 << 32 | 5);
    let walked = process.again();
    assert!(walked.is_consistent());
    assert_eq!(walked.extents.len(), 2);
    assert_eq!(
        walked.blocks.last().map(|b| (b.addr, b.size)),
        Some((other + 48, 64))
    );
}

#[test]
fn a_copy_of_a_table_makes_both_doubtful() {
    let mut process = usual(4096, MAPPING);
    process.walk();
    let mut bytes = vec![0; 768];
    process
        .memory
        .read(Addr(process.table.addr), &mut bytes)
        .unwrap();
    // The copy's list leads into the original, but its arena has no list.
    for entry in 0..16u64 {
        let next = if entry == 15 {
            0
        } else {
            HEAP + 0x1000 + 48 * (entry + 1)
        };
        let at = (48 * entry + 32) as usize;
        bytes[at..at + 8].copy_from_slice(&next.to_le_bytes());
    }
    process.memory.write(HEAP + 0x1000, &bytes);
    let mut malloc = process.malloc();
    malloc.segments[0].blocks.push(Found {
        addr: HEAP + 0x1000,
        size: 776,
    });
    let walked = walk(&process.memory, &malloc);
    assert!(walked.blocks.is_empty() && !walked.is_consistent());
}

#[test]
fn what_malloc_has_is_no_arena() {
    let mut process = usual(4096, MAPPING);
    process.walk();
    let mut malloc = process.malloc();
    let range = Range::new(MAPPING + 0x1000, MAPPING + 0x3000);
    malloc.segments.push(Segment {
        range,
        ..Segment::default()
    });
    let walked = walk(&process.memory, &malloc);
    assert!(walked.blocks.is_empty());
    assert_eq!(walked.unwalked, [process.range()]);
}

#[test]
fn interpreters_are_known_by_name() {
    let named = |path: &str| {
        let mut memory = FakeMemory::new();
        memory.region(0x1000, 0x1000, "r-xp", path);
        is_named(memory.map())
    };
    assert!(named("/usr/bin/python3.11") && named("/usr/lib/libpython3.9.so.1.0"));
    assert!(!named("/usr/lib/python3/x.so") && !named("/usr/bin/pytho"));
}

proptest! {
    /// Whatever is in the target: no panic, and every block lies in an extent.
    #[test]
    fn damage_never_invents_blocks_outside(
        damages in prop::collection::vec(
            (0usize..5, 0u64..0x900, prop_oneof![
                any::<u64>(),
                (0u64..0x10_0000).prop_map(|at| MAPPING + at),
                0u64..0x1_0000,
                (0u64..64, 0u64..0x1_0000).prop_map(|(a, b)| a << 32 | b),
            ]),
            1..6,
        ),
        small in any::<bool>(),
    ) {
        let pool = if small { 4096 } else { 16384 };
        let mut process = usual(pool, MAPPING);
        process.walk();
        for (place, offset, word) in damages {
            let at = if place == 4 { HEAP + 0x100 } else { MAPPING + place as u64 * pool };
            process.memory.word(at + (offset & !7), word);
        }
        let walked = process.again();
        let inside = |at: u64, len: u64| {
            walked.extents.iter().any(|e| e.start.0 <= at && at + len <= e.end.0)
        };
        prop_assert!(walked.blocks.iter().all(|b| inside(b.addr, b.size)));
        prop_assert!(walked.free.iter().all(|f| inside(f.start.0, f.len())));
        let pairs = walked.blocks.windows(2);
        prop_assert!(pairs.into_iter().all(|w| w[0].addr + w[0].size <= w[1].addr));
    }
}
