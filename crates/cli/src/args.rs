//! The command line, typed. What it means is decided in `commands`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use leakscope_analysis::mark::Heuristics;
use leakscope_analysis::records::Resolution;
use leakscope_analysis::verdict::FailOn;
use leakscope_model::Addr;
use leakscope_report::Kinds;

use crate::{duration, size};

/// Says whether a program leaks memory, how much, and which code allocated it
#[derive(Debug, Parser)]
#[command(name = "leakscope", version, args_override_self = true)]
#[command(after_help = "'leakscope run -- ./program' is where to begin.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a program and report every leak when it ends
    #[command(long_about = RUN_ABOUT, after_long_help = sections(RUN_SECTIONS), args_override_self = true)]
    #[command(override_usage = "leakscope run [OPTIONS] [--] CMD [ARGS]...")]
    Run(Box<Run>),
    /// Report the leaks of a running process that nobody prepared, or of a core
    /// file
    #[command(long_about = CHECK_ABOUT, after_long_help = sections(CHECK_SECTIONS))]
    #[command(
        override_usage = "leakscope check [OPTIONS] PID\n       leakscope check [OPTIONS] CORE\n       leakscope check [OPTIONS] --name NAME"
    )]
    Check(Box<Check>),
    /// Save a running process as a core file, to be checked later or elsewhere
    #[command(long_about = SNAPSHOT_ABOUT, after_long_help = sections(SNAPSHOT_SECTIONS))]
    #[command(
        override_usage = "leakscope snapshot [OPTIONS] PID -o FILE\n       leakscope snapshot [OPTIONS] --name NAME -o FILE"
    )]
    Snapshot(Box<Snapshot>),
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

const RUN_ABOUT: &str = "\
Run a program and report every leak when it ends

The program runs unmodified: same output, same exit status, same signals. The report goes to \
stderr when it has ended.";

/// A heading and its lines: what stands left, what it means.
pub type Section = (&'static str, &'static [(&'static str, &'static str)]);

/// What help and manual say of `run` besides its options.
pub const RUN_SECTIONS: &[Section] = &[
    (
        "Exit status",
        &[
            (
                "0-255",
                "the program's own status; 128+N when signal N killed it",
            ),
            (
                "23",
                "something that --fail-on names was found (--error-exitcode)",
            ),
            ("125", "leakscope itself failed"),
            ("126", "the program could not be executed"),
            ("127", "the program was not found"),
        ],
    ),
    (
        "Environment",
        &[
            ("LEAKSCOPE_OPTIONS", "options of 'run'; those typed win"),
            (
                "DEBUGINFOD_URLS",
                "servers to ask for debug symbols that are not here",
            ),
            ("NO_COLOR", "no colours, even on a terminal"),
        ],
    ),
    (
        "Examples",
        &[
            ("leakscope run -- ./server -p 80", "what leaks in a server"),
            ("leakscope run --fail-on leak -- make test", "a gate in CI"),
            ("leakscope run --sample 512K -- ./job", "at little cost"),
            (
                "leakscope run -o leaks.json -- ./job",
                "for programs to read",
            ),
        ],
    ),
];

const CHECK_ABOUT: &str = "\
Report the leaks of a running process that nobody prepared, or of a core file

The process is stopped while its memory is read, and goes on as if nothing had happened. Blocks of \
glibc's malloc are found by walking its heaps; what nothing points to any more is lost. Needs the \
right to trace the process: as its user where kernel.yama.ptrace_scope is 0, else as root. The \
report goes to stdout.";

/// What help and manual say of `check` besides its options.
pub const CHECK_SECTIONS: &[Section] = &[
    (
        "Exit status",
        &[
            ("0", "the process was examined"),
            (
                "23",
                "something that --fail-on names was found (--error-exitcode)",
            ),
            ("125", "it could not be examined; one sentence says why"),
        ],
    ),
    (
        "Examples",
        &[
            ("leakscope check 4711", "what leaked in a running process"),
            ("leakscope check --name nginx", "by its name"),
            ("leakscope check core.4711", "in one that has crashed"),
            (
                "leakscope check --mode racing 4711",
                "without stopping it for a moment",
            ),
            (
                "leakscope check --wait 5m 4711",
                "what grows in five minutes, lost or not",
            ),
            (
                "leakscope check --show all 4711",
                "what it holds, by type and shape, too",
            ),
            (
                "leakscope check --largest 4711",
                "what keeps most of its memory",
            ),
            (
                "leakscope check --find 0x55d0c0ffee10 4711",
                "what is there, and who holds it",
            ),
        ],
    ),
];

const SNAPSHOT_ABOUT: &str = "\
Save a running process as a core file, to be checked later or elsewhere

The process is stopped for the moment that it takes to copy itself; the copy is written as an \
ordinary ELF core file, which 'leakscope check', gdb and others read. Memory that was never written \
becomes holes. Like every core file it holds whatever secrets the process has: only its owner may \
read it.";

/// What help and manual say of `snapshot` besides its options.
pub const SNAPSHOT_SECTIONS: &[Section] = &[
    (
        "Exit status",
        &[
            ("0", "the file was written"),
            ("125", "it could not be; one sentence says why"),
        ],
    ),
    (
        "Examples",
        &[
            (
                "leakscope snapshot 4711 -o before.core",
                "what a process holds now",
            ),
            ("leakscope check before.core", "its leaks, at leisure"),
        ],
    ),
];

fn sections(sections: &[Section]) -> String {
    let sections = sections.iter().map(|(heading, lines)| {
        let widest = lines.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
        let lines = lines
            .iter()
            .map(|(left, right)| format!("\n  {left:<widest$}  {right}"));
        format!("{heading}:{}", lines.collect::<String>())
    });
    sections.collect::<Vec<_>>().join("\n\n")
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub options: RunOptions,

    /// The program and its arguments
    #[arg(required = true, num_args = 1.., value_name = "CMD", trailing_var_arg = true)]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    pub argv: Vec<OsString>,
}

/// Every argument of `check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    pub report: ReportOptions,

    /// How memory is read: fork (the process is stopped for the moment that it
    /// takes to copy itself), stop (all threads stand still meanwhile), racing
    /// (nobody is stopped; several looks must agree) or auto (fork where that
    /// is safe, else stop)
    #[arg(long, value_name = "MODE", default_value = "auto", help_heading = LOOK)]
    pub mode: Mode,

    /// Look again and again for so long (90s, 5m, 1h), and say what grows;
    /// Ctrl-C ends it early
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration::parse, help_heading = LOOK)]
    pub wait: Duration,

    /// From one look to the next [default: a quarter of --wait]
    #[arg(long, value_name = "TIME", value_parser = duration::parse, requires = "wait", help_heading = LOOK)]
    pub every: Option<Duration>,

    /// Say which N blocks and kinds of blocks keep most: what would be freed
    /// with them, and who holds them [default N: 10]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "10")]
    #[arg(help_heading = ASKED)]
    pub largest: Option<usize>,

    /// Say what is at this address (0x…): block, free memory, variable, stack;
    /// who points to it, and who holds it. May be repeated
    #[arg(long, value_name = "ADDR", help_heading = ASKED)]
    pub find: Vec<Address>,

    /// Interior pointers that hold a block like a pointer to its start:
    /// multipleinheritance, newarray, length64, stdstring, rust-rc,
    /// hashbrown, cpython-gc, kept-start, all or none, separated by commas
    #[arg(long, value_name = "LIST", default_value = "all", help_heading = LOOK)]
    pub interior_heuristics: Heuristics,

    /// Show nothing of what the process keeps in memory
    #[arg(long, help_heading = LOOK)]
    pub no_content: bool,

    /// The process whose program or thread has this name
    #[arg(long, value_name = "NAME", conflicts_with = "pid", help_heading = LOOK)]
    pub name: Option<OsString>,

    /// Of a core file: where its executable is, if not where it was
    #[arg(long, value_name = "PATH", help_heading = LOOK, value_hint = ValueHint::FilePath)]
    pub exe: Option<PathBuf>,

    /// Of a core file: the folder that holds its machine's files; those of
    /// another build are not used
    #[arg(long, value_name = "DIR", default_value = "/", help_heading = LOOK, value_hint = ValueHint::DirPath)]
    pub sysroot: PathBuf,

    /// The process; or a core file of one, packed or not (.zst, .gz, .xz); or
    /// a container by its id, or a service, by its name
    #[arg(value_name = "PID|CORE|CONTAINER", required_unless_present = "name", value_hint = ValueHint::FilePath)]
    pub pid: Option<OsString>,
}

/// Every argument of `snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// The file; packed if its name ends in .gz; - is stdout
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,

    /// How memory is read: fork (the process is stopped for the moment that it
    /// takes to copy itself), stop (all threads stand still until all is
    /// written) or auto (fork where that is safe, else stop)
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub mode: WayToSave,

    /// Say nothing when all went well
    #[arg(short, long)]
    pub quiet: bool,

    /// The process whose program or thread has this name
    #[arg(long, value_name = "NAME", conflicts_with = "pid")]
    pub name: Option<OsString>,

    /// The process
    #[arg(value_name = "PID", required_unless_present = "name")]
    pub pid: Option<OsString>,
}

/// An address in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub Addr);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        let digits = text.strip_prefix("0x").unwrap_or(text);
        let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let number = digits.and_then(|d| u64::from_str_radix(d, 16).ok());
        let address = number.map(|n| Address(Addr(n)));
        address.ok_or_else(|| "an address is 0x and up to 16 hexadecimal digits".to_owned())
    }
}

/// How `check` reads memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The best that is possible here
    Auto,
    /// All threads stand still
    Stop,
    /// A copy is made and read
    Fork,
    /// Nobody is stopped
    Racing,
}

/// How `snapshot` reads memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WayToSave {
    /// The best that is possible here
    Auto,
    /// All threads stand still
    Stop,
    /// A copy is made and read
    Fork,
}

/// The options alone, as `LEAKSCOPE_OPTIONS` may hold them.
#[derive(Debug, Parser)]
#[command(
    name = "LEAKSCOPE_OPTIONS",
    no_binary_name = true,
    args_override_self = true
)]
#[command(disable_help_flag = true)]
pub struct EnvironmentOptions {
    #[command(flatten)]
    pub options: RunOptions,
}

/// What is reported, how, and where to: the same for every command.
#[derive(Debug, Args)]
pub struct ReportOptions {
    /// Exit with status 23 when something of these kinds is found: leak
    /// (definite, possible or mapping), definite, indirect, possible,
    /// reachable, mapping, errors (double-free, invalid-free,
    /// mismatched-free), fd-leak or all, separated by commas
    #[arg(long, value_name = "KINDS", help_heading = RESULT)]
    pub fail_on: Option<FailOn>,

    /// The exit status of --fail-on
    #[arg(long, value_name = "N", default_value_t = crate::failure::FOUND)]
    #[arg(value_parser = clap::value_parser!(u8).range(1..), help_heading = RESULT)]
    pub error_exitcode: u8,

    /// Also write the report to a file; its name decides the format (.json,
    /// .txt), FORMAT=PATH forces one, - is stdout. May be repeated
    #[arg(short, long, value_name = "PATH", help_heading = RESULT, value_hint = ValueHint::FilePath)]
    pub output: Vec<OsString>,

    /// Format of the report itself
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = RESULT)]
    pub format: Format,

    /// Say the verdict only, one line
    #[arg(short, long, help_heading = RESULT)]
    pub quiet: bool,

    /// Loss kinds whose records are shown: definite, indirect, possible,
    /// reachable, all or none, separated by commas
    #[arg(long, value_name = "KINDS", default_value = "definite,possible", help_heading = SHOW)]
    pub show: Kinds,

    /// Show the N largest records of each process; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 25, help_heading = SHOW)]
    pub top: usize,

    /// Leave out records with fewer bytes, indirect ones included
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = size::parse, help_heading = SHOW)]
    pub min_bytes: u64,
}

/// Every option of `run`.
#[derive(Debug, Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub report: ReportOptions,

    /// Show where descriptors were opened that were never closed
    #[arg(long, help_heading = SHOW)]
    pub fds: bool,

    /// How much of two stacks must be equal to merge their blocks: low (2
    /// frames), med (4) or high (all)
    #[arg(long, value_name = "LEVEL", default_value = "high", help_heading = SHOW)]
    pub leak_resolution: Resolution,

    /// Hide leaks that this file names (valgrind's or LeakSanitizer's
    /// syntax). May be repeated
    #[arg(long, value_name = "FILE", help_heading = SHOW, value_hint = ValueHint::FilePath)]
    pub suppressions: Vec<PathBuf>,

    /// Do not hide the known harmless blocks of the system's libraries
    #[arg(long, help_heading = SHOW)]
    pub no_builtin_suppressions: bool,

    /// Print a ready suppression for each record shown
    #[arg(long, help_heading = SHOW)]
    pub gen_suppressions: bool,

    /// Which processes are recorded
    #[arg(long, value_name = "WHICH", default_value = "children", help_heading = RECORD)]
    pub follow: Follow,

    /// Judge an image too when exec is about to replace it
    #[arg(long, help_heading = RECORD)]
    pub at_exec: bool,

    /// Record about one allocation in so many bytes and estimate the rest;
    /// 512K costs little
    ///
    /// Blocks of 0 bytes are never sampled, and what is lost with a block that
    /// was not sampled counts as definitely lost.
    #[arg(long, value_name = "BYTES", value_parser = size::parse_positive, help_heading = RECORD)]
    pub sample: Option<u64>,

    /// Longest call stack kept whole; of deeper ones the innermost frames
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = RECORD)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=512))]
    pub max_depth: u32,

    /// Smallest mapping (mmap) that is tracked
    #[arg(long, value_name = "BYTES", default_value = "64K", value_parser = size::parse, help_heading = RECORD)]
    pub mmap_min: u64,

    /// Track no mappings
    #[arg(long, help_heading = RECORD)]
    pub no_mmap: bool,

    /// Do not sample where blocks are freed
    #[arg(long, help_heading = RECORD)]
    pub no_free_sites: bool,

    /// Interior pointers that hold a block like a pointer to its start:
    /// multipleinheritance, newarray, length64, stdstring, rust-rc,
    /// hashbrown, cpython-gc, kept-start, all or none, separated by commas
    #[arg(long, value_name = "LIST", default_value = "all", help_heading = RECORD)]
    pub interior_heuristics: Heuristics,

    /// Show module+offset instead of names
    #[arg(long, help_heading = SYMBOLS)]
    pub no_symbols: bool,

    /// Look here for separate debug files first. May be repeated
    #[arg(long, value_name = "DIR", help_heading = SYMBOLS, value_hint = ValueHint::DirPath)]
    pub debug_dir: Vec<PathBuf>,

    /// Show source files as found below this directory
    #[arg(long, value_name = "DIR", help_heading = SYMBOLS, value_hint = ValueHint::DirPath)]
    pub source_root: Option<PathBuf>,
}

const RESULT: &str = "Result";
const SHOW: &str = "What is shown";
const RECORD: &str = "What is recorded";
const ASKED: &str = "Who holds what";
const LOOK: &str = "How it looks";
const SYMBOLS: &str = "Names and lines";

/// What stderr gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs
    Json,
}

/// Which processes are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Follow {
    /// The program and everything that it starts
    Children,
    /// The program alone
    None,
}
