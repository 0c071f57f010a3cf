// SPDX-License-Identifier: MIT OR GPL-2.0-only
/* Counts and times the page faults of one process in Lightswap's regions, on the tracepoint exceptions:page_fault_user.
 *
 * The kernel can tell when a fault came in, not when the handler in user space began: a signal leaves no trace that is cheap to follow. So the process keeps, for each of
 * its threads, a record of the last fault that its handler saw (fault_table.rs), and the program looks at that record when the thread faults the next time. If it is newer
 * than the thread's last fault, that fault was the pager's, and the difference of both times is its notification latency; otherwise the kernel has dealt with the fault by
 * itself. Neither side makes a system call for that. The last fault of each thread stays open; user space closes it by itself (tracer/mod.rs).
 *
 * What is shared with user space has its counterpart in tracer/layout.rs and fault_table.rs. */
#include <linux/bpf.h>

#define SECTION(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define MAP_NUMBER(name, value) int(*name)[value]
#define MAP_TYPE(name, value) typeof(value) *name

/* Helpers of the kernel, by their stable numbers. */
static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const map_update)(void *map, const void *key, const void *value, __u64 flags) = (void *)BPF_FUNC_map_update_elem;
static __u64 (*const now_ns)(void) = (void *)BPF_FUNC_ktime_get_ns;
static long (*const read_user)(void *to, __u32 num_bytes, const void *from) = (void *)BPF_FUNC_probe_read_user;
static long (*const read_kernel)(void *to, __u32 num_bytes, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static long (*const pid_in_namespace)(__u64 device, __u64 inode, struct bpf_pidns_info *info, __u32 num_bytes) = (void *)BPF_FUNC_get_ns_current_pid_tgid;
static long (*const ring_output)(void *ring, void *data, __u64 num_bytes, __u64 flags) = (void *)BPF_FUNC_ringbuf_output;

/* The one field that is needed of the kernel's structure of this name; its offset is relocated to the running kernel's. */
struct pt_regs {
    unsigned long ip;
} __attribute__((preserve_access_index));

/* Set by user space before the program is loaded. */
volatile const __u64 NAMESPACE_DEVICE;
volatile const __u64 NAMESPACE_INODE;
volatile const __u32 PID;
volatile const __u32 SAMPLE_EVERY;
/* Where the threads' records are in the process. */
volatile const __u64 RECORDS;

#define NUM_RECORDS 1024
#define NUM_PROBES 4
#define RECORD_BYTES 64
#define MAX_RANGES 65
#define NO_CELL 0xffffffffu
#define CELL_SHIFT 21
#define SUB_BITS 5
#define NUM_BUCKETS 1024
#define ERROR_PRESENT 1
#define ERROR_WRITE 2

/* What a thread's handler has noted of its last fault. */
struct record {
    __u64 tid;
    __u64 num_faults;
    __u64 address;
    __u64 notified_ns;
};

/* A thread's last fault, of which it is not known yet who has dealt with it. */
struct thread {
    __u64 record;
    __u64 num_handled;
    __u64 address;
    __u64 fault_ns;
    __u64 error;
};

struct range {
    __u64 start;
    __u64 end;
    __u32 first_cell;
    __u32 padding;
};

struct ranges {
    __u64 num;
    struct range all[MAX_RANGES];
};

struct sample {
    __u64 fault_ns;
    __u64 address;
    __u64 instruction;
    __u32 error;
    __u32 tid;
};

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(max_entries, 1);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, struct ranges);
} ranges SECTION(".maps");

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_LRU_HASH);
    MAP_NUMBER(max_entries, 8192);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, struct thread);
} threads SECTION(".maps");

/* Faults in each 2 MiB of the regions, for user space to map. */
struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(map_flags, BPF_F_MMAPABLE);
    MAP_NUMBER(max_entries, 65536);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, __u64);
} heat SECTION(".maps");

/* Notification latencies. */
struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(map_flags, BPF_F_MMAPABLE);
    MAP_NUMBER(max_entries, NUM_BUCKETS);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, __u64);
} latencies SECTION(".maps");

/* By 4 * who (0 the kernel, 1 the handler) + the error code's two lowest bits. After these: all faults, and samples that found no room. */
#define ALL_FAULTS 8
#define LOST_SAMPLES 9
struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_ARRAY);
    MAP_NUMBER(map_flags, BPF_F_MMAPABLE);
    MAP_NUMBER(max_entries, 16);
    MAP_TYPE(key, __u32);
    MAP_TYPE(value, __u64);
} counters SECTION(".maps");

struct {
    MAP_NUMBER(type, BPF_MAP_TYPE_RINGBUF);
    MAP_NUMBER(max_entries, 1 << 20);
} samples SECTION(".maps");

INLINE __u64 count(void *map, __u32 index)
{
    __u64 *cell = map_lookup(map, &index);

    return cell ? __sync_fetch_and_add(cell, 1) : 0;
}

/* Exact below 32, then 32 buckets for each power of two. */
INLINE __u32 bucket_of(__u64 value)
{
    __u64 rest = value >> SUB_BITS;
    __u32 shift = 0, bucket;

    if (rest >> 16) {
        rest >>= 16;
        shift += 16;
    }
    if (rest >> 8) {
        rest >>= 8;
        shift += 8;
    }
    if (rest >> 4) {
        rest >>= 4;
        shift += 4;
    }
    if (rest >> 2) {
        rest >>= 2;
        shift += 2;
    }
    if (rest >> 1) {
        rest >>= 1;
        shift += 1;
    }
    /* `rest` is 1 now, or 0 for a value below 32; larger than 1 only for what is far beyond the last bucket. */
    bucket = rest ? ((shift + 1) << SUB_BITS) + (__u32)((value >> shift) & ((1 << SUB_BITS) - 1)) : (__u32)value;
    return rest > 1 || bucket >= NUM_BUCKETS ? NUM_BUCKETS - 1 : bucket;
}

/* The address of the thread's record in user space; 0 if it has none yet. */
INLINE __u64 find_record(__u32 tid)
{
    for (int probe = 0; probe < NUM_PROBES; probe++) {
        __u64 address = RECORDS + (__u64)((tid + probe) % NUM_RECORDS) * RECORD_BYTES;
        __u64 owner = 0;

        if (!read_user(&owner, sizeof(owner), (void *)address) && owner == tid)
            return address;
    }
    return 0;
}

/* Who has dealt with the thread's last fault? */
INLINE void close_last(struct thread *thread, __u32 tid, int is_new)
{
    struct record record = {};
    int is_handled;

    if (!thread->record)
        thread->record = find_record(tid);
    if (thread->record && read_user(&record, sizeof(record), (void *)thread->record))
        record.tid = 0;
    if (record.tid != tid) {
        /* It has none yet, or it was given to another thread meanwhile. */
        thread->record = 0;
        record.num_faults = thread->num_handled;
    }
    if (!is_new) {
        is_handled = record.num_faults != thread->num_handled && record.address == thread->address && record.notified_ns >= thread->fault_ns;
        count(&counters, is_handled * 4 + (thread->error & (ERROR_PRESENT | ERROR_WRITE)));
        if (is_handled)
            count(&latencies, bucket_of(record.notified_ns - thread->fault_ns));
    }
    thread->num_handled = record.num_faults;
}

SECTION("raw_tp/page_fault_user")
int page_fault_user(struct bpf_raw_tracepoint_args *context)
{
    const __u32 zero = 0;
    struct bpf_pidns_info info = {};
    struct ranges *all;
    struct thread *thread;
    const struct range *range = 0;
    __u64 fault_ns = now_ns(), address = context->args[0], number;
    __u32 tid;
    int is_new = 0;

    if (pid_in_namespace(NAMESPACE_DEVICE, NAMESPACE_INODE, &info, sizeof(info)) || info.tgid != PID)
        return 0;
    all = map_lookup(&ranges, &zero);
    if (!all)
        return 0;
    for (__u32 index = 0; index < MAX_RANGES; index++) {
        if (index >= all->num)
            return 0;
        if (address >= all->all[index].start && address < all->all[index].end) {
            range = &all->all[index];
            break;
        }
    }
    if (!range)
        return 0;
    if (range->first_cell != NO_CELL)
        count(&heat, range->first_cell + (__u32)((address - range->start) >> CELL_SHIFT));
    number = count(&counters, ALL_FAULTS);

    tid = info.pid;
    thread = map_lookup(&threads, &tid);
    if (!thread) {
        struct thread fresh = {};

        map_update(&threads, &tid, &fresh, BPF_NOEXIST);
        thread = map_lookup(&threads, &tid);
        if (!thread)
            return 0;
        is_new = 1;
    }
    close_last(thread, tid, is_new);
    thread->address = address;
    thread->fault_ns = fault_ns;
    thread->error = context->args[2];

    if (SAMPLE_EVERY && number % SAMPLE_EVERY == 0) {
        const struct pt_regs *registers = (const void *)context->args[1];
        struct sample sample = {.fault_ns = fault_ns, .address = address, .error = (__u32)thread->error, .tid = tid};
        __u64 instruction = 0;

        read_kernel(&instruction, sizeof(instruction), &registers->ip);
        sample.instruction = instruction;
        /* User space looks by itself. */
        if (ring_output(&samples, &sample, sizeof(sample), BPF_RB_NO_WAKEUP))
            count(&counters, LOST_SAMPLES);
    }
    return 0;
}

/* Some of the helpers are for programs under this licence only. */
char LICENSE[] SECTION("license") = "Dual MIT/GPL";
