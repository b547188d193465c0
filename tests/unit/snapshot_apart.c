/* SPDX-License-Identifier: Apache-2.0 */
/* What a split brain leaves in the store: which snapshot is the newest of the volume's own history, and which one
 * a secondary's may follow. */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/diff.h"
#include "daemon/snapshot/plan.h"
#include "daemon/snapshot/reader.h"
#include "daemon/snapshot/retention.h"

static struct id128 generation(uint8_t number)
{
	struct id128 id;

	memset(&id, number, sizeof(id));
	return id;
}

/* A write, and its place in the order. */
static void write_at(struct world *w, uint64_t lsn)
{
	fake_fill(w->v, lsn % w->v->chunks, lsn);
	w->v->state.lsn = lsn;
}

static struct id128 take(struct world *w)
{
	struct waited c = create(w->env, w->writer, "");

	assert_string_equal(c.result.why, "");
	return c.result.info.id;
}

static struct snapshot_info keep_since(struct world *w, struct id128 common)
{
	struct waited waited = {};

	snapshot_create_given_up(w->writer, "beta", &common, waited_done, &waited);
	env_run_until(w->env, &waited.done);
	assert_string_equal(waited.result.why, "");
	assert_true(waited.result.info.given_up);
	return waited.result.info;
}

static struct id128 keep_given_up(struct world *w)
{
	return keep_since(w, generation(1)).id;
}

struct answer {
	bool done;
	int error;
	struct id128 id;
	char why[256];
};

static void answer_end(struct answer *a, const struct snapshot_info *info, int error,
		       const char *why)
{
	a->done = true;
	a->error = error;
	snprintf(a->why, sizeof(a->why), "%s", why);
	if (!error)
		a->id = info->id;
}

static void found(void *context, const struct snapshot_info *info, int error, const char *why)
{
	answer_end(context, info, error, why);
}

static void planned(void *context, const struct snapshot_plan *plan, int error, const char *why)
{
	answer_end(context, error ? NULL : &plan->info, error, why);
}

static void closed(void *context)
{
	((struct answer *)context)->done = true;
}

static void opened(void *context, struct snapshot_reader *reader, int error, const char *why)
{
	struct answer *a = context;

	answer_end(a, error ? NULL : snapshot_reader_info(reader), error, why);
	a->done = error != 0;
	if (reader)
		snapshot_reader_close(reader, closed, a);
}

/* By all the ways to ask for it. NULL: there is none. */
static void assert_newest(struct world *w, const struct id128 *id)
{
	struct answer a[3] = {};
	struct waited all = list(w->env, w->repo), r;
	const struct snapshot_info *newest = snapshot_newest(all.infos, all.listed);
	char path[128];

	snprintf(path, sizeof(path), "%s/restored", w->dir);
	r = restore_file(w->env, w->repo, NULL, path, false);
	unlink(path);
	snapshot_find(w->repo, "latest", found, &a[0]);
	snapshot_plan(w->repo, NULL, NULL, planned, &a[1]);
	snapshot_reader_open(w->repo, NULL, NULL, opened, &a[2]);
	for (unsigned i = 0; i < 3; i++)
		env_run_until(w->env, &a[i].done);
	if (!id) {
		assert_null(newest);
		assert_int_equal(r.result.error, -ENOENT);
		for (unsigned i = 0; i < 3; i++)
			assert_int_equal(a[i].error, -ENOENT);
		assert_non_null(strstr(r.result.why, "split brain"));
		return;
	}
	assert_string_equal(r.result.why, "");
	assert_true(id128_equal(&r.result.info.id, id));
	assert_true(id128_equal(&newest->id, id));
	for (unsigned i = 0; i < 3; i++) {
		assert_string_equal(a[i].why, "");
		assert_true(id128_equal(&a[i].id, id));
	}
}

static void newest_is_of_the_own_history(void **state)
{
	struct world *w = world_of(state);
	struct id128 before, kept, after;
	char path[128];

	world_volume(w, 64 << 20, 0, 0);
	w->v->state.generations.current = generation(1);
	write_at(w, 10);
	before = take(w);
	assert_newest(w, &before);
	/* The loser goes on by itself. */
	w->v->state.generations.current = generation(2);
	write_at(w, 11);
	take(w);
	write_at(w, 12);
	take(w);
	write_at(w, 13);
	kept = keep_given_up(w);
	assert_newest(w, &before);
	/* By its id it is to be had. */
	snprintf(path, sizeof(path), "%s/kept", w->dir);
	assert_int_equal(restore_file(w->env, w->repo, &kept, path, false).result.error, 0);
	unlink(path);
	w->v->state.generations.current = generation(3);
	after = take(w);
	assert_newest(w, &after);
}

/* As a restart and a write, apart. */
static void begin_generation(struct world *w, uint8_t number)
{
	struct volume_generations *g = &w->v->state.generations;

	memmove(&g->history[1], &g->history[0], sizeof(g->history) - sizeof(g->history[0]));
	g->history[0] = g->current;
	g->current = generation(number);
	write_at(w, 100 + number);
}

static void generations_apart(void **state)
{
	struct world *w = world_of(state);
	struct volume_generations before_split;
	struct snapshot_info kept;
	struct id128 before, after;

	world_volume(w, 64 << 20, 0, 0);
	w->v->state.generations.current = generation(9);
	begin_generation(w, 1);
	before_split = w->v->state.generations;
	before = take(w);
	for (uint8_t i = 2; i <= 4; i++) { /* the loser's daemon is restarted now and then */
		begin_generation(w, i);
		take(w);
		take(w);
	}
	begin_generation(w, 5);
	kept = keep_since(w, generation(1));
	for (uint8_t i = 0; i < SNAPSHOT_GIVEN_UP_MAX; i++) {
		const struct id128 expected = i < 3 ? generation(4 - i) : (struct id128){{0}};

		assert_true(id128_equal(&kept.given_up_before[i], &expected));
	}
	assert_newest(w, &before);
	/* The other's, and what is caught up from it. */
	w->v->state.generations = before_split;
	begin_generation(w, 21);
	after = take(w);
	assert_newest(w, &after);
	/* The same again, longer than is remembered. */
	for (uint8_t i = 31; i < 40; i++)
		begin_generation(w, i);
	take(w);
	begin_generation(w, 40);
	take(w);
	kept = keep_since(w, generation(21));
	assert_false(id128_is_zero(&kept.given_up_before[SNAPSHOT_GIVEN_UP_MAX - 1]));
	assert_newest(w, &after);
}

static void nothing_but_what_was_given_up(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 8 << 20, 0, 0);
	w->v->state.generations.current = generation(2);
	write_at(w, 1);
	take(w);
	keep_given_up(w);
	assert_newest(w, NULL);
}

/* The last one of the own history stays whatever the rules say. */
static void no_rule_takes_the_newest(void **state)
{
	struct retention_policy policy = {.within_ns = 1};
	struct world *w = world_of(state);
	struct waited forgotten = {};
	struct id128 before;

	world_volume(w, 8 << 20, 0, 0);
	w->v->state.generations.current = generation(1);
	write_at(w, 1);
	before = take(w);
	w->v->state.generations.current = generation(2);
	write_at(w, 2);
	take(w);
	keep_given_up(w);
	snapshot_forget(w->repo, &policy, false, NULL, waited_done, &forgotten);
	env_run_until(w->env, &forgotten.done);
	assert_string_equal(forgotten.result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_newest(w, &before);
}

/* ---- a secondary's ------------------------------------------------------------------------------- */

static void cut_now(void *context, struct snapshot_writer *writer)
{
	snapshot_cut(writer, 0, "");
}

/* The same volume at the other node, which has come as far as lsn, in that history. */
static struct waited create_on_secondary(struct world *w, uint8_t history, uint8_t before,
					 uint64_t lsn)
{
	struct snapshot_writer_config config = {.node_name = "other", .prepare = cut_now};
	struct volume *other = fake_volume(w->env, w->v->size, 0x11);
	struct snapshot_writer *writer = snapshot_writer_new(other, w->repo, &config);
	struct waited c;

	other->state.role = VOLUME_SECONDARY;
	other->state.generations.current = generation(history);
	other->state.generations.history[0] = generation(before);
	other->state.lsn = lsn;
	c = create(w->env, writer, "");
	writer_free(w->env, writer);
	fake_volume_free(other);
	return c;
}

static void secondary_is_behind(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 8 << 20, 0, 0);
	w->v->state.generations.current = generation(1);
	write_at(w, 1000);
	take(w);
	assert_int_equal(create_on_secondary(w, 1, 9, 990).result.error, -ESTALE);
	assert_int_equal(create_on_secondary(w, 1, 9, 1000).result.error, 0);
	/* The primary went on alone, and this one does not know it yet. */
	w->v->state.generations.current = generation(2);
	write_at(w, 1001);
	take(w);
	assert_int_equal(create_on_secondary(w, 1, 9, 1000).result.error, -ESTALE);
}

/* It died, and the other was promoted with less: what it had beyond that is no later content. */
static void the_newest_was_rolled_back(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 8 << 20, 0, 0);
	w->v->state.generations.current = generation(1);
	write_at(w, 1000);
	take(w);
	assert_string_equal(create_on_secondary(w, 2, 1, 910).result.why, "");
}

static void the_newest_was_given_up(void **state)
{
	struct world *w = world_of(state);

	world_volume(w, 8 << 20, 0, 0);
	w->v->state.generations.current = generation(7);
	write_at(w, 1000);
	keep_given_up(w);
	assert_string_equal(create_on_secondary(w, 2, 1, 910).result.why, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(newest_is_of_the_own_history),
		ON_BOTH(nothing_but_what_was_given_up),
		ON_BOTH(no_rule_takes_the_newest),
		ON_BOTH(secondary_is_behind),
		ON_BOTH(the_newest_was_rolled_back),
		ON_BOTH(the_newest_was_given_up),
		ON_BOTH(generations_apart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
