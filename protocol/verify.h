/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: what a volume's state directory holds about its last comparison with the peer, under way or
 * ended (file "verify"). Layout and validation only. Specification: verify.md.
 */
#ifndef OFFSITE_PROTOCOL_VERIFY_H
#define OFFSITE_PROTOCOL_VERIFY_H

#include "protocol/wire.h"

#define VERIFY_MAGIC       0x4f46565259303031ull /* "OFVRY001" */
#define VERIFY_EXTENTS_MAX 64u

enum verify_state {
	VERIFY_NEVER, /* not in a record: there is none */
	VERIFY_RUNNING,
	VERIFY_DONE,
	VERIFY_CANCELLED,
	VERIFY_STATES,
};

enum verify_repair {
	VERIFY_REPAIR_NONE,
	VERIFY_REPAIR_FROM_HERE, /* what differs is sent to the peer */
	VERIFY_REPAIR_FROM_PEER, /* what differs is fetched from the peer */
	VERIFY_REPAIRS,
};

struct verify_extent_wire {
	be64_t offset;
	be64_t length;
};

struct verify_wire {
	be64_t magic;
	be64_t started_ns, ended_ns; /* realtime; ended: 0 while running */
	be64_t size_bytes, position_bytes;
	be64_t differ_bytes, repaired_bytes;
	be64_t rate; /* bytes a second; 0: any */
	be64_t extents;
	be32_t state;
	be32_t repair;
	be32_t listed; /* of extents, below */
	uint8_t reserved[4];
	struct verify_extent_wire extent[VERIFY_EXTENTS_MAX];
	uint8_t reserved2[4];
	be32_t crc; /* CRC32C of all before */
};
_Static_assert(sizeof(struct verify_wire) == 1120, "layout");
_Static_assert(offsetof(struct verify_wire, extent) == 88, "layout");
_Static_assert(offsetof(struct verify_wire, crc) == 1116, "layout");

struct verify_extent {
	uint64_t offset_bytes, length_bytes;
};

struct verify_record {
	enum verify_state state;
	enum verify_repair repair;
	uint64_t started_ns, ended_ns, size_bytes, position_bytes, differ_bytes, repaired_bytes;
	uint64_t rate, extents;
	unsigned listed;
	struct verify_extent extent[VERIFY_EXTENTS_MAX];
};

void verify_encode(const struct verify_record *record, struct verify_wire *wire);
/* NULL, or why it is no record of a comparison. */
const char *verify_decode(const struct verify_wire *wire, struct verify_record *record);

#endif
