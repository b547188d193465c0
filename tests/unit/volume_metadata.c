// SPDX-License-Identifier: Apache-2.0
/* The metadata formats: golden vectors (protocol/metadata.md), round trips, and that every damage is
 * noticed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "protocol/metadata.h"

static struct metadata_super example(void)
{
	struct metadata_super super = {
		.flags = METADATA_CLEAN | METADATA_STORE_ALL | METADATA_HEARD_STREAMING,
		.sequence = 7,
		.size_bytes = 0x123456789000,
		.role = METADATA_PRIMARY,
		.disk = METADATA_OUTDATED,
		.lsn = 0x0102030405060708,
		.outdated_ns = 1700000000000000000,
		.snapshot_sequence = 42,
		.backing = "/srv/pg.img",
		.heard_ns = 1700000001000000000,
		.heard_lsn = 88410,
		.received_lsn = 88120,
		.missing_bytes = 12897485,
		.behind_ns = 1700000000500000000,
	};

	memset(&super.uuid, 0x11, 16);
	memset(&super.current, 0x22, 16);
	memset(&super.base, 0x33, 16);
	memset(&super.history[0], 0x44, 16);
	memset(&super.history[7], 0x55, 16);
	memset(&super.snapshot, 0x66, 16);
	memset(&super.writer, 0x77, 16);
	return super;
}

static void golden_superblock(void **state)
{
	static const uint8_t head[72] = {
		0x4f, 0x46, 0x53, 0x53, 0x55, 0x50, 0x30, 0x31, 0,    0,    0,    1,
		0,    0,    0,    74,   0,    0,    0,    0,    0,    0,    0,    7,
		0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11,
		0x11, 0x11, 0x11, 0x11, 0,    0,    0x12, 0x34, 0x56, 0x78, 0x90, 0,
		0,    0,    0x10, 0,    0,    1,    0,    0,    0,    0x10, 0,    0,
		0,    0,    0x0f, 0xe0, 0,    1,    0,    1,    0,    0,    0,    0};
	struct metadata_super super = example();
	struct metadata_super_wire wire;
	const uint8_t *bytes = (const uint8_t *)&wire;

	(void)state;
	metadata_super_encode(&super, &wire);
	assert_memory_equal(bytes, head, sizeof(head));
	assert_int_equal(bytes[72], 0x22);
	assert_int_equal(bytes[88], 0x33);
	assert_int_equal(bytes[104], 0x44);
	assert_int_equal(bytes[104 + 7 * 16], 0x55);
	assert_int_equal(bytes[232], 1);
	assert_int_equal(bytes[239], 8);
	assert_int_equal(bytes[248], 0x66);
	assert_int_equal(bytes[271], 42);
	assert_string_equal((const char *)bytes + 272, "/srv/pg.img");
	assert_int_equal(bytes[1311], 0x5a);
	assert_int_equal(bytes[1319], 0x38);
	assert_int_equal(bytes[1376], 0x77);
	assert_int_equal(bytes[1391], 0x77);
	assert_int_equal(from_be32(wire.crc), 0x9cf5d29f);
}

static void golden_page(void **state)
{
	static const uint8_t head[28] = {0x4f, 0x46, 0x53, 0x4d, 0x41, 0x50, 0x30, 0x31,
					 0,    1,    0,    2,    0,    0,    0,    5};
	uint64_t words[METADATA_PAGE_WORDS] = {0};
	struct metadata_page_wire wire;

	(void)state;
	words[0] = 1 | 1ull << 9;
	words[METADATA_PAGE_WORDS - 1] = 1ull << 63;
	metadata_page_encode(METADATA_PEER_MAP, 5, words, &wire);
	assert_memory_equal(&wire, head, sizeof(head));
	assert_int_equal(wire.payload[0], 1);
	assert_int_equal(wire.payload[1], 2);
	assert_int_equal(wire.payload[METADATA_PAYLOAD_BYTES - 1], 0x80);
	assert_int_equal(from_be32(wire.crc), 0x97dad1e7);
}

static void round_trips(void **state)
{
	struct metadata_super super = example(), back;
	struct metadata_super_wire wire;
	struct metadata_page_wire page;
	uint64_t words[METADATA_PAGE_WORDS], again[METADATA_PAGE_WORDS];

	(void)state;
	super.maps = 1;
	metadata_super_encode(&super, &wire);
	assert_int_equal(((const uint8_t *)&wire)[71], 1);
	assert_null(metadata_super_decode(&wire, &back));
	assert_memory_equal(&super, &back, sizeof(super));
	super.maps = METADATA_MAPS_FILES;
	metadata_super_encode(&super, &wire);
	assert_string_equal(metadata_super_decode(&wire, &back), "unknown file of maps");
	for (unsigned i = 0; i < METADATA_PAGE_WORDS; i++)
		words[i] = i * 0x9e3779b97f4a7c15ull;
	metadata_page_encode(METADATA_INTENT, 3, words, &page);
	assert_null(metadata_page_decode(&page, METADATA_INTENT, 3, again));
	assert_memory_equal(words, again, sizeof(words));
	assert_non_null(metadata_page_decode(&page, METADATA_INTENT, 4, again));
	assert_non_null(metadata_page_decode(&page, METADATA_STORE_MAP, 3, again));
}

static void any_flipped_bit_is_noticed(void **state)
{
	struct metadata_super super = example(), back;
	struct metadata_super_wire wire;
	struct metadata_page_wire page;
	uint64_t words[METADATA_PAGE_WORDS] = {5};

	(void)state;
	metadata_super_encode(&super, &wire);
	metadata_page_encode(METADATA_INTENT, 0, words, &page);
	for (unsigned bit = 0; bit < 4096 * 8; bit++) {
		((uint8_t *)&wire)[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_non_null(metadata_super_decode(&wire, &back));
		((uint8_t *)&wire)[bit / 8] ^= (uint8_t)(1 << bit % 8);
		((uint8_t *)&page)[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_non_null(metadata_page_decode(&page, METADATA_INTENT, 0, words));
		((uint8_t *)&page)[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	memset(&wire, 0, sizeof(wire));
	memset(&page, 0, sizeof(page));
	assert_non_null(metadata_super_decode(&wire, &back));
	assert_non_null(metadata_page_decode(&page, METADATA_INTENT, 0, words));
}

/* With a right checksum, what is written must still make sense. */
static void nonsense_is_refused(void **state)
{
	struct metadata_super super = example(), back;
	struct metadata_super_wire good, wire;
	static const unsigned offsets[] = {11, 12, 40, 47, 50,   54,   58,
					   62, 64, 66, 68, 1295, 1336, 3000};

	(void)state;
	metadata_super_encode(&super, &good);
	for (unsigned i = 0; i < sizeof(offsets) / sizeof(*offsets); i++) {
		wire = good;
		((uint8_t *)&wire)[offsets[i]] ^= 0x81;
		wire.crc = to_be32(crc32c(0, &wire, offsetof(struct metadata_super_wire, crc)));
		assert_non_null(metadata_super_decode(&wire, &back));
	}
	wire = good;
	wire.size_bytes = to_be64(0);
	wire.crc = to_be32(crc32c(0, &wire, offsetof(struct metadata_super_wire, crc)));
	assert_string_equal(metadata_super_decode(&wire, &back), "bad size");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_superblock),   cmocka_unit_test(golden_page),
		cmocka_unit_test(round_trips),         cmocka_unit_test(any_flipped_bit_is_noticed),
		cmocka_unit_test(nonsense_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
