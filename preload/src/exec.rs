//! exec and spawn: the image is about to be replaced, or a child started
//! with an environment of the program's making.

use crate::recorder::{self, Place};
use crate::x86_64::Saved;
use crate::{ask, init, modules, real, sys};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU64, AtomicUsize};
use leakscope_wire::hello::ENV_SOCKET;
use leakscope_wire::layout::{config, state, word};

unsafe extern "C" {
    static mut environ: *const *const u8;
}

/// The program's environment while ours stands in for an exec.
static BEFORE: AtomicU64 = AtomicU64::new(0);

/// Tells the supervisor, and asks for a check when the user wants one.
pub fn about_to(index: usize, saved: &mut Saved, place: Place) {
    let Some(recorder) = recorder::get_even_closed() else {
        return;
    };
    let environment = match index {
        real::EXECVE | real::EXECVPE | real::FEXECVE => Some(2),
        real::EXECVEAT => Some(3),
        _ => None,
    };
    if recorder.config & config::FOLLOW != 0
        && let Some(argument) = environment.and_then(|i| saved.args.get_mut(i))
    {
        complete(argument);
    }
    if recorder.config & config::FOLLOW != 0
        && environment.is_none()
        && index != real::EXECLE
        && ask::own_process(recorder)
    {
        // These take the program's own environment. Not in a vfork child,
        // whose parent would be left with ours.
        // SAFETY: libc's variable, as the program may set it itself.
        unsafe {
            let before = environ;
            let mut new = before as u64;
            complete(&mut new);
            if new != before as u64 {
                BEFORE.store(before as u64, Relaxed);
                environ = new as *const *const u8;
            }
        }
    }
    // A vfork child shares its parent's memory, and is not the parent.
    if !ask::own_process(recorder) {
        return;
    }
    ask::at_exec(recorder, saved, place);
    let s = recorder.segment.futex(word::STATE);
    if s.compare_exchange(state::RUNNING, state::EXECUTING, Acquire, Relaxed)
        .is_ok()
    {
        sys::futex_wake(s);
    }
}

/// exec came back, so it failed.
pub fn failed() {
    let Some(recorder) = recorder::get_even_closed() else {
        return;
    };
    if !ask::own_process(recorder) {
        return;
    }
    let before = BEFORE.swap(0, Relaxed);
    if before != 0 {
        // SAFETY: as in `about_to`; the value that was there.
        unsafe { environ = before as *const *const u8 };
    }
    let s = recorder.segment.futex(word::STATE);
    if s.compare_exchange(state::EXECUTING, state::RUNNING, Release, Relaxed)
        .is_ok()
    {
        sys::futex_wake(s);
    }
}

/// posix_spawn is about to run.
pub fn spawning(saved: &mut Saved) {
    if let Some(recorder) = recorder::get_even_closed()
        && recorder.config & config::FOLLOW != 0
    {
        complete(&mut saved.args[5]);
    }
}

/// Room for one environment: pointers, then the two texts.
const POINTERS: usize = 2000;
const TEXT: usize = 384;

#[repr(C)]
struct Room {
    pointers: [AtomicU64; POINTERS],
    texts: [[AtomicU64; TEXT / 8]; 2],
}

/// Environments under way. A vfork child shares this memory and may never
/// return to give anything back, so they are used in turn; the kernel copies
/// an environment within the call.
static ROOMS: [Room; 16] = [const {
    Room {
        pointers: [const { AtomicU64::new(0) }; POINTERS],
        texts: [const { [const { AtomicU64::new(0) }; TEXT / 8] }; 2],
    }
}; 16];
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Text under construction.
struct Text {
    bytes: [u8; TEXT],
    len: usize,
}

impl Text {
    fn new() -> Text {
        Text {
            bytes: [0; TEXT],
            len: 0,
        }
    }

    /// False when it does not fit (a zero byte must stay).
    fn push(&mut self, part: &[u8]) -> bool {
        let end = self.len + part.len();
        if end >= TEXT {
            return false;
        }
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(part);
            self.len = end;
        }
        true
    }
}

/// Replaces the environment at `argument` by one that has our two variables,
/// unless it has them or there is no room.
fn complete(argument: &mut u64) {
    const PRELOAD: &[u8] = b"LD_PRELOAD=";
    let old = *argument as *const *const u8;
    let mut object = [0u8; 256];
    let object = modules::own_path(&mut object);
    if old.is_null() || object.is_empty() {
        return;
    }
    let Some(room) = ROOMS.get(TURN.fetch_add(1, Relaxed) % ROOMS.len()) else {
        return;
    };
    let mut preload = Text::new();
    let mut socket = Text::new();
    let address = init::remembered();
    let mut fits = preload.push(PRELOAD)
        && preload.push(object)
        && socket.push(ENV_SOCKET.as_bytes())
        && socket.push(b"=")
        && socket.push(address.text());
    let (mut preloaded, mut told) = (false, false);
    let mut count = 0;
    // SAFETY: the program's environment: a null-terminated array of C
    // strings, as the call that it made demands.
    unsafe {
        loop {
            let entry = *old.add(count);
            if entry.is_null() {
                break;
            }
            let mut keep = entry as u64;
            if starts_with(entry, PRELOAD) {
                let value = c_string(entry.add(PRELOAD.len()));
                if contains(value, object) {
                    preloaded = true;
                } else {
                    // Theirs stays, behind ours.
                    fits &= preload.push(b":") && preload.push(value);
                    keep = room.texts[0].as_ptr() as u64;
                    preloaded = false;
                }
            } else if starts_with(entry, ENV_SOCKET.as_bytes()) {
                told = true;
            }
            match room.pointers.get(count) {
                Some(slot) if count + 3 < POINTERS => slot.store(keep, Relaxed),
                _ => return,
            }
            count += 1;
        }
    }
    if preloaded && told || !fits {
        return;
    }
    for (text, words) in [&preload, &socket].into_iter().zip(&room.texts) {
        for (word, bytes) in words.iter().zip(text.bytes.chunks_exact(8)) {
            word.store(bytes.try_into().map_or(0, u64::from_le_bytes), Relaxed);
        }
    }
    let mut end = count;
    let preload_at = room.texts[0].as_ptr() as u64;
    let replaced = room
        .pointers
        .iter()
        .take(count)
        .any(|p| p.load(Relaxed) == preload_at);
    for (wanted, text) in [(!preloaded && !replaced, 0), (!told, 1)] {
        if wanted && let (Some(slot), Some(text)) = (room.pointers.get(end), room.texts.get(text)) {
            slot.store(text.as_ptr() as u64, Relaxed);
            end += 1;
        }
    }
    if let Some(slot) = room.pointers.get(end) {
        slot.store(0, Relaxed);
        *argument = room.pointers.as_ptr() as u64;
    }
}

/// # Safety
/// `text` is a C string.
unsafe fn c_string<'a>(text: *const u8) -> &'a [u8] {
    // SAFETY: by the caller; bounded by the kernel's limit on one string.
    unsafe {
        let len = (0..131_072).find(|i| *text.add(*i) == 0).unwrap_or(0);
        core::slice::from_raw_parts(text, len)
    }
}

/// # Safety
/// `text` is a C string.
unsafe fn starts_with(text: *const u8, prefix: &[u8]) -> bool {
    // SAFETY: stops at the first difference, so never behind the end.
    prefix
        .iter()
        .enumerate()
        .all(|(i, b)| unsafe { *text.add(i) } == *b)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|w| w == part)
}
