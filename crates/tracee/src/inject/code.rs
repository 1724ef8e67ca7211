//! Code of the target's own that a call of ours goes through: nothing is
//! written to be executed.

use crate::memory::LiveMemory;
use leakscope_memory::MemoryReader;
use leakscope_model::Addr;

/// `syscall; ret`.
const CALL: &[u8] = &[0x0f, 0x05, 0xc3];
/// `mov $15, %rax; syscall`, and the same with `%eax`: what a signal handler
/// returns to (`rt_sigreturn` is 15; `sa_restorer` of every C library).
const BACK: [&[u8]; 2] = [
    &[0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05],
    &[0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05],
];
/// Longest of them.
const LONGEST: usize = 9;
/// Read at once.
const PIECE: usize = 1 << 20;
/// Most code that is searched, bytes: more than any C library has.
const SEARCHED: u64 = 512 << 20;

/// Addresses in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// A call, and the return from it to the address on the stack.
    pub call: u64,
    /// The return from a signal handler.
    pub back: u64,
}

/// Finds both in code that comes from files.
pub(crate) fn find(memory: &LiveMemory) -> Option<Code> {
    let mut bytes = vec![0; PIECE];
    let (mut call, mut back) = (None, None);
    let mut left = SEARCHED;
    let code = |path: &[u8], inode: u64| inode != 0 || path == b"[vdso]";
    let regions = memory.map().regions().iter();
    for region in regions.filter(|r| r.exec && r.read && !r.write && code(&r.path, r.inode)) {
        let mut at = region.range.start.0;
        while at < region.range.end.0 && left > 0 {
            let length = (region.range.end.0 - at).min(PIECE as u64) as usize;
            let Some(piece) = bytes.get_mut(..length) else {
                break;
            };
            let got = memory.read_some(Addr(at), piece);
            let piece = piece.get(..got).unwrap_or_default();
            let found = |what: &[u8]| memchr::memmem::find(piece, what).map(|i| at + i as u64);
            call = call.or_else(|| found(CALL));
            back = back.or_else(|| BACK.iter().find_map(|what| found(what)));
            if let (Some(call), Some(back)) = (call, back) {
                return Some(Code { call, back });
            }
            left = left.saturating_sub(length as u64);
            at += if length == PIECE {
                (PIECE - LONGEST) as u64
            } else {
                length as u64
            };
        }
    }
    None
}

/// True while both are there still.
pub(crate) fn is_there(memory: &LiveMemory, code: Code) -> bool {
    let mut bytes = [0; LONGEST];
    let mut begins = |at: u64, what: &[u8]| {
        bytes.fill(0);
        memory.read_some(Addr(at), &mut bytes);
        bytes.starts_with(what)
    };
    begins(code.call, CALL) && BACK.iter().any(|what| begins(code.back, what))
}
