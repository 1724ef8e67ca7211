//! The live-block table: address → size, stack, family, birth.
//!
//! ```text
//! directory   1 MiB of addresses (granule) → its 256 pages, under one lock
//! page        4 KiB of addresses → a small hash table of 16-byte entries
//! ```
//! The order of the entries is about that of the addresses: granules, pages
//! and, inside a page, the entries' homes ascend with them. So a program that
//! touches its blocks one after the other touches their entries one after the
//! other, and what the processor does to make the first fast (caches,
//! translation, prefetching) makes the second fast too. A table that scatters
//! neighbours costs a miss of each kind for every event on a large heap.
//!
//! A page's table is filled between 3/8 and 3/4, so an entry costs 21 to 43
//! bytes, 64 where a page has but one. Four entries, a cache line, are one
//! bucket: an entry lies in the first bucket from its home on that was not
//! full. A look-up therefore ends at the first bucket with room, mostly the
//! home, and is done without branches that depend on the data; a removal
//! moves entries back only from behind a full bucket.
//!
//! An address belongs to one thread between its malloc and its free, and
//! thread arenas lie in different granules, so threads seldom meet. Growth
//! moves one page's entries, so no event waits for more.

use crate::heap::Heap;
use crate::interleave::point;
use crate::lock::{self, Yield};
use core::sync::atomic::{
    AtomicU8, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use leakscope_wire::Segment;
use leakscope_wire::entry;
use leakscope_wire::layout::{Area, granule, page, word};

/// log2 of the bytes of an entry.
const ENTRY_LOG2: u32 = 4;
/// log2 of the bytes of a granule's pages.
const PAGES_LOG2: u32 = granule::SHIFT - page::SHIFT + 3;
/// Of this many new pages one begins with fewer slots than were needed lately.
const TRIES: u32 = 16;
/// Slots of a page are given back when it has no block left, from this on:
/// smaller ones would come and go with single blocks.
const GIVEN_BACK_LOG2: u32 = 9;

/// What the table holds for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Requested size, bytes.
    pub size: u64,
    /// Allocating stack.
    pub stack: u32,
    /// Flags of [`leakscope_wire::entry`].
    pub flags: u32,
    /// Birth field.
    pub birth: u32,
}

/// Outcome of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// The address was new.
    New,
    /// The address was there already: its release was missed, or a realloc
    /// of it is under way in another thread.
    Replaced(Entry),
    /// No room, or the granule could not be locked.
    Dropped,
}

/// The table in a segment.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    segment: Segment<'a>,
    heap: Heap<'a>,
    give_way: Yield,
    alone: &'a AtomicU8,
}

/// Whether `addr` can be the address of an entry.
#[inline]
fn is_entry(addr: u64) -> bool {
    addr != 0 && addr < entry::ADDR_LIMIT && addr & 7 == 0
}

/// For tables that are not told whether there are other threads.
static SHARED: AtomicU8 = AtomicU8::new(0);

/// Entries of a bucket.
const WAYS: usize = 4;
/// Their words: key and value.
type Bucket = [[AtomicU64; 2]; WAYS];

/// A page's buckets: a power of two, or none.
#[derive(Clone, Copy)]
struct Slots<'a> {
    buckets: &'a [Bucket],
}

/// Which of a bucket's slots hold an address, and which are empty: bit i is
/// slot i.
#[derive(Clone, Copy)]
struct Scan {
    hit: u32,
    empty: u32,
}

/// Where an address is, or would go.
struct Place<'a> {
    /// Index of the bucket.
    bucket: usize,
    words: &'a [AtomicU64; 2],
    /// It is there.
    found: bool,
    /// The bucket has room.
    roomy: bool,
}

#[inline(always)]
fn scan(bucket: &Bucket, addr: u64) -> Scan {
    let wanted = entry::key(addr, 0);
    let (mut hit, mut empty) = (0, 0);
    for (i, [key, _]) in bucket.iter().enumerate() {
        let key = key.load(Relaxed);
        hit |= u32::from(entry::addr(key ^ wanted) == 0) << i;
        empty |= u32::from(key == 0) << i;
    }
    Scan {
        hit: hit & !empty,
        empty,
    }
}

impl<'a> Slots<'a> {
    #[inline]
    fn of(heap: &Heap<'a>, offset: u64, log2: u32) -> Slots<'a> {
        Slots {
            buckets: heap.words(offset, log2).as_chunks().0.as_chunks().0,
        }
    }

    /// Number of entries that fit.
    #[inline]
    fn room(&self) -> u64 {
        (self.buckets.len() * WAYS) as u64
    }

    #[inline]
    fn mask(&self) -> usize {
        self.buckets.len().wrapping_sub(1)
    }

    /// The bucket where the search for `addr` begins: as far into the buckets
    /// as the address is into its page.
    #[inline]
    fn home(&self, addr: u64) -> usize {
        let inside = addr & ((1 << page::SHIFT) - 1);
        (inside as usize).wrapping_mul(self.buckets.len()) >> page::SHIFT
    }

    /// `None` when it is not there and no slot is empty.
    #[inline(always)]
    fn find(&self, addr: u64) -> Option<Place<'a>> {
        let mut at = self.home(addr);
        for _ in 0..self.buckets.len() {
            let bucket = self.buckets.get(at)?;
            let Scan { hit, empty } = scan(bucket, addr);
            let slots = if hit != 0 { hit } else { empty };
            if slots != 0 {
                return Some(Place {
                    bucket: at,
                    words: bucket.get(slots.trailing_zeros() as usize)?,
                    found: hit != 0,
                    roomy: empty != 0,
                });
            }
            at = at.wrapping_add(1) & self.mask();
        }
        None
    }

    /// Empties the slot `gap` of the full bucket `at`. Behind it may lie
    /// entries that found it full: one of them moves into the gap, and leaves
    /// one itself. The copy is written before its original goes, so a reader
    /// sees each entry at least once.
    #[cold]
    #[inline(never)]
    fn close_gap(&self, at: usize, gap: &'a [AtomicU64; 2]) {
        let (mut gap_bucket, mut gap, mut next) = (at, gap, at);
        for _ in 1..self.buckets.len() {
            next = next.wrapping_add(1) & self.mask();
            let Some(bucket) = self.buckets.get(next) else {
                break;
            };
            let mut roomy = false;
            let mut moving = None;
            for slot in bucket {
                let key = slot[0].load(Relaxed);
                if key == 0 {
                    roomy = true;
                } else if self.may_move(key, next, gap_bucket) {
                    moving = Some((slot, key));
                }
            }
            if let Some((slot, key)) = moving {
                gap[1].store(slot[1].load(Relaxed), Relaxed);
                point();
                gap[0].store(key, Release);
                point();
                (gap_bucket, gap) = (next, slot);
            }
            if roomy {
                break;
            }
        }
        gap[0].store(0, Release);
    }

    /// Whether the home of an entry in bucket `at` does not lie behind bucket
    /// `to`, which lies before it.
    fn may_move(&self, key: u64, at: usize, to: usize) -> bool {
        let mask = self.mask();
        let home = self.home(entry::addr(key));
        at.wrapping_sub(home) & mask >= at.wrapping_sub(to) & mask
    }
}

/// A granule's words.
type Granule = [AtomicU64; granule::WORDS];

impl<'a> Table<'a> {
    /// The table of `segment`.
    pub fn new(segment: Segment<'a>, heap: Heap<'a>, give_way: Yield) -> Table<'a> {
        Table {
            segment,
            heap,
            give_way,
            alone: &SHARED,
        }
    }

    /// The same table for a process that has no second thread while `alone`
    /// is not 0, which is read at each call: glibc's `__libc_single_threaded`.
    /// Locking then costs next to nothing. It must become 0 before another
    /// thread runs, and may become 1 again once the others have ended.
    pub fn alone_while(self, alone: &'a AtomicU8) -> Table<'a> {
        Table { alone, ..self }
    }

    /// The directory.
    #[inline]
    fn granules(&self) -> &'a [Granule] {
        self.segment.words(Area::Granules).as_chunks().0
    }

    /// The granule of `addr`, if there is any block of it.
    #[inline]
    fn granule(&self, addr: u64) -> Option<&'a Granule> {
        let granules = self.granules();
        let number = addr >> granule::SHIFT;
        let mut at = granule::home(number);
        for _ in 0..granule::PROBES {
            let found = granules.get(at)?;
            match found[granule::KEY].load(Acquire) {
                0 => return None,
                key if key == number + 1 => return Some(found),
                _ => at = granule::next(at),
            }
        }
        None
    }

    /// Makes the granule of `addr`, unless another thread just did.
    #[cold]
    #[inline(never)]
    fn add_granule(&self, addr: u64) -> Option<&'a Granule> {
        let _held = self.lock(self.segment.word(word::GRANULES_LOCK))?;
        if let Some(found) = self.granule(addr) {
            return Some(found);
        }
        let granules = self.granules();
        let number = addr >> granule::SHIFT;
        let mut at = granule::home(number);
        for _ in 0..granule::PROBES {
            let free = granules.get(at)?;
            if free[granule::KEY].load(Relaxed) == 0 {
                let group = at / granule::GROUP;
                // The group first: who reads the key finds its group in use.
                let bits = self.segment.word(word::GROUPS + group / 64);
                bits.fetch_or(1 << (group % 64), Release);
                point();
                free[granule::KEY].store(number + 1, Release);
                return Some(free);
            }
            at = granule::next(at);
        }
        None
    }

    /// All granules.
    fn used_granules(&self) -> impl Iterator<Item = &'a Granule> + use<'a> {
        let segment = self.segment;
        let groups = self.granules().chunks(granule::GROUP).enumerate();
        groups
            .filter(move |(group, _)| {
                let bits = segment.word(word::GROUPS + group / 64).load(Acquire);
                bits >> (group % 64) & 1 != 0
            })
            .flat_map(|(_, granules)| granules)
            .filter(|granule| granule[granule::KEY].load(Acquire) != 0)
    }

    /// The page of `addr` in its granule, if any of the granule has blocks.
    #[inline]
    fn page(&self, granule: &Granule, addr: u64) -> Option<&'a AtomicU64> {
        let at = granule[granule::PAGES].load(Acquire).checked_sub(1)?;
        let page = (addr >> page::SHIFT) as usize % page::COUNT;
        self.heap.words(at, PAGES_LOG2).get(page)
    }

    /// Makes the granule's pages; the caller holds its lock.
    #[cold]
    #[inline(never)]
    fn add_pages(&self, granule: &Granule, addr: u64) -> Option<&'a AtomicU64> {
        let at = self.heap.take(PAGES_LOG2)?;
        granule[granule::PAGES].store(at + 1, Release);
        self.page(granule, addr)
    }

    #[inline]
    fn lock<'l>(&self, word: &'l AtomicU64) -> Option<lock::Held<'l>> {
        if self.alone.load(Relaxed) != 0 {
            lock::acquire_alone(word, self.give_way)
        } else {
            lock::acquire(word, self.give_way)
        }
    }

    #[inline]
    fn slots(&self, page: u64) -> Slots<'a> {
        if page == 0 {
            return Slots { buckets: &[] };
        }
        Slots::of(&self.heap, page::offset(page), page::log2(page))
    }

    /// Where the entry of `addr` lies, about: for a prefetch.
    #[inline]
    pub fn near(&self, addr: u64) -> Option<&'a [[AtomicU64; 2]; WAYS]> {
        let page = self.page(self.granule(addr)?, addr)?;
        let slots = self.slots(page.load(Relaxed));
        slots.buckets.get(slots.home(addr))
    }

    /// Records a live block.
    #[inline]
    pub fn insert(&self, addr: u64, new: Entry) -> Inserted {
        if !is_entry(addr) {
            return Inserted::Dropped;
        }
        let Some(granule) = self.granule(addr).or_else(|| self.add_granule(addr)) else {
            return Inserted::Dropped;
        };
        let Some(_held) = self.lock(&granule[granule::LOCK]) else {
            return Inserted::Dropped;
        };
        let page = self.page(granule, addr);
        let Some(page) = page.or_else(|| self.add_pages(granule, addr)) else {
            return Inserted::Dropped;
        };
        let mut word = page.load(Relaxed);
        let mut slots = self.slots(word);
        point();
        let used = page::used(word);
        let room = slots.room();
        if used.saturating_mul(4) >= room * 3 {
            match self.grow(granule, word, slots, new.size) {
                Some(grown) => {
                    point();
                    page.store(grown, Release);
                    point();
                    if word != 0 {
                        self.heap.give(page::offset(word), page::log2(word));
                    }
                    word = grown;
                    slots = self.slots(word);
                }
                // A fuller table still works while a slot is left.
                None if used + 1 < room => {}
                None => return Inserted::Dropped,
            }
        }
        let Some(place) = slots.find(addr) else {
            return Inserted::Dropped;
        };
        let [key, value] = place.words;
        let old = place
            .found
            .then(|| self.unpack(key.load(Relaxed), value.load(Relaxed)));
        let size = self.pack_size(addr, new.size);
        // The value first: a reader who sees the key sees its value.
        value.store(entry::value(new.stack, new.flags, size), Relaxed);
        point();
        key.store(entry::key(addr, new.birth), Release);
        match old {
            Some(old) => Inserted::Replaced(old),
            None => {
                page.store(
                    page::pack(page::offset(word), used + 1, page::log2(word)),
                    Relaxed,
                );
                Inserted::New
            }
        }
    }

    /// Forgets a block and says what it was.
    #[inline]
    pub fn remove(&self, addr: u64) -> Option<Entry> {
        self.remove_if(addr, |_| true)
    }

    /// Forgets a block when `wanted` agrees.
    #[inline]
    pub fn remove_if(&self, addr: u64, wanted: impl FnOnce(&Entry) -> bool) -> Option<Entry> {
        let (granule, page) = self.find_page(addr)?;
        let _held = self.lock(&granule[granule::LOCK])?;
        let word = page.load(Relaxed);
        let slots = self.slots(word);
        let place = slots.find(addr)?;
        if !place.found {
            return None;
        }
        let [key, value] = place.words;
        let packed = value.load(Relaxed);
        let entry = self.unpack(key.load(Relaxed), packed);
        if !wanted(&entry) {
            return None;
        }
        if entry::size(packed) == entry::SIZE_BIG {
            self.forget_big(addr);
        }
        point();
        if place.roomy {
            key.store(0, Release);
        } else {
            slots.close_gap(place.bucket, place.words);
        }
        let used = page::used(word).saturating_sub(1);
        let (offset, log2) = (page::offset(word), page::log2(word));
        if used == 0 && log2 >= GIVEN_BACK_LOG2 {
            page.store(0, Release);
            point();
            self.heap.give(offset, log2);
        } else {
            page.store(page::pack(offset, used, log2), Relaxed);
        }
        Some(entry)
    }

    /// The granule and the page of `addr`, if the page has blocks. Needs no
    /// lock: as long as a block is in the table, both stay.
    #[inline]
    fn find_page(&self, addr: u64) -> Option<(&'a Granule, &'a AtomicU64)> {
        if !is_entry(addr) {
            return None;
        }
        let granule = self.granule(addr)?;
        let page = self.page(granule, addr)?;
        (page::used(page.load(Relaxed)) != 0).then_some((granule, page))
    }

    /// Changes stack, flags or birth of a block in place; the size stays.
    pub fn update(&self, addr: u64, change: impl FnOnce(&mut Entry)) -> Option<Entry> {
        let (granule, page) = self.find_page(addr)?;
        let _held = self.lock(&granule[granule::LOCK])?;
        let slots = self.slots(page.load(Relaxed));
        let place = slots.find(addr)?;
        if !place.found {
            return None;
        }
        let [key, value] = place.words;
        let packed = entry::size(value.load(Relaxed));
        let mut entry = self.unpack(key.load(Relaxed), value.load(Relaxed));
        change(&mut entry);
        value.store(entry::value(entry.stack, entry.flags, packed), Relaxed);
        key.store(entry::key(addr, entry.birth), Release);
        Some(entry)
    }

    /// True when some live block contains `addr` beyond its first byte,
    /// looking back at most `reach` bytes. Slow; for wrong frees only.
    pub fn contains_inside(&self, addr: u64, reach: u64) -> Option<(u64, Entry)> {
        let mut at = addr & !7;
        let low = addr.saturating_sub(reach).max(8);
        while at >= low {
            if at != addr {
                let mut hit = None;
                self.update(at, |e| hit = Some(*e));
                if let Some(e) = hit {
                    return (addr - at < e.size).then_some((at, e));
                }
            }
            at -= 8;
        }
        None
    }

    /// Takes every lock, so that the table stands still; stops at the first
    /// that cannot be had. Used around fork.
    pub fn lock_all(&self) -> bool {
        let keep = |word: &AtomicU64| match lock::acquire(word, self.give_way) {
            Some(held) => {
                core::mem::forget(held);
                true
            }
            None => false,
        };
        keep(self.segment.word(word::GRANULES_LOCK))
            && self
                .used_granules()
                .all(|granule| keep(&granule[granule::LOCK]))
            && keep(self.segment.word(word::HEAP_LOCK))
    }

    /// Frees every lock, whoever holds it.
    pub fn unlock_all(&self) {
        for granule in self.used_granules() {
            lock::reset(&granule[granule::LOCK]);
        }
        lock::reset(self.segment.word(word::GRANULES_LOCK));
        lock::reset(self.segment.word(word::HEAP_LOCK));
    }

    #[inline]
    fn unpack(&self, key: u64, value: u64) -> Entry {
        let addr = entry::addr(key);
        let packed = entry::size(value);
        let size = if packed == entry::SIZE_BIG {
            self.big(addr)
        } else {
            u64::from(packed)
        };
        Entry {
            size,
            stack: entry::stack(value),
            flags: entry::flags(value),
            birth: entry::birth(key),
        }
    }

    /// Copies a page's entries to larger slots (or makes its first) and
    /// returns its new word; `size` is that of the block for whose sake.
    #[cold]
    fn grow(&self, granule: &Granule, page: u64, old: Slots<'a>, size: u64) -> Option<u64> {
        let hint = &granule[granule::HINT];
        let (mut usual, mut pages) = granule::hint(hint.load(Relaxed));
        let log2 = if page == 0 {
            // As many as there may be of this size, but not more than pages
            // hereabouts needed; a little less now and then, because that is
            // how a need that has gone is found out.
            let many = (1 << page::SHIFT) / (size.saturating_add(23) & !15).max(32);
            let fitting = many.max(1).ilog2() + 1 + ENTRY_LOG2;
            pages += 1;
            if pages == TRIES {
                (usual, pages) = (usual.saturating_sub(1), 0);
            }
            fitting.min(usual).max(page::MIN_LOG2)
        } else {
            page::log2(page) + 1
        };
        let offset = self.heap.take_entries(log2)?;
        let new = Slots::of(&self.heap, offset, log2);
        for [key, value] in old.buckets.as_flattened() {
            let k = key.load(Relaxed);
            if k == 0 {
                continue;
            }
            if let Some(place) = new.find(entry::addr(k)) {
                let [new_key, new_value] = place.words;
                new_value.store(value.load(Relaxed), Relaxed);
                new_key.store(k, Relaxed);
                point();
            }
        }
        hint.store(granule::pack_hint(usual.max(log2), pages), Relaxed);
        Some(page::pack(offset, page::used(page), log2))
    }

    #[inline]
    fn pack_size(&self, addr: u64, size: u64) -> u32 {
        if size < u64::from(entry::SIZE_BIG) {
            return size as u32;
        }
        self.keep_big(addr, size)
    }

    #[cold]
    fn keep_big(&self, addr: u64, size: u64) -> u32 {
        for row in self.segment.words(Area::Big).chunks_exact(2) {
            let [key, value] = row else { continue };
            if key.compare_exchange(0, addr, Relaxed, Relaxed).is_ok() {
                value.store(size, Relaxed);
                return entry::SIZE_BIG;
            }
        }
        entry::SIZE_BIG - 1
    }

    #[cold]
    fn big(&self, addr: u64) -> u64 {
        for row in self.segment.words(Area::Big).chunks_exact(2) {
            if let [key, value] = row
                && key.load(Relaxed) == addr
            {
                return value.load(Relaxed);
            }
        }
        u64::from(entry::SIZE_BIG)
    }

    #[cold]
    fn forget_big(&self, addr: u64) {
        for row in self.segment.words(Area::Big).chunks_exact(2) {
            if let [key, _] = row
                && key.compare_exchange(addr, 0, Relaxed, Relaxed).is_ok()
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
