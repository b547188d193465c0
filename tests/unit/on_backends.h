/* SPDX-License-Identifier: Apache-2.0 */
/*
 * on_backends: for unit tests that run on both real backends, each in a folder of its own. A test's
 * state is its struct world, or NULL where this machine lacks the backend. Before it: <cmocka.h> with
 * what that needs.
 */
#ifndef OFFSITE_TESTS_ON_BACKENDS_H
#define OFFSITE_TESTS_ON_BACKENDS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/io/env.h"

#define BACKEND_DIR_BYTES 64

/* Makes folder (ends with XXXXXX) and environment. False: not here, and said so. */
static inline bool backend_begin(enum env_backend backend, const char *folder, struct env **env,
				 char dir[BACKEND_DIR_BYTES])
{
	const char *why;

	snprintf(dir, BACKEND_DIR_BYTES, "%s", folder);
	assert_non_null(mkdtemp(dir));
	if (env_real_new(backend, 2, env, &why)) {
		print_message("SKIP: %s\n", why);
		rmdir(dir);
		return false;
	}
	env_log_level(*env, ENV_LOG_ERROR);
	return true;
}

static inline void backend_end(struct env *env, const char *dir)
{
	char command[BACKEND_DIR_BYTES + 16];

	env_free(env);
	snprintf(command, sizeof(command), "rm -rf '%s'", dir);
	assert_int_equal(system(command), 0);
}

struct world;

static inline struct world *world_of(void **state)
{
	if (!*state)
		skip();
	return *state;
}

/* Set-up functions of the two backends out of setup(state, backend). */
#define SETUP_ON_BOTH(setup)                            \
	static inline int setup_uring(void **state)     \
	{                                               \
		return setup(state, ENV_BACKEND_URING); \
	}                                               \
	static inline int setup_aio(void **state)       \
	{                                               \
		return setup(state, ENV_BACKEND_AIO);   \
	}

#endif
