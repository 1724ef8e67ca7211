//! In which function's frame a word of a stack is.
//!
//! Nobody unwinds here: the nearest return address below the word was pushed
//! by a call from the function whose frame the word is in. An old return
//! address in memory that this function has not written yet may mislead.

use super::{HolderInput, RootPlace, RootWord};
use crate::roots::RootKind;
use leakscope_memory::MemoryReader;
use leakscope_model::{Addr, Range};

/// How far below the word a return address is looked for, bytes.
const NEAR: u64 = 64 << 10;
/// Longest call instruction, bytes.
const CALL: usize = 7;

/// A return address into the function in whose frame `word` seems to be.
pub fn frame_of(input: &HolderInput<'_>, word: &RootWord) -> Option<Addr> {
    if word.place != RootPlace::Memory(RootKind::Stack) {
        return None;
    }
    let region = input.memory.map().find(word.at)?.range;
    let below = input.threads.iter().map(|t| t.sp);
    let sp = below
        .filter(|sp| region.contains(*sp) && *sp <= word.at)
        .max()?;
    let low = sp.0.max(word.at.0.saturating_sub(NEAR)) & !7;
    let mut bytes = vec![0; usize::try_from(word.at.0.checked_sub(low)?).ok()?];
    let got = input.memory.read_some(Addr(low), &mut bytes);
    let words = bytes.get(..got)?.as_chunks::<8>().0;
    let mut words = words.iter().rev().map(|w| Addr(u64::from_le_bytes(*w)));
    words.find(|at| follows_call(input.memory, *at))
}

/// The range of thread-local storage that a plan names on a thread's stack is
/// a guess: its beginning may be the stack's. What lies below the outermost
/// return address is split off.
pub(super) fn split(
    input: &HolderInput<'_>,
    range: Range,
    kind: RootKind,
) -> impl Iterator<Item = (Range, RootKind)> {
    let end = match kind {
        RootKind::Tls => stack_end(input, range),
        _ => None,
    };
    let border = end.unwrap_or(range.start.0);
    let parts = [
        (Range::new(range.start.0, border), RootKind::Stack),
        (Range::new(border, range.end.0), kind),
    ];
    parts.into_iter().filter(|(part, _)| !part.is_empty())
}

/// Behind the highest return address below a thread's control block.
fn stack_end(input: &HolderInput<'_>, range: Range) -> Option<u64> {
    let region = input.memory.map().find(range.start)?.range;
    let mut own = input.threads.iter();
    let thread = own.find(|t| range.contains(t.tcb) && region.contains(t.sp) && t.sp < t.tcb)?;
    let low = thread.tcb.0.saturating_sub(NEAR).max(range.start.0) & !7;
    let mut bytes = vec![0; usize::try_from(thread.tcb.0.checked_sub(low)?).ok()?];
    let got = input.memory.read_some(Addr(low), &mut bytes);
    let words = bytes.get(..got)?.as_chunks::<8>().0;
    let word = |w: &[u8; 8]| Addr(u64::from_le_bytes(*w));
    let last = words
        .iter()
        .rposition(|w| follows_call(input.memory, word(w)))?;
    Some(low + 8 * (last as u64 + 1)).filter(|end| *end <= range.end.0)
}

/// True when the instruction before `at` is a call, in a file's code.
fn follows_call(memory: &dyn MemoryReader, at: Addr) -> bool {
    let code = memory.map().find(at).filter(|r| r.exec && r.inode != 0);
    let Some(code) = code else {
        return false;
    };
    let Some(from) = at.0.checked_sub(CALL as u64) else {
        return false;
    };
    let mut bytes = [0; CALL];
    if from < code.range.start.0 || memory.read(Addr(from), &mut bytes).is_err() {
        return false;
    }
    // call rel32 is e8 and four bytes; call r/m64 is ff /2: from two bytes
    // (a register) to seven (base, index and a 32-bit displacement).
    let indirect = |back: usize| {
        let opcode = bytes.get(CALL - back..).unwrap_or_default();
        matches!(opcode, [0xff, mode, ..] if mode >> 3 & 7 == 2)
    };
    bytes.get(CALL - 5) == Some(&0xe8) || [2, 3, 4, 6, 7].into_iter().any(indirect)
}
