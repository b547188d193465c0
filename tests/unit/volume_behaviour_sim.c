// SPDX-License-Identifier: Apache-2.0
/* What a volume does in particular situations: opening, roles, damage, limits, applying, generations. */
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

static void pass(struct fixture *f, uint64_t ns)
{
	sim_run_until(f->sim, NULL, ns);
}

/* Valid until the next call. */
static const struct volume_state *state_at(struct fixture *f)
{
	volume_get_state(f->volume, &f->state);
	return &f->state;
}

static void set_role(struct fixture *f, enum volume_role role)
{
	struct volume_state state = *state_at(f);

	state.role = role;
	assert_int_equal(volume_set_state(f->volume, &state), 0);
}

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

/* ---- maps, cuts -------------------------------------------------------------------------------- */

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

/* ---- errors of the disk -------------------------------------------------------------------------- */

static void failed_fsync_is_not_forgotten(void **s)
{
	struct fixture *f = *s;
	struct sim_disk_options options;
	struct volume_cut *cut;

	open_it(f);
	assert_int_equal(simple(f, BLOCK_WRITE, 0, 4096, 1), 0);
	assert_int_equal(
		volume_cut_begin(f->volume, VOLUME_PEER, VOLUME_CUT_BITS_ONLY, NULL, NULL, &cut),
		0);
	volume_cut_finish(cut, true);
	assert_int_equal(volume_dirty_bytes(f->volume, VOLUME_PEER), 0);
	sim_disk_get(f->env, &options);
	options.fsync_eio_ppm = 1000000;
	options.eio_path = "v.img";
	sim_disk_set(f->env, &options);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	options.fsync_eio_ppm = 0;
	sim_disk_set(f->env, &options);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), -EIO);
	assert_non_null(strstr(volume_failure(f->volume), "fsync"));
	/* What may have been dropped counts as changed. */
	assert_true(volume_dirty_bytes(f->volume, VOLUME_PEER) >= 4096);
	close_it(f);
	open_it(f);
	assert_int_equal(simple(f, BLOCK_FLUSH, 0, 0, 0), 0);
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

/* Memory of volumes that crashed is dropped. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "detect_leaks=0";
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

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

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(state_persists),
		TEST(second_opener_is_refused),
		TEST(size_is_kept),
		TEST(missing_backing_without_size_is_an_error),
		TEST(backing_gone_later_is_a_failed_disk),
		TEST(shrunk_backing_is_a_failed_disk),
		TEST(damaged_superblock_is_never_recreated),
		TEST(one_damaged_superblock_page_is_survived),
		TEST(damaged_map_pages_count_as_dirty),
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
		TEST(marks_are_durable),
		TEST(idle_regions_lose_their_intent),
		TEST(full_preserve_area_gives_the_cut_up),
		TEST(a_write_preserves_what_it_overwrites),
		TEST(a_write_goes_ahead_of_what_is_preserved),
		TEST(what_is_preserved_is_written_in_large_pieces),
		TEST(holes_of_a_cut),
		TEST(failed_fsync_is_not_forgotten),
		TEST(failed_write_stays_dirty),
		TEST(full_state_directory_does_not_stop_it),
		TEST(applied_writes_are_there),
		TEST(store_map_does_not_follow_applying),
		TEST(long_trims_write_few_pages),
		TEST(a_hold_has_its_place_in_the_order),
		TEST(a_hold_does_not_wait_for_suspended_requests),
		TEST(a_hold_ends_with_a_write),
		TEST(what_a_write_of_a_hold_changed_survives_a_power_cut),
		TEST(a_cut_of_bits_is_narrowed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
