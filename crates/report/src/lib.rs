//! Views of a [`Report`]: one file per format, all behind [`Sink`].
//!
//! A view writes what the report says, in the report's order, into the writer
//! it is given: the same report gives the same bytes. It never judges, opens
//! files, looks at clocks or the environment, and it takes every string of
//! the target (paths, names, arguments) to be hostile: nothing that a
//! terminal would obey leaves unescaped.
//!
//! Begin with [`SINKS`] and [`Options`]; then [`text`] for people and
//! [`json`] for programs.
#![forbid(unsafe_code)]

mod duration;
mod escape;
pub mod json;
mod options;
pub mod text;

use std::io;

use leakscope_model::Report;

pub use duration::seconds;
pub use escape::escape;
pub use options::{Kinds, Options, UnknownKind, selected};

/// A report format.
pub trait Sink: Sync {
    /// What `--format` and `-o FORMAT=PATH` call it.
    fn name(&self) -> &'static str;

    /// Ending of a file name, with its dot, that selects it in `-o PATH`.
    fn extension(&self) -> &'static str;

    /// Writes the whole report. Does not flush.
    ///
    /// # Errors
    /// Those of the writer, unchanged.
    fn write(&self, report: &Report, options: &Options, out: &mut dyn io::Write) -> io::Result<()>;
}

/// Every format, sorted by name.
pub const SINKS: &[&dyn Sink] = &[&json::Json, &text::Text];

/// The format called `name`.
pub fn sink_named(name: &str) -> Option<&'static dyn Sink> {
    SINKS.iter().copied().find(|s| s.name() == name)
}

/// The format that the ending of `file_name` selects.
pub fn sink_for_file(file_name: &str) -> Option<&'static dyn Sink> {
    SINKS
        .iter()
        .copied()
        .find(|s| file_name.ends_with(s.extension()))
}
