/* SPDX-License-Identifier: Apache-2.0 */
/* Everything that takes bytes from a peer or from the staging file apart. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/replication/decide.h"
#include "protocol/replication.h"
#include "protocol/split.h"
#include "protocol/staging.h"
#include "protocol/proof.h"
#include "protocol/verify.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* With fixed-up checksums the checks behind them are reached. */
static void fuzz_frame(const uint8_t *data, size_t size)
{
	struct frame_wire wire = {}, again;
	struct frame frame;

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	wire.magic = to_be32(FRAME_MAGIC);
	memset(wire.reserved, 0, sizeof(wire.reserved));
	wire.header_crc = to_be32(crc32c(0, &wire, offsetof(struct frame_wire, header_crc)));
	if (frame_decode(&wire, &frame))
		return;
	frame_encode(&frame, &again);
	if (memcmp(&wire, &again, sizeof(wire)))
		abort();
	if (frame.payload_length > FRAME_PAYLOAD_MAX ||
	    (frame.type == FRAME_HASHES && frame.payload_length > 4096) ||
	    (frame.type == FRAME_READ && frame.length > FRAME_PAYLOAD_MAX) ||
	    (frame.type == FRAME_COMPARE && frame.length > COMPARE_HOLE_MAX_BYTES))
		abort();
	if (!frame_range_invalid(&frame, 1 << 30) &&
	    (frame.type == FRAME_WRITE || frame.type == FRAME_ZERO) &&
	    frame.offset + frame.length > 1 << 30)
		abort();
}

static void fuzz_staging(const uint8_t *data, size_t size)
{
	struct staging_record_wire wire = {};
	struct staging_record record;

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	wire.magic = to_be32(STAGING_RECORD_MAGIC);
	wire.header_crc =
		to_be32(crc32c(0, &wire, offsetof(struct staging_record_wire, header_crc)));
	if (!staging_record_decode(&wire, &wire.log_id, from_be64(wire.sequence), 1 << 30,
				   &record) &&
	    staging_payload_bytes(&record) > STAGING_PAYLOAD_MAX)
		abort();
	struct staging_header header = {};
	struct id128 id, generation, transfer;
	memcpy(&header, data, size < sizeof(header) ? size : sizeof(header));
	(void)staging_header_decode(&header, 1 << 30, &id, &generation, &transfer);
}

static void fuzz_snapshot(const uint8_t *data, size_t size)
{
	struct frame_snapshot_wire wire = {};
	size_t length = size < sizeof(wire) ? size : sizeof(wire);

	length -= length % 16;
	if (length < frame_snapshot_bytes(0))
		return;
	memcpy(&wire, data, length);
	(void)frame_snapshot_invalid(&wire, length);
	memset(wire.reserved, 0, sizeof(wire.reserved));
	(void)frame_snapshot_invalid(&wire, length);
}

static void fuzz_state(const uint8_t *data, size_t size)
{
	struct frame_state_wire wire, again;
	struct frame_state state, back;

	if (frame_state_decode(data, size, &state))
		return;
	memcpy(&wire, data, sizeof(wire));
	frame_state_encode(&state, &again);
	if (frame_state_decode(&again, sizeof(again), &back) ||
	    memcmp(&state, &back, sizeof(state)))
		abort();
}

static void fuzz_split(const uint8_t *data, size_t size)
{
	struct split_wire wire = {}, again;
	struct split_record record;

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	wire.magic = to_be64(SPLIT_MAGIC);
	wire.crc = to_be32(crc32c(0, &wire, offsetof(struct split_wire, crc)));
	if (split_decode(&wire, 1 << 30, &record))
		return;
	split_encode(&record, &again);
	if (record.listed > SPLIT_EXTENTS_MAX || memcmp(&wire, &again, sizeof(wire)))
		abort();
}

static void fuzz_verify(const uint8_t *data, size_t size)
{
	struct verify_wire wire = {}, again;
	struct verify_record record;

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	wire.magic = to_be64(VERIFY_MAGIC);
	wire.crc = to_be32(crc32c(0, &wire, offsetof(struct verify_wire, crc)));
	if (verify_decode(&wire, &record))
		return;
	verify_encode(&record, &again);
	if (memcmp(&wire, &again, sizeof(wire)) || record.differ_bytes > record.size_bytes)
		abort();
}

static void fuzz_proof(const uint8_t *data, size_t size)
{
	struct proof_wire wire = {}, again;
	struct proof_record record;

	memcpy(&wire, data, size < sizeof(wire) ? size : sizeof(wire));
	wire.magic = to_be64(PROOF_MAGIC);
	wire.crc = to_be32(crc32c(0, &wire, offsetof(struct proof_wire, crc)));
	if (proof_decode(&wire, &record))
		return;
	proof_encode(&record, &again);
	if (memcmp(&wire, &again, sizeof(wire)))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char text[FRAME_ERROR_TEXT_MAX + 1];
	enum frame_error code;
	struct hello a, b;

	if (size == 0)
		return 0;
	switch (data[0] % 8) {
	case 7:
		fuzz_snapshot(data + 1, size - 1);
		break;
	case 0:
		fuzz_frame(data + 1, size - 1);
		break;
	case 1:
		fuzz_staging(data + 1, size - 1);
		break;
	case 2:
		(void)frame_error_decode(data + 1, size - 1, &code, text);
		break;
	case 5:
		fuzz_split(data + 1, size - 1);
		break;
	case 4:
		fuzz_state(data + 1, size - 1);
		break;
	case 6:
		fuzz_verify(data + 1, size - 1);
		fuzz_proof(data + 1, size - 1);
		break;
	case 3:
		if (hello_decode(data + 1, size - 1, &a))
			break;
		b = a;
		if (size > 2 * sizeof(struct hello_wire))
			(void)hello_decode(data + 1 + sizeof(struct hello_wire),
					   size - 1 - sizeof(struct hello_wire), &b);
		if (decide(&a, &b) != decide_mirror(decide(&b, &a)))
			abort();
		break;
	}
	return 0;
}
