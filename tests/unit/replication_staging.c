/* SPDX-License-Identifier: Apache-2.0 */
/* The redo log as a file: read back what was written, torn tails, stale bytes, damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <errno.h>
#include <cmocka.h>

#include "daemon/replication/staging.h"

#define VOLUME_BYTES (1u << 20)
#define MAX_BYTES    (16u << 20)

struct fixture {
	struct env *env;
	char dir[64], path[80];
	struct staging *staging;
	bool progress;
};

static void progress(void *owner)
{
	((struct fixture *)owner)->progress = true;
}

static void failed(void *owner, int error)
{
	fail_msg("log failed: %s", strerror(-error));
}

static const struct staging_ops ops = {progress, failed};

static void open_log(struct fixture *f)
{
	char why[256];

	assert_int_equal(staging_open(f->env, f->dir, VOLUME_BYTES, MAX_BYTES, &ops, f, &f->staging,
				      why, sizeof(why)),
			 0);
}

static void setup(struct fixture *f)
{
	const char *why;

	memset(f, 0, sizeof(*f));
	assert_int_equal(env_real_new(ENV_BACKEND_AUTO, 1, &f->env, &why), 0);
	env_log_level(f->env, ENV_LOG_ERROR);
	strcpy(f->dir, "/tmp/offsite-staging-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/staging", f->dir);
	open_log(f);
}

static void settle(struct fixture *f)
{
	while (!staging_is_idle(f->staging)) {
		f->progress = false;
		env_run_until(f->env, &f->progress);
	}
}

static void teardown(struct fixture *f)
{
	settle(f);
	staging_close(f->staging);
	env_free(f->env);
	unlink(f->path);
	assert_int_equal(rmdir(f->dir), 0);
}

static void append(struct fixture *f, enum staging_type type, uint64_t offset, uint32_t length,
		   uint8_t fill)
{
	static uint8_t data[STAGING_PAYLOAD_MAX];
	struct staging_record record = {.type = type, .offset = offset, .length = length};

	memset(data, fill, length);
	while (!staging_has_room(f->staging, length)) {
		f->progress = false;
		env_run_until(f->env, &f->progress);
	}
	staging_append(f->staging, &record, data);
}

static void sync_log(struct fixture *f)
{
	staging_sync(f->staging);
	while (staging_synced(f->staging) < staging_end(f->staging)) {
		f->progress = false;
		env_run_until(f->env, &f->progress);
	}
	settle(f);
}

static void begin(struct fixture *f, uint8_t generation)
{
	struct id128 uuid = {{1}}, id = {{generation}}, transfer = {{9}};

	assert_int_equal(staging_begin(f->staging, &uuid, &id, &transfer, 4096), 0);
}

static int next(struct fixture *f, uint64_t limit, struct staging_record *record,
		const uint8_t **payload)
{
	int result;

	while ((result = staging_next(f->staging, limit, record, payload)) == -EAGAIN) {
		f->progress = false;
		env_run_until(f->env, &f->progress);
	}
	return result;
}

/* How many records a restart finds; the last one's length is checked by its fill. */
static unsigned recovered(struct fixture *f)
{
	struct staging_record record;
	const uint8_t *payload;
	struct id128 generation, transfer;
	unsigned count = 0;

	staging_close(f->staging);
	open_log(f);
	if (staging_recover(f->staging, &generation, &transfer))
		return 0;
	while (next(f, staging_file_bytes(f->staging), &record, &payload) == 1) {
		count++;
		for (uint32_t i = 0; i < staging_payload_bytes(&record); i += 511)
			assert_int_equal(payload[i], (uint8_t)record.sequence);
	}
	settle(f);
	return count;
}

static void reads_back_more_than_ring_and_window(void **state)
{
	struct fixture f;
	struct staging_record record;
	const uint8_t *payload;
	unsigned count = 0;

	setup(&f);
	begin(&f, 1);
	for (unsigned i = 1; i <= 40; i++)
		append(&f, STAGING_CUT_DATA, 0, i % 3 ? 512 * i : STAGING_PAYLOAD_MAX, (uint8_t)i);
	sync_log(&f);
	staging_seek(f.staging, STAGING_FIRST, 1);
	while (next(&f, staging_synced(f.staging), &record, &payload) == 1) {
		count++;
		assert_int_equal(record.sequence, count);
		assert_int_equal(record.length, count % 3 ? 512 * count : STAGING_PAYLOAD_MAX);
		assert_int_equal(payload[0], count);
		assert_int_equal(payload[record.length - 1], count);
	}
	assert_int_equal(count, 40);
	assert_int_equal(staging_position(f.staging), staging_end(f.staging));
	settle(&f);
	assert_int_equal(recovered(&f), 40);
	teardown(&f);
}

static void torn_tail_ends_the_log(void **state)
{
	struct fixture f;
	uint64_t before, end;

	setup(&f);
	begin(&f, 1);
	append(&f, STAGING_CUT_DATA, 0, 512, 1);
	append(&f, STAGING_CUT_ZERO, 4096, 4096, 0);
	before = staging_end(f.staging);
	append(&f, STAGING_WRITE, 8192, 1024, 3);
	end = staging_end(f.staging);
	sync_log(&f);
	for (uint64_t size = end - 1; size >= before; size -= 13) {
		assert_int_equal(truncate(f.path, (off_t)size), 0);
		assert_int_equal(recovered(&f), 2);
	}
	assert_int_equal(truncate(f.path, 100), 0); /* within the header */
	assert_int_equal(recovered(&f), 0);
	teardown(&f);
}

static void a_flipped_byte_ends_the_log(void **state)
{
	struct fixture f;

	setup(&f);
	begin(&f, 1);
	append(&f, STAGING_CUT_DATA, 0, 512, 1);
	uint64_t second = staging_end(f.staging);
	append(&f, STAGING_WRITE, 8192, 512, 2);
	append(&f, STAGING_FLUSH, 0, 0, 3);
	sync_log(&f);
	uint64_t end = staging_end(f.staging);
	assert_int_equal(recovered(&f), 3);
	for (uint64_t at = 0; at < end; at += 7) {
		uint8_t byte;
		FILE *file = fopen(f.path, "r+");
		fseek(file, (long)at, SEEK_SET);
		byte = (uint8_t)fgetc(file);
		fseek(file, (long)at, SEEK_SET);
		fputc(byte ^ 0x40, file);
		fclose(file);
		unsigned expected = at < 128 ? 0 : at < second ? 0 : at < end - 64 ? 1 : 2;
		assert_int_equal(recovered(&f), expected);
		file = fopen(f.path, "r+");
		fseek(file, (long)at, SEEK_SET);
		fputc(byte, file);
		fclose(file);
	}
	assert_int_equal(recovered(&f), 3);
	teardown(&f);
}

static void earlier_log_does_not_show_through(void **state)
{
	struct fixture f;

	setup(&f);
	begin(&f, 1);
	for (unsigned i = 1; i <= 5; i++)
		append(&f, STAGING_CUT_DATA, 0, 512, (uint8_t)i);
	sync_log(&f);
	begin(&f, 2); /* over it, without emptying: as after a cut that was given up */
	append(&f, STAGING_CUT_DATA, 0, 512, 1);
	append(&f, STAGING_CUT_DATA, 0, 512, 2);
	sync_log(&f);
	assert_int_equal(recovered(&f), 2); /* record 3 of the first stands right behind */
	assert_int_equal(staging_reset(f.staging), 0);
	assert_int_equal(recovered(&f), 0);
	teardown(&f);
}

/* What stood behind the place where a log is gone on with looks right in everything but the log id. */
static void a_log_is_gone_on_with(void **state)
{
	struct fixture f;
	struct staging_record record;
	const uint8_t *payload;

	setup(&f);
	begin(&f, 1);
	for (unsigned i = 1; i <= 4; i++)
		append(&f, STAGING_CUT_DATA, 0, 512, (uint8_t)i);
	uint64_t third = staging_end(f.staging) - 2 * 576;
	sync_log(&f);
	FILE *file = fopen(f.path, "r+"); /* torn: the log ends behind record 2 */
	uint8_t fourth[576];
	assert_int_equal(fseek(file, (long)third + 576, SEEK_SET), 0);
	assert_int_equal(fread(fourth, 1, sizeof(fourth), file), sizeof(fourth));
	assert_int_equal(fseek(file, (long)third + 100, SEEK_SET), 0);
	fputc(0x77, file);
	fclose(file);
	assert_int_equal(recovered(&f), 2);
	assert_int_equal(staging_position(f.staging), third);
	staging_continue(f.staging);
	staging_mark_resumed(f.staging);
	sync_log(&f);
	uint64_t end = staging_end(f.staging);
	append(&f, STAGING_CUT_DATA, 0, 512, 4);
	sync_log(&f);
	/* The old record 4 stands where a record 4 is expected, but is of the old log id. */
	file = fopen(f.path, "r+");
	assert_int_equal(fseek(file, (long)end, SEEK_SET), 0);
	fwrite(fourth, 1, sizeof(fourth), file);
	fclose(file);
	struct id128 generation, transfer;
	unsigned count = 0;
	staging_close(f.staging);
	open_log(&f);
	assert_int_equal(staging_recover(f.staging, &generation, &transfer), 0);
	assert_int_equal(transfer.bytes[0], 9);
	while (next(&f, staging_file_bytes(f.staging), &record, &payload) == 1)
		assert_int_equal(record.type, ++count == 3 ? STAGING_RESUME : STAGING_CUT_DATA);
	assert_int_equal(count, 3);
	settle(&f);
	/* And what is written behind it is read back, over the RESUME. */
	staging_continue(f.staging);
	append(&f, STAGING_WRITE, 4096, 512, 4);
	sync_log(&f);
	staging_seek(f.staging, STAGING_FIRST, 1);
	for (count = 0; next(&f, staging_synced(f.staging), &record, &payload) == 1; count++)
		;
	assert_int_equal(count, 4);
	assert_int_equal(record.type, STAGING_WRITE);
	teardown(&f);
}

static void limits_are_kept(void **state)
{
	struct fixture f;
	struct id128 id = {{1}};

	setup(&f);
	assert_int_equal(staging_begin(f.staging, &id, &id, &id, MAX_BYTES + 1), -ENOSPC);
	begin(&f, 1);
	unsigned count = 0;
	while (!staging_is_full(f.staging)) {
		append(&f, STAGING_WRITE, 0, STAGING_PAYLOAD_MAX, (uint8_t)++count);
		assert_true(count < 64);
	}
	assert_true(staging_end(f.staging) <= MAX_BYTES + 4 * STAGING_PAYLOAD_MAX);
	assert_false(staging_has_room(f.staging, 0));
	teardown(&f);
}

static uint64_t file_bytes(const struct fixture *f)
{
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	return (uint64_t)st.st_size;
}

static uint64_t allocated_bytes(const struct fixture *f)
{
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void wait_shrunk(struct fixture *f)
{
	while (staging_is_shrinking(f->staging)) {
		f->progress = false;
		env_run_until(f->env, &f->progress);
	}
}

static void fill(struct fixture *f, uint8_t generation, unsigned records)
{
	begin(f, generation);
	for (unsigned i = 1; i <= records; i++)
		append(f, STAGING_CUT_DATA, 0, STAGING_PAYLOAD_MAX, (uint8_t)i);
	sync_log(f);
}

/* An emptied log's space is not given back at once; a log that is begun before that is over is whole, and a stop does not
 * wait for all of it. */
static void space_is_given_back_in_steps(void **state)
{
	struct id128 id = {{1}};
	struct fixture f;

	setup(&f);
	for (unsigned records = 8; records <= 14; records++) {
		fill(&f, 1, records);
		assert_int_equal(staging_reset(f.staging), 0);
		assert_true(staging_is_shrinking(f.staging));
		assert_true(file_bytes(&f) > records * STAGING_PAYLOAD_MAX);
		fill(&f, 2, records);
		assert_false(staging_is_shrinking(f.staging));
		assert_int_equal(recovered(&f), records);
	}
	assert_int_equal(staging_reset(f.staging), 0);
	wait_shrunk(&f);
	/* What was reserved, and never written. */
	assert_int_equal(staging_begin(f.staging, &id, &id, &id, 12 * STAGING_PAYLOAD_MAX), 0);
	assert_true(allocated_bytes(&f) > 12 * STAGING_PAYLOAD_MAX);
	sync_log(&f);
	assert_int_equal(staging_reset(f.staging), 0);
	wait_shrunk(&f);
	assert_true(allocated_bytes(&f) <= 8192);
	fill(&f, 1, 14);
	assert_int_equal(staging_reset(f.staging), 0);
	staging_stop(f.staging);
	wait_shrunk(&f);
	assert_in_range(file_bytes(&f), 4 * STAGING_PAYLOAD_MAX, 8 * STAGING_PAYLOAD_MAX);
	assert_int_equal(recovered(&f), 0);
	wait_shrunk(&f);
	assert_int_equal(file_bytes(&f), sizeof(struct staging_header));
	teardown(&f);
}

/* Without a limit of its own the log's goes by the size of the volume, also of one that has grown. */
static void the_limit_goes_by_the_size(void **state)
{
	struct fixture f;
	struct staging *staging;
	char why[256];

	setup(&f);
	staging_close(f.staging);
	assert_int_equal(
		staging_open(f.env, f.dir, 100ull << 30, 0, &ops, &f, &staging, why, sizeof(why)),
		0);
	assert_int_equal(staging_max_bytes(staging), 10ull << 30);
	staging_resized(staging, 1ull << 40);
	assert_int_equal(staging_max_bytes(staging), (1ull << 40) / 10);
	staging_close(staging);
	assert_int_equal(
		staging_open(f.env, f.dir, VOLUME_BYTES, 0, &ops, &f, &staging, why, sizeof(why)),
		0);
	assert_int_equal(staging_max_bytes(staging), 4ull << 30);
	staging_close(staging);
	open_log(&f);
	assert_int_equal(staging_max_bytes(f.staging), MAX_BYTES);
	teardown(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reads_back_more_than_ring_and_window),
		cmocka_unit_test(torn_tail_ends_the_log),
		cmocka_unit_test(a_flipped_byte_ends_the_log),
		cmocka_unit_test(earlier_log_does_not_show_through),
		cmocka_unit_test(a_log_is_gone_on_with),
		cmocka_unit_test(limits_are_kept),
		cmocka_unit_test(the_limit_goes_by_the_size),
		cmocka_unit_test(space_is_given_back_in_steps),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
