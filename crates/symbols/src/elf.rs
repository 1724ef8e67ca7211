//! The parts of an ELF file that lead to names: section headers, build id,
//! and the links to other files. 64-bit little-endian only, which is what
//! the recorder runs in.
//!
//! ```text
//! file header, 64 bytes          section header, 64 bytes
//!  0 7f 45 4c 46 02 01            0 u32 name, offset in .shstrtab
//! 16 u16 type  18 u16 machine     4 u32 type      8 u64 flags
//! 32 u64 program headers at      16 u64 address  24 u64 file offset
//! 40 u64 section headers at      32 u64 size     40 u32 link
//! 54 u16 size, 56 u16 number     program header, 56 bytes
//! 58 u16 size, 60 u16 number      0 u32 type      8 u64 file offset
//! 62 u16 index of .shstrtab      32 u64 size
//! note: u32 name size, u32 size, u32 type, name, contents, each padded to 4
//! ```

use std::borrow::Cow;
use std::io;

use crate::bytes::{string_at, u16_at, u32_at, u64_at};
use crate::compress;
use crate::map::Contents;

/// More section headers than this are not read. The format allows 4 G; real
/// linked files have dozens, relocatable ones with a section per function
/// some ten thousand.
const MAX_SECTIONS: u64 = 65_536;
/// Longest section name and path inside a file that is looked at, bytes.
const MAX_NAME: usize = 4096;
/// Largest note section read, bytes.
const MAX_NOTES: u64 = 65_536;
/// Largest sum of decompressed sections of one file, bytes.
const MAX_INFLATED: u64 = 1 << 30;

const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
const SHF_COMPRESSED: u64 = 0x800;
/// Section type of symbol tables (`.symtab`).
pub(crate) const SHT_SYMTAB: u32 = 2;
/// Section type of dynamic symbol tables (`.dynsym`).
pub(crate) const SHT_DYNSYM: u32 = 11;

/// One section header.
#[derive(Debug)]
pub(crate) struct Section {
    /// Name without the terminating zero.
    pub name: Vec<u8>,
    /// `SHT_…`.
    pub kind: u32,
    /// Offset in the file.
    pub offset: u64,
    /// Size in the file, bytes.
    pub size: u64,
    /// Index of a related section.
    pub link: u32,
    compressed: bool,
}

/// An ELF file's table of contents.
pub(crate) struct Elf {
    /// The file.
    pub contents: Contents,
    /// Section headers by index.
    pub sections: Vec<Section>,
    /// GNU build id.
    pub build_id: Option<Vec<u8>>,
    inflated: std::cell::Cell<u64>,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Elf {
    /// Reads the headers. An error says what is wrong with the file.
    pub(crate) fn parse(contents: Contents) -> io::Result<Elf> {
        let header = contents
            .read(0, 64)
            .map_err(|_| bad("not an ELF file: too short"))?;
        if header.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(bad("not a 64-bit little-endian ELF file"));
        }
        let field64 = |at| u64_at(&header, at).unwrap_or(0);
        let field16 = |at| u64::from(u16_at(&header, at).unwrap_or(0));
        let (ph_at, sh_at) = (field64(32), field64(40));
        let (ph_size, ph_num) = (field16(54), field16(56));
        let (sh_size, mut sh_num, mut names) = (field16(58), field16(60), field16(62));
        drop(header);

        let mut sections = Vec::new();
        if sh_at != 0 && sh_size >= 64 {
            // Large numbers are kept in the otherwise unused section 0.
            let zero = contents.read(sh_at, 64).unwrap_or_default();
            if sh_num == 0 {
                sh_num = u64_at(&zero, 32).unwrap_or(0);
            }
            if names == 0xffff {
                names = u64::from(u32_at(&zero, 40).unwrap_or(0));
            }
            let table = contents
                .read(sh_at, sh_num.min(MAX_SECTIONS) * sh_size)
                .map_err(|_| bad("section headers lie outside the file"))?;
            let rows = || table.chunks_exact(sh_size as usize);
            let names = usize::try_from(names)
                .ok()
                .and_then(|i| rows().nth(i))
                .and_then(|row| {
                    let (at, size) = (u64_at(row, 24)?, u64_at(row, 32)?);
                    contents.read(at, size.min(1 << 24)).ok()
                })
                .unwrap_or_default();
            for row in rows() {
                let word = |at| u32_at(row, at).unwrap_or(0);
                let long = |at| u64_at(row, at).unwrap_or(0);
                sections.push(Section {
                    name: string_at(&names, word(0) as usize, MAX_NAME)
                        .unwrap_or_default()
                        .to_vec(),
                    kind: word(4),
                    offset: long(24),
                    size: if word(4) == SHT_NOBITS { 0 } else { long(32) },
                    link: word(40),
                    compressed: long(8) & SHF_COMPRESSED != 0,
                });
            }
        }
        let mut elf = Elf {
            contents,
            sections,
            build_id: None,
            inflated: std::cell::Cell::new(0),
        };
        elf.build_id = elf.find_build_id(ph_at, ph_size, ph_num);
        Ok(elf)
    }

    fn find_build_id(&self, ph_at: u64, ph_size: u64, ph_num: u64) -> Option<Vec<u8>> {
        let from_sections = self
            .sections
            .iter()
            .filter(|s| s.kind == SHT_NOTE)
            .map(|s| (s.offset, s.size));
        let headers = if ph_size >= 56 {
            self.contents.read(ph_at, ph_num * ph_size).ok()
        } else {
            None
        };
        let from_segments = headers.iter().flat_map(|table| {
            table.chunks_exact(ph_size as usize).filter_map(|row| {
                (u32_at(row, 0)? == PT_NOTE).then_some((u64_at(row, 8)?, u64_at(row, 32)?))
            })
        });
        from_sections
            .chain(from_segments)
            .filter(|(_, size)| *size <= MAX_NOTES)
            .find_map(|(at, size)| build_id_in(&self.contents.read(at, size).ok()?))
    }

    /// The section of that name.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|s| s.name == name.as_bytes())
    }

    /// The section's bytes, decompressed if need be: borrowed when the file
    /// is mapped and the section stored plainly.
    pub(crate) fn data(&self, section: &Section) -> io::Result<Cow<'_, [u8]>> {
        let raw = self.contents.read(section.offset, section.size)?;
        let stream = if section.compressed {
            compress::Stream::chdr(&raw)
        } else if section.name.starts_with(b".zdebug_") {
            compress::Stream::zdebug(&raw)
        } else {
            return Ok(raw);
        };
        let stream = stream.ok_or_else(|| bad("unknown compression of a section"))?;
        let room = MAX_INFLATED.saturating_sub(self.inflated.get());
        let out = stream.decode(room)?;
        self.inflated.set(self.inflated.get() + out.len() as u64);
        Ok(Cow::Owned(out))
    }

    /// The named debug section, also under its old compressed name
    /// (`.zdebug_…` for `.debug_…`); empty when absent or unreadable.
    pub(crate) fn debug_data(&self, name: &str) -> Cow<'_, [u8]> {
        let old = name.strip_prefix(".debug_").map(|n| format!(".zdebug_{n}"));
        self.section(name)
            .or_else(|| self.section(&old?))
            .and_then(|s| self.data(s).ok())
            .unwrap_or_default()
    }

    /// Sum of the sizes that the debug sections have in the file, bytes.
    pub(crate) fn debug_size(&self) -> u64 {
        self.sections
            .iter()
            .filter(|s| s.name.starts_with(b".debug_") || s.name.starts_with(b".zdebug_"))
            .fold(0, |sum, s| sum.saturating_add(s.size))
    }

    /// True when the file has debug information with functions in it.
    pub(crate) fn has_dwarf(&self) -> bool {
        [".debug_info", ".zdebug_info"]
            .iter()
            .any(|n| self.section(n).is_some_and(|s| s.size > 0))
    }

    /// True when the file has a full symbol table.
    pub(crate) fn has_symtab(&self) -> bool {
        self.sections
            .iter()
            .any(|s| s.kind == SHT_SYMTAB && s.size > 0)
    }

    /// `.gnu_debuglink`: file name (no folder) of the debug file, and the
    /// CRC-32 of its contents.
    pub(crate) fn debuglink(&self) -> Option<(Vec<u8>, u32)> {
        let data = self.contents_of(".gnu_debuglink")?;
        let name = string_at(&data, 0, MAX_NAME)?;
        let crc = u32_at(&data, (name.len() + 1).next_multiple_of(4))?;
        let plain = !name.is_empty() && !name.contains(&b'/') && name != b".." && name != b".";
        plain.then(|| (name.to_vec(), crc))
    }

    /// `.gnu_debugaltlink`: path and build id of the supplementary file that
    /// dwz made for several debug files.
    pub(crate) fn debugaltlink(&self) -> Option<(Vec<u8>, Vec<u8>)> {
        let data = self.contents_of(".gnu_debugaltlink")?;
        let name = string_at(&data, 0, MAX_NAME)?;
        let id = data.get(name.len() + 1..)?;
        (!name.is_empty() && !id.is_empty()).then(|| (name.to_vec(), id.to_vec()))
    }

    fn contents_of(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let section = self.section(name)?;
        if section.size > MAX_NOTES {
            return None;
        }
        self.contents.read(section.offset, section.size).ok()
    }
}

/// The build id among the notes of one section or segment.
fn build_id_in(notes: &[u8]) -> Option<Vec<u8>> {
    let mut at = 0usize;
    loop {
        let name_size = u32_at(notes, at)? as usize;
        let size = u32_at(notes, at + 4)? as usize;
        let kind = u32_at(notes, at + 8)?;
        let name = at.checked_add(12)?;
        let contents = name.checked_add(name_size.checked_next_multiple_of(4)?)?;
        if kind == NT_GNU_BUILD_ID && notes.get(name..name.checked_add(name_size)?)? == b"GNU\0" {
            let id = notes.get(contents..contents.checked_add(size)?)?;
            // Hashes are 8 to 64 bytes; anything goes with --build-id=0x….
            return (!id.is_empty() && id.len() <= 64).then(|| id.to_vec());
        }
        at = contents.checked_add(size.checked_next_multiple_of(4)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = Vec::new();
        for (kind, contents) in [(1u32, &[9u8; 5][..]), (3, &[1, 2, 3, 4, 5, 6, 7])] {
            notes.extend(4u32.to_le_bytes());
            notes.extend((contents.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(b"GNU\0");
            notes.extend(contents);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(build_id_in(&notes).unwrap(), [1, 2, 3, 4, 5, 6, 7]);
        for cut in 0..notes.len() - 1 {
            assert_eq!(build_id_in(&notes[..cut]), None, "{cut}");
        }
        assert_eq!(build_id_in(&[0xff; 64]), None);
    }

    #[test]
    fn what_is_no_elf_file_is_an_error() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 64], b"\x7fELF\x01\x01"] {
            assert!(Elf::parse(Contents::from_vec(bytes.to_vec())).is_err());
        }
        // A header whose section table lies far behind the end.
        let mut header = b"\x7fELF\x02\x01".to_vec();
        header.resize(64, 0xff);
        assert!(Elf::parse(Contents::from_vec(header)).is_err());
    }
}
