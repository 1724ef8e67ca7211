//! Symbol tables: which function contains an address.
//!
//! ```text
//! symbol, 24 bytes: u32 name (offset in the string table), u8 info
//! (low nibble type, high nibble binding), u8 other, u16 section,
//! u64 value, u64 size
//! ```

use crate::bytes::{string_at, u16_at, u32_at, u64_at};
use crate::elf::{Elf, SHT_DYNSYM, SHT_SYMTAB};

/// Larger symbol tables are not read (32 bytes are kept of each symbol).
const MAX_SYMBOLS: usize = 8 << 20;
/// Largest string table read; a browser's has 100 MiB, bytes.
const MAX_STRINGS: u64 = 512 << 20;
/// Longest name shown; C++ names of some thousand bytes occur, bytes.
const MAX_NAME: usize = 16 << 10;
/// Symbols that begin before the address and are looked at, for one long
/// enough to contain it.
const MAX_BACK: usize = 64;

const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;

#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: u64,
    size: u64,
    /// Offset into `Symbols::names`.
    name: u64,
    /// Larger is better among symbols of one address.
    rank: u8,
}

/// All functions that the symbol tables of one module name.
#[derive(Default)]
pub(crate) struct Symbols {
    symbols: Vec<Symbol>,
    names: Vec<u8>,
}

impl Symbols {
    /// Adds the functions of all symbol tables in `elf`: `.symtab`, which has
    /// all, or else `.dynsym`, which has the exported ones.
    pub(crate) fn add(&mut self, elf: &Elf) {
        let kind = if elf.has_symtab() {
            SHT_SYMTAB
        } else {
            SHT_DYNSYM
        };
        for table in elf.sections.iter().filter(|s| s.kind == kind) {
            let Some(strings) = elf.sections.get(table.link as usize) else {
                continue;
            };
            if strings.size > MAX_STRINGS || table.size > MAX_SYMBOLS as u64 * 24 {
                continue;
            }
            let (Ok(rows), Ok(strings)) = (elf.data(table), elf.data(strings)) else {
                continue;
            };
            let base = self.names.len() as u64;
            let before = self.symbols.len();
            self.symbols
                .extend(rows.chunks_exact(24).filter_map(|row| function(row, base)));
            if self.symbols.len() > before {
                self.names.extend_from_slice(&strings);
                // A later table's names must not continue this one's.
                self.names.push(0);
            }
        }
    }

    /// Must be called after the last [`Symbols::add`].
    pub(crate) fn finish(&mut self) {
        self.symbols
            .sort_by_key(|s| (s.start, s.rank, std::cmp::Reverse(s.name)));
        self.symbols.dedup_by(|later, first| {
            let same = later.start == first.start;
            if same {
                // The better name, with whichever size is known.
                let size = later.size.max(first.size);
                *first = Symbol { size, ..*later };
            }
            same
        });
        self.symbols.shrink_to_fit();
    }

    /// Memory taken, bytes.
    pub(crate) fn memory(&self) -> u64 {
        (self.symbols.capacity() * size_of::<Symbol>() + self.names.capacity()) as u64
    }

    /// Name of the function that contains `at`, an address in the ELF file.
    pub(crate) fn containing(&self, at: u64) -> Option<&[u8]> {
        let end = self.symbols.partition_point(|s| s.start <= at);
        let mut next = self.symbols.get(end).map(|s| s.start);
        for symbol in self.symbols.get(..end)?.iter().rev().take(MAX_BACK) {
            let inside = if symbol.size == 0 {
                // Hand-written assembly: it lasts until the next symbol.
                next.is_none_or(|n| at < n)
            } else {
                at - symbol.start < symbol.size
            };
            if inside {
                return self.name(symbol);
            }
            next = Some(symbol.start);
        }
        None
    }

    /// Name of the function that begins at `at`.
    pub(crate) fn starting(&self, at: u64) -> Option<&[u8]> {
        let i = self.symbols.binary_search_by_key(&at, |s| s.start).ok()?;
        self.name(self.symbols.get(i)?)
    }

    fn name(&self, symbol: &Symbol) -> Option<&[u8]> {
        let at = usize::try_from(symbol.name).ok()?;
        string_at(&self.names, at, MAX_NAME).filter(|n| !n.is_empty())
    }
}

fn function(row: &[u8], names: u64) -> Option<Symbol> {
    let info = *row.get(4)?;
    let kind = info & 0xf;
    let defined = u16_at(row, 6)? != 0;
    let start = u64_at(row, 8)?;
    if !defined || start == 0 || !matches!(kind, STT_NOTYPE | STT_FUNC | STT_GNU_IFUNC) {
        return None;
    }
    let size = u64_at(row, 16)?;
    // Binding: 0 local, 1 global, 2 weak. An exported name is the one that
    // its callers know; a label without type or size tells least.
    let binding = match info >> 4 {
        1 => 2,
        2 => 1,
        _ => 0,
    };
    let typed = u8::from(kind != STT_NOTYPE);
    let sized = u8::from(size != 0);
    Some(Symbol {
        start,
        size,
        name: names.checked_add(u64::from(u32_at(row, 0)?))?,
        rank: typed * 8 + sized * 4 + binding,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: u32, info: u8, start: u64, size: u64) -> Symbol {
        let mut row = name.to_le_bytes().to_vec();
        row.extend([info, 0, 7, 0]);
        row.extend(start.to_le_bytes());
        row.extend(size.to_le_bytes());
        function(&row, 0).unwrap()
    }

    #[test]
    fn the_function_around_an_address() {
        let mut s = Symbols {
            names: b"\0outer\0inner\0label\0weak\0global\0".to_vec(),
            symbols: vec![
                row(1, 0x02, 0x100, 0x100),
                row(7, 0x02, 0x140, 0x10),
                row(13, 0x00, 0x150, 0),
                row(19, 0x22, 0x300, 0x10),
                row(24, 0x12, 0x300, 0x10),
            ],
        };
        s.finish();
        let name = |at| s.containing(at).map(|n| std::str::from_utf8(n).unwrap());
        assert_eq!(name(0xff), None);
        assert_eq!(name(0x100), Some("outer"));
        assert_eq!(name(0x14f), Some("inner"));
        assert_eq!(name(0x150), Some("label"));
        assert_eq!(name(0x2ff), Some("label"));
        assert_eq!(name(0x30f), Some("global"));
        assert_eq!(name(0x310), None);
        assert_eq!(s.starting(0x300), Some(&b"global"[..]));
        assert_eq!(s.starting(0x301), None);
    }
}
