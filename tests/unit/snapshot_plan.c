/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a restore beside what the restore does, in whatever order the store answers. */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/plan.h"

#define SIZE      (700ull << 20) /* more map pages than a walk keeps at a time */
#define TURNS_MAX 300            /* of the loop, until an answer comes */

static uint64_t next_random(uint64_t *seed, uint64_t below)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return (*seed >> 33) % below;
}

/* ---- answers that take their time ---------------------------------------------------------------- */

struct slow_get {
	struct env_op op; /* first */
	struct env_op *caller;
	struct env *env;
	uint64_t turns;
	int64_t result;
};

static void slow_turn(void *context)
{
	struct slow_get *slow = context;
	struct late *late;

	if (slow->turns--) {
		late = late_new(slow->env);
		late->call = slow_turn;
		late->context = slow;
		return;
	}
	slow->caller->done(slow->caller, slow->result);
	free(slow);
}

static void slow_got(struct env_op *op, int64_t result)
{
	struct slow_get *slow = (struct slow_get *)op;

	slow->result = result;
	slow_turn(slow);
}

static void slow_get(struct store *store, struct env_op *op, const char *name, void *buf,
		     size_t length, uint64_t offset)
{
	struct slow_get *slow = calloc(1, sizeof(*slow));
	uint64_t *seed = ((struct memory_store *)store)->context;

	*slow = (struct slow_get){
		.op.done = slow_got,
		.caller = op,
		.env = store->env,
		.turns = next_random(seed, TURNS_MAX),
	};
	memory_get(store, &slow->op, name, buf, length, offset);
}

/* ---- the plan ---------------------------------------------------------------------------------------- */

struct answer {
	bool done;
	struct snapshot_plan plan;
};

static void planned(void *context, const struct snapshot_plan *plan, int error, const char *why)
{
	struct answer *a = context;

	assert_string_equal(why, "");
	assert_int_equal(error, 0);
	a->plan = *plan;
	a->done = true;
}

/* Names are sorted: the last one is the newest. */
static uint64_t manifest_bytes(const struct memory_store *m)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < m->count; i++)
		if (strstr(m->objects[i].name, "/snapshots/"))
			bytes = m->objects[i].size;
	return bytes;
}

static void assert_plan_is_what_happens(struct world *w)
{
	struct memory_store *m = w->m;
	struct answer a = {.done = false};
	struct waited r;
	char path[128];

	snapshot_plan(w->repo, NULL, &(struct snapshot_plan_target){.exact = true}, planned, &a);
	env_run_until(w->env, &a.done);
	assert_true(a.plan.exact);
	m->gets = m->sizes = m->lists = 0;
	m->got_bytes = 0;
	snprintf(path, sizeof(path), "%s/restored", w->dir);
	r = restore_file(w->env, w->repo, NULL, path, false);
	assert_string_equal(r.result.why, "");
	unlink(path);
	assert_int_equal(a.plan.requests, m->gets + m->sizes + m->lists);
	assert_int_equal(a.plan.fetch_bytes, m->got_bytes - manifest_bytes(m));
}

/* Stretches of chunks; some of them are stored compressed. */
static void write_some(struct volume *v, uint64_t *seed)
{
	static const uint8_t plain[CHUNK] = "of which there is little";

	for (unsigned i = 0; i < 60; i++) {
		uint64_t first = next_random(seed, v->chunks - 64);
		uint64_t end = first + next_random(seed, 64);

		for (; first < end; first++) {
			if (next_random(seed, 4))
				fake_fill(v, first, next_random(seed, UINT64_MAX));
			else
				fake_write(v, first, plain);
		}
	}
}

static void of_a_new_file(void **state)
{
	struct world *w = world_of(state);
	struct store_ops slow;
	uint64_t seed = 7;

	world_volume(w, SIZE, 0, 3 << 20);
	slow = *w->m->store.ops;
	slow.get = slow_get;
	w->m->store.ops = &slow;
	w->m->context = &seed;
	for (unsigned i = 0; i < 4; i++) { /* the first one of nothing */
		assert_string_equal(create(w->env, w->writer, "").result.why, "");
		assert_plan_is_what_happens(w);
		write_some(w->v, &seed);
	}
	world_drop(w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {ON_BOTH(of_a_new_file)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
