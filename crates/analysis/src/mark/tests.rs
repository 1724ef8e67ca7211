use super::*;
use crate::roots::{RootKind, RootPlan};
use leakscope_model::Addr;
use leakscope_testkit::FakeMemory;
use proptest::prelude::*;

const HEAP: u64 = 0x10_0000;
const ROOT: u64 = 0x1000;

fn block(addr: u64, size: u64) -> LiveBlock {
    LiveBlock::new(addr, size)
}

/// A page of roots and a small heap whose blocks are 48 bytes in slots of 64.
struct World {
    memory: FakeMemory,
    blocks: Vec<LiveBlock>,
    roots: u64,
}

/// Where the words that are not zero stand, and the sizes: what a failing
/// random heap needs to be understood.
impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = f.debug_list();
        for base in (ROOT..ROOT + 0x100).chain(HEAP..HEAP + 0x1000).step_by(8) {
            if let Ok(word @ 1..) = self.memory.read_u64(Addr(base)) {
                list.entry(&format_args!("{base:#x}: {word:#x}"));
            }
        }
        list.entries(self.blocks.iter().map(|b| (b.size, b.ignored)))
            .finish()
    }
}

fn at(block: u64) -> u64 {
    HEAP + 16 + 64 * block
}

impl World {
    fn new(blocks: u64) -> World {
        let mut memory = FakeMemory::new();
        memory
            .region(ROOT, 0x1000, "rw-p", "/bin/program")
            .region(HEAP, 0x1_0000, "rw-p", "[heap]");
        World {
            memory,
            blocks: (0..blocks).map(|b| block(at(b), 48)).collect(),
            roots: 0,
        }
    }

    fn root(mut self, word: u64) -> World {
        self.memory.word(ROOT + 8 * self.roots, word);
        self.roots += 1;
        self
    }

    fn put(mut self, from: u64, slot: u64, word: u64) -> World {
        self.memory.word(at(from) + 8 * slot, word);
        self
    }

    fn mark(&self) -> Marked {
        self.with(&Heuristics::NONE)
    }

    fn with(&self, heuristics: &Heuristics) -> Marked {
        mark(&self.memory, &self.blocks, &plan(), heuristics)
    }
}

fn plan() -> RootPlan {
    RootPlan {
        ranges: vec![(Range::new(ROOT, ROOT + 0x1000), RootKind::Globals)],
        ..RootPlan::default()
    }
}

use LossKind::{Definite, Indirect, Possible, Reachable};

#[test]
fn the_nine_chains() {
    const A: u64 = 0;
    const B: u64 = 1;
    let inside = 20;
    let table = [
        // root → B; A stands for itself in rows of one block
        (
            World::new(2).root(at(A)).root(at(B)),
            [Reachable, Reachable],
        ),
        (
            World::new(2).root(at(A)).put(A, 0, at(B)),
            [Reachable, Reachable],
        ),
        (World::new(2), [Definite, Definite]),
        (World::new(2).put(A, 0, at(B)), [Definite, Indirect]),
        (
            World::new(2).root(at(A) + inside).root(at(B) + inside),
            [Possible, Possible],
        ),
        (
            World::new(2).root(at(A)).put(A, 0, at(B) + inside),
            [Reachable, Possible],
        ),
        (
            World::new(2).root(at(A) + inside).put(A, 0, at(B)),
            [Possible, Possible],
        ),
        (
            World::new(2).root(at(A) + inside).put(A, 0, at(B) + inside),
            [Possible, Possible],
        ),
        (
            World::new(2).put(A, 0, at(B) + inside),
            [Definite, Indirect],
        ),
    ];
    for (row, (world, expected)) in table.iter().enumerate() {
        assert_eq!(world.mark().kinds, expected, "row {}", row + 1);
    }
}

#[test]
fn the_best_chain_wins() {
    // A possible block that turns out reachable upgrades its children.
    let world = World::new(3)
        .root(at(0) + 8)
        .put(0, 0, at(1))
        .root(at(2))
        .put(2, 5, at(0));
    assert_eq!(world.mark().kinds, [Reachable; 3]);
    // A lost block that a possible one holds is possible.
    let world = World::new(3)
        .put(0, 0, at(1))
        .root(at(2) + 8)
        .put(2, 0, at(1));
    let marked = world.mark();
    assert_eq!(marked.kinds, [Definite, Possible, Possible]);
    assert_eq!(marked.leader, [0, 1, 2]);
}

#[test]
fn a_block_ends_before_its_end_and_an_empty_block_is_one_byte() {
    let mut world = World::new(2).root(at(0) + 48);
    assert_eq!(world.mark().kinds, [Definite, Definite]);
    world = world.root(at(0) + 47);
    assert_eq!(world.mark().kinds, [Possible, Definite]);
    world.blocks[1].size = 0;
    let world = world.root(at(1) + 1);
    assert_eq!(world.mark().kinds, [Possible, Definite]);
    let world = world.root(at(1));
    assert_eq!(world.mark().kinds, [Possible, Reachable]);
}

#[test]
fn ignored_blocks_and_words_are_roots() {
    let mut world = World::new(5).put(0, 0, at(1)).put(2, 3, at(3));
    world.blocks[0].ignored = true;
    let words = RootPlan {
        words: vec![at(2) + 8],
        start_words: vec![at(4) + 16],
        ..RootPlan::default()
    };
    let marked = mark(&world.memory, &world.blocks, &words, &Heuristics::ALL);
    assert_eq!(
        marked.kinds,
        [Reachable, Reachable, Possible, Possible, Reachable]
    );
}

/// memcheck's leak-tree: a lost tree and a lost pair in a reachable heap.
#[test]
fn trees() {
    // 0 → 1, 2; 1 → 3, 4; 2 → 5, 6; 7 → 8; 9 reachable → 10.
    let world = World::new(11)
        .put(0, 0, at(1))
        .put(0, 1, at(2))
        .put(1, 0, at(3))
        .put(1, 1, at(4))
        .put(2, 0, at(5))
        .put(2, 1, at(6))
        .put(7, 0, at(8))
        .root(at(9))
        .put(9, 0, at(10));
    let marked = world.mark();
    let mut expected = vec![Indirect; 9];
    expected[0] = Definite;
    expected[7] = Definite;
    expected.extend([Reachable, Reachable]);
    assert_eq!(marked.kinds, expected);
    assert_eq!(marked.leader, [0, 0, 0, 0, 0, 0, 0, 7, 7, 9, 10]);
    assert!(marked.cycle.iter().all(|c| !c));
    // The same tree with its root at the highest address.
    let world = World::new(3).put(2, 0, at(1)).put(1, 0, at(0));
    let marked = world.mark();
    assert_eq!(marked.kinds, [Indirect, Indirect, Definite]);
    assert_eq!(marked.leader, [2, 2, 2]);
}

/// memcheck's leak-cycle: two lone cycles, one that holds another, two that
/// hold each other: four definite blocks of eighteen.
#[test]
fn cycles() {
    let mut world = World::new(18);
    for c in 0..6 {
        for i in 0..3 {
            world = world.put(3 * c + i, 0, at(3 * c + (i + 2) % 3));
        }
    }
    let world = world.put(9, 1, at(6)).put(12, 1, at(15)).put(15, 1, at(12));
    let marked = world.mark();
    let definite: Vec<_> = (0..18).filter(|i| marked.kinds[*i] == Definite).collect();
    assert_eq!(definite, [0, 3, 9, 12]);
    assert!(
        marked
            .kinds
            .iter()
            .all(|k| matches!(k, Definite | Indirect))
    );
    assert_eq!(marked.leader[6..9], [9, 9, 9]);
    assert_eq!(marked.leader[15..18], [12, 12, 12]);
    assert!(marked.cycle.iter().all(|c| *c));
    assert_eq!(marked.cycle_members[&0], [0, 2, 1]);
    assert_eq!(marked.cycle_members[&12], [12, 15]);
    assert_eq!(marked.cycle_members.len(), 4);
}

#[test]
fn unreadable_memory_is_counted_not_fatal() {
    let mut world = World::new(130);
    world.memory.hole(HEAP + 0x1000, 0x1000);
    let marked = world.mark();
    assert_eq!(marked.kinds.len(), 130);
    // Blocks lie 64 bytes apart from HEAP + 16: blocks 64 to 127 but for
    // nothing are in the hole, all 48 bytes of each.
    assert_eq!(marked.unreadable_bytes, 64 * 48);
    let gone = FakeMemory::new();
    let marked = mark(&gone, &world.blocks, &plan(), &Heuristics::ALL);
    assert_eq!(marked.unreadable_bytes, 130 * 48 + 0x1000);
}

#[test]
fn impossible_blocks_are_left_out() {
    let world = World::new(3).put(0, 0, at(2));
    let mut blocks = world.blocks.clone();
    blocks.insert(1, block(at(0) + 3, 5));
    blocks.push(block(u64::MAX - 6, u64::MAX));
    blocks.push(block(at(1), 48));
    let marked = mark(&world.memory, &blocks, &plan(), &Heuristics::ALL);
    assert_eq!(
        marked.kinds,
        [
            Definite, Reachable, Definite, Indirect, Reachable, Reachable
        ]
    );
    assert_eq!(marked.leader, [0, 1, 2, 0, 4, 5]);
}

#[test]
fn huge_claims_end_at_the_map() {
    let mut world = World::new(2);
    world.blocks[1].size = u64::MAX;
    let world = world.root(at(1) + (1 << 40));
    assert_eq!(world.mark().kinds, [Definite, Possible]);
}

mod idioms {
    use super::*;

    const CODE: u64 = 0x40_0000;
    const DATA: u64 = 0x50_0000;

    fn only(name: &str) -> Heuristics {
        name.parse().unwrap_or(Heuristics::NONE)
    }

    /// With the idiom the block is reachable, without it only possible, and
    /// when `spoil` is written it is possible again.
    fn check(name: &str, world: World, spoil: (u64, u64)) {
        assert_eq!(world.with(&only(name)).kinds[0], Reachable, "{name}");
        assert_eq!(world.with(&Heuristics::ALL).kinds[0], Reachable, "{name}");
        let others: Vec<_> = Heuristics::NAMES
            .into_iter()
            .filter(|n| *n != name)
            .collect();
        // Every length64 block is a newarray of one element, as in memcheck.
        if name != "length64" {
            assert_eq!(world.with(&only(&others.join(","))).kinds[0], Possible);
        }
        let mut world = world;
        world.memory.word(spoil.0, spoil.1);
        assert_eq!(world.with(&only(name)).kinds[0], Possible, "{name} spoilt");
    }

    #[test]
    fn length64() {
        let world = World::new(1).root(at(0) + 8).put(0, 0, 40);
        check("length64", world, (at(0), 41));
    }

    #[test]
    fn newarray() {
        let world = World::new(1).root(at(0) + 8).put(0, 0, 5);
        check("newarray", world, (at(0), 7));
    }

    #[test]
    fn stdstring() {
        let world = World::new(1)
            .root(at(0) + 24)
            .put(0, 0, 11)
            .put(0, 1, 48 - 25);
        check("stdstring", world, (at(0), 24));
    }

    #[test]
    fn rust_rc() {
        let world = World::new(1).root(at(0) + 16).put(0, 0, 3).put(0, 1, 1);
        check("rust-rc", world, (at(0) + 8, 0));
    }

    #[test]
    fn kept_start() {
        let world = World::new(1).root(at(0) + 24).put(0, 2, at(0));
        check("kept-start", world, (at(0) + 16, at(0) + 8));
        let world = World::new(1).root(at(0) + 24).put(0, 4, at(0));
        check("kept-start", world, (at(0) + 32, 0));
    }

    #[test]
    fn cpython_gc() {
        // In the heap, and in no block.
        const LINK: u64 = HEAP + 0x8000;
        // Not tracked; tracked, with flags; with a managed dictionary.
        let world = World::new(1).root(at(0) + 16).put(0, 2, 1).put(0, 3, LINK);
        check("cpython-gc", world, (at(0) + 16, 0));
        let tracked = |first: u64, link: u64| {
            World::new(1)
                .root(at(0) + 8 * (first + 2))
                .put(0, first, LINK)
                .put(0, first + 1, link)
                .put(0, first + 2, 7)
                .put(0, first + 3, LINK)
        };
        // (So low, such pointers pass for the counts of rust-rc, too.)
        let world = tracked(0, LINK | 1);
        assert_eq!(world.with(&only("cpython-gc")).kinds[0], Reachable);
        assert_eq!(world.mark().kinds[0], Possible);
        check("cpython-gc", tracked(2, LINK), (at(0) + 40, 3));
    }

    #[test]
    fn multiple_inheritance() {
        let mut world = World::new(1)
            .root(at(0) + 16)
            .put(0, 0, DATA + 16)
            .put(0, 2, DATA + 64);
        world
            .memory
            .region(CODE, 0x1000, "r-xp", "/bin/program")
            .region(DATA, 0x1000, "r--p", "/bin/program")
            .words(DATA + 16, &[0, CODE + 8, CODE + 16])
            .words(DATA + 64, &[CODE + 8, 0, CODE + 24]);
        check("multipleinheritance", world, (DATA + 72, 0x1234));
    }

    /// Writes a table of `buckets` buckets behind `data` bytes into block 0;
    /// `full` buckets are in use.
    fn table(data: u64, buckets: u64, full: &[u64]) -> World {
        let mut world = World::new(1);
        world.blocks[0].size = data + buckets + 16;
        let control = at(0) + data;
        let mut bytes = vec![0xff; buckets as usize + 16];
        for &i in full {
            bytes[i as usize] = 0x11 + (i % 64) as u8;
            if i < 16 {
                bytes[(buckets.max(16) + i) as usize] = 0x11 + (i % 64) as u8;
            }
        }
        world.memory.write(control, &bytes);
        world.root(control)
    }

    #[test]
    fn hashbrown() {
        for (data, buckets, full) in [
            (4 * 24, 4, &[1, 3][..]),
            (8 * 4, 8, &[0, 7][..]),
            (16 * 24, 16, &[2, 15][..]),
            (1024 * 8, 1024, &[5, 17, 1000][..]),
        ] {
            let world = table(data, buckets, full);
            let control = at(0) + data;
            check("hashbrown", world, (control, 0x0101_0101_0101_0101));
        }
        // A control byte that no table has.
        let world = table(1024 * 8, 1024, &[5]);
        check("hashbrown", world, (at(0) + 8192 + 512, 0x8181));
    }
}

/// The definition, spelled out over sets without any cleverness.
fn naive(world: &World, plan: &RootPlan) -> (Vec<LossKind>, Vec<u32>) {
    let blocks = &world.blocks;
    let target = |word: u64| {
        blocks
            .iter()
            .position(|b| word >= b.addr.0 && word < b.addr.0 + b.size.max(1))
    };
    let words = |start: u64, end: u64| -> Vec<u64> {
        (start..end)
            .step_by(8)
            .filter(|a| a + 8 <= end)
            .filter_map(|a| world.memory.read_u64(Addr(a)).ok())
            .collect()
    };
    let children: Vec<Vec<u64>> = blocks
        .iter()
        .map(|b| words(b.addr.0, b.addr.0 + b.size))
        .collect();
    let mut roots = plan.words.clone();
    for (range, _) in &plan.ranges {
        roots.extend(words(range.start.0, range.end.0));
    }
    let n = blocks.len();
    let mut reachable: Vec<bool> = blocks.iter().map(|b| b.ignored).collect();
    let mut touched = reachable.clone();
    for _ in 0..=n {
        let mut sources: Vec<(u64, bool)> = roots.iter().map(|w| (*w, true)).collect();
        for i in (0..n).filter(|i| touched[*i]) {
            sources.extend(children[i].iter().map(|w| (*w, reachable[i])));
        }
        for (word, definite) in sources {
            if let Some(t) = target(word) {
                touched[t] = true;
                reachable[t] |= definite && word == blocks[t].addr.0;
            }
        }
    }
    // reach[i][j]: lost block i leads to lost block j.
    let mut reach = vec![vec![false; n]; n];
    for i in (0..n).filter(|i| !touched[*i]) {
        for t in children[i].iter().filter_map(|w| target(*w)) {
            reach[i][t] = !touched[t];
        }
    }
    for k in 0..n {
        for i in 0..n {
            for j in 0..n {
                reach[i][j] |= reach[i][k] && reach[k][j];
            }
        }
    }
    let leads = |i: usize| !touched[i] && (0..n).all(|j| !reach[j][i] || (reach[i][j] && i <= j));
    let mut kinds = Vec::new();
    let mut leader = Vec::new();
    for i in 0..n {
        let mine = if touched[i] || leads(i) {
            i
        } else {
            (0..n).find(|j| leads(*j) && reach[*j][i]).unwrap_or(i)
        };
        leader.push(mine as u32);
        kinds.push(match (reachable[i], touched[i]) {
            (true, _) => Reachable,
            (_, true) => Possible,
            _ if mine == i => Definite,
            _ => Indirect,
        });
    }
    (kinds, leader)
}

fn small_world() -> impl Strategy<Value = World> {
    let sizes = prop::collection::vec((0u64..60, prop::bool::weighted(0.05)), 1..14);
    let pointers = prop::collection::vec((0u64..14, 0u64..6, 0u64..14, 0u64..12), 0..30);
    let roots = prop::collection::vec((0u64..14, 0u64..12), 0..4);
    (sizes, pointers, roots).prop_map(|(sizes, pointers, roots)| {
        // Most pointers are to the start.
        let word = |to: u64, offset: u64| at(to) + if offset < 8 { 0 } else { (offset - 7) * 9 };
        let mut world = World::new(sizes.len() as u64);
        for (from, slot, to, offset) in pointers {
            world = world.put(from, slot, word(to, offset));
        }
        for (to, offset) in roots {
            world = world.root(word(to, offset));
        }
        for (block, (size, ignored)) in world.blocks.iter_mut().zip(sizes) {
            block.size = size;
            block.ignored = ignored;
        }
        world
    })
}

#[test]
fn known_places_inside_blocks_are_starts() {
    // From a root, and from a block.
    let world = World::new(5)
        .root(at(0) + 16)
        .put(0, 3, at(1) + 32)
        .put(0, 4, at(2) + 40)
        .root(at(3) + 8);
    let inside = Inside {
        offsets: &[2, 4, 4, 2, 0],
        words: &[at(4) + 8],
    };
    let marked = |world: &World, inside| {
        let heuristics = &Heuristics::NONE;
        mark_inside(&world.memory, &world.blocks, &plan(), heuristics, inside).kinds
    };
    use LossKind::{Definite, Possible, Reachable};
    let kinds = [Reachable, Reachable, Possible, Possible, Definite];
    assert_eq!(marked(&world, inside), kinds);
    let kinds = [Possible, Possible, Possible, Possible, Definite];
    assert_eq!(marked(&world, Inside::default()), kinds);
    let world = world.put(0, 5, at(4) + 8);
    assert_eq!(marked(&world, inside)[4], Reachable);
    // Where some blocks cannot be judged, the numbers are others.
    let mut world = world;
    world.blocks[4].addr.0 += 1;
    assert_eq!(marked(&world, inside)[0], Possible);
}

proptest! {
    #[test]
    fn agrees_with_the_definition(world in small_world(), register in 0u64..20) {
        let plan = RootPlan { words: vec![at(register)], ..plan() };
        let marked = mark(&world.memory, &world.blocks, &plan, &Heuristics::NONE);
        let (kinds, leader) = naive(&world, &plan);
        prop_assert_eq!(&marked.kinds, &kinds);
        prop_assert_eq!(&marked.leader, &leader);
        for (i, members) in &marked.cycle_members {
            prop_assert!(marked.cycle[*i as usize]);
            prop_assert_eq!(kinds[*i as usize], Definite);
            prop_assert!(members.len() >= 2 && members[0] == *i);
        }
    }

    #[test]
    fn a_root_never_adds_a_loss(world in small_world(), word in 0u64..1024) {
        let before = world.mark();
        let after = world.root(HEAP + word);
        let after = after.mark();
        for (old, new) in before.kinds.iter().zip(&after.kinds) {
            prop_assert!(new >= old, "{old:?} became {new:?}");
        }
    }

    #[test]
    fn kept_or_read_again_alike(world in small_world(), limit in 0usize..3) {
        let watch = &mut Watch::default();
        let limit = limit * 4;
        let how = How {
            heuristics: Heuristics::ALL,
            inside: Inside::default(),
            limit,
        };
        let marked = judge(&world.memory, &world.blocks, &plan(), how, watch);
        prop_assert_eq!(marked, world.with(&Heuristics::ALL));
    }
}
