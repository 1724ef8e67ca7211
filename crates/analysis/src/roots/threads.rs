//! Stacks and control blocks of threads, running and ended.
//!
//! In glibc (x86-64) the thread control block `tcb` is the fs base and the
//! start of `struct pthread`: word 0 and word 2 hold its own address, word 1
//! the dtv. It lies at the upper end of the stack that pthread_create made,
//! static TLS below it, the stack below that, a guard at the lower end.
//! Further words hold `stackblock` and `stackblock_size`, guard included, at
//! an offset that depends on the version: they are found by what they say.

use leakscope_heap::regions::{Class, Classified};
use leakscope_heap::words::read_words;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range, ThreadState};
use std::collections::HashSet;

/// Bytes of `struct pthread` to look at (2304 in glibc 2.36).
pub(super) const DESCRIPTOR: u64 = 0x900;
/// `stackblock` comes behind the header, which takes this many bytes.
const DESCRIPTOR_HEAD: u64 = 0x200;
/// Distance at most from the control block to the end of the stack block:
/// the descriptor, aligned, and the rest of its page.
const BLOCK_TAIL: u64 = 0x3000;
/// In the descriptor behind its header: a list's links, then the thread's id
/// (x86-64, since glibc 2.4).
const LIST: u64 = 704;
const TID: u64 = 720;
/// How far from each other the heads of these lists lie, bytes.
const HEADS_NEAR: u64 = 128;
/// Threads that are followed in a list at most.
const MOST_THREADS: usize = 1 << 16;
/// How far from a stack pointer, and in how large a mapping, a control block is
/// looked for, bytes.
const NEAR: u64 = 256 << 10;
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
            Some(match block.and_then(|(b, _)| b.intersect(&region.range)) {
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

/// The control block of a running thread whose stack pointer is `sp`, found by
/// its contents: above the stack that pthread_create made; of the first
/// thread, in a small mapping of its own.
pub(super) fn control_block(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    sp: Addr,
) -> Option<Addr> {
    let region = regions.iter().find(|r| r.range.contains(sp))?;
    let own = match region.class {
        Class::Anonymous => vec![Range {
            start: Addr(sp.0 & !7),
            end: region.range.end,
        }],
        Class::Stack => {
            let small = regions.iter().filter(|r| {
                matches!(r.class, Class::Anonymous | Class::Bss) && r.range.len() <= NEAR
            });
            small.map(|r| r.range).collect()
        }
        _ => Vec::new(),
    };
    own.into_iter().find_map(|range| {
        let words = read_words(memory, range.start.0, range.len().min(NEAR));
        let at = |from: usize, offset: u64| words.get(from + (offset / 8) as usize).copied();
        let found = (0..words.len()).find(|i| {
            let own = Some(range.start.0 + 8 * *i as u64);
            at(*i, 0) == own && at(*i, 16) == own && at(*i, TID).is_some_and(|w| !is_no_thread(w))
        });
        Some(Addr(range.start.0 + 8 * found? as u64))
    })
}

/// Control blocks of ended threads whose stacks glibc keeps for others: where
/// nobody watched threads end. The kernel clears a thread's id in its
/// descriptor then (CLONE_CHILD_CLEARTID, clone(2)); since glibc 2.43 the id
/// stays, and another word is cleared.
pub(super) fn ended(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    threads: &[ThreadState],
) -> Vec<Addr> {
    let running: HashSet<Addr> = threads.iter().map(|t| t.tcb).collect();
    let mut found: Vec<Addr> = kept_lists(memory, regions, &running)
        .into_iter()
        .flat_map(|head| in_list(memory, head))
        .filter(|tcb| !running.contains(tcb))
        .collect();
    found.extend(at_ends(memory, regions, threads));
    found.sort_unstable();
    found.dedup();
    found
}

/// Places of which one may be the head of the list of kept stacks. Descriptors
/// are in lists whose heads lie side by side in the loader's data since 2.34:
/// stacks in use, those that came with their threads (the first thread's
/// among them), kept ones. In static programs the linker chooses the order.
fn kept_lists(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    running: &HashSet<Addr>,
) -> Vec<u64> {
    let mut seen = HashSet::new();
    let mut lists: Vec<u64> = running
        .iter()
        .filter_map(|tcb| list_of(memory, regions, *tcb, &mut seen))
        .collect();
    lists.sort_unstable();
    lists.dedup();
    let around = lists.iter().flat_map(|head| {
        let first = head.wrapping_sub(HEADS_NEAR);
        (0..2 * HEADS_NEAR / 8).map(move |i| first.wrapping_add(8 * i))
    });
    let mut kept: Vec<u64> = around.filter(|head| !lists.contains(head)).collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}

/// The head of the list that the descriptor at `tcb` is in, unless the way
/// there leads through what was `seen`.
fn list_of(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    tcb: Addr,
    seen: &mut HashSet<u64>,
) -> Option<u64> {
    let in_data = |at: u64| {
        regions
            .iter()
            .any(|r| matches!(r.class, Class::Data | Class::Bss) && r.range.contains(Addr(at)))
    };
    let mut at = tcb.0.wrapping_add(LIST);
    for _ in 0..MOST_THREADS {
        match memory.read_u64(Addr(at)).ok()? {
            0 => return None,
            to if in_data(to) => return Some(to),
            to if !seen.insert(to) => return None,
            to => at = to,
        }
    }
    None
}

/// Control blocks of the threads in the list with this head.
fn in_list(memory: &dyn MemoryReader, head: u64) -> Vec<Addr> {
    let mut found = Vec::new();
    let mut at = head;
    for _ in 0..MOST_THREADS {
        let Ok(next) = memory.read_u64(Addr(at)) else {
            break;
        };
        let back = memory.read_u64(Addr(next.wrapping_add(8)));
        if next == head || back != Ok(at) {
            break;
        }
        let tcb = Addr(next.wrapping_sub(LIST));
        if is_control_block(memory, tcb) {
            found.push(tcb);
        }
        at = next;
    }
    found
}

/// The id in the low half of `word`: the kernel clears it, and glibc makes it
/// negative when it keeps the stack.
fn is_no_thread(word: u64) -> bool {
    word as i32 <= 0
}

/// Descriptors at the ends of mappings that look like stacks.
fn at_ends(
    memory: &dyn MemoryReader,
    regions: &[Classified],
    threads: &[ThreadState],
) -> Vec<Addr> {
    let inhabited = threads.iter().flat_map(|t| [t.sp, t.tcb]);
    let kept = regions.iter().filter(|r| {
        r.class == Class::Anonymous
            && has_guard(memory, r.range)
            && !inhabited.clone().any(|at| r.range.contains(at))
    });
    kept.filter_map(|region| {
        let high = region.range.end.0;
        let low = high.saturating_sub(BLOCK_TAIL).max(region.range.start.0);
        let words = read_words(memory, low, high - low);
        let at = |from: usize, offset: u64| words.get(from + (offset / 8) as usize).copied();
        let is_ended = |i: &usize| {
            let own = Some(low + 8 * *i as u64);
            at(*i, 0) == own && at(*i, 16) == own && at(*i, TID).is_some_and(is_no_thread)
        };
        let found = (0..words.len()).rev().find(is_ended)?;
        Some(Addr(low + 8 * found as u64))
    })
    .collect()
}

/// The kept stack of an ended thread: from its start past the descriptor.
///
/// Only stacks that glibc made are kept: their guard belongs to the block.
/// The program's own memory, lent as a stack, is the program's again. Since
/// glibc 2.42 a guard is no mapping of its own, and only its size tells.
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
        Some((block, guard)) if guard || block.start < region.range.start => {
            block.intersect(&region.range)?
        }
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
/// behind the descriptor. And whether the word behind is a guard's size:
/// glibc gives none to stacks that it did not make.
fn stack_block(memory: &dyn MemoryReader, tcb: Addr, inside: Addr) -> Option<(Range, bool)> {
    if tcb.0 == 0 {
        return None;
    }
    let words = read_words(memory, tcb.0, DESCRIPTOR);
    let head = (DESCRIPTOR_HEAD / 8) as usize;
    words.get(head..)?.windows(3).find_map(|words| {
        let (start, size, guard) = (words[0], words[1], words[2]);
        if size > STACK_MAX {
            return None;
        }
        let block = Range::new(start, start.checked_add(size)?);
        (block.contains(tcb) && block.contains(inside) && block.end.0 - tcb.0 <= BLOCK_TAIL)
            .then_some((
                block,
                guard > 0 && guard < size && guard.is_multiple_of(4096),
            ))
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
