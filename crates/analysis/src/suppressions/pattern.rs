//! Wildcard patterns over names.

/// How many bytes of a name are looked at. Matching costs at most the
/// product of both lengths, and names come from the target.
const LONGEST_NAME: usize = 16 << 10;

/// The longest pattern, bytes.
pub(super) const LONGEST_PATTERN: usize = 4 << 10;

/// valgrind's pattern: `*` stands for any bytes, `?` for exactly one, and
/// the whole name must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob(Box<[u8]>);

impl Glob {
    pub(super) fn new(pattern: &str) -> Glob {
        Glob(pattern.as_bytes().into())
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let name = bounded(name);
        // `star` is where to resume when a later byte does not fit: the
        // pattern behind the last `*`, and the first name byte not yet tried
        // as the end of what it swallowed.
        let (mut p, mut n) = (0, 0);
        let mut star: Option<(usize, usize)> = None;
        loop {
            match (self.0.get(p), name.get(n)) {
                (None, None) => return true,
                (Some(b'*'), _) => {
                    p += 1;
                    star = Some((p, n));
                    continue;
                }
                (Some(pattern), Some(byte)) if *pattern == b'?' || pattern == byte => {
                    p += 1;
                    n += 1;
                    continue;
                }
                (Some(_), None) => return false,
                _ => {}
            }
            let Some((behind, tried)) = star else {
                return false;
            };
            // Not past the end: the arm above returned before.
            p = behind;
            n = tried + 1;
            star = Some((behind, n));
        }
    }
}

/// LeakSanitizer's pattern: found anywhere in the name, unless `^` at its
/// start or `$` at its end ties it there; `*` stands for any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    from_start: bool,
    to_end: bool,
    pieces: Vec<Box<[u8]>>,
}

impl Template {
    pub(super) fn new(pattern: &str) -> Template {
        let from_start = pattern.starts_with('^');
        let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
        let to_end = pattern.ends_with('$');
        let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
        Template {
            from_start,
            to_end,
            pieces: pattern.split('*').map(|p| p.as_bytes().into()).collect(),
        }
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let mut rest = bounded(name);
        let last = self.pieces.len().saturating_sub(1);
        for (i, piece) in self.pieces.iter().enumerate() {
            let at_start = i == 0 && self.from_start;
            let at_end = i == last && self.to_end;
            let found = match (at_start, at_end) {
                (true, true) => (rest == &**piece).then_some(0),
                (true, false) => rest.starts_with(piece).then_some(0),
                (false, true) => rest.ends_with(piece).then(|| rest.len() - piece.len()),
                // The leftmost place leaves most for the pieces behind.
                (false, false) => find(rest, piece),
            };
            let Some(at) = found else {
                return false;
            };
            rest = rest.get(at + piece.len()..).unwrap_or_default();
        }
        true
    }
}

fn find(text: &[u8], piece: &[u8]) -> Option<usize> {
    if piece.is_empty() {
        return Some(0);
    }
    text.windows(piece.len()).position(|window| window == piece)
}

fn bounded(name: &str) -> &[u8] {
    let bytes = name.as_bytes();
    bytes.get(..LONGEST_NAME).unwrap_or(bytes)
}
