//! The executables and libraries of a process, as its memory shows them.
//!
//! ```text
//! ELF header         32 u64 program headers at   54 u16 size   56 u16 number
//! program header      0 u32 type   8 u64 offset   16 u64 address   40 u64 size in memory
//! ```

use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, ModuleId, RecordedModule};

/// Program headers that are looked at; real files have about ten.
const HEADERS: usize = 64;
const HEADER: usize = 56;
/// Modules that are known at most.
const MODULES: usize = 1 << 14;
/// Longest note segment that is read, bytes.
const NOTES: u64 = 4096;
const PAGE: u64 = 4096;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// All modules, ascending.
pub(super) fn modules(memory: &dyn MemoryReader) -> Vec<RecordedModule> {
    let regions = memory.map().regions().iter();
    let first = regions.filter(|r| r.inode != 0 && !r.shared && r.read && r.offset == 0);
    let found = first.filter_map(|r| module(memory, r.range.start, &r.path));
    let mut found: Vec<RecordedModule> = found.take(MODULES).collect();
    // A file may be mapped once more, as data.
    found.dedup_by(|later, first| later.start < first.end);
    found
}

/// The one that an address belongs to.
pub(super) fn module_at(modules: &[RecordedModule], at: Addr) -> Option<ModuleId> {
    let next = modules.partition_point(|m| m.end <= at);
    modules.get(next).filter(|m| m.start <= at)?;
    u16::try_from(next).ok().map(ModuleId)
}

fn module(memory: &dyn MemoryReader, start: Addr, path: &[u8]) -> Option<RecordedModule> {
    let mut bytes = vec![0; 64 + HEADERS * HEADER];
    let got = memory.read_some(start, &mut bytes);
    let bytes = bytes.get(..got)?;
    if !bytes.starts_with(b"\x7fELF\x02\x01") || u16_at(bytes, 54)? as usize != HEADER {
        return None;
    }
    let table = bytes.get(usize::try_from(u64_at(bytes, 32)?).ok()?..)?;
    let headers = || {
        let number = u16_at(bytes, 56).map_or(0, usize::from).min(HEADERS);
        table.chunks_exact(HEADER).take(number)
    };
    let of = |kind| headers().filter(move |h| u32_at(h, 0) == Some(kind));
    let first = of(PT_LOAD).find(|h| u64_at(h, 8).is_some_and(|offset| offset < PAGE))?;
    let bias = start.0.wrapping_sub(u64_at(first, 16)? & !(PAGE - 1));
    let ends = of(PT_LOAD).filter_map(|h| {
        let end = u64_at(h, 16)?.checked_add(u64_at(h, 40)?)?;
        end.wrapping_add(bias).checked_next_multiple_of(PAGE)
    });
    let end = ends.max().filter(|end| *end > start.0)?;
    let notes = of(PT_NOTE).filter_map(|h| {
        let mut notes = vec![0; u64_at(h, 40)?.min(NOTES) as usize];
        let got = memory.read_some(Addr(u64_at(h, 16)?.wrapping_add(bias)), &mut notes);
        build_id(notes.get(..got)?)
    });
    Some(RecordedModule {
        path: path.to_vec(),
        start,
        end: Addr(end),
        bias,
        build_id: notes.into_iter().next(),
        loaded: true,
    })
}

/// Notes are `u32` name size, size, type; then name and contents, each padded
/// to four bytes.
fn build_id(notes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = notes;
    loop {
        let (name, size) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize);
        let contents = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = contents.checked_add(size)?;
        if u32_at(rest, 8)? == NT_GNU_BUILD_ID && rest.get(12..16)? == b"GNU\0" {
            return rest.get(contents..end).map(<[u8]>::to_vec);
        }
        rest = rest.get(end.checked_next_multiple_of(4)?..)?;
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_testkit::FakeMemory;

    /// A library of three pages, of which the last has no bytes in the file.
    fn library() -> FakeMemory {
        let mut memory = FakeMemory::new();
        memory
            .region(0x7000_0000, 0x2000, "r--p", "/lib/l.so")
            .region(0x7000_2000, 0x1000, "rw-p", "")
            .write(0x7000_0000, b"\x7fELF\x02\x01")
            .word(0x7000_0020, 64)
            .write(0x7000_0036, &[56, 0, 3, 0]);
        let header = |memory: &mut FakeMemory, at: u64, kind: u64, from: u64, len: u64| {
            memory.word(at, kind).word(at + 8, from);
            memory.word(at + 16, 0x40_0000 + from).word(at + 40, len);
        };
        header(&mut memory, 0x7000_0040, 1, 0, 0x1800);
        header(&mut memory, 0x7000_0078, 1, 0x1000, 0x1fff);
        header(&mut memory, 0x7000_00b0, 4, 0x200, 0x20);
        memory.write(0x7000_0200, &[4, 0, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0]);
        memory.write(0x7000_020c, b"GNU\0\x01\x02\x03");
        memory
    }

    #[test]
    fn a_module_and_what_belongs_to_it() {
        let found = modules(&library());
        let [module] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(module.start, Addr(0x7000_0000));
        assert_eq!(module.end, Addr(0x7000_3000));
        assert_eq!(module.bias, 0x7000_0000 - 0x40_0000);
        assert_eq!(module.build_id.as_deref(), Some(&[1, 2, 3][..]));
        assert_eq!(module_at(&found, Addr(0x7000_2fff)), Some(ModuleId(0)));
        assert_eq!(module_at(&found, Addr(0x7000_3000)), None);
        assert_eq!(module_at(&found, Addr(0x6fff_ffff)), None);
    }

    #[test]
    fn hostile_headers_are_no_modules() {
        for (at, word) in [
            (0x7000_0020, u64::MAX),
            (0x7000_0020, 1 << 32),
            (0x7000_0068, u64::MAX),
            (0x7000_0050, u64::MAX),
            (0x7000_0000, 0),
        ] {
            let mut memory = library();
            memory.word(at, word);
            for module in modules(&memory) {
                assert!(module.start < module.end, "{at:#x}: {module:?}");
            }
        }
    }
}
