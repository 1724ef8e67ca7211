//! The command `leakscope check`, on processes that nobody prepared.

use std::path::Path;
use std::process::Command;

use leakscope_e2e::expect::Amount;
use leakscope_e2e::run::{Done, Job};
use leakscope_e2e::{Fixture, Outcome, Section, build};
use leakscope_testkit::{Need, Target, need};
use libtest_mimic::Trial;

use crate::programs::folder;
use crate::trial;

/// Programs that do not come to their end by themselves, or whose point is
/// something that only the recorder sees.
const OTHERS: [&str; 9] = [
    "end_",
    "fd_",
    "free_",
    "hostile_",
    "lsan_",
    "mmap_",
    "rust_abort",
    "sampled_",
    "stack_overflow",
];
/// Programs whose numbers depend on the sizes that were asked for: a heap tells
/// only how much a block has room for.
const OF_EXACT_SIZES: [&str; 3] = [
    // A pointer one past the end still points into the block's room.
    "shape_end_pointer",
    // What was freed before lies in the room behind what was asked for.
    "alloc_usable_size",
    "alloc_threads",
];

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 14] = [
    ("types_are_named", types_are_named),
    ("kept_memory_is_no_leak", kept_memory_is_no_leak),
    ("racing_agrees", racing_agrees),
    ("content_can_be_hidden", content_can_be_hidden),
    ("fail_on_and_text", fail_on_and_text),
    ("a_core_file_tells_the_same", a_core_file_tells_the_same),
    (
        "untouched_memory_stays_untouched",
        untouched_memory_stays_untouched,
    ),
    ("racing_invents_nothing", racing_invents_nothing),
    ("by_name", by_name),
    ("what_grows_is_told", what_grows_is_told),
    (
        "the_end_of_the_process_ends_the_wait",
        the_end_of_the_process_ends_the_wait,
    ),
    ("refusals", refusals),
    ("the_target_goes_on", the_target_goes_on),
    ("other_allocators_are_told", other_allocators_are_told),
];

pub fn trials() -> Vec<Trial> {
    let cases = CASES.into_iter().map(|(name, test)| {
        trial(format!("check::{name}"), move || {
            if can_examine() { test() } else { Ok(()) }
        })
    });
    let fixtures = Fixture::all().unwrap_or_default().into_iter();
    let suitable = fixtures.filter(is_suitable);
    let programs = suitable.map(|fixture| {
        trial(format!("check::program::{}", fixture.name), move || {
            if can_examine() {
                agrees_with_the_header(&fixture)
            } else {
                Ok(())
            }
        })
    });
    cases.chain(programs).collect()
}

/// True for a program that comes to its end, with numbers that a heap tells.
pub fn is_suitable(fixture: &Fixture) -> bool {
    !OTHERS.iter().any(|other| fixture.name.starts_with(other))
        && !OF_EXACT_SIZES.contains(&fixture.name.as_str())
        && fixture
            .sections
            .first()
            .is_some_and(|(index, _)| *index == 0)
}

pub fn can_examine() -> bool {
    need(Need::Ptrace) && need(Need::Compiler)
}

pub fn ensure(good: bool, what: impl FnOnce() -> String) -> Outcome {
    if good { Ok(()) } else { Err(what()) }
}

/// A fixture program that has run and waits at its end.
fn at_its_end(fixture: &Fixture) -> Result<Option<Target>, String> {
    at_its_end_with(fixture, &folder(), &[])
}

/// The same, built in `folder` with further arguments of the compiler.
pub fn at_its_end_with(
    fixture: &Fixture,
    folder: &Path,
    further: &[String],
) -> Result<Option<Target>, String> {
    std::fs::create_dir_all(folder).map_err(|e| format!("create {folder:?}: {e}"))?;
    let built = build::build_with(fixture, folder, further)?;
    let waiter = build::library_with("wait_at_end", folder, further)?;
    let mut target = Target::spawn(
        Command::new(&built.path)
            .env("LD_PRELOAD", waiter)
            .current_dir(folder),
    );
    loop {
        match target.line().as_deref() {
            Some("at the end") => return Ok(Some(target)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

pub fn named(name: &str) -> Result<Target, String> {
    let fixture = Fixture::read(&build::programs().join(name))?;
    at_its_end(&fixture)?.ok_or_else(|| format!("{name} ended"))
}

/// `leakscope check OPTIONS`, as a user calls it.
pub fn check(options: &[&str]) -> Result<Done, String> {
    let leakscope = build::leakscope()?;
    let mut argv = vec![leakscope.into_os_string(), "check".into()];
    argv.extend(options.iter().map(Into::into));
    Job::new(argv).run()
}

/// The one section of its JSON report.
pub fn section(target: &Target, options: &[&str]) -> Result<Section, String> {
    let pid = target.pid().to_string();
    let mut all = vec!["--format", "json", &pid];
    all.extend(options);
    let done = check(&all)?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure(done.code() == 0 && done.stderr.is_empty(), || {
        format!("status {}, stderr {stderr}", done.code())
    })?;
    let mut sections = Section::all(&String::from_utf8_lossy(&done.stdout))?;
    sections.pop().ok_or_else(|| "no section".to_owned())
}

/// As many blocks of each kind as the recorder finds, who saw them all.
fn agrees_with_the_header(fixture: &Fixture) -> Outcome {
    let Some(target) = at_its_end(fixture)? else {
        return Err("the program ended".to_owned());
    };
    fits_the_header(fixture, &target)
}

/// The program, which waits at its end, is judged as its header says.
pub fn fits_the_header(fixture: &Fixture, target: &Target) -> Outcome {
    let section = section(target, &[])?;
    let mut wrong = Vec::new();
    if section.at("/coverage/heap_check/agrees") != true {
        wrong.push(format!("doubts: {}", section.at("/notices")));
    }
    let wanted = fixture.sections.first().map(|(_, loss)| loss.0.as_slice());
    for (kind, amount) in wanted.unwrap_or_default() {
        let (bytes, blocks) = section.loss(kind);
        let fits = match *amount {
            Amount::Exactly(least, wanted) => blocks == wanted && bytes >= least,
            Amount::AtLeast(least, wanted) => blocks >= wanted && bytes >= least,
            Amount::Any => true,
        };
        if !fits {
            wrong.push(format!("{kind}={bytes}/{blocks}, not {amount:?}"));
        }
    }
    residence_adds_up(&section)?;
    ensure(wrong.is_empty(), || {
        format!("{}\n{}", wrong.join("\n"), section.shown())
    })
}

/// All parts of the resident set are the kernel's sum, within a hundredth.
pub(crate) fn residence_adds_up(section: &Section) -> Outcome {
    let number = |name: &str| section.number(&format!("/residence/{name}"));
    let parts = [
        "reachable",
        "definite",
        "indirect",
        "possible",
        "retained/caches",
        "retained/fastbins",
        "retained/bins",
        "retained/top",
        "retained/pools",
        "allocator",
        "other_anonymous",
        "stacks",
        "files",
        "shared",
    ];
    let sum: u64 = parts.into_iter().map(number).sum();
    let rss = number("rss");
    ensure(rss > 0 && sum.abs_diff(rss) <= rss / 100, || {
        format!("parts {sum}, resident {rss}: {}", section.at("/residence"))
    })
}

fn types_are_named() -> Outcome {
    let target = named("type_objects.cc")?;
    let section = section(&target, &[])?;
    let found = |kind: &str, name: &str| {
        let leaks = section.leaks().iter();
        let mut fitting = leaks.filter(|l| l["kind"] == kind && l["type"] == name);
        fitting
            .next()
            .map(|l| (l["blocks"].clone(), l["indirect"]["blocks"].clone()))
    };
    let wanted = [
        ("definite", "ui::Button", 17, 17),
        ("definite", "(anonymous namespace)::Label", 11, 0),
        ("indirect", "ui::Widget", 17, 0),
        ("reachable", "ui::Widget", 13, 0),
    ];
    for (kind, name, blocks, indirect) in wanted {
        let found = found(kind, name);
        ensure(found == Some((blocks.into(), indirect.into())), || {
            format!("{kind} {name}: {found:?}\n{:#?}", section.leaks())
        })?;
    }
    Ok(())
}

fn kept_memory_is_no_leak() -> Outcome {
    let target = named("kept_by_malloc.c")?;
    let pid = target.pid().to_string();
    let done = check(&["--quiet", &pid])?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure(
        text.starts_with("leakscope: Retained: nothing is lost"),
        || text.clone(),
    )?;
    let section = section(&target, &[])?;
    let number = |name: &str| section.number(&format!("/residence/{name}"));
    // 199999 chunks of 208 bytes.
    ensure(
        number("retained/bins") > 40_000_000 && number("trimmable") > 40_000_000,
        || format!("{}", section.at("/residence")),
    )?;
    residence_adds_up(&section)
}

fn racing_agrees() -> Outcome {
    for name in ["type_objects.cc", "shape_tree.c", "root_stack_main.c"] {
        let target = named(name)?;
        let stopped = section(&target, &["--mode", "stop"])?;
        let racing = section(&target, &["--mode", "racing"])?;
        ensure(stopped.summary() == racing.summary(), || {
            format!(
                "{name}: {} stopped, {} racing",
                stopped.summary(),
                racing.summary()
            )
        })?;
        ensure(
            racing.at("/coverage/consistency") == "racing"
                && racing.at("/coverage/pause_seconds") == 0.0
                && racing.number("/coverage/heap_check/looks") >= 3,
            || format!("{}", racing.at("/coverage")),
        )?;
        ensure(stopped.at("/coverage/consistency") == "stopped", || {
            format!("{}", stopped.at("/coverage"))
        })?;
    }
    Ok(())
}

fn content_can_be_hidden() -> Outcome {
    let target = named("shape_tree.c")?;
    let preview = |section: &Section| {
        let leaks = section.leaks().iter();
        leaks.filter(|l| l["content"]["preview_hex"] != "").count()
    };
    let shown = section(&target, &[])?;
    let hidden = section(&target, &["--no-content"])?;
    ensure(preview(&shown) > 0 && preview(&hidden) == 0, || {
        format!("{} shown, {} hidden", preview(&shown), preview(&hidden))
    })
}

fn fail_on_and_text() -> Outcome {
    let target = named("type_objects.cc")?;
    let pid = target.pid().to_string();
    let done = check(&["--fail-on", "leak", &pid])?;
    let text = String::from_utf8_lossy(&done.stdout);
    ensure(done.code() == 23 && done.stderr.is_empty(), || {
        format!("status {}", done.code())
    })?;
    for part in [
        "leakscope: Leaking: ",
        "most (",
        "in objects of type ui::Button.",
        "Resident set",
        "blocks definitely lost",
        "type: ui::Button",
        "all sums agree with malloc's own",
        "next: find who should have released these objects of type ui::Button",
    ] {
        ensure(text.contains(part), || format!("no '{part}' in\n{text}"))?;
    }
    let clean = named("root_global_data.c")?;
    let done = check(&["--fail-on", "possible", &clean.pid().to_string()])?;
    ensure(done.code() == 0, || format!("status {}", done.code()))
}

/// A list that grows for ever, and is held; beside it a block that stays.
const GROWING: &str = r#"
#include <stdlib.h>
#include <stdio.h>
#include <unistd.h>
struct node { struct node *next; long filled[500]; };
static struct node *list;
static void *stays;
int main(void) {
    stays = calloc(1, 70001);
    puts("runs");
    fflush(stdout);
    for (;;) {
        struct node *node = malloc(sizeof *node);
        for (int i = 0; i < 500; i++) node->filled[i] = i;
        node->next = list;
        list = node;
        usleep(5000);
    }
}
"#;

fn what_grows_is_told() -> Outcome {
    let program = leakscope_testkit::compile_c(GROWING, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    for mode in ["stop", "fork", "racing"] {
        let options = ["--mode", mode, "--wait", "900ms", "--every", "150ms"];
        let section = section(&target, &options)?;
        let rising: Vec<_> = section
            .leaks()
            .iter()
            .filter(|l| l["growth"]["rising"] == true)
            .collect();
        let grew = |l: &&serde_json::Value| l["growth"]["bytes"].as_i64().unwrap_or(0) > 64 << 10;
        // The block that stays is not among them; a node that is being filled
        // while all stands still may be one of its own.
        let stays = |l: &&serde_json::Value| l["bytes"] == 70008;
        ensure(rising.iter().any(grew) && !rising.iter().any(stays), || {
            format!("{mode}: {rising:#?}")
        })?;
        ensure(section.number("/watched/looks") >= 3, || {
            format!("{}", section.at("/watched"))
        })?;
    }
    let pid = target.pid().to_string();
    let done = check(&["--quiet", "--wait", "900ms", "--every", "150ms", &pid])?;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure(
        text.starts_with(
            "leakscope: Growing: nothing is lost, but still reachable memory rose by ",
        ) && text.contains(" a minute"),
        || text.clone(),
    )
}

fn the_end_of_the_process_ends_the_wait() -> Outcome {
    let mut target = named("type_objects.cc")?;
    let pid = target.pid().to_string();
    // Far longer than any test may take.
    let leakscope = build::leakscope()?;
    let argv = [
        "check", "--format", "json", "--wait", "1h", "--every", "1ms", &pid,
    ];
    let mut watching = Target::spawn(Command::new(leakscope).args(argv));
    // It has looked at least once when the process is stopped or was read.
    let read = format!("/proc/{}/io", watching.pid());
    while !std::fs::read_to_string(&read).is_ok_and(|io| {
        io.lines()
            .next()
            .is_some_and(|l| l.len() > "rchar: 1000000".len())
    }) {
        std::thread::yield_now();
    }
    target.close();
    target.wait();
    let mut text = String::new();
    while let Some(line) = watching.line() {
        text += &line;
    }
    let status = watching.wait();
    ensure(status.success() && text.contains("\"ended\""), || {
        format!("{status}: {text}")
    })
}

fn a_core_file_tells_the_same() -> Outcome {
    if !need(Need::Program("gdb")) {
        return Ok(());
    }
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    for name in [
        "type_objects.cc",
        "shape_tree.c",
        "alloc_large.c",
        "nonroot_ended_thread.c",
    ] {
        let target = named(name)?;
        let living = section(&target, &[])?;
        let core = place.path().join(name);
        let save = format!("gcore {}", core.display());
        let gdb = Command::new("gdb")
            .args([
                "-nx",
                "-batch",
                "-p",
                &target.pid().to_string(),
                "-ex",
                &save,
            ])
            .output()
            .map_err(|e| format!("start gdb: {e}"))?;
        drop(target);
        let core = core.to_string_lossy().into_owned();
        let done = check(&["--format", "json", &core])?;
        let said = String::from_utf8_lossy(&gdb.stderr).into_owned();
        ensure(done.code() == 0, || {
            format!("{name}: {}\n{said}", String::from_utf8_lossy(&done.stderr))
        })?;
        let saved = Section::all(&String::from_utf8_lossy(&done.stdout))?;
        let saved = saved.first().ok_or("no section")?;
        ensure(saved.summary() == living.summary(), || {
            format!(
                "{name}: {} living, {} saved",
                living.summary(),
                saved.summary()
            )
        })?;
        let types = |s: &Section| {
            let leaks = s.leaks().iter();
            leaks
                .map(|l| format!("{}{}", l["id"], l["type"]))
                .collect::<Vec<_>>()
        };
        ensure(types(saved) == types(&living), || {
            format!("{name}: other records")
        })?;
    }
    Ok(())
}

/// 16 GiB of which one page was ever touched.
const SPARSE: &str = r#"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(void) {
    char *all = mmap(0, 16L << 30, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    all[8L << 30] = 1;
    puts("runs");
    fflush(stdout);
    getchar();
    return 0;
}
"#;

fn untouched_memory_stays_untouched() -> Outcome {
    let program = leakscope_testkit::compile_c(SPARSE, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    let page_tables = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmPTE:"));
        let number = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
        number.ok_or_else(|| format!("no VmPTE in {status}"))
    };
    let before = page_tables()?;
    for mode in ["stop", "fork", "racing"] {
        section(&target, &["--mode", mode])?;
        let after = page_tables()?;
        // Reading all of it would take 32 MiB of page tables.
        ensure(after < before + 1024, || {
            format!("{mode}: {before} kB, then {after} kB")
        })?;
    }
    Ok(())
}

/// Threads that free and allocate all the time what globals hold.
const CHURN: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *slots[4][997];
static void *churn(void *own) {
    void **mine = own;
    for (unsigned i = 0;; i++) {
        void **slot = &mine[(i * 7919u) % 997];
        free(*slot);
        *slot = calloc(1, 24 + (i * 31u) % 400);
    }
}
int main(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], 0, churn, slots[i]);
    puts("runs");
    fflush(stdout);
    for (;;) getchar();
}
"#;

fn racing_invents_nothing() -> Outcome {
    let program = leakscope_testkit::compile_c(CHURN, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("runs");
    for round in 0..5 {
        for mode in ["racing", "stop", "fork"] {
            let section = section(&target, &["--mode", mode])?;
            ensure(section.loss("definite") == (0, 0), || {
                format!("round {round}, {mode}: {}", section.summary())
            })?;
        }
    }
    Ok(())
}

fn by_name() -> Outcome {
    let first = named("shape_cycle_tail.c")?;
    let one = check(&["--quiet", "--name", "shape_cycle_tail"])?;
    let text = String::from_utf8_lossy(&one.stdout).into_owned();
    ensure(
        one.code() == 0 && text.starts_with("leakscope: Leaking: "),
        || text.clone(),
    )?;
    let second = named("shape_cycle_tail.c")?;
    let two = check(&["--name", "shape_cycle_tail"])?;
    let text = String::from_utf8_lossy(&two.stderr).into_owned();
    let pids = [first.pid(), second.pid()].map(|p| p.to_string());
    ensure(
        two.code() == 125 && pids.iter().all(|pid| text.contains(pid.as_str())),
        || text.clone(),
    )?;
    let none = check(&["--name", "no-such-program-anywhere"])?;
    ensure(none.code() == 125 && none.stdout.is_empty(), || {
        format!("status {}", none.code())
    })
}

/// One sentence, status 125, and nothing on stdout.
fn refusals() -> Outcome {
    let zombie = Command::new("sh")
        .args(["-c", "sleep 0 & echo $!; exec cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut zombie = zombie.map_err(|e| format!("start sh: {e}"))?;
    let mut line = String::new();
    if let Some(stdout) = zombie.stdout.take() {
        use std::io::BufRead;
        let mut reader = std::io::BufReader::new(stdout);
        reader
            .read_line(&mut line)
            .map_err(|e| format!("read: {e}"))?;
    }
    let child = line.trim().to_owned();
    // cat never waits for it.
    while std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|s| !s.contains(") Z "))
    {
        std::thread::yield_now();
    }
    let own = std::process::id().to_string();
    let table = [
        (vec!["2147483647"], "there is no process 2147483647"),
        (vec!["zero"], "'zero' is neither a process id nor a file"),
        (
            vec!["/etc/passwd"],
            "cannot read /etc/passwd: it is no core file",
        ),
        (vec!["0"], "'0' is no process id"),
        (vec![child.as_str()], "zombie"),
        (vec![], "required"),
        (vec!["--mode", "sideways", own.as_str()], "sideways"),
        (
            vec!["-o", "/no/such/folder/x.json", own.as_str()],
            "/no/such/folder",
        ),
    ];
    let mut wrong = Vec::new();
    for (options, word) in table {
        let done = check(&options)?;
        let stderr = String::from_utf8_lossy(&done.stderr);
        if done.code() != 125 || !done.stdout.is_empty() || !stderr.contains(word) {
            wrong.push(format!("{options:?}: status {}, {stderr}", done.code()));
        }
    }
    drop(zombie.stdin.take());
    zombie.wait().map_err(|e| format!("wait: {e}"))?;
    ensure(wrong.is_empty(), || wrong.join("\n"))
}

/// Examined over and over, it ends as it would have.
fn the_target_goes_on() -> Outcome {
    let mut target = named("type_objects.cc")?;
    for round in 0..24 {
        let mode = ["stop", "racing", "auto", "fork"][round % 4];
        let section = section(&target, &["--mode", mode])?;
        let (_, blocks) = section.loss("definite");
        ensure(blocks == 28, || {
            format!("round {round}: {}", section.summary())
        })?;
    }
    let status = format!("/proc/{}/status", target.pid());
    let status = std::fs::read_to_string(status).map_err(|e| e.to_string())?;
    ensure(status.contains("TracerPid:\t0"), || status.clone())?;
    target.close();
    let ended = target.wait();
    ensure(ended.success(), || format!("{ended}"))
}

fn other_allocators_are_told() -> Outcome {
    if !need(Need::Program("redis-server")) {
        return Ok(());
    }
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let socket = place.path().join("s");
    let mut redis = Command::new("redis-server");
    redis
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(socket);
    let mut server = Target::spawn(redis.current_dir(place.path()));
    while !server
        .line()
        .ok_or("redis-server ended")?
        .contains("eady to accept")
    {}
    let section = section(&server, &[])?;
    let notices = section.at("/notices").to_string();
    ensure(notices.contains("foreign-allocator"), || notices.clone())?;
    residence_adds_up(&section)
}
