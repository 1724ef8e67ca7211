use super::*;
use leakscope_testkit::FakeMemory;
use proptest::prelude::*;

const PROGRAM: u64 = 0x40_0000;
const DATA: u64 = 0x41_0000;
const HEAP: u64 = 0x7f00_0000_0000;
const TYPE: u64 = DATA + 0x100;
const STR: u64 = DATA + 0x300;
const LIST: u64 = DATA + 0x500;
const NODE: u64 = HEAP + 0x8000 + 16;
const HEAD: u64 = DATA + 0x40;

const READY: u64 = 1 << 12;
const COLLECTED: u64 = 1 << 14;
const DICT_BEFORE: u64 = 1 << 4;

/// `type`, `str`, `list`, and a class `Node` with dictionaries.
fn memory() -> FakeMemory {
    let mut memory = FakeMemory::new();
    memory
        .region(PROGRAM, 0x1000, "r-xp", "/bin/python3")
        .region(DATA, 0x1000, "rw-p", "/bin/python3")
        .region(HEAP, 0x1_0000, "rw-p", "");
    let names: [(u64, &[u8]); 4] = [
        (PROGRAM + 0x10, b"type\0"),
        (PROGRAM + 0x20, b"str\0"),
        (PROGRAM + 0x30, b"list\0"),
        (HEAP + 0x7000, b"Node\0"),
    ];
    for (at, name) in names {
        memory.write(at, name);
    }
    let mut kind = |at: u64, of: u64, name: u64, size: u64, flags: u64| {
        memory.words(at, &[1, of, 0, name, size]);
        memory.word(at + 168, flags | READY);
    };
    kind(TYPE, TYPE, names[0].0, 408, COLLECTED);
    kind(STR, TYPE, names[1].0, 48, 0);
    kind(LIST, TYPE, names[2].0, 40, COLLECTED);
    kind(NODE, TYPE, names[3].0, 16, COLLECTED | DICT_BEFORE);
    memory
}

/// With the block of the class `Node` at last.
fn blocks(blocks: &[(u64, u64)]) -> Vec<LiveBlock> {
    let class = (NODE - 16, 1064);
    let all = blocks.iter().chain([&class]);
    all.map(|(addr, size)| LiveBlock::new(*addr, *size))
        .collect()
}

/// A ring of the collector through these places.
fn ring(memory: &mut FakeMemory, places: &[u64]) {
    for (i, at) in places.iter().enumerate() {
        let next = places[(i + 1) % places.len()];
        let previous = places[(i + places.len() - 1) % places.len()];
        memory.words(*at, &[next, previous]);
    }
}

fn names(objects: &Objects) -> Vec<&str> {
    let name = |kind: &u32| match kind.checked_sub(1) {
        Some(at) => objects.types[at as usize].as_str(),
        None => "",
    };
    objects.of_block.iter().map(name).collect()
}

#[test]
fn objects_are_known_by_their_types() {
    let mut memory = memory();
    memory
        .words(HEAP, &[2, STR])
        .words(HEAP + 0x40 + 16, &[1, LIST])
        .words(HEAP + 0x80 + 32, &[7, NODE])
        // A count that is none: items of a list may be types.
        .words(HEAP + 0xc0, &[HEAP, STR, HEAP + 0x40, LIST])
        // Too small for a list.
        .words(HEAP + 0x100 + 16, &[1, LIST])
        // An immortal one, and one that is free.
        .words(HEAP + 0x140, &[0xffff_ffff, STR])
        .words(HEAP + 0x180 + 16, &[0, LIST]);
    let places = [0u64, 0x40, 0x80, 0xc0, 0x100, 0x140, 0x180];
    let sizes = [64, 64, 64, 64, 48, 64, 64];
    let all: Vec<(u64, u64)> = places.iter().map(|p| HEAP + p).zip(sizes).collect();
    let objects = find(&memory, &blocks(&all));
    assert_eq!(
        names(&objects),
        ["str", "list", "Node", "", "", "str", "", "type"]
    );
    assert_eq!(objects.offsets, [0, 2, 4, 0, 0, 0, 2, 2]);
    assert_eq!(objects.count(), 5);
}

#[test]
fn a_chain_of_types_must_end_at_type() {
    let mut memory = memory();
    memory.words(HEAP, &[1, STR]);
    let objects = find(&memory, &blocks(&[(HEAP, 48)]));
    assert_eq!(names(&objects)[0], "str");
    // `type` has another name; then its type is another one.
    memory.write(PROGRAM + 0x10, b"tyqe\0");
    assert_eq!(find(&memory, &blocks(&[(HEAP, 48)])).count(), 0);
    memory.write(PROGRAM + 0x10, b"type\0").word(TYPE + 8, STR);
    assert_eq!(find(&memory, &blocks(&[(HEAP, 48)])).count(), 0);
}

#[test]
fn the_debug_hooks_head_comes_before() {
    let mut memory = memory();
    let mark = |kind: u8| FORBIDDEN | u64::from(kind);
    memory
        .words(HEAP, &[48u64.swap_bytes(), mark(b'o'), 1, STR])
        .words(HEAP + 0x80, &[40u64.swap_bytes(), mark(b'm'), 1, 2])
        .words(
            HEAP + 0x100,
            &[
                600u64.swap_bytes(),
                mark(b'r'),
                560u64.swap_bytes(),
                mark(b'o'),
                0,
                0,
                1,
                LIST,
            ],
        )
        // More was asked for than there is.
        .words(HEAP + 0x400, &[0x100u64.swap_bytes(), mark(b'o'), 1, STR]);
    let all = [
        (HEAP, 96),
        (HEAP + 0x80, 96),
        (HEAP + 0x100, 700),
        (HEAP + 0x400, 96),
    ];
    let objects = find(&memory, &blocks(&all));
    assert_eq!(names(&objects), ["str", "", "list", "", "type"]);
    assert_eq!(objects.offsets, [2, 2, 6, 0, 2]);
}

#[test]
fn links_count_only_when_both_neighbours_return_them() {
    let mut memory = memory();
    let lists = [HEAP, HEAP + 0x40, HEAP + 0x80];
    for list in lists {
        memory.words(list + 16, &[1, LIST]);
    }
    ring(&mut memory, &[HEAD, lists[0], lists[1], lists[2]]);
    let all = lists.map(|at| (at, 64));
    let objects = find(&memory, &blocks(&all));
    assert_eq!(objects.links, [HEAD, lists[0], lists[1], lists[2]]);
    // Flags in the low bits belong to the collector.
    assert!(!objects.is_collecting);
    memory.word(lists[1] + 8, lists[0] | 3);
    let objects = find(&memory, &blocks(&all));
    assert!(objects.links.len() == 4 && objects.is_collecting);
    memory.word(lists[1] + 8, lists[2]);
    let objects = find(&memory, &blocks(&all));
    assert_eq!(objects.links, [lists[2]]);
}

#[test]
fn words_before_an_object_and_a_dictionarys_values_lead_to_starts() {
    let mut memory = memory();
    let values = HEAP + 0x100;
    memory
        .words(HEAP, &[values + 16, 0, 0, 0, 1, NODE])
        .write(values + 15, &[16]);
    let objects = find(&memory, &blocks(&[(HEAP, 64), (values, 64)]));
    assert_eq!(objects.aliases, [values + 16]);
    // A dictionary's: only where the byte before tells.
    memory
        .word(LIST + 168, READY | COLLECTED | 1 << 29)
        .words(HEAP, &[0, 0, 1, LIST, 0, 0, 0, values + 16]);
    let all = blocks(&[(HEAP, 64), (values, 64)]);
    assert_eq!(find(&memory, &all).aliases, [values + 16]);
    memory.write(values + 15, &[24]);
    assert!(find(&memory, &all).aliases.is_empty());
}

#[test]
fn links_read_as_zero() {
    let mut memory = FakeMemory::new();
    memory
        .region(HEAP, 0x1000, "rw-p", "")
        .words(HEAP, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let links = [HEAP + 8, HEAP + 48];
    let unlinked = Unlinked::new(&memory, &links);
    let mut bytes = [0; 64];
    assert_eq!(unlinked.read_some(Addr(HEAP), &mut bytes), 64);
    let words = bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|w| u64::from_le_bytes(*w));
    assert_eq!(words.collect::<Vec<_>>(), [1, 0, 0, 4, 5, 6, 0, 0]);
    // From the middle of one to the middle of another.
    let mut bytes = [9; 40];
    assert_eq!(unlinked.read_some(Addr(HEAP + 20), &mut bytes), 40);
    assert_eq!((bytes[3], bytes[4], bytes[28], bytes[27]), (0, 4, 0, 0));
    assert_eq!(unlinked.read_u64(Addr(HEAP + 16)), Ok(0));
    assert_eq!(unlinked.read_u64(Addr(HEAP + 24)), Ok(4));
}

proptest! {
    /// Whatever is in the target: no panic, and only blocks' own words are
    /// hidden, or pairs that return a link.
    #[test]
    fn any_heap_is_survived(
        words in prop::collection::vec(
            prop_oneof![
                Just(0u64), Just(1), Just(TYPE), Just(STR), Just(LIST), Just(NODE), Just(HEAD),
                (0u64..0x40).prop_map(|n| HEAP + 16 * n),
                any::<u64>(),
            ],
            128,
        ),
        damage in prop::collection::vec((0u64..0x600, any::<u64>()), 0..4),
    ) {
        let mut memory = memory();
        memory.words(HEAP, &words);
        for (at, word) in damage {
            memory.word(DATA + (at & !7), word);
        }
        let all: Vec<(u64, u64)> = (0..16).map(|n| (HEAP + 64 * n, 64)).collect();
        let objects = find(&memory, &blocks(&all));
        prop_assert_eq!(objects.of_block.len(), 17);
        prop_assert_eq!(objects.offsets.len(), 17);
        prop_assert!(objects.links.is_sorted() && objects.aliases.is_sorted());
        let types = objects.types.len() as u32;
        prop_assert!(objects.of_block.iter().all(|kind| *kind <= types));
    }
}
