/* SPDX-License-Identifier: Apache-2.0 */
/* batch: what a helper thread does with the content of a batch: which of its chunks are new, packed one by one. */
#include "daemon/snapshot/seal.h"

#include <string.h>

#include "daemon/snapshot/sha256.h"

/* What does not shrink is stored as it is, and stays where it was read until it has its place. */
static void chunk_pack(struct seal_batch *batch, unsigned i, const uint8_t *data, uint32_t length)
{
	struct snapfmt_entry *entry = &batch->chunks[i].entry;
	uint8_t *out = batch->packed->data + batch->packed_bytes;
	size_t packed = ZSTD_compressCCtx(batch->zstd, out, length, data, length,
					  batch->writer->zstd_level);

	if (ZSTD_isError(packed) || packed >= length) {
		packed = length;
		batch->chunks[i].stored = data;
		entry->flags = 0;
	} else {
		batch->chunks[i].stored = out;
		batch->packed_bytes += (uint32_t)packed;
		entry->flags = SNAPFMT_ZSTD;
	}
	entry->offset = batch->stored_bytes;
	entry->stored_bytes = (uint32_t)packed;
	entry->stored_crc = crc32c(0, batch->chunks[i].stored, packed);
	batch->stored_bytes += (uint32_t)packed;
}

/* One that is not zeroes, on its way through a batch's work. */
struct content {
	unsigned number; /* in the batch */
	const uint8_t *data;
	uint32_t length;
};

/* Their hashes are known: what is not as in the base is packed. */
static void content_compare(struct seal_batch *batch, const struct content *content)
{
	uint64_t chunk = batch->first_chunk + content->number;
	const struct snapfmt_entry *old = &batch->page->map.entries[chunk % SNAPFMT_PAGE_CHUNKS];
	const uint8_t *hash = batch->chunks[content->number].entry.hash;

	batch->chunks[content->number].state = CHUNK_SAME;
	if (old->stored_bytes && !memcmp(old->hash, hash, sizeof(old->hash)) &&
	    !repack_wants(batch->writer, &old->pack))
		return;
	batch->chunks[content->number].state = CHUNK_NEW;
	chunk_pack(batch, content->number, content->data, content->length);
}

/* One or two: two are hashed in hardly more time than one. */
static void contents_take(struct seal_batch *batch, const struct content *contents, unsigned count)
{
	if (count == 2 && contents[0].length == contents[1].length)
		sha256_pair(contents[0].data, contents[1].data, contents[0].length,
			    batch->chunks[contents[0].number].entry.hash,
			    batch->chunks[contents[1].number].entry.hash);
	else
		for (unsigned i = 0; i < count; i++)
			codec_hash(contents[i].data, contents[i].length,
				   batch->chunks[contents[i].number].entry.hash);
	for (unsigned i = 0; i < count; i++)
		content_compare(batch, &contents[i]);
}

void batch_run(struct env_work *work)
{
	struct seal_batch *batch = container_of(work, struct seal_batch, work);
	uint64_t size = volume_size_bytes(batch->writer->volume);
	const uint8_t *data = batch->buf->data;
	struct content contents[2];
	unsigned count = 0;

	batch->packed_bytes = batch->stored_bytes = 0;
	for (unsigned i = 0; i < batch->count; i++) {
		uint32_t length = chunk_bytes(batch->first_chunk + i, size);

		batch->chunks[i].entry = (struct snapfmt_entry){.stored_bytes = 0};
		batch->chunks[i].state = CHUNK_ZERO;
		if (MUTATE(snapshot_skip_changed_chunk) && i == 0)
			batch->chunks[i].state = CHUNK_SAME;
		else if (!bytes_are_zero(data, length))
			contents[count++] = (struct content){i, data, length};
		data += length;
		if (count == 2 || (count && i + 1 == batch->count)) {
			contents_take(batch, contents, count);
			count = 0;
		}
	}
}

void batch_place_run(struct env_work *work)
{
	struct seal_batch *batch = container_of(work, struct seal_batch, work);

	for (unsigned i = 0; i < batch->count; i++)
		if (batch->chunks[i].state == CHUNK_NEW)
			pack_place_write(&batch->place, batch->chunks[i].entry.offset,
					 batch->chunks[i].stored,
					 batch->chunks[i].entry.stored_bytes);
}
