//! What a test needs of the machine.

use crate::spawn;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Something that not every machine allows or has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Stopping one's own children with ptrace (`ptrace`).
    Ptrace,
    /// A loader that honours `LD_PRELOAD` (`preload`).
    Preload,
    /// A C compiler named `cc` (`cc`).
    Compiler,
    /// The program of that name on the search path.
    Program(&'static str),
    /// C libraries of other releases: `LEAKSCOPE_LIBCS` names their folders
    /// (`libcs`).
    Libcs,
}

/// Names of needs whose absence is a failure, separated by commas.
const REQUIRE: &str = "LEAKSCOPE_REQUIRE";

impl Need {
    /// Its name in `LEAKSCOPE_REQUIRE`.
    pub fn name(self) -> &'static str {
        match self {
            Need::Ptrace => "ptrace",
            Need::Preload => "preload",
            Need::Compiler => "cc",
            Need::Program(name) => name,
            Need::Libcs => "libcs",
        }
    }

    fn is_met(self) -> bool {
        match self {
            Need::Ptrace => spawn::can_trace_children(),
            Need::Preload => preload_is_honoured(),
            Need::Compiler => on_search_path("cc"),
            Need::Program(name) => on_search_path(name),
            Need::Libcs => !libcs().is_empty(),
        }
    }
}

/// True when the machine has what the test needs. When not, a line says that
/// the test is skipped, and the test should return.
///
/// # Panics
/// When the need is not met and `LEAKSCOPE_REQUIRE` lists it (or `all`), as
/// it does in continuous integration: there nothing may be skipped unseen.
pub fn need(need: Need) -> bool {
    if need.is_met() {
        return true;
    }
    let name = need.name();
    let required = std::env::var(REQUIRE).unwrap_or_default();
    assert!(
        !required
            .split(',')
            .any(|r| matches!(r.trim(), "all") || r.trim() == name),
        "{REQUIRE} lists \"{name}\", which this machine lacks"
    );
    eprintln!("skipped: this machine lacks \"{name}\"");
    false
}

/// Folders with C libraries of other releases, as packages unpack them:
/// `LEAKSCOPE_LIBCS`, separated by colons.
pub fn libcs() -> Vec<PathBuf> {
    let folders = std::env::var_os("LEAKSCOPE_LIBCS").unwrap_or_default();
    let folders = std::env::split_paths(&folders);
    folders.filter(|folder| folder.is_dir()).collect()
}

fn on_search_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

/// The loader complains about a preload that does not exist, if it reads
/// the variable at all.
fn preload_is_honoured() -> bool {
    let output = Command::new("true")
        .env("LD_PRELOAD", "/leakscope-no-such-object.so")
        .stdin(Stdio::null())
        .output();
    output.is_ok_and(|o| o.stderr.windows(10).any(|w| w == b"LD_PRELOAD"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up() {
        assert!(need(Need::Program("sh")));
        assert!(!need(Need::Program("leakscope-no-such-program")));
    }
}
