//! Functions of the C library that may be missing, as weak references: the
//! loader fills them in. A look-up by name that fails would leave an error
//! message behind in the program's `dlerror`, and memory with it.

macro_rules! weak {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal;)*) => { $(
        $(#[$doc])*
        #[inline]
        pub fn $name() -> usize {
            let address: usize;
            // SAFETY: reads this symbol's word of the global offset table.
            unsafe {
                core::arch::asm!(
                    concat!(".weak ", $symbol),
                    concat!("mov {0}, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                    out(reg) address,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            address
        }
    )* };
}

weak! {
    /// dlsym(3): in libc since glibc 2.34, in libdl before.
    dlsym = "dlsym";
    /// dlopen(3), likewise.
    dlopen = "dlopen";
    /// dlerror(3), likewise.
    dlerror = "dlerror";
    /// glibc's private look-up, which is there without libdl before 2.34.
    libc_dlsym = "__libc_dlsym";
    /// Its companion.
    libc_dlopen = "__libc_dlopen_mode";
    /// The loader's list of objects, for debuggers: `struct r_debug` (link.h).
    loaded_objects = "_r_debug";
    /// glibc since 2.35.
    find_object = "_dl_find_object";
    /// End of the main thread's stack.
    stack_end = "__libc_stack_end";
    /// The C++ ABI's at_quick_exit.
    at_quick_exit = "__cxa_at_quick_exit";
    /// pthread_atfork's implementation.
    register_atfork = "__register_atfork";
    /// pthread_key_create(3): in libpthread before glibc 2.34.
    key_create = "pthread_key_create";
    /// pthread_setspecific(3), likewise.
    set_specific = "pthread_setspecific";
    /// glibc's variable that tells whether there is one thread, since 2.32.
    single_threaded = "__libc_single_threaded";
    /// The program's own suppressions.
    lsan_suppressions = "__lsan_default_suppressions";
    /// The program's own switch.
    lsan_turned_off = "__lsan_is_turned_off";
}
