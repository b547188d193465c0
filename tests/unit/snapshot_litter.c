/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a failed snapshot leaves in the store goes, also where no snapshot is ever deleted; and names that
 * nobody here would have given.
 */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/internal.h"

static void fill(struct world *w, unsigned count, uint64_t seed)
{
	for (unsigned i = 0; i < count; i++)
		fake_fill(w->v, (seed * 7919 + i * 13) % w->v->chunks, seed * 1000 + i);
}

static unsigned packs_of(const struct memory_store *m)
{
	unsigned packs, maps, manifests;

	memory_count((struct memory_store *)(uintptr_t)m, &packs, &maps, &manifests);
	return packs;
}

static void assert_nothing_is_left_over(struct world *w)
{
	struct waited c = collect(w->env, w->repo);

	assert_string_equal(c.result.why, "");
	assert_int_equal(c.result.deleted_objects, 0);
	for (unsigned i = 0; i < w->m->count; i++)
		assert_null(strstr(w->m->objects[i].name, "/claims/"));
	assert_int_equal(verify(w->env, w->repo).bad, 0);
}

/* Each of them would take the room that the next one needs. */
static void a_failed_attempt_goes_before_the_next(void **state)
{
	struct world *w = world_of(state);
	unsigned before;

	world_volume(w, 8 << 20, 0, 128 << 10);
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	before = packs_of(w->m);
	fill(w, 40, 1);
	for (unsigned i = 0; i < 5; i++) {
		memory_fail(w->m, OP_PUT, 3, -ENOSPC,
			    MEMORY_ONCE); /* behind the claim and a pack */
		assert_int_equal(create(w->env, w->writer, "").result.error, -ENOSPC);
		assert_true(packs_of(w->m) > before && packs_of(w->m) < before + 12);
	}
	memory_heal(w->m);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 2);
	assert_nothing_is_left_over(w);
}

/* What a killed process put is not collected as long as something of it may be on its way. */
static void a_killed_attempt_goes_after_a_while(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_writer_config config = {.node_name = "node", .pack_bytes = 128 << 10};
	unsigned left;

	world_volume(w, 8 << 20, 0, 128 << 10);
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	fill(w, 40, 1);
	memory_fail(w->m, OP_ALL, 12, -ENOSPC, MEMORY_FOR_GOOD);
	assert_int_equal(create(w->env, w->writer, "").result.error, -ENOSPC);
	memory_heal(w->m);
	left = packs_of(w->m);
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
	fill(w, 1, 2);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_true(packs_of(w->m) > left);
	writer_free(w->env, w->writer);
	w->writer = snapshot_writer_new(w->v, w->repo, &config);
	w->v->state.snapshot_sequence++; /* another attempt was killed before it put anything */
	w->repo->stale_from_ns = 1;
	fill(w, 1, 3);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 3);
	assert_nothing_is_left_over(w);
}

static void kept(void *context, const struct snapshot_info *info, bool keep, const char *why)
{
	assert_true(keep);
}

/* Who prunes by hand gets what can be had, though the rules keep all snapshots. */
static void a_prune_takes_it_too(void **state)
{
	const struct retention_policy policy = {.last = 9};
	struct waited f = {.done = false};
	struct world *w = world_of(state);

	world_volume(w, 8 << 20, 0, 128 << 10);
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	fill(w, 40, 1);
	memory_fail(w->m, OP_PUT, 3, -ENOSPC, MEMORY_ONCE); /* behind the claim and a pack */
	assert_int_equal(create(w->env, w->writer, "").result.error, -ENOSPC);
	snapshot_forget(w->repo, &policy, false, kept, waited_done, &f);
	env_run_until(w->env, &f.done);
	assert_true(f.result.deleted_objects > 0);
	assert_nothing_is_left_over(w);
}

/* It would be followed by number 0, below all others: the newest would be the first to be pruned. */
static void the_last_number_there_is(void **state)
{
	struct world *w = world_of(state);
	struct snapfmt_ref ref = {.sequence = UINT64_MAX};
	struct memory_object *o;
	char name[SNAPFMT_NAME_BYTES];
	struct waited c;

	world_volume(w, 8 << 20, 0, 128 << 10);
	fill(w, 20, 0);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	memset(&ref.snapshot, 7, sizeof(ref.snapshot));
	snapfmt_name(SNAPFMT_MANIFEST, &w->repo->volume, &ref, name);
	o = &w->m->objects[w->m->count++];
	*o = (struct memory_object){strdup(name), calloc(1, 1), 1};
	c = create(w->env, w->writer, "");
	assert_int_equal(c.result.error, -EOVERFLOW);
	assert_non_null(strstr(c.result.why, "sequence number"));
	assert_int_equal(w->v->state.snapshot_sequence, 1);
	memory_remove(w->m, w->m->count - 1);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
	assert_int_equal(w->v->state.snapshot_sequence, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(a_failed_attempt_goes_before_the_next),
		ON_BOTH(a_killed_attempt_goes_after_a_while),
		ON_BOTH(a_prune_takes_it_too),
		ON_BOTH(the_last_number_there_is),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
