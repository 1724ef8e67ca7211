//! Sets of addresses as sorted ranges.

use leakscope_model::Range;

/// Sorts and joins: ascending, disjoint, none empty, none touching.
pub fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|r| !r.is_empty());
    ranges.sort_unstable();
    let mut out: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

/// What of `range` is in none of `without`, which is [`joined`].
pub fn subtract(range: Range, without: &[Range]) -> Vec<Range> {
    let mut out = Vec::new();
    let mut at = range.start;
    let first = without.partition_point(|w| w.end <= range.start);
    for hole in &without[first..] {
        if hole.start >= range.end {
            break;
        }
        if hole.start > at {
            out.push(Range {
                start: at,
                end: hole.start,
            });
        }
        at = at.max(hole.end);
    }
    if at < range.end {
        out.push(Range {
            start: at,
            end: range.end,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_and_subtracts() {
        let set = joined(vec![
            Range::new(30, 40),
            Range::new(10, 20),
            Range::new(20, 25),
            Range::new(12, 14),
            Range::new(7, 7),
        ]);
        assert_eq!(set, [Range::new(10, 25), Range::new(30, 40)]);
        assert_eq!(
            subtract(Range::new(0, 50), &set),
            [Range::new(0, 10), Range::new(25, 30), Range::new(40, 50)]
        );
        assert_eq!(subtract(Range::new(15, 35), &set), [Range::new(25, 30)]);
        assert!(subtract(Range::new(31, 40), &set).is_empty());
    }
}
