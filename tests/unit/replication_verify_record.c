/* SPDX-License-Identifier: Apache-2.0 */
/* The record of a comparison: golden vector, round trip, and what must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "protocol/verify.h"

static const struct verify_record sample = {
	.state = VERIFY_DONE,
	.repair = VERIFY_REPAIR_FROM_PEER,
	.started_ns = 0x0102030405060708,
	.ended_ns = 0x1112131415161718,
	.size_bytes = 0x800000,
	.position_bytes = 0x700000,
	.differ_bytes = 0x3000,
	.repaired_bytes = 0x1000,
	.rate = 50 << 20,
	.extents = 3,
	.listed = 2,
	.extent = {{0x1000, 0x1000}, {0x200000, 0x1000}},
};

static void the_layout_is_fixed(void **unused)
{
	struct verify_wire wire;
	char text[2 * 120 + 1];

	verify_encode(&sample, &wire);
	for (unsigned i = 0; i < 120; i++)
		sprintf(text + 2 * i, "%02x", ((const uint8_t *)&wire)[i]);
	assert_string_equal(text, "4f465652593030310102030405060708"
				  "11121314151617180000000000800000"
				  "00000000007000000000000000003000"
				  "00000000000010000000000003200000"
				  "00000000000000030000000200000002"
				  "00000002000000000000000000001000"
				  "00000000000010000000000000200000"
				  "0000000000001000");
	assert_int_equal(from_be32(wire.crc), 0xba4afe8d);
}

static void what_was_written_is_read(void **unused)
{
	struct verify_record back;
	struct verify_wire wire;

	verify_encode(&sample, &wire);
	assert_null(verify_decode(&wire, &back));
	assert_memory_equal(&sample, &back, sizeof(back));
}

static void every_flipped_bit_is_noticed(void **unused)
{
	struct verify_record back;
	struct verify_wire wire;

	for (unsigned bit = 0; bit < 8 * sizeof(wire); bit++) {
		verify_encode(&sample, &wire);
		((uint8_t *)&wire)[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_non_null(verify_decode(&wire, &back));
	}
}

static const char *refused(const struct verify_record *record)
{
	struct verify_record back;
	struct verify_wire wire;

	verify_encode(record, &wire);
	return verify_decode(&wire, &back);
}

static void numbers_have_to_fit(void **unused)
{
	struct verify_record bad;

	bad = sample, bad.state = VERIFY_NEVER;
	assert_non_null(refused(&bad));
	bad = sample, bad.state = VERIFY_STATES;
	assert_non_null(refused(&bad));
	bad = sample, bad.repair = VERIFY_REPAIRS;
	assert_non_null(refused(&bad));
	bad = sample, bad.position_bytes = bad.size_bytes + 4096;
	assert_non_null(refused(&bad));
	bad = sample, bad.position_bytes++;
	assert_non_null(refused(&bad));
	bad = sample, bad.differ_bytes = bad.position_bytes + 1;
	assert_non_null(refused(&bad));
	bad = sample, bad.repaired_bytes = bad.differ_bytes + 1;
	assert_non_null(refused(&bad));
	bad = sample, bad.extents = 1;
	assert_non_null(refused(&bad));
	bad = sample, bad.extent[1].offset_bytes = 0x1000;
	assert_non_null(refused(&bad));
	bad = sample, bad.extent[1].length_bytes = 0;
	assert_non_null(refused(&bad));
	bad = sample, bad.extent[1].length_bytes = bad.position_bytes;
	assert_non_null(refused(&bad));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_layout_is_fixed),
		cmocka_unit_test(what_was_written_is_read),
		cmocka_unit_test(every_flipped_bit_is_noticed),
		cmocka_unit_test(numbers_have_to_fit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
