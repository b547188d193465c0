/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A volume alone in a simulated world, opened, used, closed and crashed. Before it is included:
 * FIXTURE_BYTES, its size, and FIXTURE_SEED, the world's where SEED is not set.
 */
#ifndef OFFSITE_TESTS_UNIT_VOLUME_ALONE_H
#define OFFSITE_TESTS_UNIT_VOLUME_ALONE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "daemon/volume/volume.h"
#include "tests/sim/env_sim.h"

struct fixture {
	struct sim *sim;
	struct env *env;
	struct volume *volume;
	struct volume_config config;
	struct buf_pool *pool;
	char why[320];
	struct volume_state state;
};

struct wait {
	bool done;
	int error;
};

struct request {
	struct block_request block;
	struct wait wait;
};

static int setup(void **state)
{
	static const unsigned counts[3] = {32, 16, 16};
	struct fixture *f = calloc(1, sizeof(*f));
	const char *seed = getenv("SEED");

	f->sim = sim_new(seed ? strtoull(seed, NULL, 10) : FIXTURE_SEED);
	f->env = sim_node(f->sim, "a");
	f->pool = buf_pool_new(counts);
	env_mkdir(f->env, "/disk");
	f->config = (struct volume_config){.name = "v",
					   .backing = "/disk/v.img",
					   .state_dir = "/state/v",
					   .size_bytes = FIXTURE_BYTES,
					   .role = VOLUME_PRIMARY};
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	buf_pool_free(f->pool);
	sim_free(f->sim);
	free(f);
	return 0;
}

static int try_open(struct fixture *f)
{
	f->why[0] = '\0';
	return volume_open(f->env, &f->config, &f->volume, f->why, sizeof(f->why));
}

static void open_it(struct fixture *f)
{
	assert_int_equal(try_open(f), 0);
}

static void set_true(void *context)
{
	*(bool *)context = true;
}

static void close_it(struct fixture *f)
{
	bool closed = false;

	volume_close(f->volume, set_true, &closed);
	assert_true(sim_run_until(f->sim, &closed, MINUTE));
	f->volume = NULL;
}

static void crash_it(struct fixture *f, enum sim_crash mode)
{
	sim_crash(f->sim, f->env, mode);
	f->env = sim_restart(f->sim, f->env);
}

/* How often, in a million, of the files whose path contains that. */
static inline void set_errors(struct fixture *f, const char *path, uint32_t write_ppm,
			      uint32_t fsync_ppm)
{
	struct sim_disk_options options;

	sim_disk_get(f->env, &options);
	options.write_eio_ppm = write_ppm;
	options.fsync_eio_ppm = fsync_ppm;
	options.eio_path = path;
	sim_disk_set(f->env, &options);
}

static void request_done(struct block_request *block, int error)
{
	struct request *r = (struct request *)block;

	r->wait = (struct wait){.done = true, .error = error};
}

static struct request *submit(struct fixture *f, enum block_op op, unsigned flags, uint64_t offset,
			      uint64_t length, int fill)
{
	struct request *r = calloc(1, sizeof(*r));

	r->block.op = op;
	r->block.flags = flags;
	r->block.offset_bytes = offset;
	r->block.length_bytes = length;
	r->block.done = request_done;
	if (op == BLOCK_READ || op == BLOCK_WRITE) {
		r->block.buf = buf_alloc(f->pool, (uint32_t)length);
		memset(r->block.buf->data, fill, length);
	}
	volume_block(f->volume)->ops->submit(volume_block(f->volume), &r->block);
	return r;
}

static int finish(struct fixture *f, struct request *r)
{
	int error;

	assert_true(r->wait.done || sim_run_until(f->sim, &r->wait.done, MINUTE));
	error = r->wait.error;
	buf_put(r->block.buf);
	free(r);
	return error;
}

static int simple(struct fixture *f, enum block_op op, uint64_t offset, uint64_t length, int fill)
{
	return finish(f, submit(f, op, 0, offset, length, fill));
}

/* True if [offset, offset + length) reads as fill. */
static bool reads_as(struct fixture *f, uint64_t offset, uint64_t length, int fill)
{
	struct request *r = submit(f, BLOCK_READ, 0, offset, length, ~fill);
	bool same = true;

	assert_true(r->wait.done || sim_run_until(f->sim, &r->wait.done, MINUTE));
	assert_int_equal(r->wait.error, 0);
	for (uint64_t i = 0; i < length; i++)
		same &= r->block.buf->data[i] == (uint8_t)fill;
	finish(f, r);
	return same;
}

static inline void pass(struct fixture *f, uint64_t ns)
{
	sim_run_until(f->sim, NULL, ns);
}

/* Valid until the next call. */
static inline const struct volume_state *state_at(struct fixture *f)
{
	volume_get_state(f->volume, &f->state);
	return &f->state;
}

static inline void set_role(struct fixture *f, enum volume_role role)
{
	struct volume_state state = *state_at(f);

	state.role = role;
	assert_int_equal(volume_set_state(f->volume, &state), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

/* Memory of volumes that crashed is dropped, as env_sim.h says. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

#endif
