//! How processes end: our child's status, and that of every orphan that the
//! kernel hands to us as their subreaper.

use std::fs;

use leakscope_model::ExitKind;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};

use crate::signals;
use crate::supervisor::Ended;

/// `__WALL` (`include/uapi/linux/wait.h`): children of every kind of clone.
const WALL: u32 = 0x4000_0000;

/// What became of a child.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Child {
    /// It runs.
    Running,
    /// It ended; its status has been taken.
    Ended(Ended),
    /// Not our child.
    Unknown,
}

/// Takes the status of child `pid` if it has ended.
///
/// It looks before it takes: a plain wait would also take away the notices by
/// which our own tracing threads learn that the child has stopped for them.
pub(crate) fn look(pid: u32) -> Child {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Child::Unknown;
    };
    let every = WaitIdOptions::from_bits_retain(WALL);
    let ask = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | every;
    let peek = ask | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(id), peek) {
        Ok(None) => Child::Running,
        // A stop for a tracer is told whether asked for or not.
        Ok(Some(status)) => match ended(&status) {
            None => Child::Running,
            Some(_) => match waitid(WaitId::Pid(id), ask) {
                Ok(Some(status)) => ended(&status).map_or(Child::Running, Child::Ended),
                _ => Child::Unknown,
            },
        },
        Err(_) => Child::Unknown,
    }
}

fn ended(status: &WaitIdStatus) -> Option<Ended> {
    const CORE_DUMPED: i32 = 0x80;
    let core = if status.dumped() { CORE_DUMPED } else { 0 };
    let code = status.exit_status().map(|code| (code & 0xff) << 8);
    let status = code.or_else(|| status.terminating_signal().map(|s| s & 0x7f | core))?;
    Some(Ended {
        exit: exit_kind(status),
        status,
    })
}

/// What a status of wait(2) says about an ended process.
pub(crate) fn exit_kind(status: i32) -> ExitKind {
    match status & 0x7f {
        0 => ExitKind::Code(status >> 8 & 0xff),
        signal => ExitKind::Signal(signals::name(signal)),
    }
}

/// All children of this process, whichever thread started or inherited them.
pub(crate) fn children() -> Vec<u32> {
    // 4711 4712 4790
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    #[expect(clippy::zombie_processes, reason = "waiting is what is tested")]
    fn takes_a_status_once() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x; exit 37"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        assert!(children().contains(&pid));
        assert_eq!(look(pid), Child::Running);
        drop(child.stdin.take());
        let ended = loop {
            match look(pid) {
                Child::Running => std::thread::yield_now(),
                other => break other,
            }
        };
        let Child::Ended(ended) = ended else {
            panic!("{ended:?}")
        };
        assert_eq!(ended.exit, ExitKind::Code(37));
        assert_eq!(ended.status, 37 << 8);
        assert_eq!(look(pid), Child::Unknown);
        assert_eq!(look(0), Child::Unknown);
    }
}
