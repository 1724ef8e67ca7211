//! Blocks that the C, C++ and Rust runtimes keep until the end on purpose.
//!
//! What an entry must show: the block is made *by the runtime, for itself*;
//! the program is never handed it to free. Its innermost frame therefore lies
//! in the runtime's own library (`modules`), except for Rust's, which is
//! linked into the program and told by its reserved names. No entry hides a
//! definite or indirect loss: where a program really loses something through
//! a runtime, it shows. And an entry for reachable blocks always names its
//! modules, or every reachable block's stack would need symbols to be judged.
//!
//! Debian's libraries have names for exported functions only, unless debug
//! symbols are installed, so stacks name exported ones where they can.
//! Sources: glibc 2.36 and what its `__libc_freeres` releases, libstdc++ 12's
//! `eh_alloc.cc`, Rust 1.95's `library/std`; each was seen in valgrind with
//! `--run-libc-freeres=no --run-cxx-freeres=no` where the line says "seen".

use super::matching::{Line, Rule};
use super::parse::parse_stack_line;
use super::pattern::Glob;
use super::{KindSet, Suppression};
use leakscope_model::LossKind::{self, Possible, Reachable};

/// The [`Suppression::origin`] of built-in ones.
pub(super) const ORIGIN: &str = "builtin";

/// A built-in suppression.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// Its name in reports.
    pub name: &'static str,
    /// Why these blocks are harmless.
    pub reason: &'static str,
    /// The kinds that it hides.
    pub kinds: &'static [LossKind],
    /// File names (with wildcards) of which the innermost frame's module must
    /// be one; empty for any.
    pub modules: &'static [&'static str],
    /// Call stacks as in valgrind's language, without the allocation
    /// function; one must match.
    pub stacks: &'static [&'static [&'static str]],
}

/// The C library; before glibc 2.34 in several files.
const LIBC: &[&str] = &["libc.so.*", "libc-2.*.so", "libdl.so.*", "libdl-2.*.so"];

/// The dynamic loader.
const LOADER: &[&str] = &["ld-linux*.so.*", "ld-2.*.so"];

/// All built-in suppressions.
pub const BUILTINS: &[Builtin] = &[
    Builtin {
        name: "libstdc++ emergency exception pool",
        reason: "72,704 bytes set aside when the library is loaded, so that an exception can be \
                 thrown when memory has run out; never released (seen)",
        kinds: &[Reachable],
        modules: &["libstdc++.so.*"],
        // Without symbols: allocated by a constructor of the library, which
        // the loader calls.
        stacks: &[
            &["obj:*/libstdc++.so.*", "obj:*/ld-*.so*"],
            &["...", "fun:_GLOBAL__sub_I_eh_alloc.cc"],
        ],
    },
    Builtin {
        name: "glibc thread control data",
        reason: "the vector of thread-local blocks of a thread that still runs or whose stack is \
                 cached; the thread control block points behind its first entry, hence \
                 'possible' (seen)",
        kinds: &[Possible, Reachable],
        modules: LOADER,
        stacks: &[
            &["...", "fun:pthread_create"],
            &["...", "fun:__pthread_create_2_1"],
            &["...", "fun:__tls_get_addr"],
        ],
    },
    Builtin {
        name: "dynamic loader",
        reason: "descriptions, search paths and scopes of loaded libraries, kept in the loader's \
                 own lists while they are loaded; the program holds opaque handles. The table \
                 that unwinders ask for an address's library is 'possible': the loader keeps \
                 only the aligned address inside its block (seen)",
        kinds: &[Possible, Reachable],
        modules: LOADER,
        stacks: &[&["obj:*/ld-*.so*"]],
    },
    Builtin {
        name: "glibc dlerror state",
        reason: "each thread's result of its last dlopen or dlsym, overwritten by the next one \
                 and released at thread exit (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:_dlerror_run"],
            &["...", "fun:dlopen"],
            &["...", "fun:dlmopen"],
            &["...", "fun:dlsym"],
            &["...", "fun:dlvsym"],
            &["...", "fun:dlclose"],
            &["...", "fun:dlerror"],
        ],
    },
    Builtin {
        name: "glibc stdio buffers",
        reason: "the buffer of an open stream belongs to the stream; stdout's is never released. \
                 A stream that was not closed still shows by its FILE and its descriptor (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[&["fun:_IO_file_doallocate"], &["fun:_IO_wfile_doallocate"]],
    },
    Builtin {
        name: "glibc locale data",
        reason: "loaded locales and their names are cached for all later calls; the object that \
                 newlocale hands out, allocated by newlocale itself, is not meant (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:setlocale"],
            &["obj:*/libc*.so*", "obj:*/libc*.so*", "...", "fun:newlocale"],
            &[
                "obj:*/libc*.so*",
                "obj:*/libc*.so*",
                "...",
                "fun:__newlocale",
            ],
        ],
    },
    Builtin {
        name: "glibc character conversion tables",
        reason: "the list of converters and the current locale's, read once and cached",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:__wcsmbs_load_conv"],
            &["...", "fun:__gconv_find_transform"],
            &["...", "fun:__gconv_load_conf"],
            &["...", "fun:__gconv_read_conf"],
            &["...", "fun:__gconv_find_shlib"],
        ],
    },
    Builtin {
        name: "glibc message catalogues",
        reason: "gettext's domains and translations stay loaded",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:__dcigettext"],
            &["...", "fun:bindtextdomain"],
            &["...", "fun:textdomain"],
        ],
    },
    Builtin {
        name: "glibc name service switch",
        reason: "/etc/nsswitch.conf as read, and the modules that it names (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[&["...", "fun:__nss_*"]],
    },
    Builtin {
        name: "glibc buffers of the user and host databases",
        reason: "functions without _r return a static buffer, grown with realloc and reused by \
                 the next call (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["fun:getpwnam"],
            &["fun:getpwuid"],
            &["fun:getpwent"],
            &["fun:getspnam"],
            &["fun:getgrnam"],
            &["fun:getgrgid"],
            &["fun:getgrent"],
            &["fun:gethostbyname"],
            &["fun:gethostbyname2"],
            &["fun:gethostbyaddr"],
            &["fun:gethostent"],
            &["fun:getnetbyname"],
            &["fun:getnetbyaddr"],
            &["fun:getservbyname"],
            &["fun:getservbyport"],
            &["fun:getservent"],
            &["fun:getprotobyname"],
            &["fun:getprotobynumber"],
        ],
    },
    Builtin {
        name: "glibc resolver state",
        reason: "/etc/resolv.conf as read, and the list of local addresses (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:__resolv_*"],
            &["...", "fun:__res_*"],
            &["...", "fun:__check_pf"],
        ],
    },
    Builtin {
        name: "glibc environment",
        reason: "setenv copies its arguments into the environment, from which the C standard \
                 gives no way to release them (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:__add_to_environ"],
            &["...", "fun:setenv"],
            &["...", "fun:putenv"],
        ],
    },
    Builtin {
        name: "glibc time zone",
        reason: "the time zone's rules, read once by localtime and its kin (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:tzset"],
            &["...", "fun:tzset_internal"],
            &["...", "fun:__tz_convert"],
            &["...", "fun:mktime"],
        ],
    },
    Builtin {
        name: "glibc exit handlers",
        reason: "the list of functions to call at exit, being called while we look (seen)",
        kinds: &[Reachable],
        modules: LIBC,
        stacks: &[
            &["...", "fun:__new_exitfn"],
            &["...", "fun:__cxa_atexit"],
            &["...", "fun:__cxa_at_quick_exit"],
            &["...", "fun:__cxa_thread_atexit_impl"],
            &["...", "fun:on_exit"],
        ],
    },
    Builtin {
        name: "Rust thread handle",
        reason: "std keeps each running thread's own handle in a thread-local pointer past the \
                 reference counts, hence 'possible' (seen)",
        kinds: &[Possible],
        modules: &[],
        stacks: &[&["...", "fun:std::thread::current::init_current*"]],
    },
];

/// The built-in suppressions, ready for a [`super::SuppressionSet`]; one per
/// stack of [`BUILTINS`].
pub fn builtin() -> Vec<Suppression> {
    let mut all = Vec::new();
    for entry in BUILTINS {
        for stack in entry.stacks {
            // A test checks that each line is one.
            let lines: Vec<Line> = stack.iter().filter_map(|l| parse_stack_line(l)).collect();
            all.push(Suppression {
                name: entry.name.to_owned(),
                origin: ORIGIN.to_owned(),
                kinds: entry.kinds.iter().copied().collect::<KindSet>(),
                rule: Rule::Frames(lines),
                modules: entry.modules.iter().map(|m| Glob::new(m)).collect(),
            });
        }
    }
    all
}
