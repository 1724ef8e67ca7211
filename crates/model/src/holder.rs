//! Who holds a block: a root and the blocks between.

use crate::{Addr, KindTotals, LossKind};

/// What kind of root holds a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RootKind {
    /// A global or static variable of an executable or library.
    Global,
    /// A thread's stack.
    Stack,
    /// Thread-local storage, and what the system keeps for its threads.
    ThreadLocal,
    /// A register.
    Register,
    /// Other memory that the program mapped.
    Mapping,
    /// Declared as a root by the program.
    Declared,
}

/// Where a path begins. What is not known is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderRoot {
    /// What it is.
    pub kind: RootKind,
    /// The word that points to the first block; `None` in a register.
    pub address: Option<Addr>,
    /// Name of the variable.
    pub variable: Option<String>,
    /// How far inside the variable the word is, bytes.
    pub offset: Option<u64>,
    /// Path of the executable or library that the word belongs to.
    pub module: Option<String>,
    /// Address of the word in that ELF file.
    pub module_offset: Option<u64>,
    /// Id of the thread that it belongs to.
    pub thread: Option<u32>,
    /// On a stack: the function in whose frame it seems to be.
    pub function: Option<String>,
    /// What the kernel calls the mapping: a path, or a name such as `[heap]`.
    pub mapping: Option<String>,
}

/// A block on the way from a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderStep {
    /// Its address.
    pub address: Addr,
    /// Its usable size, bytes.
    pub bytes: u64,
    /// Its type, where it is known.
    pub type_name: Option<String>,
    /// What it holds, in a few words.
    pub shape: String,
    /// How far inside it the pointer before it points; zero for its start.
    pub into: u64,
    /// Where in it the pointer to the next block is; `None` in the last block
    /// and before blocks that are left out.
    pub offset: Option<u64>,
    /// Blocks left out between this one and the next.
    pub skipped: u64,
}

/// The way from a root to an example of a record's blocks.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// Where it begins.
    pub root: HolderRoot,
    /// Blocks left out behind the root.
    pub skipped: u64,
    /// The blocks on the way; the last is the example.
    pub path: Vec<HolderStep>,
    /// Of the blocks that were asked, the share that this root holds, 0..=1.
    pub share: f64,
}

/// Blocks, or kinds of blocks, by what would be freed with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Largest {
    /// Types and shapes, largest first: the sum of what goes with each block,
    /// without what several share.
    pub kinds: Vec<Retaining>,
    /// Single blocks, largest first. Of several inside one another that are
    /// alike only the outermost is there.
    pub blocks: Vec<Retaining>,
}

/// A block, or blocks that look alike, and what would be freed with them.
#[derive(Clone, Debug, PartialEq)]
pub struct Retaining {
    /// Type, where it is known.
    pub type_name: Option<String>,
    /// What it holds, in a few words.
    pub shape: String,
    /// Of a single block, where it is.
    pub address: Option<Addr>,
    /// The blocks themselves.
    pub own: KindTotals,
    /// With all that only they keep, themselves included.
    pub retained: KindTotals,
    /// Who holds them.
    pub holder: Option<Holder>,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// In a block that the program has.
    Block,
    /// In a chunk that the allocator keeps for later.
    Free,
    /// Elsewhere in a heap: the allocator's own.
    Allocator,
    /// In data of an executable or library.
    Global,
    /// In its code or constants.
    Code,
    /// On a thread's stack.
    Stack,
    /// In thread-local storage.
    ThreadLocal,
    /// In other memory.
    Mapping,
    /// Nothing is there.
    Unmapped,
}

/// What an address is, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub kind: PlaceKind,
    /// The block, chunk or mapping around it.
    pub start: Option<Addr>,
    /// Its size, bytes.
    pub bytes: Option<u64>,
    /// How far inside it, or inside the variable, the address is.
    pub offset: Option<u64>,
    /// Type of the block.
    pub type_name: Option<String>,
    /// What the block holds.
    pub shape: Option<String>,
    /// What became of the block.
    pub loss: Option<LossKind>,
    /// Where the allocator keeps the free chunk.
    pub kept: Option<&'static str>,
    /// Name of the variable.
    pub variable: Option<String>,
    /// Name of the function whose code, or in whose frame, it is.
    pub function: Option<String>,
    /// Executable or library.
    pub module: Option<String>,
    /// Address in that ELF file.
    pub module_offset: Option<u64>,
    /// Thread.
    pub thread: Option<u32>,
    /// On a stack: below its stack pointer, so left over.
    pub left_over: bool,
    /// What the kernel calls the mapping.
    pub mapping: Option<String>,
}

/// A word that points to an address that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PointedBy {
    /// Of a root.
    Root {
        /// The root.
        root: HolderRoot,
        /// How far inside what is around the address it points.
        into: u64,
    },
    /// In a block; its `into` is that of the pointer.
    Block(HolderStep),
}

/// An answer to "what is at this address, and who points to it".
#[derive(Clone, Debug, PartialEq)]
pub struct Find {
    /// The address.
    pub address: Addr,
    /// What it is.
    pub place: Place,
    /// Some of the words that point to what is there; roots first.
    pub pointers: Vec<PointedBy>,
    /// How many there are.
    pub pointer_count: u64,
    /// Who holds the block.
    pub holder: Option<Holder>,
}
