//! Cost per capture; run by hand:
//! `LEAKSCOPE_MEASURE=1 cargo test --release -p leakscope-recorder-core cost -- --nocapture`.

use super::target::{Target, call, quick_event, with};
use std::ffi::c_void;
use std::prelude::v1::*;
use std::time::Instant;

/// Enough to see that it runs; `LEAKSCOPE_MEASURE=1` takes enough to quote.
fn rounds() -> usize {
    if std::env::var_os("LEAKSCOPE_MEASURE").is_some() {
        200
    } else {
        2
    }
}

/// Least time of [`rounds`] runs, divided by the events of each, in ns.
fn best(target: &Target, mut body: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    with(target, || {
        for _ in 0..rounds() {
            let before = target.counted.get();
            let begin = Instant::now();
            body();
            let events = target.counted.get() - before;
            best = best.min(begin.elapsed().as_nanos() as f64 / events as f64);
        }
    });
    best
}

/// On a thread of its own without std's frames: six frames are there anyway.
extern "C" fn measure(_: *mut c_void) -> *mut c_void {
    for depth in [10, 30, 60] {
        let target = Target::new(256);
        let cost = best(&target, || {
            call!("steady", depth - 6, 10_007, quick_event());
        });
        let (frames, slots) = target.kept_size();
        std::println!("steady site, {frames} frames, {slots} slots: {cost:.1} ns");
    }
    let target = Target::new(256);
    let cost = best(&target, || {
        for seed in 0..7 {
            call!("random_tree", seed * 7919, 12, quick_event());
        }
    });
    std::println!("random calls: {cost:.1} ns");
    let target = Target::new(256);
    let cost = best(&target, || {
        call!("every_level", 2_003, quick_event());
    });
    std::println!("recursion, 2 003 deep, event at each level: {cost:.1} ns");
    std::ptr::null_mut()
}

#[test]
fn cost_of_a_capture() {
    // SAFETY: a thread with default attributes, joined before the end.
    unsafe {
        let mut thread = std::mem::zeroed();
        let nothing = std::ptr::null_mut();
        assert_eq!(
            libc::pthread_create(&mut thread, std::ptr::null(), measure, nothing),
            0
        );
        libc::pthread_join(thread, std::ptr::null_mut());
    }
}
