/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach_call: a thread of an attached device's own, for its blocking calls to the kernel. A call may
 * wait for I/O of that very device, which this process serves: so neither the loop nor the helper threads
 * make it, and a device that hangs holds up no other.
 */
#ifndef OFFSITE_NBD_SERVER_ATTACH_CALL_H
#define OFFSITE_NBD_SERVER_ATTACH_CALL_H

#include "daemon/io/env.h"

struct attach_thread;

/* One at a time per thread; the caller's until done(). */
struct attach_call {
	void (*run)(struct attach_call *call); /* on the thread: touches nothing but its own data */
	void (*done)(struct attach_call *call); /* on the loop */
	/* private */
	struct env_task finished;
};

/* NULL without memory or threads. */
struct attach_thread *attach_thread_new(struct env *env);
void attach_thread_submit(struct attach_thread *thread, struct attach_call *call);
/* No call may be under way. NULL is allowed. */
void attach_thread_free(struct attach_thread *thread);

#endif
