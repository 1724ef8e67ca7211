//! Which stack opened a descriptor.

use crate::real;
use crate::recorder::{self, Access, Place};
use crate::x86_64::Saved;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_wire::layout::{Area, config};

const F_DUPFD: u64 = 0;
const F_DUPFD_CLOEXEC: u64 = 1030;

/// A hooked function returned `result`.
pub fn opened(index: usize, saved: &Saved, result: u64, place: Place) {
    match index {
        real::FCNTL | real::FCNTL64 => {
            let command = saved.args[1] & 0xffff_ffff;
            if command == F_DUPFD || command == F_DUPFD_CLOEXEC {
                note(result, place);
            }
        }
        real::PIPE | real::PIPE2 => pair(saved.args[0], result, place),
        real::SOCKETPAIR => pair(saved.args[3], result, place),
        real::FOPEN | real::FOPEN64 | real::FDOPEN | real::TMPFILE => {
            stream(real::FILENO, result, place);
        }
        real::OPENDIR => stream(real::DIRFD, result, place),
        _ => note(result, place),
    }
}

fn pair(at: u64, result: u64, place: Place) {
    if result as i32 == 0 && at != 0 {
        // SAFETY: success means that the kernel stored two ints there.
        let [a, b] = unsafe { (at as *const [i32; 2]).read_unaligned() };
        note(a as u64, place);
        note(b as u64, place);
    }
}

fn stream(getter: usize, result: u64, place: Place) {
    let f = real::get(getter);
    if result == 0 || f == 0 {
        return;
    }
    // SAFETY: fileno and dirfd take the stream that was just opened and
    // leave errno alone for a valid one.
    let fd = unsafe { core::mem::transmute::<usize, extern "C" fn(u64) -> i32>(f)(result) };
    note(fd as u64, place);
}

fn note(fd: u64, place: Place) {
    if (fd as i32) < 0 {
        return;
    }
    if let Access::Inside(recorder, mut inside) = recorder::access(place.sp) {
        if recorder.config & config::FDS != 0 {
            let stack = recorder.capture(&mut inside, place).stack;
            if let Some(word) = recorder.segment.words(Area::Fds).get(fd as u32 as usize) {
                word.store(u64::from(stack) + 1, Relaxed);
            }
        }
        recorder.leave(inside);
    }
}

/// A descriptor is about to be closed.
pub fn closed(fd: u64) {
    if let Some(recorder) = recorder::get()
        && let Some(word) = recorder.segment.words(Area::Fds).get(fd as u32 as usize)
        && word.load(Relaxed) != 0
    {
        word.store(0, Relaxed);
    }
}
