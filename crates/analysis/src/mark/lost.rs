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

/// No group, no leader, not yet visited.
const NONE: u32 = u32::MAX;
/// Longest list of cycle members.
const MEMBERS: usize = 16;
/// Most cycles whose members are listed.
const CYCLES: usize = 1 << 16;

/// Pointers between lost blocks, which are numbered by ascending address.
pub(super) struct Edges {
    /// `targets[first[n]..first[n + 1]]` are the blocks that `n` points to.
    first: Vec<usize>,
    targets: Vec<u32>,
}

impl Edges {
    pub fn new(nodes: usize) -> Edges {
        let mut first = Vec::with_capacity(nodes + 1);
        first.push(0);
        Edges {
            first,
            targets: Vec::new(),
        }
    }

    /// Adds `from → to`. Sources come in ascending order.
    pub fn add(&mut self, from: u32, to: u32) {
        self.seal(from as usize);
        let own = self.first.last().copied().unwrap_or(0);
        if from != to && self.targets[own..].last() != Some(&to) {
            self.targets.push(to);
        }
    }

    /// No more sources below `nodes`.
    pub fn seal(&mut self, nodes: usize) {
        while self.first.len() <= nodes {
            self.first.push(self.targets.len());
        }
    }

    fn nodes(&self) -> usize {
        self.first.len() - 1
    }

    fn of(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.targets[self.first[node]..self.first[node + 1]]
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

/// Judges a sealed graph.
pub(super) fn judge(edges: &Edges) -> Lost {
    let groups = Groups::of(edges);
    let nodes = edges.nodes();
    let mut leaders = Vec::new();
    let mut led = vec![false; groups.size.len()];
    for node in 0..nodes as u32 {
        let group = groups.of_node[node as usize] as usize;
        if !groups.held[group] && !led[group] {
            led[group] = true;
            leaders.push(node);
        }
    }
    let mut leader = vec![NONE; nodes];
    let mut work = Vec::new();
    for &first in &leaders {
        leader[first as usize] = first;
        work.push(first);
        while let Some(node) = work.pop() {
            for &next in edges.of(node) {
                if leader[next as usize] == NONE {
                    leader[next as usize] = first;
                    work.push(next);
                }
            }
        }
    }
    let cycle: Vec<bool> = groups
        .of_node
        .iter()
        .map(|g| groups.size[*g as usize] > 1)
        .collect();
    let mut parent = Vec::new();
    let members = leaders
        .iter()
        .filter(|l| cycle[**l as usize])
        .take(CYCLES)
        .map(|l| {
            if parent.is_empty() {
                parent = vec![NONE; nodes];
            }
            (*l, shortest_cycle(edges, &groups, *l, &mut parent))
        })
        .collect();
    Lost {
        leader,
        cycle,
        members,
    }
}

/// Breadth first within the leader's group; every group is walked once, so
/// all calls together are linear. `parent` is shared: groups are disjoint.
fn shortest_cycle(edges: &Edges, groups: &Groups, leader: u32, parent: &mut [u32]) -> Vec<u32> {
    let group = groups.of_node[leader as usize];
    let mut queue = vec![leader];
    parent[leader as usize] = leader;
    let mut at = 0;
    while let Some(&node) = queue.get(at) {
        at += 1;
        for &next in edges.of(node) {
            if next == leader {
                let mut cycle = vec![node];
                let mut up = node;
                while up != leader {
                    up = parent[up as usize];
                    cycle.push(up);
                }
                cycle.reverse();
                cycle.truncate(MEMBERS);
                return cycle;
            }
            if groups.of_node[next as usize] == group && parent[next as usize] == NONE {
                parent[next as usize] = node;
                queue.push(next);
            }
        }
    }
    vec![leader]
}

/// Strongly connected components (Tarjan's algorithm on an explicit stack).
struct Groups {
    of_node: Vec<u32>,
    size: Vec<u32>,
    /// Whether another group points to it.
    held: Vec<bool>,
}

impl Groups {
    fn of(edges: &Edges) -> Groups {
        let nodes = edges.nodes();
        let mut groups = Groups {
            of_node: vec![NONE; nodes],
            size: Vec::new(),
            held: Vec::new(),
        };
        let mut order = vec![NONE; nodes];
        let mut low = vec![NONE; nodes];
        let mut visited = 0;
        let mut open: Vec<u32> = Vec::new();
        // The path from the search's start: a block and its next pointer.
        let mut path: Vec<(u32, usize)> = Vec::new();
        for start in 0..nodes as u32 {
            if order[start as usize] != NONE {
                continue;
            }
            path.push((start, 0));
            while let Some((node, next)) = path.last_mut() {
                let node = *node;
                let n = node as usize;
                if *next == 0 && order[n] == NONE {
                    order[n] = visited;
                    low[n] = visited;
                    visited += 1;
                    open.push(node);
                }
                if let Some(&target) = edges.of(node).get(*next) {
                    *next += 1;
                    let t = target as usize;
                    if order[t] == NONE {
                        path.push((target, 0));
                    } else if groups.of_node[t] == NONE {
                        low[n] = low[n].min(order[t]);
                    } else {
                        groups.held[groups.of_node[t] as usize] = true;
                    }
                    continue;
                }
                path.pop();
                let closes = low[n] == order[n];
                if closes {
                    let group = groups.size.len() as u32;
                    let mut size = 0;
                    while let Some(member) = open.pop() {
                        groups.of_node[member as usize] = group;
                        size += 1;
                        if member == node {
                            break;
                        }
                    }
                    groups.size.push(size);
                    groups.held.push(false);
                }
                if let Some((above, _)) = path.last() {
                    if closes {
                        groups.held[groups.of_node[n] as usize] = true;
                    } else {
                        let a = *above as usize;
                        low[a] = low[a].min(low[n]);
                    }
                }
            }
        }
        groups
    }
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
        edges.seal(nodes);
        judge(&edges)
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
        edges.seal(n as usize);
        let l = judge(&edges);
        assert!(l.leader.iter().all(|x| *x == 0));
        assert_eq!(l.members[0].1.len(), MEMBERS);
    }
}
