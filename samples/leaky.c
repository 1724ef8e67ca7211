/* A small lookup server in miniature, with the leaks that such programs have.
 *
 *   cc -g -o target/leaky samples/leaky.c && leakscope run -- target/leaky
 *
 * What is lost:
 *   7 old configurations with 5 entries each   forgotten on reload
 *  23 requests of 31 bytes                      forgotten on the error path
 *   3 rings of 5 peers                          point at each other only
 *  11 messages                                  only a pointer into them is kept
 *   1 descriptor                                the log is opened twice
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- configuration: a list of names and values --------------------------- */

struct entry {
    struct entry *next;
    char *name, *value;
};

struct config {
    struct entry *first;
    int generation;
};

static struct config *active;

static void *must(void *block)
{
    if (!block)
        abort();
    return block;
}

static void add_entry(struct config *config, const char *name, const char *value)
{
    struct entry *entry = must(malloc(sizeof *entry));
    entry->name = must(strdup(name));
    entry->value = must(strdup(value));
    entry->next = config->first;
    config->first = entry;
}

static struct config *parse_config(int generation)
{
    static const char *const names[5] = {"listen", "workers", "cache", "log", "user"};
    struct config *config = must(calloc(1, sizeof *config));
    config->generation = generation;
    for (int i = 0; i < 5; i++) {
        char value[32];
        snprintf(value, sizeof value, "%s of generation %d", names[i], generation);
        add_entry(config, names[i], value);
    }
    return config;
}

static void free_config(struct config *config)
{
    while (config->first) {
        struct entry *entry = config->first;
        config->first = entry->next;
        free(entry->name);
        free(entry->value);
        free(entry);
    }
    free(config);
}

static void reload(int generation)
{
    /* The old one is dropped: free_config(active) is missing. */
    active = parse_config(generation);
}

/* ---- requests: all freed but those that fail ------------------------------ */

struct request {
    char text[31];
};

static struct request *new_request(int number)
{
    struct request *request = must(malloc(sizeof *request));
    snprintf(request->text, sizeof request->text, "GET /item/%d", number);
    return request;
}

static void finish_request(struct request *request)
{
    free(request);
}

static int lookup(const struct request *request, int number)
{
    return request->text[0] == 'G' && number % 11 != 7;
}

static int handle(int number)
{
    struct request *request = new_request(number);
    if (!lookup(request, number))
        return -1; /* not found: finish_request(request) is missing */
    finish_request(request);
    return 0;
}

/* ---- peers: a ring that nobody holds -------------------------------------- */

struct peer {
    struct peer *next;
    char address[40];
};

static void join_ring(struct peer *ring, int number)
{
    struct peer *peer = must(malloc(sizeof *peer));
    snprintf(peer->address, sizeof peer->address, "10.0.0.%d", number);
    peer->next = ring->next;
    ring->next = peer;
}

static void probe_peers(void)
{
    struct peer *ring = must(malloc(sizeof *ring));
    snprintf(ring->address, sizeof ring->address, "10.0.0.1");
    ring->next = ring;
    for (int i = 2; i <= 5; i++)
        join_ring(ring, i);
    /* Counted, compared, forgotten: the ring is never taken apart. */
}

/* ---- messages: what is kept points behind the header ---------------------- */

static const char *inbox[11];

static const char *receive(int number)
{
    char *message = must(malloc(67));
    snprintf(message, 67, "From: peer %d\n\nhello", number);
    /* Only the body is kept; nobody can free the message by it. */
    return strstr(message, "hello");
}

/* ---- the log -------------------------------------------------------------- */

static int open_log(void)
{
    return open("/dev/null", O_WRONLY | O_APPEND);
}

int main(void)
{
    int log = open_log();
    log = open_log(); /* the first one is still open */

    active = parse_config(0);
    for (int generation = 1; generation <= 7; generation++)
        reload(generation);

    int failed = 0;
    for (int number = 0; number < 251; number++)
        failed += handle(number) != 0;

    for (int i = 0; i < 3; i++)
        probe_peers();
    for (int i = 0; i < 11; i++)
        inbox[i] = receive(i);

    dprintf(log, "%d requests failed\n", failed);
    printf("generation %d, %d of 251 requests failed, last message: %s\n", active->generation, failed,
           inbox[10]);
    free_config(active);
    active = NULL;
    close(log);
    return 0;
}
