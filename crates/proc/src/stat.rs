//! `/proc/PID/stat`: one line about a process or thread.

use crate::error::ProcError;
use crate::number::{decimal, decimal32, words};

/// The fields that leakscope uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process id, or thread id below `task/`.
    pub pid: u32,
    /// Name, at most 15 bytes for user threads; any bytes.
    pub comm: Vec<u8>,
    /// State letter, as in `status`.
    pub state: u8,
    /// Parent's process id.
    pub parent: u32,
    /// Number of threads.
    pub threads: u32,
    /// When it started, in clock ticks since boot. With the id it names the
    /// process for good: ids are used again.
    pub start_time: u64,
    /// Kernel flags (`PF_*` of `include/linux/sched.h`).
    pub flags: u64,
}

/// `PF_KTHREAD` (`include/linux/sched.h`).
const PF_KTHREAD: u64 = 0x0020_0000;

impl Stat {
    /// True for a thread of the kernel, which has no memory of its own.
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// True when it has ended and only its status is left.
    pub fn is_dead(&self) -> bool {
        crate::status::is_dead(self.state)
    }
}

/// Understands the file's single line.
///
/// # Errors
/// Malformed: the missing component and the line.
pub fn parse(text: &[u8]) -> Result<Stat, ProcError> {
    // 4711 (a (odd) name) S 1 4711 4711 0 -1 4194304 … 13 0 884412 …
    // pid  comm           state ppid pgrp …  flags     (20) threads (22) start
    //
    // comm may contain blanks, parentheses and line ends: it ends at the
    // last parenthesis of the line.
    let line = text.strip_suffix(b"\n").unwrap_or(text);
    let missing = |component| move || ProcError::malformed(component, line);
    let open = line.iter().position(|&b| b == b'(');
    let close = line.iter().rposition(|&b| b == b')');
    let (open, close) = open.zip(close).ok_or_else(missing("name"))?;
    let comm = line.get(open + 1..close).ok_or_else(missing("name"))?;

    let pid = line.get(..open).and_then(|t| words(t).next());
    let pid = pid.and_then(decimal32).ok_or_else(missing("process id"))?;

    // Numbered as in proc_pid_stat(5); the state is field 3.
    let fields: Vec<&[u8]> = words(line.get(close + 1..).unwrap_or_default()).collect();
    let field = |number: usize| fields.get(number.wrapping_sub(3)).copied();
    let state = match field(3) {
        Some(&[letter]) => letter,
        _ => return Err(missing("state")()),
    };
    let parent = field(4).and_then(decimal32);
    let flags = field(9).and_then(decimal);
    let threads = field(20).and_then(decimal32);
    let start_time = field(22).and_then(decimal);
    Ok(Stat {
        pid,
        comm: comm.to_vec(),
        state,
        parent: parent.ok_or_else(missing("parent"))?,
        flags: flags.ok_or_else(missing("flags"))?,
        threads: threads.ok_or_else(missing("thread count"))?,
        start_time: start_time.ok_or_else(missing("start time"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "S 31 97 97 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 13 0 884413 1 2";

    #[test]
    fn names_with_anything_in_them() {
        for comm in [
            "cat",
            "a b",
            "(sd-pam)",
            ") S 7 (",
            "",
            "tab\there",
            "line\nend",
        ] {
            let stat = parse(format!("4711 ({comm}) {TAIL}\n").as_bytes()).unwrap();
            assert_eq!(stat.comm, comm.as_bytes());
            assert_eq!(
                (stat.pid, stat.state, stat.parent, stat.threads),
                (4711, b'S', 31, 13)
            );
            assert_eq!(stat.start_time, 884413);
            assert!(!stat.is_kernel_thread() && !stat.is_dead());
        }
    }

    #[test]
    fn truncated_lines_name_what_is_missing() {
        for (text, component) in [
            ("", "name"),
            ("12 (x", "name"),
            ("12 )x(", "name"),
            ("z (x) S 1", "process id"),
            ("12 (x)", "state"),
            ("12 (x) SS 1", "state"),
            ("12 (x) S", "parent"),
            ("12 (x) S 1 2 3", "flags"),
            ("12 (x) S 1 2 3 4 5 6 7", "thread count"),
            (
                "12 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18",
                "start time",
            ),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(error, format!("find the {component} in \"{text}\""));
        }
    }

    #[test]
    fn kernel_threads() {
        let text = b"2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 11 0 0";
        assert!(parse(text).unwrap().is_kernel_thread());
    }
}
