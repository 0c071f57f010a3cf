/* Worker threads: a connection's events run on LWTs, and the event loop shares the thread with the LWT scheduler. */
#include "memcached.h"
#include "lightswap_settings.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

/* File descriptors that an entered worker holds: ring, wake-up, and room for a backend's own. */
enum { FDS_PER_WORKER = 4 };

/* One run of a connection on an LWT; lives on that LWT's stack, which has the address of its pins as its value. */
struct lightswap_run {
    struct lightswap_pins pins;
    conn *c;                    /* NULL: closed meanwhile, the conn is no longer ours */
    void (*step)(conn *);
    bool parked;                /* its event was taken out of libevent */
    bool handed_back;           /* a side thread is done with it */
};

static __thread bool on_worker;

bool lightswap_on_worker(void) {
    return on_worker;
}

/* Handed off to a side thread: not to be put back into libevent. */
static bool is_away(const conn *c) {
    return c->state == conn_watch || c->state == conn_io_queue;
}

static void run_on_lwt(void *arg) {
    struct lightswap_run run = *(struct lightswap_run *)arg;
    run.c->lightswap_run = &run;
    lsw_lwt_set_value(&run.pins);
    run.step(run.c);
    while (run.c != NULL && run.handed_back) {
        run.handed_back = false;
        conn_worker_readd(run.c);
    }
    lightswap_drop_pins(&run.pins);
    if (run.c == NULL) {
        return;
    }
    run.c->lightswap_run = NULL;
    if (run.parked && !is_away(run.c) && event_add(&run.c->event, 0) == -1) {
        perror("event_add");
    }
}

static void refuse_entry(conn *c, enum lightswap_when_busy when_busy) {
    struct lightswap_run *run = c->lightswap_run;
    switch (when_busy) {
        case LIGHTSWAP_PARK:
            /* Events are level-triggered: left in, it would fire in every turn of the loop. */
            event_del(&c->event);
            run->parked = true;
            break;
        case LIGHTSWAP_SKIP:
            break;
        case LIGHTSWAP_LATER:
            run->handed_back = true;
            break;
    }
}

void lightswap_run_conn(conn *c, void (*step)(conn *), enum lightswap_when_busy when_busy) {
    if (!on_worker) {
        step(c); /* Lightswap is off, or this is a listener of the main thread. */
    } else if (c->lightswap_run != NULL) {
        refuse_entry(c, when_busy);
    } else {
        struct lightswap_run run = { .c = c, .step = step };
        if (lsw_lwt_start(run_on_lwt, &run) < 0) {
            step(c); /* No memory for one more stack: its faults block this worker, and nothing else is lost. */
        }
    }
}

void lightswap_detach_conn(conn *c) {
    if (c->lightswap_run != NULL) {
        c->lightswap_run->c = NULL;
        c->lightswap_run = NULL;
    }
}

void lightswap_worker_help(void) {
    if (lsw_worker_poll() > 0) {
        return;
    }
    /* The holder waits for I/O or runs on another CPU; its unlock does not signal our descriptor, so wait only briefly. */
    struct pollfd pfd = { .fd = lsw_worker_fd(), .events = POLLIN };
    const struct timespec wait = { .tv_nsec = 50 * 1000 };
    ppoll(&pfd, 1, &wait, NULL);
}

static void die(const char *what) {
    fprintf(stderr, "memcached: %s: %s\n", what, lsw_last_error());
    exit(EXIT_FAILURE);
}

/* The loop polls after every turn, so being woken is all there is to do. */
static void on_wake(evutil_socket_t fd, short which, void *arg) {
    (void)fd;
    (void)which;
    (void)arg;
}

void lightswap_worker_loop(struct event_base *base) {
    struct event wake;
    event_set(&wake, lsw_worker_fd(), EV_READ | EV_PERSIST, on_wake, NULL);
    event_base_set(base, &wake);
    if (event_add(&wake, 0) == -1) {
        die("cannot watch for page completions");
    }
    int num_ready = 0;
    for (;;) {
        event_base_loop(base, EVLOOP_ONCE | (num_ready > 0 ? EVLOOP_NONBLOCK : 0));
        if (event_base_got_exit(base)) {
            break;
        }
        num_ready = lsw_worker_poll();
        if (num_ready < 0) {
            die("worker failed");
        }
    }
    /* Asked to stop: what is suspended still has locks and references, and its conn is about to be freed. */
    if (lsw_worker_run() < 0) {
        die("worker failed");
    }
    event_del(&wake);
}

void lightswap_worker_start(void) {
    if (!lightswap_enabled) {
        return;
    }
    if (lightswap_enter() < 0) {
        die("cannot start a worker");
    }
    on_worker = true;
    STATS_LOCK();
    stats_state.reserved_fds += FDS_PER_WORKER;
    STATS_UNLOCK();
}

void lightswap_worker_stop(void) {
    if (on_worker) {
        on_worker = false;
        lsw_worker_leave();
    }
}
