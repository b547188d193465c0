/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Snapshots of a real volume on a real file, into a directory, on both real backends: under a writer, over
 * a restart, restored to a file and in place.
 *
 *   BENCH_MIB=1024 snapshot_volume     measures, alone, a first snapshot, a 1 % change, and a restore
 * time limit: 300 s
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "daemon/snapshot/snapshot.h"
#include "tests/unit/on_backends.h"

#define MIB   (1024ull * 1024)
#define CHUNK ((uint64_t)SNAPSHOT_CHUNK_BYTES)

struct world {
	struct env *env;
	char dir[64];
	struct volume *volume;
	struct buf_pool *pool;
	struct store *store;
	struct snapshot_repo *repo;
	struct snapshot_writer *writer;
	uint8_t *model; /* what the volume must hold */
	uint64_t size;
	bool cut_later;
	struct snapshot_writer *asked;
};

struct waited {
	bool done;
	struct snapshot_result result;
};

static void waited_done(void *context, const struct snapshot_result *result)
{
	struct waited *w = context;

	w->result = *result;
	w->done = true;
}

static void flag_set(void *context)
{
	*(bool *)context = true;
}

struct io {
	struct block_request request;
	bool done;
	int error;
};

static void io_done(struct block_request *request, int error)
{
	struct io *io = (struct io *)request;

	io->error = error;
	io->done = true;
}

static void pattern(uint8_t *data, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i += 8) {
		uint64_t word;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		word = seed ^ seed >> 29;
		memcpy(data + i, &word, 8);
	}
}

static void write_start(struct world *w, struct io *io, uint64_t offset, uint32_t length,
			uint64_t seed)
{
	struct block *block = volume_block(w->volume);

	pattern(w->model + offset, length, seed);
	*io = (struct io){.request = {.op = BLOCK_WRITE,
				      .offset_bytes = offset,
				      .length_bytes = length,
				      .buf = buf_alloc(w->pool, length),
				      .done = io_done}};
	assert_non_null(io->request.buf);
	memcpy(io->request.buf->data, w->model + offset, length);
	block->ops->submit(block, &io->request);
}

static void write_end(struct world *w, struct io *io)
{
	env_run_until(w->env, &io->done);
	assert_int_equal(io->error, 0);
	buf_put(io->request.buf);
}

static void write_now(struct world *w, uint64_t offset, uint32_t length, uint64_t seed)
{
	struct io io;

	write_start(w, &io, offset, length, seed);
	write_end(w, &io);
}

/* A test may take the cut itself. */
static void prepare(void *context, struct snapshot_writer *writer)
{
	struct world *w = context;

	if (w->cut_later)
		w->asked = writer;
	else
		snapshot_cut(writer, 0, "");
}

static void world_open(struct world *w)
{
	char backing[96], state_dir[96], url[96], why[256] = "";
	struct volume_config config = {.name = "test",
				       .backing = backing,
				       .state_dir = state_dir,
				       .size_bytes = w->size,
				       .role = VOLUME_PRIMARY};
	struct volume_state state;

	snprintf(backing, sizeof(backing), "%s/disk", w->dir);
	snprintf(state_dir, sizeof(state_dir), "%s/state", w->dir);
	snprintf(url, sizeof(url), "file:%s/store", w->dir);
	if (volume_open(w->env, &config, &w->volume, why, sizeof(why)) ||
	    store_open(w->env, url, &w->store, why, sizeof(why)))
		fail_msg("%s", why);
	volume_get_state(w->volume, &state);
	w->repo = snapshot_repo_new(w->store, &state.uuid);
	w->writer = snapshot_writer_new(
		w->volume, w->repo,
		&(struct snapshot_writer_config){.prepare = prepare, .prepare_context = w});
}

static void world_close(struct world *w)
{
	bool done = false;

	snapshot_writer_free(w->writer, flag_set, &done);
	env_run_until(w->env, &done);
	snapshot_repo_free(w->repo);
	store_close(w->store);
	done = false;
	volume_close(w->volume, flag_set, &done);
	env_run_until(w->env, &done);
}

static int setup(void **state, enum env_backend backend)
{
	const unsigned counts[3] = {16, 16, 16};
	struct world *w = calloc(1, sizeof(*w));

	*state = NULL;
	if (!backend_begin(backend, "/var/tmp/offsite-snapshot-XXXXXX", &w->env, w->dir)) {
		free(w);
		return 0;
	}
	w->size = getenv("BENCH_MIB") ? strtoull(getenv("BENCH_MIB"), NULL, 0) * MIB : 160 * MIB;
	w->pool = buf_pool_new(counts);
	w->model = calloc(1, w->size);
	world_open(w);
	*state = w;
	return 0;
}

SETUP_ON_BOTH(setup)

static int teardown(void **state)
{
	struct world *w = *state;

	if (!w)
		return 0;
	world_close(w);
	buf_pool_free(w->pool);
	free(w->model);
	backend_end(w->env, w->dir);
	free(w);
	return 0;
}

static struct snapshot_info create(struct world *w)
{
	struct waited c = {.done = false};

	snapshot_create(w->writer, "", waited_done, &c);
	env_run_until(w->env, &c.done);
	assert_string_equal(c.result.why, "");
	return c.result.info;
}

static struct snapshot_result restore_to(struct world *w, const struct id128 *id,
					 struct snapshot_target *target)
{
	struct waited r = {.done = false};

	snapshot_restore(w->repo, id, target, NULL, waited_done, &r);
	env_run_until(w->env, &r.done);
	assert_string_equal(r.result.why, "");
	return r.result;
}

static void assert_file_is(struct world *w, const char *path, const uint8_t *want)
{
	uint8_t *data = malloc(MIB);
	int fd = open(path, O_RDONLY);

	assert_true(fd >= 0);
	for (uint64_t at = 0; at < w->size; at += MIB) {
		assert_int_equal(pread(fd, data, MIB, (off_t)at), MIB);
		if (memcmp(data, want + at, MIB))
			fail_msg("%s differs in the MiB at %llu", path, (unsigned long long)at);
	}
	close(fd);
	free(data);
}

static void restore_file(struct world *w, const struct id128 *id, const uint8_t *want)
{
	struct snapshot_target *target;
	char path[96], why[256] = "";

	snprintf(path, sizeof(path), "%s/restored", w->dir);
	if (snapshot_target_file(w->env, path, false, &target, why, sizeof(why)))
		fail_msg("%s", why);
	restore_to(w, id, target);
	assert_file_is(w, path, want);
	unlink(path);
}

/* Each snapshot taken under a busy writer is the image at its cut. */
static void under_a_writer(void **state)
{
	struct world *w = world_of(state);
	uint8_t *image = malloc(w->size);

	for (uint64_t at = 0; at < 100 * MIB; at += 2 * MIB)
		write_now(w, at, MIB, at);
	for (unsigned round = 0; round < 3; round++) {
		struct waited c = {.done = false};
		struct snapshot_info info;
		uint64_t n = 0;

		write_now(w, 7 * 4096 + round * MIB, 8192, round);
		w->cut_later = true;
		snapshot_create(w->writer, "", waited_done, &c);
		while (!c.done) {
			struct io io[8];

			for (unsigned i = 0; i < 8; i++, n++)
				write_start(w, &io[i], (n * 37 * 4096 + i * 16 * MIB) % (128 * MIB),
					    4096, n + round * 1000000);
			for (unsigned i = 0; i < 8; i++)
				write_end(w, &io[i]);
			if (w->asked) {
				memcpy(image, w->model, w->size);
				assert_int_equal(snapshot_cut(w->asked, 0, ""), 0);
				w->asked = NULL;
			}
			volume_check(w->volume);
			snapshot_check(w->writer);
		}
		assert_string_equal(c.result.why, "");
		info = c.result.info;
		w->cut_later = false;
		restore_file(w, &info.id, image);
	}
	free(image);
}

static void after_a_restart_only_changes_are_read(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_info info;

	for (uint64_t at = 0; at < w->size; at += 4 * MIB)
		write_now(w, at, MIB, at);
	create(w);
	write_now(w, 5 * CHUNK + 512, 512, 1);
	world_close(w);
	world_open(w);
	write_now(w, 90 * MIB, 4096, 2);
	info = create(w);
	assert_true(info.changed_bytes <= 4 * MIB);
	assert_true(info.stored_bytes <= 3 * CHUNK);
	restore_file(w, NULL, w->model);
	info = create(w);
	assert_int_equal(info.changed_bytes, 0);
}

static void in_place(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_target *target;
	struct volume_state before, after;
	uint8_t *image = malloc(w->size);
	char path[96], why[256] = "";
	struct snapshot_result result;
	struct snapshot_info info;

	for (uint64_t at = 0; at < 64 * MIB; at += 4 * MIB)
		write_now(w, at, MIB, at);
	info = create(w);
	memcpy(image, w->model, w->size);
	for (uint64_t at = 0; at < w->size; at += 3 * MIB)
		write_now(w, at, 65536, at + 1);
	volume_get_state(w->volume, &before);
	assert_int_equal(snapshot_target_volume(w->volume, &target, why, sizeof(why)), 0);
	result = restore_to(w, &info.id, target);
	/* The map says what was written since: nothing else is read, here or in the store. */
	assert_true(result.checked_bytes > 0 && result.checked_bytes < 10 * MIB);
	volume_get_state(w->volume, &after);
	assert_int_equal(after.disk, VOLUME_DISK_UPTODATE);
	assert_false(id128_equal(&before.generations.current, &after.generations.current));
	snprintf(path, sizeof(path), "%s/disk", w->dir);
	assert_file_is(w, path, image);
	memcpy(w->model, image, w->size);
	write_now(w, 17 * 4096, 4096, 9);
	create(w);
	restore_file(w, NULL, w->model);
	free(image);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_seconds(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
	       1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void bench(void **state)
{
	struct world *w = world_of(state);
	struct snapshot_target *target;
	char path[96], why[256] = "";
	struct snapshot_info info;
	struct rusage usage;
	double start, cpu;

	if (!getenv("BENCH_MIB"))
		return;
	for (uint64_t at = 0; at < w->size; at += MIB)
		write_now(w, at, MIB, at + 1);
	start = seconds();
	cpu = cpu_seconds();
	info = create(w);
	print_message("first, %llu MiB: %.2f s, %.2f s of CPU, %llu MiB stored, %u objects\n",
		      (unsigned long long)(w->size / MIB), seconds() - start, cpu_seconds() - cpu,
		      (unsigned long long)(info.stored_bytes / MIB), info.objects);
	for (uint64_t i = 0; i < w->size / CHUNK / 100; i++)
		write_now(w, i * 7919 % (w->size / CHUNK) * CHUNK, 65536, i + 12345);
	start = seconds();
	cpu = cpu_seconds();
	info = create(w);
	print_message("1 %% changed: %.3f s, %.3f s of CPU, %llu KiB stored, %u objects\n",
		      seconds() - start, cpu_seconds() - cpu,
		      (unsigned long long)(info.stored_bytes / 1024), info.objects);
	snprintf(path, sizeof(path), "%s/restored", w->dir);
	assert_int_equal(snapshot_target_file(w->env, path, false, &target, why, sizeof(why)), 0);
	start = seconds();
	restore_to(w, NULL, target);
	getrusage(RUSAGE_SELF, &usage);
	print_message("restore: %.2f s; resident at most %ld MiB, %llu of them the test's model\n",
		      seconds() - start, usage.ru_maxrss / 1024,
		      (unsigned long long)(w->size / MIB));
	assert_file_is(w, path, w->model);
}

#define ON_BOTH(test)                                              \
	{#test " (io_uring)", test, setup_uring, teardown, NULL},  \
	{                                                          \
#test " (libaio)", test, setup_aio, teardown, NULL \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		ON_BOTH(under_a_writer),
		ON_BOTH(after_a_restart_only_changes_are_read),
		ON_BOTH(in_place),
		ON_BOTH(bench),
	};

	alarm(300);
	if (getenv("BENCH_MIB"))
		cmocka_set_test_filter("bench*");
	return cmocka_run_group_tests(tests, NULL, NULL);
}
