// SPDX-License-Identifier: Apache-2.0
/* The simulator's shadow model: that it accepts what may be and refuses what may not. The model is
 * part of the sim program, not of a library: included here as it is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/sim/model.c"

#define SIZE 65536

static char reason[1024];

struct disk {
	struct model *model;
	uint8_t data[SIZE], buf[SIZE];
};

static const uint8_t *page(const void *context, uint64_t index)
{
	return ((const struct disk *)context)->data + index * PAGE;
}

static struct model_image image(struct disk *disk)
{
	return (struct model_image){.page = page, .context = disk};
}

static struct disk *disk_new(void)
{
	struct disk *disk = calloc(1, sizeof(*disk));

	disk->model = model_new(SIZE);
	return disk;
}

static void disk_free(struct disk *disk)
{
	model_free(disk->model);
	free(disk);
}

/* A write that does or does not get to the disk. */
static uint32_t put(struct disk *disk, uint64_t offset, uint64_t length, bool lands)
{
	uint32_t write = model_submit(disk->model, offset, length, disk->buf);

	if (lands)
		memcpy(disk->data + offset, disk->buf, length);
	return write;
}

static void flush(struct disk *disk, bool on_peer)
{
	model_flushed(disk->model, model_tick(disk->model), on_peer);
}

static bool resolve(struct disk *disk, bool lost)
{
	struct model_image i = image(disk);

	return model_resolve(disk->model, &i, lost, reason, sizeof(reason));
}

static bool peer(struct disk *disk)
{
	struct model_image i = image(disk);

	return model_check_peer(disk->model, &i, reason, sizeof(reason));
}

static bool point(struct disk *disk, uint32_t from, uint32_t to)
{
	struct model_image i = image(disk);

	return model_check_point(disk->model, &i, from, to, reason, sizeof(reason));
}

static void test_unflushed_may_be_lost(void **state)
{
	struct disk *disk = disk_new();

	model_complete(disk->model, put(disk, 0, 4096, false), false, false);
	assert_true(resolve(disk, false));
	disk_free(disk);
}

static void test_flushed_may_not(void **state)
{
	for (unsigned fua = 0; fua < 2; fua++) {
		struct disk *disk = disk_new();

		model_complete(disk->model, put(disk, 0, 4096, false), fua, false);
		if (!fua)
			flush(disk, false);
		assert_false(resolve(disk, false));
		disk_free(disk);
	}
}

static void test_torn_write(void **state)
{
	struct disk *disk = disk_new();

	put(disk, 0, 4096, true);
	memset(disk->data + 1024, 0, 512);
	assert_true(resolve(disk, false));
	disk->data[512] ^= 1; /* within a sector */
	assert_false(resolve(disk, false));
	disk_free(disk);
}

/* What came back with a crash cannot change again. */
static void test_lost_stays_lost(void **state)
{
	struct disk *disk = disk_new();
	uint8_t copy[4096];

	put(disk, 0, 4096, true);
	memcpy(copy, disk->data, sizeof(copy));
	memset(disk->data, 0, sizeof(copy));
	assert_true(resolve(disk, false));
	memcpy(disk->data, copy, sizeof(copy));
	assert_false(resolve(disk, false));
	disk_free(disk);
}

/* What a crash took, nobody having seen its end, may be on the peer; not once its absence was seen. */
static void test_unseen_loss_may_be_mended(void **state)
{
	struct disk *disk = disk_new();
	struct model_image i = image(disk);
	uint32_t before = model_tick(disk->model), restarted;
	uint8_t copy[512];

	put(disk, 0, 512, true);
	memcpy(copy, disk->data, sizeof(copy));
	memset(disk->data, 0, sizeof(copy));
	assert_true(resolve(disk, false));
	restarted = model_tick(disk->model);
	memcpy(disk->data, copy, sizeof(copy));
	assert_true(model_check_local(disk->model, &i, before, reason, sizeof(reason)));
	assert_false(model_check_local(disk->model, &i, restarted, reason, sizeof(reason)));
	assert_false(model_check_local(disk->model, &i, MODEL_NEVER, reason, sizeof(reason)));
	/* What is durable has to be there either way. */
	model_complete(disk->model, put(disk, 512, 512, false), true, false);
	assert_false(model_check_local(disk->model, &i, before, reason, sizeof(reason)));
	disk_free(disk);
}

static void test_partial_sectors(void **state)
{
	struct disk *disk = disk_new();

	model_complete(disk->model, put(disk, 0, 4096, true), false, false);
	model_complete(disk->model, put(disk, 700, 100, true), true, false);
	assert_true(resolve(disk, false));
	memset(disk->data + 512, 0, 512);
	assert_false(resolve(disk, false));
	disk_free(disk);
}

static void test_peer_keeps_order_of_flushes(void **state)
{
	struct disk *disk = disk_new();

	model_complete(disk->model, put(disk, 0, 512, false), false, false);
	assert_true(peer(disk)); /* behind is fine */
	model_complete(disk->model, put(disk, 4096, 512, true), false, false);
	assert_true(peer(disk)); /* no flush between: any order is */
	flush(disk, false);
	assert_true(peer(disk));
	put(disk, 8192, 512, true);
	assert_false(peer(disk)); /* after the flush, without what it covered */
	disk_free(disk);
}

static void test_peer_has_what_was_acknowledged(void **state)
{
	struct disk *disk = disk_new();

	model_complete(disk->model, put(disk, 0, 512, false), false, false);
	flush(disk, true);
	assert_false(peer(disk));
	model_peer_lost(disk->model);
	assert_true(peer(disk));
	disk_free(disk);
}

/* What the primary lost in its crash may be on the peer until later writes are. */
static void test_peer_with_lost_content(void **state)
{
	struct disk *disk = disk_new(), *other = disk_new();
	struct model *model = other->model;

	model_complete(disk->model, put(disk, 0, 512, true), false, false);
	memcpy(other->data, disk->data, SIZE);
	memset(disk->data, 0, SIZE);
	assert_true(resolve(disk, false));
	other->model = disk->model;
	assert_true(peer(other));
	put(disk, 4096, 512, true);
	memcpy(other->data + 4096, disk->data + 4096, 512);
	assert_false(peer(other));
	memset(other->data, 0, 512);
	assert_true(peer(other));
	other->model = model;
	disk_free(disk);
	disk_free(other);
}

static void test_point(void **state)
{
	struct disk *disk = disk_new();
	uint32_t from = model_tick(disk->model), second;

	model_complete(disk->model, put(disk, 0, 512, false), false, false);
	assert_true(point(disk, from, model_tick(disk->model)));
	second = put(disk, 4096, 512, true);
	assert_false(point(disk, from, model_tick(disk->model))); /* without the first */
	model_complete(disk->model, second, false, false);
	memset(disk->data, 0, SIZE);
	assert_true(point(disk, from, model_tick(disk->model)));
	assert_false(point(disk, model_tick(disk->model), model_tick(disk->model)));
	disk_free(disk);
}

static void test_point_not_from_the_future(void **state)
{
	struct disk *disk = disk_new();
	uint32_t from = model_tick(disk->model), to = model_tick(disk->model);

	put(disk, 0, 512, true);
	assert_false(point(disk, from, to));
	disk_free(disk);
}

static void test_read(void **state)
{
	struct disk *disk = disk_new();
	uint8_t zeroes[512] = {0};
	uint32_t write = put(disk, 0, 512, true), from = model_tick(disk->model);

	assert_true(model_check_read(disk->model, zeroes, 0, 512, from, model_tick(disk->model),
				     reason, sizeof(reason)));
	assert_true(model_check_read(disk->model, disk->data, 0, 512, from, model_tick(disk->model),
				     reason, sizeof(reason)));
	model_complete(disk->model, write, false, false);
	from = model_tick(disk->model);
	assert_false(model_check_read(disk->model, zeroes, 0, 512, from, model_tick(disk->model),
				      reason, sizeof(reason)));
	assert_false(model_check_read(disk->model, disk->data, 512, 512, from,
				      model_tick(disk->model), reason, sizeof(reason)) &&
		     model_check_read(disk->model, disk->data, 4096, 512, from,
				      model_tick(disk->model), reason, sizeof(reason)));
	disk_free(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unflushed_may_be_lost),
		cmocka_unit_test(test_flushed_may_not),
		cmocka_unit_test(test_torn_write),
		cmocka_unit_test(test_lost_stays_lost),
		cmocka_unit_test(test_unseen_loss_may_be_mended),
		cmocka_unit_test(test_partial_sectors),
		cmocka_unit_test(test_peer_keeps_order_of_flushes),
		cmocka_unit_test(test_peer_has_what_was_acknowledged),
		cmocka_unit_test(test_peer_with_lost_content),
		cmocka_unit_test(test_point),
		cmocka_unit_test(test_point_not_from_the_future),
		cmocka_unit_test(test_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
