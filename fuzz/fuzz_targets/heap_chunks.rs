//! A glibc heap that a hostile target has written: the input is `[heap]`.
#![no_main]
use leakscope_analysis::roots::{RootInput, RootSwitches};
use leakscope_analysis::sampled;
use leakscope_model::{LiveBlock, RootHints};
use leakscope_testkit::FakeMemory;
use libfuzzer_sys::fuzz_target;

const HEAP: u64 = 0x5555_5600_0000;
const LIBC: u64 = 0x7fff_0000_0000;
const ARENA: u64 = LIBC + 0x1c60;

fuzz_target!(|data: &[u8]| {
    let len = (data.len() as u64).next_multiple_of(4096).max(4096);
    let mut memory = FakeMemory::new();
    memory
        .region(HEAP, len, "rw-p", "[heap]")
        .region(LIBC, 0x1000, "r-xp", "/lib/libc.so.6")
        .region(LIBC + 0x1000, 0x4000, "rw-p", "/lib/libc.so.6")
        .write(HEAP, data);
    // The top chunk takes the last page's end.
    let top = HEAP + len - 64;
    memory.words(top + 8, &[64 | 1]).words(ARENA + 96, &[top]);
    for bin in 0..127 {
        let pair = ARENA + 112 + 16 * bin;
        memory.words(pair, &[pair - 16, pair - 16]);
    }
    let block = LiveBlock {
        weight: 7.0,
        ..LiveBlock::new(HEAP + 0x2a0, 24)
    };
    let completed = sampled::complete(&RootInput {
        memory: &memory,
        threads: &[],
        blocks: &[block],
        hints: &RootHints::default(),
        switches: RootSwitches::default(),
        known_heaps: None,
    });
    assert!(completed.blocks.is_sorted_by_key(|b| b.addr));
});
