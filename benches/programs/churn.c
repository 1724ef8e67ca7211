/* Tight malloc/free churn at call depth 10.
 * usage: churn THREADS PAIRS_PER_THREAD
 * Each thread keeps 64 blocks of 16..271 bytes and replaces them in turn. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define KEPT 64

static long pairs;

static void *__attribute__((noinline)) work(int depth, long n) {
    if (depth > 0) {
        void *result = work(depth - 1, n);
        __asm__ volatile("" : : "r"(result) : "memory");
        return result;
    }
    void *kept[KEPT] = {0};
    uint32_t lot = 1;
    for (long i = 0; i < n; i++) {
        int slot = i % KEPT;
        free(kept[slot]);
        lot = lot * 1664525 + 1013904223;
        char *p = malloc(16 + (lot >> 24));
        p[0] = (char)i;
        kept[slot] = p;
    }
    for (int i = 0; i < KEPT; i++) free(kept[i]);
    return NULL;
}

static void *start(void *arg) {
    return work(8, pairs);
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    pairs = argc > 2 ? atol(argv[2]) : 10000000;
    pthread_t ids[64];
    for (int i = 0; i < threads && i < 64; i++) pthread_create(&ids[i], NULL, start, NULL);
    for (int i = 0; i < threads && i < 64; i++) pthread_join(ids[i], NULL);
    return 0;
}
