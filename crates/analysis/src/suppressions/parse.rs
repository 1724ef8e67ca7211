//! Reading suppression files.
//!
//! valgrind's language, from its manual ("Suppressing errors"):
//!
//! ```text
//! {
//!    a name
//!    Memcheck:Leak            tools, separated by commas, and the error's kind
//!    match-leak-kinds: all    optional
//!    fun:pattern              call stack, innermost first: fun:, obj:, src:
//!    ...                      any number of frames
//! }
//! ```
//!
//! LeakSanitizer's: one `leak:PATTERN` a line. In both `#` begins a comment
//! line. Files are any bytes; what is no UTF-8 becomes U+FFFD.

use super::matching::{Line, Rule};
use super::pattern::{Glob, LONGEST_PATTERN, Template};
use super::{KindSet, Suppression};
use std::fmt;

/// How many lines a call stack may have (valgrind's `VG_MAX_SUPP_CALLERS`).
const MOST_LINES: usize = 500;

/// How many suppressions one file may hold. They may come from the program
/// under examination, and each is tried on each record.
const MOST_SUPPRESSIONS: usize = 100_000;

/// Why a suppression file was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The file, as the caller named it.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "read suppressions {}:{}: {}",
            self.file, self.line, self.message
        )
    }
}

impl std::error::Error for ParseError {}

/// Reads a file of either language; `file` is its name for origins and
/// errors. The first line that is neither empty nor a comment decides: a
/// brace begins valgrind's language.
///
/// valgrind's entries for other tools and other kinds of errors are read and
/// left out, and so are LeakSanitizer's lines for other sanitizers.
///
/// # Errors
///
/// The first line that breaks the rules of its language.
pub fn parse(bytes: &[u8], file: &str) -> Result<Vec<Suppression>, ParseError> {
    let mut lines = Lines {
        rest: bytes,
        number: 0,
        file,
    };
    let mut found = Vec::new();
    let mut language = None;
    while let Some(line) = lines.next()? {
        if found.len() >= MOST_SUPPRESSIONS {
            return Err(lines.error(format!("more than {MOST_SUPPRESSIONS} suppressions")));
        }
        let is_valgrind = *language.get_or_insert(line == "{");
        if is_valgrind {
            if line != "{" {
                let got = shown(&line);
                return Err(lines.error(format!("expected '{{' but found '{got}'")));
            }
            found.extend(block(&mut lines)?);
        } else {
            found.extend(sanitizer_line(&lines, &line)?);
        }
    }
    Ok(found)
}

/// The file's lines that are neither empty nor comments, without the blanks
/// around them.
struct Lines<'a> {
    rest: &'a [u8],
    number: usize,
    file: &'a str,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Option<String>, ParseError> {
        while !self.rest.is_empty() {
            let end = self.rest.iter().position(|b| *b == b'\n');
            let (line, behind) = match end {
                Some(end) => (
                    self.rest.get(..end).unwrap_or_default(),
                    self.rest.get(end + 1..).unwrap_or_default(),
                ),
                None => (self.rest, &[][..]),
            };
            self.rest = behind;
            self.number += 1;
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            if line.len() > LONGEST_PATTERN {
                return Err(self.error(format!("line longer than {LONGEST_PATTERN} bytes")));
            }
            return Ok(Some(String::from_utf8_lossy(line).into_owned()));
        }
        Ok(None)
    }

    fn inside(&mut self) -> Result<String, ParseError> {
        let line = self.next()?;
        line.ok_or_else(|| self.error("the file ends before the closing '}'".to_owned()))
    }

    fn origin(&self) -> String {
        format!("{}:{}", self.file, self.number)
    }

    fn error(&self, message: String) -> ParseError {
        ParseError {
            file: self.file.to_owned(),
            line: self.number,
            message,
        }
    }
}

/// A block behind its opening brace; `None` when it is not about leaks.
fn block(lines: &mut Lines<'_>) -> Result<Option<Suppression>, ParseError> {
    let name = lines.inside()?;
    if name == "}" || name == "{" {
        return Err(lines.error(format!(
            "expected the suppression's name but found '{name}'"
        )));
    }
    let origin = lines.origin();
    let head = lines.inside()?;
    let Some((tools, error)) = head.split_once(':') else {
        let got = shown(&head);
        return Err(lines.error(format!(
            "expected 'TOOL:KIND' such as 'Memcheck:Leak' but found '{got}'"
        )));
    };
    let ours = tools.split(',').any(|tool| tool.trim() == "Memcheck");
    let error = error.trim_ascii();
    if ours && !is_memcheck_kind(error) {
        let got = shown(error);
        return Err(lines.error(format!("unknown Memcheck kind '{got}'")));
    }
    if !ours || error != "Leak" {
        skip_block(lines)?;
        return Ok(None);
    }
    let (kinds, stack) = leak_body(lines)?;
    Ok(Some(Suppression {
        name,
        origin,
        kinds,
        rule: Rule::Frames(stack),
        modules: Vec::new(),
    }))
}

/// What may follow `Memcheck:` (`mc_errors.c`, `is_recognised_suppression`).
fn is_memcheck_kind(word: &str) -> bool {
    const SIZES: [&str; 6] = ["1", "2", "4", "8", "16", "32"];
    const WORDS: [&str; 15] = [
        "Leak",
        "Param",
        "User",
        "CoreError",
        "Cond",
        "Value0",
        "Free",
        "Jump",
        "Overlap",
        "Mempool",
        "FishyValue",
        "ReallocZero",
        "BadAlign",
        "BadSize",
        "SizeMismatch",
    ];
    let sized = |prefix| {
        word.strip_prefix(prefix)
            .is_some_and(|size| SIZES.contains(&size))
    };
    WORDS.contains(&word) || word == "AlignMismatch" || sized("Value") || sized("Addr")
}

/// Reads to the closing brace. Other tools have lines of their own, so only
/// the braces are checked.
fn skip_block(lines: &mut Lines<'_>) -> Result<(), ParseError> {
    loop {
        match lines.inside()?.as_str() {
            "}" => return Ok(()),
            "{" => return Err(lines.error("expected '}' before the next '{'".to_owned())),
            _ => {}
        }
    }
}

fn leak_body(lines: &mut Lines<'_>) -> Result<(KindSet, Vec<Line>), ParseError> {
    let mut kinds = KindSet::ALL;
    let mut stack = Vec::new();
    let mut first = true;
    loop {
        let line = lines.inside()?;
        if line == "}" {
            break;
        }
        if let Some(words) = line.strip_prefix("match-leak-kinds:") {
            if !first {
                return Err(
                    lines.error("'match-leak-kinds:' must come before the call stack".to_owned())
                );
            }
            kinds = words.parse().map_err(|e| lines.error(format!("{e}")))?;
        } else if stack.len() >= MOST_LINES {
            return Err(lines.error(format!("more than {MOST_LINES} lines of call stack")));
        } else {
            stack.push(stack_line(lines, &line)?);
        }
        first = false;
    }
    if stack.iter().all(|line| *line == Line::Any) {
        return Err(lines
            .error("a suppression needs at least one 'fun:', 'obj:' or 'src:' line".to_owned()));
    }
    Ok((kinds, stack))
}

fn stack_line(lines: &Lines<'_>, line: &str) -> Result<Line, ParseError> {
    let parsed = parse_stack_line(line);
    parsed.ok_or_else(|| {
        let got = shown(line);
        lines.error(format!(
            "expected 'fun:', 'obj:', 'src:', '...' or '}}' but found '{got}'"
        ))
    })
}

/// One line of a call stack; `None` when it is none.
pub(super) fn parse_stack_line(line: &str) -> Option<Line> {
    if line == "..." {
        return Some(Line::Any);
    }
    let (what, pattern) = line.split_once(':')?;
    let pattern = pattern.trim_ascii();
    if pattern.is_empty() {
        return None;
    }
    match what {
        "fun" => Some(Line::Function(Glob::new(pattern))),
        "obj" => Some(Line::Object(Glob::new(pattern))),
        "src" => {
            let numbered = pattern
                .rsplit_once(':')
                .and_then(|(file, line)| Some((file, line.parse().ok()?)));
            Some(match numbered {
                Some((file, line)) => Line::Source(Glob::new(file), Some(line)),
                None => Line::Source(Glob::new(pattern), None),
            })
        }
        _ => None,
    }
}

/// A line of LeakSanitizer's language; `None` for other sanitizers' lines.
fn sanitizer_line(lines: &Lines<'_>, line: &str) -> Result<Option<Suppression>, ParseError> {
    let expected = |got: &str| {
        lines.error(format!(
            "expected '{{' (valgrind) or 'leak:PATTERN' (LeakSanitizer) but found '{}'",
            shown(got)
        ))
    };
    let Some((what, pattern)) = line.split_once(':') else {
        return Err(expected(line));
    };
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    let valgrind_line = ["fun", "obj", "src", "match-leak-kinds"].contains(&what);
    if valgrind_line || what.is_empty() || !what.chars().all(is_word) {
        return Err(expected(line));
    }
    if what != "leak" {
        return Ok(None);
    }
    let pattern = pattern.trim_ascii();
    // These match every name there is.
    if pattern.trim_matches(['*', '^', '$']).is_empty() {
        return Err(lines.error("'leak:' needs a pattern that is not only wildcards".to_owned()));
    }
    Ok(Some(Suppression {
        name: line.to_owned(),
        origin: lines.origin(),
        kinds: KindSet::ALL,
        rule: Rule::Anywhere(Template::new(pattern)),
        modules: Vec::new(),
    }))
}

/// A line of the file, short enough for one sentence.
fn shown(line: &str) -> String {
    let mut short: String = line.chars().take(60).filter(|c| !c.is_control()).collect();
    if line.chars().count() > 60 {
        short.push('…');
    }
    short
}
