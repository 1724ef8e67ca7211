//! System calls, made directly: libc's wrappers touch errno and may be
//! hooked by us or others.

use crate::quiet;
use core::arch::asm;

/// Numbers from `arch/x86/entry/syscalls/syscall_64.tbl` of Linux.
pub mod nr {
    pub const READ: usize = 0;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const PREAD64: usize = 17;
    pub const SCHED_YIELD: usize = 24;
    pub const MADVISE: usize = 28;
    pub const NANOSLEEP: usize = 35;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const CONNECT: usize = 42;
    pub const SENDTO: usize = 44;
    pub const RECVMSG: usize = 47;
    pub const GETPPID: usize = 110;
    pub const GETTID: usize = 186;
    pub const FUTEX: usize = 202;
    pub const TGKILL: usize = 234;
    pub const OPENAT: usize = 257;
    pub const PRLIMIT64: usize = 302;
    pub const PROCESS_VM_READV: usize = 310;
}

/// A system call with up to six arguments; negative results are -errno.
#[inline(always)]
pub fn call(n: usize, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the kernel clobbers rax, rcx and r11 only; what memory it
    // touches is the caller's statement in `args`, which each wrapper below
    // justifies.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") n as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

pub fn close(fd: i32) {
    call(nr::CLOSE, [fd as usize, 0, 0, 0, 0, 0]);
}

pub fn sched_yield() {
    call(nr::SCHED_YIELD, [0; 6]);
}

/// Sleeps for about `ms` milliseconds.
pub fn pause_ms(ms: u64) {
    let time = [ms / 1000, ms % 1000 * 1_000_000];
    call(nr::NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]);
}

pub fn getpid() -> u32 {
    call(nr::GETPID, [0; 6]) as u32
}

pub fn getppid() -> u32 {
    call(nr::GETPPID, [0; 6]) as u32
}

pub fn gettid() -> u32 {
    call(nr::GETTID, [0; 6]) as u32
}

/// Private anonymous memory, not reserved; `None` when refused.
pub fn map_private(len: usize) -> Option<usize> {
    const PROT_RW: usize = 3;
    const PRIVATE_ANON_NORESERVE: usize = 0x2 | 0x20 | 0x4000;
    let at = call(
        nr::MMAP,
        [0, len, PROT_RW, PRIVATE_ANON_NORESERVE, usize::MAX, 0],
    );
    (at > 0).then_some(at as usize)
}

/// A shared mapping of `fd`, at `at` exactly when that is not zero.
pub fn map_shared(at: usize, len: usize, fd: i32) -> Option<usize> {
    const PROT_RW: usize = 3;
    const SHARED_NORESERVE: usize = 0x1 | 0x4000;
    const FIXED: usize = 0x10;
    let flags = if at == 0 {
        SHARED_NORESERVE
    } else {
        SHARED_NORESERVE | FIXED
    };
    let got = call(nr::MMAP, [at, len, PROT_RW, flags, fd as usize, 0]);
    (got > 0).then_some(got as usize)
}

pub fn unmap(at: usize, len: usize) {
    call(nr::MUNMAP, [at, len, 0, 0, 0, 0]);
}

pub const MADV_DONTDUMP: usize = 16;
pub const MADV_WIPEONFORK: usize = 18;
pub const MADV_POPULATE_WRITE: usize = 23;

pub fn advise(at: usize, len: usize, advice: usize) -> bool {
    call(nr::MADVISE, [at, len, advice, 0, 0, 0]) == 0
}

/// True when the byte at `at` can be read. The kernel copies the signal set
/// before it looks at `how`, which is invalid here, so nothing changes
/// (kernel/signal.c: rt_sigprocmask).
pub fn readable(at: u64) -> bool {
    if quiet::on() {
        return false;
    }
    const EFAULT: isize = -14;
    call(
        nr::RT_SIGPROCMASK,
        [usize::MAX >> 33, at as usize, 0, 8, 0, 0],
    ) != EFAULT
}

/// Waits on a futex shared between processes until its value is not
/// `expected`, somebody wakes it, or `ms` milliseconds have passed.
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, expected: u32, ms: u64) {
    // A wait that a tracer interrupts goes on as restart_syscall(2), which a
    // filter may not know either.
    if quiet::on() {
        for _ in 0..1 << 12 {
            core::hint::spin_loop();
        }
        return;
    }
    let time = [ms / 1000, ms % 1000 * 1_000_000];
    let word: *const _ = word;
    call(
        nr::FUTEX,
        [
            word as usize,
            0,
            expected as usize,
            time.as_ptr() as usize,
            0,
            0,
        ],
    );
}

pub fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    // The supervisor looks by itself every few milliseconds.
    if quiet::on() {
        return;
    }
    let word: *const _ = word;
    call(nr::FUTEX, [word as usize, 1, i32::MAX as usize, 0, 0, 0]);
}

/// Opens a file for reading; `path` ends in a zero byte.
pub fn open(path: &[u8]) -> Option<i32> {
    const AT_FDCWD: usize = -100isize as usize;
    const RDONLY_CLOEXEC: usize = 0o2000000;
    if path.last() != Some(&0) {
        return None;
    }
    let fd = call(
        nr::OPENAT,
        [AT_FDCWD, path.as_ptr() as usize, RDONLY_CLOEXEC, 0, 0, 0],
    );
    (fd >= 0).then_some(fd as i32)
}

/// Reads from byte `at` of a file; 0 at its end or on error.
pub fn pread(fd: i32, into: &mut [u8], at: u64) -> usize {
    let n = call(
        nr::PREAD64,
        [
            fd as usize,
            into.as_mut_ptr() as usize,
            into.len(),
            at as usize,
            0,
            0,
        ],
    );
    usize::try_from(n).unwrap_or(0).min(into.len())
}

/// Sends a signal to the calling thread.
pub fn raise(signal: u64) {
    let args = [
        getpid() as usize,
        gettid() as usize,
        signal as usize,
        0,
        0,
        0,
    ];
    call(nr::TGKILL, args);
}

/// Thread id, or 0 where the program's filter may not allow to ask.
pub fn quiet_gettid() -> u32 {
    if quiet::on() { 0 } else { gettid() }
}

/// Soft limit of this process's address space, bytes; MAX when unlimited.
pub fn address_space_limit() -> u64 {
    const RLIMIT_AS: usize = 9;
    let mut limits = [u64::MAX; 2];
    call(
        nr::PRLIMIT64,
        [0, RLIMIT_AS, 0, limits.as_mut_ptr() as usize, 0, 0],
    );
    limits[0]
}

/// Copies `len` bytes of this process's memory from `from` to `to` without
/// faulting; returns how many could be read.
pub fn copy_memory(from: u64, to: usize, len: usize) -> usize {
    if quiet::on() {
        return 0;
    }
    let local = [to, len];
    let remote = [from as usize, len];
    let n = call(
        nr::PROCESS_VM_READV,
        [
            getpid() as usize,
            local.as_ptr() as usize,
            1,
            remote.as_ptr() as usize,
            1,
            0,
        ],
    );
    usize::try_from(n).unwrap_or(0).min(len)
}
