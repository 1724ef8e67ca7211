//! Symbol tables: which function, or which variable, contains an address.
//!
//! ```text
//! symbol, 24 bytes: u32 name (offset in the string table), u8 info
//! (low nibble type, high nibble binding), u8 other, u16 section,
//! u64 value, u64 size
//! ```

use std::cmp::Reverse;

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

/// Bits of [`Symbol::rank`]. A label without type or size tells least; a
/// local name is one that callers do not know.
const TYPED: u8 = 4;
const SIZED: u8 = 2;
const EXPORTED: u8 = 1;

const STB_LOCAL: u8 = 0;
const STT_NOTYPE: u8 = 0;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STT_COMMON: u8 = 5;
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

impl Symbol {
    fn is_exported(&self) -> bool {
        self.rank & EXPORTED != 0
    }
}

/// What a table of symbols is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Of {
    /// Code.
    #[default]
    Functions,
    /// Data.
    Variables,
}

/// All functions, or all variables, that the symbol tables of one module name.
#[derive(Default)]
pub(crate) struct Symbols {
    of: Of,
    symbols: Vec<Symbol>,
    names: Vec<u8>,
}

impl Symbols {
    /// An empty table of variables.
    pub(crate) fn variables() -> Symbols {
        Symbols {
            of: Of::Variables,
            ..Symbols::default()
        }
    }

    /// Adds the functions (or variables) of all symbol tables in `elf`: `.symtab`, which has
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
            self.symbols.extend(
                rows.chunks_exact(24)
                    .filter_map(|row| symbol(row, base, self.of)),
            );
            if self.symbols.len() > before {
                self.names.extend_from_slice(&strings);
                // A later table's names must not continue this one's.
                self.names.push(0);
            }
        }
    }

    /// Must be called after the last [`Symbols::add`].
    pub(crate) fn finish(&mut self) {
        let Symbols { symbols, names, .. } = self;
        symbols.sort_unstable_by_key(|s| s.start);
        symbols.dedup_by(|later, first| {
            let same = later.start == first.start;
            if same {
                // The better name, with whichever size is known.
                let size = later.size.max(first.size);
                let better = preference(names, later) > preference(names, first);
                *first = Symbol {
                    size,
                    ..if better { *later } else { *first }
                };
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
        self.name(self.around(at)?)
    }

    /// The same, if it is a name that other modules can refer to.
    pub(crate) fn exported(&self, at: u64) -> Option<&[u8]> {
        self.around(at)
            .filter(|s| s.is_exported())
            .and_then(|s| self.name(s))
    }

    /// The name of the variable or function around `at`, and how far inside
    /// it `at` is.
    pub(crate) fn within(&self, at: u64) -> Option<(&[u8], u64)> {
        let symbol = self.around(at)?;
        Some((self.name(symbol)?, at - symbol.start))
    }

    fn around(&self, at: u64) -> Option<&Symbol> {
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
                return Some(symbol);
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
        name_in(&self.names, symbol)
    }
}

fn name_in<'n>(names: &'n [u8], symbol: &Symbol) -> Option<&'n [u8]> {
    let at = usize::try_from(symbol.name).ok()?;
    string_at(names, at, MAX_NAME).filter(|n| !n.is_empty())
}

/// Rank; whether there is a name; underscores, length, name: less is better.
type Preference<'n> = (u8, bool, Reverse<(usize, usize, &'n [u8])>);

/// Larger for the better of two names of one address. A C library has each
/// function under several: programs call `strdup`, which is weak, the library
/// itself `__strdup`, and its linker made `__GI___strdup`. So among exported
/// names the one with the fewest underscores in front is best, then the
/// shortest, then the first by alphabet; `malloc` before `__libc_malloc`.
fn preference<'n>(names: &'n [u8], symbol: &Symbol) -> Preference<'n> {
    let name = name_in(names, symbol).unwrap_or_default();
    let underscores = name.iter().take_while(|c| **c == b'_').count();
    (
        symbol.rank,
        !name.is_empty(),
        Reverse((underscores, name.len(), name)),
    )
}

fn symbol(row: &[u8], names: u64, of: Of) -> Option<Symbol> {
    let info = *row.get(4)?;
    let kind = info & 0xf;
    let defined = u16_at(row, 6)? != 0;
    let start = u64_at(row, 8)?;
    let size = u64_at(row, 16)?;
    let fits = match of {
        Of::Functions => matches!(kind, STT_NOTYPE | STT_FUNC | STT_GNU_IFUNC),
        // Without a size it is one of the linker's marks.
        Of::Variables => matches!(kind, STT_OBJECT | STT_COMMON) && size > 0,
    };
    if !defined || start == 0 || !fits {
        return None;
    }
    let mut rank = 0;
    if kind != STT_NOTYPE {
        rank |= TYPED;
    }
    if size != 0 {
        rank |= SIZED;
    }
    // Global or weak.
    if info >> 4 != STB_LOCAL {
        rank |= EXPORTED;
    }
    Some(Symbol {
        start,
        size,
        name: names.checked_add(u64::from(u32_at(row, 0)?))?,
        rank,
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
        symbol(&row, 0, Of::Functions).unwrap()
    }

    #[test]
    fn the_function_around_an_address() {
        let mut s = Symbols {
            names: b"\0outer\0inner\0label\0weak\0global\0".to_vec(),
            of: Of::Functions,
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
        assert_eq!(name(0x30f), Some("weak"));
        assert_eq!(name(0x310), None);
        assert_eq!(s.starting(0x300), Some(&b"weak"[..]));
        assert_eq!(s.exported(0x30f), Some(&b"weak"[..]));
        assert_eq!(s.exported(0x100), None);
        assert_eq!(s.starting(0x301), None);
    }

    #[test]
    fn variables_are_objects_with_a_size() {
        let mut bytes = Vec::new();
        for (name, info, start, size) in [
            (1u32, 0x01, 0x4000_u32, 0x18u64), // local object
            (7, 0x12, 0x4000, 0x40),           // function
            (13, 0x10, 0x4018, 0),             // the linker's mark
            (19, 0x11, 0x4020, 8),             // exported object
        ] {
            bytes.extend(name.to_le_bytes());
            bytes.extend([info, 0, 7, 0]);
            bytes.extend(u64::from(start).to_le_bytes());
            bytes.extend(size.to_le_bytes());
        }
        let mut s = Symbols::variables();
        s.names = b"\0cache\0outer\0_end_\0table\0".to_vec();
        s.symbols
            .extend(bytes.chunks_exact(24).filter_map(|r| symbol(r, 0, s.of)));
        s.finish();
        assert_eq!(s.within(0x4000), Some((&b"cache"[..], 0)));
        assert_eq!(s.within(0x4017), Some((&b"cache"[..], 0x17)));
        assert_eq!(s.within(0x4018), None);
        assert_eq!(s.within(0x4027), Some((&b"table"[..], 7)));
        assert_eq!(s.within(0x4028), None);
    }

    /// The names that glibc 2.36 has for one address, in every order.
    #[test]
    fn the_name_that_programs_call() {
        for (local, names, want) in [
            (1, ["__GI___strdup", "__strdup", "strdup"], "strdup"),
            (2, ["__GI_x", "___dlopen", "dlopen"], "dlopen"),
            (1, ["__GI_x", "__libc_malloc", "malloc"], "malloc"),
            (2, ["a", "_IO_puts_long", "_IO_puts"], "_IO_puts"),
            (0, ["getdelim", "__getdelim", "_IO_getdelim"], "getdelim"),
            (3, ["__GI___f", "__f", "f_internal"], "f_internal"),
        ] {
            for order in [
                [0, 1, 2],
                [0, 2, 1],
                [1, 0, 2],
                [1, 2, 0],
                [2, 0, 1],
                [2, 1, 0],
            ] {
                let mut s = Symbols::default();
                for i in order {
                    let info = if i < local { 0x02 } else { 0x12 };
                    let at = s.names.len() as u32;
                    s.symbols.push(row(at, info, 0x100, 0x17));
                    s.names.extend(names[i].as_bytes());
                    s.names.push(0);
                }
                s.finish();
                let found = s.containing(0x105).map(String::from_utf8_lossy);
                assert_eq!(found.as_deref(), Some(want), "{order:?}");
            }
        }
    }
}
