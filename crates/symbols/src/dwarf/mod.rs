//! Debug information: address → functions, inlined ones first, with lines.
//!
//! Built on gimli's readers rather than on a ready-made symboliser, because
//! the files are hostile and may be large: nesting costs no stack, a unit is
//! decoded when an address falls into it, what is kept has a limit, and all
//! work is counted (see `work`).
//!
//! Nothing here borrows from the files between two lookups: what is kept are
//! offsets and tables; the cheap views of gimli are made anew each time.

mod functions;
mod index;
mod lines;
mod names;
mod units;
mod work;

use std::collections::HashMap;
use std::sync::Arc;

use gimli::{DebugInfoOffset, DwoId};

pub(crate) use names::Name;

use crate::elf::Elf;
use crate::sections::{DebugSections, Flavour, Slice};
use functions::Functions;
use index::Index;
use lines::Lines;
use units::{AbbrevCache, Open, Part};
use work::{Stop, Work};

/// Ranges of functions (40 bytes each) kept decoded, over all units.
const MAX_FUNCTIONS: usize = 3 << 20;
/// Rows of line tables (12 bytes each) kept decoded, over all units.
const MAX_ROWS: usize = 12 << 20;
/// Rendered source paths kept.
const MAX_PATHS: usize = 1 << 16;
/// Split files opened for one module.
const MAX_SPLIT_FILES: usize = 4099;
/// Memory for copies of split files of one module, bytes.
const MAX_SPLIT_BYTES: u64 = 1 << 30;

/// One function around an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its name.
    pub name: Name,
    /// Source file.
    pub file: Option<Arc<str>>,
    /// Line, from 1.
    pub line: Option<u32>,
}

/// A split unit that is needed now.
pub(crate) struct SplitRequest<'a> {
    /// `DW_AT_dwo_name`: absolute, or relative to `comp_dir`.
    pub name: &'a [u8],
    /// `DW_AT_comp_dir`.
    pub comp_dir: &'a [u8],
}

/// Finds the file of a split unit; several may be tried, the first with the
/// right id counts.
pub(crate) type FindSplit<'f> = &'f mut dyn FnMut(&SplitRequest<'_>) -> Vec<Elf>;

/// The debug information of one module.
pub(crate) struct Debug {
    main: DebugSections,
    supplement: Option<DebugSections>,
    package: Option<DebugSections>,
    split: HashMap<u64, Option<DebugSections>>,
    /// Bytes left for copies of split files.
    split_room: u64,
    /// Row of a split unit in the package's index.
    packed: HashMap<u64, Option<u32>>,
    index: Option<Index>,
    supplement_units: Vec<DebugInfoOffset>,
    tables: Tables,
    abbrevs: AbbrevCache,
    paths: HashMap<(u32, u64), Option<Arc<str>>>,
    work: Work,
}

/// Decoded tables by unit, emptied when they grow too large.
#[derive(Default)]
struct Tables {
    functions: HashMap<u32, Arc<Functions>>,
    lines: HashMap<u32, Arc<Lines>>,
    ranges: usize,
    rows: usize,
}

impl Debug {
    /// Debug information of `main`, with the supplementary file that dwz
    /// made and the package of its split units, if there are any.
    pub(crate) fn new(main: Elf, supplement: Option<Elf>, package: Option<Elf>) -> Debug {
        let main = DebugSections::load(main, Flavour::Linked);
        let supplement = supplement.map(|elf| DebugSections::load(elf, Flavour::Linked));
        let package = package.map(|elf| DebugSections::load(elf, Flavour::Package));
        let bytes = [Some(&main), supplement.as_ref(), package.as_ref()]
            .into_iter()
            .flatten()
            .map(DebugSections::total)
            .sum();
        Debug {
            main,
            supplement,
            package,
            split: HashMap::new(),
            split_room: MAX_SPLIT_BYTES,
            packed: HashMap::new(),
            index: None,
            supplement_units: Vec::new(),
            tables: Tables::default(),
            abbrevs: AbbrevCache::default(),
            paths: HashMap::new(),
            work: Work::for_bytes(bytes),
        }
    }

    /// Memory that copies of sections take, bytes; split files not counted.
    pub(crate) fn copied(&self) -> u64 {
        [
            Some(&self.main),
            self.supplement.as_ref(),
            self.package.as_ref(),
        ]
        .into_iter()
        .flatten()
        .map(DebugSections::copied)
        .sum()
    }

    /// True when the limit of work is reached: the rest has no lines.
    pub(crate) fn exhausted(&self) -> bool {
        self.work.used_up()
    }

    /// The functions around `at`, an address in the ELF file; inlined ones
    /// first. Empty when the debug information does not know it.
    pub(crate) fn lookup(&mut self, at: u64, find_split: FindSplit<'_>) -> Vec<Found> {
        if self.work.used_up() {
            return Vec::new();
        }
        if self.index.is_none() && self.build_index().is_err() {
            return Vec::new();
        }
        let mut found = self.in_units(at, find_split);
        if found.is_empty()
            && let Some(index) = &mut self.index
            && !index.is_complete()
        {
            let main = self.main.dwarf();
            // Stopped by the limit, it has what it got so far.
            let _ = index.complete(&main, &mut self.abbrevs, &mut self.work);
            found = self.in_units(at, find_split);
        }
        found
    }

    fn build_index(&mut self) -> Result<(), Stop> {
        let index = Index::build(&self.main.dwarf(), &mut self.abbrevs, &mut self.work)?;
        if let Some(supplement) = &self.supplement {
            self.supplement_units = units::offsets(&supplement.dwarf(), &mut self.work)?;
        }
        self.index = Some(index);
        Ok(())
    }

    fn in_units(&mut self, at: u64, find_split: FindSplit<'_>) -> Vec<Found> {
        // Units whose ranges overlap are rare: a few are enough.
        let units: Vec<u32> = match &self.index {
            Some(index) => index.find(at).take(11).collect(),
            None => Vec::new(),
        };
        for unit in units {
            match self.in_unit(unit, at, find_split) {
                Ok(found) if !found.is_empty() => return found,
                Ok(_) | Err(Stop::Malformed) => {}
                Err(Stop::Limit) => break,
            }
        }
        Vec::new()
    }

    fn in_unit(
        &mut self,
        number: u32,
        at: u64,
        find_split: FindSplit<'_>,
    ) -> Result<Vec<Found>, Stop> {
        let Debug {
            main,
            supplement,
            package,
            split,
            split_room,
            packed,
            index: Some(index),
            supplement_units,
            tables,
            abbrevs,
            paths,
            work,
        } = self
        else {
            return Ok(Vec::new());
        };
        let mut main = main.dwarf();
        if let Some(supplement) = &supplement {
            main.set_sup(supplement.dwarf());
        }
        let supplement = supplement.as_ref().map(DebugSections::dwarf);
        let header = main.unit_header(index.unit(number).ok_or(Stop::Malformed)?)?;
        let skeleton = units::open(Part::Main, &main, header, abbrevs, work)?;

        // The functions are in this unit, or in the split one it stands for.
        let package = package.as_ref().and_then(|p| p.package().ok());
        let mut split_dwarf = None;
        if let Some(id) = skeleton.unit.dwo_id {
            let row = match packed.get(&id.0) {
                Some(row) => *row,
                None => {
                    let row = package.as_ref().and_then(|p| p.cu_index.find(id.0));
                    // A full index may have to be searched to its end.
                    work.charge(
                        package
                            .as_ref()
                            .map_or(0, |p| p.cu_index.unit_count().into()),
                    )?;
                    packed.insert(id.0, row);
                    row
                }
            };
            let packed = package
                .as_ref()
                .and_then(|p| p.cu_sections(row?, &main).ok());
            if packed.is_none() && !split.contains_key(&id.0) && split.len() < MAX_SPLIT_FILES {
                let request = SplitRequest {
                    name: skeleton.dwo_name.map_or(&[], |n| n.slice()),
                    comp_dir: skeleton.unit.comp_dir.map_or(&[], |n| n.slice()),
                };
                let file = find_split(&request)
                    .into_iter()
                    .filter(|elf| elf.debug_size() <= *split_room)
                    .map(|elf| DebugSections::load(elf, Flavour::Split))
                    .find(|file| {
                        work.add_bytes(file.total());
                        let unit = split_unit(&file.dwarf(), id, abbrevs, work);
                        // Its tables may be of a file that is not kept.
                        *abbrevs = AbbrevCache::default();
                        matches!(unit, Ok(Some(_)))
                    });
                if let Some(file) = &file {
                    *split_room = split_room.saturating_sub(file.copied());
                }
                split.insert(id.0, file);
            }
            split_dwarf = match (packed, split.get(&id.0)) {
                (Some(packed), _) => Some(packed),
                (None, Some(Some(file))) => Some(file.dwarf()),
                // Lost: lines are still here.
                _ => None,
            };
        }
        let mut split_body = None;
        if let (Some(dwarf), Some(id)) = (&mut split_dwarf, skeleton.unit.dwo_id) {
            dwarf.make_dwo(&main);
            split_body = split_unit(dwarf, id, abbrevs, work)?;
            if let Some(body) = &mut split_body {
                body.unit.copy_relocated_attributes(&skeleton.unit);
            }
        }
        let (dwarf, body) = match (&split_dwarf, &split_body) {
            (Some(dwarf), Some(body)) => (dwarf, body),
            _ => (&main, &skeleton),
        };

        let functions = tables.functions(number, dwarf, body, work)?;
        let lines = tables.lines(number, &main, &skeleton, work)?;
        let mut file_of = |index: u64, work: &mut Work| -> Result<Option<Arc<str>>, Stop> {
            if let Some(path) = paths.get(&(number, index)) {
                return Ok(path.clone());
            }
            let path = match lines::file_path(&main, &skeleton, index, work) {
                Ok(path) => path.map(Arc::from),
                Err(Stop::Malformed) => None,
                Err(Stop::Limit) => return Err(Stop::Limit),
            };
            if paths.len() >= MAX_PATHS {
                paths.clear();
            }
            paths.insert((number, index), path.clone());
            Ok(path)
        };
        let (mut file, mut line) = (None, None);
        if let Some((index, number)) = lines.find(at) {
            file = file_of(index, work)?;
            line = Some(number).filter(|l| *l > 0);
        }
        let files = names::Files {
            main: &main,
            main_units: index.units(),
            supplement: supplement.as_ref(),
            supplement_units,
        };
        let mut out = Vec::new();
        if let Some(function) = functions.find(at) {
            let chain = match functions::inlined_around(dwarf, body, function, at, work) {
                Ok(chain) => chain,
                Err(Stop::Malformed) => Vec::new(),
                Err(Stop::Limit) => return Err(Stop::Limit),
            };
            let mut name =
                |entry, work: &mut Work| match names::of(&files, dwarf, body, entry, abbrevs, work)
                {
                    Err(Stop::Malformed) => Ok(Name::default()),
                    other => other,
                };
            for call in chain.iter().rev() {
                out.push(Found {
                    name: name(call.entry, work)?,
                    file: file.take(),
                    line: line.take(),
                });
                // Where it was inlined is where its caller stands.
                if let Some(index) = call.call_file {
                    file = file_of(index, work)?;
                }
                line = call.call_line;
            }
            let name = name(function, work)?;
            out.push(Found { name, file, line });
        } else if file.is_some() {
            let name = Name::default();
            out.push(Found { name, file, line });
        }
        Ok(out)
    }
}

/// The unit of split DWARF that has this id.
fn split_unit<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    id: DwoId,
    abbrevs: &mut AbbrevCache,
    work: &mut Work,
) -> Result<Option<Open<'a>>, Stop> {
    let mut headers = dwarf.units();
    while let Some(header) = headers.next()? {
        work.charge(1)?;
        if matches!(
            header.type_(),
            gimli::UnitType::Compilation | gimli::UnitType::SplitCompilation(_)
        ) {
            let unit = units::open(Part::Split(id.0), dwarf, header, abbrevs, work)?;
            if unit.unit.dwo_id == Some(id) {
                return Ok(Some(unit));
            }
        }
    }
    Ok(None)
}

impl Tables {
    fn functions<'a>(
        &mut self,
        number: u32,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        open: &Open<'a>,
        work: &mut Work,
    ) -> Result<Arc<Functions>, Stop> {
        if let Some(functions) = self.functions.get(&number) {
            return Ok(functions.clone());
        }
        let functions = Arc::new(Functions::read(dwarf, open, work)?);
        self.ranges += functions.len();
        if self.ranges > MAX_FUNCTIONS {
            self.functions.clear();
            self.ranges = functions.len();
        }
        self.functions.insert(number, functions.clone());
        Ok(functions)
    }

    fn lines<'a>(
        &mut self,
        number: u32,
        dwarf: &gimli::Dwarf<Slice<'a>>,
        open: &Open<'a>,
        work: &mut Work,
    ) -> Result<Arc<Lines>, Stop> {
        if let Some(lines) = self.lines.get(&number) {
            return Ok(lines.clone());
        }
        let lines = Arc::new(Lines::read(dwarf, open, work)?);
        self.rows += lines.len();
        if self.rows > MAX_ROWS {
            self.lines.clear();
            self.rows = lines.len();
        }
        self.lines.insert(number, lines.clone());
        Ok(lines)
    }
}
