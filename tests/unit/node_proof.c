/* SPDX-License-Identifier: Apache-2.0 */
/* The record of a proof: golden vector, round trip, and what must be refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>

#include "protocol/proof.h"

static const struct proof_record sample = {
	.tried = {{1, 2}},
	.tried_ns = 0x1112131415161718,
	.error = -EPERM,
	.why = "no",
	.proven = {{3, 4}},
	.proven_ns = 0x0102030405060708,
	.created_ns = 0x0102030405060000,
	.duration_ns = 0x77,
	.size_bytes = 0x800000,
};

static void the_layout_is_fixed(void **unused)
{
	struct proof_wire wire;
	char text[2 * 96 + 1];

	proof_encode(&sample, &wire);
	for (unsigned i = 0; i < 96; i++)
		sprintf(text + 2 * i, "%02x", ((const uint8_t *)&wire)[i]);
	assert_string_equal(text, "4f465052463030310102000000000000"
				  "00000000000000001112131415161718"
				  "03040000000000000000000000000000"
				  "01020304050607080102030405060000"
				  "00000000000000770000000000800000"
				  "00000001000000006e6f000000000000");
}

static void it_round_trips(void **unused)
{
	struct proof_record back, fine = sample;
	struct proof_wire wire;

	proof_encode(&sample, &wire);
	assert_null(proof_decode(&wire, &back));
	assert_memory_equal(&back, &sample, sizeof(back));
	fine.error = 0;
	fine.why[0] = fine.why[1] = 0;
	proof_encode(&fine, &wire);
	assert_null(proof_decode(&wire, &back));
	assert_memory_equal(&back, &fine, sizeof(back));
}

static const char *decode(struct proof_wire *wire)
{
	struct proof_record record;

	wire->crc = to_be32(crc32c(0, wire, offsetof(struct proof_wire, crc)));
	return proof_decode(wire, &record);
}

static void what_is_wrong_is_refused(void **unused)
{
	struct proof_record record = sample;
	struct proof_wire wire;

	proof_encode(&sample, &wire);
	((uint8_t *)&wire)[100] ^= 1;
	assert_string_equal(proof_decode(&wire, &record), "checksum");
	proof_encode(&sample, &wire);
	wire.magic = to_be64(1);
	assert_non_null(decode(&wire));
	proof_encode(&sample, &wire);
	wire.reserved2[163] = 1;
	assert_non_null(decode(&wire));
	proof_encode(&sample, &wire);
	wire.why[10] = 'x'; /* behind the end */
	assert_non_null(decode(&wire));
	memset(wire.why, 'x', sizeof(wire.why));
	assert_non_null(decode(&wire));
	proof_encode(&sample, &wire);
	wire.error = to_be32(0);
	assert_non_null(decode(&wire));
	wire.error = to_be32(70000);
	assert_non_null(decode(&wire));
	proof_encode(&sample, &wire);
	wire.proven = (struct id128){};
	assert_non_null(decode(&wire));
	proof_encode(&sample, &wire);
	wire.tried_ns = to_be64(7); /* before it was proven */
	assert_non_null(decode(&wire));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_layout_is_fixed),
		cmocka_unit_test(it_round_trips),
		cmocka_unit_test(what_is_wrong_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
