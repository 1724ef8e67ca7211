//! How a process ended that is somebody else's child: the kernel tells the
//! holder of a pidfd, once the parent has waited (Linux 6.15).
#![allow(unsafe_code)]

use rustix::fd::AsFd;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `struct pidfd_info` as of its first version, 64 bytes
/// (`include/uapi/linux/pidfd.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    /// pid, tgid, ppid; then real, effective, saved, file-system uid and gid.
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_GET_INFO`.
const GET_INFO: Opcode = opcode::read_write::<PidfdInfo>(0xff, 11);
/// `PIDFD_INFO_EXIT`: the exit code is wanted, and in the answer: is given.
const INFO_EXIT: u64 = 1 << 3;

/// The status as wait(2) encodes it, if the process has been waited for and
/// the kernel tells.
pub(crate) fn wait_status(pidfd: impl AsFd) -> Option<i32> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: for this opcode the kernel reads and writes as many bytes as the
    // opcode says (its size field is that of `PidfdInfo`), all plain integers
    // for which every bit pattern is valid; on a descriptor of another kind
    // it fails without touching them.
    unsafe { ioctl(pidfd, Updater::<GET_INFO, PidfdInfo>::new(&mut info)) }.ok()?;
    (info.mask & INFO_EXIT != 0).then_some(info.exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Command, Stdio};

    #[test]
    fn tells_after_the_wait_or_never() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x; kill -USR1 $$"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert_eq!(wait_status(&pidfd), None);
        drop(child.stdin.take());
        child.wait().unwrap();
        // 10 is SIGUSR1. Kernels before 6.15 do not tell.
        assert!(matches!(wait_status(&pidfd), None | Some(10)));
        let other = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(wait_status(&other), None);
    }
}
