//! `leakscope check CORE`: a process that is no more.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_analysis::mark::Heuristics;
use leakscope_analysis::verdict;
use leakscope_heap::glibc;
use leakscope_heap::regions::{self, Class};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Command, Consistency, ExitKind, Notice, Report, quantity};
use leakscope_symbols::regular_file;
use leakscope_tracee::{Absence, CoreFile};

use super::holders::Files;
use super::unpack::unpacked;
use super::{Asked, CheckError, Found, HolderOptions, Picture, environs, error, judge, section};
use crate::Word;

/// Everything that checking a core file needs to know.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// The file.
    pub path: PathBuf,
    /// Where the files lie that were mapped: `/` on the same machine. No link
    /// leads out of it.
    pub sysroot: PathBuf,
    /// The executable, where it lies elsewhere.
    pub exe: Option<PathBuf>,
    /// Interior-pointer idioms that count as start pointers.
    pub heuristics: Heuristics,
    /// Keep the first bytes of an example of each record.
    pub content: bool,
    /// Of which records it is said who holds them.
    pub holders: HolderOptions,
}

/// Examines a core file, which may be compressed. `progress` is told what takes
/// long.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn check_core(
    options: &CoreOptions,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<Report, CheckError> {
    let shown = options.path.display();
    let unreadable = |e: &dyn std::fmt::Display| error(format!("cannot read {shown}: {e}"));
    if options.path.is_dir() {
        return Err(unreadable(&"it is a folder"));
    }
    let file = regular_file(None, &options.path).map_err(|e| unreadable(&e))?;
    let packed = unpacked(file, &mut || {
        progress(Word {
            text: "unpacking the core file",
            is_lasting: false,
        });
    });
    let packed = packed.map_err(|e| unreadable(&e))?;
    let core = CoreFile::read(packed.file, &mut |path, is_executable| {
        mapped(options, path, is_executable)
    });
    let mut core = core.map_err(|e| unreadable(&e))?;
    if core.threads().is_empty() || core.map().regions().is_empty() {
        return Err(error(format!(
            "cannot read {shown}: it holds no threads or no memory; it was cut off before them"
        )));
    }
    if let Some(top) = main_top(&core) {
        core.name_heap(top);
    }
    let threads = core.threads().to_vec();
    let heaps = leakscope_heap::walk(&core, &threads);
    let mut judged = judge(&options.heuristics, &core, &threads, heaps);
    let bare = without_memory(&core);
    if bare > 0 {
        super::looks::doubt(&mut judged.marked);
    }
    let asked = Asked {
        holders: &options.holders,
        before: None,
    };
    let picture = Picture::of(&core, &threads, judged, None, 1, &asked);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let facts = environs::Facts {
        pid: core.pid(),
        parent: 0,
        exe: text(core.executable()),
        argv: text(core.arguments())
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
        files: Files {
            root: Some(options.sysroot.clone()).filter(|root| root != Path::new("/")),
            exe: options
                .exe
                .clone()
                .map(|exe| (core.executable().to_vec(), exe)),
        },
    };
    let found = Found {
        picture,
        consistency: Consistency::Stopped,
        pause: Duration::ZERO,
        settled: true,
        notices: notices(&core, packed.damage.as_deref(), bare),
    };
    let mut section = section(options.content, facts, found);
    section.exit = ended(core.signal());
    Ok(Report {
        command: Command::Check,
        verdict: verdict::process_verdict(&section),
        processes: vec![section],
    })
}

/// A file that was mapped.
fn mapped(options: &CoreOptions, path: &[u8], is_executable: bool) -> Option<File> {
    match &options.exe {
        Some(exe) if is_executable => regular_file(None, exe).ok(),
        _ => regular_file(Some(&options.sysroot), Path::new(OsStr::from_bytes(path))).ok(),
    }
}

/// Inside the main arena's top chunk: in `[heap]`, which the file does not
/// name.
fn main_top(core: &CoreFile) -> Option<Addr> {
    let regions = regions::classify(core.map());
    let arenas = glibc::arenas(core, &regions);
    let tops = arenas
        .iter()
        .filter_map(|arena| glibc::top_end(core, *arena));
    let last = tops.map(|end| Addr(end.saturating_sub(1)));
    last.filter(|at| {
        let region = regions.iter().find(|r| r.range.contains(*at));
        region.is_some_and(|r| matches!(r.class, Class::Anonymous | Class::Bss))
    })
    .min()
}

/// Threads whose control block, and so whose stack, is not in the file: a
/// control block begins with its own address.
fn without_memory(core: &CoreFile) -> u64 {
    let threads = core.threads().iter().filter(|t| t.tcb.0 != 0);
    let bare = threads.filter(|t| !core.read_u64(t.tcb).is_ok_and(|word| word != 0));
    bare.count() as u64
}

fn notices(core: &CoreFile, damage: Option<&str>, bare: u64) -> Vec<Notice> {
    let mut notices = vec![Notice {
        code: "core-file",
        message: "this is the process as a core file holds it; what is resident is not known"
            .to_owned(),
    }];
    if let Some(damage) = damage {
        notices.push(Notice {
            code: "core-damaged",
            message: format!(
                "the compressed core file breaks off {damage}: what lies behind is not known"
            ),
        });
    }
    if core.missing() > 0 {
        notices.push(Notice {
            code: "core-truncated",
            message: format!(
                "the core file ends {} too early (a full disk, or a limit such as ulimit -c), so \
                 what was there holds nothing",
                quantity::bytes(core.missing())
            ),
        });
    }
    if bare > 0 {
        notices.push(Notice {
            code: "core-bare-threads",
            message: format!(
                "the core file does not hold the stack of {} (gdb leaves out what lies beside a \
                 guard that is no mapping of its own, as stacks have since glibc 2.42): what only \
                 a stack holds looks lost, so whatever looks lost is called possible; a core file \
                 that the kernel writes has all of them",
                quantity::counted(bare, "thread")
            ),
        });
    }
    let of = |absence| {
        let all = core.absent().iter();
        all.filter(move |(_, a)| *a == absence)
            .map(|(path, _)| path)
    };
    let list = |paths: Vec<&Vec<u8>>| {
        let mut names: Vec<String> = paths
            .iter()
            .take(LISTED)
            .map(|p| String::from_utf8_lossy(p).into_owned())
            .collect();
        if paths.len() > LISTED {
            names.push(format!("{} more", paths.len() - LISTED));
        }
        names.join(", ")
    };
    let replaced: Vec<_> = of(Absence::Replaced).collect();
    if !replaced.is_empty() {
        notices.push(Notice {
            code: "core-other-files",
            message: format!(
                "these files are of another build than those that the process had, so they were \
                 not used: {}; types of objects that they define are not named; name the folder \
                 with the right ones with --sysroot, or the executable with --exe",
                list(replaced)
            ),
        });
    }
    let missing: Vec<_> = of(Absence::Missing).collect();
    if !missing.is_empty() {
        notices.push(Notice {
            code: "core-missing-files",
            message: format!(
                "these files of the process were not found: {}; types of objects that they define \
                 are not named; name the folder that has them with --sysroot, or the executable \
                 with --exe",
                list(missing)
            ),
        });
    }
    notices
}

/// Files that a notice names.
const LISTED: usize = 7;

/// How the process ended. A debugger that saves a living one stops it first.
fn ended(signal: u16) -> Option<ExitKind> {
    const TRAP: u16 = 5;
    const STOP: u16 = 19;
    let name = signal_hook::low_level::signal_name(i32::from(signal))?;
    (signal != TRAP && signal != STOP).then(|| ExitKind::Signal(name.to_owned()))
}
