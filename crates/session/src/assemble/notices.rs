//! What the recorder met, in words.

use leakscope_model::quantity::{bytes, count, counted};
use leakscope_model::{LiveTable, LossSummary, Notice};
use leakscope_wire::Reader;
use leakscope_wire::layout::{note, word};

use crate::supervisor::Replaced;

/// Notices from counters and note bits.
pub(crate) fn recorder(reader: &Reader<'_>, table: &LiveTable) -> Vec<Notice> {
    let mut all = Vec::new();
    let mut say = |code: &'static str, message: String| all.push(Notice { code, message });
    let losses = &table.losses;
    let notes = reader.word(word::NOTES);
    let noted = |bit: u64| notes & bit != 0;
    if noted(note::LSAN_TURNED_OFF) {
        say(
            "lsan-turned-off",
            "the program's __lsan_is_turned_off says that leaks are not to be looked for: all \
             blocks count as reachable"
                .to_owned(),
        );
    }
    if noted(note::FOREIGN_ALLOCATOR) {
        say(
            "foreign-allocator",
            "allocations are made by an allocator other than glibc's: its own memory cannot be \
             told from the program's, which may hide leaks"
                .to_owned(),
        );
    }
    if noted(note::TABLE_FULL) {
        say(
            "table-full",
            "the table of live blocks was full: later blocks were not recorded; use --sample to \
             record fewer"
                .to_owned(),
        );
    }
    if losses.dropped_events > 0 {
        say(
            "dropped-events",
            format!(
                "{} could not be recorded, so numbers are too low by that much",
                counted(losses.dropped_events, "event")
            ),
        );
    }
    if losses.unknown_frees > 0 {
        say(
            "unknown-frees",
            format!(
                "{} of blocks that the recorder had not seen (made before it was loaded, or by \
                 another allocator) passed through",
                counted(losses.unknown_frees, "release")
            ),
        );
    }
    if losses.cut_stacks > 0 {
        say(
            "cut-stacks",
            format!(
                "{} ended early in code without unwind information (just-in-time compiled, \
                 hand-written assembly)",
                counted(losses.cut_stacks, "call stack")
            ),
        );
    }
    if losses.deep_stacks > 0 {
        say(
            "deep-stacks",
            format!(
                "{} were deeper than {} frames and lost their outer ones; use --max-depth to \
                 keep more",
                counted(losses.deep_stacks, "call stack"),
                count(reader.word(word::MAX_DEPTH))
            ),
        );
    }
    let nodes = reader.word(word::DROPPED_NODES);
    if nodes > 0 || noted(note::NODES_FULL) {
        say(
            "stacks-full",
            format!(
                "there was no room for {}: their blocks are listed without a stack",
                counted(nodes.max(1), "call stack")
            ),
        );
    }
    let lost = reader.word(word::LOST_CHILDREN);
    if lost > 0 {
        say(
            "lost-children",
            format!(
                "{} {} it forked could not be recorded: no room for another segment, or no \
                 connection",
                count(lost),
                if lost == 1 {
                    "child process"
                } else {
                    "child processes"
                }
            ),
        );
    }
    if noted(note::RAW_FORK) {
        say(
            "raw-fork",
            "a child was forked by a raw system call and is not recorded".to_owned(),
        );
    }
    if noted(note::CHROOT) {
        say(
            "chroot",
            "the program changed its root directory: programs that it starts there cannot load \
             the recorder"
                .to_owned(),
        );
    }
    all
}

/// What the process ran before, if anything.
pub(crate) fn replaced_notice(before: &[Replaced]) -> Option<Notice> {
    let mut exes: Vec<&str> = before.iter().map(|r| r.exe.as_str()).collect();
    exes.dedup();
    let (last, first) = exes.split_last()?;
    let names = match first {
        [] => (*last).to_owned(),
        _ => format!("{} and {last}", first.join(", ")),
    };
    let sum = |of: fn(&Replaced) -> u64| before.iter().map(of).fold(0u64, u64::saturating_add);
    Some(Notice {
        code: "exec-replaced",
        message: format!(
            "this process ran {names} before, replaced by exec with {} in {} live and not \
             judged (use --at-exec to judge that too)",
            bytes(sum(|r| r.bytes)),
            counted(sum(|r| r.blocks), "block"),
        ),
    })
}

/// What a check that the program asked for itself has found.
pub(crate) fn lsan_notice(ends: bool, loss: &LossSummary) -> Notice {
    let lost = loss.definite.blocks.saturating_add(loss.possible.blocks);
    let lost_bytes = loss.definite.bytes.saturating_add(loss.possible.bytes);
    let function = if ends {
        "__lsan_do_leak_check"
    } else {
        "__lsan_do_recoverable_leak_check"
    };
    Notice {
        code: "lsan-check",
        message: format!(
            "the program called {function}: {} ({}) definitely or possibly lost at that moment",
            counted(lost, "block"),
            bytes(lost_bytes)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_before_are_named_in_order() {
        let ran = |exe: &str| Replaced {
            exe: exe.to_owned(),
            bytes: 31,
            blocks: 1,
        };
        assert_eq!(replaced_notice(&[]), None);
        let three = [
            ran("/bin/env"),
            ran("/bin/sh"),
            ran("/bin/sh"),
            ran("/bin/b"),
        ];
        let notice = replaced_notice(&three).unwrap();
        assert_eq!(notice.code, "exec-replaced");
        let start = "this process ran /bin/env, /bin/sh and /bin/b before, replaced by exec with \
            124 bytes in 4 blocks live";
        assert!(notice.message.starts_with(start), "{}", notice.message);
    }
}
