//! The debug sections of one file, held ready for gimli.

use std::borrow::Cow;
use std::convert::Infallible;

use gimli::{EndianSlice, LittleEndian, SectionId};

use crate::elf::Elf;

/// How gimli sees sections here.
pub(crate) type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// What lookups read. Locations, types and macros are left in the file.
const NEEDED: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];

/// What a package has besides: its index, and sections that nobody reads but
/// whose share of each unit gimli cuts out.
const PACKAGE: [SectionId; 7] = [
    SectionId::DebugCuIndex,
    SectionId::DebugLoc,
    SectionId::DebugLocLists,
    SectionId::DebugMacinfo,
    SectionId::DebugMacro,
    SectionId::DebugTuIndex,
    SectionId::DebugTypes,
];

/// What kind of file the sections are in, which decides their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flavour {
    /// A program, a library, or their separate debug file.
    Linked,
    /// One split unit (`.dwo`).
    Split,
    /// Many split units with an index (`.dwp`).
    Package,
}

/// Debug sections of a file: mapped in place, or copied.
pub(crate) struct DebugSections {
    elf: Elf,
    held: Vec<(SectionId, Held)>,
}

enum Held {
    /// File offset and size in the mapping.
    InPlace(u64, u64),
    Copy(Vec<u8>),
}

impl DebugSections {
    /// Takes the sections that lookups need.
    pub(crate) fn load(elf: Elf, flavour: Flavour) -> DebugSections {
        let mut held = Vec::new();
        let package: &[SectionId] = match flavour {
            Flavour::Package => &PACKAGE,
            _ => &[],
        };
        for id in NEEDED.into_iter().chain(package.iter().copied()) {
            let name = match flavour {
                Flavour::Linked => Some(id.name()),
                _ => id.dwo_name(),
            };
            let Some(name) = name else { continue };
            let part = match elf.debug_data(name) {
                Cow::Borrowed([]) => continue,
                Cow::Borrowed(bytes) => match elf.section(name) {
                    Some(s) => Held::InPlace(s.offset, s.size),
                    None => Held::Copy(bytes.to_vec()),
                },
                Cow::Owned(bytes) => Held::Copy(bytes),
            };
            held.push((id, part));
        }
        DebugSections { elf, held }
    }

    /// Sum of all sections' sizes, bytes.
    pub(crate) fn total(&self) -> u64 {
        self.held
            .iter()
            .map(|(_, held)| match held {
                Held::InPlace(_, size) => *size,
                Held::Copy(bytes) => bytes.len() as u64,
            })
            .sum()
    }

    /// Memory that copies of sections take, bytes.
    pub(crate) fn copied(&self) -> u64 {
        self.held
            .iter()
            .map(|(_, held)| match held {
                Held::InPlace(..) => 0,
                Held::Copy(bytes) => bytes.len() as u64,
            })
            .sum()
    }

    /// A section's bytes; empty when absent.
    pub(crate) fn get(&self, id: SectionId) -> &[u8] {
        let found = self.held.iter().find(|(i, _)| *i == id);
        match found.map(|(_, held)| held) {
            Some(Held::InPlace(at, size)) => {
                self.elf.contents.borrowed(*at, *size).unwrap_or_default()
            }
            Some(Held::Copy(bytes)) => bytes,
            None => &[],
        }
    }

    /// The sections for gimli. Cheap: nothing is parsed.
    pub(crate) fn dwarf(&self) -> gimli::Dwarf<Slice<'_>> {
        let load = |id| Ok::<_, Infallible>(EndianSlice::new(self.get(id), LittleEndian));
        match gimli::Dwarf::load(load) {
            Ok(dwarf) => dwarf,
            Err(never) => match never {},
        }
    }

    /// The sections as a package of split units (`.dwp`).
    pub(crate) fn package(&self) -> gimli::Result<gimli::DwarfPackage<Slice<'_>>> {
        let load = |id| gimli::Result::Ok(EndianSlice::new(self.get(id), LittleEndian));
        gimli::DwarfPackage::load(load, EndianSlice::new(&[], LittleEndian))
    }
}
