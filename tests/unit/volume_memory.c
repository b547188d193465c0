// SPDX-License-Identifier: Apache-2.0
/*
 * A braced volume takes no memory for I/O: neither of the allocator nor, with buffers and maps that were never
 * touched before, of the kernel. It may lie under a filesystem that has none to give until it has written. On
 * both real backends.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RUSAGE_THREAD */
#endif
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "daemon/volume/volume.h"
#include "tests/unit/count_memory.h"
#include "tests/unit/on_backends.h"

#define SIZE   (1ull << 30)
#define DEPTH  32
#define ROUNDS 60

struct request {
	struct block_request block;
	struct world *world;
	struct buf *buf; /* for READ and WRITE, for good */
};

struct world {
	struct env *env;
	char dir[BACKEND_DIR_BYTES], backing[96], state[96];
	struct volume *volume;
	struct buf_pool *pool;
	struct request requests[DEPTH];
	unsigned under_way;
	bool idle;
	uint64_t random;
};

static uint64_t rnd(struct world *w, uint64_t limit)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return w->random * 0x2545f4914f6cdd1dull % limit;
}

static void request_done(struct block_request *block, int error)
{
	struct world *w = ((struct request *)block)->world;

	assert_int_equal(error, 0);
	w->idle = --w->under_way == 0;
}

static int setup(void **state, enum env_backend backend)
{
	struct world *w = calloc(1, sizeof(*w));
	struct volume_config config = {.name = "v",
				       .backing = w->backing,
				       .state_dir = w->state,
				       .size_bytes = SIZE,
				       .role = VOLUME_PRIMARY};
	char why[256];

	*state = NULL;
	if (!backend_begin(backend, "volume_memory.XXXXXX", &w->env, w->dir)) {
		free(w);
		return 0;
	}
	snprintf(w->backing, sizeof(w->backing), "%s/v.img", w->dir);
	snprintf(w->state, sizeof(w->state), "%s/state", w->dir);
	w->random = 4711;
	w->pool = buf_pool_new((unsigned[3]){0, 0, DEPTH});
	assert_int_equal(volume_open(w->env, &config, &w->volume, why, sizeof(why)), 0);
	for (unsigned i = 0; i < DEPTH; i++) {
		w->requests[i].world = w;
		w->requests[i].buf = buf_alloc(w->pool, BUF_SIZE_MAX);
		memset(w->requests[i].buf->data, (int)i, BUF_SIZE_MAX);
	}
	*state = w;
	return 0;
}
SETUP_ON_BOTH(setup)

static void set_true(void *context)
{
	*(bool *)context = true;
}

static int teardown(void **state)
{
	struct world *w = *state;
	bool closed = false;

	if (!w)
		return 0;
	volume_close(w->volume, set_true, &closed);
	env_run_until(w->env, &closed);
	for (unsigned i = 0; i < DEPTH; i++)
		buf_put(w->requests[i].buf);
	buf_pool_free(w->pool);
	backend_end(w->env, w->dir);
	free(w);
	return 0;
}

static void run(struct world *w, unsigned count, enum block_op op, uint64_t offset, uint64_t length)
{
	struct block *block = volume_block(w->volume);

	w->idle = false;
	w->under_way = count;
	for (unsigned i = 0; i < count; i++) {
		struct request *r = &w->requests[i];

		r->block = (struct block_request){
			.op = op,
			.offset_bytes =
				op == BLOCK_FLUSH
					? 0
					: offset + rnd(w, (SIZE - length - offset) / 512) * 512,
			.length_bytes = op == BLOCK_FLUSH ? 0 : length,
			.buf = op == BLOCK_READ || op == BLOCK_WRITE ? r->buf : NULL,
			.done = request_done,
		};
		block->ops->submit(block, &r->block);
	}
	env_run_until(w->env, &w->idle);
}

/* All kinds of requests, in all sizes, aligned or not. */
static void use(struct world *w, unsigned depth, uint64_t offset)
{
	run(w, depth, BLOCK_WRITE, offset, 4096);
	run(w, depth, BLOCK_WRITE, offset, 512);
	run(w, depth, BLOCK_WRITE, offset, 49152);
	run(w, depth / 8 + 1, BLOCK_WRITE, offset, BUF_SIZE_MAX);
	run(w, 1, BLOCK_FLUSH, 0, 0);
	run(w, depth, BLOCK_READ, offset, 512);
	run(w, depth, BLOCK_READ, offset, 65536);
	run(w, depth / 8 + 1, BLOCK_READ, offset, BUF_SIZE_MAX);
	run(w, depth, BLOCK_TRIM, offset, 65536);
	run(w, depth, BLOCK_ZERO, offset, 12288);
}

static void lost(void *context, int error)
{
	fail_msg("cut lost: %d", error);
}

static void io_of_a_braced_volume_takes_no_memory(void **state)
{
	struct world *w = world_of(state);
	struct memory_count before, after;
	struct volume_stats stats;
	struct volume_cut *cut;

	if (!COUNT_MEMORY_WORKS)
		skip();
	/* Paths of the code, and one corner of the maps. */
	for (unsigned i = 0; i < 3; i++)
		use(w, 2, SIZE - 4 * BUF_SIZE_MAX);
	volume_brace(w->volume, true, true);
	/* All of it is preserved from the beginning on. */
	run(w, 1, BLOCK_WRITE, SIZE - 2 * BUF_SIZE_MAX, BUF_SIZE_MAX);
	assert_int_equal(volume_mark_all(w->volume, VOLUME_STORE, false), 0);
	assert_int_equal(volume_cut_begin(w->volume, VOLUME_STORE, 0, lost, NULL, &cut), 0);
	before = memory_counted();
	for (unsigned i = 0; i < ROUNDS; i++)
		use(w, DEPTH, 0);
	after = memory_counted();
	volume_get_stats(w->volume, &stats);
	print_message("%lu allocations, %ld pages; %llu MiB were preserved\n",
		      after.allocations - before.allocations, after.faults - before.faults,
		      (unsigned long long)stats.preserved_bytes >> 20);
	assert_int_equal(after.allocations, before.allocations);
	assert_int_equal(after.faults, before.faults);
	assert_true(stats.preserved_bytes >> 20 > 50);
	volume_cut_finish(cut, false);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(io_of_a_braced_volume_takes_no_memory, setup_uring,
						teardown),
		cmocka_unit_test_setup_teardown(io_of_a_braced_volume_takes_no_memory, setup_aio,
						teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
