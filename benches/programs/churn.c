/* malloc/free churn at call depth 10.
 * usage: churn THREADS PAIRS_PER_THREAD
 * Each thread keeps 10 000 blocks of 16..1023 bytes and replaces them at random.
 * A new block is written whole and an old one read whole, about 100 ns of work
 * for each pair; each allocation is reached by a fresh descent through ten
 * functions (main or the thread's start is the first). */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEPT 10000

static long pairs;

/* The barrier after the call keeps it from becoming a jump. */
#define LEVEL(name, next)                                      \
    static void *__attribute__((noinline)) name(size_t size) { \
        void *block = next(size);                              \
        __asm__ volatile("" : "+r"(block) : : "memory");       \
        return block;                                          \
    }

LEVEL(level10, malloc)
LEVEL(level9, level10)
LEVEL(level8, level9)
LEVEL(level7, level8)
LEVEL(level6, level7)
LEVEL(level5, level6)
LEVEL(level4, level5)
LEVEL(level3, level4)
LEVEL(level2, level3)

/* One word after the other, as a parser or a hash reads. */
static uint64_t __attribute__((noinline)) sum(const void *block, size_t size) {
    uint64_t result = size;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, (const char *)block + i, 8);
        result = (result ^ word) + (result << 1);
    }
    return result;
}

static void *start(void *unused) {
    (void)unused;
    void **kept = calloc(KEPT, sizeof *kept);
    uint16_t *sizes = calloc(KEPT, sizeof *sizes);
    if (!kept || !sizes) abort();
    uint64_t total = 0;
    uint64_t lot = 0x9e3779b97f4a7c15;
    for (long i = 0; i < pairs; i++) {
        lot ^= lot << 13;
        lot ^= lot >> 7;
        lot ^= lot << 17;
        size_t slot = (lot >> 32) % KEPT;
        size_t size = 16 + (lot & 1023) % 1008;
        if (kept[slot]) total += sum(kept[slot], sizes[slot]);
        free(kept[slot]);
        kept[slot] = level2(size);
        sizes[slot] = (uint16_t)size;
        if (!kept[slot]) abort();
        memset(kept[slot], (int)i, size);
    }
    for (int i = 0; i < KEPT; i++) free(kept[i]);
    free(kept);
    free(sizes);
    __asm__ volatile("" : : "r"(total));
    return NULL;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    pairs = argc > 2 ? atol(argv[2]) : 5000000;
    if (threads < 1 || threads > 64) return 2;
    if (threads == 1) {
        start(NULL);
        return 0;
    }
    pthread_t ids[64];
    for (int i = 0; i < threads; i++)
        if (pthread_create(&ids[i], NULL, start, NULL)) abort();
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
    return 0;
}
