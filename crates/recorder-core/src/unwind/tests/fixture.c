// Call trees for the unwinder's tests, compiled at test time with
//   cc -O2 -fomit-frame-pointer -fno-optimize-sibling-calls -shared -fPIC -z lazy
// Each function calls `event` at the places to be captured.
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef void (*event_fn)(void);
#define NOINLINE __attribute__((noinline, noclone))
#define USED(p) __asm__ volatile("" ::"r"(p) : "memory")

NOINLINE int recurse(int n, event_fn event) {
    char pad[40];
    USED(pad);
    if (n <= 1) {
        event();
        return 1;
    }
    int below = recurse(n - 1, event);
    return below + 1;
}

// The steady call site: depth frames, then `times` events from one place.
NOINLINE int steady(int depth, int times, event_fn event) {
    char pad[24];
    USED(pad);
    if (depth > 1)
        return steady(depth - 1, times, event) + 1;
    for (int i = 0; i < times; i++)
        event();
    return 1;
}

NOINLINE int every_level(int n, event_fn event) {
    event();
    if (n == 0)
        return 0;
    int below = every_level(n - 1, event);
    event();
    return below + 1;
}

// A random tree: five functions with differently shaped frames.
static unsigned next(unsigned *seed) { return *seed = *seed * 1103515245u + 12345u; }
static NOINLINE int tree(unsigned *seed, int depth, event_fn event);

static NOINLINE int plain(unsigned *seed, int depth, event_fn event) {
    if (next(seed) >> 28 < 9)
        event();
    return tree(seed, depth, event) + 1;
}
static NOINLINE int wide(unsigned *seed, int depth, event_fn event) {
    char big[5000];
    USED(big);
    int got = tree(seed, depth, event);
    event();
    USED(big);
    return got + 2;
}
static NOINLINE int varying(unsigned *seed, int depth, event_fn event) {
    char *some = alloca((next(seed) >> 20) & 0x3ff);
    USED(some);
    int got = tree(seed, depth, event);
    event();
    return got + 3;
}
static NOINLINE int aligned(unsigned *seed, int depth, event_fn event, int a, int b, int c, int d, int e) {
    char block[64] __attribute__((aligned(64)));
    char *some = alloca((next(seed) >> 22) & 0xff);
    USED(block);
    USED(some);
    int got = tree(seed, depth, event);
    event();
    USED(block);
    return got + a + b + c + d + e;
}
__attribute__((optimize("no-omit-frame-pointer"))) static NOINLINE int
framed(unsigned *seed, int depth, event_fn event) {
    event();
    return tree(seed, depth, event) + 5;
}
static NOINLINE int many(unsigned *seed, int depth, event_fn event) {
    // Enough live values to use every callee-saved register.
    int a = next(seed), b = next(seed), c = next(seed), d = next(seed), e = next(seed), f = next(seed);
    USED(a); USED(b); USED(c); USED(d); USED(e); USED(f);
    int got = tree(seed, depth, event);
    return got + a + b + c + d + e + f;
}
static NOINLINE int tree(unsigned *seed, int depth, event_fn event) {
    int got = 0;
    if (depth <= 0) {
        event();
        return 0;
    }
    int children = next(seed) >> 30;
    for (int i = 0; i <= children && got < 1 << 20; i++) {
        switch ((next(seed) >> 16) % 6) {
        case 0: got += plain(seed, depth - 1, event); break;
        case 1: got += wide(seed, depth - 1, event); break;
        case 2: got += varying(seed, depth - 1, event); break;
        case 3: got += aligned(seed, depth - 1, event, 1, 2, 3, 4, 5); break;
        case 4: got += framed(seed, depth - 1, event); break;
        default: got += many(seed, depth - 1, event); break;
        }
    }
    return got;
}
int random_tree(unsigned seed, int depth, event_fn event) { return tree(&seed, depth, event); }

// longjmp out of a deep frame, several times.
static __thread jmp_buf back;
static NOINLINE void leap(int n, event_fn event) {
    char pad[32];
    USED(pad);
    if (n == 0) {
        event();
        longjmp(back, 1);
    }
    leap(n - 1, event);
    USED(pad);
}
int jumps(int times, event_fn event) {
    volatile int done = 0;
    setjmp(back);
    event();
    if (done++ < times)
        leap(done % 7, event);
    return done;
}

// qsort calls back from inside libc.
static __thread event_fn compare_event;
static int compare(const void *a, const void *b) {
    compare_event();
    return *(const int *)a - *(const int *)b;
}
int sorts(event_fn event) {
    int data[23];
    for (int i = 0; i < 23; i++)
        data[i] = (i * 7) % 23;
    compare_event = event;
    qsort(data, 23, sizeof *data, compare);
    return data[5];
}

// Coroutines on stacks from malloc.
static __thread ucontext_t main_context, contexts[3];
static __thread event_fn coroutine_event;
static NOINLINE void yields(int which, int depth) {
    char pad[48];
    USED(pad);
    coroutine_event();
    if (depth > 0)
        yields(which, depth - 1);
    swapcontext(&contexts[which], &main_context);
    coroutine_event();
    USED(pad);
}
static void coroutine(int which) { yields(which, which + 2); }
int coroutines(event_fn event) {
    char *stacks[3];
    coroutine_event = event;
    for (int i = 0; i < 3; i++) {
        stacks[i] = malloc(65536);
        getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = stacks[i];
        contexts[i].uc_stack.ss_size = 65536;
        contexts[i].uc_link = &main_context;
        makecontext(&contexts[i], (void (*)(void))coroutine, 1, i);
    }
    for (int round = 0; round < 6; round++)
        for (int i = 0; i < 3; i++)
            if (round < i + 4) {
                swapcontext(&main_context, &contexts[i]);
                event();
            }
    for (int i = 0; i < 3; i++)
        free(stacks[i]);
    return 0;
}

// Signals, raised in the middle of a call tree.
static __thread event_fn signal_event;
static NOINLINE void in_handler(int n) {
    signal_event();
    if (n > 0)
        in_handler(n - 1);
    signal_event();
}
static void handler(int number) { in_handler(number == SIGUSR1 ? 2 : 0); }
static NOINLINE int raises(int n) {
    char pad[56];
    USED(pad);
    if (n == 0) {
        raise(SIGUSR1);
        signal_event();
        return 0;
    }
    return raises(n - 1) + 1;
}
int signals(int alternate, event_fn event) {
    struct sigaction action, old;
    stack_t stack = {0}, old_stack;
    char *memory = malloc(131072);
    signal_event = event;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = alternate ? SA_ONSTACK : 0;
    stack.ss_sp = memory;
    stack.ss_size = 131072;
    sigaltstack(&stack, &old_stack);
    sigaction(SIGUSR1, &action, &old);
    for (int i = 0; i < 5; i++) {
        raises(i);
        event();
    }
    sigaction(SIGUSR1, &old, 0);
    sigaltstack(&old_stack, 0);
    free(memory);
    return 0;
}

// Steps through a call instruction by instruction, with an event at each:
// prologues, epilogues, PLT stubs and the loader's lazy binding included.
static __thread event_fn step_event;
static __thread volatile int steps_taken, stop_stepping;
static void trap(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    ucontext_t *at = context;
    ++steps_taken;
    if (stop_stepping)
        at->uc_mcontext.gregs[REG_EFL] &= ~0x100L;
    step_event();
}
static void ignore(void) { USED(0); }
int single_steps(event_fn event) {
    struct sigaction action, old;
    unsigned seed = 9;
    int sorted[2] = {3, 1};
    step_event = event;
    compare_event = ignore;
    steps_taken = stop_stepping = 0;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = trap;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGTRAP, &action, &old);
    __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; orq $0x100, (%%rsp); popfq; lea 128(%%rsp), %%rsp" ::: "memory", "cc");
    tree(&seed, 3, ignore);
    bsearch(&sorted[0], sorted, 2, sizeof *sorted, compare);
    USED(strtol("42", 0, 10));
    stop_stepping = 1;
    sigaction(SIGTRAP, &old, 0);
    return steps_taken;
}

// Recursion on a stack of the caller's.
static __thread event_fn lent_event;
static void on_lent(int depth) { recurse(depth, lent_event); }
int on_stack(char *memory, unsigned long size, event_fn event) {
    ucontext_t lent, back;
    lent_event = event;
    getcontext(&lent);
    lent.uc_stack.ss_sp = memory;
    lent.uc_stack.ss_size = size;
    lent.uc_link = &back;
    makecontext(&lent, (void (*)(void))on_lent, 1, 5);
    swapcontext(&back, &lent);
    return 0;
}

// Code of the caller's, called with the event.
NOINLINE int through(int (*code)(event_fn), event_fn event) {
    char pad[24];
    USED(pad);
    return code(event) + 1;
}

// rbp is an ordinary register here, a frame pointer there. At each event the
// stack pointers are the same; what rbp holds differs, and whether the
// outermost of these functions needs it.
__asm__(".text\n"
        // rdi: value, rsi: event
        "as_value:\n.cfi_startproc\n"
        "push %rbp\n.cfi_adjust_cfa_offset 8\n.cfi_rel_offset %rbp, 0\n"
        "sub $32, %rsp\n.cfi_adjust_cfa_offset 32\n"
        "mov %rdi, %rbp\n"
        "call passes_2\n"
        "add $32, %rsp\n.cfi_adjust_cfa_offset -32\n"
        "pop %rbp\n.cfi_adjust_cfa_offset -8\n.cfi_restore %rbp\n"
        "ret\n.cfi_endproc\n"
        "as_pointer:\n.cfi_startproc\n"
        "push %rbp\n.cfi_adjust_cfa_offset 8\n.cfi_rel_offset %rbp, 0\n"
        "mov %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
        "sub $32, %rsp\n"
        "call passes_2\n"
        "leave\n.cfi_def_cfa %rsp, 8\n.cfi_restore %rbp\n"
        "ret\n.cfi_endproc\n"
        "passes_2:\n.cfi_startproc\n"
        "sub $8, %rsp\n.cfi_adjust_cfa_offset 8\n"
        "call passes_1\n"
        "add $8, %rsp\n.cfi_adjust_cfa_offset -8\n"
        "ret\n.cfi_endproc\n"
        "passes_1:\n.cfi_startproc\n"
        "sub $8, %rsp\n.cfi_adjust_cfa_offset 8\n"
        "call *%rsi\n"
        "add $8, %rsp\n.cfi_adjust_cfa_offset -8\n"
        "ret\n.cfi_endproc\n");
void as_value(unsigned long, event_fn);
void as_pointer(unsigned long, event_fn);

// Bit i of `pattern`: rbp is needed in round i.
NOINLINE int rbp_varies(unsigned long pattern, int rounds, event_fn event) {
    for (int i = 0; i < rounds; i++) {
        void (*function)(unsigned long, event_fn) = pattern >> i & 1 ? as_pointer : as_value;
        USED(&function);
        function(0x1000UL + 8 * i, event);
    }
    return 1;
}

// Two frames that need rbp; the inner one lies 128 bytes deeper when `deep`, at
// which its caller is left from another place, while the frames inside it lie
// where they always do. What the other call left on the stack is still there.
__asm__(".text\n"
        // rdi: deep, rsi: event
        "moves:\n.cfi_startproc\n"
        "push %rbp\n.cfi_adjust_cfa_offset 8\n.cfi_rel_offset %rbp, 0\n"
        "mov %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
        "test %rdi, %rdi\n"
        "jz 1f\n"
        "sub $128, %rsp\n"
        "mov $256, %eax\n"
        "call moved\n"
        "jmp 2f\n"
        "1:\n"
        "mov $384, %eax\n"
        "call moved\n"
        "2:\n"
        "leave\n.cfi_def_cfa %rsp, 8\n.cfi_restore %rbp\n"
        "ret\n.cfi_endproc\n"
        "moved:\n.cfi_startproc\n"
        "push %rbp\n.cfi_adjust_cfa_offset 8\n.cfi_rel_offset %rbp, 0\n"
        "mov %rsp, %rbp\n.cfi_def_cfa_register %rbp\n"
        "sub %rax, %rsp\n"
        "call passes_2\n"
        "leave\n.cfi_def_cfa %rsp, 8\n.cfi_restore %rbp\n"
        "ret\n.cfi_endproc\n");
void moves(unsigned long, event_fn);

NOINLINE int rbp_moves(unsigned long pattern, int rounds, event_fn event) {
    for (int i = 0; i < rounds; i++)
        moves(pattern >> i & 1, event);
    return 1;
}
