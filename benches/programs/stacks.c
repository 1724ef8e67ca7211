/* As many distinct call stacks as leaves of a binary tree of this depth.
 * usage: stacks DEPTH
 * Each inner call is made from one of two places, so the stacks have
 * 2^(DEPTH+1) - 1 distinct frames; each leaf allocates once and frees. Says
 * "ready" before and after and waits for a line each time. */
#include <stdio.h>
#include <stdlib.h>

static void ready(void) {
    puts("ready");
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF;) c = getchar();
}

static void __attribute__((noinline)) grow(int depth) {
    if (depth == 0) {
        void *volatile block = malloc(24);
        free(block);
        return;
    }
    grow(depth - 1);
    __asm__ volatile("" : : : "memory");
    grow(depth - 1);
    __asm__ volatile("" : : : "memory");
}

int main(int argc, char **argv) {
    int depth = argc > 1 ? atoi(argv[1]) : 19;
    if (depth < 0 || depth > 30) return 2;
    ready();
    grow(depth);
    ready();
    return 0;
}
