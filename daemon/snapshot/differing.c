/* SPDX-License-Identifier: Apache-2.0 */
/* differing: where a volume may differ from a snapshot: where its content is that snapshot and what was written
 * since, the store's dirty map tells. */
#include <stdlib.h>

#include "daemon/snapshot/internal.h"

void differing_find(struct differing *differing, struct volume *volume,
		    const struct snapshot_info *info)
{
	uint64_t size = volume_size_bytes(volume), start, length;

	*differing = (struct differing){.bits = NULL};
	if (!volume_is_snapshot_but(volume, &info->volume, &info->id))
		return;
	differing->chunks = (size + SNAPFMT_CHUNK_BYTES - 1) / SNAPFMT_CHUNK_BYTES;
	differing->bits = must_alloc(differing->chunks / 8 + 1);
	for (uint64_t at = 0; volume_dirty_next(volume, VOLUME_STORE, at, &start, &length);
	     at = start + length)
		for (uint64_t c = start / SNAPFMT_CHUNK_BYTES;
		     c * SNAPFMT_CHUNK_BYTES < start + length; c++)
			differing->bits[c / 8] |= (uint8_t)(1u << c % 8);
}

#define RUN_CHUNKS_MAX 8192u /* looked at at a time: all of it may differ */

/* The first chunk from c on that is so, or chunks. */
static uint64_t chunk_find(const struct differing *differing, uint64_t c, uint64_t chunks,
			   bool differs)
{
	const uint8_t *bits = differing->bits, none = differs ? 0 : 0xff;

	while (c < chunks && (bits[c / 8] >> c % 8 & 1) != differs)
		c += c % 8 == 0 && bits[c / 8] == none ? 8 : 1;
	return c < chunks ? c : chunks;
}

/* Who asks goes forward, and a long way may be equal: what was found holds for all before it. */
bool differing_next(struct differing *differing, uint64_t offset, uint64_t *start, uint64_t *end)
{
	if (offset < differing->from || offset >= differing->end) {
		uint64_t all = differing->chunks;
		uint64_t c = chunk_find(differing, offset / SNAPFMT_CHUNK_BYTES, all, true);
		uint64_t most = all - c < RUN_CHUNKS_MAX ? all : c + RUN_CHUNKS_MAX;

		differing->from = offset;
		differing->start = c * SNAPFMT_CHUNK_BYTES;
		differing->end = UINT64_MAX;
		if (c < all)
			differing->end =
				chunk_find(differing, c, most, false) * SNAPFMT_CHUNK_BYTES;
	}
	if (differing->end == UINT64_MAX)
		return false;
	*start = differing->start > offset ? differing->start : offset;
	*end = differing->end;
	return true;
}

uint64_t differing_bytes(struct differing *differing)
{
	uint64_t bytes = 0, start, end;

	for (uint64_t at = 0; differing_next(differing, at, &start, &end); at = end)
		bytes += end - start;
	return bytes;
}
