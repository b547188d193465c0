/* SPDX-License-Identifier: Apache-2.0 */
/* Two histories: the old primary's own writes, split brain, and how one of them is given up. */
#define WORLD_SIM
#pragma GCC diagnostic ignored "-Wunused-function"
#include "tests/unit/replication_pair.h"

struct given_up {
	bool done;
	int error;
	char why[256];
};

static void given_up(void *context, int error, const char *why)
{
	struct given_up *g = context;

	g->done = true;
	g->error = error;
	snprintf(g->why, sizeof(g->why), "%s", why);
}

/* A common content in the model; then both take writes apart. a's in the model, b's in *other. */
static void split(struct world *w, uint8_t **other)
{
	world_open(w);
	world_start(w);
	write_some(&w->a, 300);
	expect_same(w, &w->a, __LINE__);
	WAIT(w, volume_dirty_bytes(w->a.volume, VOLUME_PEER) == 0);
	disconnect(&w->a);
	disconnect(&w->b);
	set_role(&w->b, VOLUME_PRIMARY);
	*other = malloc(VOLUME_BYTES);
	memcpy(*other, w->model, VOLUME_BYTES);
	write_some(&w->a, 20);
	flush(&w->a);
	uint8_t *mine = w->model;
	w->model = *other;
	write_some(&w->b, 20);
	flush(&w->b);
	w->model = mine;
}

static void meet(struct world *w)
{
	reconnect(&w->a);
	reconnect(&w->b);
	WAIT(w, status(&w->a).state == REPLICATION_STANDALONE &&
			status(&w->b).state == REPLICATION_STANDALONE);
	assert_non_null(strstr(status(&w->a).refusal, "split brain"));
	assert_non_null(strstr(status(&w->b).refusal, "split brain"));
}

static void in_every_pair_of_roles_it_is_split_brain(void **unused)
{
	for (unsigned roles = 0; roles < 4; roles++) {
		struct world w;
		uint8_t *other;

		split(&w, &other);
		set_role(&w.a, roles & 1 ? VOLUME_PRIMARY : VOLUME_SECONDARY);
		set_role(&w.b, roles & 2 ? VOLUME_PRIMARY : VOLUME_SECONDARY);
		meet(&w);
		expect_content(&w.a, w.model, __LINE__);
		expect_content(&w.b, other, __LINE__);
		free(other);
		world_close(&w);
	}
}

static void what_is_given_up_costs_the_union(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	split(&w, &other);
	uint64_t dirty = volume_dirty_bytes(w.a.volume, VOLUME_PEER) +
			 volume_dirty_bytes(w.b.volume, VOLUME_PEER);
	set_role(&w.b, VOLUME_SECONDARY);
	meet(&w);
	uint64_t sent = status(&w.a).sent_bytes;
	replication_discard_changes(w.b.replication, given_up, &g);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_OUTDATED);
	while (!g.done) {
		turn(&w);
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
	}
	assert_int_equal(g.error, 0);
	expect_same(&w, &w.a, __LINE__);
	sent = status(&w.a).sent_bytes - sent;
	if (sent > dirty + dirty / 8 + 65536 || dirty > VOLUME_BYTES / 4)
		fail_msg("seed %llu: %llu bytes sent for a union of at most %llu",
			 (unsigned long long)seed, (unsigned long long)sent,
			 (unsigned long long)dirty);
	/* and the generations given up are nobody's ancestors */
	struct volume_state s = state(&w.b);
	for (unsigned i = 0; i < VOLUME_HISTORY; i++)
		assert_false(id128_equal(&s.generations.history[i], &s.generations.current));
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	free(other);
	world_close(&w);
}

static void a_secondary_can_be_the_source(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	split(&w, &other);
	set_role(&w.a, VOLUME_SECONDARY);
	set_role(&w.b, VOLUME_SECONDARY);
	meet(&w);
	replication_discard_changes(w.b.replication, given_up, &g);
	WAIT(&w, g.done);
	assert_int_equal(g.error, 0);
	WAIT(&w, status(&w.a).state == REPLICATION_IDLE && status(&w.b).state == REPLICATION_IDLE);
	expect_content(&w.a, w.model, __LINE__);
	expect_content(&w.b, w.model, __LINE__);
	assert_int_equal(state(&w.b).disk, VOLUME_DISK_UPTODATE);
	set_role(&w.b, VOLUME_PRIMARY);
	write_some(&w.b, 20);
	expect_same(&w, &w.b, __LINE__);
	free(other);
	world_close(&w);
}

static void a_primary_gives_nothing_up(void **unused)
{
	struct given_up g = {};
	struct world w;

	world_open(&w);
	world_start(&w);
	write_some(&w.a, 10);
	expect_same(&w, &w.a, __LINE__);
	replication_discard_changes(w.a.replication, given_up, &g);
	assert_true(g.done);
	assert_int_equal(g.error, -EPERM);
	assert_non_null(strstr(g.why, "only a secondary"));
	expect_same(&w, &w.a, __LINE__);
	world_close(&w);
}

static void dies_somewhere(struct world *w, struct node *n)
{
	enum sim_crash mode = (enum sim_crash)sim_random(w->sim, 4);

	sim_crash_after_ios(w->sim, n->env, 1 + sim_random(w->sim, 80), mode);
	uint64_t end = now_ns(w) + 2000000000ull;
	while (!sim_node_dead(n->env) && now_ns(w) < end && sim_step(w->sim))
		;
	if (!sim_node_dead(n->env))
		sim_crash(w->sim, n->env, mode);
	n->replication = NULL;
	n->volume = NULL;
	n->env = sim_restart(w->sim, n->env);
	listen_on(n);
	start(n, VOLUME_SECONDARY);
}

/* Whoever dies whenever: the wish outlives it, the loser's disk is old or new, never a mixture. */
static void giving_up_outlives_crashes(void **unused)
{
	for (unsigned i = 0; i < 24; i++) {
		struct given_up g = {};
		struct world w;
		uint8_t *other;

		split(&w, &other);
		set_role(&w.b, VOLUME_SECONDARY);
		meet(&w);
		replication_discard_changes(w.b.replication, given_up, &g);
		dies_somewhere(&w, i % 3 ? &w.b : &w.a);
		if (i % 4 == 0)
			dies_somewhere(&w, &w.b);
		assert_int_not_equal(state(&w.b).disk, VOLUME_DISK_INCONSISTENT);
		reconnect(&w.a);
		expect_same(&w, &w.a, __LINE__);
		free(other);
		world_close(&w);
	}
}

/* Promoted before the peer's content came: the wish is void, and what is here stays. */
static void a_promotion_takes_it_back(void **unused)
{
	struct given_up g = {};
	struct world w;
	uint8_t *other;

	split(&w, &other);
	set_role(&w.b, VOLUME_SECONDARY);
	meet(&w);
	disconnect(&w.a);
	replication_discard_changes(w.b.replication, given_up, &g);
	let_pass(&w, 100);
	set_role(&w.b, VOLUME_PRIMARY);
	assert_true(g.done);
	assert_int_equal(g.error, -ECANCELED);
	reconnect(&w.a);
	WAIT(&w, status(&w.b).state == REPLICATION_STANDALONE);
	expect_content(&w.b, other, __LINE__);
	free(other);
	world_close(&w);
}

int main(int argc, char **argv)
{
	const char *text = argc > 1 ? argv[1] : getenv("SEED");
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_every_pair_of_roles_it_is_split_brain),
		cmocka_unit_test(what_is_given_up_costs_the_union),
		cmocka_unit_test(a_secondary_can_be_the_source),
		cmocka_unit_test(a_primary_gives_nothing_up),
		cmocka_unit_test(giving_up_outlives_crashes),
		cmocka_unit_test(a_promotion_takes_it_back),
	};

	seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	if (getenv("TEST"))
		cmocka_set_test_filter(getenv("TEST"));
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	printf("seed: SEED=%llu\n", (unsigned long long)seed);
	return failed;
}
