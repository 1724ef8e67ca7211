//! What the verdict depends on, out of one report or summed over several.

use leakscope_model::{
    Consistency, ErrorCode, KindTotals, LossKind, LossSummary, ProcessReport, Residence,
    VerdictStatus, Watched,
};
use std::cmp::Reverse;

/// Wrong frees, by code.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Problems {
    pub(super) double_frees: u64,
    pub(super) invalid_frees: u64,
    pub(super) mismatched_frees: u64,
    pub(super) open_descriptors: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) loss: LossSummary,
    pub(super) live: KindTotals,
    pub(super) allocations: u64,
    pub(super) lost_mappings: KindTotals,
    pub(super) maybe_lost_mappings: KindTotals,
    pub(super) problems: Problems,
    pub(super) dropped: u64,
    pub(super) unreadable: u64,
    pub(super) sampled_every: Option<u64>,
    /// Heaps that count as held as a whole: in a sample, those of allocators
    /// that cannot be walked.
    pub(super) held_heaps: bool,
    /// The blocks were found by walking heaps, and other allocators' heaps
    /// could not be walked.
    pub(super) opaque_heaps: bool,
    /// What was walked does not agree with the allocator's own sums.
    pub(super) doubtful: bool,
    /// The blocks were found by walking heaps.
    pub(super) walked: bool,
    /// Where the resident set is.
    pub(super) residence: Option<Residence>,
    /// How it was looked at more than once.
    pub(super) watched: Option<Watched>,
    /// What rises from look to look: reachable, and definitely lost.
    pub(super) rising: u64,
    pub(super) rising_lost: u64,
    /// The weakest; `None` for a sum over nothing.
    pub(super) consistency: Option<Consistency>,
    pub(super) reachability: bool,
}

impl Facts {
    pub(super) fn of(process: &ProcessReport) -> Facts {
        let coverage = &process.coverage;
        let mapped = |kind| {
            let mut sum = KindTotals::default();
            for m in process.mappings.iter().filter(|m| m.kind == kind) {
                plus(
                    &mut sum,
                    KindTotals {
                        bytes: m.bytes,
                        blocks: m.count,
                    },
                );
            }
            sum
        };
        let errors = |code| {
            let mine = process.errors.iter().filter(|e| e.code == code);
            mine.fold(0, |sum: u64, e| sum.saturating_add(e.count))
        };
        let rising = |kind| {
            let leaks = process.leaks.iter().filter(|leak| leak.kind == kind);
            let rising = leaks.filter_map(|leak| leak.growth.filter(|g| g.rising));
            rising.fold(0, |sum: u64, g| sum.saturating_add(g.bytes.unsigned_abs()))
        };
        let has = |code| process.notices.iter().any(|n| n.code == code);
        Facts {
            loss: process.loss,
            live: KindTotals {
                bytes: process.heap.live_bytes,
                blocks: process.heap.live_blocks,
            },
            allocations: process.heap.allocations,
            lost_mappings: mapped(LossKind::Definite),
            maybe_lost_mappings: mapped(LossKind::Possible),
            problems: Problems {
                double_frees: errors(ErrorCode::DoubleFree),
                invalid_frees: errors(ErrorCode::InvalidFree),
                mismatched_frees: errors(ErrorCode::MismatchedFree),
                open_descriptors: errors(ErrorCode::FdLeak),
            },
            dropped: coverage.dropped_events,
            unreadable: coverage.unreadable_bytes,
            sampled_every: coverage.sampled_every_bytes,
            held_heaps: coverage.sampled_every_bytes.is_some() && has("foreign-allocator"),
            opaque_heaps: process.heap.uncounted && has("foreign-allocator"),
            doubtful: coverage
                .heap_check
                .as_ref()
                .is_some_and(|check| !check.agrees),
            walked: process.heap.uncounted,
            residence: process.residence,
            watched: process.watched,
            rising: rising(LossKind::Reachable),
            rising_lost: rising(LossKind::Definite),
            consistency: Some(coverage.consistency),
            reachability: coverage.reachability,
        }
    }

    pub(super) fn status(&self) -> VerdictStatus {
        let lost = [
            self.loss.definite,
            self.loss.possible,
            self.lost_mappings,
            self.maybe_lost_mappings,
        ];
        // In a heap that contradicts itself, what is possibly lost may be free.
        let sure = [self.loss.definite, self.lost_mappings];
        let lost = if self.doubtful { &sure[..] } else { &lost[..] };
        if lost.iter().any(|totals| totals.blocks > 0) {
            return VerdictStatus::Leaking;
        }
        // With every block freed nothing can be lost, examined or not; but
        // then something must have been recorded at all.
        let nothing_live = self.live.blocks == 0 && self.allocations > 0;
        let unseen = self.dropped > 0 || self.opaque_heaps || self.doubtful;
        if unseen || !(self.reachability || nothing_live) {
            return VerdictStatus::Inconclusive;
        }
        if self.is_growing() {
            return VerdictStatus::Growing;
        }
        if self.residence.is_some_and(|r| is_retained(&r)) {
            return VerdictStatus::Retained;
        }
        VerdictStatus::Clean
    }

    /// Reachable memory rises by more than the noise of a running program.
    fn is_growing(&self) -> bool {
        self.watched.is_some()
            && self.rising >= GROWTH_BYTES
            && self.rising >= self.live.bytes / GROWTH_PART
    }

    /// Bytes per second of what rises; `None` when nobody watched.
    pub(super) fn rate(&self, bytes: u64) -> Option<f64> {
        let seconds = self.watched.filter(|w| w.seconds > 0.0)?.seconds;
        Some(bytes as f64 / seconds)
    }

    /// Sorts the process that lost most first.
    pub(super) fn least_lost(&self) -> impl Ord + use<> {
        let sure = [
            self.loss.definite.bytes,
            self.loss.indirect.bytes,
            self.lost_mappings.bytes,
        ];
        let maybe = [self.loss.possible.bytes, self.maybe_lost_mappings.bytes];
        let sum = |of: &[u64]| of.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        (
            Reverse(
                self.loss
                    .definite
                    .blocks
                    .saturating_add(self.lost_mappings.blocks)
                    > 0,
            ),
            Reverse(sum(&sure)),
            Reverse(sum(&maybe)),
            Reverse(self.live.bytes),
        )
    }

    /// Adds another process.
    pub(super) fn add(&mut self, other: &Facts) {
        let LossSummary {
            definite,
            indirect,
            possible,
            reachable,
            suppressed,
        } = &mut self.loss;
        plus(definite, other.loss.definite);
        plus(indirect, other.loss.indirect);
        plus(possible, other.loss.possible);
        plus(reachable, other.loss.reachable);
        plus(suppressed, other.loss.suppressed);
        plus(&mut self.live, other.live);
        plus(&mut self.lost_mappings, other.lost_mappings);
        plus(&mut self.maybe_lost_mappings, other.maybe_lost_mappings);
        let mine = &mut self.problems;
        for (sum, more) in [
            (&mut self.allocations, other.allocations),
            (&mut self.dropped, other.dropped),
            (&mut self.unreadable, other.unreadable),
            (&mut mine.double_frees, other.problems.double_frees),
            (&mut mine.invalid_frees, other.problems.invalid_frees),
            (&mut mine.mismatched_frees, other.problems.mismatched_frees),
            (&mut mine.open_descriptors, other.problems.open_descriptors),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.sampled_every = self.sampled_every.max(other.sampled_every);
        self.held_heaps |= other.held_heaps;
        self.opaque_heaps |= other.opaque_heaps;
        self.walked |= other.walked;
        let first = self.consistency.is_none();
        let weaker = |c: &Option<Consistency>| c.map_or(0, weakness);
        if weaker(&other.consistency) > weaker(&self.consistency) {
            self.consistency = other.consistency;
        }
        self.reachability = other.reachability && (first || self.reachability);
    }

    /// These facts with the wrong frees and descriptors of `all`.
    pub(super) fn with_problems_of(&self, all: &Facts) -> Facts {
        Facts {
            problems: all.problems,
            ..self.clone()
        }
    }
}

/// Growth worth a verdict: this many bytes, and this part of all that lives.
const GROWTH_BYTES: u64 = 64 << 10;
const GROWTH_PART: u64 = 200;

/// Free chunks worth a verdict: this many bytes in RAM, and this part of all
/// that is.
const RETAINED_BYTES: u64 = 16 << 20;
const RETAINED_PART: u64 = 4;

fn is_retained(residence: &Residence) -> bool {
    let kept = residence.retained.total();
    kept >= RETAINED_BYTES && kept >= residence.rss / RETAINED_PART
}

/// What says less about the moment of the check has the higher number; all
/// are above zero.
fn weakness(consistency: Consistency) -> u8 {
    match consistency {
        Consistency::Stopped => 1,
        Consistency::Forked => 2,
        Consistency::Racing => 3,
        Consistency::Dead => 4,
    }
}

pub(super) fn plus(sum: &mut KindTotals, more: KindTotals) {
    sum.bytes = sum.bytes.saturating_add(more.bytes);
    sum.blocks = sum.blocks.saturating_add(more.blocks);
}
