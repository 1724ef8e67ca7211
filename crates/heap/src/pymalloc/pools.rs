//! One arena, pool by pool.
//!
//! `struct pool_header` (Objects/obmalloc.c; from 3.12 on
//! Include/internal/pycore_obmalloc.h), unchanged from 3.8 to 3.14; offsets in
//! bytes:
//!
//! ```text
//!    0  ref.count      blocks in use; 0: the pool is free, of no size class
//!    8  freeblock      the first block given back; each names the next, the last 0
//!   16  nextpool       next free pool of the arena, if it is free itself
//!   24  prevpool
//!   32  arenaindex     the arena's place in the table
//!   36  szidx          size class: blocks have 16 (szidx + 1) bytes
//!   40  nextoffset     from here on no block was ever handed out
//!   44  maxnextoffset  the last place where a block may begin
//!   48                 blocks
//! ```

use crate::glibc::Found;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};

/// Pools of an arena, whatever their size.
pub(super) const POOLS: u64 = 64;
const HEADER: u64 = 48;
const ALIGNMENT: u64 = 16;
/// Size classes: requests above 512 bytes go to malloc.
const CLASSES: u64 = 32;

/// What the table says of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arena {
    /// Its place in the table.
    pub index: u64,
    /// Its first byte.
    pub address: u64,
    /// Behind the pools that were ever used.
    pub pool_address: u64,
    /// Pools that are free, and all of them.
    pub free_pools: u64,
    pub all_pools: u64,
    /// The first free pool that was used before.
    pub first_free: u64,
}

impl Arena {
    /// All its bytes, if its pools have `pool` each.
    pub(super) fn range(&self, pool: u64) -> Option<Range> {
        let end = self.address.checked_add(POOLS.checked_mul(pool)?)?;
        Some(Range::new(self.address, end))
    }
}

/// Blocks and free memory of an arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub blocks: Vec<Found>,
    pub free: Vec<Range>,
}

/// Reads all pools of `arena`, each of `pool` bytes. `None` unless every one of
/// them agrees with itself and with the arena's own numbers.
pub(super) fn contents(memory: &dyn MemoryReader, arena: &Arena, pool: u64) -> Option<Contents> {
    let whole = arena.range(pool)?;
    let first = arena.address.checked_next_multiple_of(pool)?;
    // A part of a pool at both ends is left out.
    let all = POOLS - u64::from(first != arena.address);
    let used = arena.pool_address.checked_sub(first)?;
    let carved = used / pool;
    if arena.all_pools != all || !used.is_multiple_of(pool) || carved > all {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(used).ok()?];
    memory.read(Addr(first), &mut bytes).ok()?;
    let mut contents = Contents::default();
    let mut empty: Vec<(u64, u64)> = Vec::new();
    let size = usize::try_from(pool).ok()?;
    for (at, bytes) in (first..).step_by(size).zip(bytes.chunks_exact(size)) {
        let header = Header::of(bytes)?;
        if header.arena != arena.index {
            return None;
        }
        if header.count == 0 {
            empty.push((at, header.next));
            contents.free.push(Range::new(at, at + pool));
        } else {
            header.blocks(at, bytes, &mut contents)?;
        }
    }
    let listed = in_list(&empty, arena.first_free)?;
    let agrees = listed == empty.len() && arena.free_pools == all - carved + listed as u64;
    // Never used, and what the alignment of pools leaves over.
    contents
        .free
        .push(Range::new(arena.pool_address, whole.end.0));
    agrees.then_some(contents)
}

/// How many of the free pools (ascending, with the one that each names) the
/// list from `first` holds. `None` when it leaves them or turns back.
fn in_list(empty: &[(u64, u64)], first: u64) -> Option<usize> {
    let mut at = first;
    let mut count = 0;
    while at != 0 {
        let place = empty.binary_search_by_key(&at, |(pool, _)| *pool).ok()?;
        at = empty.get(place)?.1;
        count += 1;
        if count > empty.len() {
            return None;
        }
    }
    Some(count)
}

struct Header {
    count: u64,
    freeblock: u64,
    next: u64,
    arena: u64,
    class: u64,
    next_offset: u64,
    last_offset: u64,
}

impl Header {
    fn of(pool: &[u8]) -> Option<Header> {
        let half = |word: u64| word & 0xffff_ffff;
        let place = word(pool, 32)?;
        let offsets = word(pool, 40)?;
        Some(Header {
            count: half(word(pool, 0)?),
            freeblock: word(pool, 8)?,
            next: word(pool, 16)?,
            arena: half(place),
            class: place >> 32,
            next_offset: half(offsets),
            last_offset: offsets >> 32,
        })
    }

    /// Adds the blocks of the pool at `at`, and its free memory.
    fn blocks(&self, at: u64, pool: &[u8], into: &mut Contents) -> Option<()> {
        let len = pool.len() as u64;
        if self.class >= CLASSES {
            return None;
        }
        let size = (self.class + 1) * ALIGNMENT;
        let made = self.next_offset.checked_sub(HEADER)?;
        let fits = self.last_offset + size == len
            && made.is_multiple_of(size)
            && self.next_offset <= self.last_offset + size;
        if !fits {
            return None;
        }
        let made = made / size;
        // A pool of 16 KiB has fewer than 1024 blocks.
        let mut is_free = [0u64; 16];
        let mut free = 0;
        let mut link = self.freeblock;
        while link != 0 {
            let offset = link.checked_sub(at)?.checked_sub(HEADER)?;
            let block = offset / size;
            if !offset.is_multiple_of(size) || block >= made {
                return None;
            }
            let bits = is_free.get_mut((block / 64) as usize)?;
            if *bits & (1 << (block % 64)) != 0 {
                return None;
            }
            *bits |= 1 << (block % 64);
            free += 1;
            link = word(pool, HEADER + offset)?;
        }
        if self.count != made - free {
            return None;
        }
        for block in 0..made {
            let addr = at + HEADER + block * size;
            let bits = is_free.get((block / 64) as usize)?;
            if bits & (1 << (block % 64)) == 0 {
                into.blocks.push(Found { addr, size });
            } else {
                into.free.push(Range::new(addr, addr + size));
            }
        }
        // Whole blocks only: a rest is lost to the pool.
        let end = self.last_offset + size;
        let rest = (end - self.next_offset) / size * size;
        if rest > 0 {
            let from = at + self.next_offset;
            into.free.push(Range::new(from, from + rest));
        }
        Some(())
    }
}

fn word(bytes: &[u8], at: u64) -> Option<u64> {
    let at = usize::try_from(at).ok()?;
    let word = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(word.try_into().ok()?))
}
