use super::*;
use crate::mark::{Heuristics, mark};
use leakscope_model::LossKind;
use leakscope_testkit::FakeMemory;

const DATA: u64 = 0x50_0000;
const BSS: u64 = 0x50_4000;
const HEAP: u64 = 0x60_0000;
const HEAP_END: u64 = HEAP + 0x2_1000;
const MAPPED: u64 = 0x7000_0000;
const LIBC: u64 = 0x7fff_0000_0000;
const TLS: u64 = 0x7fff_1000_0000;
const THREAD: u64 = 0x7fff_2000_0000;
const STACK: u64 = 0x7fff_3000_0000;
const PAGES: u64 = 0x1_0000;
const STACK_END: u64 = STACK + PAGES;
/// The first thread's control block.
const TCB: u64 = TLS + 0x1740;
/// The second thread's.
const TCB_2: u64 = THREAD + PAGES - 0x940;

fn block(addr: u64, size: u64) -> LiveBlock {
    LiveBlock::new(addr, size)
}

/// A process with everything that has roots or heaps, as glibc lays it out.
struct Process {
    memory: FakeMemory,
    threads: Vec<ThreadState>,
    blocks: Vec<LiveBlock>,
    hints: RootHints,
    switches: RootSwitches,
    /// Next free chunk of `[heap]`.
    top: u64,
}

impl Process {
    fn new() -> Process {
        let mut memory = FakeMemory::new();
        memory
            .region(0x40_0000, 0x1000, "r-xp", "/bin/program")
            .region(DATA, 0x4000, "rw-p", "/bin/program")
            .region(BSS, 0x1000, "rw-p", "")
            .region(HEAP, HEAP_END - HEAP, "rw-p", "[heap]")
            .region(MAPPED, 0x8000, "rw-p", "")
            .region(LIBC, 0x1000, "r-xp", "/lib/libc.so.6")
            .region(LIBC + 0x1000, 0x4000, "rw-p", "/lib/libc.so.6")
            .region(TLS, 0x3000, "rw-p", "")
            .region(THREAD - 0x1000, 0x1000, "---p", "")
            .region(THREAD, PAGES, "rw-p", "")
            .region(STACK, PAGES, "rw-p", "[stack]")
            .words(TCB, &[TCB, 0, TCB]);
        let mut process = Process {
            memory,
            threads: vec![ThreadState {
                tid: 11,
                sp: Addr(STACK + 0x8000),
                tcb: Addr(TCB),
                registers: vec![0; 17],
                in_syscall: true,
            }],
            blocks: Vec::new(),
            hints: RootHints::default(),
            switches: RootSwitches::default(),
            top: HEAP,
        };
        process.chunk(0x290);
        process
    }

    /// A chunk of `size` bytes in `[heap]`, header included; its user address.
    fn chunk(&mut self, size: u64) -> u64 {
        let at = self.top;
        self.top += size;
        self.memory.word(at + 8, size | 1);
        self.memory.word(self.top + 8, (HEAP_END - self.top) | 1);
        at + 16
    }

    fn live(&mut self, size: u64) -> u64 {
        let at = self.chunk((size + 8).next_multiple_of(16).max(32));
        self.add(at, size);
        at
    }

    fn add(&mut self, at: u64, size: u64) {
        self.blocks.push(block(at, size));
        self.blocks.sort_by_key(|b| b.addr);
    }

    fn second_thread(&mut self) {
        self.descriptor(TCB_2, THREAD - 0x1000, PAGES + 0x1000);
        self.threads.push(ThreadState {
            tid: 13,
            sp: Addr(THREAD + 0x9000),
            tcb: Addr(TCB_2),
            registers: Vec::new(),
            in_syscall: true,
        });
    }

    /// A `struct pthread` with its stack block.
    fn descriptor(&mut self, tcb: u64, block: u64, size: u64) {
        self.memory
            .words(tcb, &[tcb, 0, tcb])
            .words(tcb + 0x690, &[block, size]);
    }

    /// glibc's `malloc_state` at `at`, all bins empty but one that holds the
    /// chunk at `listed`.
    fn malloc_state(&mut self, at: u64, top: u64, listed: Option<u64>) {
        self.memory.word(at + 96, top);
        for bin in 0..127 {
            let pair = at + 112 + 16 * bin;
            self.memory.words(pair, &[pair - 16, pair - 16]);
        }
        if let Some(chunk) = listed {
            let pair = at + 112 + 16 * 5;
            self.memory
                .words(pair, &[chunk, chunk])
                .words(chunk + 16, &[pair - 16, pair - 16]);
        }
        self.memory.words(at + 2160, &[at, 0, 1, 0x21000, 0x21000]);
    }

    fn plan(&self) -> RootPlan {
        plan(&RootInput {
            memory: &self.memory,
            threads: &self.threads,
            blocks: &self.blocks,
            hints: &self.hints,
            switches: self.switches,
            known_heaps: None,
        })
    }

    fn kinds(&self) -> Vec<LossKind> {
        mark(&self.memory, &self.blocks, &self.plan(), &Heuristics::ALL).kinds
    }

    fn kind(&self, at: u64) -> LossKind {
        let index = self.blocks.iter().position(|b| b.addr.0 == at);
        index.map_or(LossKind::Indirect, |i| self.kinds()[i])
    }

    fn is_root(&self, at: u64) -> bool {
        self.plan().ranges.iter().any(|(r, _)| r.contains(Addr(at)))
    }

    /// A block whose only pointer stands at `at`.
    fn held_at(at: u64) -> (Process, u64) {
        Process::held(|_| at)
    }

    fn held(place: impl FnOnce(&mut Process) -> u64) -> (Process, u64) {
        let mut process = Process::new();
        let at = place(&mut process);
        let block = process.live(40);
        process.memory.word(at, block);
        (process, block)
    }
}

/// Reachable as it is, lost with the root switched off.
fn is_a_root(mut process: Process, block: u64, off: impl FnOnce(&mut RootSwitches)) {
    assert_eq!(process.kind(block), LossKind::Reachable);
    off(&mut process.switches);
    assert_eq!(process.kind(block), LossKind::Definite);
}

/// Lost as it is, found when the exclusion is switched off.
fn is_no_root(mut process: Process, block: u64, off: impl FnOnce(&mut RootSwitches)) {
    assert_eq!(process.kind(block), LossKind::Definite);
    off(&mut process.switches);
    assert_ne!(process.kind(block), LossKind::Definite);
}

#[test]
fn globals_of_executable_bss_and_libraries() {
    for at in [DATA, BSS + 8, LIBC + 0x1010] {
        let (process, block) = Process::held_at(at);
        is_a_root(process, block, |s| s.globals = false);
    }
}

#[test]
fn stack_above_the_stack_pointer() {
    for at in [STACK + 0x8000, STACK_END - 8] {
        let (process, block) = Process::held_at(at);
        is_a_root(process, block, |s| s.stacks = false);
    }
    for at in [STACK, STACK + 0x7000] {
        let (process, block) = Process::held_at(at);
        is_no_root(process, block, |s| s.exclude_dead_stack = false);
    }
}

#[test]
fn red_zone_outside_of_system_calls() {
    let (mut process, block) = Process::held_at(STACK + 0x8000 - 128);
    process.threads[0].in_syscall = false;
    is_a_root(process, block, |s| s.stacks = false);
    let (process, block) = Process::held_at(STACK + 0x8000 - 128);
    is_no_root(process, block, |s| s.exclude_red_zone = false);
}

#[test]
fn registers() {
    let mut process = Process::new();
    let block = process.live(40);
    process.threads[0].registers[3] = block;
    is_a_root(process, block, |s| s.registers = false);
}

#[test]
fn the_asking_thread_replaces_its_traced_state() {
    let (mut process, block) = Process::held_at(STACK + 0x4000);
    assert_eq!(process.kind(block), LossKind::Definite);
    process.hints.asking = Some(ThreadState {
        tid: 11,
        sp: Addr(STACK + 0x3f00),
        tcb: Addr(0),
        registers: Vec::new(),
        in_syscall: false,
    });
    assert_eq!(process.kind(block), LossKind::Reachable);
    assert_eq!(process.plan().counts.threads, 1);
    // Its control block is still the traced one.
    assert!(process.plan().start_words.contains(&TCB));
}

#[test]
fn thread_local_storage() {
    let (process, block) = Process::held_at(TCB - 64);
    is_a_root(process, block, |s| s.tls = false);
}

#[test]
fn dtv_points_inside_its_block() {
    let mut process = Process::new();
    let block = process.live(288);
    process.memory.word(TCB + 8, block + 16);
    is_a_root(process, block, |s| s.tls = false);
}

#[test]
fn another_threads_stack() {
    let (mut process, block) = Process::held_at(THREAD + 0x9000);
    process.second_thread();
    assert_eq!(process.plan().counts.threads, 2);
    is_a_root(process, block, |s| s.stacks = false);
    let (mut process, block) = Process::held_at(THREAD + 0x8ff8);
    process.second_thread();
    is_no_root(process, block, |s| s.exclude_dead_stack = false);
    // Thread-specific values lie in the descriptor.
    let (mut process, block) = Process::held_at(TCB_2 + 0x318);
    process.second_thread();
    is_a_root(process, block, |s| s.tls = false);
}

#[test]
fn a_coroutine_stack_is_scanned_whole() {
    let (mut process, block) = Process::held_at(MAPPED + 0x100);
    process.threads[0].sp = Addr(MAPPED + 0x4000);
    assert_eq!(process.kind(block), LossKind::Reachable);
    // And the stack it left, from which it will return.
    let (mut process, block) = Process::held_at(STACK + 0x100);
    process.threads[0].sp = Addr(MAPPED + 0x4000);
    assert_eq!(process.kind(block), LossKind::Reachable);
}

#[test]
fn a_block_used_as_stack_is_reachable() {
    let mut process = Process::new();
    let stack = process.live(4001);
    let held = process.live(40);
    process.memory.word(stack + 64, held);
    process.threads[0].sp = Addr(stack + 1000);
    assert_eq!(process.kinds(), [LossKind::Reachable; 2]);
}

#[test]
fn stacks_of_ended_threads() {
    let ended = || {
        let (mut process, block) = Process::held_at(THREAD + 0x9000);
        process.descriptor(TCB_2, THREAD - 0x1000, PAGES + 0x1000);
        process.hints.ended_threads = vec![Addr(TCB_2), Addr(0x1234), Addr(u64::MAX)];
        (process, block)
    };
    let (process, block) = ended();
    is_no_root(process, block, |s| s.exclude_ended_stacks = false);
    // The same without the words that name the block.
    let (mut process, block) = ended();
    process.memory.words(TCB_2 + 0x690, &[0, 0]);
    is_no_root(process, block, |s| s.exclude_ended_stacks = false);
    // A thread that lives again at the same place.
    let (mut process, block) = ended();
    process.second_thread();
    assert_eq!(process.kind(block), LossKind::Reachable);
    // A stack that the program lent belongs to the program.
    let (mut process, block) = ended();
    process.descriptor(TCB_2, THREAD + 0x1000, PAGES - 0x1000);
    assert_eq!(process.kind(block), LossKind::Reachable);
    // Unless a guard, which may be no mapping of its own, says otherwise.
    process.memory.word(TCB_2 + 0x6a0, 0x1000);
    is_no_root(process, block, |s| s.exclude_ended_stacks = false);
    // No control block any more.
    let (mut process, block) = ended();
    process.memory.word(TCB_2 + 16, 0);
    assert_eq!(process.kind(block), LossKind::Reachable);
    // The dtv stays with the stack.
    let (mut process, _) = ended();
    let dtv = process.live(288);
    process.memory.word(TCB_2 + 8, dtv + 16);
    assert_eq!(process.kind(dtv), LossKind::Reachable);
}

#[test]
fn application_mappings() {
    let (process, block) = Process::held_at(MAPPED + 0x100);
    is_a_root(process, block, |s| s.mappings = false);
}

#[test]
fn declared_regions_even_in_free_memory() {
    let (mut process, block) = Process::held(|p| p.chunk(96) + 16);
    assert_eq!(process.kind(block), LossKind::Definite);
    let inside = process.blocks[0].addr.0 - 96;
    process.hints.declared_roots = vec![Range::new(inside, inside + 64), Range::new(0, u64::MAX)];
    is_a_root(process, block, |s| s.declared = false);
}

#[test]
fn freed_memory_is_no_root() {
    let (process, block) = Process::held(|p| p.chunk(96) + 16);
    is_no_root(process, block, |s| s.exclude_heaps = false);
    // Also in front of the lowest block, in the thread's cache.
    let (process, block) = Process::held_at(HEAP + 0x100);
    is_no_root(process, block, |s| s.exclude_heaps = false);
    // Also behind the last.
    let (process, block) = Process::held_at(HEAP_END - 8);
    is_no_root(process, block, |s| s.exclude_heaps = false);
}

#[test]
fn what_lies_before_the_heap_is_a_root() {
    let mut process = Process::new();
    // The program's own sbrk memory, then malloc's first chunk.
    process.memory.words(HEAP, &[0; 0x52]);
    process.top = HEAP + 0x1000;
    process.chunk(0x290);
    let block = process.live(40);
    process.memory.word(HEAP + 0x800, block);
    is_a_root(process, block, |s| s.mappings = false);
}

#[test]
fn what_lies_behind_the_last_chunk_is_a_root() {
    let arena = LIBC + 0x1c80;
    let piece = HEAP_END - 0x3000;
    for (top_end, root) in [(piece, true), (piece + 8, false), (HEAP_END, false)] {
        let mut process = Process::new();
        let block = process.live(40);
        process
            .memory
            .word(process.top + 8, (top_end - process.top) | 1);
        process.malloc_state(arena, process.top, None);
        process.memory.word(piece + 0x70, block);
        if root {
            is_a_root(process, block, |s| s.mappings = false);
        } else {
            assert_eq!(process.kind(block), LossKind::Definite, "{top_end:#x}");
        }
    }
    // A block behind it: the arena is not to be trusted.
    let mut process = Process::new();
    let block = process.live(40);
    process
        .memory
        .word(process.top + 8, (piece - process.top) | 1);
    process.malloc_state(arena, process.top, None);
    process.memory.word(piece + 0x70, block);
    process.add(piece + 0x1010, 31);
    assert_eq!(process.kind(block), LossKind::Definite);
}

#[test]
fn a_heap_without_blocks_is_recognised() {
    let mut process = Process::new();
    process.chunk(96);
    assert!(!process.is_root(HEAP + 0x2a0));
    // Other contents: not recognised, a root.
    process.memory.word(HEAP + 8, 0x2a1);
    assert!(process.is_root(HEAP + 0x2a0));
}

#[test]
fn main_arena_is_no_root() {
    let arena = LIBC + 0x1c80;
    for listed in [false, true] {
        let (mut process, block) = Process::held_at(arena + 96);
        let free = process.chunk(0x90) - 16;
        process.malloc_state(arena, block + 32, listed.then_some(free));
        is_no_root(process, block, |s| s.exclude_allocator_metadata = false);
    }
    // What stands around it still is.
    for at in [arena - 8, arena + 2200] {
        let (mut process, block) = Process::held_at(at);
        process.malloc_state(arena, 0, None);
        is_a_root(process, block, |s| s.globals = false);
    }
}

#[test]
fn empty_lists_of_the_program_are_no_arena() {
    let (mut process, block) = Process::held_at(DATA + 0x300);
    for pair in 0..19 {
        let at = DATA + 0x400 + 16 * pair;
        process.memory.words(at, &[at - 16, at - 16]);
    }
    is_a_root(process, block, |s| s.globals = false);
}

#[test]
fn thread_arenas_are_no_roots_with_and_without_blocks() {
    let arena_start = 16 * glibc::ARENA_HEAP;
    for with_block in [true, false] {
        let (mut process, block) = Process::held(|p| {
            // The mapping begins before the arena and goes on behind it.
            p.memory.region(arena_start - 0x1000, 0x2_4000, "rw-p", "");
            p.memory
                .words(arena_start, &[arena_start + 0x30, 0, 0x2_1000, 0x2_1000]);
            p.malloc_state(arena_start + 0x30, arena_start + 0x1000, None);
            if with_block {
                p.memory.word(arena_start + 0x9d8, 0x35);
                p.add(arena_start + 0x9e0, 40);
            }
            arena_start + 0x1800
        });
        assert!(process.is_root(arena_start - 8));
        assert!(process.is_root(arena_start + 0x2_1000));
        process.switches.exclude_allocator_metadata = false;
        is_no_root(process, block, |s| s.exclude_heaps = false);
    }
}

#[test]
fn an_arenas_second_heap_is_no_root() {
    let first = 16 * glibc::ARENA_HEAP;
    let second = 20 * glibc::ARENA_HEAP;
    let mut process = Process::new();
    for heap in [first, second] {
        process.memory.region(heap, 0x2_1000, "rw-p", "");
    }
    process
        .memory
        .words(second, &[first + 0x30, first, 0x1000, 0x2_1000]);
    assert!(process.is_root(second + 0x800));
    process
        .memory
        .words(first, &[first + 0x30, 0, 0x1000, 0x2_1000]);
    process.malloc_state(first + 0x30, first + 0x1000, None);
    assert!(!process.is_root(second + 0x800));
}

#[test]
fn mapped_chunks_are_cut_out_of_a_joined_mapping() {
    let mut process = Process::new();
    let at = MAPPED + 0x2010;
    process.memory.words(at - 16, &[0, 0x3000 | 2]);
    process.add(at, 0x2fe8);
    assert!(process.is_root(MAPPED + 0x1ff8));
    assert!(!process.is_root(MAPPED + 0x2000));
    assert!(!process.is_root(MAPPED + 0x4ff8));
    assert!(process.is_root(MAPPED + 0x5000));
}

#[test]
fn unknown_allocators() {
    // A block without glibc's header: the mapping is a heap.
    let (mut process, block) = Process::held_at(MAPPED + 0x100);
    process.add(MAPPED + 0x400, 64);
    is_no_root(process, block, |s| s.exclude_heaps = false);
    // Unless the allocator's mapping is known exactly.
    let (mut process, block) = Process::held_at(MAPPED + 0x100);
    process.add(MAPPED + 0x1400, 64);
    process.hints.allocator_mappings = vec![Range::new(MAPPED + 0x1000, MAPPED + 0x2000)];
    is_a_root(process, block, |s| s.mappings = false);
    let (mut process, block) = Process::held_at(MAPPED + 0x1800);
    process.hints.allocator_mappings = vec![Range::new(MAPPED + 0x1000, MAPPED + 0x2000)];
    is_no_root(process, block, |s| s.exclude_allocator_metadata = false);
    // A pool in the program's data: only its blocks are cut out.
    let (mut process, block) = Process::held_at(BSS + 0x100);
    process.add(BSS + 0x200, 64);
    assert!(!process.is_root(BSS + 0x208));
    is_a_root(process, block, |s| s.globals = false);
}

#[test]
fn the_recorders_memory_is_no_root() {
    let (mut process, block) = Process::held_at(MAPPED + 0x1800);
    process.hints.own = vec![Range::new(MAPPED + 0x1000, MAPPED + 0x2000)];
    assert_eq!(process.kind(block), LossKind::Definite);
}

#[test]
fn ranges_are_disjoint_counted_and_free_of_blocks() {
    let mut process = Process::new();
    process.second_thread();
    let block = process.live(40);
    process.hints.declared_roots = vec![Range::new(DATA + 8, DATA + 24)];
    let plan = process.plan();
    assert!(plan.ranges.windows(2).all(|w| w[0].0.end <= w[1].0.start));
    assert!(
        plan.ranges
            .iter()
            .all(|(r, _)| !r.contains(Addr(block)) && !r.is_empty())
    );
    let counts = plan.counts;
    assert_eq!(counts.globals, 0x4000 - 16 + 0x1000 + 0x4000);
    assert_eq!(counts.declared, 16);
    assert_eq!(counts.registers, 17 * 8);
    assert_eq!(counts.threads, 2);
    let total: u64 = plan.ranges.iter().map(|(r, _)| r.len()).sum();
    assert_eq!(
        total,
        counts.globals + counts.stacks + counts.mappings + counts.declared
    );
}

#[test]
fn ended_threads_are_found_by_their_descriptors() {
    let mut process = Process::new();
    process.descriptor(TCB_2, THREAD - 0x1000, PAGES + 0x1000);
    let found = |p: &Process| ended_threads(&p.memory, &p.threads);
    assert_eq!(found(&process), [Addr(TCB_2)]);
    // The kernel clears the id only when the thread ends.
    process.memory.word(TCB_2 + 720, 13);
    assert!(found(&process).is_empty());
    process.memory.word(TCB_2 + 720, 0);
    process.second_thread();
    assert!(found(&process).is_empty());
}

#[test]
fn control_blocks_are_found_from_stack_pointers() {
    let mut process = Process::new();
    process.second_thread();
    process.memory.word(TCB + 720, 11).word(TCB_2 + 720, 13);
    let mut threads = process.threads.clone();
    threads.iter_mut().for_each(|t| t.tcb = Addr(0));
    find_control_blocks(&process.memory, &mut threads);
    let found: Vec<Addr> = threads.iter().map(|t| t.tcb).collect();
    assert_eq!(found, [Addr(TCB), Addr(TCB_2)]);
    // One that has ended is nobody's.
    process.memory.word(TCB_2 + 720, u64::MAX);
    threads[1].tcb = Addr(0);
    find_control_blocks(&process.memory, &mut threads);
    assert_eq!(threads[1].tcb, Addr(0));
}

#[test]
fn ended_threads_are_found_in_the_list_of_kept_stacks() {
    let mut process = Process::new();
    // No guard, and other memory behind: its mapping does not tell.
    let kept = MAPPED + 0x3000;
    process.descriptor(kept, MAPPED, 0x4000);
    let (user, cache) = (LIBC + 0x2000, LIBC + 0x2010);
    let (own, ended) = (TCB + 704, kept + 704);
    process
        .memory
        .words(user, &[own, own, ended, ended])
        .words(own, &[user, user])
        .words(ended, &[cache, cache]);
    let found = |p: &Process| ended_threads(&p.memory, &p.threads);
    assert_eq!(found(&process), [Addr(kept)]);
    process.memory.word(kept + 720, 0x7fff_ffff_ffff);
    assert_eq!(found(&process), [Addr(kept)]);
    // glibc 2.43 leaves the id there.
    process.memory.word(kept + 720, 17);
    assert_eq!(found(&process), [Addr(kept)]);
    // One that runs, and a list that does not lead back.
    let mut running = process.threads[0].clone();
    running.tcb = Addr(kept);
    process.threads.push(running);
    assert!(found(&process).is_empty());
    process.threads.pop();
    process.memory.word(ended + 8, own);
    assert!(found(&process).is_empty());
}
