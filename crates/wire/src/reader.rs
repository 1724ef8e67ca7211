//! The supervisor's checked view. Nothing here trusts the segment: a hostile
//! target gets wrong numbers in its own report, and nothing else.

use crate::entry;
use crate::layout::{Area, error, granule, mapping, module, page, pair, thread, word};
use crate::segment::Segment;
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed};

/// One live block as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Address.
    pub addr: u64,
    /// Requested size, bytes.
    pub size: u64,
    /// Stack id.
    pub stack: u32,
    /// Flag bits of [`crate::entry`].
    pub flags: u32,
    /// Recorder time at the allocation, centiseconds.
    pub born_cs: u64,
}

/// One stack node as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Parent's id; always smaller than the node's own, else 0.
    pub parent: u32,
    /// Module id or [`crate::entry::node::NO_MODULE`].
    pub module: u16,
    /// Return address; 0 is a cut.
    pub pc: u64,
}

/// One module row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleRow {
    /// Lowest address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// Load bias.
    pub bias: u64,
    /// Offset and length of the path in the strings area.
    pub path: (u32, u32),
    /// Offset and length of the build id in the strings area.
    pub build_id: (u32, u32),
    /// False once unloaded.
    pub loaded: bool,
}

/// Sums over all threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Allocations.
    pub allocations: u64,
    /// Frees.
    pub frees: u64,
    /// Bytes allocated.
    pub bytes: u64,
    /// Highest live bytes.
    pub peak: u64,
}

/// One free-site pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreePair {
    /// Allocating stack.
    pub allocated: u32,
    /// Freeing stack.
    pub freed: u32,
    /// Sampled frees.
    pub hits: u64,
    /// Sum of lifetimes, centiseconds.
    pub lifetime_cs: u64,
}

/// One error row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRow {
    /// Kind, one of [`crate::layout::error`]'s.
    pub kind: u64,
    /// Family of the allocation.
    pub allocated_family: u32,
    /// Family of the release.
    pub released_family: u32,
    /// Address.
    pub addr: u64,
    /// Stacks: release, allocation, first free.
    pub stacks: [u32; 3],
    /// How often.
    pub hits: u64,
}

/// One mapping row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Address.
    pub addr: u64,
    /// Length, bytes.
    pub len: u64,
    /// Stack.
    pub stack: u32,
    /// True for the allocator's own.
    pub allocator: bool,
}

/// Reads a segment. Cheap to make; holds no state.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    segment: Segment<'a>,
}

fn load(words: &[AtomicU64], index: usize) -> u64 {
    words.get(index).map_or(0, |w| w.load(Relaxed))
}

/// The `bytes` bytes at byte `at`, if they lie inside.
fn part(words: &[AtomicU64], at: u64, bytes: u64) -> Option<&[AtomicU64]> {
    let start = usize::try_from(at / 8).ok()?;
    words.get(start..start.checked_add((bytes / 8) as usize)?)
}

impl<'a> Reader<'a> {
    /// A reader of `segment`.
    pub fn new(segment: Segment<'a>) -> Reader<'a> {
        Reader { segment }
    }

    /// The segment.
    pub fn segment(&self) -> &Segment<'a> {
        &self.segment
    }

    /// A header word.
    pub fn word(&self, index: usize) -> u64 {
        self.segment.word(index).load(Acquire)
    }

    fn rows(
        &self,
        area: Area,
        next: u64,
        words: usize,
    ) -> impl Iterator<Item = &'a [AtomicU64]> + use<'a> {
        let all = self.segment.words(area);
        let count = usize::try_from(next).unwrap_or(usize::MAX);
        all.chunks_exact(words).take(count)
    }

    /// The directory's slots that are in use, in runs of neighbours.
    pub fn granules(&self) -> impl Iterator<Item = &'a [AtomicU64]> + use<'a> {
        let slots = self.segment.words(Area::Granules);
        let header = self.segment.header();
        (0..granule::GROUPS)
            .filter(move |group| load(header, word::GROUPS + group / 64) >> (group % 64) & 1 != 0)
            .flat_map(move |group| {
                let at = group * granule::GROUP * granule::WORDS;
                let group = slots.get(at..at + granule::GROUP * granule::WORDS);
                group.unwrap_or(&[]).chunks_exact(granule::WORDS)
            })
            .filter(|slot| {
                (1..=entry::ADDR_LIMIT >> granule::SHIFT).contains(&load(slot, granule::KEY))
            })
    }

    /// All live blocks, mostly in the order of their addresses. While the
    /// target runs, or when it was stopped inside an update, one block may
    /// appear twice (same address).
    pub fn blocks(&self) -> impl Iterator<Item = Block> + use<'a> {
        let heap = self.segment.words(Area::Heap);
        let big = self.segment.words(Area::Big);
        // Pages do not share slots, so a table that says more is not true.
        let mut room = heap.len();
        self.granules()
            .flat_map(move |slot| {
                let first = (load(slot, granule::KEY) - 1) << (granule::SHIFT - page::SHIFT);
                let pages = load(slot, granule::PAGES)
                    .checked_sub(1)
                    .and_then(|at| part(heap, at, page::COUNT as u64 * 8))
                    .unwrap_or(&[]);
                (first..).zip(pages)
            })
            .map_while(move |(number, word)| {
                let word = word.load(Acquire);
                let log2 = page::log2(word);
                if word == 0 || !(page::MIN_LOG2..=page::MAX_LOG2).contains(&log2) {
                    return Some((number, &[][..]));
                }
                let slots = part(heap, page::offset(word), 1 << log2).unwrap_or(&[]);
                room = room.checked_sub(slots.len())?;
                Some((number, slots))
            })
            .flat_map(move |(number, slots)| {
                slots.chunks_exact(2).filter_map(move |slot| {
                    let (key, value) = (slot[0].load(Acquire), slot[1].load(Relaxed));
                    let addr = entry::addr(key);
                    if key == 0 || addr >> page::SHIFT != number {
                        return None;
                    }
                    let flags = entry::flags(value);
                    let mut size = u64::from(entry::size(value));
                    if entry::size(value) == entry::SIZE_BIG {
                        size = big
                            .chunks_exact(2)
                            .find(|row| row[0].load(Relaxed) == addr)
                            .map_or(size, |row| row[1].load(Relaxed));
                    }
                    // While a realloc moves the block, the field holds a thread.
                    let born_cs = if flags & entry::MOVING != 0 {
                        0
                    } else {
                        entry::clock_of(entry::birth(key))
                    };
                    Some(Block {
                        addr,
                        size,
                        stack: entry::stack(value),
                        flags,
                        born_cs,
                    })
                })
            })
    }

    /// Number of nodes in use, the root included.
    pub fn node_count(&self) -> u32 {
        let next = self.word(word::NODE_NEXT).max(1);
        next.min(u64::from(self.segment.layout().nodes())) as u32
    }

    /// Node `id`; the empty root for an id out of range.
    pub fn node(&self, id: u32) -> Node {
        let words = self.segment.words(Area::Nodes);
        if id == 0 || id >= self.node_count() {
            return Node {
                parent: 0,
                module: entry::node::NO_MODULE,
                pc: 0,
            };
        }
        let frame = load(words, id as usize * 2);
        let parent = load(words, id as usize * 2 + 1) as u32;
        Node {
            parent: if parent < id { parent } else { 0 },
            module: entry::node::module(frame),
            pc: entry::node::pc(frame),
        }
    }

    /// All module rows; the row's position is its id.
    pub fn modules(&self) -> impl Iterator<Item = ModuleRow> + use<'a> {
        self.rows(Area::Modules, self.word(word::MODULE_NEXT), module::WORDS)
            .map(|row| {
                let split = |w: u64| ((w >> 32) as u32, w as u32);
                ModuleRow {
                    start: load(row, module::START),
                    end: load(row, module::END),
                    bias: load(row, module::BIAS),
                    path: split(load(row, module::PATH)),
                    build_id: split(load(row, module::BUILD_ID)),
                    loaded: load(row, module::STATUS) == 1,
                }
            })
    }

    /// Bytes of the strings area: calls `each` for each byte of the range, as
    /// far as it lies inside, and at most 64 KiB.
    pub fn string(&self, (at, len): (u32, u32)) -> impl Iterator<Item = u8> + use<'a> {
        let bytes = self.segment.bytes(Area::Strings);
        let len = (len as usize).min(65536);
        bytes
            .iter()
            .skip(at as usize)
            .take(len)
            .map(|b| b.load(Relaxed))
    }

    /// Totals over all threads, running and ended.
    pub fn totals(&self) -> Totals {
        let mut t = Totals {
            allocations: self.word(word::RETIRED_ALLOCATIONS),
            frees: self.word(word::RETIRED_FREES),
            bytes: self.word(word::RETIRED_BYTES),
            peak: self.word(word::PEAK_BYTES),
        };
        let live = self.word(word::LIVE_BYTES) as i64;
        let next = self.word(word::THREAD_NEXT);
        let mut rise = 0i64;
        for row in self.rows(Area::Threads, next, thread::WORDS) {
            if load(row, thread::STATUS) != 1 {
                continue;
            }
            t.allocations = t.allocations.wrapping_add(load(row, thread::ALLOCATIONS));
            t.frees = t.frees.wrapping_add(load(row, thread::FREES));
            t.bytes = t.bytes.wrapping_add(load(row, thread::BYTES));
            rise = rise.max(load(row, thread::DELTA_PEAK) as i64);
        }
        t.peak = t
            .peak
            .max(u64::try_from(live.saturating_add(rise)).unwrap_or(0));
        t
    }

    /// Thread control blocks: of running threads (`true`) or ended ones.
    pub fn threads(&self) -> impl Iterator<Item = (u64, bool)> + use<'a> {
        self.rows(Area::Threads, self.word(word::THREAD_NEXT), thread::WORDS)
            .filter_map(|row| {
                let status = load(row, thread::STATUS);
                let tcb = load(row, thread::TCB);
                (tcb != 0 && (status == 1 || status == 2)).then_some((tcb, status == 1))
            })
    }

    /// Free-site pairs.
    pub fn pairs(&self) -> impl Iterator<Item = FreePair> + use<'a> {
        self.rows(Area::Pairs, pair::COUNT as u64, pair::WORDS)
            .filter_map(|row| {
                let key = load(row, pair::KEY);
                (key != 0).then(|| FreePair {
                    allocated: (key >> 32) as u32,
                    freed: key as u32,
                    hits: load(row, pair::HITS),
                    lifetime_cs: load(row, pair::LIFETIME),
                })
            })
    }

    /// Wrong releases.
    pub fn errors(&self) -> impl Iterator<Item = ErrorRow> + use<'a> {
        self.rows(Area::Errors, self.word(word::ERROR_NEXT), error::WORDS)
            .filter_map(|row| {
                let kind = load(row, error::KIND);
                (kind & 0xff != 0).then(|| ErrorRow {
                    kind: kind & 0xff,
                    allocated_family: (kind >> 8) as u32 & 0xff,
                    released_family: (kind >> 16) as u32 & 0xff,
                    addr: load(row, error::ADDR),
                    stacks: [error::STACK, error::ALLOCATED, error::FREED]
                        .map(|w| load(row, w) as u32),
                    hits: load(row, error::HITS),
                })
            })
    }

    /// Live mappings.
    pub fn mappings(&self) -> impl Iterator<Item = Mapping> + use<'a> {
        self.rows(
            Area::Mappings,
            self.word(word::MAPPING_NEXT),
            mapping::WORDS,
        )
        .filter_map(|row| {
            let len = load(row, mapping::LEN);
            (len != 0).then(|| Mapping {
                addr: load(row, mapping::ADDR),
                len,
                stack: load(row, mapping::STACK) as u32,
                allocator: load(row, mapping::KIND) == mapping::ALLOCATOR,
            })
        })
    }

    /// Stack that opened a descriptor, when recorded.
    pub fn fd(&self, fd: u32) -> Option<u32> {
        let word = load(self.segment.words(Area::Fds), fd as usize);
        (word != 0).then(|| word.wrapping_sub(1) as u32)
    }

    /// Root regions that the program declared.
    pub fn roots(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        self.rows(Area::Roots, u64::MAX, 2).filter_map(|row| {
            let (start, end) = (load(row, 0), load(row, 1));
            (start != 0 && end > start).then_some((start, end))
        })
    }

    /// The recorder's own ranges.
    pub fn own(&self) -> impl Iterator<Item = (u64, u64)> + use<'a> {
        let header = self.segment.header();
        (0..word::OWN_LEN).filter_map(move |i| {
            let start = load(header, word::OWN + 2 * i);
            let end = load(header, word::OWN + 2 * i + 1);
            (start != 0 && end > start).then_some((start, end))
        })
    }
}
