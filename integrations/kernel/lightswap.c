// SPDX-License-Identifier: GPL-2.0
/*
 * Page faults of registered ranges go to the faulting thread itself, without a signal.
 *
 * userfaultfd calls handle_userfault() for an access that it has to report; with UFFD_FEATURE_SIGBUS that function answers VM_FAULT_SIGBUS. This module
 * looks at its calls through ftrace. If the fault is one of user mode, in a range and a thread that the process has registered, a BPF program of the process
 * decides. On LIGHTSWAP_REDIRECT the fault is described in the thread's slot, its user-mode registers are set to the process's entry, and the call
 * answers VM_FAULT_NOPAGE instead: "nothing more to do, go back to user mode". The caller releases its locks as after any other fault.
 *
 * What a process can reach is itself only: its file works with the memory map that set it up and no other, ranges and threads are looked up by
 * the calling thread, and the entry has to be executable for it. Whatever is not in order leads to what would have been without the module.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/ftrace.h>
#include <linux/hashtable.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pid.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/userfaultfd_k.h>

#include "lightswap.h"

#if !defined(CONFIG_X86_64) || !defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS) || !defined(CONFIG_USERFAULTFD) || !defined(CONFIG_BPF_SYSCALL)
#error "lightswap needs a kernel for x86-64 with ftrace, userfaultfd and BPF"
#endif

/* All that a program may read of its context; the verifier checks against this size. */
#define NUM_PROGRAM_ARGS MAX_BPF_FUNC_ARGS

static_assert(sizeof(struct lightswap_slot) == 64);
static_assert(LIGHTSWAP_NUM_ARGS <= NUM_PROGRAM_ARGS);

/* Sorted by start; replaced as a whole. */
struct ranges {
	struct rcu_head rcu;
	u32 num;
	struct lightswap_range of[];
};

struct context;

/* A thread that has entered. */
struct thread {
	struct hlist_node node;
	struct rcu_head rcu;
	/* Held, so that no later thread has the same one. */
	struct pid *pid;
	struct context *context;
	struct lightswap_slot *slot;
	unsigned long slot_address;
	u32 index;
};

/* An open file; once set up, the process's. */
struct context {
	/* Ranges, threads and the setup change under it. */
	struct mutex lock;
	/* Of the process that set it up: grabbed, so that no later one has the same address. Null before. */
	struct mm_struct *mm;
	struct bpf_prog *program;
	unsigned long entry;
	unsigned long slots;
	u32 num_slots;
	u32 num_pages;
	struct page **pages;
	/* By the index of their slots. */
	struct thread **threads;
	struct ranges __rcu *ranges;
};

/* All threads that have entered, by the address of their struct pid. Those of a bucket change under the lock. */
static DEFINE_HASHTABLE(threads, 10);
static DEFINE_SPINLOCK(threads_lock);

/* Instead of handle_userfault(): the fault is dealt with. */
static noinline notrace vm_fault_t answer_nopage(struct vm_fault *vmf, unsigned long reason)
{
	return VM_FAULT_NOPAGE;
}

static notrace const struct lightswap_range *find_range(const struct ranges *ranges, unsigned long address)
{
	u32 low = 0, high = ranges ? ranges->num : 0;

	while (low < high) {
		u32 middle = low + (high - low) / 2;
		const struct lightswap_range *range = &ranges->of[middle];

		if (address < range->start)
			high = middle;
		else if (address - range->start >= range->len)
			low = middle + 1;
		else
			return range;
	}
	return NULL;
}

/*
 * A thread in a restartable sequence must not be resumed in its middle, and the kernel sees to that for signals only. Must not sleep, so that what
 * cannot be read counts as being in one.
 */
static notrace bool is_in_restartable_sequence(void)
{
	u64 sequence = 0;
#ifdef CONFIG_RSEQ
	int error = 0;

	if (current->rseq) {
		pagefault_disable();
		error = __get_user(sequence, (u64 __user *)&current->rseq->rseq_cs);
		pagefault_enable();
	}
	if (error)
		return true;
#endif
	return sequence != 0;
}

static notrace bool decides_to_redirect(const struct thread *thread, const struct lightswap_range *range, struct vm_fault *vmf, u32 fault,
					const struct pt_regs *regs)
{
	u64 args[NUM_PROGRAM_ARGS] = {
		[LIGHTSWAP_ARG_ADDRESS] = vmf->real_address,
		[LIGHTSWAP_ARG_FAULT] = fault,
		[LIGHTSWAP_ARG_IP] = regs->ip,
		[LIGHTSWAP_ARG_RANGE] = range->id,
		[LIGHTSWAP_ARG_SLOT] = thread->index,
	};
	/* Helpers that ask for a cookie look here. */
	struct bpf_trace_run_ctx run = {};
	struct bpf_run_ctx *outer = bpf_set_run_ctx(&run.run_ctx);
	u32 verdict = bpf_prog_run(thread->context->program, args);

	bpf_reset_run_ctx(outer);
	return verdict == LIGHTSWAP_REDIRECT;
}

/* The thread and, in `*found`, the range that `address` is in, if the running thread has entered in a context with such a range. */
static notrace const struct thread *find_thread(unsigned long address, const struct lightswap_range **found)
{
	struct pid *pid = task_pid(current);
	struct thread *thread;

	hash_for_each_possible_rcu(threads, thread, node, (unsigned long)pid) {
		if (thread->pid != pid || thread->context->mm != current->mm)
			continue;
		*found = find_range(rcu_dereference(thread->context->ranges), address);
		if (*found)
			return thread;
	}
	return NULL;
}

/* With preemption disabled. */
static notrace bool redirect(struct vm_fault *vmf, unsigned long reason)
{
	struct pt_regs *regs = task_pt_regs(current);
	const struct lightswap_range *range = NULL;
	const struct thread *thread;
	struct lightswap_slot *slot;
	u32 fault = LIGHTSWAP_FAULT_USER;

	if (!(vmf->flags & FAULT_FLAG_USER) || current->flags & (PF_EXITING | PF_DUMPCORE | PF_KTHREAD))
		return false;
	if (reason == VM_UFFD_WP)
		fault |= LIGHTSWAP_FAULT_PRESENT;
	else if (reason != VM_UFFD_MISSING)
		return false;
	if (vmf->flags & FAULT_FLAG_WRITE)
		fault |= LIGHTSWAP_FAULT_WRITE;
	/* 64-bit code only; who single-steps, or has flags that a return in user mode could not restore, gets the signal. */
	if (regs->cs != __USER_CS || regs->flags & (X86_EFLAGS_TF | X86_EFLAGS_AC | X86_EFLAGS_NT))
		return false;

	thread = find_thread(vmf->real_address, &range);
	if (!thread)
		return false;
	slot = thread->slot;
	/* The entry itself, or a signal handler on top of it, has faulted. */
	if (READ_ONCE(slot->is_full) || is_in_restartable_sequence())
		return false;
	if (!decides_to_redirect(thread, range, vmf, fault, regs))
		return false;

	slot->fault = fault;
	slot->address = vmf->real_address;
	slot->ip = regs->ip;
	slot->sp = regs->sp;
	slot->flags = regs->flags;
	slot->di = regs->di;
	WRITE_ONCE(slot->is_full, 1);
	regs->ip = thread->context->entry;
	regs->sp -= LIGHTSWAP_RED_ZONE;
	regs->flags &= ~(X86_EFLAGS_DF | X86_EFLAGS_RF);
	regs->di = thread->slot_address;
	return true;
}

/* Of what ftrace saves, only the arguments and the instruction pointer are there. */
#ifdef arch_ftrace_regs
#define registers_of(fregs) (&arch_ftrace_regs(fregs)->regs)
#else
#define registers_of(fregs) (&(fregs)->regs)
#endif

static notrace void on_call(unsigned long ip, unsigned long parent_ip, struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct pt_regs *call = registers_of(fregs);

	preempt_disable_notrace();
	rcu_read_lock();
	if (redirect((struct vm_fault *)regs_get_kernel_argument(call, 0), regs_get_kernel_argument(call, 1)))
		instruction_pointer_set(call, (unsigned long)answer_nopage);
	rcu_read_unlock();
	preempt_enable_notrace();
}

/* on_call() calls nothing that calls handle_userfault(), so it needs no guard against recursion. */
static struct ftrace_ops hook = {
	.func = on_call,
	.flags = FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_RECURSION,
};

static void free_thread(struct rcu_head *rcu)
{
	struct thread *thread = container_of(rcu, struct thread, rcu);

	put_pid(thread->pid);
	kfree(thread);
}

/* With the context's lock held. */
static void forget_thread(struct context *context, u32 index)
{
	struct thread *thread = context->threads[index];

	if (!thread)
		return;
	spin_lock(&threads_lock);
	hash_del_rcu(&thread->node);
	spin_unlock(&threads_lock);
	context->threads[index] = NULL;
	call_rcu(&thread->rcu, free_thread);
}

static bool has_ended(const struct thread *thread)
{
	bool ended;

	rcu_read_lock();
	ended = !pid_task(thread->pid, PIDTYPE_PID);
	rcu_read_unlock();
	return ended;
}

static long enter_thread(struct context *context)
{
	struct thread *thread;
	u32 index, free = context->num_slots;

	for (index = 0; index < context->num_slots; index++) {
		thread = context->threads[index];
		if (thread && thread->pid == task_pid(current))
			return index;
		if (free == context->num_slots && (!thread || has_ended(thread)))
			free = index;
	}
	if (free == context->num_slots)
		return -EBUSY;
	forget_thread(context, free);

	thread = kzalloc(sizeof(*thread), GFP_KERNEL_ACCOUNT);
	if (!thread)
		return -ENOMEM;
	thread->pid = get_task_pid(current, PIDTYPE_PID);
	thread->context = context;
	thread->index = free;
	thread->slot_address = context->slots + free * sizeof(struct lightswap_slot);
	thread->slot = (struct lightswap_slot *)((char *)page_address(context->pages[free / (PAGE_SIZE / sizeof(struct lightswap_slot))]) +
						 offset_in_page(thread->slot_address));
	/* One who had it before may have died with it full. */
	WRITE_ONCE(thread->slot->is_full, 0);
	context->threads[free] = thread;
	spin_lock(&threads_lock);
	hash_add_rcu(threads, &thread->node, (unsigned long)thread->pid);
	spin_unlock(&threads_lock);
	return free;
}

static bool is_executable(unsigned long address)
{
	struct vm_area_struct *vma;
	bool is_so;

	mmap_read_lock(current->mm);
	vma = find_vma(current->mm, address);
	is_so = vma && address >= vma->vm_start && vma->vm_flags & VM_EXEC;
	mmap_read_unlock(current->mm);
	return is_so;
}

static void unpin_slots(struct context *context)
{
	unpin_user_pages_dirty_lock(context->pages, context->num_pages, true);
	account_locked_vm(context->mm, context->num_pages, false);
	kvfree(context->pages);
}

/* Pins the memory of the slots, which counts as locked. */
static int pin_slots(struct context *context)
{
	u32 num_pages = DIV_ROUND_UP(context->num_slots * sizeof(struct lightswap_slot), PAGE_SIZE);
	u32 index;
	int error, num;

	context->pages = kvcalloc(num_pages, sizeof(*context->pages), GFP_KERNEL_ACCOUNT);
	if (!context->pages)
		return -ENOMEM;
	error = account_locked_vm(context->mm, num_pages, true);
	if (error) {
		kvfree(context->pages);
		return error;
	}
	num = pin_user_pages_fast(context->slots, num_pages, FOLL_WRITE | FOLL_LONGTERM, context->pages);
	context->num_pages = max(num, 0);
	error = num < 0 ? num : 0;
	if (!error && num < num_pages)
		error = -EFAULT;
	for (index = 0; !error && index < num_pages; index++)
		if (!PageAnon(context->pages[index]))
			error = -EINVAL;
	if (!error)
		return 0;
	account_locked_vm(context->mm, num_pages - context->num_pages, false);
	unpin_slots(context);
	return error;
}

static int set_up(struct context *context, const struct lightswap_setup *setup)
{
	int error;

	if (setup->abi != LIGHTSWAP_ABI)
		return -EPROTONOSUPPORT;
	if (setup->reserved || !setup->num_slots || setup->num_slots > LIGHTSWAP_MAX_SLOTS || !PAGE_ALIGNED(setup->slots))
		return -EINVAL;
	if (!is_executable(setup->entry))
		return -EACCES;
	context->program = bpf_prog_get_type_dev(setup->program_fd, BPF_PROG_TYPE_RAW_TRACEPOINT, false);
	if (IS_ERR(context->program))
		return PTR_ERR(context->program);
	context->entry = setup->entry;
	context->slots = setup->slots;
	context->num_slots = setup->num_slots;
	context->threads = kvcalloc(context->num_slots, sizeof(*context->threads), GFP_KERNEL_ACCOUNT);
	error = context->threads ? 0 : -ENOMEM;
	if (!error) {
		context->mm = current->mm;
		mmgrab(context->mm);
		error = pin_slots(context);
		if (!error)
			return 0;
		mmdrop(context->mm);
		context->mm = NULL;
	}
	kvfree(context->threads);
	bpf_prog_put(context->program);
	return error;
}

/* With the context's lock held. */
static struct ranges *ranges_of(struct context *context)
{
	return rcu_dereference_protected(context->ranges, lockdep_is_held(&context->lock));
}

static void replace_ranges(struct context *context, struct ranges *ranges)
{
	struct ranges *old = ranges_of(context);

	rcu_assign_pointer(context->ranges, ranges);
	if (old)
		kvfree_rcu(old, rcu);
}

static int insert_range(struct context *context, const struct lightswap_range *range)
{
	const struct ranges *old = ranges_of(context);
	u32 num = old ? old->num : 0, place = 0;
	struct ranges *new;

	if (!range->len || !PAGE_ALIGNED(range->start) || !PAGE_ALIGNED(range->len) || range->len > TASK_SIZE || range->start > TASK_SIZE - range->len)
		return -EINVAL;
	if (num == LIGHTSWAP_MAX_RANGES)
		return -ENOSPC;
	while (place < num && old->of[place].start < range->start)
		place++;
	if (place < num && range->start + range->len > old->of[place].start)
		return -EEXIST;
	if (place > 0 && old->of[place - 1].start + old->of[place - 1].len > range->start)
		return -EEXIST;

	new = kvzalloc(struct_size(new, of, num + 1), GFP_KERNEL_ACCOUNT);
	if (!new)
		return -ENOMEM;
	new->num = num + 1;
	if (num) {
		memcpy(new->of, old->of, place * sizeof(*range));
		memcpy(new->of + place + 1, old->of + place, (num - place) * sizeof(*range));
	}
	new->of[place] = *range;
	replace_ranges(context, new);
	return 0;
}

static int delete_range(struct context *context, const struct lightswap_range *range)
{
	const struct ranges *old = ranges_of(context);
	const struct lightswap_range *found = find_range(old, range->start);
	struct ranges *new;
	u32 place;

	if (!found || found->start != range->start || found->len != range->len)
		return -ENOENT;
	place = found - old->of;
	new = kvzalloc(struct_size(new, of, old->num - 1), GFP_KERNEL_ACCOUNT);
	if (!new)
		return -ENOMEM;
	new->num = old->num - 1;
	memcpy(new->of, old->of, place * sizeof(*range));
	memcpy(new->of + place, old->of + place + 1, (new->num - place) * sizeof(*range));
	replace_ranges(context, new);
	return 0;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long arg)
{
	struct context *context = file->private_data;
	union {
		struct lightswap_setup setup;
		struct lightswap_range range;
	} in;
	long result;

	if (_IOC_TYPE(command) != 'L' || _IOC_SIZE(command) > sizeof(in))
		return -ENOTTY;
	if (_IOC_SIZE(command) && copy_from_user(&in, (void __user *)arg, _IOC_SIZE(command)))
		return -EFAULT;
	if (mutex_lock_interruptible(&context->lock))
		return -ERESTARTSYS;
	if (command == LIGHTSWAP_SETUP)
		result = context->mm ? -EBUSY : set_up(context, &in.setup);
	else if (!context->mm)
		result = -EBADFD;
	else if (context->mm != current->mm)
		result = -EPERM;
	else if (command == LIGHTSWAP_ADD_RANGE)
		result = insert_range(context, &in.range);
	else if (command == LIGHTSWAP_REMOVE_RANGE)
		result = delete_range(context, &in.range);
	else if (command == LIGHTSWAP_ENTER_THREAD)
		result = enter_thread(context);
	else
		result = -ENOTTY;
	mutex_unlock(&context->lock);
	return result;
}

static int device_open(struct inode *inode, struct file *file)
{
	struct context *context = kzalloc(sizeof(*context), GFP_KERNEL_ACCOUNT);

	if (!context)
		return -ENOMEM;
	mutex_init(&context->lock);
	file->private_data = context;
	return 0;
}

/* Nobody has the file any more, but threads may still run through on_call(). */
static int device_release(struct inode *inode, struct file *file)
{
	struct context *context = file->private_data;
	u32 index;

	if (context->mm) {
		mutex_lock(&context->lock);
		for (index = 0; index < context->num_slots; index++)
			forget_thread(context, index);
		mutex_unlock(&context->lock);
		synchronize_rcu();
		kvfree(rcu_dereference_raw(context->ranges));
		unpin_slots(context);
		kvfree(context->threads);
		bpf_prog_put(context->program);
		mmdrop(context->mm);
	}
	kfree(context);
	return 0;
}

/* Holds the module while the file is open. */
static const struct file_operations device_operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.unlocked_ioctl = device_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lightswap",
	.fops = &device_operations,
	/* Anybody, as userfaultfd with UFFD_USER_MODE_ONLY; loading a program takes CAP_BPF and CAP_PERFMON. */
	.mode = 0666,
};

static int __init lightswap_init(void)
{
	static unsigned char hooked[] = "handle_userfault";
	int error = ftrace_set_filter(&hook, hooked, sizeof(hooked) - 1, 0);

	if (!error)
		error = register_ftrace_function(&hook);
	if (error) {
		pr_err("cannot hook handle_userfault(): error %d\n", error);
		return error;
	}
	error = misc_register(&device);
	if (error) {
		pr_err("cannot make /dev/lightswap: error %d\n", error);
		unregister_ftrace_function(&hook);
	}
	return error;
}

/* No file is open. */
static void __exit lightswap_exit(void)
{
	misc_deregister(&device);
	/* Waits until nobody is in on_call() or answer_nopage(). */
	unregister_ftrace_function(&hook);
	ftrace_free_filter(&hook);
	/* For free_thread(). */
	rcu_barrier();
}

module_init(lightswap_init);
module_exit(lightswap_exit);

MODULE_DESCRIPTION("Page faults of registered ranges go to the faulting thread, without a signal");
MODULE_LICENSE("GPL");
MODULE_VERSION("1");
