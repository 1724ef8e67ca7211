//! How fast the marker is: `cargo run --release --example mark_speed`.
//!
//! Heaps of two million blocks (48 to 112 bytes): a tree and a ring, lost and
//! reachable, with blocks in the order of their allocation and shuffled. The
//! shuffled ring is the worst case of any marker: nothing can be done until
//! the one next block has come from memory. Times are of the processor, so
//! that a busy machine disturbs less.

// A measurement needs the clock that the crate itself must not use.
#![allow(clippy::disallowed_methods)]

use leakscope_analysis::mark::{Heuristics, Marked, mark};
use leakscope_analysis::roots::{RootKind, RootPlan};
use leakscope_model::{LiveBlock, LossKind, Range};
use leakscope_testkit::FakeMemory;

const BLOCKS: usize = 2_000_003;
const HEAP: u64 = 0x5555_0000_0000;
const ROOT: u64 = 0x4000;

fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn main() {
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let mut at = HEAP + 16;
    let blocks: Vec<LiveBlock> = (0..BLOCKS)
        .map(|_| {
            let size = 40 + 16 * (next(&mut seed) % 5);
            let block = LiveBlock::new(at, size);
            at += size + 8;
            block
        })
        .collect();
    let heap_bytes = (at - HEAP).next_multiple_of(4096);
    let mut order: Vec<usize> = (0..BLOCKS).collect();
    for i in (1..BLOCKS).rev() {
        order.swap(i, (next(&mut seed) % (i as u64 + 1)) as usize);
    }
    let straight: Vec<usize> = (0..BLOCKS).collect();
    let empty = || {
        let mut memory = FakeMemory::new();
        memory
            .region(ROOT, 0x1000, "rw-p", "/bin/program")
            .region(HEAP, heap_bytes, "rw-p", "[heap]");
        memory
    };
    for (name, order) in [("in order", straight), ("shuffled", order)] {
        let mut memory = empty();
        for i in 1..BLOCKS {
            let parent = blocks[order[(i - 1) / 2]].addr.0;
            let slot = 8 * ((i as u64 - 1) % 2);
            memory.word(parent + slot, blocks[order[i]].addr.0);
        }
        run(&format!("tree {name}, lost"), &memory, &blocks);
        memory.word(ROOT, blocks[order[0]].addr.0);
        run(&format!("tree {name}, reachable"), &memory, &blocks);
        let mut memory = empty();
        for i in 0..BLOCKS {
            let next = blocks[order[(i + 1) % BLOCKS]].addr.0;
            memory.word(blocks[order[i]].addr.0, next);
        }
        run(&format!("ring {name}, lost"), &memory, &blocks);
        memory.word(ROOT, blocks[order[0]].addr.0);
        run(&format!("ring {name}, reachable"), &memory, &blocks);
    }
}

/// Seconds that this thread has run (Linux: the first number of schedstat,
/// nanoseconds).
fn seconds() -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split(' ').next()?.parse::<f64>().ok())
        .unwrap_or(f64::NAN)
        / 1e9
}

fn run(name: &str, memory: &FakeMemory, blocks: &[LiveBlock]) {
    let plan = RootPlan {
        ranges: vec![(Range::new(ROOT, ROOT + 0x1000), RootKind::Globals)],
        ..RootPlan::default()
    };
    let mut best = f64::MAX;
    let mut marked = Marked::default();
    for _ in 0..3 {
        let start = seconds();
        marked = mark(memory, blocks, &plan, &Heuristics::ALL);
        best = best.min(seconds() - start);
    }
    let of = |kind: LossKind| marked.kinds.iter().filter(|k| **k == kind).count();
    println!(
        "{name:24} {:7.3} s  {:5.2} M blocks/s  {:5.2} GB/s  definite {} indirect {} reachable {}",
        best,
        blocks.len() as f64 / best / 1e6,
        marked.scanned_block_bytes as f64 / best / 1e9,
        of(LossKind::Definite),
        of(LossKind::Indirect),
        of(LossKind::Reachable),
    );
}
