/* SPDX-License-Identifier: Apache-2.0 */
/* The redo log's format: encoding and validation. See staging.h and staging.md. */
#include "protocol/staging.h"

void staging_header_encode(const struct id128 *log_id, const struct id128 *uuid,
			   const struct id128 *generation, const struct id128 *transfer,
			   uint64_t size_bytes, struct staging_header *header)
{
	*header = (struct staging_header){
		.magic = to_be64(STAGING_MAGIC),
		.log_id = *log_id,
		.uuid = *uuid,
		.generation = *generation,
		.transfer = *transfer,
		.size_bytes = to_be64(size_bytes),
	};
	header->crc = to_be32(crc32c(0, header, offsetof(struct staging_header, crc)));
}

const char *staging_header_decode(const struct staging_header *header, uint64_t size_bytes,
				  struct id128 *log_id, struct id128 *generation,
				  struct id128 *transfer)
{
	if (bytes_are_zero(header, sizeof(*header)))
		return "empty";
	if (from_be64(header->magic) != STAGING_MAGIC)
		return "wrong magic";
	if (from_be32(header->crc) != crc32c(0, header, offsetof(struct staging_header, crc)))
		return "header checksum";
	/* It may have been made bigger since. */
	if (from_be64(header->size_bytes) > size_bytes)
		return "made for a bigger volume";
	if (id128_is_zero(&header->log_id))
		return "no log id";
	*log_id = header->log_id;
	*generation = header->generation;
	*transfer = header->transfer;
	return NULL;
}

void staging_record_encode(const struct staging_record *record, const struct id128 *log_id,
			   struct staging_record_wire *wire)
{
	*wire = (struct staging_record_wire){
		.magic = to_be32(STAGING_RECORD_MAGIC),
		.type = to_be16((uint16_t)record->type),
		.flags = to_be16((uint16_t)record->flags),
		.log_id = *log_id,
		.sequence = to_be64(record->sequence),
		.lsn = to_be64(record->lsn),
		.offset = to_be64(record->offset),
		.length = to_be64(record->length),
		.payload_crc = to_be32(record->payload_crc),
	};
	wire->header_crc =
		to_be32(crc32c(0, wire, offsetof(struct staging_record_wire, header_crc)));
}

static const char *shape_invalid(const struct staging_record *record, uint64_t size_bytes)
{
	switch (record->type) {
	case STAGING_CUT_DATA:
	case STAGING_WRITE:
		if (record->length > STAGING_PAYLOAD_MAX)
			return "payload too long";
		break;
	case STAGING_CUT_ZERO:
	case STAGING_ZERO:
		break;
	case STAGING_COMMIT:
		return record->length == sizeof(struct staging_commit_wire) ? NULL : "bad commit";
	case STAGING_FLUSH:
		return record->length == 0 ? NULL : "bad flush";
	case STAGING_RESUME:
		return record->length == sizeof(struct staging_resume_wire) ? NULL : "bad resume";
	default:
		return "unknown type";
	}
	if (record->length == 0 || record->length % 512 || record->offset % 512)
		return "range not aligned";
	if (record->offset > size_bytes || record->length > size_bytes - record->offset)
		return "range beyond the end of the volume";
	return NULL;
}

const char *staging_record_decode(const struct staging_record_wire *wire,
				  const struct id128 *log_id, uint64_t sequence,
				  uint64_t volume_size_bytes, struct staging_record *record)
{
	if (from_be32(wire->magic) != STAGING_RECORD_MAGIC)
		return "no record";
	if (from_be32(wire->header_crc) !=
	    crc32c(0, wire, offsetof(struct staging_record_wire, header_crc)))
		return "record checksum";
	if (!id128_equal(&wire->log_id, log_id))
		return "record of an earlier log";
	if (from_be64(wire->sequence) != sequence)
		return "record out of sequence";
	*record = (struct staging_record){
		.type = (enum staging_type)from_be16(wire->type),
		.flags = from_be16(wire->flags),
		.sequence = sequence,
		.lsn = from_be64(wire->lsn),
		.offset = from_be64(wire->offset),
		.length = from_be64(wire->length),
		.payload_crc = from_be32(wire->payload_crc),
	};
	return shape_invalid(record, volume_size_bytes);
}

uint32_t staging_payload_bytes(const struct staging_record *record)
{
	switch (record->type) {
	case STAGING_CUT_DATA:
	case STAGING_WRITE:
	case STAGING_COMMIT:
	case STAGING_RESUME:
		return (uint32_t)record->length;
	default:
		return 0;
	}
}
