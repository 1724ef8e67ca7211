//! `leakscope check` on interpreters: allocators with memory of their own.

use std::process::Command;

use leakscope_e2e::{Outcome, Section};
use leakscope_testkit::{Need, Target, need};
use libtest_mimic::Trial;

use crate::check::{ensure, residence_adds_up, section};
use crate::trial;

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 6] = [
    ("a_healthy_python_is_clean", a_healthy_python_is_clean),
    ("every_block_is_counted", every_block_is_counted),
    ("lost_objects_are_named", lost_objects_are_named),
    ("so_they_are_without_pools", so_they_are_without_pools),
    (
        "so_they_are_under_debug_hooks",
        so_they_are_under_debug_hooks,
    ),
    ("racing_invents_nothing", racing_invents_nothing),
];

pub fn trials() -> Vec<Trial> {
    let cases = CASES.into_iter().map(|(name, test)| {
        trial(format!("pools::{name}"), move || {
            if need(Need::Ptrace) && need(Need::Program("python3")) {
                test()
            } else {
                Ok(())
            }
        })
    });
    cases.collect()
}

/// Says `ready`, answers each line with the allocator's own numbers, and ends
/// with its input. What it reads comes through a descriptor: no block of a
/// buffer comes or goes.
const WAITS: &str = r#"
import os, sys
os.write(1, b'ready\n')
while os.read(0, 100):
    sys._debugmallocstats()
    os.write(2, b'told\n')
os._exit(0)
"#;

/// Objects of many kinds that something holds, threads, and cycles that wait
/// for the collector.
const HEALTHY: &str = r#"
import collections, enum, functools, gc, json, re, threading, weakref
gc.collect()
gc.disable()
class Node:
    def __init__(self, number):
        self.number, self.next = number, None
class Small:
    __slots__ = ('one', '__weakref__')
nodes = [Node(i) for i in range(5003)]
for one, other in zip(nodes, nodes[1:]):
    one.next = other
words = {str(i): (i, [i], {i}, float(i)) for i in range(2003)}
smalls = [Small() for i in range(101)]
weak = weakref.WeakValueDictionary((i, small) for i, small in enumerate(smalls))
ordered = collections.OrderedDict((i, i) for i in range(211))
queue = collections.deque(range(1009))
made = [type('Made%d' % i, (Node,), {'i': i})(i) for i in range(7)]
for node in made:
    node.__dict__['x'] = 1
waiting = threading.Event()
def thread(number):
    own = {number: [number]}
    waiting.wait()
for i in range(3):
    threading.Thread(target=thread, args=(i,), daemon=True).start()
generator = (node for node in nodes)
next(generator)
for i in range(53):
    lost = Node(i)
    lost.next = [lost]
del lost
"#;

/// 31 lists that nobody holds, each with a dictionary and a node in a cycle; and
/// 17 texts. Their counts say otherwise.
const LOSES: &str = r#"
import ctypes, gc
gc.disable()
class Node:
    __slots__ = ('list',)
def forget(thing):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
def lose():
    node = Node()
    node.list = [node, {'node': 7.5}]
    forget(node.list)
for i in range(31):
    lose()
for i in range(17):
    forget('no longer needed %d' % i)
# What is left of them on stacks and in lists of free memory.
spoiled = [[Node(), [0, {'node': 8.5}], '%d' % i * 3] for i in range(197)]
del spoiled
for i in range(97):
    (lambda *all: all)(*range(97))
"#;

fn python(program: &str, environment: &[(&str, &str)]) -> Target {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{program}{WAITS}")]);
    command.envs(environment.iter().copied());
    let mut target = Target::spawn(&mut command);
    target.expect_line("ready");
    target
}

fn pools(section: &Section, name: &str) -> u64 {
    section.number(&format!("/coverage/heap_check/others/0/{name}"))
}

fn a_healthy_python_is_clean() -> Outcome {
    let target = python(HEALTHY, &[]);
    let section = section(&target, &[])?;
    let lost = ["definite", "indirect", "possible"].map(|kind| section.loss(kind));
    ensure(lost == [(0, 0); 3], || section.shown())?;
    ensure(pools(&section, "blocks") > 30_000, || section.shown())?;
    let notices = section.at("/notices").to_string();
    ensure(
        notices.contains("uncollected-garbage") && !notices.contains("managed-heap"),
        || notices.clone(),
    )?;
    let named = |name: &str| {
        let mut leaks = section.leaks().iter();
        leaks
            .find(|l| l["type"] == name)
            .and_then(|l| l["blocks"].as_u64())
    };
    // 53 of them wait for the collector.
    ensure(named("python Node") == Some(5003 + 53), || {
        format!("{:?}", named("python Node"))
    })?;
    ensure(named("python Small") == Some(101), || {
        format!("{:?}", named("python Small"))
    })?;
    residence_adds_up(&section)
}

/// As many as the interpreter says itself.
fn every_block_is_counted() -> Outcome {
    let errors = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let path = errors.path().join("stats");
    let file = std::fs::File::create(&path).map_err(|e| format!("make {path:?}: {e}"))?;
    let mut command = Command::new("python3");
    command.args(["-c", &format!("{HEALTHY}{WAITS}")]);
    let mut target = Target::spawn(command.stderr(file));
    target.expect_line("ready");
    target.send("tell");
    let mut text = String::new();
    while !text.contains("told") {
        text = std::fs::read_to_string(&path).map_err(|e| format!("read {path:?}: {e}"))?;
    }
    let section = section(&target, &[])?;
    // class   size   num pools   blocks in use  avail blocks
    let rows = text.lines().filter_map(|line| {
        let numbers = line.split_whitespace().map(str::parse::<u64>);
        let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().ok()?;
        match numbers.as_slice() {
            [_, size, _, used, _] => Some((*size, *used)),
            _ => None,
        }
    });
    let (bytes, blocks) = rows.fold((0, 0), |(bytes, blocks), (size, used)| {
        (bytes + size * used, blocks + used)
    });
    let found = (pools(&section, "blocks"), pools(&section, "block_bytes"));
    // The buffer that it reads the next line into: 100 bytes and the object.
    let wanted = (blocks + 1, bytes + 144);
    ensure(blocks > 30_000 && found == wanted, || {
        format!("found {found:?}, the interpreter says {wanted:?}")
    })?;
    ensure(pools(&section, "unwalked_bytes") == 0, || section.shown())
}

fn lost_objects_are_named() -> Outcome {
    loses(&[])
}

fn so_they_are_without_pools() -> Outcome {
    loses(&[("PYTHONMALLOC", "malloc")])
}

fn so_they_are_under_debug_hooks() -> Outcome {
    loses(&[("PYTHONMALLOC", "debug")])
}

fn loses(environment: &[(&str, &str)]) -> Outcome {
    let target = python(LOSES, environment);
    let section = section(&target, &[])?;
    let blocks = |kind: &str, name: &str| {
        let mut leaks = section.leaks().iter();
        let found = leaks.find(|l| l["kind"] == kind && l["type"] == name);
        found.and_then(|l| l["blocks"].as_u64()).unwrap_or(0)
    };
    // Stale words may hold a few of them.
    for (kind, name, there, most) in [
        ("definite", "python list", 11, 31),
        ("indirect", "python dict", 11, 31),
        ("indirect", "python Node", 11, 31),
        ("definite", "python str", 10, 17),
    ] {
        let found = blocks(kind, name);
        ensure((there..=most).contains(&found), || {
            format!("{kind} {name}: {found}, {:#?}", section.shown())
        })?;
    }
    let (_, definite) = section.loss("definite");
    ensure(definite <= 31 + 17, || section.shown())?;
    residence_adds_up(&section)
}

/// A program that makes and drops objects all the time.
const CHURNS: &str = r#"
import os
class Node:
    pass
os.write(1, b'ready\n')
kept = {}
while True:
    for i in range(997):
        node = Node()
        node.own = [node, str(i), {i: (i,)}]
        kept[i] = node
"#;

fn racing_invents_nothing() -> Outcome {
    let mut command = Command::new("python3");
    let mut target = Target::spawn(command.args(["-c", CHURNS]));
    target.expect_line("ready");
    for round in 0..5 {
        for mode in ["racing", "stop"] {
            let section = section(&target, &["--mode", mode])?;
            ensure(section.loss("definite") == (0, 0), || {
                format!("round {round}, {mode}: {}", section.shown())
            })?;
        }
    }
    Ok(())
}
