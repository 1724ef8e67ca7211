//! The allocation function's own frame, which valgrind's stacks have and
//! ours have not.

use leakscope_model::Family;

/// Functions whose frame valgrind shows innermost for a block of the family:
/// the ones that memcheck replaces (its `vg_replace_malloc.c` lists them).
pub(super) fn names(family: Family) -> &'static [&'static str] {
    match family {
        Family::Malloc => MALLOC,
        Family::New => NEW,
        Family::NewArray => NEW_ARRAY,
    }
}

const MALLOC: &[&str] = &[
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "valloc",
    "pvalloc",
];

/// Plain, nothrow, aligned, aligned nothrow; mangled, then demangled.
const NEW: &[&str] = &[
    "_Znwm",
    "_ZnwmRKSt9nothrow_t",
    "_ZnwmSt11align_val_t",
    "_ZnwmSt11align_val_tRKSt9nothrow_t",
    "operator new(unsigned long)",
    "operator new(unsigned long, std::nothrow_t const&)",
    "operator new(unsigned long, std::align_val_t)",
    "operator new(unsigned long, std::align_val_t, std::nothrow_t const&)",
    // What memcheck's replacements are called before valgrind 3.17.
    "__builtin_new",
];

const NEW_ARRAY: &[&str] = &[
    "_Znam",
    "_ZnamRKSt9nothrow_t",
    "_ZnamSt11align_val_t",
    "_ZnamSt11align_val_tRKSt9nothrow_t",
    "operator new[](unsigned long)",
    "operator new[](unsigned long, std::nothrow_t const&)",
    "operator new[](unsigned long, std::align_val_t)",
    "operator new[](unsigned long, std::align_val_t, std::nothrow_t const&)",
    "__builtin_vec_new",
];

/// Where valgrind's replacement lives; `obj:` lines may name it.
pub(super) const MODULES: &[&str] = &[
    "/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so",
    "/usr/lib/valgrind/vgpreload_memcheck-amd64-linux.so",
];

/// The mangled name that a generated suppression begins with.
pub(super) fn typical(family: Family) -> &'static str {
    match family {
        Family::Malloc => "malloc",
        Family::New => "_Znwm",
        Family::NewArray => "_Znam",
    }
}

/// True for the name of any allocation function.
pub(super) fn is_allocator(name: &str) -> bool {
    let lists = [MALLOC, NEW, NEW_ARRAY];
    lists.iter().any(|names| names.contains(&name))
}
