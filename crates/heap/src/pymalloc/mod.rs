//! CPython's allocator of small blocks, 3.8 to 3.14 (Objects/obmalloc.c).
//!
//! ```text
//! table     arena_object[16 · 2^n]   one block of malloc
//! arena     64 pools                 a mapping: 256 KiB, since 3.10 1 MiB
//! pool      blocks of one size       4 KiB, since 3.10 16 KiB
//! ```
//! [`walk`] looks among malloc's blocks for tables: their sizes are few, and
//! each entry leads to an arena whose pools name their place in the table. So
//! neither symbols nor the interpreter's state are needed, and sub-interpreters
//! with tables of their own are found, too.
//!
//! An arena is believed when all its pools agree with themselves (lists, counts,
//! offsets), with its entry, and with the table; any other stays what it was to
//! the rest: memory that may hold anything.
//!
//! Free-threaded builds (3.13 and later) have mimalloc instead.

mod pools;
#[cfg(test)]
mod tests;

use crate::glibc::{Found, Heaps};
use crate::walked::Walked;
use crate::words::read_words;
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{Addr, Range};
use pools::{Arena, Contents, POOLS, contents};
use std::collections::HashSet;

/// The allocator's name in reports.
pub const NAME: &str = "pymalloc";

/// Bytes of `struct arena_object`: address, pool_address, nfreepools and
/// ntotalpools of four bytes each, freepools, nextarena, prevarena.
const ENTRY: u64 = 48;
/// `INITIAL_ARENA_OBJECTS`: entries of the first table; it doubles when full.
const FIRST_TABLE: u64 = 16;
/// Largest table looked for: a terabyte of small blocks.
const MOST_ENTRIES: u64 = 1 << 20;
/// `POOL_SIZE`: since 3.10, and before (or without the radix tree).
const POOL_SIZES: [u64; 2] = [16 << 10, SMALL_POOL];
const SMALL_POOL: u64 = 4 << 10;
/// What the debug hooks keep before a block (`-X dev`, `PYTHONMALLOC=debug`).
const DEBUG_HEAD: u64 = 16;
/// What a block may have beyond what was asked for: malloc's rounding and the
/// debug hooks' bytes behind; and the rest of a page.
const ROOM: u64 = 64;
const PAGE: u64 = 4096;
/// Blocks of a table's size that are looked at where no Python is known to be:
/// a program may have millions of them.
const TRIES: usize = 4096;

/// The map tells of an interpreter: its executable or its library.
pub fn is_named(map: &MemoryMap) -> bool {
    let names_python = |path: &[u8]| {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        name.windows(6).any(|part| part == b"python")
    };
    let mut modules = map.regions().iter().filter(|r| r.exec && r.inode != 0);
    modules.any(|region| names_python(&region.path))
}

/// Walks all arenas whose tables are among malloc's blocks.
pub fn walk(memory: &dyn MemoryReader, malloc: &Heaps) -> Walked {
    let mut walked = Walked::new(NAME);
    let in_segments = malloc.segments.iter().flat_map(|s| &s.blocks);
    let likely = in_segments
        .chain(malloc.mapped.iter().map(|(_, found)| found))
        .flat_map(table_sizes);
    let tries = if is_named(memory.map()) {
        usize::MAX
    } else {
        TRIES
    };
    let heaps = malloc.extents();
    let mut seen = HashSet::new();
    let mut ambiguous = false;
    for (at, entries) in likely.take(tries) {
        let Some(arenas) = table(memory, at, entries) else {
            continue;
        };
        // An arena of two tables: a program may hold a copy of one, and a
        // hostile one any number.
        if arenas.iter().any(|arena| !seen.insert(arena.address)) {
            ambiguous = true;
            continue;
        }
        let Some(pool) = pool_size(memory, &arenas) else {
            continue;
        };
        for arena in &arenas {
            let Some(range) = arena.range(pool) else {
                continue;
            };
            match checked(memory, &heaps, arena, pool) {
                Some(contents) => {
                    walked.extents.push(range);
                    walked.blocks.extend(contents.blocks);
                    walked.free.extend(contents.free);
                }
                None => walked.unwalked.push(range),
            }
        }
    }
    walked.sort();
    if ambiguous || overlap(&walked.extents) {
        walked.unwalked.append(&mut walked.extents);
        walked.blocks.clear();
        walked.free.clear();
        walked.sort();
    }
    walked
}

fn overlap(ascending: &[Range]) -> bool {
    ascending.windows(2).any(|two| match two {
        [one, next] => next.start < one.end,
        _ => false,
    })
}

/// Where in the block a table may begin, and its number of entries, if the
/// block has the size of one.
fn table_sizes(block: &Found) -> impl Iterator<Item = (u64, u64)> {
    // Nearly all are smaller.
    let heads: &[u64] = match block.size < ENTRY * FIRST_TABLE {
        true => &[],
        false => &[0, DEBUG_HEAD],
    };
    heads.iter().filter_map(|head| {
        let room = block.size.checked_sub(*head)?;
        let entries = FIRST_TABLE << (room / (ENTRY * FIRST_TABLE)).checked_ilog2()?;
        let rest = room - entries.checked_mul(ENTRY)?;
        let mapped = block.addr % PAGE == 16 && rest < PAGE + ROOM;
        ((rest < ROOM || mapped) && entries <= MOST_ENTRIES)
            .then_some((block.addr.checked_add(*head)?, entries))
    })
}

/// The arenas that the table at `at` names; `None` if it is none.
fn table(memory: &dyn MemoryReader, at: u64, entries: u64) -> Option<Vec<Arena>> {
    let plausible = |address: u64| {
        address == 0 || (address.is_multiple_of(PAGE) && is_private(memory, address, PAGE))
    };
    // Most blocks of that size are none: that shows at once.
    if !plausible(memory.read_u64(Addr(at)).ok()?) {
        return None;
    }
    let end = at.checked_add(entries.checked_mul(ENTRY)?)?;
    let words = read_words(memory, at, end - at);
    let in_table =
        |word: u64| word == 0 || ((at..end).contains(&word) && (word - at).is_multiple_of(ENTRY));
    let mut arenas = Vec::new();
    let mut unfit = 0;
    let all = words.as_chunks::<6>().0;
    for (index, entry) in (0..entries).zip(all) {
        let [address, pool_address, pools, first_free, next, _] = *entry;
        let (free_pools, all_pools) = (pools & 0xffff_ffff, pools >> 32);
        if address == 0 {
            // Without an arena: in the list of such entries.
            if !in_table(next) {
                return None;
            }
            continue;
        }
        if !plausible(address) {
            return None;
        }
        let fits = pool_address >= address
            && all_pools.abs_diff(POOLS) <= 1
            && free_pools <= all_pools
            && (free_pools == 0 || in_table(next));
        // One may just be made; its pools will not agree.
        unfit += usize::from(!fits);
        arenas.push(Arena {
            index,
            address,
            pool_address: if fits { pool_address } else { 0 },
            free_pools,
            all_pools,
            first_free,
        });
    }
    // The smallest arenas do not overlap.
    let mut addresses: Vec<u64> = arenas.iter().map(|arena| arena.address).collect();
    addresses.sort_unstable();
    let apart = addresses.windows(2).all(|two| match two {
        [one, next] => next - one >= POOLS * SMALL_POOL,
        _ => true,
    });
    let likely = !arenas.is_empty() && unfit <= arenas.len() / 4;
    (all.len() as u64 == entries && likely && apart).then_some(arenas)
}

/// The size of pools with which more arenas agree: one at least must.
fn pool_size(memory: &dyn MemoryReader, arenas: &[Arena]) -> Option<u64> {
    // Any one tells; a few of them may be in the middle of a change.
    let agreeing = |pool: u64| {
        let some = arenas.iter().take(4).chain(arenas.iter().rev().take(4));
        let agree = |arena: &&Arena| contents(memory, arena, pool).is_some();
        some.filter(agree).count()
    };
    POOL_SIZES.into_iter().find(|pool| agreeing(*pool) > 0)
}

fn checked(
    memory: &dyn MemoryReader,
    heaps: &[Range],
    arena: &Arena,
    pool: u64,
) -> Option<Contents> {
    let range = arena.range(pool)?;
    let next = heaps.partition_point(|heap| heap.end <= range.start);
    let apart = heaps.get(next).is_none_or(|heap| range.end <= heap.start);
    if !apart || !is_private(memory, arena.address, range.len()) {
        return None;
    }
    contents(memory, arena, pool)
}

/// `len` bytes at `at` lie in one private, writable mapping of no file.
fn is_private(memory: &dyn MemoryReader, at: u64, len: u64) -> bool {
    let end = at.checked_add(len);
    memory.map().find(Addr(at)).is_some_and(|region| {
        let fits = end.is_some_and(|end| end <= region.range.end.0);
        fits && region.read && region.write && region.inode == 0 && !region.shared
    })
}
