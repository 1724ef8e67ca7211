//! `/proc/PID/status`: keys and values about a process or thread.

use crate::number::{decimal, decimal32, hex, words};

/// The values that leakscope uses; `None` where the kernel does not print
/// the key (or prints it otherwise).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// State letter.
    pub state: Option<u8>,
    /// Thread group: the process id of a thread.
    pub tgid: Option<u32>,
    /// Thread id.
    pub pid: Option<u32>,
    /// Parent's process id.
    pub parent: Option<u32>,
    /// Thread id of the tracer; 0 when not traced.
    pub tracer: Option<u32>,
    /// Real, effective, saved and file-system user.
    pub uids: Option<[u32; 4]>,
    /// Real, effective, saved and file-system group.
    pub gids: Option<[u32; 4]>,
    /// Ids in each process namespace, ours first, its own last.
    pub namespace_pids: Vec<u32>,
    /// Resident bytes.
    pub resident_bytes: Option<u64>,
    /// Resident bytes that no file backs.
    pub anonymous_bytes: Option<u64>,
    /// Number of threads.
    pub threads: Option<u32>,
    /// Signals pending for this thread; bit 0 is signal 1.
    pub thread_pending: Option<u64>,
    /// Signals pending for the process.
    pub process_pending: Option<u64>,
    /// Signals blocked in this thread.
    pub blocked: Option<u64>,
    /// Effective capabilities; bit numbers as in `linux/capability.h`.
    pub capabilities: Option<u64>,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: Option<u32>,
    /// The processor keeps return addresses on a second stack (x86-64's CET).
    pub has_shadow_stack: bool,
}

impl Status {
    /// True when a signal waits that this thread would take next.
    pub fn has_deliverable_signal(&self) -> bool {
        let pending = self.thread_pending.unwrap_or(0) | self.process_pending.unwrap_or(0);
        pending & !self.blocked.unwrap_or(0) != 0
    }
}

/// True for the state letters of an ended process: zombie and dead.
pub fn is_dead(state: u8) -> bool {
    matches!(state, b'Z' | b'X' | b'x')
}

/// Takes the keys it knows; everything else is skipped.
pub fn parse(text: &[u8]) -> Status {
    // Name:\tcat
    // Uid:\t1000\t1000\t1000\t1000
    // VmRSS:\t    1234 kB
    // SigPnd:\t0000000000000000
    let mut status = Status::default();
    for line in text.split(|&b| b == b'\n') {
        let Some(colon) = line.iter().position(|&b| b == b':') else {
            continue;
        };
        let (key, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default();
        let word = || words(value).next();
        match key {
            b"State" => status.state = word().and_then(|w| w.first().copied()),
            b"Tgid" => status.tgid = word().and_then(decimal32),
            b"Pid" => status.pid = word().and_then(decimal32),
            b"PPid" => status.parent = word().and_then(decimal32),
            b"TracerPid" => status.tracer = word().and_then(decimal32),
            b"Uid" => status.uids = four(value),
            b"Gid" => status.gids = four(value),
            b"NSpid" => status.namespace_pids = words(value).map_while(decimal32).collect(),
            b"VmRSS" => status.resident_bytes = kilobytes(value),
            b"RssAnon" => status.anonymous_bytes = kilobytes(value),
            b"Threads" => status.threads = word().and_then(decimal32),
            b"SigPnd" => status.thread_pending = word().and_then(hex),
            b"ShdPnd" => status.process_pending = word().and_then(hex),
            b"SigBlk" => status.blocked = word().and_then(hex),
            b"CapEff" => status.capabilities = word().and_then(hex),
            b"x86_Thread_features" => {
                status.has_shadow_stack = words(value).any(|feature| feature == b"shstk");
            }
            b"Seccomp" => status.seccomp = word().and_then(decimal32),
            _ => {}
        }
    }
    status
}

fn kilobytes(value: &[u8]) -> Option<u64> {
    words(value).next().and_then(decimal)?.checked_mul(1024)
}

fn four(value: &[u8]) -> Option<[u32; 4]> {
    let mut ids = words(value).map(decimal32);
    let mut next = || ids.next().flatten();
    Some([next()?, next()?, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_known() {
        let status = parse(
            b"Name:\tweird: name\nState:\tt (tracing stop)\nTgid:\t31\nPid:\t37\nPPid:\t1\n\
              TracerPid:\t41\nUid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\n\
              NSpid:\t37\t4\nVmRSS:\t     1237 kB\nThreads:\t3\n\
              SigPnd:\t0000000000000200\nShdPnd:\t0000000000000000\n\
              SigBlk:\t0000000000000000\nCapEff:\t000001ffffffffff\nSeccomp:\t2\n\
              FutureKey:\twhatever\nnothing\n",
        );
        assert_eq!(status.state, Some(b't'));
        assert_eq!((status.tgid, status.pid), (Some(31), Some(37)));
        assert_eq!((status.parent, status.tracer), (Some(1), Some(41)));
        assert_eq!(status.uids, Some([1000, 1001, 1002, 1003]));
        assert_eq!(status.gids, None, "three of four are not four");
        assert_eq!(status.namespace_pids, [37, 4]);
        assert_eq!(status.resident_bytes, Some(1237 * 1024));
        assert_eq!(status.threads, Some(3));
        assert_eq!(status.capabilities, Some(0x1ff_ffff_ffff));
        assert_eq!(status.seccomp, Some(2));
        assert!(status.has_deliverable_signal());
    }

    #[test]
    fn absent_keys_are_none() {
        assert_eq!(parse(b""), Status::default());
        assert_eq!(parse(b"Pid:\nUid:\t\nState:\n"), Status::default());
        assert_eq!(parse(b"Pid:\t99999999999\n").pid, None);
        let blocked = parse(b"ShdPnd:\t0000000000000200\nSigBlk:\t0000000000000200\n");
        assert!(!blocked.has_deliverable_signal());
    }
}
