// SPDX-License-Identifier: Apache-2.0
/* A volume on both real backends (io_uring, libaio), with files of a temporary folder: random requests
 * against a model over several openings, cuts, a trim of a 2 TiB sparse file. SEED=n replays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#include "daemon/volume/volume.h"

#define SIZE  ((9ull << 20) + 4096 * 5)
#define DEPTH 24

struct fixture {
	enum env_backend backend;
	struct env *env;
	struct volume *volume;
	struct volume_config config;
	struct buf_pool *pool;
	char directory[64], backing[96], state[96];
	uint64_t random;
};

static uint64_t rnd(struct fixture *f, uint64_t limit)
{
	f->random ^= f->random << 13;
	f->random ^= f->random >> 7;
	f->random ^= f->random << 17;
	return f->random * 0x2545f4914f6cdd1dull % limit;
}

static int setup_backend(void **state, enum env_backend backend)
{
	static const unsigned counts[3] = {64, 64, 64};
	struct fixture *f = calloc(1, sizeof(*f));
	const char *why;

	f->backend = backend;
	snprintf(f->directory, sizeof(f->directory), "volume_real.XXXXXX");
	if (mkdtemp(f->directory) == NULL)
		return -1;
	snprintf(f->backing, sizeof(f->backing), "%s/v.img", f->directory);
	snprintf(f->state, sizeof(f->state), "%s/state", f->directory);
	f->random = getenv("SEED") ? strtoull(getenv("SEED"), NULL, 10) | 1 : 99;
	f->pool = buf_pool_new(counts);
	f->config = (struct volume_config){.name = "v",
					   .backing = f->backing,
					   .state_dir = f->state,
					   .size_bytes = SIZE,
					   .role = VOLUME_PRIMARY};
	*state = f;
	if (env_real_new(backend, 1, &f->env, &why) != 0) {
		printf("SKIP: no %s here: %s\n",
		       backend == ENV_BACKEND_URING ? "io_uring" : "libaio", why);
		f->env = NULL;
	} else {
		env_log_level(f->env, ENV_LOG_ERROR);
	}
	return 0;
}

static int setup_uring(void **state)
{
	return setup_backend(state, ENV_BACKEND_URING);
}

static int setup_aio(void **state)
{
	return setup_backend(state, ENV_BACKEND_AIO);
}

static int teardown(void **state)
{
	struct fixture *f = *state;
	char command[128];

	env_free(f->env);
	buf_pool_free(f->pool);
	snprintf(command, sizeof(command), "rm -rf %s", f->directory);
	if (system(command) != 0)
		return -1;
	free(f);
	return 0;
}

static struct fixture *begin(void **state)
{
	struct fixture *f = *state;

	if (f->env == NULL)
		skip();
	return f;
}

static void open_it(struct fixture *f)
{
	char why[256] = "";

	if (volume_open(f->env, &f->config, &f->volume, why, sizeof(why)) != 0)
		fail_msg("%s", why);
}

static void set_true(void *context)
{
	*(bool *)context = true;
}

static void close_it(struct fixture *f)
{
	bool closed = false;

	volume_close(f->volume, set_true, &closed);
	env_run_until(f->env, &closed);
}

struct request {
	struct block_request block;
	bool done;
	int error;
};

static void request_done(struct block_request *block, int error)
{
	struct request *r = (struct request *)block;

	r->done = true;
	r->error = error;
}

static void submit(struct fixture *f, struct request *r, enum block_op op, uint64_t offset,
		   uint64_t length)
{
	*r = (struct request){.block = {.op = op,
					.offset_bytes = offset,
					.length_bytes = length,
					.done = request_done}};
	if (op == BLOCK_READ || op == BLOCK_WRITE) {
		r->block.buf = buf_alloc(f->pool, (uint32_t)length);
		for (uint64_t i = 0; op == BLOCK_WRITE && i < length; i++)
			r->block.buf->data[i] = (uint8_t)rnd(f, 256);
	}
}

static void go(struct fixture *f, struct request *r)
{
	volume_block(f->volume)->ops->submit(volume_block(f->volume), &r->block);
}

static void finish(struct fixture *f, struct request *r)
{
	env_run_until(f->env, &r->done);
	assert_int_equal(r->error, 0);
	buf_put(r->block.buf);
	r->block.buf = NULL;
}

static void check_all(struct fixture *f, const uint8_t *model)
{
	for (uint64_t at = 0; at < SIZE; at += BUF_SIZE_MAX) {
		uint64_t n = SIZE - at < BUF_SIZE_MAX ? SIZE - at : BUF_SIZE_MAX;
		struct request r;

		submit(f, &r, BLOCK_READ, at, n);
		go(f, &r);
		env_run_until(f->env, &r.done);
		assert_int_equal(r.error, 0);
		assert_memory_equal(r.block.buf->data, model + at, n);
		buf_put(r.block.buf);
	}
}

static void model_change(struct request *r, uint8_t *model)
{
	struct block_request *b = &r->block;
	uint64_t start = b->offset_bytes, end = start + b->length_bytes;

	if (b->op == BLOCK_WRITE)
		memcpy(model + start, b->buf->data, b->length_bytes);
	else if (b->op == BLOCK_ZERO)
		memset(model + start, 0, b->length_bytes);
	else if (b->op == BLOCK_TRIM && (start + 4095) / 4096 * 4096 < end / 4096 * 4096)
		memset(model + start, 0, end - start);
}

static void random_requests_follow_a_model(void **state)
{
	static const enum block_op ops[] = {BLOCK_WRITE, BLOCK_WRITE, BLOCK_ZERO,
					    BLOCK_TRIM,  BLOCK_FLUSH, BLOCK_READ};
	struct fixture *f = begin(state);
	uint8_t *model = calloc(1, SIZE);
	uint64_t lsn = 0;

	for (unsigned round = 0; round < 6; round++) {
		struct volume_state now;

		open_it(f);
		volume_get_state(f->volume, &now);
		assert_true(now.lsn >= lsn);
		check_all(f, model);
		for (unsigned batch = 0; batch < 30; batch++) {
			struct request r[DEPTH];

			for (unsigned i = 0; i < DEPTH; i++) {
				enum block_op op = ops[rnd(f, 6)];
				uint64_t max = rnd(f, 8) == 0 ? BUF_SIZE_MAX : 20000;
				uint64_t length = 1 + rnd(f, max), offset = rnd(f, SIZE - length);

				/* Whole blocks: what a TRIM of less does depends on the disk. */
				if (op == BLOCK_TRIM || rnd(f, 3) == 0) {
					offset &= ~4095ull;
					length = (length + 4095) & ~4095ull;
					length = length > BUF_SIZE_MAX ? BUF_SIZE_MAX : length;
				}
				if (op == BLOCK_FLUSH)
					offset = length = 0;
				submit(f, &r[i], op, offset, length);
				if (rnd(f, 5) == 0 && op != BLOCK_READ)
					r[i].block.flags = BLOCK_FUA;
				model_change(&r[i], model);
				go(f, &r[i]);
			}
			for (unsigned i = 0; i < DEPTH; i++)
				finish(f, &r[i]);
			volume_check(f->volume);
		}
		check_all(f, model);
		volume_get_state(f->volume, &now);
		lsn = now.lsn;
		close_it(f);
	}
	free(model);
}

struct reading {
	struct volume_cut_read read;
	bool done;
};

static void cut_read_done(struct volume_cut_read *read, int error)
{
	assert_int_equal(error, 0);
	((struct reading *)read)->done = true;
}

static void lost(void *context, int error)
{
	fail_msg("cut lost: %d", error);
}

static void cuts_keep_their_content(void **state)
{
	struct fixture *f = begin(state);
	uint8_t *image = calloc(1, SIZE);
	uint64_t start, length, offset = 0;
	struct volume_cut *cut;
	struct request r[16];
	struct reading reading;

	open_it(f);
	for (unsigned i = 0; i < 9; i++) {
		submit(f, &r[0], BLOCK_WRITE, (uint64_t)i << 20, BUF_SIZE_MAX);
		model_change(&r[0], image);
		go(f, &r[0]);
		finish(f, &r[0]);
	}
	assert_int_equal(volume_cut_begin(f->volume, VOLUME_PEER, 0, lost, NULL, &cut), 0);
	while (volume_cut_next(cut, offset, BUF_SIZE_MAX, &start, &length)) {
		for (unsigned i = 0; i < 16; i++) {
			submit(f, &r[i], BLOCK_WRITE, rnd(f, SIZE - 9000), 1 + rnd(f, 9000));
			go(f, &r[i]);
		}
		memset(&reading, 0, sizeof(reading));
		reading.read.offset_bytes = start;
		reading.read.length_bytes = (uint32_t)length;
		reading.read.buf = buf_alloc(f->pool, (uint32_t)length);
		reading.read.done = cut_read_done;
		volume_cut_read(cut, &reading.read);
		env_run_until(f->env, &reading.done);
		assert_memory_equal(reading.read.buf->data, image + start, length);
		buf_put(reading.read.buf);
		for (unsigned i = 0; i < 16; i++)
			finish(f, &r[i]);
		offset = start + length;
	}
	volume_cut_finish(cut, true);
	close_it(f);
	free(image);
}

static void two_tebibytes_are_trimmed_quickly(void **state)
{
	struct fixture *f = begin(state);
	struct timespec before, after;
	struct request r;

	f->config.size_bytes = 1ull << 41;
	open_it(f);
	submit(f, &r, BLOCK_WRITE, 1ull << 40, 4096);
	go(f, &r);
	finish(f, &r);
	clock_gettime(CLOCK_MONOTONIC, &before);
	submit(f, &r, BLOCK_TRIM, 0, 1ull << 41);
	go(f, &r);
	finish(f, &r);
	clock_gettime(CLOCK_MONOTONIC, &after);
	printf("2 TiB trimmed in %.3f s\n", (double)(after.tv_sec - before.tv_sec) +
						    (double)(after.tv_nsec - before.tv_nsec) / 1e9);
	assert_true(after.tv_sec - before.tv_sec < 10);
	close_it(f);
}

static void touch(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);

	assert_true(fd >= 0);
	close(fd);
}

/* A restore from outside wrote onto the backing: the maps are void, the history is another one. */
static void a_backing_restored_from_outside_is_noticed(void **state)
{
	struct fixture *f = begin(state);
	struct volume_state before, after, again;
	char mark[128], why[256] = "";

	open_it(f);
	volume_get_state(f->volume, &before);
	before.snapshot = (struct id128){{7}};
	before.generations.current = (struct id128){{5}};
	assert_int_equal(volume_set_state(f->volume, &before), 0);
	close_it(f);

	snprintf(mark, sizeof(mark), "%s.restoring", f->backing);
	touch(mark);
	assert_int_equal(volume_open(f->env, &f->config, &f->volume, why, sizeof(why)), -EBUSY);
	assert_non_null(strstr(why, "interrupted"));
	assert_int_equal(unlink(mark), 0);

	snprintf(mark, sizeof(mark), "%s.restored", f->backing);
	touch(mark);
	open_it(f);
	assert_int_equal(access(mark, F_OK), -1);
	volume_get_state(f->volume, &after);
	assert_true(id128_is_zero(&after.snapshot));
	assert_int_equal(after.disk, VOLUME_DISK_UPTODATE);
	assert_false(id128_equal(&after.generations.current, &before.generations.current));
	assert_true(id128_equal(&after.generations.base, &before.generations.current));
	assert_true(id128_equal(&after.generations.history[0], &before.generations.current));
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		assert_int_equal(volume_dirty_bytes(f->volume, c), SIZE);
	close_it(f);

	open_it(f); /* once */
	volume_get_state(f->volume, &again);
	assert_true(id128_equal(&after.generations.current, &again.generations.current));
	for (unsigned c = 0; c < VOLUME_CONSUMERS; c++)
		assert_int_equal(volume_dirty_bytes(f->volume, c), SIZE);
	close_it(f);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		{"io_uring: random_requests", random_requests_follow_a_model, setup_uring, teardown,
		 NULL},
		{"libaio: random_requests", random_requests_follow_a_model, setup_aio, teardown,
		 NULL},
		{"io_uring: cuts_keep_their_content", cuts_keep_their_content, setup_uring,
		 teardown, NULL},
		{"libaio: cuts_keep_their_content", cuts_keep_their_content, setup_aio, teardown,
		 NULL},
		{"io_uring: a_backing_restored_from_outside_is_noticed",
		 a_backing_restored_from_outside_is_noticed, setup_uring, teardown, NULL},
		{"libaio: a_backing_restored_from_outside_is_noticed",
		 a_backing_restored_from_outside_is_noticed, setup_aio, teardown, NULL},
		{"io_uring: two_tebibytes_are_trimmed_quickly", two_tebibytes_are_trimmed_quickly,
		 setup_uring, teardown, NULL},
		{"libaio: two_tebibytes_are_trimmed_quickly", two_tebibytes_are_trimmed_quickly,
		 setup_aio, teardown, NULL},
	};
	const char *folder = getenv("TMPDIR");

	if (chdir(folder != NULL ? folder : "/var/tmp") != 0)
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
