use super::*;
use leakscope_heap::cpython::Objects;
use leakscope_model::Range;
use leakscope_testkit::FakeMemory;

const PROGRAM: u64 = 0x40_0000;
const DATA: u64 = 0x41_0000;
const HEAP: u64 = 0x5555_5555_0000;
const VTABLE: u64 = DATA + 0x110;
const INFO: u64 = DATA + 0x200;
const NAME: u64 = PROGRAM + 0x303;

/// A program with one class, and its heap.
fn memory() -> FakeMemory {
    let mut memory = FakeMemory::new();
    memory
        .region(PROGRAM, 0x1000, "r-xp", "/bin/p")
        .region(DATA, 0x1000, "r--p", "/bin/p")
        .region(HEAP, 0x1_0000, "rw-p", "[heap]")
        .words(VTABLE - 16, &[0, INFO, PROGRAM])
        .words(INFO, &[DATA + 0x800, NAME])
        .write(NAME, b"N2ui6WidgetE\0");
    memory
}

fn grouped(
    memory: &FakeMemory,
    blocks: &[(u64, u64)],
    kinds: &[LossKind],
) -> (Vec<Group>, Vec<Type>) {
    let leader = (0..blocks.len() as u32).collect();
    with_leaders(memory, blocks, kinds, leader)
}

fn with_leaders(
    memory: &FakeMemory,
    blocks: &[(u64, u64)],
    kinds: &[LossKind],
    leader: Vec<u32>,
) -> (Vec<Group>, Vec<Type>) {
    let marked = Marked {
        kinds: kinds.to_vec(),
        leader,
        cycle: vec![false; blocks.len()],
        ..Marked::default()
    };
    let blocks: Vec<LiveBlock> = blocks.iter().map(|(a, s)| LiveBlock::new(*a, *s)).collect();
    let mut looks = Looks::new(memory, vec![Range::new(HEAP, HEAP + 0x1_0000)]);
    let groups = group(memory, &blocks, &marked, &mut looks);
    (groups, looks.types().to_vec())
}

use LossKind::{Definite, Indirect, Reachable};

#[test]
fn objects_of_cpython_are_known_by_their_number() {
    let memory = memory();
    let blocks: Vec<LiveBlock> = [0, 0x40, 0x80]
        .map(|at| LiveBlock::new(HEAP + at, 48))
        .into();
    let marked = Marked {
        kinds: vec![Definite, Definite, Reachable],
        leader: vec![0, 1, 2],
        cycle: vec![false; 3],
        ..Marked::default()
    };
    let objects = Objects {
        types: vec!["list".to_owned(), "Node".to_owned()],
        of_block: vec![2, 0, 2],
        ..Objects::default()
    };
    let mut looks = Looks::new(&memory, Vec::new()).with_objects(&objects);
    let groups = group(&memory, &blocks, &marked, &mut looks);
    let found: Vec<_> = groups
        .iter()
        .map(|g| (g.type_index, g.totals.blocks))
        .collect();
    assert_eq!(found, [(Some(1), 1), (None, 1), (Some(1), 1)]);
    assert_eq!(looks.types()[1], Type::Python("Node".to_owned()));
}

#[test]
fn objects_are_known_by_their_run_time_type() {
    let mut memory = memory();
    memory.words(HEAP, &[VTABLE]).words(HEAP + 0x40, &[VTABLE]);
    let blocks = [(HEAP, 56), (HEAP + 0x40, 120)];
    let (groups, types) = grouped(&memory, &blocks, &[Definite, Definite]);
    assert_eq!(groups.len(), 1);
    assert_eq!(
        groups[0].totals,
        KindTotals {
            bytes: 176,
            blocks: 2
        }
    );
    let name = &types[groups[0].type_index.unwrap()];
    assert_eq!(name, &Type::Mangled("N2ui6WidgetE".to_owned()));
    // One kind is not the other.
    let (groups, _) = grouped(&memory, &blocks, &[Definite, Reachable]);
    assert_eq!(groups.len(), 2);
}

#[test]
fn what_only_looks_like_an_object_has_no_type() {
    let broken: [fn(&mut FakeMemory); 6] = [
        |m| {
            m.words(VTABLE - 16, &[8]);
        },
        |m| {
            m.words(VTABLE - 8, &[HEAP]);
        },
        |m| {
            m.words(INFO, &[7]);
        },
        |m| {
            m.words(INFO + 8, &[HEAP]);
        },
        |m| {
            m.write(NAME, b"a b");
        },
        |m| {
            m.write(NAME, &[b'N'; 1200]);
        },
    ];
    for change in broken {
        let mut memory = memory();
        change(&mut memory);
        memory.words(HEAP, &[VTABLE]);
        let (groups, types) = grouped(&memory, &[(HEAP, 56)], &[Definite]);
        assert_eq!(groups[0].type_index, None);
        assert!(types.is_empty());
        assert_eq!(
            groups[0].shape,
            "56 bytes: pointer to code or globals, zero, zero, zero"
        );
    }
}

#[test]
fn others_are_known_by_size_and_first_words() {
    let mut memory = memory();
    memory
        .words(HEAP, &[HEAP + 64, 7, 0, u64::MAX])
        .words(HEAP + 0x40, &[HEAP, 9, 0, u64::MAX - 1])
        .write(HEAP + 0x80, b"a string\0\xff\xff")
        .write(HEAP + 0xc0, "Größe".as_bytes());
    let blocks = [
        (HEAP, 40),
        (HEAP + 0x40, 40),
        (HEAP + 0x80, 24),
        (HEAP + 0xc0, 24),
        (HEAP + 0x100, 24),
        (HEAP + 0x1000, 3000),
        (HEAP + 0x2000, 4000),
    ];
    let (groups, _) = grouped(&memory, &blocks, &[Reachable; 7]);
    let mut shapes: Vec<(&str, u64)> = groups
        .iter()
        .map(|g| (g.shape.as_str(), g.totals.blocks))
        .collect();
    shapes.sort_unstable();
    assert_eq!(
        shapes,
        [
            ("2.0 KiB or more, less than twice that, zeroed", 2),
            ("24 bytes, zeroed", 1),
            ("40 bytes: heap pointer, number, zero, other", 2),
            ("text, 24 bytes", 2),
        ]
    );
}

#[test]
fn what_is_lost_through_a_block_counts_to_its_group() {
    let memory = memory();
    let blocks = [(HEAP, 24), (HEAP + 0x20, 40), (HEAP + 0x60, 40)];
    let kinds = [Definite, Indirect, Indirect];
    let (groups, _) = with_leaders(&memory, &blocks, &kinds, vec![0, 0, 0]);
    let definite = groups.iter().find(|g| g.kind == Definite).unwrap();
    assert_eq!(
        definite.indirect,
        KindTotals {
            bytes: 80,
            blocks: 2
        }
    );
    assert_eq!(groups[0].kind, Definite, "104 bytes with what it leads");
    assert_eq!(groups[0].addresses, [Addr(HEAP)]);
    assert_eq!(groups[0].preview.len(), 24);
}

#[test]
fn unreadable_blocks_and_strange_pointers_are_no_matter() {
    let mut memory = memory();
    memory.hole(HEAP + 0x2000, 0x1000);
    memory
        .words(HEAP, &[!7])
        .words(HEAP + 0x40, &[DATA])
        .words(INFO + 8, &[PROGRAM + 0xfff])
        .words(HEAP + 0x80, &[VTABLE]);
    let blocks = [
        (HEAP, 24),
        (HEAP + 0x40, 24),
        (HEAP + 0x80, 24),
        (HEAP + 0x2000, 24),
        (HEAP + 0x2040, 0),
    ];
    let (groups, types) = grouped(&memory, &blocks, &[Definite; 5]);
    assert_eq!(groups.iter().map(|g| g.totals.blocks).sum::<u64>(), 5);
    assert!(types.is_empty());
}

#[test]
fn an_address_that_reads_as_text_is_an_address() {
    let mut memory = memory();
    let target = HEAP + 0x4140;
    assert!(
        target
            .to_le_bytes()
            .iter()
            .take(6)
            .all(u8::is_ascii_graphic)
    );
    memory.words(HEAP, &[target, 0]);
    memory.words(HEAP + 0x80, &[0x40_4040_4040]);
    let blocks = [(HEAP, 24), (HEAP + 0x80, 24)];
    let (groups, _) = grouped(&memory, &blocks, &[Reachable, Reachable]);
    let shapes: Vec<&str> = groups.iter().map(|g| g.shape.as_str()).collect();
    assert_eq!(
        shapes,
        ["24 bytes: heap pointer, zero, zero", "text, 24 bytes"]
    );
}
