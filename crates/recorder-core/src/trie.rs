//! The stack tree: a node is a frame under its caller's node. Equal stacks
//! are one node, so a stack is one number.

use crate::interleave::point;
use core::sync::atomic::{
    AtomicU32, AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use leakscope_wire::Segment;
use leakscope_wire::layout::{Area, LOG2_BUCKETS, note, word};

/// Longest hash chain that is searched; beyond it a duplicate node is made,
/// which costs room and nothing else.
const MAX_CHAIN: u32 = 4096;

/// The tree of a segment. Lock-free: two threads that add the same node at
/// the same time agree on one.
#[derive(Clone, Copy)]
pub struct Trie<'a> {
    segment: Segment<'a>,
}

/// log2 of the heads in a page.
const PAGE_HEADS: u32 = 10;
/// Nodes that were made one after the other, and code that lies together,
/// share a page of heads: a program with few stacks touches few pages, and
/// each page that it touches for the first time costs it a fault.
const NEAR_PARENTS: u32 = 8;
const NEAR_CODE: u32 = 16;

#[inline]
fn bucket(parent: u32, frame: u64) -> usize {
    let page = (u64::from(parent >> NEAR_PARENTS) << 48 ^ (frame >> NEAR_CODE)).wrapping_mul(MIX);
    let inside = (frame ^ u64::from(parent).wrapping_mul(MIX_2)).wrapping_mul(MIX);
    let page = page >> (64 - (LOG2_BUCKETS - PAGE_HEADS));
    (page << PAGE_HEADS | inside >> (64 - PAGE_HEADS)) as usize
}

/// 2^64 / golden ratio, odd (Knuth, The Art of Computer Programming 3, 6.4).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;
/// Odd, with bits in both halves.
const MIX_2: u64 = 0xd6e8_feb8_6659_fd93;

impl<'a> Trie<'a> {
    /// The tree of `segment`.
    pub fn new(segment: Segment<'a>) -> Trie<'a> {
        Trie { segment }
    }

    /// The node of `frame` under `parent`, made when missing; 0 when there
    /// is no room.
    pub fn intern(&self, parent: u32, frame: u64) -> u32 {
        let nodes = self.segment.words(Area::Nodes);
        let heads = self.segment.halves(Area::Buckets);
        let Some(head) = heads.get(bucket(parent, frame)) else {
            return 0;
        };
        point();
        let first = head.load(Acquire);
        if let Some(id) = find(nodes, first, 0, parent, frame) {
            return id;
        }
        self.add(nodes, head, first, parent, frame)
    }

    #[cold]
    fn add(
        &self,
        nodes: &[AtomicU64],
        head: &AtomicU32,
        mut first: u32,
        parent: u32,
        frame: u64,
    ) -> u32 {
        let next = self.segment.word(word::NODE_NEXT);
        let limit = u64::from(self.segment.layout().nodes());
        let full = || {
            self.segment.word(word::DROPPED_NODES).fetch_add(1, Relaxed);
            self.segment
                .word(word::NOTES)
                .fetch_or(note::NODES_FULL, Relaxed);
            0
        };
        if next.load(Relaxed) >= limit {
            return full();
        }
        point();
        let id = next.fetch_add(1, Relaxed);
        if id >= limit || id == 0 {
            next.store(limit, Relaxed);
            return full();
        }
        let at = id as usize * 2;
        let (Some(frame_word), Some(link)) = (nodes.get(at), nodes.get(at + 1)) else {
            return 0;
        };
        point();
        frame_word.store(frame, Relaxed);
        loop {
            point();
            link.store(u64::from(first) << 32 | u64::from(parent), Relaxed);
            point();
            match head.compare_exchange(first, id as u32, AcqRel, Acquire) {
                Ok(_) => return id as u32,
                Err(now) => {
                    // Somebody else's new nodes lie before `first`.
                    if let Some(other) = find(nodes, now, first, parent, frame) {
                        return other;
                    }
                    first = now;
                }
            }
        }
    }

    /// Rebuilds the hash chains' heads from the nodes, whose links are kept:
    /// after fork, when only the nodes were copied.
    pub fn rebuild_heads(&self) {
        let nodes = self.segment.words(Area::Nodes);
        let heads = self.segment.halves(Area::Buckets);
        let count = self.segment.word(word::NODE_NEXT).load(Relaxed);
        for (id, node) in nodes
            .chunks_exact(2)
            .enumerate()
            .take(count as usize)
            .skip(1)
        {
            let [frame, link] = node else { continue };
            let parent = link.load(Relaxed) as u32;
            let frame = frame.load(Relaxed);
            if let Some(head) = heads.get(bucket(parent, frame)) {
                let before = head.swap(id as u32, Release);
                link.store(u64::from(before) << 32 | u64::from(parent), Relaxed);
            }
        }
    }
}

/// Searches a chain from `at` up to `stop`.
#[inline]
fn find(nodes: &[AtomicU64], mut at: u32, stop: u32, parent: u32, frame: u64) -> Option<u32> {
    for _ in 0..MAX_CHAIN {
        if at == 0 || at == stop {
            return None;
        }
        let node = nodes.get(at as usize * 2..at as usize * 2 + 2)?;
        let [frame_word, link] = node else {
            return None;
        };
        point();
        let link = link.load(Relaxed);
        if frame_word.load(Relaxed) == frame && link as u32 == parent {
            return Some(at);
        }
        at = (link >> 32) as u32;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Memory;
    use std::collections::HashSet;
    use std::vec::Vec;

    #[test]
    fn equal_stacks_are_one_node() {
        let memory = Memory::new();
        let trie = Trie::new(memory.segment());
        let mut ids = HashSet::new();
        for a in 0..50u64 {
            let p = trie.intern(0, 0x1000 + a);
            for b in 0..50u64 {
                ids.insert(trie.intern(p, 0x2000 + b));
            }
        }
        assert_eq!(ids.len(), 2500);
        for a in 0..50u64 {
            let p = trie.intern(0, 0x1000 + a);
            for b in 0..50u64 {
                assert!(ids.contains(&trie.intern(p, 0x2000 + b)));
            }
        }
        assert_eq!(memory.segment().word(word::NODE_NEXT).load(Relaxed), 2551);
    }

    fn pages(buckets: impl Iterator<Item = usize>) -> usize {
        buckets
            .map(|at| at >> PAGE_HEADS)
            .collect::<HashSet<_>>()
            .len()
    }

    #[test]
    fn few_stacks_touch_few_pages() {
        // 12 functions of one library, each with 19 callers among the first nodes.
        let frames = (0..228u32).map(|i| (i, 0x3_7f00_1234_0000 + u64::from(i % 12) * 0x777));
        assert!(pages(frames.map(|(parent, frame)| bucket(parent, frame))) <= 2);
    }

    #[test]
    fn chains_stay_short() {
        // One return address under each of many nodes; many under one; both.
        let one_frame = (0..200_000).map(|parent| (parent, 0x1_5555_5678_1234));
        let one_parent = (0..200_000).map(|i| (77, 0x1_5555_5000_0000 + i * 29));
        let tree = (0..200_000u32).map(|i| (i / 3, 0x2_7fff_0000_0000 + u64::from(i % 3001) * 83));
        let all: [(&str, Vec<(u32, u64)>); 3] = [
            ("one frame", one_frame.collect()),
            ("one parent", one_parent.collect()),
            ("tree", tree.collect()),
        ];
        for (name, nodes) in all {
            let mut lengths = std::collections::HashMap::<usize, u64>::new();
            for &(parent, frame) in &nodes {
                *lengths.entry(bucket(parent, frame)).or_default() += 1;
            }
            // Steps to find each node once.
            let steps: u64 = lengths.values().map(|n| n * (n + 1) / 2).sum();
            let average = steps as f64 / nodes.len() as f64;
            assert!(average < 4.0, "{name}: {average}");
        }
    }

    #[test]
    fn threads_agree() {
        let memory = Memory::new();
        let trie = Trie::new(memory.segment());
        let all: Vec<Vec<u32>> = std::thread::scope(|s| {
            let handles: Vec<_> = (0..4)
                .map(|_| {
                    s.spawn(|| {
                        (0..3000)
                            .map(|i| trie.intern(i % 7, 0x77_0000 + u64::from(i)))
                            .collect()
                    })
                })
                .collect();
            handles.into_iter().map(|h| h.join().unwrap()).collect()
        });
        assert!(all.iter().all(|ids| *ids == all[0]));
    }

    #[test]
    fn full_tree_answers_zero_and_counts() {
        let memory = Memory::new();
        let trie = Trie::new(memory.segment());
        let limit = memory.segment().layout().nodes();
        for i in 0..limit + 10 {
            trie.intern(0, 0x5000 + u64::from(i));
        }
        assert_eq!(trie.intern(0, 1), 0);
        assert!(memory.segment().word(word::DROPPED_NODES).load(Relaxed) >= 11);
    }

    #[test]
    fn heads_can_be_rebuilt() {
        let memory = Memory::new();
        let trie = Trie::new(memory.segment());
        let ids: Vec<u32> = (0..999).map(|i| trie.intern(0, 0x9000 + i)).collect();
        for head in memory.segment().halves(Area::Buckets) {
            head.store(0, Relaxed);
        }
        trie.rebuild_heads();
        let again: Vec<u32> = (0..999).map(|i| trie.intern(0, 0x9000 + i)).collect();
        assert_eq!(ids, again);
    }
}
