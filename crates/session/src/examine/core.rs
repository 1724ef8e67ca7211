//! `leakscope check CORE`: a process that is no more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leakscope_analysis::mark::Heuristics;
use leakscope_analysis::verdict;
use leakscope_heap::glibc;
use leakscope_heap::regions::{self, Class};
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Command, Consistency, ExitKind, Notice, Report, quantity};
use leakscope_tracee::CoreFile;

use super::holders::Files;
use super::{Asked, CheckError, Found, HolderOptions, Picture, environs, error, judge, section};

/// Everything that checking a core file needs to know.
#[derive(Clone, Debug)]
pub struct CoreOptions {
    /// The file.
    pub path: PathBuf,
    /// Where the files lie that were mapped: `/` on the same machine.
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

/// Examines a core file.
///
/// # Errors
/// When it cannot be read, or is none.
pub fn check_core(options: &CoreOptions) -> Result<Report, CheckError> {
    let shown = options.path.display();
    let core = CoreFile::open(&options.path, &options.sysroot, options.exe.as_deref());
    let mut core = core.map_err(|e| error(format!("cannot read {shown}: {e}")))?;
    if core.threads().is_empty() || core.map().regions().is_empty() {
        return Err(error(format!(
            "cannot read {shown}: it holds no threads or no memory; it was cut off near its \
             beginning"
        )));
    }
    if let Some(top) = main_top(&core) {
        core.name_heap(top);
    }
    let threads = core.threads().to_vec();
    let heaps = leakscope_heap::walk(&core, &threads);
    let judged = judge(&options.heuristics, &core, &threads, heaps);
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
        notices: notices(&core),
    };
    let mut section = section(options.content, facts, found);
    section.exit = ended(core.signal());
    Ok(Report {
        command: Command::Check,
        verdict: verdict::process_verdict(&section),
        processes: vec![section],
    })
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

fn notices(core: &CoreFile) -> Vec<Notice> {
    let mut notices = vec![Notice {
        code: "core-file",
        message: "this is the process as a core file holds it; what is resident is not known"
            .to_owned(),
    }];
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
    notices
}

/// How the process ended. A debugger that saves a living one stops it first.
fn ended(signal: u16) -> Option<ExitKind> {
    const TRAP: u16 = 5;
    const STOP: u16 = 19;
    let name = signal_hook::low_level::signal_name(i32::from(signal))?;
    (signal != TRAP && signal != STOP).then(|| ExitKind::Signal(name.to_owned()))
}
