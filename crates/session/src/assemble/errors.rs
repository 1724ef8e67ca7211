//! Wrong releases and descriptors never closed, in words.

use std::collections::BTreeMap;

use leakscope_model::quantity::{count, counted};
use leakscope_model::{ErrorCode, ErrorRecord, Family, RecordedError, RecordedErrorKind, StackId};

use super::records::Names;
use crate::check::{Judgement, OpenFd};

/// Descriptors that a message names.
const NAMED: usize = 3;

pub(crate) fn errors(judgement: &Judgement, names: &mut Names<'_>) -> Vec<ErrorRecord> {
    let wrong = judgement
        .table
        .errors
        .iter()
        .map(|error| wrong_release(error, names));
    let mut all: Vec<ErrorRecord> = wrong.collect();
    let mut by_stack: BTreeMap<StackId, Vec<&OpenFd>> = BTreeMap::new();
    for open in &judgement.fds {
        by_stack.entry(open.stack).or_default().push(open);
    }
    let mut open: Vec<_> = by_stack.into_iter().collect();
    open.sort_by_key(|(stack, fds)| (std::cmp::Reverse(fds.len()), *stack));
    all.extend(open.into_iter().map(|(stack, fds)| ErrorRecord {
        code: ErrorCode::FdLeak,
        message: never_closed(&fds),
        count: fds.len() as u64,
        stack: names.stack(stack),
        allocated: Vec::new(),
        freed: Vec::new(),
    }));
    all
}

fn wrong_release(error: &RecordedError, names: &mut Names<'_>) -> ErrorRecord {
    let at = error.addr;
    let times = if error.count > 1 {
        format!(" ({} times)", count(error.count))
    } else {
        String::new()
    };
    let (code, message) = match error.kind {
        RecordedErrorKind::DoubleFree => (
            ErrorCode::DoubleFree,
            format!("the block at {at} was freed again after it had been freed{times}"),
        ),
        RecordedErrorKind::InvalidFree => (
            ErrorCode::InvalidFree,
            format!("{at} was freed, which is not the start of any block{times}"),
        ),
        RecordedErrorKind::MismatchedFree {
            allocated,
            released,
        } => (
            ErrorCode::MismatchedFree,
            format!(
                "the block at {at} was allocated with {} and released with {}{times}",
                maker(allocated),
                breaker(released)
            ),
        ),
    };
    ErrorRecord {
        code,
        message,
        count: error.count,
        stack: names.stack(error.stack),
        allocated: names.stack(error.allocated),
        freed: names.stack(error.freed),
    }
}

fn maker(family: Family) -> &'static str {
    match family {
        Family::Malloc => "malloc",
        Family::New => "operator new",
        Family::NewArray => "operator new[]",
    }
}

fn breaker(family: Family) -> &'static str {
    match family {
        Family::Malloc => "free",
        Family::New => "operator delete",
        Family::NewArray => "operator delete[]",
    }
}

fn never_closed(fds: &[&OpenFd]) -> String {
    let mut targets: Vec<&str> = Vec::new();
    for open in fds {
        let target = open.target.as_str();
        if !target.is_empty() && !targets.contains(&target) {
            targets.push(target);
        }
    }
    let more = targets.len().saturating_sub(NAMED);
    let mut named = targets
        .iter()
        .take(NAMED)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if more > 0 {
        named.push_str(&format!(" and {} more", count(more as u64)));
    }
    let what = counted(fds.len() as u64, "descriptor");
    if named.is_empty() {
        format!("{what} never closed")
    } else {
        format!("{what} never closed ({named})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_named_once_and_not_all() {
        let open = |fd: u32, target: &str| OpenFd {
            fd,
            target: target.to_owned(),
            stack: StackId(0),
        };
        let many = [
            open(3, "/a"),
            open(4, "/a"),
            open(5, "socket:[31]"),
            open(6, "/c"),
            open(7, "/d"),
        ];
        let all: Vec<&OpenFd> = many.iter().collect();
        assert_eq!(
            never_closed(&all),
            "5 descriptors never closed (/a, socket:[31], /c and 1 more)"
        );
        assert_eq!(never_closed(&all[..1]), "1 descriptor never closed (/a)");
        assert_eq!(never_closed(&[&open(9, "")]), "1 descriptor never closed");
    }
}
