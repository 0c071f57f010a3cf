/* Parked clients. A client whose command would meet missing pages waits, blocked as by CLIENT PAUSE, while an LWT brings them in; then the command is run
 * anew from the top of processCommand. The pages stay pinned until it has run. How much is pinned for waiting clients is bounded; who finds
 * no room waits for its turn, first come, first served. */
#include "lightswap_park.h"
#include "lightswap_internal.h"

enum {
    /* The library lets half of local memory be pinned, less its own I/O buffers. */
    MEMORY_NUMERATOR = 3,
    MEMORY_DENOMINATOR = 8,
    MOST_PINNED_BYTES = 128 << 20,  /* as the library has it */
    /* Parked clients take this part of that at most. The rest is for commands that run, and for system calls. */
    PARKED_NUMERATOR = 3,
    PARKED_DENOMINATOR = 4,
    /* One client takes this part at most: with the pins of the command that runs, twice that fits beside the parked ones. */
    CLIENT_DENOMINATOR = 8,
    /* LWTs at a time. Each has a stack. */
    MOST_AT_WORK = 1024,
    /* Ranges that are asked for ahead of the one that is waited for, and how often that is done again: a request is dropped when there is no free buffer. */
    AHEAD_RANGES = 128,
    AHEAD_AGAIN = 16,
    WINDOW_BYTES = 256 * 1024,
    /* Others may pin as well; after so many milliseconds the rest is only touched. */
    PIN_ATTEMPTS = 200,
    PIN_RETRY_US = 1000,
};

enum waiter_state {
    QUEUED,     /* waits for its turn */
    AT_WORK,    /* has an LWT */
    DONE,       /* in the list of those whose LWT has ended */
    GRANTED,    /* the client may run, or runs */
};

struct lightswap_waiter {
    client *client;                         /* NULL: gone, or not parked */
    enum waiter_state state;
    bool is_abandoned;                      /* nobody wants it any more */
    unsigned restarts;
    size_t num_pins, num_lost;
    struct lightswap_waiter *next, *prev;   /* in the queue; next also in the list of those that are done */
    size_t num_ranges;
    struct lightswap_range ranges[];
};

struct list_of_waiters {
    struct lightswap_waiter *first, *last;
};

struct lightswap_park_counters lightswap_park_counters;

static struct list_of_waiters queue;
/* LWTs append to it; they run when the main thread polls, or waits for a page. */
static struct list_of_waiters done;
static size_t num_queued;
/* Waiters that have pins or will, but for those in the queue. */
static size_t num_holders, num_held_pins;
/* What LWTs want to read has been submitted. */
static bool has_asked = true;

static void append(struct list_of_waiters *list, struct lightswap_waiter *waiter) {
    waiter->next = NULL;
    waiter->prev = list->last;
    *(list->last != NULL ? &list->last->next : &list->first) = waiter;
    list->last = waiter;
}

static void take_out(struct list_of_waiters *list, struct lightswap_waiter *waiter) {
    *(waiter->prev != NULL ? &waiter->prev->next : &list->first) = waiter->next;
    *(waiter->next != NULL ? &waiter->next->prev : &list->last) = waiter->prev;
}

/* Pins count, not pages: what has several values counts several times. */
static size_t most_pins(void) {
    const size_t bytes = (size_t)lightswap_settings.memory_bytes / MEMORY_DENOMINATOR * MEMORY_NUMERATOR;
    return (bytes < MOST_PINNED_BYTES ? bytes : MOST_PINNED_BYTES) / LIGHTSWAP_PAGE_BYTES;
}

size_t lightswap_most_pins_of_client(void) {
    return most_pins() / CLIENT_DENOMINATOR;
}

/* ---- What an LWT does: it allocates nothing and touches nothing of the server's ---- */

static void ask_ahead(struct lightswap_waiter *waiter, size_t from) {
    const size_t end = waiter->num_ranges - from < AHEAD_RANGES ? waiter->num_ranges : from + AHEAD_RANGES;
    for (size_t i = from; i < end; i++) {
        const struct lightswap_range *range = &waiter->ranges[i];
        if (range->state == LIGHTSWAP_MISSING || range->state == LIGHTSWAP_LOOSE) {
            lsw_prefetch(range->addr, range->len < WINDOW_BYTES ? range->len : WINDOW_BYTES);
        }
    }
}

static uint8_t cause_of_failure(void) {
    struct lsw_error error;
    return lsw_last_failure(&error) ? (uint8_t)error.cause : 0;
}

bool lightswap_touch(struct lightswap_range *range) {
    range->state = LIGHTSWAP_UNPINNED;
    for (size_t done_bytes = 0; done_bytes < range->len; done_bytes += WINDOW_BYTES) {
        const size_t left = range->len - done_bytes;
        const size_t len = left < WINDOW_BYTES ? left : WINDOW_BYTES;
        if (left > len) {
            lsw_prefetch(range->addr + done_bytes + len, left - len < WINDOW_BYTES ? left - len : WINDOW_BYTES);
        }
        if (lightswap_settle(range->addr + done_bytes, len) != LSW_OK) {
            range->state = LIGHTSWAP_LOST;
            range->cause = cause_of_failure();
            return false;
        }
    }
    return true;
}

static void pin(struct lightswap_range *range, int *num_attempts) {
    int result = lsw_pin(range->addr, range->len);
    while (result == LSW_ERR_PIN_LIMIT && *num_attempts < PIN_ATTEMPTS && lsw_on_lwt()) {
        ++*num_attempts;
        lsw_sleep_us(PIN_RETRY_US);
        result = lsw_pin(range->addr, range->len);
    }
    if (result == LSW_ERR_PIN_LIMIT) {
        (void)lightswap_touch(range);
    } else if (result == LSW_OK) {
        range->state = LIGHTSWAP_PINNED;
    } else {
        range->state = LIGHTSWAP_LOST;
        range->cause = cause_of_failure();
    }
}

static void fetch(struct lightswap_waiter *waiter) {
    int num_attempts = 0;
    for (size_t i = 0; i < waiter->num_ranges && !waiter->is_abandoned; i++) {
        if (i % AHEAD_AGAIN == 0) {
            ask_ahead(waiter, i);
        }
        struct lightswap_range *range = &waiter->ranges[i];
        if (range->state == LIGHTSWAP_MISSING) {
            pin(range, &num_attempts);
        } else if (range->state == LIGHTSWAP_LOOSE) {
            (void)lightswap_touch(range);
        }
        waiter->num_lost += range->state == LIGHTSWAP_LOST;
    }
}

static void run_lwt(void *arg) {
    struct lightswap_waiter *waiter = arg;
    fetch(waiter);
    waiter->state = DONE;
    append(&done, waiter);
}

/* ---- Waiters ---- */

static struct lightswap_waiter *new_waiter(const struct lightswap_range *ranges, size_t num_ranges, unsigned restarts) {
    struct lightswap_waiter *waiter = zmalloc(sizeof(*waiter) + num_ranges * sizeof(*ranges));
    *waiter = (struct lightswap_waiter){ .state = GRANTED, .restarts = restarts, .num_ranges = num_ranges };
    memcpy(waiter->ranges, ranges, num_ranges * sizeof(*ranges));
    for (size_t i = 0; i < num_ranges; i++) {
        if (ranges[i].state == LIGHTSWAP_MISSING || ranges[i].state == LIGHTSWAP_PINNED) {
            waiter->num_pins += lightswap_pages_of(ranges[i].addr, ranges[i].len);
        }
    }
    return waiter;
}

static void begin_holding(const struct lightswap_waiter *waiter) {
    num_holders++;
    num_held_pins += waiter->num_pins;
}

static void drop_pins(struct lightswap_waiter *waiter, enum lightswap_range_state new_state) {
    for (size_t i = 0; i < waiter->num_ranges; i++) {
        struct lightswap_range *range = &waiter->ranges[i];
        if (range->state == LIGHTSWAP_PINNED) {
            lsw_unpin(range->addr, range->len);
            range->state = new_state;
        }
    }
}

void lightswap_waiter_release(struct lightswap_waiter *waiter) {
    if (waiter == NULL) {
        return;
    }
    drop_pins(waiter, LIGHTSWAP_UNPINNED);
    num_holders--;
    num_held_pins -= waiter->num_pins;
    zfree(waiter);
}

static bool has_room(const struct lightswap_waiter *waiter) {
    return num_holders == 0 ||
        (num_holders < MOST_AT_WORK && num_held_pins + waiter->num_pins <= most_pins() / PARKED_DENOMINATOR * PARKED_NUMERATOR);
}

/* Starts its LWT; false if there is none to be had. */
static bool begin_work(struct lightswap_waiter *waiter) {
    begin_holding(waiter);
    waiter->state = AT_WORK;
    has_asked = false;
    if (lsw_lwt_start(run_lwt, waiter) >= 0) {
        return true;
    }
    num_holders--;
    num_held_pins -= waiter->num_pins;
    return false;
}

struct lightswap_waiter *lightswap_waiter_start(const struct lightswap_range *ranges, size_t num_ranges, unsigned restarts, enum lightswap_fetch *result) {
    struct lightswap_waiter *waiter = new_waiter(ranges, num_ranges, restarts);
    *result = LIGHTSWAP_WAITS;
    if (num_queued > 0 || !has_room(waiter)) {
        drop_pins(waiter, LIGHTSWAP_MISSING);
        waiter->state = QUEUED;
        append(&queue, waiter);
        num_queued++;
        return waiter;
    }
    if (!begin_work(waiter)) {
        zfree(waiter);
        return NULL;
    }
    if (waiter->state == DONE) {
        /* It did not have to wait. */
        take_out(&done, waiter);
        waiter->state = GRANTED;
        *result = LIGHTSWAP_HAS_ALL;
    }
    return waiter;
}

struct lightswap_waiter *lightswap_waiter_run(const struct lightswap_range *ranges, size_t num_ranges, unsigned restarts) {
    struct lightswap_waiter *waiter = new_waiter(ranges, num_ranges, restarts);
    begin_holding(waiter);
    fetch(waiter);
    return waiter;
}

void lightswap_waiter_park(struct lightswap_waiter *waiter, client *c) {
    waiter->client = c;
    c->lightswap_waiter = waiter;
    c->bpop.timeout = 0;
    blockClient(c, BLOCKED_SWAP);
    lightswap_park_counters.parks++;
}

unsigned lightswap_waiter_restarts(const struct lightswap_waiter *waiter) {
    return waiter->restarts;
}

const struct lightswap_range *lightswap_waiter_lost(const struct lightswap_waiter *waiter, const char *addr, size_t len) {
    for (size_t i = 0; waiter->num_lost > 0 && i < waiter->num_ranges; i++) {
        const struct lightswap_range *range = &waiter->ranges[i];
        if (range->state == LIGHTSWAP_LOST && range->addr < addr + len && addr < range->addr + range->len) {
            return range;
        }
    }
    return NULL;
}

/* ---- Clients ---- */

void lightswap_forget(client *c) {
    struct lightswap_waiter *waiter = c->lightswap_waiter;
    if (waiter == NULL) {
        return;
    }
    c->lightswap_waiter = NULL;
    waiter->client = NULL;
    waiter->is_abandoned = true;
    if (c->flags & CLIENT_BLOCKED && c->btype == BLOCKED_SWAP) {
        unblockClient(c);
    }
    /* A master that is kept for a partial resynchronization gets the command again. */
    c->flags &= ~CLIENT_PENDING_COMMAND;
    if (waiter->state == GRANTED) {
        lightswap_waiter_release(waiter);
    } else if (waiter->state == QUEUED) {
        take_out(&queue, waiter);
        num_queued--;
        zfree(waiter);
    }
    /* Else its LWT, or lightswap_unpark, is about to find out. */
}

void lightswap_command_processed(client *c) {
    if (c->flags & CLIENT_BLOCKED && c->btype == BLOCKED_SWAP) {
        return;
    }
    /* It was turned away before it came to use what it had waited for, or has to wait for something else. */
    struct lightswap_waiter *waiter = c->lightswap_waiter;
    c->lightswap_waiter = NULL;
    lightswap_waiter_release(waiter);
}

/* Those at the head of the queue that find room. */
static void start_queued(void) {
    while (queue.first != NULL && has_room(queue.first)) {
        struct lightswap_waiter *waiter = queue.first;
        take_out(&queue, waiter);
        num_queued--;
        if (!begin_work(waiter)) {
            /* No stack for an LWT: the client runs as it is, and finds out what to do. */
            begin_holding(waiter);
            waiter->state = DONE;
            append(&done, waiter);
        }
    }
}

void lightswap_unpark(void) {
    if (!lightswap_enabled) {
        return;
    }
    /* This turn has polled already. */
    has_asked = true;
    lightswap_watch_pressure();
    start_queued();
    while (done.first != NULL) {
        struct lightswap_waiter *waiter = done.first;
        take_out(&done, waiter);
        waiter->state = GRANTED;
        if (waiter->client != NULL) {
            unblockClient(waiter->client);
        } else {
            lightswap_waiter_release(waiter);
        }
    }
}

void lightswap_ask(void) {
    if (!lightswap_enabled) {
        return;
    }
    start_queued();
    int num_ready = 0;
    if (!has_asked) {
        has_asked = true;
        num_ready = lsw_worker_poll();
        if (num_ready < 0) {
            serverPanic("Lightswap's worker failed: %s", lsw_last_error());
        }
    }
    if (num_ready > 0 || done.first != NULL) {
        aeSetDontWait(server.el, 1);
    }
}

void lightswap_park_visit(void (*visit)(void *arg, const char *name, uint64_t value), void *arg) {
    const struct lightswap_park_counters *counters = &lightswap_park_counters;
    visit(arg, "parked_clients", server.blocked_clients_by_type[BLOCKED_SWAP]);
    visit(arg, "parked_clients_queued", num_queued);
    visit(arg, "parks", counters->parks);
    visit(arg, "restarts", counters->restarts);
    visit(arg, "synchronous_runs", counters->synchronous_runs);
    visit(arg, "oversized_runs", counters->oversized_runs);
    visit(arg, "rejections", counters->rejections);
    visit(arg, "dropped_keys", counters->dropped_keys);
    visit(arg, "hidden_keys", counters->hidden_keys);
    visit(arg, "failed_runs", counters->failed_runs);
}
