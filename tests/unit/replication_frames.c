/* SPDX-License-Identifier: Apache-2.0 */
/* Frames: round trips, and what must be refused. Golden vectors: protocol_vectors.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "protocol/replication.h"

static void hex(const void *data, size_t length, char *text)
{
	for (size_t i = 0; i < length; i++)
		sprintf(text + 2 * i, "%02x", ((const uint8_t *)data)[i]);
}

static void golden_snapshot(void **state)
{
	struct frame_snapshot_wire wire = {
		.snapshot = {{0xaa, 0xbb}},
		.sequence = to_be64(7),
		.runs = {{to_be64(0x10000), to_be64(0x20000)}, {to_be64(0x40000), to_be64(0x1000)}},
	};
	char text[2 * 64 + 1];

	hex(&wire, frame_snapshot_bytes(2), text);
	assert_string_equal(text, "aabb0000000000000000000000000000"
				  "00000000000000070000000000000000"
				  "00000000000100000000000000020000"
				  "00000000000400000000000000001000");
	assert_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(2)));
	assert_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(0)));
	wire.reserved[7] = 1;
	assert_non_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(0)));
	wire.reserved[7] = 0;
	wire.runs[1].first = to_be64(0x20000); /* overlap */
	assert_non_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(2)));
	wire.runs[1].first = to_be64(0x41000); /* no chunk */
	assert_non_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(2)));
	wire.runs[1] = (struct frame_range_wire){to_be64(0x40000), to_be64(0)};
	assert_non_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(2)));
	wire.runs[1].second = to_be64(UINT64_MAX); /* wraps */
	assert_non_null(frame_snapshot_invalid(&wire, frame_snapshot_bytes(2)));
}

static struct frame sample(enum frame_type type)
{
	struct frame frame = {.type = type, .id = 7};

	switch (type) {
	case FRAME_HELLO:
		frame.payload_length = sizeof(struct hello_wire);
		break;
	case FRAME_ERROR:
		frame.payload_length = sizeof(struct frame_error_wire);
		break;
	case FRAME_RESIZE:
		frame.length = 0x40001000;
		break;
	case FRAME_STATE:
		frame.payload_length = sizeof(struct frame_state_wire);
		break;
	case FRAME_PROPOSE:
	case FRAME_RESUME:
		frame.payload_length = sizeof(struct frame_transfer_wire);
		break;
	case FRAME_CUT_BEGIN:
	case FRAME_SYNCED:
		frame.payload_length = 32;
		break;
	case FRAME_WRITE:
	case FRAME_CUT_DATA:
		frame.payload_length = 1024;
		/* fall through */
	case FRAME_ZERO:
	case FRAME_CUT_ZERO:
		frame.length = 1024;
		frame.offset = 512;
		break;
	case FRAME_READ_DATA:
		frame.payload_length = 1024;
		/* fall through */
	case FRAME_READ:
		frame.length = 1024;
		frame.offset = 512;
		break;
	case FRAME_HASHES:
		frame.payload_length = 32;
		/* fall through */
	case FRAME_COMPARE:
		frame.length = 68 * 1024;
		frame.offset = 4096;
		break;
	default:
		break;
	}
	return frame;
}

static void every_type_round_trips(void **state)
{
	for (unsigned type = FRAME_HELLO; type < FRAME_TYPES; type++) {
		struct frame frame = sample(type), back;
		struct frame_wire wire;
		if (strcmp(frame_name(frame.type), "?") == 0) {
			assert_true(type > FRAME_HASHES); /* a number that was never given out */
			continue;
		}
		frame_encode(&frame, &wire);
		assert_null(frame_decode(&wire, &back));
		assert_memory_equal(&frame, &back, sizeof(frame));
	}
}

static void golden_resize_header(void **state)
{
	struct frame frame = {.type = FRAME_RESIZE, .length = 0x40001000}, back;
	struct frame_wire wire;
	char text[2 * sizeof(wire) + 1];

	frame_encode(&frame, &wire);
	hex(&wire, sizeof(wire), text);
	assert_string_equal(text, "4f465250001a00000000000000000000"
				  "00000000000000000000000000000000"
				  "00000000400010000000000000000000"
				  "00000000000000000000000062211aed");
	static const uint64_t bad[] = {0, 512, 4097, 1ull << 63};
	for (unsigned i = 0; i < 4; i++) {
		frame.length = bad[i];
		frame_encode(&frame, &wire);
		assert_string_equal(frame_decode(&wire, &back), "no size of a volume");
	}
	frame = (struct frame){.type = FRAME_RESIZE, .offset = 4096, .length = 4096};
	frame_encode(&frame, &wire);
	assert_non_null(frame_decode(&wire, &back));
	frame = (struct frame){
		.type = FRAME_RESIZE, .length = 4096, .payload_length = FRAME_ERROR_TEXT_MAX + 1};
	frame_encode(&frame, &wire);
	assert_non_null(frame_decode(&wire, &back));
}

static const char *decode(struct frame frame)
{
	struct frame_wire wire;
	struct frame back;

	frame_encode(&frame, &wire);
	return frame_decode(&wire, &back);
}

static void every_flipped_bit_is_noticed(void **state)
{
	struct frame frame = sample(FRAME_WRITE), back;
	struct frame_wire wire;

	for (unsigned bit = 0; bit < 8 * sizeof(wire); bit++) {
		frame_encode(&frame, &wire);
		((uint8_t *)&wire)[bit / 8] ^= (uint8_t)(1u << bit % 8);
		assert_non_null(frame_decode(&wire, &back));
	}
}

static void bad_frames_are_refused(void **state)
{
	struct frame frame;

	frame = sample(FRAME_WRITE), frame.length = 2048;
	assert_non_null(decode(frame));
	frame = sample(FRAME_WRITE), frame.offset = 100;
	assert_non_null(decode(frame));
	frame = sample(FRAME_WRITE), frame.id = 0;
	assert_non_null(decode(frame));
	frame = sample(FRAME_WRITE), frame.payload_length = frame.length = FRAME_PAYLOAD_MAX + 512;
	assert_non_null(decode(frame));
	frame = sample(FRAME_ZERO), frame.length = 0;
	assert_non_null(decode(frame));
	frame = sample(FRAME_ZERO), frame.offset = UINT64_MAX - 511, frame.length = 1024;
	assert_non_null(decode(frame));
	frame = sample(FRAME_ZERO), frame.payload_length = 512;
	assert_non_null(decode(frame));
	frame = sample(FRAME_FLUSH), frame.flags = FRAME_FUA;
	assert_non_null(decode(frame));
	frame = sample(FRAME_MAP), frame.payload_length = 24;
	assert_non_null(decode(frame));
	frame = sample(FRAME_PING), frame.payload_crc = 1;
	assert_non_null(decode(frame));
	frame = sample(FRAME_COMPARE), frame.id = 0;
	assert_non_null(decode(frame));
	frame = sample(FRAME_COMPARE), frame.offset = 512;
	assert_non_null(decode(frame));
	frame = sample(FRAME_COMPARE), frame.length = COMPARE_MAX_BYTES + 4096;
	assert_non_null(decode(frame));
	frame.flags = FRAME_HOLE;
	assert_null(decode(frame));
	frame.length = COMPARE_HOLE_MAX_BYTES + 4096;
	assert_non_null(decode(frame));
	frame = sample(FRAME_COMPARE), frame.flags = FRAME_LATER;
	assert_non_null(decode(frame));
	frame = sample(FRAME_HASHES), frame.length += 64 * 1024;
	assert_non_null(decode(frame));
	frame = sample(FRAME_HASHES), frame.flags = FRAME_FINE;
	assert_non_null(decode(frame));
	frame.payload_length = 17 * 16;
	assert_null(decode(frame));
	frame = sample(FRAME_HASHES), frame.flags = FRAME_LATER;
	assert_non_null(decode(frame));
	frame.payload_length = 0;
	assert_null(decode(frame));
	frame.flags = FRAME_LATER | FRAME_HOLE;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ), frame.id = 0;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ), frame.length = FRAME_PAYLOAD_MAX + 512;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ), frame.flags = FRAME_HOLE;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ), frame.payload_length = 1024;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ_DATA), frame.length = 2048;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ_DATA), frame.flags = FRAME_HOLE;
	assert_non_null(decode(frame));
	frame.payload_length = 0;
	assert_null(decode(frame));
	frame.flags = FRAME_HOLE | FRAME_UNREADABLE;
	assert_non_null(decode(frame));
	frame = sample(FRAME_READ_DATA), frame.payload_length = 0;
	assert_non_null(decode(frame));
	frame = sample(FRAME_FLUSH), frame.type = 21; /* never given out */
	assert_non_null(decode(frame));
	frame = sample(FRAME_FLUSH), frame.type = FRAME_TYPES;
	assert_non_null(decode(frame));
	frame = sample(FRAME_FLUSH), frame.type = 0;
	assert_non_null(decode(frame));
}

static void ranges_stay_within_the_volume(void **state)
{
	struct frame frame = {.type = FRAME_ZERO, .offset = 4096, .length = 4096};

	assert_null(frame_range_invalid(&frame, 8192));
	assert_non_null(frame_range_invalid(&frame, 8191));
	assert_non_null(frame_range_invalid(&frame, 0));
	frame.offset = UINT64_MAX - 4095;
	assert_non_null(frame_range_invalid(&frame, 8192));
	frame.type = FRAME_PROPOSE; /* its length is no range */
	assert_null(frame_range_invalid(&frame, 8192));
}

static void hello_round_trips_and_is_checked(void **state)
{
	struct hello hello = {.version = FRAME_VERSION,
			      .node = "alpha",
			      .volume = "pgdata",
			      .size_bytes = 1 << 30,
			      .dirty_bytes = 4096,
			      .attempt = 9,
			      .role = 1,
			      .disk = 2,
			      .protocol = 2,
			      .flags = HELLO_WANTS | HELLO_DRY_RUN,
			      .current = {{1}},
			      .base = {{2}},
			      .history = {{{3}}, {{4}}}};
	struct hello back;
	struct hello_wire wire;

	hello_encode(&hello, &wire);
	assert_null(hello_decode(&wire, sizeof(wire), &back));
	assert_memory_equal(&hello, &back, sizeof(hello));
	assert_non_null(hello_decode(&wire, sizeof(wire) - 1, &back));

	struct hello_wire bad = wire;
	memset(bad.node, 'x', sizeof(bad.node)); /* not terminated */
	assert_non_null(hello_decode(&bad, sizeof(bad), &back));
	bad = wire, bad.volume[0] = 0;
	assert_non_null(hello_decode(&bad, sizeof(bad), &back));
	bad = wire, memcpy(bad.volume, "../x", 5);
	assert_non_null(hello_decode(&bad, sizeof(bad), &back));
	bad = wire, bad.role = 2;
	assert_non_null(hello_decode(&bad, sizeof(bad), &back));
	bad = wire, bad.disk = 5;
	assert_non_null(hello_decode(&bad, sizeof(bad), &back));
}

static void state_round_trips_and_is_checked(void **unused)
{
	struct frame_state state = {.lsn = 88410,
				    .streamed_bytes = 0x0102030405060708,
				    .lag_ns = 1500000000,
				    .dirty_bytes = 8192,
				    .role = 1,
				    .disk = 0,
				    .protocol = 2,
				    .flags = FRAME_STATE_STREAMING};
	struct frame_state back;
	struct frame_state_wire wire, bad;
	char text[2 * sizeof(wire) + 1];

	frame_state_encode(&state, &wire);
	hex(&wire, sizeof(wire), text);
	assert_string_equal(text, "000000000001595a0102030405060708"
				  "0000000059682f000000000000002000"
				  "01000201000000000000000000000000");
	assert_null(frame_state_decode(&wire, sizeof(wire), &back));
	assert_memory_equal(&state, &back, sizeof(state));
	assert_non_null(frame_state_decode(&wire, sizeof(wire) - 1, &back));
	bad = wire, bad.role = 2;
	assert_non_null(frame_state_decode(&bad, sizeof(bad), &back));
	bad = wire, bad.disk = 5;
	assert_non_null(frame_state_decode(&bad, sizeof(bad), &back));
	bad = wire, bad.protocol = 3;
	assert_non_null(frame_state_decode(&bad, sizeof(bad), &back));
	bad = wire, bad.reserved[11] = 1;
	assert_non_null(frame_state_decode(&bad, sizeof(bad), &back));
}

static void error_text_is_tamed(void **state)
{
	struct frame_error_wire wire;
	enum frame_error code;
	char text[FRAME_ERROR_TEXT_MAX + 1];

	frame_error_encode(FRAME_ERROR_SIZE, "sizes\n differ\x1b[1m", &wire);
	assert_null(frame_error_decode(&wire, sizeof(wire), &code, text));
	assert_int_equal(code, FRAME_ERROR_SIZE);
	assert_string_equal(text, "sizes? differ?[1m");
	wire.code = to_be32(12345);
	assert_null(frame_error_decode(&wire, sizeof(wire), &code, text));
	assert_int_equal(code, FRAME_ERROR_PROTOCOL);
	wire.text_length = to_be32(FRAME_ERROR_TEXT_MAX + 1);
	assert_non_null(frame_error_decode(&wire, sizeof(wire), &code, text));
	assert_non_null(frame_error_decode(&wire, 7, &code, text));
	wire.text_length = to_be32(20);
	assert_non_null(frame_error_decode(&wire, 20, &code, text));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(golden_snapshot),
		cmocka_unit_test(golden_resize_header),
		cmocka_unit_test(every_type_round_trips),
		cmocka_unit_test(every_flipped_bit_is_noticed),
		cmocka_unit_test(bad_frames_are_refused),
		cmocka_unit_test(ranges_stay_within_the_volume),
		cmocka_unit_test(hello_round_trips_and_is_checked),
		cmocka_unit_test(state_round_trips_and_is_checked),
		cmocka_unit_test(error_text_is_tamed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
