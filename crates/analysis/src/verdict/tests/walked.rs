//! Processes whose heaps were walked.

use super::*;
use leakscope_model::{HeapCheck, Residence, Retained};

/// A process whose heap was walked, with so much memory kept by malloc.
fn checked(kept: u64, rss: u64) -> ProcessReport {
    let mut process = process();
    process.exit = None;
    process.heap = HeapSummary {
        uncounted: true,
        live_bytes: 33 << 10,
        live_blocks: 1204,
        ..HeapSummary::default()
    };
    process.residence = Some(Residence {
        rss,
        retained: Retained {
            bins: kept,
            ..Retained::default()
        },
        trimmable: kept / 2,
        ..Residence::default()
    });
    process
}

#[test]
fn much_that_malloc_keeps_is_retained_and_no_leak() {
    let verdict = process_verdict(&checked(80 << 20, 100 << 20));
    assert_eq!(verdict.status, VerdictStatus::Retained);
    assert_eq!(
        verdict.sentence,
        "Retained: nothing is lost, but 80.0 MiB of the 100.0 MiB resident (80 %) are free \
         memory that malloc keeps; malloc_trim would give back about 40.0 MiB (heap walked, \
         stopped)."
    );
    for (kept, rss) in [(15 << 20, 20 << 20), (20 << 20, 100 << 20)] {
        let verdict = process_verdict(&checked(kept, rss));
        assert_eq!(verdict.status, VerdictStatus::Clean, "{kept} of {rss}");
    }
    let mut leaking = checked(80 << 20, 100 << 20);
    leaking.loss.definite = totals(48, 1);
    assert_eq!(process_verdict(&leaking).status, VerdictStatus::Leaking);
}

#[test]
fn a_heap_that_was_not_walked_leaves_doubt() {
    let mut process = checked(0, 100 << 20);
    process.notices = vec![Notice {
        code: "foreign-allocator",
        message: String::new(),
    }];
    let verdict = process_verdict(&process);
    assert_eq!(verdict.status, VerdictStatus::Inconclusive);
    assert_eq!(
        verdict.sentence,
        "Inconclusive: nothing is lost among the 1,204 blocks of glibc's malloc, but another \
         allocator's heap could not be walked."
    );
    process.notices.clear();
    process.heap.live_blocks = 0;
    process.coverage.reachability = false;
    assert_eq!(
        process_verdict(&process).sentence,
        "Inconclusive: no heap of glibc's malloc was found in the process."
    );
}

#[test]
fn a_heap_that_contradicts_itself_is_not_clean() {
    let mut process = checked(0, 100 << 20);
    process.coverage.heap_check = Some(HeapCheck {
        agrees: false,
        ..HeapCheck::default()
    });
    let verdict = process_verdict(&process);
    assert_eq!(verdict.status, VerdictStatus::Inconclusive);
    assert_eq!(
        verdict.sentence,
        "Inconclusive: nothing is lost among the 1,204 blocks that were found, but malloc's own \
         sums say that there is more, or was being changed (see the note)."
    );
    process.loss.definite = totals(48, 1);
    assert_eq!(process_verdict(&process).status, VerdictStatus::Leaking);
}

#[test]
fn the_sentence_names_the_type_of_most() {
    let mut process = checked(0, 100 << 20);
    process.loss.definite = totals(4096, 2);
    let mut named = leak(LossKind::Definite, 3000, 1, 0, Vec::new());
    named.type_name = Some("ui::Widget".to_owned());
    process.leaks = vec![named, leak(LossKind::Definite, 1096, 1, 0, Vec::new())];
    let sentence = process_verdict(&process).sentence;
    assert_eq!(
        sentence,
        "Leaking: 4.0 KiB in 2 blocks definitely lost, most (73 %) in objects of type \
         ui::Widget."
    );
}
