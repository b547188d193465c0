/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process: what the daemon asks of the kernel and tells the service manager.
 */
#ifndef OFFSITE_CONTROL_PROCESS_H
#define OFFSITE_CONTROL_PROCESS_H

#include "daemon/io/env.h"

/* What was not permitted: -errno, or 0. */
struct process_hardening {
	int memory, flusher, oom;
};

/* The daemon may stand under its own client's filesystem: it locks the memory it uses, is marked as
 * an I/O flusher, and asks the OOM killer for mercy, so that writing out dirty pages cannot wait
 * for itself. Threads inherit the mark from the one that starts them: to be called before there are any. */
void process_harden(struct process_hardening *hardening);
/* Logs what is done without. */
void process_tell(struct env *env, const struct process_hardening *hardening);

/* Sends a state ("READY=1") to $NOTIFY_SOCKET, if the service manager gave one. */
void process_notify(struct env *env, const char *state);
/* How often the service manager wants to hear WATCHDOG=1, at most; 0: it does not. */
uint64_t process_watchdog_ns(void);

#endif
