//! Where everything lies in the segment.
//!
//! ```text
//! page 0          header: 512 words of 8 bytes (constants in `word`)
//! then, in order  the areas (`Area`), each starting on a page boundary
//! ```
//! All integers are little-endian machine words, written and read
//! atomically. The file is sparse: an area costs memory only where touched.

/// First word of a segment: "LKSCOPE1" in ASCII.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LKSCOPE1");
/// Layout version; both sides must agree exactly.
pub const VERSION: u64 = 2;
/// Bytes of the header.
pub const HEADER_BYTES: u64 = 4096;
/// Page size of x86-64.
pub const PAGE: u64 = 4096;

/// Word indices into the header.
pub mod word {
    /// [`super::MAGIC`], written by the supervisor.
    pub const MAGIC: usize = 0;
    /// [`super::VERSION`].
    pub const VERSION: usize = 1;
    /// Length of the whole segment, bytes.
    pub const LEN: usize = 2;
    /// Bits of [`super::config`].
    pub const CONFIG: usize = 3;
    /// Deepest stack that is kept, frames.
    pub const MAX_DEPTH: usize = 4;
    /// Mean bytes between samples; 0 records every allocation.
    pub const SAMPLE_BYTES: usize = 5;
    /// Smallest application mapping that is recorded, bytes.
    pub const MMAP_MIN: usize = 6;
    /// Process id in the target's own pid namespace, written by the recorder.
    pub const PID: usize = 8;
    /// Futex word (low half): one of [`super::state`].
    pub const STATE: usize = 10;
    /// Futex word (low half): counts the supervisor's answers to asks.
    pub const ANSWER: usize = 11;
    /// Recorder time: centiseconds since the segment was made, advanced by
    /// the supervisor, so that the recorder needs no clock. It standing still
    /// for long means that the supervisor is gone.
    pub const CLOCK: usize = 12;
    /// Result of the last ask: [`super::answer`].
    pub const RESULT: usize = 13;
    /// Kernel thread id of the asking thread.
    pub const ASK_TID: usize = 14;
    /// Stack pointer at which the asking thread entered the recorder.
    pub const ASK_SP: usize = 15;
    /// Its thread control block (fs base).
    pub const ASK_TCB: usize = 16;
    /// Its callee-saved registers at entry: rbx rbp r12 r13 r14 r15.
    pub const ASK_REGS: usize = 17;
    /// Number of words at [`ASK_REGS`].
    pub const ASK_REGS_LEN: usize = 6;
    /// Exit status that the program passed to exit, when asking at exit.
    pub const ASK_STATUS: usize = 24;

    /// Next free byte of [`super::Area::Heap`], relative to its start.
    pub const HEAP_NEXT: usize = 32;
    /// Next free stack node; node 0 is the root.
    pub const NODE_NEXT: usize = 33;
    /// Next free byte of [`super::Area::Strings`].
    pub const STRING_NEXT: usize = 34;
    /// Number of module rows.
    pub const MODULE_NEXT: usize = 35;
    /// Number of error rows.
    pub const ERROR_NEXT: usize = 36;
    /// Highest used mapping row + 1.
    pub const MAPPING_NEXT: usize = 37;
    /// Highest used thread slot + 1.
    pub const THREAD_NEXT: usize = 38;
    /// Spin lock of the mappings, errors and modules tables.
    pub const TABLES_LOCK: usize = 39;
    /// Spin lock of the heap's free lists.
    pub const HEAP_LOCK: usize = 40;
    /// Spin lock under which granules are added.
    pub const GRANULES_LOCK: usize = 41;
    /// The heap's bytes up to here have been asked of the kernel.
    pub const HEAP_READY: usize = 42;

    /// Live bytes, all flushed threads (two's complement).
    pub const LIVE_BYTES: usize = 44;
    /// Highest live bytes seen at a flush.
    pub const PEAK_BYTES: usize = 45;
    /// Totals of threads that ended: allocations, frees, bytes.
    pub const RETIRED_ALLOCATIONS: usize = 46;
    /// See [`RETIRED_ALLOCATIONS`].
    pub const RETIRED_FREES: usize = 47;
    /// See [`RETIRED_ALLOCATIONS`].
    pub const RETIRED_BYTES: usize = 48;

    /// Events lost.
    pub const DROPPED: usize = 52;
    /// Frees of unknown addresses.
    pub const UNKNOWN_FREES: usize = 53;
    /// Stacks cut for lack of unwind information.
    pub const CUT_STACKS: usize = 54;
    /// Stacks cut at the depth limit.
    pub const DEEP_STACKS: usize = 55;
    /// Nodes that did not fit.
    pub const DROPPED_NODES: usize = 56;
    /// Bits of [`super::note`]: what the recorder met.
    pub const NOTES: usize = 57;
    /// Processes that were forked but could not be given a segment.
    pub const LOST_CHILDREN: usize = 58;

    /// Futex word (low half): set to 1 by a forked child that has its copy.
    pub const FORK_DONE: usize = 59;

    /// Offset and length (in the strings area) of the program's
    /// `__lsan_default_suppressions`.
    pub const LSAN_SUPPRESSIONS: usize = 60;

    /// Pairs of words (start, end): the recorder's own memory.
    pub const OWN: usize = 64;
    /// Pairs at [`OWN`].
    pub const OWN_LEN: usize = 32;

    /// Heads of the heap's free lists: 1 + offset of the first free block of
    /// 2^k bytes, for k in 0..40.
    pub const FREE_LISTS: usize = 160;

    /// Bits: groups of [`super::Area::Granules`] that are in use.
    pub const GROUPS: usize = 224;
    /// Number of words at [`GROUPS`].
    pub const GROUPS_LEN: usize = super::granule::GROUPS / 64;

    /// Mailbox: operation, one of [`super::mail`] (futex, low half).
    pub const MAIL_OP: usize = 256;
    /// Mailbox: address.
    pub const MAIL_ADDR: usize = 257;
    /// Mailbox: length, bytes.
    pub const MAIL_LEN: usize = 258;
    /// Mailbox: bytes delivered into [`super::Area::Window`].
    pub const MAIL_DONE: usize = 259;
}

/// Bits of [`word::CONFIG`].
pub mod config {
    /// Record descriptors.
    pub const FDS: u64 = 1;
    /// Record application mappings.
    pub const MMAPS: u64 = 2;
    /// Sample where blocks are freed.
    pub const FREE_SITES: u64 = 4;
    /// Follow forked and executed children.
    pub const FOLLOW: u64 = 8;
    /// Ask for a check before exec.
    pub const AT_EXEC: u64 = 16;
}

/// Values of [`word::STATE`].
pub mod state {
    /// Made, not yet taken by a recorder.
    pub const FRESH: u32 = 0;
    /// Recording.
    pub const RUNNING: u32 = 1;
    /// A thread prepares to ask.
    pub const STARTING_ASK: u32 = 9;
    /// A thread waits in exit (after all handlers) for the check.
    pub const ASK_EXIT: u32 = 2;
    /// A thread waits in _exit, _Exit or quick_exit.
    pub const ASK_FAST_EXIT: u32 = 3;
    /// A thread waits before exec.
    pub const ASK_EXEC: u32 = 4;
    /// A thread waits in `__lsan_do_leak_check`; it ends after a finding.
    pub const ASK_LSAN: u32 = 5;
    /// A thread waits in `__lsan_do_recoverable_leak_check`.
    pub const ASK_LSAN_RECOVERABLE: u32 = 6;
    /// The check was answered; the process is about to be gone.
    pub const LEAVING: u32 = 7;
    /// exec was called and its image is about to be replaced; back to
    /// [`RUNNING`] when exec fails.
    pub const EXECUTING: u32 = 8;
}

/// Values of [`word::RESULT`].
pub mod answer {
    /// Nothing lost (or not judged).
    pub const CLEAN: u64 = 0;
    /// Definite or possible losses were found.
    pub const LEAKS: u64 = 1;
}

/// Bits of [`word::NOTES`].
pub mod note {
    /// The executable (or another object before the recorder) defines malloc
    /// itself: its calls are not seen.
    pub const ALLOCATOR_BYPASS: u64 = 1;
    /// The live-block table was full.
    pub const TABLE_FULL: u64 = 2;
    /// The stack tree was full.
    pub const NODES_FULL: u64 = 4;
    /// A child was forked behind the recorder's back; it is not recorded.
    pub const RAW_FORK: u64 = 8;
    /// The program changed its root directory or mount namespace.
    pub const CHROOT: u64 = 16;
    /// Allocations are made by an allocator other than glibc's.
    pub const FOREIGN_ALLOCATOR: u64 = 32;
    /// The program's `__lsan_is_turned_off` says that its leaks are not to be
    /// reported.
    pub const LSAN_TURNED_OFF: u64 = 64;
}

/// Values of [`word::MAIL_OP`]. The supervisor sets an operation and wakes;
/// the waiting thread performs it, sets [`mail::NONE`] and wakes.
pub mod mail {
    /// Nothing asked.
    pub const NONE: u32 = 0;
    /// Copy memory at MAIL_ADDR into the window.
    pub const READ: u32 = 1;
    /// Copy `/proc/self/maps` from byte MAIL_ADDR into the window.
    pub const MAPS: u32 = 2;
}

/// The areas behind the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Area {
    /// Thread slots, [`thread`].
    Threads,
    /// Module rows, [`module`].
    Modules,
    /// Bytes of names.
    Strings,
    /// Heads of the node hash chains: 32-bit node ids.
    Buckets,
    /// The live-block table's directory, [`granule`].
    Granules,
    /// Recently freed blocks, [`freed`].
    Freed,
    /// Free-site pairs, [`pair`].
    Pairs,
    /// Error rows, [`error`].
    Errors,
    /// Mapping rows, [`mapping`].
    Mappings,
    /// One word per descriptor: 1 + stack that opened it, or 0.
    Fds,
    /// Sizes of blocks too large for their entry: (address, size) pairs.
    Big,
    /// Declared root regions: (start, end) pairs.
    Roots,
    /// Window of the mailbox.
    Window,
    /// Stack nodes, [`crate::entry::node`].
    Nodes,
    /// One byte per node: how many frees of its blocks were sampled.
    Seen,
    /// Memory of the live-block table: pages' slots, [`page`].
    Heap,
}

/// Number of areas.
pub const AREAS: usize = 16;

/// Thread slot: 16 words.
pub mod thread {
    /// Words per slot.
    pub const WORDS: usize = 16;
    /// Slots.
    pub const COUNT: usize = 4096;
    /// 0 free, 1 in use, 2 its thread ended.
    pub const STATUS: usize = 0;
    /// Thread control block.
    pub const TCB: usize = 1;
    /// Allocations.
    pub const ALLOCATIONS: usize = 2;
    /// Frees.
    pub const FREES: usize = 3;
    /// Bytes allocated.
    pub const BYTES: usize = 4;
    /// Live bytes not yet flushed (two's complement).
    pub const DELTA: usize = 5;
    /// Highest DELTA since the last flush.
    pub const DELTA_PEAK: usize = 6;
}

/// Module row: 8 words.
pub mod module {
    /// Words per row.
    pub const WORDS: usize = 8;
    /// Rows.
    pub const COUNT: usize = 4096;
    /// Lowest address.
    pub const START: usize = 0;
    /// First address behind.
    pub const END: usize = 1;
    /// Load bias.
    pub const BIAS: usize = 2;
    /// Offset << 32 | length of its path in the strings area.
    pub const PATH: usize = 3;
    /// Offset << 32 | length of its build id in the strings area.
    pub const BUILD_ID: usize = 4;
    /// Address of `.eh_frame_hdr`, 0 when it has none.
    pub const EH_FRAME_HDR: usize = 5;
    /// Its length, bytes.
    pub const EH_FRAME_HDR_LEN: usize = 6;
    /// 1 loaded, 2 unloaded.
    pub const STATUS: usize = 7;
}

/// Granule of 2^20 bytes of the target's addresses: 8 words (one cache line).
///
/// The directory is a hash table that never shrinks: a granule lies in its
/// home slot, or in the same place of one of the next groups. The slots of
/// neighbouring granules are neighbours.
pub mod granule {
    /// Words per slot.
    pub const WORDS: usize = 8;
    /// log2 of the slots: 64 GiB of addresses, if they are dense.
    pub const LOG2_COUNT: u32 = 16;
    /// Slots.
    pub const COUNT: usize = 1 << LOG2_COUNT;
    /// Slots of a group, which is a page.
    pub const GROUP: usize = 64;
    /// Groups.
    pub const GROUPS: usize = COUNT / GROUP;
    /// log2 of the bytes of a granule.
    pub const SHIFT: u32 = 20;
    /// Groups that are searched for a granule.
    pub const PROBES: usize = 256;
    /// 1 + the granule's address >> [`SHIFT`]; 0 in an unused slot.
    pub const KEY: usize = 0;
    /// Spin lock.
    pub const LOCK: usize = 1;
    /// 1 + offset in the heap area of its pages, [`super::page`]; 0 none.
    pub const PAGES: usize = 2;
    /// [`hint`].
    pub const HINT: usize = 3;

    /// log2 of the bytes of slots that a page needed lately, and the number of
    /// pages since that was last lowered.
    pub const fn hint(word: u64) -> (u32, u32) {
        (word as u32 & 0xff, (word >> 8) as u32 & 0xff)
    }

    /// Packs a hint.
    pub const fn pack_hint(log2: u32, pages: u32) -> u64 {
        (log2 & 0xff) as u64 | ((pages & 0xff) as u64) << 8
    }

    /// The slot where the search for granule `number` begins.
    pub const fn home(number: u64) -> usize {
        // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
        let group = (number / GROUP as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let group = group >> (64 - LOG2_COUNT + GROUP.trailing_zeros());
        group as usize * GROUP + number as usize % GROUP
    }

    /// The slot to look at after `slot`.
    pub const fn next(slot: usize) -> usize {
        (slot + GROUP) % COUNT
    }
}

/// Page of 2^12 bytes of the target's addresses: one word, 0 while no block
/// of it was recorded.
///
/// ```text
/// offset of its slots in the heap area >> 6 (40 bits) << 24 | used (16 bits) << 8 | log2 of their bytes (8 bits)
/// ```
pub mod page {
    /// log2 of the bytes of a page.
    pub const SHIFT: u32 = 12;
    /// Pages of a granule.
    pub const COUNT: usize = 1 << (super::granule::SHIFT - SHIFT);
    /// log2 of the bytes of the smallest slots.
    pub const MIN_LOG2: u32 = 6;
    /// log2 of the bytes of the largest: an address is a multiple of 8.
    pub const MAX_LOG2: u32 = 14;

    /// Packs a page.
    pub const fn pack(offset: u64, used: u64, log2: u32) -> u64 {
        (offset >> 6) << 24 | (used & 0xffff) << 8 | (log2 & 0xff) as u64
    }

    /// Offset of the slots, bytes.
    pub const fn offset(word: u64) -> u64 {
        (word >> 24) << 6
    }

    /// Slots in use.
    pub const fn used(word: u64) -> u64 {
        word >> 8 & 0xffff
    }

    /// log2 of the slots' bytes.
    pub const fn log2(word: u64) -> u32 {
        (word & 0xff) as u32
    }
}

/// Recently freed block: 2 words.
pub mod freed {
    /// Words per row.
    pub const WORDS: usize = 2;
    /// log2 of the rows of a part: 64 KiB, less than a processor's own cache,
    /// because every free writes to it.
    pub const LOG2_COUNT: u32 = 12;
    /// Parts; threads that write to different ones do not wait for each other.
    pub const PARTS: usize = 16;
    /// Rows of all parts.
    pub const COUNT: usize = PARTS << LOG2_COUNT;
    /// Address.
    pub const ADDR: usize = 0;
    /// Allocating stack << 32 | freeing stack.
    pub const STACKS: usize = 1;
}

/// Free-site pair: 4 words.
pub mod pair {
    /// Words per row.
    pub const WORDS: usize = 4;
    /// log2 of the rows.
    pub const LOG2_COUNT: u32 = 16;
    /// Rows.
    pub const COUNT: usize = 1 << LOG2_COUNT;
    /// Allocating stack << 32 | freeing stack; 0 unused.
    pub const KEY: usize = 0;
    /// Sampled frees.
    pub const HITS: usize = 1;
    /// Sum of lifetimes, centiseconds.
    pub const LIFETIME: usize = 2;
}

/// Error row: 8 words.
pub mod error {
    /// Words per row.
    pub const WORDS: usize = 8;
    /// Rows.
    pub const COUNT: usize = 1024;
    /// Kind: [`DOUBLE_FREE`], [`INVALID_FREE`] or [`MISMATCHED`] |
    /// allocated family << 8 | released family << 16.
    pub const KIND: usize = 0;
    /// Address.
    pub const ADDR: usize = 1;
    /// Stack of the release.
    pub const STACK: usize = 2;
    /// Stack of the allocation.
    pub const ALLOCATED: usize = 3;
    /// Stack of the first free.
    pub const FREED: usize = 4;
    /// How often.
    pub const HITS: usize = 5;
    /// Freed twice.
    pub const DOUBLE_FREE: u64 = 1;
    /// Not the start of a block.
    pub const INVALID_FREE: u64 = 2;
    /// Wrong family.
    pub const MISMATCHED: u64 = 3;
}

/// Mapping row: 4 words.
pub mod mapping {
    /// Words per row.
    pub const WORDS: usize = 4;
    /// Rows.
    pub const COUNT: usize = 16384;
    /// Address.
    pub const ADDR: usize = 0;
    /// Length; 0 marks an unused row.
    pub const LEN: usize = 1;
    /// Stack.
    pub const STACK: usize = 2;
    /// [`APPLICATION`] or [`ALLOCATOR`].
    pub const KIND: usize = 3;
    /// Made by the program.
    pub const APPLICATION: u64 = 0;
    /// Made by the allocator's library for its heap and tables.
    pub const ALLOCATOR: u64 = 1;
}

/// Descriptors that are recorded: 0..this.
pub const FD_COUNT: usize = 65536;
/// Rows of [`Area::Big`].
pub const BIG_COUNT: usize = 4096;
/// Rows of [`Area::Roots`].
pub const ROOT_COUNT: usize = 1024;
/// Bytes of [`Area::Window`].
pub const WINDOW_BYTES: u64 = 1 << 20;
/// Bytes of [`Area::Strings`].
pub const STRING_BYTES: u64 = 2 << 20;
/// log2 of the node hash chains.
pub const LOG2_BUCKETS: u32 = 20;
/// Most stack nodes: ids have 28 bits, and this many cost 272 MiB.
pub const MAX_NODES: u64 = 1 << 24;

/// Smallest segment that can be laid out, bytes.
pub const MIN_SEGMENT: u64 = 32 << 20;
/// Segment size without limits: room for about 100 million live blocks. It
/// is address space, not memory.
pub const DEFAULT_SEGMENT: u64 = 6 << 30;

const fn page_up(bytes: u64) -> u64 {
    (bytes + PAGE - 1) & !(PAGE - 1)
}

/// Number of areas whose length does not depend on the segment's: those
/// before [`Area::Nodes`].
const FIXED: usize = Area::Nodes as usize;

/// Lengths of the fixed areas, bytes.
const FIXED_LEN: [u64; FIXED] = {
    let mut len = [0u64; FIXED];
    len[Area::Threads as usize] = (thread::COUNT * thread::WORDS * 8) as u64;
    len[Area::Modules as usize] = (module::COUNT * module::WORDS * 8) as u64;
    len[Area::Strings as usize] = STRING_BYTES;
    len[Area::Buckets as usize] = 4 << LOG2_BUCKETS;
    len[Area::Granules as usize] = (granule::COUNT * granule::WORDS * 8) as u64;
    len[Area::Freed as usize] = (freed::COUNT * freed::WORDS * 8) as u64;
    len[Area::Pairs as usize] = (pair::COUNT * pair::WORDS * 8) as u64;
    len[Area::Errors as usize] = (error::COUNT * error::WORDS * 8) as u64;
    len[Area::Mappings as usize] = (mapping::COUNT * mapping::WORDS * 8) as u64;
    len[Area::Fds as usize] = (FD_COUNT * 8) as u64;
    len[Area::Big as usize] = (BIG_COUNT * 16) as u64;
    len[Area::Roots as usize] = (ROOT_COUNT * 16) as u64;
    len[Area::Window as usize] = WINDOW_BYTES;
    let mut i = 0;
    while i < FIXED {
        len[i] = page_up(len[i]);
        i += 1;
    }
    len
};

/// Offsets of the fixed areas, then the offset of the first other one.
const FIXED_AT: [u64; FIXED + 1] = {
    let mut at = [HEADER_BYTES; FIXED + 1];
    let mut i = 0;
    while i < FIXED {
        at[i + 1] = at[i] + FIXED_LEN[i];
        i += 1;
    }
    at
};

/// Offsets and lengths of the areas; a pure function of the segment's length,
/// so neither side needs to believe the other. Most offsets are constants,
/// which the recorder's speed depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    len: u64,
    nodes: u64,
}

impl Layout {
    /// The layout of a segment of `len` bytes, or `None` below
    /// [`MIN_SEGMENT`] or above 1 TiB.
    pub const fn new(len: u64) -> Option<Layout> {
        if len < MIN_SEGMENT || len > 1 << 40 {
            return None;
        }
        let mut nodes = (len / 24) >> 4;
        if nodes > MAX_NODES {
            nodes = MAX_NODES;
        }
        let layout = Layout { len, nodes };
        if layout.area(Area::Heap).0 + PAGE > len {
            return None;
        }
        Some(layout)
    }

    /// Length of the segment, bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Never true; here because there is a length.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Offset from the segment's start and length of an area, bytes.
    #[inline(always)]
    pub const fn area(&self, area: Area) -> (u64, u64) {
        let nodes_at = FIXED_AT[FIXED];
        let nodes_len = page_up(self.nodes * 16);
        let seen_len = page_up(self.nodes);
        match area {
            Area::Nodes => (nodes_at, nodes_len),
            Area::Seen => (nodes_at + nodes_len, seen_len),
            Area::Heap => {
                let at = nodes_at + nodes_len + seen_len;
                (at, self.len.saturating_sub(at) & !(PAGE - 1))
            }
            fixed => (FIXED_AT[fixed as usize], FIXED_LEN[fixed as usize]),
        }
    }

    /// Stack nodes that fit.
    pub const fn nodes(&self) -> u32 {
        self.nodes as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Area; AREAS] = [
        Area::Threads,
        Area::Modules,
        Area::Strings,
        Area::Buckets,
        Area::Granules,
        Area::Freed,
        Area::Pairs,
        Area::Errors,
        Area::Mappings,
        Area::Fds,
        Area::Big,
        Area::Roots,
        Area::Window,
        Area::Nodes,
        Area::Seen,
        Area::Heap,
    ];

    #[test]
    fn areas_tile_the_segment() {
        for len in [MIN_SEGMENT, 64 << 20, (1 << 30) + 12345, DEFAULT_SEGMENT] {
            let layout = Layout::new(len).unwrap();
            let mut at = HEADER_BYTES;
            for area in ALL {
                let (start, bytes) = layout.area(area);
                assert_eq!(start, at);
                assert_eq!(bytes % PAGE, 0);
                at += bytes;
            }
            assert!(at <= len && len - at < PAGE, "{at} of {len}");
        }
        assert!(Layout::new(MIN_SEGMENT - 1).is_none());
    }
}
