// SPDX-License-Identifier: Apache-2.0
/* Taking over: a primary that died without a word, one that lives, and a planned change of roles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/node/node.h"
#include "tests/sim/env_sim.h"

#define SECOND 1000000000ull

struct side {
	struct env *env;
	struct config config;
	struct config_volume volume;
	struct node *node;
};

static struct sim *sim;
static struct side a, b;
static bool with_store;

struct result {
	bool done;
	int error;
	char why[512];
};

static void start(struct side *side, const char *name, const char *listen, const char *peer,
		  bool primary)
{
	char why[256];

	side->env = sim_node(sim, name);
	side->volume = (struct config_volume){.name = (char *)"v",
					      .backing = (char *)"/v.img",
					      .size_bytes = 1 << 20,
					      .primary = primary,
					      .peer = (char *)(uintptr_t)peer,
					      .protocol = 'C',
					      .block_min_bytes = 1,
					      .fence_timeout_ns = SECOND};
	if (with_store) {
		side->volume.store = (char *)"sim:store";
		side->volume.snapshot_every_ns = 3600 * SECOND;
	}
	side->config = (struct config){.node = {.name = (char *)(uintptr_t)name,
						.state_dir = (char *)"/state",
						.peer_listen = (char *)(uintptr_t)listen,
						.peer_plaintext = true},
				       .volumes = &side->volume,
				       .volume_count = 1};
	assert_int_equal(node_start(side->env, &side->config, &side->node, why, sizeof(why)), 0);
}

static struct node_volume *volume(struct side *side)
{
	return node_find(side->node, "v");
}

static struct replication_status status(struct side *side)
{
	struct replication_status s;

	replication_get_status(volume(side)->replication, &s);
	return s;
}

static enum volume_role role(struct side *side)
{
	struct volume_state state;

	volume_get_state(volume(side)->volume, &state);
	return state.role;
}

/* A secondary that knows that it has all that its primary's clients saw the end of. */
static bool settled(struct side *side)
{
	struct volume_state state;

	volume_get_state(volume(side)->volume, &state);
	return state.role == VOLUME_PRIMARY || state.contact.streaming;
}

static void wait_for_stream(void)
{
	uint64_t limit = sim_now_ns(sim) + 60 * SECOND;

	while (status(&a).state != REPLICATION_STREAMING ||
	       status(&b).state != REPLICATION_STREAMING || status(&a).out_of_sync_bytes ||
	       !settled(&a) || !settled(&b)) {
		assert_true(sim_now_ns(sim) < limit);
		sim_step(sim);
	}
}

static int set_up(void **state)
{
	sim = sim_new(5);
	start(&a, "a", "a:7000", "b:7000", true);
	start(&b, "b", "b:7000", "a:7000", false);
	wait_for_stream();
	return 0;
}

static int tear_down(void **state)
{
	sim_free(sim); /* the nodes with it: as in a crash */
	return 0;
}

static void promoted(void *context, int error, const char *why)
{
	struct result *result = context;

	result->done = true;
	result->error = error;
	strcpy(result->why, why);
}

/* How long it took, in ns. */
static uint64_t promote(struct side *side, struct result *result)
{
	uint64_t begun = sim_now_ns(sim);

	*result = (struct result){};
	node_promote_start(volume(side), 0, promoted, result);
	while (!result->done)
		sim_step(sim);
	return sim_now_ns(sim) - begun;
}

static void a_primary_that_lives_is_left_alone(void **state)
{
	struct result result;

	promote(&b, &result);
	assert_int_equal(result.error, -EPERM);
	assert_non_null(strstr(result.why, "peer a is primary"));
	assert_int_equal(status(&b).state, REPLICATION_STREAMING);
	assert_int_equal(status(&b).connects, 1);
}

static void one_that_died_without_a_word_is_replaced_in_two_seconds(void **state)
{
	struct result result;

	sim_block(sim, "a", "b", true);
	sim_block(sim, "b", "a", true);
	assert_true(promote(&b, &result) < 2 * SECOND);
	assert_int_equal(result.error, 0);
	assert_int_equal(role(&b), VOLUME_PRIMARY);
}

/* Also when nobody wrote after the promotion, and whoever starts last. */
static void the_one_that_was_replaced_steps_down(void **state)
{
	struct result result;
	char why[256];

	sim_crash(sim, a.env, SIM_CRASH_POWER);
	promote(&b, &result);
	assert_int_equal(result.error, 0);
	sim_crash(sim, b.env, SIM_CRASH_POWER);
	for (unsigned i = 0; i < 2; i++) {
		struct side *side = i ? &b : &a;

		side->env = sim_restart(sim, side->env);
		assert_int_equal(
			node_start(side->env, &side->config, &side->node, why, sizeof(why)), 0);
	}
	wait_for_stream();
	assert_int_equal(role(&a), VOLUME_SECONDARY);
	assert_int_equal(role(&b), VOLUME_PRIMARY);
}

static void a_planned_change_moves_nothing(void **state)
{
	struct result result;
	char why[512];
	uint64_t sent;

	assert_int_equal(node_demote(volume(&a), why, sizeof(why)), 0);
	sent = status(&b).sent_bytes;
	assert_true(promote(&b, &result) < 2 * SECOND);
	assert_int_equal(result.error, 0);
	wait_for_stream();
	assert_int_equal(role(&a), VOLUME_SECONDARY);
	assert_int_equal(status(&b).catch_up_total_bytes, 0);
	assert_true(status(&b).source && status(&b).sent_bytes - sent < 4096);
	/* And back. */
	assert_int_equal(node_demote(volume(&b), why, sizeof(why)), 0);
	promote(&a, &result);
	assert_int_equal(result.error, 0);
	wait_for_stream();
	assert_int_equal(status(&a).catch_up_total_bytes, 0);
}

static void written(struct block_request *request, int error)
{
	assert_int_equal(error, 0);
}

static void write_zeroes(struct side *side, struct block_request *request)
{
	struct block *block = volume_block(volume(side)->volume);

	*request = (struct block_request){.op = BLOCK_ZERO, .length_bytes = 65536, .done = written};
	block->ops->submit(block, request);
}

static uint64_t snapshots(struct side *side)
{
	struct snapshot_writer_status taken;

	snapshot_writer_status(volume(side)->writer, &taken);
	return taken.succeeded;
}

/* So that the newest in the store is not of what was given up. */
static void the_survivor_of_a_split_brain_takes_a_snapshot(void **state)
{
	struct block_request requests[2];
	struct result result = {};

	sim_free(sim);
	sim = sim_new(5);
	with_store = true;
	start(&a, "a", "a:7000", "b:7000", true);
	start(&b, "b", "b:7000", "a:7000", false);
	with_store = false;
	wait_for_stream();
	sim_block(sim, "a", "b", true);
	sim_block(sim, "b", "a", true);
	promote(&b, &result);
	assert_int_equal(result.error, 0);
	write_zeroes(&a, &requests[0]);
	write_zeroes(&b, &requests[1]);
	sim_run_until(sim, NULL, 30 * SECOND);
	sim_block(sim, "a", "b", false);
	sim_block(sim, "b", "a", false);
	sim_run_until(sim, NULL, 60 * SECOND);
	assert_true(status(&a).split_brain && status(&b).split_brain);
	assert_int_equal(snapshots(&a), 0);
	result = (struct result){};
	node_resolve(volume(&b), "a", true, promoted, &result);
	sim_run_until(sim, &result.done, 60 * SECOND);
	assert_string_equal(result.why, "");
	sim_run_until(sim, NULL, 60 * SECOND);
	assert_false(status(&a).split_brain);
	assert_int_equal(snapshots(&a), 1);
	assert_int_equal(snapshots(&b), 0);
}

struct taken {
	bool done;
	int error;
	char why[512];
};

static void taken(void *context, const struct snapshot_result *result)
{
	struct taken *t = context;

	t->done = true;
	t->error = result->error;
	snprintf(t->why, sizeof(t->why), "%s", result->why);
}

/* Its volume is its peer's from the first sync on: so are its snapshots, in that very moment. */
static void a_new_secondary_takes_snapshots_at_once(void **state)
{
	struct block_request request;
	struct taken t = {};

	sim_free(sim);
	sim = sim_new(5);
	with_store = true;
	start(&a, "a", "a:7000", "b:7000", true);
	write_zeroes(&a, &request);
	sim_run_until(sim, NULL, 11 * SECOND);
	start(&b, "b", "b:7000", "a:7000", false);
	with_store = false;
	wait_for_stream();
	snapshot_create(volume(&b)->writer, "", taken, &t);
	sim_run_until(sim, &t.done, 60 * SECOND);
	assert_true(t.done);
	assert_string_equal(t.why, "");
	assert_int_equal(t.error, 0);
}

static void flushed(struct block_request *request, int error)
{
	assert_int_equal(error, -EIO);
}

/* What the last writes came to nobody knows. The operator is told so, and what to do; nothing is tried again. */
static void a_failed_flush_is_why_a_role_is_not_given_up(void **state)
{
	static const char told[] =
		"volume v: the role stays: its last writes may not be on the disk, whose flush "
		"failed: /v.img: "
		"fsync: Input/output error; check the disk, then restart offsited, and ask again";
	struct block_request request = {.op = BLOCK_FLUSH, .done = flushed};
	struct block *block = volume_block(volume(&a)->volume);
	struct sim_disk_options options;
	struct result result = {};
	char why[512];

	sim_disk_get(a.env, &options);
	options.fsync_eio_ppm = 1000000;
	options.eio_path = "/v.img";
	sim_disk_set(a.env, &options);
	block->ops->submit(block, &request);
	sim_run_until(sim, NULL, SECOND);
	options.fsync_eio_ppm = 0;
	sim_disk_set(a.env, &options);
	assert_int_equal(node_demote(volume(&a), why, sizeof(why)), -EIO);
	assert_string_equal(why, told);
	node_restore_from_peer(volume(&a), promoted, &result);
	assert_true(result.done);
	assert_int_equal(result.error, -EIO);
	assert_string_equal(result.why, told);
	assert_int_equal(role(&a), VOLUME_PRIMARY);
	/* Which is what then does it. */
	sim_crash(sim, a.env, SIM_CRASH_KILL);
	a.env = sim_restart(sim, a.env);
	assert_int_equal(node_start(a.env, &a.config, &a.node, why, sizeof(why)), 0);
	wait_for_stream();
	assert_int_equal(node_demote(volume(&a), why, sizeof(why)), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(a_primary_that_lives_is_left_alone),
		TEST(one_that_died_without_a_word_is_replaced_in_two_seconds),
		TEST(the_one_that_was_replaced_steps_down),
		TEST(a_planned_change_moves_nothing),
		TEST(the_survivor_of_a_split_brain_takes_a_snapshot),
		TEST(a_new_secondary_takes_snapshots_at_once),
		TEST(a_failed_flush_is_why_a_role_is_not_given_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
