//! The functions behind the hooks: the next definition in the program's
//! search order, whichever allocator or library that is.

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
}

static REAL: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];

/// Set while a look-up runs, whose own allocations must not look up again.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
}

const RTLD_NEXT: *mut c_void = usize::MAX as *mut c_void;

/// True while the calling code runs inside a look-up of ours.
pub fn looking() -> bool {
    LOOKING.load(Relaxed) != 0
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
    if LOOKING.fetch_add(1, Acquire) > 64 {
        LOOKING.fetch_sub(1, Release);
        return 0;
    }
    // Looking up malloc may itself allocate: the allocation hooks then see
    // `looking` and serve from the arena.
    // SAFETY: dlsym may be called at any time after relocation, which has
    // happened, or this code would not run.
    let found = unsafe { dlsym(RTLD_NEXT, name.as_ptr()) } as usize;
    slot.store(found, Relaxed);
    LOOKING.fetch_sub(1, Release);
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

/// Finds the operator behind `slot`. A program that loaded its C++ library
/// privately (dlopen without RTLD_GLOBAL) has none in our search order: then
/// the loaded library is asked, and at last malloc and free stand in.
pub extern "C" fn find_operator(slot: &AtomicUsize) -> usize {
    let Some(name) = operator_name(slot) else {
        return missing as *const () as usize;
    };
    // SAFETY: as in `find`; RTLD_NOLOAD (4) | RTLD_LAZY (1) loads nothing.
    let found = unsafe {
        let mut found = dlsym(RTLD_NEXT, name.as_ptr());
        for library in [c"libstdc++.so.6", c"libc++.so.1"] {
            if found.is_null() {
                let handle = dlopen(library.as_ptr(), 5);
                if !handle.is_null() {
                    found = dlsym(handle, name.as_ptr());
                }
            }
        }
        found as usize
    };
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
