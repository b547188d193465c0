// SPDX-License-Identifier: Apache-2.0
/* What a volume does in particular situations: opening, roles, damage, limits, applying, generations; what it keeps
 * for its consumers: volume_cut_sim.c. */
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

/* ---- opening ---------------------------------------------------------------------------------- */

static void state_persists(void **s)
{
	struct fixture *f = *s;
	struct volume_state state, again;

	open_it(f);
	state = *state_at(f);
	state.role = VOLUME_SECONDARY;
	state.disk = VOLUME_DISK_OUTDATED;
	state.outdated_ns = 77;
	memset(&state.snapshot, 9, sizeof(state.snapshot));
	memset(&state.generations, 8, sizeof(state.generations));
	state.snapshot_sequence = 5;
	assert_int_equal(volume_set_state(f->volume, &state), 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	again = *state_at(f);
	assert_true(again.lsn > state.lsn);
	again.lsn = state.lsn;
	assert_memory_equal(&state, &again, sizeof(state));
	close_it(f);
}

static void second_opener_is_refused(void **s)
{
	struct fixture *f = *s;
	struct volume *second;

	open_it(f);
	assert_int_not_equal(volume_open(f->env, &f->config, &second, f->why, sizeof(f->why)), 0);
	assert_non_null(strstr(f->why, "in use by another process"));
	close_it(f);
}

static void size_is_kept(void **s)
{
	struct fixture *f = *s;

	open_it(f);
	close_it(f);
	f->config.size_bytes = 0;
	open_it(f);
	assert_int_equal(volume_size_bytes(f->volume), 64 * MIB);
	close_it(f);
	f->config.size_bytes = 65 * MIB;
	assert_int_equal(try_open(f), -EINVAL);
	f->config.size_bytes = 64 * MIB + 100;
	f->config.state_dir = "/state/other";
	assert_int_equal(try_open(f), -EINVAL);
}

static void missing_backing_without_size_is_an_error(void **s)
{
	struct fixture *f = *s;

	f->config.size_bytes = 0;
	assert_int_equal(try_open(f), -ENOENT);
	assert_non_null(strstr(f->why, "/disk/v.img"));
}

static void backing_gone_later_is_a_failed_disk(void **s)
{
	struct fixture *f = *s;
	struct volume_state state;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	close_it(f);
	env_unlink(f->env, f->config.backing);
	open_it(f);
	assert_int_equal(state_at(f)->disk, VOLUME_DISK_FAILED);
	assert_non_null(strstr(volume_failure(f->volume), "/disk/v.img"));
	assert_int_equal(volume_block(f->volume)->ops->open(volume_block(f->volume), f->why, 256),
			 -EIO);
	assert_int_equal(simple(f, BLOCK_READ, 0, 4096, 0), -EIO);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	assert_int_equal(volume_replace_backing(f->volume, f->why, sizeof(f->why)), 0);
	state = *state_at(f);
	assert_int_equal(state.disk, VOLUME_DISK_INCONSISTENT);
	assert_string_equal(volume_failure(f->volume), "");
	close_it(f);
	open_it(f);
	assert_int_equal(state_at(f)->disk, VOLUME_DISK_INCONSISTENT);
	state.disk = VOLUME_DISK_UPTODATE;
	assert_int_equal(volume_set_state(f->volume, &state), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 2), 0);
	assert_true(reads_as(f, 0, 4096, 2));
	close_it(f);
}

/* The name of the new one may be in the system's memory only: who opens the volume next sees to it. */
static void a_replaced_backing_survives_a_crash_anywhere(void **s)
{
	struct fixture *f = *s;
	struct volume_state state;

	for (uint64_t k = 1; k < 40; k++) {
		bool dead;

		open_it(f);
		close_it(f);
		env_unlink(f->env, f->config.backing);
		open_it(f);
		assert_int_equal(state_at(f)->disk, VOLUME_DISK_FAILED);
		sim_crash_after_ios(f->sim, f->env, k, SIM_CRASH_KILL);
		volume_replace_backing(f->volume, f->why, sizeof(f->why));
		dead = sim_node_dead(f->env);
		if (dead) {
			f->env = sim_restart(f->sim, f->env);
			open_it(f);
		}
		sim_crash_after_ios(f->sim, f->env, 0, SIM_CRASH_KILL);
		if (state_at(f)->disk == VOLUME_DISK_FAILED)
			assert_int_equal(volume_replace_backing(f->volume, f->why, 256), 0);
		state = *state_at(f);
		state.disk = VOLUME_DISK_UPTODATE;
		assert_int_equal(volume_set_state(f->volume, &state), 0);
		assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, (int)k), 0);
		assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
		crash_it(f, SIM_CRASH_POWER_DROP);
		open_it(f);
		if (state_at(f)->disk != VOLUME_DISK_UPTODATE || !reads_as(f, 0, 4096, (int)k))
			fail_msg("after %u operations: %s", (unsigned)k, volume_failure(f->volume));
		close_it(f);
		if (!dead)
			return;
	}
	fail_msg("it takes more than 40 file operations");
}

static void shrunk_backing_is_a_failed_disk(void **s)
{
	struct fixture *f = *s;
	struct env_file *file;

	open_it(f);
	close_it(f);
	assert_int_equal(env_file_open(f->env, f->config.backing, ENV_FILE_WRITE, &file), 0);
	assert_int_equal(env_file_truncate(f->env, file, 4096), 0);
	env_file_close(f->env, file);
	open_it(f);
	assert_int_equal(state_at(f)->disk, VOLUME_DISK_FAILED);
	assert_non_null(strstr(volume_failure(f->volume), "shrank"));
	close_it(f);
}

static void damaged_superblock_is_never_recreated(void **s)
{
	struct fixture *f = *s;

	open_it(f);
	close_it(f);
	for (unsigned page = 0; page < 6; page++)
		sim_file_corrupt(f->env, "/state/v/super", page * 4096 + 100, 0x10);
	assert_int_equal(try_open(f), -EINVAL);
	assert_non_null(strstr(f->why, "/state/v/super"));
	env_unlink(f->env, "/state/v/super");
	assert_int_equal(try_open(f), -EINVAL);
	assert_non_null(strstr(f->why, "missing"));
}

/* Nothing older comes back. */
static void one_damaged_superblock_page_is_survived(void **s)
{
	struct fixture *f = *s;

	open_it(f);
	close_it(f);
	for (unsigned round = 0; round < 24; round++) {
		struct volume_state state;

		open_it(f);
		state = *state_at(f);
		state.outdated_ns = round;
		assert_int_equal(volume_set_state(f->volume, &state), 0);
		crash_it(f, SIM_CRASH_POWER_DROP);
		sim_file_corrupt(f->env, "/state/v/super", round % 6 * 4096 + 24, 1);
		open_it(f);
		assert_int_equal(state_at(f)->outdated_ns, round);
		close_it(f);
	}
}

/* It may be the newest, and the one before says something else. */
static void a_superblock_that_cannot_be_read_brings_no_older_one_back(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;

	for (uint64_t round = 1; round < 8; round++) {
		struct volume_state state;

		open_it(f);
		state = *state_at(f);
		state.outdated_ns = round;
		assert_int_equal(volume_set_state(f->volume, &state), 0);
		crash_it(f, SIM_CRASH_POWER_DROP);
		sim_disk_get(f->env, &options);
		options.eio_path = "/super";
		options.bad_start = round % 3 * 8192;
		options.bad_end = options.bad_start + 8192;
		sim_disk_set(f->env, &options);
		assert_int_equal(try_open(f), -EIO);
		assert_non_null(strstr(f->why, "/state/v/super"));
		/* One of its two pages is enough. */
		options.bad_end -= 4096;
		sim_disk_set(f->env, &options);
		open_it(f);
		options.bad_start = options.bad_end = 0;
		sim_disk_set(f->env, &options);
		assert_int_equal(state_at(f)->outdated_ns, round);
		close_it(f);
	}
}

static void damaged_map_pages_count_as_dirty(void **s)
{
	struct fixture *f = *s;

	open_it(f);
	close_it(f);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 0);
	close_it(f);
	sim_file_corrupt(f->env, "/state/v/maps", 4096 + 77, 1); /* the peer's first page */
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 64 * MIB);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 0);
	close_it(f);
	sim_file_corrupt(f->env, "/state/v/maps", 5, 1); /* the intent page */
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_STORE), 64 * MIB);
	close_it(f);
	open_it(f);
	close_it(f);
	env_unlink(f->env, "/state/v/maps");
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 64 * MIB);
	close_it(f);
}

/* The pages are good, and say that nothing is dirty: at the next start they are believed again. */
static void map_pages_that_once_could_not_be_read_forget_nothing(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;

	open_it(f);
	close_it(f);
	sim_disk_get(f->env, &options);
	options.read_eio_ppm = 1000000;
	options.eio_path = "/maps";
	sim_disk_set(f->env, &options);
	open_it(f);
	options.read_eio_ppm = 0;
	sim_disk_set(f->env, &options);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		assert_int_equal(volume_dirty_bytes(f->volume, (enum volume_consumer)c), 64 * MIB);
	assert_int_equal(finish(f, submit(f, BLOCK_WRITE, BLOCK_FUA, 0, 4096, 1)), 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		assert_true(volume_dirty_bytes(f->volume, (enum volume_consumer)c) > 0);
	close_it(f);
}

/* Dies at each file operation of its creation in turn; the next start finishes it or begins anew. */
static void creation_survives_a_crash_anywhere(void **s)
{
	struct fixture *f = *s;

	for (uint64_t k = 1; k < 40; k++) {
		char directory[64], backing[64];
		bool dead;

		snprintf(directory, sizeof(directory), "/state/v%u", (unsigned)k);
		snprintf(backing, sizeof(backing), "/disk/v%u.img", (unsigned)k);
		f->config.state_dir = directory;
		f->config.backing = backing;
		sim_crash_after_ios(f->sim, f->env, k, (enum sim_crash)(k % 4));
		try_open(f);
		dead = sim_node_dead(f->env);
		if (!dead)
			crash_it(f, SIM_CRASH_POWER);
		else
			f->env = sim_restart(f->sim, f->env);
		if (try_open(f) != 0)
			fail_msg("k=%u: %s", (unsigned)k, f->why);
		assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 0);
		assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 3), 0);
		close_it(f);
		if (!dead)
			return;
	}
	fail_msg("creation takes more than 40 file operations");
}

/* ---- doors -------------------------------------------------------------------------------------- */

static void secondary_is_not_served(void **s)
{
	struct fixture *f = *s;
	struct block *block;

	f->config.role = VOLUME_SECONDARY;
	open_it(f);
	block = volume_block(f->volume);
	assert_int_equal(block->ops->open(block, f->why, sizeof(f->why)), -EPERM);
	assert_non_null(strstr(f->why, "secondary on this node"));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), -EPERM);
	assert_int_equal(simple(f, BLOCK_TRIM, 0, 4096, 1), -EPERM);
	set_role(f, VOLUME_PRIMARY);
	assert_int_equal(block->ops->open(block, f->why, sizeof(f->why)), 0);
	block->ops->close(block);
	close_it(f);
}

static void bad_requests_are_refused(void **s)
{
	struct fixture *f = *s;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 64 * MIB - 512, 1024, 1), -ENOSPC);
	assert_int_equal(simple(f, BLOCK_READ, 64 * MIB, 1, 1), -EINVAL);
	assert_int_equal(simple(f, BLOCK_TRIM, UINT64_MAX - 10, 100, 1), -ENOSPC);
	assert_int_equal(simple(f, BLOCK_ZERO, 0, 0, 0), 0);
	assert_int_equal(simple(f, BLOCK_TRIM, 100, 50, 0), 0);
	assert_int_equal(simple(f, BLOCK_CACHE, 0, 64 * MIB, 0), 0);
	close_it(f);
}

static void zeroes_without_help_of_the_backing(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;

	sim_disk_get(f->env, &options);
	options.zero_unsupported = true;
	sim_disk_set(f->env, &options);
	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, MIB, 7), 0);
	assert_int_equal(simple(f, BLOCK_ZERO, 100, 3 * MIB, 0), 0);
	assert_true(reads_as(f, 0, 100, 7));
	assert_true(reads_as(f, 100, MIB - 100, 0));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, MIB, 7), 0);
	/* Known by now: nothing happens, and the faster way does not exist. */
	assert_int_equal(simple(f, BLOCK_TRIM, 0, MIB, 0), 0);
	assert_true(reads_as(f, 0, MIB, 7));
	assert_int_equal(finish(f, submit(f, BLOCK_ZERO, BLOCK_FAST_ZERO, 0, MIB, 0)), -EOPNOTSUPP);
	assert_true(reads_as(f, 0, MIB, 7));
	close_it(f);
}

static void extents_say_what_is_a_hole(void **s)
{
	struct fixture *f = *s;
	struct block_extent extents[8];
	unsigned n;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 8 * MIB, 4096, 1), 0);
	n = volume_block(f->volume)->ops->extents(volume_block(f->volume), 0, 64 * MIB, extents, 8);
	assert_int_equal(n, 3);
	assert_true(extents[0].hole && extents[0].zero && !extents[1].hole && extents[2].hole);
	assert_int_equal(extents[0].length_bytes, 8 * MIB);
	assert_int_equal(extents[1].length_bytes, 4096);
	n = volume_block(f->volume)->ops->extents(volume_block(f->volume), MIB, 4096, extents, 1);
	assert_int_equal(n, 1);
	assert_int_equal(extents[0].length_bytes, 4096);
	close_it(f);
}

static void suspension_holds_and_keeps_order(void **s)
{
	struct fixture *f = *s;
	struct request *first, *second, *read;

	open_it(f);
	volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, true);
	first = submit(f, BLOCK_WRITE, 0, 0, 4096, 1);
	second = submit(f, BLOCK_WRITE, 0, 0, 4096, 2);
	read = submit(f, BLOCK_READ, 0, MIB, 4096, 2);
	pass(f, MINUTE);
	assert_false(first->wait.done || second->wait.done || read->wait.done);
	volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, false);
	assert_int_equal(finish(f, second), 0);
	assert_int_equal(finish(f, first), 0);
	assert_int_equal(finish(f, read), 0);
	assert_true(reads_as(f, 0, 4096, 2));
	volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, true);
	first = submit(f, BLOCK_WRITE, 0, 0, 4096, 1);
	close_it(f);
	assert_int_equal(finish(f, first), -ESHUTDOWN);
}

struct order {
	struct volume_tap tap;
	struct volume *volume;
	uint64_t offsets[8];
	unsigned count;
};

/* A short word in between: somebody suspends, and resumes at once. */
static bool order_issue(struct volume_tap *tap, const struct volume_mutation *mutation,
			uint64_t token)
{
	struct order *order = (struct order *)tap;

	order->offsets[order->count++] = mutation->offset_bytes;
	volume_suspend(order->volume, VOLUME_SUSPEND_PEER, true);
	volume_suspend(order->volume, VOLUME_SUSPEND_PEER, false);
	return false;
}

static bool order_ready(struct volume_tap *tap)
{
	return true;
}

static void a_resumption_within_another_overtakes_nobody(void **s)
{
	struct fixture *f = *s;
	struct request *writes[6];
	struct order order = {.tap = {.issue = order_issue, .ready = order_ready}};

	open_it(f);
	order.volume = f->volume;
	/* The superblock is as it has to be; the bits go again. */
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	pass(f, MINUTE);
	volume_set_tap(f->volume, &order.tap);
	/* The first three wait for their intent bits, and then at the gate; the others at the door. */
	for (unsigned i = 0; i < 6; i++) {
		if (i == 3) {
			volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, true);
			pass(f, MINUTE / 60); /* not so long that the bits go again */
		}
		writes[i] = submit(f, BLOCK_WRITE, 0, i * 8192, 4096, 1);
	}
	assert_int_equal(order.count, 0);
	volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, false);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(finish(f, writes[i]), 0);
	assert_int_equal(order.count, 6);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(order.offsets[i], i * 8192);
	volume_set_tap(f->volume, NULL);
	close_it(f);
}

static void each_who_suspended_has_to_resume(void **s)
{
	struct fixture *f = *s;
	struct request *held;

	open_it(f);
	volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, true);
	volume_suspend(f->volume, VOLUME_SUSPEND_PEER, true);
	held = submit(f, BLOCK_WRITE, 0, 0, 4096, 1);
	volume_suspend(f->volume, VOLUME_SUSPEND_OPERATOR, false);
	assert_int_equal(volume_suspended(f->volume), VOLUME_SUSPEND_PEER);
	pass(f, MINUTE);
	assert_false(held->wait.done);
	volume_fail_held(f->volume, -EIO);
	assert_int_equal(finish(f, held), -EIO);
	held = submit(f, BLOCK_WRITE, 0, 0, 4096, 2);
	volume_suspend(f->volume, VOLUME_SUSPEND_PEER, false);
	assert_int_equal(finish(f, held), 0);
	assert_true(reads_as(f, 0, 4096, 2));
	close_it(f);
}

static void what_is_known_of_the_primary_is_kept(void **s)
{
	struct fixture *f = *s;
	struct volume_contact contact = {.heard_ns = 5,
					 .heard_lsn = 90,
					 .received_lsn = 80,
					 .missing_bytes = 4096,
					 .behind_ns = 3,
					 .streaming = true};

	open_it(f);
	volume_get_state(f->volume, &f->state);
	f->state.peer_needed = true;
	assert_int_equal(volume_set_state(f->volume, &f->state), 0);
	volume_note_contact(f->volume, &contact);
	pass(f, MINUTE);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.contact.heard_ns, contact.heard_ns);
	assert_int_equal(f->state.contact.heard_lsn, contact.heard_lsn);
	assert_int_equal(f->state.contact.received_lsn, contact.received_lsn);
	assert_int_equal(f->state.contact.missing_bytes, contact.missing_bytes);
	assert_int_equal(f->state.contact.behind_ns, contact.behind_ns);
	assert_true(f->state.contact.streaming);
	assert_true(f->state.peer_needed);
	/* Each belongs to one role. */
	f->state.role = VOLUME_SECONDARY;
	assert_int_equal(volume_set_state(f->volume, &f->state), 0);
	volume_get_state(f->volume, &f->state);
	assert_true(!f->state.peer_needed && f->state.contact.heard_ns == 5);
	f->state.role = VOLUME_PRIMARY;
	assert_int_equal(volume_set_state(f->volume, &f->state), 0);
	volume_get_state(f->volume, &f->state);
	assert_int_equal(f->state.contact.heard_ns, 0);
	close_it(f);
}

/* ---- generations ---------------------------------------------------------------------------------- */

static void generations_are_bumped_once_per_loss(void **s)
{
	struct fixture *f = *s;
	struct volume_generations blank, first, second, third;

	open_it(f);
	blank = state_at(f)->generations;
	assert_true(id128_is_zero(&blank.current));
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
	assert_true(id128_is_zero(&state_at(f)->generations.current));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	first = state_at(f)->generations;
	assert_false(id128_is_zero(&first.current));
	assert_true(id128_is_zero(&first.base));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	assert_memory_equal(&first, &state_at(f)->generations, sizeof(first));
	volume_set_peer_in_sync(f->volume, true);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	assert_memory_equal(&first, &state_at(f)->generations, sizeof(first));
	volume_set_peer_in_sync(f->volume, false);
	assert_int_equal(simple(f, BLOCK_TRIM, 0, 65536, 1), 0);
	second = state_at(f)->generations;
	assert_false(id128_equal(&second.current, &first.current));
	assert_true(id128_equal(&second.base, &first.current));
	assert_true(id128_equal(&second.history[0], &first.current));
	/* Durable with the write. After a restart the peer may have this generation (a final cut whose
	 * acknowledgement was lost), so the next write makes another one, on the same base. */
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	third = state_at(f)->generations;
	assert_memory_equal(&second, &third, sizeof(second));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	third = state_at(f)->generations;
	assert_false(id128_equal(&second.current, &third.current));
	assert_true(id128_equal(&third.base, &first.current));
	assert_true(id128_equal(&third.history[0], &second.current));
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	second = state_at(f)->generations;
	assert_memory_equal(&second, &third, sizeof(second));
	close_it(f);
}

/* ---- errors of the disk -------------------------------------------------------------------------- */

static void failed_fsync_is_not_forgotten(void **s)
{
	struct fixture *f = *s;
	struct volume_cut *cut;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	assert_int_equal(
		volume_cut_begin(f->volume, VOLUME_PEER, VOLUME_CUT_BITS_ONLY, NULL, NULL, &cut),
		0);
	volume_cut_finish(cut, true);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 0);
	set_errors(f, "v.img", 0, 1000000);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	set_errors(f, NULL, 0, 0);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	assert_non_null(strstr(volume_failure(f->volume), "fsync"));
	/* What may have been dropped counts as changed. */
	assert_true(volume_dirty_bytes(f->volume, VOLUME_PEER) >= 4096);
	close_it(f);
	open_it(f);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
	close_it(f);
}

static void failed_fsync_of_a_demotion_is_not_forgotten(void **s)
{
	struct fixture *f = *s;
	struct volume_state state;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	set_errors(f, "v.img", 0, 1000000);
	state = *state_at(f);
	state.role = VOLUME_SECONDARY;
	assert_int_equal(volume_set_state(f->volume, &state), -EIO);
	set_errors(f, NULL, 0, 0);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	assert_int_equal(volume_set_state(f->volume, &state), -EIO);
	assert_non_null(strstr(volume_failure(f->volume), "fsync"));
	close_it(f);
}

/* It is an fsync of all that was written before, too, and nobody else is told of its error. */
static void failed_write_with_fua_is_a_failed_fsync(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	sim_disk_get(f->env, &options);
	options.capacity_bytes = 1; /* no space for it: nothing was synced */
	sim_disk_set(f->env, &options);
	assert_int_equal(finish(f, submit(f, BLOCK_WRITE, BLOCK_FUA, MIB, 4096, 2)), -EIO);
	options.capacity_bytes = 0;
	sim_disk_set(f->env, &options);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 3), 0);
	set_errors(f, "v.img", 1000000, 0);
	assert_int_equal(finish(f, submit(f, BLOCK_WRITE, BLOCK_FUA, 8192, 4096, 2)), -EIO);
	set_errors(f, NULL, 0, 0);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	assert_non_null(strstr(volume_failure(f->volume), "fsync"));
	close_it(f);
	open_it(f);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
	close_it(f);
}

/* Both maps are written, and not durable yet. */
static void wait_for_maps(struct fixture *f, uint64_t offset)
{
	uint64_t in_page = offset / VOLUME_PEER_BLOCK_BYTES / 8;
	uint8_t peer = 0, store = 0;

	while (!(peer & 1) || !(store & 1)) {
		assert_true(sim_step(f->sim));
		assert_true(sim_file_peek(f->env, "/state/v/maps", &peer, 1, 4096 + 32 + in_page));
		assert_true(sim_file_peek(f->env, "/state/v/maps", &store, 1,
					  8192 + 32 + in_page / 16));
	}
}

/* The file of the maps has two writers, and the error of what is written in the back is told to one of them. */
static void an_error_that_the_intents_meet_counts_for_the_maps(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;

	sim_disk_get(f->env, &options);
	options.latency_min_ns = options.latency_max_ns = 100000000;
	sim_disk_set(f->env, &options);
	open_it(f);
	for (unsigned i = 0; i < 8; i++) {
		uint64_t offset = i * 4 * MIB, start, length;

		assert_int_equal(simple(f, BLOCK_WRITE, offset, 4096, 1), 0);
		wait_for_maps(f, offset);
		set_errors(f, "/maps", 1000000, 0);
		assert_int_equal(simple(f, BLOCK_WRITE, 32 * MIB + offset, 4096, 1), -EIO);
		set_errors(f, NULL, 0, 0);
		pass(f, MINUTE); /* the intents go, on the disk, too */
		crash_it(f, SIM_CRASH_POWER_DROP);
		open_it(f);
		assert_true(volume_dirty_next(f->volume, VOLUME_PEER, offset, &start, &length));
		assert_int_equal(start, offset);
	}
	close_it(f);
}

static void failed_write_stays_dirty(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;
	struct volume_cut *cut;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	sim_disk_get(f->env, &options);
	options.write_eio_ppm = 1000000;
	options.eio_path = "v.img";
	sim_disk_set(f->env, &options);
	assert_string_equal(volume_failure(f->volume), "");
	assert_int_equal(simple(f, BLOCK_WRITE, 8192, 4096, 2), -EIO);
	assert_non_null(strstr(volume_failure(f->volume), "write at 8192"));
	options.write_eio_ppm = 0;
	sim_disk_set(f->env, &options);
	/* The peer has it by the stream: a flush point must not make the two count as equal. */
	assert_int_equal(
		volume_cut_begin(f->volume, VOLUME_PEER, VOLUME_CUT_BITS_ONLY, NULL, NULL, &cut),
		0);
	volume_cut_finish(cut, true);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 4096);
	close_it(f);
}

static void full_state_directory_does_not_stop_it(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;

	f->config.intent_max_regions = 8;
	open_it(f);
	for (unsigned i = 0; i < 64; i++) /* room of its own */
		assert_int_equal(simple(f, BLOCK_WRITE, i * MIB, MIB, 1), 0);
	sim_disk_get(f->env, &options);
	options.capacity_bytes = 1;
	sim_disk_set(f->env, &options);
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(simple(f, BLOCK_WRITE, i * MIB, 65536, 2), 0);
	set_role(f, VOLUME_PRIMARY);
	pass(f, MINUTE);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
	close_it(f);
	open_it(f);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 64 * MIB);
	close_it(f);
}

/* ---- the secondary --------------------------------------------------------------------------------- */

struct apply {
	struct volume_apply apply;
	struct wait wait;
};

static void apply_done(struct volume_apply *apply, int error)
{
	((struct apply *)apply)->wait = (struct wait){.done = true, .error = error};
}

static int apply(struct fixture *f, enum volume_mutation_type type, uint64_t lsn, uint64_t offset,
		 uint64_t length, int fill)
{
	struct apply *a = calloc(1, sizeof(*a));
	int error;

	a->apply.mutation = (struct volume_mutation){.type = type,
						     .lsn = lsn,
						     .punch = true,
						     .offset_bytes = offset,
						     .length_bytes = length};
	a->apply.done = apply_done;
	if (type == VOLUME_WRITE) {
		a->apply.mutation.buf = buf_alloc(f->pool, (uint32_t)length);
		memset(a->apply.mutation.buf->data, fill, length);
	}
	volume_apply(f->volume, &a->apply);
	assert_true(sim_run_until(f->sim, &a->wait.done, MINUTE));
	error = a->wait.error;
	buf_put(a->apply.mutation.buf);
	free(a);
	return error;
}

static bool volume_reads_as(struct fixture *f, uint64_t offset, uint64_t length, int fill)
{
	struct request *r = calloc(1, sizeof(*r));
	bool same = true;

	r->block = (struct block_request){.op = BLOCK_READ,
					  .offset_bytes = offset,
					  .length_bytes = length,
					  .buf = buf_alloc(f->pool, (uint32_t)length),
					  .done = request_done};
	volume_read(f->volume, &r->block);
	assert_false(r->wait.done);
	assert_true(sim_run_until(f->sim, &r->wait.done, MINUTE));
	for (uint64_t i = 0; i < length; i++)
		same &= r->block.buf->data[i] == (uint8_t)fill;
	finish(f, r);
	return same;
}

/* It may be on the disk all the same, and would make good content of what is written from here on. */
static void nothing_is_applied_behind_a_superblock_that_failed(void **s)
{
	struct fixture *f = *s;

	f->config.role = VOLUME_SECONDARY;
	for (unsigned round = 0; round < 16; round++) {
		struct volume_state state;

		open_it(f);
		assert_int_equal(volume_begin_applying(f->volume), 0);
		state = *state_at(f);
		state.disk = VOLUME_DISK_INCONSISTENT;
		assert_int_equal(volume_set_state(f->volume, &state), 0);
		state.disk = VOLUME_DISK_UPTODATE;
		set_errors(f, "/super", 0, 1000000);
		assert_int_equal(volume_set_state(f->volume, &state), -EIO);
		set_errors(f, "/super", 1000000, 0);
		assert_int_equal(apply(f, VOLUME_WRITE, 0, 0, 4096, 1), -EIO);
		set_errors(f, NULL, 0, 0);
		assert_int_equal(apply(f, VOLUME_WRITE, 0, 0, 4096, 1), 0);
		crash_it(f, round % 2 ? SIM_CRASH_POWER : SIM_CRASH_POWER_DROP);
		open_it(f);
		assert_int_equal(state_at(f)->disk, VOLUME_DISK_INCONSISTENT);
		close_it(f);
	}
}

static void applied_writes_are_there(void **s)
{
	struct fixture *f = *s;

	f->config.role = VOLUME_SECONDARY;
	open_it(f);
	assert_int_equal(volume_begin_applying(f->volume), 0);
	assert_int_equal(apply(f, VOLUME_WRITE, 1000, 512, 1024, 5), 0);
	assert_int_equal(apply(f, VOLUME_WRITE, 1001, MIB, MIB, 6), 0);
	assert_int_equal(apply(f, VOLUME_ZERO, 1002, MIB + 512, 8192, 0), 0);
	assert_int_equal(apply(f, VOLUME_FLUSH, 1003, 0, 0, 0), 0);
	assert_int_equal(state_at(f)->lsn, 1003);
	assert_int_equal(apply(f, VOLUME_WRITE, 5ull << 40, 0, 512, 5), 0);
	assert_int_equal(apply(f, VOLUME_FLUSH, (5ull << 40) + 1, 0, 0, 0), 0);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 0);
	crash_it(f, SIM_CRASH_POWER_DROP);
	open_it(f);
	assert_true(state_at(f)->lsn >= (5ull << 40) + 1);
	assert_true(volume_reads_as(f, 0, 1536, 5));
	assert_true(volume_reads_as(f, 1536, 512, 0));
	assert_true(volume_reads_as(f, MIB, 512, 6));
	assert_true(volume_reads_as(f, MIB + 512, 8192, 0));
	assert_true(volume_reads_as(f, MIB + 512 + 8192, MIB - 512 - 8192, 6));
	close_it(f);
}

/* ---- size ------------------------------------------------------------------------------------------ */

static void long_trims_write_few_pages(void **s)
{
	struct fixture *f = *s;
	struct volume_stats before, after;
	uint64_t size;

	f->config.size_bytes = 64ull << 30;
	size = f->config.size_bytes;
	open_it(f);
	assert_int_equal(simple(f, BLOCK_TRIM, 0, MIB, 0), 0);
	volume_get_stats(f->volume, &before);
	assert_int_equal(simple(f, BLOCK_TRIM, 0, size, 0), 0);
	volume_get_stats(f->volume, &after);
	assert_true(after.intent_writes - before.intent_writes <= 3);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), size);
	pass(f, MINUTE);
	volume_get_stats(f->volume, &after);
	assert_int_equal(after.intent_regions, 0);
	close_it(f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(state_persists),
		TEST(second_opener_is_refused),
		TEST(size_is_kept),
		TEST(missing_backing_without_size_is_an_error),
		TEST(backing_gone_later_is_a_failed_disk),
		TEST(a_replaced_backing_survives_a_crash_anywhere),
		TEST(shrunk_backing_is_a_failed_disk),
		TEST(damaged_superblock_is_never_recreated),
		TEST(one_damaged_superblock_page_is_survived),
		TEST(a_superblock_that_cannot_be_read_brings_no_older_one_back),
		TEST(damaged_map_pages_count_as_dirty),
		TEST(map_pages_that_once_could_not_be_read_forget_nothing),
		TEST(creation_survives_a_crash_anywhere),
		TEST(secondary_is_not_served),
		TEST(bad_requests_are_refused),
		TEST(zeroes_without_help_of_the_backing),
		TEST(extents_say_what_is_a_hole),
		TEST(each_who_suspended_has_to_resume),
		TEST(a_resumption_within_another_overtakes_nobody),
		TEST(what_is_known_of_the_primary_is_kept),
		TEST(suspension_holds_and_keeps_order),
		TEST(generations_are_bumped_once_per_loss),
		TEST(failed_fsync_is_not_forgotten),
		TEST(failed_fsync_of_a_demotion_is_not_forgotten),
		TEST(failed_write_with_fua_is_a_failed_fsync),
		TEST(an_error_that_the_intents_meet_counts_for_the_maps),
		TEST(failed_write_stays_dirty),
		TEST(full_state_directory_does_not_stop_it),
		TEST(nothing_is_applied_behind_a_superblock_that_failed),
		TEST(applied_writes_are_there),
		TEST(long_trims_write_few_pages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
