//! What a view is asked to show.

use std::fmt;
use std::str::FromStr;

use leakscope_model::{Frame, Leak, LossKind, ProcessReport};

/// A set of loss kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kinds {
    /// Definitely lost.
    pub definite: bool,
    /// Indirectly lost.
    pub indirect: bool,
    /// Possibly lost.
    pub possible: bool,
    /// Still reachable.
    pub reachable: bool,
}

impl Kinds {
    /// Every kind.
    pub const ALL: Kinds = Kinds {
        definite: true,
        indirect: true,
        possible: true,
        reachable: true,
    };

    /// No kind.
    pub const NONE: Kinds = Kinds {
        definite: false,
        indirect: false,
        possible: false,
        reachable: false,
    };

    /// True when `kind` belongs to the set.
    pub fn has(self, kind: LossKind) -> bool {
        match kind {
            LossKind::Definite => self.definite,
            LossKind::Indirect => self.indirect,
            LossKind::Possible => self.possible,
            LossKind::Reachable => self.reachable,
        }
    }

    /// The members, in the order of the summary.
    pub fn list(self) -> Vec<LossKind> {
        [
            LossKind::Definite,
            LossKind::Indirect,
            LossKind::Possible,
            LossKind::Reachable,
        ]
        .into_iter()
        .filter(|&k| self.has(k))
        .collect()
    }
}

impl Default for Kinds {
    /// What memcheck shows by default: definite and possible.
    fn default() -> Kinds {
        Kinds {
            definite: true,
            possible: true,
            ..Kinds::NONE
        }
    }
}

/// A word that names no loss kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKind(String);

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "'{}' is no loss kind; give definite, indirect, possible, reachable, all or none, \
             separated by commas",
            crate::escape(&self.0)
        )
    }
}

impl std::error::Error for UnknownKind {}

impl FromStr for Kinds {
    type Err = UnknownKind;

    /// Reads `definite,possible`, `all` or `none`.
    fn from_str(text: &str) -> Result<Kinds, UnknownKind> {
        let mut kinds = Kinds::NONE;
        for word in text.split(',').map(str::trim) {
            match word {
                "definite" => kinds.definite = true,
                "indirect" => kinds.indirect = true,
                "possible" => kinds.possible = true,
                "reachable" => kinds.reachable = true,
                "all" => kinds = Kinds::ALL,
                "none" => {}
                other => return Err(UnknownKind(other.to_owned())),
            }
        }
        Ok(kinds)
    }
}

/// How a report is shown. JSON always carries everything, so of these only
/// the text obeys all.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kinds of which records are shown. Where reachability could not be
    /// judged, live blocks are shown whatever it says.
    pub kinds: Kinds,
    /// At most so many records per process; `None` shows all.
    pub top: Option<usize>,
    /// Records with fewer bytes (direct and indirect) are left out.
    pub min_bytes: u64,
    /// Colours by ANSI escapes.
    pub colour: bool,
    /// Columns of the terminal; `None` never folds a line.
    pub width: Option<usize>,
    /// Descriptors with the stacks that opened them, instead of one line.
    pub fds: bool,
    /// Say where other blocks of a lost block's place were freed. False when
    /// that was not recorded, so that "never freed" is not claimed.
    pub free_sites: bool,
    /// Only the verdict.
    pub quiet: bool,
    /// Chooses the frame of a stack that a person should look at: judging
    /// that is not a view's business, and the verdict must choose the same.
    pub own_frame: fn(&[Frame]) -> Option<&Frame>,
    /// Directories whose files are shown by their relative path: the current
    /// directory and source roots.
    pub roots: Vec<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            kinds: Kinds::default(),
            top: Some(25),
            min_bytes: 0,
            colour: false,
            width: None,
            fds: false,
            free_sites: true,
            quiet: false,
            own_frame: innermost_named,
            roots: Vec::new(),
        }
    }
}

fn innermost_named(stack: &[Frame]) -> Option<&Frame> {
    let named = stack.iter().find(|f| f.function.is_some());
    named.or_else(|| stack.iter().find(|f| !f.cut))
}

/// What rises from look to look is always worth a look of the reader.
fn is_rising(leak: &Leak) -> bool {
    leak.kind == LossKind::Reachable && leak.growth.is_some_and(|g| g.rising)
}

/// The loss records of `process` that `options` ask for, in the report's
/// order, before the limit [`Options::top`] is applied.
pub fn selected<'a>(
    process: &'a ProcessReport,
    options: &Options,
) -> impl Iterator<Item = &'a Leak> {
    let mut kinds = options.kinds;
    kinds.reachable |= !process.coverage.reachability;
    let min_bytes = options.min_bytes;
    process
        .leaks
        .iter()
        .filter(move |l| (kinds.has(l.kind) || is_rising(l)) && total_bytes(l) >= min_bytes)
}

/// Direct and indirect bytes of a record.
pub(crate) fn total_bytes(leak: &Leak) -> u64 {
    leak.bytes.saturating_add(leak.indirect.bytes)
}

/// Direct and indirect blocks of a record.
pub(crate) fn total_blocks(leak: &Leak) -> u64 {
    leak.blocks.saturating_add(leak.indirect.blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_as_words() {
        assert_eq!("definite,possible".parse(), Ok(Kinds::default()));
        assert_eq!("all".parse(), Ok(Kinds::ALL));
        assert_eq!("none".parse(), Ok(Kinds::NONE));
        assert_eq!(
            "reachable, indirect".parse(),
            Ok(Kinds {
                reachable: true,
                indirect: true,
                ..Kinds::NONE
            })
        );
        for bad in ["", "definitely", "definite,,possible", "ALL"] {
            let e = bad.parse::<Kinds>().expect_err(bad);
            assert!(e.to_string().contains("definite, indirect"), "{e}");
        }
    }
}
