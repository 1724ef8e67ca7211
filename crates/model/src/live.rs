//! What the recorder knows about one process: facts, not judgements.

use crate::{Addr, Range};

/// A node of a [`StackTable`]; `StackId(0)` is the empty (unknown) stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackId(pub u32);

/// Index into [`LiveTable::modules`]; [`ModuleId::NONE`] when the address
/// belonged to no known module (JIT code, or a mapping gone since).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleId(pub u16);

impl ModuleId {
    /// No module.
    pub const NONE: ModuleId = ModuleId(0xffff);
}

/// One frame as recorded: a *return address* in the running process. The
/// calling instruction lies before it, so symbolise `pc - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RawFrame {
    /// Module that contained the address when it was recorded.
    pub module: ModuleId,
    /// Return address. Zero marks a cut: the outer frames were not kept
    /// (depth limit, or code without unwind information).
    pub pc: Addr,
}

/// All call stacks, as a tree: each node is a frame and its caller's node.
#[derive(Clone, Debug, Default)]
pub struct StackTable {
    nodes: Vec<(StackId, RawFrame)>,
}

impl StackTable {
    /// Builds the table. `nodes[i]` is node `i`: its parent (the caller's
    /// node) and frame; node 0 is the root and its contents are ignored. A
    /// parent must be smaller than its child; other links are cut when read.
    pub fn new(nodes: Vec<(StackId, RawFrame)>) -> StackTable {
        StackTable { nodes }
    }

    /// Number of nodes, the root included.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// True when no stack was recorded.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() <= 1
    }

    /// The caller's node of `id`: where [`StackTable::frames`] goes next. The
    /// root (0) for unknown nodes and for links that are cut.
    pub fn caller(&self, id: StackId) -> StackId {
        match self.nodes.get(id.0 as usize) {
            Some(&(parent, _)) if parent < id => parent,
            _ => StackId(0),
        }
    }

    /// The frames of a stack, innermost (the caller of the allocation
    /// function) first. Always ends: links that do not go towards the root
    /// end the walk.
    pub fn frames(&self, id: StackId) -> impl Iterator<Item = RawFrame> + '_ {
        let mut at = id.0;
        std::iter::from_fn(move || {
            if at == 0 {
                return None;
            }
            let (parent, frame) = *self.nodes.get(at as usize)?;
            at = if parent.0 < at { parent.0 } else { 0 };
            Some(frame)
        })
    }
}

/// A mapped executable or library, as the recorder or `/proc/PID/maps` saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedModule {
    /// Path in the target's mount namespace; any bytes. May end in
    /// ` (deleted)` as the kernel writes it.
    pub path: Vec<u8>,
    /// Lowest mapped address.
    pub start: Addr,
    /// First address behind the highest mapped one.
    pub end: Addr,
    /// Load bias: running address minus address in the ELF file.
    pub bias: u64,
    /// GNU build id, when it could be read from memory.
    pub build_id: Option<Vec<u8>>,
    /// False when the module was unloaded (dlclose) since.
    pub loaded: bool,
}

/// Which family of functions made a block; it must be released by the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// malloc, calloc, realloc, memalign, …: released by free.
    Malloc,
    /// operator new: released by operator delete.
    New,
    /// operator new[]: released by operator delete[].
    NewArray,
}

/// One live allocation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LiveBlock {
    /// Address that the program received.
    pub addr: Addr,
    /// Requested size in bytes (may be zero).
    pub size: u64,
    /// Call stack of the allocation.
    pub stack: StackId,
    /// Which functions made it.
    pub family: Family,
    /// Declared harmless by the program (`__lsan_ignore_object`, or allocated
    /// inside `__lsan_disable`): reachable and a root, never a leak.
    pub ignored: bool,
    /// Age in centiseconds of recorder time at the reading.
    pub age_cs: u32,
    /// In sampled mode, how many blocks this one stands for; 1.0 otherwise.
    pub weight: f32,
}

impl LiveBlock {
    /// A block of `size` bytes at `addr`, made by malloc, of which nothing
    /// else is known: no stack, age 0, standing for itself.
    pub fn new(addr: u64, size: u64) -> LiveBlock {
        LiveBlock {
            addr: Addr(addr),
            size,
            stack: StackId(0),
            family: Family::Malloc,
            ignored: false,
            age_cs: 0,
            weight: 1.0,
        }
    }
}

/// A live application mapping (mmap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveMapping {
    /// First address.
    pub addr: Addr,
    /// Length in bytes.
    pub len: u64,
    /// Call stack of the mmap or mremap.
    pub stack: StackId,
}

/// Where blocks of one allocation site were freed (sampled).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSite {
    /// Stack that allocated.
    pub allocated: StackId,
    /// Stack that freed.
    pub freed: StackId,
    /// Sampled frees seen with this pair.
    pub count: u64,
    /// Sum of the lifetimes of those blocks, in centiseconds.
    pub lifetime_sum_cs: u64,
}

/// A descriptor opened by the program through a hooked function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdRecord {
    /// Descriptor number.
    pub fd: u32,
    /// Stack that opened it.
    pub stack: StackId,
}

/// Totals since the process image started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapTotals {
    /// Allocation calls that succeeded (a realloc counts as one).
    pub allocations: u64,
    /// Blocks given back (a realloc counts as one).
    pub frees: u64,
    /// Sum of all requested sizes, bytes.
    pub allocated_bytes: u64,
    /// Highest sum of live requested sizes, bytes.
    pub peak_bytes: u64,
}

/// What the recorder could not record; zero everywhere means exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LossCounters {
    /// Events lost for lack of room or time.
    pub dropped_events: u64,
    /// Frees of addresses that the recorder did not know.
    pub unknown_frees: u64,
    /// Stacks cut because the code had no unwind information.
    pub cut_stacks: u64,
    /// Stacks cut at the depth limit.
    pub deep_stacks: u64,
}

/// What kind of wrong release the recorder saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedErrorKind {
    /// The block had been freed already.
    DoubleFree,
    /// The address is not the start of any block.
    InvalidFree,
    /// Allocated by one family, released by another.
    MismatchedFree {
        /// Family of the allocation.
        allocated: Family,
        /// Family of the release.
        released: Family,
    },
}

/// A wrong release, merged by its stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedError {
    /// What was wrong.
    pub kind: RecordedErrorKind,
    /// Address of the first such release.
    pub addr: Addr,
    /// Where the wrong release happened.
    pub stack: StackId,
    /// Where the block was allocated (0 when unknown).
    pub allocated: StackId,
    /// Where it was first freed (0 when unknown or not applicable).
    pub freed: StackId,
    /// How often.
    pub count: u64,
}

/// Everything the recorder knows about one process image at one moment.
#[derive(Clone, Debug, Default)]
pub struct LiveTable {
    /// Live blocks, sorted by address, no two with the same address.
    pub blocks: Vec<LiveBlock>,
    /// Live application mappings, sorted by address.
    pub mappings: Vec<LiveMapping>,
    /// Call stacks.
    pub stacks: StackTable,
    /// Modules named by the frames.
    pub modules: Vec<RecordedModule>,
    /// Totals.
    pub totals: HeapTotals,
    /// Usual free sites.
    pub free_sites: Vec<FreeSite>,
    /// Descriptors with the stack that opened them.
    pub fds: Vec<FdRecord>,
    /// Wrong releases.
    pub errors: Vec<RecordedError>,
    /// Losses.
    pub losses: LossCounters,
    /// Mean bytes between samples; `None` when every allocation was recorded.
    pub sampled_every_bytes: Option<u64>,
    /// What the recorder knows about roots.
    pub hints: RootHints,
}

/// What the recorder knows that decides which memory is a root.
#[derive(Clone, Debug, Default)]
pub struct RootHints {
    /// The recorder's own memory: never a root.
    pub own: Vec<Range>,
    /// Mappings made by the allocator's library for its heap and tables:
    /// never roots.
    pub allocator_mappings: Vec<Range>,
    /// Thread control blocks (x86-64: fs base) of threads that ended; glibc
    /// may keep their stacks, whose stale words must not be roots.
    pub ended_threads: Vec<Addr>,
    /// Regions that the program declared with `__lsan_register_root_region`.
    pub declared_roots: Vec<Range>,
    /// State of the thread that asked for the check, at the moment it
    /// entered the recorder: replaces what ptrace says of that thread, whose
    /// current frames are the recorder's.
    pub asking: Option<ThreadState>,
}

/// One thread of the process under examination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThreadState {
    /// Kernel thread id.
    pub tid: u32,
    /// Stack pointer.
    pub sp: Addr,
    /// Thread control block (x86-64: fs base); 0 when unknown.
    pub tcb: Addr,
    /// General registers' values, without the stack pointer.
    pub registers: Vec<u64>,
    /// True when stopped inside a system call: the 128 bytes below the stack
    /// pointer (the red zone) are then dead.
    pub in_syscall: bool,
}
