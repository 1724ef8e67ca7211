//! Writing a core file (core(5), elf(5)), as the kernel would: `check`, gdb
//! and every other reader of cores takes it.
//!
//! Layouts are those of x86-64 Linux (`include/uapi/linux/elfcore.h`,
//! `fs/binfmt_elf.c`).

use leakscope_memory::{MemoryReader, Region};
use leakscope_model::Addr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

/// All general registers of a thread, in the order of `user_regs_struct`
/// (`arch/x86/include/asm/user_64.h`).
pub type UserRegisters = [u64; 27];

/// What a core file is written of.
pub struct CoreImage<'a> {
    /// Memory.
    pub memory: &'a dyn MemoryReader,
    /// Threads, the first one first.
    pub threads: &'a [(u32, UserRegisters)],
    /// Process id.
    pub pid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// Real user and group.
    pub owner: (u32, u32),
    /// Name; 15 bytes are kept.
    pub name: &'a [u8],
    /// Arguments, separated by spaces; 79 bytes are kept.
    pub arguments: &'a [u8],
    /// Auxiliary vector.
    pub auxiliary: &'a [(u64, u64)],
    /// True for a mapping whose bytes no file has.
    pub is_kept: &'a dyn Fn(&Region) -> bool,
    /// How many bytes from here on were never touched (and so are zero).
    pub untouched: &'a dyn Fn(Addr) -> u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreWritten {
    /// Length of the file, bytes.
    pub length: u64,
    /// Of these, bytes that are not holes.
    pub filled: u64,
    /// Bytes that could not be read, and are zeros.
    pub unreadable: u64,
}

/// Where a core file goes.
pub enum CoreTarget<'a> {
    /// A file: zeros become holes.
    File(&'a mut File),
    /// Something that takes bytes in their order only.
    Stream(&'a mut dyn Write),
}

const PAGE: u64 = 4096;
const EHDR: u64 = 64;
const PHDR: u64 = 56;
const SHDR: u64 = 64;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// More program headers than this are counted in a section header.
const PN_XNUM: usize = 0xffff;
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
/// "FILE" in ASCII.
const NT_FILE: u32 = 0x4649_4c45;
/// Read and written at once, bytes.
const PIECE: usize = 1 << 20;

impl CoreTarget<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            CoreTarget::File(file) => file.write_all(bytes),
            CoreTarget::Stream(stream) => stream.write_all(bytes),
        }
    }

    fn zeros(&mut self, mut length: u64) -> io::Result<()> {
        match self {
            CoreTarget::File(file) => {
                let length = i64::try_from(length).map_err(io::Error::other)?;
                file.seek(SeekFrom::Current(length)).map(|_| ())
            }
            CoreTarget::Stream(stream) => {
                let zeros = [0; PAGE as usize];
                while length > 0 {
                    let part = length.min(PAGE);
                    stream.write_all(zeros.get(..part as usize).unwrap_or_default())?;
                    length -= part;
                }
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            // A hole at the end.
            CoreTarget::File(file) => {
                let end = file.stream_position()?;
                file.set_len(end)
            }
            CoreTarget::Stream(stream) => stream.flush(),
        }
    }
}

/// Writes the file. `progress` is told how many bytes of how many it has
/// dealt with.
///
/// # Errors
/// When it cannot be written; what was written is then of no use.
pub fn write_core(
    image: &CoreImage<'_>,
    to: &mut CoreTarget<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<CoreWritten> {
    let regions: Vec<(&Region, u64)> = image
        .memory
        .map()
        .regions()
        .iter()
        .filter(|region| region.path != b"[vsyscall]")
        .map(|region| (region, kept(image, region)))
        .collect();
    let notes = notes(image);
    let headers = regions.len() + 1;
    let extended = headers >= PN_XNUM;
    let table = PHDR * headers as u64;
    let sections = EHDR + table;
    let notes_at = sections + if extended { SHDR } else { 0 };
    let memory_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE);
    let all: u64 = regions.iter().map(|(_, kept)| kept).sum();

    let mut head = elf_header(headers, extended.then_some(sections));
    program_header(&mut head, PT_NOTE, 4, [notes_at, 0, notes.len() as u64, 0]);
    let mut at = memory_at;
    for (region, kept) in &regions {
        let flags =
            u32::from(region.read) << 2 | u32::from(region.write) << 1 | u32::from(region.exec);
        let range = region.range;
        program_header(
            &mut head,
            PT_LOAD,
            flags,
            [at, range.start.0, *kept, range.len()],
        );
        at += kept;
    }
    if extended {
        let mut section = [0u8; SHDR as usize];
        section[44..48].copy_from_slice(&(headers as u32).to_le_bytes());
        head.extend(section);
    }
    head.extend(&notes);
    head.resize(memory_at as usize, 0);
    to.write(&head)?;

    let mut written = CoreWritten {
        length: at,
        filled: memory_at,
        unreadable: 0,
    };
    let mut done = 0;
    for (region, kept) in regions {
        memory(image, to, region.range.start, kept, &mut written)?;
        done += kept;
        progress(done, all);
    }
    to.finish()?;
    Ok(written)
}

/// How much of a mapping is written: all, nothing, or of a file the page that
/// tells which file it was.
fn kept(image: &CoreImage<'_>, region: &Region) -> u64 {
    if !region.read {
        0
    } else if (image.is_kept)(region) {
        // What was never touched at its end needs no bytes.
        match (image.untouched)(region.range.start) >= region.range.len() {
            true => 0,
            false => region.range.len(),
        }
    } else if region.inode != 0 && region.offset == 0 {
        region.range.len().min(PAGE)
    } else {
        0
    }
}

fn memory(
    image: &CoreImage<'_>,
    to: &mut CoreTarget<'_>,
    start: Addr,
    length: u64,
    written: &mut CoreWritten,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    while done < length {
        let at = Addr(start.0 + done);
        let left = length - done;
        let hole = (image.untouched)(at).min(left);
        if hole > 0 {
            to.zeros(hole)?;
            done += hole;
            continue;
        }
        let wanted = left.min(PIECE as u64) as usize;
        let bytes = piece.get_mut(..wanted).unwrap_or_default();
        let got = image.memory.read_some(at, bytes);
        if got < wanted {
            // One page at a time behind it.
            let whole = (got as u64 + 1).next_multiple_of(PAGE).min(wanted as u64) as usize;
            bytes.get_mut(got..whole).unwrap_or_default().fill(0);
            written.unreadable += (whole - got) as u64;
            pages(to, bytes.get(..whole).unwrap_or_default(), written)?;
            done += whole as u64;
        } else {
            pages(to, bytes, written)?;
            done += wanted as u64;
        }
    }
    Ok(())
}

/// Runs of pages that are all zero, or not.
fn pages(to: &mut CoreTarget<'_>, bytes: &[u8], written: &mut CoreWritten) -> io::Result<()> {
    let is_zero = |page: &[u8]| page.iter().all(|b| *b == 0);
    let mut pages = bytes.chunks(PAGE as usize).peekable();
    let mut at = 0;
    while let Some(first) = pages.next() {
        let zero = is_zero(first);
        let mut length = first.len();
        while let Some(next) = pages.next_if(|page| is_zero(page) == zero) {
            length += next.len();
        }
        if zero {
            to.zeros(length as u64)?;
        } else {
            to.write(bytes.get(at..at + length).unwrap_or_default())?;
            written.filled += length as u64;
        }
        at += length;
    }
    Ok(())
}

fn elf_header(headers: usize, sections: Option<u64>) -> Vec<u8> {
    let mut head = Vec::new();
    // ELFCLASS64, ELFDATA2LSB, EV_CURRENT.
    head.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_CORE, EM_X86_64, EV_CURRENT.
    head.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    let number = headers.min(PN_XNUM) as u16;
    for word in [0, EHDR, sections.unwrap_or(0)] {
        head.extend(word.to_le_bytes());
    }
    head.extend(0u32.to_le_bytes());
    let (size, count) = if sections.is_some() {
        (SHDR as u16, 1)
    } else {
        (0, 0)
    };
    for half in [EHDR as u16, PHDR as u16, number, size, count, 0] {
        head.extend(half.to_le_bytes());
    }
    head
}

/// `words`: offset, address, bytes in the file, bytes in memory.
fn program_header(head: &mut Vec<u8>, kind: u32, flags: u32, words: [u64; 4]) {
    let [offset, address, filled, size] = words;
    head.extend(kind.to_le_bytes());
    head.extend(flags.to_le_bytes());
    let alignment = if kind == PT_LOAD { PAGE } else { 4 };
    for word in [offset, address, 0, filled, size, alignment] {
        head.extend(word.to_le_bytes());
    }
}

fn notes(image: &CoreImage<'_>) -> Vec<u8> {
    let mut notes = Vec::new();
    let mut threads = image.threads.iter();
    // The first thread's registers come first, then what is of the process.
    if let Some(first) = threads.next() {
        note(&mut notes, NT_PRSTATUS, &status(image, first));
    }
    note(&mut notes, NT_PRPSINFO, &information(image));
    let auxiliary: Vec<u8> = image
        .auxiliary
        .iter()
        .flat_map(|(key, value)| [key.to_le_bytes(), value.to_le_bytes()])
        .flatten()
        .collect();
    note(&mut notes, NT_AUXV, &auxiliary);
    note(&mut notes, NT_FILE, &files(image));
    for thread in threads {
        note(&mut notes, NT_PRSTATUS, &status(image, thread));
    }
    notes
}

fn note(notes: &mut Vec<u8>, kind: u32, content: &[u8]) {
    notes.extend(5u32.to_le_bytes());
    notes.extend((content.len() as u32).to_le_bytes());
    notes.extend(kind.to_le_bytes());
    notes.extend(b"CORE\0\0\0\0");
    notes.extend(content);
    notes.resize(notes.len().next_multiple_of(4), 0);
}

/// `struct elf_prstatus`.
fn status(image: &CoreImage<'_>, (tid, registers): &(u32, UserRegisters)) -> Vec<u8> {
    let mut status = vec![0; 112];
    status[32..36].copy_from_slice(&tid.to_le_bytes());
    status[36..40].copy_from_slice(&image.parent.to_le_bytes());
    status.extend(registers.iter().flat_map(|word| word.to_le_bytes()));
    // No floating-point registers follow.
    status.extend([0; 8]);
    status
}

/// `struct elf_prpsinfo`.
fn information(image: &CoreImage<'_>) -> Vec<u8> {
    let mut information = vec![0, b'S', 0, 0, 0, 0, 0, 0];
    information.extend([0; 8]);
    for word in [image.owner.0, image.owner.1, image.pid, image.parent, 0, 0] {
        information.extend(word.to_le_bytes());
    }
    let mut text = |bytes: &[u8], room: usize| {
        let end = information.len() + room;
        information.extend(bytes.iter().take(room - 1));
        information.resize(end, 0);
    };
    text(image.name, 16);
    text(image.arguments, 80);
    information
}

/// Which mappings are of which files: number, page size, then begin, end and
/// offset in pages of each, then their paths.
fn files(image: &CoreImage<'_>) -> Vec<u8> {
    let regions = image.memory.map().regions().iter();
    let mapped: Vec<&Region> = regions.filter(|r| r.inode != 0).collect();
    let mut note = Vec::new();
    let mut put = |word: u64| note.extend(word.to_le_bytes());
    put(mapped.len() as u64);
    put(PAGE);
    for region in &mapped {
        put(region.range.start.0);
        put(region.range.end.0);
        put(region.offset / PAGE);
    }
    for region in &mapped {
        note.extend(&region.path);
        note.push(0);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CoreFile;
    use leakscope_testkit::FakeMemory;
    use std::io::Read;

    fn registers(sp: u64) -> UserRegisters {
        let mut registers = [0; 27];
        registers[5] = 0xbb;
        registers[19] = sp;
        registers[21] = 0x7777;
        registers
    }

    #[test]
    fn what_is_written_is_read() {
        let mut memory = FakeMemory::new();
        memory
            .region(0x10000, 0x40_0000, "rw-p", "[heap]")
            .region(0x80_0000, 0x2000, "r-xp", "/no/such/file")
            .region(0x90_0000, 0x1000, "---p", "")
            .region(0x7fff_0000, 0x3000, "rw-p", "[stack]");
        memory.write(0x20000, b"block");
        memory.write(0x7fff_2ff8, &0x1234_5678_u64.to_le_bytes());
        memory.write(0x80_0000, b"\x7fELF");
        let threads = [(41, registers(0x7fff_1000)), (42, registers(0x30000))];
        let image = CoreImage {
            memory: &memory,
            threads: &threads,
            pid: 41,
            parent: 1,
            owner: (1000, 1000),
            name: b"a name that is too long",
            arguments: b"program --option",
            auxiliary: &[(3, 64), (0, 0)],
            is_kept: &|region| region.inode == 0,
            untouched: &|at| 0x14000_u64.saturating_sub(at.0),
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("core");
        let mut file = File::create(&path).unwrap();
        let mut told = Vec::new();
        let written = write_core(
            &image,
            &mut CoreTarget::File(&mut file),
            &mut |done, all| {
                told.push((done, all));
            },
        )
        .unwrap();
        assert_eq!(told.last().map(|(done, all)| done == all), Some(true));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), written.length);
        assert!(written.filled < 0x10000, "{written:?}");
        assert_eq!(written.unreadable, 0);
        // The same as a stream.
        let mut stream = Vec::new();
        write_core(&image, &mut CoreTarget::Stream(&mut stream), &mut |_, _| ()).unwrap();
        let mut whole = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut whole).unwrap();
        assert!(whole == stream);

        let core = CoreFile::read(File::open(&path).unwrap(), &mut |_, _| None).unwrap();
        assert_eq!(core.pid(), 41);
        assert_eq!(core.missing(), 0);
        assert_eq!(core.arguments(), b"program --option");
        let tids: Vec<(u32, Addr, Addr)> = core
            .threads()
            .iter()
            .map(|t| (t.tid, t.sp, t.tcb))
            .collect();
        let tcb = Addr(0x7777);
        assert_eq!(
            tids,
            [(41, Addr(0x7fff_1000), tcb), (42, Addr(0x30000), tcb)]
        );
        let mut block = [0; 5];
        core.read(Addr(0x20000), &mut block).unwrap();
        assert_eq!(&block, b"block");
        assert_eq!(core.read_u64(Addr(0x7fff_2ff8)), Ok(0x1234_5678));
        assert_eq!(core.read_u64(Addr(0x10000)), Ok(0));
        assert!(core.map().find(Addr(0x80_0000)).is_some_and(|r| r.exec));
    }
}
