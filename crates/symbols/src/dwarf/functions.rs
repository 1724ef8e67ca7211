//! Functions of a unit, and the inlined calls around an address.

use gimli::{AttributeValue, EntriesRaw, UnitOffset};

use super::units::{Open, RangeAttributes, RangeMap};
use super::work::{Stop, Work};
use crate::sections::Slice;

/// Inlined calls in one another that are followed; compilers stop far below.
const MAX_INLINE: usize = 251;

/// Which function of a unit contains an address.
#[derive(Default)]
pub(super) struct Functions {
    ranges: RangeMap,
    /// Offset in the unit of each function's entry.
    entries: Vec<u32>,
}

impl Functions {
    /// Reads all entries of the unit for functions with code.
    pub(super) fn read<'a>(
        dwarf: &gimli::Dwarf<Slice<'a>>,
        open: &Open<'a>,
        work: &mut Work,
    ) -> Result<Functions, Stop> {
        let mut out = Functions::default();
        // What precedes malformed bytes is as good as ever.
        match out.scan(dwarf, open, work) {
            Ok(()) | Err(Stop::Malformed) => {}
            Err(Stop::Limit) => return Err(Stop::Limit),
        }
        out.ranges.finish();
        out.entries.shrink_to_fit();
        Ok(out)
    }

    fn scan<'a>(
        &mut self,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        open: &Open<'a>,
        work: &mut Work,
    ) -> Result<(), Stop> {
        let unit = &open.unit;
        let mut entries = unit.entries_raw(None)?;
        while !entries.is_empty() {
            let at = entries.next_offset();
            let Some(abbrev) = entries.read_abbreviation()? else {
                work.charge(1)?;
                continue;
            };
            work.charge(1 + abbrev.attributes().len() as u64)?;
            if abbrev.tag() != gimli::DW_TAG_subprogram {
                entries.skip_attributes(abbrev.attributes())?;
                continue;
            }
            let mut ranges = RangeAttributes::none();
            for spec in abbrev.attributes() {
                ranges.take(&entries.read_attribute(*spec)?);
            }
            let Ok(at) = u32::try_from(at.0) else {
                return Ok(());
            };
            let owner = self.entries.len() as u32;
            let mut any = false;
            // One function with unreadable ranges does not spoil the rest.
            match ranges.each(dwarf, unit, work, |begin, end| {
                any = true;
                self.ranges.push(begin, end, owner);
            }) {
                Err(Stop::Limit) => return Err(Stop::Limit),
                Err(Stop::Malformed) | Ok(_) => {}
            }
            if any {
                self.entries.push(at);
            }
        }
        Ok(())
    }

    /// The entry of the innermost function that contains `at`.
    pub(super) fn find(&self, at: u64) -> Option<UnitOffset> {
        let owner = self.ranges.find(at).next()?;
        let entry = *self.entries.get(owner as usize)?;
        Some(UnitOffset(entry as usize))
    }

    /// Rough size, in ranges.
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }
}

/// A call that was inlined.
pub(super) struct Inlined {
    /// Its entry in the unit.
    pub entry: UnitOffset,
    /// Index of the caller's file in the line table.
    pub call_file: Option<u64>,
    /// Line of the call.
    pub call_line: Option<u32>,
}

/// The inlined calls around `at` in the function at `function`, outermost
/// first.
pub(super) fn inlined_around<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    open: &Open<'a>,
    function: UnitOffset,
    at: u64,
    work: &mut Work,
) -> Result<Vec<Inlined>, Stop> {
    let mut walk = Walk {
        unit: &open.unit,
        entries: open.unit.entries_raw(Some(function))?,
        base: 0,
    };
    let mut found: Vec<Inlined> = Vec::new();
    // Depth of the innermost match; what matters next lies below it.
    let mut inside = 0;
    let Some(abbrev) = walk.entries.read_abbreviation()? else {
        return Ok(found);
    };
    walk.entries.skip_attributes(abbrev.attributes())?;
    while walk.depth() > inside && !walk.entries.is_empty() {
        let (entry, depth) = (walk.entries.next_offset(), walk.depth());
        let Some(abbrev) = walk.entries.read_abbreviation()? else {
            work.charge(1)?;
            continue;
        };
        work.charge(1 + abbrev.attributes().len() as u64)?;
        let mut ranges = RangeAttributes::none();
        let (mut call_file, mut call_line, mut sibling) = (None, None, None);
        match abbrev.tag() {
            gimli::DW_TAG_inlined_subroutine
            | gimli::DW_TAG_lexical_block
            | gimli::DW_TAG_subprogram => {
                for spec in abbrev.attributes() {
                    let attr = walk.entries.read_attribute(*spec)?;
                    ranges.take(&attr);
                    match attr.name() {
                        gimli::DW_AT_call_file => call_file = attr.udata_value().or(call_file),
                        gimli::DW_AT_call_line => call_line = attr.udata_value(),
                        gimli::DW_AT_sibling => {
                            if let AttributeValue::UnitRef(offset) = attr.value() {
                                sibling = Some(offset);
                            }
                        }
                        _ => {}
                    }
                    if let (gimli::DW_AT_call_file, AttributeValue::FileIndex(i)) =
                        (attr.name(), attr.value())
                    {
                        call_file = Some(i);
                    }
                }
            }
            _ => {
                walk.entries.skip_attributes(abbrev.attributes())?;
                continue;
            }
        }
        let mut contains = false;
        let bounded = ranges.each(dwarf, &open.unit, work, |begin, end| {
            contains |= begin <= at && at < end;
        })?;
        match abbrev.tag() {
            gimli::DW_TAG_inlined_subroutine if contains => {
                if found.len() == MAX_INLINE {
                    break;
                }
                // Before DWARF 5, file 0 meant that there is none.
                let version = open.unit.header.version();
                found.push(Inlined {
                    entry,
                    call_file: call_file.filter(|i| *i > 0 || version >= 5),
                    call_line: call_line
                        .and_then(|l| u32::try_from(l).ok())
                        .filter(|l| *l > 0),
                });
                inside = depth;
            }
            // Something without addresses, such as the block of an abstract
            // instance, says nothing about its children.
            gimli::DW_TAG_lexical_block if contains || !bounded => {}
            _ => walk.skip_children(depth, sibling, work)?,
        }
    }
    Ok(found)
}

/// Entries of a function, with jumps over what does not matter.
struct Walk<'u, 'a> {
    unit: &'u gimli::Unit<Slice<'a>>,
    entries: EntriesRaw<'u, Slice<'a>>,
    /// Depth at which `entries` began.
    base: isize,
}

impl Walk<'_, '_> {
    /// Depth of the next entry; the function itself is at 0.
    fn depth(&self) -> isize {
        self.base + self.entries.next_depth()
    }

    /// Goes to the entry behind the last child of the entry at `depth` that
    /// was just read.
    fn skip_children(
        &mut self,
        depth: isize,
        sibling: Option<UnitOffset>,
        work: &mut Work,
    ) -> Result<(), Stop> {
        if self.depth() <= depth {
            return Ok(());
        }
        if let Some(to) = sibling
            // Forwards only, or the walk might not end.
            && to > self.entries.next_offset()
            && let Ok(entries) = self.unit.entries_raw(Some(to))
        {
            self.entries = entries;
            self.base = depth;
            return Ok(());
        }
        while self.depth() > depth && !self.entries.is_empty() {
            work.charge(1)?;
            if let Some(abbrev) = self.entries.read_abbreviation()? {
                work.charge(abbrev.attributes().len() as u64)?;
                self.entries.skip_attributes(abbrev.attributes())?;
            }
        }
        Ok(())
    }
}
