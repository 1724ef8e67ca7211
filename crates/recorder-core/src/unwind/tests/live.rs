//! Captures in real call trees.

use super::super::Boundary;
use super::target::{Target, call, event, with};
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
    assert!(seen.cut * 50 < seen.events, "{seen:?}");
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
