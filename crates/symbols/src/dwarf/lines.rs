//! Line tables: address → file and line.

use gimli::DebugLineOffset;

use super::units::Open;
use super::work::{Stop, Work};
use crate::sections::Slice;
use crate::source;

/// Longest path shown, bytes.
const MAX_PATH: usize = 4096;

/// A contiguous piece of code, with its rows `first..first + count`.
struct Sequence {
    start: u64,
    end: u64,
    first: u32,
    count: u32,
}

/// From `start + offset` on, the code belongs to this line.
struct Row {
    offset: u32,
    file: u32,
    line: u32,
}

/// The decoded line program of one unit.
#[derive(Default)]
pub(super) struct Lines {
    sequences: Vec<Sequence>,
    rows: Vec<Row>,
}

type Program<'a> = gimli::IncompleteLineProgram<Slice<'a>>;

fn program<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    open: &Open<'a>,
    at: DebugLineOffset,
    work: &mut Work,
) -> Result<Program<'a>, Stop> {
    let program = dwarf.debug_line.program(
        at,
        open.unit.header.address_size(),
        open.unit.comp_dir,
        None,
    )?;
    let header = program.header();
    work.charge((header.file_names().len() + header.include_directories().len()) as u64 + 1)?;
    Ok(program)
}

impl Lines {
    /// Runs the unit's line program.
    pub(super) fn read<'a>(
        dwarf: &gimli::Dwarf<Slice<'a>>,
        open: &Open<'a>,
        work: &mut Work,
    ) -> Result<Lines, Stop> {
        let mut out = Lines::default();
        let Some(at) = open.line_program else {
            return Ok(out);
        };
        // What precedes malformed bytes is as good as ever.
        match program(dwarf, open, at, work).and_then(|p| out.run(p, work)) {
            Ok(()) | Err(Stop::Malformed) => {}
            Err(Stop::Limit) => return Err(Stop::Limit),
        }
        out.sequences.sort_by_key(|s| s.start);
        out.rows.shrink_to_fit();
        Ok(out)
    }

    fn run(&mut self, program: Program<'_>, work: &mut Work) -> Result<(), Stop> {
        let mut rows = program.rows();
        let mut start = None;
        let mut first = 0;
        loop {
            let row = match rows.next_row() {
                Ok(Some((_, row))) => row,
                // An unfinished sequence has no end and is dropped.
                end => {
                    self.rows.truncate(first);
                    return Ok(end.map(|_| ())?);
                }
            };
            work.charge(1)?;
            let address = row.address();
            if row.end_sequence() {
                let count = self.rows.len() - first;
                match (start.take(), u32::try_from(first), u32::try_from(count)) {
                    // Functions that the linker threw away are at 0 or 1.
                    (Some(start), Ok(first), Ok(count)) if 1 < start && start < address => {
                        self.sequences.push(Sequence {
                            start,
                            end: address,
                            first,
                            count,
                        });
                    }
                    _ => self.rows.truncate(first),
                }
                first = self.rows.len();
                continue;
            }
            let start = *start.get_or_insert(address);
            let (Some(offset), Ok(file)) = (
                address
                    .checked_sub(start)
                    .and_then(|o| u32::try_from(o).ok()),
                u32::try_from(row.file_index()),
            ) else {
                continue;
            };
            let line = row
                .line()
                .map_or(0, |l| u32::try_from(l.get()).unwrap_or(0));
            match self.rows.get_mut(first..).and_then(|r| r.last_mut()) {
                // Of several rows for one address the last one counts.
                Some(last) if last.offset == offset => {
                    (last.file, last.line) = (file, line);
                }
                // Rows must ascend; a file that breaks the rule loses them.
                Some(last) if last.offset > offset => {}
                _ => self.rows.push(Row { offset, file, line }),
            }
        }
    }

    /// Index of the file and line (0: none) for `at`.
    pub(super) fn find(&self, at: u64) -> Option<(u64, u32)> {
        let i = self.sequences.partition_point(|s| s.start <= at);
        let sequence = self.sequences.get(i.checked_sub(1)?)?;
        if at >= sequence.end {
            return None;
        }
        let first = sequence.first as usize;
        let rows = self.rows.get(first..first + sequence.count as usize)?;
        let offset = u32::try_from(at - sequence.start).ok()?;
        let i = rows.partition_point(|r| r.offset <= offset);
        let row = rows.get(i.checked_sub(1)?)?;
        Some((u64::from(row.file), row.line))
    }

    /// The ranges that have lines.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.sequences.iter().map(|s| (s.start, s.end))
    }

    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }
}

/// Path of a file of the unit's line table, absolute where the debug
/// information allows it.
pub(super) fn file_path<'a>(
    dwarf: &gimli::Dwarf<Slice<'a>>,
    open: &Open<'a>,
    index: u64,
    work: &mut Work,
) -> Result<Option<String>, Stop> {
    let Some(at) = open.line_program else {
        return Ok(None);
    };
    let program = program(dwarf, open, at, work)?;
    let header = program.header();
    let Some(file) = header.file(index) else {
        return Ok(None);
    };
    let mut parts: Vec<Slice<'a>> = Vec::new();
    parts.extend(open.unit.comp_dir);
    // Directory 0 is the compilation directory, in DWARF 5 in so many words.
    if file.directory_index() != 0
        && let Some(directory) = file.directory(header)
    {
        parts.push(dwarf.attr_string(&open.unit, directory)?);
    }
    parts.push(dwarf.attr_string(&open.unit, file.path_name())?);
    let mut path = String::new();
    for part in parts {
        let part = part.slice();
        let part = part.get(..MAX_PATH).unwrap_or(part);
        source::join(&mut path, &String::from_utf8_lossy(part));
    }
    let path = source::tidy(&path);
    Ok((!path.is_empty()).then_some(path))
}
