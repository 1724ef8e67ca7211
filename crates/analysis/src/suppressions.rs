//! Suppressions: loss records that somebody declared harmless.
//!
//! Two languages are read, told apart per file: valgrind's `.supp` and
//! LeakSanitizer's `leak:PATTERN` lines. A third source is [`builtin()`], for
//! blocks that the C, C++ and Rust runtimes keep on purpose.
//!
//! Begin with [`parse()`], collect into a [`SuppressionSet`], and ask
//! [`SuppressionSet::suppress`] for each record. [`generate()`] writes a ready
//! suppression for a record.

mod allocator;
mod builtin;
mod generate;
mod kinds;
mod matching;
mod parse;
mod pattern;
#[cfg(test)]
mod tests;

pub use builtin::{BUILTINS, Builtin, builtin};
pub use generate::generate;
pub use kinds::{KindSet, UnknownKind};
pub use matching::Candidate;
pub use parse::{ParseError, parse};

use leakscope_model::{KindTotals, LossKind, SuppressionUse};
use matching::Rule;
use pattern::Glob;

/// One suppression.
#[derive(Clone, Debug, PartialEq)]
pub struct Suppression {
    /// Its name; for LeakSanitizer's lines the line itself.
    pub name: String,
    /// Where it was read: path and line of its name, or `builtin`.
    pub origin: String,
    /// The loss kinds that it hides.
    pub kinds: KindSet,
    rule: Rule,
    /// For built-in ones: the innermost frame must lie in a module whose file
    /// name matches one of these. Empty allows every module.
    modules: Vec<Glob>,
}

impl Suppression {
    /// True when it hides the record.
    pub fn matches(&self, record: &Candidate<'_>) -> bool {
        self.kinds.contains(record.kind)
            && self.allows_module(record.frames.first().and_then(|f| f.module.as_deref()))
            && self.rule.matches(record)
    }

    fn allows_module(&self, path: Option<&str>) -> bool {
        if self.modules.is_empty() {
            return true;
        }
        let Some(path) = path else {
            return false;
        };
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let name = path.rsplit('/').next().unwrap_or(path);
        self.modules.iter().any(|glob| glob.matches(name))
    }

    fn is_builtin(&self) -> bool {
        self.origin == builtin::ORIGIN
    }
}

/// Suppressions in the order of their reading, and what each has hidden.
#[derive(Clone, Debug, Default)]
pub struct SuppressionSet {
    entries: Vec<(Suppression, KindTotals)>,
}

impl SuppressionSet {
    /// Adds suppressions behind those already there. The first that matches
    /// a record hides it, so add the user's before the built-in ones.
    pub fn extend(&mut self, suppressions: impl IntoIterator<Item = Suppression>) {
        let unused = suppressions.into_iter().map(|s| (s, KindTotals::default()));
        self.entries.extend(unused);
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first suppression that hides the record.
    pub fn find(&self, record: &Candidate<'_>) -> Option<&Suppression> {
        let mut entries = self.entries.iter().map(|(suppression, _)| suppression);
        entries.find(|s| s.matches(record))
    }

    /// True when some suppression hides the record; `totals`, its own bytes
    /// and blocks, are then counted there.
    pub fn suppress(&mut self, record: &Candidate<'_>, totals: KindTotals) -> bool {
        let found = self.entries.iter_mut().find(|(s, _)| s.matches(record));
        let Some((_, hidden)) = found else {
            return false;
        };
        add(hidden, totals);
        true
    }

    /// False when no suppression can hide a record of this kind whose
    /// innermost frame lies in `module`, whatever its symbols. Spares
    /// symbolising the many reachable records.
    pub fn may_hide(&self, kind: LossKind, module: Option<&str>) -> bool {
        self.entries
            .iter()
            .any(|(s, _)| s.kinds.contains(kind) && s.allows_module(module))
    }

    /// What each has hidden: the user's all, used or not; of the built-in
    /// ones those that were used, each named once.
    pub fn uses(&self) -> Vec<SuppressionUse> {
        let mut uses: Vec<SuppressionUse> = Vec::new();
        for (suppression, hidden) in &self.entries {
            if suppression.is_builtin() {
                if hidden.blocks == 0 {
                    continue;
                }
                // Several stacks of one entry stand side by side.
                let same = |u: &&mut SuppressionUse| {
                    u.origin == builtin::ORIGIN && u.name == suppression.name
                };
                if let Some(used) = uses.last_mut().filter(same) {
                    add(&mut used.hidden, *hidden);
                    continue;
                }
            }
            uses.push(SuppressionUse {
                name: suppression.name.clone(),
                origin: suppression.origin.clone(),
                hidden: *hidden,
            });
        }
        uses
    }

    /// Starts counting anew, for the next process.
    pub fn forget_uses(&mut self) {
        for (_, hidden) in &mut self.entries {
            *hidden = KindTotals::default();
        }
    }
}

fn add(to: &mut KindTotals, more: KindTotals) {
    to.bytes = to.bytes.saturating_add(more.bytes);
    to.blocks = to.blocks.saturating_add(more.blocks);
}
