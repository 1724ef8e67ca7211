//! `leakscope check` says who holds a block.

use std::process::Command;

use leakscope_e2e::run::Done;
use leakscope_e2e::{Outcome, Section};
use leakscope_testkit::{Need, Target, compile_c, need};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::check::{can_examine, check, ensure, section};
use crate::trial;

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 7] = [
    ("the_middle_of_a_block", the_middle_of_a_block),
    ("an_address_is_told", an_address_is_told),
    ("addresses_that_are_none", addresses_that_are_none),
    ("the_largest_are_what_would_be_freed", the_largest),
    ("roots_have_names", roots_have_names),
    ("stripped_programs_keep_their_exports", stripped_programs),
    ("what_grows_has_a_holder", what_grows_has_a_holder),
];

pub fn trials() -> Vec<Trial> {
    let cases = CASES.into_iter().map(|(name, test)| {
        trial(format!("holders::{name}"), move || {
            if can_examine() { test() } else { Ok(()) }
        })
    });
    cases.collect()
}

/// One block for each kind of root, and a list in a table in a global array.
const ROOTS: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
struct node { struct node *next; long filled[12]; };
struct table { long n; struct node *buckets[31]; };
struct table *cache[3];
static void **shared;
static _Thread_local char *volatile buffer;
static volatile long where;
__attribute__((noinline)) static void wait_here(void) {
    where = 1;
    for (;;) pause();
}
__attribute__((noinline)) static void *worker_loop(void *arg) {
    (void)arg;
    char *volatile own = calloc(1, 3001);
    buffer = calloc(1, 2003);
    wait_here();
    return own;
}
__attribute__((noinline)) static void fill(void) {
    struct table *t = calloc(1, sizeof *t);
    cache[1] = t;
    for (int i = 0; i < 1009; i++) {
        struct node *n = calloc(1, sizeof *n);
        n->filled[3] = i;
        n->next = t->buckets[7];
        t->buckets[7] = n;
    }
    shared = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared[5] = calloc(1, 7001);
    printf("%p %p\n", (void *)t, (void *)t->buckets[7]->next);
}
int main(void) {
    fill();
    pthread_t t;
    pthread_create(&t, 0, worker_loop, 0);
    while (!where) usleep(1000);
    puts("runs");
    fflush(stdout);
    pause();
    return 0;
}
"#;

fn roots(flags: &[&str]) -> Result<(Target, String), String> {
    let program = compile_c(ROOTS, &[&["-pthread", "-O1"], flags].concat());
    let mut target = Target::spawn(&mut program.command());
    let addresses = target.line().ok_or("ended")?;
    target.expect_line("runs");
    Ok((target, addresses))
}

/// The record of the one block of this many usable bytes.
fn of_bytes(section: &Section, bytes: u64) -> Result<&Value, String> {
    let mut leaks = section.leaks().iter();
    leaks
        .find(|l| l["bytes"] == bytes && l["blocks"] == 1)
        .ok_or_else(|| format!("no record of {bytes} bytes\n{:#?}", section.leaks()))
}

fn text(done: &Done) -> String {
    String::from_utf8_lossy(&done.stdout).into_owned()
}

fn roots_have_names() -> Outcome {
    let (target, _) = roots(&[])?;
    let section = section(&target, &["--show", "all"])?;
    let root = |bytes| Ok::<_, String>(of_bytes(&section, bytes)?["holder"]["root"].clone());
    let table = root(264)?;
    ensure(
        table["kind"] == "global" && table["variable"] == "cache" && table["offset"] == 8,
        || format!("{table:#}"),
    )?;
    let own = root(3016)?;
    ensure(
        own["kind"] == "stack" && own["function"] == "worker_loop" && own["thread"] != target.pid(),
        || format!("{own:#}"),
    )?;
    let local = root(2008)?;
    ensure(
        local["kind"] == "thread-local" && local["thread"] == own["thread"],
        || format!("{local:#}"),
    )?;
    let mapped = root(7016)?;
    ensure(mapped["kind"] == "mapping", || format!("{mapped:#}"))?;
    // Nodes with a number in them; the first of the list has none behind it.
    let mut leaks = section.leaks().iter();
    let nodes = leaks.find(|l| l["blocks"].as_u64() > Some(1000));
    let holder = &nodes.ok_or("no nodes")?["holder"];
    let path = holder["path"].as_array().ok_or("no path")?;
    let steps: Vec<_> = path.iter().map(|s| (&s["bytes"], &s["offset"])).collect();
    ensure(
        holder["root"]["variable"] == "cache"
            && holder["share"] == 1.0
            && steps
                .first()
                .is_some_and(|(bytes, at)| **bytes == 264 && **at == 64)
            && steps
                .last()
                .is_some_and(|(bytes, at)| **bytes == 104 && at.is_null()),
        || format!("{holder:#}"),
    )?;
    let pid = target.pid().to_string();
    let shown = text(&check(&["--show", "all", &pid])?);
    for part in [
        "held by: global variable cache+8 of ",
        ", in worker_loop → the block at 0x",
        "held by: thread-local storage of thread ",
        "held by: mapping /dev/zero (deleted) at 0x",
    ] {
        ensure(shown.contains(part), || format!("no '{part}' in\n{shown}"))?;
    }
    // Nobody asked.
    let section = crate::check::section(&target, &[])?;
    let table = of_bytes(&section, 264)?;
    ensure(table["holder"].is_null(), || format!("{table:#}"))
}

fn stripped_programs() -> Outcome {
    let (target, _) = roots(&["-s", "-rdynamic"])?;
    let exported = section(&target, &["--show", "reachable"])?;
    let root = &of_bytes(&exported, 264)?["holder"]["root"];
    ensure(root["variable"] == "cache", || format!("{root:#}"))?;
    let (target, _) = roots(&["-s"])?;
    let stripped = section(&target, &["--show", "reachable"])?;
    let root = &of_bytes(&stripped, 264)?["holder"]["root"];
    ensure(
        root["variable"].is_null()
            && root["module_offset"].as_u64() > Some(0)
            && root["module"].as_str().is_some_and(|m| !m.is_empty()),
        || format!("{root:#}"),
    )
}

/// A block that only a pointer into it is left of.
const POSSIBLE: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
struct pool { long n; char *cursor; };
static struct pool *volatile pool;
int main(void) {
    pool = calloc(1, sizeof *pool);
    pool->cursor = (char *)malloc(3001) + 1000;
    puts("runs");
    fflush(stdout);
    pause();
    return 0;
}
"#;

/// It is shown by default, and so is who points into it; from a core file, too.
fn the_middle_of_a_block() -> Outcome {
    let program = compile_c(POSSIBLE, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    let of = |section: &Section| {
        let holder = &of_bytes(section, 3016)?["holder"];
        let path = &holder["path"];
        ensure(
            holder["root"]["variable"] == "pool"
                && path[0]["offset"] == 8
                && path[1]["into"] == 1000
                && path[2].is_null(),
            || format!("{holder:#}"),
        )
    };
    of(&section(&target, &[])?)?;
    if !need(Need::Program("gdb")) {
        return Ok(());
    }
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let core = place.path().join("core").to_string_lossy().into_owned();
    let pid = target.pid().to_string();
    Command::new("gdb")
        .args(["-nx", "-batch", "-p", &pid, "-ex", &format!("gcore {core}")])
        .output()
        .map_err(|e| format!("start gdb: {e}"))?;
    let done = check(&["--format", "json", &core])?;
    let saved = Section::all(&text(&done))?;
    of(saved.first().ok_or("no section")?)
}

/// What `--find` says of an address.
fn found(target: &Target, address: &str) -> Result<Value, String> {
    let section = section(target, &["--find", address])?;
    Ok(section.at("/find/0").clone())
}

fn an_address_is_told() -> Outcome {
    let (target, addresses) = roots(&[])?;
    let mut addresses = addresses.split_whitespace();
    let (table, node) = (addresses.next(), addresses.next());
    let (table, node) = (table.ok_or("no table")?, node.ok_or("no node")?);
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let number = |text: &str| number(text).map_err(|e| format!("{text}: {e}"));
    // The table: a global points to it.
    let of_table = found(&target, table)?;
    let pointer = &of_table["pointers"][0];
    ensure(
        of_table["place"]["kind"] == "block"
            && of_table["place"]["bytes"] == 264
            && of_table["place"]["offset"] == 0
            && of_table["place"]["loss"] == "reachable"
            && pointer["root"]["variable"] == "cache"
            && pointer["into"] == 0
            && of_table["holder"]["root"]["variable"] == "cache",
        || format!("{of_table:#}"),
    )?;
    // The middle of a node: another node points to it.
    let inside = format!("{:#x}", number(node)? + 40);
    let of_node = found(&target, &inside)?;
    let mut from = of_node["pointers"].as_array().ok_or("no pointers")?.iter();
    ensure(
        of_node["place"]["offset"] == 40
            && of_node["place"]["start"] == node
            && from.any(|p| p["block"]["bytes"] == 104 && p["block"]["offset"] == 0)
            && of_node["holder"]["path"][0]["bytes"] == 264,
        || format!("{of_node:#}"),
    )?;
    // The variable, by the way that led to the table.
    let variable = pointer["root"]["address"].as_str().unwrap_or_default();
    let of_variable = found(&target, variable)?;
    ensure(
        of_variable["place"]["kind"] == "global"
            && of_variable["place"]["variable"] == "cache"
            && of_variable["place"]["offset"] == 8,
        || format!("{of_variable:#}"),
    )?;
    let header = format!("{:#x}", number(table)? - 8);
    let of_header = found(&target, &header)?;
    ensure(of_header["place"]["kind"] == "allocator", || {
        format!("{of_header:#}")
    })?;
    let shown = text(&check(&[
        "--find",
        &inside,
        "--find",
        "0x10",
        &target.pid().to_string(),
    ])?);
    for part in [
        &format!("Address {inside}: 40 bytes into a block of 104 bytes at {node}"),
        "104 bytes at 0x",
        "held by: global variable cache+8 of ",
        "Address 0x10: nothing is mapped there",
    ] {
        ensure(shown.contains(part), || format!("no '{part}' in\n{shown}"))?;
    }
    Ok(())
}

/// Chunks that were freed; a variable and a function; a stack.
const PLACES: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static int table[31];
int main(void) {
    char *all[3000];
    for (int i = 0; i < 3000; i++) all[i] = malloc(3001);
    for (int i = 0; i < 2000; i++) free(all[i]);
    char *cached = malloc(97);
    free(cached);
    printf("%p %p %p %p %p\n", all[1000], cached, &table[3], main, all);
    fflush(stdout);
    pause();
    return 0;
}
"#;

fn addresses_that_are_none() -> Outcome {
    let program = compile_c(PLACES, &[]);
    let mut target = Target::spawn(&mut program.command());
    let line = target.line().ok_or("ended")?;
    let wanted = [
        ("free", "kept", "a bin".into()),
        ("free", "kept", "a thread's cache".into()),
        ("global", "variable", "table".into()),
        ("code", "function", "main".into()),
        ("stack", "thread", Value::from(target.pid())),
    ];
    for (address, (kind, field, value)) in line.split_whitespace().zip(wanted) {
        let place = found(&target, address)?["place"].clone();
        ensure(place["kind"] == kind && place[field] == value, || {
            format!("{kind}: {place:#}")
        })?;
    }
    let pid = target.pid().to_string();
    let done = check(&["--find", "12monkeys", &pid])?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure(
        done.code() == 125 && said.contains("hexadecimal digits"),
        || format!("{}: {said}", done.code()),
    )
}

/// A tree in a thread-local variable's array, whose halves share a block.
const TREE: &str = r#"
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
struct Shared { virtual ~Shared() {} char filled[997]; };
struct Leaf { virtual ~Leaf() {} Shared *shared = nullptr; char filled[89]; };
struct Half { virtual ~Half() {} Leaf *leaves[31] = {}; };
struct Whole { virtual ~Whole() {} Half *halves[2] = {}; };
static Whole *whole;
int main() {
    whole = new Whole;
    Shared *shared = new Shared;
    for (Half *&half : whole->halves) {
        half = new Half;
        for (Leaf *&leaf : half->leaves) {
            leaf = new Leaf;
            leaf->shared = shared;
        }
    }
    puts("runs");
    fflush(stdout);
    pause();
}
"#;

fn the_largest() -> Outcome {
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let (source, program) = (place.path().join("tree.cc"), place.path().join("tree"));
    std::fs::write(&source, TREE).map_err(|e| format!("write {source:?}: {e}"))?;
    let built = Command::new("g++")
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status();
    ensure(built.is_ok_and(|s| s.success()), || "g++ failed".to_owned())?;
    let mut target = Target::spawn(&mut Command::new(&program));
    target.expect_line("runs");
    let section = section(&target, &["--largest"])?;
    let found = |list: &str, name: &str| {
        let entries = section.at(&format!("/largest/{list}")).as_array().cloned();
        let mut entries = entries.unwrap_or_default().into_iter();
        let found = entries.find(|e| e["type"] == name).unwrap_or_default();
        let root = &found["holder"]["root"];
        let held = found.is_null() || root["variable"] == "whole";
        (
            held,
            found["retained"]["blocks"].clone(),
            found["blocks"].clone(),
        )
    };
    for (list, name, retained, own) in [
        ("blocks", "Whole", 1 + 2 + 62 + 1, 1),
        ("blocks", "Half", 1 + 31, 1),
        ("blocks", "Shared", 1, 1),
        ("kinds", "Whole", 1 + 2 + 62 + 1, 1),
        // What several leaves share goes with none of them.
        ("kinds", "Leaf", 62, 62),
        ("kinds", "Half", 2 + 62, 2),
    ] {
        let found = found(list, name);
        ensure(found == (true, retained.into(), own.into()), || {
            format!("{list} {name}: {found:?}\n{:#}", section.at("/largest"))
        })?;
    }
    let few = check(&["--largest=2", &target.pid().to_string()])?;
    let shown = text(&few);
    for part in [
        "What would be freed with each block of a kind, summed up",
        "What would be freed with one block",
        " in 66 blocks with type Whole (at 0x",
        "held by: global variable whole of tree → ",
    ] {
        ensure(shown.contains(part), || format!("no '{part}' in\n{shown}"))?;
    }
    ensure(!shown.contains("  3: "), || shown.clone())
}

/// A list that grows for ever, in a structure in a static variable.
const GROWING: &str = r#"
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>
struct node { struct node *next; long filled[500]; };
static struct { long n; struct node *first; } *sessions;
int main(void) {
    sessions = calloc(1, sizeof *sessions);
    puts("runs");
    fflush(stdout);
    for (;;) {
        struct node *node = malloc(sizeof *node);
        for (int i = 0; i < 500; i++) node->filled[i] = i;
        node->next = sessions->first;
        sessions->first = node;
        usleep(5000);
    }
}
"#;

fn what_grows_has_a_holder() -> Outcome {
    let program = compile_c(GROWING, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    let pid = target.pid().to_string();
    for mode in ["stop", "racing"] {
        let options = ["--mode", mode, "--wait", "900ms", "--every", "150ms"];
        let section = section(&target, &options)?;
        let mut leaks = section.leaks().iter();
        let grown = leaks.find(|l| {
            l["growth"]["rising"] == true && l["growth"]["bytes"].as_i64() > Some(64 << 10)
        });
        let root = &grown.ok_or("nothing rises")?["holder"]["root"];
        // While it runs on, a node that is newer than the look may be the one
        // that leads to all others.
        let missed = mode == "racing" && root.is_null();
        ensure(missed || root["variable"] == "sessions", || {
            format!("{mode}: {root:#}")
        })?;
    }
    let shown = text(&check(&["--wait", "900ms", "--every", "150ms", &pid])?);
    for part in [
        "held by: global variable sessions of ",
        "next: look at who adds to what is held by global variable sessions of ",
    ] {
        ensure(shown.contains(part), || format!("no '{part}' in\n{shown}"))?;
    }
    Ok(())
}
