//! Reading the memory of a running process.

use crate::{possible, until_state};
use leakscope_memory::{FaultReason, MemoryReader};
use leakscope_model::Addr;
use leakscope_testkit::{Target, compile_c};
use leakscope_tracee::{LiveMemory, OpenError, stop};

const PAGE: u64 = 4096;

/// 13 readable pages of a pattern, a page without permissions, 7 more.
const PAGES: &str = r#"
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    unsigned char *at = mmap(0, 21 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 21 * 4096; i++) at[i] = i % 251;
    mprotect(at + 13 * 4096, 4096, PROT_NONE);
    printf("at %p\n", (void *)at);
    fflush(stdout);
    char byte;
    read(0, &byte, 1); /* unbuffered: the rest is for cat */
    execl("/bin/cat", "cat", (char *)0);
}
"#;

fn is_pattern(bytes: &[u8], from: u64) -> bool {
    let mut numbered = bytes.iter().zip(from..);
    numbered.all(|(&byte, i)| u64::from(byte) == i % 251)
}

#[test]
fn prefixes_end_at_the_first_unreadable_page() {
    if !possible() {
        return;
    }
    let program = compile_c(PAGES, &[]);
    let mut target = Target::spawn(&mut program.command());
    let at = target.expect_hex("at ");
    let memory = LiveMemory::open(target.pid()).unwrap();
    assert_eq!(memory.skipped_map_lines(), 0);
    let region = memory.map().find(Addr(at)).unwrap();
    assert!(region.read && region.write && region.is_anonymous());

    // Lengths on both sides of the change from one way of reading to the
    // other; starts within a page and at its edges.
    for (start, length) in [
        (0, 1),
        (17, 4096),
        (4095, 2),
        (0, 13 * 4096),
        (31, 16384),
        (4096 * 12, 4096),
    ] {
        let mut bytes = vec![0; length];
        memory.read(Addr(at + start), &mut bytes).unwrap();
        assert!(is_pattern(&bytes, start), "{start} {length}");
        assert_eq!(memory.read_some(Addr(at + start), &mut bytes), length);
    }
    for (start, length) in [
        (0, 21 * 4096),
        (12 * 4096 + 5, 4096),
        (13 * 4096 - 1, 70000),
    ] {
        let mut bytes = vec![0; length];
        let want = (13 * PAGE - start) as usize;
        assert_eq!(memory.read_some(Addr(at + start), &mut bytes), want);
        assert!(is_pattern(&bytes[..want], start));
        let fault = memory.read(Addr(at + start), &mut bytes).unwrap_err();
        assert_eq!(fault.at, Addr(at + 13 * PAGE));
        assert_eq!(fault.reason, FaultReason::Unmapped);
    }
    for length in [1, 8, 4096, 1 << 20] {
        let mut bytes = vec![0; length];
        for hole in [0, at + 13 * PAGE, u64::MAX, u64::MAX - 7, 1 << 63] {
            assert_eq!(memory.read_some(Addr(hole), &mut bytes), 0);
            let fault = memory.read(Addr(hole), &mut bytes).unwrap_err();
            assert_eq!(
                (fault.at, fault.reason),
                (Addr(hole), FaultReason::Unmapped)
            );
        }
    }
    assert_eq!(memory.read_some(Addr(at), &mut []), 0);
    assert_eq!(memory.read(Addr(0), &mut []), Ok(()));
}

#[test]
fn another_program_is_another_memory() {
    if !possible() {
        return;
    }
    let program = compile_c(PAGES, &[]);
    let mut target = Target::spawn(&mut program.command());
    let at = Addr(target.expect_hex("at "));
    let mut memory = LiveMemory::open(target.pid()).unwrap();
    target.send("");
    target.send("cat");
    assert_eq!(target.expect_line("cat"), "");
    assert!(!memory.is_alive());
    for length in [8, 1 << 16] {
        let fault = memory.read(at, &mut vec![0; length]).unwrap_err();
        assert_eq!((fault.at, fault.reason), (at, FaultReason::Gone));
    }
    assert!(matches!(memory.refresh(), Err(OpenError::Gone(_))));
}

#[test]
fn a_dead_process_is_gone() {
    if !possible() {
        return;
    }
    let program = compile_c(PAGES, &[]);
    let mut target = Target::spawn(&mut program.command());
    let at = Addr(target.expect_hex("at "));
    let pid = target.pid();
    let memory = LiveMemory::open(pid).unwrap();
    target.signal(libc::SIGKILL);
    until_state(pid, b'Z');
    for length in [8, 1 << 16] {
        let fault = memory.read(at, &mut vec![0; length]).unwrap_err();
        assert_eq!(fault.reason, FaultReason::Gone);
    }
    assert!(matches!(LiveMemory::open(pid), Err(OpenError::Gone(p)) if p == pid));
    target.wait();
    assert!(matches!(LiveMemory::open(pid), Err(OpenError::Gone(p)) if p == pid));
}

#[test]
fn the_map_is_taken_anew_on_request() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <stdio.h>
#include <sys/mman.h>
int main(void) {
    printf("ready\n");
    fflush(stdout);
    getchar();
    printf("at %p\n", mmap(0, 17 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    fflush(stdout);
    getchar();
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    let mut memory = LiveMemory::open(target.pid()).unwrap();
    target.send("");
    let at = Addr(target.expect_hex("at "));
    assert!(memory.map().find(at).is_none());
    assert_eq!(memory.read_u64(at), Ok(0), "newer than the map, but there");
    memory.refresh().unwrap();
    let region = memory.map().find(at).unwrap();
    assert!(region.shared && !region.is_anonymous());
    assert_eq!(region.range.len(), 17 * PAGE);
}

/// The first thread of a process may end before the others.
#[test]
fn a_process_without_its_first_thread() {
    if !possible() {
        return;
    }
    let program = compile_c(
        r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
static unsigned char pattern[20 * 4096];
static void *run(void *main_thread) {
    pthread_join(*(pthread_t *)main_thread, 0);
    for (unsigned i = 0; i < sizeof pattern; i++) pattern[i] = i % 251;
    printf("at %p\n", (void *)pattern);
    fflush(stdout);
    getchar();
    exit(7);
}
static pthread_t self;
int main(void) {
    pthread_t thread;
    self = pthread_self();
    pthread_create(&thread, 0, run, &self);
    pthread_exit(0);
}
"#,
        &[],
    );
    let mut target = Target::spawn(&mut program.command());
    let at = target.expect_hex("at ");
    until_state(target.pid(), b'Z');
    let memory = LiveMemory::open(target.pid()).unwrap();
    for length in [8, 20 * 4096] {
        let mut bytes = vec![0; length];
        memory.read(Addr(at), &mut bytes).unwrap();
        assert!(is_pattern(&bytes, 0));
    }
    let stopped = stop(target.pid()).unwrap();
    assert_eq!(stopped.threads().len(), 1);
    assert_ne!(stopped.threads()[0].tid, target.pid());
    assert_eq!(stopped.memory().read_some(Addr(at), &mut [0; 64]), 64);
    drop(stopped);
    target.send("");
    assert_eq!(target.wait().code(), Some(7));
}
