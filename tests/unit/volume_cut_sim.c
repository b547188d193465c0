// SPDX-License-Identifier: Apache-2.0
/* What a volume keeps for its consumers while clients write: maps, cuts, copy before write, ranges that are held. */
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

#define FIXTURE_BYTES (64 * MIB)
#define FIXTURE_SEED  11
#include "tests/unit/volume_alone.h"

/* ---- maps ------------------------------------------------------------------------------------------ */

static void lost(void *context, int error)
{
	*(int *)context = error;
}

static void marks_are_durable(void **s)
{
	struct fixture *f = *s;

	open_it(f);
	assert_int_equal(volume_mark(f->volume, VOLUME_PEER, 10 * MIB, 8192), 0);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 8192);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_true(volume_dirty_bytes(f->volume, VOLUME_PEER) >= 8192);
	assert_int_equal(volume_clear_all(f->volume, VOLUME_PEER), 0);
	assert_int_equal(volume_mark(f->volume, VOLUME_PEER, 10 * MIB, 8192), 0);
	pass(f, MINUTE); /* stored by then: no more than that counts */
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 8192);
	assert_int_equal(simple(f, BLOCK_WRITE, 20 * MIB, 4096, 1), 0);
	assert_int_equal(volume_mark_all(f->volume, VOLUME_STORE, true), 0);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 65536);
	assert_int_equal(volume_mark_all(f->volume, VOLUME_STORE, false), 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 64 * MIB);
	close_it(f);
}

static void idle_regions_lose_their_intent(void **s)
{
	struct fixture *f = *s;
	struct volume_stats stats;

	open_it(f);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(simple(f, BLOCK_WRITE, i * 3 * MIB, 4096, 1), 0);
	volume_get_stats(f->volume, &stats);
	assert_true(stats.intent_regions >= 20);
	pass(f, MINUTE);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.intent_regions, 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 20 * 4096);
	assert_true(reads_as(f, 57 * MIB, 4096, 1)); /* retired: so it is on the disk */
	assert_int_equal(volume_clear_all(f->volume, VOLUME_PEER), 0);
	pass(f, MINUTE);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 0);
	close_it(f);
}

static void store_map_does_not_follow_applying(void **s)
{
	struct fixture *f = *s;
	struct volume_state state;
	struct volume_cut *cut;
	int error = 0;

	f->config.role = VOLUME_SECONDARY;
	open_it(f);
	state = *state_at(f);
	memset(&state.snapshot, 3, sizeof(state.snapshot));
	assert_int_equal(volume_set_state(f->volume, &state), 0);
	assert_int_equal(volume_begin_applying(f->volume), 0);
	assert_true(id128_is_zero(&state_at(f)->snapshot));
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_true(id128_is_zero(&state_at(f)->snapshot));
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 64 * MIB);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	assert_int_equal(volume_cut_bytes(cut), 64 * MIB);
	volume_cut_finish(cut, true);
	/* Still changed by another's hand. */
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 64 * MIB);
	set_role(f, VOLUME_PRIMARY);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	volume_cut_finish(cut, true);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	pass(f, MINUTE);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 65536);
	close_it(f);
}

/* ---- cuts ------------------------------------------------------------------------------------------ */

static void full_preserve_area_gives_the_cut_up(void **s)
{
	struct fixture *f = *s;
	struct volume_cut *cut, *other;
	struct volume_stats stats;
	int error = 0;

	f->config.preserve_max_bytes = 256 * 1024;
	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, MIB, 1), 0);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_PEER, 0, lost, &error, &cut), 0);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_PEER, 0, lost, &error, &other), -EBUSY);
	assert_int_equal(volume_cut_bytes(cut), MIB);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 128 * 1024, 2), 0);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.preserve_used_bytes, 128 * 1024);
	assert_int_equal(error, 0);
	assert_false(volume_cut_is_short(cut));
	assert_int_equal(simple(f, BLOCK_WRITE, 128 * 1024, 4096, 2), 0);
	assert_true(volume_cut_is_short(cut));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, MIB, 3), 0);
	assert_int_equal(error, -ENOSPC);
	volume_cut_finish(cut, false);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), MIB);
	/* And the next one starts with an empty area. */
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_PEER, 0, lost, &error, &cut), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 128 * 1024, 4), 0);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.preserve_used_bytes, 128 * 1024);
	volume_cut_finish(cut, true);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 128 * 1024);
	close_it(f);
}

struct cut_reading {
	struct volume_cut_read read; /* first */
	bool done;
};

static void cut_was_read(struct volume_cut_read *read, int error)
{
	assert_int_equal(error, 0);
	((struct cut_reading *)read)->done = true;
}

/* Not the blocks of 64 KiB that the store counts in; and what is left of those on the disk is read from there. */
static void a_write_preserves_what_it_overwrites(void **s)
{
	struct fixture *f = *s;
	const unsigned counts[3] = {0, 0, 1};
	struct buf_pool *pool = buf_pool_new(counts);
	struct cut_reading r = {.read = {.length_bytes = 384 * 1024, .done = cut_was_read}};
	struct volume_cut *cut;
	struct volume_stats stats;
	int error = 0;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 384 * 1024, 1), 0);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 8192, 4096, 2), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 8192, 4096, 3), 0); /* once is enough */
	assert_int_equal(simple(f, BLOCK_WRITE, 60 * 1024, 12 * 1024, 4), 0);
	assert_int_equal(simple(f, BLOCK_TRIM, 128 * 1024, 64 * 1024, 0), 0);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.preserve_used_bytes, 4096 + 12 * 1024 + 64 * 1024);
	r.read.buf = buf_alloc(pool, r.read.length_bytes);
	volume_cut_read(cut, &r.read);
	pass(f, MINUTE);
	assert_true(r.done);
	for (unsigned i = 0; i < r.read.length_bytes; i++)
		if (r.read.buf->data[i] != 1)
			fail_msg("byte %u is %u", i, r.read.buf->data[i]);
	assert_int_equal(simple(f, BLOCK_WRITE, 200 * 1024, 4096, 5), 0); /* it was read */
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.preserve_used_bytes, 4096 + 12 * 1024 + 64 * 1024);
	assert_int_equal(error, 0);
	buf_put(r.read.buf);
	volume_cut_finish(cut, true);
	assert_true(reads_as(f, 8192, 4096, 3));
	buf_pool_free(pool);
	close_it(f);
}

/* A client's write waits for what it overwrites to be read, not for that to be in the preserve file; who reads
 * the cut does. */
static void a_write_goes_ahead_of_what_is_preserved(void **s)
{
	struct fixture *f = *s;
	const unsigned counts[3] = {0, 1, 0};
	struct buf_pool *pool = buf_pool_new(counts);
	struct cut_reading r = {.read = {.length_bytes = 65536}};
	struct volume_cut *cut;
	struct request *request;
	uint8_t kept[4096];
	unsigned ahead = 0;
	int error = 0;

	open_it(f);
	r.read.buf = buf_alloc(pool, r.read.length_bytes);
	r.read.done = cut_was_read;
	for (unsigned round = 1; round <= 200; round++) {
		assert_int_equal(simple(f, BLOCK_WRITE, 0, 65536, round), 0);
		assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut),
				 0);
		request = submit(f, BLOCK_WRITE, 0, 8192, 4096, 255);
		assert_true(sim_run_until(f->sim, &request->wait.done, MINUTE));
		if (!sim_file_peek(f->env, "/state/v/preserve.store", kept, sizeof(kept), 0) ||
		    kept[0] != round)
			ahead++;
		memset(r.read.buf->data, 0, r.read.length_bytes);
		r.done = false;
		volume_cut_read(cut, &r.read);
		assert_int_equal(finish(f, request), 0);
		assert_true(r.done || sim_run_until(f->sim, &r.done, MINUTE));
		for (unsigned i = 0; i < r.read.length_bytes; i++)
			if (r.read.buf->data[i] != round)
				fail_msg("round %u: byte %u is %u", round, i, r.read.buf->data[i]);
		assert_int_equal(error, 0);
		volume_cut_finish(cut, true);
		pass(f, MINUTE);
	}
	print_message("ahead in %u of 200\n", ahead);
	assert_true(ahead > 10);
	buf_put(r.read.buf);
	buf_pool_free(pool);
	close_it(f);
}

static void assert_cut_is(struct fixture *f, struct volume_cut *cut, uint64_t offset, uint8_t value)
{
	const unsigned counts[3] = {0, 0, 1};
	struct buf_pool *pool = buf_pool_new(counts);
	struct cut_reading r = {.read = {.offset_bytes = offset, .length_bytes = MIB}};

	r.read.done = cut_was_read;
	r.read.buf = buf_alloc(pool, MIB);
	memset(r.read.buf->data, 0, MIB);
	volume_cut_read(cut, &r.read);
	assert_true(sim_run_until(f->sim, &r.done, MINUTE));
	for (unsigned i = 0; i < MIB; i++)
		if (r.read.buf->data[i] != value)
			fail_msg("byte %u is %u", i, r.read.buf->data[i]);
	buf_put(r.read.buf);
	buf_pool_free(pool);
}

/* Old content comes to the preserve file in pieces of 128 KiB, not write by write; who reads the cut finds it in
 * both places, also where one run of it lies in both. */
static void what_is_preserved_is_written_in_large_pieces(void **s)
{
	enum { AT_ONCE = 32, PIECE = 128 * 1024 };
	struct fixture *f = *s;
	static uint8_t kept[PIECE];
	struct request *requests[AT_ONCE];
	struct volume_cut *cut;
	uint64_t size;
	int error = 0;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, MIB, 1), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, MIB, MIB, 1), 0);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	for (unsigned i = 0; i < AT_ONCE - 1; i++)
		assert_int_equal(simple(f, BLOCK_WRITE, i * 4096, 4096, 2), 0);
	pass(f, MINUTE);
	assert_true(sim_file_size(f->env, "/state/v/preserve.store", &size));
	assert_int_equal(size, 0);
	for (unsigned i = AT_ONCE - 1; i < AT_ONCE + 8; i++)
		assert_int_equal(simple(f, BLOCK_WRITE, i * 4096, 4096, 2), 0);
	pass(f, MINUTE);
	assert_true(sim_file_peek(f->env, "/state/v/preserve.store", kept, PIECE, 0));
	for (unsigned i = 0; i < PIECE; i++)
		assert_int_equal(kept[i], 1);
	assert_true(sim_file_size(f->env, "/state/v/preserve.store", &size));
	assert_int_equal(size, PIECE);
	assert_cut_is(f, cut, 0, 1);
	for (unsigned i = 0; i < AT_ONCE; i++)
		requests[i] = submit(f, BLOCK_WRITE, 0, MIB + (i * 37 % 256) * 4096, 4096, 3);
	for (unsigned i = 0; i < AT_ONCE; i++)
		assert_int_equal(finish(f, requests[i]), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, MIB, MIB, 4), 0);
	assert_cut_is(f, cut, MIB, 1);
	assert_int_equal(error, 0);
	volume_cut_finish(cut, true);
	assert_true(reads_as(f, 0, 40 * 4096, 2));
	assert_true(reads_as(f, MIB, MIB, 4));
	close_it(f);
}

static uint64_t preserve_bytes(struct fixture *f)
{
	uint64_t size = 0;

	assert_true(sim_file_size(f->env, "/state/v/preserve.store", &size));
	return size;
}

static void overwrite(struct fixture *f, unsigned mibs, uint8_t value)
{
	for (unsigned i = 0; i < mibs; i++)
		assert_int_equal(simple(f, BLOCK_WRITE, i * MIB, MIB, value), 0);
}

/* A preserve file is emptied in steps, behind what clients do (the simulator's truncate refuses to do much at
 * once), and the next cut uses it meanwhile. */
static void a_preserve_file_is_emptied_in_steps(void **s)
{
	enum { MIBS = 40 };
	struct fixture *f = *s;
	struct sim_disk_options slow;
	struct request *requests[8];
	struct volume_cut *cut;
	uint64_t size;
	int error = 0;

	open_it(f);
	overwrite(f, MIBS, 1);
	for (unsigned round = 1; round <= 8; round++) {
		assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut),
				 0);
		overwrite(f, MIBS, round + 1);
		size = preserve_bytes(f);
		assert_true(size > 30 * MIB && size <= MIBS * MIB);
		volume_cut_finish(cut, true);
		while (preserve_bytes(f) >
		       round * 4 * MIB) /* so far has it come when the next cut begins */
			assert_true(sim_step(f->sim));
		assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut),
				 0);
		for (unsigned i = 0; i < MIBS; i++) {
			for (unsigned j = 0; j < 8; j++)
				requests[j] = submit(f, BLOCK_WRITE, 0, i * MIB + j * MIB / 8,
						     MIB / 8, (int)round + 100);
			for (unsigned j = 0; j < 8; j++)
				assert_int_equal(finish(f, requests[j]), 0);
		}
		for (unsigned i = 0; i < MIBS; i++)
			assert_cut_is(f, cut, i * MIB, round + 1);
		assert_true(preserve_bytes(f) <= MIBS * MIB);
		volume_cut_finish(cut, true);
		pass(f, MINUTE);
		assert_int_equal(preserve_bytes(f), 0);
		overwrite(f, MIBS, round + 1);
	}
	/* And what is left when the process ends is gone after its next start. */
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	overwrite(f, MIBS, 77);
	volume_cut_finish(cut, true);
	close_it(f);
	assert_true(preserve_bytes(f) > 0);
	open_it(f);
	pass(f, MINUTE);
	assert_int_equal(preserve_bytes(f), 0);
	/* Where there are no holes, in steps all the same. */
	sim_disk_get(f->env, &slow);
	slow.zero_unsupported = true;
	sim_disk_set(f->env, &slow);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	overwrite(f, MIBS, 78);
	volume_cut_finish(cut, true);
	pass(f, MINUTE);
	assert_int_equal(preserve_bytes(f), 0);
	assert_int_equal(error, 0);
	close_it(f);
}

static bool is_hole(struct fixture *f, struct volume_cut *cut, uint64_t offset, uint32_t length)
{
	struct cut_reading r = {
		.read = {.offset_bytes = offset, .length_bytes = length, .skip_hole = true}};

	r.read.done = cut_was_read;
	volume_cut_read(cut, &r.read);
	assert_false(r.done);
	assert_true(sim_run_until(f->sim, &r.done, MINUTE));
	return r.read.hole;
}

/* Asked for without a buffer, of any length; and as of the cut. */
static void holes_of_a_cut(void **s)
{
	struct fixture *f = *s;
	struct volume_cut *cut;
	struct volume_stats stats;
	struct request *r;
	int error = 0;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 8 * MIB, MIB, 1), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 40 * MIB, 4096, 1), 0);
	assert_int_equal(volume_mark_all(f->volume, VOLUME_STORE, false), 0);
	/* Issued, as its region is open, and on its way to the disk at the cut. */
	r = submit(f, BLOCK_WRITE, 0, 40 * MIB + 512 * 1024, 4096, 2);
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_STORE, 0, lost, &error, &cut), 0);
	assert_int_equal(volume_cut_hole_bytes(cut, 0, 64 * MIB), 8 * MIB);
	assert_int_equal(volume_cut_hole_bytes(cut, 40 * MIB + 65536, MIB), MIB);
	assert_false(is_hole(f, cut, 40 * MIB + 65536, MIB));
	assert_int_equal(finish(f, r), 0);
	/* What became one later was none, */
	assert_int_equal(simple(f, BLOCK_TRIM, 8 * MIB, MIB, 0), 0);
	assert_int_equal(volume_cut_hole_bytes(cut, 0, 64 * MIB), 40 * MIB);
	assert_false(is_hole(f, cut, 8 * MIB, MIB));
	assert_false(is_hole(f, cut, 0, 40 * MIB));
	/* nor is what is not any more. It was not read: it is still kept for who reads. */
	assert_int_equal(simple(f, BLOCK_WRITE, 20 * MIB, 4096, 3), 0);
	assert_false(is_hole(f, cut, 16 * MIB, 24 * MIB));
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.preserve_used_bytes, MIB + 4096);
	/* What is one is done with. */
	assert_true(is_hole(f, cut, 41 * MIB, 23 * MIB));
	assert_int_equal(simple(f, BLOCK_WRITE, 63 * MIB, MIB, 4), 0);
	volume_get_stats(f->volume, &stats);
	assert_int_equal(stats.preserve_used_bytes, MIB + 4096);
	assert_int_equal(error, 0);
	volume_cut_finish(cut, true);
	close_it(f);
}

/* A block the consumer turned out to have is no longer sealed, but what came later stays marked. */
static void a_cut_of_bits_is_narrowed(void **s)
{
	struct fixture *f = *s;
	struct volume_cut *cut;

	open_it(f);
	assert_int_equal(volume_mark_all(f->volume, VOLUME_PEER, false), 0);
	assert_int_equal(
		volume_cut_begin(f->volume, VOLUME_PEER, VOLUME_CUT_BITS_ONLY, NULL, NULL, &cut),
		0);
	assert_int_equal(simple(f, BLOCK_WRITE, 8192, 4096, 1), 0);
	volume_cut_narrow(cut, 0, 64 * MIB - 4096);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 2 * 4096);
	volume_check(f->volume);
	volume_cut_finish(cut, false);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 2 * 4096);
	/* The stored map follows. */
	close_it(f);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 2 * 4096);
	close_it(f);
}

/* ---- holds ------------------------------------------------------------------------------------- */

struct held {
	struct volume_hold hold;
	bool granted, done;
	int error;
};

static void held_granted(struct volume_hold *hold)
{
	((struct held *)hold)->granted = true;
}

static void held_done(struct volume_hold *hold, int error)
{
	struct held *held = (struct held *)hold;

	held->done = true;
	held->error = error;
}

static void hold(struct fixture *f, struct held *held, uint64_t offset, uint64_t length)
{
	*held = (struct held){.hold = {.offset_bytes = offset,
				       .length_bytes = length,
				       .granted = held_granted,
				       .done = held_done}};
	volume_hold(f->volume, &held->hold);
}

static void a_hold_has_its_place_in_the_order(void **s)
{
	struct fixture *f = *s;
	struct request *before, *beside, *after;
	struct held held;

	open_it(f);
	before = submit(f, BLOCK_WRITE, 0, 4096, 8192, 1);
	hold(f, &held, 8192, 8192);
	assert_false(held.granted);
	after = submit(f, BLOCK_WRITE, 0, 12288, 512, 2);
	beside = submit(f, BLOCK_WRITE, 0, 16384, 512, 3);
	assert_true(sim_run_until(f->sim, &held.granted, MINUTE));
	assert_true(before->wait.done);
	assert_int_equal(finish(f, beside), 0);
	pass(f, MINUTE);
	assert_false(after->wait.done);
	struct buf *buf = buf_alloc(f->pool, 8192);
	volume_hold_read(&held.hold, 8192, buf);
	assert_true(sim_run_until(f->sim, &held.done, MINUTE));
	assert_int_equal(held.error, 0);
	assert_true(buf->data[0] == 1 && buf->data[4095] == 1 && buf->data[4096] == 0);
	assert_false(after->wait.done);
	volume_hold_release(&held.hold);
	assert_int_equal(finish(f, before), 0);
	assert_int_equal(finish(f, after), 0);
	buf_put(buf);
	close_it(f);
}

/* Requests that are suspended where they were about to be issued keep no range from a hold: it may be
 * what lets them go on. */
static void a_hold_does_not_wait_for_suspended_requests(void **s)
{
	struct fixture *f = *s;
	struct request *first, *part, *last;
	struct held held;

	open_it(f);
	first = submit(f, BLOCK_WRITE, 0, 0, 8192, 1);
	part = submit(f, BLOCK_WRITE, 0, 1024, 512, 2);
	last = submit(f, BLOCK_WRITE, 0, 512, 1024, 3);
	volume_suspend(f->volume, VOLUME_SUSPEND_PEER, true);
	hold(f, &held, 0, 16384);
	assert_true(sim_run_until(f->sim, &held.granted, MINUTE));
	volume_hold_release(&held.hold);
	pass(f, MINUTE);
	assert_false(first->wait.done || part->wait.done || last->wait.done);
	volume_suspend(f->volume, VOLUME_SUSPEND_PEER, false);
	assert_int_equal(finish(f, first), 0);
	assert_int_equal(finish(f, part), 0);
	assert_int_equal(finish(f, last), 0);
	assert_true(reads_as(f, 0, 512, 1) && reads_as(f, 512, 1024, 3) &&
		    reads_as(f, 1536, 6656, 1));
	close_it(f);
}

/* It is a write like a client's: an LSN, a mark, durable; and later ones come behind it. */
static void a_hold_ends_with_a_write(void **s)
{
	struct fixture *f = *s;
	struct request *after;
	struct held held;

	open_it(f);
	hold(f, &held, 0, 4096);
	assert_true(held.granted);
	after = submit(f, BLOCK_WRITE, 0, 512, 512, 5);
	struct buf *buf = buf_alloc(f->pool, 4096);
	memset(buf->data, 4, 4096);
	uint64_t lsn = state_at(f)->lsn;
	volume_hold_write(&held.hold, buf);
	buf_put(buf);
	assert_true(sim_run_until(f->sim, &held.done, MINUTE));
	assert_int_equal(held.error, 0);
	assert_true(state_at(f)->lsn > lsn);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 4096);
	assert_int_equal(finish(f, after), 0);
	assert_true(reads_as(f, 0, 512, 4) && reads_as(f, 512, 512, 5) &&
		    reads_as(f, 1024, 3072, 4));
	/* Not on a secondary: its content is another's. */
	hold(f, &held, 0, 4096);
	set_role(f, VOLUME_SECONDARY);
	buf = buf_alloc(f->pool, 4096);
	volume_hold_write(&held.hold, buf);
	buf_put(buf);
	assert_true(sim_run_until(f->sim, &held.done, MINUTE));
	assert_int_equal(held.error, -EPERM);
	close_it(f);
}

static void what_a_write_of_a_hold_changed_survives_a_power_cut(void **s)
{
	struct fixture *f = *s;
	struct held held;

	open_it(f);
	hold(f, &held, 65536, 4096);
	struct buf *buf = buf_alloc(f->pool, 4096);
	memset(buf->data, 6, 4096);
	volume_hold_write(&held.hold, buf);
	buf_put(buf);
	assert_true(sim_run_until(f->sim, &held.done, MINUTE));
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_true(reads_as(f, 65536, 4096, 6));
	uint64_t start, length;
	assert_true(volume_dirty_next(f->volume, VOLUME_PEER, 0, &start, &length));
	assert_true(start <= 65536 && start + length >= 65536 + 4096);
	close_it(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(marks_are_durable),
		TEST(idle_regions_lose_their_intent),
		TEST(store_map_does_not_follow_applying),
		TEST(full_preserve_area_gives_the_cut_up),
		TEST(a_write_preserves_what_it_overwrites),
		TEST(a_write_goes_ahead_of_what_is_preserved),
		TEST(what_is_preserved_is_written_in_large_pieces),
		TEST(a_preserve_file_is_emptied_in_steps),
		TEST(holes_of_a_cut),
		TEST(a_cut_of_bits_is_narrowed),
		TEST(a_hold_has_its_place_in_the_order),
		TEST(a_hold_does_not_wait_for_suspended_requests),
		TEST(a_hold_ends_with_a_write),
		TEST(what_a_write_of_a_hold_changed_survives_a_power_cut),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
