/* SPDX-License-Identifier: Apache-2.0 */
/* The record of a comparison. See verify.h. */
#include "protocol/verify.h"

void verify_encode(const struct verify_record *record, struct verify_wire *wire)
{
	*wire = (struct verify_wire){
		.magic = to_be64(VERIFY_MAGIC),
		.started_ns = to_be64(record->started_ns),
		.ended_ns = to_be64(record->ended_ns),
		.size_bytes = to_be64(record->size_bytes),
		.position_bytes = to_be64(record->position_bytes),
		.differ_bytes = to_be64(record->differ_bytes),
		.repaired_bytes = to_be64(record->repaired_bytes),
		.rate = to_be64(record->rate),
		.extents = to_be64(record->extents),
		.state = to_be32((uint32_t)record->state),
		.repair = to_be32((uint32_t)record->repair),
		.listed = to_be32(record->listed),
	};
	for (unsigned i = 0; i < record->listed; i++)
		wire->extent[i] =
			(struct verify_extent_wire){to_be64(record->extent[i].offset_bytes),
						    to_be64(record->extent[i].length_bytes)};
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct verify_wire, crc)));
}

static const char *extents_decode(const struct verify_wire *wire, struct verify_record *record)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < record->listed; i++) {
		uint64_t offset = from_be64(wire->extent[i].offset);
		uint64_t length = from_be64(wire->extent[i].length);
		if (length == 0 || offset < end || offset > record->position_bytes ||
		    length > record->position_bytes - offset)
			return "bad extent";
		end = offset + length;
		record->extent[i] = (struct verify_extent){offset, length};
	}
	return bytes_are_zero(wire->extent + record->listed,
			      sizeof(wire->extent[0]) * (VERIFY_EXTENTS_MAX - record->listed))
		       ? NULL
		       : "extents beyond their count";
}

const char *verify_decode(const struct verify_wire *wire, struct verify_record *record)
{
	if (from_be64(wire->magic) != VERIFY_MAGIC)
		return "no record of a comparison";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct verify_wire, crc)))
		return "checksum";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)) ||
	    !bytes_are_zero(wire->reserved2, sizeof(wire->reserved2)))
		return "reserved bytes not zero";
	uint32_t state = from_be32(wire->state), repair = from_be32(wire->repair);
	if (state == VERIFY_NEVER || state >= VERIFY_STATES || repair >= VERIFY_REPAIRS)
		return "unknown state";
	*record = (struct verify_record){
		.state = (enum verify_state)state,
		.repair = (enum verify_repair)repair,
		.started_ns = from_be64(wire->started_ns),
		.ended_ns = from_be64(wire->ended_ns),
		.size_bytes = from_be64(wire->size_bytes),
		.position_bytes = from_be64(wire->position_bytes),
		.differ_bytes = from_be64(wire->differ_bytes),
		.repaired_bytes = from_be64(wire->repaired_bytes),
		.rate = from_be64(wire->rate),
		.extents = from_be64(wire->extents),
		.listed = from_be32(wire->listed),
	};
	if (record->position_bytes > record->size_bytes || record->position_bytes % 4096 ||
	    record->differ_bytes > record->position_bytes ||
	    record->repaired_bytes > record->differ_bytes)
		return "numbers that do not fit together";
	if (record->listed > VERIFY_EXTENTS_MAX || record->listed > record->extents)
		return "too many extents";
	return extents_decode(wire, record);
}
