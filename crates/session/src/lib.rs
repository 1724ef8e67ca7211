//! Recipes: a request becomes a report: [`run`] and [`check`].
//!
//! It joins what knows nothing of each other: the segment (`wire`) that the
//! recorder fills, the stopped process (`tracee`), the judgement
//! (`analysis`) and the names (`symbols`). It starts the program, hands each
//! process of its tree a segment, checks it when it is about to end, and
//! writes one section per process.
//!
//! What it never does: print, read options from the environment, decide the
//! exit status, or believe anything that the program wrote into a segment.
//!
//! Begin with [`run`]; inside, with `image` (one process image from hello to
//! section) and `check` (stop, read, judge, let go).

mod assemble;
mod check;
mod clock;
mod examine;
mod image;
mod limits;
mod listen;
mod live;
mod mailbox;
mod options;
mod pidfd;
mod place;
mod pool;
mod program;
mod reaper;
mod run;
mod segment;
mod signals;
mod supervisor;

pub use examine::{
    CheckError, CheckOptions, CoreOptions, HolderOptions, Mode, Saved, SnapshotError, check,
    check_core, find_container, find_process, snapshot,
};
pub use leakscope_tracee::CoreTarget;
pub use options::{Follow, RunError, RunErrorKind, RunOptions, RunOutcome, SymbolOptions};
pub use run::{Word, run};
