//! The tools: how each is put around a command, and what it leaves behind.

use crate::command::Line;
use crate::place::Place;
use serde::Deserialize;
use std::ffi::OsString;
use std::fs;
use std::io::BufReader;
use std::path::Path;

/// A tool beside the native run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The plain program.
    Native,
    /// leakscope, every allocation.
    Exact,
    /// leakscope, one allocation in 512 KiB.
    Sampled,
    /// KDE's heaptrack.
    Heaptrack,
    /// valgrind's memcheck.
    Memcheck,
    /// LeakSanitizer, preloaded as its library allows: stacks by frame
    /// pointers, which most code does not keep.
    Lsan,
    /// The same with stacks that are true.
    LsanTrue,
}

/// What leakscope's own report says about a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// Allocations of all processes; calls of the program, not estimates.
    pub allocations: f64,
    /// Events that were not recorded.
    pub dropped: f64,
    /// The longest stop of a process.
    pub pause: f64,
    /// Blocks live at the end.
    pub live: f64,
}

impl Tool {
    /// In the order of their turns.
    pub const ALL: [Tool; 7] = [
        Tool::Native,
        Tool::Exact,
        Tool::Sampled,
        Tool::Heaptrack,
        Tool::Memcheck,
        Tool::Lsan,
        Tool::LsanTrue,
    ];

    /// As `--tools` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Native => "native",
            Tool::Exact => "exact",
            Tool::Sampled => "sampled",
            Tool::Heaptrack => "heaptrack",
            Tool::Memcheck => "memcheck",
            Tool::Lsan => "lsan",
            Tool::LsanTrue => "lsan-true",
        }
    }

    /// As the page calls it.
    pub fn title(self) -> &'static str {
        match self {
            Tool::Native => "native",
            Tool::Exact => "**leakscope**",
            Tool::Sampled => "**leakscope** `--sample 512K`",
            Tool::Heaptrack => "heaptrack",
            Tool::Memcheck => "memcheck",
            Tool::Lsan => "LeakSanitizer, frame pointers",
            Tool::LsanTrue => "LeakSanitizer, true stacks",
        }
    }

    /// Whether the started process itself becomes the program.
    pub fn direct(self) -> bool {
        matches!(
            self,
            Tool::Native | Tool::Memcheck | Tool::Lsan | Tool::LsanTrue
        )
    }

    /// Whether it is one of leakscope's own.
    pub fn ours(self) -> bool {
        matches!(self, Tool::Exact | Tool::Sampled)
    }

    /// Whether the program's standard output is left alone; heaptrack's
    /// script writes there too.
    pub fn quiet(self) -> bool {
        self != Tool::Heaptrack
    }

    /// The command under this tool.
    pub fn wrap(self, line: &Line, place: &Place) -> Line {
        let file = |name: &str| place.file(name).into_os_string();
        let with = |prefix: &str, file: OsString| {
            let mut word = OsString::from(prefix);
            word.push(file);
            word
        };
        let leakscope = |options: &[&str]| {
            let mut front = vec![place.leakscope.clone().into_os_string(), "run".into()];
            front.extend(options.iter().map(OsString::from));
            let report = with("json=", file("kept.report"));
            front.extend(["--quiet".into(), "-o".into(), report, "--".into()]);
            line.under(front)
        };
        match self {
            Tool::Native => line.clone(),
            Tool::Exact => leakscope(&[]),
            Tool::Sampled => leakscope(&["--sample", "512K"]),
            Tool::Heaptrack => {
                line.under(["heaptrack".into(), "-o".into(), file("kept.heaptrack")])
            }
            Tool::Memcheck => line.under([
                "valgrind".into(),
                "--leak-check=full".into(),
                with("--log-file=", file("kept.memcheck")),
            ]),
            Tool::Lsan | Tool::LsanTrue => {
                let options = match self {
                    Tool::Lsan => "exitcode=0:log_path=",
                    _ => "exitcode=0:fast_unwind_on_malloc=0:log_path=",
                };
                let options = with(options, file("kept.lsan"));
                line.clone()
                    .with("LD_PRELOAD", "liblsan.so.0")
                    .with("LSAN_OPTIONS", options)
            }
        }
    }

    /// Its version in its own words; none when it is not installed.
    pub fn version(self, place: &Place) -> Option<String> {
        let leakscope = place.leakscope.clone();
        let (program, argument) = match self {
            Tool::Native | Tool::Sampled | Tool::LsanTrue => return None,
            Tool::Exact => (leakscope, "--version"),
            Tool::Heaptrack => ("heaptrack".into(), "--version"),
            Tool::Memcheck => ("valgrind".into(), "--version"),
            Tool::Lsan => return Some("LeakSanitizer (preloaded liblsan.so.0)".into()),
        };
        let output = std::process::Command::new(program).arg(argument).output();
        let text = String::from_utf8_lossy(&output.ok()?.stdout).into_owned();
        text.lines().next().map(|line| line.trim().to_owned())
    }
}

/// Removes what earlier runs left, answers how many bytes it was.
pub fn sweep(place: &Place) -> u64 {
    let mut bytes = 0;
    let files = fs::read_dir(&place.folder).into_iter().flatten().flatten();
    for file in files {
        let name = file.file_name();
        if name.to_string_lossy().starts_with("kept.") {
            bytes += file.metadata().map_or(0, |data| data.len());
            // A file that stays is counted again, nothing worse.
            let _ = fs::remove_file(file.path());
        }
    }
    bytes
}

/// Reads leakscope's report of the run that just ended.
///
/// # Errors
/// When there is none, or no valid one.
pub fn facts(place: &Place) -> Result<Facts, String> {
    read_facts(&place.file("kept.report"))
}

/// What is read of a report; the rest may be long.
#[derive(Deserialize)]
struct Report {
    processes: Vec<Process>,
}

#[derive(Deserialize)]
struct Process {
    heap: Heap,
    coverage: Coverage,
}

#[derive(Deserialize)]
struct Heap {
    allocations: f64,
    live_blocks: f64,
}

#[derive(Deserialize)]
struct Coverage {
    dropped_events: f64,
    pause_seconds: Option<f64>,
}

fn read_facts(path: &Path) -> Result<Facts, String> {
    let file = fs::File::open(path).map_err(|e| format!("no report: {e}"))?;
    let report: Report =
        serde_json::from_reader(BufReader::new(file)).map_err(|e| format!("a bad report: {e}"))?;
    let mut facts = Facts::default();
    for process in report.processes {
        facts.allocations += process.heap.allocations;
        facts.live += process.heap.live_blocks;
        facts.dropped += process.coverage.dropped_events;
        let pause = process.coverage.pause_seconds.unwrap_or(0.0);
        facts.pause = facts.pause.max(pause);
    }
    Ok(facts)
}
