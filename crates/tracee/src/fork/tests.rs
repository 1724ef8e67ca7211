//! Copies of programs that check themselves.

use super::*;
use leakscope_model::Addr;
use leakscope_testkit::{Need, Program, Target, compile_c, need};

/// Reads lines with every register full, and says whether all came through.
const CAREFUL: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <errno.h>
static unsigned long want[12] = {1,2,3,4,5,6,7,8,9,10,11,12}, got[12];
static int intact(char *buffer, long size, long *count) {
    register unsigned long *from __asm__("rcx") = want, *into __asm__("r15") = got;
    memset(got, 0, sizeof got);
    __asm__ volatile(
        "movdqu 64(%[want]), %%xmm7\n movdqu 80(%[want]), %%xmm15\n"
        "push %%rbx\n push %%rbp\n"
        "mov 0(%[want]), %%r8\n mov 8(%[want]), %%r9\n mov 16(%[want]), %%r10\n"
        "mov 24(%[want]), %%r12\n mov 32(%[want]), %%r13\n mov 40(%[want]), %%r14\n"
        "mov 48(%[want]), %%rbx\n mov 56(%[want]), %%rbp\n"
        "syscall\n"
        "mov %%r8, 0(%%r15)\n mov %%r9, 8(%%r15)\n mov %%r10, 16(%%r15)\n"
        "mov %%r12, 24(%%r15)\n mov %%r13, 32(%%r15)\n mov %%r14, 40(%%r15)\n"
        "mov %%rbx, 48(%%r15)\n mov %%rbp, 56(%%r15)\n"
        "movdqu %%xmm7, 64(%%r15)\n movdqu %%xmm15, 80(%%r15)\n"
        "pop %%rbp\n pop %%rbx\n"
        : "=a"(*count), "+r"(from)
        : "0"(0L), "D"(0L), "S"(buffer), "d"(size), [want] "r"(from), "r"(into)
        : "r8", "r9", "r10", "r11", "r12", "r13", "r14", "xmm7", "xmm15", "memory");
    return !memcmp(want, got, sizeof got);
}
int main(void) {
    char line[64];
    long count;
    unsigned long *plain = malloc(64), *wiped, *kept;
    *plain = 0x1111;
    wiped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    kept = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(wiped, 4096, MADV_WIPEONFORK);
    madvise(kept, 4096, MADV_DONTFORK);
    *wiped = 0x2222, *kept = 0x3333;
    printf("at %p %p %p\n", (void *)plain, (void *)wiped, (void *)kept);
    for (;;) {
        fflush(stdout);
        int all = intact(line, sizeof line, &count);
        if (count == 0) return 7;
        if (line[0] == 'w') *plain = *wiped = *kept = 0x4444;
        int child = waitpid(-1, 0, WNOHANG), error = errno;
        printf("%s %ld %s\n", all ? "intact" : "broken", count,
               child == -1 && error == ECHILD ? "childless" : "child");
    }
}
"#;

fn target() -> Option<(Program, Target, [u64; 3])> {
    if !need(Need::Compiler) || !need(Need::Ptrace) {
        return None;
    }
    let program = compile_c(CAREFUL, &["-O1", "-fomit-frame-pointer", "-mno-red-zone"]);
    let mut target = Target::spawn(&mut program.command());
    let at = target.expect_line("at ");
    let at: Vec<u64> = at
        .split(' ')
        .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap())
        .collect();
    Some((program, target, at.try_into().unwrap()))
}

/// Direct children of a process, with their states.
fn children(pid: u32) -> Vec<(u32, u8)> {
    let root = ProcRoot::default();
    let stats = root.pids().unwrap().into_iter().filter_map(|p| {
        let stat = root.process(p).stat().ok()?;
        (stat.parent == pid).then_some((p, stat.state))
    });
    stats.collect()
}

#[test]
fn a_copy_keeps_the_moment_and_leaves_nothing() {
    let Some((_program, mut target, at)) = target() else {
        return;
    };
    let forked = fork(target.pid()).unwrap();
    assert_eq!(forked.threads().len(), 1);
    assert_eq!(children(target.pid()), [(forked.pid(), b't')]);
    target.send("write");
    target.expect_line("intact 6 childless");
    let read = |at| forked.memory().read_u64(Addr(at)).unwrap();
    assert_eq!(at.map(read), [0x1111, 0x2222, 0x3333]);
    // Across the border of what was saved by hand.
    let mut both = [0xff; 16];
    let end = (at[1].max(at[2])) & !0xfff;
    let _ = forked.memory().read_some(Addr(end - 8), &mut both);
    assert!(forked.end().taken);
    assert_eq!(children(target.pid()), []);
    target.send("again");
    target.expect_line("intact 6 childless");
    let forked = fork(target.pid()).unwrap();
    let read = |at| forked.memory().read_u64(Addr(at)).unwrap();
    assert_eq!(at.map(read), [0x4444; 3]);
}

/// Pages stay shared between the process and its copy: memory is not taken
/// twice.
#[test]
fn reading_copies_nothing() {
    if !need(Need::Compiler) || !need(Need::Ptrace) {
        return;
    }
    let source = "
#include <stdio.h>
#include <string.h>
static char big[32 << 20];
int main(void) { memset(big, 7, sizeof big); puts(\"ready\"); fflush(stdout); getchar(); }
";
    let program = compile_c(source, &[]);
    let mut target = Target::spawn(&mut program.command());
    target.expect_line("ready");
    let forked = fork(target.pid()).unwrap();
    let shared = || -> u64 {
        let usage = ProcRoot::default().process(forked.pid()).smaps().unwrap();
        usage.iter().map(|usage| usage.shared_dirty).sum()
    };
    let before = shared();
    assert!(before >= 32 << 20, "{before}");
    let mut bytes = vec![0; 1 << 20];
    for region in forked.memory().map().regions().iter().filter(|r| r.read) {
        for at in (region.range.start.0..region.range.end.0).step_by(1 << 20) {
            forked.memory().read_some(Addr(at), &mut bytes);
        }
    }
    assert!(shared() + (1 << 20) > before, "{} of {before}", shared());
}

/// As when our process is killed: nobody brings the thread back.
#[test]
fn without_us_the_thread_comes_back_by_itself() {
    let Some((_program, mut target, _)) = target() else {
        return;
    };
    let pid = target.pid();
    for end in [
        Step::Prepared,
        Step::Entered,
        Step::Born,
        Step::Left,
        Step::Returned,
    ] {
        let died = std::thread::spawn(move || {
            let mut gathering = Gathering::new(pid);
            let copying = Copying::prepare(pid).unwrap();
            let _ = copying.make(&mut gathering, &mut |step| {
                if step == end {
                    std::panic::resume_unwind(Box::new("the end"));
                }
            });
        })
        .join();
        assert!(died.is_err(), "{end:?} was not reached");
        target.send("line");
        target.expect_line("intact 5 childless");
        // A copy that was left behind has ended itself.
        while children(pid).iter().any(|(_, state)| *state != b'Z') {
            std::thread::yield_now();
        }
    }
    // And it can be copied still, also by a thread.
    assert!(fork_here(pid).unwrap().end().taken);
    assert!(fork(pid).unwrap().end().taken);
    target.send("line");
    target.expect_line("intact 5 childless");
}

/// A thousand times, and there is nothing left over.
#[test]
fn a_thousand_copies() {
    let Some((_program, mut target, _)) = target() else {
        return;
    };
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for _ in 0..1000 {
        assert!(fork(target.pid()).unwrap().end().taken);
    }
    // Other tests run beside this one.
    assert!(open() < before + 100);
    assert_eq!(children(target.pid()), []);
    target.send("line");
    target.expect_line("intact 5 childless");
}
