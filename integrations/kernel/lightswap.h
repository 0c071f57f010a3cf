/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/* What programs and the kernel module lightswap say to each other, through /dev/lightswap. */
#ifndef LIGHTSWAP_KERNEL_H
#define LIGHTSWAP_KERNEL_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Changes with everything below. */
#define LIGHTSWAP_ABI 1

#define LIGHTSWAP_MAX_SLOTS 4096
#define LIGHTSWAP_MAX_RANGES 1024

/* A redirected fault, in the slot of the thread that met it. */
struct lightswap_slot {
	/* Set by the module; cleared by the thread when it has read the rest. While it is set, faults raise SIGBUS. */
	__u32 is_full;
	/* As the processor's page-fault error code: LIGHTSWAP_FAULT_*. */
	__u32 fault;
	__u64 address;
	/* Registers of the interrupted code; di holds the address of this slot, when the entry is reached. All others are as they were. */
	__u64 ip;
	__u64 sp;
	__u64 flags;
	__u64 di;
	__u64 reserved[2];
};

/* A page that is present, but protected by userfaultfd; else it is missing. */
#define LIGHTSWAP_FAULT_PRESENT 1
#define LIGHTSWAP_FAULT_WRITE 2
#define LIGHTSWAP_FAULT_USER 4

/* Below the stack pointer of code that is interrupted; the entry is reached with a stack pointer below it. */
#define LIGHTSWAP_RED_ZONE 128

/* The first call, which makes the file that of the calling process. */
struct lightswap_setup {
	__u32 abi;
	/* Of a program of type BPF_PROG_TYPE_RAW_TRACEPOINT; see LIGHTSWAP_ARG_*. */
	__s32 program_fd;
	/* Where redirected threads go on; in an executable mapping. */
	__u64 entry;
	/* Slots for so many threads, in private anonymous memory, which is locked. Page-aligned. */
	__u64 slots;
	__u32 num_slots;
	__u32 reserved;
};

/* Faults in [start, start + len) may be redirected. Page-aligned, and apart from all others. `id` is for the program. */
struct lightswap_range {
	__u64 start;
	__u64 len;
	__u64 id;
};

#define LIGHTSWAP_SETUP _IOW('L', 0, struct lightswap_setup)
#define LIGHTSWAP_ADD_RANGE _IOW('L', 1, struct lightswap_range)
/* By start and len. */
#define LIGHTSWAP_REMOVE_RANGE _IOW('L', 2, struct lightswap_range)
/* Faults of the calling thread may be redirected; returns the index of its slot. That of a thread that has ended is free for another. */
#define LIGHTSWAP_ENTER_THREAD _IO('L', 3)

/* The program's context is an array of these; it returns LIGHTSWAP_REDIRECT, or anything else for SIGBUS. */
#define LIGHTSWAP_ARG_ADDRESS 0
#define LIGHTSWAP_ARG_FAULT 1
#define LIGHTSWAP_ARG_IP 2
#define LIGHTSWAP_ARG_RANGE 3
#define LIGHTSWAP_ARG_SLOT 4
#define LIGHTSWAP_NUM_ARGS 5

#define LIGHTSWAP_REDIRECT 1

#endif
