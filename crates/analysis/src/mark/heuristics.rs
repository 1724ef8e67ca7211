//! Interior pointers that are how a program holds the start of a block.
//!
//! The first four are memcheck's (`--leak-check-heuristics`, whose conditions
//! they repeat), then two of Rust's, CPython's and an aligner's. `A` is the block's address, `S` its
//! requested size, `P` the pointer, words are 8 bytes:
//!
//! | idiom | pointer | condition |
//! |---|---|---|
//! | length64 | `P = A+8` | word 0 = `S-8`, not 0 |
//! | newarray | `P = A+8` | word 0 = n > 0 and `(S-8) % n = 0` |
//! | stdstring | `P = A+24` | word 1 = capacity = `S-25`, word 0 = length ≤ capacity |
//! | multipleinheritance | `P` aligned | words at `A` and at `P` both point to vtables |
//! | rust-rc | `P = A+16` | words 0, 1 = plausible strong and weak counts |
//! | hashbrown | `P` 16-aligned | control bytes up to the block's end, mirrored |
//! | kept-start | `P` 8-aligned | the word before or after that at `P` is `A` |
//! | cpython-gc | `P = A+16`, `A+32` | before `P` the links of the collector, at `P` a count and a type |

use leakscope_memory::MemoryMap;
use leakscope_model::Addr;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// memcheck looks at this many words of a presumed vtable…
const VTABLE_WORDS: u64 = 20;
/// …and wants this many function pointers among them.
const VTABLE_FUNCTIONS: u32 = 2;
/// Remembered answers to "is this a vtable"; above it they are forgotten.
const VTABLE_CACHE: usize = 1 << 16;
/// `Rc` and `Arc` abort long before their counts come here.
const COUNT_MAX: u64 = 1 << 31;
/// Control bytes that hashbrown compares at once (SSE2), repeated behind the
/// table's last bucket.
const GROUP: u64 = 16;
/// hashbrown's control byte of a bucket never used.
const EMPTY: u8 = 0xff;
/// hashbrown's control byte of a bucket used once.
const DELETED: u8 = 0x80;

/// Which idioms count as start pointers; all by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heuristics {
    /// Pointer to a second base class's part of an object.
    pub multiple_inheritance: bool,
    /// Pointer to the first element of a `new[]` behind its element count.
    pub new_array: bool,
    /// Pointer behind a 64-bit length of the rest of the block (sqlite).
    pub length64: bool,
    /// Pointer to the characters of a reference-counted `std::string`.
    pub stdstring: bool,
    /// Pointer to the value inside a Rust `Rc` or `Arc`.
    pub rust_rc: bool,
    /// Pointer to the control bytes of a Rust hash table.
    pub hashbrown: bool,
    /// Pointer to a Python object behind what its collector keeps.
    pub cpython_gc: bool,
    /// Pointer to an aligned part of a block that remembers the block's start:
    /// wrappers that align what malloc gave, and glibc's loader.
    pub kept_start: bool,
}

impl Heuristics {
    /// Every idiom.
    pub const ALL: Heuristics = Heuristics {
        multiple_inheritance: true,
        new_array: true,
        length64: true,
        stdstring: true,
        rust_rc: true,
        hashbrown: true,
        cpython_gc: true,
        kept_start: true,
    };
    /// No idiom: an interior pointer is an interior pointer.
    pub const NONE: Heuristics = Heuristics {
        multiple_inheritance: false,
        new_array: false,
        length64: false,
        stdstring: false,
        rust_rc: false,
        hashbrown: false,
        cpython_gc: false,
        kept_start: false,
    };

    /// The names that [`Heuristics::from_str`] accepts besides `all` and
    /// `none`.
    pub const NAMES: [&'static str; 8] = [
        "multipleinheritance",
        "newarray",
        "length64",
        "stdstring",
        "rust-rc",
        "hashbrown",
        "cpython-gc",
        "kept-start",
    ];
}

impl Default for Heuristics {
    fn default() -> Heuristics {
        Heuristics::ALL
    }
}

/// A name that is no idiom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownHeuristic(pub String);

impl std::fmt::Display for UnknownHeuristic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "unknown heuristic {:?}; known are all, none, {}",
            self.0,
            Heuristics::NAMES.join(", ")
        )
    }
}

impl std::error::Error for UnknownHeuristic {}

impl FromStr for Heuristics {
    type Err = UnknownHeuristic;

    /// `all`, `none`, or names separated by commas.
    fn from_str(text: &str) -> Result<Heuristics, UnknownHeuristic> {
        match text.trim() {
            "all" => return Ok(Heuristics::ALL),
            "none" => return Ok(Heuristics::NONE),
            _ => {}
        }
        let mut set = Heuristics::NONE;
        for name in text.split(',') {
            let switch = match name.trim() {
                "multipleinheritance" => &mut set.multiple_inheritance,
                "newarray" => &mut set.new_array,
                "length64" => &mut set.length64,
                "stdstring" => &mut set.stdstring,
                "rust-rc" => &mut set.rust_rc,
                "hashbrown" => &mut set.hashbrown,
                "cpython-gc" => &mut set.cpython_gc,
                "kept-start" => &mut set.kept_start,
                other => return Err(UnknownHeuristic(other.to_string())),
            };
            *switch = true;
        }
        Ok(set)
    }
}

/// How the idioms read memory: from the marker's copy where it has one.
pub(super) trait Peek {
    /// The word at `at`.
    fn word(&mut self, at: u64) -> Option<u64>;
    /// Fills `into` from `at`; false when it cannot.
    fn bytes(&mut self, at: u64, into: &mut [u8]) -> bool;
}

/// Sizes that a block may have been asked for, bytes.
pub(super) type Size = RangeInclusive<u64>;

/// The sizes for which glibc makes a block of `usable` bytes: chunks are
/// multiples of 16 bytes and at least 32, a rest that is too small for a
/// chunk of its own stays with the block, and a mapped block ends with a page.
pub(super) fn of_usable(usable: u64) -> Size {
    if usable <= 24 {
        return 0..=usable;
    }
    if usable % 4096 == 4096 - 16 {
        return usable.saturating_sub(4095)..=usable;
    }
    usable.saturating_sub(31)..=usable
}

/// The idioms' judge, with its memory of vtables.
pub(super) struct Judge<'a> {
    heuristics: Heuristics,
    map: &'a MemoryMap,
    vtables: HashMap<u64, bool>,
}

impl<'a> Judge<'a> {
    pub fn new(heuristics: Heuristics, map: &'a MemoryMap) -> Judge<'a> {
        Judge {
            heuristics,
            map,
            vtables: HashMap::new(),
        }
    }

    /// True when `pointer`, inside the block at `block` and not at its start,
    /// is an idiom for its start. `size` is the requested one, or all that it
    /// may be.
    pub fn is_start(&mut self, peek: &mut dyn Peek, block: u64, size: &Size, pointer: u64) -> bool {
        if self.heuristics == Heuristics::NONE {
            return false;
        }
        match pointer - block {
            8 if self.counted(peek, block, size) => return true,
            16 if self.rust_rc(peek, block) => return true,
            16 | 32 if self.cpython_gc(peek, pointer) => return true,
            24 if self.stdstring(peek, block, size) => return true,
            _ => {}
        }
        if self.kept_start(peek, block, pointer) {
            return true;
        }
        size.clone()
            .any(|size| self.hashbrown(peek, block, size, pointer))
            || self.multiple_inheritance(peek, block, *size.end(), pointer)
    }

    /// `length64` and `newarray`: a number, then what it measures.
    fn counted(&self, peek: &mut dyn Peek, block: u64, size: &Size) -> bool {
        if !(self.heuristics.length64 || self.heuristics.new_array) {
            return false;
        }
        let (Some(most), Some(number)) = (size.end().checked_sub(8), peek.word(block)) else {
            return false;
        };
        let least = size.start().saturating_sub(8);
        // The largest multiple that fits.
        let multiple = most.checked_rem(number).map(|rest| most - rest);
        (self.heuristics.length64 && number > 0 && (least..=most).contains(&number))
            || (self.heuristics.new_array && multiple.is_some_and(|m| m >= least))
    }

    fn stdstring(&self, peek: &mut dyn Peek, block: u64, size: &Size) -> bool {
        self.heuristics.stdstring
            && peek.word(block + 8).is_some_and(|capacity| {
                let whole = capacity.checked_add(25);
                whole.is_some_and(|whole| size.contains(&whole))
                    && peek.word(block).is_some_and(|length| length <= capacity)
            })
    }

    /// The weak count is at least one as long as the memory exists: all
    /// strong pointers together own one weak.
    fn rust_rc(&self, peek: &mut dyn Peek, block: u64) -> bool {
        self.heuristics.rust_rc
            && peek.word(block).is_some_and(|strong| strong <= COUNT_MAX)
            && peek
                .word(block + 8)
                .is_some_and(|weak| (1..=COUNT_MAX).contains(&weak))
    }

    /// `PyGC_Head`, two words before the object: links of a list, the second
    /// with flags in its low bits; both empty when the object is not tracked.
    /// Objects with a managed dictionary have two words more before (3.11 and
    /// later). The object begins with its reference count and its type.
    fn cpython_gc(&self, peek: &mut dyn Peek, object: u64) -> bool {
        if !self.heuristics.cpython_gc {
            return false;
        }
        let link = |word: u64| word >= 4096 && self.map.find(Addr(word)).is_some_and(|r| r.write);
        let mut word = |at: u64| peek.word(at);
        let (Some(next), Some(previous)) = (word(object - 16), word(object - 8)) else {
            return false;
        };
        let previous = previous & !3;
        let tracked = next.is_multiple_of(8) && link(next) && link(previous);
        if !tracked && (next, previous) != (0, 0) {
            return false;
        }
        let (Some(count), Some(kind)) = (word(object), word(object + 8)) else {
            return false;
        };
        // Since 3.12 the count of an immortal object fills the low half.
        (1..=1 << 32).contains(&count) && kind.is_multiple_of(8) && link(kind)
    }

    fn kept_start(&self, peek: &mut dyn Peek, block: u64, pointer: u64) -> bool {
        self.heuristics.kept_start
            && pointer.is_multiple_of(8)
            && (peek.word(pointer - 8) == Some(block) || peek.word(pointer + 8) == Some(block))
    }

    /// The table ends the block: `buckets + 16` control bytes, of which the
    /// last 16 repeat the first, so that a group may be loaded at any bucket.
    /// Tables of fewer than 16 buckets keep the repetition at byte 16 and
    /// EMPTY between.
    fn hashbrown(&self, peek: &mut dyn Peek, block: u64, size: u64, pointer: u64) -> bool {
        if !self.heuristics.hashbrown || !pointer.is_multiple_of(16) {
            return false;
        }
        let data = pointer - block;
        let Some(buckets) = size.checked_sub(data).and_then(|c| c.checked_sub(GROUP)) else {
            return false;
        };
        // No element type is smaller than a byte; a table of empty elements
        // has no data and its pointer is the start.
        if !buckets.is_power_of_two() || data < buckets || pointer.checked_add(buckets).is_none() {
            return false;
        }
        let mut first = [0; GROUP as usize];
        let mut mirror = [0; GROUP as usize];
        if !peek.bytes(pointer, &mut first)
            || !peek.bytes(
                pointer + buckets.max(GROUP),
                mirror_part(&mut mirror, buckets),
            )
        {
            return false;
        }
        let shown = buckets.min(GROUP) as usize;
        if first[..shown] != mirror[..shown] || first[shown..].iter().any(|b| *b != EMPTY) {
            return false;
        }
        let mut empties = false;
        let mut page = [0; 512];
        let mut at = 0;
        while at < buckets {
            let part = &mut page[..(buckets - at).min(512) as usize];
            if !peek.bytes(pointer + at, part) || part.iter().any(|b| *b > DELETED && *b != EMPTY) {
                return false;
            }
            empties |= part.contains(&EMPTY);
            at += part.len() as u64;
        }
        // The load factor leaves at least one bucket empty or deleted; a
        // table without any empty one could not end a failed look-up.
        empties
    }

    fn multiple_inheritance(
        &mut self,
        peek: &mut dyn Peek,
        block: u64,
        size: u64,
        pointer: u64,
    ) -> bool {
        if !self.heuristics.multiple_inheritance
            || !pointer.is_multiple_of(8)
            || size - (pointer - block) < 8
        {
            return false;
        }
        let plausible = |table: &u64| table.is_multiple_of(8) && *table >= 4096;
        let Some(inner) = peek.word(pointer).filter(plausible) else {
            return false;
        };
        let Some(outer) = peek.word(block).filter(plausible) else {
            return false;
        };
        self.is_vtable(peek, inner) && self.is_vtable(peek, outer)
    }

    /// A table of functions lies in a file's readable mapping and begins with
    /// nothing but null pointers and pointers into mapped files' code.
    fn is_vtable(&mut self, peek: &mut dyn Peek, table: u64) -> bool {
        if let Some(known) = self.vtables.get(&table) {
            return *known;
        }
        let answer = self.looks_like_vtable(peek, table);
        if self.vtables.len() >= VTABLE_CACHE {
            self.vtables.clear();
        }
        self.vtables.insert(table, answer);
        answer
    }

    fn looks_like_vtable(&self, peek: &mut dyn Peek, table: u64) -> bool {
        let Some(region) = self.map.find(Addr(table)) else {
            return false;
        };
        if region.inode == 0 || !region.read {
            return false;
        }
        let words = ((region.range.end.0 - table) / 8).min(VTABLE_WORDS);
        let mut functions = 0;
        for i in 0..words {
            let Some(word) = peek.word(table + 8 * i) else {
                return false;
            };
            if word == 0 {
                continue;
            }
            if !self
                .map
                .find(Addr(word))
                .is_some_and(|r| r.inode != 0 && r.exec)
            {
                return false;
            }
            functions += 1;
            if functions == VTABLE_FUNCTIONS {
                return true;
            }
        }
        false
    }
}

/// As many bytes of the mirror as the table has.
fn mirror_part(mirror: &mut [u8; GROUP as usize], buckets: u64) -> &mut [u8] {
    &mut mirror[..buckets.min(GROUP) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_idioms() {
        assert_eq!("all".parse(), Ok(Heuristics::ALL));
        assert_eq!("none".parse(), Ok(Heuristics::NONE));
        assert_eq!(
            "newarray, hashbrown".parse(),
            Ok(Heuristics {
                new_array: true,
                hashbrown: true,
                ..Heuristics::NONE
            })
        );
        assert_eq!(
            Heuristics::NAMES.join(",").parse::<Heuristics>(),
            Ok(Heuristics::ALL)
        );
        let error = "newaray".parse::<Heuristics>().unwrap_err();
        assert!(error.to_string().contains("newaray"));
    }
}
