//! The recorder of this process: the segment, and what happens on each
//! event.

use crate::cell::{self, Cell, Inside, Waiting};
use crate::sampling::{self, SAMPLE};
use crate::{modules, real, stacks, sys, weak, x86_64};
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{
    AtomicU8, AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use leakscope_recorder_core::counters::{Slot, count_allocation};
use leakscope_recorder_core::freed::{self, Past};
use leakscope_recorder_core::heap::Heap;
use leakscope_recorder_core::lock;
use leakscope_recorder_core::rows::{self, Wrong};
use leakscope_recorder_core::table::{Entry, Inserted, Table};
use leakscope_recorder_core::unwind::{Captured, Context, RowCache};
use leakscope_wire::layout::{config, error, note, word};
use leakscope_wire::{Segment, entry};

/// Nothing happened yet.
const FRESH: u32 = 0;
/// One thread sets up.
const STARTING: u32 = 1;
/// Recording.
const READY: u32 = 2;
/// No longer recording: the process was judged and ends.
const CLOSED: u32 = 4;
/// Not recording: no supervisor, refused, or a child behind our back.
const OFF: u32 = 3;

static STATE: AtomicU32 = AtomicU32::new(FRESH);

/// Entries of the row cache: 16 bytes each, touched on use.
pub const ROW_ENTRIES: usize = 1 << 16;

/// Everything that is set once at start.
pub struct Recorder {
    pub segment: Segment<'static>,
    pub table: Table<'static>,
    pub rows: &'static [AtomicU64],
    pub config: u64,
    pub max_depth: u32,
    pub sample_bytes: u64,
    pub mmap_min: u64,
}

struct Global(UnsafeCell<MaybeUninit<Recorder>>);

// SAFETY: written once before STATE becomes READY, by the one thread that
// moved it to STARTING; only read afterwards.
unsafe impl Sync for Global {}

static RECORDER: Global = Global(UnsafeCell::new(MaybeUninit::uninit()));

/// 1 when the program has filtered its system calls: from then on none is
/// made.
pub static QUIET: AtomicU32 = AtomicU32::new(0);

/// Addresses of this process that a fork is copying: others wait longer.
pub static FORKING: AtomicU32 = AtomicU32::new(0);

/// Gives way while waiting for a shared table.
pub fn give_way() {
    if QUIET.load(Relaxed) != 0 {
        core::hint::spin_loop();
    } else if FORKING.load(Relaxed) != 0 {
        sys::pause_ms(1);
    } else {
        sys::sched_yield();
    }
}

/// Has the kernel give memory to pages of the segment at once, where it can
/// (Linux 5.14); else each is given when it is touched.
fn prepare(words: &[AtomicU64]) {
    if QUIET.load(Relaxed) == 0 {
        let at = words.as_ptr() as usize;
        sys::advise(at, words.len() * 8, sys::MADV_POPULATE_WRITE);
    }
}

/// The recorder, when it records.
#[inline(always)]
pub fn get() -> Option<&'static Recorder> {
    if STATE.load(Acquire) != READY {
        return None;
    }
    // SAFETY: READY means that it is written and never changes.
    Some(unsafe { (*RECORDER.0.get()).assume_init_ref() })
}

/// True for the caller that shall set up; once.
pub fn begin() -> bool {
    STATE
        .compare_exchange(FRESH, STARTING, Relaxed, Relaxed)
        .is_ok()
}

/// True before `begin`.
pub fn fresh() -> bool {
    STATE.load(Relaxed) == FRESH
}

/// Never record in this process.
pub fn turn_off() {
    STATE.store(OFF, Release);
}

/// Stops recording, for good: what happens from now on is not looked at. Not
/// for a vfork child, whose memory is its parent's.
pub fn close() {
    // Off stays off.
    let _ = STATE.compare_exchange(READY, CLOSED, Relaxed, Relaxed);
}

/// The recorder, also when it does not record any more.
pub fn get_even_closed() -> Option<&'static Recorder> {
    if !matches!(STATE.load(Acquire), READY | CLOSED) {
        return None;
    }
    // SAFETY: as in `get`; CLOSED comes after READY.
    Some(unsafe { (*RECORDER.0.get()).assume_init_ref() })
}

/// Starts to record.
pub fn start(segment: Segment<'static>, cache: &'static [AtomicU64]) {
    let heap = Heap::new(segment, give_way, prepare);
    let mut table = Table::new(segment, heap, give_way);
    let single = weak::single_threaded();
    if single != 0 {
        // SAFETY: glibc's variable of this name is a char that stays.
        table = table.alone_while(unsafe { AtomicU8::from_ptr(single as *mut u8) });
    }
    let recorder = Recorder {
        segment,
        table,
        rows: cache,
        config: segment.word(word::CONFIG).load(Relaxed),
        max_depth: segment.word(word::MAX_DEPTH).load(Relaxed) as u32,
        sample_bytes: segment.word(word::SAMPLE_BYTES).load(Relaxed),
        mmap_min: segment.word(word::MMAP_MIN).load(Relaxed),
    };
    // SAFETY: only the thread that moved STATE to STARTING comes here.
    unsafe { (*RECORDER.0.get()).write(recorder) };
    STATE.store(READY, Release);
}

/// Where a hook was called: the return address lies at `sp`.
#[derive(Clone, Copy)]
pub struct Place {
    pub sp: usize,
    pub bp: usize,
    pub bx: usize,
}

impl Place {
    /// Address behind the call instruction.
    #[inline(always)]
    pub fn return_address(&self) -> u64 {
        // SAFETY: `sp` is the stack pointer at the entry of a hook, where
        // the call instruction put the return address.
        unsafe { (self.sp as *const u64).read() }
    }

    #[inline(always)]
    fn context(&self) -> Context {
        Context {
            ip: self.return_address(),
            sp: self.sp as u64 + 8,
            bp: self.bp as u64,
            bx: self.bx as u64,
        }
    }
}

/// How a thread may take part in an event.
pub enum Access {
    /// Normally.
    Inside(&'static Recorder, Inside),
    /// It is inside the recorder already (signal handler): put off.
    Nested(&'static Recorder, &'static Cell),
    /// Its cell is gone already: events are counted without a stack.
    Late(&'static Recorder),
    /// Not recording.
    Off,
}

/// Enters the recorder for one event; `at` is the stack pointer at the entry
/// of the hook.
#[inline(always)]
pub fn access(at: usize) -> Access {
    if let Some(cell) = cell::current()
        && let Some(recorder) = get()
    {
        return match cell.enter(at) {
            Some(inside) => Access::Inside(recorder, inside),
            None => Access::Nested(recorder, cell),
        };
    }
    first_access(at)
}

#[cold]
#[inline(never)]
fn first_access(at: usize) -> Access {
    if fresh() {
        crate::init::start();
    }
    let Some(recorder) = get() else {
        return Access::Off;
    };
    let word = x86_64::thread_word();
    if word == cell::ENDED {
        return Access::Late(recorder);
    }
    if !cell::same_memory() {
        // A child that was forked without our handlers: it must not write
        // into its parent's segment.
        recorder
            .segment
            .word(word::NOTES)
            .fetch_or(note::RAW_FORK, Relaxed);
        turn_off();
        return Access::Off;
    }
    if word != 0 {
        return Access::Late(recorder);
    }
    let tcb = x86_64::thread_control_block();
    let Some(slot) = Slot::claim(recorder.segment, tcb) else {
        return Access::Late(recorder);
    };
    let process = recorder.segment.word(word::PID).load(Relaxed);
    let mut lot = first_lot(tcb ^ process << 32);
    // The first gap is drawn like any other: a thread may end within it.
    let gap = sampling::gap(recorder.sample_bytes, xorshift(&mut lot));
    let Some(cell) = cell::adopt(slot, lot, recorder.sample_bytes != 0) else {
        slot.retire();
        return Access::Late(recorder);
    };
    let Some(inside) = cell.enter(at) else {
        return Access::Off;
    };
    inside.quick().sample_left.store(gap, Relaxed);
    crate::init::watch_thread_end(cell);
    Access::Inside(recorder, inside)
}

/// The calling thread left the recorder by a longjmp, perhaps with a lock
/// held. Alone, it can only be its own.
pub fn abandoned() {
    if let Some(recorder) = get() {
        recorder.count(word::DROPPED);
        if alone() {
            recorder.table.unlock_all();
            lock::reset(recorder.segment.word(word::TABLES_LOCK));
        }
    }
}

/// True while the process has one thread (glibc since 2.32 knows).
#[inline(always)]
pub fn alone() -> bool {
    match weak::single_threaded() {
        0 => false,
        // SAFETY: glibc's variable `char __libc_single_threaded`.
        at => unsafe { (at as *const u8).read_volatile() != 0 },
    }
}

/// The state of a new thread's lot, which differs from that of one before it
/// with the same `seed` (control block and process: forked children have the
/// same threads).
fn first_lot(seed: u64) -> u32 {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    let mut mixed = THREADS
        .fetch_add(1, Relaxed)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(seed);
    // The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as u32 | 1
}

fn xorshift(state: &mut u32) -> u32 {
    // Marsaglia, Xorshift RNGs, 2003.
    let mut x = *state;
    x ^= x << 13;
    x ^= x >> 17;
    x ^= x << 5;
    *state = x;
    x
}

impl Recorder {
    /// Recorder time, centiseconds.
    #[inline(always)]
    pub fn clock(&self) -> u64 {
        self.segment.word(word::CLOCK).load(Relaxed)
    }

    pub fn count(&self, counter: usize) {
        self.segment.word(counter).fetch_add(1, Relaxed);
    }

    /// The call stack at `place`.
    #[inline(always)]
    pub fn capture(&'static self, inside: &mut Inside, place: Place) -> Captured {
        let host = modules::Host(self);
        let rows = RowCache::new(self.rows, modules::rows_epoch());
        let fields = inside.fields();
        let bounds = stacks::bounds(fields, place.sp as u64);
        let context = place.context();
        let captured = fields.last_stacks.capture(&context, bounds, &host, &rows);
        if captured.cut {
            self.count(word::CUT_STACKS);
        }
        if captured.deep {
            self.count(word::DEEP_STACKS);
        }
        captured
    }

    /// Live bytes that a recorded block of `size` counts for.
    #[inline(always)]
    fn stands_for(&self, size: u64) -> u64 {
        if self.sample_bytes == 0 {
            return size;
        }
        sampling::stands_for(size, self.sample_bytes)
    }

    fn slot(&self, inside: &mut Inside) -> Option<Slot<'static>> {
        Slot::at(self.segment, inside.fields().slot)
    }

    /// Sampled mode: true when an allocation of `size` bytes is to be
    /// recorded. Gaps between samples are exponential, so that each byte has
    /// the same chance.
    #[inline(always)]
    fn sampled(&self, inside: &mut Inside, size: u64) -> bool {
        if self.sample_bytes == 0 {
            return true;
        }
        let left = &inside.quick().sample_left;
        let now = left.load(Relaxed).saturating_sub_unsigned(size);
        if now > 0 {
            left.store(now, Relaxed);
            return false;
        }
        let lot = xorshift(&mut inside.fields().lot);
        left.store(sampling::gap(self.sample_bytes, lot), Relaxed);
        true
    }

    /// A block was made.
    #[inline(always)]
    pub fn allocated(
        &'static self,
        inside: &mut Inside,
        addr: u64,
        size: u64,
        family: u8,
        place: Place,
    ) {
        let quick = inside.quick();
        if quick.just_freed.load(Relaxed) == addr {
            quick.just_freed.store(0, Relaxed);
        }
        quick.last_alloc.store(addr, Relaxed);
        let f = inside.fields();
        f.last_size = size;
        f.last_family = family;
        if !self.sampled(inside, size) {
            if let Some(slot) = self.slot(inside) {
                count_allocation(slot.row(), size);
            }
            return;
        }
        // On its way while the stack is looked at.
        if let Some(line) = self.table.near(addr) {
            x86_64::prefetch(line.as_ptr() as usize);
        }
        let captured = self.capture(inside, place);
        // Inside operator new, but only the block that it returns: a failing
        // one allocates its exception there too.
        let family = if captured.boundary != 0 && real::in_operator_new(place.return_address()) {
            captured.boundary
        } else {
            family
        };
        inside.fields().last_family = family;
        self.insert(inside, addr, size, captured.stack, u32::from(family));
    }

    /// Adds a live block to the table and, first, to the sample's addresses.
    #[inline(always)]
    fn keep(&self, addr: u64, new: Entry) -> Inserted {
        if self.sample_bytes == 0 {
            return self.table.insert(addr, new);
        }
        SAMPLE.add(addr);
        let inserted = self.table.insert(addr, new);
        if inserted != Inserted::New {
            SAMPLE.remove(addr);
        }
        inserted
    }

    /// Removes a block that is `wanted` from both.
    #[inline(always)]
    fn forget(&self, addr: u64, wanted: impl FnOnce(&Entry) -> bool) -> Option<Entry> {
        let old = self.table.remove_if(addr, wanted)?;
        if self.sample_bytes != 0 {
            SAMPLE.remove(addr);
        }
        Some(old)
    }

    #[inline(always)]
    fn insert(&self, inside: &mut Inside, addr: u64, size: u64, stack: u32, family: u32) {
        let ignored = if inside.fields().lsan_off != 0 {
            entry::IGNORED
        } else {
            0
        };
        let birth = entry::birth_of(self.clock());
        let slot = self.slot(inside);
        let new = Entry {
            size,
            stack,
            flags: family | ignored,
            birth,
        };
        match self.keep(addr, new) {
            Inserted::New => {}
            Inserted::Replaced(old) => {
                // Its release was not seen, unless a realloc in another
                // thread is about to account for it.
                if old.flags & entry::MOVING == 0
                    && let Some(slot) = slot
                {
                    slot.live((self.stands_for(old.size) as i64).wrapping_neg());
                }
            }
            Inserted::Dropped => {
                self.count(word::DROPPED);
                self.segment
                    .word(word::NOTES)
                    .fetch_or(note::TABLE_FULL, Relaxed);
            }
        }
        if let Some(slot) = slot {
            slot.allocated(size, self.stands_for(size));
        }
    }

    /// operator new returned `addr`: the nested malloc has usually recorded
    /// it already.
    #[inline(always)]
    pub fn new_returned(
        &'static self,
        inside: &mut Inside,
        addr: u64,
        size: u64,
        family: u8,
        place: Place,
    ) {
        if inside.quick().last_alloc.load(Relaxed) == addr {
            let f = inside.fields();
            if f.last_family != family || f.last_size != size {
                self.amend(inside, addr, size, family, place);
            }
            return;
        }
        self.allocated(inside, addr, size, family, place);
    }

    /// The nested malloc recorded something else than the program asked for:
    /// a rounded size, or another family where the walk did not reach the
    /// operator (code without unwind information between).
    #[cold]
    fn amend(&'static self, inside: &mut Inside, addr: u64, size: u64, family: u8, place: Place) {
        let f = inside.fields();
        f.last_family = family;
        f.last_size = size;
        let Some(old) = self.forget(addr, |_| true) else {
            return;
        };
        let stack = self.capture(inside, place).stack;
        let flags = old.flags & !entry::FAMILY_MASK | u32::from(family);
        self.keep(
            addr,
            Entry {
                size,
                stack,
                flags,
                ..old
            },
        );
        if let Some(slot) = self.slot(inside) {
            slot.resized(
                (old.size, self.stands_for(old.size)),
                (size, self.stands_for(size)),
            );
        }
    }

    /// A block is about to be released by `family`.
    #[inline(always)]
    pub fn freed(&'static self, inside: &mut Inside, addr: u64, family: u8, place: Place) {
        // The allocator is about to look at the header that most keep there.
        x86_64::prefetch((addr as usize).wrapping_sub(16));
        match self.forget(addr, |_| true) {
            Some(old) => self.released(inside, addr, old, family, place),
            None if self.sample_bytes != 0 => self.unsampled_freed(inside),
            None => self.unknown_free(inside, addr, family, place),
        }
    }

    /// Counts the release of a block that was not sampled.
    #[inline(always)]
    pub fn unsampled_freed(&self, inside: &mut Inside) {
        if self.sample_bytes != 0
            && let Some(slot) = self.slot(inside)
        {
            slot.freed(0);
        }
    }

    #[inline(always)]
    fn released(
        &'static self,
        inside: &mut Inside,
        addr: u64,
        old: Entry,
        family: u8,
        place: Place,
    ) {
        if let Some(slot) = self.slot(inside) {
            slot.freed(self.stands_for(old.size));
        }
        // It may have been somebody's stack, in a mapping of its own.
        if old.size >= 64 << 10 {
            modules::stacks_changed();
        }
        let made_by = (old.flags & entry::FAMILY_MASK) as u8;
        let mut stack = 0;
        if made_by != family {
            stack = self.capture(inside, place).stack;
            self.wrong(
                error::MISMATCHED | u64::from(made_by) << 8 | u64::from(family) << 16,
                addr,
                stack,
                old.stack,
                0,
            );
        }
        if self.config & config::FREE_SITES != 0 {
            let lot = xorshift(&mut inside.fields().lot);
            if freed::wants_stack(&self.segment, old.stack, lot) {
                if stack == 0 {
                    stack = self.capture(inside, place).stack;
                }
                let age = self.clock().saturating_sub(entry::clock_of(old.birth));
                freed::count_pair(
                    &self.segment,
                    Past {
                        allocated: old.stack,
                        freed: stack,
                    },
                    age,
                );
            }
        }
        freed::remember(
            &self.segment,
            inside.fields().slot,
            addr,
            Past {
                allocated: old.stack,
                freed: stack,
            },
        );
    }

    #[cold]
    fn unknown_free(&'static self, inside: &mut Inside, addr: u64, family: u8, place: Place) {
        if self.segment.word(word::DROPPED).load(Relaxed) != 0 {
            // It may be a block whose allocation was lost.
            self.count(word::UNKNOWN_FREES);
            return;
        }
        let stack = self.capture(inside, place).stack;
        if let Some(past) = freed::recall(&self.segment, addr) {
            self.wrong(
                error::DOUBLE_FREE | u64::from(family) << 16,
                addr,
                stack,
                past.allocated,
                past.freed,
            );
        } else if let Some((_, inner)) = self.table.contains_inside(addr, 1 << 16) {
            self.wrong(
                error::INVALID_FREE | u64::from(family) << 16,
                addr,
                stack,
                inner.stack,
                0,
            );
        } else if modules::certainly_not_heap(addr, place.sp as u64) {
            self.wrong(
                error::INVALID_FREE | u64::from(family) << 16,
                addr,
                stack,
                0,
                0,
            );
        } else {
            self.count(word::UNKNOWN_FREES);
        }
    }

    #[cold]
    fn wrong(&self, kind: u64, addr: u64, stack: u32, allocated: u32, first: u32) {
        let wrong = Wrong {
            kind,
            addr,
            stack,
            allocated,
            freed: first,
        };
        rows::note_wrong(&self.segment, give_way, wrong);
    }

    /// A realloc of `addr` begins: marks it, so that whoever gets its address
    /// meanwhile can tell.
    pub fn moving(&self, inside: &mut Inside, addr: u64) -> Option<Entry> {
        let slot = u32::from(inside.fields().slot);
        let mut before = None;
        self.table.update(addr, |e| {
            before = Some(*e);
            e.flags |= entry::MOVING;
            e.birth = slot;
        });
        before
    }

    /// The realloc failed: the block is as it was.
    pub fn unmoved(&self, addr: u64, before: Entry) {
        self.table.update(addr, |e| {
            e.flags = before.flags;
            e.birth = before.birth;
        });
    }

    /// The realloc released `addr` (it moved, or shrank to nothing).
    pub fn moved_away(&self, inside: &mut Inside, addr: u64, before: Entry) {
        let slot = u32::from(inside.fields().slot);
        self.forget(addr, |e| e.flags & entry::MOVING != 0 && e.birth == slot);
        self.gone(inside, before);
    }

    /// Counts a block that a realloc gave back.
    pub fn gone(&self, inside: &mut Inside, before: Entry) {
        if let Some(slot) = self.slot(inside) {
            slot.freed(self.stands_for(before.size));
        }
    }

    /// A realloc of a block that another family made.
    #[cold]
    pub fn wrong_realloc(&'static self, inside: &mut Inside, addr: u64, old: Entry, place: Place) {
        let made_by = u64::from(old.flags & entry::FAMILY_MASK);
        let stack = self.capture(inside, place).stack;
        self.wrong(error::MISMATCHED | made_by << 8, addr, stack, old.stack, 0);
    }

    /// A release by realloc of an address that is not live.
    #[cold]
    pub fn unknown_realloc(&'static self, inside: &mut Inside, addr: u64, place: Place) {
        if self.sample_bytes == 0 {
            self.unknown_free(inside, addr, 0, place);
        }
    }

    /// An event that was put off, or that comes from a thread without a
    /// cell.
    pub fn plain_event(&self, slot: Option<Slot<'static>>, event: Waiting) {
        if self.sample_bytes != 0 && event.alloc {
            return;
        }
        if event.alloc {
            let birth = entry::birth_of(self.clock());
            let new = Entry {
                size: event.size,
                stack: 0,
                flags: 0,
                birth,
            };
            if self.keep(event.addr, new) == Inserted::Dropped {
                self.count(word::DROPPED);
            }
        }
        let old = if event.alloc {
            None
        } else {
            self.forget(event.addr, |_| true)
        };
        match (slot, event.alloc, old) {
            (Some(slot), true, _) => slot.allocated(event.size, event.size),
            (Some(slot), false, Some(old)) => slot.freed(self.stands_for(old.size)),
            (None, true, _) => {
                self.segment
                    .word(word::RETIRED_ALLOCATIONS)
                    .fetch_add(1, Relaxed);
                self.segment
                    .word(word::RETIRED_BYTES)
                    .fetch_add(event.size, Relaxed);
                self.segment
                    .word(word::LIVE_BYTES)
                    .fetch_add(event.size, Relaxed);
            }
            (None, false, Some(old)) => {
                self.segment.word(word::RETIRED_FREES).fetch_add(1, Relaxed);
                self.segment
                    .word(word::LIVE_BYTES)
                    .fetch_sub(self.stands_for(old.size), Relaxed);
            }
            (_, false, None) => {}
        }
    }

    /// Ends an event.
    #[inline(always)]
    pub fn leave(&'static self, inside: Inside) {
        inside.leave(|inside, event| {
            let slot = self.slot(inside);
            self.plain_event(slot, event);
        });
    }

    /// Puts an event off, or counts it as lost.
    #[cold]
    pub fn put_off(&self, cell: &Cell, event: Waiting) {
        if !cell.put_off(event) {
            self.count(word::DROPPED);
        }
    }
}
