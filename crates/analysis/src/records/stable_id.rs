//! Names for loss records that survive another run, another address layout
//! and edits elsewhere in the file.

use leakscope_model::{Frame, LossKind};
use std::collections::HashMap;

/// FNV-1a, 64 bits: offset basis and prime of draft-eastlake-fnv. Not meant
/// to resist an adversary: a collision only makes [`stable_ids`] number two
/// records.
pub(super) struct Fnv(pub(super) u64);

impl Fnv {
    pub(super) fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        // Ends each part, so that "ab", "c" and "a", "bc" differ. No name
        // contains it: symbols end at a zero byte and paths cannot hold one.
        self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
    }
}

/// The id of a call stack, 16 hexadecimal digits: equal in every run of the
/// same program, with the same libraries, whatever the addresses.
///
/// What counts is each frame's function (without Rust's hash) and the name
/// of its file without folders; for a frame without symbol the module's name
/// without folders and the offset in it. Line numbers do not count, so an
/// edit above the leak keeps its id. Marks of frames not kept do not either.
pub fn stable_id(frames: &[Frame]) -> String {
    format!("{:016x}", hash(frames))
}

fn hash(frames: &[Frame]) -> u64 {
    let mut fnv = Fnv::new();
    for frame in frames.iter().filter(|f| !f.cut) {
        match &frame.function {
            Some(function) => {
                fnv.write(b"f");
                fnv.write(without_rust_hash(function).as_bytes());
                fnv.write(base_name(frame.file.as_deref().unwrap_or_default()).as_bytes());
            }
            None => {
                let module = frame.module.as_deref().unwrap_or_default();
                let module = module.strip_suffix(" (deleted)").unwrap_or(module);
                fnv.write(b"m");
                fnv.write(base_name(module).as_bytes());
                // Outside every module an offset would be an address.
                let offset = frame.module.as_ref().and(frame.module_offset);
                fnv.write(&offset.unwrap_or_default().to_le_bytes());
            }
        }
    }
    fnv.0
}

/// The ids of all records of a report, in the order given: the stack's
/// [`stable_id`], a hyphen, and the kind's first letter, as in
/// `5f3a0c9e1b77d042-d`.
///
/// Different stacks with the same id (two allocations in one function, for
/// example) are told apart by a number from the second on, in the order of
/// their line numbers and offsets: `5f3a0c9e1b77d042.2-d`. The same stack
/// under another kind keeps its number.
pub fn stable_ids(records: &[(LossKind, &[Frame])]) -> Vec<String> {
    let hashes: Vec<u64> = records.iter().map(|(_, frames)| hash(frames)).collect();
    let mut alike: HashMap<u64, Vec<Vec<Detail<'_>>>> = HashMap::new();
    for (hash, (_, frames)) in hashes.iter().zip(records) {
        alike.entry(*hash).or_default().push(details(frames));
    }
    for stacks in alike.values_mut() {
        stacks.sort_unstable();
        stacks.dedup();
    }
    let mut seen: HashMap<String, u64> = HashMap::new();
    let ids = hashes.iter().zip(records).map(|(hash, (kind, frames))| {
        let number = alike
            .get(hash)
            .and_then(|stacks| stacks.binary_search(&details(frames)).ok())
            .map_or(1, |i| i + 1);
        let letter = letter(*kind);
        let id = match number {
            1 => format!("{hash:016x}-{letter}"),
            n => format!("{hash:016x}.{n}-{letter}"),
        };
        // Records with the very same frames: shown alike, still named apart.
        let times = seen.entry(id.clone()).or_insert(0);
        *times += 1;
        match *times {
            1 => id,
            n => format!("{id}{n}"),
        }
    });
    ids.collect()
}

/// What [`stable_id`] leaves out and yet tells two frames apart, in the order
/// that decides which is numbered first.
type Detail<'a> = (Option<u32>, Option<u64>, Option<&'a str>, Option<&'a str>);

fn details(frames: &[Frame]) -> Vec<Detail<'_>> {
    fn detail(f: &Frame) -> Detail<'_> {
        (
            f.line,
            f.module_offset,
            f.file.as_deref(),
            f.module.as_deref(),
        )
    }
    frames.iter().map(detail).collect()
}

pub(super) fn letter(kind: LossKind) -> char {
    match kind {
        LossKind::Definite => 'd',
        LossKind::Indirect => 'i',
        LossKind::Possible => 'p',
        LossKind::Reachable => 'r',
    }
}

/// Cuts `::h` and 16 hexadecimal digits at the end, which change with every
/// compiler version and with unrelated edits.
fn without_rust_hash(function: &str) -> &str {
    let Some((name, hash)) = function.rsplit_once("::h") else {
        return function;
    };
    let is_hash = hash.len() == 16
        && hash
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if is_hash { name } else { function }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
