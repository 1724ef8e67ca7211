//! Fatal signals: a program that a signal is about to end is judged first.
//!
//! Signals whose action is the default one, death, get a handler of ours that
//! asks for the check, puts the default back and lets the signal happen. The
//! program never sees it: sigaction and signal answer SIG_DFL. Handlers do
//! not survive exec, and ignored signals stay ignored.

use crate::recorder::{self, Place};
use crate::x86_64::{self, Saved};
use crate::{ask, quiet, real, sys};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use leakscope_wire::layout::state;

/// Signals whose default action is death and that programs meet: HUP INT
/// QUIT ILL ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM (signal(7), x86).
const FATAL: [u64; 13] = [1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13, 14, 15];
/// Raised by the instruction itself: it is run again under the default.
const SYNCHRONOUS: [u64; 4] = [4, 7, 8, 11];

const SIG_DFL: u64 = 0;
const SIG_ERR: u64 = u64::MAX;

/// glibc's `struct sigaction` on x86-64 (bits/sigaction.h).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Action {
    handler: u64,
    mask: [u64; 16],
    flags: i32,
    restorer: u64,
}

const EMPTY: Action = Action {
    handler: SIG_DFL,
    mask: [0; 16],
    flags: 0,
    restorer: 0,
};
const SA_SIGINFO: i32 = 4;
const SA_ONSTACK: i32 = 0x0800_0000;
const SA_RESTART: i32 = 0x1000_0000;

/// One bit per signal that has our handler.
static OURS: AtomicU64 = AtomicU64::new(0);

type Sigaction = extern "C" fn(i32, *const Action, *mut Action) -> i32;

fn real_sigaction() -> Option<Sigaction> {
    match real::get(real::SIGACTION) {
        0 => None,
        // SAFETY: sigaction's C signature.
        f => Some(unsafe { core::mem::transmute::<usize, Sigaction>(f) }),
    }
}

fn ours() -> Action {
    Action {
        handler: on_signal as *const () as u64,
        flags: SA_SIGINFO | SA_ONSTACK | SA_RESTART,
        ..EMPTY
    }
}

fn is_fatal(signal: u64) -> bool {
    FATAL.contains(&signal)
}

/// Puts our handler where the default is; once, at start.
pub fn start() {
    let Some(sigaction) = real_sigaction() else {
        return;
    };
    for signal in FATAL {
        let mut old = EMPTY;
        if sigaction(signal as i32, core::ptr::null(), &raw mut old) == 0 && old.handler == SIG_DFL
        {
            let new = ours();
            sigaction(signal as i32, &raw const new, core::ptr::null_mut());
            OURS.fetch_or(1 << signal, Relaxed);
        }
    }
}

x86_64::whole! {
    on_signal => signal_body;
}

/// The handler. `saved.args` holds the signal, its information and the
/// interrupted context.
extern "C" fn signal_body(saved: &Saved, _: usize, _: usize, bx: usize, _: usize, bp: usize) {
    let [signal, _, context, ..] = saved.args;
    let (registers, sp) = interrupted(context);
    let place = Place {
        sp: sp as usize,
        bp,
        bx,
    };
    if let Some(recorder) = recorder::get()
        && ask::own_process(recorder)
    {
        ask::before_death(state::ASK_FAST_EXIT, &registers, place);
    }
    OURS.fetch_and(!(1 << signal), Relaxed);
    if let Some(sigaction) = real_sigaction() {
        sigaction(
            signal as i32,
            &raw const EMPTY_ACTION,
            core::ptr::null_mut(),
        );
    }
    if !SYNCHRONOUS.contains(&signal) || sent(saved.args[1]) {
        // It stays blocked until this handler returns, and then ends the
        // process under its own name.
        sys::raise(signal);
    }
}

static EMPTY_ACTION: Action = EMPTY;

/// The interrupted code's registers, and where to begin with its stack.
///
/// On the same stack that is the context itself, which the kernel saved right
/// below and which holds all registers; from an alternate stack, the
/// interrupted stack pointer.
fn interrupted(context: u64) -> (Saved, u64) {
    /// `uc_mcontext.gregs` in glibc's ucontext_t (sys/ucontext.h).
    const GREGS: u64 = 40;
    const R12_TO_R15: [u64; 4] = [4, 5, 6, 7];
    const RBP: u64 = 10;
    const RBX: u64 = 11;
    const RSP: u64 = 15;
    let [r12, r13, r14, r15] = R12_TO_R15;
    // SAFETY: the third argument of a handler with SA_SIGINFO.
    let register = |index: u64| unsafe { ((context + GREGS + index * 8) as *const u64).read() };
    let kept = [RBX, RBP, r12, r13, r14, r15].map(register);
    let sp = register(RSP);
    let same = sp > context && sp - context < 16 << 10;
    (
        Saved { args: [0; 6], kept },
        if same { context } else { sp },
    )
}

/// Takes our handlers back, before the program forbids system calls that
/// they need.
pub fn stop() {
    let Some(sigaction) = real_sigaction() else {
        return;
    };
    let ours = OURS.swap(0, Relaxed);
    for signal in FATAL {
        if ours & (1 << signal) != 0 {
            sigaction(
                signal as i32,
                &raw const EMPTY_ACTION,
                core::ptr::null_mut(),
            );
        }
    }
}

/// True when a process sent the signal (si_code <= 0, sigaction(2)); it would
/// not come again by itself.
fn sent(information: u64) -> bool {
    // SAFETY: the kernel's siginfo_t: si_signo, si_errno, si_code.
    information == 0 || unsafe { (information as *const i32).add(2).read() } <= 0
}

/// sigaction as the program sees it.
pub extern "C" fn sigaction_body(
    signal: u64,
    new: *const Action,
    old: *mut Action,
    _: usize,
    _: usize,
    _: usize,
) -> i32 {
    let Some(sigaction) = real_sigaction() else {
        return -1;
    };
    let bit = 1u64.checked_shl(signal as u32).unwrap_or(0);
    let hidden = recorder::get().is_some() && !quiet::on() && is_fatal(signal & 0xffff_ffff);
    if !hidden {
        return sigaction(signal as i32, new, old);
    }
    let had = OURS.load(Relaxed) & bit != 0;
    // SAFETY: the caller's pointers, as sigaction demands.
    let (mut wanted, back_to_default) = unsafe {
        if new.is_null() {
            (EMPTY, false)
        } else {
            (*new, (*new).handler == SIG_DFL)
        }
    };
    if back_to_default {
        wanted = ours();
    }
    let given = if new.is_null() {
        new
    } else {
        &raw const wanted
    };
    let result = sigaction(signal as i32, given, old);
    if result != 0 {
        return result;
    }
    if had && !old.is_null() {
        // SAFETY: as above.
        unsafe { *old = EMPTY };
    }
    if back_to_default {
        OURS.fetch_or(bit, Relaxed);
    } else if !new.is_null() {
        OURS.fetch_and(!bit, Relaxed);
    }
    result
}

/// signal as the program sees it.
pub extern "C" fn signal_hook_body(
    signal: u64,
    handler: u64,
    _: usize,
    _: usize,
    _: usize,
    _: usize,
) -> u64 {
    let f = real::by_index(real::SIGNAL);
    type Signal = extern "C" fn(i32, u64) -> u64;
    // SAFETY: signal's C signature.
    let f = unsafe { core::mem::transmute::<usize, Signal>(f) };
    let hidden = recorder::get().is_some() && !quiet::on() && is_fatal(signal & 0xffff_ffff);
    if !hidden {
        return f(signal as i32, handler);
    }
    if handler == SIG_DFL {
        let mut old = EMPTY;
        let new = EMPTY;
        let result = sigaction_body(signal, &raw const new, &raw mut old, 0, 0, 0);
        return if result == 0 { old.handler } else { SIG_ERR };
    }
    let bit = 1u64 << (signal & 63);
    let had = OURS.load(Relaxed) & bit != 0;
    let old = f(signal as i32, handler);
    if old == SIG_ERR {
        return old;
    }
    OURS.fetch_and(!bit, Relaxed);
    if had { SIG_DFL } else { old }
}

x86_64::plain! {
    sigaction => sigaction_body;
    signal => signal_hook_body;
    bsd_signal => signal_hook_body;
    ssignal => signal_hook_body;
}
