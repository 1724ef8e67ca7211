//! CPython's objects, as far as finding leaks needs them.
//!
//! ```text
//! [dict, weakrefs]   two words before, where the type says so     since 3.11
//! [next, previous]   the collector's list, where the type says so
//! object             count │ type │ …
//! ```
//! The layouts are those of Include/object.h, Include/cpython/object.h and
//! Include/internal/pycore_gc.h, 3.8 to 3.14. References point to the object, so
//! inside its block. And the collector's lists, which own nothing, hold every
//! object that it knows: to see what is lost, their links must not count.
//!
//! Nothing is believed of a block alone: its type must be one (the chain of
//! types ends at `type`), and links must be returned by both neighbours.

mod links;
#[cfg(test)]
mod tests;
mod types;

use crate::words::Words;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, LiveBlock, Range};
use links::Links;
use types::{Type, Types};

/// Words of a block that are looked at: debug head, words before, object.
const LOOKED_AT: u64 = 14;
/// `PyGC_Head`: two links.
pub const LINKS: u64 = 16;
/// A dictionary's and a list of weak references before the links.
const BEFORE: u64 = 16;
/// `ma_values` of a dictionary that shares its keys (`PyDictObject`).
const DICT_VALUES: u64 = 40;
/// `debug_alloc_api`'s head (Objects/obmalloc.c): the size asked for, most
/// significant byte first, a letter for the kind, and seven bytes of 0xfd.
const DEBUG_HEAD: u64 = 16;
const FORBIDDEN: u64 = 0xfdfd_fdfd_fdfd_fd00;

/// What is known of the blocks; see [`find`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// Names of types.
    pub types: Vec<String>,
    /// For each block: 0, or one more than the place of its type.
    pub of_block: Vec<u32>,
    /// For each block: how many words before the object in it begins.
    pub offsets: Vec<u8>,
    /// Words that lead to the start of the block that they point into, though
    /// no object begins there: ascending.
    pub aliases: Vec<u64>,
    /// Where links of the collector's lists are, 16 bytes each: ascending.
    pub links: Vec<u64>,
    /// The collector is at work, and keeps counts where links were: who holds
    /// what cannot be told.
    pub is_collecting: bool,
}

impl Objects {
    /// Blocks that hold an object of a known type.
    pub fn count(&self) -> usize {
        self.of_block.iter().filter(|kind| **kind != 0).count()
    }
}

/// Finds the objects among `blocks` (ascending), which are all of a process
/// that CPython is in.
pub fn find(memory: &dyn MemoryReader, blocks: &[LiveBlock]) -> Objects {
    let mut types = Types::new(memory, blocks);
    let mut objects = Objects::default();
    let mut links = Links::default();
    let mut words = Words::new(memory);
    for block in blocks {
        let mut first = [0; LOOKED_AT as usize];
        let there = (block.size / 8).min(LOOKED_AT) as usize;
        let places = (block.addr.0..).step_by(8).take(there);
        for (word, at) in first.iter_mut().zip(places) {
            *word = words.at(at).unwrap_or(0);
        }
        let begin = first.get(..there).unwrap_or_default();
        let found = object(&mut types, begin, block.size);
        objects.offsets.push((found.offset / 8) as u8);
        let mut name = 0;
        if let Some((place, kind)) = found.kind {
            if found.lives {
                name = place + 1;
            }
            if kind.collected {
                let at = found.offset - LINKS;
                let word = |at: u64| begin.get((at / 8) as usize).copied().unwrap_or(0);
                links.add(block.addr.0 + at, word(at), word(at + 8));
                let before = at.checked_sub(BEFORE).filter(|_| kind.has_more_before);
                // One names the dictionary, where there is one. In 3.11 the
                // other names attributes, in 3.12 the one does, less by one.
                let before = before.map_or([0; 2], |at| [word(at), word(at + 8)]);
                objects
                    .aliases
                    .extend(before.into_iter().filter(|word| *word != 0));
                let values = word(found.offset + DICT_VALUES);
                if kind.is_dict && names_values(memory, blocks, values) {
                    objects.aliases.push(values);
                }
            }
        }
        objects.of_block.push(name);
    }
    objects.types = types.names();
    objects.aliases.sort_unstable();
    objects.aliases.dedup();
    objects.is_collecting = links.is_collecting;
    objects.links = links.confirmed(memory);
    objects
}

/// Attributes lie at `values` (`PyDictValues`, 3.11 and 3.12): behind a few bytes
/// of their block, whose number the last of these bytes tells.
fn names_values(memory: &dyn MemoryReader, blocks: &[LiveBlock], values: u64) -> bool {
    let next = blocks.partition_point(|block| block.addr.0 <= values);
    let block = next.checked_sub(1).and_then(|at| blocks.get(at));
    let Some(offset) = block.map(|block| values - block.addr.0) else {
        return false;
    };
    if offset == 0 || offset > u64::from(u8::MAX) + 2 * DEBUG_HEAD {
        return false;
    }
    let mut told = [0];
    let heads = offset.checked_sub(match memory.read(Addr(values - 1), &mut told) {
        Ok(()) => u64::from(told[0]),
        Err(_) => return false,
    });
    heads.is_some_and(|heads| [0, DEBUG_HEAD, 2 * DEBUG_HEAD].contains(&heads))
}

/// The object in a block.
struct Object<'t> {
    /// Bytes before it; where none is known, before the program's bytes.
    offset: u64,
    kind: Option<(u32, &'t Type)>,
    /// It has a count; without one it waits in a list of free objects.
    lives: bool,
}

fn object<'t>(types: &'t mut Types<'_>, begin: &[u64], size: u64) -> Object<'t> {
    let word = |at: u64| begin.get((at / 8) as usize).copied();
    let is_head = |at: u64| match (word(at), word(at + 8)) {
        (Some(asked), Some(mark)) => {
            let is_marked = mark & !0xff == FORBIDDEN && b"rmo".contains(&(mark as u8));
            is_marked && asked.swap_bytes() <= size
        }
        _ => false,
    };
    // Large blocks have a second one, of the layer below.
    let base = match (is_head(0), is_head(DEBUG_HEAD)) {
        (false, _) => 0,
        (true, false) => DEBUG_HEAD,
        (true, true) => 2 * DEBUG_HEAD,
    };
    let nothing = Object {
        offset: base,
        kind: None,
        lives: false,
    };
    for offset in [0, LINKS, LINKS + BEFORE] {
        let at = base + offset;
        let (Some(count), Some(kind)) = (word(at), word(at + 8)) else {
            break;
        };
        let Some(place) = types.place(kind) else {
            continue;
        };
        let lives = types.is_count(count);
        let Some(kind) = types.at(place) else {
            continue;
        };
        let head = match (kind.collected, kind.has_more_before) {
            (false, _) => 0,
            (true, false) => LINKS,
            (true, true) => LINKS + BEFORE,
        };
        let fits = at.checked_add(kind.size).is_some_and(|end| end <= size);
        if head != offset || !fits {
            continue;
        }
        // An array of references may begin with any of them.
        let unlinked = at.checked_sub(LINKS).and_then(word) == Some(0);
        if lives || (head != 0 && unlinked) {
            return match types.at(place) {
                Some(kind) => Object {
                    offset: at,
                    kind: Some((place, kind)),
                    lives,
                },
                None => nothing,
            };
        }
    }
    nothing
}

/// Memory in which the words that the collector's lists use read as zero.
pub struct Unlinked<'a> {
    inner: &'a dyn MemoryReader,
    links: &'a [u64],
}

impl<'a> Unlinked<'a> {
    /// `links` as [`Objects`] has them.
    pub fn new(inner: &'a dyn MemoryReader, links: &'a [u64]) -> Unlinked<'a> {
        Unlinked { inner, links }
    }
}

impl MemoryReader for Unlinked<'_> {
    fn map(&self) -> &leakscope_memory::MemoryMap {
        self.inner.map()
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        let got = self.inner.read_some(at, into).min(into.len());
        let read = Range::new(at.0, at.0.saturating_add(got as u64));
        let first = self
            .links
            .partition_point(|link| link.saturating_add(LINKS) <= at.0);
        for link in self.links.get(first..).unwrap_or_default() {
            let link = Range::new(*link, link.saturating_add(LINKS));
            let Some(part) = link.intersect(&read) else {
                break;
            };
            let from = (part.start.0 - at.0) as usize;
            let to = (part.end.0 - at.0) as usize;
            if let Some(bytes) = into.get_mut(from..to) {
                bytes.fill(0);
            }
        }
        got
    }
}
