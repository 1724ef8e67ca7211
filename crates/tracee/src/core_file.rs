//! A process as a core file saved it (core(5), elf(5)).
//!
//! ```text
//! ELF header │ program headers: PT_NOTE, PT_LOAD … │ notes │ memory
//! NT_PRSTATUS   one a thread: ids, registers         NT_PRPSINFO   names
//! NT_FILE       which mappings are of which files    NT_AUXV
//! ```
//! Layouts are those of x86-64 Linux (`include/uapi/linux/elfcore.h`). What
//! the kernel did not write, because it can be read from the files that were
//! mapped, is read from there.

mod files;

pub use files::Absence;

use leakscope_memory::{MemoryMap, MemoryReader, Region};
use leakscope_model::{Addr, Range, ThreadState};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
/// The address of the executable's program headers (getauxval(3)).
const AT_PHDR: u64 = 3;
/// "FILE" in ASCII.
const NT_FILE: u32 = 0x4649_4c45;
/// Bytes of a program header.
const HEADER: u64 = 56;
/// `e_phnum` that says: the number is in the first section header.
const PN_XNUM: u64 = 0xffff;
/// Program headers that are read at most: twice the kernel's default limit of
/// mappings.
const MOST_HEADERS: u64 = 1 << 17;
/// Bytes of notes that are read at most: 20 000 threads have some 30 MB.
const MOST_NOTES: u64 = 1 << 28;
/// Files that are kept open at most: less than a process may, by default.
const MOST_FILES: usize = 512;
/// From the beginning of `elf_prstatus`: the signal, the thread's id and the
/// registers, in the order of `user_regs_struct`.
const SIGNAL: usize = 12;
const TID: usize = 32;
const REGISTERS: usize = 112;

/// Why a file cannot be used; fragments that fit after "cannot read".
#[derive(Debug)]
#[non_exhaustive]
pub enum CoreError {
    /// It is no core file, or not one of an x86-64 process; says what it is.
    NotACore(&'static str),
    /// It could not be read.
    Io(io::Error),
}

impl fmt::Display for CoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CoreError::NotACore(what) => f.write_str(what),
            CoreError::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for CoreError {}

impl From<io::Error> for CoreError {
    fn from(error: io::Error) -> CoreError {
        CoreError::Io(error)
    }
}

/// A piece of memory that the file holds.
#[derive(Clone, Copy, Debug)]
struct Load {
    range: Range,
    /// Offset in the core file, and bytes there.
    at: u64,
    filled: u64,
}

/// A mapping of a file.
#[derive(Clone, Debug)]
struct Mapped {
    range: Range,
    /// Offset in that file, bytes.
    offset: u64,
    path: Vec<u8>,
}

/// Its memory, threads and names.
#[derive(Debug)]
pub struct CoreFile {
    core: File,
    loads: Vec<Load>,
    mapped: Vec<Mapped>,
    files: HashMap<Vec<u8>, File>,
    map: MemoryMap,
    threads: Vec<ThreadState>,
    signal: u16,
    name: Vec<u8>,
    arguments: Vec<u8>,
    missing: u64,
    program_headers: u64,
    absent: Vec<(Vec<u8>, Absence)>,
}

/// How a file that was mapped is opened: by its path, and whether it is the
/// executable.
pub type OpenMapped<'a> = &'a mut dyn FnMut(&[u8], bool) -> Option<File>;

impl CoreFile {
    /// Reads the headers and notes of a core file. What it does not hold is
    /// read from the files that were mapped: `open` must open ordinary files
    /// only.
    ///
    /// # Errors
    /// NotACore, Io.
    pub fn read(core: File, open: OpenMapped<'_>) -> Result<CoreFile, CoreError> {
        let meta = core.metadata()?;
        if !meta.is_file() {
            return Err(CoreError::NotACore("it is no ordinary file"));
        }
        let length = meta.len();
        let head = bytes_at(&core, 0, 64)?;
        refuse(&head)?;
        let table = u64_at(&head, 32);
        let count = match u64::from(u16_at(&head, 56)) {
            // The first section header's sh_info.
            PN_XNUM => {
                let section = bytes_at(&core, u64_at(&head, 40), 64)?;
                u64::from(u32_at(&section, 44))
            }
            count => count,
        };
        let rows = bytes_at(&core, table, count.min(MOST_HEADERS) * HEADER)?;
        let mut found = CoreFile {
            core,
            loads: Vec::new(),
            mapped: Vec::new(),
            files: HashMap::new(),
            map: MemoryMap::default(),
            threads: Vec::new(),
            signal: 0,
            name: Vec::new(),
            arguments: Vec::new(),
            missing: 0,
            program_headers: 0,
            absent: Vec::new(),
        };
        let mut regions = Vec::new();
        for row in rows.chunks_exact(HEADER as usize) {
            let (kind, flags) = (u32_at(row, 0), u32_at(row, 4));
            let (at, start) = (u64_at(row, 8), u64_at(row, 16));
            let (filled, size) = (u64_at(row, 32), u64_at(row, 40));
            match kind {
                PT_NOTE => {
                    let notes = bytes_at(&found.core, at, filled.min(MOST_NOTES))?;
                    found.notes(&notes);
                }
                PT_LOAD if start < 1 << 47 && size < 1 << 47 => {
                    let there = length.saturating_sub(at).min(filled);
                    found.missing = found.missing.saturating_add(filled - there);
                    let range = Range::new(start, start.saturating_add(size));
                    found.loads.push(Load {
                        range,
                        at,
                        filled: there.min(size),
                    });
                    regions.push(Region {
                        range,
                        read: flags & 4 != 0,
                        write: flags & 2 != 0,
                        exec: flags & 1 != 0,
                        ..Region::default()
                    });
                }
                _ => {}
            }
        }
        found.loads.sort_unstable_by_key(|load| load.range.start);
        found.mapped.sort_by_key(|mapped| mapped.range.start);
        found.add_left_out(&mut regions);
        found.name_regions(&mut regions);
        found.map = MemoryMap::new(regions);
        found.open_files(open);
        Ok(found)
    }

    /// gcore leaves out what was only read, code above all; the notes name it.
    fn add_left_out(&mut self, regions: &mut Vec<Region>) {
        let loads = &self.loads;
        let is_there = |range: &Range| {
            let next = loads.partition_point(|load| load.range.end <= range.start);
            loads
                .get(next)
                .is_some_and(|load| load.range.start < range.end)
        };
        let mapped = self.mapped.iter().map(|m| m.range);
        let left_out: Vec<Range> = mapped.filter(|r| !r.is_empty() && !is_there(r)).collect();
        regions.extend(left_out.iter().map(|range| Region {
            range: *range,
            read: true,
            exec: true,
            ..Region::default()
        }));
        self.loads.extend(left_out.into_iter().map(|range| Load {
            range,
            at: 0,
            filled: 0,
        }));
        self.loads.sort_unstable_by_key(|load| load.range.start);
    }

    fn notes(&mut self, mut notes: &[u8]) {
        while notes.len() >= 12 {
            let (name, len) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize);
            let kind = u32_at(notes, 8);
            let begin = 12usize.saturating_add(name.saturating_add(3) & !3);
            let end = begin.saturating_add(len);
            let Some(note) = notes.get(begin..end) else {
                return;
            };
            match kind {
                NT_PRSTATUS => self.thread(note),
                NT_PRPSINFO => {
                    self.name = text(note.get(40..56).unwrap_or_default());
                    self.arguments = text(note.get(56..136).unwrap_or_default());
                }
                NT_FILE => self.mapped.extend(mapped_files(note)),
                NT_AUXV => {
                    let mut pairs = note.chunks_exact(16);
                    let found = pairs.find(|pair| u64_at(pair, 0) == AT_PHDR);
                    self.program_headers = found.map_or(0, |pair| u64_at(pair, 8));
                }
                _ => {}
            }
            notes = notes.get(end.saturating_add(3) & !3..).unwrap_or_default();
        }
    }

    fn thread(&mut self, status: &[u8]) {
        let Some(registers) = status.get(REGISTERS..REGISTERS + 27 * 8) else {
            return;
        };
        let r: Vec<u64> = registers
            .as_chunks::<8>()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        let &[
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            orig_rax,
            _,
            _,
            _,
            rsp,
            _,
            fs_base,
            ..,
        ] = r.as_slice()
        else {
            return;
        };
        if self.threads.is_empty() {
            self.signal = u16_at(status, SIGNAL);
        }
        self.threads.push(ThreadState {
            tid: u32_at(status, TID),
            sp: Addr(rsp),
            tcb: Addr(fs_base),
            registers: vec![
                rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15,
            ],
            in_syscall: orig_rax.cast_signed() >= 0,
        });
    }

    /// Files get a made-up inode each, and the first thread's stack its name.
    fn name_regions(&self, regions: &mut [Region]) {
        let mut inodes: HashMap<&[u8], u64> = HashMap::new();
        for region in regions {
            let at = self
                .mapped
                .partition_point(|m| m.range.end <= region.range.start);
            let mapped = self
                .mapped
                .get(at)
                .filter(|m| m.range.contains(region.range.start));
            if let Some(mapped) = mapped {
                let next = inodes.len() as u64 + 1;
                region.inode = *inodes.entry(&mapped.path).or_insert(next);
                region.path.clone_from(&mapped.path);
                region.offset = mapped.offset;
            } else if let Some(first) = self.threads.iter().min_by_key(|t| t.tid)
                && region.range.contains(first.sp)
            {
                region.path = b"[stack]".to_vec();
            }
        }
    }

    /// Opens the files that were mapped, and keeps those that are the same.
    fn open_files(&mut self, open: OpenMapped<'_>) {
        let executable = self.executable();
        // What programs and libraries are made of; of other files nothing is
        // missed but their bytes.
        let regions = self.map.regions().iter().filter(|r| r.exec);
        let modules: HashSet<&[u8]> = regions.map(|r| r.path.as_slice()).collect();
        let beginnings = self.mapped.iter().rev().filter(|m| m.offset == 0);
        let beginnings: HashMap<&[u8], &Mapped> =
            beginnings.map(|m| (m.path.as_slice(), m)).collect();
        let mut seen: HashSet<&[u8]> = HashSet::new();
        let mut files = HashMap::new();
        let mut absent = Vec::new();
        for mapped in &self.mapped {
            let path = mapped.path.as_slice();
            if !path.starts_with(b"/") || files.len() == MOST_FILES || !seen.insert(path) {
                continue;
            }
            let Some(file) = open(path, path == executable) else {
                if modules.contains(path) {
                    absent.push((path.to_vec(), Absence::Missing));
                }
                continue;
            };
            // No file is open yet: only the core file is read.
            let first = beginnings.get(path);
            let beginning = |at: u64, into: &mut [u8]| {
                let at = first.and_then(|m| m.range.start.checked_add(at));
                let inside = at.filter(|at| first.is_some_and(|m| m.range.contains(*at)));
                inside.map_or(0, |at| self.read_some(at, into))
            };
            if files::is_same(&beginning, &file) {
                files.insert(path.to_vec(), file);
            } else {
                absent.push((path.to_vec(), Absence::Replaced));
            }
        }
        self.files = files;
        self.absent = absent;
    }

    /// Programs and libraries whose bytes are not known, as far as the core
    /// file itself does not hold them.
    pub fn absent(&self) -> &[(Vec<u8>, Absence)] {
        &self.absent
    }

    /// Calls the mapping that contains `at` `[heap]`: a core file does not say
    /// which one it is.
    pub fn name_heap(&mut self, at: Addr) {
        let mut regions = self.map.regions().to_vec();
        if let Some(region) = regions.iter_mut().find(|r| r.range.contains(at))
            && region.is_anonymous()
        {
            region.path = b"[heap]".to_vec();
            self.map = MemoryMap::new(regions);
        }
    }

    /// Its threads, in the file's order: the one that was dumped for first.
    pub fn threads(&self) -> &[ThreadState] {
        &self.threads
    }

    /// Process id, as far as the notes tell: the lowest thread's.
    pub fn pid(&self) -> u32 {
        self.threads.iter().map(|t| t.tid).min().unwrap_or(0)
    }

    /// Number of the signal that ended it; 0 for none.
    pub fn signal(&self) -> u16 {
        self.signal
    }

    /// The program's name, at most 15 bytes of it.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The beginning of its arguments, separated by blanks.
    pub fn arguments(&self) -> &[u8] {
        &self.arguments
    }

    /// Path of the executable: the file that its program headers are in;
    /// without them, the first file that was mapped.
    pub fn executable(&self) -> &[u8] {
        let headers = Addr(self.program_headers);
        let mut with = self.mapped.iter().filter(|m| m.range.contains(headers));
        let found = with.next().or(self.mapped.first());
        found.map_or(&[], |m| &m.path)
    }

    /// Bytes that the headers promise and the file has not.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// As much as is there from `at` on, at least one byte.
    fn piece(&self, at: Addr, into: &mut [u8]) -> Option<usize> {
        let next = self.loads.partition_point(|load| load.range.end <= at);
        let load = self
            .loads
            .get(next)
            .filter(|load| load.range.contains(at))?;
        let inside = at.0 - load.range.start.0;
        if inside < load.filled {
            let len = into
                .len()
                .min(usize::try_from(load.filled - inside).unwrap_or(usize::MAX));
            let place = load.at.checked_add(inside)?;
            let got = self.core.read_at(into.get_mut(..len)?, place).ok()?;
            return (got > 0).then_some(got);
        }
        self.read_mapped(at, load.range.end, into)
    }

    /// The same from the file that was mapped, as long as nothing was written
    /// there: what was is in the core file.
    fn read_mapped(&self, at: Addr, end: Addr, into: &mut [u8]) -> Option<usize> {
        let next = self.mapped.partition_point(|m| m.range.end <= at);
        let mapped = self.mapped.get(next).filter(|m| m.range.contains(at))?;
        let file = self.files.get(&mapped.path)?;
        let room = end.0.min(mapped.range.end.0) - at.0;
        let len = into.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let place = mapped.offset.checked_add(at.0 - mapped.range.start.0)?;
        let got = file.read_at(into.get_mut(..len)?, place).ok()?;
        (got > 0).then_some(got)
    }
}

impl MemoryReader for CoreFile {
    fn map(&self) -> &MemoryMap {
        &self.map
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        let mut done = 0;
        while done < into.len() {
            let Some(here) = at.checked_add(done as u64) else {
                break;
            };
            let rest = into.get_mut(done..).unwrap_or_default();
            match self.piece(here, rest) {
                Some(more) => done += more,
                None => break,
            }
        }
        done
    }
}

/// Refuses what is no core file of an x86-64 process.
fn refuse(head: &[u8]) -> Result<(), CoreError> {
    const ET_CORE: u16 = 4;
    const X86_64: u16 = 62;
    if head.len() < 64 || !head.starts_with(b"\x7fELF") {
        return Err(CoreError::NotACore("it is no core file"));
    }
    if u16_at(head, 16) != ET_CORE {
        return Err(CoreError::NotACore(
            "it is a program or library, not a core file",
        ));
    }
    if head.get(4) != Some(&2) || u16_at(head, 18) != X86_64 {
        return Err(CoreError::NotACore("it is not from an x86-64 process"));
    }
    Ok(())
}

/// `NT_FILE`: a count and a page size, then (start, end, offset in pages) of
/// each, then their names.
fn mapped_files(note: &[u8]) -> Vec<Mapped> {
    let (count, page) = (u64_at(note, 0), u64_at(note, 8));
    let rows = note.get(16..).unwrap_or_default();
    let Some(names_at) = usize::try_from(count).ok().and_then(|n| n.checked_mul(24)) else {
        return Vec::new();
    };
    let (Some(names), rows) = (rows.get(names_at..), rows.chunks_exact(24)) else {
        return Vec::new();
    };
    let names = names.split(|b| *b == 0);
    rows.take(count as usize)
        .zip(names)
        .map(|(row, path)| Mapped {
            range: Range::new(u64_at(row, 0), u64_at(row, 8)),
            offset: u64_at(row, 16).saturating_mul(page),
            path: path.to_vec(),
        })
        .collect()
}

/// Up to `len` bytes at `at`: fewer where the file ends.
fn bytes_at(file: &File, at: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = len.min(file.metadata()?.len().saturating_sub(at));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

/// Up to the first zero byte.
fn text(bytes: &[u8]) -> Vec<u8> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.get(..end).unwrap_or_default().to_vec()
}

/// Little-endian numbers; 0 where the bytes end.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let part = bytes.get(at..).and_then(<[u8]>::first_chunk::<N>);
    part.copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

#[cfg(test)]
mod tests;
