/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs each test of a table on both real backends, in an environment and a folder of its own.
 * Where io_uring is forbidden its half is skipped by name. An alarm ends what hangs.
 */
#ifndef OFFSITE_TESTS_IO_HARNESS_H
#define OFFSITE_TESTS_IO_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "daemon/io/env.h"

#define LIMIT_SECONDS 120

struct world {
	enum env_backend backend;
	struct env *env;
	char dir[64];
};

struct io_test {
	const char *name;
	void (*run)(struct world *world);
};

/* An operation one waits for. */
struct waited {
	struct env_op op;
	bool done;
	int64_t result;
};

static inline void waited_done(struct env_op *op, int64_t result)
{
	struct waited *waited = (struct waited *)op;

	assert_false(waited->done);
	waited->result = result;
	waited->done = true;
}

static inline struct env_op *fresh(struct waited *waited)
{
	*waited = (struct waited){.op.done = waited_done};
	return &waited->op;
}

static inline int64_t await(struct world *world, struct waited *waited)
{
	assert_false(waited->done); /* not from inside the call that started it */
	env_run_until(world->env, &waited->done);
	return waited->result;
}

static inline const char *path_in(struct world *world, const char *name)
{
	static char paths[4][128];
	static unsigned turn;
	char *path = paths[turn++ % 4];

	snprintf(path, sizeof(paths[0]), "%s/%s", world->dir, name);
	return path;
}

static inline uint8_t *aligned_bytes(size_t size)
{
	void *memory = NULL;

	assert_int_equal(posix_memalign(&memory, 4096, size), 0);
	memset(memory, 0, size);
	return memory;
}

static inline void run_one(void **state)
{
	const struct io_test *test = *state;
	struct world world = {.backend = ENV_BACKEND_URING};
	char command[96];
	const char *why;

	/* The table is run twice over: the copy's name tells the backend. */
	if (strncmp(test->name, "libaio", 6) == 0)
		world.backend = ENV_BACKEND_AIO;
	if (env_real_new(world.backend, 2, &world.env, &why) != 0) {
		print_message("SKIP: %s: %s is not to be had here\n", test->name, why);
		skip();
	}
	strcpy(world.dir, "/var/tmp/offsite-io-XXXXXX");
	assert_non_null(mkdtemp(world.dir));
	test->run(&world);
	env_free(world.env);
	snprintf(command, sizeof(command), "rm -rf %s", world.dir);
	assert_int_equal(system(command), 0);
}

static inline int run_on_backends(const char *group, const struct io_test *tests, size_t count)
{
	static const char *const backends[] = {"io_uring", "libaio"};
	struct CMUnitTest *units = calloc(count * 2, sizeof(*units));
	struct io_test *copies = calloc(count * 2, sizeof(*copies));
	char(*names)[128] = calloc(count * 2, sizeof(*names));
	int failed;

	alarm(LIMIT_SECONDS);
	for (size_t i = 0; i < count * 2; i++) {
		snprintf(names[i], sizeof(names[i]), "%s: %s", backends[i / count],
			 tests[i % count].name);
		copies[i] = (struct io_test){names[i], tests[i % count].run};
		units[i] = (struct CMUnitTest){
			.name = names[i], .test_func = run_one, .initial_state = &copies[i]};
	}
	failed = _cmocka_run_group_tests(group, units, count * 2, NULL, NULL);
	free(names);
	free(copies);
	free(units);
	return failed;
}

#define RUN_ON_BACKENDS(tests) run_on_backends(#tests, tests, sizeof(tests) / sizeof((tests)[0]))

#endif
