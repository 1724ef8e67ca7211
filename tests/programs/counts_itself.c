// Threads allocate, move, lose and free blocks of all sizes, in each other's
// arenas, and the program keeps count. At each stage it stands still and
// writes: blocks and bytes that it holds, blocks and bytes that it lost; then
// it waits for a line. Bytes are usable ones. At the first stage it has no block
// of its own, so what is found then is the C library's.
//
// It needs nothing newer than glibc 2.31.
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 7, SLOTS = 1999, STEPS = 20011, STAGES = 3 };
static struct slot { pthread_mutex_t lock; void *block; } slots[SLOTS];
static pthread_barrier_t barrier;
static long lost_blocks, lost_bytes;

static size_t some_size(unsigned *seed) {
    unsigned kind = rand_r(seed) % 1000;
    if (kind < 700) return rand_r(seed) % 200;
    if (kind < 950) return rand_r(seed) % 1100;
    if (kind < 990) return rand_r(seed) % 20000;
    if (kind < 998) return rand_r(seed) % 127000;
    return 140000 + rand_r(seed) % 400000;
}
/* Nothing that lay there before may hold another block. */
static void *cleared(void *block) {
    if (!block) abort();
    return memset(block, 0, malloc_usable_size(block));
}
static void *some_block(unsigned *seed) {
    size_t size = some_size(seed);
    void *aligned = NULL;
    switch (rand_r(seed) % 8) {
    case 0: return cleared(calloc(1, size));
    case 1:
        if (posix_memalign(&aligned, 16u << rand_r(seed) % 9, size)) abort();
        return cleared(aligned);
    default: return cleared(malloc(size));
    }
}
static __attribute__((noinline)) void step(unsigned *seed) {
    struct slot *slot = &slots[rand_r(seed) % SLOTS];
    pthread_mutex_lock(&slot->lock);
    if (!slot->block) {
        slot->block = some_block(seed);
    } else {
        unsigned what = rand_r(seed) % 16;
        if (what == 0) {
            __atomic_add_fetch(&lost_blocks, 1, __ATOMIC_RELAXED);
            __atomic_add_fetch(&lost_bytes, (long)malloc_usable_size(slot->block), __ATOMIC_RELAXED);
            slot->block = NULL;
        } else if (what < 5) {
            slot->block = cleared(realloc(slot->block, some_size(seed) + 1));
        } else {
            free(slot->block);
            slot->block = NULL;
        }
    }
    pthread_mutex_unlock(&slot->lock);
}
static __attribute__((noinline)) void forget(void) {
    volatile char stack[16384];
    memset((char *)stack, 0, sizeof stack);
    void *volatile last = malloc(29);
    free(last);
    last = NULL;
}
static void *work(void *number) {
    unsigned seed = (unsigned)(long)number;
    free(malloc(1));
    for (int stage = 0; stage < STAGES; stage++) {
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        for (int i = 0; i < STEPS; i++) step(&seed);
        forget();
        pthread_barrier_wait(&barrier);
    }
    pthread_barrier_wait(&barrier);
    /* Those with an odd number end. */
    if ((long)number % 2 == 0) pause();
    return NULL;
}
static void told(void) {
    long blocks = 0, bytes = 0;
    for (int i = 0; i < SLOTS; i++)
        if (slots[i].block) {
            blocks++;
            bytes += (long)malloc_usable_size(slots[i].block);
        }
    char line[200];
    int len = snprintf(line, sizeof line, "%ld %ld %ld %ld\n", blocks, bytes, lost_blocks, lost_bytes);
    if (write(1, line, len) != len) abort();
    char byte;
    do {
        if (read(0, &byte, 1) != 1) _exit(0);
    } while (byte != '\n');
}
int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < SLOTS; i++) pthread_mutex_init(&slots[i].lock, NULL);
    pthread_barrier_init(&barrier, NULL, THREADS + 1);
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    for (int stage = 0; stage < STAGES; stage++) {
        pthread_barrier_wait(&barrier);
        told();
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        told();
    }
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < THREADS; i += 2) pthread_join(threads[i], NULL);
    told();
    return 0;
}
