//! What one thread needs: guard, pending events, its row of counters, its
//! last stack.
//!
//! Cells live in private memory that the kernel wipes in a forked child
//! (MADV_WIPEONFORK, Linux 4.14). A child made behind our back therefore
//! finds `live == 0` and stops, instead of writing into its parent's
//! segment.

use crate::stacks::Stacks;
use crate::{sys, x86_64};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{
    AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Acquire,
    Ordering::Relaxed, Ordering::Release, compiler_fence,
};
use leakscope_recorder_core::counters::{Row, Slot};
use leakscope_recorder_core::unwind::ThreadStacks;

/// Events that arrive while the thread is inside the recorder (a signal
/// handler that allocates) wait here.
pub const PENDING: usize = 24;

/// A waiting event.
#[derive(Clone, Copy)]
pub struct Waiting {
    /// True for an allocation.
    pub alloc: bool,
    /// Address.
    pub addr: u64,
    /// Size of an allocation.
    pub size: u64,
}

/// The fields; only the owning thread touches them (its signal handlers see
/// `busy` and keep to `pending`).
pub struct Fields {
    /// Position of the counters' row.
    pub slot: u16,
    /// Rounds of key destructors seen.
    pub rounds: u8,
    /// Depth of `__lsan_disable`.
    pub lsan_off: u32,
    /// Family of the latest allocation that was recorded.
    pub last_family: u8,
    /// Its size.
    pub last_size: u64,
    /// State of the lot.
    pub lot: u32,
    /// Waiting events.
    pub pending_len: u32,
    /// See `pending_len`.
    pub pending: [Waiting; PENDING],
    /// The thread's own stack.
    pub stacks: Stacks,
    /// The last stacks.
    pub last_stacks: ThreadStacks,
}

/// What may be used without entering the recorder, one word at a time: a signal
/// handler that comes between may cost a count, and nothing else.
#[repr(C)]
pub struct Quick {
    /// The row of counters; null unless this process is sampled.
    row: AtomicPtr<Row>,
    /// Bytes until the next sample.
    pub sample_left: AtomicI64,
    /// Address whose release was recorded by operator delete already.
    pub just_freed: AtomicU64,
    /// Address of the latest allocation.
    pub last_alloc: AtomicU64,
}

impl Quick {
    /// Counters of a thread whose process is sampled.
    #[inline(always)]
    pub fn row(&self) -> Option<&'static Row> {
        // SAFETY: `adopt` put it there, from a reference that stays good.
        unsafe { self.row.load(Relaxed).as_ref() }
    }
}

/// A thread's cell. All zero is a valid, dead cell.
#[repr(C)]
pub struct Cell {
    /// 1 while usable; wiped by fork.
    live: AtomicU32,
    /// Stack pointer at the hook through which the thread entered the
    /// recorder; 0 outside.
    busy: AtomicU64,
    /// See there.
    pub quick: Quick,
    fields: UnsafeCell<Fields>,
}

/// Where these lie in a cell; for assembly.
pub const LAST_ALLOC: usize = offset_of!(Cell, quick) + offset_of!(Quick, last_alloc);
/// See `LAST_ALLOC`.
pub const JUST_FREED: usize = offset_of!(Cell, quick) + offset_of!(Quick, just_freed);

/// Value of the thread word after the thread's destructors ran.
pub const ENDED: usize = 1;

/// First word of the reservation.
const CANARY: u32 = 0x6c65_616b;
/// The canary's page.
const HEAD_BYTES: usize = 4096;
const MAX_CELLS: usize = 2048;
/// Cells of this many threads may grow larger than others.
const FEW: usize = 16;
const CELL_BYTES: usize = (core::mem::size_of::<Cell>() + 4095) & !4095;

static BASE: AtomicUsize = AtomicUsize::new(0);
static CAPACITY: AtomicUsize = AtomicUsize::new(0);
/// 1 for each cell in use. Not in wiped memory: reset by `forked`.
static USED: [AtomicU32; MAX_CELLS] = [const { AtomicU32::new(0) }; MAX_CELLS];

/// True while the memory of the cells is the one this process made: false in
/// a forked child, true in a vfork child, which shares it.
pub fn same_memory() -> bool {
    let base = BASE.load(Acquire);
    // SAFETY: the first page of the reservation holds the canary.
    base != 0 && unsafe { (*(base as *const AtomicU32)).load(Relaxed) } == CANARY
}

/// Marks the memory as made by this process.
fn set_canary() {
    let base = BASE.load(Acquire);
    if base != 0 {
        // SAFETY: as above.
        unsafe { (*(base as *const AtomicU32)).store(CANARY, Relaxed) };
    }
}

/// Reserves address space for the cells; fewer when that is short.
pub fn reserve() -> Option<(u64, u64)> {
    // Under a limit, most of it stays the program's.
    let most = sys::address_space_limit() / 16 / CELL_BYTES as u64;
    let mut count = usize::try_from(most).map_or(MAX_CELLS, |most| most.clamp(2, MAX_CELLS));
    while count > 0 {
        let bytes = HEAD_BYTES + count * CELL_BYTES;
        if let Some(base) = sys::map_private(bytes) {
            if !sys::advise(base, bytes, sys::MADV_WIPEONFORK) {
                sys::unmap(base, bytes);
                return None;
            }
            CAPACITY.store(count, Relaxed);
            BASE.store(base, Release);
            set_canary();
            return Some((base as u64, (base + bytes) as u64));
        }
        count /= 4;
    }
    None
}

/// In a forked child: only this thread is left, and all cells were wiped.
pub fn forked() {
    for used in &USED {
        used.store(0, Relaxed);
    }
    set_canary();
    x86_64::set_thread_word(0);
}

/// The calling thread's cell, when it has a usable one.
#[inline(always)]
pub fn current() -> Option<&'static Cell> {
    let word = x86_64::thread_word();
    if word <= ENDED {
        return None;
    }
    // SAFETY: the word is only ever set to a cell's address by `adopt`.
    let cell = unsafe { &*(word as *const Cell) };
    (cell.live.load(Relaxed) != 0).then_some(cell)
}

/// What the calling thread may use without entering the recorder.
#[inline(always)]
pub fn quick() -> Option<&'static Quick> {
    let word = x86_64::thread_word();
    // SAFETY: as in `current`; what was wiped says that there is nothing to do.
    (word > ENDED).then(|| unsafe { &(*(word as *const Cell)).quick })
}

/// Gives the calling thread a cell with `slot` as its row of counters; `sampled`
/// if the process is.
pub fn adopt(slot: Slot<'static>, lot: u32, sampled: bool) -> Option<&'static Cell> {
    let base = BASE.load(Acquire);
    let capacity = CAPACITY.load(Relaxed).min(MAX_CELLS);
    if base == 0 {
        return None;
    }
    for (i, used) in USED.iter().enumerate().take(capacity) {
        if used.load(Relaxed) == 0 && used.compare_exchange(0, 1, AcqRel, Relaxed).is_ok() {
            let at = base + HEAD_BYTES + i * CELL_BYTES;
            // SAFETY: cell i lies inside the reservation and is ours alone
            // now; all-zero and formerly used bytes are both valid.
            let cell = unsafe { &*(at as *const Cell) };
            // SAFETY: nobody else has this cell.
            let f = unsafe { &mut *cell.fields.get() };
            f.slot = slot.index();
            f.rounds = 0;
            f.lsan_off = 0;
            f.last_size = 0;
            f.lot = lot | 1;
            f.pending_len = 0;
            f.stacks = Stacks::NONE;
            f.last_stacks.forget(i < FEW);
            let row = if sampled {
                (&raw const *slot.row()).cast_mut()
            } else {
                core::ptr::null_mut()
            };
            cell.quick.row.store(row, Relaxed);
            cell.quick.sample_left.store(0, Relaxed);
            cell.quick.just_freed.store(0, Relaxed);
            cell.quick.last_alloc.store(0, Relaxed);
            cell.busy.store(0, Relaxed);
            cell.live.store(1, Release);
            x86_64::set_thread_word(at);
            return Some(cell);
        }
    }
    None
}

impl Cell {
    /// Gives the cell back; the thread has ended.
    pub fn release(&self) {
        let at: *const Cell = self;
        let index = (at as usize).wrapping_sub(BASE.load(Relaxed) + HEAD_BYTES) / CELL_BYTES;
        self.live.store(0, Relaxed);
        self.quick.row.store(core::ptr::null_mut(), Relaxed);
        x86_64::set_thread_word(ENDED);
        if let Some(used) = USED.get(index) {
            used.store(0, Release);
        }
    }

    /// Enters the recorder by a hook called at stack pointer `at`; `None` when the thread is inside already.
    #[inline(always)]
    pub fn enter(&'static self, at: usize) -> Option<Inside> {
        if self.busy.load(Relaxed) != 0 && !self.recover(at as u64) {
            return None;
        }
        self.busy.store(at as u64, Relaxed);
        compiler_fence(AcqRel);
        Some(Inside(self))
    }

    /// True when the frame that entered the recorder is gone: a signal handler
    /// that interrupted it left by longjmp. Then this hook was entered at or
    /// above the place of that one, on the thread's own stack, where a frame
    /// lies below what it interrupted.
    #[cold]
    fn recover(&self, now: u64) -> bool {
        let entered = self.busy.load(Relaxed);
        // SAFETY: plain reads of a field of this thread, which the frame that
        // wrote it has left for good, or is not writing: it is below us.
        let stacks = unsafe { (&raw const (*self.fields.get()).stacks).read() };
        if now < entered || !stacks.owns(now) || !stacks.owns(entered) {
            return false;
        }
        // SAFETY: as above.
        unsafe { (*self.fields.get()).last_stacks.forget(false) };
        self.quick.just_freed.store(0, Relaxed);
        self.quick.last_alloc.store(0, Relaxed);
        self.pending_len().store(0, Relaxed);
        crate::recorder::abandoned();
        true
    }

    /// Puts off an event of a thread that is inside. False when there is no
    /// room.
    pub fn put_off(&self, event: Waiting) -> bool {
        let len = self.pending_len().load(Relaxed) as usize;
        if len >= PENDING {
            return false;
        }
        // SAFETY: runs in a signal handler of the owning thread, to its end;
        // entries from `len` on are not read by the interrupted code.
        unsafe {
            (&raw mut (*self.fields.get()).pending)
                .cast::<Waiting>()
                .add(len)
                .write_volatile(event);
        }
        compiler_fence(AcqRel);
        self.pending_len().store(len as u32 + 1, Relaxed);
        true
    }

    fn pending_len(&self) -> &AtomicU32 {
        // SAFETY: an aligned u32; this thread and its handlers only.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.fields.get()).pending_len) }
    }

    /// Raw access to a field set by program calls (`lsan_off`).
    pub fn lsan_depth(&self) -> &AtomicU32 {
        // SAFETY: an aligned u32 that only this thread accesses.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.fields.get()).lsan_off) }
    }
}

/// Proof that the thread is inside the recorder: every operation that could
/// recurse asks for it.
pub struct Inside(&'static Cell);

impl Inside {
    /// The thread's fields.
    #[inline(always)]
    pub fn fields(&mut self) -> &mut Fields {
        // SAFETY: `busy` is 1, so no handler of this thread makes another
        // reference, and no other thread has this cell.
        unsafe { &mut *self.0.fields.get() }
    }

    /// What needs no entering.
    #[inline(always)]
    pub fn quick(&self) -> &'static Quick {
        &self.0.quick
    }

    /// Leaves; events that were put off meanwhile are handed to `each` first,
    /// in their order.
    #[inline(always)]
    pub fn leave(self, each: impl FnMut(&mut Inside, Waiting)) {
        let cell = self.0;
        core::mem::forget(self);
        compiler_fence(AcqRel);
        cell.busy.store(0, Relaxed);
        compiler_fence(AcqRel);
        if cell.pending_len().load(Relaxed) != 0 {
            drain(cell, each);
        }
    }
}

#[cold]
fn drain(cell: &'static Cell, mut each: impl FnMut(&mut Inside, Waiting)) {
    // A handler may add more at any moment; bounded, since each round takes
    // at least one.
    for _ in 0..64 {
        let Some(mut inside) = cell.enter(x86_64::stack_pointer() as usize) else {
            return;
        };
        let mut done = 0;
        loop {
            let len = cell.pending_len().load(Relaxed);
            if done >= len.min(PENDING as u32) {
                // One instruction, so no handler comes between.
                if cell
                    .pending_len()
                    .compare_exchange(len, 0, Relaxed, Relaxed)
                    .is_ok()
                {
                    break;
                }
                continue;
            }
            let events = (&raw const inside.fields().pending).cast::<Waiting>();
            // SAFETY: done < PENDING; the entry was complete before the
            // length grew.
            let event = unsafe { events.add(done as usize).read_volatile() };
            each(&mut inside, event);
            done += 1;
        }
        drop(inside);
        if cell.pending_len().load(Relaxed) == 0 {
            return;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        compiler_fence(AcqRel);
        self.0.busy.store(0, Relaxed);
    }
}
