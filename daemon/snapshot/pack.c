/* SPDX-License-Identifier: Apache-2.0 */
/* An object being filled. See pack.h. */
#include "daemon/snapshot/pack.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "protocol/crypt.h"

#define GATHER_BYTES (128u * 1024u) /* one block of small parts */
#define SMALL_MAX    (32u * 1024u)  /* larger ones are kept as they are, not copied by the loop */

struct pack {
	enum snapfmt_kind kind;
	struct id128 volume;
	struct snapfmt_ref ref;
	bool padded;
	struct iovec *parts; /* header; slabs, then the index, or pages; padding */
	struct slabs *slabs;
	size_t slab_count; /* parts 1.. of a PACK */
	unsigned placing;  /* reserved, and not there yet */
	size_t part_count, part_room;
	size_t gather_left;  /* room in the last part, if that is a gathering block */
	uint64_t size_bytes; /* without the index */
	struct snapfmt_index_wire *index;
	size_t count, index_room;
	/* while it is put */
	struct store *store; /* NULL: it is not yet */
	struct store_retention retention;
	struct env_op op;
	char name[SNAPFMT_NAME_BYTES];
	void (*done)(void *context, int error, const char *why);
	void *context;
};

static struct iovec *add_part(struct pack *pack, void *data, size_t length)
{
	struct iovec *part = array_add((void **)&pack->parts, &pack->part_count, &pack->part_room,
				       sizeof(*pack->parts));

	*part = (struct iovec){data, length};
	return part;
}

struct pack *pack_new(enum snapfmt_kind kind, const struct id128 *volume,
		      const struct snapfmt_ref *ref, bool padded, struct slabs *slabs)
{
	struct pack *pack = must_alloc(sizeof(*pack));

	pack->kind = kind;
	pack->volume = *volume;
	pack->ref = *ref;
	pack->padded = padded;
	pack->slabs = slabs;
	pack->size_bytes = sizeof(struct snapfmt_header_wire);
	add_part(pack, must_alloc(sizeof(struct snapfmt_header_wire)),
		 sizeof(struct snapfmt_header_wire));
	return pack;
}

void pack_free(struct pack *pack)
{
	if (!pack)
		return;
	assert(!pack->placing);
	for (size_t i = 0; i < pack->part_count; i++)
		if (i >= 1 && i <= pack->slab_count)
			slab_give(pack->slabs, pack->parts[i].iov_base);
		else
			free(pack->parts[i].iov_base);
	free(pack->parts);
	free(pack->index);
	free(pack);
}

/* No more comes into the block of small parts: what is left of it is given back. */
static void gather_end(struct pack *pack)
{
	struct iovec *last = &pack->parts[pack->part_count - 1];
	void *shrunk;

	if (pack->gather_left == 0)
		return;
	pack->gather_left = 0;
	shrunk = realloc(last->iov_base, last->iov_len);
	if (shrunk)
		last->iov_base = shrunk;
}

uint32_t pack_add(struct pack *pack, void *data, uint32_t length_bytes)
{
	uint32_t offset = (uint32_t)pack->size_bytes;
	struct iovec *last;

	assert(pack->kind == SNAPFMT_MAPS);
	pack->size_bytes += length_bytes;
	assert(pack->size_bytes < SNAPFMT_PACK_MAX);
	if (length_bytes > SMALL_MAX) {
		gather_end(pack);
		add_part(pack, data, length_bytes);
		return offset;
	}
	if (pack->gather_left < length_bytes) {
		gather_end(pack);
		void *block = malloc(GATHER_BYTES);

		assert(block);
		add_part(pack, block, 0);
		pack->gather_left = GATHER_BYTES;
	}
	last = &pack->parts[pack->part_count - 1];
	memcpy((uint8_t *)last->iov_base + last->iov_len, data, length_bytes);
	last->iov_len += length_bytes;
	pack->gather_left -= length_bytes;
	free(data);
	return offset;
}

/* Room in the last slab. */
static uint32_t slab_left(const struct pack *pack)
{
	return pack->slab_count ? SLAB_BYTES - (uint32_t)pack->parts[pack->slab_count].iov_len : 0;
}

static uint8_t *slab_reserve(struct pack *pack, uint32_t length_bytes)
{
	struct iovec *part;

	if (!slab_left(pack)) {
		add_part(pack, slab_take(pack->slabs), 0);
		pack->slab_count++;
	}
	part = &pack->parts[pack->slab_count];
	part->iov_len += length_bytes;
	return (uint8_t *)part->iov_base + part->iov_len - length_bytes;
}

uint32_t pack_reserve(struct pack *pack, uint32_t length_bytes, struct pack_place *place)
{
	uint32_t offset = (uint32_t)pack->size_bytes;
	uint32_t first = slab_left(pack) ? slab_left(pack) : SLAB_BYTES;

	assert(pack->kind == SNAPFMT_PACK && length_bytes && length_bytes <= SLAB_BYTES);
	pack->size_bytes += length_bytes;
	assert(pack->size_bytes < SNAPFMT_PACK_MAX);
	if (first > length_bytes)
		first = length_bytes;
	*place = (struct pack_place){.pack = pack, .to_bytes = first};
	place->to = slab_reserve(pack, first);
	if (first < length_bytes)
		place->rest = slab_reserve(pack, length_bytes - first);
	pack->placing++;
	return offset;
}

void pack_place_write(const struct pack_place *place, uint32_t at, const void *data,
		      uint32_t length_bytes)
{
	uint32_t first = at < place->to_bytes ? place->to_bytes - at : 0;

	if (first > length_bytes)
		first = length_bytes;
	if (first)
		memcpy(place->to + at, data, first);
	if (first < length_bytes)
		memcpy(place->rest + (at + first - place->to_bytes), (const uint8_t *)data + first,
		       length_bytes - first);
}

static void put_start(struct pack *pack)
{
	store_put_spent(pack->store, &pack->op, pack->name, pack->parts, (unsigned)pack->part_count,
			&pack->retention);
}

void pack_placed(struct pack_place *place)
{
	struct pack *pack = place->pack;

	place->pack = NULL;
	assert(pack->placing);
	if (!--pack->placing && pack->store)
		put_start(pack);
}

void pack_index(struct pack *pack, uint64_t chunk, struct snapfmt_entry *entry)
{
	struct snapfmt_index_wire *wire;

	assert(pack->kind == SNAPFMT_PACK);
	entry->ordinal = (uint32_t)pack->count;
	wire = array_add((void **)&pack->index, &pack->count, &pack->index_room, sizeof(*wire));
	snapfmt_index_encode(chunk, entry, wire);
}

void pack_count_page(struct pack *pack)
{
	assert(pack->kind == SNAPFMT_MAPS);
	pack->count++;
}

static uint64_t content_bytes(const struct pack *pack)
{
	if (pack->kind == SNAPFMT_PACK)
		return pack->size_bytes + pack->count * sizeof(*pack->index);
	return pack->size_bytes;
}

uint64_t pack_size_bytes(const struct pack *pack)
{
	return pack->padded ? cryptfmt_padded_bytes(content_bytes(pack)) : content_bytes(pack);
}

uint32_t pack_count(const struct pack *pack)
{
	return (uint32_t)pack->count;
}

static void pack_put_done(struct env_op *op, int64_t result)
{
	struct pack *pack = container_of(op, struct pack, op);
	void (*done)(void *context, int error, const char *why) = pack->done;
	void *context = pack->context;
	char why[WHY_BYTES] = "";
	int error = result < 0 ? (int)result : 0;

	if (error)
		why_set(why, error, "%s: %s", pack->name, store_strerror(error));
	pack_free(pack);
	done(context, error, why);
}

void pack_put(struct pack *pack, struct store *store, const struct store_retention *retention,
	      void (*done)(void *context, int error, const char *why), void *context)
{
	struct snapfmt_header header = {
		.kind = pack->kind,
		.volume = pack->volume,
		.ref = pack->ref,
		.size_bytes = pack_size_bytes(pack),
		.table_count = (uint32_t)pack->count,
		.padding_bytes = (uint32_t)(pack_size_bytes(pack) - content_bytes(pack)),
	};
	size_t index_bytes = pack->count * sizeof(*pack->index);

	if (pack->kind == SNAPFMT_PACK) {
		header.table_offset = pack->size_bytes;
		header.table_crc = crc32c(0, pack->index, index_bytes);
		add_part(pack, pack->index, index_bytes);
		pack->index = NULL; /* it is a part now */
	}
	if (header.padding_bytes)
		add_part(pack, must_alloc(header.padding_bytes), header.padding_bytes);
	snapfmt_header_encode(&header, pack->parts[0].iov_base);
	snapfmt_name(pack->kind, &pack->volume, &pack->ref, pack->name);
	pack->op.done = pack_put_done;
	pack->done = done;
	pack->context = context;
	pack->store = store;
	pack->retention = *retention;
	if (!pack->placing)
		put_start(pack);
}
