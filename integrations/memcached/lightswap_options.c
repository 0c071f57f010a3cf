/* Options: what turns Lightswap on, what it switches off, and what it refuses. */
#include "memcached.h"
#include "lightswap_settings.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

struct lightswap_settings lightswap_settings;

static const char *memory_text;
static const char *notifier_text;
static const char *wait_text;
static const char *refused_suboption;
static const char *refusal;

static void refuse(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void refuse(const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    fputs("memcached: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    exit(EX_USAGE);
}

void lightswap_usage(void) {
    printf("-   --lightswap-memory=<size> swap items in user space, keep this much of them in\n"
           "                          memory (512m, 8GiB); -m is then the size of all items.\n"
           "                          also: LIGHTSWAP_MEMORY in the environment\n"
           "-   --lightswap-backend=<url> where the other items are kept, such as\n"
           "                          file:/path?size=32GiB; %%p in it is the process id.\n"
           "                          also: LIGHTSWAP_BACKEND in the environment\n"
           "-   --lightswap-notifier=<sigbus|monitor|ebpf>\n"
           "                          how page faults reach Lightswap. monitor is for comparison: classic userfaultfd.\n"
           "                          ebpf needs Lightswap's kernel module and is sigbus without.\n"
           "                          also: LIGHTSWAP_NOTIFIER in the environment (default: sigbus)\n"
           "-   --lightswap-wait=<suspend|poll>\n"
           "                          what a worker does while a page is read. poll is for comparison: it waits.\n"
           "                          also: LIGHTSWAP_WAIT in the environment (default: suspend)\n");
}

void lightswap_set_memory(const char *text) {
    memory_text = text;
}

void lightswap_set_backend(const char *text) {
    lightswap_settings.backend = text;
}

void lightswap_set_notifier(const char *text) {
    notifier_text = text;
}

void lightswap_set_wait(const char *text) {
    wait_text = text;
}

/* Suboptions that start what Lightswap cannot live with. Upstream turns most of them on by default, which is switched
 * off without a word; asking for one by name is refused. */
static const struct {
    const char *name;
    const char *why;
} refused_suboptions[] = {
    { "slab_reassign", "its thread would page in whole slab pages" },
    { "slab_automove", "its thread would page in whole slab pages" },
    { "drop_privileges", "its system call filter forbids io_uring and userfaultfd" },
    { "ext_path", "extstore and Lightswap are two answers to the same question" },
    { "proxy_config", "the proxy keeps no items" },
};

/* Is the part of `text` before any of `delimiters` this word? */
static bool starts_with_word(const char *text, const char *delimiters, const char *word) {
    size_t len = strcspn(text, delimiters);
    return strlen(word) == len && strncmp(text, word, len) == 0;
}

void lightswap_note_suboption(const char *text) {
    if (starts_with_word(text, ",", "slab_automove=0")) {
        return;
    }
    for (size_t i = 0; i < sizeof(refused_suboptions) / sizeof(refused_suboptions[0]); i++) {
        const char *name = refused_suboptions[i].name;
        if (starts_with_word(text, "=,", name)) {
            refused_suboption = name;
            refusal = refused_suboptions[i].why;
        }
    }
}

static const char *from_environment(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* Which of two words an option has: 0 for the first, which is the default. */
static uint32_t choose(const char *text, const char *option, const char *first, const char *second) {
    if (text == NULL || strcmp(text, first) == 0) {
        return 0;
    }
    if (strcmp(text, second) != 0) {
        refuse("--lightswap-%s=%s: it takes %s or %s", option, text, first, second);
    }
    return 1;
}

/* The same for what is there for measurements, so in the environment only. */
static uint32_t choose_in_environment(const char *name, const char *first, const char *second) {
    const char *text = from_environment(name);
    if (text == NULL || strcmp(text, first) == 0) {
        return 0;
    }
    if (strcmp(text, second) != 0) {
        refuse("%s=%s: it takes %s or %s", name, text, first, second);
    }
    return 1;
}

static uint32_t choose_notifier(const char *text) {
    if (text != NULL && strcmp(text, "ebpf") == 0) {
        return LSW_NOTIFIER_EBPF;
    }
    if (text != NULL && strcmp(text, "sigbus") != 0 && strcmp(text, "monitor") != 0) {
        refuse("--lightswap-notifier=%s: it takes sigbus, monitor or ebpf", text);
    }
    return choose(text, "notifier", "sigbus", "monitor");
}

static void refuse_what_cannot_work(const struct lightswap_choices *choices) {
    if (choices->lock_memory) {
        refuse("-k (lock memory) cannot be combined with --lightswap-memory: locked pages cannot be swapped");
    }
    if (choices->large_pages) {
        refuse("-L (large pages) cannot be combined with --lightswap-memory: Lightswap swaps pages of 4 KiB");
    }
    if (settings.memory_file != NULL) {
        refuse("-e (memory file) cannot be combined with --lightswap-memory: the items live in Lightswap's region");
    }
#ifdef TLS
    if (settings.ssl_enabled) {
        refuse("-Z (TLS) cannot be combined with --lightswap-memory: connections of a worker share one TLS buffer");
    }
#endif
    if (refused_suboption != NULL) {
        refuse("-o %s cannot be combined with --lightswap-memory: %s", refused_suboption, refusal);
    }
}

static void switch_off(void) {
    settings.slab_reassign = false;
    settings.slab_automove = 0;
}

void lightswap_configure(const struct lightswap_choices *choices) {
    if (memory_text == NULL) {
        memory_text = from_environment("LIGHTSWAP_MEMORY");
    }
    if (lightswap_settings.backend == NULL) {
        lightswap_settings.backend = from_environment("LIGHTSWAP_BACKEND");
    }
    if (memory_text == NULL && lightswap_settings.backend == NULL) {
        if (notifier_text != NULL || wait_text != NULL) {
            refuse("--lightswap-%s needs --lightswap-memory and --lightswap-backend", notifier_text != NULL ? "notifier" : "wait");
        }
        return;
    }
    if (memory_text == NULL) {
        refuse("--lightswap-backend needs --lightswap-memory, the amount of memory to keep items in");
    }
    if (lightswap_settings.backend == NULL) {
        refuse("--lightswap-memory needs --lightswap-backend, the place for items that do not fit in it");
    }
    if (lsw_parse_size(memory_text, &lightswap_settings.memory_bytes) != LSW_OK) {
        refuse("--lightswap-memory: %s", lsw_last_error());
    }
    if (notifier_text == NULL) {
        notifier_text = from_environment("LIGHTSWAP_NOTIFIER");
    }
    if (wait_text == NULL) {
        wait_text = from_environment("LIGHTSWAP_WAIT");
    }
    lightswap_settings.notifier = choose_notifier(notifier_text);
    lightswap_settings.waiting = choose(wait_text, "wait", "suspend", "poll");
    lightswap_settings.step_times = choose_in_environment("LIGHTSWAP_STEP_TIMES", "0", "1");
    lightswap_settings.fault_return = choose_in_environment("LIGHTSWAP_FAULT_RETURN", "user", "kernel");
    if (lightswap_settings.notifier == LSW_NOTIFIER_MONITOR && lightswap_settings.waiting == LSW_WAITING_POLL) {
        refuse("--lightswap-notifier=monitor cannot be combined with --lightswap-wait=poll: a thread that sleeps in the kernel cannot poll");
    }
    lightswap_asks_first = lightswap_settings.notifier != LSW_NOTIFIER_MONITOR;
    refuse_what_cannot_work(choices);
    switch_off();
    lightswap_enabled = true;
}
