/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Golden vectors of frames and of the staging log: protocol/vectors, made by another implementation. Each is made here
 * byte for byte, and read back; every kind of frame and of record is among them.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include <jansson.h>

#include "protocol/replication.h"
#include "protocol/staging.h"

static json_t *load(const char *name)
{
	json_error_t error;
	char path[128];

	snprintf(path, sizeof(path), "protocol/vectors/%s.json", name);
	json_t *json = json_load_file(path, 0, &error);
	if (!json)
		fail_msg("%s: %s", path, error.text);
	return json;
}

static uint64_t number(const json_t *json, const char *key)
{
	const json_t *value = json_object_get(json, key);

	if (!json_is_integer(value))
		fail_msg("no number '%s'", key);
	return (uint64_t)json_integer_value(value);
}

/* Length of what was put into bytes. */
static size_t bytes_of(const json_t *json, const char *key, uint8_t *bytes, size_t size)
{
	const char *text = json_string_value(json_object_get(json, key));
	size_t length = text ? strlen(text) / 2 : 0;

	if (!text || length > size)
		fail_msg("no bytes '%s'", key);
	for (size_t i = 0; i < length; i++)
		if (sscanf(text + 2 * i, "%2hhx", &bytes[i]) != 1)
			fail_msg("'%s' is not hexadecimal", key);
	return length;
}

static struct id128 id_of(const json_t *json, const char *key)
{
	struct id128 id;

	assert_int_equal(bytes_of(json, key, (uint8_t *)&id, sizeof(id)), sizeof(id));
	return id;
}

/* ---- frames --------------------------------------------------------------------------------- */

static struct id128 sequence_from(uint8_t first)
{
	struct id128 id;

	for (unsigned i = 0; i < sizeof(id); i++)
		((uint8_t *)&id)[i] = (uint8_t)(first + i);
	return id;
}

static void payload_of_hello(const uint8_t *payload, size_t length)
{
	struct hello hello, expected = {.version = 2,
					.features = HELLO_SNAPSHOTS,
					.node = "alpha",
					.volume = "pgdata",
					.uuid = sequence_from(0x10),
					.instance = sequence_from(0x20),
					.attempt = 9,
					.size_bytes = 1 << 30,
					.dirty_bytes = 4096,
					.role = 1,
					.disk = 2,
					.protocol = 2,
					.flags = HELLO_WANTS | HELLO_DRY_RUN,
					.after_sb_0pri = AFTER_SB_0PRI_DISCARD_LEAST_CHANGES,
					.after_sb_1pri = AFTER_SB_1PRI_CONSENSUS,
					.current = sequence_from(0x30),
					.base = sequence_from(0x40),
					.history = {sequence_from(0x50), sequence_from(0x60)}};
	struct hello_wire wire;

	assert_null(hello_decode(payload, length, &hello));
	assert_memory_equal(&hello, &expected, sizeof(hello));
	hello_encode(&expected, &wire);
	assert_int_equal(length, sizeof(wire));
	assert_memory_equal(payload, &wire, sizeof(wire));
}

static void payload_of_error(const uint8_t *payload, size_t length)
{
	static const char text[] = "staging: no space on dev";
	struct frame_error_wire wire;
	char back[FRAME_ERROR_TEXT_MAX + 1];
	enum frame_error code;

	assert_null(frame_error_decode(payload, length, &code, back));
	assert_int_equal(code, FRAME_ERROR_STAGING);
	assert_string_equal(back, text);
	frame_error_encode(FRAME_ERROR_STAGING, text, &wire);
	assert_int_equal(length, sizeof(wire));
	assert_memory_equal(payload, &wire, sizeof(wire));
}

static void payload_of_state(const uint8_t *payload, size_t length)
{
	struct frame_state state, expected = {.lsn = 88410,
					      .streamed_bytes = 0x0102030405060708,
					      .lag_ns = 1500000000,
					      .dirty_bytes = 8192,
					      .role = 1,
					      .disk = 0,
					      .protocol = 2,
					      .flags = FRAME_STATE_STREAMING};
	struct frame_state_wire wire;

	assert_null(frame_state_decode(payload, length, &state));
	assert_memory_equal(&state, &expected, sizeof(state));
	frame_state_encode(&expected, &wire);
	assert_int_equal(length, sizeof(wire));
	assert_memory_equal(payload, &wire, sizeof(wire));
}

static void payload_of_snapshot(const uint8_t *payload, size_t length)
{
	struct frame_snapshot_wire wire = {
		.snapshot = sequence_from(0xa0),
		.sequence = to_be64(7),
		.runs = {{to_be64(0x10000), to_be64(0x20000)}, {to_be64(0x40000), to_be64(0x1000)}},
	};

	if (length == 0)
		return; /* the question */
	assert_null(frame_snapshot_invalid(payload, length));
	assert_int_equal(length, frame_snapshot_bytes(2));
	assert_memory_equal(payload, &wire, length);
}

static void payload_of_ranges(const uint8_t *payload, uint64_t first, uint64_t second)
{
	struct frame_range_wire range = {to_be64(first), to_be64(second)};

	assert_memory_equal(payload, &range, sizeof(range));
}

static void payload_of_generation(const uint8_t *payload)
{
	struct frame_generation_wire wire = {.current = sequence_from(0x30),
					     .uuid = sequence_from(0x10)};

	assert_memory_equal(payload, &wire, sizeof(wire));
}

static void payload_of_transfer(const uint8_t *payload)
{
	struct frame_transfer_wire wire = {sequence_from(0x60)};

	assert_memory_equal(payload, &wire, sizeof(wire));
}

static void check_payload(const struct frame *frame, const uint8_t *payload)
{
	switch (frame->type) {
	case FRAME_HELLO:
		payload_of_hello(payload, frame->payload_length);
		break;
	case FRAME_ERROR:
		payload_of_error(payload, frame->payload_length);
		break;
	case FRAME_STATE:
		payload_of_state(payload, frame->payload_length);
		break;
	case FRAME_SNAPSHOT:
		payload_of_snapshot(payload, frame->payload_length);
		break;
	case FRAME_MAP:
		payload_of_ranges(payload, 4096, 8192);
		payload_of_ranges(payload + 16, 1ull << 40, 1 << 20);
		break;
	case FRAME_ACK:
		payload_of_ranges(payload, 1, 7);
		payload_of_ranges(payload + 16, 9, 9);
		break;
	case FRAME_CHANGES:
		payload_of_ranges(payload, 4096, 4096);
		payload_of_ranges(payload + 16, 65536, 8192);
		break;
	case FRAME_CUT_BEGIN:
	case FRAME_SYNCED:
		payload_of_generation(payload);
		break;
	case FRAME_PROPOSE:
	case FRAME_RESUME:
		payload_of_transfer(payload);
		break;
	default:
		break; /* content and hashes: as they are, below the checksum */
	}
}

static void every_frame_is_as_another_implementation_makes_it(void **unused)
{
	bool seen[FRAME_TYPES] = {};
	json_t *vectors = load("frames"), *vector;
	size_t i;

	json_array_foreach(vectors, i, vector)
	{
		const char *name = json_string_value(json_object_get(vector, "name"));
		uint8_t header[sizeof(struct frame_wire)], payload[4096];
		struct frame_wire wire;
		struct frame back;
		size_t length = bytes_of(vector, "payload", payload, sizeof(payload));
		struct frame frame = {.type = (enum frame_type)number(vector, "type"),
				      .flags = (unsigned)number(vector, "flags"),
				      .id = number(vector, "id"),
				      .lsn = number(vector, "lsn"),
				      .offset = number(vector, "offset"),
				      .length = number(vector, "length"),
				      .payload_length = (uint32_t)length,
				      .payload_crc = length ? crc32c(0, payload, length) : 0};

		assert_string_equal(name, frame_name(frame.type));
		assert_int_equal(bytes_of(vector, "header", header, sizeof(header)),
				 sizeof(header));
		frame_encode(&frame, &wire);
		if (memcmp(&wire, header, sizeof(header)) != 0)
			fail_msg("vector %zu, %s: another header", i, name);
		memcpy(&wire, header, sizeof(wire));
		const char *why = frame_decode(&wire, &back);
		if (why)
			fail_msg("vector %zu, %s: %s", i, name, why);
		assert_memory_equal(&frame, &back, sizeof(frame));
		check_payload(&frame, payload);
		seen[frame.type] = true;
	}
	for (unsigned type = 1; type < FRAME_TYPES; type++)
		if (!seen[type] && strcmp(frame_name((enum frame_type)type), "?") != 0)
			fail_msg("no vector of %s", frame_name((enum frame_type)type));
	json_decref(vectors);
}

/* ---- the staging log ------------------------------------------------------------------------- */

static void check_header(const json_t *log)
{
	struct id128 log_id = id_of(log, "log_id"), uuid = id_of(log, "uuid"), id, generation,
		     transfer, expected_generation = id_of(log, "generation"),
		     expected_transfer = id_of(log, "transfer");
	uint64_t size_bytes = number(log, "size_bytes");
	struct staging_header header, golden;

	assert_int_equal(bytes_of(log, "header", (uint8_t *)&golden, sizeof(golden)),
			 sizeof(golden));
	staging_header_encode(&log_id, &uuid, &expected_generation, &expected_transfer, size_bytes,
			      &header);
	assert_memory_equal(&header, &golden, sizeof(golden));
	assert_null(staging_header_decode(&golden, size_bytes, &id, &generation, &transfer));
	assert_true(id128_equal(&id, &log_id));
	assert_true(id128_equal(&generation, &expected_generation));
	assert_true(id128_equal(&transfer, &expected_transfer));
}

static void every_record_is_as_another_implementation_makes_it(void **unused)
{
	bool seen[STAGING_TYPES] = {};
	json_t *log = load("staging"), *vector;
	uint64_t size_bytes = number(log, "size_bytes");
	size_t i;

	check_header(log);
	json_array_foreach(json_object_get(log, "records"), i, vector)
	{
		uint8_t payload[4096];
		size_t length = bytes_of(vector, "payload", payload, sizeof(payload));
		struct id128 log_id = id_of(vector, "log_id");
		struct staging_record_wire wire, golden;
		struct staging_record back,
			record = {.type = (enum staging_type)number(vector, "type"),
				  .flags = (unsigned)number(vector, "flags"),
				  .sequence = number(vector, "sequence"),
				  .lsn = number(vector, "lsn"),
				  .offset = number(vector, "offset"),
				  .length = number(vector, "length"),
				  .payload_crc = length ? crc32c(0, payload, length) : 0};

		assert_int_equal(bytes_of(vector, "header", (uint8_t *)&golden, sizeof(golden)),
				 sizeof(golden));
		staging_record_encode(&record, &log_id, &wire);
		if (memcmp(&wire, &golden, sizeof(golden)) != 0)
			fail_msg("record %zu: another head", i);
		const char *why = staging_record_decode(&golden, &log_id, i + 1, size_bytes, &back);
		if (why)
			fail_msg("record %zu: %s", i, why);
		assert_memory_equal(&record, &back, sizeof(record));
		assert_int_equal(staging_payload_bytes(&back), length);
		if (record.type == STAGING_COMMIT)
			payload_of_generation(payload);
		seen[record.type] = true;
	}
	for (unsigned type = 1; type < STAGING_TYPES; type++)
		if (!seen[type])
			fail_msg("no vector of record type %u", type);
	json_decref(log);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_frame_is_as_another_implementation_makes_it),
		cmocka_unit_test(every_record_is_as_another_implementation_makes_it),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
