/* Try blocks from C; compiled and run by tests/c_abi. The first argument is the path of a swap file to make. With a second argument, one way of misusing blocks, of
 * which the library must tell; otherwise exits with the line of the first wrong result. */
#include "lightswap.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "try.c:%d: %s; last error: %s\n", __LINE__, #condition, lsw_last_error()); \
            exit(1); \
        } \
    } while (0)

enum { PAGE = 4096, NUM_PAGES = 200, DAMAGED = 7 };

static char *base, url[4096];
static int file;
static size_t region_len;

/* The same again mends it. */
static void damage(void) {
    char byte;
    CHECK(pread(file, &byte, 1, DAMAGED * PAGE + 100) == 1);
    byte ^= 1;
    CHECK(pwrite(file, &byte, 1, DAMAGED * PAGE + 100) == 1);
}

static void check_error(const lsw_error *error, const char *address) {
    CHECK(error->cause == LSW_CAUSE_HASH && error->errno_value == 0);
    CHECK(error->address == address && error->region == base && error->region_len == region_len);
    CHECK(strcmp(error->backend, url) == 0);
}

static int read_page(size_t page) {
    return *(volatile char *)(base + page * PAGE + 50);
}

/* Below the function that has the block. */
static __attribute__((noinline)) int sum(size_t first, size_t last) {
    volatile int total = 0;
    for (size_t page = first; page < last; page++)
        total += read_page(page);
    return total;
}

static void check_blocks(void *arg) {
    volatile int num_caught = 0, num_done = 0;
    lsw_try outer, inner;
    (void)arg;
    for (volatile int i = 0; i < 3; i++) {
        LSW_TRY(&outer) {
            CHECK(sum(0, DAMAGED) == DAMAGED);
            lsw_yield();
            LSW_TRY(&inner) {
                sum(0, NUM_PAGES);
                num_done += 100;
            } LSW_CATCH(&inner, error) {
                check_error(error, base + DAMAGED * PAGE + 50);
                num_caught++;
            }
            lsw_yield();
            LSW_TRY(&inner) {
                CHECK(sum(DAMAGED + 1, NUM_PAGES) == NUM_PAGES - DAMAGED - 1);
                num_done++;
            } LSW_CATCH(&inner, error) {
                CHECK(error == NULL);
            }
            num_done++;
            sum(DAMAGED, DAMAGED + 1);
            num_done += 100;
        } LSW_CATCH(&outer, error) {
            check_error(error, base + DAMAGED * PAGE + 50);
            num_caught++;
        }
    }
    CHECK(num_caught == 6 && num_done == 6);
}

static int catch_and_return(void) {
    lsw_try block;
    LSW_TRY(&block) {
        sum(0, NUM_PAGES);
    } LSW_CATCH(&block, error) {
        return (int)error->cause;
    }
    return 0;
}

static void check_calls(void *arg) {
    lsw_error error;
    char bytes[10];
    int order;
    (void)arg;
    CHECK(!lsw_last_failure(NULL));
    CHECK(lsw_touch(base + DAMAGED * PAGE, 1) == LSW_ERR_SWAP_IN && lsw_last_failure(&error));
    check_error(&error, base + DAMAGED * PAGE);
    CHECK(lsw_touch(base + region_len, 1) == LSW_ERR_NOT_IN_REGION && !lsw_last_failure(&error));
    CHECK(lsw_copy(bytes, base + DAMAGED * PAGE, 10) == LSW_ERR_SWAP_IN && lsw_last_failure(&error));
    CHECK(lsw_compare(bytes, base + DAMAGED * PAGE, 10, &order) == LSW_ERR_SWAP_IN && lsw_last_failure(&error));
    CHECK(lsw_compare(bytes, bytes, 10, NULL) == LSW_ERR_INVALID_ARGUMENT && !lsw_last_failure(&error));
    int pipe_ends[2];
    CHECK(pipe(pipe_ends) == 0);
    CHECK(lsw_write(pipe_ends[1], base + DAMAGED * PAGE, 10) == -1 && errno == EIO && lsw_last_failure(&error));
    CHECK(lsw_pin_resident(base + DAMAGED * PAGE, 1) == LSW_ERR_BUSY && !lsw_last_failure(&error));
    CHECK(lsw_write(pipe_ends[1], base + DAMAGED * PAGE, 10) == -1 && lsw_last_failure(&error));
    CHECK(lsw_write(-1, bytes, 10) == -1 && errno == EBADF && !lsw_last_failure(&error));
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    CHECK(lsw_discard(base + 1, PAGE) == LSW_ERR_INVALID_ARGUMENT && !lsw_last_failure(&error));
    CHECK(lsw_discard(base, PAGE / 2) == LSW_ERR_INVALID_ARGUMENT && lsw_discard(NULL, PAGE) == LSW_ERR_NOT_IN_REGION);
    CHECK(lsw_pin(base, 1) == LSW_OK && lsw_discard(base, PAGE) == LSW_ERR_BUSY && lsw_unpin(base, 1) == LSW_OK);
}

static lsw_try shared, other;

static __attribute__((noinline)) void leave_open(lsw_try *block) {
    LSW_TRY(block) {
        return;
    } LSW_CATCH(block, error) {
        CHECK(error == NULL);
    }
}

static void leave_open_and_end(void *arg) {
    leave_open(arg);
}

static void begin_shared(void *arg) {
    (void)arg;
    lsw_try_begin(&shared, __builtin_frame_address(0));
    lsw_yield();
    lsw_try_end(&shared);
}

static void end_shared(void *arg) {
    (void)arg;
    lsw_try_end(&shared);
}

static void misuse(const char *how) {
    lsw_try block;
    if (strcmp(how, "reuse") == 0) {
        LSW_TRY(&block) {
            LSW_TRY(&block) {
                sum(0, 1);
            } LSW_CATCH(&block, error) {
                CHECK(error == NULL);
            }
        } LSW_CATCH(&block, error) {
            CHECK(error == NULL);
        }
    } else if (strcmp(how, "return-and-again") == 0) {
        leave_open(&shared);
        leave_open(&shared);
    } else if (strcmp(how, "return-and-begin") == 0) {
        leave_open(&shared);
        LSW_TRY(&block) {
            sum(0, 1);
        } LSW_CATCH(&block, error) {
            CHECK(error == NULL);
        }
    } else if (strcmp(how, "return-within") == 0) {
        LSW_TRY(&block) {
            leave_open(&shared);
        } LSW_CATCH(&block, error) {
            CHECK(error == NULL);
        }
    } else if (strcmp(how, "return-and-fail") == 0) {
        leave_open(&shared);
        (void)*(volatile char *)(base + DAMAGED * PAGE);
    } else if (strcmp(how, "overwritten") == 0) {
        leave_open(&shared);
        memset(&shared, 0, sizeof shared);
        LSW_TRY(&other) {
            sum(0, 1);
        } LSW_CATCH(&other, error) {
            CHECK(error == NULL);
        }
    } else if (strcmp(how, "end-twice") == 0) {
        LSW_TRY(&block) {
            sum(0, 1);
        } LSW_CATCH(&block, error) {
            CHECK(error == NULL);
        }
        lsw_try_end(&block);
    } else if (strcmp(how, "lwt-ends") == 0) {
        CHECK(lsw_lwt_start(leave_open_and_end, &shared) == 0);
    } else if (strcmp(how, "other-lwt") == 0) {
        CHECK(lsw_lwt_start(begin_shared, NULL) == 1);
        CHECK(lsw_lwt_start(end_shared, NULL) == 0);
    } else {
        fprintf(stderr, "no such misuse: %s\n", how);
        exit(1);
    }
    fprintf(stderr, "not detected: %s\n", how);
    exit(0);
}

int main(int argc, char **argv) {
    lsw_config config = {.local_memory_bytes = 40 * PAGE, .backend_url = url, .io_timeout_ms = 20000};
    lsw_instance *instance = NULL;
    lsw_region *region = NULL, *filler = NULL;
    static const struct rlimit no_core = {0, 0};
    char *fill;
    setrlimit(RLIMIT_CORE, &no_core);
    CHECK(argc >= 2);
    snprintf(url, sizeof url, "file:%s", argv[1]);
    file = open(argv[1], O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(file >= 0 && ftruncate(file, 2 * NUM_PAGES * PAGE) == 0);
    if (lsw_open(&config, &instance) != LSW_OK) {
        printf("skipped: %s\n", lsw_last_error());
        return 0;
    }
    CHECK(lsw_region_create(instance, NUM_PAGES * PAGE, LSW_TRANSPARENT, &region) == LSW_OK);
    CHECK(lsw_region_create(instance, NUM_PAGES * PAGE, LSW_TRANSPARENT, &filler) == LSW_OK);
    base = lsw_region_base(region);
    region_len = lsw_region_len(region);
    fill = lsw_region_base(filler);
    for (size_t page = 0; page < NUM_PAGES; page++)
        base[page * PAGE + 50] = 1;
    for (size_t i = 0; i < 2 * NUM_PAGES; i++)
        fill[i % NUM_PAGES * PAGE] = (char)(i + 1);
    CHECK(!lsw_is_resident(base + DAMAGED * PAGE, 1));
    damage();
    CHECK(lsw_worker_enter(instance) == LSW_OK);
    if (argc > 2)
        misuse(argv[2]);
    check_blocks(NULL);
    CHECK(catch_and_return() == LSW_CAUSE_HASH);
    check_calls(NULL);
    for (int i = 0; i < 5; i++)
        CHECK(lsw_lwt_start(check_blocks, NULL) == 1);
    CHECK(lsw_lwt_start(check_calls, NULL) >= 0);
    CHECK(lsw_worker_run() == LSW_OK);
    damage();
    CHECK(read_page(DAMAGED) == 1);
    CHECK(lsw_discard(base + DAMAGED * PAGE, PAGE) == LSW_OK && read_page(DAMAGED) == 0);
    CHECK(lsw_worker_leave() == LSW_OK);
    CHECK(lsw_region_destroy(region) == LSW_OK && lsw_region_destroy(filler) == LSW_OK && lsw_close(instance) == LSW_OK);
    printf("all checks passed\n");
    return 0;
}
