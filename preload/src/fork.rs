//! Fork: the child gets a segment of its own with a copy of the parent's
//! blocks and stacks, and never writes into its parent's.

use crate::cell;
use crate::init;
use crate::recorder::{self, FORKING, Recorder};
use crate::{sys, weak};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use leakscope_recorder_core::{lock, trie::Trie};
use leakscope_wire::Segment;
use leakscope_wire::hello::WHY_FORK;
use leakscope_wire::layout::{Area, config, error, granule, mapping, module, word};

/// Value of the parent's FORKED word while a child copies; then its turn.
static LOCKED: AtomicU32 = AtomicU32::new(0);

/// Values of the parent's FORK_DONE word: no child seen yet, it copies, it is
/// done.
const WAITING: u32 = 0;
const BEGUN: u32 = 2;
const DONE: u32 = 1;

/// Turns of 10 ms that a parent waits for its child to begin.
const PATIENCE_TO_BEGIN: u32 = 100;
/// Turns of 10 ms that a parent waits for its child's copy.
const PATIENCE: u32 = 1000;

type Register =
    extern "C" fn(extern "C" fn(), extern "C" fn(), extern "C" fn(), *mut c_void) -> c_int;

/// Registers the handlers: they also run for forks inside the C library
/// (daemon, forkpty), which no hook would see.
pub fn register() {
    let f = weak::register_atfork();
    if f != 0 {
        // SAFETY: the C signature of the function behind pthread_atfork.
        let f = unsafe { core::mem::transmute::<usize, Register>(f) };
        f(prepare, parent, child, core::ptr::null_mut());
    }
}

extern "C" fn prepare() {
    let Some(recorder) = following() else {
        return;
    };
    FORKING.fetch_add(1, Acquire);
    recorder
        .segment
        .futex(word::FORK_DONE)
        .store(WAITING, Relaxed);
    let all = recorder.table.lock_all()
        && lock::acquire(recorder.segment.word(word::TABLES_LOCK), recorder::give_way)
            .map(core::mem::forget)
            .is_some();
    LOCKED.store(u32::from(all), Relaxed);
}

extern "C" fn parent() {
    let Some(recorder) = following() else {
        return;
    };
    // Handlers of the program run after this one and may allocate, so the
    // tables must be free before it returns. It is not told whether the fork
    // failed: a child that has not begun after a while is taken for none.
    let done = recorder.segment.futex(word::FORK_DONE);
    for turn in 0..PATIENCE {
        match done.load(Acquire) {
            WAITING if turn >= PATIENCE_TO_BEGIN => break,
            WAITING => sys::futex_wait(done, WAITING, 10),
            BEGUN => sys::futex_wait(done, BEGUN, 10),
            _ => break,
        }
    }
    unlock(recorder);
    FORKING.fetch_sub(1, Release);
}

fn following() -> Option<&'static Recorder> {
    recorder::get().filter(|r| r.config & config::FOLLOW != 0)
}

fn unlock(recorder: &Recorder) {
    recorder.table.unlock_all();
    lock::reset(recorder.segment.word(word::TABLES_LOCK));
}

extern "C" fn child() {
    let Some(recorder) = recorder::get() else {
        return;
    };
    cell::forked();
    FORKING.store(0, Relaxed);
    let old = recorder.segment;
    if recorder.config & config::FOLLOW == 0 {
        recorder::turn_off();
        return;
    }
    old.futex(word::FORK_DONE).store(BEGUN, Release);
    let copied = LOCKED.load(Relaxed) != 0 && move_in(recorder).is_some();
    if copied {
        return;
    }
    old.word(word::LOST_CHILDREN).fetch_add(1, Relaxed);
    recorder::turn_off();
    tell_parent(&old);
}

fn tell_parent(old: &Segment<'_>) {
    let done = old.futex(word::FORK_DONE);
    done.store(DONE, Release);
    sys::futex_wake(done);
}

/// Gets a segment, copies what is needed, and maps it where the parent's
/// was, so that nothing else has to change.
fn move_in(recorder: &Recorder) -> Option<()> {
    let old = recorder.segment;
    let pid = old.word(word::PID).load(Relaxed);
    let (fd, len) = init::hello(&init::remembered(), WHY_FORK, pid)?;
    if len != old.layout().len() {
        sys::close(fd);
        return None;
    }
    let Some(new) = init::attach(fd, len, 0) else {
        sys::close(fd);
        return None;
    };
    copy(&old, &new);
    tell_parent(&old);
    let base = old.base() as usize;
    let moved = sys::map_shared(base, len as usize, fd).is_some();
    sys::unmap(new.base() as usize, len as usize);
    sys::close(fd);
    if !moved {
        return None;
    }
    sys::advise(base, len as usize, sys::MADV_DONTDUMP);
    Trie::new(old).rebuild_heads();
    recorder.table.unlock_all();
    lock::reset(old.word(word::TABLES_LOCK));
    init::claim(&old);
    Some(())
}

fn copy(old: &Segment<'_>, new: &Segment<'_>) {
    // The header's counters that describe what is copied.
    for index in [
        word::HEAP_NEXT,
        word::NODE_NEXT,
        word::STRING_NEXT,
        word::MODULE_NEXT,
        word::MAPPING_NEXT,
        word::LIVE_BYTES,
        word::PEAK_BYTES,
        word::RETIRED_ALLOCATIONS,
        word::RETIRED_FREES,
        word::RETIRED_BYTES,
        word::DROPPED,
        word::NOTES,
        word::LSAN_SUPPRESSIONS,
    ]
    .into_iter()
    .chain(word::FREE_LISTS..word::FREE_LISTS + 40)
    .chain(word::OWN..word::OWN + 2 * word::OWN_LEN)
    .chain(word::GROUPS..word::GROUPS + word::GROUPS_LEN)
    {
        new.word(index)
            .store(old.word(index).load(Relaxed), Relaxed);
    }
    inherit_threads(old, new);
    let count = |index: usize| old.word(index).load(Relaxed) as usize;
    words(old, new, Area::Nodes, count(word::NODE_NEXT) * 2);
    words(old, new, Area::Seen, count(word::NODE_NEXT) / 8 + 1);
    words(old, new, Area::Strings, count(word::STRING_NEXT) / 8 + 1);
    words(
        old,
        new,
        Area::Modules,
        count(word::MODULE_NEXT) * module::WORDS,
    );
    words(
        old,
        new,
        Area::Mappings,
        count(word::MAPPING_NEXT) * mapping::WORDS,
    );
    granules(old, new);
    words(old, new, Area::Heap, count(word::HEAP_NEXT) / 8);
    // Not the descriptors: what the child inherits, others opened.
    sparse(old, new, Area::Big);
    sparse(old, new, Area::Roots);
    const _: () = assert!(error::WORDS == 8);
}

/// Threads of the parent do not exist in the child: their counts go to the
/// totals.
fn inherit_threads(old: &Segment<'_>, new: &Segment<'_>) {
    use leakscope_wire::layout::thread;
    let mut live = 0i64;
    for row in old
        .words(Area::Threads)
        .chunks_exact(thread::WORDS)
        .take(old.word(word::THREAD_NEXT).load(Relaxed) as usize)
    {
        let at = |i: usize| row.get(i).map_or(0, |w: &AtomicU64| w.load(Relaxed));
        if at(thread::STATUS) != 1 {
            continue;
        }
        new.word(word::RETIRED_ALLOCATIONS)
            .fetch_add(at(thread::ALLOCATIONS), Relaxed);
        new.word(word::RETIRED_FREES)
            .fetch_add(at(thread::FREES), Relaxed);
        new.word(word::RETIRED_BYTES)
            .fetch_add(at(thread::BYTES), Relaxed);
        live += at(thread::DELTA) as i64;
    }
    let live = new
        .word(word::LIVE_BYTES)
        .fetch_add(live as u64, Relaxed)
        .wrapping_add(live as u64);
    new.word(word::PEAK_BYTES)
        .fetch_max((live as i64).max(0) as u64, Relaxed);
}

/// Copies the live-block table's directory. Only what is in use: reading what
/// is not would have the kernel give it memory.
fn granules(old: &Segment<'_>, new: &Segment<'_>) {
    const WORDS: usize = granule::GROUP * granule::WORDS;
    let groups = old.words(Area::Granules).chunks_exact(WORDS);
    let copies = new.words(Area::Granules).chunks_exact(WORDS);
    for (group, (from, to)) in groups.zip(copies).enumerate() {
        let bits = old.word(word::GROUPS + group / 64).load(Relaxed);
        if bits >> (group % 64) & 1 != 0 {
            for (f, t) in from.iter().zip(to) {
                t.store(f.load(Relaxed), Relaxed);
            }
        }
    }
}

/// Copies the first `count` words of an area, leaving zero pages untouched.
fn words(old: &Segment<'_>, new: &Segment<'_>, area: Area, count: usize) {
    let (from, to) = (old.words(area), new.words(area));
    for (from, to) in from
        .chunks(512)
        .zip(to.chunks(512))
        .take(count.div_ceil(512))
    {
        if from.iter().all(|w| w.load(Relaxed) == 0) {
            continue;
        }
        for (f, t) in from.iter().zip(to) {
            t.store(f.load(Relaxed), Relaxed);
        }
    }
}

/// Copies the front of an area up to its first empty page.
fn sparse(old: &Segment<'_>, new: &Segment<'_>, area: Area) {
    for (from, to) in old.words(area).chunks(512).zip(new.words(area).chunks(512)) {
        if from.iter().all(|w| w.load(Relaxed) == 0) {
            break;
        }
        for (f, t) in from.iter().zip(to) {
            t.store(f.load(Relaxed), Relaxed);
        }
    }
}
