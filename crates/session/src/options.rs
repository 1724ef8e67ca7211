//! What a `run` is asked to do, what it hands back, and how it refuses.
//!
//! Plain data: whoever fills it in has already read files and environment, so
//! the recipe itself asks nobody.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use leakscope_analysis::mark::Heuristics;
use leakscope_analysis::records::Resolution;
use leakscope_model::{ExitKind, LossKind, Report};

/// Everything that `leakscope run` needs to know.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The program and its arguments; never empty. The program is looked up
    /// in `PATH` as execvp(3) does.
    pub argv: Vec<OsString>,
    /// Which processes get a section.
    pub follow: Follow,
    /// Frames kept of each call stack, innermost first.
    pub max_depth: u32,
    /// Mean bytes between samples; `None` records every allocation.
    pub sample: Option<u64>,
    /// Smallest application mapping (bytes) that is tracked; `None` tracks no
    /// mappings.
    pub mmap_min: Option<u64>,
    /// Judge an image too when it is about to be replaced by exec.
    pub at_exec: bool,
    /// Sample where blocks are freed (the usual free site of each site).
    pub free_sites: bool,
    /// How much of two stacks must be equal for their blocks to be merged.
    pub resolution: Resolution,
    /// Interior-pointer idioms that count as start pointers.
    pub heuristics: Heuristics,
    /// Suppression files of the user: where each came from (for messages)
    /// and its bytes.
    pub suppressions: Vec<(String, Vec<u8>)>,
    /// Apply the built-in suppressions as well.
    pub builtin_suppressions: bool,
    /// Where names come from.
    pub symbols: SymbolOptions,
    /// Kinds that the user asked to see. Of others, the largest records are
    /// kept, should there be very many.
    pub show: Vec<LossKind>,
    /// Kinds of which every record will be shown with names. Records of
    /// other kinds may keep bare module offsets, which costs nothing.
    pub symbolise: Vec<LossKind>,
}

/// Which processes of the tree are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// The program and everything it forks or executes.
    Children,
    /// Only the program itself.
    None,
}

/// Where function names and lines come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SymbolOptions {
    /// Show bare `module+offset` only: read no symbols at all.
    pub no_symbols: bool,
    /// Further directories of separate debug files, before the system's own.
    pub debug_dirs: Vec<PathBuf>,
    /// A source path of the debug information is shown as the file below this
    /// directory that matches its longest tail.
    pub source_root: Option<PathBuf>,
    /// debuginfod servers, as `DEBUGINFOD_URLS` lists them; empty asks none.
    pub debuginfod_urls: String,
    /// Where downloaded debug files are kept; `None` keeps none.
    pub debuginfod_cache: Option<PathBuf>,
}

/// What a finished run hands back.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// The report.
    pub report: Report,
    /// How the program itself ended.
    pub exit: ExitKind,
    /// The program's status as wait(2) encodes it.
    pub wait_status: i32,
}

/// Why there was nothing to report about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunError {
    /// For deciding the exit status.
    pub kind: RunErrorKind,
    /// For reading: one clause without a final dot; names what failed, on
    /// what, and the remedy where there is one.
    pub text: String,
}

/// Coarse kinds of [`RunError`], as far as the exit status tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunErrorKind {
    /// The program does not exist (127).
    NotFound,
    /// The program exists and cannot be executed (126).
    NotExecutable,
    /// leakscope itself failed (125).
    Own,
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for RunError {}
