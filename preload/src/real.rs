//! The functions behind the hooks: the next definition in the program's
//! search order, whichever allocator or library that is.

use crate::{hooks, weak};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

macro_rules! functions {
    ($($(#[$doc:meta])* $index:ident = $name:literal;)*) => {
        #[repr(usize)]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[derive(Clone, Copy)]
        enum Order { $($index),*, Count }
        $($(#[$doc])* pub const $index: usize = Order::$index as usize;)*
        const COUNT: usize = Order::Count as usize;
        static NAMES: [&CStr; COUNT] = [$($name),*];
    };
}

functions! {
    MALLOC = c"malloc";
    CALLOC = c"calloc";
    REALLOC = c"realloc";
    REALLOCARRAY = c"reallocarray";
    FREE = c"free";
    POSIX_MEMALIGN = c"posix_memalign";
    ALIGNED_ALLOC = c"aligned_alloc";
    MEMALIGN = c"memalign";
    VALLOC = c"valloc";
    PVALLOC = c"pvalloc";
    FREE_SIZED = c"free_sized";
    FREE_ALIGNED_SIZED = c"free_aligned_sized";
    MMAP = c"mmap";
    MMAP64 = c"mmap64";
    MUNMAP = c"munmap";
    MREMAP = c"mremap";
    DLCLOSE = c"dlclose";
    OPEN = c"open";
    OPEN64 = c"open64";
    OPENAT = c"openat";
    OPENAT64 = c"openat64";
    CREAT = c"creat";
    CREAT64 = c"creat64";
    SOCKET = c"socket";
    SOCKETPAIR = c"socketpair";
    ACCEPT = c"accept";
    ACCEPT4 = c"accept4";
    PIPE = c"pipe";
    PIPE2 = c"pipe2";
    DUP = c"dup";
    DUP2 = c"dup2";
    DUP3 = c"dup3";
    FCNTL = c"fcntl";
    FCNTL64 = c"fcntl64";
    EPOLL_CREATE = c"epoll_create";
    EPOLL_CREATE1 = c"epoll_create1";
    EVENTFD = c"eventfd";
    TIMERFD_CREATE = c"timerfd_create";
    SIGNALFD = c"signalfd";
    INOTIFY_INIT = c"inotify_init";
    INOTIFY_INIT1 = c"inotify_init1";
    MEMFD_CREATE = c"memfd_create";
    MKSTEMP = c"mkstemp";
    FOPEN = c"fopen";
    FOPEN64 = c"fopen64";
    FDOPEN = c"fdopen";
    TMPFILE = c"tmpfile";
    OPENDIR = c"opendir";
    CLOSE = c"close";
    FILENO = c"fileno";
    DIRFD = c"dirfd";
    EXIT_NOW = c"_exit";
    EXIT_NOW_C = c"_Exit";
    EXECVE = c"execve";
    EXECV = c"execv";
    EXECVP = c"execvp";
    EXECVPE = c"execvpe";
    FEXECVE = c"fexecve";
    EXECVEAT = c"execveat";
    EXECL = c"execl";
    EXECLP = c"execlp";
    EXECLE = c"execle";
    POSIX_SPAWN = c"posix_spawn";
    POSIX_SPAWNP = c"posix_spawnp";
    PRCTL = c"prctl";
    SYSCALL = c"syscall";
    SIGACTION = c"sigaction";
    SIGNAL = c"signal";
}

static REAL: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];

/// Set while a look-up runs, whose own allocations must not look up again.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

const RTLD_NEXT: *mut c_void = usize::MAX as *mut c_void;

/// Looks a name up in the program's search order behind this object.
fn next(name: &CStr) -> usize {
    let found = weak::dlsym();
    let found = if found != 0 { found } else { old_dlsym() };
    if found == 0 {
        return 0;
    }
    type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    // SAFETY: dlsym's C signature; it may be called at any time after
    // relocation, which has happened, or this code would not run.
    unsafe {
        let dlsym = core::mem::transmute::<usize, Dlsym>(found);
        let result = dlsym(RTLD_NEXT, name.as_ptr()) as usize;
        if result == 0 {
            forget_error();
        }
        result
    }
}

/// The malloc that the program's own calls reach.
pub fn first_malloc() -> usize {
    first(c"malloc").unwrap_or(hooks::malloc as *const () as usize)
}

/// Whether the program's own calls reach our operator new and delete.
pub fn operators_are_ours(own: (u64, u64)) -> bool {
    [c"_Znwm", c"_ZdlPv"]
        .into_iter()
        .filter_map(first)
        .all(|at| (own.0..own.1).contains(&(at as u64)))
}

/// The first definition of a name in the program's search order. Asked by way
/// of the program: RTLD_DEFAULT begins with the caller's own object where that
/// is linked with -Bsymbolic, as ours is. (And not by dlopen of nothing, which
/// aborts when the loader is at work.)
fn first(name: &CStr) -> Option<usize> {
    let (found, loaded) = (weak::dlsym(), weak::loaded_objects());
    if found == 0 || loaded == 0 {
        return None;
    }
    type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    // SAFETY: the loader's `struct r_debug` (link.h): a version in the first
    // eight bytes, then the list of objects, which begins with the program.
    // glibc's handles are these objects' addresses; dlsym as in `next`.
    let at = unsafe {
        let program = (loaded as *const *mut c_void).add(1).read();
        if program.is_null() {
            return None;
        }
        let dlsym = core::mem::transmute::<usize, Dlsym>(found);
        dlsym(program, name.as_ptr()) as usize
    };
    (at != 0).then_some(at)
}

/// dlsym of a glibc before 2.34 in a program without libdl: that library is
/// part of the same package, so it can be loaded.
#[cold]
fn old_dlsym() -> usize {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    let known = FOUND.load(Relaxed);
    if known != 0 || weak::libc_dlopen() == 0 || weak::libc_dlsym() == 0 {
        return known;
    }
    type Open = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
    type Sym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    /// RTLD_NOW | __RTLD_DLOPEN, as glibc's own callers pass it.
    const NOW: c_int = 0x8000_0002u32 as c_int;
    // SAFETY: the private signatures of glibc 2.2 to 2.33 (include/dlfcn.h).
    unsafe {
        let open = core::mem::transmute::<usize, Open>(weak::libc_dlopen());
        let sym = core::mem::transmute::<usize, Sym>(weak::libc_dlsym());
        let library = open(c"libdl.so.2".as_ptr(), NOW);
        if !library.is_null() {
            FOUND.store(sym(library, c"dlsym".as_ptr()) as usize, Relaxed);
        }
    }
    FOUND.load(Relaxed)
}

/// Drops the message of a failed look-up, which is not the program's.
fn forget_error() {
    let f = weak::dlerror();
    if f != 0 {
        // SAFETY: dlerror's C signature.
        unsafe { core::mem::transmute::<usize, extern "C" fn() -> *const c_char>(f)() };
    }
}

/// Looks the allocator up, before anything else can run into the hooks:
/// free first, since every look-up may free.
pub fn start() {
    for index in [FREE, MALLOC, CALLOC, REALLOC, POSIX_MEMALIGN] {
        get(index);
    }
}

/// The function at `index`, or 0 while it is being looked up or when the
/// program has none.
#[inline(always)]
pub fn get(index: usize) -> usize {
    match REAL.get(index) {
        Some(slot) => match slot.load(Relaxed) {
            0 => find(index),
            found => found,
        },
        None => 0,
    }
}

#[cold]
fn find(index: usize) -> usize {
    let (Some(slot), Some(name)) = (REAL.get(index), NAMES.get(index)) else {
        return 0;
    };
    // Looking malloc up may itself allocate and free: those calls find the
    // look-up under way, are served from the arena and freed nowhere.
    let ours = index <= FREE_ALIGNED_SIZED;
    if ours && LOOKING.swap(1, Acquire) != 0 {
        return 0;
    }
    let found = next(name);
    slot.store(found, Relaxed);
    if ours {
        LOOKING.store(0, Release);
    }
    found
}

/// For stubs: never 0 (a missing function answers -ENOSYS like the kernel).
pub extern "C" fn by_index(index: usize) -> usize {
    match get(index) {
        0 => missing as *const () as usize,
        found => found,
    }
}

extern "C" fn missing() -> isize {
    -1
}

macro_rules! operators {
    ($($slot:ident = $name:literal;)*) => {
        $(pub static $slot: AtomicUsize = AtomicUsize::new(0);)*
        fn operator_name(slot: &AtomicUsize) -> Option<&'static CStr> {
            $(if core::ptr::eq(slot, &raw const $slot) { return Some($name); })*
            None
        }
    };
}

operators! {
    ZNWM = c"_Znwm";
    ZNAM = c"_Znam";
    ZNWM_NOTHROW = c"_ZnwmRKSt9nothrow_t";
    ZNAM_NOTHROW = c"_ZnamRKSt9nothrow_t";
    ZNWM_ALIGN = c"_ZnwmSt11align_val_t";
    ZNAM_ALIGN = c"_ZnamSt11align_val_t";
    ZNWM_ALIGN_NOTHROW = c"_ZnwmSt11align_val_tRKSt9nothrow_t";
    ZNAM_ALIGN_NOTHROW = c"_ZnamSt11align_val_tRKSt9nothrow_t";
    ZDLPV = c"_ZdlPv";
    ZDAPV = c"_ZdaPv";
    ZDLPVM = c"_ZdlPvm";
    ZDAPVM = c"_ZdaPvm";
    ZDLPV_ALIGN = c"_ZdlPvSt11align_val_t";
    ZDAPV_ALIGN = c"_ZdaPvSt11align_val_t";
    ZDLPVM_ALIGN = c"_ZdlPvmSt11align_val_t";
    ZDAPVM_ALIGN = c"_ZdaPvmSt11align_val_t";
    ZDLPV_NOTHROW = c"_ZdlPvRKSt9nothrow_t";
    ZDAPV_NOTHROW = c"_ZdaPvRKSt9nothrow_t";
    ZDLPV_ALIGN_NOTHROW = c"_ZdlPvSt11align_val_tRKSt9nothrow_t";
    ZDAPV_ALIGN_NOTHROW = c"_ZdaPvSt11align_val_tRKSt9nothrow_t";
}

/// True for an address inside one of the original operators new (of
/// libstdc++ and libc++, whose code is shorter than this).
pub fn in_operator_new(pc: u64) -> bool {
    const CODE_BYTES: u64 = 192;
    [
        &ZNWM,
        &ZNAM,
        &ZNWM_NOTHROW,
        &ZNAM_NOTHROW,
        &ZNWM_ALIGN,
        &ZNAM_ALIGN,
        &ZNWM_ALIGN_NOTHROW,
        &ZNAM_ALIGN_NOTHROW,
    ]
    .iter()
    .any(|slot| {
        let start = slot.load(Relaxed) as u64;
        start != 0 && pc.wrapping_sub(start) < CODE_BYTES
    })
}

/// Finds the operator behind `slot`. A program that loaded its C++ library
/// privately (dlopen without RTLD_GLOBAL) has none in our search order: then
/// the loaded library is asked, and at last malloc and free stand in.
pub extern "C" fn find_operator(slot: &AtomicUsize) -> usize {
    let Some(name) = operator_name(slot) else {
        return missing as *const () as usize;
    };
    let mut found = next(name);
    for library in [c"libstdc++.so.6", c"libc++.so.1"] {
        if found == 0 {
            found = in_library(library, name);
        }
    }
    if found != 0 {
        slot.store(found, Relaxed);
        return found;
    }
    let is_new = name.to_bytes().starts_with(b"_Zn");
    let aligned = name.to_bytes().windows(5).any(|w| w == b"align");
    match (is_new, aligned) {
        (true, false) => crate::hooks::plain_new as *const () as usize,
        (true, true) => crate::hooks::plain_new_aligned as *const () as usize,
        (false, _) => get(FREE),
    }
}

/// A name in a library that is loaded already.
fn in_library(library: &CStr, name: &CStr) -> usize {
    let (open, sym) = (weak::dlopen(), weak::dlsym());
    if open == 0 || sym == 0 {
        return 0;
    }
    type Open = unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void;
    type Sym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;
    /// RTLD_NOLOAD | RTLD_LAZY: loads nothing.
    const LOADED: c_int = 5;
    // SAFETY: the C signatures of dlopen and dlsym.
    unsafe {
        let open = core::mem::transmute::<usize, Open>(open);
        let sym = core::mem::transmute::<usize, Sym>(sym);
        let handle = open(library.as_ptr(), LOADED);
        let found = if handle.is_null() {
            0
        } else {
            sym(handle, name.as_ptr()) as usize
        };
        if found == 0 {
            forget_error();
        }
        found
    }
}
