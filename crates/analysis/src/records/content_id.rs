//! Names for records that are told apart by what their blocks hold.

use super::stable_id::{Fnv, letter};
use leakscope_model::LossKind;
use std::collections::HashMap;

/// The ids of records without stacks, in the order given, each with its kind
/// and the name of its type or shape: equal in every look at the same program.
/// A hyphen and the kind's first letter end them, as those of stacks.
pub fn content_ids<'a>(records: impl Iterator<Item = (LossKind, &'a str)>) -> Vec<String> {
    let mut seen: HashMap<String, u64> = HashMap::new();
    let ids = records.map(|(kind, what)| {
        let mut fnv = Fnv::new();
        fnv.write(b"c");
        fnv.write(what.as_bytes());
        let (hash, letter) = (fnv.0, letter(kind));
        let id = format!("{hash:016x}-{letter}");
        let times = seen.entry(id.clone()).or_insert(0);
        *times += 1;
        match *times {
            1 => id,
            n => format!("{hash:016x}.{n}-{letter}"),
        }
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_content_has_equal_ids_and_kinds_differ() {
        let ids = |all: &[(LossKind, &str)]| content_ids(all.iter().copied());
        let (definite, reachable) = (LossKind::Definite, LossKind::Reachable);
        let first = ids(&[
            (definite, "A"),
            (reachable, "A"),
            (definite, "B"),
            (definite, "A"),
        ]);
        assert_eq!(first[0][..16], first[1][..16]);
        assert!(first[0].ends_with("-d") && first[1].ends_with("-r"));
        assert_ne!(first[0], first[2]);
        assert_eq!(first[3], format!("{}.2-d", &first[0][..16]));
        assert_eq!(ids(&[(definite, "B")])[0], first[2]);
    }
}
