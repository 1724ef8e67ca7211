//! Captures in real call trees.

use super::super::Boundary;
use super::target::{Target, call, event, fixture, with};
use std::ffi::c_void;
use std::prelude::v1::*;

/// Compares each capture of `body`.
fn run(max_depth: u32, body: impl FnOnce()) -> Target {
    let target = Target::new(max_depth);
    with(&target, body);
    target
}

#[test]
fn recursion() {
    let target = run(400, || {
        call!("every_level", 97, event());
        call!("recurse", 31, event());
        call!("steady", 53, 7, event());
    });
    let seen = target.seen.get();
    assert_eq!((seen.events, seen.whole), (97 * 2 + 1 + 1 + 7, seen.events));
    assert!(seen.deepest > 97);
}

#[test]
fn random_trees() {
    let target = run(400, || {
        for seed in 0..31 {
            call!("random_tree", seed * 7919, 9, event());
        }
    });
    let seen = target.seen.get();
    assert!(seen.events > 1500, "{seen:?}");
    assert_eq!(seen.whole, seen.events);
}

#[test]
fn rbp_that_does_not_matter_is_not_compared() {
    let target = Target::new(400);
    let events = |rounds: usize| {
        target.unchecked(|| {
            with(&target, || {
                call!("rbp_varies", 0, rounds, event());
            });
        });
        target.process.interned.get()
    };
    let first = events(1);
    // The frames of the test itself may have changed since.
    let second = events(1);
    assert_eq!(events(31) - second, second - first);
}

#[test]
fn rbp_that_matters_again_is_not_taken_from_the_past() {
    let target = run(400, || {
        for pattern in [0b0110_1001_1110_0101_u32, 0b1_0000_0001, u32::MAX] {
            call!("rbp_varies", pattern, 17, event());
        }
    });
    let seen = target.seen.get();
    assert_eq!((seen.events, seen.whole), (3 * 17, seen.events));
    let target = run(400, || {
        call!("rbp_moves", 0b110_0101, 7, event());
    });
    let seen = target.seen.get();
    assert_eq!((seen.events, seen.whole), (7, seen.events));
}

#[test]
fn longjmp() {
    let target = run(400, || {
        call!("jumps", 29, event());
    });
    let seen = target.seen.get();
    assert_eq!((seen.events, seen.whole), (30 + 29, seen.events));
}

#[test]
fn callback_from_libc() {
    let target = run(400, || {
        call!("sorts", event());
    });
    let seen = target.seen.get();
    assert!(seen.events > 40);
    assert_eq!(seen.whole, seen.events);
}

#[test]
fn coroutines() {
    let target = run(400, || {
        for _ in 0..3 {
            call!("coroutines", event());
        }
    });
    let seen = target.seen.get();
    assert!(seen.events > 3 * 24, "{seen:?}");
    assert_eq!(seen.whole, seen.events);
}

#[test]
fn signals() {
    let _one = SIGNALS.lock();
    for alternate in [0, 1] {
        let target = run(400, || {
            call!("signals", alternate, event());
        });
        let seen = target.seen.get();
        assert_eq!((seen.events, seen.whole), (5 * 8, seen.events));
    }
}

/// Signal dispositions belong to the process.
static SIGNALS: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn at_every_instruction() {
    let _one = SIGNALS.lock();
    let target = run(400, || {
        call!("single_steps", event());
    });
    let seen = target.seen.get();
    assert!(seen.events > 1000, "{seen:?}");
    // Only the prologues of realigned frames, whose CFA is in r10.
    assert!(seen.cut * 20 < seen.events, "{seen:?}");
}

#[test]
fn threads() {
    let threads: Vec<_> = (0..3)
        .map(|i| {
            std::thread::spawn(move || {
                let target = run(400, || {
                    call!("random_tree", i * 104_729 + 3, 8, event());
                });
                let seen = target.seen.get();
                assert!(seen.events > 0);
                assert_eq!(seen.whole, seen.events);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn deeper_than_the_limit() {
    let target = run(89, || {
        call!("every_level", 300, event());
    });
    let seen = target.seen.get();
    assert_eq!(seen.events, 601);
    assert!(seen.deep > 400 && seen.whole > 100, "{seen:?}");
    // 64 shown of a recursion that is the same at each depth: few nodes.
    assert!(
        target.process.nodes() < 89 + 3 * 64 + 200,
        "{}",
        target.process.nodes()
    );
}

#[test]
fn deeper_than_the_room() {
    let target = run(200, || {
        call!("every_level", 2503, event());
    });
    let seen = target.seen.get();
    assert_eq!(seen.events, 2 * 2503 + 1);
    assert!(seen.deep > 4000, "{seen:?}");
}

#[test]
fn boundary_hides_what_it_called() {
    let recurse = |target: &Target| {
        target.unchecked(|| {
            with(target, || {
                call!("recurse", 5, event());
            });
        });
        target.process.path(target.last().stack)
    };
    let mut path = Vec::new();
    for (boundary, kind) in [
        (Boundary::None, 0),
        (Boundary::Hidden, 0),
        (Boundary::Allocator(3), 3),
    ] {
        let target = Target::new(400);
        if let Some(&within) = path.get(1) {
            let boundaries = &target.process.boundaries;
            boundaries.borrow_mut().insert(within, boundary);
        }
        let shown = recurse(&target);
        assert_eq!(target.last().boundary, kind);
        match boundary {
            Boundary::None => path = shown,
            // All levels but the innermost share the return address.
            Boundary::Hidden => {
                let levels = path.iter().filter(|&&ip| ip == path[1]).count();
                assert!(levels > 2);
                assert_eq!(shown[0], path[0]);
                assert_eq!(shown[1..], path[levels + 1..]);
                path.drain(2..=levels);
            }
            Boundary::Allocator(_) => assert_eq!(shown, path[2..]),
        }
    }
}

#[test]
fn no_room_in_the_tree() {
    let target = Target::new(400);
    target.process.room.set(Some(7));
    target.unchecked(|| {
        with(&target, || {
            call!("recurse", 5, event());
        });
    });
    assert_eq!(target.last().stack, 0);
    assert_eq!(target.process.nodes(), 7);
}

/// Fresh memory, page aligned.
fn map(pages: usize, protection: i32) -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: new memory, wherever there is room.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), pages * 4096, protection, flags, -1, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at
}

#[test]
fn foreign_stack_that_is_gone() {
    const PAGES: usize = 7;
    let stack = map(PAGES, libc::PROT_READ | libc::PROT_WRITE);
    let target = run(400, || {
        call!("on_stack", stack, PAGES * 4096, event());
        call!("on_stack", stack, PAGES * 4096, event());
    });
    assert_eq!(target.seen.get().whole, 2);
    let (context, before) = (target.last_context(), target.last());
    // SAFETY: mapped above; nothing runs on it any more.
    unsafe { libc::munmap(stack, PAGES * 4096) };
    target.process.memory.set(1);
    let after = target.capture(&context);
    assert!(after.cut && !before.cut);
    assert_eq!(target.process.path(after.stack), [context.ip]);
}

/// Calls machine code that is no part of any module.
fn generated(code: &[u8]) -> (Target, usize) {
    let at = map(1, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    // SAFETY: a page of our own, longer than any test's code.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at.cast(), code.len()) };
    let target = Target::new(400);
    target.unchecked(|| {
        with(&target, || {
            call!("through", at, event());
        });
    });
    (target, at as usize)
}

#[test]
fn generated_code_with_frame_pointer() {
    // push %rbp; mov %rsp,%rbp; call *%rdi; pop %rbp; ret
    let code = [0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3];
    let (target, at) = generated(&code);
    let captured = target.last();
    let path = target.process.path(captured.stack);
    assert!(!captured.cut && path.len() > 8);
    assert_eq!(path[0] as usize, at + 6);
    let through = fixture("through") as usize;
    assert!((through..through + 64).contains(&(path[1] as usize)));
}

/// push %rbp; xor %ebp,%ebp; call *%rdi; pop %rbp; ret
const WITHOUT_FRAME_POINTER: [u8; 7] = [0x55, 0x31, 0xed, 0xff, 0xd7, 0x5d, 0xc3];

#[test]
fn generated_code_without_frame_pointer() {
    let (target, at) = generated(&WITHOUT_FRAME_POINTER);
    let captured = target.last();
    assert!(captured.cut);
    assert_eq!(target.process.path(captured.stack), [at as u64 + 5]);
}

#[test]
fn start_code_without_unwind_information() {
    let (target, at) = generated(&WITHOUT_FRAME_POINTER);
    let context = target.last_context();
    for (distance, cut) in [(8, false), (56, false), (72, true)] {
        let mut first = Target::new(400);
        first.bounds.hi = context.sp + distance;
        let captured = first.capture(&context);
        assert_eq!(captured.cut, cut, "{distance}");
        assert_eq!(first.process.path(captured.stack), [at as u64 + 5]);
    }
}
