use super::*;
use leakscope_model::{
    Command, Consistency, Coverage, ErrorCode, ErrorRecord, ExitKind, Family, Frame, HeapSummary,
    KindTotals, Leak, LossKind, LossSummary, MappingLeak, Notice, Report, RootCounts,
};
use proptest::prelude::*;

mod walked;

fn totals(bytes: u64, blocks: u64) -> KindTotals {
    KindTotals { bytes, blocks }
}

/// A process that exited with status 0 with 1,204 reachable blocks.
fn process() -> ProcessReport {
    ProcessReport {
        pid: 123,
        parent_pid: 1,
        exe: "/usr/bin/worker".to_owned(),
        argv: vec!["worker".to_owned()],
        exit: Some(ExitKind::Code(0)),
        heap: HeapSummary {
            live_bytes: 33 << 10,
            live_blocks: 1204,
            allocations: 5000,
            frees: 3796,
            ..HeapSummary::default()
        },
        residence: None,
        watched: None,
        loss: LossSummary {
            reachable: totals(33 << 10, 1204),
            ..LossSummary::default()
        },
        leaks: Vec::new(),
        largest: None,
        found: Vec::new(),
        mappings: Vec::new(),
        errors: Vec::new(),
        coverage: Coverage {
            consistency: Consistency::Stopped,
            pause_seconds: 0.001,
            sampled_every_bytes: None,
            dropped_events: 0,
            unreadable_bytes: 0,
            scanned_block_bytes: 0,
            roots: RootCounts::default(),
            reachability: true,
            heap_check: None,
        },
        suppressions: Vec::new(),
        notices: Vec::new(),
    }
}

fn frame(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        ..Frame::default()
    }
}

fn bare(function: &str, module: &str) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        module: Some(module.to_owned()),
        ..Frame::default()
    }
}

fn leak(kind: LossKind, bytes: u64, blocks: u64, indirect: u64, stack: Vec<Frame>) -> Leak {
    Leak {
        id: String::new(),
        kind,
        family: Family::Malloc,
        bytes,
        blocks,
        indirect: totals(indirect, u64::from(indirect > 0)),
        type_name: None,
        cycle: false,
        cycle_members: Vec::new(),
        addresses: Vec::new(),
        stack,
        free_sites: Vec::new(),
        lifetime: None,
        estimate: None,
        content: None,
        growth: None,
        holder: None,
    }
}

fn error(code: ErrorCode, count: u64) -> ErrorRecord {
    ErrorRecord {
        code,
        message: String::new(),
        count,
        stack: Vec::new(),
        allocated: Vec::new(),
        freed: Vec::new(),
    }
}

fn mapping(kind: LossKind, bytes: u64, count: u64) -> MappingLeak {
    MappingLeak {
        kind,
        bytes,
        count,
        stack: vec![bare("mmap", "/lib/libc.so.6"), frame("map_file", "io.c", 9)],
    }
}

fn leaking() -> ProcessReport {
    let mut p = process();
    p.loss.definite = totals(1_258_291, 37);
    p.leaks = vec![
        leak(
            LossKind::Definite,
            1_119_879,
            31,
            0,
            vec![
                frame("xmalloc", "x.c", 3),
                frame("parse_header", "src/http.c", 214),
            ],
        ),
        leak(
            LossKind::Definite,
            138_412,
            6,
            0,
            vec![frame("other", "o.c", 7)],
        ),
        leak(
            LossKind::Reachable,
            1 << 30,
            1,
            0,
            vec![frame("kept", "k.c", 1)],
        ),
    ];
    p
}

/// The verdict of the process after a change to it.
fn says(mut p: ProcessReport, change: impl FnOnce(&mut ProcessReport)) -> (VerdictStatus, String) {
    change(&mut p);
    let verdict = process_verdict(&p);
    assert_eq!(overall(std::slice::from_ref(&p)), verdict);
    (verdict.status, verdict.sentence)
}

use VerdictStatus::{Clean, Inconclusive, Leaking};

#[track_caller]
fn check(
    base: ProcessReport,
    change: impl FnOnce(&mut ProcessReport),
    status: VerdictStatus,
    sentence: &str,
) {
    assert_eq!(says(base, change), (status, sentence.to_owned()));
}

#[test]
fn leaks_are_named_with_amount_and_place() {
    check(
        leaking(),
        |_| {},
        Leaking,
        "Leaking: 1.2 MiB in 37 blocks definitely lost, most (89 %) allocated by parse_header (http.c:214).",
    );
    check(
        leaking(),
        |p| p.leaks.truncate(1),
        Leaking,
        "Leaking: 1.2 MiB in 37 blocks definitely lost, all allocated by parse_header (http.c:214).",
    );
    check(
        leaking(),
        |p| p.leaks.clear(),
        Leaking,
        "Leaking: 1.2 MiB in 37 blocks definitely lost.",
    );
    check(
        leaking(),
        |p| {
            p.loss.definite = totals(31, 1);
            p.loss.indirect = totals(4096, 3);
            p.loss.possible = totals(1, 1);
            p.leaks = vec![
                leak(LossKind::Definite, 31, 1, 4096, vec![frame("f", "a.c", 1)]),
                leak(LossKind::Definite, 0, 0, 4000, vec![frame("g", "a.c", 2)]),
                leak(LossKind::Definite, 0, 0, 4000, vec![frame("h", "a.c", 3)]),
            ];
        },
        Leaking,
        "Leaking: 31 bytes in 1 block definitely lost and 4.0 KiB in 3 blocks indirectly, \
         1 byte in 1 block possibly lost, the largest part (34 %) allocated by f (a.c:1).",
    );
    check(
        process(),
        |p| {
            p.loss.possible = totals(288, 1);
            p.leaks = vec![leak(
                LossKind::Possible,
                288,
                1,
                0,
                vec![bare("start", "/opt/bin/srv")],
            )];
        },
        Leaking,
        "Leaking: 288 bytes in 1 block possibly lost, all allocated by start (in srv).",
    );
    // Blocks of no bytes are lost too.
    check(
        process(),
        |p| {
            p.loss.definite = totals(0, 7);
            p.leaks = vec![
                leak(LossKind::Definite, 0, 5, 0, vec![frame("f", "a.c", 1)]),
                leak(LossKind::Definite, 0, 2, 0, vec![frame("g", "a.c", 2)]),
            ];
        },
        Leaking,
        "Leaking: 0 bytes in 7 blocks definitely lost, most (71 %) allocated by f (a.c:1).",
    );
}

#[test]
fn what_else_is_wrong_ends_the_sentence() {
    check(
        leaking(),
        |p| {
            p.leaks.truncate(1);
            p.errors = vec![
                error(ErrorCode::DoubleFree, 1),
                error(ErrorCode::DoubleFree, 1),
                error(ErrorCode::FdLeak, 3),
            ];
            p.mappings = vec![
                mapping(LossKind::Definite, 12 << 20, 3),
                mapping(LossKind::Reachable, 1, 1),
            ];
        },
        Leaking,
        "Leaking: 1.2 MiB in 37 blocks definitely lost, all allocated by parse_header (http.c:214); \
         also 3 mappings, 12.0 MiB, lost; 2 double frees and 3 descriptors never closed.",
    );
    check(
        process(),
        |p| p.mappings = vec![mapping(LossKind::Definite, 1 << 20, 1)],
        Leaking,
        "Leaking: 1 mapping, 1.0 MiB, lost, all mapped by map_file (io.c:9).",
    );
    check(
        process(),
        |p| p.errors = vec![error(ErrorCode::FdLeak, 3)],
        Clean,
        "No memory leak; 3 descriptors were never closed (exact, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| p.errors = vec![error(ErrorCode::InvalidFree, 1)],
        Clean,
        "No memory leak, but 1 invalid free (exact, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| {
            p.errors = vec![
                error(ErrorCode::DoubleFree, 2),
                error(ErrorCode::InvalidFree, 1),
                error(ErrorCode::MismatchedFree, 5),
                error(ErrorCode::FdLeak, 1),
            ];
        },
        Clean,
        "No memory leak, but 2 double frees, 1 invalid free and 5 mismatched frees; \
         1 descriptor was never closed (exact, stopped, 0 dropped).",
    );
}

#[test]
fn clean_says_how_well_it_was_looked() {
    check(
        process(),
        |_| {},
        Clean,
        "Clean: all 1,204 live blocks are still reachable; nothing is lost (exact, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| p.heap.live_blocks = 1,
        Clean,
        "Clean: the only live block is still reachable; nothing is lost (exact, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| p.heap.live_blocks = 0,
        Clean,
        "Clean: no block is live at the end; nothing is lost (exact, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| p.loss.suppressed = totals(5, 1),
        Clean,
        "Clean: all 1,204 live blocks are still reachable or suppressed; nothing else is lost (exact, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| {
            p.loss.suppressed = totals(5, 1);
            p.loss.indirect = totals(7, 1);
            p.coverage.consistency = Consistency::Racing;
            p.coverage.unreadable_bytes = 4096;
        },
        Clean,
        "Clean: all 1,204 live blocks are still reachable, suppressed, or lost only through suppressed ones; \
         nothing else is lost (exact, racing, 0 dropped, 4.0 KiB unreadable).",
    );
    check(
        process(),
        |p| p.coverage.sampled_every_bytes = Some(512 << 10),
        Clean,
        "Clean: all sampled blocks, standing for about 1,204 live blocks, are still reachable; \
         nothing is lost, but a leak of less than about 2.3 MiB may have been missed \
         (sampled every 512.0 KiB, stopped, 0 dropped).",
    );
    check(
        process(),
        |p| {
            p.coverage.sampled_every_bytes = Some(512 << 10);
            p.notices.push(Notice {
                code: "foreign-allocator",
                message: String::new(),
            });
        },
        Clean,
        "Clean: all sampled blocks, standing for about 1,204 live blocks, are still reachable; \
         nothing is lost, but all that another allocator than glibc's made counts as held when \
         sampling, and its leaks may have been missed (sampled every 512.0 KiB, stopped, 0 dropped).",
    );
    // Everything was freed, so nothing can be lost, though nobody looked.
    check(
        process(),
        |p| {
            p.heap.live_blocks = 0;
            p.coverage.reachability = false;
        },
        Clean,
        "Clean: no block is live at the end; nothing is lost (exact, memory not examined, 0 dropped).",
    );
}

#[test]
fn what_was_not_seen_is_inconclusive() {
    fn killed(p: &mut ProcessReport) {
        p.exit = Some(ExitKind::Signal("SIGKILL".to_owned()));
        p.heap.live_blocks = 412;
        p.coverage.reachability = false;
        p.coverage.consistency = Consistency::Dead;
    }
    check(
        process(),
        killed,
        Inconclusive,
        "Inconclusive: killed by SIGKILL before memory could be examined; 412 blocks (33.0 KiB) were live.",
    );
    check(
        process(),
        |p| {
            killed(p);
            p.coverage.dropped_events = 1;
            p.errors = vec![error(ErrorCode::DoubleFree, 2)];
        },
        Inconclusive,
        "Inconclusive: killed by SIGKILL before memory could be examined; 412 blocks (33.0 KiB) were live, \
         and 1 event was dropped; also 2 double frees.",
    );
    check(
        process(),
        |p| {
            killed(p);
            p.exit = Some(ExitKind::Code(3));
            p.heap.live_blocks = 1;
        },
        Inconclusive,
        "Inconclusive: exited with status 3 before memory could be examined; 1 block (33.0 KiB) was live.",
    );
    check(
        process(),
        |p| {
            p.exit = None;
            p.coverage.reachability = false;
            p.heap = HeapSummary::default();
        },
        Inconclusive,
        "Inconclusive: memory could not be examined; no allocation was recorded.",
    );
    check(
        process(),
        |p| p.coverage.dropped_events = 37,
        Inconclusive,
        "Inconclusive: nothing is lost among the 1,204 live blocks recorded, but 37 events were dropped.",
    );
    check(
        process(),
        |p| {
            p.coverage.dropped_events = 1;
            p.heap.live_blocks = 0;
        },
        Inconclusive,
        "Inconclusive: no recorded block is live at the end, but 1 event was dropped.",
    );
    // A leak that was found stays found.
    check(
        leaking(),
        |p| {
            p.leaks.clear();
            p.coverage.dropped_events = 37;
            p.coverage.unreadable_bytes = 4096;
            p.coverage.consistency = Consistency::Racing;
            p.coverage.sampled_every_bytes = Some(1024);
        },
        Leaking,
        "Leaking: about 1.2 MiB in 37 blocks definitely lost (37 events were dropped, so there may be more; \
         4.0 KiB could not be read, so some may be reachable; read while threads ran).",
    );
}

fn with_pid(mut p: ProcessReport, pid: u32) -> ProcessReport {
    p.pid = pid;
    p
}

#[test]
fn the_worst_process_decides() {
    let killed = {
        let mut p = with_pid(process(), 7);
        p.exit = Some(ExitKind::Signal("SIGKILL".to_owned()));
        p.coverage.reachability = false;
        p
    };
    let small = {
        let mut p = with_pid(process(), 8);
        p.exe = "/usr/bin/helper".to_owned();
        p.loss.definite = totals(31, 1);
        p.errors = vec![error(ErrorCode::DoubleFree, 2)];
        p
    };
    let table: [(Vec<ProcessReport>, VerdictStatus, &str); 6] = [
        (
            vec![],
            Inconclusive,
            "Inconclusive: no process was recorded.",
        ),
        (
            vec![process(), with_pid(process(), 5)],
            Clean,
            "Clean: all 2,408 live blocks of 2 processes are still reachable; nothing is lost (exact, stopped, 0 dropped).",
        ),
        (
            vec![process(), killed.clone()],
            Inconclusive,
            "Inconclusive: worker (pid 7): killed by SIGKILL before memory could be examined; 1,204 blocks (33.0 KiB) were live.",
        ),
        (
            vec![process(), killed.clone(), small.clone()],
            Leaking,
            "Leaking: helper (pid 8): 31 bytes in 1 block definitely lost; also 2 double frees.",
        ),
        (
            vec![small.clone(), leaking()],
            Leaking,
            "Leaking: worker (pid 123): 1.2 MiB in 37 blocks definitely lost, most (89 %) allocated by \
          parse_header (http.c:214); also 2 double frees; 1 other process leaks too.",
        ),
        (
            vec![small.clone(), leaking(), with_pid(small.clone(), 9)],
            Leaking,
            "Leaking: worker (pid 123): 1.2 MiB in 37 blocks definitely lost, most (89 %) allocated by \
          parse_header (http.c:214); also 4 double frees; 2 other processes leak too.",
        ),
    ];
    for (processes, status, sentence) in table {
        let verdict = overall(&processes);
        assert_eq!(
            (verdict.status, verdict.sentence.as_str()),
            (status, sentence)
        );
    }
}

#[test]
fn an_image_replaced_by_exec_does_not_spoil_the_verdict() {
    let mut before = process();
    before.exit = None;
    before.coverage.reachability = false;
    assert_eq!(
        overall(&[before.clone(), process()]),
        process_verdict(&process())
    );
    // The last image of a process is never left out.
    assert_eq!(overall(&[process(), before]).status, Inconclusive);
}

#[test]
fn own_code_is_told_from_wrappers_and_libraries() {
    let c = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    let app = "/opt/app/bin/app";
    for (stack, expected) in [
        (vec![], None),
        (
            vec![bare("strdup", c), bare("main", app)],
            Some("main (in app)"),
        ),
        (
            vec![bare("fopen", c), bare("load(char const*)", app)],
            Some("load (in app)"),
        ),
        (
            vec![bare("g_malloc", "/lib/libglib-2.0.so.0"), bare("run", app)],
            Some("run (in app)"),
        ),
        (
            vec![
                bare("operator new(unsigned long)", app),
                bare("ns::A::A(int)", app),
            ],
            Some("ns::A::A (in app)"),
        ),
        (
            vec![
                bare(
                    "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int&&)",
                    app,
                ),
                bare("(anonymous namespace)::fill(std::vector<int>&)", app),
            ],
            Some("(anonymous namespace)::fill (in app)"),
        ),
        (
            vec![
                bare(
                    "<alloc::vec::Vec<T> as core::iter::traits::collect::FromIterator<T>>::from_iter",
                    app,
                ),
                bare("<T as core::convert::Into<U>>::into", app),
                bare("<app::Thing as core::clone::Clone>::clone", app),
            ],
            Some("<app::Thing as core::clone::Clone>::clone (in app)"),
        ),
        (
            vec![
                bare("alloc::alloc::exchange_malloc::h0123456789abcdef", app),
                bare("app::main::h0123456789abcdef", app),
            ],
            Some("app::main (in app)"),
        ),
        // Nothing of the user's: the innermost function.
        (
            vec![
                Frame {
                    cut: true,
                    ..Frame::default()
                },
                bare("fopen@@GLIBC_2.2.5", c),
            ],
            Some("fopen@@GLIBC_2.2.5 (in libc.so.6)"),
        ),
        (
            vec![Frame {
                module: Some(app.to_owned()),
                module_offset: Some(0x1234),
                ..Frame::default()
            }],
            Some("app+0x1234"),
        ),
        (vec![Frame::default()], None),
        (
            vec![Frame {
                cut: true,
                ..Frame::default()
            }],
            None,
        ),
    ] {
        assert_eq!(place(&stack).as_deref(), expected, "{stack:?}");
    }
}

#[test]
fn names_lose_parameters_return_types_and_length() {
    for (name, expected) in [
        ("main", "main"),
        ("f(int)", "f"),
        ("f(void (*)(int))", "f"),
        (
            "int ns::f<std::pair<int, char> >(int) const",
            "ns::f<std::pair<int, char> >",
        ),
        ("A::operator()(int) const", "A::operator()"),
        ("operator<<(std::ostream&, int)", "operator<<"),
        ("A::operator->()", "A::operator->"),
        ("A::operator bool() const", "A::operator bool"),
        ("my_operator(int)", "my_operator"),
        ("operator new[](unsigned long)", "operator new[]"),
        (
            "main::{lambda(int)#1}::operator()(int) const",
            "main::{lambda(int)#1}::operator()",
        ),
        ("app::run::{{closure}}", "app::run::{{closure}}"),
        (
            "<fn(u8) -> u16 as app::Call>::call",
            "<fn(u8) -> u16 as app::Call>::call",
        ),
        ("", ""),
        ("(", "("),
        (" ", ""),
        ("f(", "f"),
        ("é(ü", "é"),
    ] {
        assert_eq!(short_name(name), expected, "{name}");
    }
    let long = format!("a::b<{}>::c<{}>::d", "x, ".repeat(40), "y");
    assert_eq!(short_name(&long), "a::b<…>::c<…>::d");
    let endless = "z".repeat(500);
    assert_eq!(short_name(&endless).chars().count(), 80);
}

#[test]
fn fail_on_names_what_fails() {
    let report = |process| Report {
        command: Command::Run,
        verdict: process_verdict(&process),
        processes: vec![self::process(), process],
    };
    let with = |change: fn(&mut ProcessReport)| {
        let mut p = process();
        p.loss = LossSummary::default();
        change(&mut p);
        p
    };
    // What is found, and the words that fail on it beside `all`.
    let table: [(ProcessReport, &[&str]); 9] = [
        (
            with(|p| p.loss.definite = totals(0, 1)),
            &["definite", "leak"],
        ),
        (with(|p| p.loss.indirect = totals(1, 1)), &["indirect"]),
        (
            with(|p| p.loss.possible = totals(1, 1)),
            &["possible", "leak"],
        ),
        (
            with(|p| p.mappings = vec![mapping(LossKind::Definite, 1, 1)]),
            &["mapping", "leak"],
        ),
        (
            with(|p| p.mappings = vec![mapping(LossKind::Reachable, 1, 1)]),
            &[],
        ),
        (
            with(|p| p.errors = vec![error(ErrorCode::DoubleFree, 1)]),
            &["double-free", "errors"],
        ),
        (
            with(|p| p.errors = vec![error(ErrorCode::InvalidFree, 1)]),
            &["invalid-free", "errors"],
        ),
        (
            with(|p| p.errors = vec![error(ErrorCode::MismatchedFree, 1)]),
            &["mismatched-free", "errors"],
        ),
        (
            with(|p| p.errors = vec![error(ErrorCode::FdLeak, 1)]),
            &["fd-leak"],
        ),
    ];
    let words = [
        "definite",
        "indirect",
        "possible",
        "leak",
        "mapping",
        "double-free",
        "invalid-free",
        "mismatched-free",
        "errors",
        "fd-leak",
        "none",
    ];
    for (process, failing) in table {
        let report = report(process);
        for word in words {
            let fail_on: FailOn = word.parse().expect("a known word");
            assert_eq!(
                fail_on.found(&report),
                failing.contains(&word),
                "{word} {failing:?}"
            );
        }
        // The other process has reachable blocks.
        for word in ["all", "reachable", " fd-leak , reachable"] {
            assert!(word.parse::<FailOn>().expect("known").found(&report));
        }
    }
    assert_eq!("none".parse(), Ok(FailOn::NONE));
    let refusal = |text: &str| text.parse::<FailOn>().expect_err(text).to_string();
    assert_eq!(
        refusal("definite,lost"),
        "unknown kind 'lost' to fail on: use definite, indirect, possible, reachable, leak, mapping, \
         double-free, invalid-free, mismatched-free, errors, fd-leak, all or none"
    );
    assert_eq!(
        refusal("none,leak"),
        "'none' stands alone: name what to fail on, or none"
    );
    assert!(refusal("").starts_with("unknown kind ''"));
}

proptest! {
    /// Names come from the target: any text gives a bounded name.
    #[test]
    fn any_name_is_shortened(name in "[a-c<>(){}: &-]{0,40}|operator.{0,9}|.{0,200}") {
        let short = short_name(&name);
        prop_assert!(short.chars().count() <= 81);
        let stack = [bare(&name, &name)];
        prop_assert!(place(&stack).is_some());
    }
}

#[test]
fn a_stripped_program_is_named_by_module_and_offset_not_by_its_start_code() {
    let stripped = |offset| Frame {
        module: Some("/usr/bin/sort".into()),
        module_offset: Some(offset),
        ..Frame::default()
    };
    let start = Frame {
        module: Some("/lib/x86_64-linux-gnu/libc.so.6".into()),
        ..frame("__libc_start_call_main", "libc_start_call_main.h", 58)
    };
    let stack = [stripped(0x13338), stripped(0x49e4), start.clone()];
    assert_eq!(own_frame(&stack), Some(&stack[0]));
    assert_eq!(own_frame(std::slice::from_ref(&start)), Some(&start));
}
