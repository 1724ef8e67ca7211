//! Does a suppression match a call stack?

use super::allocator;
use super::pattern::{Glob, Template};
use leakscope_model::{Family, Frame, LossKind};

/// A loss record as suppressions see it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its stack, innermost first, from the caller of the allocation
    /// function; inlined frames are frames.
    pub frames: &'a [Frame],
    /// Its loss kind.
    pub kind: LossKind,
    /// Which functions allocated: valgrind's patterns begin with their name.
    pub family: Family,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rule {
    /// valgrind: lines match frames from the innermost one outward; frames
    /// further out do not matter.
    Frames(Vec<Line>),
    /// LeakSanitizer: any frame's function, file or module matches.
    Anywhere(Template),
}

/// One line of a valgrind suppression's call stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Line {
    /// `fun:`
    Function(Glob),
    /// `obj:`
    Object(Glob),
    /// `src:FILE` or `src:FILE:LINE`
    Source(Glob, Option<u32>),
    /// `...`: any number of frames, none included.
    Any,
}

/// What valgrind's patterns see where a name is unknown.
const UNKNOWN: &str = "???";

impl Rule {
    pub(super) fn matches(&self, record: &Candidate<'_>) -> bool {
        match self {
            Rule::Frames(lines) => lines_match(lines, record),
            Rule::Anywhere(template) => {
                let mut frames = record.frames.iter();
                frames.any(|frame| template_matches(template, frame))
            }
        }
    }
}

fn template_matches(template: &Template, frame: &Frame) -> bool {
    let names = [
        &frame.function,
        &frame.linkage_name,
        &frame.file,
        &frame.module,
    ];
    let mut names = names.into_iter().flatten();
    names.any(|name| template.matches(name))
}

/// A frame of valgrind's stack.
#[derive(Clone, Copy)]
enum Seen<'a> {
    /// The allocation function, which our stacks leave out.
    Allocator(Family),
    Frame(&'a Frame),
}

/// A record's stack with or without the allocation function in front.
#[derive(Clone, Copy)]
struct Stack<'a> {
    allocator: Option<Family>,
    frames: &'a [Frame],
}

impl<'a> Stack<'a> {
    /// Frame `i`, innermost first; `None` behind the end. The mark of frames
    /// not kept is the end too.
    fn get(&self, i: usize) -> Option<Seen<'a>> {
        let i = match (self.allocator, i) {
            (Some(family), 0) => return Some(Seen::Allocator(family)),
            (Some(_), i) => i - 1,
            (None, i) => i,
        };
        self.frames.get(i).filter(|f| !f.cut).map(Seen::Frame)
    }
}

/// valgrind's stacks begin with the allocation function, ours with its
/// caller. So lines are tried against our stack with that frame put in front.
/// When the first line cannot mean the allocation function, or our innermost
/// frame is one itself (not interposed, so the recorder saw it call another),
/// they are also tried against our stack alone.
fn lines_match(lines: &[Line], record: &Candidate<'_>) -> bool {
    let own = Stack {
        allocator: None,
        frames: record.frames,
    };
    let whole = Stack {
        allocator: Some(record.family),
        ..own
    };
    if prefix_matches(lines, whole) {
        return true;
    }
    let means_allocator = lines
        .first()
        .is_some_and(|line| line.matches_allocator(record.family));
    let shows_allocator = own.get(0).is_some_and(Seen::is_allocator);
    (!means_allocator || shows_allocator) && prefix_matches(lines, own)
}

/// True when the lines match some innermost part of the stack. As for a text
/// with `*`: on a mismatch only the last `...` needs to take one frame more.
fn prefix_matches(lines: &[Line], stack: Stack<'_>) -> bool {
    let (mut line, mut frame) = (0, 0);
    let mut any: Option<(usize, usize)> = None;
    loop {
        match (lines.get(line), stack.get(frame)) {
            (None, _) => return true,
            (Some(Line::Any), _) => {
                line += 1;
                any = Some((line, frame));
            }
            (Some(_), None) => return false,
            (Some(pattern), Some(seen)) if pattern.matches(seen) => {
                line += 1;
                frame += 1;
            }
            _ => {
                let Some((behind, tried)) = any else {
                    return false;
                };
                line = behind;
                frame = tried + 1;
                any = Some((behind, frame));
            }
        }
    }
}

impl Seen<'_> {
    fn is_allocator(self) -> bool {
        match self {
            Seen::Allocator(_) => true,
            Seen::Frame(frame) => {
                let mut names = [&frame.linkage_name, &frame.function].into_iter().flatten();
                names.any(|name| allocator::is_allocator(name))
            }
        }
    }
}

impl Line {
    fn matches(&self, seen: Seen<'_>) -> bool {
        match seen {
            Seen::Allocator(family) => self.matches_allocator(family),
            Seen::Frame(frame) => self.matches_frame(frame),
        }
    }

    fn matches_allocator(&self, family: Family) -> bool {
        match self {
            Line::Any => true,
            Line::Function(glob) => {
                let mut names = allocator::names(family).iter();
                names.any(|name| glob.matches(name))
            }
            Line::Object(glob) => {
                let mut modules = allocator::MODULES.iter();
                modules.any(|module| glob.matches(module))
            }
            // Debian's valgrind has no line numbers for its replacements.
            Line::Source(..) => false,
        }
    }

    fn matches_frame(&self, frame: &Frame) -> bool {
        match self {
            Line::Any => true,
            Line::Function(glob) => {
                let names = [&frame.linkage_name, &frame.function];
                let mut names = names.into_iter().flatten().peekable();
                if names.peek().is_none() {
                    return glob.matches(UNKNOWN);
                }
                names.any(|name| glob.matches(name) || glob.matches(unversioned(name)))
            }
            Line::Object(glob) => {
                let module = frame.module.as_deref().unwrap_or(UNKNOWN);
                let path = module.strip_suffix(" (deleted)").unwrap_or(module);
                glob.matches(module) || glob.matches(path)
            }
            Line::Source(glob, line) => {
                let file = frame.file.as_deref();
                file.is_some_and(|file| source_matches(glob, file))
                    && (line.is_none() || *line == frame.line)
            }
        }
    }
}

/// `malloc@@GLIBC_2.2.5` is `malloc`: symbol tables may carry the version.
fn unversioned(name: &str) -> &str {
    name.split_once('@').map_or(name, |(name, _)| name)
}

/// valgrind knows a file as its compiler named it, often without folders;
/// DWARF readers add the compilation folder. So every tail of the path that
/// begins behind a slash is compared.
fn source_matches(glob: &Glob, path: &str) -> bool {
    let tails = path
        .match_indices('/')
        .filter_map(|(i, _)| path.get(i + 1..));
    glob.matches(path) || tails.take(64).any(|tail| glob.matches(tail))
}
