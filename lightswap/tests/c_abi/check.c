/* Every function of the C ABI with arguments good and bad; compiled and run by tests/c_abi. Exits with the line of the first wrong result. */
#include "lightswap.h"
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "check.c:%d: %s; last error: %s\n", __LINE__, #condition, lsw_last_error()); \
            exit(1); \
        } \
    } while (0)

static void check_texts(void) {
    static const int all[] = {LSW_ERR_INVALID_ARGUMENT, LSW_ERR_BACKEND_URL, LSW_ERR_BACKEND,   LSW_ERR_NO_USERFAULTFD,
                              LSW_ERR_NO_IO_URING,      LSW_ERR_NO_MEMORY,   LSW_ERR_NO_SPACE,  LSW_ERR_PIN_LIMIT,
                              LSW_ERR_NOT_IN_REGION,    LSW_ERR_NOT_A_WORKER, LSW_ERR_BUSY,     LSW_ERR_SWAP_IN};
    CHECK(strcmp(lsw_status_text(LSW_OK), "success") == 0);
    for (int i = 0; i < 12; i++) {
        CHECK(all[i] == -1 - i);
        CHECK(strlen(lsw_status_text(all[i])) > 4 && strcmp(lsw_status_text(all[i]), "unknown status") != 0);
        for (int j = 0; j < i; j++)
            CHECK(strcmp(lsw_status_text(all[i]), lsw_status_text(all[j])) != 0);
    }
    CHECK(strcmp(lsw_status_text(-13), "unknown status") == 0 && strcmp(lsw_status_text(1), "unknown status") == 0);
}

static void nothing(void *arg) {
    (void)arg;
}

static void check_bad_arguments(void) {
    lsw_instance *instance = NULL;
    lsw_config config = {0};
    uint64_t bytes = 7;
    CHECK(strcmp(lsw_last_error(), "") == 0);
    CHECK(lsw_open(NULL, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "NULL"));
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "backend_url"));
    config.backend_url = "memory:?size=1MiB";
    CHECK(lsw_open(&config, NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "is 0"));
    config.local_memory_bytes = 1 << 20;
    config.backend_url = "nonsense";
    CHECK(lsw_open(&config, &instance) == LSW_ERR_BACKEND_URL && strstr(lsw_last_error(), "nonsense"));
    config.backend_url = "\xff:";
    CHECK(lsw_open(&config, &instance) == LSW_ERR_BACKEND_URL);
    config.backend_url = "file:/nonexistent/swap?size=1MiB";
    CHECK(lsw_open(&config, &instance) == LSW_ERR_BACKEND);
    config.backend_url = "memory:?size=1MiB";
    config.notifier = LSW_NOTIFIER_EBPF + 1;
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "3 is no notifier"));
    config.notifier = LSW_NOTIFIER_MONITOR;
    config.waiting = LSW_WAITING_POLL + 1;
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "2 is no way of waiting"));
    config.waiting = LSW_WAITING_POLL;
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "cannot be combined"));
    config.fault_return = LSW_FAULT_RETURN_KERNEL + 1;
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "2 is no way back"));
    CHECK(instance == NULL);
    CHECK(lsw_close(NULL) == LSW_ERR_INVALID_ARGUMENT && lsw_region_destroy(NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_region_base(NULL) == NULL && lsw_region_len(NULL) == 0);
    CHECK(lsw_parse_size(NULL, &bytes) == LSW_ERR_INVALID_ARGUMENT && lsw_parse_size("1k", NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_parse_size("one", &bytes) == LSW_ERR_INVALID_ARGUMENT && bytes == 7);
    CHECK(lsw_parse_size("1.5GiB", &bytes) == LSW_OK && bytes == 3u << 29);
    CHECK(lsw_worker_enter(NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_worker_leave() == LSW_ERR_NOT_A_WORKER && lsw_worker_fd() == LSW_ERR_NOT_A_WORKER);
    CHECK(lsw_worker_poll() == LSW_ERR_NOT_A_WORKER && lsw_worker_run() == LSW_ERR_NOT_A_WORKER);
    CHECK(lsw_lwt_start(NULL, NULL) == LSW_ERR_INVALID_ARGUMENT && lsw_lwt_start(nothing, NULL) == LSW_ERR_NOT_A_WORKER);
    CHECK(!lsw_on_lwt() && lsw_num_lwts() == 0);
    CHECK(lsw_touch(&bytes, 8) == LSW_ERR_NOT_IN_REGION && !lsw_is_resident(&bytes, 8) && !lsw_in_region(&bytes));
    lsw_stats_visit(NULL, NULL, NULL);
    lsw_yield();
    lsw_sleep_us(10);
}

static char *base;
static lsw_mutex mutex;
static lsw_cond cond;
static int turn, parked;

static bool is_parked(void *arg) {
    return *(int *)arg == 0;
}

static void work(void *arg) {
    size_t first = (size_t)arg;
    for (size_t page = first; page < 400; page += 8) {
        CHECK(lsw_on_lwt() && lsw_num_lwts() > 0);
        memset(base + page * 4096, (int)page | 1, 4096);
        lsw_mutex_lock(&mutex);
        turn++;
        lsw_yield();
        lsw_cond_broadcast(&cond);
        lsw_mutex_unlock(&mutex);
        lsw_sleep_us(1);
    }
}

static void *wait_on_thread(void *arg) {
    lsw_mutex_lock(&mutex);
    while (turn < 400)
        lsw_cond_wait(&cond, &mutex);
    lsw_mutex_unlock(&mutex);
    lsw_park(&parked, is_parked, &parked);
    return arg;
}

struct found {
    uint64_t swap_ins, evict_mean_ns;
    int num_steps;
};

static void find(void *ctx, const char *name, uint64_t value) {
    struct found *found = ctx;
    if (strcmp(name, "swap_ins") == 0)
        found->swap_ins = value;
    if (strcmp(name, "step_evict_mean_ns") == 0)
        found->evict_mean_ns = value;
    if (strncmp(name, "step_", 5) == 0)
        found->num_steps++;
}

static void check_calls(void) {
    int ends[2];
    char copy[8192];
    struct iovec iov = {base + 10 * 4096, 8192};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    CHECK(pipe(ends) == 0);
    CHECK(lsw_write(ends[1], base, 4096) == 4096 && read(ends[0], copy, 8192) == 4096 && memcmp(copy, base, 4096) == 0);
    CHECK(lsw_writev(ends[1], &iov, 1) == 8192 && lsw_read(ends[0], base + 20 * 4096, 8192) == 8192);
    CHECK(memcmp(base + 10 * 4096, base + 20 * 4096, 8192) == 0);
    CHECK(write(ends[1], "abc", 3) == 3 && lsw_readv(ends[0], &iov, 1) == 3 && memcmp(iov.iov_base, "abc", 3) == 0);
    errno = 0;
    CHECK(lsw_read(-1, base, 1) == -1 && errno == EBADF);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(lsw_sendmsg(ends[0], &msg, 0) == 8192);
    iov.iov_base = base + 30 * 4096;
    CHECK(lsw_recvmsg(ends[1], &msg, 0) == 8192 && memcmp(base + 10 * 4096, base + 30 * 4096, 8192) == 0);
}

static void check_paging(lsw_instance *instance, bool is_timed) {
    lsw_region *region = NULL;
    pthread_t thread;
    struct found found = {0};
    turn = parked = 0;
    CHECK(lsw_region_create(NULL, 4096, LSW_TRANSPARENT, &region) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_region_create(instance, 4096, LSW_TRANSPARENT, NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_region_create(instance, 4096, 2, &region) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "contract"));
    CHECK(lsw_region_create(instance, 0, LSW_COOPERATIVE, &region) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_region_create(instance, (size_t)1 << 40, LSW_COOPERATIVE, &region) == LSW_ERR_NO_SPACE && region == NULL);
    CHECK(lsw_region_create(instance, 400 * 4096 - 5, LSW_TRANSPARENT, &region) == LSW_OK);
    base = lsw_region_base(region);
    CHECK(lsw_region_len(region) == 400 * 4096 && (uintptr_t)base % (2 << 20) == 0);
    CHECK(lsw_in_region(base) && lsw_in_region(base + 400 * 4096 - 1) && !lsw_in_region(base + 400 * 4096));
    CHECK(lsw_reserve(base, 400 * 4096) == LSW_OK && lsw_reserve(base, 400 * 4096 + 1) == LSW_ERR_NOT_IN_REGION);
    CHECK(lsw_worker_enter(instance) == LSW_OK && lsw_worker_enter(instance) == LSW_ERR_BUSY);
    CHECK(lsw_worker_fd() >= 0 && lsw_worker_poll() >= 0);
    CHECK(pthread_create(&thread, NULL, wait_on_thread, NULL) == 0);
    for (size_t i = 0; i < 8; i++)
        CHECK(lsw_lwt_start(work, (void *)i) == 1);
    CHECK(lsw_worker_leave() == LSW_ERR_BUSY);
    CHECK(lsw_worker_run() == LSW_OK && lsw_num_lwts() == 0 && turn == 400);
    lsw_mutex_lock(&mutex);
    CHECK(!lsw_mutex_trylock(&mutex));
    lsw_cond_signal(&cond);
    lsw_mutex_unlock(&mutex);
    CHECK(lsw_mutex_trylock(&mutex));
    lsw_mutex_unlock(&mutex);
    __atomic_store_n(&parked, 1, __ATOMIC_SEQ_CST);
    lsw_unpark_one(&parked);
    lsw_unpark_all(&parked);
    CHECK(pthread_join(thread, NULL) == 0);
    for (size_t i = 0; i < 400 * 4096; i += 1000)
        CHECK(base[i] == (char)((i / 4096) | 1));
    check_calls();
    CHECK(lsw_touch(base, 4096) == LSW_OK && lsw_is_resident(base, 4096));
    CHECK(lsw_pin(base, 8192) == LSW_OK && lsw_unpin(base, 8192) == LSW_OK && lsw_unpin(base, 8192) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_pin(base, 300 * 4096) == LSW_ERR_PIN_LIMIT);
    CHECK(lsw_prefetch(base + 4096, 4096) == LSW_OK && lsw_advise_cold(base, 4096) == LSW_OK);
    lsw_stats_visit(instance, find, &found);
    CHECK(found.swap_ins > 300);
    CHECK(is_timed ? found.num_steps == 5 && found.evict_mean_ns > 0 : found.num_steps == 0);
    CHECK(lsw_worker_leave() == LSW_OK);
    CHECK(lsw_region_destroy(region) == LSW_OK && !lsw_in_region(base));
}

static void check_snapshot(void) {
    enum { NUM_PAGES = 512, PAGE_BYTES = 4096 };
    lsw_instance *instance = NULL;
    lsw_region *region = NULL;
    lsw_config config = {.local_memory_bytes = 1 << 18, .backend_url = "memory:?size=4MiB", .snapshots = 1};
    CHECK(lsw_room_bytes(NULL) == 0 && !lsw_in_snapshot());
    config.notifier = LSW_NOTIFIER_MONITOR;
    CHECK(lsw_open(&config, &instance) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "snapshots"));
    config.notifier = LSW_NOTIFIER_SIGBUS;
    CHECK(lsw_open(&config, &instance) == LSW_OK);
    CHECK(lsw_room_bytes(instance) == NUM_PAGES * PAGE_BYTES);
    CHECK(lsw_region_create(instance, lsw_room_bytes(instance), LSW_TRANSPARENT, &region) == LSW_OK);
    CHECK(lsw_room_bytes(instance) == 0);
    unsigned char *base = lsw_region_base(region);
    for (int page = 0; page < NUM_PAGES; page++)
        memset(base + page * PAGE_BYTES, 1 + page % 200, PAGE_BYTES);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (!lsw_in_snapshot())
            _exit(2);
        for (int page = 0; page < NUM_PAGES; page++) {
            lsw_prefetch(base + page * PAGE_BYTES, PAGE_BYTES);
            for (int offset = 0; offset < PAGE_BYTES; offset++)
                if (base[page * PAGE_BYTES + offset] != 1 + page % 200)
                    _exit(3);
        }
        _exit(lsw_worker_poll() == LSW_ERR_NOT_A_WORKER ? 0 : 4);
    }
    for (int page = 0; page < NUM_PAGES; page++)
        memset(base + page * PAGE_BYTES, 255, PAGE_BYTES);
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(lsw_region_destroy(region) == LSW_OK && lsw_close(instance) == LSW_OK);
}

static void find_heap(void *ctx, const char *name, uint64_t value) {
    uint64_t *found = ctx;
    if (strcmp(name, "heap_objects") == 0)
        found[0] = value;
    else if (strcmp(name, "heap_free_bytes") == 0)
        found[1] = value;
}

static void check_heap(lsw_instance *instance) {
    enum { NUM_OBJECTS = 300 };
    static char *objects[NUM_OBJECTS];
    lsw_region *region = NULL;
    lsw_heap *heap = NULL, *other = NULL;
    uint64_t found[2] = {0, 0};
    size_t len;
    char *object;
    CHECK(lsw_heap_create(NULL, &heap) == LSW_ERR_INVALID_ARGUMENT && lsw_heap_destroy(NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_region_create(instance, 2 << 20, LSW_TRANSPARENT, &region) == LSW_OK);
    CHECK(lsw_heap_create(region, NULL) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_heap_create(region, &heap) == LSW_OK && lsw_heap_create(region, &other) == LSW_ERR_BUSY && other == NULL);
    len = lsw_region_len(region);
    object = lsw_region_base(region);
    CHECK(lsw_heap_contains(heap, object) && lsw_heap_contains(heap, object + len - 1));
    CHECK(!lsw_heap_contains(heap, object - 1) && !lsw_heap_contains(heap, object + len) && !lsw_heap_contains(heap, NULL));
    for (int i = 0; i < NUM_OBJECTS; i++) {
        size_t size = (size_t)i * 37 % 5000;
        objects[i] = lsw_heap_alloc(heap, size);
        CHECK(objects[i] != NULL && (uintptr_t)objects[i] % 16 == 0 && lsw_heap_usable_size(heap, objects[i]) >= size);
        memset(objects[i], i, size);
    }
    for (int i = 0; i < NUM_OBJECTS; i++) {
        size_t size = (size_t)i * 37 % 5000;
        object = lsw_heap_realloc(heap, objects[i], size + 1000);
        CHECK(object != NULL);
        for (size_t j = 0; j < size; j += 7)
            CHECK(object[j] == (char)i);
        objects[i] = object;
        (void)lsw_heap_is_sparse(heap, object);
    }
    lsw_heap_stats_visit(heap, find_heap, found);
    lsw_heap_stats_visit(heap, NULL, NULL);
    CHECK(found[0] == NUM_OBJECTS && found[1] < len);
    CHECK(lsw_heap_alloc(heap, 4 << 20) == NULL && strstr(lsw_last_error(), "in a row"));
    CHECK(lsw_heap_realloc(heap, objects[1], 4 << 20) == NULL && objects[1][36] == 1);
    lsw_heap_free(heap, NULL);
    CHECK(lsw_heap_usable_size(heap, NULL) == 0 && !lsw_heap_is_sparse(heap, NULL));
    for (int i = 0; i < NUM_OBJECTS; i++)
        lsw_heap_free(heap, objects[i]);
    object = lsw_heap_realloc(heap, NULL, 100);
    CHECK(object != NULL && lsw_heap_usable_size(heap, object) == 112);
    lsw_heap_free(heap, object);
    /* What is being evicted goes back when that is over. */
    for (int i = 0; i < 1000; i++) {
        lsw_heap_trim(heap);
        lsw_heap_stats_visit(heap, find_heap, found);
        if (found[1] == len)
            break;
        usleep(10000);
    }
    CHECK(found[0] == 0 && found[1] == len);
    CHECK(lsw_region_destroy(region) == LSW_OK && lsw_heap_destroy(heap) == LSW_OK);
}

static void check_local_memory(lsw_instance *instance) {
    CHECK(lsw_set_local_memory(NULL, 1 << 20) == LSW_ERR_INVALID_ARGUMENT);
    CHECK(lsw_set_local_memory(instance, 4097) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "multiple"));
    CHECK(lsw_set_local_memory(instance, 4096) == LSW_ERR_INVALID_ARGUMENT && strstr(lsw_last_error(), "at least"));
    CHECK(lsw_set_local_memory(instance, 128 << 10) == LSW_OK && lsw_set_local_memory(instance, 512 << 10) == LSW_OK);
}

int main(void) {
    static const struct {
        uint32_t notifier, waiting;
    } modes[] = {{LSW_NOTIFIER_SIGBUS, LSW_WAITING_SUSPEND}, {LSW_NOTIFIER_MONITOR, LSW_WAITING_SUSPEND}, {LSW_NOTIFIER_SIGBUS, LSW_WAITING_POLL}};
    check_texts();
    check_bad_arguments();
    for (int i = 0; i < 6; i++) {
        lsw_config config = {.local_memory_bytes = 256 << 10, .backend_url = "memory:?size=4MiB"};
        lsw_instance *instance = NULL;
        config.notifier = modes[i / 2].notifier;
        config.waiting = modes[i / 2].waiting;
        config.step_times = i % 2;
        config.fault_return = i % 2 == 0 ? LSW_FAULT_RETURN_USER : LSW_FAULT_RETURN_KERNEL;
        if (lsw_open(&config, &instance) != LSW_OK) {
            printf("skipped: %s\n", lsw_last_error());
            return 0;
        }
        check_paging(instance, i % 2 == 1);
        check_local_memory(instance);
        check_heap(instance);
        CHECK(lsw_close(instance) == LSW_OK);
    }
    check_snapshot();
    printf("all checks passed\n");
    return 0;
}
