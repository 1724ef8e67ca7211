//! Plain data that every part of leakscope speaks: addresses, stacks, live
//! blocks, findings and the report.
//!
//! What it never does: input, output, clocks, serialisation. A serialised
//! shape is a promise made once, in `leakscope-report`.
//!
//! Begin with [`Report`] (what a command produces) and [`LiveTable`] (what
//! the recorder knows).

mod addr;
mod holder;
mod live;
pub mod quantity;
mod report;

pub use addr::{Addr, Range};
pub use holder::{
    Find, Holder, HolderRoot, HolderStep, Largest, Place, PlaceKind, PointedBy, Retaining, RootKind,
};
pub use live::{
    Family, FdRecord, FreeSite, HeapTotals, LiveBlock, LiveMapping, LiveTable, LossCounters,
    ModuleId, RawFrame, RecordedError, RecordedErrorKind, RecordedModule, RootHints, StackId,
    StackTable, ThreadState,
};
pub use report::{
    Command, Consistency, Content, Coverage, ErrorCode, ErrorRecord, ExitKind, FdLeak, Frame,
    FreeSiteLine, Growth, HeapCheck, HeapSummary, KindTotals, Leak, Lifetime, LossKind,
    LossSummary, MappingLeak, Notice, OtherHeap, ProcessReport, Report, Residence, Retained,
    RootCounts, SampleEstimate, SuppressionUse, Verdict, VerdictStatus, Watched,
};
