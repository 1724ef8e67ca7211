//! What kind of process it is: whose, which runtimes and allocators are in
//! it, and whether it can be examined at all.

use std::fs::File;
use std::io::Read;

use leakscope_heap::cpython::{self, Objects};
use leakscope_heap::{Heaps, Walked, pymalloc};
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{KindTotals, LiveBlock, Notice, Range, quantity};
use leakscope_proc::{ErrorKind, ProcRoot, Process};

use super::holders::Files;
use super::{CheckError, error, go};

/// Names and parent.
pub(super) struct Facts {
    pub pid: u32,
    pub parent: u32,
    pub exe: String,
    pub argv: Vec<String>,
    /// Where the names of its variables are.
    pub files: Files,
}

pub(super) fn facts(process: &Process) -> Facts {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let argv = process.cmdline().unwrap_or_default();
    let exe = process.exe().ok();
    Facts {
        pid: process.id(),
        parent: process.stat().map_or(0, |s| s.parent),
        files: Files {
            root: crate::image::has_other_root(process.id()).then(|| process.file("root")),
            exe: exe.clone().map(|exe| (exe, process.file("exe"))),
        },
        exe: exe.map(text).unwrap_or_default(),
        argv: argv.into_iter().map(text).collect(),
    }
}

/// The one process whose program's file, or whose name, is `name`.
///
/// # Errors
/// When there is none, or several: these are listed.
pub fn find_process(name: &[u8]) -> Result<u32, CheckError> {
    let root = ProcRoot::default();
    let own = std::process::id();
    let base = |path: &[u8]| path.rsplit(|b| *b == b'/').next().map(<[u8]>::to_vec);
    let named = |process: &Process| {
        let exe = process.exe().ok().and_then(|exe| base(&exe));
        let comm = process.stat().ok().map(|s| s.comm);
        exe.as_deref() == Some(name) || comm.as_deref() == Some(name)
    };
    let pids = root.pids().map_err(error)?;
    let found: Vec<u32> = pids
        .into_iter()
        .filter(|pid| *pid != own && named(&root.process(*pid)))
        .collect();
    let shown = String::from_utf8_lossy(name);
    match found.as_slice() {
        [] => Err(error(format!("no process is called '{shown}'"))),
        [only] => Ok(*only),
        several => {
            const LISTED: usize = 12;
            let mut listed: Vec<String> = several.iter().take(LISTED).map(u32::to_string).collect();
            if several.len() > LISTED {
                listed.push("…".to_owned());
            }
            Err(error(format!(
                "{} processes are called '{shown}': check one of {}",
                several.len(),
                listed.join(", ")
            )))
        }
    }
}

/// Refuses what cannot be examined, before anything is touched.
pub(super) fn refuse(process: &Process) -> Result<(), CheckError> {
    let pid = process.id();
    let stat = match process.stat() {
        Ok(stat) => stat,
        Err(e) if e.kind() == ErrorKind::Gone => {
            return Err(error(format!("there is no process {pid}")));
        }
        Err(e) => return Err(error(e)),
    };
    if stat.is_kernel_thread() {
        return Err(error(format!(
            "process {pid} is a thread of the kernel: it has no memory of its own"
        )));
    }
    if stat.is_dead() && process.tasks().map_or(0, |t| t.len()) <= 1 {
        return Err(error(format!(
            "process {pid} has ended already and waits for its parent (a zombie): its memory is \
             gone"
        )));
    }
    // The thread that leads another process is none itself.
    let leader = process.status().ok().and_then(|s| s.tgid);
    if let Some(leader) = leader.filter(|leader| *leader != pid) {
        return Err(error(format!(
            "{pid} is a thread of process {leader}: check {leader} instead"
        )));
    }
    // e_ident, e_type, e_machine (elf(5)). Who may not read it may not stop
    // the process either, and is told so there.
    let mut head = [0u8; 20];
    let read = File::open(process.file("exe")).and_then(|mut f| f.read_exact(&mut head));
    const X86_64: u16 = 62;
    let machine = u16::from_le_bytes([head[18], head[19]]);
    if read.is_ok() && head.starts_with(b"\x7fELF") && (head[4] != 2 || machine != X86_64) {
        return Err(error(format!(
            "process {pid} runs a program for another kind of processor (or a 32-bit one): only \
             x86-64 programs can be examined"
        )));
    }
    Ok(())
}

/// The recorder's memory, where one is in the process: never a root.
pub(super) fn recorder(map: &MemoryMap) -> Vec<Range> {
    let regions = map.regions().iter();
    let is_own = |path: &[u8]| {
        path.starts_with(b"/memfd:leakscope")
            || path.windows(OBJECT.len()).any(|part| part == OBJECT)
    };
    regions
        .filter(|r| is_own(&r.path))
        .map(|r| r.range)
        .collect()
}

const OBJECT: &[u8] = b"/leakscope-preload.so";

/// Allocators whose heaps are not walked, by the names of their libraries.
const ALLOCATORS: [(&str, &str); 4] = [
    ("libjemalloc", "jemalloc"),
    ("libmimalloc", "mimalloc"),
    ("libtcmalloc", "tcmalloc"),
    ("ld-musl-", "musl's malloc"),
];

/// Language runtimes with heaps of their own.
const RUNTIMES: [(&str, &str); 6] = [
    ("libjvm.so", "the Java virtual machine"),
    ("libpython", "CPython"),
    ("python3", "CPython"),
    ("libcoreclr.so", ".NET"),
    ("libnode.so", "Node.js"),
    ("node", "Node.js"),
];

/// CPython's objects among all blocks, where it is in the process.
pub(super) fn objects(memory: &dyn MemoryReader, heaps: &Heaps, blocks: &[LiveBlock]) -> Objects {
    let is_there = heaps.of(pymalloc::NAME).is_some() || pymalloc::is_named(memory.map());
    if is_there {
        cpython::find(memory, blocks)
    } else {
        Objects::default()
    }
}

/// Objects of an interpreter that has no pools of its own, at least.
const OBJECTS: usize = 1000;

/// In every look.
pub(super) fn collecting() -> Notice {
    Notice {
        code: "collector-at-work",
        message: "CPython's collector was at work in each look and kept its counts where links \
                  between objects were: nothing is called lost; check again"
            .to_owned(),
    }
}

fn changing(pools: &Walked) -> Notice {
    let bytes: u64 = pools.unwalked.iter().map(Range::len).sum();
    Notice {
        code: "pools-doubtful",
        message: format!(
            "{} of CPython's pools do not agree with themselves: what they hold counts as held",
            quantity::bytes(bytes)
        ),
    }
}

/// What else manages memory there: its heaps are roots.
pub(super) fn runtimes(
    memory: &dyn MemoryReader,
    unknown: u64,
    heaps: &Heaps,
    objects: usize,
    garbage: KindTotals,
) -> Vec<Notice> {
    let regions = memory.map().regions().iter();
    let mut names: Vec<String> = regions
        .filter(|r| r.exec && r.inode != 0)
        .filter_map(|r| {
            Some(String::from_utf8_lossy(r.path.rsplit(|b| *b == b'/').next()?).into_owned())
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut notices = Vec::new();
    if unknown > 0 {
        notices.push(Notice {
            code: "sparse-memory",
            message: format!(
                "{} of mappings, each above 64 GiB, were left alone: most of them was never \
                 touched, and reading them would fill the machine with page tables; what only \
                 they hold is called lost",
                quantity::bytes(unknown)
            ),
        });
    }
    for (library, allocator) in ALLOCATORS {
        if names.iter().any(|n| n.starts_with(library)) {
            notices.push(Notice {
                code: "foreign-allocator",
                message: format!(
                    "{allocator} is in the process, and its heaps cannot be walked yet: what it \
                     allocated counts as held, and only blocks of glibc's malloc are judged; start \
                     the program under 'leakscope run' to see all"
                ),
            });
        }
    }
    let pools = heaps.of(pymalloc::NAME);
    notices.extend(pools.filter(|pools| !pools.is_consistent()).map(changing));
    if garbage.blocks > 0 {
        notices.push(Notice {
            code: "uncollected-garbage",
            message: format!(
                "{} in {} are unreachable, but only cycles hold them, so CPython's collector will \
                 free them when it runs next: they count as reachable",
                quantity::bytes(garbage.bytes),
                quantity::counted(garbage.blocks, "block")
            ),
        });
    }
    // An interpreter has thousands of objects, so they were found.
    let known = pools.is_some() || objects >= OBJECTS;
    let managed = |runtime: &str| Notice {
        code: "managed-heap",
        message: format!(
            "{runtime} manages objects in memory of its own: that counts as held, whatever its \
             collector would say, and only blocks of malloc are judged"
        ),
    };
    if go::is_there(memory) {
        notices.push(managed("the Go runtime"));
    }
    let mut seen = Vec::new();
    for (name, runtime) in RUNTIMES {
        let found = |n: &String| match name {
            "node" => n == "node" || n == "nodejs",
            _ => n.starts_with(name),
        };
        if known && runtime == "CPython" {
            continue;
        }
        if names.iter().any(found) && !seen.contains(&runtime) {
            seen.push(runtime);
            notices.push(managed(runtime));
        }
    }
    notices
}

/// No heap at all.
pub(super) fn no_heap() -> Notice {
    Notice {
        code: "no-heap",
        message: "no heap of glibc's malloc (2.26 or later) was found in the process: it has \
                  another allocator, is written in a language with a heap of its own, or has not \
                  called malloc yet"
            .to_owned(),
    }
}
