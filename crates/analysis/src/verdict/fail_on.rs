//! `--fail-on`: which findings make the exit status say so.

use leakscope_model::{ErrorCode, KindTotals, LossKind, ProcessReport, Report};
use std::fmt;
use std::str::FromStr;

/// Kinds of findings, as `--fail-on KIND[,KIND…]` names them:
///
/// | word | fails when |
/// |---|---|
/// | `definite`, `indirect`, `possible`, `reachable` | a block of that kind is live and not suppressed |
/// | `mapping` | an application mapping is definitely or possibly lost |
/// | `leak` | the verdict's status is leaking: `definite`, `possible` or `mapping` |
/// | `double-free`, `invalid-free`, `mismatched-free` | such a free was seen |
/// | `errors` | any of these three |
/// | `fd-leak` | a descriptor was never closed |
/// | `all` | any of the above, reachable blocks included |
/// | `none` | never |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailOn(u16);

const DEFINITE: u16 = 1;
const INDIRECT: u16 = 1 << 1;
const POSSIBLE: u16 = 1 << 2;
const REACHABLE: u16 = 1 << 3;
const MAPPING: u16 = 1 << 4;
const DOUBLE_FREE: u16 = 1 << 5;
const INVALID_FREE: u16 = 1 << 6;
const MISMATCHED_FREE: u16 = 1 << 7;
const FD_LEAK: u16 = 1 << 8;

const WORDS: [(&str, u16); 13] = [
    ("definite", DEFINITE),
    ("indirect", INDIRECT),
    ("possible", POSSIBLE),
    ("reachable", REACHABLE),
    ("leak", DEFINITE | POSSIBLE | MAPPING),
    ("mapping", MAPPING),
    ("double-free", DOUBLE_FREE),
    ("invalid-free", INVALID_FREE),
    ("mismatched-free", MISMATCHED_FREE),
    ("errors", DOUBLE_FREE | INVALID_FREE | MISMATCHED_FREE),
    ("fd-leak", FD_LEAK),
    ("all", (FD_LEAK << 1) - 1),
    ("none", 0),
];

impl FailOn {
    /// Never fails.
    pub const NONE: FailOn = FailOn(0);

    /// True when a process of the report has what this names.
    pub fn found(self, report: &Report) -> bool {
        report.processes.iter().any(|p| self.found_in(p))
    }

    /// True when the process has what this names.
    pub fn found_in(self, process: &ProcessReport) -> bool {
        self.0 & findings(process) != 0
    }
}

fn findings(process: &ProcessReport) -> u16 {
    let loss = &process.loss;
    let some = |totals: KindTotals, bit| if totals.blocks > 0 { bit } else { 0 };
    let mut found = some(loss.definite, DEFINITE)
        | some(loss.indirect, INDIRECT)
        | some(loss.possible, POSSIBLE)
        | some(loss.reachable, REACHABLE);
    let lost = |kind| matches!(kind, LossKind::Definite | LossKind::Possible);
    if process.mappings.iter().any(|m| m.count > 0 && lost(m.kind)) {
        found |= MAPPING;
    }
    for error in process.errors.iter().filter(|e| e.count > 0) {
        found |= match error.code {
            ErrorCode::DoubleFree => DOUBLE_FREE,
            ErrorCode::InvalidFree => INVALID_FREE,
            ErrorCode::MismatchedFree => MISMATCHED_FREE,
            ErrorCode::FdLeak => FD_LEAK,
        };
    }
    found
}

/// A word that `--fail-on` does not know, or `none` among others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownFailKind(String);

impl fmt::Display for UnknownFailKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_str() {
            "none" => write!(f, "'none' stands alone: name what to fail on, or none"),
            word => {
                write!(f, "unknown kind '{word}' to fail on: use ")?;
                for (i, (known, _)) in WORDS.iter().enumerate() {
                    let before = match i {
                        0 => "",
                        _ if i + 1 == WORDS.len() => " or ",
                        _ => ", ",
                    };
                    write!(f, "{before}{known}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for UnknownFailKind {}

impl FromStr for FailOn {
    type Err = UnknownFailKind;

    fn from_str(text: &str) -> Result<FailOn, UnknownFailKind> {
        let mut bits = 0;
        for word in text.split(',').map(str::trim) {
            let known = WORDS.iter().find(|(name, _)| *name == word);
            let Some((_, more)) = known else {
                return Err(UnknownFailKind(word.chars().take(40).collect()));
            };
            if word == "none" && text.trim() != "none" {
                return Err(UnknownFailKind("none".to_owned()));
            }
            bits |= more;
        }
        Ok(FailOn(bits))
    }
}
