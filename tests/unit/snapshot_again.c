/* SPDX-License-Identifier: Apache-2.0 */
/* A restore over what is there already: only what differs comes out of the store, and what is known without
 * reading is not read. */
#include "tests/unit/snapshot_fixture.h"

#include <fcntl.h>

#define CHUNKS 400u

/* What came out of packs, and how many map pages. */
static struct {
	unsigned packs, pages;
} asked;

static void asked_count(struct memory_store *m, const char *name)
{
	asked.packs += strstr(name, "/packs/") != NULL;
	asked.pages += strstr(name, "/maps/") != NULL;
}

static void fill(struct world *w, uint64_t seed)
{
	for (uint64_t i = 0; i < CHUNKS; i++)
		fake_fill(w->v, i * 3, seed + i);
}

static void begin(struct world *w, char path[128])
{
	world_volume(w, (CHUNKS * 3 + 700) * CHUNK + 8192, 0, 1 << 20);
	fill(w, 1);
	fake_fill(w->v, w->v->chunks - 1, 7); /* the last, shorter one */
	memset(w->v->data[w->v->chunks - 1] + 8192, 0, CHUNK - 8192);
	assert_int_equal(create(w->env, w->writer, "").result.error, 0);
	snprintf(path, 128, "%s/image", w->dir);
	w->m->on_get = asked_count;
}

static struct waited again(struct world *w, const char *path, struct snapshot_target *target)
{
	struct waited r;

	memset(&asked, 0, sizeof(asked));
	w->m->got_bytes = 0;
	r = target ? restore(w->env, w->repo, NULL, target)
		   : restore_file(w->env, w->repo, NULL, path, true);
	assert_string_equal(r.result.why, "");
	assert_int_equal(r.result.written_bytes + r.result.skipped_bytes, w->v->size);
	return r;
}

/* How many chunks of the file are not the volume's. */
static unsigned differing(const struct volume *v, const char *path)
{
	uint8_t data[CHUNK];
	int fd = open(path, O_RDONLY);
	unsigned count = 0;

	assert_true(fd >= 0);
	for (uint64_t i = 0; i < v->chunks; i++) {
		size_t length = v->size - i * CHUNK < CHUNK ? v->size - i * CHUNK : CHUNK;

		memset(data, 0, sizeof(data));
		assert_true(pread(fd, data, length, (off_t)(i * CHUNK)) >= 0);
		count += memcmp(data, v->data[i] ? v->data[i] : zero_chunk, length) != 0;
	}
	close(fd);
	return count;
}

static void spoil(const char *path, uint64_t offset)
{
	int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
	close(fd);
}

static void what_an_interrupted_one_brought_is_not_fetched_again(void **state)
{
	struct world *w = world_of(state);
	char path[128], half[160];
	uint64_t missing;

	begin(w, path);
	snprintf(half, sizeof(half), "%s.incomplete", path);
	w->m->fail_types = OP_GET;
	w->m->fail_for_good = true;
	w->m->fail_error = -EIO;
	w->m->fail_at =
		3 + 20; /* a request is sent when what one of ten before it brought was used */
	assert_int_equal(restore_file(w->env, w->repo, NULL, path, false).result.error, -EIO);
	w->m->fail_at = 0;
	missing = differing(w->v, half) * CHUNK;
	assert_true(missing > 20 * CHUNK && missing < CHUNKS * 3 / 4 * CHUNK);
	memset(&asked, 0, sizeof(asked));
	w->m->got_bytes = 0;
	assert_string_equal(restore_file(w->env, w->repo, NULL, path, false).result.why, "");
	assert_int_equal(differing(w->v, path), 0);
	print_message("%llu KiB missing, %llu KiB came in %u requests\n",
		      (unsigned long long)missing / 1024,
		      (unsigned long long)w->m->got_bytes / 1024, asked.packs);
	assert_true(w->m->got_bytes < missing + missing / 4);
}

static void what_is_equal_is_not_fetched(void **state)
{
	struct world *w = world_of(state);
	char path[128];
	struct waited r;

	begin(w, path);
	assert_string_equal(restore_file(w->env, w->repo, NULL, path, false).result.why, "");
	r = again(w, path, NULL);
	assert_int_equal(asked.packs, 0);
	assert_true(asked.pages > 0);
	assert_int_equal(r.result.written_bytes, 0);
	spoil(path, 3 * 17 * CHUNK + 4711);
	spoil(path, w->v->size - 1);
	spoil(path, 4 * CHUNK); /* zero in the snapshot */
	r = again(w, path, NULL);
	assert_int_equal(differing(w->v, path), 0);
	assert_int_equal(asked.packs, 2);
	assert_int_equal(r.result.checked_bytes, CHUNK + 8192);
	assert_in_range(r.result.written_bytes, CHUNK + 8192, 3 * CHUNK + (1 << 20));
}

/* Reads are counted; at one place there is an error. */
static struct {
	struct env *env;
	void (*read)(struct snapshot_target *target, struct env_op *op, struct buf *buf,
		     uint64_t offset, uint32_t length);
	uint64_t bad, bytes;
} reads;

static void counted_read(struct snapshot_target *target, struct env_op *op, struct buf *buf,
			 uint64_t offset, uint32_t length)
{
	reads.bytes += length;
	if (reads.bad >= offset && reads.bad < offset + length)
		complete(reads.env, op, -EIO);
	else
		reads.read(target, op, buf, offset, length);
}

static struct snapshot_target *target_counted(struct world *w, const char *path, uint64_t bad)
{
	struct snapshot_target *target;
	char why[256] = "";

	assert_int_equal(snapshot_target_file(w->env, path, true, &target, why, sizeof(why)), 0);
	reads.env = w->env;
	reads.read = target->read;
	reads.bad = bad;
	reads.bytes = 0;
	target->read = counted_read;
	return target;
}

static void what_cannot_be_read_is_fetched(void **state)
{
	struct world *w = world_of(state);
	char path[128];
	struct waited r;

	begin(w, path);
	assert_string_equal(restore_file(w->env, w->repo, NULL, path, false).result.why, "");
	r = again(w, path, target_counted(w, path, 30 * CHUNK + 5));
	assert_true(asked.packs > 0 && asked.packs <= 2);
	assert_in_range(r.result.checked_bytes, CHUNK, 16 * CHUNK);
	assert_int_equal(differing(w->v, path), 0);
}

static void holes_are_not_read(void **state)
{
	struct world *w = world_of(state);
	char path[128];
	int fd;

	begin(w, path);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	assert_int_equal(ftruncate(fd, (off_t)w->v->size), 0);
	close(fd);
	again(w, path, target_counted(w, path, UINT64_MAX));
	assert_int_equal(reads.bytes, 0);
	assert_int_equal(differing(w->v, path), 0);
	again(w, path, target_counted(w, path, UINT64_MAX));
	assert_true(reads.bytes >= CHUNKS * CHUNK);
	assert_int_equal(asked.packs, 0);
}

/* So many chunks were written since. The map says which; where it does not, the hashes do. */
static void a_volume_gets_what_was_changed(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_target *target;
	char path[128], why[256];
	struct snapshot_info info;

	begin(w, path);
	assert_string_equal(restore_file(w->env, w->repo, NULL, path, false).result.why, "");
	info = create(w->env, w->writer, "").result.info;
	for (unsigned known = 0; known < 2; known++) {
		w->v->state.snapshot = known ? info.id : (struct id128){{0}};
		for (uint64_t i = 0; i < w->v->chunks; i++)
			bit_assign(w->v->dirty, i, false);
		for (uint64_t i = 0; i < CHUNKS / 3; i += 10)
			fake_fill(w->v, i * 3, 99999 + i);
		assert_int_equal(snapshot_target_volume(w->v, &target, why, sizeof(why)), 0);
		again(w, path, target);
		assert_int_equal(differing(w->v, path), 0);
		print_message("%llu KiB in %u requests, %u pages\n",
			      (unsigned long long)w->m->got_bytes / 1024, asked.packs, asked.pages);
		assert_int_equal(asked.packs, CHUNKS / 30 + 1);
		assert_int_equal(asked.pages, known ? 1 : 2);
		assert_true(w->m->got_bytes < (CHUNKS / 30 + 1) * CHUNK + (96 << 10));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(what_an_interrupted_one_brought_is_not_fetched_again),
		ON_BOTH(what_is_equal_is_not_fetched),
		ON_BOTH(what_cannot_be_read_is_fetched),
		ON_BOTH(holes_are_not_read),
		ON_BOTH(a_volume_gets_what_was_changed),
	};

	alarm(120);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
