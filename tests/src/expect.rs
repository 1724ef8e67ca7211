//! The first comment of a fixture program, read (`fixtures/README.md` has
//! the table of keys).

use std::path::{Path, PathBuf};

/// Bytes and blocks, or an open or half-open answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// `*`
    Any,
    /// `713/23`
    Exactly(u64, u64),
    /// `>=713/23`
    AtLeast(u64, u64),
}

impl Amount {
    /// True when `bytes` in `blocks` is what was asked for.
    pub fn fits(self, bytes: u64, blocks: u64) -> bool {
        match self {
            Amount::Any => true,
            Amount::Exactly(b, n) => (bytes, blocks) == (b, n),
            Amount::AtLeast(b, n) => bytes >= b && blocks >= n,
        }
    }
}

/// `definite=713/23 indirect=0/0 …`: kinds that are not named are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loss(pub Vec<(String, Amount)>);

/// The kinds that `expect` may name, as the report's `loss` does.
pub const KINDS: [&str; 5] = [
    "definite",
    "indirect",
    "possible",
    "reachable",
    "suppressed",
];

/// A fixture program.
#[derive(Clone, Debug, Default)]
pub struct Fixture {
    /// Its source.
    pub source: PathBuf,
    /// File name without extension.
    pub name: String,
    /// `expect` of sections, by index.
    pub sections: Vec<(usize, Loss)>,
    /// `expect-any`.
    pub any: Option<Loss>,
    /// `expect "OPTIONS"`.
    pub with_options: Vec<(String, Loss)>,
    /// Every other key, in order.
    keys: Vec<(String, String)>,
}

/// Keys that take one value and are looked up by name.
const PLAIN: [&str; 18] = [
    "expect-exit",
    "expect-stdout",
    "expect-stack",
    "expect-cycle",
    "expect-cut",
    "expect-errors",
    "expect-fds",
    "expect-fd-stack",
    "expect-mappings",
    "expect-processes",
    "expect-records",
    "expect-totals",
    "expect-free-site",
    "expect-consistency",
    "expect-notice",
    "build",
    "libs",
    "needs",
];

impl Fixture {
    /// Reads the header of `source`.
    ///
    /// # Errors
    /// When it says nothing, or something unknown.
    pub fn read(source: &Path) -> Result<Fixture, String> {
        let text = std::fs::read_to_string(source).map_err(|e| format!("read {source:?}: {e}"))?;
        let stem = source.file_stem().unwrap_or_default();
        let mut fixture = Fixture {
            source: source.to_owned(),
            name: stem.to_string_lossy().into_owned(),
            ..Fixture::default()
        };
        for line in text.lines().map_while(|l| l.strip_prefix("//")) {
            let Some((key, value)) = line.trim_start().split_once(": ") else {
                continue;
            };
            let value = value.trim();
            if key == "expect" {
                fixture.sections.push((0, loss(value)?));
            } else if key == "expect-any" {
                fixture.any = Some(loss(value)?);
            } else if key == "memcheck" || PLAIN.contains(&key) {
                fixture.keys.push((key.to_owned(), value.to_owned()));
            } else if let Some(rest) = key.strip_prefix("expect ") {
                match rest.strip_prefix('"').and_then(|r| r.strip_suffix('"')) {
                    Some(options) => fixture
                        .with_options
                        .push((options.to_owned(), loss(value)?)),
                    None => {
                        let index = rest.parse().map_err(|e| format!("{key}: {e}"))?;
                        fixture.sections.push((index, loss(value)?));
                    }
                }
            } else if key.starts_with("expect") {
                return Err(format!("unknown key '{key}' in {}", fixture.name));
            }
        }
        if fixture.sections.is_empty() {
            return Err(format!("{} says no 'expect:'", fixture.name));
        }
        Ok(fixture)
    }

    /// Every program in `fixtures/programs`, by name.
    ///
    /// # Errors
    /// When the folder or a header cannot be read, or two programs would
    /// have the same name.
    pub fn all() -> Result<Vec<Fixture>, String> {
        let folder = crate::build::programs();
        let entries = std::fs::read_dir(&folder).map_err(|e| format!("read {folder:?}: {e}"))?;
        let mut all = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| format!("read {folder:?}: {e}"))?.path();
            let extension = path.extension().unwrap_or_default();
            if ["c", "cc", "rs"].iter().any(|e| extension == *e) {
                all.push(Fixture::read(&path)?);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        match all.windows(2).find(|w| w[0].name == w[1].name) {
            Some(w) => Err(format!("two programs are named {}", w[0].name)),
            None => Ok(all),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.keys
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }
}

/// Reads `definite=713/23 reachable>=1/1 possible=*`.
///
/// # Errors
/// When a word is none of these.
pub fn loss(text: &str) -> Result<Loss, String> {
    if text == "*" {
        return Ok(Loss::default());
    }
    let mut kinds = Vec::new();
    for word in text.split_whitespace() {
        let wrong = || format!("'{word}' is not KIND=BYTES/BLOCKS");
        let (kind, value, at_least) = match word.split_once(">=") {
            Some((kind, value)) => (kind, value, true),
            None => {
                let (kind, value) = word.split_once('=').ok_or_else(wrong)?;
                (kind, value, false)
            }
        };
        if !KINDS.contains(&kind) {
            return Err(wrong());
        }
        let amount = if value == "*" {
            Amount::Any
        } else {
            let (bytes, blocks) = match value.split_once('/') {
                Some((bytes, blocks)) => (bytes, blocks),
                None => return Err(wrong()),
            };
            let bytes = bytes.parse().map_err(|_| wrong())?;
            let blocks = blocks.parse().map_err(|_| wrong())?;
            if at_least {
                Amount::AtLeast(bytes, blocks)
            } else {
                Amount::Exactly(bytes, blocks)
            }
        };
        kinds.push((kind.to_owned(), amount));
    }
    Ok(Loss(kinds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_compared() {
        let Loss(kinds) = loss("definite=713/23 indirect>=5/1 possible=*").unwrap();
        assert_eq!(kinds[0], ("definite".to_owned(), Amount::Exactly(713, 23)));
        assert!(kinds[1].1.fits(7, 2) && !kinds[1].1.fits(4, 2));
        assert!(kinds[2].1.fits(0, 0));
        assert!(!kinds[0].1.fits(713, 22));
        assert!(loss("*").unwrap().0.is_empty());
        for bad in ["definite", "definitely=1/1", "definite=1", "definite=x/1"] {
            assert!(loss(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_fixture_header_is_read() {
        let all = Fixture::all().unwrap();
        assert!(all.len() > 100);
        let fork = all.iter().find(|f| f.name == "end_fork").unwrap();
        assert_eq!(fork.sections.len(), 2);
        assert_eq!(fork.get("expect-processes"), Some("2"));
    }
}
