//! Which units exist and which addresses are theirs.

use gimli::DebugInfoOffset;

use super::lines::Lines;
use super::units::{AbbrevCache, Open, Part, RangeMap, offsets, open};
use super::work::{Stop, Work};
use crate::sections::Slice;

/// Units with their address ranges.
///
/// First from `.debug_aranges`, which spares opening the units; a unit that
/// is not in it is opened for its own ranges. Compilers have been seen to
/// leave ranges out of the section, so an address that is not found opens
/// the others as well, once.
pub(super) struct Index {
    units: Vec<DebugInfoOffset>,
    ranges: RangeMap,
    /// Units whose own ranges were not looked at.
    unopened: Vec<u32>,
}

impl Index {
    pub(super) fn build<'a>(
        dwarf: &gimli::Dwarf<Slice<'a>>,
        abbrevs: &mut AbbrevCache,
        work: &mut Work,
    ) -> Result<Index, Stop> {
        let mut index = Index {
            units: offsets(dwarf, work)?,
            ranges: RangeMap::default(),
            unopened: Vec::new(),
        };
        let mut listed = vec![false; index.units.len()];
        // Malformed, it ends early; the units themselves tell the rest.
        match index.read_aranges(dwarf, &mut listed, work) {
            Ok(()) | Err(Stop::Malformed) => {}
            Err(Stop::Limit) => return Err(Stop::Limit),
        }
        for (i, listed) in listed.into_iter().enumerate() {
            let number = i as u32;
            if listed {
                index.unopened.push(number);
            } else {
                index.open_for_ranges(number, dwarf, abbrevs, work)?;
            }
        }
        index.ranges.finish();
        Ok(index)
    }

    fn read_aranges(
        &mut self,
        dwarf: &gimli::Dwarf<Slice<'_>>,
        listed: &mut [bool],
        work: &mut Work,
    ) -> Result<(), Stop> {
        let mut headers = dwarf.debug_aranges.headers();
        while let Some(header) = headers.next()? {
            work.charge(1)?;
            let Ok(number) = self.units.binary_search(&header.debug_info_offset()) else {
                continue;
            };
            let mut entries = header.entries();
            loop {
                work.charge(1)?;
                // One that wraps round the address space is skipped.
                let Ok(entry) = entries.next() else { continue };
                let Some(entry) = entry else { break };
                let range = entry.range();
                if range.begin > 1 && range.begin < range.end {
                    self.ranges.push(range.begin, range.end, number as u32);
                    if let Some(seen) = listed.get_mut(number) {
                        *seen = true;
                    }
                }
            }
        }
        Ok(())
    }

    /// Opens the units that `.debug_aranges` spared so far.
    pub(super) fn complete<'a>(
        &mut self,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        abbrevs: &mut AbbrevCache,
        work: &mut Work,
    ) -> Result<(), Stop> {
        let mut outcome = Ok(());
        for number in std::mem::take(&mut self.unopened) {
            outcome = self.open_for_ranges(number, dwarf, abbrevs, work);
            if outcome.is_err() {
                break;
            }
        }
        self.ranges.finish();
        outcome
    }

    /// True when every unit was looked at.
    pub(super) fn is_complete(&self) -> bool {
        self.unopened.is_empty()
    }

    fn open_for_ranges<'a>(
        &mut self,
        number: u32,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        abbrevs: &mut AbbrevCache,
        work: &mut Work,
    ) -> Result<(), Stop> {
        match self.own_ranges(number, dwarf, abbrevs, work) {
            // One broken unit does not spoil the others.
            Ok(()) | Err(Stop::Malformed) => Ok(()),
            Err(Stop::Limit) => Err(Stop::Limit),
        }
    }

    fn own_ranges<'a>(
        &mut self,
        number: u32,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        abbrevs: &mut AbbrevCache,
        work: &mut Work,
    ) -> Result<(), Stop> {
        let at = self.unit(number).ok_or(Stop::Malformed)?;
        let header = dwarf.unit_header(at)?;
        if !matches!(
            header.type_(),
            gimli::UnitType::Compilation | gimli::UnitType::Skeleton(_)
        ) {
            // Type units have no code; partial ones are there to be referred
            // to.
            return Ok(());
        }
        let unit: Open<'a> = open(Part::Main, dwarf, header, abbrevs, work)?;
        let ranges = &mut self.ranges;
        let mut push = |begin, end| ranges.push(begin, end, number);
        if !unit.ranges().each(dwarf, &unit.unit, work, &mut push)? {
            // Some assemblers give a unit lines but no range.
            for (begin, end) in Lines::read(dwarf, &unit, work)?.ranges() {
                push(begin, end);
            }
        }
        Ok(())
    }

    /// Units that may contain `at`, the likeliest first.
    pub(super) fn find(&self, at: u64) -> impl Iterator<Item = u32> + '_ {
        self.ranges.find(at)
    }

    /// Where the unit begins.
    pub(super) fn unit(&self, number: u32) -> Option<DebugInfoOffset> {
        self.units.get(number as usize).copied()
    }

    /// Where all units begin, ascending.
    pub(super) fn units(&self) -> &[DebugInfoOffset] {
        &self.units
    }
}
