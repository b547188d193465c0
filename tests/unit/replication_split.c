/* SPDX-License-Identifier: Apache-2.0 */
/* Records of a split brain: golden vectors (protocol/split.md), and that every damage is noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "protocol/replication.h"
#include "protocol/split.h"

#define SIZE (1ull << 30)

static struct split_record example(void)
{
	struct split_record record = {
		.since_ns = 1700000000000000000,
		.peer_bytes = 12288,
		.peer_extents = 3,
		.flags = SPLIT_NEAR | SPLIT_PEER_KNOWN,
		.listed = 2,
		.node = "cloud",
		.extents = {{4096, 4096}, {1 << 20, 4096}},
	};

	memset(&record.common, 0x11, 16);
	memset(&record.self, 0x22, 16);
	memset(&record.peer, 0x33, 16);
	return record;
}

static void golden_record(void **state)
{
	static const uint8_t head[96] = {
		0x4f, 0x46, 0x53, 0x50, 0x4c, 0x54, 0x30, 0x31, 0x17, 0x97, 0x9c, 0xfe, 0x36, 0x2a,
		0,    0,    0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11,
		0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x22,
		0x22, 0x22, 0x22, 0x22, 0x22, 0x22, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33,
		0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0,    0,    0,    0,    0,    0,
		0x30, 0,    0,    0,    0,    0,    0,    0,    0,    3,    0,    0,    0,    3,
		0,    0,    0,    2,    'c',  'l',  'o',  'u',  'd',  0,    0,    0};
	struct split_record record = example(), back;
	struct split_wire wire;

	split_encode(&record, &wire);
	assert_memory_equal(&wire, head, sizeof(head));
	assert_null(split_decode(&wire, SIZE, &back));
	assert_memory_equal(&record, &back, sizeof(record));
}

static void a_damaged_record_is_noticed(void **state)
{
	struct split_record record = example(), back;
	struct split_wire wire;

	for (size_t i = 0; i < sizeof(wire); i++) {
		split_encode(&record, &wire);
		((uint8_t *)&wire)[i] ^= 0x10;
		assert_non_null(split_decode(&wire, SIZE, &back));
	}
}

static void what_cannot_be_is_refused(void **state)
{
	struct split_record record, back;
	struct split_wire wire;

	for (unsigned i = 0; i < 6; i++) {
		record = example();
		split_encode(&record, &wire);
		switch (i) {
		case 0: /* beyond the end */
			wire.extents[1].offset = to_be64(SIZE);
			break;
		case 1: /* backwards */
			wire.extents[1].offset = to_be64(4096);
			break;
		case 2:
			wire.extents[0].length = to_be64(0);
			break;
		case 3:
			wire.listed = to_be32(SPLIT_EXTENTS_MAX + 1);
			break;
		case 4:
			wire.flags = to_be32(SPLIT_FLAGS_ALL + 1);
			break;
		default:
			memset(wire.node, 'x', sizeof(wire.node));
		}
		wire.crc = to_be32(crc32c(0, &wire, offsetof(struct split_wire, crc)));
		assert_non_null(split_decode(&wire, SIZE, &back));
	}
}

static void golden_wish(void **state)
{
	static const uint8_t head[28] = {0x4f, 0x46, 0x53, 0x57, 0x53, 0x48, 0x30, 0x31, 0x77, 0x77,
					 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77, 0x77,
					 0x77, 0x77, 0x77, 0x77, 0,    0,    0,    1};
	struct split_wish_wire wire;
	struct id128 id, back;
	unsigned flags = 0;

	memset(&id, 0x77, sizeof(id));
	split_wish_encode(&id, 1, &wire);
	assert_memory_equal(&wire, head, sizeof(head));
	assert_null(split_wish_decode(&wire, &back, &flags));
	assert_true(id128_equal(&id, &back) && flags == 1);
	for (size_t i = 0; i < sizeof(wire); i++) {
		split_wish_encode(&id, 1, &wire);
		((uint8_t *)&wire)[i] ^= 1;
		assert_non_null(split_wish_decode(&wire, &back, &flags));
	}
	split_wish_encode(&id, 2, &wire);
	assert_non_null(split_wish_decode(&wire, &back, &flags));
}

static void golden_changes_header(void **state)
{
	static const uint8_t want[44] = {[0] = 0x4f, 0x46,     0x52,        0x50,       0,
					 28,         [15] = 3, [38] = 0x30, [43] = 0x20};
	struct frame frame = {
		.type = FRAME_CHANGES, .id = 3, .length = 0x3000, .payload_length = 32};
	struct frame_wire wire;
	struct frame back;

	frame_encode(&frame, &wire);
	assert_memory_equal(&wire, want, sizeof(want));
	assert_null(frame_decode(&wire, &back));
	frame.payload_length = 24; /* broken pairs */
	frame_encode(&frame, &wire);
	assert_non_null(frame_decode(&wire, &back));
	frame.payload_length = 32;
	frame.flags = FRAME_LAST;
	frame_encode(&frame, &wire);
	assert_non_null(frame_decode(&wire, &back));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_record),
		cmocka_unit_test(a_damaged_record_is_noticed),
		cmocka_unit_test(what_cannot_be_is_refused),
		cmocka_unit_test(golden_wish),
		cmocka_unit_test(golden_changes_header),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
