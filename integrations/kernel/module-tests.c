/*
 * What the kernel module promises, tried out without the rest of Lightswap: whom it redirects, whom not, and whom it refuses.
 * Needs root and the module: see scripts/vm-test. One line for each check that fails; exit code 1 then.
 */
#define _GNU_SOURCE
#include "lightswap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, NUM_PAGES = 64, NUM_SLOTS = 4 };

/* The program refuses faults of this range; see load_program(). */
enum { ID_REDIRECTED = 1, ID_REFUSED = 2 };

static int num_failed;
static int uffd;
static char *memory;
static struct lightswap_slot *slots;

static atomic_int num_redirected, num_signals;
static struct lightswap_slot last;
/* What the handlers do about a fault: bring the page in, or that and fault on another one first. */
static char *fault_on_way;

#define CHECK(condition)                                                                 \
	do {                                                                             \
		if (!(condition)) {                                                      \
			num_failed++;                                                    \
			printf("module-tests: line %d: %s (errno %d: %s)\n", __LINE__, #condition, errno, strerror(errno)); \
		}                                                                        \
	} while (0)

static void die(const char *what)
{
	printf("module-tests: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void bring_in(uint64_t address, uint32_t fault)
{
	struct uffdio_range range = { .start = address & -PAGE, .len = PAGE };

	if (fault & LIGHTSWAP_FAULT_PRESENT) {
		struct uffdio_writeprotect protect = { .range = range };

		if (ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) != 0)
			abort();
	} else {
		struct uffdio_zeropage zero = { .range = range };

		if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero) != 0 && errno != EEXIST)
			abort();
	}
}

/* With the slot still full. */
__attribute__((used)) void on_redirected(struct lightswap_slot *slot)
{
	last = *slot;
	atomic_fetch_add(&num_redirected, 1);
	if (fault_on_way) {
		volatile char *other = fault_on_way;

		fault_on_way = NULL;
		(void)*other;
	}
	slot->is_full = 0;
	bring_in(last.address, last.fault);
}

/* A small entry: saves what C code without vector registers may change, and returns past the red zone. */
void entry(void);
__asm__(".text\n"
	"entry:\n"
	"	pushq 16(%rdi)\n" /* ip */
	"	pushq 32(%rdi)\n" /* flags */
	"	pushq 40(%rdi)\n" /* di */
	"	pushq %rax\n"
	"	pushq %rcx\n"
	"	pushq %rdx\n"
	"	pushq %rsi\n"
	"	pushq %r8\n"
	"	pushq %r9\n"
	"	pushq %r10\n"
	"	pushq %r11\n"
	"	pushq %rbp\n"
	"	movq %rsp, %rbp\n"
	"	subq $512, %rsp\n"
	"	andq $-64, %rsp\n"
	"	fxsave64 (%rsp)\n"
	"	call on_redirected\n"
	"	fxrstor64 (%rsp)\n"
	"	movq %rbp, %rsp\n"
	"	popq %rbp\n"
	"	popq %r11\n"
	"	popq %r10\n"
	"	popq %r9\n"
	"	popq %r8\n"
	"	popq %rsi\n"
	"	popq %rdx\n"
	"	popq %rcx\n"
	"	popq %rax\n"
	"	popq %rdi\n"
	"	popfq\n"
	"	ret $128\n");

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	atomic_fetch_add(&num_signals, 1);
	bring_in((uint64_t)info->si_addr, 0);
}

/* return args[LIGHTSWAP_ARG_RANGE] != ID_REFUSED */
static int load_program(enum bpf_prog_type type)
{
	struct bpf_insn code[] = {
		{ .code = BPF_LDX | BPF_MEM | BPF_DW, .dst_reg = 2, .src_reg = 1, .off = 8 * LIGHTSWAP_ARG_RANGE },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = LIGHTSWAP_REDIRECT },
		{ .code = BPF_JMP | BPF_JNE | BPF_K, .dst_reg = 2, .off = 1, .imm = ID_REFUSED },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {
		.prog_type = type,
		.insn_cnt = sizeof(code) / sizeof(code[0]),
		.insns = (uint64_t)code,
		.license = (uint64_t) "GPL",
	};
	long fd;

	/* The other type has a context of another kind. */
	if (type == BPF_PROG_TYPE_SOCKET_FILTER)
		attr.insns = (uint64_t)(code + 3), attr.insn_cnt = 2;
	fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	if (fd < 0)
		die("cannot load a BPF program");
	return fd;
}

static char *map(size_t num_bytes, int flags)
{
	char *address = mmap(NULL, num_bytes, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

	if (address == MAP_FAILED)
		die("cannot map memory");
	return address;
}

static int open_device(void)
{
	int fd = open("/dev/lightswap", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("/dev/lightswap");
	return fd;
}

static int errno_of_setup(struct lightswap_setup setup)
{
	int fd = open_device();
	int result = ioctl(fd, LIGHTSWAP_SETUP, &setup) ? errno : 0;

	close(fd);
	return result;
}

static int errno_of_range(int fd, unsigned long command, char *start, uint64_t len, uint64_t id)
{
	struct lightswap_range range = { .start = (uint64_t)start, .len = len, .id = id };

	return ioctl(fd, command, &range) ? errno : 0;
}

static char *page(int index)
{
	return memory + (size_t)index * PAGE;
}

/* Accesses a page that is missing, and counts who was told. */
#define EXPECT(redirected, signals, access)                                             \
	do {                                                                            \
		int redirected_before = num_redirected, signals_before = num_signals;   \
		access;                                                                 \
		CHECK(num_redirected - redirected_before == (redirected));              \
		CHECK(num_signals - signals_before == (signals));                       \
	} while (0)

static char read_byte(char *address)
{
	return *(volatile char *)address;
}

static void drop(char *address)
{
	if (madvise(address, PAGE, MADV_DONTNEED) != 0)
		die("madvise");
}

static void test_setup(struct lightswap_setup good, int other_program)
{
	struct lightswap_setup setup = good;
	int fd = open_device();

	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, memory, PAGE, 1) == EBADFD);
	CHECK(ioctl(fd, LIGHTSWAP_ENTER_THREAD) < 0 && errno == EBADFD);
	CHECK(ioctl(fd, _IO('L', 77)) < 0);
	CHECK(ioctl(fd, _IO('M', 0)) < 0 && errno == ENOTTY);
	CHECK(ioctl(fd, LIGHTSWAP_SETUP, NULL) < 0 && errno == EFAULT);
	close(fd);

	setup.abi++;
	CHECK(errno_of_setup(setup) == EPROTONOSUPPORT);
	setup = good;
	setup.entry = (uint64_t)memory;
	CHECK(errno_of_setup(setup) == EACCES);
	setup.entry = 0;
	CHECK(errno_of_setup(setup) == EACCES);
	setup.entry = 0xffffffff81000000;
	CHECK(errno_of_setup(setup) == EACCES);
	setup = good;
	setup.program_fd = uffd;
	CHECK(errno_of_setup(setup) == EINVAL);
	setup.program_fd = -1;
	CHECK(errno_of_setup(setup) == EBADF);
	setup.program_fd = other_program;
	CHECK(errno_of_setup(setup) == EINVAL);
	setup = good;
	setup.slots += 64;
	CHECK(errno_of_setup(setup) == EINVAL);
	setup.slots = (uint64_t)map(PAGE, MAP_SHARED);
	CHECK(errno_of_setup(setup) == EINVAL);
	setup.slots = 0xffff888000000000;
	CHECK(errno_of_setup(setup) != 0);
	setup.slots = 0;
	CHECK(errno_of_setup(setup) != 0);
	setup = good;
	setup.num_slots = 0;
	CHECK(errno_of_setup(setup) == EINVAL);
	setup.num_slots = LIGHTSWAP_MAX_SLOTS + 1;
	CHECK(errno_of_setup(setup) == EINVAL);
	CHECK(errno_of_setup(good) == 0);
}

static void test_ranges(int fd)
{
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, memory + 1, PAGE, 1) == EINVAL);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, memory, PAGE - 1, 1) == EINVAL);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, memory, 0, 1) == EINVAL);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, (char *)0xffff888000000000, PAGE, 1) == EINVAL);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, (char *)0x7ffffffff000, 1ull << 63, 1) == EINVAL);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(0), 16 * PAGE, ID_REDIRECTED) == 0);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(32), 16 * PAGE, ID_REFUSED) == 0);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(15), 2 * PAGE, 1) == EEXIST);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(31), 2 * PAGE, 1) == EEXIST);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(0), PAGE, 1) == EEXIST);
	CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(16), 16 * PAGE, ID_REDIRECTED) == 0);
	CHECK(errno_of_range(fd, LIGHTSWAP_REMOVE_RANGE, page(16), 15 * PAGE, 0) == ENOENT);
	CHECK(errno_of_range(fd, LIGHTSWAP_REMOVE_RANGE, page(16), 16 * PAGE, 0) == 0);
	CHECK(errno_of_range(fd, LIGHTSWAP_REMOVE_RANGE, page(16), 16 * PAGE, 0) == ENOENT);
}

static void test_redirection(int fd)
{
	struct uffdio_writeprotect protect = { .range = { .start = (uint64_t)page(3), .len = PAGE }, .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	int full[2];

	EXPECT(0, 1, read_byte(page(0)));
	CHECK(ioctl(fd, LIGHTSWAP_ENTER_THREAD) == 0);
	CHECK(ioctl(fd, LIGHTSWAP_ENTER_THREAD) == 0);
	EXPECT(1, 0, CHECK(read_byte(page(1) + 77) == 0));
	CHECK(last.address == (uint64_t)page(1) + 77 && last.fault == LIGHTSWAP_FAULT_USER);
	EXPECT(1, 0, *(volatile char *)page(2) = 5);
	CHECK(page(2)[0] == 5 && last.address == (uint64_t)page(2) && last.fault == (LIGHTSWAP_FAULT_USER | LIGHTSWAP_FAULT_WRITE));
	/* Not the kernel's shared page of zeroes, which cannot be protected. */
	EXPECT(1, 0, *(volatile char *)page(3) = 6);
	CHECK(ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) == 0);
	EXPECT(1, 0, *(volatile char *)page(3) = 7);
	CHECK(page(3)[0] == 7 && last.fault == (LIGHTSWAP_FAULT_USER | LIGHTSWAP_FAULT_WRITE | LIGHTSWAP_FAULT_PRESENT));

	/* Outside of all ranges, and where the program says no. */
	EXPECT(0, 1, read_byte(page(16)));
	EXPECT(0, 1, read_byte(page(33)));
	/* On the way to reading the slot. */
	fault_on_way = page(5);
	EXPECT(1, 1, read_byte(page(4)));
	EXPECT(1, 0, read_byte(page(6)));

	/* By the kernel: nobody is told. */
	if (pipe(full) != 0)
		die("pipe");
	EXPECT(0, 0, CHECK(write(full[1], page(7), 1) < 0 && errno == EFAULT));
	EXPECT(1, 0, read_byte(page(7)));
}

/* A thread that has been joined may take a moment yet to end, and its slot to be free. */
static int enter(int fd)
{
	int slot = -1;

	for (int attempt = 0; slot < 0 && attempt < 200; attempt++) {
		slot = ioctl(fd, LIGHTSWAP_ENTER_THREAD);
		if (slot < 0)
			usleep(5000);
	}
	return slot;
}

static void *fault_once(void *fd)
{
	if (fd && enter(*(int *)fd) < 0)
		return NULL;
	return read_byte(page(8)) == 0 ? &num_failed : NULL;
}

static void run_thread(int *fd, bool expected)
{
	pthread_t thread;
	void *result;

	drop(page(8));
	if (pthread_create(&thread, NULL, fault_once, fd) != 0 || pthread_join(thread, &result) != 0)
		die("cannot run a thread");
	CHECK((result != NULL) == expected);
}

static void test_threads(int fd)
{
	EXPECT(0, 1, run_thread(NULL, true));
	/* Many more than slots, one after the other. */
	for (int count = 0; count < 5 * NUM_SLOTS; count++)
		EXPECT(1, 0, run_thread(&fd, true));
}

static void *wait_entered(void *argument)
{
	pthread_barrier_t **barriers = argument;
	int fd = *(int *)barriers[2];
	long entered = enter(fd);

	pthread_barrier_wait(barriers[0]);
	pthread_barrier_wait(barriers[1]);
	return (void *)entered;
}

static void test_full(int fd)
{
	pthread_barrier_t all, done;
	void *arguments[] = { &all, &done, &fd };
	pthread_t threads[NUM_SLOTS - 1];

	pthread_barrier_init(&all, NULL, NUM_SLOTS);
	pthread_barrier_init(&done, NULL, NUM_SLOTS);
	for (int index = 0; index < NUM_SLOTS - 1; index++)
		if (pthread_create(&threads[index], NULL, wait_entered, arguments) != 0)
			die("cannot start a thread");
	pthread_barrier_wait(&all);
	EXPECT(0, 0, run_thread(&fd, false));
	pthread_barrier_wait(&done);
	for (int index = 0; index < NUM_SLOTS - 1; index++) {
		void *entered;

		pthread_join(threads[index], &entered);
		CHECK((long)entered > 0);
	}
	EXPECT(1, 0, run_thread(&fd, true));
}

/* A child has the file, but not the memory map; and what userfaultfd it has is none. */
static void test_fork(int fd)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		num_failed = 0;
		CHECK(ioctl(fd, LIGHTSWAP_ENTER_THREAD) < 0 && errno == EPERM);
		CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(48), PAGE, 1) == EPERM);
		EXPECT(0, 0, read_byte(page(9)));
		fflush(stdout);
		_exit(num_failed);
	}
	CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
	EXPECT(1, 0, read_byte(page(9)));
}

static atomic_bool stop;
static atomic_int current_fd;

/* Enters whatever there is. */
static void *fault_on(void *argument)
{
	long count = 0;

	(void)argument;
	for (; !stop; count++) {
		ioctl(current_fd, LIGHTSWAP_ENTER_THREAD);
		read_byte(page(10));
		drop(page(10));
	}
	return (void *)count;
}

/* Users come and go while faults are on their way; a user holds the module. */
static void test_unloading(struct lightswap_setup setup)
{
	pthread_t thread;
	void *count;
	int redirected_before = num_redirected, signals_before = num_signals;

	CHECK(syscall(SYS_delete_module, "lightswap", O_NONBLOCK) < 0 && (errno == EAGAIN || errno == EBUSY));
	current_fd = -1;
	if (pthread_create(&thread, NULL, fault_on, NULL) != 0)
		die("cannot start a thread");
	for (int round = 0; round < 100; round++) {
		int fd = open_device();

		CHECK(ioctl(fd, LIGHTSWAP_SETUP, &setup) == 0);
		CHECK(errno_of_range(fd, LIGHTSWAP_ADD_RANGE, page(0), 32 * PAGE, ID_REDIRECTED) == 0);
		current_fd = fd;
		for (int count = 0; count < 20; count++) {
			drop(page(11));
			read_byte(page(11));
		}
		close(fd);
	}
	stop = true;
	pthread_join(thread, &count);
	CHECK((long)count > 0 && num_redirected > redirected_before && num_signals > signals_before);
}

int main(void)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER };
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_SIGBUS };
	struct uffdio_register registered = { .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP };
	struct lightswap_setup setup = { .abi = LIGHTSWAP_ABI, .num_slots = NUM_SLOTS, .entry = (uint64_t)entry };
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	memory = map((size_t)NUM_PAGES * PAGE, MAP_PRIVATE);
	slots = (struct lightswap_slot *)map(PAGE, MAP_PRIVATE);
	madvise(memory, (size_t)NUM_PAGES * PAGE, MADV_NOHUGEPAGE);
	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0)
		die("userfaultfd");
	registered.range.start = (uint64_t)memory;
	registered.range.len = (uint64_t)NUM_PAGES * PAGE;
	if (ioctl(uffd, UFFDIO_REGISTER, &registered) != 0)
		die("cannot register memory with userfaultfd");
	sigaction(SIGBUS, &action, NULL);
	setup.program_fd = load_program(BPF_PROG_TYPE_RAW_TRACEPOINT);
	setup.slots = (uint64_t)slots;

	test_setup(setup, load_program(BPF_PROG_TYPE_SOCKET_FILTER));
	fd = open_device();
	CHECK(ioctl(fd, LIGHTSWAP_SETUP, &setup) == 0);
	CHECK(ioctl(fd, LIGHTSWAP_SETUP, &setup) < 0 && errno == EBUSY);
	test_ranges(fd);
	test_redirection(fd);
	test_threads(fd);
	test_full(fd);
	test_fork(fd);
	CHECK(syscall(SYS_delete_module, "lightswap", O_NONBLOCK) < 0);
	close(fd);
	EXPECT(0, 1, read_byte(page(12)));
	fd = open_device();
	test_unloading(setup);
	close(fd);
	printf("module-tests: %s\n", num_failed ? "FAILED" : "passed");
	return num_failed != 0;
}
