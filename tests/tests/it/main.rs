//! Tests of the real `leakscope` on real processes.
//!
//! Each fixture program is a test of its own, `program::NAME`; where memcheck
//! is installed there is a `memcheck::NAME` beside it. `check::program::NAME`
//! examines the same program, unprepared, as it is about to end;
//! `libcs::RELEASE::program::NAME` does so with another C library.

mod check;
mod command;
mod forked;
mod holders;
mod libcs;
mod places;
mod pools;
mod programs;
mod real;
mod recorded;
mod refused;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = programs::trials();
    trials.extend(real::trials());
    trials.extend(command::trials());
    trials.extend(check::trials());
    trials.extend(forked::trials());
    trials.extend(recorded::trials());
    trials.extend(pools::trials());
    trials.extend(holders::trials());
    trials.extend(libcs::trials());
    trials.extend(places::trials());
    trials.extend(refused::trials());
    libtest_mimic::run(&arguments, trials).exit();
}

/// A test from a function.
fn trial(name: String, test: impl FnOnce() -> leakscope_e2e::Outcome + Send + 'static) -> Trial {
    Trial::test(name, move || test().map_err(Failed::from))
}
