// SPDX-License-Identifier: Apache-2.0
/* A volume is made bigger: while clients write, with a crash at any operation on its files, with a backing
 * that has other content beyond the end, with a superblock that cannot be written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <errno.h>
#include <cmocka.h>
#include "daemon/volume/volume.h"
#include "tests/sim/env_sim.h"

#define MIB    (1024ull * 1024)
#define MINUTE (60ull * 1000000000)
#define SMALL  (129 * MIB + 4096) /* more than one page of the peer's map, and odd in the store's */
#define LARGE  (300 * MIB + 8192)

#define FIXTURE_BYTES SMALL
#define FIXTURE_SEED  17
#include "tests/unit/volume_alone.h"

struct growth {
	bool done;
	int error;
	char why[320];
};

static void grown(void *context, int error, const char *why)
{
	struct growth *g = context;

	*g = (struct growth){.done = true, .error = error};
	snprintf(g->why, sizeof(g->why), "%s", why);
}

static int grow(struct fixture *f, uint64_t size)
{
	struct growth g = {0};

	volume_grow(f->volume, size, grown, &g);
	assert_true(sim_run_until(f->sim, &g.done, MINUTE));
	snprintf(f->why, sizeof(f->why), "%s", g.why);
	return g.error;
}

static bool is_dirty(struct fixture *f, enum volume_consumer consumer, uint64_t offset)
{
	uint64_t start, length;

	return volume_dirty_next(f->volume, consumer, offset, &start, &length) && start <= offset;
}

static void keeps_its_maps_and_serves_the_new_part(void **state)
{
	struct fixture *f = *state;
	struct block_info info;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 128 * MIB, 4096, 1), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, SMALL - 4096, 4096, 2), 0);
	assert_int_equal(grow(f, LARGE), 0);
	volume_check(f->volume);
	assert_int_equal(volume_size_bytes(f->volume), LARGE);
	volume_block(f->volume)->ops->info(volume_block(f->volume), &info);
	assert_int_equal(info.size_bytes, LARGE);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 8192);
	assert_true(reads_as(f, SMALL, MIB, 0));
	assert_true(reads_as(f, SMALL - 4096, 4096, 2));
	assert_int_equal(simple(f, BLOCK_WRITE, LARGE - 4096, 4096, 3), 0);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 3 * 4096);
	close_it(f);
	open_it(f);
	assert_int_equal(volume_size_bytes(f->volume), LARGE);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 3 * 4096);
	assert_int_equal(grow(f, 2 * LARGE), 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_int_equal(volume_size_bytes(f->volume), 2 * LARGE);
	assert_true(is_dirty(f, VOLUME_PEER, 128 * MIB));
	assert_true(is_dirty(f, VOLUME_STORE, LARGE - 4096));
	assert_true(reads_as(f, LARGE - 4096, 4096, 3));
	assert_true(reads_as(f, LARGE, MIB, 0));
	close_it(f);
}

static void refuses_what_is_not_bigger_or_not_whole_blocks(void **state)
{
	struct fixture *f = *state;

	open_it(f);
	assert_int_equal(grow(f, SMALL), -EINVAL);
	assert_int_equal(grow(f, SMALL - 4096), -EINVAL);
	assert_non_null(strstr(f->why, "never made smaller"));
	assert_int_equal(grow(f, SMALL + 512), -EINVAL);
	assert_non_null(strstr(f->why, "not a multiple of 4096"));
	assert_int_equal(volume_size_bytes(f->volume), SMALL);
	close_it(f);
}

static void refuses_while_a_snapshot_is_made(void **state)
{
	struct fixture *f = *state;
	struct volume_cut *cut;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	assert_int_equal(
		volume_cut_begin(f->volume, VOLUME_STORE, VOLUME_CUT_LIVE, NULL, NULL, &cut), 0);
	assert_int_equal(grow(f, LARGE), -EBUSY);
	assert_non_null(strstr(f->why, "snapshot"));
	volume_cut_finish(cut, true);
	assert_int_equal(grow(f, LARGE), 0);
	close_it(f);
}

/* Between two flush points of the stream; while the peer is asked for its map of the store. */
static void goes_on_with_what_is_sealed_for_the_stream(void **state)
{
	static const uint64_t block[] = {VOLUME_PEER_BLOCK_BYTES, VOLUME_STORE_BLOCK_BYTES};
	uint64_t size = LARGE;

	for (unsigned c = 0; c < 2; c++, size += MIB) {
		enum volume_consumer consumer = c ? VOLUME_STORE : VOLUME_PEER;
		struct fixture *f = *state;
		struct volume_cut *cut;

		if (c == 0)
			open_it(f);
		assert_int_equal(volume_clear_all(f->volume, consumer), 0);
		assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
		assert_int_equal(volume_cut_begin(f->volume, consumer, VOLUME_CUT_BITS_ONLY, NULL,
						  NULL, &cut),
				 0);
		assert_int_equal(simple(f, BLOCK_WRITE, 0, 2 * block[c], 1), 0);
		assert_int_equal(grow(f, size), 0);
		volume_check(f->volume);
		assert_int_equal(volume_dirty_bytes(f->volume, consumer), 2 * block[c]);
		volume_cut_finish(cut, false);
		assert_int_equal(volume_dirty_bytes(f->volume, consumer), 2 * block[c]);
	}
	close_it(*state);
}

static void makes_what_the_backing_had_beyond_the_end_zero(void **state)
{
	for (int unsupported = 0; unsupported < 2; unsupported++) {
		struct fixture *f = *state;
		struct sim_disk_options options;
		struct env_file *file;
		bool closed = false;
		char path[2][32];

		snprintf(path[0], sizeof(path[0]), "/disk/%d.img", unsupported);
		snprintf(path[1], sizeof(path[1]), "/state/%d", unsupported);
		f->config.backing = path[0];
		f->config.state_dir = path[1];
		sim_disk_get(f->env, &options);
		options.zero_unsupported = unsupported;
		sim_disk_set(f->env, &options);
		assert_int_equal(env_file_open(f->env, path[0],
					       ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE,
					       &file),
				 0);
		assert_int_equal(env_file_truncate(f->env, file, SMALL + 8 * MIB), 0);
		assert_int_equal(env_file_pwrite(f->env, file, "old content", 12, SMALL + 5 * MIB),
				 0);
		env_file_close(f->env, file);
		open_it(f);
		assert_int_equal(grow(f, LARGE), 0);
		assert_true(reads_as(f, SMALL + 5 * MIB, MIB, 0));
		volume_close(f->volume, set_true, &closed);
		assert_true(sim_run_until(f->sim, &closed, MINUTE));
	}
}

/* Its outcome is not known: until another one is written, nothing may be that only one of them says. */
static void a_superblock_that_fails_leaves_the_old_size(void **state)
{
	struct fixture *f = *state;
	struct request *write;
	struct growth g = {0};

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	set_errors(f, "/super", 0, 1000000);
	volume_grow(f->volume, LARGE, grown, &g);
	assert_false(sim_run_until(f->sim, &g.done, 1000000000));
	write = submit(f, BLOCK_WRITE, 0, 100 * MIB, 4096, 2);
	assert_false(sim_run_until(f->sim, &write->wait.done, 1000000000));
	assert_int_equal(volume_size_bytes(f->volume), SMALL);
	set_errors(f, NULL, 0, 0);
	assert_true(sim_run_until(f->sim, &g.done, MINUTE));
	assert_int_equal(g.error, -EIO);
	assert_int_equal(finish(f, write), 0);
	assert_int_equal(volume_size_bytes(f->volume), SMALL);
	assert_int_equal(grow(f, LARGE), 0);
	crash_it(f, SIM_CRASH_POWER);
	open_it(f);
	assert_int_equal(volume_size_bytes(f->volume), LARGE);
	assert_true(is_dirty(f, VOLUME_PEER, 100 * MIB));
	close_it(f);
}

/* What it could not write the system may have dropped: that is of the clients' writes, too. */
static void an_fsync_that_fails_is_not_forgotten(void **state)
{
	struct fixture *f = *state;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	set_errors(f, "v.img", 0, 1000000);
	assert_int_equal(grow(f, LARGE), -EIO);
	assert_non_null(strstr(f->why, "fsync"));
	set_errors(f, NULL, 0, 0);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	assert_non_null(strstr(volume_failure(f->volume), "fsync"));
	assert_int_equal(volume_size_bytes(f->volume), SMALL);
	close_it(f);
}

static void apply_done(struct volume_apply *apply, int error)
{
	(void)apply;
	(void)error;
}

static bool tap_issue(struct volume_tap *tap, const struct volume_mutation *mutation,
		      uint64_t token)
{
	(void)tap;
	(void)mutation;
	(void)token;
	return false;
}

static bool tap_yes(struct volume_tap *tap)
{
	(void)tap;
	return true;
}

/* While it is made bigger: what lies beyond the end is being zeroed, and takes its time. */
static void fail_while_growing(struct fixture *f, struct growth *g, struct volume_tap *tap)
{
	static struct volume_apply apply;
	struct request *flush = NULL;
	struct sim_disk_options options, slow;
	struct env_file *file;

	assert_int_equal(env_file_open(f->env, "/disk/v.img",
				       ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &file),
			 0);
	assert_int_equal(env_file_truncate(f->env, file, SMALL + 8 * MIB), 0);
	env_file_close(f->env, file);
	open_it(f);
	volume_set_tap(f->volume, tap);
	sim_disk_get(f->env, &options);
	slow = options;
	slow.latency_min_ns = slow.latency_max_ns = 10000000000;
	sim_disk_set(f->env, &slow);
	volume_grow(f->volume, LARGE, grown, g);
	pass(f, 1000000);
	sim_disk_set(f->env, &options);
	set_errors(f, "v.img", 0, 1000000);
	if (f->config.role == VOLUME_SECONDARY) {
		apply = (struct volume_apply){.mutation = {.type = VOLUME_FLUSH},
					      .done = apply_done};
		volume_apply(f->volume, &apply);
	} else {
		flush = submit(f, BLOCK_FLUSH, 0, 0, 0, 0);
	}
	pass(f, 1000000000);
	set_errors(f, NULL, 0, 0);
	volume_settled(f->volume, 0);
	if (flush != NULL)
		assert_int_equal(finish(f, flush), 0);
	assert_false(g->done);
}

/* A disk that failed meanwhile is not exchanged under what is on its way to it. */
static void a_failed_disk_is_replaced_when_it_is_over(void **state)
{
	struct fixture *f = *state;
	struct growth g = {0};

	f->config.role = VOLUME_SECONDARY;
	fail_while_growing(f, &g, NULL);
	assert_int_equal(state_at(f)->disk, VOLUME_DISK_FAILED);
	assert_int_equal(volume_replace_backing(f->volume, f->why, sizeof(f->why)), -EBUSY);
	assert_true(sim_run_until(f->sim, &g.done, MINUTE));
	assert_int_not_equal(g.error, 0);
	assert_int_equal(volume_replace_backing(f->volume, f->why, sizeof(f->why)), 0);
	close_it(f);
}

static void a_disk_is_filled_when_it_is_over(void **state)
{
	struct fixture *f = *state;
	struct volume_tap tap = {.issue = tap_issue, .ready = tap_yes, .settle = tap_yes};
	struct growth g = {0};

	f->config.detach_on_error = true;
	fail_while_growing(f, &g, &tap);
	assert_int_equal(volume_lean(f->volume), VOLUME_LEAN_DISKLESS);
	assert_int_equal(volume_hydrate(f->volume, f->why, sizeof(f->why)), -EBUSY);
	assert_true(sim_run_until(f->sim, &g.done, MINUTE));
	assert_int_not_equal(g.error, 0);
	volume_set_tap(f->volume, NULL);
	close_it(f);
}

static void the_config_counts_when_it_is_made_and_may_not_ask_for_more(void **state)
{
	struct fixture *f = *state;

	open_it(f);
	assert_int_equal(grow(f, LARGE), 0);
	close_it(f);
	open_it(f);
	close_it(f);
	f->config.size_bytes = LARGE + 4096;
	assert_int_equal(try_open(f), -EINVAL);
	assert_non_null(strstr(f->why, "offsite resize v 314585088"));
	f->config.size_bytes = 0;
	open_it(f);
	assert_int_equal(volume_size_bytes(f->volume), LARGE);
	close_it(f);
}

/* Writes go on meanwhile: those acknowledged are there afterwards, and all of them are marked. */
static bool crash_once(struct fixture *f, uint64_t k, enum sim_crash mode)
{
	struct growth g = {0};
	struct request *writes[6] = {0};
	uint64_t size;
	bool dead;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 5 * MIB, 4096, 5), 0);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
	sim_crash_after_ios(f->sim, f->env, k, mode);
	volume_grow(f->volume, LARGE, grown, &g);
	for (unsigned i = 0; i < 6; i++)
		writes[i] = submit(f, BLOCK_WRITE, BLOCK_FUA, (20 + 20 * i) * MIB, 4096, 6);
	while (!(dead = sim_node_dead(f->env)) && !g.done)
		sim_step(f->sim);
	if (!dead)
		sim_crash(f->sim, f->env, mode);
	f->env = sim_restart(f->sim, f->env);
	open_it(f);
	size = volume_size_bytes(f->volume);
	assert_true(size == LARGE || (size == SMALL && dead));
	volume_check(f->volume);
	assert_true(reads_as(f, 5 * MIB, 4096, 5));
	assert_true(is_dirty(f, VOLUME_PEER, 5 * MIB) && is_dirty(f, VOLUME_STORE, 5 * MIB));
	for (unsigned i = 0; i < 6; i++) {
		uint64_t at = (20 + 20 * i) * MIB;
		bool there = reads_as(f, at, 4096, 6);

		assert_true(there || !writes[i]->wait.done || writes[i]->wait.error);
		assert_true(!there ||
			    (is_dirty(f, VOLUME_PEER, at) && is_dirty(f, VOLUME_STORE, at)));
		buf_put(writes[i]->block.buf);
		free(writes[i]);
	}
	/* A map that is missing would mark everything. */
	assert_true(volume_dirty_bytes(f->volume, VOLUME_PEER) < SMALL);
	if (size == SMALL)
		assert_int_equal(grow(f, LARGE), 0);
	assert_true(reads_as(f, SMALL + 2 * MIB, MIB, 0));
	assert_int_equal(simple(f, BLOCK_WRITE, LARGE - 4096, 4096, 9), 0);
	close_it(f);
	return dead;
}

static void a_crash_at_any_operation_leaves_one_of_the_sizes_whole(void **state)
{
	static const enum sim_crash modes[] = {SIM_CRASH_KILL, SIM_CRASH_POWER,
					       SIM_CRASH_POWER_DROP, SIM_CRASH_POWER_KEEP};
	(void)state;
	for (unsigned m = 0; m < 4; m++) {
		unsigned crashes = 0;
		bool dead = true;

		for (uint64_t k = 1; dead; k++) {
			struct env_file *file;
			struct fixture *f;
			void *one;

			setup(&one);
			f = one;
			/* With something beyond the end, that has to go. */
			env_file_open(f->env, "/disk/v.img",
				      ENV_FILE_READ | ENV_FILE_WRITE | ENV_FILE_CREATE, &file);
			env_file_truncate(f->env, file, SMALL + 4 * MIB);
			env_file_pwrite(f->env, file, "old content", 12, SMALL + 2 * MIB);
			env_file_sync(f->env, file);
			env_file_close(f->env, file);
			dead = crash_once(f, k, modes[m]);
			crashes += dead;
			teardown(&one);
		}
		assert_true(crashes > 10);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(keeps_its_maps_and_serves_the_new_part),
		TEST(refuses_what_is_not_bigger_or_not_whole_blocks),
		TEST(refuses_while_a_snapshot_is_made),
		TEST(goes_on_with_what_is_sealed_for_the_stream),
		TEST(makes_what_the_backing_had_beyond_the_end_zero),
		TEST(a_superblock_that_fails_leaves_the_old_size),
		TEST(an_fsync_that_fails_is_not_forgotten),
		TEST(a_failed_disk_is_replaced_when_it_is_over),
		TEST(a_disk_is_filled_when_it_is_over),
		TEST(the_config_counts_when_it_is_made_and_may_not_ask_for_more),
		cmocka_unit_test(a_crash_at_any_operation_leaves_one_of_the_sizes_whole),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
