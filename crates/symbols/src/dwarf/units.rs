//! Compilation units: opening one, and finding the one for an address.

use std::collections::HashMap;
use std::sync::Arc;

use gimli::{Abbreviations, AttributeValue, DebugInfoOffset, DebugLineOffset, Section};

use super::work::{Stop, Work};
use crate::sections::Slice;

/// Which file a unit is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Main,
    /// The supplementary file that dwz made.
    Supplement,
    /// A split unit, by its id.
    Split(u64),
}

/// A unit with its root entry decoded.
pub(super) struct Open<'a> {
    pub part: Part,
    pub unit: gimli::Unit<Slice<'a>>,
    pub line_program: Option<DebugLineOffset>,
    pub dwo_name: Option<Slice<'a>>,
    low: Option<AttributeValue<Slice<'a>>>,
    high: Option<AttributeValue<Slice<'a>>>,
    ranges: Option<AttributeValue<Slice<'a>>>,
}

/// Abbreviation tables already decoded.
#[derive(Default)]
pub(super) struct AbbrevCache {
    tables: HashMap<(Part, usize), Arc<Abbreviations>>,
    bytes: usize,
}

/// Tables of at most this many encoded bytes are kept; decoded they take
/// about ten times that much.
const MAX_ABBREV_BYTES: usize = 4 << 20;

impl AbbrevCache {
    fn get<'a>(
        &mut self,
        part: Part,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        header: &gimli::UnitHeader<Slice<'a>>,
        work: &mut Work,
    ) -> Result<Arc<Abbreviations>, Stop> {
        let key = (part, header.debug_abbrev_offset().0);
        if let Some(table) = self.tables.get(&key) {
            return Ok(table.clone());
        }
        let section = dwarf.debug_abbrev.reader().slice();
        let len = table_len(section.get(key.1..).unwrap_or_default());
        // Before it is decoded, which is slow: tables of different units may
        // overlap.
        work.charge(len as u64 * 4)?;
        let table = Arc::new(header.abbreviations(&dwarf.debug_abbrev)?);
        if self.bytes + len > MAX_ABBREV_BYTES {
            self.tables.clear();
            self.bytes = 0;
        }
        self.bytes += len;
        self.tables.insert(key, table.clone());
        Ok(table)
    }
}

/// Encoded length of the abbreviation table that `bytes` begin with:
/// declarations (code, tag, one byte, then pairs of attribute and form up to
/// a pair of zeros) up to a zero code.
fn table_len(bytes: &[u8]) -> usize {
    const IMPLICIT_CONST: u64 = 0x21;
    fn number(bytes: &[u8], at: &mut usize) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..).step_by(7) {
            let byte = *bytes.get(*at)?;
            *at += 1;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(value)
    }
    fn walk(bytes: &[u8], at: &mut usize) -> Option<()> {
        while number(bytes, at)? != 0 {
            number(bytes, at)?;
            *at += 1;
            loop {
                let (name, form) = (number(bytes, at)?, number(bytes, at)?);
                if form == IMPLICIT_CONST {
                    number(bytes, at)?;
                }
                if name == 0 && form == 0 {
                    break;
                }
            }
        }
        Some(())
    }
    let mut at = 0;
    // Cut short by the section's end: as long as the section.
    walk(bytes, &mut at);
    at.min(bytes.len())
}

/// Opens the unit of `header`: what `gimli::Unit::new` does, but leaving the
/// line program's header, which is as long as the unit has files, alone.
pub(super) fn open<'a>(
    part: Part,
    dwarf: &gimli::Dwarf<Slice<'a>>,
    header: gimli::UnitHeader<Slice<'a>>,
    abbrevs: &mut AbbrevCache,
    work: &mut Work,
) -> Result<Open<'a>, Stop> {
    let abbreviations = abbrevs.get(part, dwarf, &header, work)?;
    let encoding = header.encoding();
    let file_type = dwarf.file_type;
    let mut entry = gimli::DebuggingInformationEntry::null();
    let found = header
        .entries_raw(&abbreviations, None)?
        .read_entry(&mut entry)?;
    if !found {
        return Err(Stop::Malformed);
    }
    work.charge(entry.attrs().len() as u64 + 1)?;
    let mut unit = gimli::Unit {
        abbreviations,
        name: None,
        comp_dir: None,
        low_pc: 0,
        str_offsets_base: gimli::DebugStrOffsetsBase::default_for_encoding_and_file(
            encoding, file_type,
        ),
        addr_base: gimli::DebugAddrBase(0),
        loclists_base: gimli::DebugLocListsBase::default_for_encoding_and_file(encoding, file_type),
        rnglists_base: gimli::DebugRngListsBase::default_for_encoding_and_file(encoding, file_type),
        line_program: None,
        dwo_id: match header.type_() {
            gimli::UnitType::Skeleton(id) | gimli::UnitType::SplitCompilation(id) => Some(id),
            _ => None,
        },
        header,
    };
    // The bases decide what the other attributes mean.
    for attr in entry.attrs() {
        match (attr.name(), attr.value()) {
            (gimli::DW_AT_str_offsets_base, AttributeValue::DebugStrOffsetsBase(base)) => {
                unit.str_offsets_base = base;
            }
            (
                gimli::DW_AT_addr_base | gimli::DW_AT_GNU_addr_base,
                AttributeValue::DebugAddrBase(base),
            ) => unit.addr_base = base,
            (
                gimli::DW_AT_rnglists_base | gimli::DW_AT_GNU_ranges_base,
                AttributeValue::DebugRngListsBase(base),
            ) => unit.rnglists_base = base,
            (gimli::DW_AT_GNU_dwo_id, AttributeValue::DwoId(id)) => {
                unit.dwo_id.get_or_insert(id);
            }
            _ => {}
        }
    }
    let (mut line_program, mut dwo_name) = (None, None);
    let (mut low, mut high, mut ranges) = (None, None, None);
    for attr in entry.attrs() {
        let value = attr.value();
        match attr.name() {
            gimli::DW_AT_comp_dir => unit.comp_dir = dwarf.attr_string(&unit, value).ok(),
            gimli::DW_AT_dwo_name | gimli::DW_AT_GNU_dwo_name => {
                dwo_name = dwarf.attr_string(&unit, value).ok();
            }
            gimli::DW_AT_stmt_list => {
                if let AttributeValue::DebugLineRef(offset) = value {
                    line_program = Some(offset);
                }
            }
            gimli::DW_AT_low_pc => {
                if let Ok(Some(pc)) = dwarf.attr_address(&unit, value) {
                    unit.low_pc = pc;
                }
                low = Some(value);
            }
            gimli::DW_AT_high_pc => high = Some(value),
            gimli::DW_AT_ranges => ranges = Some(value),
            _ => {}
        }
    }
    Ok(Open {
        part,
        unit,
        line_program,
        dwo_name,
        low,
        high,
        ranges,
    })
}

/// Address ranges of an entry.
#[derive(Clone)]
pub(super) struct RangeAttributes<'a> {
    pub low: Option<AttributeValue<Slice<'a>>>,
    pub high: Option<AttributeValue<Slice<'a>>>,
    pub ranges: Option<AttributeValue<Slice<'a>>>,
}

impl<'a> RangeAttributes<'a> {
    /// None yet.
    pub(super) fn none() -> RangeAttributes<'a> {
        RangeAttributes {
            low: None,
            high: None,
            ranges: None,
        }
    }

    /// Keeps the attribute if it is one of the three.
    pub(super) fn take(&mut self, attr: &gimli::Attribute<Slice<'a>>) {
        match attr.name() {
            gimli::DW_AT_low_pc => self.low = Some(attr.value()),
            gimli::DW_AT_high_pc => self.high = Some(attr.value()),
            gimli::DW_AT_ranges => self.ranges = Some(attr.value()),
            _ => {}
        }
    }

    /// Calls `f` for each range `begin..end` of code that was linked. True
    /// when the attributes say anything about addresses.
    pub(super) fn each(
        &self,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        unit: &gimli::Unit<Slice<'a>>,
        work: &mut Work,
        mut f: impl FnMut(u64, u64),
    ) -> Result<bool, Stop> {
        // Linkers give functions that they threw away the address 0 or 1,
        // where no file has code (gimli knows the other conventions).
        let mut linked = |begin: u64, end: u64| {
            if begin > 1 && begin < end {
                f(begin, end);
            }
        };
        if let Some(ranges) = self.ranges
            && let Some(mut list) = dwarf.attr_ranges(unit, ranges)?
        {
            while let Some(range) = list.next()? {
                work.charge(1)?;
                linked(range.begin, range.end);
            }
            return Ok(true);
        }
        let Some(low) = self.low else {
            return Ok(false);
        };
        let Some(low) = dwarf.attr_address(unit, low)? else {
            return Ok(false);
        };
        let high = match self.high {
            Some(AttributeValue::Udata(size)) => low.checked_add(size),
            Some(value) => dwarf.attr_address(unit, value)?,
            None => None,
        };
        let Some(high) = high else { return Ok(false) };
        linked(low, high);
        Ok(true)
    }
}

impl<'a> Open<'a> {
    /// The unit's own ranges.
    pub(super) fn ranges(&self) -> RangeAttributes<'a> {
        RangeAttributes {
            low: self.low,
            high: self.high,
            ranges: self.ranges,
        }
    }
}

/// One range of addresses and whose it is.
#[derive(Clone, Copy, Debug)]
struct Owned {
    begin: u64,
    end: u64,
    /// Largest `end` of this and all earlier ranges.
    max_end: u64,
    owner: u32,
}

/// Which owner (unit, function) an address belongs to. Ranges may overlap.
#[derive(Default)]
pub(super) struct RangeMap {
    ranges: Vec<Owned>,
}

/// Overlapping ranges looked at before giving up: real ones nest a few deep.
const MAX_OVERLAP: usize = 256;

impl RangeMap {
    /// Adds a range; [`RangeMap::finish`] must follow.
    pub(super) fn push(&mut self, begin: u64, end: u64, owner: u32) {
        self.ranges.push(Owned {
            begin,
            end,
            max_end: end,
            owner,
        });
    }

    /// Sorts, after the last push.
    pub(super) fn finish(&mut self) {
        self.ranges
            .sort_unstable_by_key(|r| (r.begin, std::cmp::Reverse(r.end), r.owner));
        let mut max = 0;
        for r in &mut self.ranges {
            max = max.max(r.end);
            r.max_end = max;
        }
        self.ranges.shrink_to_fit();
    }

    /// Number of ranges.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Owners of ranges that contain `at`; the one that begins last, which
    /// is the inner one where ranges nest, first.
    pub(super) fn find(&self, at: u64) -> impl Iterator<Item = u32> + '_ {
        let end = self.ranges.partition_point(|r| r.begin <= at);
        let before = self.ranges.get(..end).unwrap_or_default();
        before
            .iter()
            .rev()
            .take_while(move |r| r.max_end > at)
            .take(MAX_OVERLAP)
            .filter(move |r| r.end > at)
            .map(|r| r.owner)
    }
}

/// Where each unit begins, in the order of the section.
pub(super) fn offsets(
    dwarf: &gimli::Dwarf<Slice<'_>>,
    work: &mut Work,
) -> Result<Vec<DebugInfoOffset>, Stop> {
    let mut out = Vec::new();
    let mut headers = dwarf.units();
    // A malformed header ends the list: its length is not to be trusted.
    while let Ok(Some(header)) = headers.next() {
        work.charge(1)?;
        out.extend(header.debug_info_offset());
    }
    Ok(out)
}
