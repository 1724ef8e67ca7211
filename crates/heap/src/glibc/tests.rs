use super::*;
use leakscope_model::Addr;
use leakscope_testkit::FakeMemory;

const BREAK: u64 = 0x5555_5555_9000;
const END: u64 = BREAK + 0x4000;
const LIBC: u64 = 0x7fff_0000_0000;
const ARENA: u64 = LIBC + 0x1c60;
const PARAMS: u64 = LIBC + 0x1380;
const TLS: u64 = 0x7ffe_f000_0000;
/// Less than a page behind the beginning of its mapping.
const TCB: u64 = TLS + 0x740;
const MAPPED: u64 = 0x7ffd_0000_0000;

/// A process whose `[heap]` is written chunk by chunk.
struct Process {
    memory: FakeMemory,
    at: u64,
    top: u64,
    system_mem: u64,
    threads: Vec<ThreadState>,
}

impl Process {
    /// With the chunks of these sizes and flags, from [`BREAK`]; the last is
    /// the top, and ends at [`END`].
    fn new(headers: &[u64]) -> (Process, Vec<u64>) {
        let mut memory = FakeMemory::new();
        memory
            .region(BREAK, END - BREAK, "rw-p", "[heap]")
            .region(MAPPED, 0x10_0000, "rw-p", "")
            .region(TLS, 0x3000, "rw-p", "")
            .region(LIBC, 0x1000, "r-xp", "/lib/libc.so.6")
            .region(LIBC + 0x1000, 0x4000, "rw-p", "/lib/libc.so.6");
        let mut process = Process {
            memory,
            at: BREAK,
            top: 0,
            system_mem: END - BREAK,
            threads: vec![ThreadState {
                tid: 7,
                tcb: Addr(TCB),
                ..ThreadState::default()
            }],
        };
        let users = headers.iter().map(|h| process.chunk(*h)).collect();
        let rest = (END - process.at) | 1;
        process.top = process.at;
        process.memory.words(process.at + 8, &[rest]);
        (process, users)
    }

    fn chunk(&mut self, header: u64) -> u64 {
        self.memory.words(self.at + 8, &[header]);
        let user = self.at + 16;
        self.at += header & !7;
        user
    }

    /// Writes `main_arena`, all bins empty, and `mp_`.
    fn arena(&mut self, fastbins: &[u64], mapped: (u64, u64)) -> &mut Process {
        for bin in 0..127 {
            let pair = ARENA + 112 + 16 * bin;
            self.memory.words(pair, &[pair - 16, pair - 16]);
        }
        self.memory
            .words(ARENA + 16, fastbins)
            .words(ARENA + 96, &[self.top])
            .words(ARENA + 2160, &[ARENA])
            .words(ARENA + 2184, &[self.system_mem, self.system_mem])
            .words(
                PARAMS,
                &[mapped.0 | 65536 << 32, 9, mapped.1, mapped.1 + 4096, BREAK],
            );
        self
    }

    /// Makes the block at `user` the thread's cache: bins and their chunks.
    fn cache(&mut self, user: u64, bins: &[(u64, &[u64])]) -> &mut Process {
        self.memory.words(TCB - 0x48, &[user]);
        for (bin, chunks) in bins {
            let word = user + 2 * bin / 8 * 8;
            let old = self.memory.read_u64(Addr(word)).unwrap();
            let count = (chunks.len() as u64) << (16 * (bin % 4));
            self.memory.words(word, &[old | count]);
            self.memory.words(user + 128 + 8 * bin, &[chunks[0]]);
            self.list(chunks, 0);
        }
        self
    }

    /// Links chunks by safe-linking; `shift` from what is named to the user.
    fn list(&mut self, users: &[u64], shift: u64) {
        for (i, at) in users.iter().enumerate() {
            let next = users.get(i + 1).map_or(0, |next| next - shift);
            self.memory.words(*at, &[at >> 12 ^ next]);
        }
    }

    fn walk(&self) -> Heaps {
        walk(&self.memory, &self.threads)
    }
}

fn blocks(heaps: &Heaps) -> Vec<u64> {
    let blocks = heaps.segments.iter().flat_map(|s| &s.blocks);
    blocks.map(|found| found.addr).collect()
}

fn places(heaps: &Heaps) -> Vec<(u64, FreePlace)> {
    let free = heaps.segments.iter().flat_map(|s| &s.free);
    free.map(|f| (f.chunk.start.0 + 16, f.place)).collect()
}

#[test]
fn every_chunk_is_a_block_or_free_once() {
    // Cache, block, cached, fastbin, block, bin, block, fastbin, cached, top.
    let headers = [0x291, 0x31, 0x41, 0x31, 0x51, 0x91, 0x60, 0x31, 0x41];
    let (mut process, users) = Process::new(&headers);
    process
        .cache(users[0], &[(2, &[users[8], users[2]])])
        .list(&[users[7], users[3]], 16);
    process.arena(&[users[7] - 16], (0, 0));
    let heaps = process.walk();
    assert_eq!(blocks(&heaps), [users[1], users[4], users[6]]);
    use FreePlace::{Bin, Cache, Fastbin, Top};
    assert_eq!(
        places(&heaps),
        [
            (users[2], Cache),
            (users[3], Fastbin),
            (users[5], Bin),
            (users[7], Fastbin),
            (users[8], Cache),
            (process.top + 16, Top),
        ]
    );
    assert_eq!(heaps.caches, 1);
    assert!(heaps.is_consistent(), "{heaps:?}");
    assert_eq!(heaps.arenas[0].said, heaps.arenas[0].found);
    let sizes: Vec<u64> = heaps.segments[0].blocks.iter().map(|b| b.size).collect();
    assert_eq!(sizes, [0x28, 0x48, 0x58]);
}

#[test]
fn an_empty_cache_is_known_by_its_thread() {
    let (mut process, users) = Process::new(&[0x291, 0x291, 0x31]);
    process.cache(users[0], &[]).arena(&[0], (0, 0));
    // The other one of that size is a block of zeros.
    assert_eq!(blocks(&process.walk()), [users[1], users[2]]);
    // Or by being the first.
    process.threads.clear();
    assert_eq!(blocks(&process.walk()), [users[1], users[2]]);
    // Unless it holds what no cache does: then it is the program's.
    process.memory.words(users[0], &[1]);
    let heaps = process.walk();
    assert_eq!((blocks(&heaps).len(), heaps.broken_lists), (3, 0));
}

#[test]
fn a_cache_at_work_is_told_by_those_of_other_threads() {
    let (mut process, users) = Process::new(&[0x291, 0x291, 0x41, 0x41, 0x41, 0x291]);
    process.cache(users[0], &[(2, &[users[2]])]);
    process.cache(users[1], &[(2, &[users[3], users[4]])]);
    let second = TLS + 0x2740;
    process.memory.words(TCB - 0x48, &[users[0]]);
    process.memory.words(second - 0x48, &[users[1]]);
    // Something of the same size, held on the second thread's stack.
    process.memory.words(second - 0x400, &[users[5]]);
    process.memory.words(users[5], &[u64::MAX; 3]);
    process.threads.push(ThreadState {
        tid: 11,
        tcb: Addr(second),
        ..ThreadState::default()
    });
    process.arena(&[0], (0, 0));
    let heaps = process.walk();
    assert_eq!(blocks(&heaps), [users[5]]);
    assert_eq!((heaps.caches, heaps.broken_lists), (2, 0));
    // The second thread is taking a chunk: the list is one shorter than the
    // count. Both are malloc's, and the other one stays the program's.
    process.memory.words(users[1] + 128 + 16, &[users[4]]);
    let heaps = process.walk();
    assert_eq!(heaps.broken_lists, 1);
    assert!(blocks(&heaps).contains(&users[5]));
    assert!(!blocks(&heaps).contains(&users[4]));
    assert!(!heaps.is_consistent());
}

#[test]
fn a_cache_without_its_thread_is_known_by_its_lists() {
    let (mut process, users) = Process::new(&[0x21, 0x291, 0x41, 0x41, 0x41]);
    process.cache(users[1], &[(2, &[users[2], users[4]])]);
    process.arena(&[0], (0, 0)).threads.clear();
    assert_eq!(blocks(&process.walk()), [users[0], users[3]]);
    // A count that does not fit: no cache, and nothing is free.
    process.memory.words(users[1], &[5 << 32]);
    assert_eq!(blocks(&process.walk()).len(), 5);
}

#[test]
fn lists_may_be_plain_as_before_2_32_and_circles_end() {
    let (mut process, users) = Process::new(&[0x291, 0x41, 0x41, 0x41]);
    process.cache(users[0], &[(2, &[users[1], users[3]])]);
    process.arena(&[0], (0, 0));
    process.memory.words(users[1], &[users[3]]);
    process.memory.words(users[3], &[0]);
    assert_eq!(blocks(&process.walk()), [users[2]]);
    process.memory.words(users[3], &[users[1]]);
    assert_eq!(blocks(&process.walk()), users, "no thread has such a cache");
}

#[test]
fn the_cache_of_2_42_counts_the_room_left() {
    let (mut process, users) = Process::new(&[0x301, 0x41, 0x41, 0x41]);
    let (cache, list) = (users[0], [users[3], users[1]]);
    process.memory.words(TCB - 0x48, &[cache]);
    process.memory.words(cache, &[0x0007_0007_0007_0007; 19]);
    process.memory.words(cache, &[0x0007_0005_0007_0007]);
    process.memory.words(cache + 152 + 16, &[list[0]]);
    process.list(&list, 0);
    process.arena(&[0], (0, 0));
    assert_eq!(blocks(&process.walk()), [users[2]]);
    // Two lists do not agree on the room.
    process.memory.words(cache, &[0x0007_0006_0007_0007]);
    assert_eq!(blocks(&process.walk()).len(), 4);
}

#[test]
fn a_cache_may_be_a_chunk_larger_than_it_needs() {
    let (mut process, users) = Process::new(&[0x31, 0x2a1, 0x41, 0x41]);
    process.cache(users[1], &[(2, &[users[2]])]);
    process.arena(&[0], (0, 0));
    assert_eq!(blocks(&process.walk()), [users[0], users[3]]);
}

#[test]
fn zeros_are_no_cache_where_threads_tell_theirs() {
    // The first block of the heap, and one that a word nearer to the thread's
    // control block points to.
    let (mut process, users) = Process::new(&[0x301, 0x291, 0x291, 0x41]);
    process.cache(users[1], &[(2, &[users[3]])]);
    process.memory.words(TCB - 0x10, &[users[2]]);
    process.arena(&[0], (0, 0));
    assert_eq!(blocks(&process.walk()), [users[0], users[2]]);
}

/// The main arena as of 2.43, which has no fastbins, with all bins empty.
fn arena_of_2_43(process: &mut Process, next: u64) -> u64 {
    let bins = ARENA + 24;
    for bin in 0..127 {
        let pair = bins + 16 * bin;
        process.memory.words(pair, &[pair - 16, pair - 16]);
    }
    let top = process.top;
    process
        .memory
        .words(bins - 16, &[top])
        .words(bins + 2048, &[next])
        .words(bins + 2072, &[END - BREAK, END - BREAK]);
    bins
}

#[test]
fn arenas_of_2_43_have_no_fastbins() {
    let (mut process, users) = Process::new(&[0x301, 0x41, 0x41]);
    process.memory.words(TCB - 0x48, &[users[0]]);
    process
        .memory
        .words(users[0], &[0x0010_0010_0010_0010; 19])
        .words(users[0], &[0x0010_000f_0010_0010])
        .words(users[0] + 152 + 16, &[users[2]]);
    process.list(&[users[2]], 0);
    // What lies before is another variable.
    process.memory.words(ARENA - 88, &[users[1] - 16]);
    let bins = arena_of_2_43(&mut process, ARENA);
    let heaps = process.walk();
    assert_eq!(blocks(&heaps), [users[1]]);
    assert_eq!((heaps.caches, heaps.arenas[0].at), (1, bins - 24));
    assert!(heaps.is_consistent(), "{heaps:?}");
    let arena = arenas(&process.memory, &regions::classify(process.memory.map()));
    assert_eq!(arena[0].range, Range::new(ARENA, ARENA + 2112));
}

#[test]
fn mapped_blocks_of_2_43_end_before_their_mapping() {
    let (mut process, _) = Process::new(&[0x291]);
    let at = MAPPED;
    arena_of_2_43(&mut process, ARENA);
    // Plain; aligned to 8192, with the header that was left behind; and that of
    // a mapping of huge pages.
    process
        .memory
        .words(at, &[0, 0x2ff0 | 2])
        .words(at + 0x3000, &[0, 0x3ff0 | 2])
        .words(at + 0x4ff0 - 0x1000, &[0xff0, 0x3000 | 2])
        .words(at + 0x7000, &[1, 0x1ff0 | 2]);
    let params = |process: &mut Process, bytes: u64| {
        let words = [3 << 32, 65536 | 9 << 32, 1, bytes, bytes, BREAK];
        process.memory.words(PARAMS, &words);
    };
    let found = |heaps: &Heaps| -> Vec<(u64, u64)> {
        heaps.mapped.iter().map(|(_, f)| (f.addr, f.size)).collect()
    };
    let all = [
        (at + 16, 0x2fe8),
        (at + 0x4000, 0x2ff8),
        (at + 0x7010, 0x1fe8),
    ];
    params(&mut process, 0x9000);
    let heaps = process.walk();
    assert_eq!(found(&heaps), all);
    assert!(heaps.is_consistent());
    // Each realloc counts 16 bytes too many.
    params(&mut process, 0x9000 + 32);
    assert!(process.walk().is_consistent());
    params(&mut process, 0x8000);
    assert!(!process.walk().is_consistent());
}

#[test]
fn a_header_that_realloc_left_behind_is_not_believed() {
    let (mut process, _) = Process::new(&[0x291]);
    // Aligned to 64, then made larger; another block behind.
    process
        .memory
        .words(MAPPED, &[0, 0x2000 | 2])
        .words(MAPPED + 48, &[48, (0x5000 - 48) | 2])
        .words(MAPPED + 0x5000, &[0, 0x1000 | 2]);
    process.arena(&[0], (2, 0x6000));
    let heaps = process.walk();
    let found: Vec<u64> = heaps.mapped.iter().map(|(_, f)| f.addr).collect();
    assert_eq!(found, [MAPPED + 64, MAPPED + 0x5010]);
    assert!(heaps.is_consistent());
}

#[test]
fn a_mapped_block_in_a_cache_is_free() {
    let (mut process, users) = Process::new(&[0x301, 0x41]);
    process.memory.words(TCB - 0x48, &[users[0]]);
    process
        .memory
        .words(users[0], &[0x0007_0007_0007_0007; 19])
        .words(users[0] + 16 * 8, &[0x0007_0007_0006_0007])
        .words(users[0] + 152 + 65 * 8, &[MAPPED + 16])
        .words(MAPPED, &[0, 0x2ff0 | 2])
        .words(MAPPED + 0x3000, &[0, 0x1ff0 | 2]);
    process.list(&[MAPPED + 16], 0);
    process.arena(&[0], (2, 0x5000));
    let heaps = process.walk();
    assert_eq!(blocks(&heaps), [users[1]]);
    assert_eq!(heaps.mapped.len(), 1);
    assert!(places(&heaps).contains(&(MAPPED + 16, FreePlace::Cache)));
    assert!(heaps.is_consistent(), "{heaps:?}");
}

#[test]
fn an_arena_of_a_heap_in_pieces_has_hardly_an_empty_bin() {
    // A free chunk for every bin but the last.
    let headers: Vec<u64> = (0..126).flat_map(|_| [0x41, 0x30]).collect();
    let (mut process, users) = Process::new(&headers);
    process.arena(&[0], (0, 0));
    for bin in 0..126 {
        let pair = ARENA + 112 + 16 * bin;
        let chunk = users[2 * bin as usize] - 16;
        process.memory.words(pair, &[chunk, chunk]);
        process.memory.words(chunk + 16, &[pair - 16, pair - 16]);
    }
    let heaps = process.walk();
    assert_eq!(heaps.arenas.len(), 1);
    let free = places(&heaps);
    assert_eq!((free.len(), blocks(&heaps).len()), (127, 126));
    assert!(heaps.is_consistent(), "{heaps:?}");
}

#[test]
fn an_arena_that_has_more_than_was_found_is_told() {
    let (mut process, _) = Process::new(&[0x291, 0x31]);
    process.system_mem += 0x21000;
    let heaps = process.arena(&[0], (0, 0)).walk();
    assert!(!heaps.is_consistent());
    assert_eq!(heaps.arenas[0].said - heaps.arenas[0].found, 0x21000);
}

#[test]
fn a_heap_in_disorder_is_told_and_not_guessed() {
    let (mut process, users) = Process::new(&[0x291, 0x31, 0x31]);
    process.memory.words(users[1] - 8, &[0x7ff1]);
    let heaps = process.arena(&[0], (0, 0)).walk();
    assert_eq!(heaps.unwalked, [Range::new(BREAK, END)]);
    assert!(blocks(&heaps).is_empty());
}

#[test]
fn mapped_blocks_side_by_side_and_aligned() {
    let (mut process, _) = Process::new(&[0x291]);
    // The kernel joined them to one mapping: plain, aligned to 64 and 4096,
    // and in the middle something else.
    let at = MAPPED;
    process
        .memory
        .words(at, &[0, 0x3000 | 2])
        .words(at + 0x3000, &[0, 0x2000 | 2])
        .words(at + 0x3000 + 48, &[48, (0x2000 - 48) | 2])
        .words(at + 0x5000 + 0xff0, &[0xff0, 0x2010 | 2])
        .words(at + 0x9000, &[0, 0x1000 | 2]);
    let sizes = [0x3000, 0x2000, 0x3000, 0x1000];
    process.arena(&[0], (4, sizes.iter().sum()));
    let heaps = process.walk();
    assert_eq!(heaps.said_mapped, Some((4, 0x9000)));
    let found: Vec<(u64, u64)> = heaps.mapped.iter().map(|(_, f)| (f.addr, f.size)).collect();
    assert_eq!(
        found,
        [
            (at + 16, 0x2ff0),
            (at + 0x3040, 0x1fc0),
            (at + 0x6000, 0x2000),
            (at + 0x9010, 0xff0),
        ]
    );
    assert!(heaps.is_consistent());
    // The same as glibc has it since 2.35.
    process.arena(&[0], (4, 0x9000)).memory.words(
        PARAMS,
        &[4 << 32, 65536 | 9 << 32, 1, 0x9000, 0xa000, BREAK],
    );
    assert_eq!(process.walk().said_mapped, Some((4, 0x9000)));
    // Zeros elsewhere that would fit, too, but for the beginning of the heap.
    process
        .memory
        .words(LIBC + 0x4000, &[65536 << 32, 0, 0, 0, 0]);
    assert_eq!(process.walk().said_mapped, Some((4, 0x9000)));
    // None, says the allocator: then what looks like one is the program's.
    process.arena(&[0], (0, 0));
    assert!(process.walk().mapped.is_empty());
    // One more than there are: those that are certain stay.
    process.arena(&[0], (5, 0xa000));
    let heaps = process.walk();
    assert_eq!(heaps.mapped.len(), 3);
    assert!(!heaps.is_consistent());
}

#[test]
fn a_heap_that_was_left_ends_with_fence_posts() {
    // sbrk failed: the arena goes on in a mapping, not at its beginning.
    let (mut process, users) = Process::new(&[0x291, 0x31]);
    let rest = END - process.at;
    let left = process.chunk((rest - 0x20) | 1);
    process.chunk(0x11);
    process.memory.words(process.at + 8, &[0x11]);
    let part = MAPPED + 0x2000;
    process.memory.words(MAPPED + 8, &[0x123]);
    process.memory.words(part + 8, &[0x51, 0, 0]);
    process.memory.words(part + 0x58, &[(0x3000 - 0x50) | 1]);
    process.top = part + 0x50;
    process.system_mem = END - BREAK + 0x3000;
    process.cache(users[0], &[]).arena(&[0], (0, 0));
    let heaps = process.walk();
    assert_eq!(blocks(&heaps), [users[1], left, part + 16]);
    assert!(heaps.is_consistent(), "{heaps:?}");
}

#[test]
fn a_thread_arenas_heaps() {
    let (mut process, _) = Process::new(&[0x291]);
    process.arena(&[0], (0, 0));
    let first = 20 * ARENA_HEAP;
    let arena = first + 48;
    let second = 22 * ARENA_HEAP;
    let begin = arena + 2208;
    let memory = &mut process.memory;
    memory
        .region(first, 0x4000, "rw-p", "")
        .region(second, 0x3000, "rw-p", "")
        .words(first, &[arena, 0, 0x4000, 0x4000])
        .words(second, &[arena, first, 0x3000, 0x3000]);
    for bin in 0..127 {
        let pair = arena + 112 + 16 * bin;
        memory.words(pair, &[pair - 16, pair - 16]);
    }
    let top = second + 48 + 0x40;
    memory
        .words(arena + 16, &[begin])
        .words(arena + 96, &[top])
        .words(arena + 2184, &[0x7000])
        .words(begin + 8, &[0x35, (begin + 16) >> 12])
        .words(begin + 0x38, &[(first + 0x4000 - 0x20 - begin - 0x30) | 5])
        .words(first + 0x4000 - 0x18, &[0x15, 0, 1])
        .words(second + 48 + 8, &[0x45])
        .words(top + 8, &[(second + 0x3000 - top) | 5]);
    let heaps = process.walk();
    let thread: Vec<&Segment> = heaps.segments.iter().filter(|s| s.arena == arena).collect();
    assert_eq!(thread.len(), 2);
    assert_eq!(thread[0].blocks[0].addr, begin + 0x40);
    assert_eq!(thread[0].free[0].place, FreePlace::Fastbin);
    assert_eq!(thread[1].blocks[0].addr, second + 64);
    assert!(heaps.is_consistent(), "{heaps:?}");
    // In the ring; and one that is not to be found.
    process.memory.words(ARENA + 2160, &[arena]);
    process.memory.words(arena + 2160, &[ARENA]);
    assert!(process.walk().is_consistent());
    process.memory.words(arena + 2160, &[30 * ARENA_HEAP + 48]);
    let heaps = process.walk();
    assert_eq!(heaps.missing_arenas, 1);
    assert!(!heaps.is_consistent());
}

#[test]
fn chunks_may_begin_behind_the_programs_own_sbrk_memory() {
    let (mut process, _) = Process::new(&[0x71]);
    process.memory.words(BREAK + 8, &[7, 9, 11]);
    process.at = BREAK + 0x140;
    let users: Vec<u64> = [0x291, 0x31].map(|h| process.chunk(h)).into();
    process.top = process.at;
    process
        .memory
        .words(process.at + 8, &[(END - process.at) | 1]);
    process.system_mem = END - BREAK - 0x140;
    process.cache(users[0], &[]).arena(&[0], (0, 0));
    assert_eq!(blocks(&process.walk()), [users[1]]);
}

#[test]
fn a_walk_that_came_far_is_not_tried_again() {
    let mut memory = FakeMemory::new();
    let len = 3 * HEAD;
    memory.region(BREAK, len, "rw-p", "[heap]");
    // Chunks lead far and then nowhere; a second start would lead to the
    // end, past chunks that the first says are there.
    memory
        .words(BREAK + 8, &[(2 * HEAD) | 1])
        .words(BREAK + 2 * HEAD + 8, &[7])
        .words(BREAK + 0x108, &[0x291])
        .words(BREAK + 0x398, &[(len - 0x390) | 1]);
    let starts = |memory: &FakeMemory| {
        let heap = Range::new(BREAK, BREAK + len);
        segments::first_walk_of(memory, heap)
    };
    assert!(starts(&memory).is_none());
    // One that did not come far is no obstacle.
    memory.words(BREAK + 8, &[0]);
    assert!(starts(&memory).is_some());
}

#[test]
fn the_program_may_move_the_break_in_between() {
    let (mut process, users) = Process::new(&[0x291, 0x31]);
    // The old top shrank to a free chunk before two fence posts; then a page of
    // the program's, which looks like anything; then chunks again.
    process.chunk(0x51);
    process.chunk(0x10);
    process.chunk(0x11);
    let own = process.at;
    process.memory.words(own, &[0x5a5a_5a5a_5a5a_5a5a; 512]);
    process.at = own + 0x1000;
    let behind = [process.chunk(0x41), process.chunk(0x61)];
    process.top = process.at;
    let rest = (END - process.at) | 1;
    process.memory.words(process.at + 8, &[rest]);
    process.cache(users[0], &[]).arena(&[0], (0, 0));
    let heaps = process.walk();
    assert_eq!(blocks(&heaps), [users[1], behind[0], behind[1]]);
    assert_eq!(heaps.segments.len(), 2);
    let inside = heaps.segments.iter().any(|s| s.range.contains(Addr(own)));
    assert!(!inside, "the program's memory is a root");
    assert!(heaps.is_consistent(), "{heaps:?}");
}

/// Counts how often it is read.
struct Counted<'a>(&'a FakeMemory, std::cell::Cell<u32>);

impl MemoryReader for Counted<'_> {
    fn map(&self) -> &leakscope_memory::MemoryMap {
        self.0.map()
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        self.1.set(self.1.get() + 1);
        self.0.read_some(at, into)
    }
}

#[test]
fn looking_for_a_second_part_ends() {
    // Fence posts, then at each 16 bytes a chunk that leads far, to nothing.
    let mut memory = FakeMemory::new();
    let len = 64 << 20;
    memory.region(BREAK, len, "rw-p", "[heap]");
    memory.words(BREAK + 8, &[0x31, 0, 0, 0, 0, 0, 0x11, 0, 0x11]);
    for at in (BREAK + 0x50..BREAK + HEAD).step_by(16) {
        memory.words(at + 8, &[(BREAK + len - 0x1000 - at) | 1]);
    }
    let counted = Counted(&memory, 0.into());
    let mut words = crate::words::Words::new(&counted);
    assert!(segments::parts(&mut words, BREAK, BREAK + len).is_empty());
    // Two windows for each walk; there are 65 000 places to begin one.
    assert!(counted.1.get() < 100, "{} reads", counted.1.get());
}

#[test]
fn of_what_only_looks_like_a_block_the_sums_decide() {
    let (mut process, _) = Process::new(&[0x291]);
    let at = MAPPED;
    process
        .memory
        .words(at, &[0, 0x1000 | 2])
        .words(at + 0x2000, &[0, 0x1000 | 2])
        .words(at + 0x3000, &[0, 0x2000 | 2])
        .words(at + 0x6000, &[0, 0x3000 | 2]);
    let found = |process: &Process| -> Vec<u64> {
        let heaps = process.walk();
        heaps
            .mapped
            .iter()
            .map(|(range, _)| range.start.0)
            .collect()
    };
    process.arena(&[0], (2, 0x3000));
    assert_eq!(found(&process), [at, at + 0x3000]);
    assert!(process.walk().is_consistent());
    process.arena(&[0], (3, 0x5000));
    assert_eq!(found(&process), [at, at + 0x2000, at + 0x6000]);
    // Two ways to make up for what is missing: nothing is certain.
    process.memory.words(at + 0x6000, &[0, 0x2000 | 2]);
    process.arena(&[0], (2, 0x3000));
    assert_eq!(found(&process), [at]);
    assert!(!process.walk().is_consistent());
}
