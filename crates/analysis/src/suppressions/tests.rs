use super::pattern::Template;
use super::*;
use leakscope_model::{Family, Frame};
use proptest::prelude::*;

use LossKind::{Definite, Indirect, Possible, Reachable};

/// A stack written as `function@module`, innermost first; `?` is no name,
/// `MANGLED=demangled` names both ways.
fn stack(text: &str) -> Vec<Frame> {
    let frame = |word: &str| {
        let (names, module) = word.split_once('@').unwrap_or((word, "/usr/bin/prog"));
        let (linkage, function) = names.split_once('=').unwrap_or((names, names));
        let name = |n: &str| (n != "?").then(|| n.to_owned());
        Frame {
            function: name(function),
            linkage_name: name(linkage),
            module: name(module),
            ..Frame::default()
        }
    };
    text.split_whitespace().map(frame).collect()
}

fn candidate(frames: &[Frame], kind: LossKind, family: Family) -> Candidate<'_> {
    Candidate {
        frames,
        kind,
        family,
    }
}

fn one(text: &str) -> Suppression {
    let mut all = parse(text.as_bytes(), "t.supp").expect("well-formed");
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

fn rule(lines: &str) -> Suppression {
    let lines = lines.split(' ').collect::<Vec<_>>().join("\n");
    one(&format!("{{\nname\nMemcheck:Leak\n{lines}\n}}\n"))
}

#[test]
fn patterns_use_both_wildcards() {
    for (pattern, name, expected) in [
        ("", "", true),
        ("", "a", false),
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("*", "anything", true),
        ("?", "", false),
        ("?", "x", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-b-b-d", false),
        ("*ab", "aab", true),
        ("*aab", "aaaab", true),
        ("_Z?wm*", "_Znwm", true),
        ("**x**", "abxcd", true),
        ("a?c*", "abc", true),
        ("ab*", "a", false),
        ("*.so", "/lib/libc.so.6", false),
    ] {
        assert_eq!(
            Glob::new(pattern).matches(name),
            expected,
            "{pattern} {name}"
        );
    }
}

#[test]
fn sanitizer_patterns_are_found_anywhere_unless_tied() {
    for (pattern, name, expected) in [
        ("foo", "xfoox", true),
        ("^foo", "xfoo", false),
        ("^foo", "foobar", true),
        ("foo$", "xfoo", true),
        ("foo$", "foox", false),
        ("^foo$", "foo", true),
        ("^foo$", "foofoo", false),
        ("f*o", "fabco", true),
        ("f*o*z", "fo", false),
        ("^a*b$", "aXbXb", true),
        ("^a*b$", "aXbX", false),
        ("^*b", "ab", true),
        ("ab*b$", "ab", false),
        ("*foo*", "foo", true),
        ("libz.so", "/usr/lib/libz.so.1", true),
    ] {
        let template = Template::new(pattern);
        assert_eq!(template.matches(name), expected, "{pattern} {name}");
    }
}

/// The truth table of valgrind's matching. Stacks are ours: the allocation
/// function itself is not in them.
#[test]
fn lines_match_from_the_innermost_frame() {
    let table = [
        ("fun:malloc fun:a", "a b main", true),
        ("fun:malloc fun:a fun:b", "a b main", true),
        ("fun:malloc fun:b", "a b main", false),
        ("fun:malloc ... fun:main", "a b main", true),
        ("fun:malloc ... fun:a", "a b main", true),
        ("... fun:b", "a b main", true),
        ("... fun:malloc fun:a", "a b main", true),
        ("... fun:malloc fun:b", "a b main", false),
        ("fun:malloc ... fun:c", "a b main", false),
        ("fun:malloc fun:a ... fun:b fun:main ...", "a b main", true),
        ("fun:malloc fun:a fun:b fun:main fun:x", "a b main", false),
        ("... fun:b fun:d", "a b c b d", true),
        ("... fun:b fun:d fun:e", "b d b d e", true),
        // Without the allocation function, where a line cannot mean it.
        ("fun:a", "a b main", true),
        ("fun:b", "a b main", false),
        ("fun:a fun:b", "a b main", true),
        ("obj:/usr/bin/prog fun:b", "a b main", true),
        // Where it can, it does, and takes none of our frames.
        ("fun:*alloc fun:foo", "foo main", true),
        ("fun:*alloc fun:foo", "xmalloc foo main", false),
        ("fun:*alloc fun:xmalloc fun:foo", "xmalloc foo main", true),
        ("fun:* fun:b", "a b main", false),
        ("fun:* fun:a", "a b main", true),
        ("obj:*vgpreload_memcheck* fun:a", "a main", true),
        // Another family's name.
        ("fun:_Znwm fun:a", "a main", false),
        ("fun:calloc fun:a", "a main", true),
        ("fun:realloc", "a main", true),
        // Names: mangled, demangled, versioned, unknown.
        ("fun:malloc fun:_Z1fv", "_Z1fv=f() main", true),
        ("fun:malloc fun:f()", "_Z1fv=f() main", true),
        ("fun:malloc fun:g()", "_Z1fv=f() main", false),
        ("fun:malloc fun:???", "?@/lib/x.so main", true),
        ("fun:malloc fun:a", "?@/lib/x.so main", false),
        ("fun:malloc obj:*/x.so fun:main", "?@/lib/x.so main", true),
        (
            "fun:malloc obj:/lib/x.so fun:main",
            "a@/lib/x.so main",
            true,
        ),
        ("fun:malloc obj:/lib/x.so", "a@/lib/y.so main", false),
        ("fun:malloc obj:* fun:main", "?@? main", true),
    ];
    for (lines, frames, expected) in table {
        let frames = stack(frames);
        let record = candidate(&frames, Definite, Family::Malloc);
        assert_eq!(rule(lines).matches(&record), expected, "{lines} {frames:?}");
    }
}

#[test]
fn the_family_decides_the_allocation_function() {
    let frames = stack("a main");
    for (family, yes, no) in [
        (Family::Malloc, "fun:malloc fun:a", "fun:_Znwm fun:a"),
        (Family::New, "fun:_Znw* fun:a", "fun:malloc fun:a"),
        (Family::NewArray, "fun:_Znam fun:a", "fun:_Znwm fun:a"),
        (
            Family::New,
            "fun:_ZnwmSt11align_val_t fun:a",
            "fun:_Znam fun:a",
        ),
    ] {
        let record = candidate(&frames, Definite, family);
        assert!(rule(yes).matches(&record), "{yes}");
        assert!(!rule(no).matches(&record), "{no}");
    }
    // operator new was not interposed: it is our innermost frame.
    let frames = stack("_Znwm@/lib/libstdc++.so.6 a main");
    let record = candidate(&frames, Definite, Family::Malloc);
    assert!(rule("fun:_Znwm fun:a").matches(&record));
    assert!(rule("fun:malloc fun:_Znwm fun:a").matches(&record));
    assert!(!rule("fun:_Znwm fun:main").matches(&record));
}

#[test]
fn versions_deletions_and_cuts_do_not_hinder() {
    let mut frames = stack("versioned main");
    frames[0] = Frame {
        function: Some("pthread_create@@GLIBC_2.34".to_owned()),
        module: Some("/lib/a.so (deleted)".to_owned()),
        ..Frame::default()
    };
    frames[1].cut = true;
    let record = candidate(&frames, Possible, Family::Malloc);
    assert!(rule("... fun:pthread_create").matches(&record));
    assert!(rule("fun:malloc obj:/lib/a.so").matches(&record));
    assert!(rule("fun:malloc obj:* ...").matches(&record));
    // What lies beyond the mark is not known.
    assert!(!rule("... fun:main").matches(&record));
}

#[test]
fn source_lines_match_files_with_and_without_folders() {
    let mut frames = stack("f main");
    frames[0].file = Some("/home/u/src/http.c".to_owned());
    frames[0].line = Some(214);
    let record = candidate(&frames, Definite, Family::Malloc);
    for (lines, expected) in [
        ("fun:malloc src:http.c", true),
        ("fun:malloc src:http.c:214", true),
        ("fun:malloc src:http.c:215", false),
        ("fun:malloc src:src/http.c:214", true),
        ("fun:malloc src:*/http.c", true),
        ("fun:malloc src:ttp.c", false),
        ("fun:malloc src:h*.c:214 fun:main", true),
        ("fun:malloc fun:f src:*", false),
    ] {
        assert_eq!(rule(lines).matches(&record), expected, "{lines}");
    }
}

#[test]
fn kinds_limit_what_is_hidden() {
    let frames = stack("a main");
    for (line, hidden) in [
        ("", vec![Definite, Indirect, Possible, Reachable]),
        (
            "match-leak-kinds: all",
            vec![Definite, Indirect, Possible, Reachable],
        ),
        (
            "match-leak-kinds: definite,possible",
            vec![Definite, Possible],
        ),
        ("match-leak-kinds:reachable", vec![Reachable]),
        ("match-leak-kinds: none", vec![]),
    ] {
        let suppression = one(&format!(
            "{{\n n\n Memcheck:Leak\n {line}\n fun:malloc\n fun:a\n}}"
        ));
        for kind in [Definite, Indirect, Possible, Reachable] {
            let record = candidate(&frames, kind, Family::Malloc);
            assert_eq!(
                suppression.matches(&record),
                hidden.contains(&kind),
                "{line} {kind:?}"
            );
        }
    }
    assert_eq!(
        "possible,definite"
            .parse::<KindSet>()
            .map(|k| k.to_string()),
        Ok("definite,possible".to_owned())
    );
    assert_eq!(KindSet::NONE.to_string(), "none");
    assert_eq!(
        "definite,lost"
            .parse::<KindSet>()
            .map_err(|e| e.to_string()),
        Err(
            "unknown leak kind 'lost': use definite, indirect, possible, reachable, all or none"
                .to_owned()
        )
    );
}

/// Blocks of the shapes that valgrind's manual and its distributed files
/// show, written for this test.
#[test]
fn a_valgrind_file_is_read_and_other_tools_are_left_out() {
    let text = "\
# A comment.

{
   uninitialised socket padding
   Memcheck:Param
   socketcall.connect(serv_addr.sin_zero)
   fun:connect
}
{
   any read of one byte there
   Memcheck:Addr1
   fun:read_one
   obj:/usr/lib/libread.so*
}
\t{
  a lock order
  Helgrind:LockOrder
  fun:pthread_mutex_lock
  ...
}
{
   two tools
   drd,Memcheck:Leak
   match-leak-kinds: reachable
   # inside
   fun:_Znw*
   ...
   obj:*/libfoo.so.?
   src:foo.cc:31
}
{
   core
   CoreError:FdBadUse
   fun:close
}\r
{\r
   windows line ends\r
   Memcheck:Leak\r
   fun:malloc\r
   fun:b\u{ff}\r
}\r
";
    let bytes: Vec<u8> = text.chars().map(|c| c as u8).collect();
    let all = parse(&bytes, "my.supp").expect("well-formed");
    let seen: Vec<_> = all
        .iter()
        .map(|s| (s.name.as_str(), s.origin.as_str(), s.kinds.to_string()))
        .collect();
    let every = KindSet::ALL.to_string();
    assert_eq!(
        seen,
        [
            ("two tools", "my.supp:22", "reachable".to_owned()),
            ("windows line ends", "my.supp:37", every)
        ]
    );
    let frames = stack("b\u{fffd} main");
    assert!(all[1].matches(&candidate(&frames, Definite, Family::Malloc)));
}

#[test]
fn a_sanitizer_file_is_read() {
    let text = "# known\nleak:^init_table$\n\nleak:libz.so\nrace:other\nleak: spaced \n";
    let all = parse(text.as_bytes(), "lsan").expect("well-formed");
    let seen: Vec<_> = all
        .iter()
        .map(|s| (s.name.as_str(), s.origin.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("leak:^init_table$", "lsan:2"),
            ("leak:libz.so", "lsan:4"),
            ("leak: spaced", "lsan:6")
        ]
    );
    let mut frames = stack("a init_table main");
    let any_frame = candidate(&frames, Reachable, Family::New);
    assert!(all[0].matches(&any_frame));
    assert!(!all[1].matches(&any_frame));
    frames[2].module = Some("/lib/libz.so.1".to_owned());
    assert!(all[1].matches(&candidate(&frames, Definite, Family::Malloc)));
    frames[0].file = Some("src/spaced.c".to_owned());
    assert!(all[2].matches(&candidate(&frames, Definite, Family::Malloc)));
    assert_eq!(parse(b"", "empty"), Ok(Vec::new()));
    assert_eq!(parse(b"# only\n\n", "empty"), Ok(Vec::new()));
}

#[test]
fn errors_name_file_and_line() {
    let long = format!("{{\nn\nMemcheck:Leak\nfun:{}\n}}", "x".repeat(5000));
    let deep = format!("{{\nn\nMemcheck:Leak\n{}}}", "fun:x\n".repeat(501));
    let table: [(&str, &str); 18] = [
        (
            "{\nn\nMemcheck:Leak\nfun:a\n",
            "f:4: the file ends before the closing '}'",
        ),
        ("{", "f:1: the file ends before the closing '}'"),
        (
            "{\n}\n",
            "f:2: expected the suppression's name but found '}'",
        ),
        (
            "{\nn\nLeak\nfun:a\n}",
            "f:3: expected 'TOOL:KIND' such as 'Memcheck:Leak' but found 'Leak'",
        ),
        (
            "{\nn\nMemcheck:Leek\nfun:a\n}",
            "f:3: unknown Memcheck kind 'Leek'",
        ),
        (
            "{\nn\nMemcheck:Leak\nfun:a\nfin:b\n}",
            "f:5: expected 'fun:', 'obj:', 'src:', '...' or '}' but found 'fin:b'",
        ),
        (
            "{\nn\nMemcheck:Leak\nfun:\n}",
            "f:4: expected 'fun:', 'obj:', 'src:', '...' or '}' but found 'fun:'",
        ),
        (
            "{\nn\nMemcheck:Leak\n...\n}",
            "f:5: a suppression needs at least one 'fun:', 'obj:' or 'src:' line",
        ),
        (
            "{\nn\nMemcheck:Leak\n}",
            "f:4: a suppression needs at least one 'fun:', 'obj:' or 'src:' line",
        ),
        (
            "{\nn\nMemcheck:Leak\nmatch-leak-kinds: lost\nfun:a\n}",
            "f:4: unknown leak kind 'lost': use definite, indirect, possible, reachable, all or none",
        ),
        (
            "{\nn\nMemcheck:Leak\nfun:a\nmatch-leak-kinds: all\n}",
            "f:5: 'match-leak-kinds:' must come before the call stack",
        ),
        (
            "{\nn\nHelgrind:Race\nfun:a\n{\nm\n",
            "f:5: expected '}' before the next '{'",
        ),
        (
            "{\nn\nMemcheck:Leak\nfun:a\n}\nfun:b\n",
            "f:6: expected '{' but found 'fun:b'",
        ),
        (
            "fun:a\n",
            "f:1: expected '{' (valgrind) or 'leak:PATTERN' (LeakSanitizer) but found 'fun:a'",
        ),
        (
            "\nleak:a\nnonsense\n",
            "f:3: expected '{' (valgrind) or 'leak:PATTERN' (LeakSanitizer) but found 'nonsense'",
        ),
        (
            "leak:*\n",
            "f:1: 'leak:' needs a pattern that is not only wildcards",
        ),
        (&long, "f:4: line longer than 4096 bytes"),
        (&deep, "f:504: more than 500 lines of call stack"),
    ];
    for (text, expected) in table {
        let error = parse(text.as_bytes(), "f").expect_err(text);
        assert_eq!(error.to_string(), format!("read suppressions {expected}"));
    }
}

#[test]
fn the_first_match_hides_and_counts() {
    let mut set = SuppressionSet::default();
    assert!(set.is_empty());
    set.extend(parse(b"leak:alpha\nleak:unused\nleak:alp", "u").expect("well-formed"));
    set.extend(builtin());
    let totals = |bytes, blocks| KindTotals { bytes, blocks };
    let alpha = stack("alpha main");
    let record = candidate(&alpha, Definite, Family::Malloc);
    assert_eq!(
        set.find(&record).map(|s| s.name.as_str()),
        Some("leak:alpha")
    );
    assert!(set.suppress(&record, totals(31, 2)));
    assert!(set.suppress(&record, totals(37, 1)));
    let other = stack("beta main");
    assert!(!set.suppress(&candidate(&other, Definite, Family::Malloc), totals(5, 1)));
    for name in ["dlopen", "dlsym"] {
        let frames = stack(&format!("{name}@/lib/libc.so.6 main"));
        assert!(set.suppress(&candidate(&frames, Reachable, Family::Malloc), totals(7, 1)));
    }
    let uses: Vec<_> = set
        .uses()
        .into_iter()
        .map(|u| (u.name, u.origin, u.hidden))
        .collect();
    let expected = [
        ("leak:alpha", "u:1", totals(68, 3)),
        ("leak:unused", "u:2", totals(0, 0)),
        ("leak:alp", "u:3", totals(0, 0)),
        ("glibc dlerror state", "builtin", totals(14, 2)),
    ];
    assert_eq!(
        uses,
        expected.map(|(n, o, h)| (n.to_owned(), o.to_owned(), h))
    );
    set.forget_uses();
    assert!(set.uses().iter().all(|u| u.hidden.blocks == 0));
}

#[test]
fn kind_and_module_tell_when_symbols_are_not_needed() {
    let mut set = SuppressionSet::default();
    set.extend(builtin());
    assert!(set.may_hide(Reachable, Some("/usr/lib/libc.so.6")));
    assert!(!set.may_hide(Definite, Some("/usr/lib/libc.so.6")));
    assert!(!set.may_hide(Reachable, Some("/usr/bin/prog")));
    assert!(!set.may_hide(Reachable, None));
    set.extend(parse(b"leak:x", "u").expect("well-formed"));
    assert!(set.may_hide(Definite, None));
}

#[test]
fn generated_suppressions_are_ready_to_paste() {
    let frames = stack("_Z1fv=f() ?@/lib/x.so ?@? main");
    let text = generate(&candidate(&frames, Definite, Family::New), "<leak 1>");
    assert_eq!(
        text.as_deref(),
        Some(
            "{\n   <leak 1>\n   Memcheck:Leak\n   match-leak-kinds: definite\n   fun:_Znwm\n   \
             fun:_Z1fv\n   obj:/lib/x.so\n   obj:*\n   fun:main\n}\n"
        )
    );
    for nothing in ["", "?@? ?@?"] {
        let frames = stack(nothing);
        assert_eq!(
            generate(&candidate(&frames, Definite, Family::Malloc), "n"),
            None
        );
    }
}

#[test]
fn every_builtin_is_well_formed_and_never_hides_a_definite_loss() {
    let suppressions = builtin();
    let lines: usize = BUILTINS
        .iter()
        .flat_map(|b| b.stacks)
        .map(|s| s.len())
        .sum();
    let parsed: usize = suppressions
        .iter()
        .map(|s| match &s.rule {
            Rule::Frames(lines) => lines.len(),
            Rule::Anywhere(_) => 0,
        })
        .sum();
    assert_eq!(parsed, lines);
    for entry in BUILTINS {
        assert!(
            !entry.reason.is_empty() && !entry.kinds.is_empty(),
            "{}",
            entry.name
        );
    }
    for suppression in &suppressions {
        for kind in [Definite, Indirect] {
            assert!(!suppression.kinds.contains(kind), "{}", suppression.name);
        }
    }
}

/// Stacks seen in valgrind on Debian 12, with and without libc's symbols.
#[test]
fn builtins_know_the_runtimes_own_blocks() {
    let ld = "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
    let c = "/usr/lib/x86_64-linux-gnu/libc.so.6";
    let cxx = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6.0.30";
    let table = [
        (Reachable, format!("?@{cxx} call_init@{ld} _dl_init@{ld} ?@{ld}"), true),
        (Reachable, format!("?@{cxx} ?@{ld} ?@{ld}"), true),
        (Reachable, format!("?@{cxx} f main"), false),
        (Reachable, "_GLOBAL__sub_I_eh_alloc.cc __libc_csu_init".to_owned(), false),
        (Possible, format!("calloc@{ld} allocate_dtv@{ld} _dl_allocate_tls@{ld} pthread_create@{c} main"), true),
        (Definite, format!("?@{ld} _dl_allocate_tls@{ld} pthread_create@{c} main"), false),
        (Reachable, format!("_dl_new_object@{ld} _dl_open@{ld} dlopen@{c} main"), true),
        (Possible, format!("?@{ld} _dl_find_object_update@{ld} ?@{ld} dlopen@{c} main"), true),
        (Definite, format!("?@{ld} _dl_find_object_update@{ld} ?@{ld} dlopen@{c} main"), false),
        (Reachable, format!("_dlerror_run@{c} dlopen@{c} main"), true),
        (Reachable, format!("_IO_file_doallocate@{c} ?@{c} puts@{c} main"), true),
        (Definite, format!("_IO_file_doallocate@{c} ?@{c} puts@{c} main"), false),
        (Reachable, format!("?@{c} ?@{c} setlocale@{c} main"), true),
        (Reachable, format!("?@{c} ?@{c} newlocale@{c} main"), true),
        (Reachable, format!("newlocale@{c} main"), false),
        (Reachable, format!("strndup@{c} ?@{c} newlocale@{c} main"), true),
        (Reachable, format!("?@{c} __nss_passwd_lookup2@{c} getpwnam_r@{c} main"), true),
        (Reachable, format!("getpwnam@{c} main"), true),
        (Reachable, "getpwnam main".to_owned(), false),
        (Reachable, format!("?@{c} getaddrinfo@{c} main"), false),
        (Reachable, format!("__check_pf@{c} getaddrinfo@{c} main"), true),
        (Reachable, format!("?@{c} setenv@{c} main"), true),
        (Reachable, format!("strdup@{c} tzset_internal@{c} main"), true),
        (Reachable, format!("__new_exitfn@{c} ?@{c} main"), true),
        (Reachable, format!("strdup@{c} main"), false),
        (Reachable, format!("fopen@{c} main"), false),
        (Possible, "alloc::alloc::alloc <std::thread::thread::Thread>::new std::thread::current::init_current r::main".to_owned(), true),
        (Definite, "std::thread::current::init_current r::main".to_owned(), false),
        (Reachable, "std::thread::current::init_current r::main".to_owned(), false),
        (Reachable, "main".to_owned(), false),
        (Possible, "alloc::raw_vec::finish_grow r::main".to_owned(), false),
    ];
    let mut set = SuppressionSet::default();
    set.extend(builtin());
    for (kind, text, expected) in table {
        let frames = stack(&text);
        let record = candidate(&frames, kind, Family::Malloc);
        assert_eq!(set.find(&record).is_some(), expected, "{kind:?} {text}");
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-c_*? :@]{0,6}",
        ".{0,12}",
        any::<String>(),
        Just("x".repeat(9000)),
        Just("...".to_owned()),
        Just("malloc".to_owned()),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    let names = (
        prop::option::of(name()),
        prop::option::of(name()),
        prop::option::of(name()),
    );
    (names, any::<bool>()).prop_map(|((function, linkage_name, module), inlined)| Frame {
        function,
        linkage_name,
        module,
        inlined,
        ..Frame::default()
    })
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![
        Just(Family::Malloc),
        Just(Family::New),
        Just(Family::NewArray)
    ]
}

proptest! {
    #[test]
    fn a_generated_suppression_hides_its_own_stack(
        frames in prop::collection::vec(frame(), 0..6),
        family in family(),
        name in name(),
        cut in any::<bool>(),
    ) {
        let mut frames = frames;
        if cut {
            frames.push(Frame { cut: true, ..Frame::default() });
        }
        for kind in [Definite, Indirect, Possible, Reachable] {
            let record = candidate(&frames, kind, family);
            let Some(text) = generate(&record, &name) else { continue };
            let parsed = parse(text.as_bytes(), "generated");
            let parsed = parsed.map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
            prop_assert_eq!(parsed.len(), 1);
            prop_assert!(parsed[0].matches(&record), "{}", text);
            let other = if kind == Definite { Possible } else { Definite };
            prop_assert!(!parsed[0].matches(&candidate(&frames, other, family)));
        }
    }

    /// Whatever the bytes, reading ends with a value or an error.
    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes, "f");
        let mut braced = b"{\nn\nMemcheck:Leak\n".to_vec();
        braced.extend(&bytes);
        let _ = parse(&braced, "f");
    }

    /// Matching by backtracking agrees with the definition.
    #[test]
    fn patterns_agree_with_their_definition(pattern in "[ab*?]{0,7}", name in "[ab]{0,9}") {
        fn naive(p: &[u8], n: &[u8]) -> bool {
            match (p.split_first(), n.split_first()) {
                (None, None) => true,
                (Some((b'*', rest)), _) => naive(rest, n) || (!n.is_empty() && naive(p, &n[1..])),
                (Some((c, rest)), Some((d, tail))) => (*c == b'?' || c == d) && naive(rest, tail),
                _ => false,
            }
        }
        let expected = naive(pattern.as_bytes(), name.as_bytes());
        prop_assert_eq!(Glob::new(&pattern).matches(&name), expected);
    }
}

#[test]
fn generated_suppressions_end_at_main_as_valgrinds_stacks_do() {
    let named = |function: &str| Frame {
        function: Some(function.into()),
        ..Frame::default()
    };
    let frames = [named("tree"), named("main"), named("__libc_start_main")];
    let record = Candidate {
        frames: &frames,
        kind: LossKind::Definite,
        family: Family::Malloc,
    };
    let text = generate(&record, "n").unwrap();
    assert!(text.ends_with("   fun:tree\n   fun:main\n}\n"), "{text}");
}
