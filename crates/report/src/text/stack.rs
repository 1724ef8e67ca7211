//! Call stacks: one line a frame, the long middle of deep ones left out.

use std::io;

use leakscope_model::Frame;

use super::page::Page;
use crate::{Options, escape};

/// Lines for a stack; of deeper ones the middle is left out. A run of equal
/// frames (recursion) is one line.
const MOST_LINES: usize = 32;
/// Outer lines that stay then: where the program came from.
const OUTER_LINES: usize = 7;

/// Writes `stack` behind `indent` columns, each frame as
/// `at function (file:line)`.
pub(super) fn write(
    page: &mut Page<'_>,
    indent: usize,
    stack: &[Frame],
    options: &Options,
) -> io::Result<()> {
    let margin = " ".repeat(indent);
    if stack.is_empty() {
        return page.line(&format!("{margin}(no call stack)"));
    }
    let telling = (options.own_frame)(stack);
    let stack = down_to_main(stack);
    let runs: Vec<&[Frame]> = stack.chunk_by(|a, b| a == b && !a.cut).collect();
    let middle = if runs.len() > MOST_LINES {
        MOST_LINES - OUTER_LINES - 1..runs.len() - OUTER_LINES
    } else {
        0..0
    };
    for (i, run) in runs.iter().enumerate() {
        if middle.start == i && !middle.is_empty() {
            let skipped: usize = runs[middle.clone()].iter().map(|r| r.len()).sum();
            let mark = page.paint.dim(&format!("… {skipped} frames …"));
            page.line(&format!("{margin}{mark}"))?;
        }
        if middle.contains(&i) {
            continue;
        }
        let Some(frame) = run.first() else { continue };
        if frame.cut {
            let mark = page.paint.dim("(outer frames not kept)");
            page.line(&format!("{margin}{mark}"))?;
            continue;
        }
        let room = page.room(indent + 3);
        let mut text = describe(frame, options, room);
        if run
            .iter()
            .any(|f| telling.is_some_and(|t| std::ptr::eq(t, f)))
        {
            text = page.paint.place(&text);
        }
        let inlined = if frame.inlined { " [inlined]" } else { "" };
        let times = match run.len() {
            1 => String::new(),
            n => page.paint.dim(&format!(" [{n} times]")),
        };
        page.line(&format!("{margin}at {text}{inlined}{times}"))?;
    }
    Ok(())
}

/// The stack without what calls `main`, which is the same in every stack.
/// Rust's `main` is a symbol of C too, but its caller that people know lies
/// further in.
fn down_to_main(stack: &[Frame]) -> &[Frame] {
    let named = |f: &Frame, wanted: fn(&str) -> bool| f.function.as_deref().is_some_and(wanted);
    let main = stack.iter().position(|f| named(f, |n| n == "main"));
    // Without symbols `main` has no name, but its caller in glibc may.
    let caller = || {
        let called = |n: &str| matches!(n, "__libc_start_call_main" | "__libc_start_main");
        let at = stack.iter().position(|f| named(f, called))?;
        at.checked_sub(1)
    };
    let stack = main.or_else(caller).map_or(stack, |at| &stack[..=at]);
    let rust = stack
        .iter()
        .position(|f| named(f, |n| n.contains("__rust_begin_short_backtrace")));
    match rust {
        Some(at) if at > 0 => {
            let call = named(&stack[at - 1], |n| {
                n.contains("FnOnce") && n.contains("call_once")
            });
            &stack[..if call && at > 1 { at - 1 } else { at }]
        }
        _ => stack,
    }
}

/// `function (file:line)`, `function (module+0x12)`, or `module+0x12`.
/// When that takes more than `room` columns, template arguments and
/// parameters are left out.
pub(super) fn describe(frame: &Frame, options: &Options, room: Option<usize>) -> String {
    let place = match (&frame.file, &frame.module) {
        (Some(file), _) => {
            let file = escape(relative(file, &options.roots));
            match frame.line {
                Some(line) => Some(format!("{file}:{line}")),
                None => Some(file.into_owned()),
            }
        }
        (None, Some(module)) => {
            let name = match file_name(module) {
                "" => "(unnamed module)".into(),
                name => escape(name),
            };
            match frame.module_offset {
                Some(offset) => Some(format!("{name}+{offset:#x}")),
                None => Some(name.into_owned()),
            }
        }
        (None, None) => None,
    };
    match (&frame.function, place) {
        (None, None) => "(code outside any module)".to_owned(),
        (None, Some(place)) => place,
        (Some(function), place) => {
            let name = escape(function);
            let place = place.map_or(String::new(), |p| format!(" ({p})"));
            let long = name.chars().count() + place.chars().count();
            if room.is_some_and(|r| long > r) {
                format!("{}{place}", without_arguments(&name))
            } else {
                format!("{name}{place}")
            }
        }
    }
}

/// `file` without the root it lies below (the longest that fits).
fn relative<'a>(file: &'a str, roots: &[String]) -> &'a str {
    roots
        .iter()
        .filter_map(|root| {
            let rest = file.strip_prefix(root.trim_end_matches('/'))?;
            let rest = rest.strip_prefix('/')?;
            (!rest.is_empty()).then_some(rest)
        })
        .min_by_key(|rest| rest.len())
        .unwrap_or(file)
}

fn file_name(path: &str) -> &str {
    match path.rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => path,
    }
}

/// A C++ or Rust name with `<…>` and `(…)` for what stands between outermost
/// angle brackets and parentheses. A name that begins with `<` (a Rust trait
/// method) keeps that first pair, and `operator<` and its like are no
/// brackets.
fn without_arguments(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut depth = 0u32;
    let mut rest = name;
    if let Some(tail) = rest.strip_prefix('<') {
        out.push('<');
        rest = tail;
    }
    while let Some(c) = rest.chars().next() {
        let mut taken = c.len_utf8();
        if let Some(tail) = rest.strip_prefix("operator") {
            let symbols = if tail.starts_with("()") {
                2
            } else {
                tail.find(|c| !"<>=-".contains(c)).unwrap_or(tail.len())
            };
            taken = "operator".len() + symbols;
            if depth == 0 {
                out.push_str(&rest[..taken]);
            }
        } else if rest.starts_with("->") || rest.starts_with("(anonymous namespace)") {
            taken = if c == '-' {
                2
            } else {
                "(anonymous namespace)".len()
            };
            if depth == 0 {
                out.push_str(&rest[..taken]);
            }
        } else if matches!(c, '<' | '(') {
            if depth == 0 {
                out.push(c);
                let closes_at_once = rest[1..].starts_with(['>', ')']);
                if !closes_at_once {
                    out.push('…');
                }
            }
            depth += 1;
        } else if matches!(c, '>' | ')') {
            depth = depth.saturating_sub(1);
            if depth == 0 {
                out.push(c);
            }
        } else if depth == 0 {
            out.push(c);
        }
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(function: &str, file: &str, line: u32) -> Frame {
        Frame {
            function: Some(function.to_owned()),
            file: Some(file.to_owned()),
            line: Some(line),
            ..Frame::default()
        }
    }

    #[test]
    fn files_below_a_root_lose_it() {
        let roots = ["/src/app".to_owned(), "/src".to_owned()];
        let table = [
            ("/src/app/x.c", "x.c"),
            ("/src/lib/y.c", "lib/y.c"),
            ("/srcs/z.c", "/srcs/z.c"),
            ("/src/app", "app"),
            ("relative.c", "relative.c"),
        ];
        for (file, shown) in table {
            assert_eq!(relative(file, &roots), shown);
        }
        assert_eq!(relative("/x.c", &["/".to_owned()]), "x.c");
    }

    #[test]
    fn long_names_lose_their_arguments() {
        let table = [
            ("f(int, char const*)", "f(…)"),
            ("main()", "main()"),
            (
                "std::map<int, std::string>::operator[](int&&)",
                "std::map<…>::operator[](…)",
            ),
            ("bool operator< <int>(int)", "bool operator< <…>(…)"),
            ("operator<<(std::ostream&, X)", "operator<<(…)"),
            ("S::operator()(int) const", "S::operator()(…) const"),
            ("S::operator->() const", "S::operator->() const"),
            (
                "(anonymous namespace)::f(int)",
                "(anonymous namespace)::f(…)",
            ),
            (
                "<alloc::vec::Vec<T, A> as Clone>::clone::<u8>",
                "<alloc::vec::Vec<…> as Clone>::clone::<…>",
            ),
            ("unbalanced>>)", "unbalanced>>)"),
            ("open<<<", "open<…"),
            ("", ""),
        ];
        for (name, short) in table {
            assert_eq!(without_arguments(name), short);
        }
    }

    #[test]
    fn what_calls_main_is_left_out() {
        let names = |stack: &[Frame]| -> Vec<String> {
            let frames = down_to_main(stack).iter();
            frames.filter_map(|f| f.function.clone()).collect()
        };
        let c = ["f", "main", "__libc_start_main", "_start"].map(|n| frame(n, "x.c", 1));
        assert_eq!(names(&c), ["f", "main"]);
        let stripped = ["f", "g", "__libc_start_call_main", "x"].map(|n| frame(n, "x.c", 1));
        assert_eq!(names(&stripped), ["f", "g"]);
        assert_eq!(names(&stripped[2..]).len(), 2);
        let thread = ["work", "start_thread", "clone3"].map(|n| frame(n, "x.c", 1));
        assert_eq!(names(&thread), ["work", "start_thread", "clone3"]);
        let rust = [
            "app::main",
            "core::ops::function::FnOnce::call_once",
            "std::sys::backtrace::__rust_begin_short_backtrace",
            "std::rt::lang_start",
            "main",
        ]
        .map(|n| frame(n, "x.rs", 1));
        assert_eq!(names(&rust), ["app::main"]);
        assert_eq!(names(&rust[2..]).len(), 3);
        assert!(names(&[]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_name_can_be_shortened(name in "[a-z<>()\\-é:. ]{0,40}|(operator|->|<|\\(|x){0,20}") {
            let short = without_arguments(&name);
            // What is added is one mark for each pair that is emptied.
            let pairs = name.matches(['<', '(']).count();
            proptest::prop_assert!(short.chars().count() <= name.chars().count() + pairs);
        }

        #[test]
        fn no_frame_reaches_the_terminal_raw(
            function in proptest::option::of(".{0,40}"),
            file in proptest::option::of(".{0,40}"),
            module in proptest::option::of(".{0,40}"),
            room in proptest::option::of(0usize..60),
        ) {
            let frame = Frame { function, file, module, line: Some(7), ..Frame::default() };
            let options = Options { roots: vec!["/".to_owned()], ..Options::default() };
            let text = describe(&frame, &options, room);
            proptest::prop_assert!(!text.contains(crate::escape::is_hostile));
        }
    }
}
