/* SPDX-License-Identifier: Apache-2.0 */
/*
 * proof: what a volume's state directory holds about the last time that a snapshot was restored for a
 * trial (file "proof"). Layout and validation only. Specification: proof.md.
 */
#ifndef OFFSITE_PROTOCOL_PROOF_H
#define OFFSITE_PROTOCOL_PROOF_H

#include "protocol/wire.h"

#define PROOF_MAGIC     0x4f46505246303031ull /* "OFPRF001" */
#define PROOF_WHY_BYTES 256u

struct proof_wire {
	be64_t magic;
	struct id128 tried;
	be64_t tried_ns; /* realtime, like all of them */
	struct id128 proven;
	be64_t proven_ns, created_ns, duration_ns;
	be64_t size_bytes;
	be32_t error; /* as errno; of the last trial */
	uint8_t reserved[4];
	char why[PROOF_WHY_BYTES]; /* NUL-terminated, the rest zero */
	uint8_t reserved2[164];
	be32_t crc; /* CRC32C of all before */
};
_Static_assert(sizeof(struct proof_wire) == 512, "layout");
_Static_assert(offsetof(struct proof_wire, proven) == 32, "layout");
_Static_assert(offsetof(struct proof_wire, error) == 80, "layout");
_Static_assert(offsetof(struct proof_wire, why) == 88, "layout");
_Static_assert(offsetof(struct proof_wire, crc) == 508, "layout");

struct proof_record {
	struct id128 tried;        /* the snapshot of the last trial; zero: it came to none */
	uint64_t tried_ns;         /* when that ended; 0: there was none */
	int error;                 /* its result: 0 or -errno ... */
	char why[PROOF_WHY_BYTES]; /* ... and why; "" */
	struct id128 proven;       /* the last one that was restored and found good; zero: none */
	uint64_t proven_ns, created_ns, duration_ns; /* when, of which instant, how long it took */
	uint64_t size_bytes;
};

void proof_encode(const struct proof_record *record, struct proof_wire *wire);
/* NULL, or why it is no record of a proof. */
const char *proof_decode(const struct proof_wire *wire, struct proof_record *record);

#endif
