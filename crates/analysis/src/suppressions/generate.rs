//! Ready-to-paste suppressions.

use super::allocator;
use super::kinds::KindSet;
use super::matching::Candidate;
use leakscope_model::Frame;
use std::fmt::Write;

/// How many frames a suppression names: with the allocation function's line
/// as many as valgrind reads.
const MOST_FRAMES: usize = 499;

/// Longest part of a name that is written; the rest becomes `*`. With the
/// line's beginning it stays below the parser's limit.
const LONGEST_NAME: usize = 4000;

/// Writes the valgrind suppression that hides exactly the records of this
/// kind whose stack begins like this one; valgrind reads it too. `None` when
/// no frame has a name or a module: it would hide everything.
pub fn generate(record: &Candidate<'_>, name: &str) -> Option<String> {
    let kept = record.frames.iter().take_while(|f| !f.cut);
    let mut frames: Vec<&Frame> = kept.take(MOST_FRAMES).collect();
    // valgrind's own stacks end at main, so nothing outer to it can match.
    let main = |frame: &&Frame| frame.function.as_deref() == Some("main");
    if let Some(at) = frames.iter().position(main) {
        frames.truncate(at + 1);
    }
    if !frames.iter().any(|f| text(f).is_some()) {
        return None;
    }
    let mut name = printable(name);
    // These would be read as something else.
    if name.is_empty() || ["{", "}"].contains(&name.as_str()) || name.starts_with('#') {
        name.insert_str(0, "leak ");
    }
    let kinds = KindSet::NONE.with(record.kind);
    let allocator = allocator::typical(record.family);
    let mut out = format!(
        "{{\n   {}\n   Memcheck:Leak\n   match-leak-kinds: {kinds}\n   fun:{allocator}\n",
        name.trim_ascii()
    );
    for frame in frames {
        let line = text(frame).unwrap_or_else(|| "obj:*".to_owned());
        // Writing to a String cannot fail.
        let _ = writeln!(out, "   {line}");
    }
    out.push_str("}\n");
    Some(out)
}

/// The frame's line; `None` when nothing is known about it.
fn text(frame: &Frame) -> Option<String> {
    let named = |name: &Option<String>| name.as_deref().filter(|n| !n.is_empty()).map(printable);
    named(&frame.linkage_name)
        .or_else(|| named(&frame.function))
        .map(|name| format!("fun:{name}"))
        .or_else(|| {
            let module = frame.module.as_deref()?;
            // The next run's file is not deleted.
            let path = module.strip_suffix(" (deleted)").unwrap_or(module);
            (!path.is_empty()).then(|| format!("obj:{}", printable(path)))
        })
}

/// The name as a pattern that matches it: bytes that would break the line
/// become `?`, blanks at its ends too, and an endless name is cut to `*`.
fn printable(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if out.len() >= LONGEST_NAME {
            out.push('*');
            return out;
        }
        let edge = i == 0 || i + c.len_utf8() == name.len();
        if c.is_ascii_control() || (edge && c.is_ascii_whitespace()) {
            out.push('?');
        } else {
            out.push(c);
        }
    }
    out
}
