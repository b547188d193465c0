/* SPDX-License-Identifier: Apache-2.0 */
/* Records of a split brain. See split.h. */
#include "protocol/split.h"

#include <string.h>

static bool all_zero(const void *data, size_t length)
{
	const uint8_t *bytes = data;

	for (size_t i = 0; i < length; i++)
		if (bytes[i])
			return false;
	return true;
}

void split_encode(const struct split_record *record, struct split_wire *wire)
{
	*wire = (struct split_wire){
		.magic = to_be64(SPLIT_MAGIC),
		.since_ns = to_be64(record->since_ns),
		.common = record->common,
		.self = record->self,
		.peer = record->peer,
		.peer_bytes = to_be64(record->peer_bytes),
		.peer_extents = to_be64(record->peer_extents),
		.flags = to_be32(record->flags),
		.listed = to_be32(record->listed),
	};
	memcpy(wire->node, record->node, sizeof(wire->node));
	for (unsigned i = 0; i < record->listed; i++)
		wire->extents[i] =
			(struct split_extent_wire){to_be64(record->extents[i].offset_bytes),
						   to_be64(record->extents[i].length_bytes)};
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct split_wire, crc)));
}

static const char *extents_decode(const struct split_wire *wire, uint64_t volume_size_bytes,
				  struct split_record *record)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < record->listed; i++) {
		uint64_t offset = from_be64(wire->extents[i].offset);
		uint64_t length = from_be64(wire->extents[i].length);
		if (length == 0 || offset < end || offset > volume_size_bytes ||
		    length > volume_size_bytes - offset)
			return "bad extent";
		end = offset + length;
		record->extents[i] = (struct split_extent){offset, length};
	}
	return all_zero(wire->extents + record->listed,
			sizeof(wire->extents[0]) * (SPLIT_EXTENTS_MAX - record->listed))
		       ? NULL
		       : "extents beyond their count";
}

const char *split_decode(const struct split_wire *wire, uint64_t volume_size_bytes,
			 struct split_record *record)
{
	if (from_be64(wire->magic) != SPLIT_MAGIC)
		return "no record of a split brain";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct split_wire, crc)))
		return "checksum";
	*record = (struct split_record){
		.since_ns = from_be64(wire->since_ns),
		.common = wire->common,
		.self = wire->self,
		.peer = wire->peer,
		.peer_bytes = from_be64(wire->peer_bytes),
		.peer_extents = from_be64(wire->peer_extents),
		.flags = from_be32(wire->flags),
		.listed = from_be32(wire->listed),
	};
	if (record->flags & ~SPLIT_FLAGS_ALL || !all_zero(wire->reserved, sizeof(wire->reserved)))
		return "unknown flags";
	if (!memchr(wire->node, 0, sizeof(wire->node)))
		return "node name without an end";
	memcpy(record->node, wire->node, sizeof(record->node));
	if (record->listed > SPLIT_EXTENTS_MAX || record->listed > record->peer_extents)
		return "too many extents";
	return extents_decode(wire, volume_size_bytes, record);
}

void split_wish_encode(const struct id128 *gives_up, unsigned flags, struct split_wish_wire *wire)
{
	*wire = (struct split_wish_wire){
		.magic = to_be64(SPLIT_WISH_MAGIC),
		.gives_up = *gives_up,
		.flags = to_be32(flags),
	};
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct split_wish_wire, crc)));
}

const char *split_wish_decode(const struct split_wish_wire *wire, struct id128 *gives_up,
			      unsigned *flags)
{
	if (from_be64(wire->magic) != SPLIT_WISH_MAGIC)
		return "no wish";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct split_wish_wire, crc)))
		return "checksum";
	if (!all_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes";
	if (from_be32(wire->flags) & ~SPLIT_WISH_WAS_UPTODATE)
		return "unknown flags";
	*gives_up = wire->gives_up;
	*flags = from_be32(wire->flags);
	return NULL;
}
