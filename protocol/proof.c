/* SPDX-License-Identifier: Apache-2.0 */
/* The record of a proof. See proof.h. */
#include "protocol/proof.h"

#include <string.h>

void proof_encode(const struct proof_record *record, struct proof_wire *wire)
{
	*wire = (struct proof_wire){
		.magic = to_be64(PROOF_MAGIC),
		.tried = record->tried,
		.tried_ns = to_be64(record->tried_ns),
		.proven = record->proven,
		.proven_ns = to_be64(record->proven_ns),
		.created_ns = to_be64(record->created_ns),
		.duration_ns = to_be64(record->duration_ns),
		.size_bytes = to_be64(record->size_bytes),
		.error = to_be32((uint32_t)-record->error),
	};
	memcpy(wire->why, record->why, strnlen(record->why, PROOF_WHY_BYTES - 1));
	wire->crc = to_be32(crc32c(0, wire, offsetof(struct proof_wire, crc)));
}

const char *proof_decode(const struct proof_wire *wire, struct proof_record *record)
{
	size_t length = strnlen(wire->why, PROOF_WHY_BYTES);
	uint32_t error = from_be32(wire->error);

	if (from_be64(wire->magic) != PROOF_MAGIC)
		return "no record of a proof";
	if (from_be32(wire->crc) != crc32c(0, wire, offsetof(struct proof_wire, crc)))
		return "checksum";
	if (!bytes_are_zero(wire->reserved, sizeof(wire->reserved)) ||
	    !bytes_are_zero(wire->reserved2, sizeof(wire->reserved2)))
		return "reserved bytes not zero";
	if (length == PROOF_WHY_BYTES ||
	    !bytes_are_zero(wire->why + length, PROOF_WHY_BYTES - length))
		return "text without an end";
	if (error > 4095 || (error == 0) != (length == 0))
		return "error and reason do not fit together";
	*record = (struct proof_record){
		.tried = wire->tried,
		.tried_ns = from_be64(wire->tried_ns),
		.error = -(int)error,
		.proven = wire->proven,
		.proven_ns = from_be64(wire->proven_ns),
		.created_ns = from_be64(wire->created_ns),
		.duration_ns = from_be64(wire->duration_ns),
		.size_bytes = from_be64(wire->size_bytes),
	};
	memcpy(record->why, wire->why, length);
	if (id128_is_zero(&record->proven) != (record->proven_ns == 0) || record->tried_ns == 0 ||
	    record->proven_ns > record->tried_ns)
		return "times that do not fit together";
	return NULL;
}
