/* SPDX-License-Identifier: Apache-2.0 */
/* hashes: of the blocks of one buffer, made on a helper thread. What COMPARE asks for. */
#ifndef OFFSITE_REPLICATION_HASHES_H
#define OFFSITE_REPLICATION_HASHES_H

#include "daemon/io/buf.h"
#include "daemon/io/env.h"
#include "protocol/replication.h"

#define HASHES_MAX (COMPARE_MAX_BYTES / COMPARE_FINE_BLOCK_BYTES)

struct hashes {
	/* the caller's: buf stays his, untouched until done() */
	const struct buf *buf;
	uint32_t length_bytes, block_bytes;
	void (*done)(struct hashes *hashes); /* never from inside hashes_make() */
	/* the result */
	uint8_t hash[HASHES_MAX][COMPARE_HASH_BYTES];
	/* private */
	struct env_work work;
};

void hashes_make(struct env *env, struct hashes *hashes);
/* Of one block: 16 zero bytes if it is zero. */
void hash_block(const uint8_t *data, uint32_t length_bytes, uint8_t hash[COMPARE_HASH_BYTES]);

#endif
