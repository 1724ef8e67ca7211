//! What a block's first bytes are.
//!
//! ```text
//! object      vtable pointer │ …
//! vtable      offset to top │ type_info pointer │ ◄ functions …
//! type_info   its own vtable pointer │ name pointer │ …
//! ```
//! This is the Itanium C++ ABI, 2.9: with run-time type information every
//! object with virtual functions names its type, in a stripped program too.

use crate::records::Keyed;
use hashbrown::HashMap;
use leakscope_heap::cpython::Objects;
use leakscope_heap::words::Words;
use leakscope_memory::{MemoryReader, Region};
use leakscope_model::{Addr, Range};

/// Longest mangled type name, bytes.
const MAX_NAME: usize = 1024;
/// Words that are looked at.
pub(super) const LOOKED_AT: usize = 8;
/// Words that a shape tells.
const TOLD: usize = 4;
/// Bytes from which on sizes are told apart by powers of two only.
const EXACT: u64 = 1024;
/// Shortest text.
const MIN_TEXT: usize = 4;
/// Most vtables that are remembered: a hostile heap may have any number.
const MAX_VTABLES: usize = 1 << 20;

/// What a block looks like; equal looks go to one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Look {
    /// An object of this type.
    Object(u32),
    /// One of CPython's.
    Python(u32),
    /// Text, and the class of its size.
    Text(u64),
    /// Anything else: the class of its size and what its first words are.
    Words(u64, [Word; TOLD]),
}

impl Look {
    pub(super) fn type_index(self) -> Option<usize> {
        match self {
            Look::Object(at) | Look::Python(at) => Some(at as usize),
            _ => None,
        }
    }
}

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Word {
    /// Behind the block's end, or unreadable.
    None,
    Zero,
    Number,
    Heap,
    Module,
    Text,
    Other,
}

/// A type that objects on the heap have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Type {
    /// Of C++, mangled as the compiler wrote it (without the `_ZTS` before).
    Mangled(String),
    /// Of CPython, as it calls itself (`tp_name`).
    Python(String),
}

/// Knows what words point to.
pub struct Looks<'a> {
    words: Words<'a>,
    /// Memory of executables and libraries, ascending.
    modules: Vec<Range>,
    /// Heaps, ascending.
    heaps: Vec<Range>,
    /// By vtable pointer.
    vtables: HashMap<u64, Option<u32>, Keyed>,
    by_name: HashMap<String, u32, Keyed>,
    types: Vec<Type>,
    /// For each block: 0, or one more than the place of its type.
    python: &'a [u32],
}

impl<'a> Looks<'a> {
    /// For a process whose heaps are `heaps` (ascending).
    pub fn new(memory: &'a dyn MemoryReader, heaps: Vec<Range>) -> Looks<'a> {
        let regions = memory.map().regions();
        let module = |r: &&Region| r.inode != 0 && !r.shared && r.read;
        Looks {
            words: Words::new(memory),
            modules: regions.iter().filter(module).map(|r| r.range).collect(),
            heaps,
            vtables: HashMap::default(),
            by_name: HashMap::default(),
            types: Vec::new(),
            python: &[],
        }
    }

    /// Names the blocks that are objects of CPython, too.
    pub fn with_objects(mut self, objects: &'a Objects) -> Looks<'a> {
        let names = objects.types.iter().cloned();
        self.types = names.map(Type::Python).collect();
        self.python = &objects.of_block;
        self
    }

    /// The types that were found.
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// What the block with this number, of `size` bytes that begin with `begin`,
    /// looks like.
    pub(super) fn at(&mut self, number: usize, begin: &[u64], size: u64) -> Look {
        let python = self.python.get(number).and_then(|kind| kind.checked_sub(1));
        if let Some(kind) = python {
            return Look::Python(kind);
        }
        if let Some(at) = begin.first().and_then(|first| self.object(*first)) {
            return Look::Object(at);
        }
        let class = size_class(size);
        // Some addresses read as characters.
        if let Some(first) = begin.first()
            && *first as u8 >= b'\t'
            && is_text(begin, size)
            && !within(&self.heaps, *first)
        {
            return Look::Text(class);
        }
        let mut told = [Word::None; TOLD];
        for (told, word) in told.iter_mut().zip(begin) {
            *told = self.word(*word);
        }
        Look::Words(class, told)
    }

    fn word(&self, word: u64) -> Word {
        if word == 0 {
            Word::Zero
        } else if within(&self.heaps, word) {
            Word::Heap
        } else if within(&self.modules, word) {
            Word::Module
        } else if word <= u64::from(u32::MAX) {
            Word::Number
        } else if word.to_le_bytes().iter().all(|b| is_character(*b)) {
            Word::Text
        } else {
            Word::Other
        }
    }

    fn object(&mut self, vtable: u64) -> Option<u32> {
        if !vtable.is_multiple_of(8) || !within(&self.modules, vtable) {
            return None;
        }
        if let Some(known) = self.vtables.get(&vtable) {
            return *known;
        }
        let found = self.type_name(vtable).map(|name| {
            let next = self.types.len() as u32;
            let at = *self.by_name.entry(name.clone()).or_insert(next);
            if at == next {
                self.types.push(Type::Mangled(name));
            }
            at
        });
        if self.vtables.len() < MAX_VTABLES {
            self.vtables.insert(vtable, found);
        }
        found
    }

    fn type_name(&mut self, vtable: u64) -> Option<String> {
        // The whole object's vtable: it begins at its top.
        if self.words.at(vtable.checked_sub(16)?)? != 0 {
            return None;
        }
        let info = self.words.at(vtable - 8)?;
        let in_module = |at: u64| at.is_multiple_of(8) && within(&self.modules, at);
        if !in_module(info) {
            return None;
        }
        let own_vtable = self.words.at(info)?;
        let name = self.words.at(info.checked_add(8)?)?;
        if !within(&self.modules, own_vtable) || !within(&self.modules, name) {
            return None;
        }
        self.string(name)
    }

    /// A type's name as `std::type_info` has it; a `*` before it says that the
    /// type is local to its file.
    fn string(&mut self, at: u64) -> Option<String> {
        let mut name = Vec::new();
        let mut word_at = at & !7;
        'words: loop {
            let word = self.words.at(word_at)?.to_le_bytes();
            let skip = at.saturating_sub(word_at) as usize;
            for byte in word.into_iter().skip(skip) {
                match byte {
                    0 => break 'words,
                    b'*' if name.is_empty() => {}
                    b if b.is_ascii_alphanumeric() || b"_.$".contains(&b) => name.push(b),
                    _ => return None,
                }
            }
            if name.len() > MAX_NAME {
                return None;
            }
            word_at = word_at.checked_add(8)?;
        }
        let plausible = name
            .first()
            .is_some_and(|b| b.is_ascii_digit() || b"NSPIZ".contains(b));
        (plausible && name.len() > 1)
            .then(|| String::from_utf8(name).ok())
            .flatten()
    }

    /// In words.
    pub(super) fn describe(&self, look: Look) -> String {
        match look {
            Look::Object(_) => "object with virtual functions".to_owned(),
            Look::Python(_) => "object with a reference count".to_owned(),
            Look::Text(class) => format!("text, {}", describe_class(class)),
            Look::Words(class, told) => {
                let told: Vec<&str> = told.into_iter().filter_map(describe_word).collect();
                let size = describe_class(class);
                match told.as_slice() {
                    [] => size,
                    told if told.iter().all(|t| *t == "zero") => format!("{size}, zeroed"),
                    told => format!("{size}: {}", told.join(", ")),
                }
            }
        }
    }
}

fn describe_word(word: Word) -> Option<&'static str> {
    Some(match word {
        Word::None => return None,
        Word::Zero => "zero",
        Word::Number => "number",
        Word::Heap => "heap pointer",
        Word::Module => "pointer to code or globals",
        Word::Text => "text",
        Word::Other => "other",
    })
}

/// Usable sizes exactly where they are small, else the power of two below.
fn size_class(size: u64) -> u64 {
    match size {
        0..=EXACT => size,
        _ => 1 << size.ilog2(),
    }
}

fn describe_class(class: u64) -> String {
    if class <= EXACT {
        format!("{class} bytes")
    } else {
        let n = leakscope_model::quantity::bytes(class);
        format!("{n} or more, less than twice that")
    }
}

/// Characters and then, if anything, a zero byte.
fn is_text(begin: &[u64], size: u64) -> bool {
    let mut bytes = [[0; 8]; LOOKED_AT];
    for (bytes, word) in bytes.iter_mut().zip(begin) {
        *bytes = word.to_le_bytes();
    }
    let there = (8 * begin.len()).min(usize::try_from(size).unwrap_or(usize::MAX));
    let bytes = bytes.as_flattened();
    let bytes = bytes.get(..there).unwrap_or(bytes);
    let len = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let text = bytes.get(..len).unwrap_or_default();
    if len < MIN_TEXT || text.iter().any(|b| *b < b' ' && !b"\t\n\r".contains(b)) {
        return false;
    }
    match std::str::from_utf8(text) {
        Ok(_) => true,
        // The end of what was looked at may cut a character.
        Err(error) => error.error_len().is_none() && error.valid_up_to() >= MIN_TEXT,
    }
}

fn is_character(byte: u8) -> bool {
    byte.is_ascii_graphic() || byte == b' '
}

fn within(ranges: &[Range], at: u64) -> bool {
    let next = ranges.partition_point(|r| r.end.0 <= at);
    ranges.get(next).is_some_and(|r| r.contains(Addr(at)))
}
