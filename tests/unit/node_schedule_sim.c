// SPDX-License-Identifier: Apache-2.0
/* When the automatic snapshot is due: over restarts, as the newest in the store says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "daemon/node/node.h"
#include "tests/sim/env_sim.h"
#include "tests/sim/store_sim.h"

#define SECOND 1000000000ull
#define MINUTE (60 * SECOND)
#define HOUR   (60 * MINUTE)

static struct sim *sim;
static struct env *env;
static struct node *node;
static struct config_volume config_volume = {
	.name = (char *)"v",
	.backing = (char *)"/v.img",
	.size_bytes = 1 << 20,
	.primary = true,
	.protocol = 'C',
	.block_min_bytes = 1,
	.store = (char *)"sim:store",
	.snapshot_every_ns = HOUR,
};
static const struct config config = {
	.node = {.name = (char *)"a", .state_dir = (char *)"/state"},
	.volumes = &config_volume,
	.volume_count = 1,
};

static void start(void)
{
	char why[256];

	assert_int_equal(node_start(env, &config, &node, why, sizeof(why)), 0);
	sim_run_until(sim, NULL, SECOND);
	assert_non_null(node_find(node, "v")->writer);
}

static void restart(void)
{
	sim_crash(sim, env, SIM_CRASH_KILL);
	env = sim_restart(sim, env);
	start();
}

static int set_up(void **state)
{
	sim = sim_new(3);
	env = sim_node(sim, "a");
	start();
	return 0;
}

static int tear_down(void **state)
{
	sim_free(sim); /* the node with it: as in a crash */
	return 0;
}

static struct snapshot_writer_status taken(void)
{
	struct snapshot_writer_status status;

	snapshot_writer_status(node_find(node, "v")->writer, &status);
	return status;
}

/* How long until one more was taken than so many. */
static uint64_t minutes_until_more(uint64_t than)
{
	uint64_t begun = sim_now_ns(sim);

	while (taken().succeeded <= than) {
		assert_true(sim_now_ns(sim) - begun < 3 * HOUR);
		sim_run_until(sim, NULL, SECOND);
	}
	return (sim_now_ns(sim) - begun + MINUTE / 2) / MINUTE;
}

static void see(uint64_t age_ns)
{
	node_saw_snapshot(node_find(node, "v"), env_realtime_ns(env) - age_ns);
}

static void it_counts_from_the_start_where_nothing_is_known(void **state)
{
	assert_int_equal(minutes_until_more(0), 60);
	assert_int_equal(minutes_until_more(1), 60);
}

static void it_counts_from_the_newest(void **state)
{
	see(40 * MINUTE);
	assert_int_equal(minutes_until_more(0), 20);
	/* Whatever lists show from then on. */
	see(40 * MINUTE);
	assert_int_equal(minutes_until_more(1), 60);
}

/* Restarted more often than it is due, one is taken all the same. */
static void it_is_taken_over_restarts(void **state)
{
	uint64_t created_ns;

	assert_int_equal(minutes_until_more(0), 60);
	created_ns = taken().last.info.created_ns;
	for (unsigned i = 0; i < 3; i++) {
		restart();
		node_saw_snapshot(node_find(node, "v"), created_ns);
		sim_run_until(sim, NULL, 15 * MINUTE);
		assert_int_equal(taken().succeeded, 0);
	}
	restart();
	node_saw_snapshot(node_find(node, "v"), created_ns);
	assert_in_range(minutes_until_more(0), 14, 15);
}

/* After a moment for what else has to happen at the start. */
static void what_is_overdue_comes_soon(void **state)
{
	uint64_t begun = sim_now_ns(sim);

	see(5 * HOUR);
	assert_int_equal(minutes_until_more(0), 0);
	assert_true(sim_now_ns(sim) - begun >= 10 * SECOND);
	restart();
	node_saw_snapshot(node_find(node, "v"), 0); /* there is none */
	assert_int_equal(minutes_until_more(0), 5);
}

/* A clock that was set back: not in years, and not an interval after each start. */
static void the_future_is_not_waited_for(void **state)
{
	node_saw_snapshot(node_find(node, "v"), env_realtime_ns(env) + 1000 * HOUR);
	assert_int_equal(minutes_until_more(0), 5);
}

/* What stood in the way when it was due does not cost an interval. */
static void it_is_tried_again(void **state)
{
	struct node_volume *v = node_find(node, "v");

	v->busy = "restore";
	sim_run_until(sim, NULL, HOUR + MINUTE);
	v->busy = NULL;
	assert_int_equal(taken().succeeded, 0);
	assert_in_range(minutes_until_more(0), 6, 7);
	assert_int_equal(minutes_until_more(1), 60);
	/* The same where it fails. */
	store_sim_set_options(sim, "sim:store", &(struct store_sim_options){.error_ppm = 1000000});
	sim_run_until(sim, NULL, HOUR + MINUTE);
	store_sim_set_options(sim, "sim:store", &(struct store_sim_options){0});
	assert_int_equal(taken().succeeded, 2);
	assert_in_range(minutes_until_more(2), 0, 8);
}

static void nothing_is_due_without_an_interval(void **state)
{
	config_volume.snapshot_every_ns = 0;
	restart();
	see(5 * HOUR);
	sim_run_until(sim, NULL, 3 * HOUR);
	assert_int_equal(taken().succeeded, 0);
	config_volume.snapshot_every_ns = HOUR;
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(it_counts_from_the_start_where_nothing_is_known),
		TEST(it_counts_from_the_newest),
		TEST(it_is_taken_over_restarts),
		TEST(what_is_overdue_comes_soon),
		TEST(the_future_is_not_waited_for),
		TEST(it_is_tried_again),
		TEST(nothing_is_due_without_an_interval),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
