use super::*;

fn block(addr: u64, weight: f32) -> LiveBlock {
    LiveBlock {
        weight,
        ..LiveBlock::new(addr, 24)
    }
}

#[test]
fn the_sample_leads_itself_where_its_leader_was_not_sampled() {
    let mut completed = Completed::default();
    // Blocks 1, 3, 4 and 6 of seven were sampled.
    for (i, sampled) in [false, true, false, true, true, false, true]
        .iter()
        .enumerate()
    {
        let weight = if *sampled { 7.0 } else { 0.0 };
        completed.push(block(0x1000 + i as u64 * 32, weight), *sampled);
    }
    use LossKind::{Definite, Indirect, Possible, Reachable};
    let marked = Marked {
        kinds: vec![
            Definite, Indirect, Definite, Definite, Indirect, Reachable, Possible,
        ],
        leader: vec![0, 0, 2, 3, 3, 5, 6],
        cycle: vec![false, false, true, true, true, false, false],
        cycle_members: [(2, vec![2, 3, 4]), (3, vec![3, 4, 2])].into(),
        scanned_block_bytes: 168,
        ..Marked::default()
    };
    let sample = completed.sample(&marked);
    assert_eq!(sample.kinds, [Definite, Definite, Indirect, Possible]);
    assert_eq!(sample.leader, [0, 1, 1, 3]);
    assert_eq!(sample.cycle, [false, true, true, false]);
    assert_eq!(sample.cycle_members, [(1, vec![1, 2])].into());
    assert_eq!(sample.scanned_block_bytes, 168);
}

mod walked {
    use super::*;
    use crate::mark::{Heuristics, mark};
    use crate::roots::{RootSwitches, plan};
    use leakscope_model::{RootHints, ThreadState};
    use leakscope_testkit::FakeMemory;
    use proptest::prelude::*;

    const DATA: u64 = 0x5555_5555_0000;
    const HEAP: u64 = 0x5555_5600_0000;
    const HEAP_LEN: u64 = 0x2_1000;
    const LIBC: u64 = 0x7fff_0000_0000;
    const ARENA: u64 = LIBC + 0x1c60;
    /// A chunk of 0x30 bytes, the one before in use.
    const CHUNK: u64 = 0x31;
    const BLOCKS: u64 = 31;

    fn user(i: u64) -> u64 {
        HEAP + 0x290 + i * 0x30 + 16
    }

    /// A cache and a chain of blocks in `[heap]`: each points to the next; a
    /// global points to the first.
    fn process() -> FakeMemory {
        let mut memory = FakeMemory::new();
        memory
            .region(DATA - 0x1000, 0x1000, "r-xp", "/bin/program")
            .region(DATA, 0x1000, "rw-p", "/bin/program")
            .region(HEAP, HEAP_LEN, "rw-p", "[heap]")
            .region(LIBC, 0x1000, "r-xp", "/lib/libc.so.6")
            .region(LIBC + 0x1000, 0x4000, "rw-p", "/lib/libc.so.6");
        memory.words(HEAP + 8, &[0x291]);
        for i in 0..BLOCKS {
            memory.words(user(i) - 8, &[CHUNK, user(i + 1)]);
        }
        let top = user(BLOCKS) - 16;
        memory.words(top + 8, &[(HEAP + HEAP_LEN - top) | 1]);
        memory.words(ARENA + 96, &[top]);
        for bin in 0..127 {
            let pair = ARENA + 112 + 16 * bin;
            memory.words(pair, &[pair - 16, pair - 16]);
        }
        memory.words(DATA + 64, &[user(0)]);
        memory
    }

    fn judge(memory: &FakeMemory, sample: &[LiveBlock]) -> (Completed, Marked) {
        let hints = RootHints::default();
        let threads: [ThreadState; 0] = [];
        let input = RootInput {
            memory,
            threads: &threads,
            blocks: sample,
            hints: &hints,
            switches: RootSwitches::default(),
            known_heaps: None,
        };
        let completed = complete(&input);
        let plan = plan(&RootInput {
            blocks: &completed.blocks,
            known_heaps: Some(&completed.heaps),
            ..input
        });
        let marked = mark(memory, &completed.blocks, &plan, &Heuristics::default());
        let marked = completed.sample(&marked);
        (completed, marked)
    }

    fn sample() -> Vec<LiveBlock> {
        [7, 19, 29].map(|i| block(user(i), 7.0)).to_vec()
    }

    #[test]
    fn blocks_that_were_not_sampled_hold_and_let_go() {
        let mut memory = process();
        let (completed, marked) = judge(&memory, &sample());
        // The chain: the cache before it is malloc's.
        assert_eq!(completed.blocks.len() as u64, BLOCKS);
        assert_eq!(completed.heaps.len(), 1);
        assert_eq!(marked.kinds, [LossKind::Reachable; 3]);
        // Block 10 lets go of the rest: block 11, which was not sampled, leads it.
        memory.words(user(10), &[0]);
        let (_, marked) = judge(&memory, &sample());
        use LossKind::{Definite, Reachable};
        assert_eq!(marked.kinds, [Reachable, Definite, Definite]);
        assert_eq!(marked.leader, [0, 1, 2]);
    }

    #[test]
    fn idioms_in_blocks_of_unknown_size() {
        let mut memory = process();
        // Block 5 holds block 6 and is itself held behind its array cookie: 3
        // elements of 9 bytes and the cookie, in 40 usable bytes.
        memory.words(user(4), &[user(5) + 8]);
        memory.words(user(5), &[3, user(6)]);
        let (_, marked) = judge(&memory, &sample());
        assert_eq!(marked.kinds, [LossKind::Reachable; 3]);
        memory.words(user(5), &[41, user(6)]);
        let (_, marked) = judge(&memory, &sample());
        assert_eq!(marked.kinds, [LossKind::Possible; 3]);
    }

    #[test]
    fn a_heap_that_cannot_be_walked_holds_what_is_in_it() {
        let mut memory = process();
        memory.words(user(10), &[0]);
        memory.words(user(3) - 8, &[0x17]);
        let (completed, marked) = judge(&memory, &sample());
        assert!(completed.heaps.is_empty());
        assert_eq!(marked.kinds, [LossKind::Reachable; 3]);
        // So does one that the sample contradicts.
        let mut memory = process();
        memory.words(user(10), &[0]);
        let mut odd = sample();
        odd.insert(1, block(user(9) + 8, 7.0));
        assert!(judge(&memory, &odd).0.heaps.is_empty());
    }

    proptest! {
        #[test]
        fn damaged_heaps_do_no_harm(damage in prop::collection::vec((0u64..400, prop_oneof![any::<u64>(), 0u64..0x400, Just(user(5)), Just(1)]), 0..17)) {
            let mut memory = process();
            for (word, value) in damage {
                memory.words(HEAP + word * 8, &[value]);
            }
            let (completed, marked) = judge(&memory, &sample());
            prop_assert_eq!(marked.kinds.len(), 3);
            prop_assert!(completed.blocks.is_sorted_by_key(|b| b.addr));
        }
    }
}
