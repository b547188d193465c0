/* SPDX-License-Identifier: Apache-2.0 */
/* A snapshot's content read at random: what comes, what is asked of the store, what is kept, and what a
 * damaged object does. */
#include "tests/unit/snapshot_fixture.h"

#include "daemon/snapshot/reader.h"

struct opened {
	struct snapshot_reader *reader;
	int error;
	char why[256];
	bool done;
};

static void opened_done(void *context, struct snapshot_reader *reader, int error, const char *why)
{
	struct opened *o = context;

	o->reader = reader;
	o->error = error;
	snprintf(o->why, sizeof(o->why), "%s", why);
	o->done = true;
}

static struct opened reader_open(struct world *w, const struct id128 *id,
				 const struct snapshot_reader_config *config)
{
	struct opened o = {.done = false};

	snapshot_reader_open(w->repo, id, config, opened_done, &o);
	env_run_until(w->env, &o.done);
	return o;
}

static void reader_close(struct world *w, struct snapshot_reader *reader)
{
	struct waited closed = {.done = false};

	snapshot_reader_close(reader, waited_freed, &closed);
	env_run_until(w->env, &closed.done);
}

struct reading {
	struct env_op op;
	uint8_t *data;
	uint64_t offset;
	uint32_t length;
	int64_t result;
	bool done;
};

static void reading_done(struct env_op *op, int64_t result)
{
	struct reading *reading = (struct reading *)op;

	assert_false(reading->done);
	reading->result = result;
	reading->done = true;
}

static void reading_start(struct snapshot_reader *reader, struct reading *reading, uint64_t offset,
			  uint32_t length)
{
	*reading =
		(struct reading){.op = {.done = reading_done}, .offset = offset, .length = length};
	reading->data = malloc(length);
	memset(reading->data, 0xa5, length);
	snapshot_reader_read(reader, &reading->op, reading->data, length, offset);
	assert_false(reading->done);
}

/* What the volume holds now, as the snapshot was just made. */
static void reading_check(const struct volume *v, struct reading *reading)
{
	assert_int_equal(reading->result, reading->length);
	for (uint32_t at = 0; at < reading->length;) {
		uint64_t offset = reading->offset + at, chunk = offset / CHUNK;
		uint32_t n = (uint32_t)(CHUNK - offset % CHUNK);
		const uint8_t *want = zero_chunk;

		if (chunk < v->chunks && v->data[chunk])
			want = v->data[chunk];
		if (n > reading->length - at)
			n = reading->length - at;
		if (memcmp(reading->data + at, want + offset % CHUNK, n))
			fail_msg("differs at %llu", (unsigned long long)offset);
		at += n;
	}
	free(reading->data);
}

static int64_t read_now(struct world *w, struct snapshot_reader *reader, uint64_t offset,
			uint32_t length)
{
	struct reading reading;

	reading_start(reader, &reading, offset, length);
	env_run_until(w->env, &reading.done);
	snapshot_reader_check(reader);
	if (reading.result > 0)
		reading_check(w->v, &reading);
	else
		free(reading.data);
	return reading.result;
}

/* Data in three map pages, one of which is without any; some chunks zero. */
static void fill(struct world *w)
{
	world_volume(w, 200 * 1024 * 1024 + 4096 * 3, 0, 1 << 20);
	for (unsigned i = 0; i < 400; i++)
		fake_fill(w->v, i + i / 7, 1000 + i);
	for (unsigned i = 0; i < 50; i++)
		fake_fill(w->v, 2 * 1024 + i * 3, 5000 + i);
	fake_fill(w->v, w->v->chunks - 1, 99); /* the last, shorter one */
	memset(w->v->data[w->v->chunks - 1] + 4096 * 3, 0, CHUNK - 4096 * 3);
	assert_string_equal(create(w->env, w->writer, "").result.why, "");
}

static void any_range_is_read(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_reader_config small = {
		.cache_pages = 2, .cache_bytes = 3 * CHUNK, .fetches_max = 2};
	const uint64_t size = 200 * 1024 * 1024 + 4096 * 3;
	struct opened o;
	uint64_t seed = 7;

	fill(w);
	o = reader_open(w, NULL, &small);
	assert_string_equal(o.why, "");
	assert_int_equal(snapshot_reader_info(o.reader)->size_bytes, size);
	for (unsigned round = 0; round < 60; round++) {
		struct reading readings[5];

		for (unsigned i = 0; i < 5; i++) {
			seed = seed * 6364136223846793005ull + 1442695040888963407ull;
			reading_start(o.reader, &readings[i],
				      (seed >> 20) % (round % 2 ? size : 30ull << 20),
				      (uint32_t)(1 + (seed >> 40) % (i ? 200000 : BUF_SIZE_MAX)));
			snapshot_reader_check(o.reader);
		}
		for (unsigned i = 0; i < 5; i++) {
			env_run_until(w->env, &readings[i].done);
			snapshot_reader_check(o.reader);
			reading_check(w->v, &readings[i]);
		}
	}
	assert_int_equal(read_now(w, o.reader, size - 4096, 65536), 65536); /* zeroes behind it */
	reader_close(w, o.reader);
}

static void what_is_kept_is_not_fetched_again(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_reader_stats before, after;
	struct reading first, second;
	struct opened o;
	unsigned gets;

	fill(w);
	o = reader_open(w, &w->v->state.snapshot, NULL);
	gets = w->m->gets;
	/* Two who want the same at once: a map page and one piece of content. */
	reading_start(o.reader, &first, 4096, 4096);
	reading_start(o.reader, &second, 8192, 512);
	env_run_until(w->env, &first.done);
	env_run_until(w->env, &second.done);
	reading_check(w->v, &first);
	reading_check(w->v, &second);
	assert_int_equal(w->m->gets - gets, 2);
	snapshot_reader_stats(o.reader, &before);
	read_now(w, o.reader, 0, 65536);
	snapshot_reader_stats(o.reader, &after);
	assert_int_equal(w->m->gets - gets, 2);
	assert_int_equal(after.requests, before.requests);
	assert_int_equal(after.hit_bytes - before.hit_bytes, 65536);
	/* In order: neighbours in a pack come with one request; zeroes with none. */
	for (uint64_t at = 65536; at < 6 * CHUNK; at += 16384)
		read_now(w, o.reader, at, 16384);
	assert_int_equal(w->m->gets - gets, 3);
	read_now(w, o.reader, 100ull << 20, BUF_SIZE_MAX);
	read_now(w, o.reader, 7 * CHUNK, 4096);
	assert_int_equal(w->m->gets - gets, 3);
	reader_close(w, o.reader);
}

static void runs_of_data_are_told(void **state)
{
	struct world *w = world_of(state);
	struct opened o;
	uint64_t start, end;

	fill(w);
	o = reader_open(w, NULL, NULL);
	assert_true(snapshot_reader_next_data(o.reader, 0, &start, &end));
	assert_int_equal(start, 0);
	assert_int_equal(end, 64 << 20); /* nothing was loaded yet */
	read_now(w, o.reader, 0, 4096);
	assert_true(snapshot_reader_next_data(o.reader, 4096, &start, &end));
	assert_int_equal(start, 4096);
	assert_int_equal(end, 7 * CHUNK);
	assert_true(snapshot_reader_next_data(o.reader, end, &start, &end));
	assert_int_equal(start, 8 * CHUNK);
	assert_true(snapshot_reader_next_data(o.reader, 60 << 20, &start, &end));
	assert_int_equal(start, 128 << 20);
	read_now(w, o.reader, w->v->size - 4096, 4096);
	assert_true(snapshot_reader_next_data(o.reader, 192 << 20, &start, &end));
	assert_int_equal(start, (w->v->chunks - 1) * CHUNK);
	assert_int_equal(end, w->v->size);
	assert_false(snapshot_reader_next_data(o.reader, end, &start, &end));
	reader_close(w, o.reader);
}

static struct memory_object *find_kind(struct world *w, const char *kind)
{
	for (unsigned i = 0; i < w->m->count; i++)
		if (strstr(w->m->objects[i].name, kind))
			return &w->m->objects[i];
	fail_msg("no object of kind %s", kind);
	return NULL;
}

/* A byte of the chunk as it lies in the store: random data is stored as it is. */
static uint8_t *stored_byte(struct world *w, uint64_t chunk)
{
	for (unsigned i = 0; i < w->m->count; i++) {
		uint8_t *found = memmem(w->m->objects[i].data, w->m->objects[i].size,
					w->v->data[chunk], CHUNK);

		if (found)
			return found + 100;
	}
	fail_msg("chunk not stored as it is");
	return NULL;
}

static void damage_is_named_and_passes_on_nothing(void **state)
{
	struct world *w = world_of(state);
	struct opened o;
	uint8_t *byte;

	fill(w);
	o = reader_open(w, NULL, NULL);
	byte = stored_byte(w, 1);
	*byte ^= 1;
	/* What is well of a request that meets it is handed out. */
	assert_int_equal(read_now(w, o.reader, 0, 4 * CHUNK), -EBADMSG);
	assert_non_null(strstr(snapshot_reader_why(o.reader), "/packs/"));
	assert_int_equal(read_now(w, o.reader, 0, 65536), 65536);
	assert_int_equal(read_now(w, o.reader, CHUNK, 512), -EBADMSG);
	assert_int_equal(read_now(w, o.reader, 2 * CHUNK, 65536), 65536);
	*byte ^= 1;
	assert_int_equal(read_now(w, o.reader, CHUNK, 512), 512);
	reader_close(w, o.reader);

	o = reader_open(w, NULL, NULL);
	memory_fail(w->m, OP_GET, 1, -EIO, MEMORY_ONCE);
	assert_int_equal(read_now(w, o.reader, 0, 512), -EIO); /* the map page */
	memory_fail(w->m, OP_GET, 2, -EIO, MEMORY_ONCE);
	assert_int_equal(read_now(w, o.reader, 0, 512), -EIO); /* the content */
	assert_int_equal(read_now(w, o.reader, 0, 512), 512);
	reader_close(w, o.reader);

	for (unsigned packs, maps, manifests;;) {
		memory_count(w->m, &packs, &maps, &manifests);
		if (!packs)
			break;
		memory_remove(w->m, (unsigned)(find_kind(w, "/packs/") - w->m->objects));
	}
	o = reader_open(w, NULL, NULL);
	assert_int_equal(read_now(w, o.reader, 0, 512), -ENOENT);
	reader_close(w, o.reader);
}

static void opens_what_is_there(void **state)
{
	struct world *w = world_of(state);
	struct id128 nobody = {{1}};
	struct opened o;
	unsigned lists;

	fill(w);
	o = reader_open(w, &nobody, NULL);
	assert_int_equal(o.error, -ENOENT);
	assert_non_null(strstr(o.why, "no such snapshot"));
	lists = w->m->lists;
	o = reader_open(w, &w->v->state.snapshot, &(struct snapshot_reader_config){.sequence = 1});
	assert_string_equal(o.why, "");
	assert_int_equal(w->m->lists, lists);
	reader_close(w, o.reader);
	find_kind(w, "/snapshots/")->data[700] ^= 1;
	o = reader_open(w, NULL, NULL);
	assert_int_equal(o.error, -EBADMSG);
}

static void closing_ends_what_is_under_way(void **state)
{
	struct world *w = world_of(state);
	struct waited closed = {.done = false};
	struct reading readings[4];
	struct opened o;

	fill(w);
	o = reader_open(w, NULL, NULL);
	read_now(w, o.reader, 0, 512);
	for (unsigned i = 0; i < 4; i++)
		reading_start(o.reader, &readings[i], i * (70ull << 20) + CHUNK, 300000);
	snapshot_reader_close(o.reader, waited_freed, &closed);
	env_run_until(w->env, &closed.done);
	for (unsigned i = 0; i < 4; i++) {
		assert_true(readings[i].done);
		assert_true(readings[i].result == -ECANCELED || readings[i].result == 300000);
		free(readings[i].data);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(any_range_is_read),     ON_BOTH(what_is_kept_is_not_fetched_again),
		ON_BOTH(runs_of_data_are_told), ON_BOTH(damage_is_named_and_passes_on_nothing),
		ON_BOTH(opens_what_is_there),   ON_BOTH(closing_ends_what_is_under_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
