/* A list of blocks, all live and reachable at the end.
 * usage: live BLOCKS SIZE
 * Says "ready" before and after it makes them and waits for a line each time
 * (the end of its input will do); last it prints the monotonic clock, in
 * nanoseconds, as main ends. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct block {
    struct block *next;
};

struct block *head;

static void ready(void) {
    puts("ready");
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF;) c = getchar();
}

int main(int argc, char **argv) {
    long blocks = argc > 1 ? atol(argv[1]) : 1000000;
    long size = argc > 2 ? atol(argv[2]) : 48;
    if (size < (long)sizeof(struct block)) return 2;
    ready();
    for (long i = 0; i < blocks; i++) {
        struct block *block = malloc(size);
        if (!block) abort();
        block->next = head;
        head = block;
    }
    ready();
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    return 0;
}
