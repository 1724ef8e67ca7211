//! What the unwinder needs from the recorder.
// Only the trait is unsafe to implement; there is no unsafe block here.
#![allow(unsafe_code)]

/// A loaded module, as far as unwinding needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Id that goes into the stack nodes of this module.
    pub id: u16,
    /// First address of the mapped range that holds `.eh_frame_hdr` and
    /// `.eh_frame` (the `PT_LOAD` segment around `PT_GNU_EH_FRAME`).
    pub start: u64,
    /// End of that range, exclusive.
    pub end: u64,
    /// Address of `.eh_frame_hdr` (`PT_GNU_EH_FRAME`); 0 if there is none.
    pub eh_frame_hdr: u64,
    /// Its length in bytes.
    pub eh_frame_hdr_len: u64,
}

/// How a frame appears in a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boundary {
    /// An ordinary frame: one node.
    None,
    /// A frame of the recorder: no node, the frames that it called have theirs.
    Hidden,
    /// A frame of the recorder's allocating entry point of that kind (1 to 61;
    /// larger kinds are taken as 61): neither it nor any frame that it called
    /// has a node, so that the stack ends with the caller of the allocator.
    Allocator(u8),
}

/// The recorder's side of unwinding. Calls come from inside an allocation
/// function of the target: an implementation must not allocate, block or panic.
///
/// # Safety
/// - The range `start..end` of each [`Module`] that `module_at` returns is
///   mapped and readable until [`RowCache`](super::RowCache)'s epoch changes,
///   and nothing writes to it. So is the page of the `pc` it was asked about.
/// - `readable` is true only for pages that are mapped and readable now, and
///   `memory_epoch` changes (before or after, but no later than the next
///   capture) when a page that may hold a stack is unmapped.
pub unsafe trait Host {
    /// The module whose code holds `pc`. Asked once for each new pc; must also
    /// know modules whose constructors are running under `dlopen`.
    fn module_at(&self, pc: u64) -> Option<Module>;
    /// The child of stack node `parent` (0: the root) for `frame`
    /// (`wire::entry::node::frame`); 0 if there is no room for it.
    fn intern(&self, parent: u32, frame: u64) -> u32;
    /// Whether the page that begins at `page` can be read. Asked only for
    /// stacks outside the thread's own bounds (coroutines, signal stacks).
    fn readable(&self, page: u64) -> bool;
    /// Counts unmappings of memory that may have held such a stack (`munmap`,
    /// `mremap`, `free` of a block of its own mapping).
    fn memory_epoch(&self) -> u64;
    /// Is this return address inside the recorder's own code? Asked once for
    /// each new pc.
    fn boundary(&self, pc: u64) -> Boundary;
    /// Longest stack that is kept whole, in frames: 1 to [`MAX_DEPTH`](super::MAX_DEPTH)
    /// (others are taken as the nearest).
    fn max_depth(&self) -> u32;
}
