//! The name of a function's entry, which may be spread over several entries.

use gimli::{AttributeValue, DebugInfoOffset, UnitOffset};

use super::units::{AbbrevCache, Open, Part, open};
use super::work::{Stop, Work};
use crate::sections::Slice;

/// References followed from a function to its name.
const MAX_HOPS: usize = 16;
/// Longest name kept, bytes.
const MAX_NAME: usize = 16 << 10;

/// What the debug information calls a function.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Name {
    /// As the linker sees it.
    pub linkage: Option<Vec<u8>>,
    /// As the source has it, without namespace or class.
    pub plain: Option<Vec<u8>>,
}

/// The files that names may lie in.
pub(super) struct Files<'f, 'a> {
    pub main: &'f gimli::Dwarf<Slice<'a>>,
    pub main_units: &'f [DebugInfoOffset],
    pub supplement: Option<&'f gimli::Dwarf<Slice<'a>>>,
    pub supplement_units: &'f [DebugInfoOffset],
}

/// The name of the function, inlined or not, whose entry is at `entry`.
pub(super) fn of<'a>(
    files: &Files<'_, 'a>,
    dwarf: &gimli::Dwarf<Slice<'a>>,
    start: &Open<'a>,
    mut entry: UnitOffset,
    abbrevs: &mut AbbrevCache,
    work: &mut Work,
) -> Result<Name, Stop> {
    let mut name = Name::default();
    let mut other: Option<Open<'a>> = None;
    for _ in 0..MAX_HOPS {
        let at = other.as_ref().unwrap_or(start);
        let dwarf = match at.part {
            Part::Main => files.main,
            Part::Supplement => files.supplement.ok_or(Stop::Malformed)?,
            Part::Split(_) => dwarf,
        };
        let Some(next) = step(dwarf, at, entry, &mut name, work)? else {
            break;
        };
        let (part, offset) = match next {
            AttributeValue::UnitRef(offset) => {
                entry = offset;
                continue;
            }
            // In a split unit, nothing outside can be meant.
            AttributeValue::DebugInfoRef(offset) if !matches!(at.part, Part::Split(_)) => {
                (at.part, offset)
            }
            AttributeValue::DebugInfoRefSup(offset) => (Part::Supplement, offset),
            _ => break,
        };
        let (dwarf, units) = match part {
            Part::Supplement => match files.supplement {
                Some(dwarf) => (dwarf, files.supplement_units),
                None => break,
            },
            _ => (files.main, files.main_units),
        };
        let i = units.partition_point(|u| u.0 <= offset.0);
        let Some(unit) = i.checked_sub(1).and_then(|i| units.get(i)) else {
            break;
        };
        let opened = open(part, dwarf, dwarf.unit_header(*unit)?, abbrevs, work)?;
        let Some(inner) = offset.to_unit_offset(&opened.unit.header) else {
            break;
        };
        entry = inner;
        other = Some(opened);
    }
    Ok(name)
}

/// Takes the names that one entry has. The value is where more may be found,
/// `None` when the best one is known.
fn step<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    open: &Open<'a>,
    entry: UnitOffset,
    name: &mut Name,
    work: &mut Work,
) -> Result<Option<AttributeValue<Slice<'a>>>, Stop> {
    let unit = &open.unit;
    let mut entries = unit.entries_raw(Some(entry))?;
    let Some(abbrev) = entries.read_abbreviation()? else {
        return Ok(None);
    };
    work.charge(1 + abbrev.attributes().len() as u64)?;
    let mut next = None;
    for spec in abbrev.attributes() {
        let attr = entries.read_attribute(*spec)?;
        let slot = match attr.name() {
            gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => &mut name.linkage,
            gimli::DW_AT_name => &mut name.plain,
            gimli::DW_AT_abstract_origin | gimli::DW_AT_specification => {
                next = Some(attr.value());
                continue;
            }
            _ => continue,
        };
        if slot.is_none()
            && let Ok(text) = dwarf.attr_string(unit, attr.value())
        {
            let text = text.slice();
            work.charge(text.len() as u64 / 64)?;
            if !text.is_empty() {
                *slot = Some(text.get(..MAX_NAME).unwrap_or(text).to_vec());
            }
        }
    }
    Ok(if name.linkage.is_some() { None } else { next })
}
