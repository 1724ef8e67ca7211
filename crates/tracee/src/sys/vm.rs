//! Reading another process's memory.

use super::id;
use std::ffi::c_void;
use std::io;

/// Most bytes that one call may ask for: the kernel silently stops at
/// 2 GiB - 4096 (`MAX_RW_COUNT` of `include/linux/fs.h`).
const AT_ONCE: usize = 1 << 30;

/// Reads from `at` into `into`; returns how many bytes came, which are fewer
/// where a page cannot be read. The tail of `into` keeps its value.
///
/// # Errors
/// When not even the first byte can be read: `EFAULT` not mapped, `ESRCH`
/// gone, `EPERM` refused, `ENOSYS` not in this kernel.
pub(crate) fn read(pid: u32, at: u64, into: &mut [u8]) -> io::Result<usize> {
    let pid = id(pid)?;
    let wanted = into.len().min(AT_ONCE);
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast::<c_void>(),
        iov_len: wanted,
    };
    let remote = libc::iovec {
        iov_base: at as usize as *mut c_void,
        iov_len: wanted,
    };
    // SAFETY: the kernel writes at most `wanted` bytes to `local`, which
    // lies within `into`; `remote` is an address of the other process and
    // never dereferenced here.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}
