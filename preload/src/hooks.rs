//! The bodies of the hooks: forward, and tell the recorder.
//!
//! A release is recorded *before* the original runs, an allocation *after*
//! it: in between the address may belong to another thread.

use crate::cell::Waiting;
use crate::recorder::{self, Access, Place};
use crate::x86_64::{self, Saved};
use crate::{arena, ask, descriptors, exec, mappings, modules, quiet, real, sampling};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use leakscope_recorder_core::counters::count_release;
use leakscope_wire::entry::{FAMILY_MALLOC, FAMILY_MASK, FAMILY_NEW, FAMILY_NEW_ARRAY};

/// exit_group(2), for programs that call it by number.
const SYS_EXIT_GROUP: u64 = 231;
const MALLOC: u8 = FAMILY_MALLOC as u8;
const NEW: u32 = FAMILY_NEW;
const NEW_ARRAY: u32 = FAMILY_NEW_ARRAY;

/// Calls the original with up to four integer arguments.
macro_rules! original {
    ($index:expr, $($arg:expr),*) => {{
        let f = real::get($index);
        if f == 0 { None } else {
            original!(@call f, $($arg),*)
        }
    }};
    (@call $f:ident, $a:expr) => {{
        // SAFETY: the next definition of the hooked function, whose C
        // signature takes these integer-class arguments.
        Some(unsafe { core::mem::transmute::<usize, extern "C" fn(usize) -> usize>($f)($a) })
    }};
    (@call $f:ident, $a:expr, $b:expr) => {{
        // SAFETY: as above.
        Some(unsafe { core::mem::transmute::<usize, extern "C" fn(usize, usize) -> usize>($f)($a, $b) })
    }};
    (@call $f:ident, $a:expr, $b:expr, $c:expr) => {{
        // SAFETY: as above.
        Some(unsafe { core::mem::transmute::<usize, extern "C" fn(usize, usize, usize) -> usize>($f)($a, $b, $c) })
    }};
}

#[inline(always)]
fn made(addr: usize, size: usize, place: Place) {
    if addr == 0 || sampling::passes_over(addr as u64, size as u64) {
        return;
    }
    match recorder::access(place.sp) {
        Access::Inside(recorder, mut inside) => {
            recorder.allocated(&mut inside, addr as u64, size as u64, MALLOC, place);
            recorder.leave(inside);
        }
        other => aside(
            other,
            Waiting {
                alloc: true,
                addr: addr as u64,
                size: size as u64,
            },
        ),
    }
}

#[cold]
#[inline(never)]
fn aside(access: Access, event: Waiting) {
    match access {
        Access::Nested(recorder, cell) => recorder.put_off(cell, event),
        Access::Late(recorder) => recorder.plain_event(None, event),
        Access::Inside(..) | Access::Off => {}
    }
}

#[inline(always)]
fn release(addr: usize, place: Place) {
    if sampling::passes_over_free(addr as u64) {
        return;
    }
    match recorder::access(place.sp) {
        Access::Inside(recorder, mut inside) => {
            let just_freed = &inside.quick().just_freed;
            if just_freed.load(Relaxed) == addr as u64 {
                // operator delete recorded it with its own family.
                just_freed.store(0, Relaxed);
            } else {
                recorder.freed(&mut inside, addr as u64, MALLOC, place);
            }
            recorder.leave(inside);
        }
        other => aside(
            other,
            Waiting {
                alloc: false,
                addr: addr as u64,
                size: 0,
            },
        ),
    }
}

extern "C" fn malloc_body(
    size: usize,
    _: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    let at = match original!(real::MALLOC, size) {
        Some(at) => at,
        None => return arena::take(size, 16),
    };
    made(at, size, Place { sp, bp, bx });
    at
}

extern "C" fn calloc_body(
    count: usize,
    size: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    let total = count.saturating_mul(size);
    let at = match original!(real::CALLOC, count, size) {
        Some(at) => at,
        None => return arena::take(total, 16),
    };
    made(at, total, Place { sp, bp, bx });
    at
}

extern "C" fn free_body(addr: usize, _: usize, _: usize, bx: usize, sp: usize, bp: usize) {
    if addr == 0 || arena::owns(addr) {
        return;
    }
    release(addr, Place { sp, bp, bx });
    original!(real::FREE, addr);
}

extern "C" fn free_sized_body(addr: usize, size: usize, _: usize, bx: usize, sp: usize, bp: usize) {
    if addr == 0 || arena::owns(addr) {
        return;
    }
    release(addr, Place { sp, bp, bx });
    if original!(real::FREE_SIZED, addr, size).is_none() {
        original!(real::FREE, addr);
    }
}

extern "C" fn free_aligned_sized_body(
    addr: usize,
    align: usize,
    size: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) {
    if addr == 0 || arena::owns(addr) {
        return;
    }
    release(addr, Place { sp, bp, bx });
    if original!(real::FREE_ALIGNED_SIZED, addr, align, size).is_none() {
        original!(real::FREE, addr);
    }
}

fn resize(addr: usize, size: usize, place: Place, call: impl FnOnce() -> Option<usize>) -> usize {
    if arena::owns(addr) {
        let new = original!(real::MALLOC, size).unwrap_or_else(|| arena::take(size, 16));
        if new != 0 {
            let bytes = arena::size(addr).min(size);
            // SAFETY: both blocks hold at least `bytes` bytes.
            unsafe { core::ptr::copy_nonoverlapping(addr as *const u8, new as *mut u8, bytes) };
            made(new, size, place);
        }
        return new;
    }
    if addr == 0 {
        let at = call().unwrap_or_else(|| arena::take(size, 16));
        if !arena::owns(at) {
            made(at, size, place);
        }
        return at;
    }
    if let Some((_, row)) = sampling::outside(addr as u64) {
        let at = call().unwrap_or(0);
        if at != 0 || size == 0 {
            count_release(row);
        }
        made(at, size, place);
        return at;
    }
    let before = match recorder::access(place.sp) {
        Access::Inside(recorder, mut inside) => {
            let before = recorder.moving(&mut inside, addr as u64);
            match before {
                None => recorder.unknown_realloc(&mut inside, addr as u64, place),
                Some(old) if old.flags & FAMILY_MASK != FAMILY_MALLOC => {
                    recorder.wrong_realloc(&mut inside, addr as u64, old, place);
                }
                Some(_) => {}
            }
            recorder.leave(inside);
            before
        }
        Access::Late(_) | Access::Nested(..) => {
            let at = call().unwrap_or(0);
            if at != 0 || size == 0 {
                aside(
                    recorder::access(place.sp),
                    Waiting {
                        alloc: false,
                        addr: addr as u64,
                        size: 0,
                    },
                );
            }
            if at != 0 {
                aside(
                    recorder::access(place.sp),
                    Waiting {
                        alloc: true,
                        addr: at as u64,
                        size: size as u64,
                    },
                );
            }
            return at;
        }
        Access::Off => None,
    };
    let at = call().unwrap_or(0);
    if let Access::Inside(recorder, mut inside) = recorder::access(place.sp) {
        match before {
            Some(old) if at == 0 && size != 0 => recorder.unmoved(addr as u64, old),
            // In place, the new entry takes the old one's place; in a sample
            // there may be none.
            Some(old) if at == addr && recorder.sample_bytes == 0 => {
                recorder.gone(&mut inside, old);
            }
            Some(old) => recorder.moved_away(&mut inside, addr as u64, old),
            None if at != 0 || size == 0 => recorder.unsampled_freed(&mut inside),
            None => {}
        }
        if at != 0 {
            recorder.allocated(&mut inside, at as u64, size as u64, MALLOC, place);
        }
        recorder.leave(inside);
    }
    at
}

extern "C" fn realloc_body(
    addr: usize,
    size: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    resize(addr, size, Place { sp, bp, bx }, || {
        original!(real::REALLOC, addr, size)
    })
}

extern "C" fn reallocarray_body(
    addr: usize,
    count: usize,
    size: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    // The original would call realloc through our hook, and the block would
    // seem to be made by the C library.
    match count.checked_mul(size) {
        Some(total) => resize(addr, total, Place { sp, bp, bx }, || {
            original!(real::REALLOC, addr, total)
        }),
        None => original!(real::REALLOCARRAY, addr, count, size).unwrap_or(0),
    }
}

extern "C" fn posix_memalign_body(
    out: *mut usize,
    align: usize,
    size: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    const ENOMEM: usize = 12;
    let Some(result) = original!(real::POSIX_MEMALIGN, out as usize, align, size) else {
        return ENOMEM;
    };
    if result as i32 == 0 {
        // SAFETY: success means that the original stored the address there.
        made(unsafe { out.read() }, size, Place { sp, bp, bx });
    }
    result
}

fn aligned(index: usize, align: usize, size: usize, place: Place) -> usize {
    match original!(index, align, size) {
        Some(at) => {
            made(at, size, place);
            at
        }
        None => arena::take(size, align),
    }
}

extern "C" fn aligned_alloc_body(
    align: usize,
    size: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    aligned(real::ALIGNED_ALLOC, align, size, Place { sp, bp, bx })
}

extern "C" fn memalign_body(
    align: usize,
    size: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    aligned(real::MEMALIGN, align, size, Place { sp, bp, bx })
}

fn paged(index: usize, size: usize, place: Place) -> usize {
    match original!(index, size) {
        Some(at) => {
            made(at, size, place);
            at
        }
        None => arena::take(size, 4096),
    }
}

extern "C" fn valloc_body(
    size: usize,
    _: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    paged(real::VALLOC, size, Place { sp, bp, bx })
}

extern "C" fn pvalloc_body(
    size: usize,
    _: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    paged(real::PVALLOC, size, Place { sp, bp, bx })
}

x86_64::plain! {
    malloc => malloc_body;
    calloc => calloc_body;
    realloc => realloc_body;
    reallocarray => reallocarray_body;
    free => free_body;
    cfree => free_body;
    free_sized => free_sized_body;
    free_aligned_sized => free_aligned_sized_body;
    posix_memalign => posix_memalign_body;
    aligned_alloc => aligned_alloc_body;
    memalign => memalign_body;
    valloc => valloc_body;
    pvalloc => pvalloc_body;
}

/// 1 when the program has an operator new or delete of its own. Then some forms
/// come here, which call those, and others do not: a block could be made by a
/// form that is seen and released by one that is not. All are looked through,
/// and what counts is the malloc inside.
static OWN_OPERATORS: AtomicU32 = AtomicU32::new(0);

/// Says whether the program's operators are ours.
pub fn follow_operators(ours: bool) {
    OWN_OPERATORS.store(u32::from(!ours), Relaxed);
}

/// Whether operator new and delete are looked through.
#[inline(always)]
pub fn looks_through_operators() -> bool {
    OWN_OPERATORS.load(Relaxed) != 0
}

/// After the original operator new: records the block unless its malloc
/// did.
pub extern "C" fn new_done(
    addr: usize,
    size: usize,
    family: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) {
    if addr == 0 || looks_through_operators() {
        return;
    }
    if sampling::passes_over_new(addr as u64, size as u64) {
        return;
    }
    match recorder::access(sp) {
        Access::Inside(recorder, mut inside) => {
            let place = Place { sp, bp, bx };
            recorder.new_returned(&mut inside, addr as u64, size as u64, family as u8, place);
            recorder.leave(inside);
        }
        // Nested: the malloc inside was put off already.
        Access::Nested(..) | Access::Late(_) | Access::Off => {}
    }
}

/// Before the original operator delete.
pub extern "C" fn delete_begin(
    addr: usize,
    family: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) {
    if addr == 0 || arena::owns(addr) || looks_through_operators() {
        return;
    }
    if sampling::passes_over_delete(addr as u64) {
        return;
    }
    if let Access::Inside(recorder, mut inside) = recorder::access(sp) {
        // operator delete[] calls operator delete.
        let just_freed = &inside.quick().just_freed;
        if just_freed.load(Relaxed) != addr as u64 {
            recorder.freed(&mut inside, addr as u64, family as u8, Place { sp, bp, bx });
            just_freed.store(addr as u64, Relaxed);
        }
        recorder.leave(inside);
    }
}

/// Stands in for operator new in a program that has none to be found.
pub extern "C" fn plain_new(size: usize) -> usize {
    original!(real::MALLOC, size.max(1)).unwrap_or(0)
}

/// As [`plain_new`], aligned.
pub extern "C" fn plain_new_aligned(size: usize, align: usize) -> usize {
    original!(real::MEMALIGN, align, size.max(1)).unwrap_or(0)
}

x86_64::new! {
    _Znwm, 1, crate::real::ZNWM;
    _Znam, 2, crate::real::ZNAM;
    _ZnwmRKSt9nothrow_t, 1, crate::real::ZNWM_NOTHROW;
    _ZnamRKSt9nothrow_t, 2, crate::real::ZNAM_NOTHROW;
    _ZnwmSt11align_val_t, 1, crate::real::ZNWM_ALIGN;
    _ZnamSt11align_val_t, 2, crate::real::ZNAM_ALIGN;
    _ZnwmSt11align_val_tRKSt9nothrow_t, 1, crate::real::ZNWM_ALIGN_NOTHROW;
    _ZnamSt11align_val_tRKSt9nothrow_t, 2, crate::real::ZNAM_ALIGN_NOTHROW;
}

x86_64::delete! {
    _ZdlPv, 1, crate::real::ZDLPV;
    _ZdaPv, 2, crate::real::ZDAPV;
    _ZdlPvm, 1, crate::real::ZDLPVM;
    _ZdaPvm, 2, crate::real::ZDAPVM;
    _ZdlPvSt11align_val_t, 1, crate::real::ZDLPV_ALIGN;
    _ZdaPvSt11align_val_t, 2, crate::real::ZDAPV_ALIGN;
    _ZdlPvmSt11align_val_t, 1, crate::real::ZDLPVM_ALIGN;
    _ZdaPvmSt11align_val_t, 2, crate::real::ZDAPVM_ALIGN;
    _ZdlPvRKSt9nothrow_t, 1, crate::real::ZDLPV_NOTHROW;
    _ZdaPvRKSt9nothrow_t, 2, crate::real::ZDAPV_NOTHROW;
    _ZdlPvSt11align_val_tRKSt9nothrow_t, 1, crate::real::ZDLPV_ALIGN_NOTHROW;
    _ZdaPvSt11align_val_tRKSt9nothrow_t, 2, crate::real::ZDAPV_ALIGN_NOTHROW;
}

const _: () = assert!(NEW == 1 && NEW_ARRAY == 2);

x86_64::after! {
    mmap => real::MMAP;
    mmap64 => real::MMAP64;
    mremap => real::MREMAP;
    dlclose => real::DLCLOSE;
    open => real::OPEN;
    open64 => real::OPEN64;
    openat => real::OPENAT;
    openat64 => real::OPENAT64;
    creat => real::CREAT;
    creat64 => real::CREAT64;
    socket => real::SOCKET;
    socketpair => real::SOCKETPAIR;
    accept => real::ACCEPT;
    accept4 => real::ACCEPT4;
    pipe => real::PIPE;
    pipe2 => real::PIPE2;
    dup => real::DUP;
    dup2 => real::DUP2;
    dup3 => real::DUP3;
    fcntl => real::FCNTL;
    fcntl64 => real::FCNTL64;
    epoll_create => real::EPOLL_CREATE;
    epoll_create1 => real::EPOLL_CREATE1;
    eventfd => real::EVENTFD;
    timerfd_create => real::TIMERFD_CREATE;
    signalfd => real::SIGNALFD;
    inotify_init => real::INOTIFY_INIT;
    inotify_init1 => real::INOTIFY_INIT1;
    memfd_create => real::MEMFD_CREATE;
    mkstemp => real::MKSTEMP;
    fopen => real::FOPEN;
    fopen64 => real::FOPEN64;
    fdopen => real::FDOPEN;
    tmpfile => real::TMPFILE;
    opendir => real::OPENDIR;
}

x86_64::around! {
    execve => real::EXECVE;
    execv => real::EXECV;
    execvp => real::EXECVP;
    execvpe => real::EXECVPE;
    fexecve => real::FEXECVE;
    execveat => real::EXECVEAT;
}

x86_64::before! {
    munmap => real::MUNMAP;
    close => real::CLOSE;
    _exit => real::EXIT_NOW;
    _Exit => real::EXIT_NOW_C;
    execl => real::EXECL;
    execlp => real::EXECLP;
    execle => real::EXECLE;
    posix_spawn => real::POSIX_SPAWN;
    posix_spawnp => real::POSIX_SPAWNP;
    prctl => real::PRCTL;
    syscall => real::SYSCALL;
}

/// What the generic stubs do before the original runs; returns the original.
pub extern "C" fn before(
    index: usize,
    saved: &mut Saved,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    let place = Place { sp, bp, bx };
    match index {
        real::MUNMAP => mappings::unmapped(saved.args[0], saved.args[1], place),
        real::CLOSE => descriptors::closed(saved.args[0]),
        real::EXIT_NOW | real::EXIT_NOW_C => ask::at_fast_exit(saved, place),
        real::EXECVE..=real::EXECLE => exec::about_to(index, saved, place),
        real::POSIX_SPAWN | real::POSIX_SPAWNP => exec::spawning(saved),
        real::PRCTL => quiet::prctl(saved.args[0]),
        real::SYSCALL if saved.args[0] == SYS_EXIT_GROUP => ask::at_fast_exit(saved, place),
        real::SYSCALL => quiet::syscall(saved.args),
        _ => {}
    }
    real::by_index(index)
}

/// What they do after it; returns its result.
pub extern "C" fn after(
    index: usize,
    saved: &Saved,
    result: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    let place = Place { sp, bp, bx };
    match index {
        real::MMAP | real::MMAP64 => mappings::mapped(saved, result as u64, place),
        real::MREMAP => mappings::remapped(saved, result as u64, place),
        real::DLCLOSE => modules::closed(),
        real::EXECVE..=real::EXECLE => exec::failed(),
        _ => descriptors::opened(index, saved, result as u64, place),
    }
    result
}
