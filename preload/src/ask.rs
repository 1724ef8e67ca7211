//! Asking the supervisor for a leak check, and waiting for the answer.

use crate::recorder::{self, Access, Place, Recorder};
use crate::x86_64::{self, Saved};
use crate::{quiet, sys};
use core::sync::atomic::{Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use leakscope_wire::layout::{Area, WINDOW_BYTES, answer, config, mail, note, state, word};

/// One turn of waiting, milliseconds.
const TURN_MS: u64 = 20;
/// While the supervisor reads through the mailbox.
const MAIL_TURN_MS: u64 = 5;
/// Turns without progress of the supervisor's clock after which it is taken
/// for gone: about five seconds.
const PATIENCE: u32 = 250;

x86_64::whole! {
    at_exit => exit_body;
    at_quick_exit => quick_exit_body;
    #[unsafe(no_mangle)]
    __lsan_do_leak_check => lsan_body;
    #[unsafe(no_mangle)]
    __lsan_do_recoverable_leak_check => lsan_recoverable_body;
}

extern "C" fn exit_body(saved: &Saved, _: usize, _: usize, bx: usize, sp: usize, bp: usize) {
    ask(state::ASK_EXIT, saved, Place { sp, bp, bx });
}

extern "C" fn quick_exit_body(saved: &Saved, _: usize, _: usize, bx: usize, sp: usize, bp: usize) {
    ask(state::ASK_FAST_EXIT, saved, Place { sp, bp, bx });
}

extern "C" fn lsan_body(saved: &Saved, _: usize, _: usize, bx: usize, sp: usize, bp: usize) {
    // LeakSanitizer would end the program here when it finds leaks; the
    // program's own fate is not ours to change.
    ask(state::ASK_LSAN, saved, Place { sp, bp, bx });
}

extern "C" fn lsan_recoverable_body(
    saved: &Saved,
    _: usize,
    _: usize,
    bx: usize,
    sp: usize,
    bp: usize,
) -> usize {
    usize::from(ask(state::ASK_LSAN_RECOVERABLE, saved, Place { sp, bp, bx }) == answer::LEAKS)
}

/// Before _exit and _Exit.
pub fn at_fast_exit(saved: &Saved, place: Place) {
    ask(state::ASK_FAST_EXIT, saved, place);
}

/// Before a signal ends the process. It may have interrupted anything, also
/// the recorder.
pub fn before_death(what: u32, saved: &Saved, place: Place) {
    if let Some(recorder) = recorder::get() {
        wait(recorder, what, saved, place);
    }
}

/// Before exec, when the user wants the old image judged.
pub fn at_exec(recorder: &Recorder, saved: &Saved, place: Place) {
    if recorder.config & config::AT_EXEC != 0 {
        ask(state::ASK_EXEC, saved, place);
    }
}

/// True when the recorder's segment belongs to this very process, not to the
/// parent of a vfork child.
pub fn own_process(recorder: &Recorder) -> bool {
    quiet::on() || recorder.segment.word(word::PID).load(Relaxed) == u64::from(sys::getpid())
}

fn ask(what: u32, saved: &Saved, place: Place) -> u64 {
    let (recorder, inside) = match recorder::access(place.sp) {
        Access::Inside(recorder, inside) => (recorder, Some(inside)),
        Access::Late(recorder) | Access::Nested(recorder, _) => (recorder, None),
        Access::Off => return answer::CLEAN,
    };
    let mut result = answer::CLEAN;
    if crate::lsan::turned_off() {
        recorder
            .segment
            .word(word::NOTES)
            .fetch_or(note::LSAN_TURNED_OFF, Relaxed);
    }
    if own_process(recorder) {
        result = wait(recorder, what, saved, place);
    }
    if let Some(inside) = inside {
        recorder.leave(inside);
    }
    result
}

fn wait(recorder: &Recorder, what: u32, saved: &Saved, place: Place) -> u64 {
    let s = &recorder.segment;
    let state_word = s.futex(word::STATE);
    if !turn(recorder) {
        return answer::CLEAN;
    }
    s.word(word::ASK_TID)
        .store(u64::from(sys::quiet_gettid()), Relaxed);
    s.word(word::ASK_SP).store(place.sp as u64, Relaxed);
    s.word(word::ASK_TCB)
        .store(x86_64::thread_control_block(), Relaxed);
    for (i, value) in saved.kept.iter().enumerate() {
        s.word(word::ASK_REGS + i).store(*value, Relaxed);
    }
    let answers = s.futex(word::ANSWER);
    let before = answers.load(Acquire);
    state_word.store(what, Release);
    sys::futex_wake(state_word);

    let mut clock = recorder.clock();
    let mut idle = 0;
    let mut by_mail = false;
    while answers.load(Acquire) == before && idle < PATIENCE {
        let op = s.futex(word::MAIL_OP);
        match op.load(Acquire) {
            mail::NONE if by_mail => sys::futex_wait(op, mail::NONE, MAIL_TURN_MS),
            mail::NONE => sys::futex_wait(answers, before, TURN_MS),
            request => {
                deliver(recorder, request);
                by_mail = true;
                op.store(mail::NONE, Release);
                sys::futex_wake(op);
            }
        }
        let now = recorder.clock();
        idle = if now == clock { idle + 1 } else { 0 };
        clock = now;
    }
    let ends = matches!(what, state::ASK_EXIT | state::ASK_FAST_EXIT);
    if ends {
        // Judged: the supervisor gives the tables' memory back from now on.
        recorder::close();
    }
    state_word.store(if ends { state::LEAVING } else { state::RUNNING }, Release);
    sys::futex_wake(state_word);
    s.word(word::RESULT).load(Acquire)
}

/// Waits for the calling thread's turn to ask: one thread asks at a time.
/// False when there is nothing left to ask, or the wait is over.
fn turn(recorder: &Recorder) -> bool {
    let state_word = recorder.segment.futex(word::STATE);
    let mut clock = recorder.clock();
    let mut idle = 0;
    while idle < PATIENCE {
        match state_word.compare_exchange(state::RUNNING, state::STARTING_ASK, Acquire, Acquire) {
            Ok(_) => return true,
            // Judged already; the process is on its way out.
            Err(state::LEAVING) => return false,
            // exec failed in a way that did not tell us.
            Err(state::EXECUTING) => {
                let _ =
                    state_word.compare_exchange(state::EXECUTING, state::RUNNING, Acquire, Relaxed);
            }
            // Another thread's check runs: the process must not end under it.
            Err(other) => sys::futex_wait(state_word, other, TURN_MS),
        }
        let now = recorder.clock();
        idle = if now == clock { idle + 1 } else { 0 };
        clock = now;
    }
    false
}

/// Copies what the supervisor cannot read itself into the window.
fn deliver(recorder: &Recorder, request: u32) {
    let s = &recorder.segment;
    let from = s.word(word::MAIL_ADDR).load(Relaxed);
    let len = s.word(word::MAIL_LEN).load(Relaxed).min(WINDOW_BYTES) as usize;
    let window = s.words(Area::Window).as_ptr() as usize;
    let done = match request {
        mail::READ => sys::copy_memory(from, window, len),
        mail::MAPS => maps(from, window, len),
        _ => 0,
    };
    s.word(word::MAIL_DONE).store(done as u64, Release);
}

fn maps(from: u64, window: usize, len: usize) -> usize {
    let Some(fd) = sys::open(b"/proc/self/maps\0") else {
        return 0;
    };
    // The file has no random access: read and drop what comes before.
    let mut skip = from;
    let mut buffer = [0u8; 4096];
    let mut done = 0;
    loop {
        let n = sys::call(
            sys::nr::READ,
            [
                fd as usize,
                buffer.as_mut_ptr() as usize,
                buffer.len(),
                0,
                0,
                0,
            ],
        );
        let Ok(n) = usize::try_from(n) else { break };
        if n == 0 || done >= len {
            break;
        }
        let dropped = skip.min(n as u64) as usize;
        skip -= dropped as u64;
        let part = (n.min(buffer.len()) - dropped).min(len - done);
        // SAFETY: the window is len bytes of our mapping; done + part <= len.
        unsafe {
            let to = (window + done) as *mut u8;
            core::ptr::copy_nonoverlapping(buffer.as_ptr().add(dropped), to, part);
        }
        done += part;
    }
    sys::close(fd);
    done
}
