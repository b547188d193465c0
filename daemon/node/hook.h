/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hook: a program of the operator's, run with a time limit: exit status and the last line of what it
 * said. On a thread of its own: it may take as long as it likes without keeping the helpers from their
 * work, and they do not keep it waiting.
 */
#ifndef OFFSITE_HOOK_H
#define OFFSITE_HOOK_H

#include <pthread.h>
#include <stdatomic.h>

#include "daemon/io/env.h"

#define HOOK_VARIABLES 8

struct hook {
	/* Set by the caller before hook_run(); the memory stays until done(). */
	const char *command; /* path; run without arguments */
	char *environment[HOOK_VARIABLES +
			  1]; /* "NAME=value", NULL at the end; PATH comes on top */
	uint64_t timeout_ns;  /* then its process group gets SIGTERM, 5 s later SIGKILL */
	void (*done)(struct hook *hook); /* on the loop thread */
	/* The result. */
	int error;        /* 0: it ran to its end; -ETIMEDOUT, -ECANCELED: killed; else not run */
	int status;       /* exit status; 128 + signal if one ended it */
	char output[200]; /* last line of stdout and stderr, printable; "" */
	/* private */
	struct env *env;
	struct env_task ran;
	pthread_t thread;
	bool has_thread;
	atomic_bool cancelled;
	char path[1024];
};

void hook_run(struct env *env, struct hook *hook);
/* It is killed soon; done() follows as always. */
void hook_cancel(struct hook *hook);
/* 0: it ran and succeeded; else -errno and why not; limit: the option that sets timeout_ns. */
int hook_result(const struct hook *hook, const char *limit, char *why, size_t why_size);

#endif
