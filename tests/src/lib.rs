//! What the tests of real processes share: building the fixture programs,
//! running them with and without leakscope, and reading the report.
//!
//! What it never does: judge by time. A run that hangs is ended after some
//! minutes, which is a failure; nothing else looks at a clock.
//!
//! Begin with [`Fixture`] (a program and what its report must contain), then
//! [`compare::fixture`] (the whole test of one).
#![forbid(unsafe_code)]

pub mod build;
pub mod compare;
pub mod expect;
pub mod memcheck;
pub mod report;
pub mod run;

pub use build::Built;
pub use expect::Fixture;
pub use report::Section;

/// Result of a test: the text says what differs and how to see it again.
pub type Outcome = Result<(), String>;
