//! What grows from look to look: reachable memory that nobody frees is no leak
//! by any pointer, and fills a machine all the same.

use leakscope_model::{Growth, KindTotals};
use std::collections::HashMap;

/// What one look saw of each record, by the record's id.
#[derive(Clone, Debug, Default)]
pub struct Look {
    records: HashMap<String, KindTotals>,
}

impl Look {
    /// From the records of one look; of equal ids the sum.
    pub fn new(records: impl IntoIterator<Item = (String, KindTotals)>) -> Look {
        let mut look = Look::default();
        for (id, totals) in records {
            let sum = look.records.entry(id).or_default();
            sum.bytes = sum.bytes.saturating_add(totals.bytes);
            sum.blocks = sum.blocks.saturating_add(totals.blocks);
        }
        look
    }

    fn of(&self, id: &str) -> KindTotals {
        self.records.get(id).copied().unwrap_or_default()
    }

    /// Bytes of all records.
    pub fn bytes(&self) -> u64 {
        let bytes = self.records.values().map(|t| t.bytes);
        bytes.fold(0, u64::saturating_add)
    }
}

/// How the record `id` changed over `looks`; `None` for fewer than two.
///
/// It counts as rising when it never shrank and grew in more than half of the
/// steps, of which there must be two: growth between two looks alone may be
/// anything.
pub fn growth(looks: &[Look], id: &str) -> Option<Growth> {
    let (first, last) = (looks.first()?, looks.last()?);
    let steps = looks.len().checked_sub(1).filter(|steps| *steps > 0)?;
    let (mut grew, mut shrank) = (0, false);
    for pair in looks.windows(2) {
        let [before, after] = pair else { continue };
        let (before, after) = (before.of(id).bytes, after.of(id).bytes);
        grew += usize::from(after > before);
        shrank |= after < before;
    }
    let (first, last) = (first.of(id), last.of(id));
    Some(Growth {
        bytes: difference(last.bytes, first.bytes),
        blocks: difference(last.blocks, first.blocks),
        rising: steps >= 2 && !shrank && 2 * grew > steps,
    })
}

/// `after - before`, at the ends of its range where it does not fit.
pub fn difference(after: u64, before: u64) -> i64 {
    let apart = i64::try_from(after.abs_diff(before)).unwrap_or(i64::MAX);
    if after < before { -apart } else { apart }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(bytes: &[u64]) -> Vec<Look> {
        let totals = bytes.iter().map(|bytes| KindTotals {
            bytes: *bytes,
            blocks: bytes / 10,
        });
        totals
            .map(|totals| Look::new([("a".to_owned(), totals)]))
            .collect()
    }

    #[test]
    fn rising_is_growing_in_most_steps_and_never_shrinking() {
        let table: [(&[u64], Option<bool>); 9] = [
            (&[], None),
            (&[10], None),
            (&[10, 20], Some(false)),
            (&[10, 20, 30], Some(true)),
            (&[10, 20, 20], Some(false)),
            (&[10, 20, 20, 30], Some(true)),
            (&[10, 40, 30, 50], Some(false)),
            (&[10, 10, 10], Some(false)),
            (&[0, 10, 20], Some(true)),
        ];
        for (bytes, rising) in table {
            let growth = growth(&looks(bytes), "a");
            assert_eq!(growth.map(|g| g.rising), rising, "{bytes:?}");
        }
        let growth = |bytes| growth(&looks(bytes), "a").map(|g| (g.bytes, g.blocks));
        assert_eq!(growth(&[100, 50, 70]), Some((-30, -3)));
        assert_eq!(
            growth(&[u64::MAX, 0]),
            Some((-i64::MAX, -(u64::MAX as i128 / 10) as i64))
        );
    }

    #[test]
    fn records_that_come_and_go_count_from_and_to_nothing() {
        let mut all = looks(&[10, 20]);
        all.push(Look::default());
        assert_eq!(growth(&all, "a").map(|g| g.bytes), Some(-10));
        assert_eq!(growth(&all, "b"), Some(Growth::default()));
        let twice = [(
            "a".to_owned(),
            KindTotals {
                bytes: 3,
                blocks: 1,
            },
        ); 1];
        let look = Look::new(twice.iter().cloned().chain(twice.iter().cloned()));
        assert_eq!((look.of("a").bytes, look.bytes()), (6, 6));
    }
}
