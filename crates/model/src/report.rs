//! The report: what every command produces and every view shows.

/// Which command made the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `leakscope run`
    Run,
    /// `leakscope check`
    Check,
}

/// Overall judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictStatus {
    /// Blocks are lost.
    Leaking,
    /// Nothing lost, but a site's live bytes rise.
    Growing,
    /// Freed by the program, kept by the allocator.
    Retained,
    /// Nothing found, and coverage was good enough to say so.
    Clean,
    /// Could not be judged; the sentence says why.
    Inconclusive,
}

/// One sentence that a tired person can act on, and its numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Judgement.
    pub status: VerdictStatus,
    /// The first line of every report.
    pub sentence: String,
    /// Growth in bytes per second, when known.
    pub rate_bytes_per_second: Option<f64>,
    /// Interval of the rate, bytes per second.
    pub rate_interval: Option<(f64, f64)>,
    /// Smallest rate that this much data could have detected.
    pub detectable_bytes_per_second: Option<f64>,
}

/// memcheck's loss kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LossKind {
    /// Nothing points to the block or to any block above it.
    Definite,
    /// Lost only because its parent is lost.
    Indirect,
    /// The only chain to it contains an interior pointer.
    Possible,
    /// A chain of start pointers leads to it; or it is live and reachability
    /// could not be judged (the coverage then says so).
    Reachable,
}

/// Bytes and blocks of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KindTotals {
    /// Requested bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl KindTotals {
    /// Adds one block of `bytes` bytes.
    pub fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks += 1;
    }
}

/// Every live block of a process, exactly once, under its own kind. A
/// suppressed block counts as suppressed only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossSummary {
    /// Definitely lost.
    pub definite: KindTotals,
    /// Indirectly lost.
    pub indirect: KindTotals,
    /// Possibly lost.
    pub possible: KindTotals,
    /// Still reachable.
    pub reachable: KindTotals,
    /// Named by a suppression.
    pub suppressed: KindTotals,
}

impl LossSummary {
    /// The totals of one kind.
    pub fn of_mut(&mut self, kind: LossKind) -> &mut KindTotals {
        match kind {
            LossKind::Definite => &mut self.definite,
            LossKind::Indirect => &mut self.indirect,
            LossKind::Possible => &mut self.possible,
            LossKind::Reachable => &mut self.reachable,
        }
    }
}

/// A symbolised frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Demangled name; `None` where there is no symbol.
    pub function: Option<String>,
    /// The linkage (mangled) name of `function`, for suppressions.
    pub linkage_name: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line in `file`, from 1.
    pub line: Option<u32>,
    /// Path of the executable or library; `None` for JIT code and cuts.
    pub module: Option<String>,
    /// Address in the module's ELF file.
    pub module_offset: Option<u64>,
    /// True when the call was inlined into the next (outer) frame.
    pub inlined: bool,
    /// True for the mark that outer frames are missing. Such a frame has no
    /// other field; views print "(outer frames not kept)".
    pub cut: bool,
}

/// Where other blocks of an allocation site were freed (sampled).
#[derive(Clone, Debug, PartialEq)]
pub struct FreeSiteLine {
    /// Frames of the release, innermost first.
    pub stack: Vec<Frame>,
    /// Share of the site's sampled frees, 0..=1.
    pub share: f64,
    /// Sampled frees.
    pub count: u64,
}

/// Typical lifetime of the freed blocks of a site.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lifetime {
    /// Mean in seconds over the sampled frees.
    pub mean_seconds: f64,
    /// How many sampled frees.
    pub samples: u64,
}

/// A sampled estimate's uncertainty.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SampleEstimate {
    /// One standard error of `bytes`.
    pub bytes_standard_error: f64,
    /// Sampled blocks behind the estimate.
    pub samples: u64,
}

/// What the blocks of a record hold, where that was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// What kind of bytes these are, in a few words.
    pub shape: String,
    /// The first bytes of the lowest block (at most 64); empty where content
    /// was not to be shown.
    pub preview: Vec<u8>,
}

/// A loss record: blocks of one kind merged by stack; without stacks, by what
/// they hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// Stable across runs and address-space randomisation.
    pub id: String,
    /// Loss kind.
    pub kind: LossKind,
    /// Which functions made the blocks (a generated suppression names them).
    pub family: crate::Family,
    /// Direct bytes.
    pub bytes: u64,
    /// Direct blocks.
    pub blocks: u64,
    /// What is lost only through these blocks.
    pub indirect: KindTotals,
    /// Type of the blocks, when known.
    pub type_name: Option<String>,
    /// True when the blocks lead a lost cycle.
    pub cycle: bool,
    /// For a cycle: the allocating function of each member, leader first
    /// (bounded).
    pub cycle_members: Vec<String>,
    /// Example addresses (bounded), lowest first.
    pub addresses: Vec<crate::Addr>,
    /// Call stack, innermost first.
    pub stack: Vec<Frame>,
    /// Usual free sites; empty with `free_samples == 0` means "never freed
    /// anywhere" as far as was seen.
    pub free_sites: Vec<FreeSiteLine>,
    /// Typical lifetime of the site's freed blocks.
    pub lifetime: Option<Lifetime>,
    /// Present in sampled mode.
    pub estimate: Option<SampleEstimate>,
    /// What the blocks hold; `None` where they are told apart by stacks.
    pub content: Option<Content>,
    /// How the record changed between looks; `None` after a single one.
    pub growth: Option<Growth>,
    /// Who holds the blocks; `None` where nobody does, or nobody asked.
    pub holder: Option<crate::Holder>,
}

/// Change of a record from the first look to the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Direct bytes more; negative when it shrank.
    pub bytes: i64,
    /// Direct blocks more.
    pub blocks: i64,
    /// It never shrank from one look to the next and grew in most: what grows
    /// like that may grow without end.
    pub rising: bool,
}

/// Several looks at one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Watched {
    /// Looks.
    pub looks: u64,
    /// From the first to the last, seconds.
    pub seconds: f64,
    /// Live bytes more at the end than at the beginning.
    pub bytes: i64,
}

/// Where the resident set of a process is: bytes in RAM. Everything but
/// `rss`, `swap` and `trimmable` adds up to `rss`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residence {
    /// Resident set, as `/proc/PID/smaps` sums it up.
    pub rss: u64,
    /// Swapped out.
    pub swap: u64,
    /// Blocks that are still reachable, with their headers.
    pub reachable: u64,
    /// Blocks definitely lost.
    pub definite: u64,
    /// Blocks lost only through others.
    pub indirect: u64,
    /// Blocks possibly lost.
    pub possible: u64,
    /// Free chunks that the allocator keeps.
    pub retained: Retained,
    /// The allocator's own tables.
    pub allocator: u64,
    /// Private anonymous memory that is none of the above.
    pub other_anonymous: u64,
    /// Stacks.
    pub stacks: u64,
    /// Pages of files, code included.
    pub files: u64,
    /// Shared memory without a file on disk.
    pub shared: u64,
    /// What malloc_trim(3) would give back, about: whole pages inside free
    /// chunks. Part of `retained`.
    pub trimmable: u64,
}

/// Resident bytes of free chunks, by where the allocator keeps them, and of the
/// free memory of other allocators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retained {
    /// Threads' caches.
    pub caches: u64,
    /// Fastbins.
    pub fastbins: u64,
    /// Other bins.
    pub bins: u64,
    /// The tops of heaps.
    pub top: u64,
    /// Pools of other allocators (CPython's).
    pub pools: u64,
}

impl Retained {
    /// All of it.
    pub fn total(&self) -> u64 {
        let parts = [self.caches, self.fastbins, self.bins, self.top, self.pools];
        parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }
}

/// An application mapping judged like a block.
#[derive(Clone, Debug, PartialEq)]
pub struct MappingLeak {
    /// Loss kind.
    pub kind: LossKind,
    /// Bytes.
    pub bytes: u64,
    /// Mappings merged into this record.
    pub count: u64,
    /// Call stack of the mmap.
    pub stack: Vec<Frame>,
}

/// Kind of a wrong release or of an open descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// `double-free`
    DoubleFree,
    /// `invalid-free`
    InvalidFree,
    /// `mismatched-free`
    MismatchedFree,
    /// `fd-leak`
    FdLeak,
}

/// A wrong release or a leaked descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorRecord {
    /// Which error.
    pub code: ErrorCode,
    /// One sentence.
    pub message: String,
    /// How often.
    pub count: u64,
    /// Where it happened (for `fd-leak`: where it was opened).
    pub stack: Vec<Frame>,
    /// Where the block was allocated.
    pub allocated: Vec<Frame>,
    /// Where it was first freed.
    pub freed: Vec<Frame>,
}

/// A descriptor open at the end, before it is merged into [`ErrorRecord`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdLeak {
    /// Descriptor number.
    pub fd: u32,
    /// What it refers to, as `/proc/PID/fd` shows it.
    pub target: String,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// Exit status 0..=255.
    Code(i32),
    /// Signal name such as `SIGSEGV`.
    Signal(String),
}

/// How consistent the picture was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// All threads were stopped while memory was read.
    Stopped,
    /// A forked copy was read.
    Forked,
    /// Threads ran while memory was read.
    Racing,
    /// The process was dead: no memory, only the recorder's table.
    Dead,
}

/// What served as roots: bytes scanned by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RootCounts {
    /// Writable data of modules, bytes.
    pub globals: u64,
    /// Stacks from the stack pointer upward, bytes.
    pub stacks: u64,
    /// Register words of all threads, bytes.
    pub registers: u64,
    /// Other writable mappings (application mmaps, static TLS …), bytes.
    pub mappings: u64,
    /// Blocks that the program declared as roots, bytes.
    pub declared: u64,
    /// Threads whose stacks were scanned.
    pub threads: u64,
}

/// What was scanned, skipped, dropped, sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Coverage {
    /// How consistent the picture was.
    pub consistency: Consistency,
    /// How long the process was stopped, seconds.
    pub pause_seconds: f64,
    /// Mean bytes between samples; `None` when exact.
    pub sampled_every_bytes: Option<u64>,
    /// Events that the recorder lost.
    pub dropped_events: u64,
    /// Bytes of roots or blocks that could not be read.
    pub unreadable_bytes: u64,
    /// Bytes of blocks scanned.
    pub scanned_block_bytes: u64,
    /// Roots.
    pub roots: RootCounts,
    /// False when no reachability was judged: every live block then counts
    /// as reachable.
    pub reachability: bool,
    /// How far the allocator's own numbers confirm what was found; `None`
    /// where a recorder knew the blocks.
    pub heap_check: Option<HeapCheck>,
}

/// A walk over the allocator's memory, compared with the allocator's sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapCheck {
    /// Arenas found.
    pub arenas: u64,
    /// Heaps walked.
    pub heaps: u64,
    /// Blocks that are mappings of their own.
    pub mapped_blocks: u64,
    /// Bytes of heaps that could not be walked; they count as roots.
    pub unwalked_bytes: u64,
    /// All sums and lists agree.
    pub agrees: bool,
    /// Looks that were taken until they did, or until there were enough.
    pub looks: u64,
    /// Allocators with memory of their own beside malloc's.
    pub others: Vec<OtherHeap>,
}

/// The heap of an allocator with memory of its own beside malloc's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OtherHeap {
    /// Its name.
    pub allocator: &'static str,
    /// Large pieces that were walked: pymalloc's arenas.
    pub pieces: u64,
    /// Blocks in them.
    pub blocks: u64,
    /// Bytes of these.
    pub block_bytes: u64,
    /// Bytes that it has free.
    pub free_bytes: u64,
    /// Bytes of pieces that contradict themselves; they count as roots.
    pub unwalked_bytes: u64,
}

/// Something the reader should know; the code is stable, the text is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Stable kebab-case code.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
}

/// How often a suppression was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuppressionUse {
    /// Its name.
    pub name: String,
    /// Where it was read (`builtin`, or path and line).
    pub origin: String,
    /// What it hid.
    pub hidden: KindTotals,
}

/// Heap totals of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapSummary {
    /// Nobody counted from the beginning: `allocations`, `frees`,
    /// `allocated_bytes` and `peak_bytes` are not known, and `live_bytes` are
    /// usable bytes.
    pub uncounted: bool,
    /// Live requested bytes at the end.
    pub live_bytes: u64,
    /// Live blocks at the end.
    pub live_blocks: u64,
    /// Successful allocation calls.
    pub allocations: u64,
    /// Blocks given back.
    pub frees: u64,
    /// Sum of requested bytes.
    pub allocated_bytes: u64,
    /// Highest live bytes.
    pub peak_bytes: u64,
}

/// One process (or one image of it, when it called exec).
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessReport {
    /// Process id.
    pub pid: u32,
    /// Parent's id at the time it was first seen.
    pub parent_pid: u32,
    /// Executable path.
    pub exe: String,
    /// Arguments.
    pub argv: Vec<String>,
    /// How it ended; `None` when it still ran or was replaced by exec.
    pub exit: Option<ExitKind>,
    /// Heap totals.
    pub heap: HeapSummary,
    /// Where the resident set is, where that was looked at.
    pub residence: Option<Residence>,
    /// How it was looked at more than once.
    pub watched: Option<Watched>,
    /// Loss summary.
    pub loss: LossSummary,
    /// All loss records of every kind, largest first.
    pub leaks: Vec<Leak>,
    /// What retains most; `None` where nobody asked.
    pub largest: Option<crate::Largest>,
    /// What is at the addresses that were asked for.
    pub found: Vec<crate::Find>,
    /// Mapping records.
    pub mappings: Vec<MappingLeak>,
    /// Wrong releases and descriptors.
    pub errors: Vec<ErrorRecord>,
    /// Coverage.
    pub coverage: Coverage,
    /// Suppressions of the user, used or not, and the built-in ones used.
    pub suppressions: Vec<SuppressionUse>,
    /// Notices.
    pub notices: Vec<Notice>,
}

/// What a command found.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Which command.
    pub command: Command,
    /// Overall verdict: the worst process decides.
    pub verdict: Verdict,
    /// The program first, then its children in order of start.
    pub processes: Vec<ProcessReport>,
}
