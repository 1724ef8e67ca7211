//! The sample reports that every format is tested with, and the example
//! prints. Counts are primes, so that no number stands for another by chance.

use leakscope_model::{
    Addr, Command, Consistency, Content, Coverage, ErrorCode, ErrorRecord, ExitKind, Family, Find,
    Frame, FreeSiteLine, HeapCheck, HeapSummary, Holder, HolderRoot, HolderStep, KindTotals,
    Largest, Leak, Lifetime, LossKind, LossSummary, MappingLeak, Notice, OtherHeap, Place,
    PlaceKind, PointedBy, ProcessReport, Report, Residence, Retained, Retaining, RootCounts,
    RootKind, SampleEstimate, SuppressionUse, Verdict, VerdictStatus,
};

/// Where the sample programs' sources lie.
pub const ROOT: &str = "/home/ada/http";

/// Every sample, by name.
pub fn all() -> Vec<(&'static str, Report)> {
    vec![
        ("leaking", leaking()),
        ("clean", clean()),
        ("killed", killed()),
        ("family", family()),
        ("sampled", sampled()),
        ("checked", checked()),
        ("hostile", hostile()),
    ]
}

/// A simple notion of the program's own code.
pub fn own_frame(stack: &[Frame]) -> Option<&Frame> {
    let is_own = |f: &&Frame| f.file.as_deref().is_some_and(|file| file.starts_with(ROOT));
    stack
        .iter()
        .find(is_own)
        .or_else(|| stack.iter().find(|f| !f.cut))
}

fn frame(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        linkage_name: Some(function.to_owned()),
        file: Some(format!("{ROOT}/{file}")),
        line: Some(line),
        module: Some(format!("{ROOT}/httpd")),
        module_offset: Some(0x1000 + u64::from(line)),
        ..Frame::default()
    }
}

fn library(function: Option<&str>, module: &str, offset: u64) -> Frame {
    Frame {
        function: function.map(str::to_owned),
        module: Some(module.to_owned()),
        module_offset: Some(offset),
        ..Frame::default()
    }
}

fn start() -> Vec<Frame> {
    let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    vec![
        frame("main", "src/main.c", 31),
        library(None, libc, 0x2724a),
        library(Some("__libc_start_main"), libc, 0x27305),
        library(Some("_start"), "/home/ada/http/httpd", 0x10e1),
    ]
}

fn stack(inner: Vec<Frame>) -> Vec<Frame> {
    inner.into_iter().chain(start()).collect()
}

fn totals(bytes: u64, blocks: u64) -> KindTotals {
    KindTotals { bytes, blocks }
}

fn leak(id: &str, kind: LossKind, bytes: u64, blocks: u64, stack: Vec<Frame>) -> Leak {
    Leak {
        id: id.to_owned(),
        kind,
        family: Family::Malloc,
        bytes,
        blocks,
        indirect: KindTotals::default(),
        type_name: None,
        cycle: false,
        cycle_members: Vec::new(),
        addresses: vec![Addr(0x5555_5555_92a0)],
        stack,
        free_sites: Vec::new(),
        lifetime: None,
        estimate: None,
        content: None,
        growth: None,
        holder: None,
    }
}

fn coverage() -> Coverage {
    Coverage {
        consistency: Consistency::Stopped,
        pause_seconds: 0.0117,
        sampled_every_bytes: None,
        dropped_events: 0,
        unreadable_bytes: 0,
        scanned_block_bytes: 1_299_709,
        roots: RootCounts {
            globals: 104_729,
            stacks: 7_919,
            registers: 120,
            mappings: 0,
            declared: 0,
            threads: 3,
        },
        reachability: true,
        heap_check: None,
    }
}

fn process(pid: u32, argv: &[&str]) -> ProcessReport {
    ProcessReport {
        pid,
        parent_pid: 4_001,
        exe: "/home/ada/http/httpd".to_owned(),
        argv: argv.iter().map(|&a| a.to_owned()).collect(),
        exit: Some(ExitKind::Code(0)),
        heap: HeapSummary {
            uncounted: false,
            live_bytes: 76_913,
            live_blocks: 29,
            allocations: 15_485_863,
            frees: 15_485_834,
            allocated_bytes: 982_451_653,
            peak_bytes: 1_299_709,
        },
        residence: None,
        watched: None,
        loss: LossSummary {
            reachable: totals(72_704, 2),
            ..LossSummary::default()
        },
        leaks: vec![leak(
            "c0ffee11",
            LossKind::Reachable,
            72_704,
            2,
            stack(vec![frame("init_pool", "src/pool.c", 17)]),
        )],
        largest: None,
        found: Vec::new(),
        mappings: Vec::new(),
        errors: Vec::new(),
        coverage: coverage(),
        suppressions: Vec::new(),
        notices: Vec::new(),
    }
}

fn report(status: VerdictStatus, sentence: &str, processes: Vec<ProcessReport>) -> Report {
    Report {
        command: Command::Run,
        verdict: Verdict {
            status,
            sentence: sentence.to_owned(),
            rate_bytes_per_second: None,
            rate_interval: None,
            detectable_bytes_per_second: None,
        },
        processes,
    }
}

/// A C server: a leak with a usual free site, a cycle, a possible loss, a
/// deep and cut stack, a mapping, wrong frees, descriptors, suppressions.
pub fn leaking() -> Report {
    let mut p = process(4_243, &["./httpd", "--port", "80", "--name", "two words"]);
    p.exit = Some(ExitKind::Code(3));
    let mut header = leak(
        "5f1d7a20",
        LossKind::Definite,
        2_053,
        13,
        stack(vec![
            Frame {
                inlined: true,
                ..frame("copy_value", "src/http.c", 203)
            },
            frame("parse_header", "src/http.c", 214),
            frame("serve", "src/http.c", 97),
        ]),
    );
    header.indirect = totals(2_039, 11);
    header.type_name = Some("struct header".to_owned());
    header.free_sites = vec![
        FreeSiteLine {
            stack: stack(vec![frame("drop_header", "src/http.c", 260)]),
            share: 0.9687,
            count: 124,
        },
        FreeSiteLine {
            stack: stack(vec![frame("abort_request", "src/http.c", 311)]),
            share: 0.0313,
            count: 4,
        },
    ];
    header.lifetime = Some(Lifetime {
        mean_seconds: 0.32,
        samples: 128,
    });
    let mut ring = leak(
        "a94a8fe5",
        LossKind::Definite,
        48,
        1,
        stack(vec![frame("ring_new", "src/ring.c", 19)]),
    );
    ring.indirect = totals(96, 2);
    ring.free_sites = vec![FreeSiteLine {
        stack: stack(vec![frame("ring_drop", "src/ring.c", 41)]),
        share: 1.0,
        count: 1,
    }];
    ring.lifetime = Some(Lifetime {
        mean_seconds: 0.0,
        samples: 1,
    });
    ring.cycle = true;
    ring.cycle_members = vec!["ring_new".into(), "ring_push".into(), "ring_push".into()];
    let mut deep: Vec<Frame> = (0..127).map(|_| frame("walk", "src/tree.c", 41)).collect();
    deep.push(Frame {
        cut: true,
        ..Frame::default()
    });
    let inner = leak("0badcafe", LossKind::Possible, 37, 1, deep);
    let bare = leak(
        "77de68da",
        LossKind::Indirect,
        2_039,
        11,
        vec![library(
            None,
            "/usr/lib/x86_64-linux-gnu/libxml2.so.2.9.14",
            0x4_d3f1,
        )],
    );
    let reachable = p.leaks.remove(0);
    p.leaks = vec![reachable, header, bare, ring, inner];
    p.loss = LossSummary {
        definite: totals(2_101, 14),
        indirect: totals(2_135, 13),
        possible: totals(37, 1),
        reachable: totals(72_704, 2),
        suppressed: totals(73, 1),
    };
    p.mappings = vec![MappingLeak {
        kind: LossKind::Definite,
        bytes: 1_052_672,
        count: 1,
        stack: stack(vec![frame("map_page", "src/cache.c", 83)]),
    }];
    p.errors = vec![
        ErrorRecord {
            code: ErrorCode::DoubleFree,
            message: "0x5555555592a0 was freed already".to_owned(),
            count: 3,
            stack: stack(vec![frame("drop_header", "src/http.c", 262)]),
            allocated: stack(vec![frame("parse_header", "src/http.c", 214)]),
            freed: stack(vec![frame("drop_header", "src/http.c", 260)]),
        },
        ErrorRecord {
            code: ErrorCode::FdLeak,
            message: "7 descriptors never closed (/var/log/http.log)".to_owned(),
            count: 7,
            stack: stack(vec![frame("open_log", "src/log.c", 23)]),
            allocated: Vec::new(),
            freed: Vec::new(),
        },
    ];
    p.suppressions = vec![
        SuppressionUse {
            name: "libstdc++ emergency pool".to_owned(),
            origin: "builtin".to_owned(),
            hidden: totals(73, 1),
        },
        SuppressionUse {
            name: "old-parser".to_owned(),
            origin: "my.supp:12".to_owned(),
            hidden: KindTotals::default(),
        },
    ];
    p.notices = vec![Notice {
        code: "cut-stacks",
        message: "17 stacks end early: code without unwind information".to_owned(),
    }];
    report(
        VerdictStatus::Leaking,
        "Leaking: 2.1 KiB in 14 blocks definitely lost and 2.1 KiB in 13 blocks indirectly, 37 \
         bytes in 1 block possibly lost, 96 % of it from copy_value (http.c:203); also 3 double \
         frees.",
        vec![p],
    )
}

/// Nothing lost.
pub fn clean() -> Report {
    report(
        VerdictStatus::Clean,
        "Clean: all 2 live blocks are still reachable; nothing is lost (every allocation recorded).",
        vec![process(4_243, &["httpd"])],
    )
}

/// Killed: live blocks with stacks, no reachability.
pub fn killed() -> Report {
    let mut p = process(4_243, &["./httpd"]);
    p.exit = Some(ExitKind::Signal("SIGKILL".to_owned()));
    p.coverage = Coverage {
        consistency: Consistency::Dead,
        pause_seconds: 0.0,
        scanned_block_bytes: 0,
        roots: RootCounts::default(),
        reachability: false,
        ..coverage()
    };
    p.notices = vec![Notice {
        code: "no-reachability",
        message: "the process was killed before its memory could be searched".to_owned(),
    }];
    report(
        VerdictStatus::Inconclusive,
        "Inconclusive: killed by SIGKILL before memory could be examined; 2 blocks (71.0 KiB) were \
         live.",
        vec![p],
    )
}

/// A parent with nothing to say, a leaking child, quiet children.
pub fn family() -> Report {
    let parent = process(4_243, &["./httpd", "--workers", "11"]);
    let mut worker = process(4_244, &["worker: 1"]);
    worker.parent_pid = 4_243;
    worker.exit = Some(ExitKind::Signal("SIGSEGV".to_owned()));
    worker.loss.definite = totals(31, 1);
    worker.leaks.push(leak(
        "deadbeef",
        LossKind::Definite,
        31,
        1,
        stack(vec![frame("work", "src/worker.c", 59)]),
    ));
    let mut processes = vec![parent, worker];
    for pid in 4_245..4_256 {
        let mut p = process(pid, &["./httpd", "--helper"]);
        p.parent_pid = 4_243;
        p.exit = (pid % 2 == 0).then_some(ExitKind::Code(0));
        if pid % 5 == 0 {
            p.notices = vec![Notice {
                code: "replaced",
                message: "exec replaced the image before it could be judged".to_owned(),
            }];
        }
        processes.push(p);
    }
    report(
        VerdictStatus::Leaking,
        "Leaking: process 4244 (httpd), 31 bytes in 1 block definitely lost, all of it from work \
         (worker.c:59).",
        processes,
    )
}

/// Estimates.
pub fn sampled() -> Report {
    let mut p = process(4_243, &["./httpd"]);
    p.coverage.sampled_every_bytes = Some(524_288);
    p.coverage.dropped_events = 13;
    p.coverage.unreadable_bytes = 4_096;
    p.coverage.roots.mappings = 8_191;
    p.coverage.roots.declared = 127;
    p.loss.definite = totals(1_048_583, 8_209);
    let mut l = leak(
        "1234abcd",
        LossKind::Definite,
        1_048_583,
        8_209,
        stack(vec![
            Frame {
                function: Some("operator new(unsigned long)".to_owned()),
                ..library(None, "/usr/lib/libstdc++.so.6", 0xa_ae98)
            },
            Frame {
                function: Some(
                    "std::map<std::string, std::vector<header, std::allocator<header> >, \
                     std::less<std::string> >::operator[](std::string&&)"
                        .to_owned(),
                ),
                file: Some("/usr/include/c++/12/bits/stl_map.h".to_owned()),
                inlined: true,
                ..frame("", "", 511)
            },
            frame("cache::insert(std::string_view)", "src/cache.cpp", 61),
        ]),
    );
    l.family = Family::New;
    l.estimate = Some(SampleEstimate {
        bytes_standard_error: 254_321.4,
        samples: 17,
    });
    p.leaks.insert(0, l);
    report(
        VerdictStatus::Leaking,
        "Leaking: about 1.0 MiB in 8,209 blocks definitely lost, from cache::insert (cache.cpp:61).",
        vec![p],
    )
}

/// A running process that nobody prepared.
fn holder() -> Holder {
    let step = |at: u64, name: Option<&str>, bytes: u64, offset: Option<u64>| HolderStep {
        address: Addr(at),
        bytes,
        type_name: name.map(str::to_owned),
        shape: "heap pointer, number".to_owned(),
        into: 0,
        offset,
        skipped: 0,
    };
    let mut path = vec![
        step(0x5555_5555_9000, Some("http::Cache\x1b[31m"), 264, Some(64)),
        step(0x5555_5555_9110, None, 104, Some(8)),
        step(0x5555_5555_9180, None, 104, None),
        step(0x5555_5555_91f0, None, 104, Some(8)),
        step(0x5555_5555_92a0, None, 1_009, None),
    ];
    path[2].skipped = 1_013;
    path[4].into = 24;
    Holder {
        root: HolderRoot {
            kind: RootKind::Global,
            address: Some(Addr(0x7f00_1234_5678)),
            variable: Some("http::cache".to_owned()),
            offset: Some(8),
            module: Some("/usr/lib/libhttp.so.3".to_owned()),
            module_offset: Some(0x4678),
            thread: None,
            function: None,
            mapping: None,
        },
        skipped: 0,
        path,
        share: 0.75,
    }
}

pub fn checked() -> Report {
    let mut p = process(4_013, &["httpd", "--fast"]);
    p.exit = None;
    p.heap = HeapSummary {
        uncounted: true,
        live_bytes: 7_368_787,
        live_blocks: 6_563,
        ..HeapSummary::default()
    };
    p.residence = Some(Residence {
        rss: 33_554_467,
        swap: 12_289,
        reachable: 7_300_027,
        definite: 6_007,
        indirect: 75_029,
        possible: 1_009,
        retained: Retained {
            caches: 4_001,
            fastbins: 211,
            bins: 14_000_029,
            top: 131_071,
            pools: 65_537,
        },
        allocator: 2_203,
        other_anonymous: 1_000_003,
        stacks: 20_011,
        files: 11_013_863,
        shared: 1_003,
        trimmable: 13_999_981,
    });
    p.loss = LossSummary {
        definite: totals(6_007, 101),
        indirect: totals(75_029, 1_009),
        possible: totals(1_009, 1),
        reachable: totals(7_286_742, 5_452),
        ..LossSummary::default()
    };
    let content = |shape: &str, preview: &[u8]| {
        Some(Content {
            shape: shape.to_owned(),
            preview: preview.to_vec(),
        })
    };
    let mut sessions = leak("5eed-d", LossKind::Definite, 6_007, 101, Vec::new());
    sessions.type_name = Some("http::Session".to_owned());
    sessions.indirect = totals(75_029, 1_009);
    sessions.addresses = (0..5).map(|i| Addr(0x5555_5555_92a0 + 64 * i)).collect();
    let mut bytes = vec![0x48, 0xdd, 0x28, 0x5f, 0x40, 0x56, 0, 0];
    bytes.extend(b"session 4711\x1b[31m");
    sessions.content = content("object with virtual functions", &bytes);
    let mut text = leak("7e87-p", LossKind::Possible, 1_009, 1, Vec::new());
    text.holder = Some(holder());
    let retaining = |type_name: Option<&str>, address, own, bytes| Retaining {
        type_name: type_name.map(str::to_owned),
        shape: "264 bytes: number\x1b, heap pointer".to_owned(),
        address,
        own,
        retained: totals(bytes, 1_019),
        holder: Some(holder()),
    };
    let at = Some(Addr(0x5555_5555_9000));
    p.found = vec![Find {
        address: Addr(0x5555_5555_9018),
        place: Place {
            kind: PlaceKind::Block,
            start: at,
            bytes: Some(264),
            offset: Some(24),
            type_name: Some("http::Cache\x1b[31m".to_owned()),
            shape: Some("object with virtual functions".to_owned()),
            loss: Some(LossKind::Reachable),
            kept: None,
            variable: None,
            function: None,
            module: None,
            module_offset: None,
            thread: None,
            left_over: false,
            mapping: None,
        },
        pointers: vec![
            PointedBy::Root {
                root: holder().root,
                into: 0,
            },
            PointedBy::Block(holder().path[1].clone()),
        ],
        pointer_count: 3,
        holder: Some(holder()),
    }];
    p.largest = Some(Largest {
        kinds: vec![retaining(None, None, totals(792, 3), 107_309)],
        blocks: vec![retaining(Some("http::Cache"), at, totals(264, 1), 106_391)],
    });
    text.content = content("text, 1009 bytes", b"");
    p.leaks = vec![sessions, text];
    p.coverage.heap_check = Some(HeapCheck {
        arenas: 3,
        heaps: 5,
        mapped_blocks: 7,
        unwalked_bytes: 0,
        agrees: true,
        looks: 1,
        others: vec![OtherHeap {
            allocator: "pymalloc",
            pieces: 3,
            blocks: 41,
            block_bytes: 2624,
            free_bytes: 783_104,
            unwalked_bytes: 0,
        }],
    });
    let sentence = "Leaking: 5.9 KiB in 101 blocks definitely lost and 73.3 KiB in 1,009 blocks \
                    indirectly, 1009 bytes in 1 block possibly lost, all in objects of type \
                    http::Session.";
    Report {
        command: Command::Check,
        ..report(VerdictStatus::Leaking, sentence, vec![p])
    }
}

/// Everything the target can name tries to talk to the terminal.
pub fn hostile() -> Report {
    let evil = "\u{1b}[2J\u{1b}]0;title\u{7}evil\nname\u{9b}31m\u{202e}";
    let mut p = process(4_243, &[evil, "", "it's", "\u{200b}"]);
    p.exe = format!("/tmp/{evil}");
    p.exit = Some(ExitKind::Signal(evil.to_owned()));
    let bad = Frame {
        function: Some(evil.to_owned()),
        file: Some(format!("{ROOT}/{evil}.c")),
        line: Some(u32::MAX),
        module: Some(evil.to_owned()),
        module_offset: Some(u64::MAX),
        ..Frame::default()
    };
    let mut l = leak(
        evil,
        LossKind::Definite,
        u64::MAX,
        u64::MAX,
        vec![
            bad.clone(),
            Frame {
                function: None,
                file: None,
                ..bad.clone()
            },
            Frame::default(),
        ],
    );
    l.indirect = totals(u64::MAX, u64::MAX);
    l.type_name = Some(evil.to_owned());
    l.cycle = true;
    l.cycle_members = vec![evil.to_owned(); 8];
    l.free_sites = vec![
        FreeSiteLine {
            stack: vec![bad.clone()],
            share: f64::NAN,
            count: u64::MAX,
        };
        5
    ];
    l.lifetime = Some(Lifetime {
        mean_seconds: f64::INFINITY,
        samples: u64::MAX,
    });
    l.estimate = Some(SampleEstimate {
        bytes_standard_error: f64::NAN,
        samples: u64::MAX,
    });
    p.loss.definite = totals(u64::MAX, u64::MAX);
    p.loss.indirect = totals(u64::MAX, u64::MAX);
    p.leaks = vec![l, leak("", LossKind::Possible, 0, 0, Vec::new())];
    p.mappings = vec![MappingLeak {
        kind: LossKind::Possible,
        bytes: u64::MAX,
        count: u64::MAX,
        stack: vec![bad.clone()],
    }];
    p.errors = vec![
        ErrorRecord {
            code: ErrorCode::InvalidFree,
            message: evil.to_owned(),
            count: u64::MAX,
            stack: vec![bad.clone()],
            allocated: vec![bad.clone()],
            freed: vec![bad],
        },
        ErrorRecord {
            code: ErrorCode::FdLeak,
            message: evil.to_owned(),
            count: u64::MAX,
            stack: Vec::new(),
            allocated: Vec::new(),
            freed: Vec::new(),
        },
    ];
    p.errors.push(p.errors[1].clone());
    p.suppressions = vec![SuppressionUse {
        name: evil.to_owned(),
        origin: evil.to_owned(),
        hidden: totals(u64::MAX, u64::MAX),
    }];
    p.notices = vec![Notice {
        code: "hostile",
        message: evil.to_owned(),
    }];
    p.coverage.pause_seconds = f64::NAN;
    p.coverage.roots.globals = u64::MAX;
    report(VerdictStatus::Leaking, evil, vec![p.clone(), p])
}
