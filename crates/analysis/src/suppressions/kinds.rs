//! Sets of loss kinds, as `match-leak-kinds:` and `--show` name them.

use leakscope_model::LossKind;
use std::fmt;
use std::str::FromStr;

/// A set of loss kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindSet(u8);

/// The words for single kinds.
const WORDS: [(&str, LossKind); 4] = [
    ("definite", LossKind::Definite),
    ("indirect", LossKind::Indirect),
    ("possible", LossKind::Possible),
    ("reachable", LossKind::Reachable),
];

impl KindSet {
    /// No kind.
    pub const NONE: KindSet = KindSet(0);
    /// Every kind.
    pub const ALL: KindSet = KindSet(0b1111);

    /// The set with `kind` besides.
    pub fn with(self, kind: LossKind) -> KindSet {
        KindSet(self.0 | 1 << kind as u8)
    }

    /// True when `kind` belongs to it.
    pub fn contains(self, kind: LossKind) -> bool {
        self.0 & 1 << kind as u8 != 0
    }
}

impl FromIterator<LossKind> for KindSet {
    fn from_iter<I: IntoIterator<Item = LossKind>>(kinds: I) -> KindSet {
        kinds.into_iter().fold(KindSet::NONE, KindSet::with)
    }
}

/// A word that names no loss kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKind(String);

impl fmt::Display for UnknownKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "unknown leak kind '{}': use definite, indirect, possible, reachable, all or none",
            self.0
        )
    }
}

impl std::error::Error for UnknownKind {}

impl FromStr for KindSet {
    type Err = UnknownKind;

    /// Words separated by commas; `all` and `none` stand alone.
    fn from_str(text: &str) -> Result<KindSet, UnknownKind> {
        match text.trim() {
            "all" => return Ok(KindSet::ALL),
            "none" => return Ok(KindSet::NONE),
            _ => {}
        }
        let kind = |word: &str| {
            let known = WORDS.iter().find(|(name, _)| *name == word.trim());
            known
                .map(|(_, kind)| *kind)
                .ok_or_else(|| UnknownKind(shown(word)))
        };
        text.split(',').map(kind).collect()
    }
}

impl fmt::Display for KindSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == KindSet::NONE {
            return f.write_str("none");
        }
        let words = WORDS.iter().filter(|(_, kind)| self.contains(*kind));
        for (i, (word, _)) in words.enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{word}")?;
        }
        Ok(())
    }
}

/// A word of the user's, short enough for one sentence.
fn shown(word: &str) -> String {
    word.trim().chars().take(40).collect()
}
