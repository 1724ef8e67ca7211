//! Programs made by Go's linker: it leaves a note with its build id in the
//! first page (`cmd/link/internal/ld/elf.go`), which stripping keeps.

use leakscope_memory::MemoryReader;

const PAGE: usize = 4096;
const PT_NOTE: u64 = 4;
/// Bytes of a program header (elf(5)).
const HEADER: usize = 56;
/// More than any program has.
const MOST_HEADERS: u64 = 64;
const MOST_NOTES: usize = 64;

/// True when one of the modules is such a program or library.
pub(super) fn is_there(memory: &dyn MemoryReader) -> bool {
    let mut page = [0; PAGE];
    let modules = memory.map().regions().iter();
    let mut first = modules.filter(|r| r.inode != 0 && r.offset == 0 && r.read);
    first.any(|region| {
        let got = memory.read_some(region.range.start, &mut page);
        has_note(page.get(..got).unwrap_or_default())
    })
}

fn has_note(page: &[u8]) -> bool {
    if !page.starts_with(b"\x7fELF\x02") {
        return false;
    }
    let (Some(table), Some(count)) = (number(page, 32, 8), number(page, 56, 2)) else {
        return false;
    };
    let headers = (0..count.min(MOST_HEADERS) as usize).filter_map(|i| {
        let at = usize::try_from(table).ok()?.checked_add(i * HEADER)?;
        let is_note = number(page, at, 4) == Some(PT_NOTE);
        let offset = number(page, at.checked_add(8)?, 8).filter(|_| is_note)?;
        usize::try_from(offset).ok()
    });
    headers.into_iter().any(|at| is_named_go(page, at))
}

/// Among the notes from `at` on: lengths of name and content, type, name,
/// content, each padded to four bytes.
fn is_named_go(page: &[u8], mut at: usize) -> bool {
    for _ in 0..MOST_NOTES {
        let lengths = number(page, at, 4).zip(at.checked_add(4).and_then(|b| number(page, b, 4)));
        let Some((name, content)) = lengths else {
            return false;
        };
        let text = page.get(at.saturating_add(12)..).unwrap_or_default();
        if name == 4 && text.starts_with(b"Go\0\0") {
            return true;
        }
        let padded = |length: u64| length.next_multiple_of(4) as usize;
        let next = [12, padded(name), padded(content)]
            .iter()
            .try_fold(at, |a, b| a.checked_add(*b));
        match next {
            Some(next) if name > 0 && next < page.len() => at = next,
            _ => return false,
        }
    }
    false
}

/// A little-endian number of `size` bytes.
fn number(page: &[u8], at: usize, size: usize) -> Option<u64> {
    let bytes = page.get(at..at.checked_add(size)?)?;
    let bytes = bytes.iter().rev();
    Some(bytes.fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page with one note segment of these notes.
    fn page(notes: &[(&[u8], usize)]) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[..5].copy_from_slice(b"\x7fELF\x02");
        page[32] = 64;
        page[56] = 2;
        let header = 64 + HEADER;
        page[header] = 4;
        page[header + 8..header + 10].copy_from_slice(&0x800_u16.to_le_bytes());
        let mut at = 0x800;
        for (name, content) in notes {
            page[at] = name.len() as u8;
            page[at + 4] = *content as u8;
            page[at + 12..at + 12 + name.len()].copy_from_slice(name);
            at += 12 + name.len().next_multiple_of(4) + content.next_multiple_of(4);
        }
        page
    }

    #[test]
    fn the_note_is_found_behind_others() {
        assert!(has_note(&page(&[(b"Go\0\0", 83)])));
        assert!(has_note(&page(&[(b"GNU\0", 20), (b"Go\0\0", 83)])));
        assert!(!has_note(&page(&[(b"GNU\0", 20)])));
        assert!(!has_note(&page(&[])));
    }

    #[test]
    fn damage_is_no_note() {
        let mut bad = page(&[(b"GNU\0", 20)]);
        bad[0x800..0x80c].fill(0xff);
        assert!(!has_note(&bad));
        for length in [0, 5, 40, 0x801, 0x80b] {
            assert!(!has_note(&page(&[(b"Go\0\0", 83)])[..length]));
        }
        let mut far = page(&[(b"Go\0\0", 83)]);
        far[32..40].fill(0xff);
        assert!(!has_note(&far));
    }
}
