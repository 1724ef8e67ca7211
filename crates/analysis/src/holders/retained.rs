//! What would be freed with a block: what only it keeps.
//!
//! A block *dominates* another when every way from the roots to that one goes
//! through it; what it dominates goes with it. Found with the algorithm of
//! Lengauer and Tarjan ("A fast algorithm for finding dominators in a
//! flowgraph", 1979) in its simple form, whose bound of m log n holds for any
//! heap, a hostile one too. All of it is loops over vectors of numbers.
//!
//! Blocks are numbered as a depth-first search from the roots meets them, from
//! 1; number 0 stands for the roots together.

use super::{HolderInput, Search};
use crate::mark::{Graph, Pointer};
use leakscope_model::KindTotals;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Bytes that the search takes for each block, and for each pointer.
const PER_BLOCK: u64 = 64;
const PER_POINTER: u64 = 4;
/// No number.
const NONE: u32 = u32::MAX;

/// What each block retains.
pub struct Retained {
    /// Of each block; 0 for one that nothing holds.
    number: Vec<u32>,
    /// Of each number.
    block: Vec<u32>,
    dominator: Vec<u32>,
    bytes: Vec<u64>,
    blocks: Vec<u32>,
}

/// A block and what it retains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retainer {
    /// Its index.
    pub block: u32,
    /// Bytes and blocks that go with it, its own included.
    pub totals: KindTotals,
}

/// What groups of blocks retain.
pub struct Overview {
    /// Of each group what goes when all its blocks are freed.
    pub groups: Vec<KindTotals>,
    /// The blocks that retain most, largest first: of those in one another
    /// only the outermost of each group.
    pub blocks: Vec<Retainer>,
}

/// Finds out what each block retains; `None` when that would take more than
/// `limit` bytes, or there are more pointers than the marking kept.
pub fn retained(input: &HolderInput<'_>, search: &Search, limit: u64) -> Option<Retained> {
    let graph = &input.pointers.graph;
    let all = input.blocks.len();
    let pointers = (graph.len() as u64).saturating_mul(PER_POINTER);
    let needed = (all as u64)
        .saturating_mul(PER_BLOCK)
        .saturating_add(pointers);
    if graph.covered() < all || needed > limit {
        return None;
    }
    let (tree, parent) = Tree::new(graph, search, all);
    let dominator = dominators(graph, search, &tree, parent);
    let mut found = Retained {
        bytes: vec![0; tree.block.len()],
        blocks: vec![1; tree.block.len()],
        number: tree.number,
        block: tree.block,
        dominator,
    };
    found.sum(input);
    Some(found)
}

impl Retained {
    fn sum(&mut self, input: &HolderInput<'_>) {
        for (bytes, block) in self.bytes.iter_mut().zip(&self.block).skip(1) {
            *bytes = input.blocks.get(*block as usize).map_or(0, |b| b.size);
        }
        // A dominator has a smaller number.
        for number in (1..self.block.len()).rev() {
            let over = self.dominator.get(number).map_or(0, |d| *d as usize);
            let (bytes, blocks) = (get64(&self.bytes, number), get(&self.blocks, number));
            if let (Some(sum), Some(count)) = (self.bytes.get_mut(over), self.blocks.get_mut(over))
            {
                *sum = sum.saturating_add(bytes);
                *count = count.saturating_add(blocks);
            }
        }
    }

    /// What goes with a block; `None` for one that nothing holds.
    pub fn of(&self, block: u32) -> Option<KindTotals> {
        match get(&self.number, block as usize) {
            0 => None,
            number => Some(self.totals(number)),
        }
    }

    fn totals(&self, number: u32) -> KindTotals {
        KindTotals {
            bytes: get64(&self.bytes, number as usize),
            blocks: u64::from(get(&self.blocks, number as usize)),
        }
    }

    /// Sums up by groups, of which each block has the number in `of_block`,
    /// below `groups`; and the `most` largest blocks.
    pub fn overview(&self, of_block: &[u32], groups: usize, most: usize) -> Overview {
        let nodes = self.block.len();
        // The tree of dominators, as lists of children.
        let (mut first, mut next) = (vec![NONE; nodes], vec![NONE; nodes]);
        for number in (1..nodes).rev() {
            let over = get(&self.dominator, number) as usize;
            set(&mut next, number, get(&first, over));
            set(&mut first, over, number as u32);
        }
        let mut sums = vec![KindTotals::default(); groups];
        // How many blocks of each group enclose the one that is looked at.
        let mut around: Vec<u32> = vec![0; groups];
        let mut largest: BinaryHeap<Reverse<(u64, Reverse<u32>)>> = BinaryHeap::new();
        let group = |number: u32| {
            let block = get(&self.block, number as usize);
            get(of_block, block as usize) as usize
        };
        let mut at = get(&first, 0);
        while at != NONE && at != 0 {
            if let Some(around) = around.get_mut(group(at)) {
                if *around == 0 {
                    let totals = self.totals(at);
                    if let Some(sum) = sums.get_mut(group(at)) {
                        sum.bytes = sum.bytes.saturating_add(totals.bytes);
                        sum.blocks = sum.blocks.saturating_add(totals.blocks);
                    }
                    largest.push(Reverse((totals.bytes, Reverse(at))));
                    if largest.len() > most {
                        largest.pop();
                    }
                }
                *around += 1;
            }
            let inside = get(&first, at as usize);
            if inside != NONE {
                at = inside;
                continue;
            }
            // Out of as many as end here.
            while at != 0 {
                if let Some(around) = around.get_mut(group(at)) {
                    *around = around.saturating_sub(1);
                }
                let sibling = get(&next, at as usize);
                if sibling != NONE {
                    at = sibling;
                    break;
                }
                at = get(&self.dominator, at as usize);
            }
        }
        let blocks = largest.into_sorted_vec().into_iter();
        let blocks = blocks.map(|Reverse((_, Reverse(number)))| Retainer {
            block: get(&self.block, number as usize),
            totals: self.totals(number),
        });
        Overview {
            groups: sums,
            blocks: blocks.collect(),
        }
    }
}

/// The order in which blocks are met.
struct Tree {
    number: Vec<u32>,
    block: Vec<u32>,
}

impl Tree {
    /// And for each number that of the block that it was met from.
    fn new(graph: &Graph, search: &Search, all: usize) -> (Tree, Vec<u32>) {
        let mut tree = Tree {
            number: vec![0; all],
            block: vec![NONE],
        };
        let mut parent = vec![0];
        // Number, and what is left of its pointers.
        let mut stack: Vec<(u32, u32, u32)> = Vec::new();
        for root in 0..all as u32 {
            if !search.is_rooted(root) || get(&tree.number, root as usize) != 0 {
                continue;
            }
            stack.push(tree.meet(graph, root, 0, &mut parent));
            while let Some((number, first, end)) = stack.last_mut() {
                if first >= end {
                    stack.pop();
                    continue;
                }
                let pointer = graph.pointers((*first, *end)).next();
                *first += 1;
                let from = *number;
                if let Some(to) = pointer.map(target)
                    && tree.number.get(to as usize) == Some(&0)
                {
                    stack.push(tree.meet(graph, to, from, &mut parent));
                }
            }
        }
        (tree, parent)
    }

    fn meet(
        &mut self,
        graph: &Graph,
        block: u32,
        from: u32,
        parent: &mut Vec<u32>,
    ) -> (u32, u32, u32) {
        let number = self.block.len() as u32;
        set(&mut self.number, block as usize, number);
        self.block.push(block);
        parent.push(from);
        let (first, end) = graph.place(block);
        (number, first, end)
    }

    /// The numbers that the pointers of number `from` lead to.
    fn targets<'t>(&'t self, graph: &'t Graph, from: u32) -> impl Iterator<Item = u32> + 't {
        let place = graph.place(get(&self.block, from as usize));
        let targets = graph.pointers(place).map(target);
        targets.map(|to| get(&self.number, to as usize))
    }

    /// For each number those that point to it: where they begin, and they.
    fn sources(&self, graph: &Graph) -> (Vec<u32>, Vec<u32>) {
        let nodes = self.block.len();
        let mut first = vec![0u32; nodes + 1];
        for from in 1..nodes as u32 {
            for to in self.targets(graph, from) {
                if let Some(count) = first.get_mut(to as usize + 1) {
                    *count += 1;
                }
            }
        }
        let mut sum = 0;
        for slot in &mut first {
            sum += *slot;
            *slot = sum;
        }
        // Filled from behind, so that the ends become beginnings.
        let mut sources = vec![0; sum as usize];
        let mut ends = first.split_off(1);
        for from in 1..nodes as u32 {
            for to in self.targets(graph, from) {
                if let Some(end) = ends.get_mut(to as usize) {
                    *end -= 1;
                    set(&mut sources, *end as usize, from);
                }
            }
        }
        ends.push(sum);
        (ends, sources)
    }
}

fn target(pointer: Pointer) -> u32 {
    match pointer {
        Pointer::Start(block) => block,
        Pointer::Inner(inner) => inner.block,
    }
}

/// The immediate dominator of each number. Names are those of the paper.
fn dominators(graph: &Graph, search: &Search, tree: &Tree, parent: Vec<u32>) -> Vec<u32> {
    let nodes = tree.block.len();
    let (first, sources) = tree.sources(graph);
    let mut semi: Vec<u32> = (0..nodes as u32).collect();
    let mut dom = vec![0; nodes];
    let (mut bucket, mut next) = (vec![NONE; nodes], vec![NONE; nodes]);
    let mut forest = Forest {
        label: semi.clone(),
        ancestor: parent.clone(),
        linked: nodes as u32,
        path: Vec::new(),
    };
    for w in (1..nodes as u32).rev() {
        let own = w as usize;
        let from = get(&first, own) as usize..get(&first, own + 1) as usize;
        let mut best = get(&semi, own);
        if search.is_rooted(get(&tree.block, own)) {
            best = 0;
        }
        for v in sources.get(from).unwrap_or_default() {
            let u = forest.eval(*v, &semi);
            best = best.min(get(&semi, u as usize));
        }
        set(&mut semi, own, best);
        set(&mut next, own, get(&bucket, best as usize));
        set(&mut bucket, best as usize, w);
        forest.linked = w;
        let above = get(&parent, own);
        let mut v = get(&bucket, above as usize);
        set(&mut bucket, above as usize, NONE);
        while v != NONE {
            let u = forest.eval(v, &semi);
            let earlier = get(&semi, u as usize) < get(&semi, v as usize);
            set(&mut dom, v as usize, if earlier { u } else { above });
            v = get(&next, v as usize);
        }
    }
    for w in 1..nodes {
        let own = get(&dom, w);
        if own != get(&semi, w) {
            let over = get(&dom, own as usize);
            set(&mut dom, w, over);
        }
    }
    dom
}

/// The paper's forest: all numbers from `linked` on hang below their parents.
struct Forest {
    label: Vec<u32>,
    ancestor: Vec<u32>,
    linked: u32,
    path: Vec<u32>,
}

impl Forest {
    /// The number with the smallest `semi` between `v` and its tree's root.
    fn eval(&mut self, v: u32, semi: &[u32]) -> u32 {
        if v < self.linked {
            return v;
        }
        let mut at = v;
        loop {
            let above = get(&self.ancestor, at as usize);
            if above < self.linked {
                break;
            }
            self.path.push(at);
            at = above;
        }
        while let Some(at) = self.path.pop() {
            let above = get(&self.ancestor, at as usize) as usize;
            let (better, own) = (get(&self.label, above), get(&self.label, at as usize));
            if get(semi, better as usize) < get(semi, own as usize) {
                set(&mut self.label, at as usize, better);
            }
            let top = get(&self.ancestor, above);
            set(&mut self.ancestor, at as usize, top);
        }
        get(&self.label, v as usize)
    }
}

fn get(list: &[u32], at: usize) -> u32 {
    list.get(at).copied().unwrap_or(0)
}

fn get64(list: &[u64], at: usize) -> u64 {
    list.get(at).copied().unwrap_or(0)
}

fn set(list: &mut [u32], at: usize, value: u32) {
    if let Some(slot) = list.get_mut(at) {
        *slot = value;
    }
}
