//! LeakSanitizer's public interface (compiler-rt,
//! `include/sanitizer/lsan_interface.h`): programs built with weak
//! references to it find these definitions.

use crate::cell;
use crate::recorder::{self, Access, give_way};
use crate::weak;
use core::ffi::c_void;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_recorder_core::lock;
use leakscope_wire::entry;
use leakscope_wire::layout::{Area, word};

/// Allocations of this thread are declared harmless until the matching
/// enable.
#[unsafe(no_mangle)]
pub extern "C" fn __lsan_disable() {
    // Makes sure that the thread has a cell.
    if let Access::Inside(recorder, inside) =
        recorder::access(crate::x86_64::stack_pointer() as usize)
    {
        recorder.leave(inside);
    }
    if let Some(cell) = cell::current() {
        cell.lsan_depth().fetch_add(1, Relaxed);
    }
}

/// Ends one disable.
#[unsafe(no_mangle)]
pub extern "C" fn __lsan_enable() {
    if let Some(cell) = cell::current() {
        let depth = cell.lsan_depth();
        depth.store(depth.load(Relaxed).saturating_sub(1), Relaxed);
    }
}

/// Declares one block harmless; the address may point into it.
#[unsafe(no_mangle)]
pub extern "C" fn __lsan_ignore_object(at: *const c_void) {
    if let Access::Inside(recorder, inside) =
        recorder::access(crate::x86_64::stack_pointer() as usize)
    {
        let addr = at as u64;
        let found = recorder
            .table
            .update(addr, |e| e.flags |= entry::IGNORED)
            .is_some();
        if !found && let Some((start, _)) = recorder.table.contains_inside(addr, 1 << 20) {
            recorder.table.update(start, |e| e.flags |= entry::IGNORED);
        }
        recorder.leave(inside);
    }
}

/// Declares memory a root.
#[unsafe(no_mangle)]
pub extern "C" fn __lsan_register_root_region(at: *const c_void, size: usize) {
    roots(0, 0, at as u64, (at as u64).saturating_add(size as u64));
}

/// Takes a declaration back.
#[unsafe(no_mangle)]
pub extern "C" fn __lsan_unregister_root_region(at: *const c_void, size: usize) {
    roots(at as u64, (at as u64).saturating_add(size as u64), 0, 0);
}

/// Replaces the first row (`from`, `to`) by another.
fn roots(from: u64, to: u64, new_from: u64, new_to: u64) {
    let Access::Inside(recorder, inside) =
        recorder::access(crate::x86_64::stack_pointer() as usize)
    else {
        return;
    };
    {
        let held = lock::acquire(recorder.segment.word(word::TABLES_LOCK), give_way);
        if held.is_some() {
            for row in recorder.segment.words(Area::Roots).chunks_exact(2) {
                if let [start, end] = row
                    && start.load(Relaxed) == from
                    && end.load(Relaxed) == to
                {
                    start.store(new_from, Relaxed);
                    end.store(new_to, Relaxed);
                    break;
                }
            }
        }
    }
    recorder.leave(inside);
}

/// Takes over the suppressions that the program defines for itself; called
/// once, when the program is loaded.
pub fn take_suppressions() {
    let Some(recorder) = recorder::get() else {
        return;
    };
    let f = weak::lsan_suppressions();
    if f == 0 {
        return;
    }
    // SAFETY: the interface says that this function takes nothing and
    // returns a C string that stays.
    unsafe {
        let f = core::mem::transmute::<usize, extern "C" fn() -> *const u8>(f);
        let text = f();
        if text.is_null() {
            return;
        }
        let len = (0..65536).find(|i| *text.add(*i) == 0).unwrap_or(0);
        let text = core::slice::from_raw_parts(text, len);
        if let Some(at) = leakscope_recorder_core::rows::string(&recorder.segment, text) {
            recorder
                .segment
                .word(word::LSAN_SUPPRESSIONS)
                .store(at, Relaxed);
        }
    }
}

/// True when the program defines `__lsan_is_turned_off` and it says so.
pub fn turned_off() -> bool {
    let f = weak::lsan_turned_off();
    if f == 0 {
        return false;
    }
    // SAFETY: the interface says: int __lsan_is_turned_off(void).
    unsafe { core::mem::transmute::<usize, extern "C" fn() -> i32>(f)() != 0 }
}
