/* SPDX-License-Identifier: Apache-2.0 */
/* What changed between snapshots, and since one: right by a model, and at the price of the difference. */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/diff.h"
#include "daemon/snapshot/internal.h"

#define SNAPSHOTS 6u

/* What each snapshot holds: of a chunk the seed of its content, 0: zeroes. */
struct model {
	struct snapshot_info info;
	uint32_t *seeds;
	uint64_t chunks;
};

struct opened {
	bool done;
	struct snapshot_diff *diff;
	int error;
	char why[256];
};

static void diff_opened(void *context, struct snapshot_diff *diff, int error, const char *why)
{
	struct opened *o = context;

	assert_false(o->done);
	assert_int_equal(error != 0, why[0] != 0);
	assert_int_equal(error == 0, diff != NULL);
	*o = (struct opened){.done = true, .diff = diff, .error = error};
	snprintf(o->why, sizeof(o->why), "%s", why);
}

static struct opened open_diff(struct world *w, const struct id128 *from, const struct id128 *to)
{
	struct opened o = {.done = false};

	snapshot_diff_open(w->repo, from, to, to ? NULL : w->v, diff_opened, &o);
	env_run_until(w->env, &o.done);
	return o;
}

static void diff_closed(void *context)
{
	*(bool *)context = true;
}

static void close_diff(struct world *w, struct snapshot_diff *diff)
{
	bool closed = false;

	snapshot_diff_close(diff, diff_closed, &closed);
	assert_false(closed);
	env_run_until(w->env, &closed);
}

struct question {
	struct snapshot_diff_ask ask;
	struct snapshot_extent extents[64];
	bool done;
	int error;
	char why[256];
};

static void question_done(struct snapshot_diff_ask *ask, int error, const char *why)
{
	struct question *q = (struct question *)ask;

	assert_false(q->done);
	q->done = true;
	q->error = error;
	snprintf(q->why, sizeof(q->why), "%s", why);
}

static void ask(struct snapshot_diff *diff, struct question *q, uint64_t offset, uint64_t length,
		unsigned max)
{
	*q = (struct question){.ask = {.offset_bytes = offset,
				       .length_bytes = length,
				       .extents = q->extents,
				       .max = max,
				       .done = question_done}};
	snapshot_diff_ask(diff, &q->ask);
}

/* The whole answer, piece by piece, against what should differ. then NULL: all of it. */
static void check_diff(struct world *w, struct snapshot_diff *diff, const struct model *then,
		       const struct model *now, unsigned max)
{
	uint64_t size = snapshot_diff_ends(diff)->size_bytes, at = 0;
	struct question q;

	assert_int_equal((size + CHUNK - 1) / CHUNK, now->chunks);
	while (at < size) {
		ask(diff, &q, at, size - at, max);
		env_run_until(w->env, &q.done);
		assert_string_equal(q.why, "");
		assert_true(q.ask.count > 0);
		for (unsigned i = 0; i < q.ask.count; i++) {
			const struct snapshot_extent *e = &q.extents[i];

			assert_int_equal(e->offset_bytes, at);
			assert_true(e->length_bytes > 0);
			for (; at < e->offset_bytes + e->length_bytes; at += CHUNK) {
				uint64_t chunk = at / CHUNK;
				uint32_t before = chunk < then->chunks ? then->seeds[chunk] : 0;
				bool changed = chunk >= then->chunks || before != now->seeds[chunk];

				if (e->changed != changed ||
				    e->zero != (changed && !now->seeds[chunk]))
					fail_msg("chunk %llu: %d %d, %u to %u",
						 (unsigned long long)chunk, e->changed, e->zero,
						 before, now->seeds[chunk]);
			}
			if (at > size)
				at = size;
		}
	}
}

static struct model take(struct world *w, const uint32_t *seeds)
{
	struct waited c = create(w->env, w->writer, "");
	struct model model = {.info = c.result.info, .chunks = w->v->chunks};

	assert_string_equal(c.result.why, "");
	model.seeds = malloc(w->v->chunks * sizeof(*seeds));
	memcpy(model.seeds, seeds, w->v->chunks * sizeof(*seeds));
	return model;
}

static void put(struct world *w, uint32_t *seeds, uint64_t chunk, uint32_t seed)
{
	seeds[chunk] = seed;
	if (seed)
		fake_fill(w->v, chunk, seed);
	else
		fake_write(w->v, chunk, NULL);
}

static uint32_t rnd(uint32_t *state, uint32_t below)
{
	*state = *state * 1664525u + 1013904223u;
	return (uint32_t)((uint64_t)(*state >> 8) * below >> 24);
}

static void some_writes(struct world *w, uint32_t *seeds, uint32_t *random)
{
	for (unsigned n = 2 + rnd(random, 12); n; n--) {
		uint64_t first = rnd(random, (uint32_t)w->v->chunks);
		uint32_t value = rnd(random, 4) ? 1 + rnd(random, 5) : 0;

		for (uint64_t i = first; i < first + 1 + rnd(random, 6) && i < w->v->chunks; i++)
			put(w, seeds, i, value ? value + (uint32_t)i % 3 : 0);
	}
}

/* Each pair of a row of snapshots, both ways, and the live volume since each. */
static void every_pair_by_a_model(void **state)
{
	struct world *w = world_of(state);
	uint32_t random = 20261127, *seeds;
	struct model models[SNAPSHOTS];

	world_volume(w, 6ull << 30, 0, 1 << 20);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	for (unsigned i = 0; i < SNAPSHOTS; i++) {
		some_writes(w, seeds, &random);
		models[i] = take(w, seeds);
	}
	some_writes(w, seeds, &random);
	for (unsigned a = 0; a < SNAPSHOTS; a++) {
		for (unsigned b = 0; b < SNAPSHOTS; b++) {
			struct opened o = open_diff(w, &models[a].info.id, &models[b].info.id);

			assert_string_equal(o.why, "");
			assert_true(id128_equal(&snapshot_diff_ends(o.diff)->from.id,
						&models[a].info.id));
			check_diff(w, o.diff, &models[a], &models[b], 1 + (a + b) % 5);
			close_diff(w, o.diff);
		}
	}
	for (unsigned a = 0; a < SNAPSHOTS; a++)
		free(models[a].seeds);
	free(seeds);
}

/* Marked is what was written, whether or not it is what was there before. */
static void assert_covers(struct world *w, struct snapshot_diff *diff, const struct model *then,
			  const uint32_t *seeds, uint64_t *changed_bytes)
{
	uint64_t size = snapshot_diff_ends(diff)->size_bytes, at = 0;
	struct question q;

	*changed_bytes = 0;
	while (at < size) {
		ask(diff, &q, at, size - at, 7);
		env_run_until(w->env, &q.done);
		assert_string_equal(q.why, "");
		for (unsigned i = 0; i < q.ask.count; i++) {
			const struct snapshot_extent *e = &q.extents[i];

			assert_int_equal(e->offset_bytes, at);
			*changed_bytes += e->changed ? e->length_bytes : 0;
			for (; at < e->offset_bytes + e->length_bytes; at += CHUNK) {
				uint64_t c = at / CHUNK;

				assert_true(e->changed || then->seeds[c] == seeds[c]);
				assert_true(!e->zero || !seeds[c]);
			}
		}
	}
}

static void since_a_snapshot_until_now(void **state)
{
	struct world *w = world_of(state);
	uint32_t random = 7, *seeds;
	struct model models[3];
	struct opened o[3];
	uint64_t changed;

	world_volume(w, 2ull << 30, 0, 1 << 20);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	for (unsigned i = 0; i < 3; i++) {
		some_writes(w, seeds, &random);
		models[i] = take(w, seeds);
	}
	for (unsigned i = 0; i < 3; i++) {
		o[i] = open_diff(w, &models[i].info.id, NULL);
		assert_string_equal(o[i].why, "");
	}
	assert_covers(w, o[2].diff, &models[2], seeds, &changed);
	assert_int_equal(changed, 0);
	put(w, seeds, 17, 99);
	put(w, seeds, 5000, 98);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < 3; i++)
			assert_covers(w, o[i].diff, &models[i], seeds, &changed);
		assert_true(round == 2 || changed == 2 * CHUNK);
		if (round == 0) { /* the map is emptied into a snapshot: nothing may be lost */
			struct model newer = take(w, seeds);

			assert_false(bit(w->v->dirty, 17));
			free(newer.seeds);
		} else if (round == 1) {
			some_writes(w, seeds, &random);
		}
	}
	/* A map that does not say all says nothing. */
	w->v->store_lost = true;
	assert_false(snapshot_diff_knows(w->v));
	for (unsigned i = 0; i < 3; i++) {
		struct question q;

		ask(o[i].diff, &q, 0, CHUNK, 1);
		env_run_until(w->env, &q.done);
		assert_int_equal(q.error, -EPERM);
		close_diff(w, o[i].diff);
		free(models[i].seeds);
	}
	free(seeds);
}

static void one_turn(struct world *w)
{
	struct late *late = late_new(w->env);
	bool turn = false;

	late->call = diff_closed;
	late->context = &turn;
	env_run_until(w->env, &turn);
}

static bool says_changed(const struct question *q, uint64_t chunk)
{
	for (unsigned i = 0; i < q->ask.count; i++)
		if (q->extents[i].changed && q->extents[i].offset_bytes <= chunk * CHUNK &&
		    q->extents[i].offset_bytes + q->extents[i].length_bytes > chunk * CHUNK)
			return true;
	return false;
}

static void manifest_is_put(struct memory_store *m, const char *name)
{
	if (strstr(name, "/snapshots/"))
		*(bool *)m->context = true;
}

/* A snapshot ends while questions are on their way: one begins in each turn of the loop, and has a page to wait
 * for. */
static void a_snapshot_ends_during_a_question(void **state)
{
	enum { TURNS = 40 };
	struct world *w = world_of(state);
	struct waited c = {.done = false};
	struct model a, b;
	uint32_t *seeds;
	struct opened o[TURNS];
	struct question *q = calloc(TURNS, sizeof(*q));
	bool ending = false;
	unsigned late = 0;

	world_volume(w, 1ull << 30, 0, 0);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	put(w, seeds, 3, 1);
	a = take(w, seeds);
	put(w, seeds, 4000, 2);
	b = take(w, seeds);
	put(w, seeds, 9000, 3);
	for (unsigned i = 0; i < TURNS; i++)
		o[i] = open_diff(w, &a.info.id, NULL);
	w->m->on_put = manifest_is_put;
	w->m->context = &ending;
	snapshot_create(w->writer, "", waited_done, &c);
	env_run_until(w->env, &ending);
	for (unsigned i = 0; i < TURNS; i++) {
		ask(o[i].diff, &q[i], 0, w->v->size, 64);
		late += c.done;
		one_turn(w);
	}
	env_run_until(w->env, &c.done);
	assert_string_equal(c.result.why, "");
	assert_true(late > 0);
	for (unsigned i = 0; i < TURNS; i++) {
		env_run_until(w->env, &q[i].done);
		assert_string_equal(q[i].why, "");
		assert_true(says_changed(&q[i], 4000) && says_changed(&q[i], 9000));
		close_diff(w, o[i].diff);
	}
	free(q);
	free(a.seeds);
	free(b.seeds);
	free(seeds);
}

static void grow(struct volume *v, uint64_t size)
{
	uint64_t chunks = (size + CHUNK - 1) / CHUNK;

	v->data = realloc(v->data, chunks * sizeof(*v->data));
	v->preserved = realloc(v->preserved, chunks * sizeof(*v->preserved));
	v->dirty = realloc(v->dirty, chunks / 8 + 1);
	v->sealed = realloc(v->sealed, chunks / 8 + 1);
	v->consumed = realloc(v->consumed, chunks / 8 + 1);
	for (uint64_t i = v->chunks; i < chunks; i++) {
		v->data[i] = v->preserved[i] = NULL;
		bit_assign(v->dirty, i, false);
		bit_assign(v->sealed, i, false);
		bit_assign(v->consumed, i, false);
	}
	v->size = size;
	v->chunks = chunks;
}

/* What a volume was grown by is changed, as far as it is a zero, too; the way back ends where the smaller
 * one does. */
static void a_grown_volume(void **state)
{
	struct world *w = world_of(state);
	uint64_t ends[] = {70 << 20, (70 << 20) + 12288, 128 << 20};

	for (unsigned i = 0; i < 3; i++) {
		uint32_t *seeds = calloc(1 << 14, sizeof(*seeds));
		struct model small, big;
		struct opened o;

		world_volume(w, ends[i], 0, 0);
		put(w, seeds, 5, 1);
		put(w, seeds, 1100, 1);
		small = take(w, seeds);
		small.chunks = w->v->size / CHUNK; /* the last one, if it is in part, differs */
		grow(w->v, 600 << 20);
		put(w, seeds, 1100, 2);
		put(w, seeds, 9000, 3);
		big = take(w, seeds);
		o = open_diff(w, &small.info.id, &big.info.id);
		check_diff(w, o.diff, &small, &big, 64);
		close_diff(w, o.diff);
		o = open_diff(w, &big.info.id, &small.info.id);
		small.chunks = (ends[i] + CHUNK - 1) / CHUNK;
		check_diff(w, o.diff, &big, &small, 64);
		close_diff(w, o.diff);
		free(small.seeds);
		free(big.seeds);
		free(seeds);
		world_drop(w);
	}
}

/* 1 TiB with data all over, little of it changed: the pages that are shared are not read. */
static void costs_follow_the_difference(void **state)
{
	struct world *w = world_of(state);
	struct model a, b;
	uint32_t *seeds;
	struct opened o;
	unsigned gets;

	world_volume(w, 1ull << 40, 0, 0);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	for (uint64_t i = 0; i < w->v->chunks; i += 16384)
		put(w, seeds, i, 1 + (uint32_t)i % 7);
	a = take(w, seeds);
	put(w, seeds, 16384 * 5, 9);
	put(w, seeds, 16384 * 700, 0);
	put(w, seeds, 1024 * 9 + 1, 9);
	b = take(w, seeds);
	gets = w->m->gets;
	o = open_diff(w, &a.info.id, &b.info.id);
	check_diff(w, o.diff, &a, &b, 64);
	/* Two manifests; of three pages both sides but one, and of one that went only one. */
	assert_true(w->m->gets - gets <= 2 + 5);
	gets = w->m->gets;
	check_diff(w, o.diff, &a, &b, 2);
	assert_int_equal(w->m->gets, gets); /* kept */
	close_diff(w, o.diff);
	free(a.seeds);
	free(b.seeds);
	free(seeds);
}

static void damage_is_said_and_the_rest_goes_on(void **state)
{
	struct world *w = world_of(state);
	struct model a, b;
	uint32_t *seeds;
	struct question q;
	struct opened o;

	world_volume(w, 4ull << 30, 0, 0);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	put(w, seeds, 5, 1);
	a = take(w, seeds);
	put(w, seeds, 5, 2);
	put(w, seeds, 40000, 2);
	b = take(w, seeds);
	o = open_diff(w, &a.info.id, &b.info.id);
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/maps/"))
			w->m->objects[i].data[w->m->objects[i].size - 1] ^= 1;
	ask(o.diff, &q, 0, 4ull << 30, 64);
	env_run_until(w->env, &q.done);
	assert_int_equal(q.error, -EBADMSG);
	assert_non_null(strstr(q.why, "/maps/"));
	ask(o.diff, &q, 1000ull << 20, 100 << 20, 64);
	env_run_until(w->env, &q.done);
	assert_int_equal(q.error, 0);
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, "/maps/"))
			w->m->objects[i].data[w->m->objects[i].size - 1] ^= 1;
	check_diff(w, o.diff, &a, &b, 64); /* nothing wrong was kept */
	close_diff(w, o.diff);
	free(a.seeds);
	free(b.seeds);
	free(seeds);
}

/* Each request of the store fails once. */
static void errors_of_the_store(void **state)
{
	struct world *w = world_of(state);
	struct model a, b;
	uint32_t *seeds;

	world_volume(w, 4ull << 30, 0, 0);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	put(w, seeds, 5, 1);
	a = take(w, seeds);
	put(w, seeds, 40000, 2);
	b = take(w, seeds);
	for (unsigned n = 1;; n++) {
		struct opened o;
		struct question q;

		memory_fail(w->m, OP_ALL, n, -EIO, MEMORY_ONCE);
		repo_changed(w->repo); /* the list, too */
		o = open_diff(w, &a.info.id, &b.info.id);
		if (!o.diff) {
			assert_true(n <= 5);
			continue;
		}
		ask(o.diff, &q, 0, 4ull << 30, 64);
		env_run_until(w->env, &q.done);
		if (q.error) {
			memory_heal(w->m);
			check_diff(w, o.diff, &a, &b, 64);
		}
		close_diff(w, o.diff);
		if (!q.error) {
			assert_true(n > 6);
			break;
		}
	}
	memory_heal(w->m);
	free(a.seeds);
	free(b.seeds);
	free(seeds);
}

/* Closed with questions under way, at each turn of the loop. */
static void closed_at_any_time(void **state)
{
	struct world *w = world_of(state);
	struct model a, b;
	uint32_t *seeds;

	world_volume(w, 4ull << 30, 0, 0);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	put(w, seeds, 5, 1);
	a = take(w, seeds);
	put(w, seeds, 5, 2);
	put(w, seeds, 40000, 2);
	b = take(w, seeds);
	for (unsigned turns = 0; turns < 8; turns++) {
		for (unsigned live = 0; live < 2; live++) {
			struct opened o = open_diff(w, &a.info.id, live ? NULL : &b.info.id);
			struct question q[3];

			for (unsigned i = 0; i < 3; i++)
				ask(o.diff, &q[i], i * 4096, (4ull << 30) - i * 4096, 5);
			for (unsigned i = 0; i < turns; i++)
				one_turn(w);
			close_diff(w, o.diff);
			for (unsigned i = 0; i < 3; i++)
				assert_true(q[i].done && (!q[i].error || q[i].error == -ECANCELED));
		}
	}
	free(a.seeds);
	free(b.seeds);
	free(seeds);
}

static void what_is_open_is_not_deleted(void **state)
{
	struct world *w = world_of(state);
	struct retention_policy policy = {.last = 1};
	struct waited f = {.done = false};
	struct model a, b, c;
	uint32_t *seeds;
	struct opened o;

	world_volume(w, 1ull << 30, 0, 0);
	seeds = calloc(w->v->chunks, sizeof(*seeds));
	put(w, seeds, 5, 1);
	a = take(w, seeds);
	put(w, seeds, 5, 2);
	b = take(w, seeds);
	c = take(w, seeds);
	o = open_diff(w, &a.info.id, &b.info.id);
	assert_int_equal(delete (w->env, w->repo, &b.info.id).result.error, -EBUSY);
	snapshot_forget(w->repo, &policy, false, NULL, waited_done, &f);
	env_run_until(w->env, &f.done);
	assert_string_equal(f.result.why, "");
	assert_int_equal(list(w->env, w->repo).listed, 3);
	check_diff(w, o.diff, &a, &b, 64);
	close_diff(w, o.diff);
	assert_int_equal(delete (w->env, w->repo, &b.info.id).result.error, 0);
	o = open_diff(w, &a.info.id, &b.info.id);
	assert_int_equal(o.error, -ENOENT);
	f.done = false;
	snapshot_forget(w->repo, &policy, false, NULL, waited_done, &f);
	env_run_until(w->env, &f.done);
	assert_int_equal(list(w->env, w->repo).listed, 1);
	free(a.seeds);
	free(b.seeds);
	free(c.seeds);
	free(seeds);
}

struct search {
	bool done;
	int error;
	struct snapshot_info found;
};

static void searched(void *context, const struct snapshot_info *found, int error, const char *why)
{
	struct search *s = context;

	*s = (struct search){.done = true, .error = error};
	if (found)
		s->found = *found;
}

static struct search look_for(struct world *w, const char *text)
{
	struct search s = {.done = false};

	snapshot_find(w->repo, text, searched, &s);
	env_run_until(w->env, &s.done);
	return s;
}

static void found_by_what_people_call_it(void **state)
{
	struct world *w = world_of(state);
	char text[ID128_TEXT_BYTES + 8];
	struct id128 first, id;
	struct search s;

	world_volume(w, 1ull << 30, 0, 0);
	assert_int_equal(look_for(w, "latest").error, -ENOENT);
	first = create(w->env, w->writer, "").result.info.id;
	for (unsigned i = 0; i < 20; i++)
		id = create(w->env, w->writer, "").result.info.id;
	s = look_for(w, "latest");
	assert_true(id128_equal(&s.found.id, &id));
	id128_format(&first, text);
	s = look_for(w, text);
	assert_true(id128_equal(&s.found.id, &first));
	strcat(text, "0");
	assert_int_equal(look_for(w, text).error, -ENOENT);
	text[12] = '\0';
	assert_int_equal(look_for(w, text).found.sequence, 1);
	assert_int_equal(look_for(w, "").error, -ENOENT);
	assert_int_equal(look_for(w, "xyz").error, -ENOENT);
	text[0] = 0;
	for (const char *c = "0123456789abcdef"; *c && look_for(w, text).error != -EINVAL; c++)
		text[0] = *c, text[1] = 0; /* of 21 ids two begin alike */
	assert_int_equal(look_for(w, text).error, -EINVAL);
}

static void ids_counted(void *context, const struct snapshot_info *found, unsigned count, int error,
			const char *why)
{
	assert_int_equal(error, 0);
	*(unsigned *)context = count;
}

/* A bucket is not listed for each client and each context: looks at one time share a list, and an id that was
 * seen is not looked for again. What is new or gone is seen all the same. */
static void looks_share_a_list(void **state)
{
	enum { AT_ONCE = 16 };
	struct world *w = world_of(state);
	struct search s[AT_ONCE] = {{.done = false}};
	struct snapshot_repo *other;
	struct snapshot_info a, b;
	char text[ID128_TEXT_BYTES];
	unsigned ids = 0;

	world_volume(w, 1ull << 30, 0, 0);
	other = snapshot_repo_new(w->repo->store, &w->repo->volume);
	fake_fill(w->v, 1, 1);
	a = create(w->env, w->writer, "").result.info;
	fake_fill(w->v, 1, 2);
	b = create(w->env, w->writer, "").result.info;
	id128_format(&a.id, text);
	w->m->lists = 0;
	for (unsigned i = 0; i < AT_ONCE; i++)
		snapshot_find(w->repo, i % 2 ? "latest" : text, searched, &s[i]);
	for (unsigned i = 0; i < AT_ONCE; i++) {
		env_run_until(w->env, &s[i].done);
		assert_true(id128_equal(&s[i].found.id, i % 2 ? &b.id : &a.id));
	}
	snapshot_ids(w->repo, 64, ids_counted, &ids);
	for (unsigned i = 0; i < AT_ONCE; i++) {
		struct opened o = open_diff(w, &a.id, i % 2 ? &b.id : NULL);

		assert_string_equal(o.why, "");
		close_diff(w, o.diff);
		assert_int_equal(look_for(w, text).error, 0);
	}
	assert_int_equal(ids, 2);
	assert_int_equal(w->m->lists, 1);

	/* What is written here, and what is written elsewhere. */
	s[0] = (struct search){.done = false};
	snapshot_find(other, "latest", searched, &s[0]);
	env_run_until(w->env, &s[0].done);
	b = create(w->env, w->writer, "").result.info;
	s[1] = look_for(w, "latest");
	assert_true(id128_equal(&s[1].found.id, &b.id));
	id128_format(&b.id, text);
	s[0] = (struct search){.done = false};
	snapshot_find(other, text, searched, &s[0]);
	env_run_until(w->env, &s[0].done);
	assert_true(id128_equal(&s[0].found.id, &b.id));
	b = create(w->env, w->writer, "").result.info;
	id128_format(&b.id, text);
	text[20] = '\0';
	s[0] = (struct search){.done = false};
	snapshot_find(other, text, searched, &s[0]);
	env_run_until(w->env, &s[0].done);
	assert_true(id128_equal(&s[0].found.id, &b.id));

	/* What is deleted here, while a look is under way, too. */
	id128_format(&a.id, text);
	assert_int_equal(look_for(w, text).error, 0);
	s[0] = (struct search){.done = false};
	repo_changed(w->repo);
	snapshot_find(w->repo, text, searched, &s[0]);
	assert_string_equal(delete (w->env, w->repo, &a.id).result.why, "");
	env_run_until(w->env, &s[0].done);
	assert_int_equal(look_for(w, text).error, -ENOENT);
	snapshot_repo_free(other);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(every_pair_by_a_model),
		ON_BOTH(since_a_snapshot_until_now),
		ON_BOTH(a_snapshot_ends_during_a_question),
		ON_BOTH(a_grown_volume),
		ON_BOTH(costs_follow_the_difference),
		ON_BOTH(damage_is_said_and_the_rest_goes_on),
		ON_BOTH(errors_of_the_store),
		ON_BOTH(closed_at_any_time),
		ON_BOTH(what_is_open_is_not_deleted),
		ON_BOTH(found_by_what_people_call_it),
		ON_BOTH(looks_share_a_list),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
