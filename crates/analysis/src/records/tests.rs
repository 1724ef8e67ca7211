use super::*;
use leakscope_model::{Addr, Frame, FreeSite, ModuleId, RawFrame, StackTable};
use proptest::prelude::*;
use std::cmp::Reverse;

fn frame(pc: u64) -> RawFrame {
    RawFrame {
        module: ModuleId(0),
        pc: Addr(pc),
    }
}

/// A table of stacks given innermost first, each a path of its own, so equal
/// frames get different ids; ids are those of the last nodes.
fn stacks(of: &[&[u64]]) -> (StackTable, Vec<StackId>) {
    let mut nodes = vec![(StackId(0), frame(0))];
    let mut ids = Vec::new();
    for stack in of {
        let mut at = StackId(0);
        for pc in stack.iter().rev() {
            nodes.push((at, frame(*pc)));
            at = StackId(nodes.len() as u32 - 1);
        }
        ids.push(at);
    }
    (StackTable::new(nodes), ids)
}

fn block(addr: u64, size: u64, stack: StackId) -> LiveBlock {
    LiveBlock {
        addr: Addr(addr),
        size,
        stack,
        family: Family::Malloc,
        ignored: false,
        age_cs: 0,
        weight: 1.0,
    }
}

fn table(stacks: StackTable, sizes: &[(u64, StackId)]) -> LiveTable {
    LiveTable {
        blocks: (1..)
            .zip(sizes)
            .map(|(i, (size, stack))| block(i * 64, *size, *stack))
            .collect(),
        stacks,
        ..LiveTable::default()
    }
}

fn totals(record: &RawRecord) -> (LossKind, u64, u64) {
    (record.kind, record.bytes, record.blocks)
}

use LossKind::{Definite, Indirect, Possible, Reachable};

#[test]
fn resolution_decides_how_many_frames_are_compared() {
    let (nodes, ids) = stacks(&[
        &[1, 2, 3, 4, 5],
        &[1, 2, 3, 4, 6],
        &[1, 2, 3, 9],
        &[1, 2],
        &[1],
        &[1, 2, 3, 4, 5],
        &[],
    ]);
    let sizes: Vec<_> = ids.iter().map(|id| (10, *id)).collect();
    let table = table(nodes, &sizes);
    let kinds = vec![Definite; sizes.len()];
    let classes = Classified {
        kinds: &kinds,
        ..Classified::default()
    };
    for (word, expected) in [
        // {12345 ×2}, {12346}, {1239}, {12}, {1}, {}
        ("high", vec![2, 1, 1, 1, 1, 1]),
        ("med", vec![3, 1, 1, 1, 1]),
        ("low", vec![5, 1, 1]),
    ] {
        let resolution: Resolution = word.parse().expect("a known word");
        let records = merge(&table, &classes, resolution);
        let blocks: Vec<u64> = records.iter().map(|r| r.blocks).collect();
        assert_eq!(blocks, expected, "{word}");
    }
    let refusal = "middle".parse::<Resolution>().map_err(|e| e.to_string());
    assert_eq!(
        refusal,
        Err("unknown leak resolution 'middle': use low, med or high".to_owned())
    );
}

#[test]
fn kinds_never_merge_and_indirect_blocks_count_at_their_leader() {
    let (nodes, ids) = stacks(&[&[1, 2], &[1, 3], &[7]]);
    let table = table(
        nodes,
        &[
            (31, ids[0]),
            (37, ids[1]),
            (41, ids[1]),
            (43, ids[0]),
            (47, ids[2]),
            (53, ids[0]),
        ],
    );
    let kinds = [Definite, Indirect, Indirect, Possible, Reachable, Definite];
    let leader = [0, 0, 5, 3, 4, 5];
    let cycle = [true, true, false, false, false, false];
    let classes = Classified {
        kinds: &kinds,
        leader: &leader,
        cycle: &cycle,
    };
    let records = merge(&table, &classes, Resolution::High);
    let seen: Vec<_> = records.iter().map(totals).collect();
    assert_eq!(
        seen,
        [
            (Definite, 84, 2),
            (Indirect, 78, 2),
            (Reachable, 47, 1),
            (Possible, 43, 1)
        ]
    );
    let first = &records[0];
    assert_eq!(
        first.indirect,
        KindTotals {
            bytes: 78,
            blocks: 2
        }
    );
    assert_eq!(first.examples, [0, 5]);
    assert_eq!(first.cycle_leader, Some(0));
    assert_eq!(records[1].indirect, KindTotals::default());
    assert_eq!(records[1].cycle_leader, None);
    assert_eq!(first.estimate, None);
}

#[test]
fn hostile_ids_and_short_slices_are_harmless() {
    let (nodes, _) = stacks(&[&[1]]);
    let table = table(
        nodes,
        &[(5, StackId(u32::MAX)), (7, StackId(0)), (11, StackId(1))],
    );
    let classes = Classified {
        kinds: &[Indirect, Indirect],
        leader: &[900, 1],
        cycle: &[true],
    };
    let seen: Vec<_> = merge(&table, &classes, Resolution::Low)
        .iter()
        .map(totals)
        .collect();
    // Both unknown stacks are the empty one.
    assert_eq!(seen, [(Indirect, 12, 2), (Reachable, 11, 1)]);
}

#[test]
fn equal_records_are_ordered_by_place_in_the_module() {
    let (nodes, ids) = stacks(&[&[0x5009, 2], &[0x5001, 2]]);
    let table = table(nodes, &[(13, ids[0]), (13, ids[1])]);
    let records = merge(&table, &Classified::default(), Resolution::High);
    assert_eq!(records[0].stack, ids[1]);
    assert_eq!(records[1].stack, ids[0]);
}

#[test]
fn sampled_sums_are_scaled_and_carry_their_error() {
    let (nodes, ids) = stacks(&[&[1]]);
    let mut table = table(nodes, &[(100, ids[0]), (300, ids[0]), (7, ids[0])]);
    table.sampled_every_bytes = Some(512);
    table.blocks[0].weight = 4.0;
    table.blocks[1].weight = 2.0;
    table.blocks[2].weight = f32::NAN;
    let records = merge(&table, &Classified::default(), Resolution::High);
    assert_eq!(totals(&records[0]), (Reachable, 1007, 7));
    let estimate = records[0].estimate.expect("sampled");
    assert_eq!(estimate.samples, 3);
    // 4·3·100² + 2·1·300² = 300 000
    assert!((estimate.bytes_standard_error - 300_000_f64.sqrt()).abs() < 1e-9);
}

/// The estimator's two claims, computed exactly rather than drawn: over all
/// outcomes of sampling, the expected sum is the truth, and the expected
/// variance estimate is the variance.
#[test]
fn the_estimator_is_unbiased() {
    let mean = 64.0_f64;
    let sizes = [1_u64, 31, 64, 500];
    let weights = sizes.map(|s| (1.0 / (1.0 - (-(s as f64) / mean).exp())) as f32);
    // The chances that these weights, as they are rounded, stand for.
    let p = weights.map(|weight| 1.0 / f64::from(weight));
    let truth: f64 = sizes.iter().map(|s| *s as f64).sum();
    let (mut bytes, mut squares, mut variance) = (0.0, 0.0, 0.0);
    for outcome in 0..1_u32 << sizes.len() {
        let mut sums = Weighted::default();
        let mut chance = 1.0;
        for (i, size) in sizes.iter().enumerate() {
            if outcome >> i & 1 == 1 {
                chance *= p[i];
                let mut sampled = block(0, *size, StackId(0));
                sampled.weight = weights[i];
                sums.add(&sampled);
            } else {
                chance *= 1.0 - p[i];
            }
        }
        bytes += chance * sums.bytes;
        squares += chance * sums.bytes * sums.bytes;
        variance += chance * sums.variance;
    }
    assert!((bytes - truth).abs() < 1e-6, "{bytes} {truth}");
    let actual = squares - bytes * bytes;
    assert!((variance / actual - 1.0).abs() < 1e-6);
}

fn free_site(allocated: StackId, freed: StackId, count: u64) -> FreeSite {
    FreeSite {
        allocated,
        freed,
        count,
        lifetime_sum_cs: count * 250,
    }
}

#[test]
fn siblings_are_sought_by_the_whole_stack_then_by_fewer_frames() {
    let (nodes, ids) = stacks(&[
        &[1, 2, 3], // 0: leaks
        &[1, 2, 4], // 1: healthy, two frames shared
        &[90, 91],  // 2: frees
        &[90, 91],  // 3: frees, the same frames under another id
        &[80, 81],  // 4: frees
        &[1, 7],    // 5: healthy, one frame shared
        &[5],       // 6: unrelated
    ]);
    let mut table = table(nodes, &[(23, ids[0])]);
    let records = merge(&table, &Classified::default(), Resolution::High);

    let found = FreeSiteIndex::new(&table, &records).of(&records[0]);
    assert_eq!(found, FreeSites::default());

    table.free_sites = vec![
        free_site(ids[1], ids[2], 17),
        free_site(ids[1], ids[3], 19),
        free_site(ids[1], ids[4], 5),
        free_site(ids[6], ids[4], 1000),
    ];
    let found = FreeSiteIndex::new(&table, &records).of(&records[0]);
    assert_eq!(found.top, [(ids[3], 36), (ids[4], 5)]);
    assert_eq!((found.samples, found.shared_frames), (41, Some(2)));
    let mean = found.lifetime.map(|l| l.mean_seconds);
    assert_eq!(mean, Some(2.5));

    table.free_sites.push(free_site(ids[0], ids[4], 3));
    let found = FreeSiteIndex::new(&table, &records).of(&records[0]);
    assert_eq!((found.samples, found.shared_frames), (3, None));
    assert_eq!(found.top, [(ids[4], 3)]);
}

#[test]
fn one_shared_frame_counts_only_when_it_is_no_wrapper() {
    let (nodes, ids) = stacks(&[&[1, 2], &[1, 3], &[1, 4], &[90], &[80], &[70]]);
    let mut table = table(nodes, &[(23, ids[0])]);
    let records = merge(&table, &Classified::default(), Resolution::High);
    table.free_sites = vec![free_site(ids[1], ids[3], 7), free_site(ids[2], ids[4], 2)];
    let found = FreeSiteIndex::new(&table, &records).of(&records[0]);
    assert_eq!((found.samples, found.shared_frames), (9, Some(1)));
    table.free_sites.push(free_site(ids[2], ids[5], 7));
    let found = FreeSiteIndex::new(&table, &records).of(&records[0]);
    assert_eq!(found, FreeSites::default());
}

fn named(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        module: Some("/usr/bin/x".to_owned()),
        module_offset: Some(u64::from(line) * 16),
        ..Frame::default()
    }
}

fn nameless(module: &str, offset: u64) -> Frame {
    Frame {
        module: Some(module.to_owned()),
        module_offset: Some(offset),
        ..Frame::default()
    }
}

#[test]
fn stable_ids_ignore_what_changes_between_runs() {
    let base = stable_id(&[named("parse", "/src/http.c", 214), named("main", "m.c", 3)]);
    assert_eq!(base.len(), 16);
    let same = [
        vec![named("parse", "/src/http.c", 215), named("main", "m.c", 9)],
        vec![
            named("parse", "/build/http.c", 214),
            named("main", "m.c", 3),
        ],
        vec![
            named("parse::h0123456789abcdef", "http.c", 1),
            named("main", "m.c", 3),
        ],
        vec![
            named("parse", "http.c", 1),
            named("main", "m.c", 3),
            Frame {
                cut: true,
                ..Frame::default()
            },
        ],
    ];
    for frames in same {
        assert_eq!(stable_id(&frames), base, "{frames:?}");
    }
    let other = [
        vec![named("parse", "http.c", 214)],
        vec![named("parse", "ftp.c", 214), named("main", "m.c", 3)],
        vec![named("parsemain", "http.c", 214), named("", "m.c", 3)],
        vec![
            named("parse::h0123456789abcdeg", "http.c", 1),
            named("main", "m.c", 3),
        ],
        vec![nameless("/usr/bin/x", 3)],
        vec![nameless("/usr/bin/x", 4)],
        vec![nameless("/usr/bin/y", 4)],
    ];
    let mut ids: Vec<String> = other.iter().map(|f| stable_id(f)).collect();
    ids.push(base);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 8);
    assert_eq!(
        stable_id(&[nameless("/opt/lib/a.so (deleted)", 7)]),
        stable_id(&[nameless("/lib/a.so", 7)])
    );
}

#[test]
fn ids_in_a_report_are_unique_and_share_their_stack_part() {
    let first = vec![named("f", "f.c", 10)];
    let second = vec![named("f", "f.c", 20)];
    let ids = stable_ids(&[
        (Definite, &second),
        (Definite, &first),
        (Possible, &second),
        (Indirect, &first),
        (Reachable, &first),
        (Reachable, &first),
    ]);
    let hash = stable_id(&first);
    assert_eq!(
        ids,
        [
            format!("{hash}.2-d"),
            format!("{hash}-d"),
            format!("{hash}.2-p"),
            format!("{hash}-i"),
            format!("{hash}-r"),
            format!("{hash}-r2"),
        ]
    );
}

fn kind() -> impl Strategy<Value = LossKind> {
    prop_oneof![
        Just(Definite),
        Just(Indirect),
        Just(Possible),
        Just(Reachable)
    ]
}

proptest! {
    /// Records partition the blocks of each kind, at any resolution, for any
    /// table, and a finer resolution never gives fewer records.
    #[test]
    fn records_partition_the_blocks(
        nodes in prop::collection::vec((0_u32..40, 0_u64..4), 1..30),
        blocks in prop::collection::vec((0_u64..1000, 0_u32..40, kind(), 0_u32..60, any::<bool>()), 0..60),
    ) {
        let nodes = nodes.iter().map(|(parent, pc)| (StackId(*parent), frame(*pc))).collect();
        let sizes: Vec<_> = blocks.iter().map(|b| (b.0, StackId(b.1))).collect();
        let table = table(StackTable::new(nodes), &sizes);
        let kinds: Vec<_> = blocks.iter().map(|b| b.2).collect();
        let leader: Vec<_> = blocks.iter().map(|b| b.3).collect();
        let cycle: Vec<_> = blocks.iter().map(|b| b.4).collect();
        let classes = Classified { kinds: &kinds, leader: &leader, cycle: &cycle };
        let mut counts = Vec::new();
        for resolution in [Resolution::Low, Resolution::Med, Resolution::High] {
            let records = merge(&table, &classes, resolution);
            counts.push(records.len());
            for kind in [Definite, Indirect, Possible, Reachable] {
                let mut expected = KindTotals::default();
                for b in blocks.iter().filter(|b| b.2 == kind) {
                    expected.add(b.0);
                }
                let mine = records.iter().filter(|r| r.kind == kind);
                let bytes: u64 = mine.clone().map(|r| r.bytes).sum();
                let blocks: u64 = mine.map(|r| r.blocks).sum();
                prop_assert_eq!(KindTotals { bytes, blocks }, expected);
            }
            // The order is the promised one.
            let place = |r: &RawRecord| {
                let size = r.bytes + r.indirect.bytes;
                let count = r.blocks + r.indirect.blocks;
                let frames: Vec<_> = table.stacks.frames(r.stack).map(|f| f.pc).collect();
                (Reverse(size), Reverse(count), r.kind, frames, r.examples.clone())
            };
            prop_assert!(records.is_sorted_by_key(place));
            // No two records of a kind agree in the frames compared.
            let key = |r: &RawRecord| {
                let frames = table.stacks.frames(r.stack);
                let kept: Vec<_> = frames.take(resolution.frames().unwrap_or(usize::MAX)).collect();
                (r.kind, kept)
            };
            let mut keys: Vec<_> = records.iter().map(key).collect();
            keys.sort();
            keys.dedup();
            prop_assert_eq!(keys.len(), records.len());
        }
        prop_assert!(counts.is_sorted());
    }
}
