// SPDX-License-Identifier: Apache-2.0
/* The volume's metadata files: encoding and validation. See metadata.h and metadata.md. */
#include "protocol/metadata.h"

#include <string.h>

void metadata_super_encode(const struct metadata_super *super, struct metadata_super_wire *wire)
{
	*wire = (struct metadata_super_wire){
		.magic = to_be64(METADATA_SUPER_MAGIC),
		.version = to_be32(METADATA_VERSION),
		.flags = to_be32(super->flags),
		.sequence = to_be64(super->sequence),
		.uuid = super->uuid,
		.size_bytes = to_be64(super->size_bytes),
		.peer_block_bytes = to_be32(METADATA_PEER_BLOCK_BYTES),
		.store_block_bytes = to_be32(METADATA_STORE_BLOCK_BYTES),
		.region_bytes = to_be32(METADATA_REGION_BYTES),
		.page_payload_bytes = to_be32(METADATA_PAYLOAD_BYTES),
		.role = to_be16((uint16_t)super->role),
		.disk = to_be16((uint16_t)super->disk),
		.maps = to_be32(super->maps),
		.current = super->current,
		.base = super->base,
		.lsn = to_be64(super->lsn),
		.outdated_ns = to_be64(super->outdated_ns),
		.snapshot = super->snapshot,
		.snapshot_sequence = to_be64(super->snapshot_sequence),
		.heard_ns = to_be64(super->heard_ns),
		.heard_lsn = to_be64(super->heard_lsn),
		.received_lsn = to_be64(super->received_lsn),
		.missing_bytes = to_be64(super->missing_bytes),
		.behind_ns = to_be64(super->behind_ns),
		.source_volume = super->source_volume,
		.source_snapshot = super->source_snapshot,
		.source_sequence = to_be64(super->source_sequence),
		.writer = super->writer,
	};
	memcpy(wire->history, super->history, sizeof(wire->history));
	memcpy(wire->backing, super->backing, strnlen(super->backing, METADATA_BACKING_BYTES - 1));
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct metadata_super_wire, crc)));
}

/* A snapshot is named if the disk is filled from it, or it is pinned for that; else not. */
static bool source_invalid(const struct metadata_super_wire *wire)
{
	unsigned flags = from_be32(wire->flags);
	bool named = (flags & METADATA_PINNED) ||
		     ((flags & METADATA_HYDRATING) && !(flags & METADATA_AT_PEER));

	if (named)
		return id128_is_zero(&wire->source_snapshot) || id128_is_zero(&wire->source_volume);
	return !id128_is_zero(&wire->source_snapshot) || !id128_is_zero(&wire->source_volume) ||
	       from_be64(wire->source_sequence) != 0;
}

static const char *super_facts_invalid(const struct metadata_super_wire *wire)
{
	if (from_be32(wire->version) != METADATA_VERSION)
		return "made by another version";
	if (from_be32(wire->flags) & ~(unsigned)METADATA_FLAGS_ALL)
		return "unknown flags";
	if (from_be32(wire->peer_block_bytes) != METADATA_PEER_BLOCK_BYTES ||
	    from_be32(wire->store_block_bytes) != METADATA_STORE_BLOCK_BYTES ||
	    from_be32(wire->region_bytes) != METADATA_REGION_BYTES ||
	    from_be32(wire->page_payload_bytes) != METADATA_PAYLOAD_BYTES)
		return "other block sizes";
	if (from_be64(wire->size_bytes) == 0 || from_be64(wire->size_bytes) % 4096 ||
	    from_be64(wire->size_bytes) > INT64_MAX)
		return "bad size";
	if (from_be16(wire->role) >= METADATA_ROLES)
		return "unknown role";
	if (from_be16(wire->disk) >= METADATA_DISKS)
		return "unknown disk state";
	if (from_be32(wire->maps) >= METADATA_MAPS_FILES)
		return "unknown file of maps";
	if (from_be64(wire->sequence) == 0)
		return "no sequence number";
	if (id128_is_zero(&wire->uuid))
		return "no uuid";
	if (wire->backing[METADATA_BACKING_BYTES - 1] != '\0')
		return "backing path not terminated";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes not zero";
	if (source_invalid(wire))
		return "bad source";
	return NULL;
}

const char *metadata_super_decode(const struct metadata_super_wire *wire,
				  struct metadata_super *super)
{
	const char *why;

	if (from_be64(wire->magic) != METADATA_SUPER_MAGIC)
		return "wrong magic";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct metadata_super_wire, crc)))
		return "checksum";
	why = super_facts_invalid(wire);
	if (why != NULL)
		return why;
	*super = (struct metadata_super){
		.flags = from_be32(wire->flags),
		.sequence = from_be64(wire->sequence),
		.uuid = wire->uuid,
		.size_bytes = from_be64(wire->size_bytes),
		.role = (enum metadata_role)from_be16(wire->role),
		.disk = (enum metadata_disk)from_be16(wire->disk),
		.maps = from_be32(wire->maps),
		.current = wire->current,
		.base = wire->base,
		.lsn = from_be64(wire->lsn),
		.outdated_ns = from_be64(wire->outdated_ns),
		.snapshot = wire->snapshot,
		.snapshot_sequence = from_be64(wire->snapshot_sequence),
		.heard_ns = from_be64(wire->heard_ns),
		.heard_lsn = from_be64(wire->heard_lsn),
		.received_lsn = from_be64(wire->received_lsn),
		.missing_bytes = from_be64(wire->missing_bytes),
		.behind_ns = from_be64(wire->behind_ns),
		.source_volume = wire->source_volume,
		.source_snapshot = wire->source_snapshot,
		.source_sequence = from_be64(wire->source_sequence),
		.writer = wire->writer,
	};
	memcpy(super->history, wire->history, sizeof(super->history));
	memcpy(super->backing, wire->backing, sizeof(super->backing));
	return NULL;
}

static uint32_t page_crc(const struct metadata_page_wire *wire)
{
	uint32_t crc = crc32c(0, wire, offsetof(struct metadata_page_wire, crc));

	return crc32c(crc, wire->payload, sizeof(wire->payload));
}

void metadata_page_encode(enum metadata_page_kind kind, uint32_t number, const uint64_t *words,
			  struct metadata_page_wire *wire)
{
	memset(wire, 0, offsetof(struct metadata_page_wire, payload));
	wire->magic = to_be64(METADATA_PAGE_MAGIC);
	wire->version = to_be16(METADATA_VERSION);
	wire->kind = to_be16((uint16_t)kind);
	wire->number = to_be32(number);
	for (unsigned i = 0; i < METADATA_PAGE_WORDS; i++) {
		uint64_t word = htole64(words[i]);

		memcpy(&wire->payload[i * 8], &word, 8);
	}
	wire->crc = to_be32(page_crc(wire));
}

const char *metadata_page_decode(const struct metadata_page_wire *wire,
				 enum metadata_page_kind kind, uint32_t number, uint64_t *words)
{
	if (from_be64(wire->magic) != METADATA_PAGE_MAGIC)
		return "wrong magic";
	if (from_be32(wire->crc) != page_crc(wire))
		return "checksum";
	if (from_be16(wire->version) != METADATA_VERSION)
		return "made by another version";
	if (from_be16(wire->kind) != kind || from_be32(wire->number) != number)
		return "another page's content";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)))
		return "reserved bytes not zero";
	for (unsigned i = 0; i < METADATA_PAGE_WORDS; i++) {
		uint64_t word;

		memcpy(&word, &wire->payload[i * 8], 8);
		words[i] = le64toh(word);
	}
	return NULL;
}
