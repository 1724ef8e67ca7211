//! Stacks and control blocks of threads, running and ended.
//!
//! In glibc (x86-64) the thread control block `tcb` is the fs base and the
//! start of `struct pthread`: word 0 and word 2 hold its own address, word 1
//! the dtv. It lies at the upper end of the stack that pthread_create made,
//! static TLS below it, the stack below that, a guard at the lower end.
//! Further words hold `stackblock` and `stackblock_size`, guard included, at
//! an offset that depends on the version: they are found by what they say.

use super::regions::{Class, Classified};
use super::words::read_words;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range, ThreadState};

/// Bytes of `struct pthread` to look at (2304 in glibc 2.36).
pub(super) const DESCRIPTOR: u64 = 0x900;
/// `stackblock` comes behind the header, which takes this many bytes.
const DESCRIPTOR_HEAD: u64 = 0x200;
/// Distance at most from the control block to the end of the stack block:
/// the descriptor, aligned, and the rest of its page.
const BLOCK_TAIL: u64 = 0x3000;
/// No stack is larger.
const STACK_MAX: u64 = 1 << 40;
/// Bytes below the stack pointer that a leaf function may use (System V ABI).
const RED_ZONE: u64 = 128;

/// One thread's stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stack {
    /// From the stack pointer (less the red zone) to the end.
    pub live: Range,
    /// From the start to `live`; empty when its start is not known for sure.
    pub dead: Range,
}

/// The stack that `thread` runs on, when it runs on one of its own: the
/// first thread's, or one that pthread_create made. A coroutine's stack, a
/// signal stack, a stack in a block or in the program's data have no known
/// lower end, so nothing below the stack pointer is called dead there.
pub(super) fn stack(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    thread: &ThreadState,
    red_zone_is_dead: bool,
) -> Option<Stack> {
    let sp = thread.sp.0;
    let region = regions.iter().find(|r| r.range.contains(thread.sp))?;
    let low = if thread.in_syscall && red_zone_is_dead {
        sp
    } else {
        sp.saturating_sub(RED_ZONE)
    };
    let low = Addr(low).max(region.range.start);
    let live = Range {
        start: low,
        end: region.range.end,
    };
    match region.class {
        Class::Stack => Some(Stack {
            live,
            dead: Range {
                start: region.range.start,
                end: low,
            },
        }),
        Class::Anonymous => {
            let block = stack_block(memory, thread.tcb, thread.sp);
            let guarded = || {
                region.range.contains(thread.tcb)
                    && has_guard(memory, region.range)
                    && thread.sp < thread.tcb
            };
            Some(match block.and_then(|b| b.intersect(&region.range)) {
                Some(block) => Stack {
                    live: Range {
                        start: low.max(block.start),
                        end: block.end,
                    },
                    dead: Range::new(block.start.0, low.0),
                },
                None if guarded() => Stack {
                    live,
                    dead: Range::new(region.range.start.0, low.0),
                },
                None => Stack {
                    live,
                    dead: Range::default(),
                },
            })
        }
        Class::Data | Class::Bss | Class::Heap | Class::Other => None,
    }
}

/// The kept stack of an ended thread: from its start past the descriptor.
///
/// Only stacks that glibc made are kept: their guard belongs to the block.
/// The program's own memory, lent as a stack, is the program's again.
pub(super) fn ended_stack(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    tcb: Addr,
    inhabited: &[Addr],
) -> Option<Range> {
    if !is_control_block(memory, tcb) || inhabited.contains(&tcb) {
        return None;
    }
    let region = regions
        .iter()
        .find(|r| r.class == Class::Anonymous && r.range.contains(tcb))?;
    let stack = match stack_block(memory, tcb, tcb) {
        Some(block) if block.start < region.range.start => block.intersect(&region.range)?,
        Some(_) => return None,
        None if has_guard(memory, region.range) => {
            let end = tcb
                .0
                .saturating_add(DESCRIPTOR)
                .checked_next_multiple_of(4096)?;
            Range::new(region.range.start.0, end).intersect(&region.range)?
        }
        None => return None,
    };
    (!inhabited.iter().any(|at| stack.contains(*at))).then_some(stack)
}

/// The word at `tcb + 8`: a pointer into the block of the thread's dtv.
pub(super) fn dtv(memory: &dyn MemoryReader, tcb: Addr) -> Option<u64> {
    if !is_control_block(memory, tcb) {
        return None;
    }
    memory.read_u64(tcb.checked_add(8)?).ok()
}

fn is_control_block(memory: &dyn MemoryReader, tcb: Addr) -> bool {
    let words = read_words(memory, tcb.0, 24);
    tcb.0 != 0 && words.len() == 3 && words[0] == tcb.0 && words[2] == tcb.0
}

/// `stackblock` and its size, from the descriptor at `tcb`: the only pair of
/// words that encloses both the descriptor and `inside` and ends right
/// behind the descriptor.
fn stack_block(memory: &dyn MemoryReader, tcb: Addr, inside: Addr) -> Option<Range> {
    if tcb.0 == 0 {
        return None;
    }
    let words = read_words(memory, tcb.0, DESCRIPTOR);
    let head = (DESCRIPTOR_HEAD / 8) as usize;
    words.get(head..)?.windows(2).find_map(|pair| {
        let (start, size) = (pair[0], pair[1]);
        if size > STACK_MAX {
            return None;
        }
        let block = Range::new(start, start.checked_add(size)?);
        (block.contains(tcb) && block.contains(inside) && block.end.0 - tcb.0 <= BLOCK_TAIL)
            .then_some(block)
    })
}

/// Whether the mapping below touches `range` and is closed.
fn has_guard(memory: &dyn MemoryReader, range: Range) -> bool {
    range
        .start
        .0
        .checked_sub(1)
        .and_then(|below| memory.map().find(Addr(below)))
        .is_some_and(|r| !r.read && !r.write)
}
