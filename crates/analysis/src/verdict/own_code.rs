//! Which frame of a stack is the user's own code, and how to name it.

use leakscope_model::Frame;

/// Functions that only pass an allocation on: the C library's, and the
/// wrappers that well-known programs and libraries put around it.
const WRAPPERS: &[&str] = &[
    // The C library and its family.
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "valloc",
    "pvalloc",
    "strdup",
    "__strdup",
    "strndup",
    "__strndup",
    "wcsdup",
    "asprintf",
    "vasprintf",
    "__asprintf_chk",
    "__vasprintf_chk",
    "getline",
    "getdelim",
    "__getdelim",
    "mmap",
    "mmap64",
    "mremap",
    // gnulib and the GNU programs.
    "xmalloc",
    "xcalloc",
    "xrealloc",
    "xreallocarray",
    "xnmalloc",
    "xnrealloc",
    "xzalloc",
    "xcharalloc",
    "xmemdup",
    "xmemdup0",
    "xstrdup",
    "xstrndup",
    "xasprintf",
    "xvasprintf",
    "x2realloc",
    "x2nrealloc",
    "xmalloc0",
    "xmallocz",
    "emalloc",
    "ecalloc",
    "erealloc",
    "estrdup",
    "safe_malloc",
    "safe_calloc",
    "safe_realloc",
    "safe_strdup",
    "checked_malloc",
    "my_malloc",
    "mem_alloc",
    // GLib.
    "g_malloc",
    "g_malloc0",
    "g_malloc_n",
    "g_malloc0_n",
    "g_try_malloc",
    "g_try_malloc0",
    "g_realloc",
    "g_realloc_n",
    "g_try_realloc",
    "g_strdup",
    "g_strndup",
    "g_strdup_printf",
    "g_strdup_vprintf",
    "g_vasprintf",
    "g_memdup",
    "g_memdup2",
    "g_slice_alloc",
    "g_slice_alloc0",
    "g_aligned_alloc",
    "g_aligned_alloc0",
    // CPython.
    "_PyMem_RawMalloc",
    "_PyMem_RawCalloc",
    "_PyMem_RawRealloc",
    "PyMem_RawMalloc",
    "PyMem_RawCalloc",
    "PyMem_RawRealloc",
    "PyMem_Malloc",
    "PyMem_Calloc",
    "PyMem_Realloc",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "_PyObject_Malloc",
    "_PyObject_Calloc",
    "_PyObject_Realloc",
    // SQLite, Redis, nginx, jq, OpenSSL, FFmpeg, PHP, APR, libxml2.
    "sqlite3MemMalloc",
    "sqlite3MemRealloc",
    "sqlite3Malloc",
    "sqlite3MallocZero",
    "sqlite3_malloc",
    "sqlite3_malloc64",
    "sqlite3_realloc",
    "sqlite3_realloc64",
    "sqlite3Realloc",
    "mallocWithAlarm",
    "sqlite3DbMallocRaw",
    "sqlite3DbMallocRawNN",
    "sqlite3DbMallocZero",
    "sqlite3DbStrDup",
    "zmalloc",
    "zcalloc",
    "zrealloc",
    "ztrymalloc",
    "ztrycalloc",
    "zmalloc_usable",
    "ztrymalloc_usable",
    "zcalloc_usable",
    "ztrycalloc_usable",
    "zstrdup",
    "ngx_alloc",
    "ngx_calloc",
    "jv_mem_alloc",
    "jv_mem_alloc_unguarded",
    "jv_mem_calloc",
    "jv_mem_realloc",
    "jv_mem_strdup",
    "CRYPTO_malloc",
    "CRYPTO_zalloc",
    "CRYPTO_realloc",
    "CRYPTO_strdup",
    "av_malloc",
    "av_mallocz",
    "av_calloc",
    "av_realloc",
    "_emalloc",
    "_ecalloc",
    "_erealloc",
    "_estrdup",
    "xmlMemMalloc",
    "xmlMemRealloc",
    "xmlMemoryStrdup",
    "xmlStrdup",
    "xmlStrndup",
    // Rust's allocation shims.
    "__rust_alloc",
    "__rust_alloc_zeroed",
    "__rust_realloc",
    "__rdl_alloc",
    "__rdl_alloc_zeroed",
    "__rdl_realloc",
    "__rg_alloc",
    "__rg_alloc_zeroed",
    "__rg_realloc",
];

/// Path beginnings of the C++ and Rust standard libraries.
const LIBRARIES: &[&str] = &[
    "std::",
    "__gnu_cxx::",
    "core::",
    "alloc::",
    "hashbrown::",
    "__rustc::",
    "__rust_",
];

/// File names of the modules that hold a language's runtime.
const RUNTIMES: &[&str] = &[
    "libc.so.",
    "libc-2.",
    "ld-linux",
    "ld-2.",
    "libm.so.",
    "libdl.so.",
    "librt.so.",
    "libpthread.so.",
    "libpthread-2.",
    "libstdc++.so.",
    "libgcc_s.so.",
    "libc++.so.",
    "libc++abi.so.",
];

/// The innermost frame that is the user's own code: it has a function that is
/// no allocation wrapper, belongs to no standard library, and lies in no
/// runtime's module. Without such a frame the innermost one of a stripped
/// program, then the innermost one with a function (never start code),
/// then the innermost one of all.
pub fn own_frame(stack: &[Frame]) -> Option<&Frame> {
    let real = || {
        stack
            .iter()
            .filter(|frame| !frame.cut && !is_start_code(frame))
    };
    real()
        .find(|frame| is_own(frame))
        // A stripped program's own code has no names, but a module.
        .or_else(|| real().find(|frame| frame.function.is_none() && in_own_module(frame)))
        .or_else(|| real().find(|frame| frame.function.is_some()))
        .or_else(|| real().next())
        .or_else(|| stack.iter().find(|frame| !frame.cut))
}

/// Code that calls main or a thread's function: nobody's to change.
fn is_start_code(frame: &Frame) -> bool {
    const START: [&str; 10] = [
        "__libc_start_call_main",
        "__libc_start_main",
        "__libc_start_main_impl",
        "_start",
        "start_thread",
        "clone",
        "__clone",
        "clone3",
        "__clone3",
        "_dl_start_user",
    ];
    frame
        .function
        .as_deref()
        .is_some_and(|function| START.contains(&function))
}

/// True for a module that is no runtime library.
fn in_own_module(frame: &Frame) -> bool {
    let module = frame.module.as_deref().map_or("", base_name);
    !module.is_empty() && !RUNTIMES.iter().any(|runtime| module.starts_with(runtime))
}

fn is_own(frame: &Frame) -> bool {
    let Some(function) = frame.function.as_deref() else {
        return false;
    };
    let module = frame.module.as_deref().map_or("", base_name);
    if RUNTIMES.iter().any(|runtime| module.starts_with(runtime)) {
        return false;
    }
    let path = path(function);
    let unversioned = path.split('@').next().unwrap_or(path);
    !(WRAPPERS.contains(&unversioned)
        || path.starts_with("operator new")
        || LIBRARIES
            .iter()
            .any(|library| implementor(path).starts_with(library)))
}

/// Where [`own_frame`] is: `parse_header (http.c:214)`, with the module where
/// there is no file, the module and offset where there is no function.
/// `None` when nothing is known.
pub fn place(stack: &[Frame]) -> Option<String> {
    let frame = own_frame(stack)?;
    let module = frame.module.as_deref().map(base_name);
    match (&frame.function, &frame.file, frame.line) {
        (Some(function), Some(file), Some(line)) => Some(format!(
            "{} ({}:{line})",
            short_name(function),
            base_name(file)
        )),
        (Some(function), Some(file), None) => {
            Some(format!("{} ({})", short_name(function), base_name(file)))
        }
        (Some(function), None, _) => Some(match module {
            Some(module) => format!("{} (in {module})", short_name(function)),
            None => short_name(function),
        }),
        (None, ..) => match (module, frame.module_offset) {
            (Some(module), Some(offset)) => Some(format!("{module}+{offset:#x}")),
            _ => module.map(str::to_owned),
        },
    }
}

/// Longest name in a sentence, characters.
const LONGEST: usize = 80;

/// A function's name for a sentence: without parameters, return type and
/// Rust's hash; long template arguments become `…`.
pub fn short_name(function: &str) -> String {
    let path = path(function);
    if path.chars().count() <= LONGEST {
        return path.to_owned();
    }
    let mut short = String::new();
    let mut depth = 0_usize;
    let mut before = ' ';
    for c in path.chars() {
        match c {
            '<' => {
                if depth == 0 {
                    short.push_str("<…");
                }
                depth += 1;
            }
            '>' if before != '-' && depth > 0 => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            short.push(c);
        }
        before = c;
    }
    if short.chars().count() > LONGEST {
        short = short.chars().take(LONGEST - 1).collect();
        short.push('…');
    }
    short
}

/// The qualified name alone: `void a::b<int>::c<x>(int) const` is
/// `a::b<int>::c<x>`.
fn path(function: &str) -> &str {
    let bytes = function.as_bytes();
    let (mut start, mut end) = (0, bytes.len());
    let (mut depth, mut i) = (0_usize, 0);
    while let Some(&byte) = bytes.get(i) {
        let rest = bytes.get(i..).unwrap_or_default();
        if rest.starts_with(b"(anonymous namespace)") {
            i += "(anonymous namespace)".len();
            continue;
        }
        if depth == 0 && rest.starts_with(b"operator") && !is_word(bytes, i) {
            // Its name may hold any of the characters below, so it ends at
            // the parameters: the first parenthesis that is not `()` itself.
            let behind = i + "operator".len();
            let tail = bytes.get(behind..).unwrap_or_default();
            let skip = if tail.starts_with(b"()") { 2 } else { 0 };
            let parameters = tail.iter().skip(skip).position(|b| *b == b'(');
            end = parameters.map_or(end, |at| behind + skip + at);
            break;
        }
        match byte {
            b'<' | b'{' | b'[' => depth += 1,
            b'>' if i > 0 && bytes.get(i - 1) == Some(&b'-') => {}
            b'>' | b'}' | b']' => depth = depth.saturating_sub(1),
            b'(' if depth == 0 && i > start => {
                end = i;
                break;
            }
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b' ' if depth == 0 => start = i + 1,
            _ => {}
        }
        i += 1;
    }
    // Both lie behind or before an ASCII byte, so they are boundaries.
    let path = function.get(start..end).unwrap_or(function).trim();
    match path.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
            path
        }
        _ => path,
    }
}

/// True when byte `i` continues an identifier.
fn is_word(bytes: &[u8], i: usize) -> bool {
    let before = i.checked_sub(1).and_then(|i| bytes.get(i));
    before.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_')
}

/// Whose code a Rust path like `<a::T as core::clone::Clone>::clone` is: the
/// type's, unless that is a bare parameter, reference or slice of one.
fn implementor(path: &str) -> &str {
    let Some(inside) = path.strip_prefix('<') else {
        return path;
    };
    let kind = inside.trim_start_matches(['<', '&', '[', '(', '*']);
    let kind = ["mut ", "dyn ", "const "]
        .iter()
        .fold(kind, |kind, word| kind.strip_prefix(word).unwrap_or(kind));
    let name = kind.split([' ', '>', ']', ',']).next().unwrap_or(kind);
    let is_parameter = name.len() == 1 && name.bytes().all(|b| b.is_ascii_uppercase());
    match kind.split_once(" as ") {
        Some((_, interface)) if is_parameter => interface,
        _ => kind,
    }
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
