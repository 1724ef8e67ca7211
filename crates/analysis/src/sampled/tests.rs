use super::*;

fn block(addr: u64, weight: f32) -> LiveBlock {
    LiveBlock {
        weight,
        ..unsampled(addr, 24)
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
