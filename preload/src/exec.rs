//! exec: the image is about to be replaced.

use crate::recorder::{self, Place};
use crate::x86_64::Saved;
use crate::{ask, sys};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_wire::layout::{state, word};

/// Tells the supervisor, and asks for a check when the user wants one.
pub fn about_to(saved: &Saved, place: Place) {
    let Some(recorder) = recorder::get() else {
        return;
    };
    // A vfork child shares its parent's memory, and is not the parent.
    if !ask::own_process(recorder) {
        return;
    }
    ask::at_exec(recorder, saved, place);
    let s = recorder.segment.futex(word::STATE);
    if s.compare_exchange(state::RUNNING, state::EXECUTING, Acquire, Relaxed)
        .is_ok()
    {
        sys::futex_wake(s);
    }
}

/// exec came back, so it failed.
pub fn failed() {
    let Some(recorder) = recorder::get() else {
        return;
    };
    if !ask::own_process(recorder) {
        return;
    }
    let s = recorder.segment.futex(word::STATE);
    if s.compare_exchange(state::EXECUTING, state::RUNNING, Release, Relaxed)
        .is_ok()
    {
        sys::futex_wake(s);
    }
}
