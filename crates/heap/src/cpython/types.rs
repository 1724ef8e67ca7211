//! Types: `PyTypeObject` (Include/cpython/object.h), whose beginning has been
//! the same since 3.8. Offsets in bytes:
//!
//! ```text
//!   0  ob_refcnt   8  ob_type   24  tp_name   32  tp_basicsize   168  tp_flags
//! ```
//! The type of a type is a type, and at last `type`, which is its own.

use crate::regions::{self, Class};
use leakscope_memory::MemoryReader;
use leakscope_memory::ranges::joined;
use leakscope_model::{Addr, LiveBlock, Range};
use std::collections::{HashMap, HashSet};

/// As many bytes of a type as are looked at.
const READ: usize = 176;
/// A type that a class statement makes, with its slots: larger than any block
/// of pymalloc.
const MADE_TYPE: u64 = 800;
/// Where in its block such a type begins: behind the collector's links, with
/// the debug hooks' heads before.
const BEGINNINGS: [u64; 3] = [16, 32, 48];
/// `tp_flags`: dictionary or weak references before the object (3.11; 3.12),
/// it is ready, the collector knows its objects, they are dictionaries,
/// text.
const WEAKREFS_BEFORE: u64 = 1 << 3;
const DICT_BEFORE: u64 = 1 << 4;
const READY: u64 = 1 << 12;
const COLLECTED: u64 = 1 << 14;
const DICT: u64 = 1 << 29;
const TEXT: u64 = 1 << 28;
/// Types of types of types…
const METATYPES: usize = 8;
/// `PyASCIIObject`, which is less than `str` says of its objects' size.
const SHORT_TEXT: u64 = 40;
const LARGEST: u64 = 1 << 20;
const LONGEST_NAME: usize = 200;
/// Words remembered: a hostile heap may have any number.
const MOST_KNOWN: usize = 1 << 20;
/// Counts above are asked whether they are addresses.
const LARGE_COUNT: u64 = 1 << 20;

/// A type, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Type {
    pub name: String,
    /// Its objects have the collector's links before them.
    pub collected: bool,
    /// And two words more before these.
    pub has_more_before: bool,
    /// `dict`, or a class derived from it.
    pub is_dict: bool,
    /// Bytes of its objects, at least.
    pub size: u64,
}

/// Tells types from other words.
pub(super) struct Types<'a> {
    memory: &'a dyn MemoryReader,
    /// Data of modules, ascending: types that are part of a program.
    data: Vec<Range>,
    /// Blocks that are large enough for a type made at run time: where it would
    /// begin.
    made: HashSet<u64>,
    known: HashMap<u64, Option<u32>>,
    /// The last answer: neighbours are often alike.
    last: (u64, Option<u32>),
    types: Vec<Type>,
}

impl<'a> Types<'a> {
    pub(super) fn new(memory: &'a dyn MemoryReader, blocks: &[LiveBlock]) -> Types<'a> {
        let classified = regions::classify(memory.map()).into_iter();
        let data = classified.filter(|r| matches!(r.class, Class::Data | Class::Bss));
        let large = blocks.iter().filter(|block| block.size >= MADE_TYPE);
        Types {
            memory,
            data: joined(data.map(|r| r.range).collect()),
            made: large
                .flat_map(|block| BEGINNINGS.map(|at| block.addr.0.saturating_add(at)))
                .collect(),
            known: HashMap::new(),
            last: (0, None),
            types: Vec::new(),
        }
    }

    /// The place of the type at `at`, if one is there.
    pub(super) fn place(&mut self, at: u64) -> Option<u32> {
        if self.last.0 == at {
            return self.last.1;
        }
        let place = self.look_up(at);
        if place.is_some() {
            self.last = (at, place);
        }
        place
    }

    fn look_up(&mut self, at: u64) -> Option<u32> {
        if !at.is_multiple_of(8) || !self.may_be(at) {
            return None;
        }
        if let Some(known) = self.known.get(&at) {
            return *known;
        }
        let place = self.read(at).map(|found| {
            self.types.push(found);
            self.types.len() as u32 - 1
        });
        if self.known.len() < MOST_KNOWN {
            self.known.insert(at, place);
        }
        place
    }

    pub(super) fn at(&self, place: u32) -> Option<&Type> {
        self.types.get(place as usize)
    }

    /// What a reference count may be. The upper half of an immortal object's
    /// holds flags (3.14); where a program lies low in memory, an address
    /// may look like one.
    pub(super) fn is_count(&self, word: u64) -> bool {
        let (count, overflow) = (word & 0xffff_ffff, (word >> 32) & 0xffff);
        let low = overflow == 0 && count != 0;
        low && (count < LARGE_COUNT || self.memory.map().find(Addr(word)).is_none())
    }

    pub(super) fn names(self) -> Vec<String> {
        self.types.into_iter().map(|kind| kind.name).collect()
    }

    fn may_be(&self, at: u64) -> bool {
        let next = self.data.partition_point(|range| range.end.0 <= at);
        let in_data = self.data.get(next).is_some_and(|r| r.contains(Addr(at)));
        in_data || self.made.contains(&at)
    }

    fn read(&self, at: u64) -> Option<Type> {
        let head = self.head(at)?;
        let mut above = head.kind;
        for _ in 0..METATYPES {
            let next = self.head(above)?;
            if next.kind != above {
                above = next.kind;
                continue;
            }
            if self.text(next.name)? != "type" {
                return None;
            }
            return Some(Type {
                name: self.text(head.name)?,
                collected: head.flags & COLLECTED != 0,
                has_more_before: head.flags & (DICT_BEFORE | WEAKREFS_BEFORE) != 0,
                is_dict: head.flags & DICT != 0,
                size: match head.flags & TEXT {
                    0 => head.size,
                    _ => head.size.min(SHORT_TEXT),
                },
            });
        }
        None
    }

    fn head(&self, at: u64) -> Option<Head> {
        if !at.is_multiple_of(8) || !self.may_be(at) {
            return None;
        }
        let mut bytes = [0; READ];
        self.memory.read(Addr(at), &mut bytes).ok()?;
        let words = bytes.as_chunks::<8>().0;
        let word = |at: usize| words.get(at / 8).map(|word| u64::from_le_bytes(*word));
        let head = Head {
            count: word(0)?,
            kind: word(8)?,
            name: word(24)?,
            size: word(32)?,
            flags: word(168)?,
        };
        let fits = self.is_count(head.count)
            && head.flags & READY != 0
            && (16..LARGEST).contains(&head.size);
        fits.then_some(head)
    }

    /// A string that can be shown.
    fn text(&self, at: u64) -> Option<String> {
        let mut bytes = [0; LONGEST_NAME];
        let got = self.memory.read_some(Addr(at), &mut bytes);
        let bytes = bytes.get(..got)?;
        let len = bytes.iter().position(|byte| *byte == 0)?;
        let text = std::str::from_utf8(bytes.get(..len)?).ok()?;
        let shown = !text.is_empty() && !text.chars().any(char::is_control);
        shown.then(|| text.to_owned())
    }
}

/// The words of a type that matter.
struct Head {
    count: u64,
    kind: u64,
    name: u64,
    size: u64,
    flags: u64,
}
