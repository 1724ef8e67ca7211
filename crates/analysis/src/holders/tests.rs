use super::*;
use crate::mark::{Heuristics, Inside, mark_keeping};
use leakscope_model::Range;
use leakscope_testkit::FakeMemory;
use proptest::prelude::*;

const GLOBALS: u64 = 0x1000;
const STACK: u64 = 0x7f00_0000_0000;
const HEAP: u64 = 0x10_0000;
const SLOT: u64 = 64;

/// Blocks of 48 bytes, a page of globals, a stack.
struct World {
    memory: FakeMemory,
    blocks: Vec<LiveBlock>,
    threads: Vec<ThreadState>,
    plan: RootPlan,
}

fn at(block: u64) -> u64 {
    HEAP + SLOT * block
}

fn world(blocks: u64) -> World {
    let mut memory = FakeMemory::new();
    memory
        .region(GLOBALS, 0x1000, "rw-p", "/bin/program")
        .region(
            HEAP,
            (SLOT * blocks).next_multiple_of(4096),
            "rw-p",
            "[heap]",
        )
        .region(STACK, 0x1000, "rw-p", "[stack]");
    World {
        memory,
        blocks: (0..blocks).map(|b| LiveBlock::new(at(b), 48)).collect(),
        threads: vec![ThreadState {
            tid: 4711,
            sp: Addr(STACK + 0x800),
            ..ThreadState::default()
        }],
        plan: RootPlan {
            ranges: vec![
                (Range::new(GLOBALS, GLOBALS + 0x1000), RootKind::Globals),
                (Range::new(STACK + 0x800, STACK + 0x1000), RootKind::Stack),
            ],
            ..RootPlan::default()
        },
    }
}

impl World {
    fn word(mut self, at: u64, word: u64) -> World {
        self.memory.word(at, word);
        self
    }

    fn ask<T>(&self, question: impl FnOnce(&HolderInput<'_>, &Search) -> T) -> T {
        let heuristics = Heuristics::NONE;
        let (marked, pointers) = mark_keeping(
            &self.memory,
            &self.blocks,
            &self.plan,
            &heuristics,
            Inside::default(),
        );
        let pointers = pointers.expect("proper blocks");
        let input = HolderInput {
            memory: &self.memory,
            threads: &self.threads,
            blocks: &self.blocks,
            marked: &marked,
            plan: &self.plan,
            pointers: &pointers,
        };
        let found = search(&input).expect("few blocks");
        question(&input, &found)
    }

    fn path(&self, block: u32) -> Option<Path> {
        self.ask(|input, found| Walker::new(input, found).path(block))
    }
}

/// Block, into, offset of each link.
fn told(path: &Path) -> Vec<(u32, u64, Option<u64>)> {
    let links = path.links.iter();
    links.map(|l| (l.block, l.into, l.offset)).collect()
}

#[test]
fn the_way_from_a_global_step_by_step() {
    let world = world(5)
        .word(GLOBALS + 24, at(2))
        .word(at(2) + 8, at(0) + 16)
        .word(at(0) + 40, at(3));
    let path = world.path(3).expect("held");
    assert_eq!(path.root.place, RootPlace::Memory(RootKind::Globals));
    assert_eq!(path.root.at, Addr(GLOBALS + 24));
    assert_eq!(
        told(&path),
        [(2, 0, Some(8)), (0, 16, Some(40)), (3, 0, None)]
    );
    assert_eq!(world.path(4), None);
}

#[test]
fn globals_come_before_stacks_and_starts_before_the_middle() {
    let stack = STACK + 0x900;
    // A stale word on the stack is the shorter way, and says less.
    let long = world(4)
        .word(stack, at(2))
        .word(GLOBALS, at(0))
        .word(at(0), at(1))
        .word(at(1), at(2));
    assert_eq!(long.path(2).expect("held").links.len(), 3);
    let only = world(4).word(stack, at(2));
    let path = only.path(2).expect("held");
    assert_eq!(path.root.place, RootPlace::Memory(RootKind::Stack));
    only.ask(|input, _| assert_eq!(thread_of(input, &path.root), Some(4711)));
    // Of two globals, the one that points to the start.
    let inner = world(4).word(GLOBALS, at(1) + 8).word(GLOBALS + 8, at(1));
    assert_eq!(inner.path(1).expect("held").root.at, Addr(GLOBALS + 8));
    let inner = world(4).word(GLOBALS, at(1) + 8);
    assert_eq!(told(&inner.path(1).expect("held")), [(1, 8, None)]);
}

#[test]
fn registers_know_their_thread() {
    let mut world = world(2);
    world.threads[0].registers = vec![5, at(1)];
    world.plan.words = vec![5, at(1)];
    let root = world.path(1).expect("held").root;
    assert_eq!(root.place, RootPlace::Register(4711));
    assert_eq!(root.value, at(1));
}

#[test]
fn long_lists_are_told_by_their_ends() {
    let mut list = world(1009).word(GLOBALS, at(0));
    for i in 0..1008 {
        list = list.word(at(i) + 32, at(i + 1));
    }
    let path = list.path(1008).expect("held");
    assert_eq!(path.links.len(), 8);
    let skipped: u64 = path.links.iter().map(|l| l.skipped).sum();
    assert_eq!((skipped, path.skipped), (1009 - 8, 0));
    assert_eq!(path.links[3].skipped, skipped);
    let blocks: Vec<u32> = path.links.iter().map(|l| l.block).collect();
    assert_eq!(blocks[..4], [0, 1, 2, 3]);
    assert_eq!(blocks[4..], [1005, 1006, 1007, 1008]);
    assert!(path.links.iter().all(|l| l.into == 0));
    let whole = list.path(7).expect("held");
    assert_eq!(whole.links.len(), 8);
    assert!(whole.links[..7].iter().all(|l| l.offset == Some(32)));
}

#[test]
fn what_cannot_be_read_holds_nothing() {
    let mut world = world(3).word(GLOBALS, at(0)).word(at(0), at(1));
    world.memory.hole(HEAP, 0x1000);
    assert_eq!(world.path(1), None);
    assert_eq!(told(&world.path(0).expect("held")), [(0, 0, None)]);
}

/// A thread's stack ends with its thread-local storage, and the map does not
/// tell where that begins: behind the outermost return address.
#[test]
fn a_short_stack_is_no_thread_local_storage() {
    const CODE: u64 = 0x40_0000;
    let tcb = STACK + 0xc00;
    let mut world = world(3)
        .word(STACK + 0x900, at(0))
        .word(STACK + 0x980, CODE + 0x105)
        .word(STACK + 0xb00, at(1));
    world
        .memory
        .region(CODE, 0x1000, "r-xp", "/bin/program")
        .write(CODE + 0x100, &[0xe8, 0, 0, 0, 0]);
    world.threads[0].tcb = Addr(tcb);
    let local = (Range::new(STACK + 0x800, STACK + 0x1000), RootKind::Tls);
    world.plan.ranges[1] = local;
    let place = |block| world.path(block).expect("held").root.place;
    assert_eq!(place(0), RootPlace::Memory(RootKind::Stack));
    assert_eq!(place(1), RootPlace::Memory(RootKind::Tls));
    // The nearest return address below a word is of its own function.
    world.memory.word(STACK + 0x880, CODE + 0x105);
    let root = world.path(0).expect("held").root;
    let frame = world.ask(|input, _| frame_of(input, &root));
    assert_eq!(frame, Some(Addr(CODE + 0x105)));
    let root = world.path(1).expect("held").root;
    assert_eq!(world.ask(|input, _| frame_of(input, &root)), None);
}

/// What goes with each block, by the definition: what cannot be reached any
/// more without it.
fn by_definition(edges: &[(u64, u64)], rooted: &[u64], blocks: u64) -> Vec<Option<u64>> {
    let reach = |without: Option<u64>| {
        let mut seen = vec![false; blocks as usize];
        let mut work: Vec<u64> = rooted.to_vec();
        while let Some(at) = work.pop() {
            if Some(at) == without || std::mem::replace(&mut seen[at as usize], true) {
                continue;
            }
            work.extend(
                edges
                    .iter()
                    .filter(|(from, _)| *from == at)
                    .map(|(_, to)| *to),
            );
        }
        seen
    };
    let all = reach(None);
    let of = |block: u64| {
        let left = reach(Some(block));
        let gone = all.iter().zip(&left).filter(|(was, is)| **was && !**is);
        all[block as usize].then(|| gone.count() as u64)
    };
    (0..blocks).map(of).collect()
}

proptest! {
    #[test]
    fn what_is_retained_is_what_cannot_be_reached_without(
        edges in proptest::collection::vec((0..19u64, 0..19u64), 0..41),
        rooted in proptest::collection::vec(0..19u64, 0..4),
    ) {
        let mut world = world(19);
        let mut slots = [0; 19];
        let mut kept = Vec::new();
        for (from, to) in edges {
            let slot = &mut slots[from as usize];
            if *slot < 6 {
                world.memory.word(at(from) + 8 * *slot, at(to));
                *slot += 1;
                kept.push((from, to));
            }
        }
        for (i, root) in (0..).zip(&rooted) {
            world.memory.word(GLOBALS + 8 * i, at(*root));
        }
        let found: Vec<Option<u64>> = world.ask(|input, search| {
            let found = retained(input, search, u64::MAX).expect("little");
            (0..19).map(|b| found.of(b).map(|t| t.blocks)).collect()
        });
        prop_assert_eq!(found, by_definition(&kept, &rooted, 19));
    }
}

#[test]
fn groups_and_the_largest_blocks() {
    // A table (0) holds two lists, 1 → 2 → 3 and 4 → 5; 6 is shared by 3 and
    // 5; 7 is held by a global as well, and 8 alone.
    let mut world = world(9).word(GLOBALS, at(0)).word(GLOBALS + 8, at(7));
    // A stack that has one of its elements cuts no list.
    world = world.word(GLOBALS + 16, at(8)).word(STACK + 0x900, at(2));
    for (from, slot, to) in [
        (0, 0, 1),
        (0, 1, 4),
        (0, 2, 7),
        (1, 0, 2),
        (2, 0, 3),
        (4, 0, 5),
        (3, 1, 6),
        (5, 1, 6),
    ] {
        world = world.word(at(from) + 8 * slot, at(to));
    }
    let of_block = [0, 1, 1, 1, 1, 1, 2, 3, 3];
    let (overview, refused) = world.ask(|input, search| {
        let found = retained(input, search, 1 << 20).expect("little");
        let refused = retained(input, search, 100).is_none();
        (found.overview(&of_block, 4, 3), refused)
    });
    let blocks: Vec<u64> = overview.groups.iter().map(|t| t.blocks).collect();
    // What both lists share goes with neither alone.
    assert_eq!(blocks, [7, 5, 1, 2]);
    let largest: Vec<(u32, u64)> = overview
        .blocks
        .iter()
        .map(|r| (r.block, r.totals.bytes))
        .collect();
    assert_eq!(largest, [(0, 7 * 48), (1, 3 * 48), (4, 2 * 48)]);
    assert!(refused);
}

#[test]
fn who_points_to_a_block() {
    let mut world = world(5)
        .word(GLOBALS + 8, at(3) + 16)
        .word(at(0) + 24, at(3))
        .word(at(4), at(3) + 47)
        .word(at(4) + 8, at(3) + 48)
        .word(at(3), at(3));
    world.threads[0].registers = vec![at(3), 7];
    let target = Range::new(at(3), at(3) + 48);
    let found = world.ask(|input, _| pointing(input, target, 3));
    assert_eq!(found.all, 4);
    let root = |place, at, value| Source::Root(RootWord { place, at, value });
    let global = RootPlace::Memory(RootKind::Globals);
    assert_eq!(
        found.sources,
        [
            root(global, Addr(GLOBALS + 8), at(3) + 16),
            root(RootPlace::Register(4711), Addr(0), at(3)),
            Source::Block {
                block: 0,
                offset: 24,
                value: at(3)
            },
        ]
    );
}

#[test]
fn offsets_in_large_blocks_count_from_their_starts() {
    const LARGE: u64 = 0x5000_0000;
    let mut world = world(1);
    world.memory.region(LARGE, 3 << 20, "rw-p", "");
    world.memory.word(LARGE + (2 << 20) + 8, at(0));
    world
        .blocks
        .push(LiveBlock::new(LARGE + 16, (3 << 20) - 16));
    let target = Range::new(at(0), at(0) + 48);
    let found = world.ask(|input, _| pointing(input, target, 9));
    let wanted = Source::Block {
        block: 1,
        offset: (2 << 20) - 8,
        value: at(0),
    };
    assert_eq!((found.all, found.sources), (1, vec![wanted]));
}
