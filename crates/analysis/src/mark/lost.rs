//! Among lost blocks: who is lost by itself, and who only with its parent.
//!
//! The pointers between lost blocks (start and interior alike, as in
//! memcheck) form a graph. Blocks that reach each other form a group (a
//! strongly connected component). A group that no other group points to is
//! lost by itself: its lowest block is the leader, definitely lost; what the
//! leader reaches is indirectly lost. A block below several leaders belongs
//! to the lowest of them; memcheck makes the same choices.
//!
//! One answer differs from memcheck's on purpose: when a leader points into
//! the middle of a cycle whose lowest block memcheck visited before, memcheck
//! calls that block definitely lost too, although the leader holds it. Here
//! the number of definitely lost blocks does not depend on addresses.

use std::collections::{HashMap, VecDeque};

/// No number.
const NONE: u32 = u32::MAX;
/// `Node::order` of a block whose group is complete.
const CLOSED: u32 = u32::MAX - 1;
/// Longest list of cycle members.
const MEMBERS: usize = 16;
/// Most cycles whose members are listed.
const CYCLES: usize = 1 << 16;
/// Blocks looked at for the shortest cycle through one leader.
const CYCLE_SEARCH: usize = 4096;

/// A lost block. What one step of the search needs lies together: in a large
/// heap each block visited is a cache miss, and these 16 bytes are one.
#[derive(Clone, Copy)]
struct Node {
    /// Where its pointers begin in `Edges::targets`; they end where the next
    /// block's begin.
    first: u32,
    /// When the search came here.
    order: u32,
    /// The earliest block known to be in the same group, by `order`; when
    /// `CLOSED`, the number of the group's root.
    low: u32,
    leader: u32,
}

/// Pointers between lost blocks, which are numbered by ascending address.
pub(super) struct Edges {
    nodes: Vec<Node>,
    targets: Vec<u32>,
}

impl Edges {
    pub fn new(nodes: usize) -> Edges {
        Edges {
            nodes: Vec::with_capacity(nodes + 1),
            targets: Vec::new(),
        }
    }

    /// Adds `from → to`. Sources come in ascending order. Beyond 2^32
    /// pointers (32 GiB of lost memory full of them) the rest is ignored.
    pub fn add(&mut self, from: u32, to: u32) {
        self.seal(from as usize + 1);
        let own = self.nodes.last().map_or(0, |n| n.first as usize);
        if from != to
            && self.targets[own..].last() != Some(&to)
            && self.targets.len() < NONE as usize
        {
            self.targets.push(to);
        }
    }

    /// No more sources below `nodes` but the last.
    fn seal(&mut self, nodes: usize) {
        while self.nodes.len() < nodes {
            self.nodes.push(Node {
                first: self.targets.len() as u32,
                order: NONE,
                low: NONE,
                leader: NONE,
            });
        }
    }

    #[inline]
    fn targets(&self, node: u32) -> (usize, usize) {
        let node = node as usize;
        let first = self.nodes[node].first as usize;
        (first, self.nodes[node + 1].first as usize)
    }

    fn of(&self, node: u32) -> &[u32] {
        let (first, end) = self.targets(node);
        &self.targets[first..end]
    }
}

/// The judgement over lost blocks, by their numbers.
pub(super) struct Lost {
    /// Leader of each block; a leader's is itself.
    pub leader: Vec<u32>,
    /// Whether the block is in a group of two or more.
    pub cycle: Vec<bool>,
    /// For leaders in a cycle, ascending: one shortest cycle through the
    /// leader in pointer order, from the leader, cut after [`MEMBERS`].
    pub members: Vec<(u32, Vec<u32>)>,
}

/// Judges `nodes` blocks.
pub(super) fn judge(mut edges: Edges, nodes: usize) -> Lost {
    // One more, for the end of the last one's pointers.
    edges.seal(nodes + 1);
    let groups = group(&mut edges, nodes);
    // The search starts from ascending blocks and nothing outside leads into
    // a group that is lost by itself: its root is its lowest block.
    let leaders: Vec<u32> = (0..nodes as u32)
        .filter(|n| edges.nodes[*n as usize].low == *n && !groups.held[*n as usize])
        .collect();
    let mut work = Vec::new();
    for &first in &leaders {
        edges.nodes[first as usize].leader = first;
        work.push(first);
        while let Some(node) = work.pop() {
            let (from, end) = edges.targets(node);
            for i in from..end {
                let next = edges.targets[i];
                let leader = &mut edges.nodes[next as usize].leader;
                if *leader == NONE {
                    *leader = first;
                    work.push(next);
                }
            }
        }
    }
    let members = leaders
        .iter()
        .filter(|l| groups.many[**l as usize])
        .take(CYCLES)
        .map(|l| (*l, cycle_through(&edges, *l)))
        .collect();
    let nodes = &edges.nodes[..nodes];
    Lost {
        leader: nodes.iter().map(|n| n.leader).collect(),
        cycle: nodes.iter().map(|n| groups.many[n.low as usize]).collect(),
        members,
    }
}

/// One shortest cycle through `leader`, breadth first within its group; when
/// none is found among [`CYCLE_SEARCH`] blocks, the first blocks of the way
/// along a long one.
fn cycle_through(edges: &Edges, leader: u32) -> Vec<u32> {
    let in_group = |node: &u32| edges.nodes[*node as usize].low == leader;
    let mut parents = HashMap::from([(leader, leader)]);
    let mut queue = VecDeque::from([leader]);
    while let Some(node) = queue.pop_front() {
        for &next in edges.of(node).iter().filter(|n| in_group(n)) {
            if next == leader {
                let mut cycle = vec![node];
                let mut up = node;
                while let Some(parent) = parents.get(&up).filter(|_| up != leader) {
                    up = *parent;
                    cycle.push(up);
                }
                cycle.reverse();
                cycle.truncate(MEMBERS);
                return cycle;
            }
            parents.entry(next).or_insert_with(|| {
                queue.push_back(next);
                node
            });
        }
        if parents.len() > CYCLE_SEARCH {
            break;
        }
    }
    let mut way = vec![leader];
    while way.len() < MEMBERS {
        let last = way.last().map_or(&[][..], |n| edges.of(*n));
        let Some(next) = last.iter().find(|n| in_group(n) && !way.contains(n)) else {
            break;
        };
        way.push(*next);
    }
    way
}

/// Facts about groups, by the number of their root.
struct Groups {
    /// Another group points to it.
    held: Vec<bool>,
    /// It has two or more blocks.
    many: Vec<bool>,
}

/// Strongly connected components: Tarjan's algorithm on an explicit stack.
/// Leaves the root of its group in each block's `low`.
fn group(edges: &mut Edges, count: usize) -> Groups {
    let mut groups = Groups {
        held: vec![false; count],
        many: vec![false; count],
    };
    let Edges { nodes, targets } = edges;
    let mut visited = 0;
    let mut open: Vec<u32> = Vec::new();
    // The path from the search's start: a block, and which of its pointers
    // come next.
    let mut path: Vec<(u32, u32, u32)> = Vec::new();
    for start in 0..count as u32 {
        if nodes[start as usize].order != NONE {
            continue;
        }
        let mut enter = Some(start);
        loop {
            if let Some(node) = enter.take() {
                let n = node as usize;
                nodes[n].order = visited;
                nodes[n].low = visited;
                visited += 1;
                open.push(node);
                path.push((node, nodes[n].first, nodes[n + 1].first));
            }
            let Some((node, next, end)) = path.last_mut() else {
                break;
            };
            let (node, n) = (*node, *node as usize);
            if next < end {
                let target = targets[*next as usize];
                *next += 1;
                let there = nodes[target as usize];
                match there.order {
                    NONE => enter = Some(target),
                    CLOSED => groups.held[there.low as usize] = true,
                    order => nodes[n].low = nodes[n].low.min(order),
                }
                continue;
            }
            path.pop();
            let above = path.last().map(|(above, ..)| *above as usize);
            if nodes[n].low < nodes[n].order {
                if let Some(above) = above {
                    nodes[above].low = nodes[above].low.min(nodes[n].low);
                }
                continue;
            }
            groups.many[n] = open.last() != Some(&node);
            groups.held[n] |= above.is_some();
            while let Some(member) = open.pop() {
                nodes[member as usize].order = CLOSED;
                nodes[member as usize].low = node;
                if member == node {
                    break;
                }
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(nodes: usize, list: &[(u32, u32)]) -> Lost {
        let mut sorted = list.to_vec();
        sorted.sort();
        let mut edges = Edges::new(nodes);
        for (from, to) in sorted {
            edges.add(from, to);
        }
        judge(edges, nodes)
    }

    #[test]
    fn a_cycle_has_its_lowest_block_as_leader() {
        let l = lost(4, &[(1, 3), (3, 2), (2, 1), (2, 3)]);
        assert_eq!(l.leader, [0, 1, 1, 1]);
        assert_eq!(l.cycle, [false, true, true, true]);
        assert_eq!(l.members, [(1, vec![1, 3, 2])]);
    }

    #[test]
    fn a_parent_absorbs_a_cycle_wherever_it_points() {
        let l = lost(4, &[(0, 1), (1, 2), (2, 0), (3, 2)]);
        assert_eq!(l.leader, [3, 3, 3, 3]);
        assert!(l.members.is_empty());
        assert!(l.cycle[0]);
    }

    #[test]
    fn a_shared_child_goes_to_the_lowest_leader() {
        let l = lost(3, &[(0, 2), (1, 2)]);
        assert_eq!(l.leader, [0, 1, 0]);
        let l = lost(3, &[(1, 0), (2, 0)]);
        assert_eq!(l.leader, [1, 1, 2]);
    }

    #[test]
    fn a_pointer_to_itself_is_no_cycle() {
        let l = lost(1, &[(0, 0)]);
        assert_eq!(l.leader, [0]);
        assert_eq!(l.cycle, [false]);
    }

    #[test]
    fn a_long_ring_is_neither_recursive_nor_quadratic() {
        let n = 1_000_003u32;
        let mut edges = Edges::new(n as usize);
        for i in 0..n {
            edges.add(i, (i + 1) % n);
        }
        let l = judge(edges, n as usize);
        assert!(l.leader.iter().all(|x| *x == 0));
        assert_eq!(l.members[0].1.len(), MEMBERS);
    }
}
