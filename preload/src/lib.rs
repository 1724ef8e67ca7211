//! The object that `leakscope run` loads into a process (LD_PRELOAD).
//!
//! It forwards every allocation function to the next definition and keeps
//! the live blocks, their stacks and counters in the shared segment. It
//! never allocates, logs, aborts or waits without bound, keeps errno, and
//! has no dependency but `recorder-core` and `wire`.
//!
//! Begin with `hooks` (what is hooked) and `recorder` (what happens then).
#![no_std]

mod arena;
mod ask;
mod cell;
mod descriptors;
mod exec;
mod fork;
mod hooks;
mod init;
mod lsan;
mod mappings;
mod modules;
mod oldlibc;
mod quiet;
mod real;
mod recorder;
mod sampling;
mod signals;
mod stacks;
mod sys;
mod weak;
mod x86_64;

/// Never reached: nothing here panics, and the built object is inspected for
/// it. Without a process to report to, stopping this thread is the least
/// harm.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        sys::pause_ms(1000);
    }
}
