//! The small tables: wrong frees, application mappings, modules, names.

use crate::lock::{self, Yield};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::Release};
use leakscope_wire::Segment;
use leakscope_wire::layout::{Area, error, mapping, module, word};

/// A wrong free.
#[derive(Clone, Copy, Debug)]
pub struct Wrong {
    /// Packed as [`error::KIND`] says.
    pub kind: u64,
    /// Address.
    pub addr: u64,
    /// Where it happened.
    pub stack: u32,
    /// Where the block was allocated, or 0.
    pub allocated: u32,
    /// Where it was freed first, or 0.
    pub freed: u32,
}

/// Notes a wrong free; equal ones (kind and stacks) are counted in one row.
pub fn note_wrong(segment: &Segment<'_>, give_way: Yield, wrong: Wrong) {
    let Some(_held) = lock::acquire(segment.word(word::TABLES_LOCK), give_way) else {
        return;
    };
    let next = segment.word(word::ERROR_NEXT);
    let used = (next.load(Relaxed) as usize).min(error::COUNT);
    let rows = segment.words(Area::Errors);
    let values = [
        (error::KIND, wrong.kind),
        (error::STACK, u64::from(wrong.stack)),
        (error::ALLOCATED, u64::from(wrong.allocated)),
        (error::FREED, u64::from(wrong.freed)),
    ];
    for row in rows.chunks_exact(error::WORDS).take(used) {
        if values
            .iter()
            .all(|(at, v)| row.get(*at).is_some_and(|w| w.load(Relaxed) == *v))
        {
            if let Some(hits) = row.get(error::HITS) {
                hits.fetch_add(1, Relaxed);
            }
            return;
        }
    }
    let Some(row) = rows.chunks_exact(error::WORDS).nth(used) else {
        return;
    };
    if used >= error::COUNT {
        return;
    }
    for (at, v) in values
        .into_iter()
        .chain([(error::ADDR, wrong.addr), (error::HITS, 1)])
    {
        if let Some(w) = row.get(at) {
            w.store(v, Relaxed);
        }
    }
    next.store(used as u64 + 1, Release);
}

/// A recorded mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Address.
    pub addr: u64,
    /// Length, bytes.
    pub len: u64,
    /// Stack.
    pub stack: u32,
    /// [`mapping::APPLICATION`] or [`mapping::ALLOCATOR`].
    pub kind: u64,
}

fn mapping_rows<'a>(segment: &Segment<'a>) -> impl Iterator<Item = &'a [AtomicU64]> {
    segment
        .words(Area::Mappings)
        .chunks_exact(mapping::WORDS)
        .take(mapping::COUNT)
}

fn put(row: &[AtomicU64], m: Mapped) {
    if let [addr, len, stack, kind, ..] = row {
        addr.store(m.addr, Relaxed);
        stack.store(u64::from(m.stack), Relaxed);
        kind.store(m.kind, Relaxed);
        len.store(m.len, Release);
    }
}

fn get(row: &[AtomicU64]) -> Option<Mapped> {
    match row {
        [addr, len, stack, kind, ..] if len.load(Relaxed) != 0 => Some(Mapped {
            addr: addr.load(Relaxed),
            len: len.load(Relaxed),
            stack: stack.load(Relaxed) as u32,
            kind: kind.load(Relaxed),
        }),
        _ => None,
    }
}

/// Notes a new mapping. False when there is no room.
pub fn map(segment: &Segment<'_>, give_way: Yield, new: Mapped) -> bool {
    // What lies there now replaces what lay there before (MAP_FIXED).
    unmap(segment, give_way, new.addr, new.len);
    let Some(_held) = lock::acquire(segment.word(word::TABLES_LOCK), give_way) else {
        return false;
    };
    add(segment, new)
}

fn add(segment: &Segment<'_>, new: Mapped) -> bool {
    for (i, row) in mapping_rows(segment).enumerate() {
        if get(row).is_none() {
            put(row, new);
            segment
                .word(word::MAPPING_NEXT)
                .fetch_max(i as u64 + 1, Release);
            return true;
        }
    }
    false
}

/// Forgets what lies in `[addr, addr + len)`; parts outside stay. Returns
/// the first recorded mapping that was touched.
pub fn unmap(segment: &Segment<'_>, give_way: Yield, addr: u64, len: u64) -> Option<Mapped> {
    let end = addr.checked_add(len)?;
    let _held = lock::acquire(segment.word(word::TABLES_LOCK), give_way)?;
    let used = segment.word(word::MAPPING_NEXT).load(Relaxed) as usize;
    let mut first = None;
    let mut tails = 0;
    for row in mapping_rows(segment).take(used) {
        let Some(old) = get(row) else { continue };
        let old_end = old.addr.saturating_add(old.len);
        if old_end <= addr || end <= old.addr {
            continue;
        }
        first = first.or(Some(old));
        let head = Mapped {
            len: addr.saturating_sub(old.addr),
            ..old
        };
        let tail = Mapped {
            addr: end,
            len: old_end.saturating_sub(end),
            ..old
        };
        match (head.len, tail.len) {
            (0, 0) => put(row, Mapped { len: 0, ..old }),
            (0, _) => {
                put(row, Mapped { len: 0, ..old });
                put(row, tail);
            }
            (_, 0) => put(row, head),
            _ => {
                put(row, head);
                // Rows do not overlap, so only one can be cut in two.
                if tails == 0 {
                    add(segment, tail);
                }
                tails += 1;
            }
        }
    }
    first
}

/// Copies `bytes` into the strings area: offset << 32 | length, or `None`
/// when it is full.
pub fn string(segment: &Segment<'_>, bytes: &[u8]) -> Option<u64> {
    let area = segment.bytes(Area::Strings);
    let len = bytes.len() as u64;
    let at = segment.word(word::STRING_NEXT).fetch_add(len, Relaxed);
    let room = area.get(usize::try_from(at).ok()?..)?.get(..bytes.len())?;
    for (to, from) in room.iter().zip(bytes) {
        to.store(*from, Relaxed);
    }
    Some(at << 32 | len)
}

/// A module for [`add_module`].
#[derive(Clone, Copy, Debug)]
pub struct NewModule<'a> {
    /// Lowest address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// Load bias.
    pub bias: u64,
    /// Path.
    pub path: &'a [u8],
    /// GNU build id.
    pub build_id: &'a [u8],
    /// Address of `.eh_frame_hdr`, or 0.
    pub eh_frame_hdr: u64,
    /// Its length.
    pub eh_frame_hdr_len: u64,
}

/// Finds the loaded module that contains `pc`.
pub fn module_at<'a>(segment: &Segment<'a>, pc: u64) -> Option<(u16, &'a [AtomicU64])> {
    let used = segment.word(word::MODULE_NEXT).load(Relaxed) as usize;
    let rows = segment.words(Area::Modules);
    // Newest first: an address may have belonged to an unloaded module.
    rows.chunks_exact(module::WORDS)
        .take(module::COUNT)
        .enumerate()
        .take(used)
        .filter(|(_, row)| match row {
            [start, end, ..] => (start.load(Relaxed)..end.load(Relaxed)).contains(&pc),
            _ => false,
        })
        .filter(|(_, row)| {
            row.get(module::STATUS)
                .is_some_and(|s| s.load(Relaxed) == 1)
        })
        .last()
        .map(|(i, row)| (i as u16, row))
}

/// Adds a module row and returns its id; the same module twice is one row.
pub fn add_module(segment: &Segment<'_>, give_way: Yield, new: &NewModule<'_>) -> Option<u16> {
    let _held = lock::acquire(segment.word(word::TABLES_LOCK), give_way)?;
    if let Some((id, row)) = module_at(segment, new.start)
        && row.first().is_some_and(|s| s.load(Relaxed) == new.start)
        && row
            .get(module::BIAS)
            .is_some_and(|s| s.load(Relaxed) == new.bias)
    {
        return Some(id);
    }
    let next = segment.word(word::MODULE_NEXT);
    let id = next.load(Relaxed);
    let row = segment
        .words(Area::Modules)
        .chunks_exact(module::WORDS)
        .nth(id as usize)?;
    if id >= module::COUNT as u64 {
        return None;
    }
    let path = string(segment, new.path).unwrap_or(0);
    let build_id = string(segment, new.build_id).unwrap_or(0);
    for (at, value) in [
        (module::START, new.start),
        (module::END, new.end),
        (module::BIAS, new.bias),
        (module::PATH, path),
        (module::BUILD_ID, build_id),
        (module::EH_FRAME_HDR, new.eh_frame_hdr),
        (module::EH_FRAME_HDR_LEN, new.eh_frame_hdr_len),
        (module::STATUS, 1),
    ] {
        if let Some(w) = row.get(at) {
            w.store(value, Relaxed);
        }
    }
    next.store(id + 1, Release);
    Some(id as u16)
}

/// Marks modules unloaded for which `gone(start, bias)` says so; true when
/// there was one.
pub fn unload_modules(
    segment: &Segment<'_>,
    give_way: Yield,
    mut gone: impl FnMut(u64, u64) -> bool,
) -> bool {
    let Some(_held) = lock::acquire(segment.word(word::TABLES_LOCK), give_way) else {
        return false;
    };
    let used = segment.word(word::MODULE_NEXT).load(Relaxed) as usize;
    let mut any = false;
    for row in segment
        .words(Area::Modules)
        .chunks_exact(module::WORDS)
        .take(used)
    {
        let [start, _, bias, _, _, _, _, status] = row else {
            continue;
        };
        if status.load(Relaxed) == 1 && gone(start.load(Relaxed), bias.load(Relaxed)) {
            status.store(2, Relaxed);
            any = true;
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use leakscope_wire::Reader;
    use std::vec::Vec;

    fn yields() {
        std::thread::yield_now();
    }

    #[test]
    fn mappings_are_cut_like_the_kernel_cuts_them() {
        let memory = Memory::new();
        let s = memory.segment();
        let m = |addr, len| Mapped {
            addr,
            len,
            stack: 3,
            kind: mapping::APPLICATION,
        };
        assert!(map(&s, yields, m(0x10000, 0x10000)));
        unmap(&s, yields, 0x14000, 0x1000);
        unmap(&s, yields, 0x10000, 0x1000);
        unmap(&s, yields, 0x1f000, 0x5000);
        let mut left: Vec<_> = Reader::new(s).mappings().map(|m| (m.addr, m.len)).collect();
        left.sort_unstable();
        assert_eq!(left, [(0x11000, 0x3000), (0x15000, 0xa000)]);
        assert!(map(&s, yields, m(0x12000, 0x8000)), "MAP_FIXED over both");
        let mut left: Vec<_> = Reader::new(s).mappings().map(|m| (m.addr, m.len)).collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [(0x11000, 0x1000), (0x12000, 0x8000), (0x1a000, 0x5000)]
        );
    }

    #[test]
    fn equal_errors_are_counted_in_one_row() {
        let memory = Memory::new();
        let s = memory.segment();
        for i in 0..13 {
            let kind = error::DOUBLE_FREE;
            note_wrong(
                &s,
                yields,
                Wrong {
                    kind,
                    addr: i,
                    stack: 1,
                    allocated: 2,
                    freed: 3,
                },
            );
        }
        let rows: Vec<_> = Reader::new(s).errors().collect();
        assert_eq!((rows.len(), rows[0].hits, rows[0].addr), (1, 13, 0));
    }

    #[test]
    fn an_unloaded_module_gives_its_addresses_to_the_next() {
        let memory = Memory::new();
        let s = memory.segment();
        let new = NewModule {
            start: 0x1000,
            end: 0x9000,
            bias: 0x1000,
            path: b"/lib/a.so",
            build_id: b"\x01\x02",
            eh_frame_hdr: 0,
            eh_frame_hdr_len: 0,
        };
        assert_eq!(add_module(&s, yields, &new), Some(0));
        assert_eq!(add_module(&s, yields, &new), Some(0));
        assert_eq!(module_at(&s, 0x8fff).map(|(id, _)| id), Some(0));
        assert!(unload_modules(&s, yields, |start, _| start == 0x1000));
        assert!(module_at(&s, 0x8fff).is_none());
        assert_eq!(
            add_module(
                &s,
                yields,
                &NewModule {
                    path: b"/lib/b.so",
                    ..new
                }
            ),
            Some(1)
        );
        let rows: Vec<_> = Reader::new(s).modules().collect();
        assert_eq!((rows[0].loaded, rows[1].loaded), (false, true));
        assert_eq!(
            Reader::new(s).string(rows[1].path).collect::<Vec<_>>(),
            b"/lib/b.so"
        );
    }
}
