//! The files that were mapped: their bytes stand for what a core file leaves
//! out, if they are still the same files.
//!
//! The kernel writes the first page of each mapped ELF file into the core
//! (core(5), bit 4 of `coredump_filter`), for this very purpose: the page holds
//! the file's build id.

use super::{array, u16_at, u32_at, u64_at};
use std::fs::File;
use std::os::unix::fs::FileExt;

const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
/// Program headers and bytes of notes that are read at most.
const MOST_HEADERS: u64 = 64;
const MOST_NOTES: u64 = 1 << 16;

/// Why the bytes of a mapped file are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absence {
    /// It was not found.
    Missing,
    /// There is another file in its place.
    Replaced,
}

/// Reads bytes at an offset of a file: how many there are.
type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> usize;

/// True unless what the core file has of a file's beginning says that `file`
/// is another one.
pub(super) fn is_same(core: ReadAt<'_>, file: &File) -> bool {
    let of_file = |at: u64, into: &mut [u8]| file.read_at(into, at).unwrap_or(0);
    let Some(head) = elf_header(core) else {
        // Nothing is known of it.
        return true;
    };
    match build_id(core) {
        Some(id) => build_id(&of_file) == Some(id),
        None => elf_header(&of_file) == Some(head),
    }
}

fn elf_header(read: ReadAt<'_>) -> Option<[u8; 64]> {
    let mut head = [0; 64];
    (read(0, &mut head) == head.len() && head.starts_with(b"\x7fELF\x02\x01")).then_some(head)
}

fn build_id(read: ReadAt<'_>) -> Option<Vec<u8>> {
    let head = elf_header(read)?;
    let (table, size) = (u64_at(&head, 32), u16_at(&head, 54));
    let count = u64::from(u16_at(&head, 56)).min(MOST_HEADERS);
    if size != 56 {
        return None;
    }
    (0..count).find_map(|i| {
        let mut row = [0; 56];
        let at = table.checked_add(56 * i)?;
        let is_note = read(at, &mut row) == row.len() && u32_at(&row, 0) == PT_NOTE;
        let len = usize::try_from(u64_at(&row, 32).min(MOST_NOTES)).ok()?;
        let mut notes = vec![0; if is_note { len } else { 0 }];
        let got = read(u64_at(&row, 8), &mut notes);
        notes.truncate(got);
        id_among(&notes)
    })
}

fn id_among(mut notes: &[u8]) -> Option<Vec<u8>> {
    while notes.len() >= 12 {
        let (name, len) = (u32_at(notes, 0) as usize, u32_at(notes, 4) as usize);
        let begin = 12usize.checked_add(name.checked_add(3)? & !3)?;
        let end = begin.checked_add(len)?;
        let id = notes.get(begin..end)?;
        if u32_at(notes, 8) == NT_GNU_BUILD_ID && array::<4>(notes, 12) == *b"GNU\0" {
            return Some(id.to_vec());
        }
        notes = notes.get(end.checked_add(3)? & !3..)?;
    }
    None
}
