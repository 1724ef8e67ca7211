//! A way back that needs nobody: frames on a thread's stack from which the
//! kernel itself restores what the thread was doing.
//!
//! A thread that makes a call for us would be lost if we were killed before
//! its registers are put back. So they lie on its stack beforehand, in the
//! form in which the kernel keeps them while a signal handler runs, and the
//! code that follows the call is the return from a handler: with us or
//! without us, the thread comes back to where it was. A process that the call
//! made comes back to a call of its own that ends it.
//!
//! The memory used is that which the kernel itself would use to deliver a
//! signal at this moment, and no more of it.

use crate::inject::code::Code;
use crate::sys::ptrace::Registers;

/// Bytes below the stack pointer that belong to the running function (System V
/// ABI for x86-64, 3.2.2).
const RED_ZONE: u64 = 128;
/// `struct rt_sigframe` up to `uc_sigmask`: return address and `struct
/// ucontext` (`arch/x86/include/asm/sigframe.h`, `uapi/asm/ucontext.h`).
const FRAME: usize = 8 + 304;
/// What `XRSTOR` wants the extended state aligned to.
const ALIGNMENT: u64 = 64;
/// `UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS`
/// (`uapi/asm/ucontext.h`).
const FLAGS: u64 = 1 | 2 | 4;
/// A mode that `sigaltstack` does not know: the kernel leaves the alternative
/// stack as it is.
const NO_MODE: u64 = 0x4000_0000;
/// `struct _fpx_sw_bytes` in the legacy part of the extended state, and the
/// words that say that more follows, and where it ends
/// (`uapi/asm/sigcontext.h`).
const SOFTWARE_BYTES: usize = 464;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
/// `XSTATE_BV` follows the legacy part.
const LEGACY: usize = 512;
const HEADER: usize = 64;

/// The code segments and the stack segment of 64-bit user code
/// (`arch/x86/include/asm/segment.h`).
const USER_CS: u16 = 0x33;
const USER_SS: u16 = 0x2b;

/// Bytes to be written below a thread's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    /// Where they begin: the thread's stack pointer for the call.
    pub at: u64,
    /// They end before the red zone.
    pub bytes: Vec<u8>,
    /// The stack pointer of a process that the call makes.
    pub born: u64,
}

/// The frames for a thread with these registers, blocked signals and extended
/// state; `None` when its stack pointer leaves no room.
pub(crate) fn frames(
    registers: &Registers,
    signals: u64,
    extended: &[u8],
    code: Code,
) -> Option<Frames> {
    let extended = extended_frame(extended);
    let state_at = (2 * FRAME).next_multiple_of(ALIGNMENT as usize);
    let length = state_at + extended.len();
    let end = registers.rsp.checked_sub(RED_ZONE)?;
    let at = end.checked_sub(length as u64)? & !(ALIGNMENT - 1);
    let mut bytes = Vec::with_capacity(length);
    let state = if extended.is_empty() {
        0
    } else {
        at + state_at as u64
    };
    frame(&mut bytes, code, &uninterrupted(registers), signals, state);
    // A signal that arrives meanwhile has its handler's frame below.
    let born = at + FRAME as u64;
    let last = Registers {
        rip: code.call,
        rsp: born,
        rax: libc::SYS_exit_group.unsigned_abs(),
        rdi: 0,
        ..*registers
    };
    frame(&mut bytes, code, &last, !0, 0);
    bytes.resize(state_at, 0);
    bytes.extend(extended);
    Some(Frames { at, bytes, born })
}

/// As the kernel would leave them to a handler's return: an interrupted call
/// is made once more.
fn uninterrupted(registers: &Registers) -> Registers {
    // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK
    // (include/linux/errno.h).
    const AGAIN: [i64; 4] = [-512, -513, -514, -516];
    let mut registers = *registers;
    if registers.orig_rax.cast_signed() >= 0 && AGAIN.contains(&registers.rax.cast_signed()) {
        registers.rax = registers.orig_rax;
        registers.rip = registers.rip.wrapping_sub(2);
    }
    registers
}

fn frame(bytes: &mut Vec<u8>, code: Code, r: &Registers, signals: u64, state: u64) {
    let begin = bytes.len();
    let mut put = |words: &[u64]| bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    // Return address; uc_flags, uc_link, uc_stack.
    put(&[code.back, FLAGS, 0, 0, NO_MODE, 0]);
    // struct sigcontext.
    put(&[r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15]);
    put(&[r.rdi, r.rsi, r.rbp, r.rbx, r.rdx, r.rax, r.rcx, r.rsp]);
    put(&[r.rip, r.eflags]);
    put(&[u64::from(USER_CS) | u64::from(USER_SS) << 48]);
    // err, trapno, oldmask, cr2, fpstate, reserved.
    put(&[0, 0, 0, 0, state]);
    put(&[0; 8]);
    put(&[signals]);
    debug_assert_eq!(bytes.len() - begin, FRAME);
}

/// The extended state as signal frames hold it; empty where there is none.
fn extended_frame(state: &[u8]) -> Vec<u8> {
    let Some(features) = state
        .get(LEGACY..LEGACY + 8)
        .filter(|_| state.len() >= LEGACY + HEADER)
        .and_then(|b| b.try_into().ok())
        .map(u64::from_le_bytes)
    else {
        return Vec::new();
    };
    let size = state.len() as u32;
    let mut out = state.to_vec();
    let mut software = Vec::with_capacity(LEGACY - SOFTWARE_BYTES);
    software.extend(MAGIC_1.to_le_bytes());
    software.extend((size + 4).to_le_bytes());
    // x87 and SSE are restored whatever the header says of them.
    software.extend((features | 3).to_le_bytes());
    software.extend(size.to_le_bytes());
    software.resize(LEGACY - SOFTWARE_BYTES, 0);
    if let Some(place) = out.get_mut(SOFTWARE_BYTES..LEGACY) {
        place.copy_from_slice(&software);
    }
    out.extend(MAGIC_2.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::ptrace::zeroed_registers;

    const CODE: Code = Code {
        call: 0x7000,
        back: 0x8000,
    };

    fn word(frames: &Frames, at: usize) -> u64 {
        u64::from_le_bytes(frames.bytes[at..at + 8].try_into().unwrap())
    }

    fn blocked() -> Registers {
        Registers {
            rsp: 0x10_0008,
            rip: 0x4002,
            rax: (-516_i64).cast_unsigned(),
            orig_rax: 35,
            rdi: 0x55,
            cs: USER_CS.into(),
            ..zeroed_registers()
        }
    }

    #[test]
    fn the_way_back_is_to_the_call_that_was_interrupted() {
        let frames = frames(&blocked(), 0x1234, &[], CODE).unwrap();
        assert_eq!(frames.at % ALIGNMENT, 0);
        assert!(frames.at + frames.bytes.len() as u64 <= 0x10_0008 - RED_ZONE);
        assert_eq!(word(&frames, 0), CODE.back);
        // sigcontext begins at 48: rdi, rax, rsp, rip, fpstate.
        assert_eq!(word(&frames, 48 + 64), 0x55);
        assert_eq!(word(&frames, 48 + 104), 35);
        assert_eq!(word(&frames, 48 + 120), 0x10_0008);
        assert_eq!(word(&frames, 48 + 128), 0x4000);
        assert_eq!(word(&frames, 48 + 184), 0);
        assert_eq!(word(&frames, FRAME - 8), 0x1234);
        // The born one ends itself.
        let born = FRAME;
        assert_eq!(frames.born, frames.at + born as u64);
        assert_eq!(word(&frames, born), CODE.back);
        assert_eq!(word(&frames, born + 48 + 104), 231);
        assert_eq!(word(&frames, born + 48 + 128), CODE.call);
    }

    #[test]
    fn a_thread_outside_of_a_call_comes_back_as_it_was() {
        let running = Registers {
            orig_rax: u64::MAX,
            ..blocked()
        };
        let frames = frames(&running, 0, &[], CODE).unwrap();
        assert_eq!(word(&frames, 48 + 104), running.rax);
        assert_eq!(word(&frames, 48 + 128), running.rip);
    }

    #[test]
    fn the_extended_state_is_marked_as_such_and_aligned() {
        let mut state = vec![7; 1088];
        state[LEGACY..LEGACY + 8].copy_from_slice(&0x7_u64.to_le_bytes());
        let frames = frames(&blocked(), 0, &state, CODE).unwrap();
        let at = word(&frames, 48 + 184);
        assert_eq!(at % ALIGNMENT, 0);
        let kept = &frames.bytes[(at - frames.at) as usize..];
        assert_eq!(kept.len(), 1088 + 4);
        assert_eq!(
            kept[SOFTWARE_BYTES..SOFTWARE_BYTES + 4],
            MAGIC_1.to_le_bytes()
        );
        assert_eq!(
            kept[SOFTWARE_BYTES + 16..SOFTWARE_BYTES + 20],
            1088_u32.to_le_bytes()
        );
        assert_eq!(kept[1088..], MAGIC_2.to_le_bytes());
        assert!(frames.at + frames.bytes.len() as u64 <= 0x10_0008 - RED_ZONE);
    }

    #[test]
    fn no_room() {
        let low = Registers {
            rsp: 200,
            ..blocked()
        };
        assert!(frames(&low, 0, &[], CODE).is_none());
    }
}
