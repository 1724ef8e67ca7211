//! One unwinding step in one word, and the shared cache of such words.
//!
//! ```text
//! row      cfa offset (28) << 36 | rbp offset (24) << 12 | own (6) << 6 | rbp rule (2) << 4 | kind (4)
//! entry    word 0   (module (16) << 48 | pc (48)) ^ mix(row ^ epoch)
//!          word 1   row
//! ```
//! Offsets are signed, in bytes. For the kinds that load the CFA from memory
//! the CFA offset is two: where to load (18 bits) << 10 | what to add (10 bits).
//!
//! An entry is two words that are written without a lock. A reader that meets
//! one word of one write and one of another computes a pc that is not the one
//! it asks for (but for one chance in 2^48), so it sees a miss.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How the canonical frame address (the caller's sp) is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// No way on from here.
    Stop = 0,
    /// sp + offset.
    Sp = 1,
    /// rbp + offset.
    Bp = 2,
    /// rbx + offset: rbx must be searched for.
    Bx = 3,
    /// *(sp + offset) + addend.
    SpLoad = 4,
    /// *(rbp + offset) + addend.
    BpLoad = 5,
    /// A signal trampoline: the next state is in the ucontext at sp.
    Signal = 6,
    /// No unwind information: rbp is taken for a frame pointer.
    FramePointer = 7,
    /// The outermost frame.
    End = 8,
}

/// Where the caller's rbp is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BpRule {
    /// Still in rbp.
    Same = 0,
    /// At CFA + offset.
    AtCfa = 1,
    /// At rbp + offset.
    AtBp = 2,
    /// Unknown.
    Lost = 3,
}

/// `own` of a frame that has an ordinary node.
pub(crate) const OWN_PLAIN: u8 = 0;
/// `own` of a frame without node.
pub(crate) const OWN_HIDDEN: u8 = 1;
/// `own` of a signal trampoline: whatever it interrupted does not apply to the handler.
pub(crate) const OWN_SIGNAL: u8 = 2;
/// `own` of an allocator boundary is this plus its kind.
pub(crate) const OWN_ALLOCATOR: u8 = 2;
/// Largest `own`.
pub(crate) const OWN_MAX: u8 = 63;

/// What rbp in a frame means to the frames outer to it. Compiled code mostly
/// keeps ordinary values in rbp, which differ at each event of the same stack;
/// where nothing outer is computed from it, it need not be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BpUse {
    /// The caller's state is computed from it.
    Needed = 0,
    /// The caller has it too, and needs it or passes it to one that may.
    Passed = 1,
    /// The caller has it too, but nothing is computed from it there or further out.
    PassedIdle = 2,
    /// Nothing outer depends on it.
    Idle = 3,
}

impl BpUse {
    /// Of the low two bits.
    pub(crate) const fn of(bits: u8) -> BpUse {
        match bits & 3 {
            0 => BpUse::Needed,
            1 => BpUse::Passed,
            2 => BpUse::PassedIdle,
            _ => BpUse::Idle,
        }
    }

    /// The same frame's under a caller that does (`idle`) or does not leave
    /// rbp alone.
    pub(crate) const fn under(self, idle: bool) -> BpUse {
        match self {
            BpUse::Passed | BpUse::PassedIdle if idle => BpUse::PassedIdle,
            BpUse::Passed | BpUse::PassedIdle => BpUse::Passed,
            other => other,
        }
    }

    /// Whether any other value of rbp leads to the same outer frames.
    pub(crate) const fn is_idle(self) -> bool {
        matches!(self, BpUse::PassedIdle | BpUse::Idle)
    }

    /// Whether the caller's rbp is this frame's.
    pub(crate) const fn is_passed(self) -> bool {
        matches!(self, BpUse::Passed | BpUse::PassedIdle)
    }
}

/// An unwinding step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row(pub(crate) u64);

impl Row {
    /// A step of `kind` without offsets.
    pub(crate) const fn plain(kind: Kind) -> Row {
        Row(kind as u64)
    }

    /// A step with one CFA offset; `None` if an offset does not fit.
    pub(crate) fn new(kind: Kind, cfa: i64, rule: BpRule, bp: i64) -> Option<Row> {
        if !fits(cfa, 28) || !fits(bp, 24) {
            return None;
        }
        Some(Row((cfa as u64) << 36
            | (bp as u64 & 0xff_ffff) << 12
            | (rule as u64) << 4
            | kind as u64))
    }

    /// A step whose CFA is `*(base + at) + add`.
    pub(crate) fn load(kind: Kind, at: i64, add: i64, rule: BpRule, bp: i64) -> Option<Row> {
        if !fits(at, 18) || !fits(add, 10) {
            return None;
        }
        Row::new(kind, at << 10 | (add & 0x3ff), rule, bp)
    }

    /// The same step with another `own`.
    pub(crate) const fn with_own(self, own: u8) -> Row {
        Row(self.0 & !(0x3f << 6) | ((own & 0x3f) as u64) << 6)
    }

    /// How the frame appears in the stack (`OWN_…`).
    pub(crate) const fn own(self) -> u8 {
        (self.0 >> 6) as u8 & 0x3f
    }

    pub(crate) const fn kind(self) -> Kind {
        match self.0 & 15 {
            1 => Kind::Sp,
            2 => Kind::Bp,
            3 => Kind::Bx,
            4 => Kind::SpLoad,
            5 => Kind::BpLoad,
            6 => Kind::Signal,
            7 => Kind::FramePointer,
            8 => Kind::End,
            _ => Kind::Stop,
        }
    }

    pub(crate) const fn bp_rule(self) -> BpRule {
        match self.0 >> 4 & 3 {
            0 => BpRule::Same,
            1 => BpRule::AtCfa,
            2 => BpRule::AtBp,
            _ => BpRule::Lost,
        }
    }

    /// What this step makes of rbp, as long as the caller is not known.
    pub(crate) const fn bp_use(self) -> BpUse {
        match (self.kind(), self.bp_rule()) {
            (Kind::Stop | Kind::Signal | Kind::End, _) => BpUse::Idle,
            (Kind::Sp | Kind::SpLoad | Kind::Bx, BpRule::AtCfa | BpRule::Lost) => BpUse::Idle,
            (Kind::Sp | Kind::SpLoad | Kind::Bx, BpRule::Same) => BpUse::Passed,
            _ => BpUse::Needed,
        }
    }

    /// CFA offset of the kinds without load.
    pub(crate) const fn cfa(self) -> i64 {
        self.0 as i64 >> 36
    }

    /// Where the kinds with load find their word.
    pub(crate) const fn load_at(self) -> i64 {
        self.0 as i64 >> 46
    }

    /// What the kinds with load add to it.
    pub(crate) const fn load_add(self) -> i64 {
        (self.0 << 18) as i64 >> 54
    }

    pub(crate) const fn bp(self) -> i64 {
        (self.0 << 28) as i64 >> 40
    }
}

/// Whether `value` is a signed number of `bits` bits.
const fn fits(value: i64, bits: u32) -> bool {
    let half = 1i64 << (bits - 1);
    -half <= value && value < half
}

/// Words of memory per cache entry.
const ENTRY_WORDS: usize = 2;
/// log2 of the entries in a page.
const PAGE_ENTRIES: u32 = 8;
/// log2 of the bytes of code that share a page of entries.
const CODE_PAGE: u32 = 12;

/// The cache of rows by pc. Shared by all threads of a process; direct mapped,
/// so a lost entry is found again by the slow path.
#[derive(Clone, Copy)]
pub struct RowCache<'a> {
    entries: &'a [AtomicU64],
    mask: usize,
    epoch: u64,
}

impl<'a> RowCache<'a> {
    /// Uses `entries` (zeroed at first; two words per entry, the rest beyond a
    /// power of two stays unused). `epoch` must change whenever the set of
    /// loaded modules did (`dlopen`, `dlclose`): entries of other epochs are misses.
    pub fn new(entries: &'a [AtomicU64], epoch: u64) -> Self {
        let count = entries.len() / ENTRY_WORDS;
        let power = match count.checked_ilog2() {
            Some(log) => 1usize << log,
            None => 0,
        };
        RowCache {
            entries,
            mask: power.wrapping_sub(1),
            epoch,
        }
    }

    /// The epoch of this view.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    #[inline]
    fn entry(&self, pc: u64) -> Option<(&'a AtomicU64, &'a AtomicU64)> {
        // One page of code has its entries in one page: a small program
        // touches few of the cache's pages for the first time.
        let page = (pc >> CODE_PAGE).wrapping_mul(MIX) >> 32 << PAGE_ENTRIES;
        let inside = pc.wrapping_mul(MIX) >> (64 - PAGE_ENTRIES);
        let at = ((page | inside) as usize & self.mask).wrapping_mul(ENTRY_WORDS);
        match self.entries.get(at..)?.first_chunk::<ENTRY_WORDS>()? {
            [key, row] => Some((key, row)),
        }
    }

    /// Module id and row of `pc`, if cached.
    #[inline]
    pub(crate) fn get(&self, pc: u64) -> Option<(u16, Row)> {
        let (key, row) = self.entry(pc)?;
        let row = row.load(Relaxed);
        let key = key.load(Relaxed) ^ mix(row, self.epoch);
        (key & PC_MASK == pc).then_some(((key >> 48) as u16, Row(row)))
    }

    /// Remembers the row of `pc`.
    pub(crate) fn put(&self, pc: u64, module: u16, row: Row) {
        if let Some((key, word)) = self.entry(pc) {
            word.store(row.0, Relaxed);
            let plain = u64::from(module) << 48 | (pc & PC_MASK);
            key.store(plain ^ mix(row.0, self.epoch), Relaxed);
        }
    }
}

const PC_MASK: u64 = (1 << 48) - 1;

/// 2^64 / golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads a difference anywhere in `row` or `epoch` over the low 48 bits. One
/// to one for a fixed epoch.
#[inline]
const fn mix(row: u64, epoch: u64) -> u64 {
    let product = (row ^ epoch.wrapping_mul(0xd6e8_feb8_6659_fd93)).wrapping_mul(MIX);
    product ^ product >> 32
}
