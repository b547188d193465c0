/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/replication/hashes.h"

#include <assert.h>
#include <openssl/sha.h>
#include <string.h>

#define container_of(ptr, type, member) ((type *)((char *)(ptr)-offsetof(type, member)))

void hash_block(const uint8_t *data, uint32_t length, uint8_t hash[COMPARE_HASH_BYTES])
{
	uint8_t whole[SHA256_DIGEST_LENGTH] = {};

	if (!bytes_are_zero(data, length))
		SHA256(data, length, whole);
	memcpy(hash, whole, COMPARE_HASH_BYTES);
}

static void run(struct env_work *work)
{
	struct hashes *hashes = container_of(work, struct hashes, work);
	uint32_t block = hashes->block_bytes, left;

	for (uint32_t at = 0, i = 0; at < hashes->length_bytes; at += block, i++) {
		left = hashes->length_bytes - at;
		hash_block(hashes->buf->data + at, left < block ? left : block, hashes->hash[i]);
	}
}

static void done(struct env_work *work)
{
	struct hashes *hashes = container_of(work, struct hashes, work);

	hashes->done(hashes);
}

void hashes_make(struct env *env, struct hashes *hashes)
{
	assert((hashes->length_bytes + hashes->block_bytes - 1) / hashes->block_bytes <=
	       HASHES_MAX);
	hashes->work.run = run;
	hashes->work.done = done;
	env_work_submit(env, &hashes->work);
}
